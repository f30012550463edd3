"""The optional similarity hash of ssdeep: computed if a library for it is installed, else said so.

Invariant: the absence of a library is a state, never an error; and the fuzzy hash is never an
identity: two files with the same one may differ.
"""

import importlib
import logging
from collections.abc import Callable
from enum import StrEnum
from functools import cache

__all__ = ["FuzzyHash", "FuzzyState", "compute_fuzzy", "load_fuzzy"]

log = logging.getLogger("daemoneye.hashing")

FuzzyHash = Callable[[bytes], str]
"""Computes the ssdeep text of a whole file."""

_LIBRARIES = ("ssdeep", "ppdeep")


class FuzzyState(StrEnum):
    """Why there is a fuzzy hash, or why not."""

    READY = "ready"
    NOT_WANTED = "not_wanted"
    NO_LIBRARY = "no_library"
    TOO_LARGE = "too_large"
    FAILED = "failed"


@cache
def load_fuzzy() -> FuzzyHash | None:
    """Returns the function of the first library found, C before Python; None without any."""
    for name in _LIBRARIES:
        try:
            function: FuzzyHash = importlib.import_module(name).hash
        except (ImportError, AttributeError):
            continue
        return function
    return None


def compute_fuzzy(function: FuzzyHash | None, content: bytes) -> tuple[str | None, FuzzyState]:
    """Returns the fuzzy hash of ``content``, and why there is none otherwise."""
    if function is None:
        return None, FuzzyState.NO_LIBRARY
    try:
        return str(function(content)), FuzzyState.READY
    except Exception:
        # The library is foreign code over bytes that an attacker chose; the identity stands anyway.
        log.warning("the fuzzy hash library failed", exc_info=True)
        return None, FuzzyState.FAILED
