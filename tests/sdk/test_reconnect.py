"""Trying again: what is retried, how the pauses grow, and what a person is told."""

import logging
import time

import grpc
import grpc.aio
import pytest

from collector_core.bus.reconnect import (
    MAX_PAUSE_S,
    STEADY_S,
    SessionBackoff,
    explain,
    is_worth_retrying,
    keep_trying,
)
from daemoneye_mesh.errors import ConflictError, RateLimitedError, UnavailableError


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def failed_call(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


async def test_an_attempt_is_repeated_until_it_succeeds_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outcomes = [UnavailableError("not yet"), failed_call(grpc.StatusCode.UNAVAILABLE, "down"), None]

    async def attempt() -> str:
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome
        return "done"

    with caplog.at_level(logging.WARNING):
        assert await keep_trying("reach it", lambda: attempt()) == "done"  # noqa: PLW0108 -- a lambda is no coroutine function
    assert [record.getMessage() for record in caplog.records] == [
        "cannot reach it yet, trying on: not yet"
    ]


async def test_being_superseded_is_final() -> None:
    async def attempt() -> None:
        raise failed_call(grpc.StatusCode.ABORTED, "a newer instance")

    with pytest.raises(ConflictError):
        await keep_trying("register", attempt)


async def test_a_defect_is_not_retried() -> None:
    async def attempt() -> None:
        raise KeyError("defect")

    with pytest.raises(KeyError):
        await keep_trying("register", attempt)
    assert not is_worth_retrying(KeyError("defect"))


def test_sessions_that_break_at_once_are_spaced_further_and_further() -> None:
    clock = Clock()
    backoff = SessionBackoff(clock)
    limits_s = []
    for _ in range(12):
        backoff.begin()
        limits_s.append(backoff.next_limit_s())
    assert limits_s[:4] == [0.2, 0.4, 0.8, 1.6]
    assert limits_s[-1] == MAX_PAUSE_S
    backoff.begin()
    clock.now_s += STEADY_S
    assert backoff.next_limit_s() == 0.2, "a session that lasted starts over"


def test_a_dead_socket_is_explained_without_the_words_of_the_transport() -> None:
    error = failed_call(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; …")
    assert explain(error) == "nobody answers on its socket"


async def test_a_peer_that_says_when_to_come_back_is_left_alone_until_then() -> None:
    backoff = SessionBackoff()
    begun_s = time.monotonic()
    await backoff.pause(at_least_s=0.3)
    assert time.monotonic() - begun_s >= 0.3


async def test_an_attempt_is_repeated_only_when_the_peer_said_so() -> None:
    at_s: list[float] = []

    async def attempt() -> None:
        at_s.append(time.monotonic())
        if len(at_s) == 1:
            raise RateLimitedError("too fast; wait", retry_after_s=0.3)

    await keep_trying("publish", attempt)
    assert at_s[1] - at_s[0] >= 0.3
