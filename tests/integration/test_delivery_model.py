"""Delivery as a whole, against a model: whatever dies, an event in the log is stored once or lost for a reason.

No processes, no sockets and no real time. Log, delivery, store and plan are the real ones; the bus between
them loses, doubles, delays and mixes up. Time passes when nothing else is left to do, and work that
leaves the event loop is a step of that loop, so that a run is the same each time.

``DELIVERY_MODEL_EXAMPLES`` is the number of runs, ``DELIVERY_MODEL_STEPS`` the length of each.
"""

import asyncio
import json
import os
import random
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tests.integration.model_workers.participants import (
    CORRUPT,
    CREATED,
    FORGOTTEN,
    HEAD_OF_RECORD,
    MAX_EPOCHS,
    MEMORY,
    PROCESSES,
    READ_LOSSES,
    READ_STORED,
    ROOMY,
    SECONDS,
    SEGMENT_BYTES,
    SHORT_LIVED,
    SIZES,
    SMALL,
    Agent,
    Broker,
    Collector,
    Key,
    LeapingLoop,
    key_of,
)

from collector_core.delivery import Delivery
from collector_core.event import Event, EventClass
from collector_core.wal import SyncPolicy, WalLimits
from daemoneye.eventbus.v1 import collection_gap_pb2, event_data_pb2
from daemoneye_agent.builtin_alert import EVENTS_LOST
from daemoneye_agent.loss import LossReason

EXAMPLES = int(os.environ.get("DELIVERY_MODEL_EXAMPLES", "250"))
STEPS = int(os.environ.get("DELIVERY_MODEL_STEPS", "30"))
pytestmark = pytest.mark.timeout(60 + 10 * EXAMPLES)


