import errno
import os
from pathlib import Path
from typing import Any

import pytest

from daemoneye_agent.schema import PROCESS_COLUMNS
from daemoneye_mesh.errors import Code
from daemoneye_procmond.errors import ProcFsUnavailableError
from daemoneye_procmond.escape import ARGV_LIMIT_BYTES, PATH_LIMIT_BYTES
from daemoneye_procmond.procfs import ProcFs, UnreadableError
from daemoneye_procmond.record import ProcessIdentity, ProcessRecord
from daemoneye_procmond.statline import PF_KTHREAD

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def read(procfs: ProcFs, pid: int) -> ProcessRecord:
    stat = procfs.read_stat(pid)
    assert stat is not None
    record = procfs.read_record(stat)
    assert record is not None
    return record


def test_record_has_every_column_of_the_process_table(procfs: ProcFs) -> None:
    record = read(procfs, 1)
    assert [column.name for column in PROCESS_COLUMNS if not hasattr(record, column.name)] == []


def test_record_holds_what_the_files_say(procfs: ProcFs, proc_tree: Any) -> None:
    proc_tree.add(
        70,
        comm=b"backup",
        ppid=9,
        process_group_id=68,
        session_id=60,
        tty_nr=(136 << 8) | 2,
        state="D",
        thread_count=4,
        start_ticks=7 * TICKS_PER_S,
        cmdline=b"backup\0--all now\0",
        exe=b"/opt/backup",
    )
    record = read(procfs, 70)
    assert record.identity == ProcessIdentity(procfs.boot_id, 70, 7 * TICKS_PER_S)
    assert (record.name, record.ppid, record.process_group_id) == ("backup", 9, 68)
    assert (record.session_id, record.tty, record.state) == (60, "pts/2", "D")
    assert (record.thread_count, record.fd_count) == (4, 3)
    assert record.start_time_ns == (1_700_000_000 + 7) * 10**9
    assert record.cpu_time_ms == 42 * 1000 // TICKS_PER_S
    assert record.memory_bytes == 250 * os.sysconf("SC_PAGESIZE")
    assert (record.argv, record.cmdline) == (("backup", "--all now"), "backup '--all now'")
    assert (record.exe, record.exe_deleted, record.exe_memfd) == ("/opt/backup", False, False)
    assert (record.uid, record.euid, record.gid, record.egid) == (1000, 1001, 100, 101)
    assert (record.login_uid, record.cwd, record.cgroup) == (1000, "/srv", "/user.slice")
    assert (record.container_id, record.kernel_thread) == (None, False)
    assert (record.missing_fields, record.truncated_fields) == ((), ())
    assert record.collected_at_ms == 42


def test_record_survives_hostile_content(procfs: ProcFs, proc_tree: Any) -> None:
    proc_tree.add(
        71,
        comm=b"x) Z 1\nUid:\t0\t0",
        cmdline=b"\xff\xfe\0a\nb\0",
        exe=b"/tmp/\xc3\x28\n",
        cwd=b"/tmp/\x1b[2J",
        cgroup=b"0::/\xff\n",
    )
    record = read(procfs, 71)
    assert (record.name, record.state) == ("x) Z 1\\x0aUid:\\x090\\x090", "S")
    assert record.argv == ("\\xff\\xfe", "a\\x0ab")
    assert (record.exe, record.cwd, record.cgroup) == (
        "/tmp/\\xc3(\\x0a",
        "/tmp/\\x1b[2J",
        "/\\xff",
    )
    assert record.uid == 1000
    assert record.missing_fields == ()


