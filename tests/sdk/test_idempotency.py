import asyncio

import pytest

from collector_core.idempotency import REMEMBERED_CALLS, IdempotencyCache
from daemoneye_mesh.errors import (
    ErrorReason,
    InvalidRequestError,
    OverloadedError,
    PreconditionError,
    UnavailableError,
)

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")


class Work:
    """Counts how often it was begun and ended; waits while held."""

    def __init__(self, error=None):
        self.begun = 0
        self.cancelled = 0
        self.error = error
        self.go = asyncio.Event()
        self.go.set()
        self.clean = asyncio.Event()
        self.clean.set()

    async def __call__(self):
        self.begun += 1
        number = self.begun
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            await self.clean.wait()
            raise
        if self.error:
            raise self.error
        return number


@pytest.fixture
async def work():
    return Work()


@pytest.fixture
async def cache():
    return IdempotencyCache()


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


async def test_same_key_is_carried_out_once_and_answered_the_same(cache, work):
    assert [await cache.run("k", b"r", work) for _ in range(3)] == [1, 1, 1]
    assert await cache.run("other", b"r", work) == 2


async def test_same_key_with_another_request_is_refused(cache, work, running):
    await cache.run("k", b"r", work)
    work.go.clear()
    running(cache.run("in flight", b"r", work))
    await settle()
    for key in ("k", "in flight"):
        with pytest.raises(InvalidRequestError) as refused:
            await cache.run(key, b"other", work)
        assert refused.value.reason is ErrorReason.REQUEST_INVALID
        assert refused.value.metadata["field"] == "idempotency_key"
    assert work.begun == 2


async def test_callers_at_the_same_time_wait_for_the_same_outcome(cache, work, running):
    work.go.clear()
    calls = [running(cache.run("k", b"r", work)) for _ in range(3)]
    await settle()
    assert work.begun == 1
    work.go.set()
    assert [await call for call in calls] == [1, 1, 1]


async def test_refusal_is_answered_again(cache):
    work = Work(PreconditionError("not now; wait"))
    errors = []
    for _ in range(2):
        with pytest.raises(PreconditionError) as refused:
            await cache.run("k", b"r", work)
        errors.append(refused.value)
    assert errors[0] is errors[1]
    assert work.begun == 1


@pytest.mark.parametrize("error", [UnavailableError("later"), RuntimeError("defect")])
async def test_failure_that_may_pass_is_not_remembered(cache, error):
    work = Work(error)
    with pytest.raises(type(error)):
        await cache.run("k", b"r", work)
    work.error = None
    assert await cache.run("k", b"r", work) == 2


async def test_caller_that_leaves_does_not_end_the_work_of_another(cache, work, running):
    work.go.clear()
    first, second = (running(cache.run("k", b"r", work)) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    assert first.cancelled()
    work.go.set()
    assert await second == 1
    assert work.cancelled == 0


async def test_work_ends_with_the_last_caller_and_is_forgotten(cache, work, running):
    work.go.clear()
    calls = [running(cache.run("k", b"r", work)) for _ in range(2)]
    await settle()
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert (work.begun, work.cancelled) == (1, 1)
    work.go.set()
    assert await cache.run("k", b"another request", work) == 2


async def test_last_caller_leaves_after_the_work_has_cleaned_up(cache, work, running):
    work.go.clear()
    work.clean.clear()
    call = running(cache.run("k", b"r", work))
    await settle()
    call.cancel()
    await settle()
    call.cancel()
    await settle()
    assert (work.cancelled, call.done()) == (1, False)
    work.clean.set()
    await asyncio.wait({call})
    assert call.cancelled()


async def test_caller_that_comes_while_the_work_is_given_up_begins_anew(cache, work, running):
    work.go.clear()
    work.clean.clear()
    call = running(cache.run("k", b"r", work))
    await settle()
    call.cancel()
    await settle()
    late = running(cache.run("k", b"r", work))
    await settle()
    assert work.begun == 1
    work.go.set()
    work.clean.set()
    assert await late == 2


async def test_work_that_cancels_itself_is_forgotten(cache, work):
    async def odd():
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await cache.run("k", b"r", odd)
    assert await cache.run("k", b"r", work) == 1


async def test_last_calls_are_remembered_and_older_ones_are_not(cache, work):
    for number in range(REMEMBERED_CALLS + 1):
        await cache.run(f"k{number}", b"r", work)
    for number in range(1, REMEMBERED_CALLS + 1):
        assert await cache.run(f"k{number}", b"r", work) == number + 1
    assert await cache.run("k0", b"r", work) == REMEMBERED_CALLS + 2


async def test_call_that_comes_again_counts_as_a_call(work):
    cache = IdempotencyCache(capacity=2)
    for key in ("a", "b", "a", "c"):
        await cache.run(key, b"r", work)
    assert await cache.run("a", b"r", work) == 1
    assert await cache.run("b", b"r", work) == 4


async def test_calls_at_the_same_time_are_bounded(work, running):
    cache = IdempotencyCache(capacity=2)
    work.go.clear()
    for key in ("a", "b"):
        running(cache.run(key, b"r", work))
    await settle()
    with pytest.raises(OverloadedError) as refused:
        await cache.run("c", b"r", work)
    assert refused.value.reason is ErrorReason.LIMIT_REACHED


@pytest.mark.parametrize("key", ["", "x" * 65, "é" * 33])
async def test_key_out_of_bounds_is_refused(cache, work, key):
    with pytest.raises(InvalidRequestError, match="1 to 64"):
        await cache.run(key, b"r", work)
    assert work.begun == 0


async def test_key_of_the_largest_size_is_taken(cache, work):
    assert await cache.run("é" * 32, b"r", work) == 1
