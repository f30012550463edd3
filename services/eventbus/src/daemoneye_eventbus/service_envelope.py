"""Reads the envelopes of published messages without decoding their payloads.

Invariant: what the contract lets a publisher set in an envelope is honoured by this broker or the
batch is refused; the payload is forwarded as the bytes that came.
"""

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from daemoneye.eventbus.v1 import eventbus_pb2, frame_pb2
from daemoneye_eventbus.errors import (
    ForeignSourceError,
    InvalidMessageError,
    UnsupportedSettingError,
)
from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.errors import ErrorReason
from daemoneye_mesh.identity import Caller

__all__ = ["EnvelopeInspector"]

MAX_PRIORITY = 255
MAX_MESSAGE_ID_BYTES = 64
MAX_TARGET_ID_BYTES = 128
MAX_HEADERS = 64
MAX_HEADER_KEY_BYTES = 128
MAX_HEADER_VALUE_BYTES = 1024

_MESSAGE_TYPES = frozenset(eventbus_pb2.MessageType.values())


class EnvelopeInspector:
    """Reads and judges the messages of one publisher; see ``broker.Inspector``.

    Args:
        publisher: whose messages they are.
        access: says which topics it may use.
    """

    def __init__(self, publisher: Caller, access: AccessTable) -> None:
        self._publisher = publisher
        self._access = access
        self._own_id = publisher.identity.id

    def topics_of(self, payloads: Sequence[bytes]) -> list[str]:
        """Returns the topic of each message.

        Raises:
            InvalidMessageError: an envelope does not decode or breaks a bound.
            ForeignSourceError: a message names another source than its publisher.
            UnsupportedSettingError: an envelope asks for what this broker does not do.
        """
        decode, own_id = frame_pb2.MessageEnvelope.FromString, self._own_id
        topics: list[str] = []
        for index, payload in enumerate(payloads):
            try:
                metadata = decode(payload).metadata
            except DecodeError:
                raise InvalidMessageError(
                    index, "it does not decode", "send an encoded EventBusMessage"
                ) from None
            if metadata.source_id != own_id:
                raise ForeignSourceError(index, metadata.source_id, own_id)
            # One look for the usual message, whose optional fields have their defaults; the
            # judgement in detail only for the others.
            if metadata.message_type or metadata.priority or metadata.ttl_ms or metadata.headers:
                _check_settings(index, metadata)
            if metadata.message_id or metadata.target_id:
                _check_ids(index, metadata)
            topics.append(metadata.topic)
        return topics

    def authorize(self, topic: str) -> None:
        """Refuses a topic that the access table does not grant to this publisher.

        Raises:
            PermissionDeniedError: the table does not grant it.
        """
        self._access.require_publish(self._publisher, topic)


def _check_settings(index: int, metadata: eventbus_pb2.MessageMetadata) -> None:
    if metadata.message_type not in _MESSAGE_TYPES:
        raise InvalidMessageError(
            index,
            f"message_type {metadata.message_type} is unknown",
            "use a value of MessageType",
            ErrorReason.ENUM_UNKNOWN,
        )
    if metadata.priority > MAX_PRIORITY:
        raise InvalidMessageError(
            index, f"priority is {metadata.priority}", f"use at most {MAX_PRIORITY}"
        )
    if metadata.ttl_ms:
        raise UnsupportedSettingError("ttl_ms", "leave it 0: messages wait until the queue is full")
    _check_headers(index, metadata)


def _check_headers(index: int, metadata: eventbus_pb2.MessageMetadata) -> None:
    if len(metadata.headers) > MAX_HEADERS:
        raise InvalidMessageError(
            index, f"it has {len(metadata.headers)} headers", f"use at most {MAX_HEADERS}"
        )
    for key, value in metadata.headers.items():
        _check_size(index, "a header key", key, MAX_HEADER_KEY_BYTES)
        _check_size(index, "a header value", value, MAX_HEADER_VALUE_BYTES)


def _check_ids(index: int, metadata: eventbus_pb2.MessageMetadata) -> None:
    _check_size(index, "message_id", metadata.message_id, MAX_MESSAGE_ID_BYTES)
    _check_size(index, "target_id", metadata.target_id, MAX_TARGET_ID_BYTES)


def _check_size(index: int, what: str, text: str, limit_bytes: int) -> None:
    size_bytes = len(text.encode())
    if size_bytes > limit_bytes:
        raise InvalidMessageError(
            index, f"{what} has {size_bytes} bytes", f"use at most {limit_bytes}"
        )
