"""A message that an operator publishes, made of options or of proto JSON.

Pure. Invariant: what is made here has a topic, a publisher and exactly one payload that goes with its
type (MUST-ENV-01, MUST-ENV-02), and stays within the bounds of the contract.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format

from daemoneye.eventbus.v1 import eventbus_pb2 as pb
from daemoneye_cli.errors import UsageError
from daemoneye_mesh.errors import InvalidRequestError

__all__ = ["OPERATIONS", "TYPES", "Draft", "make_message", "read_message"]

MAX_ENTRIES = 64
MAX_KEY_BYTES = 128
MAX_VALUE_BYTES = 1024

TYPES: Mapping[str, tuple[int, int | None]] = {
    "control": (pb.MESSAGE_TYPE_CONTROL_MESSAGE, None),
    "config-update": (pb.MESSAGE_TYPE_CONFIG_UPDATE, pb.CONTROL_OPERATION_UPDATE_CONFIG),
    "shutdown": (pb.MESSAGE_TYPE_SHUTDOWN, pb.CONTROL_OPERATION_GRACEFUL_SHUTDOWN),
}
"""Message type by the name of the option, and the operation that belongs to it."""

OPERATIONS: Mapping[str, int] = {
    name.removeprefix("CONTROL_OPERATION_").lower().replace("_", "-"): number
    for name, number in pb.ControlOperation.items()
}

_TYPES_OF_PAYLOAD: Mapping[str, tuple[int, ...]] = {
    "collection_event": (pb.MESSAGE_TYPE_COLLECTION_EVENT,),
    "rpc_request": (pb.MESSAGE_TYPE_RPC_REQUEST,),
    "rpc_response": (pb.MESSAGE_TYPE_RPC_RESPONSE,),
    "control_message": (
        pb.MESSAGE_TYPE_CONTROL_MESSAGE,
        pb.MESSAGE_TYPE_CONFIG_UPDATE,
        pb.MESSAGE_TYPE_SHUTDOWN,
    ),
    "heartbeat": (pb.MESSAGE_TYPE_HEARTBEAT,),
    "alert": (pb.MESSAGE_TYPE_ALERT,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What the options say."""

    topic: str
    source_id: str
    time_ns: int
    type: str = "control"
    operation: str = ""
    """Empty takes that of the type; ``status-report`` for type control."""
    target: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    ttl_ms: int = 0


def make_message(draft: Draft) -> pb.EventBusMessage:
    """Returns a control message.

    Raises:
        UsageError: type and operation do not go together, or there are too many or too long entries.
    """
    message_type, operation = TYPES[draft.type]
    if operation is not None and draft.operation:
        raise UsageError(
            f"--type {draft.type} has an operation of its own; leave --operation out",
            type=draft.type,
        )
    _require_fit("--param", draft.parameters)
    _require_fit("--header", draft.headers)
    if operation is None:
        operation = OPERATIONS[draft.operation or "status-report"]
    message = pb.EventBusMessage()
    message.metadata.headers.update(draft.headers)
    message.metadata.message_type = message_type  # type: ignore[assignment] # a number of the enum
    message.metadata.priority = draft.priority
    message.metadata.ttl_ms = draft.ttl_ms
    message.control_message.operation = operation  # type: ignore[assignment] # likewise
    message.control_message.target = draft.target
    message.control_message.parameters.update(draft.parameters)
    return _address(message, draft)


def read_message(document: Any, draft: Draft) -> pb.EventBusMessage:
    """Returns a whole message given as proto JSON; what its metadata leaves out is filled in.

    Args:
        document: the JSON value.
        draft: topic, publisher and time.

    Raises:
        InvalidRequestError: it is no EventBusMessage, or its parts do not go together.
    """
    message = pb.EventBusMessage()
    try:
        if not isinstance(document, dict):
            raise TypeError("it is no JSON object")
        json_format.ParseDict(document, message)
    except (json_format.ParseError, AttributeError, TypeError, ValueError) as error:
        why = str(error)[:300]
        raise InvalidRequestError(
            f"the message is no EventBusMessage: {why}; 'daemoneye inspect eventbus describe"
            " daemoneye.eventbus.v1.EventBusMessage' shows its fields",
            problem=why,
        ) from None
    _require_same("topic", message.metadata.topic, draft.topic)
    _require_same("source_id", message.metadata.source_id, draft.source_id)
    _settle_type(message)
    return _address(message, draft)


def _address(message: pb.EventBusMessage, draft: Draft) -> pb.EventBusMessage:
    metadata = message.metadata
    metadata.topic = draft.topic
    metadata.source_id = draft.source_id
    metadata.timestamp = metadata.timestamp or draft.time_ns
    metadata.message_id = metadata.message_id or uuid.uuid4().hex
    return message


def _settle_type(message: pb.EventBusMessage) -> None:
    """Sets the message type where it was left out, and refuses one that does not fit."""
    payload = message.WhichOneof("payload")
    if payload is None:
        raise InvalidRequestError(
            f"the message has no payload; give it one of {', '.join(_TYPES_OF_PAYLOAD)}"
        )
    fitting = _TYPES_OF_PAYLOAD[payload]
    given = message.metadata.message_type
    if given in fitting:
        return
    if given != pb.MESSAGE_TYPE_COLLECTION_EVENT:  # the zero: as good as left out
        raise InvalidRequestError(
            f"message_type {given} does not go with the payload {payload}; leave message_type out",
            message_type=given,
            payload=payload,
        )
    message.metadata.message_type = fitting[0]  # type: ignore[assignment] # a number of the enum


def _require_same(name: str, given: str, wanted: str) -> None:
    if given and given != wanted:
        raise InvalidRequestError(
            f"the message says {name} {given[:80]!a}, and it is to be {wanted!a}; correct it or"
            " leave it out",
            field=name,
            value=given[:80],
            wanted=wanted,
        )


def _require_fit(option: str, entries: Mapping[str, str]) -> None:
    if len(entries) > MAX_ENTRIES:
        raise UsageError(
            f"{option} is given {len(entries)} times, and {MAX_ENTRIES} is the most; give fewer",
            option=option,
            count=len(entries),
            limit=MAX_ENTRIES,
        )
    for key, value in entries.items():
        if len(key.encode()) > MAX_KEY_BYTES or len(value.encode()) > MAX_VALUE_BYTES:
            raise UsageError(
                f"{option} {key[:40]!a} is too long; a key has at most {MAX_KEY_BYTES} bytes, a"
                f" value {MAX_VALUE_BYTES}",
                option=option,
                key=key[:40],
                key_limit=MAX_KEY_BYTES,
                value_limit=MAX_VALUE_BYTES,
            )
