"""Subscribes at least once, and acknowledges only what stands in its journal.

Journal: ``start``, ``open EPOCH RESUMED HISTORY_COMPLETE``, ``new LIFE FIRST COUNT`` for what came for
the first time, ``repeat LIFE FIRST COUNT``, ``gap COUNT REASON``. LIFE is the publisher's.
"""

import asyncio
from contextlib import aclosing
from itertools import groupby
from pathlib import Path

from worker import Journal, Plan, check_group, open_bus, run_worker, work_until

from collector_core.bus import BusSubscription, Gap, Guarantee, Opened, SubscriptionOptions


async def keep(plan: Plan, stop: asyncio.Event) -> None:
    """Works until SIGTERM."""
    journal = Journal(Path(plan["journal"]))
    seen: set[int] = set()
    for line in journal.lines:
        word, *rest = line.split()
        if word == "new":
            seen.update(range(int(rest[1]), int(rest[1]) + int(rest[2])))
    journal.write("start")
    channel = open_bus(plan)
    subscription = BusSubscription(channel, _options(plan))
    await work_until(stop, _work(plan, subscription, journal, seen))
    await channel.close()


def _options(plan: Plan) -> SubscriptionOptions:
    return SubscriptionOptions(
        [plan["topic"]],
        subscriber_id=plan["subscriber_id"],
        guarantee=Guarantee.AT_LEAST_ONCE,
        **plan.get("options", {}),
    )


async def _work(
    plan: Plan, subscription: BusSubscription, journal: Journal, seen: set[int]
) -> None:
    async with aclosing(subscription.items()) as items:
        async for item in items:
            if isinstance(item, Opened):
                facts = item.broker_epoch, int(item.resumed), int(item.history_complete)
                journal.write(" ".join(map(str, ("open", *facts))))
            elif isinstance(item, Gap):
                journal.write(f"gap {item.dropped_count} {item.reason}")
            else:
                lines = []
                for group in item.groups:
                    life = check_group(group, plan["epoch"])
                    first = group.envelope.first_sequence
                    lines += _sort(range(first, first + group.count), life, seen)
                journal.write(*lines)
                # The moment in which a death makes what is done come again.
                await asyncio.sleep(plan.get("work_s", 0.0))
                await subscription.acknowledge(item)


def _sort(numbers: range, life: int, seen: set[int]) -> list[str]:
    lines = []
    for is_known, run in groupby(numbers, seen.__contains__):
        members = list(run)
        word = "repeat" if is_known else "new"
        lines.append(f"{word} {life} {members[0]} {len(members)}")
        seen.update(members)
    return lines


if __name__ == "__main__":
    run_worker(keep)