@pytest.mark.parametrize(
    ("link", "exe", "is_deleted", "is_memfd"),
    [
        (b"/usr/bin/sh", "/usr/bin/sh", False, False),
        (b"/tmp/x (deleted)", "/tmp/x", True, False),
        (b"/memfd:payload (deleted)", "/memfd:payload", True, True),
        (b"/tmp/x (deleted) y", "/tmp/x (deleted) y", False, False),
        (b"/memfd:is-a-file", "/memfd:is-a-file", False, False),
    ],
)
def test_record_tells_deleted_and_memory_only_executables(
    procfs: ProcFs, proc_tree: Any, link: bytes, exe: str, is_deleted: bool, is_memfd: bool
) -> None:
    proc_tree.add(72, exe=link)
    record = read(procfs, 72)
    assert (record.exe, record.exe_deleted, record.exe_memfd) == (exe, is_deleted, is_memfd)


def test_record_cuts_huge_arguments_and_says_so(procfs: ProcFs, proc_tree: Any) -> None:
    proc_tree.add(73, cmdline=b"a" * 100_000)
    record = read(procfs, 73)
    assert record.argv == ("a" * ARGV_LIMIT_BYTES,)
    assert set(record.truncated_fields) == {"argv", "cmdline"}


def test_record_says_that_arguments_behind_padding_are_cut(procfs: ProcFs, proc_tree: Any) -> None:
    proc_tree.add(73, cmdline=b"title" + b"\0" * 50_000 + b"hidden\0")
    record = read(procfs, 73)
    assert record.argv == ("title",)
    assert "argv" in record.truncated_fields


def test_record_bounds_a_path_that_grows_by_escaping(procfs: ProcFs, proc_tree: Any) -> None:
    proc_tree.add(73, cwd=b"/" + b"\xff" * 3000)
    record = read(procfs, 73)
    assert record.cwd is not None
    assert len(record.cwd) <= PATH_LIMIT_BYTES
    assert record.truncated_fields == ("cwd",)


def test_record_lists_what_permission_denies_and_keeps_the_rest(
    procfs: ProcFs, reader: Any
) -> None:
    reader.fail("exe", "cwd", "fd")
    stat = procfs.read_stat(1)
    assert stat is not None
    reading = procfs.read(stat)
    assert reading is not None
    record = reading.record
    assert reading.is_denied
    assert set(record.missing_fields) == {"exe", "exe_deleted", "exe_memfd", "cwd", "fd_count"}
    assert (record.exe, record.exe_deleted, record.cwd, record.fd_count) == (None,) * 4
    assert (record.uid, record.argv) == (1000, ("sh", "-c", "true"))


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("status", {"uid", "euid", "gid", "egid", "user_name"}),
        ("cmdline", {"argv", "cmdline"}),
        ("loginuid", {"login_uid"}),
        ("cgroup", {"cgroup", "container_id"}),
    ],
)
def test_record_lists_the_columns_of_an_unreadable_file(
    procfs: ProcFs, reader: Any, name: str, columns: set[str]
) -> None:
    reader.fail(name, code=errno.EIO)
    record = read(procfs, 1)
    assert set(record.missing_fields) == columns
    assert all(getattr(record, column) is None for column in columns)


def test_record_lists_files_that_do_not_exist(procfs: ProcFs, proc_tree: Any) -> None:
    (proc_tree.root / "1" / "cmdline").unlink()
    (proc_tree.root / "1" / "status").unlink()
    record = read(procfs, 1)
    assert set(record.missing_fields) >= {"argv", "cmdline", "uid", "user_name"}


def test_record_has_no_login_uid_on_a_kernel_without_audit(procfs: ProcFs, proc_tree: Any) -> None:
    (proc_tree.root / "1" / "loginuid").unlink()
    record = read(procfs, 1)
    assert (record.login_uid, record.missing_fields) == (None, ())


def test_record_reads_an_unset_login_uid_as_none(procfs: ProcFs, proc_tree: Any) -> None:
    proc_tree.add(74, loginuid=b"4294967295")
    record = read(procfs, 74)
    assert (record.login_uid, record.missing_fields) == (None, ())


