"""What is stored becomes a call only when the contract allows it, and so does an answer a result."""

import json
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from daemoneye.common.v1 import analysis_pb2, common_pb2
from daemoneye.eventbus.v1 import event_data_pb2
from daemoneye.ipc.v1 import analysis_pb2 as pb
from daemoneye.ipc.v1 import ipc_pb2
from daemoneye_agent.workflow_message import read_trigger, to_offer, to_verdict
from daemoneye_agent.workflow_record import Asked, Cause, Outcome, StoredTrigger, Verdict

HASH = analysis_pb2.ANALYSIS_TYPE_BINARY_HASH
CUSTOM = analysis_pb2.ANALYSIS_TYPE_CUSTOM
PROCESS = analysis_pb2.AnalysisTarget(boot_id="b", pid=7, start_ticks=9, path="/bin/x")
SHA256, BLAKE3 = "a" * 64, "b" * 64


def store(**changes: Any) -> StoredTrigger:
    """A stored request as the event store keeps it."""
    fields: dict[str, Any] = {
        "trigger_id": "t1",
        "target_collector": "scanner",
        "priority": 8,
        "trigger_metadata": {"min_length": "8"},
        "analysis_type": HASH,
        "target": PROCESS,
    }
    data = event_data_pb2.TriggerEventData(**{**fields, **changes})
    text = json.dumps(MessageToDict(data, preserving_proto_field_name=True), ensure_ascii=False)
    return StoredTrigger(5, "procmond", 77, text)


def make_hash(algorithm: str, value: str, success: bool = True) -> common_pb2.HashResult:
    return common_pb2.HashResult(algorithm=algorithm, hash_value=value, success=success)


def judge(trigger_id: str = "t1", **outcome: Any) -> Verdict:
    request = pb.AnalyzeRequest(trigger_id="t1")
    return to_verdict(request, pb.AnalyzeResponse(trigger_id=trigger_id, **outcome))


def judge_result(**fields: Any) -> Verdict:
    return judge(result=pb.AnalysisResult(**{"confidence": 1.0, **fields}))


def test_a_stored_request_becomes_a_call_and_the_head_of_its_record() -> None:
    asked, request = read_trigger(store())
    assert request == pb.AnalyzeRequest(
        trigger_id="t1",
        analysis_type=HASH,
        priority=8,
        target=PROCESS,
        arguments={"min_length": "8"},
    )
    assert asked == Asked(
        event_id=5,
        source_id="procmond",
        trigger_id="t1",
        target_collector="scanner",
        analysis_type="binary_hash",
        priority="high",
        requested_ns=77,
        boot_id="b",
        pid=7,
        start_ticks=9,
        path="/bin/x",
    )


def test_a_request_about_a_file_alone_names_no_process() -> None:
    target = analysis_pb2.AnalysisTarget(path="/bin/x")
    asked, request = read_trigger(store(target=target, analysis_type=CUSTOM, custom_type="strings"))
    assert (asked.boot_id, asked.pid, asked.start_ticks) == (None, None, None)
    assert (asked.analysis_type, asked.custom_type) == ("custom", "strings")
    assert isinstance(request, pb.AnalyzeRequest)
    assert request.target == target


@pytest.mark.parametrize(
    ("number", "name"), [(0, "low"), (4, "low"), (5, "normal"), (9, "high"), (4_000, "critical")]
)
def test_any_priority_counts_as_the_next_lower_one(number: int, name: str) -> None:
    assert read_trigger(store(priority=number))[0].priority == name


@pytest.mark.parametrize(
    "changes",
    [
        {"trigger_id": ""},
        {"trigger_id": "t" * 129},
        {"target_collector": ""},
        {"target_collector": "../agent"},
        {"target_collector": "Scanner"},
        {"target_collector": "s" * 65},
        {"target_collector": "scanner\n"},
        {"analysis_type": 0},
        {"analysis_type": 77},
        {"custom_type": "strings"},
        {"analysis_type": CUSTOM},
        {"analysis_type": CUSTOM, "custom_type": "c" * 65},
        {"target": analysis_pb2.AnalysisTarget()},
        {"target": analysis_pb2.AnalysisTarget(pid=7)},
        {"target": analysis_pb2.AnalysisTarget(path="bin/x")},
        {"target": analysis_pb2.AnalysisTarget(path="/" * 4097)},
        {"trigger_metadata": {str(number): "" for number in range(101)}},
        {"trigger_metadata": {"a": "x" * (64 << 10)}},
    ],
    ids=str,
)
def test_a_request_that_the_contract_forbids_is_passed_on_to_nobody(
    changes: dict[str, Any],
) -> None:
    asked, cause = read_trigger(store(**changes))
    assert cause is Cause.REQUEST_INVALID
    assert len(asked.trigger_id) <= 128
    assert len(asked.target_collector) <= 64
    assert len(asked.path or "") <= 4096