class Model(RuleBasedStateMachine):
    """What was done, what must come of it, and what may be missing for which reason."""

    collector: Collector | None = None
    agent: Agent | None = None

    @initialize(seed=st.integers(0, 2**32), sync=st.sampled_from(SyncPolicy))
    def begin(self, seed: int, sync: SyncPolicy) -> None:
        self.chance = random.Random(seed)
        self.loop = LeapingLoop(self.chance)
        self.broker = Broker(self.chance)
        self.path = Path(tempfile.mkdtemp(dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
        self.log_path, self.store_path = self.path / "wal", self.path / "store.db"
        self.sync, self.limits = sync, ROOMY
        self.lives = self.boots = self.emitted = self.epoch_changes = 0
        self.has_log, self.is_cut = True, False
        self.away_since_s = self.loop.now_s
        self.logged: dict[Key, str] = {}
        self.excuses: defaultdict[Key, set[str]] = defaultdict(set)
        self.unknowable: set[Key] = set()
        """Nobody who lives has ever heard of these."""
        self.may_alert = False
        self.start_all()

    def teardown(self) -> None:
        if not hasattr(self, "path"):
            return
        try:
            self.come_to_rest()
        finally:
            self.kill_collector()
            self.kill_agent()
            self.loop.close()
            shutil.rmtree(self.path)

    # What happens.

    @rule(count=st.integers(1, 60), size_bytes=SIZES, seconds=SECONDS)
    def emit(self, count: int, size_bytes: int, seconds: float) -> None:
        if self.collector is not None:
            _ = self.collector.spawn(self._emit(self.collector.delivery, count, size_bytes))
        self.let_pass(seconds)

    @rule(seconds=SECONDS)
    def let_pass(self, seconds: float) -> None:
        if self.collector and self.agent and not self.is_cut:
            self.away_since_s = self.loop.now_s
        self.loop.run_until_complete(asyncio.sleep(seconds))
        self.may_alert |= self.loop.now_s - self.away_since_s > 50.0
        assert not self.loop.crashes, self.loop.crashes

    @rule(is_rough=st.booleans())
    def start_all(self, is_rough: bool = False) -> None:
        self.broker.is_up, self.broker.is_rough, self.is_cut = True, is_rough, False
        if self.agent is None:
            self.agent = Agent(self)
        if self.collector is None:
            self.lives += 1
            self.collector = Collector(self)
        self.let_pass(0.001)

    @rule(what=st.sampled_from(("refuse", "cut", *map("kill_{}".format, PROCESSES))))
    def upset(self, what: str) -> None:
        match what:
            case "refuse":
                self.broker.refusals = 1
            case "cut":
                self.is_cut = True
            case _:
                getattr(self, what)()

    @rule(limits=st.sampled_from((ROOMY, SMALL, SHORT_LIVED)))
    def limit_log(self, limits: WalLimits) -> None:
        self.let_pass(6.0 if limits is SHORT_LIVED else 0.0)
        self.limits = limits
        if self.collector is not None:
            work = self.collector.delivery.apply_limits(limits)
            self.loop.run_until_complete(self.collector.spawn(work))

    @rule(has_log=st.booleans())
    def replace_collector(self, has_log: bool) -> None:
        self.kill_collector()
        self.has_log = has_log
        if not has_log:
            self.excuse(self.logged, LossReason.NO_LOG)

    @rule()
    def wipe_store(self) -> None:
        self.start_all(self.broker.is_rough)
        stored, lost, _ = self.read_store()
        self.kill_agent()
        self.excuse({*stored, *lost}, LossReason.LET_GO)
        self.unknowable |= self.logged.keys() - self.find_held()
        for path in self.path.glob("store.db*"):
            path.unlink()

    @rule()
    @precondition(lambda self: self.epoch_changes < MAX_EPOCHS)
    def wipe_log(self) -> None:
        self.epoch_changes += 1
        self.kill_collector()
        self.excuse(self.logged, *FORGOTTEN)
        told = self.agent.told if self.agent else {}
        for epoch, sequence in self.logged:
            if sequence > max(told.get(epoch, 0), self.find_highest().get(epoch, 0)):
                self.unknowable.add((epoch, sequence))
        shutil.rmtree(self.log_path, ignore_errors=True)
        self.let_pass(0.01)

    @rule(is_deleted=st.booleans())
    @precondition(lambda self: self.epoch_changes < MAX_EPOCHS)
    def damage_log(self, is_deleted: bool) -> None:
        segments = sorted(self.log_path.glob("*.wal"))
        if len(segments) < 2:
            return
        self.epoch_changes += 1
        index = self.chance.randrange(len(segments) - 1)
        first, behind = map(key_of, segments[index : index + 2])
        self.excuse([one for one in self.logged if first <= one < behind], CORRUPT)
        if is_deleted:
            segments[index].unlink()
            return
        content = bytearray(segments[index].read_bytes())
        content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
        segments[index].write_bytes(content)

    @rule(count=st.integers(0, 20))
    @precondition(lambda self: self.collector and self.epoch_changes < MAX_EPOCHS)
    def lose_power(self, count: int) -> None:
        """What was never on the disk is gone, and everybody dies."""
        self.emit(count, 100, 0.4)
        assert self.collector is not None
        self.epoch_changes += 1
        self.boots += 1
        writer, epoch = self.collector.log._appender._writer, self.collector.log.epoch
        for name in PROCESSES:
            getattr(self, f"kill_{name}")()
        if writer is None or self.sync is SyncPolicy.COMMIT:
            return
        end = self.chance.randint(writer.synced_bytes, writer.segment.size_bytes)
        os.truncate(writer.segment.path, end)
        gone = {one for one in self.logged if one[0] == epoch and one[1] > writer.synced_sequence}
        self.excuse(gone, CORRUPT, LossReason.LET_GO)
        self.unknowable |= gone

    @rule()
    def come_to_rest(self) -> None:
        """Everybody gets well and has time; then nothing is open or missing without a reason."""
        self.broker.refusals = 0
        if not self.has_log:
            self.replace_collector(has_log=True)
        self.limit_log(ROOMY)
        self.start_all()
        for _ in range(200):
            self.let_pass(5.0)
            if self.is_at_rest():
                break
        self.let_pass(15.0)
        self.check()

    def kill_broker(self) -> None:
        self.broker.is_up = False
        self.broker.waiting.clear()
        if self.agent is not None:
            self.agent.is_subscribed = False
        if self.collector is not None:
            self.collector.delivery.outbox.rewind()

    def kill_collector(self) -> None:
        if self.collector is None:
            return
        collector, self.collector = self.collector, None
        collector.end()
        if self.chance.random() < 0.3 and (writer := collector.log._appender._writer):
            writer.write([HEAD_OF_RECORD[: self.chance.randint(1, len(HEAD_OF_RECORD))]])
        collector.log.close(clean=self.chance.random() < 0.2)

    def kill_agent(self) -> None:
        if self.agent is None:
            return
        self.agent.end()
        self.broker.waiting.clear()
        gone, highest = self.logged.keys() - self.find_held(), self.find_highest()
        self.unknowable |= {one for one in gone if one[1] > highest.get(one[0], 0)}
        self.agent.store.close()
        self.agent = None

    # What must come of it.

    def is_at_rest(self) -> bool:
        assert self.agent is not None
        assert self.collector is not None
        delivery, log = self.collector.delivery, self.collector.log
        is_sent = not (delivery.pending_count or delivery.outbox.pending_count)
        is_heard = not self.broker.waiting
        return is_sent and is_heard and not log.unacknowledged_count and not self.read_store()[2]

    def check(self) -> None:
        assert self.agent is not None
        assert self.collector is not None
        assert self.is_at_rest(), (self.collector.log.positions(), self.read_store()[1:])
        assert self.collector.log.size_bytes <= SEGMENT_BYTES
        stored, lost, _ = self.read_store()
        for key, token in stored.items():
            assert self.logged[key] == token, key
            assert key not in lost, key
        for key in self.logged.keys() - stored.keys():
            if key in lost:
                assert lost[key] in self.excuses[key], (key, lost[key], self.excuses[key])
            else:
                assert key in self.unknowable, (key, "is neither stored nor lost")
        has_alert = any(one.rule_id == EVENTS_LOST for one in self.agent.store.list_alerts())
        assert has_alert or not lost
        assert lost or self.may_alert or not has_alert

    def check_settled(self, epoch: int, sequence: int) -> None:
        """Everything up to a sequence is stored, or nobody has it."""
        stored, lost, _ = self.read_store()
        wanted = {one for one in self.logged if one[0] == epoch and one[1] <= sequence}
        assert wanted <= stored.keys() | lost.keys()

    def read_store(self) -> tuple[dict[Key, str], dict[Key, str], list[tuple[int, int, int]]]:
        """What is stored, what is lost and why, and what is open."""
        assert self.agent is not None
        rows = [row for query in READ_STORED for row in self.agent.query(query)]
        stored = {(epoch, sequence): content for epoch, sequence, content in rows}
        assert len(stored) == len(rows), "stored twice"
        losses = self.agent.query(READ_LOSSES)
        lost = {
            (epoch, sequence): reason
            for epoch, first, last, state, reason in losses
            if state == "lost"
            for sequence in range(first, last + 1)
        }
        return stored, lost, [one[:3] for one in losses if one[3] == "open"]

    # What is noted.

    def note_logged(self, events: dict[Key, str]) -> None:
        assert not events.keys() & self.logged.keys(), "a sequence stands for two events"
        self.logged |= events
        if not self.has_log:
            self.excuse(events, LossReason.NO_LOG)

    def excuse(self, keys: Collection[Key], *reasons: str) -> None:
        self.may_alert |= bool(keys)
        for key in keys:
            self.excuses[key].update(map(str, reasons))

    def find_held(self) -> set[Key]:
        """What is of an epoch that the log still knows."""
        state = self.log_path / "state.json"
        content = json.loads(state.read_text()) if state.exists() else {"epochs": []}
        epochs = {entry[0] for entry in content["epochs"]}
        return {one for one in self.logged if one[0] in epochs}

    def find_highest(self) -> dict[int, int]:
        """The highest sequence of each epoch that the store has heard of."""
        query = "SELECT source_epoch, highest FROM event_sources"
        return dict(self.agent.query(query)) if self.agent else {}

    async def _emit(self, delivery: Delivery, count: int, size_bytes: int) -> None:
        for _ in range(count):
            self.emitted += 1
            await delivery.put(self._event(f"e{self.emitted}", "x" * size_bytes))

    def _event(self, token: str, filling: str) -> Event:
        data: Any = event_data_pb2.ProcessEventData(subtype=CREATED)
        topic = self.chance.choice(("lifecycle", "metadata", "load", "gap"))
        if topic == "load":
            data = event_data_pb2.PerformanceEventData()
            data.threshold_info.threshold_type = token
        elif topic == "gap":
            data = collection_gap_pb2.CollectionGapData(message=token, source_name=filling)
        else:
            data.process.pid, data.process.boot_id, data.process.name = 7, "boot", token
            data.process.executable_path = filling
        kinds = {"metadata": EventClass.METADATA, "load": EventClass.SAMPLE}
        kind = kinds.get(topic, EventClass.LIFECYCLE)
        return Event(f"events.process.{topic}", data, self.loop.unix_ns(), kind)


TestDelivery = Model.TestCase
TestDelivery.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    derandomize="DELIVERY_MODEL_EXAMPLES"
    not in os.environ,  # a gate that finds new things is no gate
    suppress_health_check=list(HealthCheck),
)
