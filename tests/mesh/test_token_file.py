import os
import stat

import pytest

from daemoneye_mesh.errors import Code, ErrorReason
from daemoneye_mesh.private_file import (
    MAX_FILE_BYTES,
    FileMissingError,
    FileUnusableError,
    write_file,
)
from daemoneye_mesh.token import FileTokenSource, write_token_file

SECRET = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJzZWNyZXQifQ.c2lnbmF0dXJl"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "procmond.token"


def test_token_file_is_readable_by_its_owner_alone(path):
    write_token_file(path, SECRET)

    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_token_source_returns_what_was_written(path):
    write_token_file(path, SECRET)

    assert FileTokenSource(path).token() == SECRET


def test_token_source_reads_a_replaced_file_again(path):
    write_token_file(path, SECRET)
    source = FileTokenSource(path)
    source.token()

    write_token_file(path, SECRET[::-1])

    assert source.token() == SECRET[::-1]


def test_token_source_opens_an_unchanged_file_only_once(path, monkeypatch):
    write_token_file(path, SECRET)
    source = FileTokenSource(path)
    source.token()
    opened = []
    monkeypatch.setattr(os, "open", lambda *args: opened.append(args))

    assert source.token() == SECRET
    assert opened == []


def test_token_source_says_what_is_missing_and_finds_it_later(path):
    source = FileTokenSource(path)
    with pytest.raises(FileMissingError) as caught:
        source.token()
    write_token_file(path, SECRET)

    assert caught.value.reason is ErrorReason.FILE_MISSING
    assert caught.value.code is Code.UNAVAILABLE
    assert str(path) in caught.value.message
    assert source.token() == SECRET


def test_token_source_forgets_a_token_whose_file_was_removed(path):
    write_token_file(path, SECRET)
    source = FileTokenSource(path)
    source.token()
    path.unlink()

    with pytest.raises(FileMissingError):
        source.token()


@pytest.mark.parametrize("mode", [0o440, 0o404, 0o420, 0o402, 0o410, 0o644])
def test_token_source_refuses_a_file_open_to_others(path, mode):
    write_token_file(path, SECRET)
    path.chmod(mode)

    with pytest.raises(FileUnusableError) as caught:
        FileTokenSource(path).token()

    assert caught.value.reason is ErrorReason.FILE_UNUSABLE
    assert f"{mode:04o}" in caught.value.message
    assert SECRET not in repr(caught.value) + str(caught.value.metadata)


def test_token_source_refuses_a_file_that_is_opened_to_others_later(path):
    write_token_file(path, SECRET)
    source = FileTokenSource(path)
    source.token()
    path.chmod(0o444)

    with pytest.raises(FileUnusableError):
        source.token()


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"a b", b"a\r\nx-other: 1", "tokén".encode(), b"a" * 5000, b"\0"],
    ids=["empty", "blank", "space", "second-header", "not-ascii", "long", "nul"],
)
def test_token_source_refuses_content_that_is_no_bearer_token(path, content):
    write_file(path, content, 0o400)

    with pytest.raises(FileUnusableError, match="holds no token"):
        FileTokenSource(path).token()


def test_token_source_refuses_a_symbolic_link(path, tmp_path):
    write_token_file(tmp_path / "other", SECRET)
    path.symlink_to(tmp_path / "other")

    with pytest.raises(FileUnusableError):
        FileTokenSource(path).token()


def test_token_source_refuses_a_pipe_without_waiting_for_a_writer(path):
    os.mkfifo(path, 0o400)

    with pytest.raises(FileUnusableError, match="no regular file"):
        FileTokenSource(path).token()


def test_token_source_refuses_an_enormous_file(path):
    write_file(path, b"a" * (MAX_FILE_BYTES + 1), 0o400)

    with pytest.raises(FileUnusableError, match="larger"):
        FileTokenSource(path).token()


def test_token_source_repr_names_the_file_and_not_the_token(path):
    write_token_file(path, SECRET)
    source = FileTokenSource(path)
    source.token()

    assert repr(source) == f"FileTokenSource('{path}')"


def test_write_token_file_refuses_a_text_that_is_no_token(path):
    with pytest.raises(FileUnusableError) as caught:
        write_token_file(path, "not a token")

    assert "not a token" not in caught.value.message
    assert not path.exists()


def test_write_file_leaves_nothing_behind_when_the_directory_is_missing(tmp_path):
    with pytest.raises(FileUnusableError, match="no such file or directory"):
        write_file(tmp_path / "missing" / "file", b"x", 0o400)

    assert list(tmp_path.iterdir()) == []


def test_write_file_keeps_an_existing_file_when_it_may_not_replace_it(path):
    write_file(path, b"first", 0o400)
    with pytest.raises(FileExistsError):
        write_file(path, b"second", 0o400, replace=False)

    assert path.read_bytes() == b"first"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_write_file_sets_the_mode_whatever_the_umask(path):
    previous = os.umask(0o077)
    try:
        write_file(path, b"x", 0o444)
    finally:
        os.umask(previous)

    assert stat.S_IMODE(path.stat().st_mode) == 0o444
