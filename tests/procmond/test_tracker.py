from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

from daemoneye_procmond.event import EventKind, ProcessEvent
from daemoneye_procmond.observation import Observation, TrackerLimits
from daemoneye_procmond.record import ProcessReading
from daemoneye_procmond.statline import PF_KTHREAD, StatLine
from daemoneye_procmond.tracker import Tracker

Kinds = list[tuple[str, int]]


class Bench:
    """Drives a tracker with stat lines; what is not said about a record comes from its stat line."""

    def __init__(
        self, make_reading: Callable[..., ProcessReading], limits: TrackerLimits | None = None
    ) -> None:
        self.tracker = Tracker(limits)
        self._make_reading = make_reading
        self.now_s = 0.0
        self.wanted: list[int] = []
        self.overflow_count = 0

    def scan(
        self,
        *stats: StatLine,
        details: Mapping[int, dict[str, Any]] | None = None,
        unreadable: Iterable[int] = (),
        is_complete: bool = True,
    ) -> tuple[ProcessEvent, ...]:
        self.now_s += 1
        plan = self.tracker.plan(
            Observation(
                stats,
                observed_at_ns=int(self.now_s * 10**9),
                monotonic_s=self.now_s,
                unreadable_pids=frozenset(unreadable),
                is_complete=is_complete,
            )
        )
        self.wanted = [stat.pid for stat in plan.wanted]
        self.overflow_count = plan.overflow_count
        readings = {
            stat.pid: self._make_reading(
                (details or {}).get(stat.pid, {}).pop("stat", stat),
                **(details or {}).get(stat.pid, {}),
            )
            for stat in plan.wanted
        }
        return self.tracker.apply(plan, readings)


@pytest.fixture
def bench(make_reading: Callable[..., ProcessReading]) -> Bench:
    return Bench(make_reading, TrackerLimits(recheck_count=0))


def kinds(events: Iterable[ProcessEvent]) -> Kinds:
    return [(event.kind.value, event.record.pid) for event in events]


MakeStat = Callable[..., StatLine]


def test_tracker_takes_the_first_scan_as_inventory(bench: Bench, make_stat: MakeStat) -> None:
    events = bench.scan(make_stat(9, 50), make_stat(2, 40))
    assert kinds(events) == [("inventory", 2), ("inventory", 9)]
    assert {event.observed_at_ns for event in events} == {10**9}


def test_tracker_tells_start_and_stop(bench: Bench, make_stat: MakeStat) -> None:
    bench.scan(make_stat(1))
    assert kinds(bench.scan(make_stat(1), make_stat(2, 2000))) == [("start", 2)]
    assert bench.scan(make_stat(1), make_stat(2, 2000)) == ()
    (stop,) = bench.scan(make_stat(1))
    assert (stop.kind, stop.record.pid, stop.record.start_ticks) == (EventKind.STOP, 2, 2000)
    assert (stop.record.argv, stop.exit_code) == (("sh",), None)


def test_tracker_wants_no_details_of_what_did_not_change(bench: Bench, make_stat: MakeStat) -> None:
    bench.scan(make_stat(1), make_stat(2))
    bench.scan(make_stat(1, cpu_ticks=99, rss_pages=7, state="R"), make_stat(2, ppid=5))
    assert bench.wanted == []


def test_tracker_tells_a_pid_used_again_as_stop_and_start(
    bench: Bench, make_stat: MakeStat
) -> None:
    bench.scan(make_stat(5, 1000))
    events = bench.scan(make_stat(5, 1001))
    assert [(event.kind.value, event.record.start_ticks) for event in events] == [
        ("stop", 1000),
        ("start", 1001),
    ]


def test_tracker_tells_an_exec_with_what_was_before(bench: Bench, make_stat: MakeStat) -> None:
    bench.scan(make_stat(5))
    new = make_stat(5, comm=b"nc", start_stack=0x9990)
    (event,) = bench.scan(new, details={5: {"argv": ("nc",), "exe": "/bin/nc", "euid": 0}})
    assert event.kind is EventKind.EXEC
    assert event.previous is not None
    assert (event.previous.name, event.previous.exe) == ("sh", "/usr/bin/sh")
    assert (event.record.name, event.record.exe) == ("nc", "/bin/nc")
    assert event.changed_fields == ("name", "exe", "euid")
    assert bench.scan(new) == ()


@pytest.mark.parametrize("field", ["start_stack", "start_code", "env_start"])
def test_tracker_sees_an_exec_of_the_same_program(
    bench: Bench, make_stat: MakeStat, field: str
) -> None:
    bench.scan(make_stat(5))
    assert kinds(bench.scan(make_stat(5, **{field: 0x1230}))) == [("exec", 5)]


