import json
import threading
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection

from daemoneye_cli.dynamic_call import parse_documents
from daemoneye_cli.errors import UsageError
from daemoneye_cli.inspection import resolve_socket
from daemoneye_mesh.errors import InvalidRequestError
from daemoneye_mesh.layout import RuntimeLayout

FOREIGN_FILE = "daemoneye_cli_test/sum.proto"
INT64, MESSAGE = 3, 11
OPTIONAL, REPEATED = 1, 3


def foreign_types():
    """A service of somebody else, with all four kinds of methods, a oneof and a map."""
    pool = descriptor_pool.Default()
    try:
        return pool.FindFileByName(FOREIGN_FILE)
    except KeyError:
        pool.Add(foreign_file())
    return pool.FindFileByName(FOREIGN_FILE)


def foreign_file():
    file = descriptor_pb2.FileDescriptorProto(
        name=FOREIGN_FILE, package="other.v1", syntax="proto3"
    )
    number = file.message_type.add(name="Number")
    number.oneof_decl.add(name="kind")
    number.oneof_decl.add(name="_note")
    number.field.add(name="value", number=1, type=INT64, label=OPTIONAL, oneof_index=0)
    number.field.add(
        name="note", number=2, type=INT64, label=OPTIONAL, oneof_index=1, proto3_optional=True
    )
    number.field.add(
        name="marks",
        number=3,
        type=MESSAGE,
        label=REPEATED,
        type_name=".other.v1.Number.MarksEntry",
    )
    entry = number.nested_type.add(name="MarksEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=INT64, label=OPTIONAL)
    entry.field.add(name="value", number=2, type=INT64, label=OPTIONAL)
    color = file.enum_type.add(name="Color")
    color.value.add(name="COLOR_NONE", number=0)
    service = file.service.add(name="SumService")
    for name, asks, answers in (
        ("Echo", False, False),
        ("Sum", True, False),
        ("Count", False, True),
        ("Running", True, True),
    ):
        service.method.add(
            name=name,
            input_type=".other.v1.Number",
            output_type=".other.v1.Number",
            client_streaming=asks,
            server_streaming=answers,
        )
    return file


@contextmanager
def foreign_server(socket):
    """A server that is not of the mesh: no tokens, and reflection as v1alpha only."""
    number = GetMessageClass(foreign_types().message_types_by_name["Number"])

    def running(requests, _):
        total = 0
        for request in requests:
            total += request.value
            yield number(value=total)

    codecs = (number.FromString, number.SerializeToString)
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(lambda request, _: request, *codecs),
        "Sum": grpc.stream_unary_rpc_method_handler(
            lambda requests, _: number(value=sum(one.value for one in requests)), *codecs
        ),
        "Count": grpc.unary_stream_rpc_method_handler(
            lambda request, _: (number(value=one) for one in range(request.value)), *codecs
        ),
        "Running": grpc.stream_stream_rpc_method_handler(running, *codecs),
    }
    server = grpc.server(futures.ThreadPoolExecutor(4))
    generic = grpc.method_handlers_generic_handler("other.v1.SumService", handlers)
    server.add_generic_rpc_handlers((generic,))
    reflection.enable_server_reflection(["other.v1.SumService"], server)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        yield
    finally:
        stopped: threading.Event = server.stop(0)
        stopped.wait(10)


@pytest.fixture
def foreign(runtime_dir):
    socket = runtime_dir / "foreign.sock"
    with foreign_server(socket):
        yield str(socket)


def test_list_shows_services_and_methods(mesh, daemoneye):
    out = daemoneye("inspect", "agent").out
    assert "daemoneye.agent.v1.QueryService\n  rpc ExecuteQuery(" in out
    document = daemoneye("inspect", "agent", "list", "--format", "json").document
    assert document["socket"] == str(mesh.layout.agent_socket)
    found = {(one["service"], one["method"]): one for one in document["methods"]}
    method = found["daemoneye.agent.v1.QueryService", "ExecuteQuery"]
    assert (method["is_client_streaming"], method["is_server_streaming"]) == (False, True)


@pytest.mark.parametrize("socket", ["eventbus", "broker", "procmond", "collectors/procmond"])
def test_socket_may_be_a_short_name(mesh, daemoneye, socket):
    assert "grpc.health.v1.Health" in daemoneye("inspect", socket).out


def test_socket_may_be_a_path(mesh, daemoneye):
    assert daemoneye("inspect", str(mesh.layout.agent_socket)).code == 0


def test_short_names_lead_to_the_sockets_of_the_layout():
    layout = RuntimeLayout(Path("/r"))
    assert resolve_socket(layout, "agent") == Path("/r/agent.sock")
    assert resolve_socket(layout, "netmond") == Path("/r/collectors/netmond.sock")
    assert resolve_socket(layout, "/x/y") == Path("/x/y")
    with pytest.raises(UsageError, match="is no socket"):
        resolve_socket(layout, "No Such")


@pytest.mark.parametrize(
    ("symbol", "kind", "name"),
    [
        ("QueryService", "service", "daemoneye.agent.v1.QueryService"),
        ("ExecuteQuery", "method", "daemoneye.agent.v1.QueryService.ExecuteQuery"),
        ("QueryService/ListTables", "method", "daemoneye.agent.v1.QueryService.ListTables"),
        ("daemoneye.agent.v1.SqlValue", "message", "daemoneye.agent.v1.SqlValue"),
        ("daemoneye.agent.v1.TableKind", "enum", "daemoneye.agent.v1.TableKind"),
    ],
)
def test_describe_finds_services_methods_and_types(mesh, daemoneye, symbol, kind, name):
    document = daemoneye("inspect", "agent", "describe", symbol, "--format", "json").document
    assert (document["kind"], document["symbol"]) == (kind, name)


