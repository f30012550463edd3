"""Messages of the contract as plain documents for JSON, made for reading by people and ``jq``.

Invariants: field names are those of the contract; a number stays a number; an enum is its lower-case
name without the prefix; bytes are hexadecimal; a field that can be absent is null when it is. So the
keys of a document depend on the message type alone, oneofs aside.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from daemoneye_cli.text import format_iso

__all__ = ["enum_name", "to_document"]

Document = dict[str, Any]

_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def to_document(message: Message) -> Document:
    """Returns a message as JSON types."""
    fields: Sequence[Any] = message.DESCRIPTOR.fields
    return {
        field.name: _field_value(message, field) for field in fields if _is_shown(message, field)
    }


def enum_name(descriptor: EnumDescriptor, number: int) -> str:
    """Returns the short name of an enum value, such as ``high``; its number when it is unknown."""
    return _names(descriptor).get(number, str(number))


@lru_cache(maxsize=256)
def _names(descriptor: EnumDescriptor) -> Mapping[int, str]:
    prefix = _WORD_START.sub("_", descriptor.name).upper() + "_"
    return {
        number: value.name.removeprefix(prefix).lower()
        for number, value in descriptor.values_by_number.items()
    }


def _is_shown(message: Message, field: FieldDescriptor) -> bool:
    oneof = field.containing_oneof
    if oneof is None or oneof.name.startswith("_"):  # proto3 optional is a oneof of its own
        return True
    return message.HasField(field.name)


def _field_value(message: Message, field: FieldDescriptor) -> Any:
    value = getattr(message, field.name)
    if (entry := _map_entry(field)) is not None:
        convert = _converter(entry.fields_by_name["value"])
        return {str(key): convert(value[key]) for key in value}
    convert = _converter(field)
    if field.is_repeated:
        return [convert(one) for one in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return convert(value)


def _map_entry(field: FieldDescriptor) -> Descriptor | None:
    message = field.message_type
    return message if message is not None and message.GetOptions().map_entry else None


def _converter(field: FieldDescriptor) -> Callable[[Any], Any]:
    if field.message_type is not None:
        return _message_value
    if field.enum_type is not None:
        descriptor = field.enum_type
        return lambda number: enum_name(descriptor, number)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return bytes.hex
    return _as_it_is


def _message_value(message: Message) -> Any:
    if isinstance(message, timestamp_pb2.Timestamp):
        return format_iso(message.ToNanoseconds())
    if isinstance(message, duration_pb2.Duration):
        return message.ToNanoseconds() / 1e9
    return to_document(message)


def _as_it_is(value: Any) -> Any:
    return value
