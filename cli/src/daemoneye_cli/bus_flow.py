"""Where the messages of a subscription went, and whether all of them are accounted for.

Invariant: ``offered = delivered + filtered + dropped + pending`` is checked here and nowhere assumed; a
flow that does not add up is shown as it is, with what is missing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daemoneye.eventbus.v1 import eventbus_service_pb2
from daemoneye_cli.output import Styled

__all__ = ["Flow", "balance_cell", "describe_counts", "read_flow"]


@dataclass(frozen=True, slots=True)
class Flow:
    """The counters of one hop, in messages."""

    offered: int
    delivered: int
    filtered: int
    dropped: Mapping[str, int]
    """By reason."""
    pending: int
    pending_bytes: int
    unacknowledged: int
    """Of those pending."""
    redelivered: int
    """No part of the equation."""

    @property
    def dropped_count(self) -> int:
        """Messages dropped for any reason."""
        return sum(self.dropped.values())

    @property
    def unaccounted(self) -> int:
        """Messages offered that went nowhere; negative when more came out than went in."""
        return self.offered - self.delivered - self.filtered - self.dropped_count - self.pending

    @property
    def equation(self) -> str:
        """The equation with its numbers, for a person."""
        sign = "=" if self.unaccounted == 0 else "≠"
        return (
            f"{self.offered:,} offered {sign} {self.delivered:,} delivered"
            f" + {self.filtered:,} filtered + {self.dropped_count:,} dropped"
            f" + {self.pending:,} pending"
        )

    def document(self) -> dict[str, Any]:
        """Returns the counters under the names of the contract, and how they add up."""
        return {
            "offered_count": self.offered,
            "delivered_count": self.delivered,
            "filtered_count": self.filtered,
            "dropped_count": self.dropped_count,
            "dropped": dict(self.dropped),
            "pending_count": self.pending,
            "pending_bytes": self.pending_bytes,
            "unacknowledged_count": self.unacknowledged,
            "redelivered_count": self.redelivered,
            "unaccounted_count": self.unaccounted,
            "adds_up": self.unaccounted == 0,
        }


def read_flow(counters: eventbus_service_pb2.FlowCounters) -> Flow:
    """Returns the counters of the broker as they came."""
    return Flow(
        offered=counters.offered_count,
        delivered=counters.delivered_count,
        filtered=counters.filtered_count,
        dropped=dict(sorted(counters.dropped_count.items())),
        pending=counters.pending_count,
        pending_bytes=counters.pending_bytes,
        unacknowledged=counters.unacknowledged_count,
        redelivered=counters.redelivered_count,
    )


def balance_cell(flow: Flow) -> Styled:
    """Returns what a table says about the equation."""
    if flow.unaccounted == 0:
        return Styled("adds up", "green")
    return Styled(f"off by {flow.unaccounted:,}", "bold red")


def describe_counts(counts: Mapping[str, int]) -> str:
    """Returns counts by reason in one line, the largest first; empty without any."""
    largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count:,}" for reason, count in largest if count)
