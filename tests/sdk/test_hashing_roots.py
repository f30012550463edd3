import contextlib
import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from collector_core.hashing import (
    AllowedRoots,
    FileUnavailableError,
    HashCapacityError,
    HashError,
    HashErrorKind,
    InvalidPathError,
    PathNotAllowedError,
)
from collector_core.hashing import beneath as beneath_module
from collector_core.hashing.beneath import open_beneath, open_by_openat2, open_by_walk
from collector_core.hashing.roots import MAX_PATH_BYTES, split_path
from daemoneye_mesh.errors import InvalidConfigError

WAYS = [open_beneath, open_by_openat2, open_by_walk]


@pytest.fixture
def tree(tmp_path):
    """A root ``in`` with a file and a directory, and a secret outside of it."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "tool").write_bytes(b"tool")
    (tmp_path / "in" / "sub" / "deep").write_bytes(b"deep")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "deep").write_bytes(b"secret")
    return tmp_path


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def roots(request, tree):
    with AllowedRoots.open([tree / "in"], opener=request.param) as opened:
        yield opened


def content(roots, path):
    descriptor = roots.open_beneath(path)
    try:
        return os.read(descriptor, 100)
    finally:
        os.close(descriptor)


def kind(roots, path):
    with pytest.raises(HashError) as caught:
        os.close(roots.open_beneath(path))
    return caught.value.kind


def open_descriptors():
    return {one.name for one in Path("/proc/self/fd").iterdir()}


def test_files_beneath_a_root_are_opened(roots, tree):
    assert content(roots, tree / "in" / "tool") == b"tool"
    assert content(roots, str(tree / "in" / "sub" / "deep")) == b"deep"
    assert content(roots, os.fsencode(tree / "in") + b"//./sub//deep") == b"deep"


@pytest.mark.parametrize("path", ["", "tool", "./in/tool", "/a\0b", "/in/../etc/passwd", "/.."])
def test_malformed_paths_are_refused_as_such(roots, path):
    assert kind(roots, path) is HashErrorKind.INVALID_REQUEST


def test_dots_that_lead_back_beneath_the_root_are_refused_all_the_same(roots, tree):
    path = f"{tree}/in/sub/../tool"
    assert kind(roots, path) is HashErrorKind.INVALID_REQUEST


def test_path_may_be_as_long_as_the_limit_and_no_longer(roots, tree):
    start = f"{tree}/in/"
    longest = start + "/" * (MAX_PATH_BYTES - len(start) - 4) + "tool"
    assert content(roots, longest) == b"tool"
    assert kind(roots, longest + "x") is HashErrorKind.INVALID_REQUEST


def test_length_is_counted_in_bytes(roots):
    assert kind(roots, "/" + "é" * 2048) is HashErrorKind.INVALID_REQUEST


def test_text_that_stands_for_no_bytes_is_refused(roots):
    assert kind(roots, "/in/\ud800") is HashErrorKind.INVALID_REQUEST


def test_paths_outside_are_refused(roots, tree):
    for path in ("/etc/passwd", tree / "out" / "deep", tree, "/", f"{tree}/in2", f"{tree}/i"):
        assert kind(roots, path) is HashErrorKind.PATH_NOT_ALLOWED


def test_missing_and_forbidden_and_root_itself_look_alike(roots, tree):
    with pytest.raises(FileUnavailableError) as missing:
        roots.open_beneath(tree / "in" / "nothing")
    with pytest.raises(FileUnavailableError) as itself:
        roots.open_beneath(tree / "in")
    with pytest.raises(FileUnavailableError) as through_file:
        roots.open_beneath(tree / "in" / "tool" / "x")
    answers = {(str(e.value), str(e.value.metadata)) for e in (missing, itself, through_file)}
    assert len(answers) == 1


def test_final_symbolic_link_is_not_followed(roots, tree):
    (tree / "in" / "link").symlink_to("tool")
    (tree / "in" / "leak").symlink_to(tree / "out" / "deep")
    assert kind(roots, tree / "in" / "link") is HashErrorKind.UNAVAILABLE
    assert kind(roots, tree / "in" / "leak") is HashErrorKind.UNAVAILABLE


def test_symbolic_link_in_the_middle_is_not_followed(roots, tree):
    (tree / "in" / "aside").symlink_to("sub")
    (tree / "in" / "away").symlink_to(tree / "out")
    assert kind(roots, tree / "in" / "aside" / "deep") is HashErrorKind.UNAVAILABLE
    assert kind(roots, tree / "in" / "away" / "deep") is HashErrorKind.UNAVAILABLE


def test_names_that_are_no_utf8_are_opened(roots, tree):
    name = os.fsencode(tree / "in") + b"/\xff\xfe"
    with open(name, "wb") as file:  # noqa: PTH123 -- pathlib has no bytes
        file.write(b"odd")
    assert content(roots, name) == b"odd"
    assert content(roots, os.fsdecode(name)) == b"odd"


def test_too_long_names_are_unavailable(roots, tree):
    assert kind(roots, f"{tree}/in/{'n' * 300}") is HashErrorKind.UNAVAILABLE


def test_fifo_is_opened_without_hanging(roots, tree):
    os.mkfifo(tree / "in" / "fifo")
    os.close(roots.open_beneath(tree / "in" / "fifo"))


def test_directory_that_becomes_a_link_before_the_open_is_not_followed(tree):
    def swap_and_open(directory, components):
        (tree / "in" / "sub").rename(tree / "in" / "gone")
        (tree / "in" / "sub").symlink_to(tree / "out")
        return open_beneath(directory, components)

    with AllowedRoots.open([tree / "in"], opener=swap_and_open) as roots:
        assert kind(roots, tree / "in" / "sub" / "deep") is HashErrorKind.UNAVAILABLE


def test_directory_swapped_for_a_link_all_the_time_never_leads_out(roots, tree):
    sub, aside, stop = tree / "in" / "sub", tree / "in" / "aside", threading.Event()

    def swap():
        while not stop.is_set():
            sub.rename(aside)
            sub.symlink_to(tree / "out")
            sub.unlink()
            aside.rename(sub)

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        for _ in range(1500):
            with contextlib.suppress(FileUnavailableError):
                seen.add(content(roots, sub / "deep"))
    finally:
        stop.set()
        thread.join()
    assert seen <= {b"deep"}


def test_root_keeps_its_directory_when_a_link_takes_its_name(roots, tree):
    (tree / "in").rename(tree / "old")
    (tree / "in").symlink_to(tree / "out")
    assert kind(roots, tree / "in" / "deep") is HashErrorKind.UNAVAILABLE
    assert content(roots, tree / "in" / "tool") == b"tool"


def test_root_that_is_a_link_is_known_by_both_of_its_names(tree):
    (tree / "bin").symlink_to("in")
    with AllowedRoots.open([tree / "bin"]) as roots:
        assert content(roots, tree / "bin" / "tool") == b"tool"
        assert content(roots, tree / "in" / "tool") == b"tool"
        assert kind(roots, tree / "out" / "deep") is HashErrorKind.PATH_NOT_ALLOWED


def test_inner_root_that_is_a_link_leads_where_it_led(tree):
    (tree / "in" / "opt").symlink_to(tree / "out")
    with AllowedRoots.open([tree / "in", tree / "in" / "opt"]) as roots:
        assert content(roots, tree / "in" / "opt" / "deep") == b"secret"


def test_missing_roots_are_left_out_if_tolerated(tree):
    with AllowedRoots.open([tree / "no", tree / "in"]) as roots:
        assert content(roots, tree / "in" / "tool") == b"tool"
    with pytest.raises(InvalidConfigError, match="does not exist"):
        AllowedRoots.open([tree / "in", tree / "no"], tolerate_missing=False)


@pytest.mark.parametrize("paths", [[], ["/does/not/exist"]])
def test_no_root_at_all_is_refused(paths):
    with pytest.raises(InvalidConfigError, match="no directory"):
        AllowedRoots.open(paths)


@pytest.mark.parametrize("path", ["bin", "/usr/../bin", "", "/x\0"])
def test_malformed_roots_are_refused(path):
    with pytest.raises(InvalidConfigError, match="absolute path"):
        AllowedRoots.open([path])


def test_file_as_a_root_is_refused_and_leaves_nothing_open(tree):
    before = open_descriptors()
    with pytest.raises(InvalidConfigError, match="cannot be opened"):
        AllowedRoots.open([tree / "in", tree / "in" / "tool"])
    assert open_descriptors() == before


def test_closed_roots_allow_nothing(tree):
    roots = AllowedRoots.open([tree / "in"])
    roots.close()
    roots.close()
    assert kind(roots, tree / "in" / "tool") is HashErrorKind.PATH_NOT_ALLOWED


def test_default_roots_open_on_this_host():
    with AllowedRoots.open() as roots:
        assert content(roots, os.path.realpath("/bin/sh"))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_walk_is_taken_when_the_kernel_or_a_sandbox_refuses_the_call(tree, monkeypatch, number):
    def refuse(directory, components):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(beneath_module, "open_by_openat2", refuse)
    with AllowedRoots.open([tree / "in"]) as roots:
        assert content(roots, tree / "in" / "sub" / "deep") == b"deep"


def test_machine_with_an_unknown_call_number_has_no_openat2(tree, monkeypatch):
    monkeypatch.setattr(beneath_module.platform, "machine", lambda: "pdp11")
    with pytest.raises(OSError, match="not implemented"):
        open_by_openat2(0, (b"x",))


def test_renames_that_never_end_are_given_up(monkeypatch):
    class Libc:
        calls = 0

        def syscall(self, *arguments):
            self.calls += 1
            beneath_module.ctypes.set_errno(errno.EAGAIN)
            return -1

    libc = Libc()
    monkeypatch.setattr(beneath_module, "_libc", libc)
    with pytest.raises(BlockingIOError):
        open_by_openat2(0, (b"x",))
    assert 1 < libc.calls < 100


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.EMFILE, HashCapacityError),
        (errno.ENFILE, HashCapacityError),
        (errno.EXDEV, PathNotAllowedError),
        (errno.EACCES, FileUnavailableError),
        (errno.ENOENT, FileUnavailableError),
        (errno.EIO, FileUnavailableError),
    ],
)
def test_errors_of_the_system_become_closed_kinds(tree, number, error):
    def fail(directory, components):
        raise OSError(number, "the secret cause")

    with AllowedRoots.open([tree / "in"], opener=fail) as roots, pytest.raises(error) as caught:
        roots.open_beneath(tree / "in" / "tool")
    assert type(caught.value) is error
    assert "secret" not in f"{caught.value}{caught.value.metadata}"
    assert caught.value.__suppress_context__


def test_walk_closes_every_step(tree):
    with AllowedRoots.open([tree / "in"], opener=open_by_walk) as roots:
        (tree / "in" / "sub" / "a" / "b").mkdir(parents=True)
        before = open_descriptors()
        for path in ("sub/a/b/none", "sub/none/b", "sub/deep/x"):
            assert kind(roots, tree / "in" / path) is HashErrorKind.UNAVAILABLE
        assert open_descriptors() == before


NAMES = st.sampled_from(["", ".", "..", "in", "in2", "sub", "tool", "deep", "a\0b", "é", "\udcff"])


@given(st.lists(NAMES, max_size=8), st.booleans())
@example(["in", "..", "out"], True)
def test_split_paths_hold_no_step_that_leads_up_or_nowhere(names, is_absolute):
    path = ("/" if is_absolute else "") + "/".join(names)
    try:
        components = split_path(path)
    except InvalidPathError:
        assert not path.startswith("/") or ".." in names or "\0" in path
        return
    assert not {b"", b".", b".."} & set(components)
    assert not any(b"/" in name or b"\0" in name for name in components)
    assert os.path.normpath(b"/" + b"/".join(components)) == b"/" + b"/".join(components)


@given(st.one_of(st.text(max_size=50), st.binary(max_size=50)))
def test_any_path_at_all_is_refused_with_a_closed_kind(path):
    with AllowedRoots.open(["/usr/bin"]) as roots:
        assert kind(roots, path) is not HashErrorKind.INTERNAL
