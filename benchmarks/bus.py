"""Our bus beside NATS, Redis and Mosquitto: throughput, latency and what they cost, in one run.

Every phase runs a publishing process, a server and one or two subscribing ones of one system, with
the same events made, stamped and checked by the same code. Invariant: a figure is the rate of events
that arrived and were looked at, one by one; a peer that is not installed is left out with a note.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.bus_event import FRAME_BYTES, SOURCE_ID, TOPIC, make_template
from benchmarks.bus_figures import BusFigures
from benchmarks.bus_phase import Load, Phase, System, run_phase
from benchmarks.bus_plan import Link
from benchmarks.bus_server import PEERS, Peer, start_peer
from benchmarks.mesh import Mesh
from benchmarks.peers_environment import find_peers_python
from benchmarks.report import BenchmarkError, Json, Outcome

__all__ = ["FULL", "QUICK", "VARIANTS", "Bench", "measure", "median_phase", "start_peers"]

OURS = "ours"
ONE_TO_TEN = (5, 5)
"""Subscriptions of each of two subscribing processes."""
AT_LEAST_ONCE = "at_least_once"
TRIAL_S = 2.0
PEER_WINDOW = 20_000
"""How far a peer's publisher may run ahead; what no peer does by itself, and each gains by."""
VARIANTS: Mapping[str, Sequence[Load]] = {
    OURS: (Load(0, batch=1_000),),
    "nats": (Load(0, batch=1_000, window=PEER_WINDOW), Load(0, batch=1_000)),
    "redis": (Load(0, batch=1_000, window=PEER_WINDOW), Load(0, batch=100, window=PEER_WINDOW)),
    "mosquitto": (Load(0, batch=100, window=PEER_WINDOW), Load(0, batch=1_000)),
}
"""Ways to publish flat out; the one that does best in a trial is taken."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How much is measured."""

    peers: tuple[str, ...]
    rounds: int
    """Of each flat-out phase, by turns of the systems; the median counts."""
    flat_out_s: float
    paced_s: float
    has_trials: bool


FULL = Schedule(tuple(PEERS), rounds=5, flat_out_s=4.0, paced_s=10.0, has_trials=True)
QUICK = Schedule(("nats",), rounds=1, flat_out_s=2.5, paced_s=2.0, has_trials=False)


@dataclass(slots=True)
class Bench:
    """The systems that are there, and what was found so far."""

    mesh: Mesh
    schedule: Schedule
    systems: list[System] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, Json] = field(default_factory=dict)
    ways: dict[str, Load] = field(default_factory=dict)


async def measure(quick: bool) -> Outcome:
    """Measures every system that is there."""
    schedule = QUICK if quick else FULL
    async with Mesh() as mesh:
        bench = Bench(mesh, schedule)
        await _start_ours(bench)
        await start_peers(bench)
        await _choose_ways(bench)
        figures = BusFigures(
            slow=await _measure_each(bench, Load(schedule.paced_s, rate=1_000)),
            fast=await _measure_each(bench, Load(schedule.paced_s, rate=10_000)),
            one_to_one=await _measure_flat_out(bench, (1,)),
            one_to_ten=await _measure_flat_out(bench, ONE_TO_TEN),
            at_least_once=await _measure_at_least_once(bench),
        )
    return Outcome(
        delivered_count=figures.delivered_count,
        settings=_settings(bench),
        results=figures.metrics(),
        bars=figures.bars(),
        notes=bench.notes,
    )


def _settings(bench: Bench) -> dict[str, Json]:
    schedule = bench.schedule
    return {
        "flat_out_s": schedule.flat_out_s,
        "paced_s": schedule.paced_s,
        "rounds": schedule.rounds,
        "event_bytes": FRAME_BYTES,
        "latency": "from the making of the event to its receipt, CLOCK_MONOTONIC",
        **bench.versions,
        **{f"{name}_way": _describe(load) for name, load in bench.ways.items()},
        **({"left_out": "; ".join(bench.notes)} if bench.notes else {}),
    }


