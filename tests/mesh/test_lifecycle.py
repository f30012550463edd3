import asyncio
import os
import signal
import subprocess
import sys

import pytest

from daemoneye_mesh.lifecycle import REPEAT_S, StopRequest, watch_signals

GUARD_S = 15

CHILD = """
import asyncio, itertools, sys
from daemoneye_mesh.lifecycle import StopRequest, watch_signals

async def main():
    seconds = itertools.count()
    stop = StopRequest(lambda: float(next(seconds)))
    with watch_signals(stop):
        print("ready", flush=True)
        await stop.wait()
        print(stop.reason, flush=True)
        if "linger" in sys.argv:
            await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def start():
    children = []

    def start_child(*arguments):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, text=True
        )
        children.append(child)
        assert child.stdout.readline() == "ready\n"
        return child

    yield start_child
    for child in children:
        child.kill()
        child.wait()
        child.stdout.close()


async def test_first_reason_of_a_stop_stays():
    stop = StopRequest()
    assert not stop.is_set
    stop.request("first")
    stop.request("second")
    async with asyncio.timeout(GUARD_S):
        await stop.wait()
    assert (stop.is_set, stop.reason) == (True, "first")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_asks_for_a_stop(start, number):
    child = start()
    child.send_signal(number)
    assert child.stdout.readline() == f"received {number.name}\n"
    assert child.wait(GUARD_S) == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)],
)
def test_second_signal_ends_the_process_with_the_conventional_status(start, first, second):
    child = start("linger")
    child.send_signal(first)
    assert child.stdout.readline() == f"received {first.name}\n"
    child.send_signal(second)
    assert child.wait(GUARD_S) == 128 + second


def test_signals_close_together_are_one_wish():
    """The kernel repeats a parent-death signal for each thread of the parent."""
    clock = [100.0]
    stop = StopRequest(lambda: clock[0])
    assert not stop.is_urgent
    stop.request("received SIGTERM")
    clock[0] += REPEAT_S / 2
    assert not stop.is_urgent
    clock[0] += REPEAT_S
    assert stop.is_urgent


async def test_signals_are_watched_inside_the_block_only():
    stop = StopRequest()
    with watch_signals(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(GUARD_S):
            await stop.wait()
    assert stop.reason == "received SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
