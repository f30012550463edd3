import errno
from typing import Any

import pytest

from daemoneye_mesh.errors import Code
from daemoneye_procmond.cause import CauseReason
from daemoneye_procmond.enumeration import (
    PATTERN_LIMIT,
    EnumerationTally,
    ProcessQuery,
    enumerate_processes,
)
from daemoneye_procmond.errors import InvalidPatternError, ProcFsUnavailableError
from daemoneye_procmond.procfs import ProcFs
from daemoneye_procmond.statline import PF_KTHREAD


@pytest.fixture(autouse=True)
def population(proc_tree: Any) -> None:
    proc_tree.add(2, comm=b"kthreadd", exe=None, cmdline=b"", flags=PF_KTHREAD)
    proc_tree.add(10, comm=b"sshd", exe=b"/usr/sbin/sshd")
    proc_tree.add(11, comm=b"a-very-long-nam", exe=b"/opt/a-very-long-name-indeed")
    proc_tree.add(12, comm=b"sh", exe=b"/tmp/sh (deleted)")
    proc_tree.add(13, comm=b"gone", state="Z", exe=None, cmdline=b"")


def find(procfs: ProcFs, tally: EnumerationTally | None = None, **filters: Any) -> list[int]:
    records = enumerate_processes(procfs, ProcessQuery(**filters), tally)
    return [record.pid for record in records]


def test_enumeration_without_filters_gives_everything(procfs: ProcFs) -> None:
    tally = EnumerationTally()
    assert find(procfs, tally) == [1, 2, 10, 11, 12, 13]
    assert (tally.listed_count, tally.matched_count, tally.causes) == (6, 6, ())


@pytest.mark.parametrize(
    ("filters", "pids"),
    [
        ({"names": ("sshd",)}, [10]),
        ({"names": ("a-very-long-nam",)}, [11]),
        ({"names": ("a-very-long-name-indeed",)}, [11]),
        ({"names": ("kthreadd", "sh", "gone")}, [1, 2, 12, 13]),
        ({"names": ("ssh",)}, []),
        ({"names": ("SSHD",)}, []),
        ({"pids": (12, 10, 12, 999, 0, -1)}, [10, 12]),
        ({"executable_pattern": "/usr/*"}, [1, 10]),
        ({"executable_pattern": "/tmp/??"}, [12]),
        ({"executable_pattern": "*/s[hx]"}, [1, 12]),
        ({"executable_pattern": "sshd"}, []),
        ({"executable_pattern": "/USR/*"}, []),
        ({"executable_pattern": "*"}, [1, 10, 11, 12]),
        ({"names": ("sh",), "executable_pattern": "/tmp/*"}, [12]),
        ({"names": ("sshd",), "pids": (11, 12)}, []),
        ({"names": ("sshd",), "pids": (10, 12), "executable_pattern": "*sshd"}, [10]),
    ],
)
def test_enumeration_honours_filters(
    procfs: ProcFs, filters: dict[str, Any], pids: list[int]
) -> None:
    assert find(procfs, **filters) == pids


def test_enumeration_by_pid_reads_only_those_pids(procfs: ProcFs, reader: Any) -> None:
    find(procfs, pids=(10,))
    assert "/" not in reader.names_read
    assert not [name for name in reader.names_read if name.startswith(("11", "12", "13"))]


def test_enumeration_by_name_reads_records_of_matches_only(procfs: ProcFs, reader: Any) -> None:
    find(procfs, names=("sshd",))
    assert reader.names_read.count("status") == 1


def test_enumeration_counts_what_it_cannot_decide(procfs: ProcFs, reader: Any) -> None:
    reader.fail("exe")
    tally = EnumerationTally()
    assert find(procfs, tally, names=("sshd", "a-very-long-name-indeed")) == [10]
    # 1, 11 and 12 may or may not carry the name in their path; 10 matches but hides its path
    assert (tally.unreadable_count, tally.denied_count) == (3, 4)
    assert [cause.reason for cause in tally.causes] == [CauseReason.UNPRIVILEGED]


def test_enumeration_counts_unreadable_stat_lines(procfs: ProcFs, reader: Any) -> None:
    reader.fail("10/stat", code=errno.EMFILE)
    tally = EnumerationTally()
    assert 10 not in find(procfs, tally)
    assert (tally.unreadable_count, tally.failed_count) == (1, 1)
    assert [cause.reason for cause in tally.causes] == [CauseReason.READ_ERRORS]


def test_enumeration_counts_what_vanishes(procfs: ProcFs, proc_tree: Any, reader: Any) -> None:
    reader.before["10/stat"] = lambda: proc_tree.remove(10)
    reader.before["11"] = lambda: proc_tree.remove(11)
    tally = EnumerationTally()
    assert find(procfs, tally) == [1, 2, 12, 13]
    assert (tally.vanished_count, tally.causes) == (2, ())


def test_enumeration_of_an_absent_pid_is_a_whole_answer(procfs: ProcFs) -> None:
    tally = EnumerationTally()
    assert find(procfs, tally, pids=(999,)) == []
    assert (tally.vanished_count, tally.causes) == (0, ())


@pytest.mark.parametrize("filters", [{}, {"pids": (10,)}])
def test_enumeration_says_that_processes_are_hidden(
    procfs: ProcFs, proc_tree: Any, filters: dict[str, Any]
) -> None:
    proc_tree.remove(1)
    tally = EnumerationTally()
    find(procfs, tally, **filters)
    assert [cause.reason for cause in tally.causes] == [CauseReason.UNPRIVILEGED]


def test_enumeration_drops_a_match_that_became_another_program(
    procfs: ProcFs, proc_tree: Any, reader: Any
) -> None:
    reader.before["10"] = lambda: proc_tree.add(10, comm=b"nc", exe=b"/bin/nc")
    assert find(procfs, names=("sshd",)) == []


def test_enumeration_reads_again_what_it_met_in_the_middle_of_an_exec(
    procfs: ProcFs, proc_tree: Any
) -> None:
    proc_tree.add(10, comm=b"nc", exe=b"/bin/nc", cmdline=b"", start_stack=0)
    tally = EnumerationTally()
    records = enumerate_processes(
        procfs,
        ProcessQuery(pids=(10, 12)),
        tally,
        sleep=lambda _pause_s: proc_tree.add(10, comm=b"nc", exe=b"/bin/nc", cmdline=b"nc\0"),
    )
    assert [(record.pid, record.argv) for record in records] == [
        (12, ("sh", "-c", "true")),
        (10, ("nc",)),
    ]
    assert (tally.matched_count, tally.causes) == (2, ())


def test_enumeration_that_cannot_list_is_an_error(procfs: ProcFs, reader: Any) -> None:
    reader.fail("/")
    with pytest.raises(ProcFsUnavailableError):
        find(procfs)


@pytest.mark.parametrize("pattern", ["", "x" * (PATTERN_LIMIT + 1)])
def test_query_refuses_a_pattern_out_of_range(pattern: str) -> None:
    with pytest.raises(InvalidPatternError, match="or leave the filter out") as caught:
        ProcessQuery(executable_pattern=pattern)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.metadata == {"length": str(len(pattern)), "limit": str(PATTERN_LIMIT)}


def test_query_takes_the_longest_pattern() -> None:
    assert ProcessQuery(executable_pattern="*" * PATTERN_LIMIT).executable_pattern is not None
