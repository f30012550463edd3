"""``agent.v1.RuleService``: the rules, their state and their samples."""

import asyncio
from typing import Any

from daemoneye.agent.v1 import rule_service_pb2 as pb
from daemoneye.agent.v1 import rule_service_pb2_grpc
from daemoneye_agent.alert_message import to_severity
from daemoneye_agent.engine import SampleFailure, test_rule
from daemoneye_agent.rule import Rule, parse_rule
from daemoneye_agent.rulebook import Rulebook, RuleState
from daemoneye_agent.store import EventStore
from daemoneye_agent.store_thread import StoreThread
from daemoneye_mesh.errors import InvalidRequestError
from daemoneye_mesh.rpc_status import to_detail

__all__ = ["RuleServicer"]

MAX_DOCUMENT_BYTES = 64 << 10


class RuleServicer(rule_service_pb2_grpc.RuleServiceServicer):
    """Answers operators about rules.

    Args:
        store: thread that owns the rulebook and keeps the switches.
        rulebook: the rules.
    """

    def __init__(self, store: StoreThread, rulebook: Rulebook) -> None:
        self._store = store
        self._rulebook = rulebook

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
            rule, failures = await asyncio.to_thread(_check_document, request.document)
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

        def switch(store: EventStore) -> RuleState:
            self._rulebook.find(request.rule_id)
            store.set_rule_enabled(request.rule_id, request.is_enabled)
            return self._rulebook.switch(request.rule_id, request.is_enabled)

        return pb.SetRuleEnabledResponse(rule=_to_rule(await self._store.run(switch)))


def _check_document(document: str) -> tuple[Rule, list[SampleFailure]]:
    rule = parse_rule(document, "document")
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
