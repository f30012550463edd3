"""Rules for operators: listed, checked without being loaded, switched for good."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc.aio
import pytest

from daemoneye.agent.v1 import rule_service_pb2, rule_service_pb2_grpc
from daemoneye.common.v1 import error_pb2
from daemoneye_agent import service_rule
from daemoneye_agent.rule import Rule, load_builtin_rules
from daemoneye_agent.rulebook import BUILT_IN, LoadedRule, Rulebook
from daemoneye_agent.service_rule import MAX_CHECKS, MAX_DOCUMENT_BYTES, RuleServicer
from daemoneye_agent.store import EventStore
from daemoneye_agent.store_file import StoreFailedError
from daemoneye_agent.store_thread import StoreThread
from daemoneye_mesh.errors import DeadlineError, InvalidRequestError, OverloadedError

pb = rule_service_pb2
Explain = Callable[[grpc.aio.AioRpcError], tuple[str, str, str]]
GOOD_SQL = "SELECT pid, name FROM process_events WHERE name = 'sh'"


@pytest.fixture
async def servicer(
    store: StoreThread, make_rule: Callable[..., Rule]
) -> AsyncIterator[RuleServicer]:
    rules = [LoadedRule(make_rule("one"), BUILT_IN)]
    book = Rulebook(rules, {})
    yield RuleServicer(store, book)
    await store.run(lambda _: book.close())


async def check(servicer: RuleServicer, document: str) -> Any:
    return await servicer.ValidateRule(pb.ValidateRuleRequest(document=document), None)


def stub_of(agent: Any) -> Any:
    return rule_service_pb2_grpc.RuleServiceStub(agent.operator())


async def test_rules_are_listed_by_id_with_what_they_are(agent: Any) -> None:
    answer = await stub_of(agent).ListRules(pb.ListRulesRequest(), timeout=5)
    known = load_builtin_rules()
    assert [rule.rule_id for rule in answer.rules] == [rule.id for rule in known]
    first = answer.rules[0]
    assert (first.title, first.sql, first.origin) == (known[0].title, known[0].sql, "built-in")
    assert list(first.dedup_columns) == list(known[0].dedup)
    assert first.is_enabled == known[0].enabled


async def test_switch_outlives_the_agent(start_agent: Any) -> None:
    agent = await start_agent()
    rule_id = load_builtin_rules()[0].id
    request = pb.SetRuleEnabledRequest(rule_id=rule_id, is_enabled=False)
    for _ in range(2):
        answer = await stub_of(agent).SetRuleEnabled(request, timeout=5)
        assert not answer.rule.is_enabled
    agent.stop.request("restart")
    await agent.task
    again = await start_agent()
    answer = await stub_of(again).GetRule(pb.GetRuleRequest(rule_id=rule_id), timeout=5)
    assert not answer.rule.is_enabled


@pytest.mark.parametrize("rule_id", ["", "gone", "x" * 10_000])
async def test_unknown_rule_is_not_found(agent: Any, explain: Explain, rule_id: str) -> None:
    stub = stub_of(agent)
    for call in (
        stub.GetRule(pb.GetRuleRequest(rule_id=rule_id), timeout=5),
        stub.SetRuleEnabled(pb.SetRuleEnabledRequest(rule_id=rule_id), timeout=5),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call
        code, reason, said = explain(failed.value)
        assert (code, reason) == ("NOT_FOUND", "NOT_FOUND")
        assert "daemoneye rules" in said or len(rule_id) > 1_000


async def test_choice_that_cannot_be_kept_takes_no_effect(
    servicer: RuleServicer, store: StoreThread
) -> None:
    refusing: Any = await store.run(lambda it: it)
    refusing.refused_switches = 1
    with pytest.raises(StoreFailedError):
        await servicer.SetRuleEnabled(pb.SetRuleEnabledRequest(rule_id="one"), None)
    answer = await servicer.GetRule(pb.GetRuleRequest(rule_id="one"), None)
    assert answer.rule.is_enabled
    assert await store.run(EventStore.rule_states) == {}


async def test_good_document_is_valid(
    servicer: RuleServicer, make_document: Callable[..., str]
) -> None:
    answer = await check(servicer, make_document("mine", GOOD_SQL))
    assert (answer.is_valid, answer.sample_count) == (True, 2)
    assert (list(answer.errors), list(answer.sample_failures)) == ([], [])


async def test_document_whose_samples_fail_says_which(
    servicer: RuleServicer, make_document: Callable[..., str]
) -> None:
    sql = "SELECT pid, name FROM process_events WHERE name = 'cat'"
    answer = await check(servicer, make_document("mine", sql))
    assert not answer.is_valid
    assert list(answer.sample_failures) == [
        "positive 1: it did not match",
        "negative 1: it matched",
    ]
    assert list(answer.errors) == []


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("", "is missing"),
        ("id = ", "not TOML"),
        ("[" * 3_000, "not TOML"),
        ("a = " + "[" * 60_000, "nested"),
        ("id = 1", "is missing"),
    ],
)
async def test_broken_document_is_an_answer_and_no_failure(
    servicer: RuleServicer, document: str, said: str
) -> None:
    answer = await check(servicer, document)
    assert not answer.is_valid
    (error,) = answer.errors
    assert error.reason == error_pb2.ERROR_REASON_RULE_INVALID
    assert said in error.message


async def test_document_with_forbidden_sql_is_invalid(
    servicer: RuleServicer, make_document: Callable[..., str]
) -> None:
    answer = await check(servicer, make_document("mine", "DELETE FROM alerts"))
    assert not answer.is_valid
    assert "sql" in answer.errors[0].message


async def test_document_may_have_64_kib_and_no_byte_more(
    servicer: RuleServicer, make_document: Callable[..., str]
) -> None:
    document = make_document("mine", GOOD_SQL) + "\n# ä"
    padding = MAX_DOCUMENT_BYTES - len(document.encode())
    assert (await check(servicer, document + "x" * padding)).is_valid
    with pytest.raises(InvalidRequestError, match="65537 bytes"):
        await check(servicer, document + "x" * (padding + 1))


async def test_document_with_too_many_samples_is_invalid(
    servicer: RuleServicer, make_document: Callable[..., str]
) -> None:
    document = make_document("mine", GOOD_SQL) + '[[positive]]\nname = "sh"\n' * 100
    answer = await check(servicer, document)
    assert "102 samples" in answer.errors[0].message


async def test_checks_are_bounded_in_number_and_time(
    servicer: RuleServicer,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., Awaitable[None]],
) -> None:
    import threading

    go_on = threading.Event()
    started: list[str] = []

    def slow(document: str) -> Any:
        started.append(document)
        assert go_on.wait(20)
        raise InvalidRequestError("late")

    monkeypatch.setattr(service_rule, "check_document", slow)
    monkeypatch.setattr(service_rule, "CHECK_TIMEOUT_S", 0.05)
    for number in range(MAX_CHECKS):
        with pytest.raises(DeadlineError, match="use fewer"):
            await check(servicer, str(number))
    with pytest.raises(OverloadedError):
        await check(servicer, "one more")
    assert started == ["0", "1"]
    go_on.set()
    monkeypatch.setattr(service_rule, "CHECK_TIMEOUT_S", 10.0)
    await eventually(lambda: servicer._check_count == 0)
    assert not (await check(servicer, "again")).is_valid
