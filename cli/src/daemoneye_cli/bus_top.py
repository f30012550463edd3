"""``daemoneye bus top``: what the bus does now, refreshed like ``top``."""

import asyncio
import time
from collections.abc import Iterator

from rich.text import Text

from daemoneye_cli.arguments import Subparsers, add_command, bounded_int, positive_seconds
from daemoneye_cli.bus_flow import balance_cell, describe_counts
from daemoneye_cli.bus_rates import Frame, SubscriptionRates, TopicRates, compare
from daemoneye_cli.bus_screen import Screen, is_redrawn, open_screen
from daemoneye_cli.bus_stats import Sample, read_sample, state_of
from daemoneye_cli.bus_subscribers import STATE_STYLES, queue_cell
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.output import Column, Format, Output, Styled
from daemoneye_cli.session import OperatorSession
from daemoneye_cli.text import format_clock, format_duration, format_iso, format_size, printable
from daemoneye_mesh.errors import DaemoneyeError

__all__ = ["add_top", "run_top"]

DEFAULT_INTERVAL_S = 2.0
DEFAULT_ROWS = 10
MAX_ROWS = 256

_TOPIC_COLUMNS = (
    Column("topic", "busiest topics"),
    Column("rate", "msg/s", "right"),
    Column("bytes", "bytes/s", "right"),
    Column("published", "published", "right"),
    Column("offered", "offered", "right"),
    Column("unrouted", "unrouted", "right"),
)
_SUBSCRIPTION_COLUMNS = (
    Column("id", "slowest"),
    Column("identity", "subscriber"),
    Column("state", "state"),
    Column("queue", "queue", "right"),
    Column("out", "out/s", "right"),
    Column("drops", "drop/s", "right"),
    Column("total", "dropped", "right"),
    Column("balance", ""),
)
_CSV_KEYS = (
    "time",
    "elapsed_s",
    "published_per_s",
    "bytes_per_s",
    "unrouted_per_s",
    "refused_per_s",
    "published_count",
    "published_bytes",
    "offered_count",
    "delivered_count",
    "filtered_count",
    "dropped_count",
    "pending_count",
    "unaccounted_count",
    "subscription_count",
)

_DESCRIPTION = """\
Shows what the bus does now, until Ctrl-C, which is exit status 0: totals and the loss
equation, the busiest topics, and the subscribers that keep up worst. Rates are over
the time between two looks, so the first frame with rates comes after one interval.

On a terminal the view is redrawn in place; elsewhere frames follow one another, with
--format json one document a line, with --format csv one record of the totals each.
With --count, a frame whose counters do not add up makes the exit status 3; without
it, a broker that goes away is waited for."""


def add_top(nested: Subparsers) -> None:
    """Adds ``bus top``."""
    parser = add_command(
        nested,
        "top",
        summary="what the bus does now, refreshed",
        description=_DESCRIPTION,
        run=run_top,
        examples=(
            "daemoneye bus top",
            "daemoneye bus top --interval 10 --rows 3",
            "daemoneye bus top --count 1 --format json | jq .published_per_s",
            "daemoneye bus top --count 60 --interval 1 --format csv > bus.csv",
        ),
    )
    add = parser.add_argument
    interval = f"time between two looks, default {DEFAULT_INTERVAL_S:g}"
    add("--interval", type=positive_seconds, metavar="SECONDS", help=interval)
    add("--count", type=bounded_int(1, 2**32), metavar="N", help="stop after N frames")
    rows = f"most topics and subscribers in a frame, default {DEFAULT_ROWS}"
    add("--rows", type=bounded_int(1, MAX_ROWS), metavar="N", default=DEFAULT_ROWS, help=rows)
    parser.set_defaults(is_endless=lambda arguments: arguments.count is None)


async def run_top(invocation: Invocation) -> ExitCode:
    """Runs the command."""
    async with invocation.session() as session:
        first = await read_sample(session)  # what is wrong with the request shows before the screen
        async with asyncio.TaskGroup() as group:
            renewal = group.create_task(session.keep_tokens(), name="tokens")
            with open_screen(invocation.output) as screen:
                is_balanced = await _Top(invocation, session, screen).run(first)
            renewal.cancel()
    return ExitCode.COMPLETE if is_balanced else ExitCode.DEGRADED


