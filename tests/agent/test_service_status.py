"""Status and collectors for operators: what does not work is said, and pausing needs a collector."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio
import pytest

from daemoneye.agent.v1 import (
    collector_admin_service_pb2,
    collector_admin_service_pb2_grpc,
    status_service_pb2,
    status_service_pb2_grpc,
)
from daemoneye.common.v1 import completeness_pb2
from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_agent.coverage import Coverage
from daemoneye_agent.pipeline import Pipeline
from daemoneye_agent.registry import CollectorRegistry, RegistrationRequest
from daemoneye_agent.rule import Rule, load_builtin_rules
from daemoneye_agent.rulebook import BUILT_IN, LoadedRule, Rulebook
from daemoneye_agent.service_status import StatusServicer
from daemoneye_agent.store_thread import StoreThread

Explain = Callable[[grpc.aio.AioRpcError], tuple[str, str, str]]


@dataclass
class FakeBus:
    since_ns: int = 0
    refusal: str = ""


@dataclass
class Parts:
    servicer: StatusServicer
    pipeline: Pipeline
    registry: CollectorRegistry
    bus: FakeBus

    async def read(self) -> Any:
        return await self.servicer.GetStatus(status_service_pb2.GetStatusRequest(), None)

    async def component(self, name: str) -> Any:
        (found,) = [one for one in (await self.read()).components if one.component == name]
        return found


@pytest.fixture
async def parts(store: StoreThread, make_rule: Callable[..., Rule]) -> AsyncIterator[Parts]:
    book = Rulebook([LoadedRule(make_rule(), BUILT_IN)], {})
    registry, bus = CollectorRegistry(), FakeBus()
    coverage = Coverage(registry, lambda: bus.since_ns > 0, lambda: book.failing)
    pipeline = Pipeline(store, book, coverage, lambda _: None)
    servicer = StatusServicer(
        store=store,
        rulebook=book,
        pipeline=pipeline,
        registry=registry,
        coverage=coverage,
        bus=bus,
    )
    yield Parts(servicer, pipeline, registry, bus)
    await store.run(lambda _: book.close())


async def test_status_counts_what_came_and_what_became_of_it(
    parts: Parts, make_message: Callable[..., eventbus_pb2.EventBusMessage]
) -> None:
    await parts.pipeline.process(
        [make_message(1), make_message(1), make_message(4), make_message(5, pid=0)], 1
    )
    status = await parts.read()
    ingest = status.ingest
    assert (ingest.received_count, ingest.stored_count, ingest.duplicate_count) == (5, 2, 1)
    assert dict(ingest.refused_count) == {"request_invalid": 1, "undecodable": 1}
    assert ingest.received_count == (
        ingest.stored_count + ingest.duplicate_count + sum(ingest.refused_count.values())
    )
    assert (ingest.lost_count, ingest.alert_count) == (3, 3), "the loss has an alert, too"
    assert (status.store.event_count, status.enabled_rule_count) == (2, 1)
    assert status.store.HasField("oldest_event_at")
    assert status.store.size_bytes > 0
    assert status.version


async def test_status_of_an_empty_store_has_no_times(parts: Parts) -> None:
    status = await parts.read()
    assert not status.store.HasField("oldest_event_at")
    assert status.completeness.state == completeness_pb2.COMPLETENESS_STATE_DEGRADED


async def test_status_says_that_the_bus_is_not_heard_and_why(parts: Parts) -> None:
    broker = await parts.component("eventbus")
    assert (broker.is_serving, broker.message) == (False, "not reached")
    parts.bus.refusal = "the agent may not subscribe"
    assert (await parts.component("eventbus")).message == "the agent may not subscribe"
    parts.bus.since_ns = 5
    broker = await parts.component("eventbus")
    assert (broker.is_serving, broker.since.ToNanoseconds()) == (True, 5)


async def test_status_says_that_events_cannot_be_stored(parts: Parts) -> None:
    assert (await parts.component("agent")).is_serving
    parts.pipeline.trouble = "the disk is full"
    agent = await parts.component("agent")
    assert (agent.is_serving, "disk is full" in agent.message) == (False, True)


async def test_status_lists_collectors_that_do_not_serve(parts: Parts) -> None:
    parts.registry.register(RegistrationRequest("procmond", 1), "procmond")
    collector = await parts.component("procmond")
    assert (collector.is_serving, collector.message) == (False, "registered: registered")


async def test_status_is_answered_over_the_socket(agent: Any) -> None:
    stub = status_service_pb2_grpc.StatusServiceStub(agent.operator())
    status = await stub.GetStatus(status_service_pb2.GetStatusRequest(), timeout=5)
    assert [one.component for one in status.components] == ["agent", "eventbus"]
    assert status.enabled_rule_count == sum(rule.enabled for rule in load_builtin_rules())


@pytest.mark.parametrize("collector_id", ["", "gone", "../procmond"])
@pytest.mark.parametrize("method", ["Pause", "Resume"])
async def test_unknown_collector_is_not_found(
    agent: Any, explain: Explain, method: str, collector_id: str
) -> None:
    stub = collector_admin_service_pb2_grpc.CollectorAdminServiceStub(agent.operator())
    request = getattr(collector_admin_service_pb2, f"{method}CollectorRequest")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await getattr(stub, f"{method}Collector")(request(collector_id=collector_id), timeout=5)
    code, reason, said = explain(failed.value)
    assert (code, reason) == ("NOT_FOUND", "NOT_FOUND")
    assert "daemoneye collectors" in said
