"""Records and events of the wire become rows of the schema, each value in its own column."""

import json
import shlex
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye.common.v1 import common_pb2
from daemoneye.eventbus.v1 import event_data_pb2, eventbus_pb2
from daemoneye_agent.event import EVENT_INSERT_COLUMNS
from daemoneye_agent.process_row import KINDS, to_event_row, to_process_row
from daemoneye_agent.schema import TABLES, ColumnType
from daemoneye_mesh.errors import ErrorReason, InvalidRequestError

PROCESS_NAMES = TABLES["processes"].column_names
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
UINT32 = st.integers(0, 2**32 - 1)
UINT63 = st.integers(0, 2**63 - 1)
OPTIONAL = {
    "ppid": UINT32,
    "executable_path": TEXT,
    "memory_usage": UINT63,
    "start_time_ns": UINT63,
    "cwd": TEXT,
    "uid": UINT32,
    "euid": UINT32,
    "gid": UINT32,
    "egid": UINT32,
    "login_uid": UINT32,
    "user_name": TEXT,
    "session_id": UINT32,
    "process_group_id": UINT32,
    "tty": TEXT,
    "thread_count": UINT32,
    "fd_count": UINT32,
    "cpu_time_ms": UINT63,
    "cgroup_path": TEXT,
    "container_id": TEXT,
}
REQUIRED = {
    "pid": st.integers(1, 2**32 - 1),
    "boot_id": TEXT.filter(bool),
    "start_ticks": UINT63,
    "name": TEXT,
    "command_line": st.lists(TEXT, max_size=4),
    "state": st.sampled_from("RSDZTtIX"),
    "executable_deleted": st.booleans(),
    "executable_memfd": st.booleans(),
    "kernel_thread": st.booleans(),
}
COLUMN_OF = {
    "executable_path": "exe",
    "memory_usage": "memory_bytes",
    "cgroup_path": "cgroup",
    "executable_deleted": "exe_deleted",
    "executable_memfd": "exe_memfd",
}


def as_columns(record: common_pb2.ProcessRecord) -> dict[str, Any]:
    return dict(zip(PROCESS_NAMES, to_process_row(record), strict=True))


def event_columns(message: eventbus_pb2.EventBusMessage) -> dict[str, Any]:
    return dict(zip(EVENT_INSERT_COLUMNS, to_event_row(message), strict=True))


@given(fields=st.fixed_dictionaries(REQUIRED, optional=OPTIONAL))
def test_record_fills_every_column_from_its_own_field(fields: dict[str, Any]) -> None:
    row = as_columns(common_pb2.ProcessRecord(**fields))
    arguments = fields["command_line"]
    assert (row.pop("cmdline"), row.pop("argv")) == (
        shlex.join(arguments),
        json.dumps(arguments, ensure_ascii=False),
    )
    assert row.pop("missing_fields") == ""
    given_columns = {COLUMN_OF.get(name, name) for name in fields} - {"command_line"}
    assert row.keys() - given_columns == {name for name, value in row.items() if value is None}
    for name, value in fields.items():
        if name != "command_line":
            assert row[COLUMN_OF.get(name, name)] == value, name


@given(fields=st.fixed_dictionaries(REQUIRED, optional=OPTIONAL))
def test_record_holds_the_storage_classes_of_the_schema(fields: dict[str, Any]) -> None:
    expected = {ColumnType.INTEGER: int, ColumnType.TEXT: str}
    row = to_process_row(common_pb2.ProcessRecord(**fields))
    for column, value in zip(TABLES["processes"].columns, row, strict=True):
        assert value is None or type(value) is expected[column.type], column.name


def test_record_tells_a_zero_from_what_is_not_known() -> None:
    known = as_columns(common_pb2.ProcessRecord(pid=1, uid=0, ppid=0, fd_count=0))
    unknown = as_columns(common_pb2.ProcessRecord(pid=1))
    assert (known["uid"], known["ppid"], known["fd_count"]) == (0, 0, 0)
    assert (unknown["uid"], unknown["ppid"], unknown["fd_count"]) == (None, None, None)


