"""``daemoneye up``: the whole mesh in the foreground, as any user, until Ctrl-C."""

import asyncio
import os
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from daemoneye_cli.arguments import Subparsers, add_command, positive_seconds
from daemoneye_cli.child import ChildSpec, rotate_log
from daemoneye_cli.errors import UsageError
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.live_view import LiveView, Tally
from daemoneye_cli.output import Format, Output
from daemoneye_cli.probe import is_answered
from daemoneye_cli.session import OperatorSession
from daemoneye_cli.stop_signals import StopSignals
from daemoneye_cli.supervisor import Supervisor
from daemoneye_cli.text import format_duration
from daemoneye_mesh.directories import (
    find_runtime_dir,
    locate_runtime_dir,
    locate_state_dir,
    prepare_directory,
)
from daemoneye_mesh.errors import ErrorReason, PreconditionError
from daemoneye_mesh.layout import DEFAULT_TRUST_DOMAIN, RuntimeLayout
from daemoneye_mesh.sockets import check_socket_path

__all__ = ["Plan", "add_parser", "make_plan", "run_mesh", "run_up"]

_DESCRIPTION = """\
Starts agent, broker and process collector, waits until each is in service, and
shows events and alerts as they happen. Ctrl-C stops everything and leaves no
process and no socket behind; a second Ctrl-C does not wait.

Needs neither root nor anything installed beyond this package. Without privileges
processes are polled and other users' details are out of reach: what cannot be
seen is said as degraded coverage.

A process that ends is started again after 1, 2, 4 … 30 seconds. What the
processes log is in <state dir>/logs."""

