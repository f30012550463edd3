"""Publisher, broker and subscriber are killed in turn, at random moments, at load.

At least once must lose nothing, and at most once must announce each gap exactly. The seed of the
moments is printed; BUS_KILL_ROUNDS and BUS_KILL_SEED make it another run.
"""

import asyncio
import os
import random
import sys
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any, NamedTuple

import pytest
from tests.integration.bus_workers.field import TOPIC, BusField, Log

pytestmark = pytest.mark.integration

ROUNDS = int(os.environ.get("BUS_KILL_ROUNDS", "50"))
SEED = int(os.environ.get("BUS_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
KEEPERS = ("keeper", "second-keeper")
DURABLE = {"durable_for_s": 60.0, "history_s": 60.0, "max_unacknowledged": 250}
"""The bound keeps messages waiting in the broker, where they die with it."""
LONG_PAST = ("--retained-messages", "262144", "--retained-bytes", str(64 << 20))
"""What comes back last after the broker's death has to find what the others let through meanwhile."""
SHORT_QUEUE = {"max_queue_messages": 100}
RATE = 8_000
"""Messages a second; what an outage kept back comes as fast as the window allows."""
MOMENT_S = 0.2, 1.4
"""How long a round is left alone before somebody is killed."""

VICTIMS = ("publisher", "eventbus", "keeper", "publisher", "eventbus", "watcher")


class Run(NamedTuple):
    """Consecutive numbers from one life of the publisher over one life of the broker."""

    epoch: str
    life: int
    first: int
    last: int


class Participants:
    """Who takes part, and what they have written so far."""

    def __init__(self, bus: BusField) -> None:
        self.bus = bus
        self.publisher_life = 0
        self.logs: dict[str, Log] = {}

    async def start(self, name: str) -> None:
        """Starts somebody, for the first time or again."""
        if name == "eventbus":
            await self.bus.start_broker()
        elif name == "publisher":
            self.publisher_life += 1
            await self.bus.start_publisher(self.publisher_life, rate=RATE)
        elif name == "watcher":
            log = await self.bus.start_subscriber(name, name, options=SHORT_QUEUE, work_s=0.002)
            self.logs.setdefault(name, log)
        else:
            log = await self.bus.start_subscriber("keeper", name, options=DURABLE, work_s=0.008)
            self.logs.setdefault(name, log)

    async def kill(self, victim: str) -> None:
        """Kills somebody, starts them again and waits until everybody goes on."""
        await self.bus.mesh.kill(victim)
        reached = max(last_number(log) for log in self.logs.values())
        opened = {name: log.counts["open"] for name, log in self.logs.items()}
        await self.start(victim)
        for name, log in self.logs.items():
            least = opened[name] + (victim in ("eventbus", name))
            await self.bus.until(
                lambda log=log, least=least: self.has_gone_on(log, least, reached),
                f"{name} gets new messages after the end of {victim}",
            )

    def has_gone_on(self, log: Log, opened: int, reached: int) -> bool:
        """Whether something new of the publisher's present life came in a present subscription."""
        entries = log.read()
        if log.counts["open"] < max(opened, 1):
            return False
        for entry in reversed(entries):
            if entry[0] in ("new", "got") and last_of(entry) > reached:
                return int(entry[1]) == self.publisher_life
            if entry[0] == "open":
                break
        return False


def last_of(entry: list[str]) -> int:
    return int(entry[2]) + int(entry[3]) - 1


def last_number(log: Log) -> int:
    """The last number that came to a subscriber."""
    found = (last_of(entry) for entry in reversed(log.read()) if entry[0] in ("new", "got"))
    return next(found, 0)


@pytest.mark.timeout(120 + 6 * ROUNDS)
async def test_nothing_is_lost_in_silence_whoever_is_killed(cold_mesh: Any) -> None:
    sys.stdout.write(f"BUS_KILL_SEED={SEED}\n")
    moments = random.Random(SEED)
    async with BusField(cold_mesh, *LONG_PAST) as bus, asyncio.TaskGroup() as group:
        auditor = group.create_task(bus.audit())
        everybody = Participants(bus)
        for name in ("eventbus", *KEEPERS, "watcher", "publisher"):
            await everybody.start(name)
        for name, log in everybody.logs.items():
            await bus.until(lambda log=log: everybody.has_gone_on(log, 1, 0), f"{name} is served")
        for victim in islice(cycle(VICTIMS), ROUNDS):
            await asyncio.sleep(moments.uniform(*MOMENT_S))  # the random moment
            await everybody.kill(victim)
        await bus.stop("publisher")
        total = bus.watermark
        await require_balance(bus, everybody.logs["watcher"])
        auditor.cancel()
    logs = everybody.logs
    runs = list(runs_of(logs["keeper"], "new", "repeat"))
    for name in KEEPERS:
        check_kept(logs[name], total)
    check_watched(logs["watcher"], runs, total)
    assert logs["watcher"].count("gap") > 0, "the load has to be too much for a short queue"
    assert bus.audited > ROUNDS
    sys.stdout.write(
        f"{ROUNDS} rounds, {total} messages, equation checked {bus.audited} times;"
        f" repeats {[logs[name].count('repeat') for name in KEEPERS]},"
        f" at most once: {logs['watcher'].count('got')} came, {logs['watcher'].count('gap')} told\n"
    )


async def require_balance(bus: BusField, watcher: Log) -> None:
    """Waits until nothing is pending, then compares what the broker and its subscribers say."""

    async def is_quiet() -> bool:
        rows = (await bus.subscriptions()).values()
        return not any(row.flow.pending_count for row in rows)

    await bus.until(is_quiet, "every queue is empty")
    rows, stats = await bus.subscriptions(), await bus.stats()
    (topic,) = [one for one in stats.topics if one.topic == TOPIC]
    for name in KEEPERS:  # durable and with a past, so that all of this broker's life concerns them
        assert rows[name].flow.offered_count == topic.published_count, (rows[name], topic)
        assert rows[name].flow.delivered_count == topic.published_count, (rows[name], topic)
    flow = rows["watcher"].flow
    assert set(flow.dropped_count) <= {"dropped_oldest"}
    position = flow.offered_count
    await bus.until(lambda: position_of(watcher) == position, "the watcher has read everything")
    received, announced = tally_of_last_life(watcher)
    assert received == flow.delivered_count
    assert announced == flow.dropped_count.get("dropped_oldest", 0)


# -- what the journals say ------------------------------------------------------------------------


def runs_of(log: Log, *words: str) -> Iterator[Run]:
    """Yields what came to a subscriber, in order."""
    epoch = ""
    for entry in log.read():
        if entry[0] == "open":
            epoch = entry[1]
        elif entry[0] in words:
            yield Run(epoch, int(entry[1]), int(entry[2]), last_of(entry))


def check_kept(log: Log, total: int) -> None:
    """Everything came, in order, and nothing was announced as missing."""
    name, expected = log.path.stem, 1
    holes = []
    for run in runs_of(log, "new"):
        if run.first != expected:
            holes.append((expected, run))
        expected = run.last + 1
    assert not holes, f"{name} has not got, or not in order: {holes}"
    assert expected == total + 1, f"{name} has got {expected - 1} of {total} messages"
    assert not log.of("gap"), f"{name} was told of gaps: {log.of('gap')}"
    assert all(entry[3] == "1" for entry in log.of("open")), f"{name} lacks a past"


def check_watched(log: Log, runs: list[Run], total: int) -> None:
    """In each life of the subscription, what is missing is what was announced, and where."""
    bounds: dict[tuple[str, int], tuple[int, int]] = {}
    for epoch, life, first, last in runs:
        known = bounds.get((epoch, life), (first, last))
        bounds[epoch, life] = min(first, known[0]), max(last, known[1])

    epoch, position, announced = "", 0, 0
    before: Run | None = None
    for entry in log.read():
        match entry:
            case ["open", epoch, _resumed, text]:
                position, announced, before = int(text), 0, None
            case ["gap", count, reason, text]:
                assert reason == "dropped_oldest"
                announced += int(count)
                position += int(count)
                assert position == int(text), f"positions do not go on at {entry}"
            case ["got", life, first, count]:
                run = Run(epoch, int(life), int(first), last_of(entry))
                if before is not None:
                    missing = missing_between(before, run, bounds)
                    assert missing == announced, f"{announced} announced between {before} and {run}"
                position += int(count)
                before, announced = run, 0
            case ["at", text]:
                assert position == int(text), f"positions do not go on at {entry}"
    assert before is not None
    assert before.last + announced == total


def missing_between(before: Run, after: Run, bounds: dict[tuple[str, int], tuple[int, int]]) -> int:
    """How many messages were published between two runs that came one after the other."""
    if before.life == after.life:
        return after.first - before.last - 1
    _, end = bounds[before.epoch, before.life]
    begin, _ = bounds[after.epoch, after.life]
    assert before.life + 1 == after.life
    return end - before.last + after.first - begin


def position_of(log: Log) -> int:
    """The position that a subscriber has read up to."""
    found = (entry[-1] for entry in reversed(log.read()) if entry[0] in ("at", "gap", "open"))
    return int(next(found, "0"))


def tally_of_last_life(log: Log) -> tuple[int, int]:
    """What came and what was announced since the subscription was opened last."""
    received = announced = 0
    for entry in reversed(log.read()):
        match entry:
            case ["open", *_]:
                break
            case ["got", _, _, count]:
                received += int(count)
            case ["gap", count, *_]:
                announced += int(count)
    return received, announced
