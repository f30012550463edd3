"""The publishing process of the bus benchmark: ``python -m benchmarks.bus_publisher PLAN``.

PLAN is a PublishPlan as JSON. When all is settled it prints a PublishReport. Which client it drives
is the plan's word; everything else is the same for every system.
"""

import asyncio
import sys
import time
from importlib import import_module

from benchmarks.bus_client import Sender
from benchmarks.bus_plan import PublishPlan, PublishReport
from benchmarks.bus_stamp import Progress, Source
from benchmarks.parent import end_with_parent
from benchmarks.report import percentile

__all__ = ["publish"]

TICK_S = 0.001
WINDOW_POLL_S = 0.001
STALL_S = 0.5
"""A window that stands still for so long waits for events that were lost."""


class Window:
    """Holds the publisher back while the slowest subscription lies too far behind."""

    def __init__(self, progress: Progress, limit: int) -> None:
        self._progress = progress
        self._limit = limit
        self.stalled_count = 0

    async def wait(self, made: int) -> None:
        """Returns when one more batch may go."""
        if not self._limit:
            await asyncio.sleep(0)
            return
        least, since_s = self._progress.least, time.monotonic()
        while made - least > self._limit:
            await asyncio.sleep(WINDOW_POLL_S)
            if (now := self._progress.least) != least:
                least, since_s = now, time.monotonic()
            elif time.monotonic() - since_s > STALL_S:
                self.stalled_count += 1
                return


async def publish(plan: PublishPlan) -> PublishReport:
    """Carries the plan out."""
    sender: Sender = import_module(f"benchmarks.clients.{plan.link.client}").Sender(plan)
    source, window = plan.source(), Window(plan.progress(), plan.window)
    await sender.open()
    try:
        begun_cpu_s, begun_ns = time.process_time(), time.monotonic_ns()
        if plan.rate:
            lateness = await _send_paced(sender, source, plan)
        else:
            lateness = await _send_flat_out(sender, source, plan, window)
        ended_ns = time.monotonic_ns()
        await sender.settle()
        settled_ns, cpu_s = time.monotonic_ns(), time.process_time() - begun_cpu_s
    finally:
        await sender.close()
    late_s = percentile(lateness, 0.99) if lateness else 0.0
    return PublishReport(
        offered=source.count,
        begun_ns=begun_ns,
        ended_ns=ended_ns,
        settled_ns=settled_ns,
        cpu_s=cpu_s,
        lateness_p99_s=late_s,
        stalled_count=window.stalled_count,
    )


async def _send_flat_out(
    sender: Sender, source: Source, plan: PublishPlan, window: Window
) -> list[float]:
    end_s = time.monotonic() + plan.duration_s
    while time.monotonic() < end_s:
        await window.wait(source.count)
        await sender.send(source.take(plan.batch))
    return []


async def _send_paced(sender: Sender, source: Source, plan: PublishPlan) -> list[float]:
    """Sends what is due each millisecond."""
    due_each = max(1, round(plan.rate * TICK_S))
    period_s = due_each / plan.rate
    lateness: list[float] = []
    begun_s = time.monotonic()
    for turn in range(round(plan.duration_s / period_s)):
        due_s = begun_s + turn * period_s
        if (wait_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        lateness.append(time.monotonic() - due_s)
        await sender.send(source.take(due_each))
    return lateness


if __name__ == "__main__":
    end_with_parent()
    print(asyncio.run(publish(PublishPlan.parse(sys.argv[1]))).dump())
