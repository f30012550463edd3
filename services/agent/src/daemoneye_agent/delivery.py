"""The agent's half of delivery: acknowledges what is stored, has sent again what is not.

Invariant: nothing here holds up the pipeline; every call has a deadline; a source whose collector
hangs or fails delays no other. What is decided is in ``delivery_plan``.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from daemoneye.ipc.v1 import collector_service_pb2, event_log_pb2, ipc_pb2
from daemoneye_agent.alert import Recorded
from daemoneye_agent.delivery_plan import SourcePlan
from daemoneye_agent.delivery_step import (
    Acknowledge,
    Activate,
    Ask,
    ExpectReplay,
    GiveUp,
    Negotiate,
    Settle,
    Step,
)
from daemoneye_agent.log_position import LogLoss
from daemoneye_agent.loss import EpochProgress, Shortfall
from daemoneye_agent.registry import (
    MISSED_LIMIT,
    Collector,
    CollectorRegistry,
    CollectorState,
    Transition,
)
from daemoneye_agent.store import EventStore
from daemoneye_agent.store_limits import Settlement
from daemoneye_agent.store_thread import StoreThread
from daemoneye_mesh.errors import DaemoneyeError, InvalidRequestError, UnsupportedError

__all__ = ["Delivery", "DeliveryCounters", "LogClients"]

POLL_S = 0.5
"""How often a source is looked at when nothing happens to it."""
_MAX_SEQUENCE = 2**63 - 1

log = logging.getLogger("daemoneye.delivery")


class LogClients(Protocol):
    """Calls to collectors about their logs; each has a deadline of its own."""

    async def negotiate(self, collector_id: str) -> ipc_pb2.CapabilityResponse:
        """Asks what a collector offers."""
        ...

    async def acknowledge(self, collector_id: str, epoch: int, sequence: int) -> int:
        """Tells a collector what is stored."""
        ...

    async def replay(
        self, collector_id: str, epoch: int, first: int, last: int
    ) -> collector_service_pb2.ReplayResponse:
        """Has a range published again."""
        ...


class Reports(Protocol):
    """Where it is told what changed for good or bad."""

    def announce(self, alerts: Iterable[Recorded]) -> None:
        """Publishes alerts that the store recorded."""

    def note_shortfall(self, shortfall: Shortfall) -> None:
        """Takes over what is known to be missing."""


@dataclass(slots=True)
class DeliveryCounters:
    """What was done since the agent started."""

    acknowledged: int = 0
    """Acknowledgements that collectors took."""
    replays: int = 0
    """Ranges that collectors were asked for again."""
    settled_events: int = 0
    """Events that were given up."""


@dataclass(slots=True)
class _Link:
    plan: SourcePlan
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    stored: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        self.changed.set()
        self.stored.set()


class Delivery:
    """One plan for each source that is or was a collector, and the tasks that carry it out.

    Args:
        store: thread that owns the event store.
        registry: the leases.
        clients: calls to the collectors.
        reports: is told what is missing, and publishes the alerts about it.
        is_subscribed: whether the agent hears the event bus.
        clock: seconds that never jump back.
    """

    def __init__(
        self,
        *,
        store: StoreThread,
        registry: CollectorRegistry,
        clients: LogClients,
        reports: Reports,
        is_subscribed: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._registry = registry
        self._clients = clients
        self._reports = reports
        self._is_subscribed = is_subscribed
        self._clock = clock
        self._links: dict[str, _Link] = {}
        self._group: asyncio.TaskGroup | None = None
        self.counters = DeliveryCounters()

    def note_progress(self, progress: Sequence[EpochProgress]) -> None:
        """The store committed a batch; cheap, so that the pipeline can call it."""
        now_s = self._clock()
        for one in progress:
            link = self._links.get(one.source_id)
            if link is None:
                continue
            if link.plan.note_progress(one, now_s):
                link.changed.set()
            link.stored.set()

    def note_opened(self) -> None:
        """The subscription began anew: what came before may be missing."""
        for link in self._links.values():
            link.plan.note_opened(self._clock())
            link.wake()

    def is_active(self, source_id: str) -> bool:
        """Whether a collector is reached and both sides know how far they are."""
        link = self._links.get(source_id)
        return link is not None and link.plan.is_active

    async def run(self) -> None:
        """Keeps to the plans until cancelled."""
        known = await self._store.run(lambda store: store.replay_sources)
        async with asyncio.TaskGroup() as group:
            self._group = group
            for source_id in known:
                self._add_link(source_id, is_expected=True)
            unlisten = self._registry.on_change(self._note_change)
            try:
                for collector in self._registry.collectors():
                    if _is_in_reach(collector):
                        self._note_registered(collector.registration.collector_id)
                await asyncio.Event().wait()
            finally:
                unlisten()
                self._group = None
                log.info(
                    "delivery ends: %d acknowledgements, %d replays, %d events given up",
                    self.counters.acknowledged,
                    self.counters.replays,
                    self.counters.settled_events,
                )

    def _note_change(self, change: Transition) -> None:
        if change.after is CollectorState.REGISTERED:
            self._note_registered(change.collector_id)
        elif link := self._links.get(change.collector_id):
            link.wake()

    def _note_registered(self, source_id: str) -> None:
        link = self._links.get(source_id) or self._add_link(source_id, is_expected=False)
        link.plan.note_returned(self._clock())
        link.wake()

    def _add_link(self, source_id: str, *, is_expected: bool) -> _Link:
        plan = SourcePlan(source_id, self._clock(), is_expected=is_expected)
        link = self._links[source_id] = _Link(plan)
        if self._group is not None:
            self._group.create_task(self._recover(link), name=f"recover {source_id}")
            self._group.create_task(self._acknowledge(link), name=f"acknowledge {source_id}")
        return link

    async def _recover(self, link: _Link) -> None:
        plan = link.plan
        while True:
            self._look(plan)
            step = plan.next_step(self._clock())
            if step is None:
                await _wait(link.changed, POLL_S)
                continue
            try:
                await self._take(plan, step)
            except DaemoneyeError as error:
                log.warning("delivery of %s waits: %s", plan.source_id, error.message)
                plan.note_failed(self._clock())
            link.stored.set()

    def _look(self, plan: SourcePlan) -> None:
        """Takes over what nobody calls back about."""
        now_s = self._clock()
        plan.note_subscribed(self._is_subscribed(), now_s)
        collector = self._registry.get(plan.source_id)
        if collector is None or not _is_in_reach(collector):
            if plan.is_in_service:
                plan.note_away(now_s)
            return
        if not plan.is_in_service:
            plan.note_returned(now_s)
        if collector.heartbeat:
            plan.note_positions(collector.heartbeat.log_positions, now_s)

    async def _take(self, plan: SourcePlan, step: Step) -> None:
        match step:
            case ExpectReplay(is_expected):
                await self._settle(plan, EventStore.expect_replay, is_expected)
                plan.note_expected(is_expected)
            case Negotiate():
                plan.note_negotiated(step, await self._can_replay(plan.source_id))
            case Activate():
                progress = await self._store.run(EventStore.reopen, plan.source_id, step.epochs)
                plan.activate(step, progress, self._clock())
                await self._refresh()
            case Settle():
                await self._settle_range(plan, step)
                plan.note_settled(step)
            case GiveUp(reason, tails):
                for tail in tails:
                    await self._settle_range(plan, tail)
                await self._settle(plan, EventStore.settle_source, reason)
                plan.note_given_up(self._clock())
            case Ask():
                await self._ask(plan, step)

    async def _can_replay(self, source_id: str) -> bool:
        try:
            return (await self._clients.negotiate(source_id)).supports_replay
        except UnsupportedError:
            return False

    async def _ask(self, plan: SourcePlan, ask: Ask) -> None:
        source_id = plan.source_id
        log.info("asking %s for events %d to %d again", source_id, ask.first, ask.last)
        self.counters.replays += 1
        try:
            answer = await self._clients.replay(source_id, ask.source_epoch, ask.first, ask.last)
        except UnsupportedError:
            plan.note_unsupported()
        except InvalidRequestError as error:
            log.warning("%s refuses to replay: %s", source_id, error.message)
            plan.note_refused(ask.source_epoch, self._clock())
        except DaemoneyeError as error:
            log.warning("%s does not replay now: %s", source_id, error.message)
            plan.note_replay_failed(ask, self._clock())
        else:
            losses = [_to_loss(one) for one in answer.losses]
            plan.note_replayed(ask, answer.from_sequence, answer.to_sequence, losses, self._clock())

    async def _settle_range(self, plan: SourcePlan, step: Settle) -> None:
        await self._settle(
            plan, EventStore.settle_lost, step.source_epoch, step.first, step.last, step.reason
        )

    async def _settle(
        self, plan: SourcePlan, change: Callable[..., Settlement], *values: object
    ) -> None:
        settlement = await self._store.run(change, plan.source_id, *values)
        now_s = self._clock()
        for one in settlement.progress:
            plan.note_progress(one, now_s, is_arrival=False)
        for loss in settlement.lost:
            self.counters.settled_events += loss.event_count
        if settlement.lost:
            self._reports.announce(settlement.alerts)
            await self._refresh()

    async def _refresh(self) -> None:
        self._reports.note_shortfall(await self._store.run(EventStore.shortfall))

    async def _acknowledge(self, link: _Link) -> None:
        plan = link.plan
        while True:
            step = plan.next_acknowledge(self._clock())
            if step is None:
                await _wait(link.stored, plan.acknowledge_wait_s(self._clock()))
                continue
            await self._tell(plan, step)

    async def _tell(self, plan: SourcePlan, step: Acknowledge) -> None:
        source_id = plan.source_id
        try:
            await self._clients.acknowledge(source_id, step.source_epoch, step.sequence)
        except UnsupportedError:
            plan.note_unsupported()
        except DaemoneyeError as error:
            log.warning("%s does not take an acknowledgement: %s", source_id, error.message)
            plan.note_acknowledge_failed(self._clock())
            if isinstance(error, InvalidRequestError):
                plan.note_refused(step.source_epoch, self._clock())
        else:
            self.counters.acknowledged += 1
            plan.note_acknowledged(step, self._clock())


def _is_in_reach(collector: Collector) -> bool:
    """Whether it beats: one that says it fails needs to be told what is stored all the more."""
    if collector.state is CollectorState.UNAVAILABLE:
        return collector.missed_heartbeats < MISSED_LIMIT
    return collector.state is not CollectorState.DEREGISTERED


def _to_loss(loss: event_log_pb2.EventLoss) -> LogLoss:
    first, last = (min(end, _MAX_SEQUENCE) for end in (loss.first_sequence, loss.last_sequence))
    return LogLoss(first, last, loss.reason)


async def _wait(event: asyncio.Event, timeout_s: float | None) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    event.clear()
