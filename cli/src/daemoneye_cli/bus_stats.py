"""What the broker counts, as one sample and as documents."""

import time
from dataclasses import dataclass
from typing import Any

from daemoneye.eventbus.v1 import (
    eventbus_service_pb2,
    eventbus_service_pb2_grpc,
    subscription_pb2,
)
from daemoneye_cli.bus_flow import read_flow
from daemoneye_cli.calls import ask
from daemoneye_cli.document import enum_name, to_document
from daemoneye_cli.session import OperatorSession

__all__ = [
    "MAX_LISTED_TOPICS",
    "Sample",
    "Stats",
    "Subscription",
    "fill_of",
    "guarantee_of",
    "read_sample",
    "read_stats",
    "read_subscriptions",
    "state_of",
    "subscription_document",
]

Stats = eventbus_service_pb2.GetBusStatsResponse
Subscription = eventbus_service_pb2.SubscriptionInfo

MAX_LISTED_TOPICS = 256
"""As many the broker tells, the busiest ones."""

_CALL_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters of one moment."""

    taken_s: float
    """On our own monotonic clock: the broker's counters carry no time."""
    stats: Stats
    subscriptions: tuple[Subscription, ...]


async def read_stats(session: OperatorSession) -> Stats:
    """Asks the broker for its counters.

    Raises:
        DaemoneyeError: the broker, or the agent that issues the token, is not reachable or refuses.
    """
    link = await session.broker()
    stub = eventbus_service_pb2_grpc.EventBusServiceStub(link.channel)
    request = eventbus_service_pb2.GetBusStatsRequest()
    return await ask(stub.GetBusStats, request, link.peer, session.timeout_s(_CALL_TIMEOUT_S))


async def read_subscriptions(session: OperatorSession) -> tuple[Subscription, ...]:
    """Asks the broker for the open subscriptions, oldest first.

    Raises:
        DaemoneyeError: the broker, or the agent that issues the token, is not reachable or refuses.
    """
    link = await session.broker()
    stub = eventbus_service_pb2_grpc.EventBusServiceStub(link.channel)
    request = eventbus_service_pb2.ListSubscriptionsRequest()
    timeout_s = session.timeout_s(_CALL_TIMEOUT_S)
    answer = await ask(stub.ListSubscriptions, request, link.peer, timeout_s)
    return tuple(answer.subscriptions)


async def read_sample(session: OperatorSession) -> Sample:
    """Asks for both.

    Raises:
        DaemoneyeError: the broker, or the agent that issues the token, is not reachable or refuses.
    """
    stats = await read_stats(session)
    taken_s = time.monotonic()
    return Sample(taken_s, stats, await read_subscriptions(session))


def state_of(subscription: Subscription) -> str:
    """Returns ``away`` when nobody reads it, else ``paused`` or ``attached``."""
    if not subscription.is_attached:
        return "away"
    return "paused" if subscription.is_paused else "attached"


def guarantee_of(subscription: Subscription) -> str:
    """Returns the guarantee with dashes, such as ``at-least-once``."""
    descriptor = subscription_pb2.DeliveryGuarantee.DESCRIPTOR
    number = subscription.config.qos_settings.delivery_guarantee
    return enum_name(descriptor, number).replace("_", "-")


def fill_of(subscription: Subscription) -> float:
    """Returns how full its queue is, from 0 to 1, by messages or bytes, whichever is fuller."""
    flow = subscription.flow
    bounds = (
        (flow.pending_count, subscription.max_queue_messages),
        (flow.pending_bytes, subscription.max_queue_bytes),
    )
    return max((used / bound for used, bound in bounds if bound), default=0.0)


def subscription_document(subscription: Subscription) -> dict[str, Any]:
    """Returns one subscription with its counters beside its settings."""
    document = to_document(subscription)
    del document["flow"]
    return {
        **document,
        "state": state_of(subscription),
        "guarantee": guarantee_of(subscription),
        "consumer_group": subscription.config.consumer_group or None,
        **read_flow(subscription.flow).document(),
    }
