"""Operators and collectors: what is asked is bounded, logged, and answered from the last heartbeat."""

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from daemoneye.agent.v1 import collector_admin_service_pb2 as pb
from daemoneye.ipc.v1 import (
    collector_config_pb2,
    collector_control_service_pb2,
    collector_health_pb2,
)
from daemoneye_agent.coverage import Coverage
from daemoneye_agent.log_position import LogPosition
from daemoneye_agent.registry import CollectorRegistry, Heartbeat, RegistrationRequest
from daemoneye_agent.service_admin import CollectorAdminServicer
from daemoneye_mesh.authentication import current_caller
from daemoneye_mesh.errors import InvalidRequestError, NotFoundError, UnavailableError
from daemoneye_mesh.identity import Identity, IdentityKind, VerifiedToken

OPERATOR = VerifiedToken(
    identity=Identity("daemoneye.local", IdentityKind.OPERATOR, "local"),
    audience="spiffe://daemoneye.local/agent/agent",
    domains=frozenset(),
    issued_at=datetime.min.replace(tzinfo=UTC),
    expires_at=datetime.max.replace(tzinfo=UTC),
)


@dataclass
class FakeClients:
    """Collectors that obey, or fail with ``error``."""

    error: Exception | None = None
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def _take(self, *call: Any) -> None:
        self.calls.append(call)
        if self.error:
            raise self.error

    async def pause(self, collector_id: str) -> None:
        self._take("pause", collector_id)

    async def resume(self, collector_id: str) -> None:
        self._take("resume", collector_id)

    async def begin(self, collector_id: str) -> None:
        self._take("begin", collector_id)

    async def stop(self, collector_id: str) -> None:
        self._take("stop", collector_id)

    async def restart(self, collector_id: str, idempotency_key: str) -> None:
        self._take("restart", collector_id, idempotency_key)

    async def check(self, collector_id: str) -> Any:
        self._take("check", collector_id)
        return collector_health_pb2.CheckHealthResponse(is_shedding=True)

    async def get_config(self, collector_id: str) -> Any:
        self._take("get_config", collector_id)
        return collector_config_pb2.GetConfigResponse(version=3)

    async def update_config(self, collector_id: str, update: Any) -> Any:
        self._take("update_config", collector_id, update)
        return collector_config_pb2.UpdateConfigResponse(version=4)

    async def counters(self, collector_id: str) -> Any:
        self._take("counters", collector_id)
        return collector_control_service_pb2.GetCollectorStatsResponse(emitted_count=9)

    async def end(
        self, collector_id: str, reason: str, *, force: bool, timeout_s: float | None
    ) -> None:
        self._take("end", collector_id, reason, force, timeout_s)


class Admin:
    """The servicer, asked by the operator ``local``."""

    def __init__(self) -> None:
        self.clients = FakeClients()
        self.registry = CollectorRegistry()
        coverage = Coverage(self.registry, lambda: True, dict)
        self._servicer = CollectorAdminServicer(self.registry, coverage, self.clients)  # type: ignore[arg-type]

    async def ask(self, method: str, **fields: Any) -> Any:
        current_caller.set(OPERATOR)
        fields = fields if method == "ListCollectors" else {"collector_id": "procmond", **fields}
        request = getattr(pb, f"{method}Request")(**fields)
        return await getattr(self._servicer, method)(request, None)


@pytest.fixture
def admin() -> Admin:
    return Admin()


ASKED = {
    "PauseCollector": ("pause", "procmond"),
    "ResumeCollector": ("resume", "procmond"),
    "StartCollector": ("begin", "procmond"),
    "StopCollector": ("stop", "procmond"),
    "CheckCollector": ("check", "procmond"),
    "GetCollectorConfig": ("get_config", "procmond"),
    "GetCollectorCounters": ("counters", "procmond"),
    "EndCollector": ("end", "procmond", "asked by operator/local", False, None),
}


