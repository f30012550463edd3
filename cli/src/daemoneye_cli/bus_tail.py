"""``daemoneye bus tail``: messages with their envelope, as the broker hands them over."""

import argparse
import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from collector_core.bus import Gap, Item, Opened, SubscriptionOptions
from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_cli.arguments import Subparsers, add_command, bounded_int, positive_seconds
from daemoneye_cli.bus_line import envelope_line, message_document
from daemoneye_cli.errors import UsageError
from daemoneye_cli.event_line import gap_line
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.output import Format, Output
from daemoneye_cli.tail import follow
from daemoneye_mesh.topic import validate_pattern

__all__ = ["TypeFilter", "add_tail", "parse_types", "run_tail"]

SUBSCRIBER_ID = "daemoneye-bus-tail"
ALL_HISTORY_S = 0.0
MAX_CORRELATION_IDS = 64

_DESCRIPTION = """\
Follows messages with their envelope until Ctrl-C, which is exit status 0. 'daemoneye
events' tells what happened; this tells how it was carried: type, topic, publisher,
epoch/sequence or message id, and priority, ttl, headers and correlation where set.

PATTERN is a topic with wildcards: '+' is one segment, '#', last only, zero or more.
The broker applies patterns and filters; what they hold back counts as filtered.

The broker retains some of the past in memory: --history SECONDS and --from-start
begin with it. Where messages are missing, a marker stands in their place; with
--format json it is a line {"type": "gap", "dropped_count": n, "reason": "…"}. With
--count, missing messages make the exit status 3."""


@dataclass(frozen=True, slots=True)
class TypeFilter:
    """Message types and event types to let through; empty means all."""

    message_types: tuple[int, ...] = ()
    event_types: tuple[int, ...] = ()


def _short_names(items: Sequence[tuple[str, int]], prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix).lower(): number for name, number in items}


_MESSAGE_TYPES = _short_names(eventbus_pb2.MessageType.items(), "MESSAGE_TYPE_")
_EVENT_TYPES = _short_names(eventbus_pb2.EventType.items(), "EVENT_TYPE_")


def add_tail(nested: Subparsers) -> None:
    """Adds ``bus tail``."""
    parser = add_command(
        nested,
        "tail",
        summary="follow messages with their envelope",
        description=_DESCRIPTION,
        run=run_tail,
        examples=(
            "daemoneye bus tail '#'",
            "daemoneye bus tail 'control.#' 'alerts.#' --history 60",
            "daemoneye bus tail 'events.#' --filter-type process_event --min-priority 5",
            "daemoneye bus tail '#' --from-start --correlation-id 9f0c2d5e --format json",
            "daemoneye bus tail 'events.#' --count 1 --format json | jq .metadata",
        ),
    )
    parser.add_argument("patterns", nargs="+", metavar="PATTERN", help="topic pattern")
    _add_past_options(parser)
    _add_filter_options(parser)
    parser.add_argument(
        "--count", type=bounded_int(1, 2**32), metavar="N", help="stop after N messages"
    )
    parser.set_defaults(is_endless=lambda arguments: arguments.count is None)


def _add_past_options(parser: argparse.ArgumentParser) -> None:
    past = parser.add_mutually_exclusive_group()
    history = "begin with what is retained of the last SECONDS"
    past.add_argument("--history", type=positive_seconds, metavar="SECONDS", help=history)
    past.add_argument("--from-start", action="store_true", help="begin with all that is retained")


def _add_filter_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    types = f"only these: {', '.join([*_MESSAGE_TYPES, *_EVENT_TYPES])}"
    add("--filter-type", type=parse_types, metavar="TYPE[,TYPE…]", help=types)
    floor = "only messages of this priority and more, 0 to 255"
    add("--min-priority", type=bounded_int(0, 255), metavar="N", default=0, help=floor)
    ids = "only messages with this correlation id; may be repeated"
    add("--correlation-id", action="append", metavar="ID", help=ids)


