"""What a client asks the broker first: whether they speak one language, and how much at once."""

from collections.abc import Collection

import grpc.aio

from collector_core.bus.limits import PublishLimits
from daemoneye.eventbus.v1 import (
    eventbus_pb2,
    eventbus_service_pb2,
    eventbus_service_pb2_grpc,
)
from daemoneye_mesh.bus_feature import BusFeature
from daemoneye_mesh.errors import ErrorReason, PreconditionError, UnsupportedError

__all__ = ["negotiate"]

NEGOTIATE_TIMEOUT_S = 5.0
ENVELOPE_VERSION = eventbus_pb2.MessageVersion(
    major=1, minor=0, patch=0, protocol_version="daemoneye"
)


async def negotiate(
    channel: grpc.aio.Channel, needed: Collection[BusFeature] = ()
) -> PublishLimits:
    """Agrees with the broker on the message envelope; returns its limits.

    Args:
        channel: to the broker.
        needed: features that it has to offer.

    Raises:
        PreconditionError: no common version; one side must be upgraded.
        UnsupportedError: the broker lacks a feature that is needed.
        grpc.aio.AioRpcError: the broker cannot be reached, or refuses the caller.
    """
    stub: eventbus_service_pb2_grpc.EventBusServiceAsyncStub
    stub = eventbus_service_pb2_grpc.EventBusServiceStub(channel)
    request = eventbus_pb2.VersionNegotiationRequest(
        supported_versions=[ENVELOPE_VERSION],
        preferred_version=ENVELOPE_VERSION,
        client_capabilities=[str(feature) for feature in BusFeature],
    )
    answer = await stub.NegotiateVersion(
        eventbus_service_pb2.NegotiateVersionRequest(request=request), timeout=NEGOTIATE_TIMEOUT_S
    )
    if not answer.response.negotiation_success:
        raise PreconditionError(
            "the broker speaks no version of the envelope that we do; upgrade",
            reason=ErrorReason.VERSION_UNSUPPORTED,
        )
    if missing := sorted(set(needed) - set(answer.response.server_capabilities)):
        raise UnsupportedError(
            f"the broker does not offer {', '.join(missing)}; upgrade it, or do without",
            features=", ".join(missing),
        )
    known = PublishLimits()
    # Ours are hard: what is above them does not go through our channels. 0 is not said.
    return PublishLimits(
        min(answer.max_message_bytes or known.max_message_bytes, known.max_message_bytes),
        min(answer.max_batch_bytes or known.max_batch_bytes, known.max_batch_bytes),
        min(answer.max_batch_messages or known.max_batch_messages, known.max_batch_messages),
    )
