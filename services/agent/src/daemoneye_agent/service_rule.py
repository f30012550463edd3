"""``agent.v1.RuleService``: the rules, their state and their samples."""

import asyncio
import logging
from typing import Any

from daemoneye.agent.v1 import rule_service_pb2 as pb
from daemoneye.agent.v1 import rule_service_pb2_grpc
from daemoneye_agent.alert_message import to_severity
from daemoneye_agent.engine import SampleFailure, test_rule
from daemoneye_agent.rule import InvalidRuleError, Rule, parse_rule
from daemoneye_agent.rulebook import Rulebook, RuleState
from daemoneye_agent.store import EventStore
from daemoneye_agent.store_thread import StoreThread
from daemoneye_mesh.authentication import caller
from daemoneye_mesh.errors import DeadlineError, InvalidRequestError, OverloadedError
from daemoneye_mesh.rpc_status import to_detail

__all__ = ["RuleServicer"]

MAX_DOCUMENT_BYTES = 64 << 10
MAX_SAMPLES = 100
MAX_CHECKS = 2
CHECK_TIMEOUT_S = 9.0
"""Less than the deadline of the method, so that the caller is told why."""

log = logging.getLogger("daemoneye.rules")


class RuleServicer(rule_service_pb2_grpc.RuleServiceServicer):
    """Answers operators about rules.

    Args:
        store: thread that owns the rulebook and keeps the switches.
        rulebook: the rules.
    """

    def __init__(self, store: StoreThread, rulebook: Rulebook) -> None:
        self._store = store
        self._rulebook = rulebook
        self._check_count = 0

    async def ListRules(self, request: pb.ListRulesRequest, context: Any) -> pb.ListRulesResponse:
        """Lists the rules by id."""
        states = await self._store.run(lambda _: self._rulebook.states())
        return pb.ListRulesResponse(rules=map(_to_rule, states))

    async def GetRule(self, request: pb.GetRuleRequest, context: Any) -> pb.GetRuleResponse:
        """Reads one rule."""
        state = await self._store.run(lambda _: self._rulebook.state(request.rule_id))
        return pb.GetRuleResponse(rule=_to_rule(state))

    async def ValidateRule(
        self, request: pb.ValidateRuleRequest, context: Any
    ) -> pb.ValidateRuleResponse:
        """Checks a document and runs its samples."""
        size_bytes = len(request.document.encode())
        if size_bytes > MAX_DOCUMENT_BYTES:
            raise InvalidRequestError(
                f"the document has {size_bytes} bytes, more than {MAX_DOCUMENT_BYTES}; shorten it",
                field="document",
                limit_bytes=MAX_DOCUMENT_BYTES,
            )
        try:
            rule, failures = await self._check(request.document)
        except InvalidRequestError as error:
            return pb.ValidateRuleResponse(is_valid=False, errors=[to_detail(error)])
        return pb.ValidateRuleResponse(
            is_valid=not failures,
            sample_failures=[f"{one.sample}: {one.reason}" for one in failures],
            sample_count=len(rule.positive) + len(rule.negative),
        )

    async def SetRuleEnabled(
        self, request: pb.SetRuleEnabledRequest, context: Any
    ) -> pb.SetRuleEnabledResponse:
        """Switches a rule; the choice is stored before it takes effect."""
        rule_id, is_enabled = request.rule_id, request.is_enabled

        def switch(store: EventStore) -> RuleState:
            return self._rulebook.switch(
                rule_id, is_enabled, lambda: store.set_rule_enabled(rule_id, is_enabled)
            )

        state = await self._store.run(switch)
        word = "on" if is_enabled else "off"
        log.warning("%s switched rule %s %s", caller().identity.name, rule_id, word)
        return pb.SetRuleEnabledResponse(rule=_to_rule(state))

    async def _check(self, document: str) -> tuple[Rule, list[SampleFailure]]:
        # A check cannot be cut short, so those that were given up count until they end.
        if self._check_count >= MAX_CHECKS:
            raise OverloadedError(
                f"{MAX_CHECKS} documents are being checked; try again in a moment",
                limit=MAX_CHECKS,
            )
        self._check_count += 1
        checking = asyncio.ensure_future(asyncio.to_thread(check_document, document))
        checking.add_done_callback(self._finish_check)
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                return await asyncio.shield(checking)
        except TimeoutError:
            raise DeadlineError(
                f"the samples took longer than {CHECK_TIMEOUT_S:g} s; use fewer",
                deadline_s=CHECK_TIMEOUT_S,
            ) from None

    def _finish_check(self, checking: asyncio.Future[tuple[Rule, list[SampleFailure]]]) -> None:
        self._check_count -= 1
        if not checking.cancelled():
            checking.exception()  # whoever still waits is told; nobody may be left


def check_document(document: str) -> tuple[Rule, list[SampleFailure]]:
    """Reads a rule and runs its samples; blocking.

    Raises:
        InvalidRequestError: the document is no rule.
    """
    try:
        rule = parse_rule(document, "document")
    except RecursionError:
        raise InvalidRuleError(
            "document is nested too deep; use plain tables and lists", file="document"
        ) from None
    sample_count = len(rule.positive) + len(rule.negative)
    if sample_count > MAX_SAMPLES:
        raise InvalidRuleError(
            f"document has {sample_count} samples, more than {MAX_SAMPLES}; use fewer",
            file="document",
            sample_count=sample_count,
            limit=MAX_SAMPLES,
        )
    return rule, test_rule(rule)


def _to_rule(state: RuleState) -> pb.Rule:
    rule = state.loaded.rule
    return pb.Rule(
        rule_id=rule.id,
        title=rule.title,
        description=rule.description,
        severity=to_severity(rule.severity),
        sql=rule.sql,
        dedup_columns=rule.dedup,
        attack_techniques=rule.attack,
        is_enabled=state.is_enabled,
        origin=state.loaded.origin,
        evaluation_count=state.counters.evaluations,
        match_count=state.counters.matches,
        failure_count=state.counters.failures,
        last_failure=state.last_failure,
    )