def test_tracker_takes_the_image_that_was_read_not_the_one_that_was_listed(
    bench: Bench, make_stat: MakeStat
) -> None:
    listed, read = make_stat(5, 9, start_stack=0x10), make_stat(5, 9, start_stack=0x20)
    bench.scan()
    assert kinds(bench.scan(listed, details={5: {"stat": read}})) == [("start", 5)]
    assert bench.scan(read) == ()


def test_tracker_tells_a_new_name_as_modified(bench: Bench, make_stat: MakeStat) -> None:
    bench.scan(make_stat(5))
    (event,) = bench.scan(make_stat(5, comm=b"[kworker]"))
    assert (event.kind, event.changed_fields) == (EventKind.MODIFIED, ("name",))
    assert event.previous is not None
    assert event.previous.name == "sh"


def test_tracker_tells_a_moved_executable_from_an_exec(bench: Bench, make_stat: MakeStat) -> None:
    bench.scan(make_stat(5))
    (event,) = bench.scan(make_stat(5, session_id=77), details={5: {"exe": "/usr/bin/mv"}})
    assert (event.kind, event.changed_fields) == (EventKind.MODIFIED, ("exe", "session_id"))


HIDDEN = {"start_stack": 0, "start_code": 1, "env_start": 0}


@pytest.mark.parametrize(
    ("comm", "details", "kind"),
    [
        (b"nc", {"exe": None, "argv": ("nc", "-l")}, "exec"),
        (b"nc", {"exe": None, "argv": ("sh",)}, "modified"),
        (b"sh", {"exe": None, "argv": ("sh", "-i"), "session_id": 3}, None),
    ],
)
def test_tracker_judges_a_hidden_image_by_name_and_arguments(
    bench: Bench, make_stat: MakeStat, comm: bytes, details: dict[str, Any], kind: str | None
) -> None:
    hidden = {"exe": None, "missing_fields": ("exe",)}
    bench.scan(make_stat(5, **HIDDEN), details={5: dict(hidden)})
    changed = make_stat(5, comm=comm, **HIDDEN)
    events = bench.scan(changed, details={5: {**details, "missing_fields": ("exe",)}})
    assert [event.kind.value for event in events] == ([] if kind is None else [kind])


def test_tracker_takes_the_loss_of_sight_for_no_exec(bench: Bench, make_stat: MakeStat) -> None:
    bench.scan(make_stat(5))
    hidden = {"exe": None, "missing_fields": ("exe",)}
    assert bench.scan(make_stat(5, **HIDDEN), details={5: hidden}) == ()
    assert bench.scan(make_stat(5)) == ()
    bench.scan(make_stat(5, **HIDDEN), details={5: hidden})
    assert kinds(bench.scan(make_stat(5, start_stack=0x1110))) == [("exec", 5)]


def test_tracker_keeps_what_a_process_hides_later(bench: Bench, make_stat: MakeStat) -> None:
    bench.scan(make_stat(5))
    bench.scan(
        make_stat(5, **HIDDEN),
        details={5: {"exe": None, "missing_fields": ("exe",), "is_denied": True}},
    )
    (stop,) = bench.scan()
    assert (stop.record.exe, stop.record.missing_fields) == ("/usr/bin/sh", ())


def test_tracker_never_lends_an_executable_to_an_image_that_may_be_another(
    bench: Bench, make_stat: MakeStat
) -> None:
    bench.scan(make_stat(5))
    bench.scan(
        make_stat(5, **HIDDEN),
        details={5: {"argv": ("sh", "-p"), "exe": None, "missing_fields": ("exe",)}},
    )
    (stop,) = bench.scan()
    assert (stop.record.exe, stop.record.missing_fields) == (None, ("exe",))


def test_tracker_ignores_names_of_kernel_workers(bench: Bench, make_stat: MakeStat) -> None:
    worker = make_stat(5, comm=b"kworker/0:1", flags=PF_KTHREAD, **HIDDEN)
    bench.scan(worker)
    assert bench.scan(worker._replace(comm=b"kworker/0:1-events")) == ()
    assert bench.wanted == []


def test_tracker_tells_a_kernel_thread_that_becomes_a_program_as_exec(
    bench: Bench, make_stat: MakeStat
) -> None:
    bench.scan(make_stat(5, comm=b"kworker/u4:1", flags=PF_KTHREAD, **HIDDEN))
    assert kinds(bench.scan(make_stat(5, comm=b"modprobe"))) == [("exec", 5)]


def test_tracker_tells_suspend_and_resume_once(bench: Bench, make_stat: MakeStat) -> None:
    bench.scan(make_stat(5))
    assert kinds(bench.scan(make_stat(5, state="T"))) == [("suspend", 5)]
    assert bench.scan(make_stat(5, state="t")) == ()
    assert kinds(bench.scan(make_stat(5, state="R"))) == [("resume", 5)]


