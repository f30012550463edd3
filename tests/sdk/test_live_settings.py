"""Every setting that may change while a collector runs is obeyed by the running collector.

Each live setting has an observation: it starts from a value under which something cannot happen, changes
the setting by ``UpdateConfig`` and sees it happen. A live setting without one fails a test.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from collector_core import Event, EventSource, SourceCaps
from collector_core.collector import Collector
from collector_core.settings import CollectorSettings
from collector_core.wal import EventLog, SyncPolicy
from daemoneye.common.v1 import common_pb2
from daemoneye.eventbus.v1 import event_data_pb2
from daemoneye.ipc.v1 import collector_config_pb2 as config_pb
from daemoneye.ipc.v1 import collector_control_service_pb2_grpc
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.lifecycle import StopRequest
from daemoneye_mesh.setting import describe_settings
from daemoneye_procmond.config import ProcmondSettings
from daemoneye_procmond.source import ProcessSource

pytestmark = pytest.mark.usefixtures("no_leftover_tasks", "root_level")

GUARD_S = 20
MIB = 1 << 20
LIVE = sorted(one.name for one in describe_settings(ProcmondSettings) if one.is_live)
TRIGGERS = """
[[trigger]]
id = "temporary"
description = "A program was started from a directory that anybody can write to."
condition = { kind = "executable_path_pattern", pattern = "/tmp/*" }
analysis_type = "yara_scan"
target_collector = "scanner"
"""


class Watcher(EventSource):
    """Lets a test emit, and counts how often it is asked how it is."""

    name = "watcher"
    caps = SourceCaps.PROCESS

    def __init__(self) -> None:
        self.check_count = 0
        self.context: Any = None
        self.emit: Any = None

    async def prepare(self, context: Any) -> None:
        self.context = context

    async def watch(self, emit: Any) -> None:
        self.emit = emit
        await asyncio.Event().wait()

    async def health_check(self) -> str:
        self.check_count += 1
        return ""


class Unit:
    """A collector that runs in a mesh, and whoever steers it."""

    def __init__(
        self, *, mesh_identity: Any, broker: Any, state_dir: Path, running: Any, eventually: Any
    ) -> None:
        self.broker = broker
        self.eventually = eventually
        self.source = Watcher()
        self.stop = StopRequest()
        self.collector: Any = None
        self.task: Any = None
        self._mesh = mesh_identity
        self._state_dir = state_dir
        self._running = running

    async def start(self, *sources: Any, **settings: Any) -> None:
        """Runs it with settings of its own."""
        chosen = ProcmondSettings(
            runtime_dir=self._mesh.layout.root,
            state_dir=self._state_dir,
            **{"wal_segment_bytes": MIB, **settings},
        )
        given = [self.source, *(make(chosen) for make in sources)]
        self.collector = Collector("unit", given, chosen)
        self.task = self._running(self.collector.run(self.stop))
        await self.eventually(lambda: self.source.emit and self.broker.streams)

    @property
    def running(self) -> Any:
        return self.collector.running

    async def change(self, **changes: str) -> None:
        """Changes settings as the agent does."""
        layout = self._mesh.layout
        source = self._mesh.source(layout.agent, layout.collector("unit"))
        async with open_channel(layout.collector_socket("unit"), source) as channel:
            stub = collector_control_service_pb2_grpc.CollectorControlServiceStub(channel)
            request = config_pb.UpdateConfigRequest(changes=changes)
            answer = await stub.UpdateConfig(request, timeout=GUARD_S)
        assert [one.name for one in answer.changes] == sorted(changes)

    async def start_process(self, pid: int, pad_bytes: int = 0) -> None:
        """Emits an event of a process that was started from ``/tmp``."""
        data = event_data_pb2.ProcessEventData(
            subtype=event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_CREATED,
            process=common_pb2.ProcessRecord(
                pid=pid,
                name="x",
                executable_path=f"/tmp/{pid}",
                command_line=["x" * pad_bytes],
            ),
        )
        await self.source.emit(Event("events.process.lifecycle", data))

    @property
    def requested_pids(self) -> list[int]:
        """Processes about which an analysis was asked for."""
        events = [one.collection_event for one in self.broker.accepted]
        found = [one.trigger_event for one in events if one.HasField("trigger_event")]
        return [int(one.target.path.removeprefix("/tmp/")) for one in found]

    async def fill_log(self) -> None:
        """Brings events into the log that nobody acknowledges."""
        for pid in range(64):
            await self.start_process(pid, pad_bytes=128 << 10)
        await self.running.delivery.flush()

    @property
    def lost_count(self) -> dict[str, int]:
        return dict(self.running.stats().lost_count)

    async def end(self) -> None:
        self.stop.request("the test is over")
        async with asyncio.timeout(GUARD_S):
            await self.task


@pytest.fixture
def root_level() -> Iterator[None]:
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture
async def unit(
    *,
    mesh_identity: Any,
    broker: Any,
    registry: Any,
    serve: Any,
    running: Any,
    eventually: Any,
    tmp_path: Path,
) -> AsyncIterator[Unit]:
    mesh_identity.enrol(mesh_identity.layout.collector("unit"))
    await serve(broker)
    await serve(registry)
    made = Unit(
        mesh_identity=mesh_identity,
        broker=broker,
        state_dir=tmp_path / "state",
        running=running,
        eventually=eventually,
    )
    yield made
    if made.task is not None and not made.task.done():
        await made.end()


async def observe_log_level(unit: Unit, tmp_path: Path, monkeypatch: Any) -> None:
    await unit.start(log_level="info")
    await unit.change(log_level="error")
    assert logging.getLogger().level == logging.ERROR


async def observe_health_interval_s(unit: Unit, tmp_path: Path, monkeypatch: Any) -> None:
    await unit.start(health_interval_s=600.0)
    await unit.change(health_interval_s="0.1")
    await unit.eventually(lambda: unit.source.check_count >= 3)


async def observe_shutdown_timeout_s(unit: Unit, tmp_path: Path, monkeypatch: Any) -> None:
    await unit.start(shutdown_timeout_s=300.0)
    unit.broker.answering.clear()  # so that the drain lasts as long as it may
    await unit.start_process(1)
    await unit.eventually(lambda: unit.broker.batches)
    await unit.change(shutdown_timeout_s="0.5")
    await unit.end()
    assert unit.running.delivery.outbox.pending_count == 1
    unit.broker.answering.set()


async def observe_wal_max_bytes(unit: Unit, tmp_path: Path, monkeypatch: Any) -> None:
    await unit.start(wal_max_bytes=64 * MIB)
    await unit.fill_log()
    assert unit.running.delivery.log.size_bytes > 7 * MIB
    assert not unit.lost_count
    await unit.change(wal_max_bytes=str(4 * MIB))
    assert unit.running.delivery.log.size_bytes <= 4 * MIB
    assert unit.lost_count["log_full"] > 0


async def observe_wal_max_age_s(unit: Unit, tmp_path: Path, monkeypatch: Any) -> None:
    passed_ns = 0

    class AgingLog:
        """Opens logs for which time passes when the test says so."""

        @staticmethod
        def open(*args: Any, **options: Any) -> EventLog:
            return EventLog.open(*args, boottime_ns=lambda: passed_ns, **options)

    monkeypatch.setattr("collector_core.collector.EventLog", AgingLog)
    await unit.start(wal_max_age_s=86_400.0)
    await unit.fill_log()
    passed_ns = 3_600 * 1_000_000_000
    assert not unit.lost_count
    await unit.change(wal_max_age_s="60.0")
    assert unit.lost_count["log_expired"] > 0


async def observe_wal_sync_interval_s(unit: Unit, tmp_path: Path, monkeypatch: Any) -> None:
    await unit.start(wal_sync=SyncPolicy.INTERVAL, wal_sync_interval_s=60.0)
    syncs: list[None] = []
    event_log = unit.running.delivery.log
    sync = event_log.sync

    def count_and_sync() -> None:
        syncs.append(None)
        sync()

    monkeypatch.setattr(event_log, "sync", count_and_sync)
    await unit.change(wal_sync_interval_s="0.01")
    await unit.eventually(lambda: len(syncs) >= 3)


async def observe_shed_above_share(unit: Unit, tmp_path: Path, monkeypatch: Any) -> None:
    await unit.start(shed_above_share=0.9, shed_below_share=0.1)
    pressure = unit.running.delivery.pressure
    monkeypatch.setattr(unit.running.delivery, "measure_fill", lambda: 0.3)
    await unit.eventually(lambda: pressure.fill == 0.3)
    assert not pressure.is_shedding
    await unit.change(shed_above_share="0.2")
    await unit.eventually(lambda: pressure.is_shedding)


async def observe_shed_below_share(unit: Unit, tmp_path: Path, monkeypatch: Any) -> None:
    await unit.start(shed_above_share=0.7, shed_below_share=0.1)
    pressure = unit.running.delivery.pressure
    for fill in (0.8, 0.3):
        monkeypatch.setattr(unit.running.delivery, "measure_fill", lambda fill=fill: fill)
        await unit.eventually(lambda fill=fill: pressure.fill == fill)
    assert pressure.is_shedding
    await unit.change(shed_below_share="0.5")
    await unit.eventually(lambda: not pressure.is_shedding)


async def observe_cpu_budget_share(unit: Unit, tmp_path: Path, monkeypatch: Any) -> None:
    await unit.start(cpu_budget_share=0.5)
    await unit.change(cpu_budget_share="0.25")
    assert unit.source.context.resources.budget.cpu_share == 0.25


async def observe_rss_budget_bytes(unit: Unit, tmp_path: Path, monkeypatch: Any) -> None:
    await unit.start(rss_budget_bytes=1 << 40)
    guard = unit.source.context.resources
    await unit.eventually(lambda: guard.use() is not None)
    assert not guard.use().is_over
    await unit.change(rss_budget_bytes=str(32 * MIB))
    assert guard.use().is_over


async def observe_hash_bytes_per_s(unit: Unit, tmp_path: Path, monkeypatch: Any) -> None:
    target = tmp_path / "large"
    with target.open("wb") as file:
        file.truncate(64 * MIB)
    await unit.start(
        hash_bytes_per_s=MIB, hash_roots=(str(tmp_path),), hash_timeout_s=3_600.0
    )  # a minute at that rate
    async with asyncio.timeout(GUARD_S), asyncio.TaskGroup() as group:
        reading = group.create_task(unit.source.context.hasher.hash_path(str(target)))
        await unit.change(hash_bytes_per_s=str(1 << 40))
    assert reading.result().size_bytes == 64 * MIB


async def observe_triggers_per_minute(unit: Unit, tmp_path: Path, monkeypatch: Any) -> None:
    await unit.start(trigger_file=write_triggers(tmp_path), triggers_per_minute=100)
    await unit.start_process(1)
    await unit.eventually(lambda: unit.requested_pids == [1])
    await unit.change(triggers_per_minute="1")
    for pid in range(2, 10):
        await unit.start_process(pid)
    await unit.start_process(99)
    await unit.eventually(lambda: len(unit.broker.accepted) == 12)
    assert unit.requested_pids == [1, 2]


async def observe_trigger_dedup_s(unit: Unit, tmp_path: Path, monkeypatch: Any) -> None:
    await unit.start(trigger_file=write_triggers(tmp_path), trigger_dedup_s=300.0)
    await unit.start_process(1)
    await unit.eventually(lambda: unit.requested_pids == [1])
    await unit.start_process(1)
    await unit.eventually(lambda: len(unit.broker.accepted) == 3)
    assert unit.requested_pids == [1]
    await unit.change(trigger_dedup_s="0.0")
    await unit.start_process(1)
    await unit.eventually(lambda: unit.requested_pids == [1, 1])


async def observe_scan_interval_s(unit: Unit, tmp_path: Path, monkeypatch: Any) -> None:
    delays = await watch_scans(unit, monkeypatch)
    await unit.change(scan_interval_s="7.5")
    await unit.eventually(lambda: delays[-1][0] == 7.5)


async def observe_scan_cpu_share(unit: Unit, tmp_path: Path, monkeypatch: Any) -> None:
    delays = await watch_scans(unit, monkeypatch)
    await unit.change(scan_cpu_share="0.75")
    await unit.eventually(lambda: delays[-1][1] == 0.75)


async def watch_scans(unit: Unit, monkeypatch: Any) -> list[tuple[float, float]]:
    """Runs procmond's source; returns from what its delays are reckoned, and keeps them short."""
    delays: list[tuple[float, float]] = []

    def note_delay(interval_s: float, cpu_s: float, cpu_share: float) -> float:
        delays.append((interval_s, cpu_share))
        return 0.01

    monkeypatch.setattr("daemoneye_procmond.source.next_delay_s", note_delay)
    await unit.start(ProcessSource)
    await unit.eventually(lambda: delays)
    return delays


