"""The frame of every process: shared settings, logs, signals, and an exit status that means something.

Exit statuses: 0 stopped as asked, 1 failed (the last log line says why), 2 configuration refused.
"""

import asyncio
import ctypes
import gc
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from daemoneye_mesh.configuration import EXIT_REFUSED, setting
from daemoneye_mesh.directories import RUNTIME_DIR_VARIABLE, locate_runtime_dir
from daemoneye_mesh.error_interceptor import unwrap
from daemoneye_mesh.errors import DaemoneyeError, InvalidConfigError
from daemoneye_mesh.layout import DEFAULT_TRUST_DOMAIN, RuntimeLayout
from daemoneye_mesh.lifecycle import StopRequest, watch_signals
from daemoneye_mesh.logs import LEVELS, LogStyle, configure_logs

__all__ = ["ProcessSettings", "run_process"]

EXIT_FAILED = 1
LEAVE_S = 3.0
"""How long a process may still take to end once everything is drained."""
_PR_SET_PDEATHSIG = 1
GC_THRESHOLDS = 20_000, 20, 20

log = logging.getLogger("daemoneye.process")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSettings:
    """The settings that every process has."""

    runtime_dir: Path | None = setting(
        None,
        help="directory of the sockets; found by itself when unset",
        env=RUNTIME_DIR_VARIABLE,
    )
    trust_domain: str = setting(
        DEFAULT_TRUST_DOMAIN,
        help="trust domain of the identities in this mesh",
        env="DAEMONEYE_TRUST_DOMAIN",
    )
    log_level: str = setting("info", help="lowest level that is logged", choices=LEVELS, live=True)
    log_style: str = setting(
        "auto", help="with auto, text on a terminal and JSON elsewhere", choices=tuple(LogStyle)
    )
    stop_with_parent: bool = setting(
        False, help="stop when the process that started this one ends (prctl(2) PR_SET_PDEATHSIG)"
    )

    @property
    def layout(self) -> RuntimeLayout:
        """What lies where below the runtime dir."""
        return RuntimeLayout(self.runtime_dir or locate_runtime_dir(), self.trust_domain)


def run_process(
    name: str, settings: ProcessSettings, serve: Callable[[StopRequest], Awaitable[None]]
) -> int:
    """Runs a process until it stops and returns its exit status.

    Args:
        name: name of the process, in every log line.
        settings: its settings.
        serve: the process itself; returns after ``StopRequest`` is set and all is drained.
    """
    configure_logs(name, settings.log_level, style=settings.log_style)
    if settings.stop_with_parent:
        stop_with_parent()
    spare_collections()

    async def main() -> None:
        stop = StopRequest()
        with watch_signals(stop):
            try:
                await serve(stop)
            finally:
                hard_end.start()

    hard_end = hard_end_of(name)
    try:
        asyncio.run(main())
    except Exception as error:
        cause = unwrap(error)
        if not isinstance(cause, DaemoneyeError):
            log.critical("%s failed", name, exc_info=error)
            return EXIT_FAILED
        log.critical("%s cannot go on: %s", name, cause.message, extra={"reason": cause.reason})
        return EXIT_REFUSED if isinstance(cause, InvalidConfigError) else EXIT_FAILED
    finally:
        hard_end.cancel()
    log.info("%s stopped", name)
    return 0


def hard_end_of(name: str) -> threading.Timer:
    """Returns what ends the process hard, some time after it was started, unless it is cancelled.

    A task that swallows its cancellation, or a thread that hangs in the kernel, would otherwise keep a
    process that has drained alive for ever.
    """

    def leave() -> None:
        log.critical("%s does not end by itself; leaving what still runs behind", name)
        os._exit(EXIT_FAILED)

    timer = threading.Timer(LEAVE_S, leave)
    timer.daemon = True
    return timer


def spare_collections() -> None:
    """Makes the garbage collector look at less, and less often.

    What is loaded by now stays until the end; left in the young generations it would be walked again
    and again, which shows as pauses of milliseconds. Cycles are rare in our code and may wait.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def stop_with_parent() -> None:
    """Makes the kernel send SIGTERM to this process when its parent ends.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getppid()
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before the kernel knew that we care
        os.kill(os.getpid(), signal.SIGTERM)