def test_tracker_tells_exec_before_suspend(bench: Bench, make_stat: MakeStat) -> None:
    bench.scan(make_stat(5))
    both = make_stat(5, state="t", start_stack=0x1230)
    assert kinds(bench.scan(both)) == [("exec", 5), ("suspend", 5)]


def test_tracker_tells_stop_at_the_first_sight_of_a_zombie(
    bench: Bench, make_stat: MakeStat
) -> None:
    bench.scan(make_stat(5))
    zombie = make_stat(5, state="Z", wait_status=3 << 8, **HIDDEN)
    (stop,) = bench.scan(zombie)
    assert (stop.kind, stop.exit_code, stop.record.argv) == (EventKind.STOP, 3, ("sh",))
    assert bench.scan(zombie) == ()
    assert bench.scan() == ()


@pytest.mark.parametrize(
    ("wait_status", "is_visible", "exit_code"),
    [(0, True, 0), (0, False, None), (9, False, -9), (1 << 8, True, 1), (0x137F, True, None)],
)
def test_tracker_tells_an_exit_code_only_when_it_was_seen(
    bench: Bench,
    make_stat: MakeStat,
    wait_status: int,
    is_visible: bool,
    exit_code: int | None,
) -> None:
    bench.scan(make_stat(5, **({} if is_visible else HIDDEN)))
    (stop,) = bench.scan(make_stat(5, state="Z", wait_status=wait_status, **HIDDEN))
    assert stop.exit_code == exit_code


def test_tracker_tells_start_and_stop_of_a_process_first_seen_as_zombie(
    bench: Bench, make_stat: MakeStat
) -> None:
    bench.scan()
    zombie = make_stat(5, state="Z", **HIDDEN)
    assert kinds(bench.scan(zombie)) == [("start", 5), ("stop", 5)]
    assert bench.scan(zombie) == ()
    assert kinds(bench.scan(make_stat(5, 2000))) == [("start", 5)]


def test_tracker_keeps_a_process_whose_first_thread_has_exited(
    bench: Bench, make_stat: MakeStat
) -> None:
    bench.scan(make_stat(5, thread_count=3))
    assert bench.scan(make_stat(5, state="Z", thread_count=2)) == ()
    assert len(bench.tracker) == 1


def test_tracker_tells_start_and_stop_of_a_process_that_vanished_while_read(
    bench: Bench, make_stat: MakeStat
) -> None:
    bench.scan()
    events = bench.scan(make_stat(5), details={5: {"is_vanished": True}})
    assert kinds(events) == [("start", 5), ("stop", 5)]
    assert bench.scan() == ()


def test_tracker_leaves_the_stop_of_a_known_process_to_the_next_scan_when_it_vanishes(
    bench: Bench, make_stat: MakeStat
) -> None:
    bench.scan(make_stat(5))
    assert bench.scan(make_stat(5, comm=b"x"), details={5: {"is_vanished": True}}) == ()
    assert kinds(bench.scan()) == [("stop", 5)]


def test_tracker_takes_no_absence_for_a_stop_in_a_partial_scan(
    bench: Bench, make_stat: MakeStat
) -> None:
    bench.scan(make_stat(5), make_stat(6))
    assert bench.scan(make_stat(6), is_complete=False) == ()
    assert bench.scan(make_stat(6), unreadable=[5]) == ()
    assert kinds(bench.scan(make_stat(6))) == [("stop", 5)]


def test_tracker_goes_on_with_the_inventory_after_a_partial_first_scan(
    bench: Bench, make_stat: MakeStat
) -> None:
    assert kinds(bench.scan(make_stat(5), is_complete=False)) == [("inventory", 5)]
    assert kinds(bench.scan(make_stat(5), make_stat(6))) == [("inventory", 6)]
    assert kinds(bench.scan(make_stat(5), make_stat(6), make_stat(7))) == [("start", 7)]


def test_tracker_counts_what_the_table_cannot_hold(
    make_stat: MakeStat, make_reading: Callable[..., ProcessReading]
) -> None:
    bench = Bench(make_reading, TrackerLimits(process_count=2, recheck_count=0))
    stats = [make_stat(pid, 1000 + pid) for pid in (3, 4, 5)]
    assert kinds(bench.scan(*stats)) == [("inventory", 3), ("inventory", 4)]
    assert bench.overflow_count == 1
    assert bench.scan(*stats) == ()
    # 5 was there all along: its turn comes as inventory, and a real start stays a start
    assert kinds(bench.scan(*stats[1:])) == [("stop", 3), ("inventory", 5)]
    assert kinds(bench.scan(stats[2], make_stat(6, 2000))) == [("stop", 4), ("start", 6)]
    assert bench.overflow_count == 0


