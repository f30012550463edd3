"""The whole way of an event through a collector, and the answers to ``Acknowledge`` and ``Replay``.

Invariant: emitted = logged + shed + pending, at every moment; and a sequence is used up exactly by
an event that the intake has accepted.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from collector_core.bus.envelope import EnvelopeKey
from collector_core.bus.outbox import Outbox
from collector_core.delivery.committer import Committer, in_thread
from collector_core.delivery.feeder import Feeder
from collector_core.delivery.pressure import Pressure
from collector_core.event import Event, Sequencer
from collector_core.interval import sleep_interval
from collector_core.wal import EventLog, LogLoss, LogPosition, LogUnwritableError, WalLimits
from daemoneye_mesh.errors import ErrorReason, InvalidRequestError

__all__ = ["Delivery", "DeliveryBounds", "ReplayAnswer"]

INTAKE_MESSAGES = 50_000
INTAKE_BYTES = 16 << 20
"""Bounds of what waits for the log."""

PRESSURE_S = 0.25
"""Time between two looks at the buffers."""

LIMITS_S = 10.0
"""Time between two looks at the bounds of the log."""

MAX_LOSSES = 64

log = logging.getLogger("daemoneye.wal")


@dataclass(frozen=True, slots=True)
class DeliveryBounds:
    """Bounds of what is kept on the way."""

    log: WalLimits
    outbox_messages: int
    """Events in memory that wait for the broker."""
    outbox_bytes: int


@dataclass(frozen=True, slots=True)
class ReplayAnswer:
    """What of a range is sent again."""

    first_sequence: int
    last_sequence: int
    """Less than ``first_sequence`` when nothing is."""
    losses: Sequence[LogLoss]


class Delivery:
    """Intake, log and outbox of one collector; for one event loop.

    Args:
        source_id: id of the collector.
        event_log: its log, opened; closed by whoever opened it.
        bounds: bounds of log and outbox.
        pressure: decides what is left out.
        on_trouble: hears why the log cannot be written, and an empty text when it can again.
    """

    def __init__(
        self,
        source_id: str,
        event_log: EventLog,
        bounds: DeliveryBounds,
        pressure: Pressure,
        on_trouble: Callable[[str], None],
    ) -> None:
        self.log = event_log
        self._max_log_bytes = bounds.log.max_bytes
        self.pressure = pressure
        self.outbox = Outbox(
            bounds.outbox_messages, bounds.outbox_bytes, on_refused=self._note_refused
        )
        """What the publisher sends from."""
        self._sequencer = Sequencer(source_id, event_log.epoch, event_log.last_sequence)
        self._turn = asyncio.Lock()
        self._intake = Outbox(INTAKE_MESSAGES, INTAKE_BYTES)
        self._feeder = Feeder(
            event_log, self.outbox, lambda trouble: self._note_trouble("read", trouble)
        )
        self._on_trouble = on_trouble
        self._troubles: dict[str, str] = {}
        self._committer = Committer(
            self._intake,
            event_log,
            self._feeder.hand_on,
            lambda trouble: self._note_trouble("append", trouble),
        )
        self._refused: list[tuple[int, int, int]] = []
        self._has_refused = asyncio.Event()

    async def put(self, event: Event) -> None:
        """Numbers an event and buffers it, or leaves it out; waits while the buffer is full.

        Raises:
            MessageTooLargeError: the event is larger than a message may be.
        """
        if not self.pressure.admits(event.event_class):
            return
        if not self._turn.locked() and self._intake.put_nowait(self._sequencer.encode(event)):
            self._sequencer.advance()
            return
        # Numbers go into the buffer in their order, and a source that is cancelled while it waits
        # leaves no gap behind.
        async with self._turn:
            await self._intake.put(self._sequencer.encode(event))
            self._sequencer.advance()

    async def run(self) -> None:
        """Commits and hands over until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._committer.run(), name="committer")
            group.create_task(self._feeder.run(), name="feeder")
            group.create_task(self._watch_pressure(), name="pressure")
            group.create_task(self._enforce_limits(), name="log limits")
            group.create_task(self._record_refused(), name="refused")

    async def sync_every(self, interval_s: Callable[[], float]) -> None:
        """Puts on disk what the kernel has, every so often, until cancelled."""
        while True:
            await sleep_interval(interval_s)
            await self._try("sync", self.log.sync)

    async def flush(self) -> None:
        """Returns when everything that was emitted is in the log."""
        await self._intake.wait_empty()

    async def publish_rest(self) -> None:
        """Returns when the broker has answered everything that is in the log."""
        await self.flush()
        await self._feeder.wait_idle()
        await self.outbox.wait_empty()

    async def acknowledge(self, epoch: int, sequence: int) -> int:
        """Lets go of what is stored elsewhere; returns the watermark.

        Raises:
            InvalidRequestError: the log never had this epoch or sequence.
        """
        watermark = await in_thread(lambda: self.log.acknowledge(epoch, sequence))
        self._feeder.skip_to(epoch, watermark)
        return watermark

    async def replay(self, epoch: int, first: int, last: int) -> ReplayAnswer:
        """Has what is still in the log of a range sent again.

        Args:
            epoch: epoch of the sequences.
            first: first one wanted, from 1.
            last: last one wanted; 0 for the last there is.

        Raises:
            InvalidRequestError: the log does not have this epoch, or the range is none.
            OverloadedError: too many ranges wait.
        """
        position = self._position_of(epoch)
        if first < 1 or (last and last < first):
            raise InvalidRequestError(
                f"sequences {first} to {last} are no range; ask for 1 or more, in order",
                from_sequence=first,
                to_sequence=last,
            )
        last = min(last or position.last_sequence, position.last_sequence)
        losses = await in_thread(lambda: self.log.losses(epoch, first, last))
        held = max(first, position.first_sequence, position.acknowledged_sequence + 1)
        if held <= last:
            self._feeder.replay(epoch, held, last)
        return ReplayAnswer(held, last, tuple(losses)[:MAX_LOSSES])

    @property
    def epoch(self) -> int:
        """Life of the sequence."""
        return self.log.epoch

    @property
    def sequence(self) -> int:
        """The last sequence given out."""
        return self._sequencer.sequence

    @property
    def trouble(self) -> str:
        """Why events wait for the log; empty while they do not."""
        return next(filter(None, self._troubles.values()), "")

    @property
    def logged_count(self) -> int:
        """Events written to the log in this life."""
        return self._intake.published_count

    @property
    def pending_count(self) -> int:
        """Events that wait for the log."""
        return self._intake.pending_count

    @property
    def pending_bytes(self) -> int:
        """Their bytes."""
        return self._intake.pending_bytes

    @property
    def emitted_count(self) -> int:
        """Events that were emitted in this life."""
        return self._intake.accepted_count + self.pressure.shed_count.total()

    @property
    def dropped_count(self) -> dict[str, int]:
        """Events that never came into the log, by reason."""
        return {f"shed_{one}": count for one, count in self.pressure.shed_count.items()}

    @property
    def replayed_count(self) -> int:
        """Events sent again because the agent asked."""
        return self._feeder.replayed_count

    @property
    def lost_count(self) -> Counter[str]:
        """Events that left the log before they were acknowledged, by reason."""
        return self.log.lost_count

    def positions(self) -> Sequence[LogPosition]:
        """How far the log goes, newest epoch first."""
        return self.log.positions()

    async def apply_limits(self, limits: WalLimits) -> None:
        """Changes the bounds of the log.

        Raises:
            LogUnwritableError: what is beyond them could not be let go of.
        """
        await in_thread(lambda: self.log.apply_limits(limits))
        self._max_log_bytes = limits.max_bytes

    def measure_fill(self) -> float:
        """How full the fullest of the buffers is, 0 to 1."""
        return max(
            self._intake.pending_count / INTAKE_MESSAGES,
            self._intake.pending_bytes / INTAKE_BYTES,
            self.log.size_bytes / self._max_log_bytes,
        )

    async def _watch_pressure(self) -> None:
        while True:
            self.pressure.note(self.measure_fill())
            await asyncio.sleep(PRESSURE_S)

    async def _try(self, what: str, work: Callable[[], object]) -> None:
        """Does something that a full or failing disk may refuse; what is refused is tried again."""
        try:
            await in_thread(work)
        except LogUnwritableError as error:
            self._note_trouble(what, error.message)
        else:
            self._note_trouble(what, "")

    def _note_trouble(self, what: str, trouble: str) -> None:
        before = self.trouble
        self._troubles[what] = trouble
        if self.trouble != before:
            self._on_trouble(self.trouble)

    async def _enforce_limits(self) -> None:
        while True:
            await asyncio.sleep(LIMITS_S)
            await self._try("limits", self.log.enforce_limits)

    def _note_refused(self, key: EnvelopeKey, first: int, last: int, _reason: str) -> None:
        self._refused.append((key.epoch, first, last))
        self._has_refused.set()

    async def _record_refused(self) -> None:
        while True:
            await self._has_refused.wait()
            self._has_refused.clear()
            refused, self._refused = self._refused, []
            for epoch, first, last in refused:
                await in_thread(lambda it=(epoch, first, last): self.log.note_refused(*it))  # type: ignore[misc]

    def _position_of(self, epoch: int) -> LogPosition:
        for position in self.log.positions():
            if position.epoch == epoch:
                return position
        raise InvalidRequestError(
            f"epoch {epoch} is not in the log of this collector; it is at {self.log.epoch}",
            reason=ErrorReason.REQUEST_INVALID,
            source_epoch=epoch,
            current_epoch=self.log.epoch,
        )
