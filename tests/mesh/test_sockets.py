import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.errors import ErrorReason, InvalidConfigError
from daemoneye_mesh.sockets import (
    MAX_PATH_BYTES,
    SocketClaim,
    SocketUnusableError,
    check_socket_path,
    restrict_umask,
    socket_target,
)

HOLDER = """
import sys, time
from pathlib import Path
from daemoneye_mesh.sockets import SocketClaim
import socket
claim = SocketClaim(Path(sys.argv[1]))
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("held", flush=True)
time.sleep(600)
"""


def path_of(directory, size_bytes):
    return directory / ("x" * (size_bytes - len(os.fsencode(directory)) - 1))


def listen(path, backlog=1):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(backlog)
    return listener


def is_answered(path):
    with closing(socket.socket(socket.AF_UNIX)) as probe:
        probe.settimeout(5)
        probe.connect(str(path))
    return True


def test_path_of_107_bytes_can_be_bound(short_dir):
    path = path_of(short_dir, MAX_PATH_BYTES)
    assert check_socket_path(path) == path
    with closing(listen(path)):
        assert is_answered(path)


def test_path_of_108_bytes_is_refused_with_its_size_and_a_way_out(short_dir):
    path = path_of(short_dir, MAX_PATH_BYTES + 1)
    with pytest.raises(InvalidConfigError) as refused:
        check_socket_path(path)
    assert refused.value.reason is ErrorReason.SOCKET_UNUSABLE
    assert refused.value.metadata == {"path": str(path), "size_bytes": "108"}
    assert "108 bytes" in refused.value.message
    assert "at most 107" in refused.value.message
    assert "DAEMONEYE_RUNTIME_DIR" in refused.value.message


def test_path_size_counts_bytes_not_characters(short_dir):
    path = short_dir / ("é" * 50)
    with pytest.raises(InvalidConfigError, match="bytes long"):
        check_socket_path(path)


def test_relative_path_is_refused(short_dir, monkeypatch):
    monkeypatch.chdir(short_dir)
    with pytest.raises(InvalidConfigError, match="relative") as refused:
        SocketClaim(type(short_dir)("bus.sock"))
    assert refused.value.reason is ErrorReason.SOCKET_UNUSABLE
    assert not list(short_dir.iterdir())


@given(st.text(st.characters(codec="ascii", exclude_characters="\0/"), min_size=1, max_size=20))
def test_target_never_holds_a_lone_percent_sign_or_an_authority(name):
    from pathlib import Path
    from urllib.parse import unquote

    target = socket_target(Path("/run") / name)
    assert target.startswith("unix:/")
    assert not target.startswith("unix://")
    assert unquote(target.removeprefix("unix:")) == str(Path("/run") / name)


async def test_target_of_an_odd_path_reaches_the_server(mesh_identity, short_dir):
    from pathlib import Path

    from daemoneye_mesh.server import MeshServer

    for path in (short_dir / "50%41 a?b#c.sock", Path("/" + str(short_dir / "slashes.sock"))):
        server = MeshServer(path, mesh_identity.auth(mesh_identity.layout.agent))
        await server.start()
        channel = open_channel(path)
        try:
            async with asyncio.timeout(10):
                await channel.channel_ready()
            assert path.exists()
        finally:
            await channel.close()
            await server.drain(0)
        assert not path.exists()


def test_second_claim_is_refused_while_the_first_holds(short_dir):
    first = SocketClaim(short_dir / "bus.sock")
    with pytest.raises(SocketUnusableError, match="another server holds it") as refused:
        SocketClaim(short_dir / "bus.sock")
    assert refused.value.reason is ErrorReason.SOCKET_UNUSABLE
    first.release()
    SocketClaim(short_dir / "bus.sock").release()


def test_refused_claim_leaves_the_lock_of_the_holder_alone(short_dir):
    first = SocketClaim(short_dir / "bus.sock")
    for _ in range(3):
        with pytest.raises(SocketUnusableError):
            SocketClaim(short_dir / "bus.sock")
    assert [one.name for one in short_dir.iterdir()] == ["bus.sock.lock"]
    first.release()


