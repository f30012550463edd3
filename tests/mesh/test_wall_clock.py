"""Waiting for what ends by the wall clock."""

import asyncio
import time
from typing import Any

import pytest

from daemoneye_mesh import wall_clock
from daemoneye_mesh.wall_clock import sleep_unless_set

GUARD_S = 10


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(wall_clock, "NAP_S", 0.01)
    real, offset_s = time.time, 0.0

    def set_clock(by_s: float) -> None:
        nonlocal offset_s
        offset_s += by_s

    monkeypatch.setattr(wall_clock.time, "time", lambda: real() + offset_s)
    return set_clock


@pytest.mark.parametrize("by_s", [3600.0, -3600.0], ids=["forward", "back"])
async def test_sleep_ends_when_the_clock_is_set(step: Any, by_s: float) -> None:
    sleeping = asyncio.ensure_future(sleep_unless_set(3600))
    await asyncio.sleep(0)
    step(by_s)
    async with asyncio.timeout(GUARD_S):
        await sleeping


async def test_sleep_that_nobody_disturbs_lasts(step: Any) -> None:
    begun_s = time.monotonic()
    step(1.0)  # no more than a clock may wander
    await sleep_unless_set(0.05)
    assert time.monotonic() - begun_s >= 0.05


async def test_sleep_for_the_past_ends_at_once() -> None:
    await sleep_unless_set(-1)
