"""What ``daemoneye up`` shows while the mesh runs: events, alerts, and what cannot be seen.

Invariant: a broker or agent that is away for a while costs lines, never the view itself; it says so
and goes on.
"""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field

from daemoneye.agent.v1 import status_service_pb2, status_service_pb2_grpc
from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_cli.alert_line import alert_document, alert_lines
from daemoneye_cli.calls import ask
from daemoneye_cli.completeness import describe, read_completeness
from daemoneye_cli.event_line import EventKind, event_document, event_line, gap_line, kind_of
from daemoneye_cli.output import Output
from daemoneye_cli.readiness import wait_until_serving
from daemoneye_cli.session import OperatorSession
from daemoneye_cli.tail import Gap, Opened, SubscriptionOptions, follow
from daemoneye_mesh.completeness import Degradation, DegradedReason
from daemoneye_mesh.errors import DaemoneyeError

__all__ = ["LiveView", "Tally"]

RETRY_S = 1.0
COVERAGE_INTERVAL_S = 2.0
SETTLE_S = 0.5
FIRST_COVERAGE_LIMIT_S = 3.0
_SHOWN_KINDS = (EventKind.START, EventKind.EXEC, EventKind.STOP)


@dataclass(slots=True)
class Tally:
    """What was shown."""

    event_count: int = 0
    inventory_count: int = 0
    alert_count: int = 0
    missing_count: int = 0


@dataclass(slots=True)
class LiveView:
    """Shows one mesh.

    Args:
        output: where to.
        session: the operator's session.
        has_events: whether events are shown; alerts always are.
        is_quiet: whether remarks on coverage and inventory are left out.
    """

    output: Output
    session: OperatorSession
    has_events: bool = True
    is_quiet: bool = False
    tally: Tally = field(default_factory=Tally)
    is_subscribed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the subscription stands."""

    async def run(self) -> None:
        """Shows events and alerts until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_forever(), name="follow")
            group.create_task(self._report_inventory(), name="inventory")

    async def watch_coverage(self) -> None:
        """Tells what cannot be seen, at first and whenever it changes, until cancelled."""
        known: tuple[Degradation, ...] | None = None
        while True:
            try:
                status = await self._status(is_first=known is None)
            except DaemoneyeError:
                await asyncio.sleep(COVERAGE_INTERVAL_S)
                continue
            found = read_completeness(status.completeness, "agent")
            if known is None or _kinds(found) != _kinds(known):
                self._report_coverage(found, known)
                known = found
            await asyncio.sleep(COVERAGE_INTERVAL_S)

    async def _status(self, *, is_first: bool) -> status_service_pb2.GetStatusResponse:
        """Reads the state; the first time it waits a little for collectors to register."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + (FIRST_COVERAGE_LIMIT_S if is_first else 0)
        link = await self.session.agent()
        stub = status_service_pb2_grpc.StatusServiceStub(link.channel)
        while True:
            request = status_service_pb2.GetStatusRequest()
            status = await ask(stub.GetStatus, request, link.peer, self.session.timeout_s(5.0))
            found = read_completeness(status.completeness, "agent")
            is_settled = not any(
                one.reason is DegradedReason.COLLECTOR_UNAVAILABLE for one in found
            )
            if is_settled or loop.time() >= deadline_s:
                return status
            await asyncio.sleep(0.2)

    def _report_coverage(
        self, found: tuple[Degradation, ...], known: tuple[Degradation, ...] | None
    ) -> None:
        if self.is_quiet:
            return
        told = _kinds(known or ())
        for one in found:
            if (one.reason, one.subject) not in told:
                self.output.remark(f"coverage degraded: {describe(one)}", style="yellow")
        if not found:
            self.output.remark("coverage: complete", style="green")

    async def _follow_forever(self) -> None:
        has_complained = False
        for socket in (self.session.layout.agent_socket, self.session.layout.eventbus_socket):
            await wait_until_serving(socket)
        while True:
            try:
                await self._follow()
            except DaemoneyeError as error:
                if not has_complained:
                    has_complained = True
                    self.output.remark(
                        f"warning: no live view yet: {error.message}", style="yellow"
                    )
                await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        link = await self.session.broker()
        patterns = ["events.#", "alerts.#"] if self.has_events else ["alerts.#"]
        async with asyncio.TaskGroup() as group:
            renewal = group.create_task(self.session.keep_tokens(), name="tokens")
            options = SubscriptionOptions(patterns, subscriber_id="daemoneye-up")
            async with aclosing(follow(link, options)) as items:
                async for item in items:
                    self._take(item)
            renewal.cancel()

    def _take(self, item: object) -> None:
        if isinstance(item, Opened):
            self.is_subscribed.set()
        elif isinstance(item, Gap):
            self._take_gap(item)
        else:
            for message in getattr(item, "messages", ()):
                self._take_message(message)

    def _take_gap(self, gap: Gap) -> None:
        self.tally.missing_count += gap.dropped_count
        if self.output.is_json:
            self.output.write_line(
                {"type": "gap", "dropped_count": gap.dropped_count, "reason": gap.reason}
            )
        else:
            self.output.print_line(gap_line(gap.dropped_count, gap.reason))

    def _take_message(self, message: eventbus_pb2.EventBusMessage) -> None:
        if message.HasField("alert"):
            self._show_alert(message.alert)
        elif self.output.is_json and self.has_events:
            self.tally.event_count += 1
            self.output.write_line(event_document(message))
        elif (kind := kind_of(message)) is EventKind.INVENTORY:
            self.tally.inventory_count += 1
        elif kind in _SHOWN_KINDS:
            self.tally.event_count += 1
            self.output.print_line(event_line(message))

    def _show_alert(self, alert: eventbus_pb2.AlertPayload) -> None:
        self.tally.alert_count += 1
        if self.output.is_json:
            self.output.write_line({"type": "alert", **alert_document(alert)})
            return
        for line in alert_lines(alert):
            self.output.print_line(line)

    async def _report_inventory(self) -> None:
        """Tells how many processes were there already, once no more of them come."""
        reported = seen = 0
        while True:
            await asyncio.sleep(SETTLE_S)
            count = self.tally.inventory_count
            if count == seen and count != reported:
                if not self.is_quiet:
                    new = count - reported
                    self.output.remark(f"inventory: {new} processes were running already")
                reported = count
            seen = count


def _kinds(degradations: tuple[Degradation, ...]) -> set[tuple[DegradedReason, str]]:
    """Returns what is degraded, without the sentences: a count in one changes all the time."""
    return {(one.reason, one.subject) for one in degradations}