def parse_types(text: str) -> TypeFilter:
    """Reads a comma-separated list of message and event types for argparse.

    An event type asks for collection events of that type, ``collection_event`` for all of them.
    """
    names = [one.strip().replace("-", "_") for one in text.split(",")]
    unknown = [one for one in names if one not in _MESSAGE_TYPES and one not in _EVENT_TYPES]
    if unknown:
        known = ", ".join([*_MESSAGE_TYPES, *_EVENT_TYPES])
        raise argparse.ArgumentTypeError(f"type {unknown[0][:40]!a} is none of {known}")
    message_types = {_MESSAGE_TYPES[one] for one in names if one in _MESSAGE_TYPES}
    event_types = {_EVENT_TYPES[one] for one in names if one in _EVENT_TYPES}
    if eventbus_pb2.MESSAGE_TYPE_COLLECTION_EVENT in message_types:
        event_types = set()
    elif event_types:
        message_types.add(eventbus_pb2.MESSAGE_TYPE_COLLECTION_EVENT)
    return TypeFilter(tuple(sorted(message_types)), tuple(sorted(event_types)))


async def run_tail(invocation: Invocation) -> ExitCode:
    """Runs the command."""
    if invocation.output.format is Format.CSV:
        raise UsageError("tail has no csv format; use --format json, one document a line")
    options = _options(invocation)
    view = _View(invocation.output, options, invocation.argument("count"))
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


def _options(invocation: Invocation) -> SubscriptionOptions:
    arguments = invocation.arguments
    for pattern in arguments.patterns:
        validate_pattern(pattern)
    correlation_ids: list[str] = invocation.argument("correlation_id", [])
    if len(correlation_ids) > MAX_CORRELATION_IDS:
        raise UsageError(
            f"--correlation-id is given {len(correlation_ids)} times, and {MAX_CORRELATION_IDS} is"
            " the most; give fewer",
            limit=MAX_CORRELATION_IDS,
        )
    types: TypeFilter = invocation.argument("filter_type", TypeFilter())
    history_s = ALL_HISTORY_S if arguments.from_start else invocation.argument("history")
    return SubscriptionOptions(
        patterns=tuple((pattern, arguments.min_priority) for pattern in arguments.patterns),
        subscriber_id=SUBSCRIBER_ID,
        history_s=history_s,
        message_types=types.message_types,
        event_types=types.event_types,
        correlation_ids=tuple(correlation_ids),
    )


class _View:
    """Shows messages and gaps, and knows when it is enough."""

    def __init__(self, output: Output, options: SubscriptionOptions, count: int | None) -> None:
        self._output = output
        # Who asks for all that is retained knows that this is not all there was.
        self._has_bound = options.history_s != ALL_HISTORY_S
        self._left = count
        self._broker_epoch = ""
        self.has_gap = False

    def take(self, item: Item) -> bool:
        """Shows one item; true when no more is wanted."""
        if isinstance(item, Opened):
            self._take_opened(item)
            return False
        if isinstance(item, Gap):
            self._take_gap(item)
            return False
        if item.undecodable_count:
            self._warn(f"{item.undecodable_count} messages are no EventBusMessage; left out")
        return any(self._show(one) for one in item.messages)

    def _take_opened(self, opened: Opened) -> None:
        if self._broker_epoch and opened.broker_epoch != self._broker_epoch:
            self._warn("the broker restarted; what was published meanwhile is missing")
        elif self._has_bound and not opened.history_complete:
            self._warn("the broker does not retain so much; the past begins later than asked")
        self._broker_epoch = opened.broker_epoch

    def _take_gap(self, gap: Gap) -> None:
        self.has_gap = True
        if self._output.is_json:
            document = {"type": "gap", "dropped_count": gap.dropped_count, "reason": gap.reason}
            self._output.write_line(document)
        else:
            self._output.print_line(gap_line(gap.dropped_count, gap.reason))

    def _show(self, message: eventbus_pb2.EventBusMessage) -> bool:
        if self._output.is_json:
            self._output.write_line(message_document(message))
        else:
            self._output.print_line(envelope_line(message))
        if self._left is not None:
            self._left -= 1
        return self._left == 0

    def _warn(self, text: str) -> None:
        self.has_gap = True
        self._output.remark(text, style="bold yellow")
