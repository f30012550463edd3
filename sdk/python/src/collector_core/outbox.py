"""The bounded queue between a collector's sources and the broker.

Invariant: accepted = published + refused + pending, and pending never passes the bounds. A full
outbox makes the source wait; nothing that was accepted is thrown away to make room.
"""

import asyncio
from collections import Counter, deque
from dataclasses import dataclass

from daemoneye_mesh.errors import InternalError

__all__ = ["AnswerOrderError", "Outbox", "OutboxBatch"]


class AnswerOrderError(InternalError):
    """The broker answered a batch that is not the one it has to answer next."""


@dataclass(frozen=True, slots=True)
class OutboxBatch:
    """Frames sent together and not answered yet."""

    batch_id: int
    frames: list[bytes]
    size_bytes: int


class Outbox:
    """Frames that wait for the broker, and batches that wait for its answer.

    Args:
        max_messages: bound in frames, those in flight included.
        max_bytes: bound in bytes, those in flight included.
    """

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._waiting: deque[bytes] = deque()
        self._in_flight: deque[OutboxBatch] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._last_batch_id = 0
        self.accepted_count = 0
        self.published_count = 0
        self.refused_count: Counter[str] = Counter()
        self.pending_bytes = 0

    @property
    def pending_count(self) -> int:
        """Frames accepted and not answered."""
        return self.accepted_count - self.published_count - self.refused_count.total()

    @property
    def in_flight_count(self) -> int:
        """Batches that wait for an answer."""
        return len(self._in_flight)

    async def put(self, frame: bytes) -> None:
        """Accepts a frame, waiting while there is no room."""
        while not self.put_nowait(frame):
            self._room.clear()
            await self._room.wait()

    def put_nowait(self, frame: bytes) -> bool:
        """Accepts a frame if there is room; returns whether there was."""
        if not self._has_room(len(frame)):
            return False
        self._waiting.append(frame)
        self.accepted_count += 1
        self.pending_bytes += len(frame)
        self._changed.set()
        return True

    async def take(self, max_messages: int, max_bytes: int, hold_messages: int = 1) -> OutboxBatch:
        """Returns whatever waits, up to the bounds, as the next batch in flight.

        Args:
            max_messages: most frames in the batch.
            max_bytes: most bytes in it, unless its first frame alone has more.
            hold_messages: while another batch has no answer yet, fewer frames than this wait for
                that answer, as in RFC 896: many tiny batches cost both sides more than they gain.
        """
        while not self._waiting or (self._in_flight and len(self._waiting) < hold_messages):
            self._changed.clear()
            await self._changed.wait()
        frames: list[bytes] = []
        size_bytes = 0
        while self._waiting and len(frames) < max_messages:
            size_bytes += len(self._waiting[0])
            if frames and size_bytes > max_bytes:
                size_bytes -= len(self._waiting[0])
                break
            frames.append(self._waiting.popleft())
        self._last_batch_id += 1
        batch = OutboxBatch(self._last_batch_id, frames, size_bytes)
        self._in_flight.append(batch)
        return batch

    def settle(self, batch_id: int, refused_reason: str | None = None) -> int:
        """Takes the broker's answer to the oldest batch; returns how many frames it was about.

        Raises:
            AnswerOrderError: the answer is not about the oldest batch in flight.
        """
        if not self._in_flight or self._in_flight[0].batch_id != batch_id:
            raise AnswerOrderError(
                f"an answer came to batch {batch_id}, which is not the oldest in flight; connect"
                " again",
                batch_id=batch_id,
            )
        batch = self._in_flight.popleft()
        if refused_reason is None:
            self.published_count += len(batch.frames)
        else:
            self.refused_count[refused_reason] += len(batch.frames)
        self.pending_bytes -= batch.size_bytes
        self._room.set()
        self._changed.set()
        return len(batch.frames)

    def rewind(self) -> None:
        """Puts batches without an answer back in front: the connection they went out on is gone."""
        while self._in_flight:
            self._waiting.extendleft(reversed(self._in_flight.pop().frames))
        self._changed.set()

    async def wait_empty(self) -> None:
        """Returns when every accepted frame was answered."""
        while self.pending_count:
            self._changed.clear()
            await self._changed.wait()

    def _has_room(self, size_bytes: int) -> bool:
        if self.pending_count == 0:
            return True
        return (
            self.pending_count < self._max_messages
            and self.pending_bytes + size_bytes <= self._max_bytes
        )
