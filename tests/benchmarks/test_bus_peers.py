"""How peers are found, configured and left out, and the environment of their clients."""

import os
import sys
from pathlib import Path

import pytest
from benchmarks import bus, peers_environment
from benchmarks.bus_server import PEERS
from benchmarks.mesh import Mesh
from benchmarks.peers_environment import find_peers_python
from benchmarks.report import BenchmarkError


def bench() -> bus.Bench:
    return bus.Bench(mesh=Mesh(), schedule=bus.FULL)


def test_every_peer_has_a_client_and_a_way_to_publish() -> None:
    clients = Path(bus.__file__).parent / "clients"
    for name in ("ours", *PEERS):
        assert (clients / f"{name}.py").is_file()
        assert bus.VARIANTS[name]


@pytest.mark.parametrize("name", PEERS)
def test_servers_are_configured_for_their_own_directory(name: str, tmp_path: Path) -> None:
    config = PEERS[name].configure(tmp_path)
    assert str(tmp_path) in config
    assert PEERS[name].locate(tmp_path) == ""


@pytest.mark.parametrize("name", PEERS)
def test_client_of_each_peer_is_pinned(name: str) -> None:
    assert f"\n{PEERS[name].client}==" in peers_environment.REQUIREMENTS.read_text()


async def test_peer_without_server_is_left_out_with_a_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("benchmarks.bus_server.SBIN", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    found = bench()
    async with found.mesh:
        await bus.start_peers(found)
    assert not found.systems
    assert [note.split(" is left out")[0] for note in found.notes] == [*PEERS]
    assert "not installed (Debian: nats-server)" in found.notes[0]


async def test_peers_without_clients_are_left_out_with_a_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for peer in PEERS.values():
        program = tmp_path / peer.program
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(peers_environment.VARIABLE, str(tmp_path / "none"))
    found = bench()
    async with found.mesh:
        await bus.start_peers(found)
    assert not found.systems
    assert len(found.notes) == len(PEERS)
    assert "cannot be run" in found.notes[0]


async def test_chosen_interpreter_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(peers_environment.VARIABLE, sys.executable)
    assert await find_peers_python() == sys.executable


@pytest.mark.integration
async def test_environment_is_made_once_and_again_when_pins_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(peers_environment.VARIABLE, raising=False)
    requirements, directory = tmp_path / "requirements.txt", tmp_path / "environment"
    requirements.write_text("# nothing\n")
    python = await find_peers_python(directory, requirements)
    assert os.access(python, os.X_OK)
    assert (directory / ".gitignore").read_text() == "*\n"
    assert "installing" in capsys.readouterr().out
    assert await find_peers_python(directory, requirements) == python
    assert not capsys.readouterr().out
    requirements.write_text("no name of a package\n")
    with pytest.raises(BenchmarkError, match="cannot be installed"):
        await find_peers_python(directory, requirements)
    assert not (directory / peers_environment.STAMP).exists()
