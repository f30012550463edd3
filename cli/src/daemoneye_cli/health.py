"""``daemoneye health``: whether everything is all right, for people and for monitoring."""

from collections.abc import Sequence
from dataclasses import dataclass

from daemoneye.agent.v1 import status_service_pb2, status_service_pb2_grpc
from daemoneye_cli.arguments import Subparsers, add_command
from daemoneye_cli.calls import ask
from daemoneye_cli.completeness import (
    exit_code_for,
    read_completeness,
    report_degradations,
    to_completeness_document,
)
from daemoneye_cli.document import to_document
from daemoneye_cli.errors import UnreachableError
from daemoneye_cli.exit_code import ExitCode, exit_code_of
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.output import Column, Listing, Output, Styled
from daemoneye_cli.session import OperatorSession
from daemoneye_cli.socket_health import SocketHealth, SocketState, check_all
from daemoneye_cli.text import format_duration, format_size, printable
from daemoneye_mesh.completeness import Degradation
from daemoneye_mesh.errors import DaemoneyeError

__all__ = ["add_parser", "run_health"]

_DESCRIPTION = """\
Asks every socket in the runtime dir for its health, and the agent for the state
of the whole mesh: components, what cannot be seen now, event store, counters.

Exit status 0 when everything is in service and nothing is missing, 3 when
something is not, 4 when the agent cannot be reached. With --format json and csv
the answer is printed in each of these cases."""

_EXAMPLES = (
    "daemoneye health",
    "daemoneye health --format json | jq .completeness",
    "daemoneye health > /dev/null || echo 'look at the mesh'",
)

_COLUMNS = (
    Column("name", "process"),
    Column("state", "health"),
    Column("latency_ms", "answered in ms", "right"),
    Column("socket", "socket"),
    Column("message", "why"),
)
_STYLES = {SocketState.SERVING: "green", SocketState.NOT_SERVING: "yellow"}


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command."""
    add_command(
        subparsers,
        "health",
        summary="is everything all right?",
        description=_DESCRIPTION,
        run=run_health,
        examples=_EXAMPLES,
    )


@dataclass(frozen=True, slots=True)
class _Findings:
    """All that was learnt."""

    sockets: Sequence[SocketHealth]
    status: status_service_pb2.GetStatusResponse | None
    degradations: tuple[Degradation, ...]
    error: DaemoneyeError | None
    """Why the agent did not tell its status."""


async def run_health(invocation: Invocation) -> ExitCode:
    """Runs the command."""
    async with invocation.session() as session:
        findings = await _look(session)
    if all(one.state is SocketState.UNREACHABLE for one in findings.sockets):
        raise UnreachableError(
            f"no mesh in {session.layout.root}: no process of it answers there",
            runtime_dir=session.layout.root,
        )
    _show(invocation.output, findings)
    return _exit_code(findings)


async def _look(session: OperatorSession) -> _Findings:
    sockets = await check_all(session)
    try:
        link = await session.agent()
        stub = status_service_pb2_grpc.StatusServiceStub(link.channel)
        request = status_service_pb2.GetStatusRequest()
        status = await ask(stub.GetStatus, request, link.peer, session.timeout_s(5.0))
    except DaemoneyeError as error:
        return _Findings(sockets, None, (), error)
    return _Findings(sockets, status, read_completeness(status.completeness, "agent"), None)


def _exit_code(findings: _Findings) -> ExitCode:
    if findings.error is not None:
        return exit_code_of(findings.error)
    if any(one.state is not SocketState.SERVING for one in findings.sockets):
        return ExitCode.DEGRADED
    if findings.status and not all(one.is_serving for one in findings.status.components):
        return ExitCode.DEGRADED
    return exit_code_for(findings.degradations)


def _show(output: Output, findings: _Findings) -> None:
    rows = [_socket_row(one) for one in findings.sockets]
    if output.is_json:
        output.write_document(_document(findings, rows))
        return
    output.show_listing(Listing("sockets", _COLUMNS, rows))
    if output.is_table and findings.status is not None:
        _show_status(output, findings.status)
    report_degradations(output, findings.degradations)
    if findings.error is not None:
        output.remark(f"error: {findings.error.message}", style="bold red")


def _document(findings: _Findings, rows: list[dict[str, object]]) -> dict[str, object]:
    code = _exit_code(findings)
    document: dict[str, object] = {
        "is_healthy": code is ExitCode.COMPLETE,
        "exit_status": int(code),
        "sockets": rows,
        "completeness": to_completeness_document(findings.degradations)
        if findings.status is not None
        else None,
        "status": to_document(findings.status) if findings.status is not None else None,
    }
    if findings.error is not None:
        error = findings.error
        described = {"code": error.code.name, "reason": error.reason.value}
        document["error"] = {**described, "message": error.message, "metadata": error.metadata}
    return document


def _socket_row(one: SocketHealth) -> dict[str, object]:
    return {
        "name": one.name,
        "state": Styled(one.state.value, _STYLES.get(one.state, "bold red")),
        "latency_ms": None if one.latency_ms is None else round(one.latency_ms, 1),
        "socket": str(one.socket),
        "message": one.message,
    }


def _show_status(output: Output, status: status_service_pb2.GetStatusResponse) -> None:
    columns = (Column("component", "component"), Column("state", ""), Column("message", "says"))
    rows = [
        (
            one.component,
            Styled("in service", "green") if one.is_serving else Styled("out of service", "red"),
            printable(one.message),
        )
        for one in status.components
    ]
    output.print_table(columns, rows)
    store, ingest = status.store, status.ingest
    uptime = format_duration(status.uptime.ToNanoseconds() / 1e9)
    refused = sum(ingest.refused_count.values())
    output.print_table(
        (Column("what", ""), Column("value", "")),
        [
            ("agent", f"{status.version}, up {uptime}, {status.enabled_rule_count} rules run"),
            ("store", f"{store.event_count} events, {format_size(store.size_bytes)}"),
            (
                "ingest",
                f"{ingest.received_count} received = {ingest.stored_count} stored"
                f" + {ingest.duplicate_count} repeated + {refused} refused;"
                f" {ingest.lost_count} lost",
            ),
            ("alerts", f"{ingest.alert_count} raised"),
        ],
    )
