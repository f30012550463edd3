"""``daemoneye alerts``: what the rules found, now and as it happens."""

import argparse
import asyncio
import json
from contextlib import aclosing

from daemoneye.agent.v1 import alert_service_pb2, alert_service_pb2_grpc
from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_cli.alert_line import (
    ALERT_COLUMNS,
    SEVERITIES,
    alert_document,
    alert_lines,
)
from daemoneye_cli.arguments import Parser, Subparsers, add_command, bounded_int
from daemoneye_cli.calls import ask
from daemoneye_cli.errors import UsageError
from daemoneye_cli.event_line import gap_line
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.output import Format, Listing
from daemoneye_cli.session import OperatorSession
from daemoneye_cli.tail import Delivery, Gap, Opened, SubscriptionOptions, follow
from daemoneye_cli.text import parse_since

__all__ = ["add_parser", "list_alerts", "show_alert"]

MAX_ALERTS = 1_000
_CALL_TIMEOUT_S = 5.0

_DESCRIPTION = """\
Lists the alerts that the rules raised, latest first. Repeats of one thing are one
alert with a count. 'alerts show ID' has the whole story with the row that matched.

With --follow the list is followed by every new alert until Ctrl-C; with
--format json each alert is then one line."""

_EXAMPLES = (
    "daemoneye alerts --since 1h --severity high",
    "daemoneye alerts --rule reverse-shell --format json | jq '.alerts[].title'",
    "daemoneye alerts --follow",
    "daemoneye alerts show 01J9Z7",
)


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command."""
    about = {"description": _DESCRIPTION, "examples": _EXAMPLES}
    parser = add_command(
        subparsers,
        "alerts",
        summary="list, follow and explain alerts",
        run=list_alerts,
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    _add_list_options(parser)
    nested = parser.add_subparsers(title="actions", metavar="ACTION", parser_class=Parser)
    listing = add_command(
        nested,
        "list",
        summary="list alerts (default)",
        run=list_alerts,
        **about,  # type: ignore[arg-type] # two keys of different types
    )
    _add_list_options(listing)
    show = add_command(
        nested,
        "show",
        summary="explain one alert",
        description="Shows one alert with the row that raised it and what to do about it.",
        run=show_alert,
        examples=("daemoneye alerts show 01J9Z7", "daemoneye alerts show 01J9Z7 --format json"),
    )
    show.add_argument("alert_id", metavar="ID", help="id of the alert")


def _add_list_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    absent = argparse.SUPPRESS
    add("--since", metavar="WHEN", default=absent, help="an age such as 1h, or an ISO 8601 time")
    add("--severity", choices=tuple(SEVERITIES), default=absent, help="at least this severe")
    add("--rule", metavar="ID", default=absent, help="only of this rule")
    limit = f"most alerts wanted, default 100, at most {MAX_ALERTS:,}"
    kind = bounded_int(1, MAX_ALERTS)
    add("--limit", type=kind, metavar="N", default=absent, help=limit)
    add("--follow", action="store_true", default=absent, help="go on with new alerts until Ctrl-C")
    parser.set_defaults(is_endless=lambda arguments: getattr(arguments, "follow", False))


async def list_alerts(invocation: Invocation) -> ExitCode:
    """Runs ``alerts`` and ``alerts list``."""
    request = _request(invocation)
    async with invocation.session() as session:
        if invocation.argument("follow", False):
            return await _follow(invocation, session, request)
        answer = await _ask(session, request)
    rows = [alert_document(alert) for alert in answer.alerts]
    invocation.output.show_listing(
        Listing("alerts", ALERT_COLUMNS, rows, {"has_more": answer.has_more})
    )
    if answer.has_more and not invocation.output.is_json:
        invocation.output.remark("there are more; raise --limit or narrow --since")
    return ExitCode.COMPLETE


async def show_alert(invocation: Invocation) -> ExitCode:
    """Runs ``alerts show``."""
    async with invocation.session() as session:
        link = await session.agent()
        stub = alert_service_pb2_grpc.AlertServiceStub(link.channel)
        request = alert_service_pb2.GetAlertRequest(alert_id=invocation.arguments.alert_id)
        answer = await ask(stub.GetAlert, request, link.peer, session.timeout_s(_CALL_TIMEOUT_S))
    record = {**alert_document(answer.alert), "row": _read_row(answer.row_json)}
    invocation.output.show_record(record)
    return ExitCode.COMPLETE


def _request(invocation: Invocation) -> alert_service_pb2.ListAlertsRequest:
    request = alert_service_pb2.ListAlertsRequest(
        min_severity=SEVERITIES[invocation.argument("severity", "info")],
        rule_id=invocation.argument("rule", ""),
        max_alerts=invocation.argument("limit", 0),
    )
    if since := invocation.argument("since"):
        request.since.FromNanoseconds(parse_since(since))
    return request


async def _ask(
    session: OperatorSession, request: alert_service_pb2.ListAlertsRequest
) -> alert_service_pb2.ListAlertsResponse:
    link = await session.agent()
    stub = alert_service_pb2_grpc.AlertServiceStub(link.channel)
    return await ask(stub.ListAlerts, request, link.peer, session.timeout_s(_CALL_TIMEOUT_S))


async def _follow(
    invocation: Invocation,
    session: OperatorSession,
    request: alert_service_pb2.ListAlertsRequest,
) -> ExitCode:
    if invocation.output.format is Format.CSV:
        raise UsageError("--follow has no csv format; use --format json, one document a line")
    view = _Follower(invocation, request)
    link = await session.broker()
    async with asyncio.TaskGroup() as group:
        renewal = group.create_task(session.keep_tokens(), name="tokens")
        options = SubscriptionOptions(["alerts.#"], subscriber_id="daemoneye-alerts")
        async with aclosing(follow(link, options)) as items:
            async for item in items:
                if isinstance(item, Opened):  # after it, so that none falls between the two
                    view.take_list(await _ask(session, request))
                elif isinstance(item, Gap):
                    view.take_gap(item)
                else:
                    view.take_delivery(item)
        renewal.cancel()
    return ExitCode.COMPLETE


class _Follower:
    """Shows every alert once for each count it reached."""

    def __init__(
        self, invocation: Invocation, request: alert_service_pb2.ListAlertsRequest
    ) -> None:
        self._output = invocation.output
        self._request = request
        self._shown: dict[str, int] = {}

    def take_list(self, answer: alert_service_pb2.ListAlertsResponse) -> None:
        for alert in reversed(answer.alerts):
            self._show(alert)

    def take_delivery(self, delivery: Delivery) -> None:
        for message in delivery.messages:
            if message.HasField("alert") and self._is_wanted(message.alert):
                self._show(message.alert)

    def take_gap(self, gap: Gap) -> None:
        if self._output.is_json:
            self._output.write_line(
                {"type": "gap", "dropped_count": gap.dropped_count, "reason": gap.reason}
            )
        else:
            self._output.print_line(gap_line(gap.dropped_count, gap.reason))

    def _is_wanted(self, alert: eventbus_pb2.AlertPayload) -> bool:
        is_rule = self._request.rule_id in ("", alert.rule_id)
        return is_rule and alert.severity >= self._request.min_severity

    def _show(self, alert: eventbus_pb2.AlertPayload) -> None:
        if self._shown.get(alert.alert_id, -1) >= alert.count:
            return
        # Bounded: a repeat of what was forgotten is shown twice, never left out.
        self._shown.pop(alert.alert_id, None)
        self._shown[alert.alert_id] = alert.count
        if len(self._shown) > 10 * MAX_ALERTS:
            del self._shown[next(iter(self._shown))]
        if self._output.is_json:
            self._output.write_line({"type": "alert", **alert_document(alert)})
        else:
            for line in alert_lines(alert):
                self._output.print_line(line)


def _read_row(row_json: str) -> object:
    try:
        return json.loads(row_json) if row_json else None
    except ValueError:
        return row_json