class _Top:
    """The loop of samples and frames."""

    def __init__(self, invocation: Invocation, session: OperatorSession, screen: Screen) -> None:
        self._output = invocation.output
        self._session = session
        self._screen = screen
        self._interval_s: float = invocation.argument("interval", DEFAULT_INTERVAL_S)
        self._left: int | None = invocation.argument("count")
        self._rows: int = invocation.arguments.rows
        self._is_balanced = True
        self._is_away = False

    async def run(self, first: Sample) -> bool:
        """Shows frames until there were enough; whether each of them added up."""
        if self._output.format is Format.CSV:
            self._output.write_csv(_CSV_KEYS)
        if is_redrawn(self._output):
            self._show(compare(first, None))
        before: Sample | None = first
        while self._left != 0:
            await asyncio.sleep(self._interval_s)
            before = await self._step(before)
        return self._is_balanced

    async def _step(self, before: Sample | None) -> Sample | None:
        try:
            now = await read_sample(self._session)
        except DaemoneyeError as error:
            if self._left is not None:
                raise
            self._show_absence(error)
            self._is_away = True
            return None
        self._is_away = False
        frame = compare(now, before)
        self._show(frame)
        self._is_balanced = self._is_balanced and frame.is_balanced
        if self._left is not None:
            self._left -= 1
        return now

    def _show(self, frame: Frame) -> None:
        output = self._output
        if output.is_table:
            self._screen.show(lambda: _draw(output, frame, self._rows))
            return
        document = {"type": "frame", "time": _now(), **frame.document(self._rows)}
        if output.is_json:
            output.write_line(document)
        else:
            output.write_csv(document[key] for key in _CSV_KEYS)
            output.flush()

    def _show_absence(self, error: DaemoneyeError) -> None:
        text = f"{error.message}; trying again every {self._interval_s:g} s"
        if is_redrawn(self._output):
            line = Text(printable(text), style="bold yellow")
            self._screen.show(lambda: self._output.print_line(line))
        elif not self._is_away:
            self._output.remark(f"warning: {text}", style="yellow")


def _draw(output: Output, frame: Frame, rows: int) -> None:
    for line in _head(frame):
        output.print_line(line)
    output.print_line(Text())
    output.print_table(_TOPIC_COLUMNS, [_topic_row(one) for one in frame.topics[:rows]])
    output.print_line(Text())
    subscriptions = [_subscription_row(one) for one in frame.subscriptions[:rows]]
    output.print_table(_SUBSCRIPTION_COLUMNS, subscriptions)


def _head(frame: Frame) -> Iterator[Text]:
    stats, flow = frame.stats, frame.flow
    clock = format_clock(time.time_ns())
    yield Text(
        f"{clock}  bus of epoch {printable(stats.broker_epoch) or '-'}", style="bold"
    ).append(f"  up {_uptime(frame)}  {stats.subscription_count:,} subscriptions", style="not bold")
    yield Text(
        f"published {_rate(frame.published_per_s)} msg/s  {_byte_rate(frame.bytes_per_s)}"
        f"  in all {stats.published_count:,} messages, {format_size(stats.published_bytes)}"
        f"  retained {stats.retained_count:,}, {format_size(stats.retained_bytes)}"
    )
    refused = printable(describe_counts(stats.refused_count)) or "none"
    yield Text(
        f"unrouted  {_rate(frame.unrouted_per_s)} msg/s  {stats.unrouted_count:,} in all"
        f"  refused {refused}"
    )
    cell = balance_cell(flow)
    yield Text(f"{flow.equation}: ").append(cell.text, style=cell.style)
    if flow.dropped_count:
        yield Text(f"dropped   {printable(describe_counts(flow.dropped))}", style="yellow")


def _topic_row(one: TopicRates) -> tuple[object, ...]:
    topic = one.topic
    return (
        topic.topic,
        _rate(one.published_per_s),
        _byte_rate(one.bytes_per_s),
        f"{topic.published_count:,}",
        f"{topic.offered_count:,}",
        f"{topic.unrouted_count:,}",
    )


def _subscription_row(one: SubscriptionRates) -> tuple[object, ...]:
    subscription, state = one.subscription, state_of(one.subscription)
    return (
        subscription.subscription_id,
        subscription.identity,
        Styled(state, STATE_STYLES[state]),
        queue_cell(subscription),
        _rate(one.delivered_per_s),
        Styled(_rate(one.dropped_per_s), "bold red" if one.dropped_per_s else ""),
        f"{one.flow.dropped_count:,}",
        balance_cell(one.flow),
    )


def _rate(per_s: float | None) -> str:
    if per_s is None:
        return "-"
    return f"{per_s:,.1f}" if per_s < 100 else f"{per_s:,.0f}"


def _byte_rate(per_s: float | None) -> str:
    return "-" if per_s is None else f"{format_size(round(per_s))}/s"


def _uptime(frame: Frame) -> str:
    if not frame.stats.HasField("started_at"):
        return "-"
    started_s = frame.stats.started_at.ToNanoseconds() / 1e9
    return format_duration(max(time.time() - started_s, 0.0))


def _now() -> str:
    return format_iso(time.time_ns(), 3)
