import pytest

from daemoneye_procmond.cgroup import find_container_id, select_cgroup_path
from daemoneye_procmond.terminal import name_terminal

ID = "0123456789abcdef" * 4
INNER = "fedcba9876543210" * 4


@pytest.mark.parametrize(
    "path",
    [
        f"/system.slice/docker-{ID}.scope",
        f"/docker/{ID}",
        f"/docker/{ID}/system.slice/cron.service",
        f"/machine.slice/libpod-{ID}.scope",
        f"/machine.slice/libpod-{ID}.scope/container",
        f"/libpod_parent/libpod-{ID}",
        f"/kubepods.slice/kubepods-pod12_3.slice/crio-{ID}.scope",
        f"/kubepods.slice/kubepods-besteffort.slice/x.slice/cri-containerd-{ID}.scope",
        f"/kubepods/burstable/pod0b8e/{ID}",
        f"/system.slice/kubepods-pod1.slice:cri-containerd:{ID}",
        f"/docker/{INNER}/docker/{ID}",
        f"/ecs/task/{ID}",
    ],
)
def test_container_id_is_found_in_each_layout(path: str) -> None:
    assert find_container_id(f"0::{path}\n".encode()) == ID


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/user.slice/user-1000.slice/session-2.scope",
        f"/machine.slice/libpod-conmon-{ID}.scope",
        "/system.slice/docker.service",
        "/docker/short",
        "/kubepods/burstable/pod0b8e",
        f"/user.slice/x{ID}",
    ],
)
def test_container_id_is_none_outside_of_a_container(path: str) -> None:
    assert find_container_id(f"0::{path}\n".encode()) is None


def test_container_id_is_found_in_a_legacy_hierarchy() -> None:
    raw = f"12:pids:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/system.slice/x\n".encode()
    assert find_container_id(raw) == ID


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"0::/a:b/c\n", b"/a:b/c"),
        (b"0::/\n", b"/"),
        (b"4:cpu:/x\n1:name=systemd:/user.slice\n0::/unified\n", b"/unified"),
        (b"4:cpu:/longer/x\n1:name=systemd:/user.slice\n0::/\n", b"/user.slice"),
        (b"4:cpu:/\n3:memory:/lxc/web\n", b"/lxc/web"),
        (b"", None),
        (b"garbage\n0:\n::\n", None),
    ],
)
def test_cgroup_path_prefers_the_unified_hierarchy(raw: bytes, path: bytes | None) -> None:
    assert select_cgroup_path(raw) == path


@pytest.mark.parametrize(
    ("tty_nr", "name"),
    [
        (0, None),
        (136 << 8, "pts/0"),
        ((136 << 8) | 7, "pts/7"),
        ((136 << 8) | 0x2C | (1 << 20), "pts/300"),
        (137 << 8, "pts/256"),
        ((4 << 8) | 1, "tty1"),
        ((4 << 8) | 64, "ttyS0"),
        ((5 << 8) | 1, "console"),
        ((229 << 8) | 0, "hvc0"),
        ((204 << 8) | 64, "204:64"),
        (((136 << 8) | 0x2C | (0x800 << 20)) - (1 << 32), "pts/524332"),
    ],
)
def test_terminal_is_named_by_its_device_number(tty_nr: int, name: str | None) -> None:
    assert name_terminal(tty_nr) == name
