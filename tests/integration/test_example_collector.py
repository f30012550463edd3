"""The collector of the README runs, and a subscriber hears it."""

import asyncio
import os
import re
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from collector_core.bus import BusSubscription, Delivery, SubscriptionOptions
from collector_core.tokens import TokenKeeper
from daemoneye.agent.v1 import registry_service_pb2_grpc
from daemoneye_mesh.channel import open_channel

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "collector-python" / "loadmon.py"


def test_readme_shows_the_example_as_it_is() -> None:
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert shown is not None
    assert shown.group(1) == EXAMPLE.read_text()


async def test_example_collector_publishes_through_the_mesh(cold_mesh: Any) -> None:
    collectors = "procmond=process,loadmon=performance"
    await cold_mesh.start("agent", "--collectors", collectors)
    await cold_mesh.start("eventbus")
    await cold_mesh.wait_serving("agent", "eventbus")
    example = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLE), env=cold_mesh.environment
    )
    layout = cold_mesh.layout
    registry: Any = registry_service_pb2_grpc.RegistryServiceStub(cold_mesh.channel())
    tokens = TokenKeeper(registry, (layout.broker,))
    bus = open_channel(layout.eventbus_socket, tokens.source(layout.broker))
    try:
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            keeper = group.create_task(tokens.run())
            options = SubscriptionOptions(["events.performance.#"], subscriber_id="test")
            seen = await first_record(BusSubscription(bus, options))
            keeper.cancel()
    finally:
        await bus.close()
        example.terminate()
        assert await example.wait() == 0
    assert seen.metric_name == "load1"
    assert abs(seen.value - os.getloadavg()[0]) < 100


async def first_record(subscription: BusSubscription) -> Any:
    async with aclosing(subscription.items()) as items:
        async for item in items:
            if isinstance(item, Delivery):
                return item.messages[0].collection_event.performance_event.performance
    raise AssertionError("the subscription ended")
