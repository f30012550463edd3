"""What a subscriber asks for, in its own terms.

Invariant: the broker honours every option or refuses the subscription (MUST-SUB-01); what can be told
wrong here is refused here.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Self

from daemoneye_mesh.bus_feature import BusFeature
from daemoneye_mesh.errors import InvalidRequestError
from daemoneye_mesh.topic import validate_pattern

__all__ = ["Duplicates", "Guarantee", "Overflow", "SubscriptionOptions"]

MAX_PRIORITY = 255


class Guarantee(StrEnum):
    """How hard the broker tries."""

    AT_MOST_ONCE = "at_most_once"
    """What does not fit the queue is dropped and told as a gap."""
    AT_LEAST_ONCE = "at_least_once"
    """Until acknowledged; perhaps more than once."""
    EXACTLY_ONCE = "exactly_once"
    """As at least once, with repeats held back by the broker and, past a lost acknowledgement, by
    this client."""


class Overflow(StrEnum):
    """What the broker does when the queue is full."""

    DROP_OLDEST = "drop_oldest"
    DROP_NEWEST = "drop_newest"
    DISCONNECT = "disconnect"
    """It ends the subscription; see ``resubscribe_when_slow``."""
    BLOCK = "block"
    """Publishers wait, up to ``block_timeout_s``; only for whom the access table allows it."""


class Duplicates(StrEnum):
    """What becomes of a message that was offered to the subscription before."""

    ALLOW = "allow"
    DROP = "drop"
    MERGE = "merge"
    """It takes the place of the earlier copy where that still waits."""


@dataclass(frozen=True, slots=True)
class SubscriptionOptions:
    """One subscription. Zeros and Nones take the broker's default.

    Raises:
        InvalidPatternError: a pattern breaks the grammar.
        InvalidRequestError: an option makes no sense, or not together with another one.
    """

    patterns: Sequence[str | tuple[str, int]]
    """Topic patterns, each alone or with the least priority that it lets through, 0 to 255."""
    subscriber_id: str = ""
    """Its name, for operators; a durable subscription goes on under it."""
    guarantee: Guarantee = Guarantee.AT_MOST_ONCE
    durable_for_s: float | None = None
    """For how long the broker keeps messages while we are away; None means not at all."""
    max_retained_messages: int | None = None
    """How many it keeps meanwhile; None means what the queue holds."""
    max_retained_bytes: int | None = None
    """How many bytes it keeps meanwhile; None means what the queue holds."""
    policy: Overflow = Overflow.DROP_OLDEST
    block_timeout_s: float = 0.0
    """How long publishers wait under ``Overflow.BLOCK``."""
    max_queue_messages: int = 0
    max_queue_bytes: int = 0
    ack_timeout_s: float = 0.0
    """After how long what was not acknowledged is delivered again."""
    max_unacknowledged: int = 0
    """Most messages handed over and not acknowledged."""
    credit: int | None = None
    """Messages that the broker may hand over before ``grant``; None means as many as it can."""
    history_s: float | None = None
    """Begin with what the broker retained of the last so many seconds; 0 means all of it."""
    history_messages: int = 0
    """At most so many of them, the latest; 0 sets no bound."""
    consumer_group: str = ""
    """Its members share the messages."""
    duplicates: Duplicates = Duplicates.ALLOW
    ordered: bool = False
    """In a consumer group: all of one source to one member."""
    message_types: Collection[int] = ()
    """Numbers of ``MessageType``; empty means all."""
    event_types: Collection[int] = ()
    """Numbers of ``EventType``; empty means all. Only collection events are touched."""
    correlation_ids: Sequence[str] = ()
    correlation_patterns: Sequence[str] = ()
    """Over correlation, parent and root id; ``*`` stands for any characters."""
    correlation_tags: Mapping[str, str] = field(default_factory=dict)
    """All of which must be there."""
    any_correlation_tags: Mapping[str, str] = field(default_factory=dict)
    """One of which must be there."""
    workflow_stages: Sequence[str] = ()
    parent_correlation_ids: Sequence[str] = ()
    root_correlation_ids: Sequence[str] = ()
    min_sequence_number: int | None = None
    max_sequence_number: int | None = None
    give_up_after_s: float | None = None
    """How long it may be without a broker before it breaks; None means it never gives up."""
    resubscribe_when_slow: bool = True
    """Whether it comes back after ``Overflow.DISCONNECT``; else iterating raises."""

    def __post_init__(self) -> None:
        if isinstance(self.patterns, str):
            raise _invalid("patterns", "must be a list; put the pattern into one")
        for pattern, floor in self.floors:
            validate_pattern(pattern)
            if not 0 <= floor <= MAX_PRIORITY:
                raise _invalid("patterns", f"have priority floors of 0 to {MAX_PRIORITY}")
        if self.durable_for_s is not None and not self.subscriber_id:
            raise _invalid("durable_for_s", "needs a subscriber_id to go on under; set one")
        if self.durable_for_s is None and self._retained:
            raise _invalid("max_retained_messages", "needs durable_for_s; set it too")
        if not self.acknowledges and (self.ack_timeout_s or self.max_unacknowledged):
            raise _invalid("ack_timeout_s", "needs a guarantee with acknowledgements; choose one")
        if self.block_timeout_s and self.policy is not Overflow.BLOCK:
            raise _invalid("block_timeout_s", "needs policy Overflow.BLOCK; set it too")
        if self.history_messages and self.history_s is None:
            raise _invalid("history_messages", "needs history_s, 0 for any age; set it too")

    @property
    def floors(self) -> list[tuple[str, int]]:
        """The patterns, each with the least priority that it lets through."""
        return [(one, 0) if isinstance(one, str) else one for one in self.patterns]

    @property
    def acknowledges(self) -> bool:
        """Whether deliveries have to be acknowledged."""
        return self.guarantee is not Guarantee.AT_MOST_ONCE

    @property
    def features(self) -> frozenset[BusFeature]:
        """What the broker has to offer for these options."""
        asked = {
            BusFeature.GROUPS: True,
            BusFeature.ACKNOWLEDGEMENT: self.acknowledges,
            BusFeature.DUPLICATES: self.duplicates is not Duplicates.ALLOW
            or self.guarantee is Guarantee.EXACTLY_ONCE,
            BusFeature.DURABLE: self.durable_for_s is not None,
            BusFeature.HISTORY: self.history_s is not None,
            BusFeature.CONSUMER_GROUPS: bool(self.consumer_group),
            BusFeature.FILTERS: self._is_selective,
            BusFeature.CREDIT: self.credit is not None,
            BusFeature.BLOCK: self.policy is Overflow.BLOCK,
        }
        return frozenset(feature for feature, is_needed in asked.items() if is_needed)

    @property
    def _is_selective(self) -> bool:
        filters = _SELECTION - {"patterns"}
        has_filter = any(getattr(self, name) not in (None, (), {}) for name in filters)
        return has_filter or any(floor for _pattern, floor in self.floors)

    @property
    def _retained(self) -> bool:
        return self.max_retained_messages is not None or self.max_retained_bytes is not None

    def with_selection(self, other: Self) -> Self:
        """Returns these options with the patterns and filters of other ones."""
        chosen = {name: getattr(other, name) for name in _SELECTION}
        return replace(self, **chosen)


_SELECTION = frozenset(
    one.name
    for one in fields(SubscriptionOptions)
    if one.name in ("patterns", "message_types", "event_types")
    or "correlation" in one.name
    or one.name in ("workflow_stages", "min_sequence_number", "max_sequence_number")
)
"""What an update of a standing subscription may change."""


def _invalid(name: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name} {problem}", field=name, problem=problem)
