"""``daemoneye collectors health``: how one collector and its parts are, once or until Ctrl-C."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.text import Text

from daemoneye.agent.v1 import collector_admin_service_pb2 as pb
from daemoneye.ipc.v1 import collector_health_pb2
from daemoneye_cli.arguments import Subparsers, add_command, bounded_int, positive_seconds
from daemoneye_cli.bus_screen import Screen, is_redrawn, open_screen
from daemoneye_cli.collector_call import add_collector_id, ask_admin
from daemoneye_cli.completeness import (
    describe,
    read_completeness,
    report_degradations,
    to_completeness_document,
)
from daemoneye_cli.document import Document, enum_name, to_document
from daemoneye_cli.errors import UsageError
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.output import Column, Format, Output, Styled
from daemoneye_cli.session import OperatorSession
from daemoneye_cli.text import format_clock, format_duration, format_iso, format_size, printable
from daemoneye_mesh.completeness import Degradation
from daemoneye_mesh.errors import DaemoneyeError

__all__ = ["add_health", "check_collector", "status_cell", "status_name"]

CHECK_TIMEOUT_S = 10.0
DEFAULT_INTERVAL_S = 2.0

_OK = collector_health_pb2.COLLECTOR_STATUS_OK
_STYLES = {
    "ok": "green",
    "starting": "cyan",
    "recoverable_error": "yellow",
    "permanent_error": "bold red",
    "fatal_error": "bold red",
    "stopping": "dim",
    "stopped": "dim",
}

_DESCRIPTION = """\
Asks a collector how it is: the whole, each of its parts (sources, log, bus, resources),
what it uses of its budget, whether it sheds events, and what it cannot see now.

A recoverable error is being tried again; a permanent one waits for somebody to mend it.

Exit status 0 when it is ok, sheds nothing and sees everything, 3 when something is not
so, 4 when it cannot be asked, 7 when it does not answer in time. For 0 and 3 the answer
is printed.

