import errno
from collections.abc import Callable
from typing import Any

import pytest

from daemoneye_mesh.errors import Code
from daemoneye_procmond.cause import CauseReason
from daemoneye_procmond.errors import CpuShareError
from daemoneye_procmond.observation import TrackerLimits
from daemoneye_procmond.procfs import ProcFs
from daemoneye_procmond.scanner import Scanner, ScanResult, next_delay_s
from daemoneye_procmond.tracker import Tracker


class SteppingClock:
    """Each reading of a clock is a step later than the one before."""

    def __init__(self) -> None:
        self._monotonic_s = 0.0
        self._cpu_s = 0.0
        self.on_sleep: list[Callable[[], None]] = []

    def time_ns(self) -> int:
        return 7_000

    def monotonic_s(self) -> float:
        self._monotonic_s += 1.0
        return self._monotonic_s

    def cpu_s(self) -> float:
        self._cpu_s += 0.25
        return self._cpu_s

    def sleep(self, pause_s: float) -> None:
        if self.on_sleep:
            self.on_sleep.pop(0)()


@pytest.fixture
def clock() -> SteppingClock:
    return SteppingClock()


@pytest.fixture
def scanner(procfs: ProcFs, clock: SteppingClock) -> Scanner:
    return Scanner(procfs, Tracker(), clock)


def kinds(result: ScanResult) -> list[tuple[str, int]]:
    return [(event.kind.value, event.record.pid) for event in result.events]


def test_scan_tells_what_is_there_and_what_it_cost(scanner: Scanner, proc_tree: Any) -> None:
    proc_tree.add(5, start_ticks=50)
    proc_tree.add(6, start_ticks=60, state="Z")
    result = scanner.scan()
    assert kinds(result) == [("inventory", 1), ("inventory", 5), ("inventory", 6), ("stop", 6)]
    assert {event.observed_at_ns for event in result.events} == {7_000}
    assert (result.process_count, result.read_count) == (2, 3)
    assert (result.vanished_count, result.unreadable_count, result.causes) == (0, 0, ())
    assert (result.duration_s, result.cpu_s) == (2.0, 0.25)


def test_scan_follows_start_exec_and_stop(scanner: Scanner, proc_tree: Any) -> None:
    scanner.scan()
    proc_tree.add(5, start_ticks=50)
    assert kinds(scanner.scan()) == [("start", 5)]
    proc_tree.add(5, start_ticks=50, comm=b"nc", exe=b"/bin/nc", start_stack=0x4440)
    (event,) = scanner.scan().events
    assert (event.kind.value, event.record.exe) == ("exec", "/bin/nc")
    assert event.parent is not None
    assert event.parent.name == "init"
    proc_tree.remove(5)
    assert kinds(scanner.scan()) == [("stop", 5)]


def test_scan_that_cannot_list_tells_no_stops(
    scanner: Scanner, proc_tree: Any, reader: Any
) -> None:
    scanner.scan()
    reader.fail("/", code=errno.EMFILE)
    result = scanner.scan()
    assert (result.events, result.process_count) == ((), 0)
    assert [cause.reason for cause in result.causes] == [CauseReason.COLLECTOR_UNAVAILABLE]
    reader.failures.clear()
    assert scanner.scan().events == ()


def test_scan_takes_an_unreadable_process_for_alive(
    scanner: Scanner, proc_tree: Any, reader: Any
) -> None:
    proc_tree.add(5)
    scanner.scan()
    reader.fail("5/stat", code=errno.EMFILE)
    result = scanner.scan()
    assert (result.events, result.unreadable_count) == ((), 1)
    assert [cause.reason for cause in result.causes] == [CauseReason.READ_ERRORS]


def test_scan_says_each_time_that_fields_are_denied(scanner: Scanner, reader: Any) -> None:
    reader.fail("exe", "cwd")
    for _ in range(2):
        result = scanner.scan()
        assert result.unreadable_count == 1
        assert [cause.reason for cause in result.causes] == [CauseReason.UNPRIVILEGED]


def test_scan_says_that_processes_are_hidden(scanner: Scanner, proc_tree: Any) -> None:
    proc_tree.remove(1)
    proc_tree.add(5)
    (cause,) = scanner.scan().causes
    assert cause.reason == CauseReason.UNPRIVILEGED
    assert "hidepid" in cause.message


