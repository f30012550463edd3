"""What the plan of delivery asks its surroundings to do next; no I/O."""

from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "Acknowledge",
    "Activate",
    "Ask",
    "ExpectReplay",
    "GiveUp",
    "Negotiate",
    "Settle",
    "Step",
]


@dataclass(frozen=True, slots=True)
class ExpectReplay:
    """Tell the store whether the source can send again what is missing."""

    is_expected: bool


@dataclass(frozen=True, slots=True)
class Negotiate:
    """Ask the collector what it offers."""

    term: int
    """The time in service it belongs to; an answer that comes later is of no use."""


@dataclass(frozen=True, slots=True)
class Activate:
    """Open what was given up of these epochs, and read how far the source is stored."""

    term: int
    """The time in service it belongs to."""
    epochs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Settle:
    """Record a range as lost."""

    source_epoch: int
    first: int
    last: int
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Record everything that is open as lost, and what is known to have been given out."""

    reason: str
    tails: tuple[Settle, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """Have a range sent again."""

    source_epoch: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Tell the collector up to where it may let go."""

    source_epoch: int
    sequence: int


Step: TypeAlias = ExpectReplay | Negotiate | Activate | Settle | GiveUp | Ask
