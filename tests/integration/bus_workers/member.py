"""A member of a consumer group: takes tasks and completes them, or holds on to them for good.

Journal: ``open EPOCH``, ``held NUMBER`` for each task taken, ``done NUMBER`` for each completed.
"""

import asyncio
from contextlib import aclosing
from pathlib import Path

from worker import Journal, Plan, check_group, open_bus, run_worker, work_until

from collector_core.bus import BusSubscription, Delivery, Guarantee, Opened, SubscriptionOptions


async def take_part(plan: Plan, stop: asyncio.Event) -> None:
    """Works until SIGTERM."""
    journal, channel = Journal(Path(plan["journal"])), open_bus(plan)
    options = SubscriptionOptions(
        [plan["topic"]],
        subscriber_id=plan["subscriber_id"],
        guarantee=Guarantee.AT_LEAST_ONCE,
        consumer_group="tasks",
    )
    subscription = BusSubscription(channel, options)
    await work_until(stop, _work(plan, subscription, journal))
    await channel.close()


async def _work(plan: Plan, subscription: BusSubscription, journal: Journal) -> None:
    async with aclosing(subscription.items()) as items:
        async for item in items:
            if isinstance(item, Opened):
                journal.write(f"open {item.broker_epoch}")
            elif isinstance(item, Delivery):
                word = "held" if plan["is_holding"] else "done"
                for group in item.groups:
                    check_group(group, plan["epoch"])
                    first = group.envelope.first_sequence
                    journal.write(*(f"{word} {first + step}" for step in range(group.count)))
                if not plan["is_holding"]:
                    await subscription.acknowledge(item)


if __name__ == "__main__":
    run_worker(take_part)