@pytest.mark.parametrize("shape", [{"flags": PF_KTHREAD}, {"state": "Z"}])
def test_record_of_a_process_without_an_image_misses_nothing(
    procfs: ProcFs, proc_tree: Any, reader: Any, shape: dict[str, Any]
) -> None:
    proc_tree.add(75, exe=None, cmdline=b"", **shape)
    record = read(procfs, 75)
    assert (record.exe, record.argv, record.cmdline) == (None, (), "")
    assert record.missing_fields == ()
    assert not {"exe", "cmdline"} & set(reader.names_read)


def test_record_is_read_from_a_living_thread_when_the_first_has_exited(
    procfs: ProcFs, proc_tree: Any
) -> None:
    proc_tree.add(76, state="Z", thread_count=2, exe=None, cmdline=b"")
    proc_tree.add(77, cmdline=b"evader\0", exe=b"/tmp/evader")
    (proc_tree.root / "76" / "task" / "76").mkdir(parents=True)
    (proc_tree.root / "77").rename(proc_tree.root / "76" / "task" / "77")
    record = read(procfs, 76)
    assert (record.exe, record.argv) == ("/tmp/evader", ("evader",))


def test_read_of_a_process_gone_before_it_is_opened_is_none(procfs: ProcFs, proc_tree: Any) -> None:
    stat = procfs.read_stat(1)
    assert stat is not None
    proc_tree.remove(1)
    assert procfs.read_stat(1) is None
    assert procfs.read_record(stat) is None


@pytest.mark.parametrize("name", ["status", "cmdline", "exe", "cgroup", "fd", "stat"])
def test_read_of_a_process_that_vanishes_on_the_way_is_none(
    procfs: ProcFs, proc_tree: Any, reader: Any, name: str
) -> None:
    stat = procfs.read_stat(1)
    assert stat is not None
    reader.before[name] = lambda: proc_tree.remove(1)
    assert procfs.read_record(stat) is None


def test_read_of_a_dead_directory_is_none(procfs: ProcFs, reader: Any) -> None:
    reader.fail("cmdline", code=errno.ESRCH)
    stat = procfs.read_stat(1)
    assert stat is not None
    assert procfs.read_record(stat) is None


def test_read_takes_a_pid_used_again_for_gone(procfs: ProcFs, proc_tree: Any, reader: Any) -> None:
    proc_tree.add(80, start_ticks=100)
    stat = procfs.read_stat(80)
    assert stat is not None
    reader.before["cmdline"] = lambda: proc_tree.set_stat(80, start_ticks=101)
    assert procfs.read_record(stat) is None


def test_read_refuses_the_id_of_a_thread(procfs: ProcFs, proc_tree: Any) -> None:
    proc_tree.add(81, thread_group=80)
    stat = procfs.read_stat(81)
    assert stat is not None
    assert procfs.read_record(stat) is None


def test_read_starts_over_when_the_process_execs_on_the_way(
    procfs: ProcFs, proc_tree: Any, reader: Any
) -> None:
    proc_tree.add(82, cmdline=b"old\0", start_stack=0x1000)
    stat = procfs.read_stat(82)
    assert stat is not None

    def execute() -> None:
        (proc_tree.root / "82" / "exe").unlink()
        (proc_tree.root / "82" / "exe").symlink_to("/usr/bin/new")
        (proc_tree.root / "82" / "cmdline").write_bytes(b"new\0")
        proc_tree.set_stat(82, start_stack=0x2000)

    reader.before["cmdline"] = execute
    reading = procfs.read(stat)
    assert reading is not None
    assert (reading.record.exe, reading.record.argv) == ("/usr/bin/new", ("new",))
    assert reading.stat.start_stack == 0x2000


def test_read_never_mixes_two_images_of_a_process_that_keeps_execing(
    procfs: ProcFs, proc_tree: Any, reader: Any
) -> None:
    proc_tree.add(83, start_stack=0x1000)
    stat = procfs.read_stat(83)
    assert stat is not None
    stacks = iter(range(0x2000, 0x9000))

    def execute() -> None:
        proc_tree.set_stat(83, start_stack=next(stacks))
        reader.before["cmdline"] = execute

    reader.before["cmdline"] = execute
    reading = procfs.read(stat)
    assert reading is not None
    assert (reading.record.exe, reading.record.argv) == (None, None)
    assert {"exe", "argv"} <= set(reading.record.missing_fields)


