"""``daemoneye collectors shutdown``: ends the process of a collector.

Invariant: no process is ended unless somebody said so: on a terminal when asked, else with ``--yes``.
"""

import argparse
import asyncio
import sys

from daemoneye.agent.v1 import collector_admin_service_pb2 as pb
from daemoneye_cli.arguments import Subparsers, add_command, positive_seconds
from daemoneye_cli.collector_call import add_collector_id, ask_admin
from daemoneye_cli.errors import UsageError
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.output import Output

__all__ = ["add_shutdown", "shut_down_collector"]

END_TIMEOUT_S = 10.0
MIN_DRAIN_S, MAX_DRAIN_S = 0.1, 300.0
MAX_REASON_CHARS = 256

_DESCRIPTION = """\
Ends the process of a collector: it stops watching, publishes what it holds, gives its
lease back and exits with status 0. The command answers before that. What cannot be
published within the drain timeout stays in the log for the next start.

With --force it exits at once: what is not in its log yet is lost, and told as a gap.

What supervises the process ('daemoneye up', systemd) may start it again. To make a
collector stop watching for good, 'pause' or 'stop' it, or stop it at its supervisor."""

_AGAIN = "what supervises it ('daemoneye up', systemd) may start it again"


def add_shutdown(nested: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        nested,
        "shutdown",
        summary="end the process of a collector",
        description=_DESCRIPTION,
        run=shut_down_collector,
        examples=(
            "daemoneye collectors shutdown procmond",
            "daemoneye collectors shutdown procmond --drain-timeout 5 --reason 'new kernel' --yes",
            "daemoneye collectors shutdown procmond --force --yes",
        ),
    )
    add_collector_id(parser)
    add = parser.add_argument
    add("--force", action="store_true", help="exit at once, without a drain")
    drain = (
        f"most time for the drain, {MIN_DRAIN_S:g} to {MAX_DRAIN_S:g}; its own setting if left out"
    )
    add("--drain-timeout", type=_drain_seconds, metavar="SECONDS", help=drain)
    add("--reason", type=_reason, metavar="TEXT", default="", help="why, for the collector's log")
    add("--yes", action="store_true", help="do not ask")


async def shut_down_collector(invocation: Invocation) -> ExitCode:
    """Runs the command."""
    collector_id: str = invocation.arguments.collector_id
    is_forced: bool = invocation.arguments.force
    request = pb.EndCollectorRequest(
        collector_id=collector_id, reason=invocation.arguments.reason, force=is_forced
    )
    drain_s: float | None = invocation.argument("drain_timeout")
    if drain_s is not None:
        if is_forced:
            raise UsageError("--force does not drain; leave --force or --drain-timeout out")
        request.timeout.FromNanoseconds(round(drain_s * 1e9))
    if not invocation.arguments.yes and not await _confirm(invocation.output, collector_id):
        invocation.output.remark(f"collector {collector_id} was left alone")
        return ExitCode.FAILURE
    async with invocation.session() as session:
        await ask_admin(session, lambda stub: stub.EndCollector, request, END_TIMEOUT_S)
    _show(invocation.output, collector_id, is_forced)
    return ExitCode.COMPLETE


def _show(output: Output, collector_id: str, is_forced: bool) -> None:
    if not output.is_table:
        document = {"collector_id": collector_id, "state": "stopping", "is_forced": is_forced}
        output.show_record(document)
        return
    how = "ends at once" if is_forced else "drains and ends"
    output.remark(f"collector {collector_id} {how}; {_AGAIN}")


async def _confirm(output: Output, collector_id: str) -> bool:
    """Asks whoever sits at the terminal.

    Raises:
        UsageError: nobody does.
    """
    if not sys.stdin.isatty():
        raise UsageError(
            f"nobody can be asked whether to end collector {collector_id}: there is no terminal;"
            " say --yes",
            collector_id=collector_id,
        )
    output.remark(f"end the process of collector {collector_id}? {_AGAIN}. [y/N]")
    return (await _read_line()).strip().lower() in {"y", "yes"}


async def _read_line() -> str:
    # A thread that waits for a line cannot be cancelled, and Ctrl-C would have to wait for it.
    loop, is_there = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), is_there.set)
    try:
        await is_there.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())
    return sys.stdin.readline()


def _drain_seconds(text: str) -> float:
    seconds = positive_seconds(text)
    if not MIN_DRAIN_S <= seconds <= MAX_DRAIN_S:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!a} is not from {MIN_DRAIN_S:g} to {MAX_DRAIN_S:g} seconds"
        )
    return seconds


def _reason(text: str) -> str:
    if len(text) > MAX_REASON_CHARS:
        raise argparse.ArgumentTypeError(f"it has {len(text)} characters; use {MAX_REASON_CHARS}")
    return text
