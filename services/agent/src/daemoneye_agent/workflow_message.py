"""Stored requests as calls to collectors, and their answers as records; checked against the contract.

Invariant: nothing that is against the contract is passed on or kept, whoever wrote it.
"""

import json
import re
from collections.abc import Iterable

from google.protobuf.json_format import Parse, ParseError

from collector_core.analysis import AnalysisErrorKind, TriggerPriority
from collector_core.analysis_message import to_request
from daemoneye.common.v1 import analysis_pb2, common_pb2
from daemoneye.eventbus.v1 import event_data_pb2
from daemoneye.ipc.v1 import analysis_pb2 as pb
from daemoneye.ipc.v1 import ipc_pb2
from daemoneye_agent.workflow_queue import MAX_ACTIVE, UNKNOWN_LIMIT, Offer
from daemoneye_agent.workflow_record import Asked, Cause, Outcome, StoredTrigger, Verdict
from daemoneye_mesh.errors import InvalidRequestError

__all__ = ["read_trigger", "to_offer", "to_verdict"]

MAX_FINDINGS = 100
MAX_FINDINGS_BYTES = 64 << 10
_MAX_ALGORITHM_CHARS = 64
_MAX_DIGEST_CHARS = 1_024
_MAX_INTEGER = 2**63 - 1
_COLLECTOR_ID = re.compile(r"[a-z0-9_-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TYPE_PREFIX = "ANALYSIS_TYPE_"


def read_trigger(stored: StoredTrigger) -> tuple[Asked, pb.AnalyzeRequest | Cause]:
    """Returns who asks for what, and what to send, or why nothing may be sent."""
    nobody = Asked(event_id=stored.event_id, source_id=stored.source_id, trigger_id="")
    if stored.data is None:
        return nobody, Cause.REQUEST_TOO_LARGE
    try:
        data = Parse(stored.data, event_data_pb2.TriggerEventData(), ignore_unknown_fields=True)
    except ParseError:
        return nobody, Cause.REQUEST_INVALID
    asked = _to_asked(stored, data)
    if data.trigger_payload:
        return asked, Cause.PAYLOAD_UNSUPPORTED  # AnalyzeRequest has no place for it
    request = _to_request(data)
    try:
        to_request(request)
    except InvalidRequestError:
        return asked, Cause.REQUEST_INVALID
    is_named = _COLLECTOR_ID.fullmatch(data.target_collector)
    return asked, request if is_named else Cause.REQUEST_INVALID


def to_offer(answer: ipc_pb2.CapabilityResponse) -> Offer:
    """Returns what a collector offers."""
    limit = answer.max_concurrent_analyses or UNKNOWN_LIMIT
    return Offer(frozenset(answer.supported_analyses), min(limit, MAX_ACTIVE))


def to_verdict(request: pb.AnalyzeRequest, answer: pb.AnalyzeResponse) -> Verdict:
    """Returns what became of a request that a collector answered."""
    outcome = answer.WhichOneof("outcome")
    if outcome is None or answer.trigger_id != request.trigger_id:
        return Verdict(Outcome.FAILED, Cause.ANSWER_INVALID)
    if outcome == "failure":
        return Verdict(Outcome.FAILED, _kind_of(answer.failure.kind))
    return _to_done(answer.result) or Verdict(Outcome.FAILED, Cause.ANSWER_INVALID)


def _to_asked(stored: StoredTrigger, data: event_data_pb2.TriggerEventData) -> Asked:
    target = data.target
    return Asked(
        event_id=stored.event_id,
        source_id=stored.source_id,
        trigger_id=data.trigger_id[:128],
        target_collector=data.target_collector[:64],
        analysis_type=_name_of(data.analysis_type),
        custom_type=data.custom_type[:64],
        priority=TriggerPriority.of(data.priority).name.lower(),
        requested_ns=stored.time_ns,
        boot_id=target.boot_id[:64] or None,
        pid=target.pid if target.HasField("pid") else None,
        start_ticks=min(target.start_ticks, _MAX_INTEGER)
        if target.HasField("start_ticks")
        else None,
        path=target.path[:4096] if target.HasField("path") else None,
    )


def _to_request(data: event_data_pb2.TriggerEventData) -> pb.AnalyzeRequest:
    return pb.AnalyzeRequest(
        trigger_id=data.trigger_id,
        analysis_type=data.analysis_type,
        custom_type=data.custom_type,
        priority=data.priority,
        target=data.target,
        arguments=data.trigger_metadata,
    )


def _name_of(number: int) -> str:
    if number not in analysis_pb2.AnalysisType.values():
        return f"unknown_{number}"
    name = analysis_pb2.AnalysisType.Name(analysis_pb2.AnalysisType.ValueType(number))
    return name.removeprefix(_TYPE_PREFIX).lower()


def _kind_of(number: int) -> str:
    if number not in set(AnalysisErrorKind):
        number = AnalysisErrorKind.INTERNAL
    return AnalysisErrorKind(number).name.lower()


def _to_done(result: pb.AnalysisResult) -> Verdict | None:
    """Returns the verdict of a result; None when it is against the contract."""
    pairs = result.findings.items()
    if len(result.hashes) > MAX_FINDINGS or len(pairs) > MAX_FINDINGS:
        return None
    if sum(len(key.encode()) + len(value.encode()) for key, value in pairs) > MAX_FINDINGS_BYTES:
        return None
    digests = _read_digests(result.hashes)
    if digests is None or not 0.0 <= result.confidence <= 1.0:
        return None
    sha256, blake3 = digests.pop("sha256", None), digests.pop("blake3", None)
    if not all(_DIGEST.fullmatch(one) for one in (sha256, blake3) if one is not None):
        return None
    findings = json.dumps({**digests, **dict(pairs)}, ensure_ascii=False)
    return Verdict(Outcome.DONE, None, sha256, blake3, findings, result.confidence)


def _read_digests(hashes: Iterable[common_pb2.HashResult]) -> dict[str, str] | None:
    """The digests by algorithm, the first of each; None when one is beyond all bounds."""
    digests: dict[str, str] = {}
    for one in hashes:
        if len(one.algorithm) > _MAX_ALGORITHM_CHARS or len(one.hash_value) > _MAX_DIGEST_CHARS:
            return None
        if one.success:
            digests.setdefault(one.algorithm, one.hash_value)
    return digests
