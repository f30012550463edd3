"""Queries in threads: bounded in number and time, gone when their caller is gone."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path

import pytest

from daemoneye.common.v1 import common_pb2, completeness_pb2
from daemoneye.ipc.v1 import collector_service_pb2, ipc_pb2
from daemoneye_agent.coverage import Coverage
from daemoneye_agent.event import EventRow, SqlValue
from daemoneye_agent.live_processes import LiveProcesses, to_filter
from daemoneye_agent.query import QueryLimits
from daemoneye_agent.query_pool import MAX_QUERIES, QueryAnswer, QueryPool
from daemoneye_agent.registry import CollectorRegistry, RegistrationRequest
from daemoneye_agent.sql import InvalidSqlError
from daemoneye_agent.store import EventStore
from daemoneye_mesh.completeness import Degradation, DegradedReason
from daemoneye_mesh.errors import (
    DaemoneyeError,
    DeadlineError,
    OverloadedError,
    UnavailableError,
)

Chunk = collector_service_pb2.ExecuteTaskResponse

LIVE = "SELECT pid, name FROM processes"
ENDLESS = "SELECT count(*) FROM " + ", ".join(
    f"json_each('[1,2,3,4,5,6,7,8,9]') e{n}" for n in range(12)
)
NUMBERS = "SELECT a.value + b.value * 10 FROM json_each('[0,1,2,3,4,5,6,7,8,9]') a, json_each('[0,1,2,3,4,5,6,7,8,9]') b"
LONG_S = 30.0

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")


class FakeClients:
    """Collectors that answer with these chunks, or hang."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.error: DaemoneyeError | None = None
        self.is_hung = False
        self.asked: list[common_pb2.ProcessFilter] = []
        self.ended_count = 0

    async def enumerate_processes(
        self, collector_id: str, wanted: common_pb2.ProcessFilter, timeout_s: float
    ) -> AsyncIterator[Chunk]:
        self.asked.append(wanted)
        try:
            for chunk in self.chunks:
                yield chunk
            if self.is_hung:
                await asyncio.Event().wait()
            if self.error:
                raise self.error
        finally:
            self.ended_count += 1


def make_chunk(*pids: int, is_last: bool = True, **completeness: int) -> Chunk:
    records = [common_pb2.ProcessRecord(pid=pid, name=f"n{pid}") for pid in pids]
    state = completeness.get("state", completeness_pb2.COMPLETENESS_STATE_COMPLETE)
    return Chunk(
        result=ipc_pb2.DetectionResult(processes=records, success=True),
        is_last=is_last,
        completeness=completeness_pb2.Completeness(state=state) if is_last else None,  # type: ignore[arg-type]
    )


class Bench:
    """A pool over an empty store and one fake collector."""

    def __init__(self, path: Path, limits: QueryLimits) -> None:
        self.clients = FakeClients()
        self.registry = CollectorRegistry()
        self.registry.register(RegistrationRequest("procmond", 1, domains=("process",)), "procmond")
        self.coverage = Coverage(self.registry, lambda: True, dict)
        self.pool = QueryPool(path, limits, self.open_live)

    def open_live(self, timeout_s: float) -> LiveProcesses:
        loop = asyncio.get_running_loop()
        return LiveProcesses(self.clients, self.coverage, loop, timeout_s)  # type: ignore[arg-type]

    async def ask(
        self,
        sql: str,
        parameters: Mapping[str, SqlValue] | None = None,
        max_rows: int = 0,
        timeout_s: float | None = None,
    ) -> tuple[list[EventRow], QueryAnswer]:
        rows: list[EventRow] = []
        answer = QueryAnswer((), ())
        async with aclosing(self.pool.run(sql, parameters or {}, max_rows, timeout_s)) as pieces:
            async for answer in pieces:
                rows += answer.rows
        return rows, answer


async def read_on(run: AsyncIterator[QueryAnswer]) -> None:
    async for _ in run:
        pass


def query_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("query")]


@pytest.fixture
async def open_bench(tmp_path: Path) -> AsyncIterator[Callable[..., Bench]]:
    path = tmp_path / "s" / "events.db"
    store = EventStore.open(path)
    opened: list[Bench] = []

    def make(**limits: float) -> Bench:
        opened.append(Bench(path, QueryLimits(**{"deadline_s": LONG_S, **limits})))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for bench in opened:
        await bench.pool.close()
    store.close()