--watch goes on until Ctrl-C, which is exit status 0, or for --count looks, of which one
that is not all right makes the exit status 3. With --format json it is one document a
line, with --format csv one record of the whole a look."""

_EXAMPLES = (
    "daemoneye collectors health procmond",
    "daemoneye collectors health procmond --watch",
    "daemoneye collectors health procmond --format json | jq '.components[] | {name, status}'",
)

_COLUMNS = (
    Column("name", "part"),
    Column("status", "status"),
    Column("since", "since"),
    Column("failure_count", "failures", "right"),
    Column("message", "says"),
)
_WHOLE_KEYS = (
    "time",
    "collector_id",
    "status",
    "is_shedding",
    "level",
    "cpu_share",
    "rss_bytes",
    "uptime",
)


@dataclass(frozen=True, slots=True)
class Look:
    """What a collector said about itself."""

    collector_id: str
    health: collector_health_pb2.CheckHealthResponse

    @property
    def degradations(self) -> tuple[Degradation, ...]:
        """What it cannot see."""
        return read_completeness(self.health.completeness, self.collector_id)

    @property
    def is_well(self) -> bool:
        """Whether there is nothing to say against it."""
        is_ok = self.health.status == _OK and not self.health.is_shedding
        return is_ok and not self.degradations

    def document(self) -> Document:
        """Returns it for JSON."""
        return {
            "collector_id": self.collector_id,
            "is_healthy": self.is_well,
            **to_document(self.health),
            "completeness": to_completeness_document(self.degradations),
        }


def add_health(nested: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        nested,
        "health",
        summary="how one collector and its parts are",
        description=_DESCRIPTION,
        run=check_collector,
        examples=_EXAMPLES,
    )
    add_collector_id(parser)
    add = parser.add_argument
    add("--watch", action="store_true", help="look again and again")
    interval = f"with --watch, time between two looks, default {DEFAULT_INTERVAL_S:g}"
    add("--interval", type=positive_seconds, metavar="SECONDS", help=interval)
    add("--count", type=bounded_int(1, 2**32), metavar="N", help="with --watch, stop after N looks")
    parser.set_defaults(is_endless=lambda one: one.watch and one.count is None)


def status_name(status: collector_health_pb2.CollectorStatus.ValueType) -> str:
    """Returns the name of a status, such as ``recoverable_error``."""
    return enum_name(collector_health_pb2.CollectorStatus.DESCRIPTOR, status)


def status_cell(status: collector_health_pb2.CollectorStatus.ValueType) -> Styled:
    """Returns what a table says about a status."""
    name = status_name(status)
    return Styled(name.replace("_", " "), _STYLES.get(name, "dim"))


async def check_collector(invocation: Invocation) -> ExitCode:
    """Runs the command."""
    collector_id: str = invocation.arguments.collector_id
    if not invocation.arguments.watch:
        _refuse_options_of_watch(invocation)
    async with invocation.session() as session:
        look = await _look(session, collector_id)
        if invocation.arguments.watch:
            with open_screen(invocation.output) as screen:
                is_well = await _Watch(invocation, session, screen).run(look)
        else:
            is_well = look.is_well
            _show(invocation.output, look)
    return ExitCode.COMPLETE if is_well else ExitCode.DEGRADED


def _refuse_options_of_watch(invocation: Invocation) -> None:
    for name in ("interval", "count"):
        if invocation.argument(name) is not None:
            raise UsageError(f"--{name} goes with --watch; add --watch or leave --{name} out")


async def _look(session: OperatorSession, collector_id: str) -> Look:
    request = pb.CheckCollectorRequest(collector_id=collector_id)
    answer = await ask_admin(session, lambda stub: stub.CheckCollector, request, CHECK_TIMEOUT_S)
    return Look(collector_id, answer.health)


class _Watch:
    """The loop of looks."""

    def __init__(self, invocation: Invocation, session: OperatorSession, screen: Screen) -> None:
        self._output = invocation.output
        self._session = session
        self._screen = screen
        self._interval_s: float = invocation.argument("interval", DEFAULT_INTERVAL_S)
        self._left: int | None = invocation.argument("count")
        self._is_away = False

    async def run(self, look: Look) -> bool:
        """Shows looks until there were enough; whether all was well in each."""
        if self._output.format is Format.CSV:
            self._output.write_csv(_WHOLE_KEYS)
        is_well = self._show(look)
        while self._left != 0:
            await asyncio.sleep(self._interval_s)
            is_well = await self._step(look.collector_id) and is_well
        return is_well

    async def _step(self, collector_id: str) -> bool:
        try:
            look = await _look(self._session, collector_id)
        except DaemoneyeError as error:
            if self._left is not None:
                raise
            self._show_absence(error)
            self._is_away = True
            return False
        self._is_away = False
        return self._show(look)

    def _show(self, look: Look) -> bool:
        if self._left is not None:
            self._left -= 1
        output, moment = self._output, time.time_ns()
        if output.is_table:
            self._screen.show(lambda: _draw_frame(output, look, moment))
        elif output.is_json:
            document = {"type": "health", "time": format_iso(moment, 3), **look.document()}
            output.write_line(document)
        else:
            output.write_csv(_whole_record(look, moment))
            output.flush()
        return look.is_well

    def _show_absence(self, error: DaemoneyeError) -> None:
        text = f"{error.message}; trying again every {self._interval_s:g} s"
        if is_redrawn(self._output):
            line = Text(printable(text), style="bold yellow")
            self._screen.show(lambda: self._output.print_line(line))
        elif not self._is_away:
            self._output.remark(f"warning: {text}", style="yellow")


def _show(output: Output, look: Look) -> None:
    if output.is_json:
        output.write_document(look.document())
        return
    if output.is_table:
        _draw(output, look)
    else:
        keys = [column.key for column in _COLUMNS]
        output.write_csv(keys)
        for component in look.health.components:
            document = to_document(component)
            output.write_csv(document[key] for key in keys)
        output.flush()
    report_degradations(output, look.degradations)


def _draw_frame(output: Output, look: Look, moment_ns: int) -> None:
    output.print_line(Text(f"{format_clock(moment_ns)}  ", style="dim").append_text(_head(look)))
    for line in _resource_lines(look):
        output.print_line(line)
    _draw_components(output, look)
    for one in look.degradations:
        output.print_line(Text(f"degraded: {printable(describe(one))}", style="yellow"))


def _draw(output: Output, look: Look) -> None:
    output.print_line(_head(look))
    for line in _resource_lines(look):
        output.print_line(line)
    _draw_components(output, look)


def _head(look: Look) -> Text:
    health = look.health
    cell = status_cell(health.status)
    head = Text(f"collector {printable(look.collector_id)}  ", style="bold")
    head.append(cell.text, style=cell.style)
    if health.HasField("since"):
        since = format_iso(health.since.ToNanoseconds(), 3)
        head.append(f" since {since}", style="not bold")
    uptime = format_duration(health.uptime.ToNanoseconds() / 1e9)
    return head.append(f"  up {uptime}", style="not bold")


def _resource_lines(look: Look) -> Iterator[Text]:
    health = look.health
    shedding = Text("shedding  ").append(
        "yes, events of lossy classes" if health.is_shedding else "no",
        style="bold red" if health.is_shedding else "",
    )
    yield shedding
    if not health.HasField("resources"):
        return
    use = health.resources
    yield Text(
        f"uses      {use.cpu_share:.1%} of {use.cpu_budget_share:.1%} of a core,"
        f" {format_size(use.rss_bytes)} of {format_size(use.rss_budget_bytes)}"
    )
    level = enum_name(collector_health_pb2.DegradationLevel.DESCRIPTOR, use.level)
    is_full = use.level <= collector_health_pb2.DEGRADATION_LEVEL_NONE
    without = "kept, nothing is left out" if is_full else f"saves by {level.replace('_', ' ')}"
    yield Text(f"budget    {without}", style="" if is_full else "yellow")


def _draw_components(output: Output, look: Look) -> None:
    rows = [
        (
            one.name,
            status_cell(one.status),
            format_iso(one.since.ToNanoseconds(), 3) if one.HasField("since") else None,
            f"{one.failure_count:,}",
            one.message or None,
        )
        for one in look.health.components
    ]
    output.print_table(_COLUMNS, rows)


def _whole_record(look: Look, moment_ns: int) -> list[object]:
    document = look.document()
    resources = document["resources"] or dict.fromkeys(("level", "cpu_share", "rss_bytes"))
    whole = {"time": format_iso(moment_ns, 3), **document, **resources}
    return [whole[key] for key in _WHOLE_KEYS]
