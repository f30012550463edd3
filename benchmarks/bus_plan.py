"""What the workers of the bus benchmark are told and what they answer, one line of JSON each.

Standard library only: each peer's interpreter runs it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.bus_stamp import Progress, Source, Tally, Template
from benchmarks.json_line import JsonLine
from benchmarks.report import percentile

__all__ = [
    "Link",
    "Offer",
    "PublishPlan",
    "PublishReport",
    "SubscribePlan",
    "SubscribeReport",
    "rate_between",
    "sum_up",
]


@dataclass(frozen=True, slots=True)
class Link:
    """Where the server is and what is carried over it."""

    client: str
    """Name of the module in benchmarks.clients."""
    address: str
    topic: str
    frame: str
    """The event as hex."""
    stamp_offset: int
    token_file: str = ""
    guarantee: str = "at_most_once"

    @property
    def template(self) -> Template:
        """The event."""
        return Template(bytes.fromhex(self.frame), self.stamp_offset)


@dataclass(frozen=True, slots=True)
class PublishPlan(JsonLine):
    """What to publish."""

    link: Link
    progress_file: str
    slots: int
    """Subscriptions in all."""
    duration_s: float
    rate: float = 0.0
    """Events/s; 0 is as fast as it goes."""
    batch: int = 1_000
    """Events made and handed to the client at a time when it goes as fast as it can."""
    window: int = 0
    """Most events that the slowest subscription may lie behind; 0 leaves that to the system."""

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        return cls(**{**fields, "link": Link(**fields["link"])})

    def source(self) -> Source:
        """Makes what is published."""
        return Source(self.link.template)

    def progress(self) -> Progress:
        """How far the subscriptions have come."""
        return Progress(Path(self.progress_file), self.slots)


@dataclass(frozen=True, slots=True)
class SubscribePlan(JsonLine):
    """What to subscribe to, in one process."""

    link: Link
    progress_file: str
    slots: int
    first_slot: int
    count: int
    """Subscriptions in this process, from the first slot on."""
    is_timed: bool = False
    skip_count: int = 0
    """Events at the start whose latency is left out."""

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        return cls(**{**fields, "link": Link(**fields["link"])})

    def tallies(self) -> list[Tally]:
        """One for each subscription."""
        progress = Progress(Path(self.progress_file), self.slots)
        slots = range(self.first_slot, self.first_slot + self.count)
        return [Tally(self.link.template, progress, slot, self.is_timed) for slot in slots]


@dataclass(frozen=True, slots=True)
class PublishReport(JsonLine):
    """What was published."""

    offered: int
    begun_ns: int
    ended_ns: int
    """When the last event was handed to the client."""
    settled_ns: int
    """When the client said that all were sent, or the server that it had them."""
    cpu_s: float
    lateness_p99_s: float
    """How far the publisher itself lay behind its schedule."""
    stalled_count: int
    """How often the window stood still; what it waited for was lost."""


@dataclass(frozen=True, slots=True)
class Offer(JsonLine):
    """What was published, for the subscriber to hold against what came."""

    offered: int
    begun_ns: int
    """When the warm-up was over."""
    ended_ns: int


@dataclass(frozen=True, slots=True)
class SubscribeReport(JsonLine):
    """What came of an offer, summed over the subscriptions of one process."""

    delivered: int
    missing: int
    """Events that the numbers say are missing."""
    announced: int
    """Events that the system says were dropped."""
    duplicates: int
    damaged: int
    """Events, of those looked at closely, that are not what was published."""
    reconnects: int
    """Times that a connection was lost: the way some servers drop events."""
    delivered_per_s: float
    """Between the two times of the offer, or up to the last event if that came before."""
    cpu_s: float
    latency_p50_s: float = 0.0
    latency_p99_s: float = 0.0
    latency_max_s: float = 0.0


def sum_up(tallies: list[Tally], offer: Offer, skip_count: int) -> dict[str, Any]:
    """The figures of a report that come of the tallies."""
    steady = [one for tally in tallies for one in tally.latencies_ns[skip_count:]]
    shares = {"latency_p50_s": 0.5, "latency_p99_s": 0.99, "latency_max_s": 1.0}
    latency = {name: percentile(steady, share) / 1e9 for name, share in shares.items() if steady}
    return {
        "delivered": sum(one.delivered for one in tallies),
        "missing": sum(offer.offered - one.delivered for one in tallies),
        "announced": sum(one.announced for one in tallies),
        "duplicates": sum(one.duplicates for one in tallies),
        "damaged": sum(one.damaged for one in tallies),
        "delivered_per_s": sum(rate_between(one.samples, offer) for one in tallies),
        **latency,
    }


def rate_between(samples: list[tuple[int, int]], offer: Offer) -> float:
    """Events/s between the first sample and the last one within the two times of an offer."""
    within = [one for one in samples if offer.begun_ns <= one[0] <= offer.ended_ns]
    if len(within) < 2:
        return 0.0
    (first_ns, first), (last_ns, last) = within[0], within[-1]
    return (last - first) * 1e9 / (last_ns - first_ns) if last_ns > first_ns else 0.0
