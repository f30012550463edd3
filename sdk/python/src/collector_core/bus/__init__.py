"""The event bus for those who publish and subscribe: batching, reconnects, flow control, states.

Publishing: put messages into an ``Outbox`` and run a ``BusPublisher`` beside it. Subscribing: iterate
over a ``BusSubscription``. Neither gives up on a broker that is away, unless told to.
"""

from collector_core.bus.envelope import EnvelopeKey, OutboxMessage, to_outbox_message
from collector_core.bus.errors import (
    AnswerOrderError,
    BrokenError,
    BusyError,
    ClosedError,
    MessageTooLargeError,
    SlowConsumerError,
)
from collector_core.bus.items import Delivery, Gap, Item, Opened
from collector_core.bus.limits import PublishLimits
from collector_core.bus.negotiation import negotiate
from collector_core.bus.options import Duplicates, Guarantee, Overflow, SubscriptionOptions
from collector_core.bus.outbox import BatchSource, Outbox, OutboxBatch
from collector_core.bus.publisher import BusPublisher, PublishAssurance
from collector_core.bus.received_group import ReceivedGroup
from collector_core.bus.state import LinkState, LinkStateListener
from collector_core.bus.subscription import BusSubscription

__all__ = [
    "AnswerOrderError",
    "BatchSource",
    "BrokenError",
    "BusPublisher",
    "BusSubscription",
    "BusyError",
    "ClosedError",
    "Delivery",
    "Duplicates",
    "EnvelopeKey",
    "Gap",
    "Guarantee",
    "Item",
    "LinkState",
    "LinkStateListener",
    "MessageTooLargeError",
    "Opened",
    "Outbox",
    "OutboxBatch",
    "OutboxMessage",
    "Overflow",
    "PublishAssurance",
    "PublishLimits",
    "ReceivedGroup",
    "SlowConsumerError",
    "SubscriptionOptions",
    "negotiate",
    "to_outbox_message",
]
