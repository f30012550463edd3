"""Calls about one collector: operators ask the agent, and the agent asks the collector."""

import asyncio
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import grpc.aio

from daemoneye.agent.v1 import collector_admin_service_pb2_grpc
from daemoneye_cli.arguments import Parser
from daemoneye_cli.calls import ask
from daemoneye_cli.output import Output
from daemoneye_cli.session import OperatorSession
from daemoneye_mesh.errors import DeadlineError, UnavailableError

if TYPE_CHECKING:
    from daemoneye.agent.v1.collector_admin_service_pb2_grpc import CollectorAdminServiceAsyncStub

__all__ = ["add_collector_id", "ask_admin", "ask_admin_twice", "make_key"]

REPEAT_DELAY_S = 0.5

Request = TypeVar("Request")
Response = TypeVar("Response")
Choice = Callable[
    ["CollectorAdminServiceAsyncStub"], grpc.aio.UnaryUnaryMultiCallable[Request, Response]
]
"""Chooses the method."""


def add_collector_id(parser: Parser) -> None:
    """Adds the argument that names the collector."""
    parser.add_argument("collector_id", metavar="ID", help="id, as 'daemoneye collectors' lists it")


def make_key() -> str:
    """Returns a new idempotency key."""
    return uuid.uuid4().hex


async def ask_admin(
    session: OperatorSession,
    choose: Choice[Request, Response],
    request: Request,
    timeout_s: float,
) -> Response:
    """Makes one call to the agent's ``CollectorAdminService``.

    Args:
        session: the operator's.
        choose: picks the method of the stub.
        request: what to send.
        timeout_s: the deadline where the operator gave none.

    Raises:
        DaemoneyeError: the call failed.
    """
    link = await session.agent()
    stub: CollectorAdminServiceAsyncStub
    stub = collector_admin_service_pb2_grpc.CollectorAdminServiceStub(link.channel)
    return await ask(choose(stub), request, link.peer, session.timeout_s(timeout_s))


async def ask_admin_twice(
    session: OperatorSession,
    choose: Choice[Request, Response],
    request: Request,
    timeout_s: float,
    output: Output,
) -> Response:
    """Makes a call that has an idempotency key, and repeats it once when no answer came.

    Raises:
        DaemoneyeError: the call was refused, or failed twice.
    """
    try:
        return await ask_admin(session, choose, request, timeout_s)
    except DeadlineError as error:
        output.remark(f"warning: {error.message}; asking once more", style="yellow")
    except UnavailableError as error:
        output.remark(f"warning: {error.message}; asking once more", style="yellow")
        await asyncio.sleep(REPEAT_DELAY_S)
    return await ask_admin(session, choose, request, timeout_s)