def test_read_without_descriptors_left_gives_a_record_with_missing_fields(
    procfs: ProcFs, reader: Any
) -> None:
    stat = procfs.read_stat(1)
    assert stat is not None
    reader.fail("1", code=errno.EMFILE)
    reading = procfs.read(stat)
    assert reading is not None
    assert not reading.is_denied
    assert reading.record.name == "init"
    assert {"exe", "argv", "uid", "cgroup"} <= set(reading.record.missing_fields)


@pytest.mark.parametrize(("code", "is_denied"), [(errno.EACCES, True), (errno.EMFILE, False)])
def test_read_stat_tells_unreadable_from_gone(
    procfs: ProcFs, reader: Any, code: int, is_denied: bool
) -> None:
    reader.fail("1/stat", code=code)
    with pytest.raises(UnreadableError) as caught:
        procfs.read_stat(1)
    assert caught.value.is_denied is is_denied


def test_read_stat_of_garbage_is_unreadable(procfs: ProcFs, proc_tree: Any) -> None:
    (proc_tree.root / "1" / "stat").write_bytes(b"nonsense")
    with pytest.raises(UnreadableError):
        procfs.read_stat(1)


def test_read_exe_tells_none_from_unreadable(procfs: ProcFs, proc_tree: Any, reader: Any) -> None:
    proc_tree.add(90, exe=b"/tmp/x (deleted)")
    proc_tree.add(91, exe=None)
    assert [procfs.read_exe(90), procfs.read_exe(91), procfs.read_exe(92)] == ["/tmp/x", None, None]
    reader.fail("exe")
    with pytest.raises(UnreadableError):
        procfs.read_exe(90)


def test_procfs_lists_pids_only_and_in_order(procfs: ProcFs, proc_tree: Any) -> None:
    proc_tree.add(30)
    proc_tree.add(4)
    (proc_tree.root / "²").mkdir()
    (proc_tree.root / "self").symlink_to("4")
    assert procfs.list_pids() == [1, 4, 30]


@pytest.mark.parametrize("name", ["sys/kernel/random/boot_id", "stat"])
@pytest.mark.parametrize("content", [None, b""])
def test_procfs_says_what_is_wrong_when_it_is_not_there(
    proc_tree: Any, name: str, content: bytes | None
) -> None:
    path: Path = proc_tree.root / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProcFsUnavailableError, match="check that procfs is mounted") as caught:
        ProcFs(proc_tree.root)
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert caught.value.metadata == {"path": str(path)}


def test_procfs_that_cannot_be_listed_is_an_error(procfs: ProcFs, reader: Any) -> None:
    reader.fail("/", code=errno.EMFILE)
    with pytest.raises(ProcFsUnavailableError):
        procfs.list_pids()


def test_read_leaves_no_descriptor_open(procfs: ProcFs, reader: Any, proc_tree: Any) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    read(procfs, 1)
    stat = procfs.read_stat(1)
    assert stat is not None
    reader.fail("status", "cmdline", "exe", "fd")
    procfs.read(stat)
    procfs.read_stat(1)
    reader.failures.clear()
    reader.before["exe"] = lambda: proc_tree.remove(1)
    procfs.read(stat)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_record_of_a_process_on_its_way_out_has_no_session(procfs: ProcFs, proc_tree: Any) -> None:
    """The kernel writes -1 for session and process group then, and no message takes that."""
    proc_tree.add(20)
    stat = procfs.read_stat(20)
    assert stat is not None
    leaving = stat._replace(session_id=-1, process_group_id=-1)
    record = procfs.read_vanished(leaving).record
    assert (record.session_id, record.process_group_id) == (None, None)
    assert {"session_id", "process_group_id"} <= set(record.missing_fields)
