"""The real mesh for tests: three processes over real sockets, and an operator's view of them."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from daemoneye.agent.v1 import (
    alert_service_pb2,
    alert_service_pb2_grpc,
    collector_admin_service_pb2,
    collector_admin_service_pb2_grpc,
    query_service_pb2,
    query_service_pb2_grpc,
    status_service_pb2,
    status_service_pb2_grpc,
)
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.errors import DaemoneyeError
from daemoneye_mesh.layout import RuntimeLayout
from daemoneye_mesh.token import FileTokenSource

START_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 10.0
POLL_S = 0.05

COMMANDS = {
    "agent": "daemoneye_agent",
    "eventbus": "daemoneye_eventbus",
    "procmond": "daemoneye_procmond",
}

Row = dict[str, Any]


class Mesh:
    """One mesh in a directory of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layout = RuntimeLayout(root / "run")
        self.state_dir = root / "state"
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self._channel: grpc.aio.Channel | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What every process of this mesh is started with."""
        return {
            **os.environ,
            "DAEMONEYE_RUNTIME_DIR": str(self.layout.root),
            "DAEMONEYE_STATE_DIR": str(self.state_dir),
            "HOME": str(self.root),
        }

    def socket_of(self, name: str) -> Path:
        """The socket of a process."""
        if name == "procmond":
            return self.layout.collector_socket(name)
        return self.layout.root / f"{name}.sock"

    async def start(self, name: str, *flags: str) -> None:
        """Starts one process, without waiting for it."""
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-W", "error", "-m", COMMANDS[name]),
                *flags,
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    async def kill(self, name: str) -> None:
        """Ends one process without a chance to clean up."""
        process = self.processes.pop(name)
        process.kill()
        await process.wait()

    async def stop(self) -> dict[str, int]:
        """Ends what runs, collectors first; returns the exit statuses."""
        if self._channel is not None:
            await self._channel.close()
        statuses: dict[str, int] = {}
        for name in [one for one in ("procmond", "agent", "eventbus") if one in self.processes]:
            process = self.processes.pop(name)
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            statuses[name] = await asyncio.wait_for(process.wait(), START_TIMEOUT_S)
        return statuses

    async def wait_serving(self, *names: str) -> None:
        """Returns when the named processes are SERVING."""
        for name in names:
            await self.until(lambda name=name: self.is_serving(name), f"{name} is SERVING")

    async def is_serving(self, name: str) -> bool:
        """Whether a process says SERVING right now."""
        channel = open_channel(self.socket_of(name))
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0)
        except (grpc.aio.AioRpcError, DaemoneyeError):
            return False
        finally:
            await channel.close()
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def until(
        self, condition: Callable[[], Any], what: str, timeout_s: float = START_TIMEOUT_S
    ) -> Any:
        """Waits until an async condition holds and returns what it returned."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            if found := await condition():
                return found
            if time.monotonic() > deadline_s:
                pytest.fail(f"not within {timeout_s} s: {what}\n{self.logs()}")
            await asyncio.sleep(POLL_S)

    def logs(self) -> str:
        """The last lines of every log."""
        parts = []
        for path in sorted(self.root.glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-15:]
            parts.append("\n".join([f"-- {path.name}", *lines]))
        return "\n".join(parts)

    def channel(self) -> grpc.aio.Channel:
        """A channel to the agent with the operator's token."""
        if self._channel is None:
            token = FileTokenSource(self.layout.token_file(self.layout.operator()))
            self._channel = open_channel(self.layout.agent_socket, token.token)
        return self._channel

    async def query(self, sql: str) -> list[Row]:
        """Runs a query and returns its rows."""
        stub: Any = query_service_pb2_grpc.QueryServiceStub(self.channel())
        columns: list[str] = []
        rows: list[Row] = []
        request = query_service_pb2.ExecuteQueryRequest(sql=sql)
        async for part in stub.ExecuteQuery(request, timeout=CALL_TIMEOUT_S):
            columns = columns or list(part.columns)
            for row in part.rows:
                values = (value.WhichOneof("kind") for value in row.values)
                cells = [
                    getattr(value, kind) if kind else None
                    for value, kind in zip(row.values, values, strict=True)
                ]
                rows.append(dict(zip(columns, cells, strict=True)))
        return rows

    async def find_query(self, sql: str) -> list[Row]:
        """Runs a query; an agent that is away has no rows."""
        try:
            return await self.query(sql)
        except grpc.aio.AioRpcError:
            return []

    async def alerts(self, rule_id: str = "") -> list[Any]:
        """The alerts, latest first."""
        stub: Any = alert_service_pb2_grpc.AlertServiceStub(self.channel())
        request = alert_service_pb2.ListAlertsRequest(rule_id=rule_id)
        answer = await stub.ListAlerts(request, timeout=CALL_TIMEOUT_S)
        return list(answer.alerts)

    async def collector_stats(self, collector_id: str) -> Any:
        """The counters of a collector; an empty answer while it cannot be asked."""
        stub: Any = collector_admin_service_pb2_grpc.CollectorAdminServiceStub(self.channel())
        request = collector_admin_service_pb2.GetCollectorCountersRequest(collector_id=collector_id)
        try:
            answer = await stub.GetCollectorCounters(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return None
        return answer.stats

    async def status(self) -> Any:
        """The agent's view of the mesh."""
        stub: Any = status_service_pb2_grpc.StatusServiceStub(self.channel())
        return await stub.GetStatus(status_service_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT_S)


@pytest.fixture
def mesh_dir() -> Iterator[Path]:
    """A private directory with a short path: socket names have 107 bytes in all."""
    path = Path(tempfile.mkdtemp(prefix="de-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def cold_mesh(mesh_dir: Path) -> AsyncIterator[Mesh]:
    """A mesh of which nothing runs yet; whatever a test starts ends with it."""
    mesh = Mesh(mesh_dir)
    try:
        yield mesh
    finally:
        for process in mesh.processes.values():
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.fixture
async def mesh(cold_mesh: Mesh) -> AsyncIterator[Mesh]:
    """The whole mesh in service, with its first inventory stored."""
    await cold_mesh.start("agent")
    await cold_mesh.start("eventbus")
    await cold_mesh.start("procmond", "--scan-interval-s", "0.1", "--scan-cpu-share", "0.5")
    await cold_mesh.wait_serving("agent", "eventbus", "procmond")
    await cold_mesh.until(
        lambda: cold_mesh.find_query(
            f"SELECT pid FROM process_events WHERE kind = 'inventory' AND pid = {os.getpid()}"
        ),
        "the inventory is stored",
    )
    # The inventory comes by the bus and may be faster than the registration.
    await cold_mesh.until(
        lambda: cold_mesh.find_query(f"SELECT pid FROM processes WHERE pid = {os.getpid()}"),
        "the agent knows the collector",
    )
    yield cold_mesh
    statuses = await cold_mesh.stop()
    assert set(statuses.values()) <= {0}, cold_mesh.logs()
