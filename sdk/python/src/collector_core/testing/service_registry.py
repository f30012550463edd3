"""The agent's registry in the loop of a test: leases and tokens, and both may be taken away."""

import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from collector_core.testing.changes import Changes
from daemoneye.agent.v1 import registry_service_pb2 as pb
from daemoneye.agent.v1 import registry_service_pb2_grpc
from daemoneye.ipc.v1 import ipc_pb2
from daemoneye_mesh.authentication import caller
from daemoneye_mesh.errors import (
    ConflictError,
    DaemoneyeError,
    ErrorReason,
    InvalidRequestError,
    PreconditionError,
)
from daemoneye_mesh.identity import VerifiedToken

__all__ = ["FakeRegistry"]

MAX_KEPT_HEARTBEATS = 10_000

IssueToken = Callable[[VerifiedToken, str, float], str]
"""Issues a token: for whom, for which audience, for how many seconds."""


class FakeRegistry(registry_service_pb2_grpc.RegistryServiceServicer):
    """``RegistryService``: records everything, and grants leases unless it is told otherwise.

    Args:
        issue: issues tokens.
        changes: is told of everything that arrives.
    """

    def __init__(self, issue: IssueToken, changes: Changes) -> None:
        self._issue = issue
        self._changes = changes
        self.heartbeat_interval_s = 0.05
        """Interval of the leases granted from now on; short, so that tests see changes soon."""
        self.missed_heartbeat_limit = 3
        self.token_ttl_s = 300.0
        """Life of the tokens issued from now on."""
        self.registrations: list[pb.RegisterCollectorRequest] = []
        """Everything that was asked, refused ones included."""
        self.heartbeats: deque[pb.HeartbeatRequest] = deque(maxlen=MAX_KEPT_HEARTBEATS)
        """The newest heartbeats, oldest first."""
        self.heartbeat_count = 0
        self.departures: list[pb.DeregisterCollectorRequest] = []
        """Leases that were given back."""
        self.token_requests: list[tuple[str, str]] = []
        """Who asked for a token, and for which audience."""
        self._leases: dict[str, int] = {}
        self._refusal: DaemoneyeError | None = None
        self._endings: dict[str, DaemoneyeError] = {}

    def is_registered(self, collector_id: str) -> bool:
        """Whether a collector holds a lease right now."""
        return collector_id in self._leases

    def last_heartbeat(self, collector_id: str) -> pb.HeartbeatRequest | None:
        """Returns the newest heartbeat of a collector, or None when there was none."""
        mine = (one for one in reversed(self.heartbeats) if one.collector_id == collector_id)
        return next(mine, None)

    def refuse(self, error: DaemoneyeError | None) -> None:
        """Refuses every registration with an error; grants leases again with None."""
        self._refusal = error

    def take_lease_away(self, collector_id: str) -> None:
        """Ends a lease with NOT_REGISTERED at the next heartbeat; the collector must come back."""
        self._endings[collector_id] = PreconditionError(
            f"{collector_id} holds no lease; register again",
            reason=ErrorReason.NOT_REGISTERED,
            collector_id=collector_id,
        )

    def end_leases(self) -> None:
        """Forgets all leases, as an agent that starts again does."""
        self._leases.clear()

    def supersede(self, collector_id: str) -> None:
        """Ends a lease with SUPERSEDED at the next heartbeat; the collector must stop."""
        self._endings[collector_id] = ConflictError(
            f"a newer instance of {collector_id} is registered; stop", collector_id=collector_id
        )

    async def RegisterCollector(
        self, request: pb.RegisterCollectorRequest, context: Any
    ) -> pb.RegisterCollectorResponse:
        """Grants a lease."""
        self.registrations.append(request)
        self._changes.tell()
        if self._refusal is not None:
            raise self._refusal
        _check(request)
        held_epoch = self._leases.get(request.collector_id, 0)
        if request.instance_epoch < held_epoch:
            raise ConflictError(
                f"a newer instance of {request.collector_id} is registered; stop",
                collector_id=request.collector_id,
            )
        self._leases[request.collector_id] = request.instance_epoch
        answer = pb.RegisterCollectorResponse(missed_heartbeat_limit=self.missed_heartbeat_limit)
        answer.heartbeat_interval.FromNanoseconds(int(self.heartbeat_interval_s * 1e9))
        return answer

    async def Heartbeat(
        self, requests: AsyncIterator[pb.HeartbeatRequest], context: Any
    ) -> AsyncIterator[pb.HeartbeatResponse]:
        """Keeps a lease."""
        async for request in requests:
            self._check_lease(request)
            self.heartbeats.append(request)
            self.heartbeat_count += 1
            self.note(request)
            self._changes.tell()
            yield pb.HeartbeatResponse(heartbeat_sequence=request.heartbeat_sequence)

    async def DeregisterCollector(
        self, request: pb.DeregisterCollectorRequest, context: Any
    ) -> pb.DeregisterCollectorResponse:
        """Takes a lease back."""
        self.departures.append(request)
        if self._leases.get(request.collector_id) == request.instance_epoch:
            del self._leases[request.collector_id]
        self._changes.tell()
        return pb.DeregisterCollectorResponse()

    async def IssueToken(
        self, request: pb.IssueTokenRequest, context: Any
    ) -> pb.IssueTokenResponse:
        """Issues a token of the caller's own identity."""
        own = caller()
        self.token_requests.append((own.identity.id, request.audience))
        answer = pb.IssueTokenResponse(token=self._issue(own, request.audience, self.token_ttl_s))
        answer.expires_at.FromNanoseconds(time.time_ns() + int(self.token_ttl_s * 1e9))
        self._changes.tell()
        return answer

    def note(self, heartbeat: pb.HeartbeatRequest) -> None:
        """Hears of every heartbeat that keeps a lease."""

    def _check_lease(self, heartbeat: pb.HeartbeatRequest) -> None:
        collector_id = heartbeat.collector_id
        if ending := self._endings.pop(collector_id, None):
            self._leases.pop(collector_id, None)
            self._changes.tell()
            raise ending
        held_epoch = self._leases.get(collector_id)
        if held_epoch is not None and held_epoch > heartbeat.instance_epoch:
            raise ConflictError(
                f"a newer instance of {collector_id} is registered; stop",
                collector_id=collector_id,
            )
        if held_epoch != heartbeat.instance_epoch:
            raise PreconditionError(
                f"{collector_id} holds no lease; register again",
                reason=ErrorReason.NOT_REGISTERED,
                collector_id=collector_id,
            )


def _check(request: pb.RegisterCollectorRequest) -> None:
    """Refuses what the real agent refuses: MUST-REG-01, and domains the token does not allow."""
    own = caller()
    if request.collector_id != own.identity.id:
        raise InvalidRequestError(
            f"collector_id is {request.collector_id!a} and the caller is {own.identity.id};"
            " register under your own id",
            collector_id=request.collector_id,
            caller=own.identity.id,
        )
    wanted = {_domain_name(number) for number in request.domains}
    if refused := sorted(wanted - own.domains):
        raise InvalidRequestError(
            f"{own.identity.id} is not enrolled for {', '.join(refused)}; enrol it so",
            collector_id=own.identity.id,
            domains=", ".join(refused),
        )


def _domain_name(number: int) -> str:
    if number not in ipc_pb2.MonitoringDomain.values():
        raise InvalidRequestError(
            f"domain {number} is not known; use a MonitoringDomain",
            reason=ErrorReason.ENUM_UNKNOWN,
            domain=number,
        )
    name = ipc_pb2.MonitoringDomain.Name(number)  # type: ignore[arg-type] # checked above
    return name.removeprefix("MONITORING_DOMAIN_").lower()