_EXAMPLES = (
    "daemoneye up",
    "daemoneye up --runtime-dir /tmp/demo/run --state-dir /tmp/demo/state",
    "daemoneye up --format json --duration 60 > events.jsonl",
)


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "up",
        summary="run the whole mesh in the foreground",
        description=_DESCRIPTION,
        run=run_up,
        examples=_EXAMPLES,
    )
    add = parser.add_argument
    add("--state-dir", type=_path, metavar="DIR", help="event store, keys, logs; found by itself")
    add("--quiet", action="store_true", help="no progress, no advice: alerts and failures only")
    add("--no-events", action="store_true", help="show alerts, but no events")
    add("--duration", type=positive_seconds, metavar="SECONDS", help="stop by itself after so long")
    parser.set_defaults(is_endless=lambda _: True)


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is brought up, and what is shown."""

    layout: RuntimeLayout
    state_dir: Path
    specs: tuple[ChildSpec, ...]
    """In the order in which they are stopped."""
    has_events: bool = True
    is_quiet: bool = False
    duration_s: float | None = None
    token_file: Path | None = None
    timeout_s: float | None = None


async def run_up(invocation: Invocation) -> ExitCode:
    """Runs the command."""
    if invocation.output.format is Format.CSV:
        raise UsageError("'up' has no csv format; use --format json, one document a line")
    return await run_mesh(make_plan(invocation), invocation.output, StopSignals())


def make_plan(invocation: Invocation) -> Plan:
    """Returns what the command line asks for.

    Raises:
        UsageError: a command of the mesh is not installed.
    """
    options = invocation.options
    layout = options.layout_of(options.runtime_dir or locate_runtime_dir())
    state_dir: Path = invocation.argument("state_dir") or locate_state_dir()
    return Plan(
        layout,
        state_dir,
        _specs(layout, state_dir),
        has_events=not (invocation.arguments.no_events or invocation.arguments.quiet),
        is_quiet=invocation.arguments.quiet,
        duration_s=invocation.arguments.duration,
        token_file=options.token_file,
        timeout_s=options.timeout_s,
    )


async def run_mesh(plan: Plan, output: Output, signals: StopSignals) -> ExitCode:
    """Brings a mesh up, shows it until it is to stop, and takes it down.

    Raises:
        PreconditionError: a mesh runs in that runtime dir.
        DirectoryUnusableError: runtime or state dir cannot be used.
        ChildFailedError: a process did not come up; the others were stopped.
    """
    _prepare(plan)
    await _refuse_second(plan.layout)
    for spec in plan.specs:
        rotate_log(spec.log)
    narrator = _Narrator(output, plan.is_quiet)
    supervisor = Supervisor(plan.specs, narrator)
    started_s = time.monotonic()
    tally = Tally()
    with signals.watch():
        try:
            await _run_until_stop(plan, output, supervisor, signals, tally)
        finally:
            narrator.progress("stopping")
            is_clean = await supervisor.stop(signals.hurry)
    narrator.progress(_summary(tally, time.monotonic() - started_s))
    if signals.hurry.is_set():
        return ExitCode.INTERRUPTED
    return ExitCode.COMPLETE if is_clean else ExitCode.FAILURE


async def _run_until_stop(
    plan: Plan, output: Output, supervisor: Supervisor, signals: StopSignals, tally: Tally
) -> None:
    async with asyncio.TaskGroup() as group:
        work = group.create_task(_work(plan, output, supervisor, signals, tally), name="mesh")
        stop = group.create_task(signals.stop.wait(), name="stop")
        await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
        work.cancel()
        stop.cancel()


async def _work(
    plan: Plan, output: Output, supervisor: Supervisor, signals: StopSignals, tally: Tally
) -> None:
    narrator = _Narrator(output, plan.is_quiet)
    started_s = time.monotonic()
    narrator.progress(f"starting the mesh in {plan.layout.root}")
    session = OperatorSession(plan.layout, token_file=plan.token_file, timeout_s=plan.timeout_s)
    view = LiveView(output, session, plan.has_events, plan.is_quiet, tally)
    async with session, asyncio.TaskGroup() as group:
        # Before the collector is up, so that its inventory is counted from the start.
        group.create_task(view.run(), name="view")
        await supervisor.start()
        narrator.progress(f"mesh is up in {time.monotonic() - started_s:.2f} s")
        narrator.progress(_advice(plan))
        group.create_task(supervisor.watch(), name="watch")
        group.create_task(view.watch_coverage(), name="coverage")
        if plan.duration_s is not None:
            await asyncio.sleep(plan.duration_s)
            signals.stop.set()


@dataclass(frozen=True, slots=True)
class _Narrator:
    """Tells on standard error what happens to the processes."""

    output: Output
    is_quiet: bool

    def progress(self, text: str) -> None:
        if not self.is_quiet:
            self.output.remark(text)

    def alarm(self, text: str) -> None:
        self.output.remark(f"warning: {text}", style="bold yellow")


def _prepare(plan: Plan) -> None:
    for spec in plan.specs:
        check_socket_path(spec.socket)
    prepare_directory(plan.layout.root, 0o750)
    prepare_directory(plan.state_dir, 0o700)
    prepare_directory(plan.state_dir / "logs", 0o700)


async def _refuse_second(layout: RuntimeLayout) -> None:
    for socket in (layout.agent_socket, layout.eventbus_socket):
        if await is_answered(socket):
            raise PreconditionError(
                f"a mesh runs in {layout.root} already; ask it with 'daemoneye health', stop it"
                " first, or choose another place with --runtime-dir and --state-dir",
                reason=ErrorReason.SOCKET_UNUSABLE,
                runtime_dir=layout.root,
                socket=socket,
            )


def _specs(layout: RuntimeLayout, state_dir: Path) -> tuple[ChildSpec, ...]:
    shared: tuple[str, ...] = (
        "--runtime-dir",
        str(layout.root),
        "--stop-with-parent",
        "--log-style",
        "json",
    )
    if layout.trust_domain != DEFAULT_TRUST_DOMAIN:
        shared += ("--trust-domain", layout.trust_domain)

    def spec(name: str, socket: Path, *flags: str) -> ChildSpec:
        command = (_find_command(name), *shared, *flags)
        return ChildSpec(name, command, socket, state_dir / "logs" / f"{name}.log")

    return (
        spec("procmond", layout.collector_socket("procmond")),
        spec("daemoneye-agent", layout.agent_socket, "--state-dir", str(state_dir)),
        spec("daemoneye-eventbus", layout.eventbus_socket),
    )


def _find_command(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    if os.access(beside, os.X_OK):
        return str(beside)
    if found := shutil.which(name):
        return found
    raise UsageError(
        f"command {name} is neither beside {sys.executable} nor on the PATH; install the"
        " distribution 'daemoneye'",
        command=name,
    )


def _advice(plan: Plan) -> str:
    root = plan.layout.root
    flag = "" if root == find_runtime_dir() else f" --runtime-dir {shlex.quote(str(root))}"
    token = plan.layout.token_file(plan.layout.operator())
    socket = shlex.quote(str(plan.layout.agent_socket))
    lines = (
        "look inside from another terminal:",
        f"  daemoneye{flag} health",
        f'  daemoneye{flag} query "SELECT pid, name, cmdline FROM processes LIMIT 10"',  # noqa: S608 -- shown, not run
        f"  daemoneye{flag} alerts",
        f"  daemoneye{flag} inspect agent",
        f"  TOKEN=$(cat {shlex.quote(str(token))}) grpcurl -plaintext -unix -expand-headers \\",
        "    -H 'authorization: Bearer ${TOKEN}' \\",
        f"    {socket} daemoneye.agent.v1.StatusService/GetStatus",
        f"logs are in {plan.state_dir / 'logs'}; Ctrl-C stops the mesh",
    )
    return "\n" + "\n".join(lines) + "\n"


def _summary(tally: Tally, duration_s: float) -> str:
    missing = f", {tally.missing_count} missing" if tally.missing_count else ""
    return (
        f"stopped after {format_duration(duration_s)}: {tally.event_count} events shown{missing},"
        f" {tally.inventory_count} inventoried, {tally.alert_count} alerts"
    )