@pytest.fixture
def bench(open_bench: Callable[..., Bench]) -> Bench:
    return open_bench()


async def test_query_yields_columns_rows_and_tables(bench: Bench) -> None:
    rows, answer = await bench.ask("SELECT :a + 1 AS n, name FROM process_events", {"a": 1})
    assert (rows, answer.columns, answer.tables) == ([], ("n", "name"), {"process_events"})
    assert sorted((await bench.ask(NUMBERS))[0]) == [(number,) for number in range(100)]


async def test_query_says_when_it_was_cut_at_the_rows_wanted(bench: Bench) -> None:
    rows, answer = await bench.ask(NUMBERS, max_rows=7)
    assert len(rows) == 7
    assert [one.reason for one in answer.degradations] == [DegradedReason.TRUNCATED]


async def test_query_that_is_no_query_is_refused_and_gives_its_place_back(bench: Bench) -> None:
    for _ in range(MAX_QUERIES + 1):
        with pytest.raises(InvalidSqlError):
            await bench.ask("DROP TABLE alerts")
    assert bench.pool.running_count == 0


async def test_live_rows_come_from_the_collector_with_its_completeness(bench: Bench) -> None:
    unsaid = completeness_pb2.COMPLETENESS_STATE_UNSPECIFIED
    bench.clients.chunks = [make_chunk(1, 2, is_last=False), make_chunk(3, state=unsaid)]
    rows, answer = await bench.ask(LIVE)
    assert rows == [(1, "n1"), (2, "n2"), (3, "n3")]
    assert [one.reason for one in answer.degradations] == [DegradedReason.READ_ERRORS]


async def test_live_lookup_is_pushed_down_to_the_collector(bench: Bench) -> None:
    bench.clients.chunks = [make_chunk(7)]
    assert (await bench.ask(LIVE + " WHERE pid = 7"))[0] == [(7, "n7")]
    assert list(bench.clients.asked[0].pids) == [7]


async def test_live_rows_without_a_collector_are_none_and_degraded(bench: Bench) -> None:
    bench.registry.deregister("procmond", 1, "procmond")
    rows, answer = await bench.ask(LIVE)
    assert rows == []
    assert [one.reason for one in answer.degradations] == [DegradedReason.COLLECTOR_UNAVAILABLE]


async def test_live_rows_so_far_are_kept_when_the_collector_breaks_off(bench: Bench) -> None:
    bench.clients.chunks = [make_chunk(1, is_last=False)]
    bench.clients.error = UnavailableError("it ended its answer early")
    rows, answer = await bench.ask(LIVE)
    assert rows == [(1, "n1")]
    assert "ended its answer early" in answer.degradations[0].message


async def test_live_record_that_sql_cannot_hold_is_left_out_and_told(bench: Bench) -> None:
    chunk = make_chunk(1, 2)
    chunk.result.processes[0].memory_usage = 2**64 - 1
    bench.clients.chunks = [chunk]
    rows, answer = await bench.ask(LIVE)
    assert rows == [(2, "n2")]
    assert answer.degradations == (
        Degradation(DegradedReason.READ_ERRORS, "procmond", "1 records of procmond are not usable"),
    )


async def test_live_answer_has_a_bound_in_bytes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemoneye_agent.live_processes.MAX_ANSWER_BYTES", 40)
    bench.clients.chunks = [make_chunk(1, is_last=False), make_chunk(*range(2, 50))]
    rows, answer = await bench.ask(LIVE)
    assert rows == [(1, "n1")]
    assert [one.reason for one in answer.degradations] == [DegradedReason.TRUNCATED]


@pytest.mark.parametrize("pid", [0, -1, 2**32, "'x'", "1.5"])
def test_filter_finds_nothing_for_what_is_no_pid(pid: object) -> None:
    assert to_filter({"pid": pid}) is None  # type: ignore[dict-item]


def test_filter_narrows_by_pid_and_name() -> None:
    wanted = to_filter({"pid": 5, "name": "sh"})
    assert wanted is not None
    assert (list(wanted.pids), list(wanted.process_names)) == ([5], ["sh"])
    assert to_filter({"name": ""}) == common_pb2.ProcessFilter()


