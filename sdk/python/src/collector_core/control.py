"""``ipc.v1.CollectorControlService``: pause, resume, counters and shutdown of one collector."""

from typing import Any, Protocol

from daemoneye.ipc.v1 import collector_control_service_pb2 as pb
from daemoneye.ipc.v1 import collector_control_service_pb2_grpc

__all__ = ["CollectorControlServicer", "Controlled"]


class Controlled(Protocol):
    """What the service steers."""

    @property
    def state(self) -> pb.MonitoringState.ValueType:
        """What the collector does."""

    async def pause(self) -> None:
        """Stops watching; does nothing when paused."""

    async def resume(self) -> None:
        """Watches again; does nothing when it watches."""

    def stats(self) -> pb.GetCollectorStatsResponse:
        """The counters."""

    def shut_down(self, reason: str) -> None:
        """Asks for a drain."""


class CollectorControlServicer(collector_control_service_pb2_grpc.CollectorControlServiceServicer):
    """Answers for one collector."""

    def __init__(self, collector: Controlled) -> None:
        self._collector = collector

    async def PauseMonitoring(
        self, request: pb.PauseMonitoringRequest, context: Any
    ) -> pb.PauseMonitoringResponse:
        """Stops watching."""
        await self._collector.pause()
        return pb.PauseMonitoringResponse(state=self._collector.state)

    async def ResumeMonitoring(
        self, request: pb.ResumeMonitoringRequest, context: Any
    ) -> pb.ResumeMonitoringResponse:
        """Watches again."""
        await self._collector.resume()
        return pb.ResumeMonitoringResponse(state=self._collector.state)

    async def GetCollectorStats(
        self, request: pb.GetCollectorStatsRequest, context: Any
    ) -> pb.GetCollectorStatsResponse:
        """Reads the counters."""
        return self._collector.stats()

    async def ShutdownCollector(
        self, request: pb.ShutdownCollectorRequest, context: Any
    ) -> pb.ShutdownCollectorResponse:
        """Asks for a drain and answers before it happens."""
        self._collector.shut_down(request.reason[:256] or "asked by the agent")
        return pb.ShutdownCollectorResponse(state=pb.MONITORING_STATE_STOPPING)
