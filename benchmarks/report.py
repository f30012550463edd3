"""What a benchmark found, as JSON for machines and as a table for people.

Invariant: nothing is written for an outcome without a delivery; a result names the machine by what
it is made of, never by host, user or path.
"""

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

__all__ = [
    "RESULTS_DIR",
    "Bar",
    "BenchmarkError",
    "BrokenEquationError",
    "Metric",
    "NothingDeliveredError",
    "Outcome",
    "check_flow",
    "describe_machine",
    "percentile",
    "render",
    "show",
    "write_result",
]

RESULTS_DIR = Path(__file__).resolve().parent / "results"
SIGNIFICANT_DIGITS = 4

Json = str | int | float | bool | None


class BenchmarkError(Exception):
    """A benchmark cannot say anything."""


class NothingDeliveredError(BenchmarkError):
    """No work was seen to be done."""


class BrokenEquationError(BenchmarkError):
    """What was delivered and what was announced as missing is not what was offered."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure, and the same figure of others in the same run."""

    metric: str
    unit: str
    value: float
    peers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure held against its limit."""

    name: str
    limit: float
    value: float
    unit: str
    holds: bool

    @classmethod
    def below(cls, name: str, limit: float, value: float, unit: str) -> "Bar":
        """A bar that holds under its limit; "below" goes into the name."""
        return cls(f"{name} below", limit, value, unit, value < limit)

    @classmethod
    def at_least(cls, name: str, limit: float, value: float, unit: str) -> "Bar":
        """A bar that holds from its limit up; "at least" goes into the name."""
        return cls(f"{name} at least", limit, value, unit, value >= limit)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one benchmark found."""

    delivered_count: int
    """Pieces of work that were seen to be done."""
    settings: Mapping[str, Json]
    results: Sequence[Metric]
    bars: Sequence[Bar] = ()
    notes: Sequence[str] = ()
    """Said below the table: what was left out, and why."""


def check_flow(offered: int, delivered: int, announced: int) -> None:
    """Holds one hop to its equation: offered = delivered + announced as dropped.

    Raises:
        NothingDeliveredError: nothing arrived.
        BrokenEquationError: something is missing without a word, or came twice.
    """
    if delivered <= 0:
        raise NothingDeliveredError(f"nothing was delivered of {offered} offered")
    if offered != delivered + announced:
        raise BrokenEquationError(
            f"offered {offered} is not delivered {delivered} + announced as dropped {announced};"
            f" {offered - delivered - announced} are unaccounted for"
        )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of all values do not exceed.

    Raises:
        NothingDeliveredError: there are no values.
    """
    if not values:
        raise NothingDeliveredError("there is nothing to take a percentile of")
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def describe_machine() -> dict[str, Json]:
    """What the figures depend on, without anything that tells whose machine it is."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "grpcio": version("grpcio"),
        "protobuf": version("protobuf"),
    }


def write_result(
    directory: Path,
    name: str,
    machine: Mapping[str, Json],
    settings: Mapping[str, Json],
    outcome: Outcome,
) -> Path:
    """Writes ``<name>.json`` and returns its path.

    Raises:
        NothingDeliveredError: the outcome is about nothing; what was written before stays.
    """
    if outcome.delivered_count <= 0 or not outcome.results:
        raise NothingDeliveredError(f"{name} delivered nothing")
    document = {
        "name": name,
        "machine": dict(machine),
        "settings": dict(settings),
        "results": [_rounded(asdict(metric)) for metric in outcome.results],
        "bars": [_rounded(asdict(bar)) for bar in outcome.bars],
    }
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def render(name: str, machine: Mapping[str, Json], outcome: Outcome) -> str:
    """The outcome as text for a terminal."""
    described = ", ".join(f"{key} {value}" for key, value in machine.items())
    peers = list(dict.fromkeys(peer for metric in outcome.results for peer in metric.peers))
    rows = [["metric", "unit", "ours", *peers], *(_cells(one, peers) for one in outcome.results)]
    bars = [
        f"  {'holds' if bar.holds else 'MISSED':<7} {bar.name} {show(bar.limit)} {bar.unit}:"
        f" {show(bar.value)} {bar.unit}"
        for bar in outcome.bars
    ]
    notes = [f"  note: {note}" for note in outcome.notes]
    return "\n".join([f"{name} on {described}", *_align(rows), *bars, *notes, ""])


def _cells(metric: Metric, peers: Sequence[str]) -> list[str]:
    shown = [show(metric.peers[peer]) if peer in metric.peers else "-" for peer in peers]
    return [metric.metric, metric.unit, show(metric.value), *shown]


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join([*map(str.ljust, row[:2], widths), *map(str.rjust, row[2:], widths[2:])])
        for row in rows
    ]


def show(value: float) -> str:
    """A figure for people: no more digits than it deserves."""
    return f"{value:,.0f}" if abs(value) >= 1_000 or value == int(value) else f"{value:.4g}"


def _rounded(document: dict[str, object]) -> dict[str, object]:
    return {
        key: _rounded(value) if isinstance(value, dict) else _round(value)
        for key, value in document.items()
    }


def _round(value: object) -> object:
    if not isinstance(value, float):
        return value
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def _cpu_model() -> str:
    with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(models, platform.machine())
