"""Events as subjects, requests as events, and what no request may be."""

from dataclasses import replace

import pytest

from collector_core import AnalysisTarget, EventClass, TriggerPriority
from collector_core.trigger import (
    AnalysisKind,
    MissingExecutable,
    Subject,
    TriggerLimits,
    TriggerSpec,
)
from collector_core.trigger.message import to_event, to_subject
from collector_core.trigger.request import TriggerRequest, check_request
from daemoneye.common.v1 import analysis_pb2, common_pb2
from daemoneye.eventbus.v1 import event_data_pb2 as pb
from daemoneye_mesh.errors import InvalidConfigError, InvalidRequestError

SPEC = TriggerSpec(
    id="deleted",
    description="A process runs a file that is gone.",
    condition=MissingExecutable(),
    analysis_type=AnalysisKind.BINARY_HASH,
    target_collector="procmond",
    priority=TriggerPriority.HIGH,
    arguments={"depth": "2"},
)
SUBJECT = Subject(kind="start", pid=7, path="/x", boot_id="boot", start_ticks=0)


def full_event():
    data = pb.ProcessEventData(
        process=common_pb2.ProcessRecord(
            pid=7,
            ppid=0,
            name="nc",
            executable_path="/tmp/nc",
            command_line=["nc", "a b"],
            cpu_usage=1.5,
            memory_usage=10,
            executable_hash="AB",
            hash_algorithm="sha256",
            user_id="33",
            user_name="www-data",
            file_exists=True,
            on_disk_mismatch=True,
            boot_id="boot",
            start_ticks=99,
        ),
        subtype=pb.PROCESS_EVENT_SUBTYPE_PROCESS_EXECUTED,
    )
    data.tree_context.parent_process.name = "bash"
    data.tree_context.parent_process.executable_path = "/bin/bash"
    return data


def test_a_subject_has_what_the_event_says():
    assert to_subject(full_event(), has_cmdline=True) == Subject(
        kind="exec",
        name="nc",
        path="/tmp/nc",
        cmdline="nc 'a b'",
        pid=7,
        ppid=0,
        user="www-data",
        cpu_percent=1.5,
        memory_bytes=10,
        sha256="ab",
        file_exists=True,
        parent_name="bash",
        parent_path="/bin/bash",
        boot_id="boot",
        start_ticks=99,
        has_on_disk_mismatch=True,
    )


def test_arguments_are_quoted_only_when_somebody_looks():
    assert to_subject(full_event(), has_cmdline=False).cmdline is None


def test_what_an_event_does_not_say_is_unknown():
    data = pb.ProcessEventData(process=common_pb2.ProcessRecord(pid=7, name="kthreadd"), subtype=77)
    assert to_subject(data, has_cmdline=True) == Subject(pid=7, name="kthreadd", cmdline="")


def test_arguments_that_could_not_be_read_are_unknown():
    data = full_event()
    data.process.missing_fields.append("command_line")
    assert to_subject(data, has_cmdline=True).cmdline is None


def test_a_digest_of_another_algorithm_is_no_sha256():
    data = full_event()
    data.process.hash_algorithm = "blake3"
    assert to_subject(data, has_cmdline=False).sha256 is None


def test_a_user_without_a_name_is_a_number():
    data = full_event()
    data.process.ClearField("user_name")
    assert to_subject(data, has_cmdline=False).user == "33"


@pytest.mark.parametrize(("in_record", "measured", "expected"), [(None, 3.0, 3.0), (2.0, 3.0, 2.0)])
def test_cpu_use_is_taken_from_where_it_stands(in_record, measured, expected):
    data = full_event()
    data.process.ClearField("cpu_usage")
    if in_record is not None:
        data.process.cpu_usage = in_record
    data.performance.cpu_percent = measured
    assert to_subject(data, has_cmdline=False).cpu_percent == expected


def test_cpu_use_that_is_no_number_is_unknown():
    data = full_event()
    data.process.cpu_usage = float("nan")
    assert to_subject(data, has_cmdline=False).cpu_percent is None


def test_a_request_becomes_the_event_of_the_contract():
    request = TriggerRequest.of(SPEC, SUBJECT, "events.process.trigger", 123)
    event = to_event(request)
    assert (event.topic, event.time_ns) == ("events.process.trigger", 123)
    assert event.event_class is EventClass.LIFECYCLE
    assert event.data == pb.TriggerEventData(
        trigger_id=request.trigger_id,
        target_collector="procmond",
        priority=8,
        trigger_reason="A process runs a file that is gone.",
        trigger_metadata={"depth": "2"},
        analysis_type=analysis_pb2.ANALYSIS_TYPE_BINARY_HASH,
        target=analysis_pb2.AnalysisTarget(boot_id="boot", pid=7, start_ticks=0, path="/x"),
    )


def test_two_requests_have_two_ids_that_begin_with_the_trigger():
    first, second = (TriggerRequest.of(SPEC, SUBJECT, "t", 1).trigger_id for _ in range(2))
    assert first != second
    assert first.startswith("deleted-")
    assert second.startswith("deleted-")


@pytest.mark.parametrize(
    "changes", [{"kind": "stop"}, {"boot_id": ""}, {"start_ticks": None}], ids=str
)
def test_a_process_that_cannot_be_found_again_is_no_target_but_its_file_is(changes):
    request = TriggerRequest.of(SPEC, replace(SUBJECT, **changes), "t", 1)
    assert request.target == AnalysisTarget(path="/x")


def test_a_process_without_a_path_is_a_target():
    request = TriggerRequest.of(SPEC, replace(SUBJECT, path=None), "t", 1)
    assert request.target == AnalysisTarget("boot", 7, 0, None)
    assert not to_event(request).data.target.HasField("path")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"trigger_id": ""}, "trigger_id"),
        ({"trigger_id": "x" * 129}, "trigger_id"),
        ({"target_collector": ""}, "target_collector"),
        ({"target": AnalysisTarget()}, "target"),
        ({"target": AnalysisTarget(path="")}, "target.path"),
        ({"target": AnalysisTarget(path="/" + "ä" * 2048)}, "target.path"),
        ({"target": AnalysisTarget(pid=7)}, "target.pid"),
        ({"target": AnalysisTarget("boot", 7)}, "target.pid"),
        ({"arguments": {str(n): "" for n in range(101)}}, "arguments"),
        ({"arguments": {"a": "x" * 65536}}, "arguments"),
    ],
)
def test_a_request_that_nobody_could_answer_is_refused(changes, field):
    request = replace(TriggerRequest.of(SPEC, SUBJECT, "t", 1), **changes)
    with pytest.raises(InvalidRequestError) as caught:
        check_request(request)
    assert caught.value.metadata["field"] == field


@pytest.mark.parametrize(
    "changes",
    [
        {"per_minute": 0},
        {"dedup_s": -1},
        {"dedup_s": float("inf")},
        {"max_pending": 0},
        {"max_remembered": 0},
    ],
    ids=str,
)
def test_limits_out_of_range_are_refused(changes):
    with pytest.raises(InvalidConfigError, match="must be at least"):
        TriggerLimits(**changes)
