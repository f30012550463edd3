"""The envelope of a group as it lies in a log, made a key again."""

from functools import lru_cache

from google.protobuf.message import DecodeError

from collector_core.bus.envelope import EnvelopeKey
from daemoneye.eventbus.v1 import group_pb2
from daemoneye_mesh.correlation_message import from_message
from daemoneye_mesh.errors import DaemoneyeError

__all__ = ["decode_key"]

KNOWN_KEYS = 512


@lru_cache(KNOWN_KEYS)
def decode_key(head: bytes) -> EnvelopeKey:
    """Returns the key whose ``head`` was written.

    Raises:
        ValueError: these bytes are no envelope.
    """
    try:
        envelope = group_pb2.GroupEnvelope.FromString(head)
        correlation = from_message(envelope.correlation) if _correlates(envelope) else None
    except (DecodeError, DaemoneyeError):
        raise ValueError("the record has no readable envelope") from None
    return EnvelopeKey(
        topic=envelope.topic,
        source_id=envelope.source_id,
        message_type=envelope.message_type,
        event_type=envelope.event_type,
        priority=envelope.priority,
        ttl_ms=envelope.ttl_ms,
        epoch=envelope.source_epoch,
        correlation=correlation,
        message_id=envelope.message_id,
    )


def _correlates(envelope: group_pb2.GroupEnvelope) -> bool:
    return envelope.HasField("correlation")
