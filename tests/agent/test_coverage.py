"""What the mesh cannot see is said by every answer it touches, and by no other."""

import pytest

from daemoneye_agent.coverage import MAX_CAUSES, Coverage
from daemoneye_agent.loss import Shortfall
from daemoneye_agent.registry import (
    CollectorRegistry,
    CollectorState,
    Heartbeat,
    RegistrationRequest,
    ReportedHealth,
)
from daemoneye_mesh.completeness import Degradation, DegradedReason

POLLING = Degradation(DegradedReason.POLLING, "procmond", "processes are polled")


class Mesh:
    """A registry on a clock of ours, and what Coverage makes of it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.registry = CollectorRegistry(lambda: self.now_s, lambda: 1)
        self.is_subscribed = True
        self.failing: dict[str, str] = {}
        self.coverage = Coverage(self.registry, lambda: self.is_subscribed, lambda: self.failing)

    def register(self, name: str = "procmond", epoch: int = 1, domain: str = "process") -> None:
        self.registry.register(RegistrationRequest(name, epoch, domains=(domain,)), name)

    def beat(self, name: str = "procmond", epoch: int = 1, *said: Degradation) -> None:
        self.registry.heartbeat(Heartbeat(name, epoch, 1, ReportedHealth.HEALTHY), name)
        self.coverage.report(name, epoch, said)

    def silence(self) -> None:
        for _ in range(4):
            self.now_s += 5
            self.registry.expire()

    def reasons(self, *tables: str) -> list[tuple[str, str]]:
        found = self.coverage.of_tables(tables)
        return [(one.reason.value, one.subject) for one in found]


def serving() -> Mesh:
    mesh = Mesh()
    mesh.register()
    mesh.beat()
    return mesh


def test_answer_is_complete_when_nobody_has_anything_to_say() -> None:
    mesh = serving()
    assert mesh.reasons("process_events", "alerts", "event_losses") == []
    assert mesh.coverage.of_everything() == ()


def test_answer_is_degraded_by_what_a_collector_reports() -> None:
    mesh = serving()
    mesh.beat("procmond", 1, POLLING)
    assert mesh.reasons("process_events") == [("POLLING", "procmond")]


def test_answer_over_other_tables_is_not_touched_by_collectors() -> None:
    assert Mesh().reasons("event_losses") == []


def test_answer_is_degraded_when_no_process_collector_is_known() -> None:
    mesh = Mesh()
    mesh.register("netmond", domain="network")
    assert mesh.reasons("process_events") == [("COLLECTOR_UNAVAILABLE", "process")]


def test_answer_is_degraded_until_a_collector_has_said_what_it_sees() -> None:
    mesh = Mesh()
    mesh.register()
    assert mesh.reasons("process_events") == [("READ_ERRORS", "procmond")]


def test_answer_does_not_believe_what_an_older_instance_said() -> None:
    mesh = serving()
    mesh.register(epoch=2)
    assert mesh.reasons("process_events") == [("READ_ERRORS", "procmond")]


def test_answer_names_a_collector_that_fell_silent_beside_one_that_serves() -> None:
    mesh = serving()
    mesh.silence()
    mesh.register("second")
    mesh.beat("second")
    assert mesh.reasons("process_events") == [("COLLECTOR_UNAVAILABLE", "procmond")]


def test_answer_does_not_miss_a_collector_that_said_good_bye_while_another_serves() -> None:
    mesh = serving()
    mesh.register("second")
    mesh.beat("second")
    mesh.registry.deregister("procmond", 1, "procmond")
    assert mesh.reasons("process_events") == []


def test_collector_out_of_service_never_counts_as_complete() -> None:
    mesh = serving()
    mesh.silence()
    (collector,) = mesh.registry.collectors()
    assert collector.state is CollectorState.UNAVAILABLE
    (said,) = mesh.coverage.reported(collector)
    assert (said.reason, said.subject) == (DegradedReason.COLLECTOR_UNAVAILABLE, "procmond")
    assert "no heartbeat" in said.message


def test_collector_that_left_is_forgotten() -> None:
    mesh = serving()
    mesh.beat("procmond", 1, POLLING)
    mesh.coverage.forget("procmond")
    mesh.coverage.forget("never-there")
    assert mesh.reasons("process_events") == [("READ_ERRORS", "procmond")]


def test_answer_is_degraded_while_the_bus_is_not_heard() -> None:
    mesh = serving()
    mesh.is_subscribed = False
    assert mesh.reasons("process_events") == [("COLLECTOR_UNAVAILABLE", "eventbus")]


def test_answer_is_degraded_by_losses_and_by_a_store_that_fails_until_they_are_over() -> None:
    mesh = serving()
    mesh.coverage.note_shortfall(Shortfall(7, 3))
    mesh.coverage.note_store_failure("the disk is full")
    found = mesh.coverage.of_tables(["process_events"])
    assert [one.reason.value for one in found] == ["EVENTS_LOST", "COLLECTOR_UNAVAILABLE"]
    assert "7 events did not arrive, 3 of them may still come" in found[0].message
    assert "the disk is full" in found[1].message
    mesh.coverage.note_shortfall(Shortfall())
    mesh.coverage.note_store_failure(None)
    assert mesh.reasons("process_events") == []


def test_answer_is_degraded_while_gaps_are_stored() -> None:
    mesh = serving()
    mesh.coverage.note_shortfall(Shortfall(gap_count=2, last_gap="procmond at noon: killed"))
    for table in ("process_events", "collector_events", "alerts"):
        (found,) = mesh.coverage.of_tables([table])
        assert found.reason is DegradedReason.COLLECTION_GAP
        assert "2 gaps" in found.message
        assert "procmond at noon: killed" in found.message
    assert mesh.reasons("collection_gaps", "event_losses") == []


def test_answer_over_other_events_asks_every_collector_and_no_process_collector_alone() -> None:
    mesh = Mesh()
    assert mesh.reasons("collector_events") == [("COLLECTOR_UNAVAILABLE", "collectors")]
    mesh.register("netmond", domain="network")
    assert mesh.reasons("collector_events") == [("READ_ERRORS", "netmond")]
    mesh.beat("netmond")
    assert mesh.reasons("collector_events") == []
    mesh.registry.deregister("netmond", 1, "netmond")
    assert mesh.reasons("collector_events") == [("COLLECTOR_UNAVAILABLE", "collectors")]


@pytest.mark.parametrize(("status", "said"), [(4, "permanent error"), (5, "fatal error")])
def test_collector_that_says_it_does_not_do_its_job_degrades_answers(
    status: int, said: str
) -> None:
    mesh = Mesh()
    mesh.register()
    beat = Heartbeat(
        "procmond", 1, 1, ReportedHealth.HEALTHY, detail="no procfs; mount it", status=status
    )
    mesh.registry.heartbeat(beat, "procmond")
    mesh.coverage.report("procmond", 1, ())
    (found,) = mesh.coverage.of_tables(["process_events"])
    assert found.reason is DegradedReason.COLLECTOR_UNAVAILABLE
    assert said in found.message
    assert "no procfs; mount it" in found.message


def test_failing_rule_degrades_alerts_and_not_events() -> None:
    mesh = serving()
    mesh.failing["shells"] = "it took too long"
    assert mesh.reasons("process_events") == []
    assert mesh.reasons("alerts") == [("RULE_FAILED", "shells")]
    assert [one.subject for one in mesh.coverage.of_everything()] == ["shells"]


def test_collector_cannot_flood_every_answer_with_causes() -> None:
    mesh = serving()
    flood = [
        Degradation(DegradedReason.READ_ERRORS, "s" * 1000, f"{number} " + "m" * 10_000)
        for number in range(500)
    ]
    mesh.beat("procmond", 1, *flood)
    found = mesh.coverage.of_events()
    assert len(found) == MAX_CAUSES + 1
    assert max(len(one.message) for one in found) <= 512
    assert max(len(one.subject) for one in found) <= 64
    assert (found[-1].reason, str(500 - MAX_CAUSES) in found[-1].message) == ("TRUNCATED", True)
