"""What the worker programs have in common: a plan, a journal, and an orderly end.

A worker is a plain program: ``python publisher.py PLAN`` with the plan as JSON. It ends with the test
that started it, by SIGTERM in order, and by SIGKILL wherever it is.
"""

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc.aio

from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.token import FileTokenSource

__all__ = ["Journal", "Plan", "check_group", "encode_event", "open_bus", "run_worker", "work_until"]

PR_SET_PDEATHSIG = 1
Plan = dict[str, Any]


class Journal:
    """Lines that survive SIGKILL, each with one ``write``; a torn last line is cut off on opening."""

    def __init__(self, path: Path) -> None:
        path.touch()
        kept = path.read_bytes()
        end = kept.rfind(b"\n") + 1
        self.lines = kept[:end].decode().splitlines()
        """What was there before."""
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.ftruncate(self._file, end)

    def write(self, *lines: str) -> None:
        """Adds lines; they are there when this returns."""
        os.write(self._file, "".join(f"{line}\n" for line in lines).encode())


def encode_event(number: int, life: int, stamp_ns: int, padding: str = "") -> bytes:
    """An event that says in itself which one it is, so that a mixed-up envelope is noticed."""
    headers = {"number": str(number), "life": str(life), "stamp": str(stamp_ns)}
    if padding:
        headers["padding"] = padding
    message = eventbus_pb2.EventBusMessage(metadata=eventbus_pb2.MessageMetadata(headers=headers))
    message.collection_event.SetInParent()
    return message.SerializeToString()


def check_group(group: Any, epoch: int) -> int:
    """Returns the publisher's life that a group comes from; fails when it is not what it says."""
    envelope, messages = group.envelope, group.messages
    assert envelope.source_epoch == epoch, envelope
    assert len(messages) == envelope.count, envelope
    lives = {message.metadata.headers["life"] for message in messages}
    numbers = [int(message.metadata.headers["number"]) for message in messages]
    first = envelope.first_sequence
    assert numbers == list(range(first, first + envelope.count)), (envelope, numbers)
    assert len(lives) == 1, (envelope, lives)
    return int(lives.pop())


def open_bus(plan: Plan) -> grpc.aio.Channel:
    """The channel to the broker, with the worker's own token."""
    return open_channel(Path(plan["socket"]), FileTokenSource(Path(plan["token_file"])).token)


def run_worker(work: Callable[[Plan, asyncio.Event], Awaitable[None]]) -> None:
    """Runs ``work`` until it is done; SIGTERM sets the event that it is given."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    asyncio.run(_run(work))


async def work_until(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Works until it is to stop; raises what the work raises."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        working.result()
    working.cancel()
    stopping.cancel()
    await asyncio.wait([working, stopping])


async def _run(work: Callable[[Plan, asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await work(json.loads(sys.argv[1]), stop)