async def test_places_are_bounded(bench: Bench, eventually: Callable[..., Awaitable[None]]) -> None:
    bench.clients.is_hung = True
    runs = [bench.pool.run(LIVE, {}) for _ in range(MAX_QUERIES)]
    waiting = [asyncio.create_task(anext(run)) for run in runs]
    await eventually(lambda: len(bench.clients.asked) == MAX_QUERIES)
    with pytest.raises(OverloadedError, match="4 queries"):
        await bench.ask(NUMBERS)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_all_queries_cancelled_at_once_while_a_collector_hangs_free_their_threads(
    bench: Bench, eventually: Callable[..., Awaitable[None]]
) -> None:
    bench.clients.is_hung = True
    for _ in range(3):
        ended_before = bench.clients.ended_count
        waiting = [asyncio.create_task(bench.ask(LIVE)) for _ in range(MAX_QUERIES)]
        target = ended_before + MAX_QUERIES
        await eventually(lambda target=target: len(bench.clients.asked) == target)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await eventually(lambda: bench.pool.running_count == 0)
        await eventually(lambda target=target: bench.clients.ended_count == target)
    bench.clients.is_hung = False
    bench.clients.chunks = [make_chunk(1)]
    assert (await bench.ask(LIVE))[0] == [(1, "n1")]
    await bench.pool.close()
    assert query_threads() == []


async def test_query_that_computes_is_cancelled_at_once(
    bench: Bench, eventually: Callable[..., Awaitable[None]]
) -> None:
    asking = asyncio.create_task(bench.ask(ENDLESS))
    await eventually(lambda: bench.pool.running_count == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await eventually(lambda: bench.pool.running_count == 0)


async def test_query_cancelled_before_its_thread_began_leaves_nothing_open(
    bench: Bench, eventually: Callable[..., Awaitable[None]]
) -> None:
    for _ in range(20):
        asking = asyncio.create_task(bench.ask(ENDLESS))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await eventually(lambda: bench.pool.running_count == 0)


async def test_query_ends_at_its_deadline_while_a_collector_hangs(
    open_bench: Callable[..., Bench],
) -> None:
    bench = open_bench(deadline_s=0.2)
    bench.clients.is_hung = True
    with pytest.raises(DeadlineError):
        await bench.ask(LIVE)
    assert bench.pool.running_count == 0
    assert bench.clients.ended_count <= 1


async def test_query_ends_before_the_callers_deadline(bench: Bench) -> None:
    with pytest.raises(DeadlineError, match=r"0\.18 s"):
        await bench.ask(ENDLESS, timeout_s=0.2)
    with pytest.raises(DeadlineError):
        await bench.ask(NUMBERS, timeout_s=0.0)


async def test_reader_that_stops_reading_loses_its_place_at_the_deadline(
    open_bench: Callable[..., Bench], eventually: Callable[..., Awaitable[None]]
) -> None:
    bench = open_bench(deadline_s=0.2, batch_bytes=16)
    run = bench.pool.run(NUMBERS, {})
    await anext(run)
    await eventually(lambda: bench.pool.running_count == 0)
    with pytest.raises(DeadlineError):
        await read_on(run)


async def test_closing_stops_what_runs_and_refuses_what_comes(
    bench: Bench, eventually: Callable[..., Awaitable[None]]
) -> None:
    bench.clients.is_hung = True
    asking = asyncio.create_task(bench.ask(LIVE))
    await eventually(lambda: bench.clients.asked)
    await bench.pool.close()
    with pytest.raises(DaemoneyeError):
        await asking
    assert query_threads() == []
    with pytest.raises(UnavailableError, match="shutting down"):
        await bench.ask(NUMBERS)


async def test_defect_in_a_fetch_reaches_the_reader(bench: Bench) -> None:
    class Broken:
        degradations: tuple[Degradation, ...] = ()

        def fetch(self, *_: object) -> Iterable[EventRow]:
            raise LookupError("a defect")

        def cancel(self) -> None:
            """Nothing to cancel."""

    pool = QueryPool(bench.pool._path, QueryLimits(), lambda _: Broken())
    with pytest.raises(LookupError, match="a defect"):
        await anext(pool.run(LIVE, {}))
    await pool.close()
