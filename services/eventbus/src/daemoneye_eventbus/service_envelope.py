"""Reads what publishers send into groups, without decoding payloads.

Invariant: what the contract lets a publisher set in an envelope is honoured by this broker or the
batch is refused; a group that came is forwarded as the bytes that came, as far as they were checked,
and messages that came one by one are put into groups by their own envelopes.
"""

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from daemoneye.eventbus.v1 import eventbus_pb2, frame_pb2
from daemoneye_eventbus.errors import (
    BatchTooLargeError,
    EmptyBatchError,
    ForeignSourceError,
    InvalidMessageError,
    MessageTooLargeError,
)
from daemoneye_eventbus.group import Envelope, Group
from daemoneye_eventbus.service_group import GroupContent, make_group, read_envelope
from daemoneye_mesh.correlation_message import from_message
from daemoneye_mesh.errors import ErrorReason, InvalidRequestError
from daemoneye_mesh.group import split_block
from daemoneye_mesh.limits import MAX_BATCH_BYTES, MAX_BATCH_MESSAGES, MAX_MESSAGE_BYTES

__all__ = ["EnvelopeReader", "count_messages"]

MAX_PRIORITY = 255
MAX_MESSAGE_ID_BYTES = 64
MAX_TARGET_ID_BYTES = 128
MAX_HEADERS = 64
MAX_HEADER_KEY_BYTES = 128
MAX_HEADER_VALUE_BYTES = 1024
MAX_NUMBER = 2**64 - 1

_MESSAGE_TYPES = frozenset(eventbus_pb2.MessageType.values())
_EVENT_TYPES = frozenset(eventbus_pb2.EventType.values())
_EVENT = eventbus_pb2.MESSAGE_TYPE_COLLECTION_EVENT


class EnvelopeReader:
    """Reads and judges the batches of one publisher.

    Args:
        own_id: the only source_id that its messages may have.
    """

    def __init__(self, own_id: str) -> None:
        self._own_id = own_id

    def read(self, messages: Sequence[bytes], groups: Sequence[bytes]) -> list[Group]:
        """Returns the groups of a batch, in order.

        Raises:
            EmptyBatchError: there is no message.
            BatchTooLargeError: too many messages or bytes.
            MessageTooLargeError: a message is too large.
            InvalidMessageError: an envelope does not decode or breaks a bound.
            ForeignSourceError: a message names another source than its publisher.
            InvalidRequestError: a correlation breaks a bound.
        """
        _require_bytes(sum(map(len, messages)) + sum(map(len, groups)))
        if len(messages) + len(groups) > MAX_BATCH_MESSAGES:
            raise BatchTooLargeError(len(messages) + len(groups), MAX_BATCH_MESSAGES, "messages")
        found = self._read_messages(messages)
        index = len(messages)
        for encoded in groups:
            group = self._read_group(index, encoded)
            index += group.count
            found.append(group)
        if not found:
            raise EmptyBatchError
        if index > MAX_BATCH_MESSAGES:
            raise BatchTooLargeError(index, MAX_BATCH_MESSAGES, "messages")
        return found

    def _read_group(self, index: int, encoded: bytes) -> Group:
        try:
            frame = frame_pb2.GroupFrame.FromString(encoded)
            frames = split_block(frame.block)
        except DecodeError:
            raise InvalidMessageError(
                index, "its group does not decode", "send an encoded MessageGroup"
            ) from None
        envelope = read_envelope(frame.envelope)
        self._check(index, envelope)
        # A message is no larger than the block that it is in; only large blocks need a look.
        if len(frame.block) > MAX_MESSAGE_BYTES:
            _check_sizes(index, frames)
        if envelope.count != len(frames) or not frames:
            raise InvalidMessageError(
                index,
                f"its group says {envelope.count} messages and has {len(frames)}",
                "count them",
            )
        # Where a field comes twice, what was checked is the last block, but receivers join them.
        is_plain = frame.ByteSize() == len(encoded)
        return Group(envelope, GroupContent(encoded if is_plain else frame.SerializeToString()))

    def _read_messages(self, frames: Sequence[bytes]) -> list[Group]:
        _check_sizes(0, frames)
        found: list[Group] = []
        run: list[bytes] = []
        last: Envelope | None = None
        for index, frame in enumerate(frames):
            envelope = self._read_message(index, frame)
            if last is not None and not _follows(last, envelope, len(run)):
                found.append(_close(last, run))
                run, last = [], None
            run.append(frame)
            last = last or envelope
        if last is not None:
            found.append(_close(last, run))
        return found

    def _read_message(self, index: int, frame: bytes) -> Envelope:
        try:
            message = frame_pb2.MessageEnvelope.FromString(frame)
        except DecodeError:
            raise InvalidMessageError(
                index, "it does not decode", "send an encoded EventBusMessage"
            ) from None
        metadata = message.metadata
        _check_headers(index, metadata)
        if metadata.target_id:
            _check_size(index, "target_id", metadata.target_id, MAX_TARGET_ID_BYTES)
        is_event = metadata.message_type == _EVENT
        envelope = Envelope(
            topic=metadata.topic,
            source_id=metadata.source_id,
            message_type=metadata.message_type,
            event_type=message.collection_event.event_type if is_event else None,
            priority=metadata.priority,
            ttl_ms=metadata.ttl_ms,
            source_epoch=metadata.source_epoch,
            first_sequence=metadata.source_sequence,
            message_id=metadata.message_id,
            correlation=from_message(message.correlation)
            if message.HasField("correlation")
            else None,
        )
        self._check(index, envelope)
        return envelope

    def _check(self, index: int, envelope: Envelope) -> None:
        if envelope.source_id != self._own_id:
            raise ForeignSourceError(index, envelope.source_id, self._own_id)
        if envelope.message_type not in _MESSAGE_TYPES:
            raise _unknown(index, "message_type", envelope.message_type, "MessageType")
        if envelope.event_type is not None and envelope.event_type not in _EVENT_TYPES:
            raise _unknown(index, "event_type", envelope.event_type, "EventType")
        if envelope.priority > MAX_PRIORITY:
            raise InvalidMessageError(
                index, f"priority is {envelope.priority}", f"use at most {MAX_PRIORITY}"
            )
        if envelope.message_id:
            _check_size(index, "message_id", envelope.message_id, MAX_MESSAGE_ID_BYTES)
            if envelope.count > 1:
                raise InvalidMessageError(
                    index, "its group of several has a message_id", "put it into the messages"
                )
        if envelope.first_sequence + envelope.count - 1 > MAX_NUMBER:
            raise InvalidMessageError(
                index, "its sequence passes the greatest number", "begin a new epoch"
            )


