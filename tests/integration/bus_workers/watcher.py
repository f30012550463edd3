"""Subscribes at most once with a short queue, and writes down what came and what is said to be gone.

Journal: ``start``, ``open EPOCH RESUMED POSITION``, ``got LIFE FIRST COUNT``, ``at POSITION`` after each
delivery, ``gap COUNT REASON POSITION``. LIFE is the publisher's.
"""

import asyncio
import time
from array import array
from contextlib import aclosing
from pathlib import Path

from worker import Journal, Plan, check_group, open_bus, run_worker, work_until

from collector_core.bus import (
    BusSubscription,
    Delivery,
    Gap,
    Opened,
    SubscriptionOptions,
)


class Latencies:
    """When each message was made and how long it took, in nanoseconds, as pairs in a file."""

    FLUSHED_PAIRS = 2_000

    def __init__(self, path: str | None) -> None:
        self._file = Path(path).open("ab") if path else None  # noqa: SIM115 -- open for life
        self._pairs = array("Q")

    def take(self, delivery: Delivery) -> None:
        """Notes a delivery that came just now."""
        if self._file is None:
            return
        now_ns = time.monotonic_ns()
        for message in delivery.messages:
            made_ns = int(message.metadata.headers["stamp"])
            self._pairs.extend((made_ns, now_ns - made_ns))
        if len(self._pairs) >= 2 * self.FLUSHED_PAIRS:
            self.flush()

    def flush(self) -> None:
        """Writes down what was noted."""
        if self._file is not None:
            self._pairs.tofile(self._file)
            self._file.flush()
            del self._pairs[:]


async def watch(plan: Plan, stop: asyncio.Event) -> None:
    """Works until SIGTERM."""
    journal, latencies = Journal(Path(plan["journal"])), Latencies(plan.get("latencies"))
    journal.write("start")
    channel = open_bus(plan)
    options = SubscriptionOptions(
        [plan["topic"]], subscriber_id=plan["subscriber_id"], **plan["options"]
    )
    subscription = BusSubscription(channel, options)
    await work_until(stop, _work(plan, subscription, journal, latencies))
    latencies.flush()
    await channel.close()


async def _work(
    plan: Plan, subscription: BusSubscription, journal: Journal, latencies: Latencies
) -> None:
    async with aclosing(subscription.items()) as items:
        async for item in items:
            if isinstance(item, Opened):
                facts = item.broker_epoch, int(item.resumed), item.position
                journal.write(" ".join(map(str, ("open", *facts))))
            elif isinstance(item, Gap):
                journal.write(f"gap {item.dropped_count} {item.reason} {item.position}")
            else:
                latencies.take(item)
                lines = [
                    f"got {check_group(one, plan['epoch'])} {one.envelope.first_sequence} {one.count}"
                    for one in item.groups
                ]
                journal.write(*lines, f"at {item.position}")
                # It stands for the work that a consumer has with what it gets.
                await asyncio.sleep(plan.get("work_s", 0.0))


if __name__ == "__main__":
    run_worker(watch)
