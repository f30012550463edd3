"""A broker and workers as real processes in a mesh of their own, and what they leave behind.

The test stands in for the agent as issuer. Whatever is started is logged beside the mesh and ends with
it; whatever is waited for has a deadline, past which the test fails with the ends of all logs.
"""

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import eventbus_service_pb2_grpc
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.identity import Identity
from daemoneye_mesh.token import TokenIssuer, write_token_file, write_trust_bundle

__all__ = ["TOPIC", "BusField", "Log", "flow_error"]

WORKERS = Path(__file__).parent
TOPIC = "events.process.numbers"
SOURCE_ID = "counter"
EPOCH = 1
WAIT_S = 30.0
POLL_S = 0.02
CALL_TIMEOUT_S = 5.0


class Log:
    """What a worker has written into its journal so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[list[str]] = []
        self.counts: Counter[str] = Counter()
        """Entries by their first word."""
        self._read_bytes = 0

    def read(self) -> list[list[str]]:
        """Returns all entries, each a list of words; a line that is not whole yet is left out."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._read_bytes)
                fresh = file.read()
            end = fresh.rfind(b"\n") + 1
            self._read_bytes += end
            entries = [line.split() for line in fresh[:end].decode().splitlines()]
            self.entries += entries
            self.counts.update(entry[0] for entry in entries)
        return self.entries

    def of(self, *words: str) -> list[list[str]]:
        """Returns the entries that begin with one of the words."""
        return [entry for entry in self.read() if entry[0] in words]

    def count(self, word: str) -> int:
        """How many messages the entries that begin with a word are about."""
        column = {"new": 3, "got": 3, "repeat": 3, "gap": 1}[word]
        return sum(int(entry[column]) for entry in self.of(word))


def flow_error(flow: Any) -> int:
    """How far a flow is from offered = delivered + filtered + dropped + pending."""
    dropped = sum(flow.dropped_count.values())
    explained = flow.delivered_count + flow.filtered_count + dropped + flow.pending_count
    return int(flow.offered_count - explained)