def test_a_request_with_a_payload_is_refused_since_a_call_has_no_place_for_it() -> None:
    assert read_trigger(store(trigger_payload=b"x"))[1] is Cause.PAYLOAD_UNSUPPORTED


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (None, Cause.REQUEST_TOO_LARGE),
        ("[", Cause.REQUEST_INVALID),
        ("[]", Cause.REQUEST_INVALID),
        ('{"target": 5}', Cause.REQUEST_INVALID),
        ("{}", Cause.REQUEST_INVALID),
    ],
)
def test_what_is_no_request_is_refused(data: str | None, cause: Cause) -> None:
    asked, found = read_trigger(StoredTrigger(5, "procmond", 77, data))
    assert (asked.key, found) == (("procmond", ""), cause)


def test_a_start_beyond_the_store_is_cut_in_the_record_only() -> None:
    target = analysis_pb2.AnalysisTarget(boot_id="b", pid=7, start_ticks=2**64 - 1)
    asked, request = read_trigger(store(target=target))
    assert asked.start_ticks == 2**63 - 1
    assert isinstance(request, pb.AnalyzeRequest)
    assert request.target.start_ticks == 2**64 - 1


def test_an_offer_is_taken_over_and_bounded() -> None:
    answer = ipc_pb2.CapabilityResponse(supported_analyses=[HASH], max_concurrent_analyses=2)
    assert (to_offer(answer).analyses, to_offer(answer).limit) == (frozenset({HASH}), 2)
    assert to_offer(ipc_pb2.CapabilityResponse()).limit == 4
    assert to_offer(ipc_pb2.CapabilityResponse(max_concurrent_analyses=10**6)).limit == 16


def test_digests_and_findings_of_a_result_are_kept() -> None:
    verdict = judge_result(
        hashes=[
            make_hash("sha256", SHA256),
            make_hash("blake3", BLAKE3),
            make_hash("ssdeep", "3:a:b"),
            make_hash("md5", "", success=False),
            make_hash("sha256", "c" * 64),
        ],
        findings={"size_bytes": "12", "name": "ä"},
        confidence=0.5,
    )
    assert verdict.findings is not None
    assert json.loads(verdict.findings) == {"ssdeep": "3:a:b", "size_bytes": "12", "name": "ä"}
    assert "ä" in verdict.findings
    assert (verdict.outcome, verdict.error_kind) == (Outcome.DONE, None)
    assert (verdict.sha256, verdict.blake3, verdict.confidence) == (SHA256, BLAKE3, 0.5)


def test_a_result_that_found_nothing_is_done() -> None:
    assert judge_result() == Verdict(Outcome.DONE, None, None, None, "{}", 1.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"findings": {str(number): "" for number in range(101)}},
        {"findings": {"a": "x" * (64 << 10)}},
        {"hashes": [make_hash("ssdeep", "x") for _ in range(101)]},
        {"hashes": [make_hash("a" * 65, "x")]},
        {"hashes": [make_hash("ssdeep", "x" * 1_025)]},
        {"hashes": [make_hash("sha256", "A" * 64)]},
        {"hashes": [make_hash("blake3", "")]},
        {"confidence": 1.5},
        {"confidence": float("nan")},
    ],
)
def test_a_result_that_the_contract_forbids_is_not_kept(fields: dict[str, Any]) -> None:
    assert judge_result(**fields) == Verdict(Outcome.FAILED, Cause.ANSWER_INVALID)


def test_an_answer_to_something_else_or_without_an_outcome_is_not_kept() -> None:
    result = pb.AnalysisResult(confidence=1.0)
    assert judge("t2", result=result) == Verdict(Outcome.FAILED, Cause.ANSWER_INVALID)
    assert judge() == Verdict(Outcome.FAILED, Cause.ANSWER_INVALID)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(1, "unavailable"), (4, "path_not_allowed"), (0, "internal"), (99, "internal")],
)
def test_a_failure_keeps_its_kind(number: int, kind: str) -> None:
    failure = pb.AnalysisFailure(kind=number)  # type: ignore[arg-type]
    assert judge(failure=failure) == Verdict(Outcome.FAILED, kind)
