"""Asks one server for its health: what container engines and service managers run.

``python -m daemoneye_mesh.health_probe SOCKET [SERVICE]`` ends with status 0 when SERVICE, or the
server as a whole, is SERVING, with 1 when it is not or nobody answers, and with 2 when it was called
wrongly. One line says what was found. It needs no token, only the right to connect.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.errors import InvalidConfigError
from daemoneye_mesh.health import OVERALL

__all__ = ["PROBE_TIMEOUT_S", "main", "probe_health"]

PROBE_TIMEOUT_S = 3.0
"""How long a server may take to answer; shorter than what the images' HEALTHCHECK allows."""

EXIT_UNHEALTHY = 1
SERVING = "SERVING"

_EXPLANATIONS = {
    "NOT_SERVING": "it answers, but is not ready or is shutting down",
    "NOT_FOUND": "the server has no service of that name",
    "UNAVAILABLE": "nobody answers there, or this user may not connect",
    "DEADLINE_EXCEEDED": f"no answer within {PROBE_TIMEOUT_S:g} s",
}


async def probe_health(
    socket: Path, service: str = OVERALL, timeout_s: float = PROBE_TIMEOUT_S
) -> str:
    """Returns the serving status, or the status code of a call that failed, by its name.

    Args:
        socket: absolute path of the server's socket.
        service: full name of the service that is asked about; the whole server when left out.
        timeout_s: how long to wait for the answer.

    Raises:
        InvalidConfigError: the path cannot be a socket path.
    """
    async with open_channel(socket) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = await stub.Check(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            # The code alone: a foreign server's text does not belong in somebody's log.
            return error.code().name
    known = health_pb2.HealthCheckResponse.ServingStatus
    return known.Name(answer.status) if answer.status in known.values() else str(answer.status)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one probe and returns the exit status.

    Args:
        argv: the arguments; those of this process when left out.
    """
    parser = _build_parser()
    arguments = parser.parse_args(argv)
    try:
        found = asyncio.run(probe_health(arguments.socket, arguments.service))
    except InvalidConfigError as error:
        parser.error(error.message)
    explanation = _EXPLANATIONS.get(found)
    sys.stdout.write(f"{found}: {explanation}\n" if explanation else f"{found}\n")
    return 0 if found == SERVING else EXIT_UNHEALTHY


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m daemoneye_mesh.health_probe",
        description="Asks a server of the mesh for its health; exit status 0 when it is SERVING.",
        allow_abbrev=False,
    )
    parser.add_argument("socket", type=Path, metavar="SOCKET", help="path of the server's socket")
    parser.add_argument(
        "service",
        nargs="?",
        default=OVERALL,
        metavar="SERVICE",
        help="full name of one service; the server as a whole when left out",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
