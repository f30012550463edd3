"""The public keys of the issuer, as a JWKS document in a file that every verifier reads.

The agent writes the file (mode 0444, atomically) and everybody else reads it again whenever it
changes, so that a new key needs no restart. Invariant: a file that others could write, or that does
not hold at least one P-256 key with an id, verifies nobody; old keys are never used in its stead.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from cryptography.hazmat.primitives.asymmetric import ec

from daemoneye_mesh.private_file import (
    OTHERS_WRITE,
    FileMissingError,
    FileStamp,
    read_file,
    stamp_of,
    write_file,
)

__all__ = ["TrustBundle", "key_id", "write_trust_bundle"]

_BUNDLE_MODE = 0o444
_COORDINATE_BYTES = 32


class TrustBundle:
    """The keys in a bundle file, read again when the file changes.

    Args:
        path: the JWKS file the agent writes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: FileStamp | None = None
        self._keys: Mapping[str, ec.EllipticCurvePublicKey] = MappingProxyType({})
        self._generation = 0

    @property
    def generation(self) -> int:
        """Counts the versions read so far; what was derived from an older one is void."""
        return self._generation

    def keys(self) -> Mapping[str, ec.EllipticCurvePublicKey]:
        """Returns the current keys by key id.

        Raises:
            FileMissingError: the file is not there yet, or holds no usable key.
            FileUnusableError: others may write the file, or we may not read it.
        """
        try:
            if stamp_of(self._path.stat(follow_symlinks=False)) != self._stamp:
                self._reload()
        except FileNotFoundError:
            self._forget()
            raise FileMissingError(
                f"trust bundle {self._path} is not there yet; is the agent running?",
                path=self._path,
            ) from None
        return self._keys

    def _reload(self) -> None:
        self._forget()
        file = read_file(self._path, forbidden_mode=OTHERS_WRITE)
        keys = _parse(file.content)
        if not keys:
            raise FileMissingError(
                f"trust bundle {self._path} holds no usable key; restart the agent to rewrite it",
                path=self._path,
            )
        self._keys, self._stamp = MappingProxyType(keys), file.stamp

    def _forget(self) -> None:
        self._keys, self._stamp = MappingProxyType({}), None
        self._generation += 1


def write_trust_bundle(path: Path, public_keys: Iterable[ec.EllipticCurvePublicKey]) -> None:
    """Writes the bundle file; list the previous key too while its tokens are still alive.

    Raises:
        FileUnusableError: the file cannot be written.
    """
    document = {"keys": [_jwk(key) for key in public_keys]}
    write_file(path, (json.dumps(document, indent=2) + "\n").encode(), _BUNDLE_MODE)


def key_id(public_key: ec.EllipticCurvePublicKey) -> str:
    """Returns the JWK thumbprint of a P-256 key (RFC 7638), which we use as its ``kid``."""
    x, y = _coordinates(public_key)
    canonical = f'{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}'
    return _encode(hashlib.sha256(canonical.encode()).digest())


def _jwk(public_key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    x, y = _coordinates(public_key)
    return {
        "kty": "EC",
        "crv": "P-256",
        "alg": "ES256",
        "use": "jwt-svid",
        "kid": key_id(public_key),
        "x": x,
        "y": y,
    }


def _coordinates(public_key: ec.EllipticCurvePublicKey) -> tuple[str, str]:
    numbers = public_key.public_numbers()
    return _encode(numbers.x.to_bytes(_COORDINATE_BYTES)), _encode(
        numbers.y.to_bytes(_COORDINATE_BYTES)
    )


def _parse(content: bytes) -> dict[str, ec.EllipticCurvePublicKey]:
    try:
        entries = json.loads(content)["keys"]
        return {
            str(entry["kid"]): _public_key(entry)
            for entry in entries
            if entry["kty"] == "EC" and entry["crv"] == "P-256" and entry["use"] == "jwt-svid"
        }
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


def _public_key(entry: Mapping[str, str]) -> ec.EllipticCurvePublicKey:
    x, y = (int.from_bytes(_decode(entry[name])) for name in ("x", "y"))
    return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