def test_record_leaves_columns_empty_that_could_not_be_read() -> None:
    missing = ["command_line", "executable_deleted", "executable_memfd", "memory_usage"]
    row = as_columns(common_pb2.ProcessRecord(pid=1, missing_fields=missing))
    assert [row[name] for name in ("argv", "cmdline", "exe_deleted", "exe_memfd")] == [None] * 4
    names = row["missing_fields"].split(",")
    assert names == ["argv", "cmdline", "exe_deleted", "exe_memfd", "memory_bytes"]
    assert set(names) <= set(PROCESS_NAMES)


def test_record_without_arguments_is_not_one_with_unknown_arguments() -> None:
    row = as_columns(common_pb2.ProcessRecord(pid=2, kernel_thread=True))
    assert (row["argv"], row["cmdline"], row["kernel_thread"]) == ("[]", "", 1)


@pytest.mark.parametrize(
    ("subtype", "kind"),
    [
        ("CREATED", "start"),
        ("UPDATED", "modified"),
        ("TERMINATED", "stop"),
        ("SUSPENDED", "suspend"),
        ("RESUMED", "resume"),
        ("EXECUTED", "exec"),
        ("INVENTORIED", "inventory"),
    ],
)
def test_event_has_the_kind_of_its_subtype(
    make_message: Callable[..., eventbus_pb2.EventBusMessage], subtype: str, kind: str
) -> None:
    assert event_columns(make_message(1, subtype))["kind"] == kind


def test_every_subtype_of_the_contract_has_a_kind() -> None:
    assert KINDS.keys() == set(event_data_pb2.ProcessEventSubtype.values())


def test_event_has_its_key_time_parent_and_previous_image(
    make_message: Callable[..., eventbus_pb2.EventBusMessage],
) -> None:
    message = make_message(3, "EXECUTED", name="nc", executable_path="/usr/bin/nc")
    message.metadata.timestamp = 1_700_000_000_123_456_789
    event = message.collection_event.process_event
    event.changed_fields[:] = ["command_line", "executable_path", "uid"]
    event.exit_code = -9
    event.previous.name = "bash"
    event.previous.command_line[:] = ["bash", "-c", "a b"]
    event.tree_context.parent_process.name = "sshd"
    event.tree_context.parent_process.executable_path = "/usr/sbin/sshd"
    event.tree_context.parent_process.missing_fields[:] = ["command_line"]
    row = event_columns(message)
    assert (row["source_id"], row["source_epoch"], row["source_sequence"]) == ("procmond", 1, 3)
    assert (row["time_ns"], row["time"]) == (
        1_700_000_000_123_456_789,
        "2023-11-14T22:13:20.123456789Z",
    )
    assert (row["name"], row["exe"], row["exit_code"]) == ("nc", "/usr/bin/nc", -9)
    parent = [row[f"parent_{name}"] for name in ("name", "exe", "cmdline")]
    assert parent == ["sshd", "/usr/sbin/sshd", None]
    previous = [row[f"previous_{name}"] for name in ("name", "exe", "cmdline")]
    assert previous == ["bash", None, "bash -c 'a b'"]
    assert row["changed_fields"] == "argv,cmdline,exe,uid"


def test_event_without_relatives_leaves_their_columns_empty(
    make_message: Callable[..., eventbus_pb2.EventBusMessage],
) -> None:
    row = event_columns(make_message(1))
    empty = {name for name in row if name.startswith(("parent_", "previous_"))} | {"exit_code"}
    assert {row[name] for name in empty} == {None}


def test_event_of_an_unknown_subtype_is_refused(
    make_message: Callable[..., eventbus_pb2.EventBusMessage],
) -> None:
    message = make_message(1)
    message.collection_event.process_event.subtype = 77  # type: ignore[assignment]
    with pytest.raises(InvalidRequestError, match="77") as refused:
        to_event_row(message)
    assert refused.value.reason is ErrorReason.ENUM_UNKNOWN


@pytest.mark.parametrize("field", ["pid", "boot_id"])
def test_event_about_nobody_is_refused(
    make_message: Callable[..., eventbus_pb2.EventBusMessage], field: str
) -> None:
    message = make_message(1)
    message.collection_event.process_event.process.ClearField(field)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="which process"):
        to_event_row(message)


def test_message_that_is_no_process_event_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="no process event"):
        to_event_row(eventbus_pb2.EventBusMessage())
