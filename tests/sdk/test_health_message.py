import pytest

from collector_core.health import HealthMonitor, Status
from collector_core.health_message import to_health_response
from collector_core.manual_clock import ManualClock
from collector_core.resources import DegradationLevel, ResourceUse
from daemoneye.common.v1 import completeness_pb2
from daemoneye.ipc.v1 import collector_health_pb2 as pb
from daemoneye_mesh.completeness import Degradation, DegradedReason


def test_health_is_said_in_full():
    clock = ManualClock(wall_ns=5_000_000_000)
    health = HealthMonitor(clock)
    health.component("log").ok()
    health.component("bus").recoverable("no broker; start it")
    health.ready()
    health.is_shedding = True
    use = ResourceUse(0.61, 0.25, 3 << 20, 100 << 20, DegradationLevel.NO_HASHING)
    lost = Degradation(DegradedReason.OVER_BUDGET, "unit", "hashes are left out")
    response = to_health_response(health.snapshot(), use, [lost], 12.5)
    assert response.status == pb.COLLECTOR_STATUS_RECOVERABLE_ERROR
    assert response.since.ToNanoseconds() == 5_000_000_000
    bus, log = response.components
    assert (bus.name, bus.message, bus.failure_count) == ("bus", "no broker; start it", 1)
    assert bus.status == pb.COLLECTOR_STATUS_RECOVERABLE_ERROR
    assert (log.name, log.status, log.message) == ("log", pb.COLLECTOR_STATUS_OK, "")
    assert log.since.ToNanoseconds() == log.checked_at.ToNanoseconds() == 5_000_000_000
    assert response.is_shedding
    assert response.resources == pb.ResourceUse(
        cpu_share=0.61,
        cpu_budget_share=0.25,
        rss_bytes=3 << 20,
        rss_budget_bytes=100 << 20,
        level=pb.DEGRADATION_LEVEL_NO_HASHING,
    )
    assert response.completeness.state == completeness_pb2.COMPLETENESS_STATE_DEGRADED
    assert response.uptime.ToNanoseconds() == 12_500_000_000


def test_health_has_no_resources_before_the_first_measurement():
    response = to_health_response(HealthMonitor(ManualClock()).snapshot(), None, (), 0)
    assert response.status == pb.COLLECTOR_STATUS_STARTING
    assert not response.HasField("resources")
    assert response.completeness.state == completeness_pb2.COMPLETENESS_STATE_COMPLETE


@pytest.mark.parametrize(
    ("ours", "prefix", "theirs"),
    [
        (Status, "COLLECTOR_STATUS_", pb.CollectorStatus),
        (DegradationLevel, "DEGRADATION_LEVEL_", pb.DegradationLevel),
    ],
)
def test_names_are_those_of_the_contract(ours, prefix, theirs):
    names = [name.removeprefix(prefix) for name, _ in theirs.items()]
    assert [one.name for one in ours] == [name for name in names if name != "UNSPECIFIED"]
