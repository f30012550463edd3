"""The analysis BINARY_HASH: digests of an executable that somebody names by its path.

Invariant: whatever happens, the caller learns a digest or one of the closed kinds, nothing else.
"""

import logging

from collector_core.hashing.digest import FileHash
from collector_core.hashing.errors import HashError, HashFailedError
from collector_core.hashing.hasher import FileHasher

__all__ = ["BinaryHashAnalyzer"]

log = logging.getLogger("daemoneye.hashing")


class BinaryHashAnalyzer:
    """Answers for one path at a time.

    Args:
        hasher: whose allowed roots and bounds hold, whatever the priority of a request.
    """

    def __init__(self, hasher: FileHasher) -> None:
        self._hasher = hasher

    async def __call__(self, target_path: str) -> FileHash:
        """Returns the digests of the file at ``target_path``.

        Raises:
            HashError: there are none; ``kind`` is all that may be told to a peer.
        """
        try:
            return await self._hasher.hash_path(target_path)
        except HashError as error:
            log.debug("no digest of %r: %s", target_path, error.kind)
            raise
        except Exception:
            log.exception("hashing %r failed", target_path)
            raise HashFailedError() from None
