"""Requests and results of analyses: what the contract allows, field by field."""

import pytest

from collector_core import AnalysisFinding, AnalysisRequest, AnalysisTarget, TriggerPriority
from collector_core.analysis_message import to_request, to_result
from daemoneye.common.v1 import analysis_pb2, common_pb2
from daemoneye.ipc.v1 import analysis_pb2 as pb
from daemoneye_mesh.errors import ErrorReason, InvalidRequestError

HASH = analysis_pb2.ANALYSIS_TYPE_BINARY_HASH
CUSTOM = analysis_pb2.ANALYSIS_TYPE_CUSTOM


def message_of(**changes):
    fields = {"trigger_id": "t1", "analysis_type": HASH, "target": target_of(path="/x")}
    return pb.AnalyzeRequest(**{**fields, **changes})


def target_of(**fields):
    return analysis_pb2.AnalysisTarget(**fields)


def test_a_request_is_taken_over_with_all_it_says():
    message = message_of(
        analysis_type=CUSTOM,
        custom_type="strings",
        priority=9,
        target=target_of(boot_id="b", pid=7, start_ticks=0, path="/x"),
        arguments={"a": "1"},
    )
    assert to_request(message) == AnalysisRequest(
        trigger_id="t1",
        analysis_type=CUSTOM,
        target=AnalysisTarget("b", 7, 0, "/x"),
        priority=TriggerPriority.HIGH,
        custom_type="strings",
        arguments={"a": "1"},
    )


@pytest.mark.parametrize(
    ("number", "priority"),
    [(0, "LOW"), (4, "LOW"), (5, "NORMAL"), (10, "CRITICAL"), (99, "CRITICAL")],
)
def test_other_priorities_count_as_the_next_lower(number, priority):
    assert to_request(message_of(priority=number)).priority is TriggerPriority[priority]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"trigger_id": ""}, "trigger_id"),
        ({"trigger_id": "ä" * 65}, "trigger_id"),
        ({"analysis_type": 0}, "analysis_type"),
        ({"custom_type": "x"}, "custom_type"),
        ({"analysis_type": CUSTOM}, "custom_type"),
        ({"analysis_type": CUSTOM, "custom_type": "x" * 65}, "custom_type"),
        ({"target": target_of()}, "target"),
        ({"target": target_of(path="")}, "target.path"),
        ({"target": target_of(path="x")}, "target.path"),
        ({"target": target_of(path="/x\0")}, "target.path"),
        ({"target": target_of(path="/" + "x" * 4096)}, "target.path"),
        ({"target": target_of(boot_id="b", path="/x")}, "target.pid"),
        ({"target": target_of(start_ticks=1, path="/x")}, "target.pid"),
        ({"target": target_of(boot_id="b", pid=0, start_ticks=1)}, "target.pid"),
        ({"target": target_of(boot_id="b", pid=1 << 31, start_ticks=1)}, "target.pid"),
        ({"target": target_of(boot_id="b", pid=7)}, "target.start_ticks"),
        ({"target": target_of(pid=7, start_ticks=1)}, "target.boot_id"),
        ({"target": target_of(boot_id="b" * 65, pid=7, start_ticks=1)}, "target.boot_id"),
        ({"arguments": {str(n): "" for n in range(101)}}, "arguments"),
        ({"arguments": {"a": "x" * 65536}}, "arguments"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_by_field(changes, field):
    with pytest.raises(InvalidRequestError) as caught:
        to_request(message_of(**changes))
    assert caught.value.metadata["field"] == field
    assert caught.value.message.startswith(field)
    assert caught.value.reason is ErrorReason.REQUEST_INVALID


def test_an_unknown_analysis_is_an_unknown_enum():
    message = pb.AnalyzeRequest.FromString(message_of().SerializeToString() + b"\x10\x63")
    with pytest.raises(InvalidRequestError, match="analysis_type 99") as caught:
        to_request(message)
    assert caught.value.reason is ErrorReason.ENUM_UNKNOWN


def test_a_finding_is_taken_over_with_all_it_says():
    one = common_pb2.HashResult(hash_value="ab", algorithm="sha256", success=True)
    found = AnalysisFinding(hashes=[one], findings={"a": "1"}, confidence=0.5)
    assert to_result(found) == pb.AnalysisResult(hashes=[one], findings={"a": "1"}, confidence=0.5)


def test_the_largest_finding_fits():
    hashes = [common_pb2.HashResult(file_path="/" + "x" * 4095)] * 100
    findings = {f"{n:03}": "x" * 652 for n in range(100)}
    assert len(to_result(AnalysisFinding(hashes, findings)).hashes) == 100


@pytest.mark.parametrize(
    "found",
    [
        AnalysisFinding(findings={str(n): "" for n in range(101)}),
        AnalysisFinding(findings={"a": "x" * 65536}),
        AnalysisFinding(hashes=[common_pb2.HashResult()] * 101),
        AnalysisFinding(hashes=[common_pb2.HashResult(file_path="x" * (1 << 20))]),
        AnalysisFinding(confidence=1.01),
        AnalysisFinding(confidence=-0.1),
        AnalysisFinding(confidence=float("nan")),
    ],
    ids=["entries", "bytes", "hashes", "all", "above", "below", "nan"],
)
def test_a_finding_beyond_the_bounds_is_refused(found):
    with pytest.raises(ValueError, match=r"more than|confidence"):
        to_result(found)
