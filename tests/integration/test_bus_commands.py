"""``daemoneye bus`` against the real mesh: what one command sends the others show."""

import asyncio
import json
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.integration

TOPIC = "control.operator.local.drill"
TAIL_S = 20


async def start_command(mesh: Any, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "daemoneye_cli", "bus", *arguments, "--format", "json"),
        env=mesh.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def read_document(process: asyncio.subprocess.Process) -> Any:
    said, complained = await asyncio.wait_for(process.communicate(), TAIL_S)
    assert process.returncode == 0, complained.decode()
    return json.loads(said)


async def run_command(mesh: Any, *arguments: str) -> Any:
    return await read_document(await start_command(mesh, *arguments))


async def test_published_message_is_tailed_and_counted_everywhere(mesh: Any) -> None:
    tail = await start_command(mesh, "tail", "control.operator.#", "--count", "1")
    try:

        async def is_followed() -> Any:
            listed = await run_command(mesh, "subscribers")
            assert listed["adds_up"]
            return [one for one in listed["subscriptions"] if one["identity"] == "operator/local"]

        await mesh.until(is_followed, "the tail has subscribed")
        sending = ("publish", TOPIC, "--param", "text=hello", "--require-subscriber")
        await run_command(mesh, *sending)
        message = await read_document(tail)
    finally:
        if tail.returncode is None:
            tail.kill()
            await tail.wait()
    assert message["metadata"]["topic"] == TOPIC
    assert message["control_message"]["parameters"] == {"text": "hello"}

    topics = (await run_command(mesh, "topics", "--limit", "256"))["topics"]
    assert [one["published_count"] for one in topics if one["topic"] == TOPIC] == [1]
    identities = (await run_command(mesh, "identities"))["identities"]
    published = {one["identity"]: one["published_count"] for one in identities}
    assert published["operator/local"] == 1
    frame = await run_command(mesh, "top", "--count", "1", "--interval", "1")
    assert frame["adds_up"]
