"""Who takes part in the model of delivery, and the time they live in; see test_delivery_model."""

import asyncio
import contextvars
import random
import selectors
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hypothesis import strategies as st

from collector_core.bus.outbox_group import OutboxGroup
from collector_core.bus.received_group import ReceivedGroup
from collector_core.bus.wire import iter_frames
from collector_core.delivery import Delivery, DeliveryBounds, Pressure
from collector_core.log_message import to_position
from collector_core.service import CollectorServicer
from collector_core.wal import EventLog, WalLimits
from daemoneye.eventbus.v1 import event_data_pb2, eventbus_pb2, group_pb2
from daemoneye.ipc.v1 import collector_service_pb2 as pb
from daemoneye.ipc.v1 import ipc_pb2
from daemoneye_agent import delivery as agent_delivery
from daemoneye_agent import service_registry
from daemoneye_agent.coverage import Coverage
from daemoneye_agent.loss import EpochProgress
from daemoneye_agent.pipeline import Pipeline
from daemoneye_agent.registry import (
    CollectorRegistry,
    Heartbeat,
    RegistrationRequest,
    ReportedHealth,
)
from daemoneye_agent.rulebook import Rulebook
from daemoneye_agent.store import EventStore
from daemoneye_agent.store_thread import StoreThread
from daemoneye_mesh.errors import UnavailableError, UnsupportedError

SOURCE = "unit"
BEGIN_NS = 1_700_000_000_000_000_000
SEGMENT_BYTES = 4 << 10
ROOMY = WalLimits(max_bytes=4 << 20, segment_bytes=SEGMENT_BYTES)
SMALL = WalLimits(max_bytes=2 * SEGMENT_BYTES, segment_bytes=SEGMENT_BYTES)
SHORT_LIVED = WalLimits(max_bytes=4 << 20, segment_bytes=SEGMENT_BYTES, max_age_s=5.0)
MAX_EPOCHS = 12
"""Fewer than a log remembers: beyond, it forgets without a trace."""
FULL = "the collector's log was full"
EXPIRED = "older than the collector's log keeps"
CORRUPT = "the collector's log was corrupt"
REFUSED = "refused by the broker"
FORGOTTEN = (
    "collector away",
    "not received",
    "published before the agent subscribed",
    "the collector does not know their epoch any more",
)
"""What the agent says of an epoch that the log does not know any more."""
READ_STORED = (
    "SELECT source_epoch, source_sequence, name FROM process_events",
    "SELECT source_epoch, source_sequence, data ->> '$.threshold_info.threshold_type' FROM collector_events",
    "SELECT source_epoch, source_sequence, message FROM collection_gaps",
)
READ_LOSSES = "SELECT source_epoch, first_sequence, last_sequence, state, reason FROM event_losses"
PROCESSES = ("broker", "agent", "collector")
SIZES = st.sampled_from((1, 100, 700))
SECONDS = st.sampled_from((0.003, 0.05, 0.3, 3.0, 20.0))
CREATED = event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_CREATED
MEMORY = Path("/dev/shm")
HEAD_OF_RECORD = b"\xdeEr\n\x01\x01\x00\x00"
Key = tuple[int, int]
"""Epoch and sequence."""


def key_of(segment: Path) -> Key:
    epoch, first = segment.stem.split("-")
    return int(epoch, 16), int(first, 16)


class Leaper(selectors.SelectSelector):
    """Waits by moving the clock."""

    loop: "LeapingLoop"

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everything waits, and nothing will ever happen")
        self.loop.now_s += max(timeout, 0.0)
        return []