def test_scan_counts_what_vanishes_between_listing_and_reading(
    scanner: Scanner, proc_tree: Any, reader: Any
) -> None:
    proc_tree.add(5)
    proc_tree.add(6)
    reader.before["5/stat"] = lambda: proc_tree.remove(5)
    reader.before["6"] = lambda: proc_tree.remove(6)
    result = scanner.scan()
    assert result.vanished_count == 2
    assert kinds(result) == [("inventory", 1), ("inventory", 6), ("stop", 6)]
    assert result.read_count == 1


FORMING = {"comm": b"nc", "exe": b"/bin/nc", "cmdline": b"", "start_stack": 0}
FORMED = {**FORMING, "cmdline": b"nc\0-l\0", "start_stack": 0x3330}


def test_scan_waits_for_an_exec_to_go_through(
    scanner: Scanner, proc_tree: Any, clock: SteppingClock
) -> None:
    scanner.scan()
    proc_tree.add(5, **FORMING)
    clock.on_sleep.append(lambda: proc_tree.add(5, **FORMED))
    (event,) = scanner.scan().events
    assert (event.kind.value, event.record.argv) == ("start", ("nc", "-l"))


def test_scan_tells_the_arguments_later_when_an_exec_takes_long(
    scanner: Scanner, proc_tree: Any
) -> None:
    proc_tree.add(5)
    scanner.scan()
    proc_tree.add(5, **FORMING)
    (executed,) = scanner.scan().events
    assert (executed.kind.value, executed.record.exe) == ("exec", "/bin/nc")
    assert (executed.record.argv, executed.record.missing_fields) == (None, ("argv", "cmdline"))
    assert scanner.scan().events == ()
    proc_tree.add(5, **FORMED)
    (completed,) = scanner.scan().events
    assert (completed.kind.value, completed.record.argv) == ("modified", ("nc", "-l"))
    assert completed.changed_fields == ("argv", "cmdline")


def test_scan_tells_an_exec_before_the_kernel_has_set_the_name(
    scanner: Scanner, proc_tree: Any
) -> None:
    proc_tree.add(5)
    scanner.scan()
    proc_tree.add(5, **{**FORMING, "comm": b"sh"})
    assert kinds(scanner.scan()) == [("exec", 5)]
    proc_tree.add(5, **FORMED)
    (completed,) = scanner.scan().events
    assert (completed.kind.value, completed.record.name) == ("modified", "nc")
    assert completed.changed_fields == ("name", "argv", "cmdline")


def test_scan_believes_in_empty_arguments_where_the_image_is_hidden(
    scanner: Scanner, proc_tree: Any, reader: Any
) -> None:
    proc_tree.add(5, **FORMING)
    reader.fail("exe")
    record = scanner.scan().events[-1].record
    assert (record.pid, record.argv, record.cmdline) == (5, (), "")


def test_scan_reports_a_full_table(procfs: ProcFs, proc_tree: Any) -> None:
    proc_tree.add(5)
    result = Scanner(procfs, Tracker(TrackerLimits(process_count=1)), SteppingClock()).scan()
    assert kinds(result) == [("inventory", 1)]
    assert result.overflow_count == 1
    assert [cause.reason for cause in result.causes] == [CauseReason.TRUNCATED]


@pytest.mark.parametrize(
    ("interval_s", "cpu_s", "cpu_share", "delay_s"),
    [
        (1.0, 0.0, 0.05, 1.0),
        (1.0, 0.01, 0.05, 0.99),
        (1.0, 0.1, 0.05, 1.9),
        (1.0, 2.0, 1.0, 0.0),
        (30.0, 0.3, 0.05, 29.7),
    ],
)
def test_next_delay_keeps_the_interval_and_the_share(
    interval_s: float, cpu_s: float, cpu_share: float, delay_s: float
) -> None:
    delay = next_delay_s(interval_s, cpu_s, cpu_share)
    assert delay == pytest.approx(delay_s)
    assert cpu_s <= (cpu_s + delay) * cpu_share * 1.000001


@pytest.mark.parametrize(
    ("interval_s", "cpu_share"),
    [(0.0, 0.05), (-1.0, 0.05), (1.0, 0.0), (1.0, 1.1), (float("nan"), 0.05), (1.0, float("nan"))],
)
def test_next_delay_refuses_settings_out_of_range(interval_s: float, cpu_share: float) -> None:
    with pytest.raises(CpuShareError, match="use an interval over 0") as caught:
        next_delay_s(interval_s, 0.1, cpu_share)
    assert caught.value.code is Code.INVALID_ARGUMENT
