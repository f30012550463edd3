"""What a publish costs the broker with ten subscriptions and with a thousand, by turns.

Ten thousand topics are published by turns. Ten subscriptions get every message once between them;
the other 990 have patterns that the same topics are looked up against and that match none of them.
A third broker has a thousand that each get a thousandth, for comparison: it shows what delivery to
many costs, which is another thing than to publish past many.
"""

import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from benchmarks.bus_event import FRAME_BYTES, SOURCE_ID
from benchmarks.mesh import Mesh, Process, cpu_s, peak_rss_bytes, rss_bytes
from benchmarks.report import Bar, BrokenEquationError, Metric, Outcome, check_flow
from benchmarks.scale_plan import (
    Connection,
    ScaleOffer,
    ScalePublishPlan,
    ScalePublishReport,
    ScaleSubscribePlan,
    ScaleSubscribeReport,
)
from benchmarks.scale_publisher import BATCH_MESSAGES, DOMAINS, GROUPS, KINDS
from benchmarks.worker import expect_answer, expect_open

__all__ = ["bystanders", "connect", "measure", "readers", "spread_readers"]

FEW, MANY = "10 subscriptions", "1,000 subscriptions"
SPREAD = "1,000, all addressed"
MANY_COUNT, MANY_CONNECTIONS = 1_000, 200
IDENTITIES = 10
"""Quotas are by identity."""
RATIO_LIMIT = 1.5
MEMORY_LIMIT_MB = 150.0


@dataclass(slots=True)
class Side:
    """One broker with its subscriptions, and what its rounds said."""

    name: str
    mesh: Mesh
    broker: Process
    patterns: Sequence[Sequence[str]]
    """Of each connection."""
    cpu_us: list[float] = field(default_factory=list)
    batch_ms: list[float] = field(default_factory=list)
    delivered: int = 0
    idle_bytes: int = 0
    """Memory with every subscription open, before the first message."""
    peak_bytes: int = 0


async def measure(quick: bool) -> Outcome:
    """Measures the three brokers by turns."""
    duration_s, rounds = (2.0, 2) if quick else (5.0, 5)
    readers_alone = connect(readers(), DOMAINS)
    with_bystanders = connect([*readers(), *bystanders()], MANY_CONNECTIONS)
    spread = connect(spread_readers(), MANY_CONNECTIONS)
    async with AsyncExitStack() as stack:
        few = await _start(stack, FEW, readers_alone)
        many = await _start(stack, MANY, with_bystanders)
        all_addressed = await _start(stack, SPREAD, spread)
        for _round in range(rounds):
            for side in (few, many, all_addressed):
                await _run_round(side, duration_s)
    return Outcome(
        delivered_count=few.delivered + many.delivered,
        settings={
            "duration_s": duration_s,
            "rounds": rounds,
            "topics": DOMAINS * GROUPS * KINDS,
            "connections": MANY_CONNECTIONS,
            "batch_messages": BATCH_MESSAGES,
            "event_bytes": FRAME_BYTES,
        },
        results=_metrics(few, many, all_addressed),
        bars=_bars(few, many),
    )


def readers() -> list[str]:
    """Ten patterns, of which every topic matches one."""
    return [f"events.process.d{domain}.#" for domain in range(DOMAINS)]


