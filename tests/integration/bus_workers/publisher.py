"""Publishes the numbers 1, 2, 3… of one source, through any number of deaths of anybody.

Its memory is one file with the last number that the broker has confirmed: a new life goes on after it.
It ends with status 0 when everything was confirmed: after ``total`` numbers, or on SIGTERM.
"""

import asyncio
import os
import random
import time
from pathlib import Path

from worker import Plan, encode_event, open_bus, run_worker

from collector_core.bus import BusPublisher, EnvelopeKey, Outbox, PublishAssurance

OUTBOX_MESSAGES = 10_000
OUTBOX_BYTES = 16 << 20


class Watermark:
    """The last confirmed number; written in place in one go."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.number = int(os.pread(self._file, 20, 0) or b"0")

    def move_to(self, number: int) -> None:
        """Writes another number down."""
        self.number = number
        os.pwrite(self._file, b"%020d" % number, 0)


class ConfirmingOutbox(Outbox):
    """An outbox that writes down what was answered."""

    def __init__(self, watermark: Watermark) -> None:
        super().__init__(OUTBOX_MESSAGES, OUTBOX_BYTES)
        self._watermark = watermark
        self._before = watermark.number

    @property
    def first(self) -> int:
        """The first number that is not confirmed yet."""
        return self._before + 1

    def settle(self, batch_id: int, refused_reason: str | None = None) -> int:
        """Takes the answer; there is no reason to refuse anything here for good."""
        assert refused_reason is None, refused_reason
        count = super().settle(batch_id, refused_reason)
        self._watermark.move_to(self._before + self.published_count)
        return count

    def settle_before(self, batch_id: int) -> None:
        """Takes the answer."""
        super().settle_before(batch_id)
        self._watermark.move_to(self._before + self.published_count)


async def publish(plan: Plan, stop: asyncio.Event) -> None:
    """Carries the plan out."""
    outbox = ConfirmingOutbox(Watermark(Path(plan["watermark"])))
    channel = open_bus(plan)
    publisher = BusPublisher(channel, outbox, PublishAssurance[plan["assurance"]])
    try:
        await _publish(plan, publisher, outbox, stop)
    finally:
        await channel.close()


async def _publish(
    plan: Plan, publisher: BusPublisher, outbox: ConfirmingOutbox, stop: asyncio.Event
) -> None:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(publisher.run())
        await _fill(plan, outbox, outbox.first, stop)
        await publisher.drain()
        running.cancel()


async def _fill(plan: Plan, outbox: Outbox, first: int, stop: asyncio.Event) -> None:
    """Puts bursts into the outbox at a rate in all, of any size up to ``max_burst``."""
    key = EnvelopeKey(topic=plan["topic"], source_id=plan["source_id"], epoch=plan["epoch"])
    sizes, life = random.Random(plan["seed"]), plan["life"]
    padding = "x" * plan.get("padding_bytes", 0)
    number, last = first, plan.get("total") or float("inf")
    due_s = time.monotonic()
    while number <= last and not stop.is_set():
        count = int(min(sizes.randint(plan["min_burst"], plan["max_burst"]), last - number + 1))
        stamp_ns = time.monotonic_ns()
        frames = [
            encode_event(one, life, stamp_ns, padding) for one in range(number, number + count)
        ]
        # What it was kept from is made up for, as a collector does.
        await outbox.put_many(frames, key, number)
        number += count
        due_s += count / plan["rate"]
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))


if __name__ == "__main__":
    run_worker(publish)
