"""Descriptors as the proto source a person would write; comments are not part of reflection."""

from collections.abc import Iterable

from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FieldDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)

__all__ = ["describe_enum", "describe_message", "describe_method", "describe_service", "signature"]

_SCALARS = {
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_FIXED64: "fixed64",
    FieldDescriptor.TYPE_FIXED32: "fixed32",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_SFIXED32: "sfixed32",
    FieldDescriptor.TYPE_SFIXED64: "sfixed64",
    FieldDescriptor.TYPE_SINT32: "sint32",
    FieldDescriptor.TYPE_SINT64: "sint64",
}


def describe_service(service: ServiceDescriptor) -> str:
    """Returns ``service X { rpc … }``."""
    methods = [f"  {signature(method)};" for method in service.methods]
    return _block(f"// {service.full_name}\nservice {service.name}", methods)


def describe_method(method: MethodDescriptor) -> str:
    """Returns the method with its request and its response."""
    parts = [
        f"// {method.full_name}\n{signature(method)};",
        describe_message(method.input_type),
    ]
    if method.output_type.full_name != method.input_type.full_name:
        parts.append(describe_message(method.output_type))
    return "\n\n".join(parts)


def signature(method: MethodDescriptor) -> str:
    """Returns ``rpc X(Request) returns (stream Response)``."""
    asked = _stream(method.client_streaming) + method.input_type.full_name
    answered = _stream(method.server_streaming) + method.output_type.full_name
    return f"rpc {method.name}({asked}) returns ({answered})"


def describe_message(message: Descriptor) -> str:
    """Returns ``message X { … }`` with what is nested in it."""
    return f"// {message.full_name}\n" + "\n".join(_message_lines(message))


def describe_enum(enum: EnumDescriptor) -> str:
    """Returns ``enum X { … }``."""
    return f"// {enum.full_name}\n" + "\n".join(_enum_lines(enum))


def _message_lines(message: Descriptor) -> list[str]:
    lines: list[str] = []
    for enum in message.enum_types:
        lines += _indent(_enum_lines(enum))
    for nested in message.nested_types:
        if not nested.GetOptions().map_entry:
            lines += _indent(_message_lines(nested))
    done: set[str] = set()
    for field in message.fields:
        oneof = field.containing_oneof
        if oneof is None or oneof.name.startswith("_"):
            lines.append(f"  {_field(field)}")
        elif oneof.name not in done:
            done.add(oneof.name)
            inside = [f"  {_field(one)}" for one in oneof.fields]
            lines += _indent(_block(f"oneof {oneof.name}", inside).split("\n"))
    return _block(f"message {message.name}", lines).split("\n")


def _enum_lines(enum: EnumDescriptor) -> list[str]:
    values = [f"  {value.name} = {value.number};" for value in enum.values]
    return _block(f"enum {enum.name}", values).split("\n")


def _field(field: FieldDescriptor) -> str:
    return f"{_label(field)}{_type(field)} {field.name} = {field.number};"


def _label(field: FieldDescriptor) -> str:
    if field.is_repeated:
        return "" if _map_entry(field) is not None else "repeated "
    oneof = field.containing_oneof
    return "optional " if oneof is not None and oneof.name.startswith("_") else ""


def _type(field: FieldDescriptor) -> str:
    if (entry := _map_entry(field)) is not None:
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        return f"map<{_type(key)}, {_type(value)}>"
    if field.message_type is not None:
        return field.message_type.full_name
    if field.enum_type is not None:
        return field.enum_type.full_name
    return _SCALARS[field.type]


def _map_entry(field: FieldDescriptor) -> Descriptor | None:
    message = field.message_type
    return message if message is not None and message.GetOptions().map_entry else None


def _stream(is_streaming: bool) -> str:
    return "stream " if is_streaming else ""


def _block(head: str, lines: Iterable[str]) -> str:
    body = "\n".join(lines)
    return f"{head} {{\n{body}\n}}" if body else f"{head} {{}}"


def _indent(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]
