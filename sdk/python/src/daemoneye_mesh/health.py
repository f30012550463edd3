"""grpc.health.v1 with a Watch that ends when the server drains.

grpcio's own servicer leaves ``Watch`` streams open on shutdown, so a stopping server waits out its
whole grace; this one ends them after the last status.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from daemoneye_mesh.errors import NotFoundError

__all__ = ["OVERALL", "HealthServicer"]

OVERALL = ""
"""The service name under which the state of the whole server is asked."""

_Status = int
"""A ServingStatus by its number."""
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Health of every service of one server; all start NOT_SERVING."""

    def __init__(self) -> None:
        self._statuses: dict[str, _Status] = {OVERALL: NOT_SERVING}
        self._changed = asyncio.Condition()
        self._is_draining = False

    async def set_serving(self, service: str, is_serving: bool) -> None:
        """Sets the status of ``service`` and tells its watchers."""
        async with self._changed:
            self._statuses[service] = (
                SERVING if is_serving and not self._is_draining else NOT_SERVING
            )
            self._changed.notify_all()

    async def drain(self) -> None:
        """Turns everything NOT_SERVING for good and ends every Watch."""
        async with self._changed:
            self._is_draining = True
            self._statuses = dict.fromkeys(self._statuses, NOT_SERVING)
            self._changed.notify_all()

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        """Answers the current status; NOT_FOUND for a service the server does not have."""
        status = self._statuses.get(request.service)
        if status is None:
            raise NotFoundError(
                f"no service {request.service!r} here; ask reflection for the names",
                service=request.service,
            )
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self, request: Any, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Answers the status now and after each change, until the server drains."""
        last = -1
        while True:
            status = self._statuses.get(request.service, SERVICE_UNKNOWN)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            elif self._is_draining:
                return
            else:
                await self._wait_for_change(request.service, last)

    async def _wait_for_change(self, service: str, last: _Status) -> None:
        def has_changed() -> bool:
            return self._is_draining or self._statuses.get(service, SERVICE_UNKNOWN) != last

        async with self._changed:
            await self._changed.wait_for(has_changed)