def write_triggers(directory: Path) -> Path:
    path = directory / "triggers.toml"
    path.write_text(TRIGGERS)
    return path


Observe = Callable[[Unit, Path, Any], Awaitable[None]]
OBSERVATIONS: dict[str, Observe] = {
    name.removeprefix("observe_"): found
    for name, found in list(globals().items())
    if name.startswith("observe_")
}


@pytest.mark.parametrize("name", LIVE)
async def test_live_setting_takes_effect_in_a_running_collector(
    unit: Unit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert name in OBSERVATIONS, f"write observe_{name}: it says it is live, and nothing shows it"
    await OBSERVATIONS[name](unit, tmp_path, monkeypatch)


def test_every_observation_is_of_a_live_setting() -> None:
    assert sorted(OBSERVATIONS) == LIVE
    assert {one.name for one in describe_settings(CollectorSettings) if one.is_live} <= set(LIVE)


async def test_changed_settings_hold_from_the_start_of_the_next_life(
    unit: Unit, running: Any, eventually: Any
) -> None:
    await unit.start(log_level="info", cpu_budget_share=0.5)
    await unit.change(log_level="error", cpu_budget_share="0.25")
    await unit.end()
    logging.getLogger().setLevel(logging.INFO)
    unit.stop, unit.source = StopRequest(), Watcher()
    await unit.start(log_level="info", cpu_budget_share=0.5)
    assert logging.getLogger().level == logging.ERROR
    assert unit.source.context.resources.budget.cpu_share == 0.25


async def test_setting_that_is_not_live_is_refused_and_changes_nothing(unit: Unit) -> None:
    await unit.start()
    before = unit.running.config.current
    with pytest.raises(grpc.aio.AioRpcError, match="outbox_messages cannot change while"):
        await unit.change(outbox_messages="5000", cpu_budget_share="0.25")
    assert unit.running.config.current == before
