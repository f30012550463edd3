"""What the workers of the bus-scale benchmark are told and what they answer."""

from dataclasses import dataclass
from typing import Any, Self

from benchmarks.json_line import JsonLine

__all__ = [
    "Connection",
    "ScaleOffer",
    "ScalePublishPlan",
    "ScalePublishReport",
    "ScaleSubscribePlan",
    "ScaleSubscribeReport",
]


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection and its subscriptions, a pattern each."""

    token_file: str
    patterns: list[str]


@dataclass(frozen=True, slots=True)
class ScaleSubscribePlan(JsonLine):
    """Connections to hold open."""

    socket: str
    connections: list[Connection]

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        connections = [Connection(**one) for one in fields["connections"]]
        return cls(fields["socket"], connections)


@dataclass(frozen=True, slots=True)
class ScaleOffer(JsonLine):
    """How many messages are to come, over all subscriptions."""

    expected: int


@dataclass(frozen=True, slots=True)
class ScaleSubscribeReport(JsonLine):
    """What came."""

    delivered: int
    announced: int
    """Messages that gap markers say were dropped."""


@dataclass(frozen=True, slots=True)
class ScalePublishPlan(JsonLine):
    """What to publish: each topic once, by turns."""

    socket: str
    token_file: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class ScalePublishReport(JsonLine):
    """What was published."""

    batches: int
    messages: int
    span_s: float
    """From the first write to the last answer."""
    routed: int
    """Copies that the broker says it put into queues."""
