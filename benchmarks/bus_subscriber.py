"""A subscribing process of the bus benchmark: ``python -m benchmarks.bus_subscriber PLAN``.

PLAN is a SubscribePlan as JSON. It prints ``open`` when its subscriptions stand, reads an Offer from
its input when the publisher is done, waits for what is still to come and prints a SubscribeReport.
"""

import asyncio
import sys
import time
from importlib import import_module

from benchmarks.bus_client import Receiver
from benchmarks.bus_plan import Offer, SubscribePlan, SubscribeReport, sum_up
from benchmarks.bus_stamp import Tally
from benchmarks.parent import end_with_parent

__all__ = ["receive"]

POLL_S = 0.05
SILENCE_S = 2.0
"""After the offer, so long without an event means that no more come."""


async def receive(plan: SubscribePlan) -> SubscribeReport:
    """Carries the plan out."""
    tallies = plan.tallies()
    module = import_module(f"benchmarks.clients.{plan.link.client}")
    receiver: Receiver = module.Receiver(plan, tallies)
    await receiver.open()
    try:
        begun_cpu_s = time.process_time()
        print("open", flush=True)
        offer = Offer.parse(await asyncio.to_thread(sys.stdin.readline))
        await _wait_done(tallies, offer)
        cpu_s = time.process_time() - begun_cpu_s
    finally:
        await receiver.close()
    figures = sum_up(tallies, offer, plan.skip_count)
    return SubscribeReport(reconnects=receiver.reconnects, cpu_s=cpu_s, **figures)


async def _wait_done(tallies: list[Tally], offer: Offer) -> None:
    """Returns when everything has come, or when nothing has come for a while."""
    seen, since_s = -1, time.monotonic()
    while any(one.delivered + one.announced < offer.offered for one in tallies):
        if (now := sum(one.received + one.announced for one in tallies)) != seen:
            seen, since_s = now, time.monotonic()
        elif time.monotonic() - since_s > SILENCE_S:
            return
        await asyncio.sleep(POLL_S)


if __name__ == "__main__":
    end_with_parent()
    print(asyncio.run(receive(SubscribePlan.parse(sys.argv[1]))).dump())
