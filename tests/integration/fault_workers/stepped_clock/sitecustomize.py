"""A wall clock that can be set: adds the seconds in the file STEPPED_CLOCK to what Python calls now.

Python imports this first in every process that has this directory on its PYTHONPATH. The file holds
one little-endian double, which may be written over at any time.
"""

import datetime
import mmap
import os
import struct
import sys
import time
import types
from pathlib import Path
from typing import Any

_FORMAT = struct.Struct("<d")


def _map() -> mmap.mmap:
    with Path(os.environ["STEPPED_CLOCK"]).open("rb") as file:
        return mmap.mmap(file.fileno(), _FORMAT.size, access=mmap.ACCESS_READ)


def _spare_grpc() -> None:
    """Leaves gRPC the clock of the host.

    It adds a timeout to it and hands the sum to a library in C, which we cannot set the clock of.
    """
    import grpc.aio  # noqa: F401 -- only a process that is stepped needs it here

    kept = types.ModuleType("time")
    vars(kept).update(vars(time))
    for name, module in list(sys.modules.items()):
        if name.startswith("grpc") and getattr(module, "time", None) is time:
            module.time = kept  # type: ignore[attr-defined]


def _install() -> None:
    offset = _map()
    real_time, real_time_ns = time.time, time.time_ns
    real = datetime.datetime

    def stepped_s() -> float:
        seconds: float = _FORMAT.unpack_from(offset)[0]
        return seconds

    class SteppedDatetime(real):  # type: ignore[misc, valid-type]
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return cls.fromtimestamp(real_time() + stepped_s(), tz)

    _spare_grpc()
    time.time = lambda: real_time() + stepped_s()
    time.time_ns = lambda: real_time_ns() + int(stepped_s() * 1e9)
    datetime.datetime = SteppedDatetime  # type: ignore[misc]


if "STEPPED_CLOCK" in os.environ:
    _install()