def _describe(load: Load) -> str:
    held = f"at most {load.window:,} ahead" if load.window else "held back by its own client alone"
    return f"batches of {load.batch:,}, {held}"


async def _start_ours(bench: Bench) -> None:
    mesh, template = bench.mesh, make_template()
    layout = mesh.layout
    server = await mesh.serve(
        "daemoneye_eventbus", layout.eventbus_socket, "--log-level", "warning"
    )
    publisher = mesh.token_file(layout.collector(SOURCE_ID), layout.broker, ["process"])
    link = Link(
        client=OURS,
        address=str(layout.eventbus_socket),
        topic=TOPIC,
        frame=template.frame.hex(),
        stamp_offset=template.offset,
        token_file=str(publisher),
    )
    reader = mesh.token_file(layout.agent, layout.broker)
    bench.systems.append(System(OURS, mesh.python, server, link, str(reader), announces=True))


async def start_peers(bench: Bench) -> None:
    """Starts the peers that are there and notes those that are not."""
    wanted = [PEERS[name] for name in bench.schedule.peers]
    for peer in wanted:
        if peer.find() is None:
            _leave_out(bench, peer, f"{peer.program} is not installed (Debian: {peer.package})")
    present = [peer for peer in wanted if peer.find() is not None]
    if not present:
        return
    try:
        python = await find_peers_python()
    except BenchmarkError as error:
        for peer in present:
            _leave_out(bench, peer, str(error))
        return
    for peer in present:
        await _start_peer(bench, peer, python)


async def _start_peer(bench: Bench, peer: Peer, python: str) -> None:
    try:
        client = await peer.client_version(python)
        server = await start_peer(bench.mesh, peer)
    except BenchmarkError as error:
        _leave_out(bench, peer, str(error))
        return
    template = make_template()
    link = Link(peer.name, server.address, peer.topic, template.frame.hex(), template.offset)
    bench.systems.append(System(peer.name, python, server.process, link))
    bench.versions[peer.name] = f"{peer.program} {peer.version()}, {client}"


def _leave_out(bench: Bench, peer: Peer, reason: str) -> None:
    bench.notes.append(f"{peer.name} is left out: {reason}")


async def _choose_ways(bench: Bench) -> None:
    """Takes for each system the way of publishing that does best with it."""
    for system in bench.systems:
        ways = VARIANTS[system.name]
        if not bench.schedule.has_trials or len(ways) == 1:
            bench.ways[system.name] = ways[0]
            continue
        trials = [
            await run_phase(bench.mesh, system, replace(way, duration_s=TRIAL_S)) for way in ways
        ]
        best = max(range(len(ways)), key=lambda index: trials[index].delivered_per_s)
        bench.ways[system.name] = ways[best]


async def _measure_each(bench: Bench, load: Load) -> dict[str, Phase]:
    """One phase of each system."""
    return {one.name: await run_phase(bench.mesh, one, load) for one in bench.systems}


async def _measure_flat_out(bench: Bench, subscribers: tuple[int, ...]) -> dict[str, Phase]:
    """The median round of each system, the systems by turns."""
    rounds: dict[str, list[Phase]] = {one.name: [] for one in bench.systems}
    for _round in range(bench.schedule.rounds):
        for system in bench.systems:
            way = bench.ways[system.name]
            load = replace(way, duration_s=bench.schedule.flat_out_s, subscribers=subscribers)
            rounds[system.name].append(await run_phase(bench.mesh, system, load))
    return {name: median_phase(phases) for name, phases in rounds.items()}


async def _measure_at_least_once(bench: Bench) -> Phase:
    """The median round of ours with acknowledgements."""
    ours = bench.systems[0]
    load = replace(bench.ways[OURS], duration_s=bench.schedule.flat_out_s, guarantee=AT_LEAST_ONCE)
    return median_phase(
        [await run_phase(bench.mesh, ours, load) for _round in range(bench.schedule.rounds)]
    )


def median_phase(phases: Sequence[Phase]) -> Phase:
    """The round with the median rate, the lower one of two."""
    middle = statistics.median_low(one.delivered_per_s for one in phases)
    return next(one for one in phases if one.delivered_per_s == middle)
