"""Events from a publishing process through the broker to a subscribing process.

Every phase runs three real processes and holds them to offered = delivered + announced as dropped.
"""

import asyncio
import json
from dataclasses import asdict, dataclass

from benchmarks.bus_publisher import TOPIC, PublishPlan, PublishReport
from benchmarks.bus_subscriber import Offer, SubscribePlan, SubscribeReport
from benchmarks.mesh import Mesh, Process, cpu_s, peak_rss_bytes, rss_bytes
from benchmarks.report import Bar, BenchmarkError, BrokenEquationError, Metric, Outcome, check_flow

__all__ = ["measure"]

PUBLISHER_ID = "bench"
WARM_UP_SHARE = 0.2
"""Of each phase, left out of rates and latencies."""
SLOW_RATE, FAST_RATE = 1_000, 10_000
SLOW_P99_LIMIT_MS, FAST_P99_LIMIT_MS = 1.0, 10.0
ANSWER_TIMEOUT_S = 120.0
NATS_NOTE = "NATS beside us is left out: this benchmark does not drive nats-server yet"


@dataclass(frozen=True, slots=True)
class Phase:
    """What three processes did."""

    published: PublishReport
    received: SubscribeReport
    broker_cpu_s: float


async def measure(quick: bool) -> Outcome:
    """Measures throughput, latency and what they cost the broker."""
    duration_s = 3.0 if quick else 10.0
    async with Mesh() as mesh:
        broker = await mesh.serve(
            "daemoneye_eventbus", mesh.layout.eventbus_socket, "--log-level", "warning"
        )
        idle_rss = rss_bytes(broker.pid)
        unary = await _run_phase(mesh, broker, "unary", duration_s)
        slow = await _run_phase(mesh, broker, "stream", duration_s, SLOW_RATE)
        fast = await _run_phase(mesh, broker, "stream", duration_s, FAST_RATE)
        paced_rss = peak_rss_bytes(broker.pid)
        flat_out = await _run_phase(mesh, broker, "stream", duration_s)
        peak_rss = peak_rss_bytes(broker.pid)
    memory = [
        Metric("broker memory idle", "MB", idle_rss / 1e6),
        Metric(f"broker memory, peak up to {FAST_RATE:,}/s", "MB", paced_rss / 1e6),
        Metric("broker memory, peak flat out", "MB", peak_rss / 1e6),
    ]
    latency = [*_latency(SLOW_RATE, slow), *_latency(FAST_RATE, fast)]
    return Outcome(
        delivered_count=sum(one.received.delivered for one in (unary, slow, fast, flat_out)),
        settings={
            "duration_s": duration_s,
            "event_bytes": flat_out.published.frame_bytes,
            "events_offered": flat_out.published.offered,
            "unary": "one Publish call an event, the next when the last is answered",
            "latency": "from the making of the event to its receipt, CLOCK_MONOTONIC",
        },
        results=[*_throughput(flat_out, unary), *latency, *memory],
        bars=[
            _p99_bar(SLOW_RATE, slow, SLOW_P99_LIMIT_MS),
            _p99_bar(FAST_RATE, fast, FAST_P99_LIMIT_MS),
        ],
        notes=[NATS_NOTE],
    )


def _throughput(flat_out: Phase, unary: Phase) -> list[Metric]:
    received, published = flat_out.received, flat_out.published
    return [
        Metric(
            "events delivered end to end",
            "events/s",
            received.delivered_per_s,
            {"unary": unary.received.delivered_per_s},
        ),
        Metric(
            "events accepted by the broker",
            "events/s",
            published.offered / _span_s(published),
            {"unary": unary.published.offered / _span_s(unary.published)},
        ),
        Metric(
            "share announced as dropped",
            "%",
            100 * received.announced / published.offered,
            {"unary": 100 * unary.received.announced / unary.published.offered},
        ),
        Metric(
            "broker CPU an event offered",
            "µs",
            _cpu_us(flat_out),
            {"unary": _cpu_us(unary)},
        ),
    ]