def bystanders() -> list[str]:
    """990 patterns that share segments with the topics and match none of them."""
    shapes = (
        "events.process.d{domain}.g{group}.other",
        "events.process.+.g{group}.other{domain}",
        "events.process.d{domain}.+.other{group}",
    )
    return [
        shapes[number % 3].format(domain=number % DOMAINS, group=number // DOMAINS)
        for number in range(MANY_COUNT - DOMAINS)
    ]


def spread_readers() -> list[str]:
    """1,000 patterns, of which every topic matches one."""
    return [
        f"events.process.d{domain}.g{group}.+"
        for domain in range(DOMAINS)
        for group in range(GROUPS)
    ]


def connect(patterns: Sequence[str], connections: int) -> list[list[str]]:
    """Deals patterns out to connections."""
    return [list(patterns[first::connections]) for first in range(connections)]


async def _start(stack: AsyncExitStack, name: str, patterns: Sequence[Sequence[str]]) -> Side:
    mesh = await stack.enter_async_context(Mesh())
    socket = mesh.layout.eventbus_socket
    broker = await mesh.serve("daemoneye_eventbus", socket, "--log-level", "warning")
    return Side(name, mesh, broker, patterns)


async def _run_round(side: Side, duration_s: float) -> None:
    mesh, layout = side.mesh, side.mesh.layout
    receiving = await mesh.start("benchmarks.scale_subscriber", _subscribe_plan(side).dump())
    await expect_open(receiving)
    side.idle_bytes = side.idle_bytes or rss_bytes(side.broker.pid)
    token_file = mesh.token_file(layout.collector(SOURCE_ID), layout.broker, ["process"])
    plan = ScalePublishPlan(str(layout.eventbus_socket), str(token_file), duration_s)
    begun_cpu_s = cpu_s(side.broker.pid)
    publishing = await mesh.start("benchmarks.scale_publisher", plan.dump())
    published = ScalePublishReport.parse(await expect_answer(publishing))
    offer = ScaleOffer(published.messages).dump()
    received = ScaleSubscribeReport.parse(await expect_answer(receiving, offer))
    used_s = cpu_s(side.broker.pid) - begun_cpu_s
    if published.routed != published.messages:
        raise BrokenEquationError(
            f"{published.routed} copies of {published.messages} messages were queued, not one each"
        )
    check_flow(published.messages, received.delivered, received.announced)
    side.cpu_us.append(1e6 * used_s / published.messages)
    side.batch_ms.append(1e3 * published.span_s / published.batches)
    side.delivered += received.delivered
    side.peak_bytes = peak_rss_bytes(side.broker.pid)


def _subscribe_plan(side: Side) -> ScaleSubscribePlan:
    layout = side.mesh.layout
    tokens = [
        str(side.mesh.token_file(layout.operator(f"reader-{number}"), layout.broker))
        for number in range(IDENTITIES)
    ]
    connections = [
        Connection(tokens[number % IDENTITIES], list(patterns))
        for number, patterns in enumerate(side.patterns)
    ]
    return ScaleSubscribePlan(str(layout.eventbus_socket), connections)


def _metrics(few: Side, many: Side, spread: Side) -> list[Metric]:
    others = (few, spread)
    return [
        Metric(
            "broker CPU a message",
            "µs",
            statistics.median(many.cpu_us),
            {one.name: statistics.median(one.cpu_us) for one in others},
        ),
        Metric(
            f"time a batch of {BATCH_MESSAGES:,}",
            "ms",
            statistics.median(many.batch_ms),
            {one.name: statistics.median(one.batch_ms) for one in others},
        ),
        Metric(
            "broker memory, subscriptions idle",
            "MB",
            many.idle_bytes / 1e6,
            {one.name: one.idle_bytes / 1e6 for one in others},
        ),
        Metric(
            "broker memory, peak",
            "MB",
            many.peak_bytes / 1e6,
            {one.name: one.peak_bytes / 1e6 for one in others},
        ),
    ]


def _bars(few: Side, many: Side) -> list[Bar]:
    cpu_ratio = statistics.median(many.cpu_us) / statistics.median(few.cpu_us)
    time_ratio = statistics.median(many.batch_ms) / statistics.median(few.batch_ms)
    return [
        Bar.below(f"broker CPU a message, of {FEW}", RATIO_LIMIT, cpu_ratio, "times"),
        Bar.below(f"time a batch, of {FEW}", RATIO_LIMIT, time_ratio, "times"),
        Bar.below("broker memory", MEMORY_LIMIT_MB, many.peak_bytes / 1e6, "MB"),
    ]
