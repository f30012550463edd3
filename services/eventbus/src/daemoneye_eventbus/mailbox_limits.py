"""What a subscription asked its queue to hold, and what to do when it holds that much.

Invariant: limits that were built are in range.
"""

from dataclasses import dataclass
from enum import StrEnum

from daemoneye_eventbus.errors import InvalidSubscriptionError

__all__ = ["Acknowledgement", "MailboxLimits", "OverflowPolicy", "Retention"]


class OverflowPolicy(StrEnum):
    """What happens when an arriving message does not fit."""

    DROP_OLDEST = "drop_oldest"
    """The oldest waiting messages make room."""
    DROP_NEWEST = "drop_newest"
    """The arriving message is dropped."""
    DISCONNECT = "disconnect"
    """The subscription ends."""
    BLOCK = "block"
    """Publishers wait for room; past their deadline the arriving message is dropped."""


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """How an at-least-once subscription acknowledges.

    Args:
        timeout_s: what is not acknowledged for so long is handed over again.
        max_unacknowledged: most messages handed over and not acknowledged.
    """

    timeout_s: float
    max_unacknowledged: int

    def __post_init__(self) -> None:
        _require_positive("timeout_s", self.timeout_s)
        _require_at_least("max_unacknowledged", self.max_unacknowledged, 1)


@dataclass(frozen=True, slots=True)
class Retention:
    """Bounds of a mailbox while its subscriber is away."""

    max_messages: int
    max_bytes: int

    def __post_init__(self) -> None:
        _require_at_least("max_messages", self.max_messages, 1)
        _require_at_least("max_bytes", self.max_bytes, 1)


@dataclass(frozen=True, slots=True)
class MailboxLimits:
    """Bounds of one mailbox; what is not acknowledged counts against them.

    Args:
        max_messages: most messages held.
        max_bytes: most bytes held.
        policy: what happens to what does not fit.
        block_timeout_s: how long publishers wait for room under the policy ``block``.
        acknowledgement: how deliveries are acknowledged; None hands over at most once.
        initial_credit: messages to hand over before more credit is granted; None asks for none.
    """

    max_messages: int
    max_bytes: int
    policy: OverflowPolicy = OverflowPolicy.DROP_OLDEST
    block_timeout_s: float = 1.0
    acknowledgement: Acknowledgement | None = None
    initial_credit: int | None = None

    def __post_init__(self) -> None:
        _require_at_least("max_messages", self.max_messages, 1)
        _require_at_least("max_bytes", self.max_bytes, 1)
        _require_positive("block_timeout_s", self.block_timeout_s)
        _require_at_least("initial_credit", self.initial_credit or 0, 0)


def _require_at_least(name: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise InvalidSubscriptionError(
            f"{name} is {value}; use at least {minimum}", setting=name, value=value, minimum=minimum
        )


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise InvalidSubscriptionError(
            f"{name} is {value}; use more than 0", setting=name, value=value
        )
