"""Wiring of the broker."""

import asyncio

from daemoneye.eventbus.v1.correlation_service_pb2_grpc import (
    add_CorrelationServiceServicer_to_server,
)
from daemoneye_eventbus.broker import Broker, BrokerLimits
from daemoneye_eventbus.config import EventBusSettings
from daemoneye_eventbus.quota import Quota, QuotaLimits
from daemoneye_eventbus.rate_limit import RateLimiter, parse_rate_limit
from daemoneye_eventbus.refusals import RefusalLog
from daemoneye_eventbus.retention import RetentionLimits
from daemoneye_eventbus.service import SERVICE_NAME, EventBusService, add_event_bus_to_server
from daemoneye_eventbus.service_correlation import SERVICE_NAME as CORRELATION_SERVICE_NAME
from daemoneye_eventbus.service_correlation import CorrelationService
from daemoneye_eventbus.service_intake import IntakeRules
from daemoneye_eventbus.service_upkeep import Upkeep
from daemoneye_eventbus.tracker import Tracker
from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.authentication import AuthInterceptor
from daemoneye_mesh.layout import RuntimeLayout
from daemoneye_mesh.lifecycle import StopRequest
from daemoneye_mesh.server import MeshServer
from daemoneye_mesh.token import TokenVerifier

__all__ = ["Assembly", "serve"]


class Assembly:
    """The parts of one broker, not started; make it inside the loop.

    Raises:
        InvalidConfigError: a setting cannot be obeyed.
    """

    def __init__(self, layout: RuntimeLayout, settings: EventBusSettings) -> None:
        refusals = RefusalLog()
        access = AccessTable.load()
        access.on_refusal = refusals.note
        tracker = Tracker(
            max_steps=settings.max_tracked_steps,
            max_workflows=settings.max_workflows,
            timeout_s=settings.workflow_timeout_s,
        )
        rates = RateLimiter(
            [parse_rate_limit(text) for text in settings.rate_limits], settings.max_messages_per_s
        )
        self.broker = _broker(settings)
        self.upkeep = Upkeep(self.broker, tracker, refusals, layout.broker)
        verifier = TokenVerifier(layout.trust_bundle, layout.broker.spiffe_id, layout.trust_domain)
        auth = AuthInterceptor(verifier, access)
        auth.on_refusal = refusals.note
        self.service = EventBusService(self.broker, IntakeRules(access, rates, refusals, tracker))
        self.server = MeshServer(layout.eventbus_socket, auth)
        self.server.add(add_event_bus_to_server, self.service, SERVICE_NAME)
        self.server.add(
            add_CorrelationServiceServicer_to_server,
            CorrelationService(tracker),
            CORRELATION_SERVICE_NAME,
        )
        self.server.on_drain(self.service.drain)


async def serve(settings: EventBusSettings, stop: StopRequest) -> None:
    """Serves until ``stop`` is set, then drains.

    Raises:
        InvalidConfigError: the runtime dir is too long for a socket, or a setting cannot be obeyed.
        PreconditionError: the runtime dir or the socket cannot be used.
    """
    assembly = Assembly(settings.layout, settings)
    await assembly.server.start()
    try:
        async with asyncio.TaskGroup() as group:
            upkeep = group.create_task(assembly.upkeep.run(), name="upkeep")
            await assembly.server.set_serving(True)
            await stop.wait()
            upkeep.cancel()
    finally:
        await assembly.server.drain()


def _broker(settings: EventBusSettings) -> Broker:
    limits = BrokerLimits(
        max_subscriptions=settings.max_subscriptions,
        default_mailbox_messages=settings.default_queue_messages,
        max_mailbox_messages=settings.max_queue_messages,
        max_mailbox_bytes=settings.max_queue_bytes,
    )
    retention = RetentionLimits(
        max_messages=settings.retained_messages,
        max_bytes=settings.retained_bytes,
        max_age_s=settings.retained_age_s,
    )
    quota = Quota(
        QuotaLimits(
            max_streams=settings.max_streams_per_identity,
            max_subscriptions=settings.max_subscriptions_per_identity,
            max_queue_bytes=settings.max_queue_bytes_per_identity,
        )
    )
    return Broker(limits, retention, quota)
