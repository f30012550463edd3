"""The status that ends a stream survives writes that are under way."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from collector_core.bus.duplex import run_duplex, write
from daemoneye_mesh.errors import RateLimitedError
from daemoneye_mesh.rpc_status import from_rpc_error

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

REQUEST = b"\x08\x01\x7a\x64" + bytes(100)
"""A batch_id and an unknown field."""
METHOD = "/daemoneye.eventbus.v1.EventBusService/PublishStream"


async def send_forever(call: Any) -> None:
    while await write(call, REQUEST):
        pass


async def receive_all(call: Any) -> None:
    async for _ in call:
        pass


async def test_status_of_the_server_is_told_though_writes_are_under_way(
    broker: Any, serve: Any, connect: Any, mesh_identity: Any
) -> None:
    # grpc.aio's own write() makes INTERNAL of about every second of these.
    broker.ending = lambda request: RateLimitedError("too fast; wait", retry_after_s=3)
    await serve(broker)
    channel = connect(mesh_identity.layout.eventbus_socket)
    for _ in range(50):
        call = channel.stream_stream(METHOD)()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await run_duplex(call, send_forever(call), receive_all(call))
        known = from_rpc_error(ended.value)
        assert isinstance(known, RateLimitedError)
        assert known.retry_after_s == 3


async def test_nothing_is_written_to_a_call_that_has_ended(
    broker: Any, serve: Any, connect: Any, mesh_identity: Any
) -> None:
    await serve(broker)
    call = connect(mesh_identity.layout.eventbus_socket).stream_stream(METHOD)()
    assert await write(call, b"")
    call.cancel()
    assert not await write(call, b"")


@pytest.mark.parametrize("side", ["sending", "receiving"])
async def test_defect_of_either_side_is_raised_as_it_is(
    broker: Any, serve: Any, connect: Any, mesh_identity: Any, side: str
) -> None:
    async def fail() -> None:
        raise LookupError("a defect")

    async def wait() -> None:
        await asyncio.Event().wait()

    await serve(broker)
    call = connect(mesh_identity.layout.eventbus_socket).stream_stream(METHOD)()
    sides = {"sending": wait, "receiving": wait, side: fail}
    with pytest.raises(LookupError):
        await run_duplex(call, sides["sending"](), sides["receiving"]())
    assert call.cancelled()
