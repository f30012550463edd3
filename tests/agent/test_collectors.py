"""Calls to collectors: only to those with a lease, and their answers are judged."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from daemoneye.common.v1 import common_pb2
from daemoneye.ipc.v1 import collector_service_pb2 as pb
from daemoneye.ipc.v1 import ipc_pb2
from daemoneye_agent.collectors import CollectorClients
from daemoneye_agent.registry import CollectorRegistry, RegistrationRequest
from daemoneye_mesh.errors import (
    DaemoneyeError,
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    PreconditionError,
    UnavailableError,
)

ExecuteTask = Callable[[pb.ExecuteTaskRequest], AsyncIterator[pb.ExecuteTaskResponse]]
Start = Callable[[ExecuteTask], Awaitable[CollectorClients]]

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")


@pytest.fixture
async def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(RegistrationRequest("procmond", 1, domains=("process",)), "procmond")
    return registry


@pytest.fixture
async def start(
    mesh_identity: Any, serve_methods: Any, registry: CollectorRegistry
) -> AsyncIterator[Start]:
    """Serves ``ExecuteTask`` as procmond and returns the agent's side."""
    layout = mesh_identity.layout
    opened: list[CollectorClients] = []

    async def serve(execute: ExecuteTask) -> CollectorClients:
        async def handle(request: bytes, context: Any) -> AsyncIterator[bytes]:
            async for response in execute(pb.ExecuteTaskRequest.FromString(request)):
                yield response.SerializeToString()

        handlers: dict[str, object] = {"ExecuteTask": grpc.unary_stream_rpc_method_handler(handle)}
        await serve_methods(handlers)
        clients = CollectorClients(
            layout, registry, lambda audience: mesh_identity.token(layout.agent, audience)
        )
        opened.append(clients)
        return clients

    yield serve
    for clients in opened:
        await clients.close()


def make_chunk(
    request: pb.ExecuteTaskRequest, index: int, *pids: int, is_last: bool = False, **result: Any
) -> pb.ExecuteTaskResponse:
    values: dict[str, Any] = {"task_id": request.task.task_id, "success": True, **result}
    records = [common_pb2.ProcessRecord(pid=pid) for pid in pids]
    return pb.ExecuteTaskResponse(
        result=ipc_pb2.DetectionResult(processes=records, **values),
        chunk_index=index,
        is_last=is_last,
    )


async def enumerate_pids(clients: CollectorClients, timeout_s: float = 5) -> list[int]:
    wanted = common_pb2.ProcessFilter(pids=[1])
    chunks = clients.enumerate_processes("procmond", wanted, timeout_s)
    return [record.pid async for chunk in chunks for record in chunk.result.processes]


async def test_task_is_sent_with_its_filter_and_all_chunks_come_back(start: Start) -> None:
    seen: list[pb.ExecuteTaskRequest] = []

    async def execute(request: pb.ExecuteTaskRequest) -> AsyncIterator[pb.ExecuteTaskResponse]:
        seen.append(request)
        yield make_chunk(request, 0, 1, 2)
        yield make_chunk(request, 1, 3, is_last=True)

    assert await enumerate_pids(await start(execute)) == [1, 2, 3]
    assert seen[0].task.task_type == common_pb2.TASK_TYPE_ENUMERATE_PROCESSES
    assert list(seen[0].task.process_filter.pids) == [1]


@pytest.mark.parametrize(
    ("index", "result", "said"),
    [
        (1, {}, "MUST-COL-20"),
        (0, {"task_id": "another"}, "MUST-COL-20"),
        (0, {"success": False, "error_message": "secret"}, "failed at the task"),
    ],
)
async def test_answer_that_breaks_the_contract_is_not_believed(
    start: Start, index: int, result: dict[str, Any], said: str
) -> None:
    async def execute(request: pb.ExecuteTaskRequest) -> AsyncIterator[pb.ExecuteTaskResponse]:
        yield make_chunk(request, index, 1, is_last=True, **result)

    with pytest.raises(UnavailableError, match=said) as refused:
        await enumerate_pids(await start(execute))
    assert "secret" not in refused.value.message


async def test_answer_without_an_end_is_not_whole(start: Start) -> None:
    async def execute(request: pb.ExecuteTaskRequest) -> AsyncIterator[pb.ExecuteTaskResponse]:
        yield make_chunk(request, 0, 1)

    with pytest.raises(UnavailableError, match="ended its answer early"):
        await enumerate_pids(await start(execute))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequestError("the pattern is too long; shorten it"), InvalidRequestError),
        (OverloadedError("too many tasks; try again"), OverloadedError),
        (PermissionDeniedError("the agent may not do this"), UnavailableError),
        (LookupError("a defect"), UnavailableError),
    ],
)
async def test_collectors_error_reaches_our_caller_only_when_it_is_about_the_task(
    start: Start, error: Exception, kind: type[DaemoneyeError]
) -> None:
    async def execute(request: pb.ExecuteTaskRequest) -> AsyncIterator[pb.ExecuteTaskResponse]:
        raise error
        yield

    with pytest.raises(kind) as raised:
        await enumerate_pids(await start(execute))
    assert type(raised.value) is kind
    is_passed_on = raised.value.message == str(error)
    assert is_passed_on == (kind is not UnavailableError)


async def test_collector_that_hangs_costs_no_more_than_the_deadline(start: Start) -> None:
    import asyncio

    async def execute(request: pb.ExecuteTaskRequest) -> AsyncIterator[pb.ExecuteTaskResponse]:
        yield make_chunk(request, 0, 1)
        await asyncio.Event().wait()

    with pytest.raises(DeadlineError, match="did not answer in time"):
        await enumerate_pids(await start(execute), timeout_s=0.2)


async def test_collector_that_is_not_there_is_named_without_the_words_of_the_transport(
    mesh_identity: Any, registry: CollectorRegistry
) -> None:
    layout = mesh_identity.layout
    clients = CollectorClients(layout, registry, lambda one: mesh_identity.token(layout.agent, one))
    for call in (enumerate_pids(clients), clients.pause("procmond"), clients.resume("procmond")):
        with pytest.raises(UnavailableError, match="procmond cannot be asked") as raised:
            await call
        assert "unix:" not in raised.value.message
    await clients.close()


async def test_collector_without_a_lease_is_not_called(
    mesh_identity: Any, registry: CollectorRegistry
) -> None:
    layout = mesh_identity.layout
    clients = CollectorClients(layout, registry, lambda one: mesh_identity.token(layout.agent, one))
    with pytest.raises(NotFoundError, match="'gone'"):
        await clients.pause("gone")
    registry.deregister("procmond", 1, "procmond")
    with pytest.raises(PreconditionError, match="deregistered"):
        await clients.pause("procmond")


@pytest.mark.parametrize("path", ["", "/tmp/procmond.sock", "collectors/procmond.sock"])
def test_socket_that_is_not_the_identitys_own_is_refused(
    mesh_identity: Any, registry: CollectorRegistry, path: str
) -> None:
    layout = mesh_identity.layout
    clients = CollectorClients(layout, registry, lambda _: "")
    clients.check_socket("procmond", str(layout.collector_socket("procmond")))
    for wrong in (path, str(layout.collector_socket("other"))):
        with pytest.raises(InvalidRequestError, match="must listen on"):
            clients.check_socket("procmond", wrong)