def test_message_is_described_as_proto_text(mesh, daemoneye):
    out = daemoneye("inspect", "agent", "describe", "daemoneye.agent.v1.ExecuteQueryRequest").out
    assert out == (
        "// daemoneye.agent.v1.ExecuteQueryRequest\n"
        "message ExecuteQueryRequest {\n"
        "  string sql = 1;\n"
        "  map<string, daemoneye.agent.v1.SqlValue> parameters = 2;\n"
        "  uint32 max_rows = 3;\n"
        "}\n"
    )


def test_oneof_optional_and_map_are_described(foreign, daemoneye):
    out = daemoneye("inspect", foreign, "describe", "other.v1.Number").out
    assert "  oneof kind {\n    int64 value = 1;\n  }\n" in out
    assert "  optional int64 note = 2;\n" in out
    assert "  map<int64, int64> marks = 3;\n" in out


def test_call_of_the_agent_carries_the_operators_token(mesh, daemoneye):
    result = daemoneye("inspect", "agent", "call", "ListTables", "--format", "json")
    assert result.document["tables"][0]["name"] == "processes"


def test_call_of_the_broker_carries_a_token_for_the_broker(mesh, daemoneye):
    argv = ["inspect", "eventbus", "call", "EventBusService/NegotiateVersion"]
    assert daemoneye(*argv).code == 0
    assert mesh.registry.audiences == [mesh.layout.broker.spiffe_id]


def test_call_of_health_needs_no_token(mesh, daemoneye):
    mesh.token_file.unlink()
    result = daemoneye("inspect", "procmond", "call", "Health/Check", "--format", "json")
    assert result.document == {"status": "SERVING"}


def test_streamed_answers_are_json_lines(mesh, daemoneye):
    data = json.dumps({"sql": "SELECT 1", "parameters": {"a": {"integer": "5"}}})
    argv = ["inspect", "agent", "call", "QueryService/ExecuteQuery", "-d", data]
    result = daemoneye(*argv, "--format", "json")
    assert [line["is_last"] for line in result.lines] == [False, False, True]
    assert mesh.queries.requests[0].parameters["a"].integer == 5


def test_refused_call_has_the_exit_status_of_its_error(mesh, daemoneye):
    result = daemoneye("inspect", "agent", "call", "ExecuteQuery", "-d", '{"sql": "bad"}')
    assert (result.code, result.out) == (5, "")
    denied = daemoneye("inspect", "agent", "call", "RegistryService/RegisterCollector")
    assert denied.code == 6


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["call", "Nope"], "there is no method 'Nope'"),
        (["call", "ListTable"], "did you mean ListTables?"),
        (["call", "NoService/ListTables"], "there is no service 'NoService'"),
        (["describe", "no.such.Thing"], "there is no service, method or type"),
        (["call", "ListTables", "-d", "{"], "request 1 is no JSON"),
        (["call", "ListTables", "-d", '{"nope": 1}'], "nope"),
        (["call", "ListTables", "-d", "[]"], "is no daemoneye.agent.v1.ListTablesRequest"),
        (["call", "ListTables", "-d", "{}{}"], "takes one request, not 2"),
    ],
)
def test_wrong_request_exits_5_and_says_what_to_do(mesh, daemoneye, argv, message):
    result = daemoneye("inspect", "agent", *argv)
    assert (result.code, result.out) == (5, "")
    assert message in result.err


@pytest.mark.parametrize("argv", [["call", "ListTables", "-d", "@/nope"], ["describe", "X"]])
def test_wrong_usage_of_inspect_exits_2(mesh, daemoneye, argv):
    assert daemoneye("inspect", "agent", *argv, "--format", "csv").code == 2


@pytest.mark.parametrize(
    ("method", "data", "expected"),
    [
        ("Echo", '{"value": 7}', ["7"]),
        ("Sum", '{"value": 1}\n{"value": 2}\n{"value": 3}', ["6"]),
        ("Count", '{"value": 3}', ["0", "1", "2"]),
        ("Running", '{"value": 1} {"value": 2}', ["1", "3"]),
    ],
)
def test_all_kinds_of_methods_of_a_foreign_server_can_be_called(
    foreign, daemoneye, method, data, expected
):
    result = daemoneye(
        "inspect", foreign, "call", method, "-d", "-", "--format", "json", stdin=data
    )
    assert result.code == 0, result.err
    documents = parse_documents(result.out)
    assert [one["value"] for one in documents] == expected


def test_foreign_server_that_has_only_v1alpha_is_listed(foreign, daemoneye):
    assert "  rpc Sum(stream other.v1.Number) returns (other.v1.Number)" in (
        daemoneye("inspect", foreign).out
    )


def test_server_without_reflection_exits_5(runtime_dir, daemoneye):
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_insecure_port(f"unix:{runtime_dir}/bare.sock")
    server.start()
    result = daemoneye("inspect", f"{runtime_dir}/bare.sock")
    server.stop(0).wait(10)
    assert result.code == 5
    assert "offers no reflection" in result.err


def test_nobody_on_the_socket_exits_4(daemoneye, runtime_dir):
    assert daemoneye("inspect", "agent").code == 4


def test_documents_may_be_separated_by_anything_json_ignores():
    assert parse_documents(' {"a":1}\n\n[2]\t3 ') == [{"a": 1}, [2], 3]
    assert parse_documents("") == []
    with pytest.raises(InvalidRequestError, match="request 2 is no JSON"):
        parse_documents('{"a":1} {')
