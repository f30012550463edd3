"""Queries over a real socket: whoever may not, or asks for what is not offered, learns why."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from daemoneye.agent.v1 import query_service_pb2, query_service_pb2_grpc
from daemoneye.common.v1 import completeness_pb2
from daemoneye_agent.query_pool import QueryAnswer
from daemoneye_agent.schema import TABLES
from daemoneye_agent.service_query import QueryServicer
from daemoneye_mesh.errors import OverloadedError
from daemoneye_mesh.limits import MAX_BATCH_BYTES
from daemoneye_mesh.token import TokenIssuer

pb = query_service_pb2
Explain = Callable[[grpc.aio.AioRpcError], tuple[str, str, str]]
Value = query_service_pb2.SqlValue

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")


async def ask(channel: grpc.aio.Channel, sql: str, **request: Any) -> list[Any]:
    stub = query_service_pb2_grpc.QueryServiceStub(channel)
    call = stub.ExecuteQuery(pb.ExecuteQueryRequest(sql=sql, **request), timeout=10)
    return [response async for response in call]


async def refused(
    channel: grpc.aio.Channel, explain: Explain, sql: str = "SELECT 1", **request: Any
) -> tuple[str, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await ask(channel, sql, **request)
    return explain(failed.value)


async def test_answer_has_columns_first_then_rows_and_completeness_last(agent: Any) -> None:
    parameters = {
        "i": Value(integer=-5),
        "r": Value(real=0.5),
        "t": Value(text="ä"),
        "b": Value(blob=b"\0"),
        "n": Value(),
    }
    sql = "SELECT :i AS i, :r AS r, :t AS t, :b AS b, :n AS n FROM json_each('[1,2]')"
    first, rows, last = await ask(agent.operator(), sql, parameters=parameters)
    assert (list(first.columns), list(first.rows)) == (["i", "r", "t", "b", "n"], [])
    assert list(rows.rows[1].values) == list(parameters.values())
    assert [one.is_last for one in (first, rows, last)] == [False, False, True]
    assert last.row_count == 2
    assert last.completeness.state == completeness_pb2.COMPLETENESS_STATE_COMPLETE


async def test_answer_over_events_is_degraded_without_bus_and_collector(agent: Any) -> None:
    *_, last = await ask(agent.operator(), "SELECT count(*) FROM process_events")
    assert [cause.subject for cause in last.completeness.causes] == ["process", "eventbus"]
    assert last.completeness.state == completeness_pb2.COMPLETENESS_STATE_DEGRADED


async def test_answer_over_live_processes_is_degraded_without_collector(agent: Any) -> None:
    first, last = await ask(agent.operator(), "SELECT pid FROM processes")
    assert (list(first.columns), last.row_count) == (["pid"], 0)
    assert last.completeness.state == completeness_pb2.COMPLETENESS_STATE_DEGRADED


@pytest.mark.parametrize(
    ("sql", "reason", "said"),
    [
        ("", "SQL_INVALID", ""),
        ("   ;", "SQL_INVALID", "SELECT"),
        ("SELEC 1", "SQL_FORBIDDEN", "SELECT"),
        ("SELECT 1; SELECT 2", "SQL_FORBIDDEN", "one statement"),
        ("SELECT 1; DROP TABLE alerts", "SQL_FORBIDDEN", ""),
        ("DELETE FROM alerts", "SQL_FORBIDDEN", "SELECT"),
        ("UPDATE alerts SET count = 0", "SQL_FORBIDDEN", "SELECT"),
        ("ATTACH 'x' AS y", "SQL_FORBIDDEN", ""),
        ("PRAGMA journal_mode", "SQL_FORBIDDEN", ""),
        ("SELECT load_extension('x')", "SQL_FORBIDDEN", "load_extension"),
        ("SELECT * FROM sqlite_schema", "TABLE_UNKNOWN", "sqlite_schema"),
        ("SELECT * FROM proceses", "TABLE_UNKNOWN", "proceses"),
        ("SELECT pidd FROM processes", "COLUMN_UNKNOWN", "pidd"),
        ("SELECT 'a", "SQL_INVALID", ""),
        ("SELECT '" + "x" * 33_000 + "'", "SQL_", ""),
        ("SELECT :a", "SQL_INVALID", "parameter a"),
    ],
)
async def test_sql_that_is_not_offered_is_refused_with_reason_and_remedy(
    agent: Any, explain: Explain, sql: str, reason: str, said: str
) -> None:
    code, given, sentence = await refused(agent.operator(), explain, sql)
    assert code == "INVALID_ARGUMENT"
    assert given.startswith(reason), sentence
    assert said in sentence
    assert ";" in sentence  # what to do about it follows what is wrong


async def test_parameter_that_the_query_has_not_is_refused(agent: Any, explain: Explain) -> None:
    answer = await refused(agent.operator(), explain, parameters={"x": Value(integer=1)})
    assert answer[0] == "INVALID_ARGUMENT"
    assert "no parameter x" in answer[2]


async def test_more_rows_than_ever_given_are_refused(agent: Any, explain: Explain) -> None:
    answer = await refused(agent.operator(), explain, max_rows=1_000_001)
    assert answer[:2] == ("INVALID_ARGUMENT", "REQUEST_INVALID")
    assert "1000000" in answer[2]
    assert (await ask(agent.operator(), "SELECT 1", max_rows=1_000_000))[-1].is_last


async def test_rows_beyond_what_is_wanted_degrade_the_answer(agent: Any) -> None:
    *_, last = await ask(agent.operator(), "SELECT value FROM json_each('[1,2,3]')", max_rows=2)
    assert last.row_count == 2
    reasons = [cause.reason for cause in last.completeness.causes]
    assert reasons == [completeness_pb2.DEGRADED_REASON_TRUNCATED]


async def test_query_that_takes_too_long_ends_with_a_reason(
    start_agent: Any, explain: Explain
) -> None:
    agent = await start_agent(query_timeout_s=0.1)
    each = ", ".join(f"json_each('[1,2,3,4,5,6,7,8,9]') e{n}" for n in range(12))
    code, reason, said = await refused(agent.operator(), explain, f"SELECT count(*) FROM {each}")
    assert (code, reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    assert "0.1 s" in said


@pytest.mark.parametrize("case", ["none", "garbage", "expired", "foreign key", "foreign domain"])
async def test_token_that_does_not_verify_is_refused(
    agent: Any, explain: Explain, case: str
) -> None:
    layout = agent.layout
    key = agent.issuer._key
    to = layout.agent.spiffe_id
    local = layout.operator()
    stranger = type(local)("elsewhere.local", local.kind, "local")
    tokens: dict[str, str | None] = {
        "none": None,
        "garbage": "abc.def.ghi",
        "expired": TokenIssuer(key, layout.trust_domain, clock=lambda: 1_700_000_000).issue(
            local, to, timedelta(seconds=60)
        ),
        "foreign key": TokenIssuer(
            ec.generate_private_key(ec.SECP256R1()), layout.trust_domain
        ).issue(local, to, timedelta(seconds=60)),
        "foreign domain": TokenIssuer(key, "elsewhere.local").issue(
            stranger, to, timedelta(seconds=60)
        ),
    }
    reasons = {"none": "TOKEN_MISSING", "expired": "TOKEN_EXPIRED"}
    code, reason, said = await refused(agent.channel(tokens[case]), explain)
    assert (code, reason) == ("UNAUTHENTICATED", reasons.get(case, "TOKEN_INVALID"))
    assert "token" in said


async def test_token_for_another_service_is_refused(agent: Any, explain: Explain) -> None:
    token = agent.token(agent.layout.operator(), agent.layout.broker)
    code, reason, said = await refused(agent.channel(token), explain)
    assert (code, reason) == ("UNAUTHENTICATED", "TOKEN_AUDIENCE")
    assert agent.layout.agent.spiffe_id in said


async def test_collector_may_not_query(agent: Any, explain: Explain) -> None:
    code, reason, said = await refused(agent.collector(), explain)
    assert (code, reason) == ("PERMISSION_DENIED", "ACCESS_DENIED")
    assert "ExecuteQuery" in said


async def test_tables_are_those_of_the_schema(agent: Any) -> None:
    stub = query_service_pb2_grpc.QueryServiceStub(agent.operator())
    answer = await stub.ListTables(pb.ListTablesRequest(), timeout=5)
    assert [table.name for table in answer.tables] == list(TABLES)
    kinds = [table.kind for table in answer.tables]
    assert kinds == sorted(kinds)
    assert [column.name for column in answer.tables[0].columns] == list(
        TABLES["process_events"].column_names
    )


class FakeContext:
    def time_remaining(self) -> float | None:
        return None


class FakePool:
    """Answers with these rows in one piece."""

    def __init__(self, *rows: tuple[Any, ...]) -> None:
        self.rows = rows

    async def run(self, *_: object) -> Any:
        yield QueryAnswer(("text",), self.rows)


async def answer_of(*rows: tuple[Any, ...]) -> list[Any]:
    servicer = QueryServicer(FakePool(*rows), lambda _: ())  # type: ignore[arg-type]
    request = pb.ExecuteQueryRequest(sql="SELECT 1")
    return [one async for one in servicer.ExecuteQuery(request, FakeContext())]


async def test_rows_that_do_not_fit_into_one_message_come_in_several() -> None:
    rows = [("ä" * 500_000,) for _ in range(9)]  # a million bytes each
    responses = await answer_of(*rows)
    assert max(response.ByteSize() for response in responses) <= MAX_BATCH_BYTES
    assert sum(len(response.rows) for response in responses) == responses[-1].row_count == 9


async def test_row_that_fits_into_no_message_is_refused() -> None:
    with pytest.raises(OverloadedError, match="substr") as refusal:
        await answer_of(("ä" * 2_200_000,))
    assert refusal.value.reason == "RESULT_TOO_LARGE"