class Process:
    """What dies together: tasks, and work in threads of which nobody knows whether it was done."""

    def __init__(self, loop: "LeapingLoop") -> None:
        self.loop = loop
        self.is_dead = False
        self.free_at_s: dict[object, float] = {}
        self.tasks: set[asyncio.Task[Any]] = set()
        self.context = contextvars.copy_context()
        self.context.run(PROCESS.set, self)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.loop.create_task(work, context=self.context.copy())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def serve(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs until the process dies; that it ends before is a defect."""
        self.spawn(work).add_done_callback(self._note_end)

    def end(self) -> None:
        self.is_dead = True
        ending = [*self.tasks]
        for task in ending:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*ending, return_exceptions=True))

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        if not self.is_dead:
            self.loop.crashes.append(task.exception() if not task.cancelled() else None)


PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("PROCESS")


class LeapingLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own, on which threads are steps like all others."""

    def __init__(self, chance: random.Random) -> None:
        selector = Leaper()
        selector.loop = self
        self.now_s = 1_000.0
        self.chance = chance
        self.crashes: list[BaseException | None] = []
        super().__init__(selector)

    def time(self) -> float:
        return self.now_s

    def unix_ns(self) -> int:
        return BEGIN_NS + int(self.now_s * 1e9)

    def run_in_executor(
        self, executor: object, func: Callable[..., Any], *args: object
    ) -> asyncio.Future[Any]:
        process, done = PROCESS.get(), self.create_future()

        def work() -> None:
            if process.is_dead or done.cancelled():
                done.cancel()
                return
            try:
                tell, result = done.set_result, func(*args)
            except Exception as error:  # it belongs to whoever waits for it
                tell, result = done.set_exception, error
            pause_s = self.chance.choice((0.0, 0.001, 0.02))
            self.call_later(pause_s, lambda: None if done.done() else tell(result))

        begin_s = self.now_s + self.chance.choice((0.0, 0.0, 0.001, 0.02))
        if executor is not None:  # of one thread
            begin_s = max(begin_s, process.free_at_s.get(executor, 0.0) + 1e-6)
            process.free_at_s[executor] = begin_s
        self.call_at(begin_s, work)
        return done


class Broker:
    """Holds batches in memory for the agent, and does to them what nobody wants."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.is_up = True
        self.is_rough = False
        self.refusals = 0
        """Batches that are going to be refused for good."""
        self.waiting: list[list[ReceivedGroup]] = []

    def take(self, groups: Iterable[OutboxGroup]) -> None:
        batch = [to_received(group) for group in groups]
        copies = self.chance.choice((0, 1, 1, 1, 2)) if self.is_rough else 1
        for _ in range(copies):
            back = self.chance.choice((0, 0, 1, 3)) if self.is_rough else 0
            self.waiting.insert(max(len(self.waiting) - back, 0), batch)


def to_received(group: OutboxGroup) -> ReceivedGroup:
    envelope = group_pb2.GroupEnvelope.FromString(group.key.head)
    envelope.first_sequence, envelope.count = group.first_sequence, group.count
    return ReceivedGroup(envelope, bytes(group.block))


def token_of(frame: bytes) -> str:
    event = eventbus_pb2.EventBusMessage.FromString(frame).collection_event
    return str(
        event.process_event.process.name
        or event.performance_event.threshold_info.threshold_type
        or event.collection_gap.message
    )


class Collector(Process):
    """One life of the collector."""

    def __init__(self, model: Any) -> None:
        super().__init__(model.loop)
        self.model, self.has_log = model, model.has_log
        self.instance = model.lives
        self.registered_at: Agent | None = None
        self.beats = 0
        self.log = EventLog.open(
            model.log_path,
            model.limits,
            sync=model.sync,
            boot_id=f"boot {model.boots}",
            now_ns=self.loop.unix_ns,
            boottime_ns=self.loop.unix_ns,
        )
        self._append, self._enforce = self.log.append, self.log.enforce_limits
        self.log.append = self.append  # type: ignore[method-assign]
        self.log.enforce_limits = self.enforce_limits  # type: ignore[method-assign]
        bounds = DeliveryBounds(model.limits, outbox_messages=40, outbox_bytes=64 << 10)
        self.delivery = Delivery(SOURCE, self.log, bounds, Pressure(0.7, 0.5), lambda _: None)
        self.service = CollectorServicer(
            SOURCE, "1", (), self.delivery, cast(Any, None), lambda: ()
        )
        self.serve(self.delivery.run())
        self.serve(self.delivery.sync_every(lambda: 1.0))
        self.serve(self.publish())
        self.serve(self.beat())

    def append(self, groups: Sequence[OutboxGroup]) -> None:
        events = {
            (group.key.epoch, sequence): token_of(frame)
            for group in groups
            for sequence, frame in enumerate(iter_frames(group.block), group.first_sequence)
        }
        with self.watch_bounds(events):
            self._append(groups)
        self.model.note_logged(events)

    def enforce_limits(self) -> Any:
        with self.watch_bounds(()):
            return self._enforce()

    @contextmanager
    def watch_bounds(self, added: Iterable[Key]) -> Iterator[None]:
        held = {*self.find_held(), *added}
        yield
        reason = {SMALL: FULL, SHORT_LIVED: EXPIRED}.get(self.log._limits, "no reason")
        self.model.excuse(held - self.find_held(), reason)

    def find_held(self) -> set[Key]:
        return {
            (one.epoch, sequence)
            for one in self.log._catalog._books.values()
            for first, last in one.held(1, one.last_sequence)
            for sequence in range(first, last + 1)
        }

    async def publish(self) -> None:
        outbox, chance, broker = self.delivery.outbox, self.loop.chance, self.model.broker
        while True:
            await outbox.wait_waiting(1)
            await asyncio.sleep(chance.choice((0.001, 0.01, 0.2)))
            if not broker.is_up:
                continue
            batch = outbox.take(chance.choice((7, 30)), 64 << 10)
            if batch is None:
                continue
            fate = chance.choice(("taken", "taken", "broken", "unanswered"))
            if broker.refusals:
                broker.refusals -= 1
                for group in batch.groups:
                    numbers = range(group.first_sequence, group.next_sequence)
                    self.model.excuse([(group.key.epoch, one) for one in numbers], REFUSED)
                outbox.settle(batch.batch_id, "TOPIC_INVALID")
                continue
            is_heard = self.model.agent is not None and self.model.agent.is_subscribed
            if is_heard and (fate != "broken" or not broker.is_rough):
                broker.take(batch.groups)
            if fate == "taken" or not broker.is_rough:
                outbox.settle(batch.batch_id)
            else:
                outbox.rewind()

    async def beat(self) -> None:
        while True:
            agent = self.model.agent
            if agent is not None and not self.model.is_cut:
                agent.context.copy().run(self._beat_at, agent)
            await asyncio.sleep(5.0)

    def _beat_at(self, agent: "Agent") -> None:
        if self.registered_at is not agent:
            agent.registry.register(RegistrationRequest(SOURCE, self.instance), SOURCE)
            self.registered_at = agent
        positions = [
            service_registry._to_position(to_position(one)) for one in self.delivery.positions()
        ]
        self.beats += 1
        beat = Heartbeat(
            SOURCE,
            self.instance,
            self.beats,
            ReportedHealth.HEALTHY,
            log_positions=tuple(positions) if self.has_log else (),
        )
        agent.registry.heartbeat(beat, SOURCE)
        told = {one.source_epoch: one.last_sequence for one in beat.log_positions}
        self.loop.call_later(1.0, agent.told.update, told)  # it looks every half a second


class Agent(Process):
    """One life of the agent; also its calls to the collector."""

    def __init__(self, model: Any) -> None:
        super().__init__(model.loop)
        self.model = model
        self.is_subscribed = False
        self.told: dict[int, int] = {}
        """Up to where the collector said it has given out sequences, by epoch."""
        self.registry = CollectorRegistry(self.loop.time, self.loop.unix_ns)
        self.thread = StoreThread(
            lambda: EventStore.open(model.store_path, now_ns=self.loop.unix_ns)
        )
        self.store = self.loop.run_until_complete(self.spawn(self.thread.open()))
        book = Rulebook([], {})
        coverage = Coverage(self.registry, lambda: self.is_subscribed, lambda: book.failing)
        self.pipeline = Pipeline(
            self.thread, book, coverage, lambda _: None, note_progress=self._note_progress
        )
        self.delivery = agent_delivery.Delivery(
            store=self.thread,
            registry=self.registry,
            clients=self,
            reports=self.pipeline,
            is_subscribed=lambda: self.is_subscribed,
            clock=self.loop.time,
        )
        self.serve(self.delivery.run())
        self.serve(self.hear())

    def query(self, sql: str) -> list[Any]:
        return [*self.store._connection.execute(sql)]

    def _note_progress(self, progress: Sequence[EpochProgress]) -> None:
        self.delivery.note_progress(progress)

    async def hear(self) -> None:
        broker, chance = self.model.broker, self.loop.chance
        while True:
            await asyncio.sleep(chance.choice((0.002, 0.05, 1.0)) if broker.is_rough else 0.01)
            if not broker.waiting:
                self.registry.expire()
                await asyncio.sleep(0.2)
            if broker.is_up and not self.is_subscribed:
                self.is_subscribed = True
                self.delivery.note_opened()
            if broker.waiting:
                if SOURCE not in self.store.replay_sources:
                    self.model.may_alert = True  # a gap before the collector registered
                batch = broker.waiting.pop(0)
                await self.pipeline.process([one for group in batch for one in group.messages])

    async def negotiate(self, _collector_id: str) -> ipc_pb2.CapabilityResponse:
        request = ipc_pb2.CapabilityRequest()
        collector = self._reach(for_log=False)
        answer = await self._call(collector.service.NegotiateCapabilities(request, None))
        answer.supports_replay = collector.has_log
        return cast(ipc_pb2.CapabilityResponse, answer)

    async def acknowledge(self, _collector_id: str, epoch: int, sequence: int) -> int:
        collector = self._reach()
        self.model.check_settled(epoch, sequence)
        request = pb.AcknowledgeRequest(source_epoch=epoch, source_sequence=sequence)
        answer = await self._call(collector.service.Acknowledge(request, None))
        return int(answer.source_sequence)

    async def replay(
        self, _collector_id: str, epoch: int, first: int, last: int
    ) -> pb.ReplayResponse:
        collector = self._reach()
        request = pb.ReplayRequest(source_epoch=epoch, from_sequence=first, to_sequence=last)
        return cast(pb.ReplayResponse, await self._call(collector.service.Replay(request, None)))

    def _reach(self, *, for_log: bool = True) -> Collector:
        if self.model.collector is None or self.model.is_cut:
            raise UnavailableError("nobody answers; start it")
        if for_log and not self.model.collector.has_log:
            raise UnsupportedError("no log; ask no more")
        return self.model.collector

    async def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        task = self._reach(for_log=False).spawn(work)
        await asyncio.wait({task}, timeout=5.0)
        is_answer_lost = self.model.broker.is_rough and self.loop.chance.random() < 0.2
        if not task.done() or task.cancelled() or self.model.is_cut or is_answer_lost:
            raise UnavailableError("nobody answers; start it")
        return task.result()