def count_messages(messages: Sequence[bytes], groups: Sequence[bytes]) -> int:
    """Returns how many messages a batch has; a group that does not decode counts as one."""
    return len(messages) + sum(map(_count_group, groups))


def _count_group(encoded: bytes) -> int:
    try:
        return max(1, len(split_block(frame_pb2.GroupFrame.FromString(encoded).block)))
    except DecodeError:
        return 1


def _follows(first: Envelope, envelope: Envelope, count: int) -> bool:
    """Whether a message goes on with the group that ``first`` began ``count`` messages ago."""
    sequence = first.first_sequence and first.first_sequence + count
    return (
        not (first.message_id or envelope.message_id)
        and envelope.first_sequence == sequence
        and envelope.topic == first.topic
        and envelope.message_type == first.message_type
        and envelope.event_type == first.event_type
        and envelope.priority == first.priority
        and envelope.ttl_ms == first.ttl_ms
        and envelope.source_epoch == first.source_epoch
        and envelope.correlation == first.correlation
    )


def _close(first: Envelope, frames: list[bytes]) -> Group:
    return make_group(first.counting(len(frames)), frames)


def _check_sizes(first_index: int, frames: Sequence[bytes]) -> None:
    sizes = list(map(len, frames))
    if sizes and max(sizes) > MAX_MESSAGE_BYTES:
        largest = max(sizes)
        raise MessageTooLargeError(first_index + sizes.index(largest), largest, MAX_MESSAGE_BYTES)


def _require_bytes(size_bytes: int) -> None:
    if size_bytes > MAX_BATCH_BYTES:
        raise BatchTooLargeError(size_bytes, MAX_BATCH_BYTES, "bytes")


def _check_headers(index: int, metadata: eventbus_pb2.MessageMetadata) -> None:
    if len(metadata.headers) > MAX_HEADERS:
        raise InvalidMessageError(
            index, f"it has {len(metadata.headers)} headers", f"use at most {MAX_HEADERS}"
        )
    for key, value in metadata.headers.items():
        _check_size(index, "a header key", key, MAX_HEADER_KEY_BYTES)
        _check_size(index, "a header value", value, MAX_HEADER_VALUE_BYTES)


def _check_size(index: int, what: str, text: str, limit_bytes: int) -> None:
    size_bytes = len(text.encode())
    if size_bytes > limit_bytes:
        raise InvalidMessageError(
            index, f"{what} has {size_bytes} bytes", f"use at most {limit_bytes}"
        )


def _unknown(index: int, field: str, number: int, enum: str) -> InvalidRequestError:
    return InvalidMessageError(
        index, f"{field} {number} is unknown", f"use a value of {enum}", ErrorReason.ENUM_UNKNOWN
    )
