"""Holds the generated contract against the inherited table, so that bytes of either side decode.

``wire_contract.json`` is the inherited contract: every message with its fields, every enum with its
numbers. What the table has must be in our descriptors unchanged; what we add is numbered from 1000.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from daemoneye.common.v1 import common_pb2
from daemoneye.eventbus.v1 import event_data_pb2, eventbus_pb2, rpc_pb2, subscription_pb2
from daemoneye.ipc.v1 import ipc_pb2

FIRST_ADDED_NUMBER = 1000
TABLE = json.loads(Path(__file__).with_name("wire_contract.json").read_text(encoding="utf-8"))
PACKAGES = {
    "common.proto": "daemoneye.common.v1",
    "ipc.proto": "daemoneye.ipc.v1",
    "eventbus.proto": "daemoneye.eventbus.v1",
}
# Named by the inherited contract and not defined in it; these are ours.
UNDEFINED_TYPES = ("RpcRequest", "RpcResponse", "HealthStatus")
GENERATED = (common_pb2, ipc_pb2, event_data_pb2, eventbus_pb2, rpc_pb2, subscription_pb2)

SCALAR_NAMES = {
    FieldDescriptorProto.TYPE_DOUBLE: "double",
    FieldDescriptorProto.TYPE_INT64: "int64",
    FieldDescriptorProto.TYPE_UINT64: "uint64",
    FieldDescriptorProto.TYPE_INT32: "int32",
    FieldDescriptorProto.TYPE_BOOL: "bool",
    FieldDescriptorProto.TYPE_STRING: "string",
    FieldDescriptorProto.TYPE_BYTES: "bytes",
    FieldDescriptorProto.TYPE_UINT32: "uint32",
}
SCALAR_TYPES = {name: number for number, name in SCALAR_NAMES.items()}
REPEATED = FieldDescriptorProto.LABEL_REPEATED

Row = dict[str, Any]


def _files() -> Iterator[FileDescriptorProto]:
    for module in GENERATED:
        yield FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)


MESSAGES = {
    f"{file.package}.{entry.name}": entry for file in _files() for entry in file.message_type
}
ENUMS = {f"{file.package}.{entry.name}": entry for file in _files() for entry in file.enum_type}


def _full_names() -> dict[str, str]:
    names = {name: f"{PACKAGES['eventbus.proto']}.{name}" for name in UNDEFINED_TYPES}
    for file, package in PACKAGES.items():
        names |= {name: f"{package}.{name}" for name in TABLE[file]["messages"]}
        names |= {name: f"{package}.{name}" for name in TABLE[file]["enums"]}
    return names


FULL_NAMES = _full_names()


def _cases(kind: str) -> list[Any]:
    return [
        pytest.param(FULL_NAMES[name], rows, id=name)
        for file in PACKAGES
        for name, rows in TABLE[file][kind].items()
    ]


def _type_name(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    """Names the type as the table does, with messages and enums by their full name."""
    if field.type in SCALAR_NAMES:
        return SCALAR_NAMES[field.type]
    for nested in message.nested_type:
        if field.type_name.endswith(f".{message.name}.{nested.name}") and nested.options.map_entry:
            key, value = nested.field
            return f"map<{_type_name(nested, key)}, {_type_name(nested, value)}>"
    return field.type_name.removeprefix(".")


def _row(message: DescriptorProto, field: FieldDescriptorProto) -> Row:
    type_name = _type_name(message, field)
    real_oneof = field.HasField("oneof_index") and not field.proto3_optional
    return {
        "number": field.number,
        "name": field.name,
        "type": type_name,
        "repeated": field.label == REPEATED and not type_name.startswith("map<"),
        "optional": field.proto3_optional,
        "oneof": message.oneof_decl[field.oneof_index].name if real_oneof else None,
    }


def _expected_row(row: Row) -> Row:
    defaults: Row = {"repeated": False, "optional": False, "oneof": None}
    return defaults | row | {"type": FULL_NAMES.get(row["type"], row["type"])}


def _value_prefix(enum_full_name: str) -> str:
    name = enum_full_name.rpartition(".")[2]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper() + "_"


def test_table_is_whole() -> None:
    messages = [len(TABLE[file]["messages"]) for file in PACKAGES]
    enums = [len(TABLE[file]["enums"]) for file in PACKAGES]
    fields = sum(len(rows) for file in PACKAGES for rows in TABLE[file]["messages"].values())
    assert (messages, enums, fields) == ([10, 6, 35], [1, 1, 10], 265)


@pytest.mark.parametrize(("full_name", "rows"), _cases("messages"))
def test_inherited_message_keeps_every_field(full_name: str, rows: list[Row]) -> None:
    message = MESSAGES[full_name]
    ours = [_row(message, field) for field in message.field if field.number < FIRST_ADDED_NUMBER]
    expected = [_expected_row(row) for row in rows]
    assert sorted(ours, key=lambda row: row["number"]) == expected


@pytest.mark.parametrize(("full_name", "rows"), _cases("messages"))
def test_field_added_to_inherited_message_is_numbered_from_1000(
    full_name: str, rows: list[Row]
) -> None:
    inherited = {row["name"] for row in rows}
    added = {f.name: f.number for f in MESSAGES[full_name].field if f.name not in inherited}
    assert {name: number for name, number in added.items() if number < FIRST_ADDED_NUMBER} == {}


@pytest.mark.parametrize(("full_name", "numbers"), _cases("enums"))
def test_inherited_enum_keeps_every_number(full_name: str, numbers: dict[str, int]) -> None:
    prefix = _value_prefix(full_name)
    ours = {value.name: value.number for value in ENUMS[full_name].value}
    expected = {prefix + name: number for name, number in numbers.items()}
    assert {name: n for name, n in ours.items() if n < FIRST_ADDED_NUMBER} == expected


@pytest.mark.parametrize("full_name", sorted(ENUMS))
def test_enum_values_carry_the_prefix_of_their_enum(full_name: str) -> None:
    names = [value.name for value in ENUMS[full_name].value]
    assert [name for name in names if not name.startswith(_value_prefix(full_name))] == []


@pytest.mark.parametrize("full_name", sorted(set(ENUMS) - set(FULL_NAMES.values())))
def test_enum_of_ours_has_an_unspecified_zero(full_name: str) -> None:
    zero = ENUMS[full_name].value[0]
    assert (zero.name, zero.number) == (
        _value_prefix(full_name) + "UNSPECIFIED",
        0,
    )


@pytest.mark.parametrize("name", UNDEFINED_TYPES)
def test_type_that_the_inherited_contract_left_undefined_is_defined(name: str) -> None:
    assert FULL_NAMES[name] in MESSAGES | ENUMS


# --- the same claim on bytes: a peer built from nothing but the table ------------------------------


def _inherited_field(row: Row) -> FieldDescriptorProto:
    field = FieldDescriptorProto(
        name=row["name"], number=row["number"], type=SCALAR_TYPES[row["type"]]
    )
    field.label = REPEATED if row.get("repeated") else FieldDescriptorProto.LABEL_OPTIONAL
    return field


def _inherited_process_record() -> type[Message]:
    message = DescriptorProto(name="ProcessRecord")
    for row in TABLE["common.proto"]["messages"]["ProcessRecord"]:
        field = message.field.add()
        field.CopyFrom(_inherited_field(row))
        if row.get("optional"):
            field.proto3_optional = True
            field.oneof_index = len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{field.name}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(  # a pool of its own: the name is the same as in ours
        FileDescriptorProto(
            name="inherited.proto", package="inherited", syntax="proto3", message_type=[message]
        )
    )
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inherited.ProcessRecord"))


InheritedProcessRecord = _inherited_process_record()
RECORD = MESSAGES["daemoneye.common.v1.ProcessRecord"]
SCALAR_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "double": st.floats(allow_nan=False),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "bool": st.booleans(),
    "string": st.text(max_size=40),
    "uint32": st.integers(0, 2**32 - 1),
}


def _field_values(field: FieldDescriptorProto) -> st.SearchStrategy[Any]:
    values = SCALAR_VALUES[SCALAR_NAMES[field.type]]
    return st.lists(values, max_size=4) if field.label == REPEATED else values


process_records = st.fixed_dictionaries(
    {}, optional={field.name: _field_values(field) for field in RECORD.field}
).map(lambda values: common_pb2.ProcessRecord(**values))


@given(process_records)
def test_process_record_survives_encoding(record: Message) -> None:
    decoded: Message = common_pb2.ProcessRecord.FromString(record.SerializeToString())
    assert decoded == record
    for field in RECORD.field:
        if field.proto3_optional:
            assert decoded.HasField(field.name) == record.HasField(field.name)


@given(process_records)
def test_process_record_passes_unchanged_through_an_inherited_peer(
    record: common_pb2.ProcessRecord,
) -> None:
    seen = InheritedProcessRecord.FromString(record.SerializeToString())
    for field in seen.DESCRIPTOR.fields:
        assert getattr(seen, field.name) == getattr(record, field.name)
    assert common_pb2.ProcessRecord.FromString(seen.SerializeToString()) == record


def test_process_record_tells_zero_from_absent() -> None:
    record = common_pb2.ProcessRecord.FromString(
        common_pb2.ProcessRecord(uid=0, cpu_usage=math.copysign(0, 1)).SerializeToString()
    )
    assert record.HasField("uid")
    assert record.HasField("cpu_usage")
    assert not record.HasField("euid")
    assert not record.HasField("memory_usage")