def _latency(rate: int, phase: Phase) -> list[Metric]:
    received = phase.received
    named = {
        "p50": received.latency_p50_s,
        "p99": received.latency_p99_s,
        "max": received.latency_max_s,
    }
    figures = [
        Metric(f"latency {name} at {rate:,}/s", "ms", seconds * 1e3)
        for name, seconds in named.items()
    ]
    late = Metric(
        f"publisher behind its schedule, p99 at {rate:,}/s",
        "ms",
        phase.published.lateness_p99_s * 1e3,
    )
    cpu_share = 100 * phase.broker_cpu_s / _span_s(phase.published)
    return [*figures, late, Metric(f"broker CPU at {rate:,}/s", "% of a core", cpu_share)]


def _p99_bar(rate: int, phase: Phase, limit_ms: float) -> Bar:
    return Bar.below(
        f"latency p99 at {rate:,}/s", limit_ms, phase.received.latency_p99_s * 1e3, "ms"
    )


def _cpu_us(phase: Phase) -> float:
    return phase.broker_cpu_s * 1e6 / phase.published.offered


def _span_s(published: PublishReport) -> float:
    return (published.settled_ns - published.begun_ns) / 1e9


async def _run_phase(
    mesh: Mesh, broker: Process, mode: str, duration_s: float, rate: float = 0.0
) -> Phase:
    """Starts a subscriber and a publisher, waits for both and checks the equation."""
    layout = mesh.layout
    publisher, subscriber = layout.collector(PUBLISHER_ID), layout.operator()
    receiving = await mesh.start(
        "benchmarks.bus_subscriber",
        _to_json(
            SubscribePlan(
                subscriber_id="bench",
                pattern=TOPIC,
                socket=str(layout.eventbus_socket),
                token_file=str(mesh.token_file(subscriber, layout.broker)),
                measure_latency=rate > 0,
                skip_count=int(rate * duration_s * WARM_UP_SHARE),
            )
        ),
    )
    await _expect_open(receiving)
    begun_cpu_s = cpu_s(broker.pid)
    publishing = await mesh.start(
        "benchmarks.bus_publisher",
        _to_json(
            PublishPlan(
                mode=mode,
                source_id=PUBLISHER_ID,
                socket=str(layout.eventbus_socket),
                token_file=str(mesh.token_file(publisher, layout.broker, ["process"])),
                duration_s=duration_s,
                rate=rate,
            )
        ),
    )
    published = PublishReport(**json.loads(await _answer(publishing)))
    received = SubscribeReport(**json.loads(await _answer(receiving, _to_json(_offer(published)))))
    phase = Phase(published, received, cpu_s(broker.pid) - begun_cpu_s)
    _check(phase)
    return phase


def _offer(published: PublishReport) -> Offer:
    warm_up_ns = int((published.ended_ns - published.begun_ns) * WARM_UP_SHARE)
    return Offer(published.offered, published.begun_ns + warm_up_ns, published.ended_ns)


def _check(phase: Phase) -> None:
    received = phase.received
    check_flow(phase.published.offered, received.delivered, received.announced)
    if received.missing != received.announced or received.duplicates:
        raise BrokenEquationError(
            f"{received.missing} events are missing by their numbers and {received.announced} were"
            f" announced; {received.duplicates} came twice"
        )


async def _expect_open(process: Process) -> None:
    if await _read_line(process) != b"open\n":
        raise BenchmarkError("the subscriber ended before its subscription stood")


async def _answer(process: Process, said: str | None = None) -> bytes:
    """The one line that a worker prints in the end, after it was told something."""
    assert process.stdin is not None
    if said is not None:
        process.stdin.write(said.encode() + b"\n")
        await process.stdin.drain()
    line = await _read_line(process)
    if await process.wait() != 0 or not line:
        raise BenchmarkError(f"a worker ended with status {process.returncode}")
    return line


async def _read_line(process: Process) -> bytes:
    assert process.stdout is not None
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        return await process.stdout.readline()


def _to_json(plan: PublishPlan | SubscribePlan | Offer) -> str:
    return json.dumps(asdict(plan))
