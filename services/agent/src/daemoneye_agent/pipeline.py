"""From the bus to the alert: ingest, evaluate, keep, publish.

For every batch, in one transaction: the events are stored, the rules look at exactly what was new,
the alerts are stored. Then these are published (MUST-ALR-01). All that touches SQLite runs in the one
thread of the store. A store that refuses to write is tried again: nothing that was taken from the bus
is given up, and what a refused transaction did is as if it had never been.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_agent.alert import AlertDraft, Recorded
from daemoneye_agent.alert_message import to_alert_message
from daemoneye_agent.batch import Batch, to_draft
from daemoneye_agent.coverage import Coverage
from daemoneye_agent.engine import Match
from daemoneye_agent.event import EventRow
from daemoneye_agent.ingest import IngestResult
from daemoneye_agent.loss import EpochProgress, Loss, LossState, Shortfall
from daemoneye_agent.rulebook import Rulebook
from daemoneye_agent.store import EventStore
from daemoneye_agent.store_file import StoreFailedError
from daemoneye_agent.store_thread import StoreThread
from daemoneye_mesh.completeness import Degradation
from daemoneye_mesh.errors import DaemoneyeError

__all__ = ["Pipeline", "PipelineCounters"]

FIRST_RETRY_S = 0.5
MAX_RETRY_S = 10.0
MAX_LOGGED = 3
"""Lines of one kind for one batch; a line more says how many were left out."""

log = logging.getLogger("daemoneye.pipeline")


@dataclass(slots=True)
class PipelineCounters:
    """What the pipeline did: received = stored + duplicate + refused, but for a batch under way."""

    received: int = 0
    stored: int = 0
    duplicate: int = 0
    alerts: int = 0


class Pipeline:
    """Takes batches of the bus through store, rules and alerts.

    Args:
        store: thread that owns the event store.
        rulebook: the rules, evaluated in the same thread.
        coverage: what cannot be seen, for the completeness of alerts.
        publish: takes an alert message for the bus.
        first_retry_s: pause after the store first refused a batch; it doubles up to ten seconds.
        note_progress: is told after each commit how far the sources of the batch are stored.
    """

    def __init__(
        self,
        store: StoreThread,
        rulebook: Rulebook,
        coverage: Coverage,
        publish: Callable[[eventbus_pb2.EventBusMessage], None],
        first_retry_s: float = FIRST_RETRY_S,
        note_progress: Callable[[Sequence[EpochProgress]], None] = lambda _: None,
    ) -> None:
        self._note_progress = note_progress
        self._note_triggers: Callable[[], None] = lambda: None
        self._store = store
        self._rulebook = rulebook
        self._coverage = coverage
        self._publish = publish
        self._first_retry_s = first_retry_s
        self.trouble = ""
        """Why events wait to be stored; empty while they do not."""
        self.counters = PipelineCounters()
        self.refused: Counter[str] = Counter()
        """Messages that could not be used, by reason."""

    def on_triggers(self, callback: Callable[[], None]) -> None:
        """Calls back after each commit that may have stored requests for analyses."""
        self._note_triggers = callback

    async def process(
        self, messages: Sequence[eventbus_pb2.EventBusMessage], undecodable_count: int = 0
    ) -> None:
        """Takes one batch through; returns when its alerts are on their way.

        When the caller is cancelled, the step under way ends first and what it did is counted.

        Args:
            messages: the batch.
            undecodable_count: further messages of it that were no messages.
        """
        self.counters.received += len(messages) + undecodable_count
        if undecodable_count:
            self.refused["undecodable"] += undecodable_count
        batch = Batch(messages, self._coverage.of_events())
        try:
            await self._take_through(batch)
        finally:
            self._finish(batch)

    def announce(self, alerts: Iterable[Recorded]) -> None:
        """Publishes alerts that the store itself raised: what they are about is known for sure."""
        for recorded in alerts:
            self._announce(recorded, ())

    def note_shortfall(self, shortfall: Shortfall) -> None:
        """Takes over what is known to be missing, for the completeness of all that follows."""
        self._coverage.note_shortfall(shortfall)

    def _finish(self, batch: Batch) -> None:
        if batch.result is None:
            return
        self._count(batch, batch.result)
        for recorded in batch.recorded:
            self._announce(recorded, batch.degradations_for(recorded[0].rule_id))
        self.announce(batch.result.alerts)
        self._note_progress(batch.result.progress)
        if batch.result.other_count and batch.has_triggers:
            self._note_triggers()

    async def _take_through(self, batch: Batch) -> None:
        delay_s = self._first_retry_s
        while True:
            try:
                await self._advance_off_loop(batch)
            except StoreFailedError as error:
                self._note_trouble(error.message)
            else:
                self._note_trouble("")
                return
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, MAX_RETRY_S)

    async def _advance_off_loop(self, batch: Batch) -> None:
        work = asyncio.ensure_future(self._store.run(self._advance, batch))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work})
            if not work.cancelled() and (error := work.exception()) is not None:
                log.error("a batch was not finished before the end: %s", type(error).__name__)
            raise

    def _advance(self, store: EventStore, batch: Batch) -> None:
        """Does whatever the batch still lacks; in the store's thread."""
        if batch.rows is None:
            batch.convert()
            report(f"{count} events not used: {why}" for why, count in batch.unusable.items())
        if batch.result is None:
            # Events and their alerts are committed together: after a crash in between, the events
            # would be duplicates, and nobody would look at them again.
            with store.transaction():
                result = store.ingest(batch.rows or [])
                drafts = self._detect(batch, result.accepted)
                recorded = store.record_alerts(drafts) if drafts else ()
            batch.result, batch.recorded = result, recorded
            report(map(describe_loss, result.losses))
        if batch.shortfall is None and batch.result.changes_shortfall:
            batch.shortfall = store.shortfall()

    def _detect(self, batch: Batch, accepted: Sequence[EventRow]) -> list[AlertDraft]:
        matches, failures = self._rulebook.evaluate(accepted)
        batch.failures = {failure.rule_id: failure.reason for failure in failures}
        drafts = [draft for match in matches if (draft := self._draft(match, batch)) is not None]
        report(f"rule {rule_id} failed: {reason}" for rule_id, reason in batch.failures.items())
        return drafts

    def _draft(self, match: Match, batch: Batch) -> AlertDraft | None:
        rule_id = match.rule.id
        try:
            return to_draft(match, batch.degradations_for(rule_id))
        except (DaemoneyeError, KeyError) as error:
            # A rule that was let in although its alerts cannot be kept must not stop the others.
            known = error.message if isinstance(error, DaemoneyeError) else f"no column {error}"
            batch.failures[rule_id] = f"its alert cannot be kept: {known}"
            self._rulebook.note_failure(rule_id, batch.failures[rule_id])
            return None

    def _count(self, batch: Batch, result: IngestResult) -> None:
        # The store refuses what could not be converted, too, to know its sequence as lost; when it
        # is sent again, the store takes it for a duplicate.
        refused_by_store = result.refused - batch.refused.total()
        self.counters.stored += result.stored
        self.counters.duplicate += result.duplicates + min(refused_by_store, 0)
        self.counters.alerts += len(batch.recorded) + len(result.alerts)
        self.refused.update(batch.refused)
        if refused_by_store > 0:
            self.refused["store_refused"] += refused_by_store
        if batch.shortfall is not None:
            self._coverage.note_shortfall(batch.shortfall)

    def _announce(self, recorded: Recorded, degradations: Sequence[Degradation]) -> None:
        alert, is_new = recorded
        self._publish(to_alert_message(alert, degradations))
        if is_new:
            log.warning(
                "%s alert: %s (%s)",
                alert.severity,
                alert.title,
                alert.rule_id,
                extra={"alert_id": alert.alert_id, "rule_id": alert.rule_id},
            )

    def _note_trouble(self, cause: str) -> None:
        if cause == self.trouble:
            return
        if cause:
            log.error("events wait, because they cannot be stored: %s", cause)
        else:
            log.info("events are stored again")
        self.trouble = cause
        self._coverage.note_store_failure(cause or None)


def describe_loss(loss: Loss) -> str:
    """Returns the sentence about one range."""
    first, last, source = loss.first_sequence, loss.last_sequence, loss.source_id
    state = "are lost" if loss.state is LossState.LOST else "did not arrive yet"
    return f"events {first} to {last} of {source} {state}: {loss.reason}"


def report(lines: Iterable[str]) -> None:
    """Logs the first few lines, and how many more there were."""
    count = 0
    for count, line in enumerate(lines, start=1):
        if count <= MAX_LOGGED:
            log.warning("%s", line)
    if count > MAX_LOGGED:
        log.warning("and %d more like this in the same batch", count - MAX_LOGGED)
