"""What a broker may offer beyond carrying messages, by the names that are negotiated.

Invariant: a name means the same for ever; what changes its meaning gets another name.
"""

from enum import StrEnum

__all__ = ["BusFeature"]


class BusFeature(StrEnum):
    """One optional feature of the bus."""

    GROUPS = "groups"
    """Messages are published and delivered in groups."""
    ASSURANCE = "publish_assurance"
    """Publishers may be answered when subscribers have acknowledged."""
    ACKNOWLEDGEMENT = "acknowledgement"
    """Subscribers acknowledge, and what they do not is delivered again."""
    DUPLICATES = "duplicate_handling"
    """Repeats are held back, or take the place of what waits."""
    DURABLE = "durable_subscriptions"
    """A subscription outlives its stream."""
    HISTORY = "history"
    """What is retained comes first."""
    CONSUMER_GROUPS = "consumer_groups"
    """Members share the messages."""
    FILTERS = "filters"
    """By message type, event type, correlation and priority."""
    CREDIT = "credit"
    """The subscriber says how many messages it takes."""
    BLOCK = "overflow_block"
    """Publishers wait for room."""
    LIFETIME = "message_lifetime"
    """``ttl_ms`` is honoured."""
    WORKFLOWS = "workflows"
    """CorrelationService is served."""
