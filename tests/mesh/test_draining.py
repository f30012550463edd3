"""Request streams end with their server."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from daemoneye_mesh.draining import read_until_drained
from daemoneye_mesh.errors import ErrorReason, UnavailableError

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


async def endless() -> AsyncIterator[int]:
    number = 0
    while True:
        yield number
        number += 1


async def silence() -> AsyncIterator[int]:
    await asyncio.Event().wait()
    yield 0


async def breaking() -> AsyncIterator[int]:
    yield 1
    raise ConnectionError("gone")


async def test_reading_yields_everything_until_the_stream_ends() -> None:
    assert [item async for item in read_until_drained(numbers(3), asyncio.Event())] == [0, 1, 2]


async def test_reading_ends_when_the_server_drains_while_nothing_comes() -> None:
    draining = asyncio.Event()
    reading = asyncio.create_task(anext(read_until_drained(silence(), draining)))
    await asyncio.sleep(0)
    draining.set()
    with pytest.raises(UnavailableError) as ended:
        await reading
    assert ended.value.reason is ErrorReason.DRAINING


async def test_reading_ends_when_the_server_drains_although_the_peer_never_pauses() -> None:
    draining = asyncio.Event()
    requests = read_until_drained(endless(), draining)
    assert [await anext(requests) for _ in range(5)] == [0, 1, 2, 3, 4]
    draining.set()
    with pytest.raises(UnavailableError):
        await anext(requests)


async def test_reading_takes_nothing_from_a_server_that_drains_already() -> None:
    draining = asyncio.Event()
    draining.set()
    with pytest.raises(UnavailableError):
        await anext(read_until_drained(numbers(1), draining))


async def test_reading_passes_on_what_breaks_the_stream() -> None:
    requests = read_until_drained(breaking(), asyncio.Event())
    assert await anext(requests) == 1
    with pytest.raises(ConnectionError):
        await anext(requests)


async def test_reading_that_is_closed_early_leaves_no_task() -> None:
    requests = read_until_drained(endless(), asyncio.Event())
    await anext(requests)
    await requests.aclose()


async def test_reading_that_is_cancelled_leaves_no_task() -> None:
    reading = asyncio.create_task(anext(read_until_drained(silence(), asyncio.Event())))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
