import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

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


def as_call_error(status):
    return grpc.aio.AioRpcError(
        status.code,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(*status.trailing_metadata),
        status.details,
    )


@pytest.mark.parametrize("cls", CLASSES)
def test_error_survives_the_way_over_a_status(cls):
    sent = cls("it failed; try again", what="x", count=3)
    got = from_rpc_error(as_call_error(to_status(sent)))
    assert got.code is sent.code
    assert isinstance(sent, type(got))
    assert (got.message, got.reason, got.metadata) == (sent.message, sent.reason, sent.metadata)


@pytest.mark.parametrize("cls", CLASSES)
def test_error_survives_the_way_over_a_detail(cls):
    sent = cls("it failed; try again", what="x")
    got = from_detail(error_pb2.ErrorDetail.FromString(to_detail(sent).SerializeToString()))
    assert got.code is sent.code
    assert (got.message, got.reason, got.metadata) == (sent.message, sent.reason, sent.metadata)


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
