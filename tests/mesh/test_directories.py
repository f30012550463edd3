import os
from pathlib import Path

import pytest

from daemoneye_mesh.directories import (
    DirectoryUnusableError,
    find_runtime_dir,
    locate_runtime_dir,
    locate_state_dir,
    prepare_directory,
)
from daemoneye_mesh.errors import ErrorReason


@pytest.fixture
def forbidden(short_dir, monkeypatch):
    """A system directory that exists and is not ours to write in, root or not."""
    path = short_dir / "system"
    path.mkdir()
    real = os.access
    monkeypatch.setattr(os, "access", lambda asked, mode: Path(asked) != path and real(asked, mode))
    return path


def test_variable_decides_the_runtime_dir_first(short_dir):
    environ = {"DAEMONEYE_RUNTIME_DIR": "/somewhere", "XDG_RUNTIME_DIR": "/run/user/1"}
    assert locate_runtime_dir(environ, short_dir) == Path("/somewhere")


def test_system_runtime_dir_is_taken_when_it_is_writable(short_dir):
    assert locate_runtime_dir({"XDG_RUNTIME_DIR": "/run/user/1"}, short_dir) == short_dir


def test_system_runtime_dir_is_taken_when_it_can_be_created(short_dir):
    assert locate_runtime_dir({}, short_dir / "daemoneye") == short_dir / "daemoneye"


def test_users_runtime_dir_is_taken_when_the_system_one_is_not_writable(forbidden):
    found = locate_runtime_dir({"XDG_RUNTIME_DIR": "/run/user/1"}, forbidden)
    assert found == Path("/run/user/1/daemoneye")


def test_temporary_runtime_dir_carries_the_user_id(forbidden):
    assert locate_runtime_dir({}, forbidden).name == f"daemoneye-{os.geteuid()}"


def test_client_finds_the_system_agent_without_write_permission(forbidden):
    (forbidden / "agent.sock").touch()
    assert find_runtime_dir({"XDG_RUNTIME_DIR": "/run/user/1"}, forbidden) == forbidden


def test_client_obeys_the_variable_before_the_system_agent(forbidden):
    (forbidden / "agent.sock").touch()
    assert find_runtime_dir({"DAEMONEYE_RUNTIME_DIR": "/mine"}, forbidden) == Path("/mine")


def test_client_looks_where_a_server_would_serve_when_no_system_agent_runs(forbidden):
    found = find_runtime_dir({"XDG_RUNTIME_DIR": "/run/user/1"}, forbidden)
    assert found == Path("/run/user/1/daemoneye")


def test_state_dir_follows_variable_system_and_user(forbidden, short_dir):
    assert locate_state_dir({"DAEMONEYE_STATE_DIR": "/s"}, short_dir) == Path("/s")
    assert locate_state_dir({}, short_dir) == short_dir
    assert locate_state_dir({"XDG_STATE_HOME": "/h"}, forbidden) == Path("/h/daemoneye")
    assert locate_state_dir({}, forbidden) == Path.home() / ".local" / "state" / "daemoneye"


def test_missing_directory_is_created_with_its_parents_and_mode(short_dir):
    path = prepare_directory(short_dir / "a" / "b", 0o750)
    assert path.stat().st_mode & 0o777 == 0o750


def test_existing_directory_is_taken_as_it_is(short_dir):
    assert prepare_directory(short_dir, 0o750).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_directory_that_others_may_write_in_is_refused(short_dir, mode):
    short_dir.chmod(mode)
    with pytest.raises(DirectoryUnusableError, match="chmod go-w") as refused:
        prepare_directory(short_dir, 0o700)
    assert refused.value.reason is ErrorReason.FILE_UNUSABLE
    assert refused.value.metadata == {"path": str(short_dir)}


def test_symlink_to_a_directory_is_refused(short_dir):
    (short_dir / "real").mkdir(mode=0o700)
    (short_dir / "link").symlink_to(short_dir / "real")
    with pytest.raises(DirectoryUnusableError, match="is not a directory"):
        prepare_directory(short_dir / "link", 0o700)


def test_file_in_the_way_is_refused_and_kept(short_dir):
    (short_dir / "file").write_text("precious")
    with pytest.raises(DirectoryUnusableError, match="cannot create"):
        prepare_directory(short_dir / "file", 0o700)
    assert (short_dir / "file").read_text() == "precious"


def test_relative_directory_is_refused():
    with pytest.raises(DirectoryUnusableError, match="relative"):
        prepare_directory(Path("here"), 0o700)


def test_directory_of_another_user_is_refused(short_dir, monkeypatch):
    short_dir.chmod(0o755)
    owner = short_dir.stat().st_uid
    if owner == 0:
        os.chown(short_dir, 4242, -1)
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(DirectoryUnusableError, match="belongs to user id"):
        prepare_directory(short_dir, 0o700)


def test_directory_without_write_permission_is_refused(forbidden):
    with pytest.raises(DirectoryUnusableError, match="is not writable"):
        prepare_directory(forbidden, 0o700)


def test_directory_below_an_unwritable_one_names_a_way_out(short_dir, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DirectoryUnusableError, match="Permission denied") as refused:
        prepare_directory(short_dir / "new", 0o700)
    assert "DAEMONEYE_RUNTIME_DIR" in refused.value.message