@pytest.mark.parametrize("method", ASKED)
async def test_method_asks_the_collector_that_is_named(admin: Admin, method: str) -> None:
    await admin.ask(method)
    assert admin.clients.calls == [ASKED[method]]


async def test_answers_of_the_collector_are_passed_on(admin: Admin) -> None:
    assert (await admin.ask("CheckCollector")).health.is_shedding is True
    assert (await admin.ask("GetCollectorConfig")).config.version == 3
    assert (await admin.ask("GetCollectorCounters")).stats.emitted_count == 9
    update = collector_config_pb2.UpdateConfigRequest(changes={"a": "1"}, expected_version=3)
    assert (await admin.ask("ConfigureCollector", update=update)).update.version == 4
    update.on_behalf_of = "operator/local"
    assert admin.clients.calls[-1] == ("update_config", "procmond", update)


async def test_change_is_recorded_for_whoever_asked_whatever_the_request_claims(
    admin: Admin,
) -> None:
    forged = collector_config_pb2.UpdateConfigRequest(on_behalf_of="operator/somebody-else")
    await admin.ask("ConfigureCollector", update=forged)
    assert admin.clients.calls[0][2].on_behalf_of == "operator/local"


async def test_restart_carries_the_key_of_the_caller(admin: Admin) -> None:
    await admin.ask("RestartCollector", idempotency_key="k" * 64)
    assert admin.clients.calls == [("restart", "procmond", "k" * 64)]


async def test_end_carries_reason_force_and_time(admin: Admin) -> None:
    await admin.ask("EndCollector", reason="new kernel", timeout={"nanos": 100_000_000})
    await admin.ask("EndCollector", force=True)
    assert admin.clients.calls == [
        ("end", "procmond", "new kernel (asked by operator/local)", False, 0.1),
        ("end", "procmond", "asked by operator/local", True, None),
    ]


