"""Leases, heartbeats and tokens over a real socket."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc.aio
import pytest

from daemoneye.agent.v1 import (
    collector_admin_service_pb2,
    collector_admin_service_pb2_grpc,
    registry_service_pb2,
    registry_service_pb2_grpc,
)
from daemoneye.common.v1 import common_pb2, completeness_pb2
from daemoneye.ipc.v1 import collector_health_pb2, event_log_pb2, ipc_pb2
from daemoneye_mesh.token import TokenVerifier

pb = registry_service_pb2
Explain = Callable[[grpc.aio.AioRpcError], tuple[str, str, str]]
OPEN_COMPLETE = completeness_pb2.Completeness(state=completeness_pb2.COMPLETENESS_STATE_COMPLETE)

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")


def make_request(agent: Any, **changes: Any) -> registry_service_pb2.RegisterCollectorRequest:
    values: dict[str, Any] = {
        "collector_id": "procmond",
        "instance_epoch": 5,
        "version": "1",
        "socket_path": str(agent.layout.collector_socket("procmond")),
        "domains": [ipc_pb2.MONITORING_DOMAIN_PROCESS],
        "task_types": [common_pb2.TASK_TYPE_ENUMERATE_PROCESSES],
        "pid": 77,
        **changes,
    }
    return pb.RegisterCollectorRequest(**values)


def registry_of(channel: grpc.aio.Channel) -> Any:
    return registry_service_pb2_grpc.RegistryServiceStub(channel)


async def refused(call: Awaitable[Any], explain: Explain) -> tuple[str, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return explain(failed.value)


async def states(agent: Any) -> list[tuple[str, str]]:
    stub = collector_admin_service_pb2_grpc.CollectorAdminServiceStub(agent.operator())
    answer = await stub.ListCollectors(
        collector_admin_service_pb2.ListCollectorsRequest(), timeout=5
    )
    name = collector_admin_service_pb2.CollectorState.Name
    return [(one.collector_id, name(one.state)) for one in answer.collectors]


async def test_registration_grants_a_lease_and_may_be_repeated(agent: Any) -> None:
    stub = registry_of(agent.collector())
    request = make_request(agent)
    request.heartbeat_interval.FromMilliseconds(2_000)
    for _ in range(2):
        lease = await stub.RegisterCollector(request, timeout=5)
        assert lease.heartbeat_interval.ToMilliseconds() == 2_000
        assert lease.missed_heartbeat_limit == 3
    assert await states(agent) == [("procmond", "COLLECTOR_STATE_REGISTERED")]


@pytest.mark.parametrize(
    ("wanted_ms", "granted_ms"),
    [(None, 5_000), (0, 1_000), (-5_000, 1_000), (10, 1_000), (10**9, 60_000)],
)
async def test_registration_clamps_the_interval(
    agent: Any, wanted_ms: int | None, granted_ms: int
) -> None:
    request = make_request(agent)
    if wanted_ms is not None:
        request.heartbeat_interval.FromMilliseconds(wanted_ms)
    lease = await registry_of(agent.collector()).RegisterCollector(request, timeout=5)
    assert lease.heartbeat_interval.ToMilliseconds() == granted_ms


@pytest.mark.parametrize(
    ("changes", "code", "reason", "said"),
    [
        ({"collector_id": "other"}, "PERMISSION_DENIED", "ACCESS_DENIED", "MUST-REG-01"),
        ({"collector_id": ""}, "PERMISSION_DENIED", "ACCESS_DENIED", "MUST-REG-01"),
        ({"socket_path": "/tmp/x.sock"}, "INVALID_ARGUMENT", "REQUEST_INVALID", "must listen on"),
        ({"socket_path": ""}, "INVALID_ARGUMENT", "REQUEST_INVALID", "must listen on"),
        ({"domains": [99]}, "INVALID_ARGUMENT", "ENUM_UNKNOWN", "99"),
        ({"task_types": [99]}, "INVALID_ARGUMENT", "ENUM_UNKNOWN", "99"),
        ({"task_types": [-1]}, "INVALID_ARGUMENT", "ENUM_UNKNOWN", "-1"),
        ({"instance_epoch": 2**64 - 1}, "INVALID_ARGUMENT", "REQUEST_INVALID", "instance_epoch"),
        ({"pid": 2**32 - 1}, "INVALID_ARGUMENT", "REQUEST_INVALID", "pid"),
        ({"version": "v" * 600}, "INVALID_ARGUMENT", "REQUEST_INVALID", "version"),
        (
            {"domains": [ipc_pb2.MONITORING_DOMAIN_NETWORK]},
            "PERMISSION_DENIED",
            "ACCESS_DENIED",
            "not enrolled for network",
        ),
    ],
)
async def test_registration_is_refused_with_a_reason(
    agent: Any, explain: Explain, changes: dict[str, Any], code: str, reason: str, said: str
) -> None:
    call = registry_of(agent.collector()).RegisterCollector(make_request(agent, **changes))
    answer = await refused(call, explain)
    assert answer[:2] == (code, reason)
    assert said in answer[2]
    assert await states(agent) == []


async def test_older_instance_is_told_that_it_was_superseded(agent: Any, explain: Explain) -> None:
    stub = registry_of(agent.collector())
    await stub.RegisterCollector(make_request(agent, instance_epoch=9), timeout=5)
    for call in (
        stub.RegisterCollector(make_request(agent, instance_epoch=8)),
        stub.DeregisterCollector(
            pb.DeregisterCollectorRequest(collector_id="procmond", instance_epoch=8)
        ),
    ):
        assert (await refused(call, explain))[:2] == ("ABORTED", "SUPERSEDED")


async def test_good_bye_is_idempotent_also_for_whom_the_agent_does_not_know(agent: Any) -> None:
    stub = registry_of(agent.collector())
    good_bye = pb.DeregisterCollectorRequest(
        collector_id="procmond", instance_epoch=5, reason="stopped"
    )
    await stub.DeregisterCollector(good_bye, timeout=5)
    await stub.RegisterCollector(make_request(agent), timeout=5)
    for _ in range(2):
        await stub.DeregisterCollector(good_bye, timeout=5)
    assert await states(agent) == [("procmond", "COLLECTOR_STATE_DEREGISTERED")]


async def test_good_bye_for_somebody_else_is_refused(agent: Any, explain: Explain) -> None:
    request = pb.DeregisterCollectorRequest(collector_id="other", instance_epoch=5)
    call = registry_of(agent.collector()).DeregisterCollector(request)
    assert (await refused(call, explain))[:2] == ("PERMISSION_DENIED", "ACCESS_DENIED")


def make_beat(sequence: int, **changes: Any) -> registry_service_pb2.HeartbeatRequest:
    values: dict[str, Any] = {
        "collector_id": "procmond",
        "instance_epoch": 5,
        "heartbeat_sequence": sequence,
        "health": pb.COLLECTOR_HEALTH_OK,
        "completeness": OPEN_COMPLETE,
        **changes,
    }
    return pb.HeartbeatRequest(**values)


async def beats(*requests: registry_service_pb2.HeartbeatRequest) -> AsyncIterator[Any]:
    for request in requests:
        yield request


async def test_heartbeats_are_answered_and_carry_the_state(agent: Any) -> None:
    stub = registry_of(agent.collector())
    await stub.RegisterCollector(make_request(agent), timeout=5)
    call = stub.Heartbeat(
        beats(make_beat(1), make_beat(2, metrics={"events_emitted": 3.0})), timeout=5
    )
    assert [answer.heartbeat_sequence async for answer in call] == [1, 2]
    admin = collector_admin_service_pb2_grpc.CollectorAdminServiceStub(agent.operator())
    (info,) = (
        await admin.ListCollectors(collector_admin_service_pb2.ListCollectorsRequest(), timeout=5)
    ).collectors
    assert info.state == collector_admin_service_pb2.COLLECTOR_STATE_SERVING
    assert (dict(info.metrics), info.pid, list(info.domains)) == (
        {"events_emitted": 3.0},
        77,
        ["process"],
    )
    assert info.completeness.state == completeness_pb2.COMPLETENESS_STATE_COMPLETE
    assert info.HasField("last_heartbeat_at")


async def test_collector_that_fails_by_its_own_status_is_degraded(agent: Any) -> None:
    stub = registry_of(agent.collector())
    await stub.RegisterCollector(make_request(agent), timeout=5)
    beat = make_beat(
        1,
        status=collector_health_pb2.COLLECTOR_STATUS_PERMANENT_ERROR,
        log_positions=[event_log_pb2.LogPosition(last_sequence=1)] * 17,
    )
    await read_all(stub.Heartbeat(beats(beat), timeout=5))
    assert await states(agent) == [("procmond", "COLLECTOR_STATE_DEGRADED")]


async def read_all(call: Any) -> None:
    async for _ in call:
        pass


@pytest.mark.parametrize(
    ("beat", "code", "reason"),
    [
        (make_beat(1, instance_epoch=6), "FAILED_PRECONDITION", "NOT_REGISTERED"),
        (make_beat(1, instance_epoch=4), "ABORTED", "SUPERSEDED"),
        (make_beat(1, collector_id="other"), "PERMISSION_DENIED", "ACCESS_DENIED"),
        (make_beat(1, health=9), "INVALID_ARGUMENT", "ENUM_UNKNOWN"),
        (
            make_beat(1, metrics={f"m{n}": 1.0 for n in range(65)}),
            "INVALID_ARGUMENT",
            "REQUEST_INVALID",
        ),
        (
            make_beat(1, log_positions=[event_log_pb2.LogPosition()] * 18),
            "INVALID_ARGUMENT",
            "REQUEST_INVALID",
        ),
        (
            make_beat(
                1,
                log_positions=[event_log_pb2.LogPosition(losses=[event_log_pb2.EventLoss()] * 65)],
            ),
            "INVALID_ARGUMENT",
            "REQUEST_INVALID",
        ),
        (
            make_beat(1, log_positions=[event_log_pb2.LogPosition(last_sequence=2**63)]),
            "INVALID_ARGUMENT",
            "REQUEST_INVALID",
        ),
        (make_beat(1, config_version=2**63), "INVALID_ARGUMENT", "REQUEST_INVALID"),
    ],
)
async def test_heartbeat_stream_ends_with_a_reason(
    agent: Any, explain: Explain, beat: Any, code: str, reason: str
) -> None:
    stub = registry_of(agent.collector())
    await stub.RegisterCollector(make_request(agent), timeout=5)
    call = stub.Heartbeat(beats(beat), timeout=5)
    assert (await refused(read_all(call), explain))[:2] == (code, reason)


async def test_heartbeat_that_says_nothing_of_its_completeness_is_degraded(agent: Any) -> None:
    stub = registry_of(agent.collector())
    await stub.RegisterCollector(make_request(agent), timeout=5)
    silent = make_beat(1, completeness=completeness_pb2.Completeness())
    await read_all(stub.Heartbeat(beats(silent), timeout=5))
    admin = collector_admin_service_pb2_grpc.CollectorAdminServiceStub(agent.operator())
    (info,) = (
        await admin.ListCollectors(collector_admin_service_pb2.ListCollectorsRequest(), timeout=5)
    ).collectors
    assert info.completeness.state == completeness_pb2.COMPLETENESS_STATE_DEGRADED


async def test_token_is_of_the_caller_and_for_the_audience(agent: Any) -> None:
    layout = agent.layout
    stub = registry_of(agent.operator())
    answer = await stub.IssueToken(
        pb.IssueTokenRequest(audience=layout.broker.spiffe_id), timeout=5
    )
    check = TokenVerifier(layout.trust_bundle, layout.broker.spiffe_id, layout.trust_domain)
    assert check.verify(answer.token).identity == layout.operator()


@pytest.mark.parametrize(
    "audience", ["", "x", "spiffe://elsewhere.local/broker/eventbus", "spiffe://daemoneye.local/"]
)
async def test_token_for_what_is_no_service_is_refused(
    agent: Any, explain: Explain, audience: str
) -> None:
    call = registry_of(agent.operator()).IssueToken(pb.IssueTokenRequest(audience=audience))
    code, reason, said = await refused(call, explain)
    assert (code, reason) == ("INVALID_ARGUMENT", "REQUEST_INVALID")
    assert agent.layout.broker.spiffe_id in said


async def test_collector_gets_no_token_for_a_bus_that_the_agent_does_not_hear(
    agent: Any, explain: Explain
) -> None:
    request = pb.IssueTokenRequest(audience=agent.layout.broker.spiffe_id)
    call = registry_of(agent.collector()).IssueToken(request)
    assert (await refused(call, explain))[:2] == ("UNAVAILABLE", "PEER_UNAVAILABLE")


async def test_operator_may_only_ask_for_tokens(agent: Any, explain: Explain) -> None:
    call = registry_of(agent.operator()).RegisterCollector(make_request(agent))
    assert (await refused(call, explain))[:2] == ("PERMISSION_DENIED", "ACCESS_DENIED")


async def test_open_heartbeats_do_not_hold_up_a_stopping_agent(
    agent: Any, explain: Explain
) -> None:
    stub = registry_of(agent.collector())
    await stub.RegisterCollector(make_request(agent), timeout=5)
    forever = asyncio.Event()

    async def requests() -> AsyncIterator[Any]:
        yield make_beat(1)
        await forever.wait()

    call = stub.Heartbeat(requests())
    assert (await anext(aiter(call))).heartbeat_sequence == 1
    agent.stop.request("the test stops it")
    code, reason, _ = await refused(read_all(call), explain)
    assert (code, reason) == ("UNAVAILABLE", "DRAINING")
    forever.set()
    await agent.task
