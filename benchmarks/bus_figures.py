"""What the phases of the bus benchmark say, as figures and bars."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.bus_phase import Phase
from benchmarks.report import Bar, Metric

__all__ = ["BusFigures"]

OURS = "ours"
SLOW_P99_LIMIT_MS, FAST_P99_LIMIT_MS = 1.0, 10.0
PEER_FACTOR = 2.0
AT_LEAST_ONCE_SHARE = 60.0

Phases = Mapping[str, Phase]


@dataclass(frozen=True, slots=True)
class BusFigures:
    """One phase of each kind for each system, by name; ours is among them."""

    slow: Phases
    """1,000 events/s."""
    fast: Phases
    """10,000 events/s."""
    one_to_one: Phases
    one_to_ten: Phases
    at_least_once: Phase
    """Of ours, one-to-one."""

    @property
    def delivered_count(self) -> int:
        """Events that arrived in all phases."""
        every = (self.slow, self.fast, self.one_to_one, self.one_to_ten)
        return sum(one.delivered for phases in every for one in phases.values())

    def metrics(self) -> list[Metric]:
        """All figures, those that the bars are about first."""
        return [
            _metric("one-to-one, delivered", "events/s", self.one_to_one, _rate),
            _metric("one-to-one, lost", "%", self.one_to_one, _lost_percent),
            Metric("one-to-one, delivered at least once", "events/s", _rate(self.at_least_once)),
            _metric("one-to-ten, delivered to all ten", "events/s", self.one_to_ten, _rate),
            _metric("one-to-ten, lost", "%", self.one_to_ten, _lost_percent),
            *_latencies("1,000/s", self.slow),
            *_latencies("10,000/s", self.fast),
            *_costs("one-to-one", self.one_to_one),
            *_costs("one-to-ten", self.one_to_ten),
            _metric("server CPU at 1,000/s", "% of a core", self.slow, _server_percent),
            _metric("server CPU at 10,000/s", "% of a core", self.fast, _server_percent),
            _metric("server memory, peak at 10,000/s", "MB", self.fast, _peak_mb),
            _metric("server memory, peak one-to-one", "MB", self.one_to_one, _peak_mb),
            _metric("server memory, peak one-to-ten", "MB", self.one_to_ten, _peak_mb),
        ]

    def bars(self) -> list[Bar]:
        """The bars; the one about the peers only where there are some."""
        ours = _rate(self.one_to_one[OURS])
        peers = [_rate(phase) for name, phase in self.one_to_one.items() if name != OURS]
        against = (
            [Bar.at_least("one-to-one, of the best peer", PEER_FACTOR, ours / max(peers), "times")]
            if peers
            else []
        )
        slow, fast = (1e3 * one[OURS].received[0].latency_p99_s for one in (self.slow, self.fast))
        share = 100 * _rate(self.at_least_once) / ours
        return [
            *against,
            Bar.at_least("at least once, of at most once", AT_LEAST_ONCE_SHARE, share, "%"),
            Bar.below("latency p99 at 1,000/s", SLOW_P99_LIMIT_MS, slow, "ms"),
            Bar.below("latency p99 at 10,000/s", FAST_P99_LIMIT_MS, fast, "ms"),
        ]


def _metric(name: str, unit: str, phases: Phases, figure: Callable[[Phase], float]) -> Metric:
    peers = {peer: figure(phase) for peer, phase in phases.items() if peer != OURS}
    return Metric(name, unit, figure(phases[OURS]), peers)


def _latencies(rate: str, phases: Phases) -> list[Metric]:
    return [
        _metric(f"latency p50 at {rate}", "ms", phases, _p50_ms),
        _metric(f"latency p99 at {rate}", "ms", phases, _p99_ms),
        _metric(f"latency max at {rate}", "ms", phases, _max_ms),
        _metric(f"publisher behind its schedule, p99 at {rate}", "ms", phases, _late_ms),
    ]


def _costs(kind: str, phases: Phases) -> list[Metric]:
    """CPU for a million events published, by process."""
    unit = "s per million"
    return [
        _metric(f"{kind}, CPU of the publisher", unit, phases, _publisher_cpu_s),
        _metric(f"{kind}, CPU of the server", unit, phases, _server_cpu_s),
        _metric(f"{kind}, CPU of the subscribers", unit, phases, _subscriber_cpu_s),
    ]


def _rate(phase: Phase) -> float:
    return phase.delivered_per_s


def _lost_percent(phase: Phase) -> float:
    return 100 * phase.lost_share


def _p50_ms(phase: Phase) -> float:
    return 1e3 * phase.received[0].latency_p50_s


def _p99_ms(phase: Phase) -> float:
    return 1e3 * phase.received[0].latency_p99_s


def _max_ms(phase: Phase) -> float:
    return 1e3 * phase.received[0].latency_max_s


def _late_ms(phase: Phase) -> float:
    return 1e3 * phase.published.lateness_p99_s


def _publisher_cpu_s(phase: Phase) -> float:
    return 1e6 * phase.published.cpu_s / phase.published.offered


def _server_cpu_s(phase: Phase) -> float:
    return 1e6 * phase.server_cpu_s / phase.published.offered


def _subscriber_cpu_s(phase: Phase) -> float:
    return 1e6 * phase.subscriber_cpu_s / phase.published.offered


def _server_percent(phase: Phase) -> float:
    return 100 * phase.server_cpu_s / phase.span_s


def _peak_mb(phase: Phase) -> float:
    return phase.server_peak_bytes / 1e6