class BusField:
    """The broker and the workers; an asynchronous context manager.

    Args:
        mesh: a mesh of which nothing runs.
        broker_flags: settings of the broker.
    """

    def __init__(self, mesh: Any, *broker_flags: str) -> None:
        self.mesh = mesh
        self._broker_flags = ("--log-level", "warning", "--stop-with-parent", *broker_flags)
        self.layout = mesh.layout
        self.layout.root.mkdir(mode=0o750)
        self.layout.tokens_dir.mkdir(mode=0o750)
        key = ec.generate_private_key(ec.SECP256R1())
        self._issuer = TokenIssuer(key, self.layout.trust_domain)
        write_trust_bundle(self.layout.trust_bundle, [self._issuer.public_key])
        self._operator: grpc.aio.Channel | None = None
        self.audited = 0
        """How often the equation was checked."""

    async def __aenter__(self) -> Self:
        token = self._token(self.layout.operator())
        self._operator = open_channel(self.layout.eventbus_socket, lambda: token)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._operator is not None
        await self._operator.close()

    # -- processes --------------------------------------------------------------------------------

    async def start_broker(self) -> None:
        """Starts the broker, without waiting for it."""
        await self.mesh.start("eventbus", *self._broker_flags)

    async def start_publisher(self, life: int = 1, **plan: Any) -> None:
        """Starts the publisher, a collector; see ``publisher.py`` for its plan."""
        defaults = {
            "watermark": str(self.mesh.root / "watermark"),
            "source_id": SOURCE_ID,
            "assurance": "ACKNOWLEDGED",
            "life": life,
            "seed": life,
            "rate": 5_000,
            "min_burst": 1,
            "max_burst": 500,
        }
        identity = self.layout.collector(SOURCE_ID)
        await self._start_worker("publisher", "publisher", identity, {**defaults, **plan})

    async def start_subscriber(self, program: str, name: str, **plan: Any) -> Log:
        """Starts a subscriber with the agent's identity; returns its journal, older lives included."""
        path = self.mesh.root / f"{name}.journal"
        own = {"journal": str(path), "subscriber_id": name, **plan}
        await self._start_worker(program, name, self.layout.agent, own)
        return Log(path)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to a process."""
        self.mesh.processes[name].send_signal(number)

    async def finish(self, name: str) -> int:
        """Waits until a process has ended by itself; returns its exit status."""
        process = self.mesh.processes[name]
        try:
            status = await asyncio.wait_for(process.wait(), WAIT_S)
        except TimeoutError:
            pytest.fail(f"{name} did not end within {WAIT_S} s\n{self.mesh.logs()}")
        del self.mesh.processes[name]
        return int(status)

    async def stop(self, name: str) -> None:
        """Ends a process in order."""
        self.signal(name, signal.SIGTERM)
        assert await self.finish(name) == 0, self.mesh.logs()

    @property
    def watermark(self) -> int:
        """The last number that the broker has confirmed to the publisher."""
        path = self.mesh.root / "watermark"
        return int(path.read_text() or "0") if path.exists() else 0

    # -- waiting ----------------------------------------------------------------------------------

    async def until(
        self,
        condition: Callable[[], Any] | Callable[[], Awaitable[Any]],
        what: str,
        timeout_s: float = WAIT_S,
    ) -> Any:
        """Waits until a condition holds; fails when a worker fails meanwhile."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            failed = [name for name, one in self.mesh.processes.items() if one.returncode]
            if failed or time.monotonic() > deadline_s:
                why = f"{failed} failed" if failed else f"not within {timeout_s} s"
                pytest.fail(f"{why}: {what}\n{self.mesh.logs()}")
            await asyncio.sleep(POLL_S)

    async def until_serving(self) -> None:
        """Waits until the broker is SERVING."""
        await self.until(lambda: self.mesh.is_serving("eventbus"), "the broker is SERVING")

    # -- counters ---------------------------------------------------------------------------------

    async def stats(self) -> pb.GetBusStatsResponse:
        """The counters of the broker, each flow of which adds up."""
        stats = await self._stub().GetBusStats(pb.GetBusStatsRequest(), timeout=CALL_TIMEOUT_S)
        assert flow_error(stats.flow) == 0, stats.flow
        return stats  # type: ignore[no-any-return]

    async def subscriptions(self) -> dict[str, pb.SubscriptionInfo]:
        """The subscriptions by name, each flow of which adds up."""
        request = pb.ListSubscriptionsRequest()
        listed = await self._stub().ListSubscriptions(request, timeout=CALL_TIMEOUT_S)
        for row in listed.subscriptions:
            assert flow_error(row.flow) == 0, row
        return {row.subscriber_id: row for row in listed.subscriptions}

    async def audit(self, every_s: float = 0.1) -> None:
        """Checks the equation of everything again and again; a broker that is away is left out."""
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self.stats()
                await self.subscriptions()
                self.audited += 1
            await asyncio.sleep(every_s)

    # -- inside -----------------------------------------------------------------------------------

    def _stub(self) -> Any:
        assert self._operator is not None
        return eventbus_service_pb2_grpc.EventBusServiceStub(self._operator)

    def _token(self, identity: Identity) -> str:
        audience = self.layout.broker.spiffe_id
        return self._issuer.issue(identity, audience, timedelta(minutes=30), ["process"])

    async def _start_worker(
        self, program: str, name: str, identity: Identity, plan: dict[str, Any]
    ) -> None:
        token_file = self.layout.token_file(identity)
        if not token_file.exists():
            write_token_file(token_file, self._token(identity))
        common = {
            "socket": str(self.layout.eventbus_socket),
            "token_file": str(token_file),
            "topic": TOPIC,
            "epoch": EPOCH,
        }
        with (self.mesh.root / f"{name}.log").open("ab") as log:
            self.mesh.processes[name] = await asyncio.create_subprocess_exec(
                *(sys.executable, "-W", "error", str(WORKERS / f"{program}.py")),
                json.dumps({**common, **plan}),
                env=self.mesh.environment,
                stdout=log,
                stderr=log,
            )
