"""Messages, rules, stores and a whole agent for the tests of the agent."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from daemoneye.common.v1 import common_pb2
from daemoneye.eventbus.v1 import event_data_pb2, eventbus_pb2
from daemoneye_agent.app import serve
from daemoneye_agent.config import AgentSettings
from daemoneye_agent.ingest import IngestResult
from daemoneye_agent.rule import Rule, parse_rule
from daemoneye_agent.store import EventStore
from daemoneye_agent.store_file import StoreFailedError
from daemoneye_agent.store_thread import StoreThread
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.identity import Identity
from daemoneye_mesh.layout import RuntimeLayout
from daemoneye_mesh.lifecycle import StopRequest
from daemoneye_mesh.token import TokenIssuer, load_or_create_key

BOOT_ID = "6f0e54a1-0000-4000-8000-000000000001"
NOW_NS = 1_790_000_000 * 10**9


def build_message(sequence: int, kind: str = "CREATED", **record: object) -> object:
    values: dict[str, object] = {
        "boot_id": BOOT_ID,
        "pid": 4000 + sequence,
        "start_ticks": 7,
        "name": "sh",
        **record,
    }
    subtype = event_data_pb2.ProcessEventSubtype.Value(f"PROCESS_EVENT_SUBTYPE_PROCESS_{kind}")
    event = event_data_pb2.ProcessEventData(
        process=common_pb2.ProcessRecord(**values),  # type: ignore[arg-type]
        subtype=subtype,
    )
    return eventbus_pb2.EventBusMessage(
        metadata=eventbus_pb2.MessageMetadata(
            topic="events.process.lifecycle",
            timestamp=NOW_NS + sequence,
            source_id="procmond",
            source_epoch=1,
            source_sequence=sequence,
        ),
        collection_event=eventbus_pb2.CollectionEventPayload(process_event=event),
    )


@pytest.fixture(scope="session")
def make_message() -> Callable[..., eventbus_pb2.EventBusMessage]:
    """Makes the message of one process event."""
    return build_message  # type: ignore[return-value]


def build_rule(rule_id: str = "shells", sql: str = "", enabled: bool = True) -> Rule:
    query = sql or "SELECT event_id, time_ns, pid, name, exe FROM process_events WHERE name = 'sh'"
    return parse_rule(rule_document(rule_id, query, enabled), f"{rule_id}.toml")


def rule_document(rule_id: str, sql: str, enabled: bool = True) -> str:
    return f"""