def test_release_removes_the_lock_and_may_be_repeated(short_dir):
    claim = SocketClaim(short_dir / "bus.sock")
    claim.release()
    claim.release()
    assert not list(short_dir.iterdir())


def test_release_that_is_repeated_does_not_take_the_lock_of_a_successor(short_dir):
    claim = SocketClaim(short_dir / "bus.sock")
    claim.release()
    successor = SocketClaim(short_dir / "bus.sock")
    claim.release()
    with pytest.raises(SocketUnusableError):
        SocketClaim(short_dir / "bus.sock")
    successor.release()


def test_stale_socket_is_removed_when_nobody_answers(short_dir):
    path = short_dir / "bus.sock"
    listen(path).close()
    claim = SocketClaim(path)
    assert not path.exists()
    claim.release()


def test_socket_on_which_a_foreign_server_answers_is_left_alone(short_dir):
    path = short_dir / "bus.sock"
    with closing(listen(path, backlog=5)):
        with pytest.raises(SocketUnusableError, match="without our lock answers") as refused:
            SocketClaim(path)
        assert refused.value.reason is ErrorReason.SOCKET_UNUSABLE
        assert is_answered(path)
    assert not (short_dir / "bus.sock.lock").exists()


def test_socket_with_a_full_backlog_counts_as_answered(short_dir, monkeypatch):
    monkeypatch.setattr("daemoneye_mesh.sockets._PROBE_TIMEOUT_S", 0.05)
    path = short_dir / "bus.sock"
    waiting = []
    with closing(listen(path, backlog=0)):
        for _ in range(2):
            one = socket.socket(socket.AF_UNIX)
            one.setblocking(False)
            waiting.append(one)
            one.connect_ex(str(path))
        with pytest.raises(SocketUnusableError, match="without our lock answers"):
            SocketClaim(path)
    for one in waiting:
        one.close()


def test_regular_file_is_never_removed(short_dir):
    path = short_dir / "bus.sock"
    path.write_text("precious")
    with pytest.raises(SocketUnusableError, match="no socket lies there"):
        SocketClaim(path)
    assert path.read_text() == "precious"
    assert [one.name for one in short_dir.iterdir()] == ["bus.sock"]


def test_symlink_in_place_of_the_socket_is_not_followed(short_dir):
    target = short_dir / "other.sock"
    listen(target).close()
    (short_dir / "bus.sock").symlink_to(target)
    with pytest.raises(SocketUnusableError, match="no socket lies there"):
        SocketClaim(short_dir / "bus.sock")
    assert target.exists()


def test_symlinked_lock_is_refused_and_its_target_untouched(short_dir):
    target = short_dir / "precious"
    target.write_text("precious")
    (short_dir / "bus.sock.lock").symlink_to(target)
    with pytest.raises(SocketUnusableError, match="cannot open its lock file"):
        SocketClaim(short_dir / "bus.sock")
    assert target.read_text() == "precious"
    assert (short_dir / "bus.sock.lock").is_symlink()


def test_lock_file_is_private_and_not_inherited(short_dir):
    claim = SocketClaim(short_dir / "bus.sock")
    lock = short_dir / "bus.sock.lock"
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600
    assert not os.get_inheritable(claim._lock_fd)
    claim.release()


def test_world_writable_directory_is_refused(short_dir):
    (short_dir / "open").mkdir()
    (short_dir / "open").chmod(0o777)
    with pytest.raises(Exception, match="chmod go-w") as refused:
        SocketClaim(short_dir / "open" / "bus.sock")
    assert refused.value.reason is ErrorReason.FILE_UNUSABLE
    assert not list((short_dir / "open").iterdir())


def test_path_can_be_served_again_after_its_holder_was_killed(short_dir):
    path = short_dir / "bus.sock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(SocketUnusableError, match="another server holds it"):
            SocketClaim(path)
        assert is_answered(path)
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    assert path.exists()
    claim = SocketClaim(path)
    assert not path.exists()
    claim.release()


def test_umask_is_restored_even_after_an_error():
    before = os.umask(0o022)
    try:
        with pytest.raises(RuntimeError), restrict_umask(0o660):
            raise RuntimeError
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
