"""Waiting for something that ends by the wall clock, which somebody may set meanwhile."""

import asyncio
import time

__all__ = ["sleep_unless_set"]

NAP_S = 1.0
STEP_S = 2.0
"""How far the wall clock may wander off before it counts as set."""


async def sleep_unless_set(delay_s: float) -> None:
    """Returns after ``delay_s`` on the monotonic clock, or sooner when the wall clock was set.

    What was issued before is then over, or is not valid yet.
    """
    due_s, booted_at_s = time.monotonic() + delay_s, _booted_at_s()
    while (left_s := due_s - time.monotonic()) > 0:
        await asyncio.sleep(min(left_s, NAP_S))
        if abs(_booted_at_s() - booted_at_s) > STEP_S:
            return


def _booted_at_s() -> float:
    # Both go on while the host is suspended: only setting the wall clock parts them.
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
