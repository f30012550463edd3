"""One phase of the bus benchmark: a publisher, a server and its subscribers, held to their numbers."""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.bus_plan import (
    Link,
    Offer,
    PublishPlan,
    PublishReport,
    SubscribePlan,
    SubscribeReport,
)
from benchmarks.bus_stamp import Progress
from benchmarks.mesh import Mesh, Process, cpu_s, forget_peak_rss, peak_rss_bytes
from benchmarks.report import BrokenEquationError, NothingDeliveredError
from benchmarks.worker import expect_answer, expect_open

__all__ = ["Load", "Phase", "System", "run_phase"]

WARM_UP_SHARE = 0.2
"""Of each phase, left out of rates and latencies."""


@dataclass(frozen=True, slots=True)
class System:
    """One system under load."""

    name: str
    python: str
    server: Process
    link: Link
    reader_token_file: str = ""
    announces: bool = False
    """Whether it promises to say what it dropped."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a phase puts on a system."""

    duration_s: float
    rate: float = 0.0
    """Events/s; 0 is as fast as it goes."""
    subscribers: tuple[int, ...] = (1,)
    """Subscriptions of each subscribing process."""
    batch: int = 1_000
    window: int = 0
    guarantee: str = "at_most_once"


@dataclass(frozen=True, slots=True)
class Phase:
    """What the processes did."""

    published: PublishReport
    received: tuple[SubscribeReport, ...]
    server_cpu_s: float
    server_peak_bytes: int
    subscriptions: int

    @property
    def delivered(self) -> int:
        """Events that arrived, over all subscriptions."""
        return sum(one.delivered for one in self.received)

    @property
    def delivered_per_s(self) -> float:
        """Events/s that arrived, over all subscriptions."""
        return sum(one.delivered_per_s for one in self.received)

    @property
    def lost_share(self) -> float:
        """Share of what was offered that did not arrive, 0 to 1."""
        return sum(one.missing for one in self.received) / self.offered

    @property
    def offered(self) -> int:
        """Events that should have arrived, over all subscriptions."""
        return self.published.offered * self.subscriptions

    @property
    def subscriber_cpu_s(self) -> float:
        """CPU of all subscribing processes."""
        return sum(one.cpu_s for one in self.received)

    @property
    def span_s(self) -> float:
        """How long the publisher was at work."""
        return (self.published.settled_ns - self.published.begun_ns) / 1e9


async def run_phase(mesh: Mesh, system: System, load: Load) -> Phase:
    """Runs one phase.

    Raises:
        BenchmarkError: a worker failed, nothing arrived, or the numbers do not add up.
    """
    slots = sum(load.subscribers)
    progress = mesh.directory("phases") / "progress"
    Progress.create(progress, slots)
    link = replace(system.link, guarantee=load.guarantee)
    receiving = [
        await _start_subscriber(mesh, system, plan)
        for plan in _subscribe_plans(link, load, progress, system.reader_token_file)
    ]
    forget_peak_rss(system.server.pid)
    begun_cpu_s = cpu_s(system.server.pid)
    publishing = await mesh.start(
        "benchmarks.bus_publisher",
        PublishPlan(
            link=link,
            progress_file=str(progress),
            slots=slots,
            duration_s=load.duration_s,
            rate=load.rate,
            batch=load.batch,
            window=load.window,
        ).dump(),
        python=system.python,
    )
    published = PublishReport.parse(await expect_answer(publishing))
    offer = _offer(published).dump()
    answers = await asyncio.gather(*(expect_answer(one, offer) for one in receiving))
    phase = Phase(
        published=published,
        received=tuple(map(SubscribeReport.parse, answers)),
        server_cpu_s=cpu_s(system.server.pid) - begun_cpu_s,
        server_peak_bytes=peak_rss_bytes(system.server.pid),
        subscriptions=slots,
    )
    check(phase, system.announces)
    return phase


def check(phase: Phase, announces: bool) -> None:
    """Holds a phase to its equation: offered = delivered + missing, and nothing twice.

    Args:
        phase: what was measured.
        announces: whether what is missing must be exactly what the system said it dropped.

    Raises:
        NothingDeliveredError: nothing arrived.
        BrokenEquationError: the numbers do not add up.
    """
    if phase.delivered <= 0 or phase.delivered_per_s <= 0:
        raise NothingDeliveredError(f"nothing was delivered of {phase.offered} offered")
    missing, announced, duplicates, damaged = (
        sum(getattr(one, name) for one in phase.received)
        for name in ("missing", "announced", "duplicates", "damaged")
    )
    if phase.delivered + missing != phase.offered or (announces and announced != missing):
        raise BrokenEquationError(
            f"offered {phase.offered} is not delivered {phase.delivered} + missing {missing},"
            f" of which {announced} were announced"
        )
    if duplicates or damaged:
        raise BrokenEquationError(
            f"{duplicates} events came twice or late, {damaged} were not what was published"
        )


def _subscribe_plans(
    link: Link, load: Load, progress: Path, token_file: str
) -> list[SubscribePlan]:
    plans: list[SubscribePlan] = []
    for count in load.subscribers:
        plan = SubscribePlan(
            link=replace(link, token_file=token_file),
            progress_file=str(progress),
            slots=sum(load.subscribers),
            first_slot=sum(one.count for one in plans),
            count=count,
            is_timed=load.rate > 0,
            skip_count=int(load.rate * load.duration_s * WARM_UP_SHARE),
        )
        plans.append(plan)
    return plans


async def _start_subscriber(mesh: Mesh, system: System, plan: SubscribePlan) -> Process:
    process = await mesh.start("benchmarks.bus_subscriber", plan.dump(), python=system.python)
    await expect_open(process)
    return process


def _offer(published: PublishReport) -> Offer:
    warm_up_ns = int((published.ended_ns - published.begun_ns) * WARM_UP_SHARE)
    return Offer(published.offered, published.begun_ns + warm_up_ns, published.ended_ns)
