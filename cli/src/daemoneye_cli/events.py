"""``daemoneye events``: what passes over the bus, as it happens."""

import argparse
import asyncio
from contextlib import aclosing

from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_cli.alert_line import alert_lines
from daemoneye_cli.arguments import Subparsers, add_command, bounded_int
from daemoneye_cli.errors import UsageError
from daemoneye_cli.event_line import EventKind, event_document, event_line, gap_line, kind_of
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.output import Format, Output
from daemoneye_cli.tail import Gap, Opened, SubscriptionOptions, follow

__all__ = ["add_parser", "run_events"]

DEFAULT_PATTERN = "events.#"

_DESCRIPTION = """\
Follows the events of the mesh until Ctrl-C, which is exit status 0.

PATTERN is a topic with wildcards: '+' is one segment, '#', last only, zero or more.
Topics begin with events, control or alerts: events.process.lifecycle,
events.process.#, alerts.high.#, '#' for everything.

Where this view was too slow and messages are missing, a marker stands in their
place. With --format json each message is one line; a gap is a line too:
  {"type": "gap", "dropped_count": n, "reason": "…"}
With --count, missing messages make the exit status 3."""

_EXAMPLES = (
    "daemoneye events",
    "daemoneye events --kind start,exec --count 20",
    "daemoneye events 'alerts.#' --format json | jq .alert.title",
)


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "events",
        summary="follow events as they happen",
        description=_DESCRIPTION,
        run=run_events,
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "patterns",
        nargs="*",
        metavar="PATTERN",
        default=[],
        help=f"topic pattern, default {DEFAULT_PATTERN}",
    )
    parser.add_argument(
        "--count",
        type=bounded_int(1, 2**32),
        metavar="N",
        help="stop after N messages",
    )
    parser.add_argument(
        "--kind",
        type=parse_kinds,
        metavar="KIND[,KIND…]",
        help=f"only these process events: {', '.join(EventKind)}",
    )
    parser.set_defaults(is_endless=lambda arguments: arguments.count is None)


def parse_kinds(text: str) -> frozenset[EventKind]:
    """Reads a comma-separated list of kinds for argparse."""
    names = [one.strip() for one in text.split(",")]
    unknown = [one for one in names if one not in {*EventKind}]
    if unknown:
        known = ", ".join(EventKind)
        raise argparse.ArgumentTypeError(f"kind {unknown[0][:40]!a} is none of {known}")
    return frozenset(EventKind(one) for one in names)


async def run_events(invocation: Invocation) -> ExitCode:
    """Runs the command."""
    if invocation.output.format is Format.CSV:
        raise UsageError("events have no csv format; use --format json, one document a line")
    view = _View(invocation.output, invocation.argument("kind"), invocation.argument("count"))
    patterns = invocation.arguments.patterns or [DEFAULT_PATTERN]
    options = SubscriptionOptions(patterns, subscriber_id="daemoneye-events")
    async with invocation.session() as session:
        link = await session.broker()
        async with asyncio.TaskGroup() as group:
            renewal = group.create_task(session.keep_tokens(), name="tokens")
            async with aclosing(follow(link, options)) as items:
                async for item in items:
                    if view.take(item):
                        break
            renewal.cancel()
    return ExitCode.DEGRADED if view.has_gap else ExitCode.COMPLETE


class _View:
    """Shows what was asked for and knows when it is enough."""

    def __init__(
        self, output: Output, kinds: frozenset[EventKind] | None, count: int | None
    ) -> None:
        self._output = output
        self._kinds = kinds
        self._left = count
        self._broker_epoch = ""
        self.has_gap = False

    def take(self, item: object) -> bool:
        """Shows one item; true when no more is wanted."""
        if isinstance(item, Opened):
            self._note_epoch(item.broker_epoch)
        elif isinstance(item, Gap):
            self.has_gap = True
            self._show_gap(item.dropped_count, item.reason)
        else:
            for message in getattr(item, "messages", ()):
                if self._is_wanted(message) and self._show(message):
                    return True
        return False

    def _note_epoch(self, epoch: str) -> None:
        if self._broker_epoch and epoch != self._broker_epoch:
            self.has_gap = True
            self._output.remark(
                "the broker restarted; what was published meanwhile is missing", style="bold yellow"
            )
        self._broker_epoch = epoch

    def _is_wanted(self, message: eventbus_pb2.EventBusMessage) -> bool:
        return self._kinds is None or kind_of(message) in self._kinds

    def _show(self, message: eventbus_pb2.EventBusMessage) -> bool:
        if self._output.is_json:
            self._output.write_line(event_document(message))
        elif message.HasField("alert"):
            for line in alert_lines(message.alert):
                self._output.print_line(line)
        else:
            self._output.print_line(event_line(message))
        if self._left is not None:
            self._left -= 1
        return self._left == 0

    def _show_gap(self, dropped_count: int, reason: str) -> None:
        if self._output.is_json:
            gap = {"type": "gap", "dropped_count": dropped_count, "reason": reason}
            self._output.write_line(gap)
        else:
            self._output.print_line(gap_line(dropped_count, reason))
