import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from hypothesis import example, given
from hypothesis import strategies as st

from daemoneye.common.v1 import error_pb2
from daemoneye_mesh import errors
from daemoneye_mesh.errors import Code, DaemoneyeError, ErrorReason
from daemoneye_mesh.rpc_status import from_detail, from_rpc_error, to_detail, to_status

CLASSES = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, DaemoneyeError) and cls is not DaemoneyeError
]
CODES = {code.value[0]: code for code in grpc.StatusCode}


NEEDED = {errors.RateLimitedError: {"retry_after_s": 1.5}}
"""What an error cannot be raised without."""


def as_call_error(status):
    return grpc.aio.AioRpcError(
        status.code,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(*status.trailing_metadata),
        status.details,
    )


@pytest.mark.parametrize("cls", CLASSES)
def test_error_survives_the_way_over_a_status(cls):
    sent = cls("it failed; try again", what="x", count=3, **NEEDED.get(cls, {}))
    got = from_rpc_error(as_call_error(to_status(sent)))
    assert got.code is sent.code
    assert isinstance(sent, type(got))
    assert (got.message, got.reason, got.metadata) == (sent.message, sent.reason, sent.metadata)
    assert got.retry_after_s == sent.retry_after_s


@pytest.mark.parametrize("cls", CLASSES)
def test_error_survives_the_way_over_a_detail(cls):
    sent = cls("it failed; try again", what="x", **NEEDED.get(cls, {}))
    got = from_detail(error_pb2.ErrorDetail.FromString(to_detail(sent).SerializeToString()))
    assert got.code is sent.code
    assert (got.message, got.reason, got.metadata) == (sent.message, sent.reason, sent.metadata)
    assert got.retry_after_s == sent.retry_after_s


@pytest.mark.parametrize("reason", list(ErrorReason))
def test_every_reason_has_its_number(reason):
    assert from_detail(to_detail(errors.InternalError("x", reason=reason))).reason is reason


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.value[0] != 0])
def test_status_without_our_details_is_told_by_its_code(code):
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "gone")
    got = from_rpc_error(error)
    expected = code.value[0] if code.value[0] in set(Code) else Code.INTERNAL
    assert got.code == expected
    assert got.reason is type(got).default_reason
    assert got.message == "gone"


def test_status_without_text_gets_the_name_of_its_code():
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), ""
    )
    assert from_rpc_error(error).message == "unavailable"


def foreign_status(domain="daemoneye", reason="NOT_FOUND", code=5, status_code=5):
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(domain=domain, reason=reason))
    status = rpc_status.to_status(status_pb2.Status(code=code, message="m", details=[detail]))
    error = as_call_error(status)
    return grpc.aio.AioRpcError(
        CODES[status_code], error.initial_metadata(), error.trailing_metadata(), "m"
    )


def test_reason_of_another_domain_is_not_believed():
    got = from_rpc_error(foreign_status(domain="example.org", reason="RULE_INVALID"))
    assert got.reason is ErrorReason.NOT_FOUND


def test_reason_that_is_not_known_here_becomes_the_default_of_the_code():
    got = from_rpc_error(foreign_status(reason="FROM_THE_FUTURE"))
    assert got.reason is ErrorReason.NOT_FOUND


def test_details_that_contradict_the_status_are_ignored():
    got = from_rpc_error(foreign_status(reason="RULE_INVALID", status_code=13))
    assert (got.code, got.reason) == (Code.INTERNAL, ErrorReason.INTERNAL)


def test_detail_with_unknown_numbers_becomes_an_internal_error():
    got = from_detail(error_pb2.ErrorDetail(code=99, reason=9999, message="m"))
    assert (got.code, got.message) == (Code.INTERNAL, "m")


def test_status_stays_within_what_trailing_metadata_takes():
    error = errors.InvalidRequestError("x" * 9_999, **{f"f{i}": "é" * 9_999 for i in range(99)})
    status = to_status(error)
    assert sum(len(value) for _, value in status.trailing_metadata) < 6 << 10
    assert len(status.details.encode()) <= 1024


def test_message_with_lone_surrogates_of_a_path_can_be_sent():
    error = errors.NotFoundError("no file \udcff", path="\udcff")
    assert "udcff" in to_status(error).details
    assert to_detail(error).metadata["path"] == "\\udcff"


