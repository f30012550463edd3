"""What a collector tells the agent: health, heartbeats and counters that add up."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from collector_core.delivery import Delivery, DeliveryBounds, Pressure
from collector_core.event import Event, EventClass
from collector_core.live_config import LiveConfig
from collector_core.manual_clock import ManualClock
from collector_core.report import Report
from collector_core.resources import ResourceBudget
from collector_core.settings import CollectorSettings
from collector_core.vitals import Vitals
from collector_core.wal import EventLog, WalLimits
from daemoneye.agent.v1 import registry_service_pb2
from daemoneye.common.v1 import completeness_pb2
from daemoneye.eventbus.v1 import event_data_pb2
from daemoneye.ipc.v1 import collector_control_service_pb2 as control_pb
from daemoneye.ipc.v1 import collector_health_pb2, event_log_pb2
from daemoneye_mesh.completeness import Degradation, DegradedReason
from daemoneye_mesh.configuration import load_settings

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 20
NOWHERE = Path("/nonexistent")
LIMITS = WalLimits(max_bytes=64 << 20, segment_bytes=1 << 20)
MONITORING = control_pb.MONITORING_STATE_MONITORING
POLLS = Degradation(DegradedReason.POLLING, "one", "it polls")


@dataclass
class Parts:
    """A report and everything that it reports on."""

    delivery: Delivery
    vitals: Vitals
    config: LiveConfig[CollectorSettings]
    clock: ManualClock
    report: Report
    cannot_see: list[Degradation] = field(default_factory=list)

    def stats(self) -> control_pb.GetCollectorStatsResponse:
        return self.report.stats(MONITORING, {"ok": 3}, {"timeout": 1})

    async def put(self, count: int, event_class: EventClass = EventClass.LIFECYCLE) -> None:
        for _ in range(count):
            data = event_data_pb2.ProcessEventData()
            await self.delivery.put(
                Event("events.process.lifecycle", data, event_class=event_class)
            )


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    clock = ManualClock()
    event_log = EventLog.open(tmp_path / "wal", LIMITS, boot_id="boot", now_ns=clock.wall_ns)
    pressure = Pressure(0.7, 0.5)
    vitals = Vitals("unit", CollectorSettings(), pressure, clock)
    bounds = DeliveryBounds(LIMITS, outbox_messages=10_000, outbox_bytes=8 << 20)
    delivery = Delivery("unit", event_log, bounds, pressure, vitals.note_log)
    config = LiveConfig(load_settings(CollectorSettings, "unit", (), {}, NOWHERE, NOWHERE))
    cannot_see: list[Degradation] = []
    report = Report(
        delivery, vitals, config, lambda: vitals.degradations(lambda: cannot_see), clock.monotonic_s
    )
    task = asyncio.create_task(delivery.run())
    try:
        async with asyncio.timeout(GUARD_S):
            yield Parts(delivery, vitals, config, clock, report, cannot_see)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        event_log.close()


def assert_adds_up(stats: control_pb.GetCollectorStatsResponse) -> None:
    left_out = sum(stats.dropped_count.values())
    assert stats.emitted_count == stats.logged_count + left_out + stats.pending_count


async def test_emitted_is_logged_and_left_out_and_pending_at_every_moment(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, append = threading.Event(), parts.delivery.log.append

    def append_when_allowed(groups: Any) -> None:
        assert go.wait(GUARD_S)
        append(groups)

    monkeypatch.setattr(parts.delivery.log, "append", append_when_allowed)
    await parts.put(10)
    parts.delivery.pressure.note(1.0)
    await parts.put(3, EventClass.SAMPLE)
    await parts.put(2, EventClass.METADATA)
    await parts.put(5)
    stats = parts.stats()
    assert (stats.emitted_count, stats.logged_count, stats.pending_count) == (20, 0, 15)
    assert dict(stats.dropped_count) == {"shed_sample": 3, "shed_metadata": 2}
    assert stats.pending_bytes > 0
    assert_adds_up(stats)
    go.set()
    await parts.delivery.flush()
    stats = parts.stats()
    assert (stats.logged_count, stats.pending_count, stats.pending_bytes) == (15, 0, 0)
    assert_adds_up(stats)


async def test_counters_follow_events_through_broker_and_log(parts: Parts) -> None:
    await parts.put(10)
    await parts.delivery.flush()
    outbox = parts.delivery.outbox
    await outbox.wait_waiting(1)
    while outbox.waiting_count < 10:
        await outbox.wait_waiting(10)
    batch = outbox.take(1_000, 1 << 20)
    assert batch is not None
    outbox.settle(batch.batch_id)
    await parts.delivery.acknowledge(parts.delivery.epoch, 4)
    await parts.delivery.replay(parts.delivery.epoch, 6, 8)
    await outbox.wait_waiting(3)
    stats = parts.stats()
    assert stats.state == MONITORING
    assert (stats.source_epoch, stats.source_sequence) == (parts.delivery.epoch, 10)
    assert (stats.published_count, stats.unacknowledged_count, stats.replayed_count) == (10, 6, 3)
    assert stats.log_bytes > 0
    assert dict(stats.task_count) == {"ok": 3}
    assert dict(stats.analysis_count) == {"timeout": 1}
    (position,) = stats.log_positions
    assert (position.source_epoch, position.first_sequence) == (parts.delivery.epoch, 5)
    assert (position.last_sequence, position.acknowledged_sequence) == (10, 4)


async def test_refused_events_are_lost_and_stand_in_the_positions(
    parts: Parts, eventually: Any
) -> None:
    await parts.put(4)
    await parts.delivery.flush()
    await parts.delivery.outbox.wait_waiting(4)
    batch = parts.delivery.outbox.take(1_000, 1 << 20)
    assert batch is not None
    parts.delivery.outbox.settle(batch.batch_id, "TOPIC_INVALID")
    await eventually(lambda: dict(parts.stats().lost_count) == {"refused": 4})
    (position,) = parts.report.heartbeat().log_positions
    (loss,) = position.losses
    assert (loss.first_sequence, loss.last_sequence) == (1, 4)
    assert loss.reason == event_log_pb2.EVENT_LOSS_REASON_REFUSED
    assert_adds_up(parts.stats())


async def test_uptime_is_that_of_a_clock_that_is_never_set(parts: Parts) -> None:
    parts.clock.advance(12.5)
    parts.clock.step_wall(-3_600)
    assert parts.stats().uptime.ToNanoseconds() == 12_500_000_000
    assert parts.report.health().uptime.ToNanoseconds() == 12_500_000_000


@pytest.mark.parametrize(
    ("trouble", "status", "health"),
    [
        (None, "OK", "OK"),
        ("recoverable", "RECOVERABLE_ERROR", "DEGRADED"),
        ("permanent", "PERMANENT_ERROR", "FAILED"),
        ("fatal", "FATAL_ERROR", "FAILED"),
    ],
)
async def test_health_of_a_heartbeat_follows_the_status(
    parts: Parts, trouble: str | None, status: str, health: str
) -> None:
    parts.vitals.health.ready()
    if trouble:
        getattr(parts.vitals.health.component("source one"), trouble)("broken; mend it")
    beat = parts.report.heartbeat()
    assert collector_health_pb2.CollectorStatus.Name(beat.status) == f"COLLECTOR_STATUS_{status}"
    assert registry_service_pb2.CollectorHealth.Name(beat.health) == f"COLLECTOR_HEALTH_{health}"


async def test_heartbeat_before_the_collector_is_ready_says_that_it_starts(parts: Parts) -> None:
    beat = parts.report.heartbeat()
    assert beat.status == collector_health_pb2.COLLECTOR_STATUS_STARTING


async def test_what_cannot_be_seen_degrades_a_heartbeat(parts: Parts) -> None:
    parts.vitals.health.ready()
    complete = parts.report.heartbeat()
    assert complete.completeness.state == completeness_pb2.COMPLETENESS_STATE_COMPLETE
    parts.cannot_see.append(POLLS)
    beat = parts.report.heartbeat()
    assert beat.health == registry_service_pb2.COLLECTOR_HEALTH_DEGRADED
    assert beat.status == collector_health_pb2.COLLECTOR_STATUS_OK
    assert [cause.message for cause in beat.completeness.causes] == ["it polls"]


async def test_heartbeat_names_neither_identity_nor_sequence(parts: Parts) -> None:
    beat = parts.report.heartbeat()
    assert (beat.collector_id, beat.instance_epoch, beat.heartbeat_sequence) == ("", 0, 0)


async def test_heartbeat_has_the_version_of_the_configuration_and_whether_it_sheds(
    parts: Parts,
) -> None:
    assert (parts.report.heartbeat().config_version, parts.report.heartbeat().is_shedding) == (
        0,
        False,
    )
    await parts.config.update({"health_interval_s": "3.0"}, by="agent")
    parts.vitals.health.is_shedding = True
    beat = parts.report.heartbeat()
    assert (beat.config_version, beat.is_shedding) == (1, True)


async def test_metrics_of_a_heartbeat_are_the_counters(parts: Parts) -> None:
    await parts.put(5)
    parts.delivery.pressure.note(1.0)
    await parts.put(2, EventClass.SAMPLE)
    await parts.delivery.flush()
    metrics, stats = parts.report.heartbeat().metrics, parts.stats()
    assert metrics["events_emitted"] == stats.emitted_count == 7
    assert metrics["events_logged"] == stats.logged_count == 5
    assert metrics["events_shed"] == 2
    assert metrics["events_pending"] == 0
    assert metrics["events_published"] == 0
    assert metrics["events_unacknowledged"] == 5
    assert metrics["log_bytes"] == stats.log_bytes
    assert metrics["rss_bytes"] == 0  # not measured yet


async def test_use_of_resources_is_told_once_it_was_measured(parts: Parts) -> None:
    assert not parts.report.health().HasField("resources")
    parts.vitals.resources.apply_budget(ResourceBudget(2.0, 1 << 40))
    for _ in range(3):
        parts.vitals.resources.measure()
    told = parts.report.health().resources
    assert told.cpu_budget_share == 2.0
    assert told.rss_bytes > 0
    assert parts.report.heartbeat().metrics["rss_bytes"] == told.rss_bytes


async def test_health_names_the_parts_and_what_is_wrong(parts: Parts) -> None:
    parts.vitals.health.ready()
    parts.vitals.note_log("no space left on device; make room")
    answer = parts.report.health()
    assert answer.status == collector_health_pb2.COLLECTOR_STATUS_RECOVERABLE_ERROR
    messages = {one.name: one.message for one in answer.components}
    assert messages["log"].startswith("no space left on device")
    assert {"log", "bus", "registration", "resources"} <= messages.keys()
    assert answer.completeness.state == completeness_pb2.COMPLETENESS_STATE_DEGRADED