def test_tracker_keeps_long_texts_within_its_byte_bound(
    make_stat: MakeStat, make_reading: Callable[..., ProcessReading]
) -> None:
    bench = Bench(make_reading, TrackerLimits(text_bytes=20_000, recheck_count=0))
    long_argv = ("sh", "x" * 9_000)
    stats = [make_stat(pid) for pid in range(1, 21)]
    events = bench.scan(*stats, details={stat.pid: {"argv": long_argv} for stat in stats})
    assert all(event.record.argv == long_argv for event in events)
    assert bench.tracker.coverage().shortened_count == 18
    stops = bench.scan()
    cut = [stop.record for stop in stops if stop.record.argv != long_argv]
    assert len(cut) == 18
    assert all("argv" in record.truncated_fields for record in cut)


def test_tracker_rechecks_the_records_read_longest_ago(
    make_stat: MakeStat, make_reading: Callable[..., ProcessReading]
) -> None:
    bench = Bench(make_reading, TrackerLimits(recheck_count=2))
    worker = make_stat(9, comm=b"kworker", flags=PF_KTHREAD, **HIDDEN)
    stats = [*(make_stat(pid) for pid in (1, 2, 3, 4, 5)), worker]
    bench.scan(*stats)
    seen = []
    for _ in range(5):
        bench.scan(*stats)
        seen.append(tuple(bench.wanted))
    assert seen == [(1, 2), (3, 4), (5, 1), (2, 3), (4, 5)]


def test_tracker_notices_changed_ids_in_a_recheck(
    make_stat: MakeStat, make_reading: Callable[..., ProcessReading]
) -> None:
    bench = Bench(make_reading)
    bench.scan(make_stat(5))
    details = {5: {"uid": 0, "euid": 0, "cwd": "/x", "exe_deleted": True, "memory_bytes": 1}}
    (event,) = bench.scan(make_stat(5), details=details)
    assert event.kind is EventKind.MODIFIED
    assert event.changed_fields == ("exe_deleted", "uid", "euid")


def test_tracker_takes_an_unreadable_id_for_no_change(
    make_stat: MakeStat, make_reading: Callable[..., ProcessReading]
) -> None:
    bench = Bench(make_reading)
    bench.scan(make_stat(5))
    assert bench.scan(make_stat(5), details={5: {"uid": None, "missing_fields": ("uid",)}}) == ()
    assert bench.scan(make_stat(5)) == ()


def test_tracker_recheck_does_not_starve_behind_unreadable_processes(
    make_stat: MakeStat, make_reading: Callable[..., ProcessReading]
) -> None:
    bench = Bench(make_reading, TrackerLimits(recheck_count=1))
    bench.scan(make_stat(1), make_stat(2))
    bench.scan(make_stat(2), unreadable=[1])
    assert bench.wanted == [2]


def test_tracker_gives_the_parent_as_it_is_now(bench: Bench, make_stat: MakeStat) -> None:
    bench.scan(make_stat(5, 100))
    child = make_stat(6, 200, ppid=5)
    (event,) = bench.scan(make_stat(5, 100), child)
    assert event.parent is not None
    assert event.parent.identity.pid == 5


def test_tracker_gives_a_parent_that_starts_in_the_same_scan(
    bench: Bench, make_stat: MakeStat
) -> None:
    bench.scan()
    events = bench.scan(make_stat(5, 100, ppid=6), make_stat(6, 100, ppid=0))
    assert [event.parent and event.parent.pid for event in events] == [6, None]


def test_tracker_never_gives_a_parent_younger_than_the_child(
    bench: Bench, make_stat: MakeStat
) -> None:
    bench.scan(make_stat(5, 100), make_stat(6, 150, ppid=5))
    bench.scan(make_stat(5, 900), make_stat(6, 150, ppid=5))
    (event,) = bench.scan(make_stat(5, 900), make_stat(6, 150, ppid=5, comm=b"x"))
    assert event.parent is not None
    assert event.parent.start_ticks == 100


def test_tracker_remembers_a_stopped_parent_for_a_minute(bench: Bench, make_stat: MakeStat) -> None:
    bench.scan(make_stat(5, 100), make_stat(6, 150, ppid=5))
    child = make_stat(6, 150, ppid=5)
    bench.scan(child)
    (soon,) = bench.scan(child._replace(comm=b"a"))
    assert soon.parent is not None
    bench.now_s += 61
    (late,) = bench.scan(child._replace(comm=b"b"))
    assert late.parent is None


def test_tracker_coverage_tells_denied_from_failed(bench: Bench, make_stat: MakeStat) -> None:
    details: dict[int, dict[str, Any]] = {
        5: {"missing_fields": ("exe",), "is_denied": True},
        6: {"missing_fields": ("argv",)},
    }
    bench.scan(make_stat(5), make_stat(6), make_stat(7), details=details)
    coverage = bench.tracker.coverage()
    assert (coverage.process_count, coverage.denied_count, coverage.incomplete_count) == (3, 1, 1)
