"""Records and events become messages that keep the rules of the contract."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from daemoneye.common.v1 import common_pb2
from daemoneye.eventbus.v1 import event_data_pb2
from daemoneye_agent.process_row import KINDS, to_process_row
from daemoneye_agent.schema import TABLES
from daemoneye_mesh.topic import validate_topic
from daemoneye_procmond.event import EventKind, ProcessEvent
from daemoneye_procmond.message import TOPICS, to_event_message, to_record_message
from daemoneye_procmond.record import ProcessRecord

FIELD_NAMES = set(common_pb2.ProcessRecord.DESCRIPTOR.fields_by_name)


@pytest.fixture
def record() -> ProcessRecord:
    return ProcessRecord(
        boot_id="6f0e54a1-0000-4000-8000-000000000001",
        pid=4242,
        start_ticks=77,
        start_time_ns=1_700_000_000_123_456_789,
        name="sh",
        ppid=41,
        session_id=40,
        process_group_id=39,
        tty="pts/3",
        state="R",
        thread_count=2,
        cpu_time_ms=314,
        memory_bytes=8192,
        kernel_thread=False,
        collected_at_ms=1_700_000_001_000,
        exe="/bin/sh",
        exe_deleted=True,
        exe_memfd=False,
        argv=("sh", "-c", "a b"),
        cwd="/srv",
        uid=1000,
        euid=1001,
        gid=100,
        egid=101,
        login_uid=1002,
        user_name="eve",
        fd_count=9,
        cgroup="/user.slice",
        container_id="c0ffee",
    )


def test_record_arrives_at_the_agent_column_by_column(record: ProcessRecord) -> None:
    names = TABLES["processes"].column_names
    row = dict(zip(names, to_process_row(to_record_message(record)), strict=True))
    assert (row.pop("cmdline"), row.pop("argv")) == ("sh -c 'a b'", '["sh", "-c", "a b"]')
    assert row.pop("missing_fields") == ""
    assert row == {name: getattr(record, name) for name in row}


def test_record_fills_the_inherited_fields_too(record: ProcessRecord) -> None:
    message = to_record_message(record)
    assert (message.start_time, message.user_id) == (1_700_000_000, "1000")
    assert (message.accessible, message.file_exists) == (True, False)
    assert message.collection_time == 1_700_000_001_000
    assert to_record_message(replace(record, exe_deleted=False)).file_exists


def test_record_leaves_out_what_is_not_known(record: ProcessRecord) -> None:
    optional = [field.name for field in fields(ProcessRecord) if field.default is None]
    bare = replace(
        record, **dict.fromkeys(optional), missing_fields=("exe", "exe_deleted", "argv", "cmdline")
    )
    message = to_record_message(bare)
    present = {descriptor.name for descriptor, _ in message.ListFields()}
    assert not present & {"executable_path", "cwd", "uid", "euid", "fd_count", "cgroup_path"}
    assert list(message.missing_fields) == [
        "command_line",
        "executable_deleted",
        "executable_path",
    ]
    assert not message.accessible


def test_lists_of_fields_hold_sorted_names_of_the_contract(record: ProcessRecord) -> None:
    columns = [*(field.name for field in fields(ProcessRecord)), "cmdline"]
    own = {"collected_at_ms", "missing_fields", "truncated_fields"}
    wanted = tuple(name for name in columns if name not in own)
    message = to_record_message(replace(record, missing_fields=wanted, truncated_fields=wanted))
    for names in (list(message.missing_fields), list(message.truncated_fields)):
        assert names == sorted(set(names))
        assert set(names) <= FIELD_NAMES


@pytest.mark.parametrize("kind", list(EventKind))
def test_every_kind_has_a_topic_and_comes_back_as_the_same_kind(
    record: ProcessRecord, kind: EventKind
) -> None:
    message = to_event_message(ProcessEvent(kind, record, 5))
    assert KINDS[message.subtype] == kind.value
    assert list(validate_topic(TOPICS[kind]))[:2] == ["events", "process"]


def test_change_carries_the_whole_record_from_before(record: ProcessRecord) -> None:
    before = replace(record, euid=1000, name="bash")
    event = ProcessEvent(EventKind.MODIFIED, record, 5, before, ("name", "euid"))
    message = to_event_message(event)
    assert message.previous == to_record_message(before)
    assert list(message.changed_fields) == ["euid", "name"]
    for name in message.changed_fields:
        assert getattr(message.previous, name) != getattr(message.process, name)


def test_event_carries_its_parent_and_how_it_ended(record: ProcessRecord) -> None:
    parent = replace(record, pid=41, name="sshd", missing_fields=("fd_count",))
    message = to_event_message(ProcessEvent(EventKind.STOP, record, 5, parent=parent, exit_code=-9))
    image = message.tree_context.parent_process
    assert (image.pid, image.name, image.executable_path) == (41, "sshd", "/bin/sh")
    assert list(image.missing_fields) == ["fd_count"]
    assert message.exit_code == -9
    assert message.observation == event_data_pb2.OBSERVATION_METHOD_SCAN


def test_event_leaves_out_relatives_and_ends_that_are_not_known(record: ProcessRecord) -> None:
    message = to_event_message(ProcessEvent(EventKind.START, record, 5))
    for name in ("previous", "tree_context", "exit_code"):
        assert not message.HasField(name)  # type: ignore[arg-type]


def test_exit_code_zero_is_not_an_unknown_one(record: ProcessRecord) -> None:
    event: Callable[..., Any] = ProcessEvent
    assert to_event_message(event(EventKind.STOP, record, 5, exit_code=0)).HasField("exit_code")