id = "{rule_id}"
title = "A shell"
description = "Somebody runs a shell."
severity = "high"
dedup = ["name"]
enabled = {str(enabled).lower()}
sql = \"\"\"{sql}\"\"\"
[[positive]]
name = "sh"
[[negative]]
name = "cat"
"""


@pytest.fixture(scope="session")
def make_rule() -> Callable[..., Rule]:
    """Makes a rule that matches processes named sh, or what its SQL says."""
    return build_rule


@pytest.fixture(scope="session")
def make_document() -> Callable[..., str]:
    """Makes the TOML of a rule."""
    return rule_document


class RefusingStore(EventStore):
    """Refuses the next writes of a kind, as with a full disk."""

    refused_ingests = 0
    refused_alerts = 0
    refused_switches = 0

    def ingest(self, rows: object) -> IngestResult:
        if self.refused_ingests > 0:
            self.refused_ingests -= 1
            raise StoreFailedError("event store: the disk is full; free space")
        return super().ingest(rows)  # type: ignore[arg-type]

    def record_alerts(self, drafts: object) -> object:  # type: ignore[override]
        if self.refused_alerts > 0:
            self.refused_alerts -= 1
            raise StoreFailedError("event store: the disk is full; free space")
        return super().record_alerts(drafts)  # type: ignore[arg-type]

    def set_rule_enabled(self, rule_id: str, enabled: bool) -> None:
        if self.refused_switches > 0:
            self.refused_switches -= 1
            raise StoreFailedError("event store: the disk is full; free space")
        super().set_rule_enabled(rule_id, enabled)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[StoreThread]:
    """The thread of an open store that can be told to refuse; see ``RefusingStore``."""
    thread = StoreThread(lambda: RefusingStore.open(tmp_path / "s" / "events.db"))
    await thread.open()
    yield thread
    await thread.close()


@dataclass
class RunningAgent:
    """A whole agent in this process, without broker and collectors."""

    settings: AgentSettings
    issuer: TokenIssuer
    stop: StopRequest
    task: asyncio.Task[None]
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    @property
    def layout(self) -> RuntimeLayout:
        """Where its sockets lie."""
        return self.settings.layout

    def token(
        self,
        identity: Identity,
        audience: Identity | None = None,
        domains: tuple[str, ...] = ("process",),
    ) -> str:
        """Signs a token as the agent would."""
        to = (audience or self.layout.agent).spiffe_id
        return self.issuer.issue(identity, to, timedelta(minutes=5), domains)

    def channel(self, token: str | None) -> grpc.aio.Channel:
        """Opens a channel that sends this token."""
        source = None if token is None else (lambda: token)
        self.channels.append(open_channel(self.layout.agent_socket, source))
        return self.channels[-1]

    def operator(self) -> grpc.aio.Channel:
        """Opens a channel of the enrolled operator."""
        return self.channel(self.token(self.layout.operator()))

    def collector(self, name: str = "procmond") -> grpc.aio.Channel:
        """Opens a channel of a collector."""
        return self.channel(self.token(self.layout.collector(name)))


@pytest.fixture
async def start_agent(
    short_dir: Path,
) -> AsyncIterator[Callable[..., Awaitable[RunningAgent]]]:
    """Starts an agent with these settings and waits until it serves."""
    opened: list[RunningAgent] = []

    async def start(**settings: object) -> RunningAgent:
        chosen = AgentSettings(
            runtime_dir=short_dir,
            state_dir=short_dir / "state",
            **settings,  # type: ignore[arg-type]
        )
        stop = StopRequest()
        task = asyncio.get_running_loop().create_task(serve(chosen, stop))
        await wait_until_serving(chosen.layout.agent_socket, task)
        key = load_or_create_key(short_dir / "state" / "issuer-key.pem")
        agent = RunningAgent(chosen, TokenIssuer(key, chosen.layout.trust_domain), stop, task)
        opened.append(agent)
        return agent

    yield start
    for agent in opened:
        for channel in agent.channels:
            await channel.close()
        agent.stop.request("the test is over")
        async with asyncio.timeout(20):
            await agent.task


@pytest.fixture
async def agent(start_agent: Callable[..., Awaitable[RunningAgent]]) -> RunningAgent:
    """An agent with the default settings."""
    return await start_agent()


async def wait_until_serving(path: Path, task: asyncio.Task[None]) -> None:
    channel = open_channel(path)
    health = health_pb2_grpc.HealthStub(channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    try:
        async with asyncio.timeout(10):
            while not task.done():
                try:
                    answer = await health.Check(
                        health_pb2.HealthCheckRequest(), timeout=5, wait_for_ready=True
                    )
                except grpc.aio.AioRpcError:
                    continue
                if answer.status == serving:
                    return
                await asyncio.sleep(0.005)
    finally:
        await channel.close()
    await task


@pytest.fixture(scope="session")
def explain() -> Callable[[grpc.aio.AioRpcError], tuple[str, str, str]]:
    """Returns code, reason and sentence of a failed call."""

    def read(error: grpc.aio.AioRpcError) -> tuple[str, str, str]:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        assert status is not None, error
        (detail,) = status.details
        info = error_details_pb2.ErrorInfo()
        assert detail.Unpack(info)
        assert info.domain == "daemoneye"
        return error.code().name, info.reason, status.message

    return read


@pytest.fixture
def rules_dir(tmp_path: Path) -> Path:
    """An empty directory of rules."""
    path = tmp_path / "rules"
    path.mkdir()
    return path
