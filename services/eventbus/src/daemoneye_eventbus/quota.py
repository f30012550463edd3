"""What one identity may hold open at a time: streams, subscriptions and bytes of queue.

Invariant: an identity's usage never exceeds its limits, and whoever holds nothing leaves no trace,
so the memory here is bounded by what is open.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from daemoneye_mesh.errors import ErrorReason, InternalError, OverloadedError

__all__ = ["Quota", "QuotaError", "QuotaLimits", "Usage"]


class QuotaError(OverloadedError):
    """An identity holds as much as one may (reason ``LIMIT_REACHED``).

    Args:
        identity: who asked.
        limit_name: the limit, as the settings call it.
        limit: its value.
        asked: what would have been in use.
    """

    default_reason = ErrorReason.LIMIT_REACHED

    def __init__(self, identity: str, limit_name: str, limit: int, asked: int) -> None:
        super().__init__(
            f"{identity} would use {asked} of {limit_name}, which is {limit} for one identity; "
            "close what is not needed or raise the limit",
            identity=identity,
            limit_name=limit_name,
            limit=limit,
            asked=asked,
        )


@dataclass(frozen=True, slots=True)
class QuotaLimits:
    """The most that one identity may hold; None sets no bound."""

    max_streams: int | None = None
    """Open calls for publishing and subscribing."""
    max_subscriptions: int | None = None
    """Subscriptions, those that wait for their subscriber included."""
    max_queue_bytes: int | None = None
    """Bytes of queue granted to its subscriptions together."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one identity holds."""

    streams: int = 0
    subscriptions: int = 0
    queue_bytes: int = 0


_NOTHING = Usage()


class Quota:
    """Counts what each identity holds, and refuses what is over the limits."""

    def __init__(self, limits: QuotaLimits | None = None) -> None:
        self._limits = limits or QuotaLimits()
        self._usages: dict[str, Usage] = {}

    @contextmanager
    def stream(self, identity: str) -> Iterator[None]:
        """Holds one stream for as long as the context lasts.

        Raises:
            QuotaError: the identity has ``max_streams`` open.
        """
        self._add(identity, Usage(streams=1))
        try:
            yield
        finally:
            self._take(identity, Usage(streams=1))

    def grant(self, identity: str, queue_bytes: int) -> None:
        """Counts one subscription with so much queue; ``release`` it with the same bytes.

        Raises:
            QuotaError: one more subscription, or so much queue, is over a limit.
        """
        self._add(identity, Usage(subscriptions=1, queue_bytes=queue_bytes))

    def release(self, identity: str, queue_bytes: int) -> None:
        """Gives back one subscription that was granted with so much queue."""
        self._take(identity, Usage(subscriptions=1, queue_bytes=queue_bytes))

    def usage(self, identity: str) -> Usage:
        """Returns what the identity holds now."""
        return self._usages.get(identity, _NOTHING)

    def usages(self) -> dict[str, Usage]:
        """Returns what everybody holds who holds something."""
        return dict(self._usages)

    def _add(self, identity: str, more: Usage) -> None:
        now = self.usage(identity)
        sums = Usage(
            now.streams + more.streams,
            now.subscriptions + more.subscriptions,
            now.queue_bytes + more.queue_bytes,
        )
        limits = self._limits
        for name, limit, asked, is_more in (
            ("max_streams", limits.max_streams, sums.streams, more.streams),
            (
                "max_subscriptions",
                limits.max_subscriptions,
                sums.subscriptions,
                more.subscriptions,
            ),
            ("max_queue_bytes", limits.max_queue_bytes, sums.queue_bytes, more.queue_bytes),
        ):
            if is_more and limit is not None and asked > limit:
                raise QuotaError(identity, name, limit, asked)
        self._usages[identity] = sums

    def _take(self, identity: str, less: Usage) -> None:
        now = self.usage(identity)
        left = Usage(
            now.streams - less.streams,
            now.subscriptions - less.subscriptions,
            now.queue_bytes - less.queue_bytes,
        )
        if min(left.streams, left.subscriptions, left.queue_bytes) < 0:
            raise InternalError(f"{identity} gave back more than it held", identity=identity)
        if left == _NOTHING:
            del self._usages[identity]
        else:
            self._usages[identity] = left
