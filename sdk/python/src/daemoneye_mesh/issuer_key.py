"""The private key of the issuer: made once, kept in the state dir, read by the agent alone.

Invariant: a key that anybody else could have read or planted is never used.
"""

from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from daemoneye_mesh.private_file import (
    OTHERS_ANY,
    OTHERS_WRITE,
    FileUnusableError,
    read_file,
    write_file,
)

__all__ = ["load_or_create_key"]

_KEY_MODE = 0o400


def load_or_create_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Returns the issuer's private key, made on the first start (P-256, PKCS#8 PEM, mode 0400).

    Two processes that start together end up with the same key.

    Raises:
        FileUnusableError: the key or its directory is open to others, is not ours, or holds
            anything but a P-256 key. A key that leaked must be replaced, not repaired.
    """
    _prepare_directory(path.parent)
    if not path.is_symlink() and not path.exists():
        with suppress(FileExistsError):  # somebody was faster: theirs is the key
            write_file(path, _new_key(), _KEY_MODE, replace=False)
    try:
        content = read_file(path, forbidden_mode=OTHERS_ANY, must_own=True).content
    except FileNotFoundError:
        raise FileUnusableError(f"key file {path} vanished; start again", path=path) from None
    return _parse_key(path, content)


def _prepare_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError:
        raise FileUnusableError(
            f"key directory {path} cannot be made; check the state directory", path=path
        ) from None
    if status.st_mode & OTHERS_WRITE:
        raise FileUnusableError(
            f"others may write the key directory {path}; run chmod 0700 on it", path=path
        )


def _new_key() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _parse_key(path: Path, content: bytes) -> ec.EllipticCurvePrivateKey:
    with suppress(ValueError, TypeError):
        key = serialization.load_pem_private_key(content, password=None)
        if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
            return key
    raise FileUnusableError(
        f"{path} holds no P-256 private key; move it away and a new one is made", path=path
    )
