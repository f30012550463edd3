import os
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from daemoneye_mesh.errors import ErrorReason
from daemoneye_mesh.private_file import FileUnusableError, write_file
from daemoneye_mesh.token import load_or_create_key


def test_key_is_made_once_and_kept_private(tmp_path):
    path = tmp_path / "keys" / "issuer.pem"
    first, second = load_or_create_key(path), load_or_create_key(path)

    assert first.private_numbers() == second.private_numbers()
    assert isinstance(first.curve, ec.SECP256R1)
    assert path.read_text().startswith("-----BEGIN PRIVATE KEY-----")
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["issuer.pem"]


@pytest.mark.parametrize("mode", [0o440, 0o404, 0o420, 0o600 | 0o004])
def test_key_is_refused_when_others_could_have_read_it(tmp_path, mode):
    load_or_create_key(tmp_path / "k.pem")
    (tmp_path / "k.pem").chmod(mode)

    with pytest.raises(FileUnusableError) as caught:
        load_or_create_key(tmp_path / "k.pem")

    assert caught.value.reason is ErrorReason.FILE_UNUSABLE


def test_key_is_refused_when_it_belongs_to_somebody_else(tmp_path, monkeypatch):
    load_or_create_key(tmp_path / "k.pem")
    own_uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own_uid + 1)

    with pytest.raises(FileUnusableError, match="not to us"):
        load_or_create_key(tmp_path / "k.pem")


def test_key_is_refused_in_a_directory_others_may_write(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o770)

    with pytest.raises(FileUnusableError, match="chmod 0700"):
        load_or_create_key(tmp_path / "shared" / "k.pem")


def test_key_is_refused_behind_a_symbolic_link(tmp_path):
    load_or_create_key(tmp_path / "real.pem")
    (tmp_path / "k.pem").symlink_to(tmp_path / "real.pem")
    (tmp_path / "dangling.pem").symlink_to(tmp_path / "missing.pem")

    for name in ("k.pem", "dangling.pem"):
        with pytest.raises(FileUnusableError):
            load_or_create_key(tmp_path / name)


def test_key_is_refused_when_it_is_no_p256_key(tmp_path):
    other = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    for name, content in (("p384.pem", other), ("junk.pem", b"junk"), ("empty.pem", b"")):
        write_file(tmp_path / name, content, 0o400)
        with pytest.raises(FileUnusableError, match="no P-256"):
            load_or_create_key(tmp_path / name)