@pytest.mark.parametrize("collector_id", ["", "x" * 65, "../procmond", "PROCMOND", "a\nb"])
@pytest.mark.parametrize("method", [*ASKED, "RestartCollector", "ConfigureCollector"])
async def test_what_no_collector_can_be_called_is_not_found_and_not_logged(
    admin: Admin, caplog: pytest.LogCaptureFixture, method: str, collector_id: str
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(NotFoundError, match="there is no collector"):
        await admin.ask(method, collector_id=collector_id)
    assert (admin.clients.calls, caplog.records) == ([], [])


Update = collector_config_pb2.UpdateConfigRequest


@pytest.mark.parametrize(
    ("method", "fields", "field"),
    [
        ("RestartCollector", {"idempotency_key": ""}, "idempotency_key"),
        ("RestartCollector", {"idempotency_key": "x" * 65}, "idempotency_key"),
        ("RestartCollector", {"idempotency_key": "é" * 33}, "idempotency_key"),
        ("ConfigureCollector", {"update": Update(idempotency_key="x" * 65)}, "idempotency_key"),
        (
            "ConfigureCollector",
            {"update": Update(changes={f"a{number}": "" for number in range(65)})},
            "changes",
        ),
        ("ConfigureCollector", {"update": Update(changes={"": "1"})}, "changes"),
        ("ConfigureCollector", {"update": Update(changes={"x" * 65: "1"})}, "changes"),
        ("ConfigureCollector", {"update": Update(reset_fields=["a"] * 65)}, "reset_fields"),
        ("ConfigureCollector", {"update": Update(reset_fields=[""])}, "reset_fields"),
        ("EndCollector", {"reason": "x" * 257}, "reason"),
        ("EndCollector", {"timeout": {"nanos": 99_000_000}}, "timeout"),
        ("EndCollector", {"timeout": {"seconds": 301}}, "timeout"),
        ("EndCollector", {"timeout": {"seconds": -1}}, "timeout"),
        ("EndCollector", {"timeout": {"seconds": 1}, "force": True}, "timeout"),
    ],
)
async def test_request_beyond_its_bounds_is_refused_by_field_and_nobody_is_asked(
    admin: Admin, method: str, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequestError, match=rf"^{field} is .*; use ") as refused:
        await admin.ask(method, **fields)
    assert refused.value.metadata["field"] == field
    assert admin.clients.calls == []


async def test_as_many_changes_as_allowed_are_passed_on(admin: Admin) -> None:
    update = Update(changes={f"a{number}": "1" for number in range(64)})
    await admin.ask("ConfigureCollector", update=update)
    assert len(admin.clients.calls) == 1


@pytest.mark.parametrize(
    ("method", "fields", "said"),
    [
        ("PauseCollector", {}, "pause"),
        ("StopCollector", {}, "stop"),
        ("RestartCollector", {"idempotency_key": "k"}, "restart"),
        ("EndCollector", {}, "shut down"),
        ("EndCollector", {"force": True}, "exit at once"),
        (
            "ConfigureCollector",
            {"update": Update(changes={"b": "1"}, reset_fields=["a"])},
            "change a, b",
        ),
    ],
)
async def test_what_takes_something_away_is_a_warning_even_when_no_answer_comes(
    admin: Admin,
    caplog: pytest.LogCaptureFixture,
    method: str,
    fields: dict[str, Any],
    said: str,
) -> None:
    admin.clients.error = UnavailableError("collector procmond cannot be asked")
    with pytest.raises(UnavailableError):
        await admin.ask(method, **fields)
    (record,) = caplog.records
    assert record.getMessage() == f"operator/local asks collector procmond to {said}"
    assert record.levelno == logging.WARNING


async def test_check_of_a_change_is_no_warning(
    admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    update = Update(changes={"a": "1"}, validate_only=True)
    await admin.ask("ConfigureCollector", update=update)
    assert caplog.records == []


# -- the list -------------------------------------------------------------------------------------


async def list_one(admin: Admin, **beat: Any) -> pb.CollectorInfo:
    admin.registry.register(RegistrationRequest("procmond", 1), "procmond")
    if beat:
        admin.registry.heartbeat(Heartbeat("procmond", 1, 1, **beat), "procmond")
    (info,) = (await admin.ask("ListCollectors")).collectors
    assert isinstance(info, pb.CollectorInfo)
    return info


async def test_list_has_what_the_last_heartbeat_said(admin: Admin) -> None:
    status = collector_health_pb2.COLLECTOR_STATUS_RECOVERABLE_ERROR
    info = await list_one(
        admin, status=int(status), is_shedding=True, config_version=7, metrics={"a": 1.5}
    )
    assert (info.status, info.is_shedding, info.config_version) == (status, True, 7)
    assert dict(info.metrics) == {"a": 1.5}
    assert info.HasField("last_heartbeat_at")


async def test_collector_that_has_not_beaten_has_said_nothing(admin: Admin) -> None:
    info = await list_one(admin)
    assert info.status == collector_health_pb2.COLLECTOR_STATUS_UNSPECIFIED
    assert (info.unacknowledged_count, info.HasField("last_heartbeat_at")) == (0, False)


@pytest.mark.parametrize(
    ("positions", "count"),
    [
        ([], 0),
        ([LogPosition(2, 91, 100, 90)], 10),
        ([LogPosition(2, 91, 100, 95)], 5),
        ([LogPosition(2, 91, 100, 0)], 10),  # what came before 91 is lost, nobody waits for it
        ([LogPosition(2, 101, 100, 80)], 0),
        ([LogPosition(2, 1, 4, 3), LogPosition(1, 11, 20, 14)], 7),
        ([LogPosition(2, 1, 4, 9)], 0),
        ([LogPosition(number, 0, 2**63 - 1, 0) for number in range(17)], 2**64 - 1),
    ],
)
async def test_backlog_is_what_the_log_holds_and_nobody_acknowledged(
    admin: Admin, positions: list[LogPosition], count: int
) -> None:
    info = await list_one(admin, log_positions=tuple(positions))
    assert info.unacknowledged_count == count
