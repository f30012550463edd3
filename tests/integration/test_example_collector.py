"""The template of a collector: the README shows it, a mesh hears it, its own tests pass."""

import asyncio
import os
import re
import subprocess
import sys
import tomllib
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
TEMPLATE = ROOT / "examples" / "collector-python"
EXAMPLE = TEMPLATE / "loadmon.py"
TESTS_LIMIT_S = 60


def test_readme_shows_the_example_as_it_is() -> None:
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert shown is not None
    assert shown.group(1) == EXAMPLE.read_text()


def test_the_tests_of_the_template_pass() -> None:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DAEMONEYE_", "PYTEST_"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=TEMPLATE,
        env=kept,
        capture_output=True,
        text=True,
        timeout=TESTS_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b[1-9]\d* passed", done.stdout)
    assert "skipped" not in done.stdout


def test_the_settings_of_the_template_are_accepted() -> None:
    done = subprocess.run(
        [sys.executable, "loadmon.py", "--config", "loadmon.toml", "--show-config"],
        cwd=TEMPLATE,
        capture_output=True,
        text=True,
        timeout=TESTS_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in tomllib.loads((TEMPLATE / "loadmon.toml").read_text()):
        assert re.search(rf"^{name} = .*# file loadmon\.toml$", done.stdout, re.MULTILINE), name


def test_what_the_template_packs_is_there() -> None:
    project = tomllib.loads((TEMPLATE / "pyproject.toml").read_text())
    packed = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert packed == [EXAMPLE.name]
    assert (TEMPLATE / project["project"]["readme"]).is_file()


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
