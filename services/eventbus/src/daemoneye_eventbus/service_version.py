"""Agrees with a client on the version of the message envelope.

The minor and patch numbers only ever add what a receiver may skip, so the broker, which forwards
what it does not know, speaks every version of its major number.
"""

from collections.abc import Iterable

from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_mesh.bus_feature import BusFeature
from daemoneye_mesh.errors import ErrorReason, InvalidRequestError, PreconditionError

__all__ = ["negotiate_version"]

PROTOCOL = "daemoneye"
MAJOR = 1
MAX_SUPPORTED_VERSIONS = 16


def negotiate_version(
    request: eventbus_pb2.VersionNegotiationRequest,
) -> eventbus_pb2.VersionNegotiationResponse:
    """Picks the preferred version when the broker speaks it, else the highest one both speak.

    Raises:
        InvalidRequestError: none or too many versions, or a preferred one that is not among them.
        PreconditionError: no version that both sides speak.
    """
    offered = list(request.supported_versions)
    if not 1 <= len(offered) <= MAX_SUPPORTED_VERSIONS:
        raise InvalidRequestError(
            f"{len(offered)} supported_versions; name 1 to {MAX_SUPPORTED_VERSIONS}",
            count=len(offered),
            maximum=MAX_SUPPORTED_VERSIONS,
        )
    if request.HasField("preferred_version") and request.preferred_version not in offered:
        raise InvalidRequestError(
            "preferred_version is not one of supported_versions; name it there too"
        )
    chosen = _choose(request, offered)
    return eventbus_pb2.VersionNegotiationResponse(
        negotiated_version=chosen,
        server_capabilities=[str(feature) for feature in BusFeature],
        negotiation_success=True,
    )


def _choose(
    request: eventbus_pb2.VersionNegotiationRequest, offered: Iterable[eventbus_pb2.MessageVersion]
) -> eventbus_pb2.MessageVersion:
    spoken = [version for version in offered if _is_spoken(version)]
    if not spoken:
        raise PreconditionError(
            f"no version in common; this broker speaks {PROTOCOL} {MAJOR}.x, upgrade one side",
            reason=ErrorReason.VERSION_UNSUPPORTED,
            protocol=PROTOCOL,
            major=MAJOR,
        )
    if request.HasField("preferred_version") and request.preferred_version in spoken:
        return request.preferred_version
    return max(spoken, key=lambda version: (version.minor, version.patch))


def _is_spoken(version: eventbus_pb2.MessageVersion) -> bool:
    return version.major == MAJOR and version.protocol_version in ("", PROTOCOL)