def over_a_status(error):
    return from_rpc_error(as_call_error(to_status(error)))


def over_a_detail(error):
    return from_detail(error_pb2.ErrorDetail.FromString(to_detail(error).SerializeToString()))


def limited(retry_after_s):
    return errors.RateLimitedError("too fast; wait", retry_after_s=retry_after_s)


@pytest.mark.parametrize("way", [over_a_status, over_a_detail])
def test_rate_limit_stays_one_on_its_way_to_the_caller(way):
    got = way(limited(0.25))
    assert type(got) is errors.RateLimitedError
    assert (got.reason, got.retry_after_s) == (ErrorReason.RATE_LIMITED, 0.25)


@given(st.floats(0, 1e6))
@example(0.1)
@example(1.1)
@example(524288.00000000146)
def test_waiting_time_never_shrinks_on_its_way_to_the_caller(retry_after_s):
    by_status, by_detail = (
        over_a_status(limited(retry_after_s)),
        over_a_detail(limited(retry_after_s)),
    )
    assert 0 <= by_status.retry_after_s - retry_after_s <= 2e-9
    assert 0 <= by_detail.retry_after_s - retry_after_s <= 1.1e-3


@pytest.mark.parametrize("way", [over_a_status, over_a_detail])
def test_any_error_may_say_when_to_come_back(way):
    sent = errors.UnavailableError("not yet; wait")
    sent.retry_after_s = 3.0
    got = way(sent)
    assert (type(got), got.retry_after_s) == (errors.UnavailableError, 3.0)


@pytest.mark.parametrize("way", [over_a_status, over_a_detail])
def test_error_without_a_waiting_time_gets_none(way):
    assert way(errors.OverloadedError("full; retry later")).retry_after_s is None


def test_waiting_time_of_nothing_is_told_as_nothing_and_not_left_out():
    assert over_a_status(limited(0)).retry_after_s == 0
    assert to_detail(limited(0)).HasField("retry_after_ms")


@pytest.mark.parametrize("way", [over_a_status, over_a_detail])
@pytest.mark.parametrize("retry_after_s", [float("inf"), float("nan"), -1.0])
def test_waiting_time_out_of_range_can_still_be_sent(way, retry_after_s):
    assert 0 <= way(limited(retry_after_s)).retry_after_s <= 315_576_000_000


def status_of(code, *details):
    packed = [any_pb2.Any() for _ in details]
    for one, detail in zip(packed, details, strict=True):
        one.Pack(detail)
    status = status_pb2.Status(code=code.value[0], message="m", details=packed)
    return rpc_status.to_status(status)


def test_retry_info_of_a_foreign_server_is_heeded():
    delay = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2))
    got = from_rpc_error(as_call_error(status_of(grpc.StatusCode.UNAVAILABLE, delay)))
    assert (type(got), got.retry_after_s) == (errors.UnavailableError, 2.0)


def test_retry_info_before_now_means_now():
    delay = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=-2))
    got = from_rpc_error(as_call_error(status_of(grpc.StatusCode.UNAVAILABLE, delay)))
    assert got.retry_after_s == 0


def test_rate_limit_that_does_not_say_when_is_told_by_its_code():
    info = error_details_pb2.ErrorInfo(domain="daemoneye", reason="RATE_LIMITED")
    got = from_rpc_error(as_call_error(status_of(grpc.StatusCode.RESOURCE_EXHAUSTED, info)))
    assert type(got) is errors.OverloadedError
    assert (got.reason, got.retry_after_s) == (ErrorReason.RATE_LIMITED, None)


@pytest.mark.parametrize("name", ["ErrorInfo", "RetryInfo"])
def test_garbage_in_a_detail_is_ignored(name):
    bad = any_pb2.Any(type_url=f"type.googleapis.com/google.rpc.{name}", value=b"\xff")
    status = status_pb2.Status(code=14, message="m", details=[bad])
    got = from_rpc_error(as_call_error(rpc_status.to_status(status)))
    assert (type(got), got.retry_after_s) == (errors.UnavailableError, None)


def test_garbage_in_place_of_details_is_ignored():
    garbage = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff"))
    error = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), garbage, "m")
    assert type(from_rpc_error(error)) is errors.NotFoundError
