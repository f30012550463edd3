"""``daemoneye bus workflows``: messages that belong together, and the order in which they came."""

from typing import Any

from daemoneye.eventbus.v1 import correlation_service_pb2 as pb
from daemoneye.eventbus.v1 import correlation_service_pb2_grpc
from daemoneye_cli.arguments import Subparsers, add_command, bounded_int
from daemoneye_cli.bus_assignment import read_assignments
from daemoneye_cli.bus_listings import columns_for
from daemoneye_cli.calls import ask
from daemoneye_cli.document import to_document
from daemoneye_cli.errors import UsageError
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.output import Column, Listing, Output
from daemoneye_cli.session import OperatorSession
from daemoneye_cli.text import format_clock, format_duration

__all__ = ["add_workflows", "run_workflows"]

Row = dict[str, Any]

MAX_WORKFLOWS = 1_000
MAX_STEPS = 10_000
DEFAULT_STEPS = 1_000
_CALL_TIMEOUT_S = 5.0

_WORKFLOW_COLUMNS = (
    Column("root_correlation_id", "root"),
    Column("_active", "latest"),
    Column("_lasted", "lasted", "right"),
    Column("message_count", "messages", "right"),
    Column("_stages", "stages"),
    Column("source_ids", "publishers"),
    Column("trace_ids", "traces"),
)
_WORKFLOW_KEYS = (
    "root_correlation_id",
    "started_at",
    "active_at",
    "message_count",
    "stages",
    "source_ids",
    "trace_ids",
)
_STEP_COLUMNS = (
    Column("_time", "accepted"),
    Column("topic", "topic"),
    Column("source_id", "publisher"),
    Column("message_type", "type"),
    Column("message_count", "messages", "right"),
    Column("workflow_stage", "stage"),
    Column("correlation_id", "correlation"),
    Column("parent_correlation_id", "parent"),
    Column("sequence_number", "sequence", "right"),
)
_STEP_KEYS = (
    "accepted_at",
    "topic",
    "source_id",
    "message_type",
    "message_count",
    "workflow_stage",
    "correlation_id",
    "parent_correlation_id",
    "root_correlation_id",
    "sequence_number",
    "trace_id",
    "span_id",
    "correlation_tags",
)

_DESCRIPTION = f"""\
Lists the workflows that the broker remembers, latest first: messages with a
correlation, by the id that all of it goes back to. With ROOT, the timeline of one:
each step in the order in which the broker accepted it.

The broker keeps metadata only, in bounded memory; workflows end after five minutes
without a message. A timeline from which the broker forgot steps makes the exit
status 3. At most {DEFAULT_STEPS:,} steps are shown unless --steps says more."""


def add_workflows(nested: Subparsers) -> None:
    """Adds ``bus workflows``."""
    parser = add_command(
        nested,
        "workflows",
        summary="messages that belong together, as timelines",
        description=_DESCRIPTION,
        run=run_workflows,
        examples=(
            "daemoneye bus workflows",
            "daemoneye bus workflows --tag case=42 --tag team=blue",
            "daemoneye bus workflows --trace 4bf92f3577b34da6a3ce929d0e0e4736",
            "daemoneye bus workflows 9f0c2d5e --format json | jq '.steps[].topic'",
        ),
    )
    add = parser.add_argument
    add("root", nargs="?", metavar="ROOT", help="a root correlation id: show its timeline")
    add("--tag", action="append", metavar="KEY=VALUE", help="with this tag; all of several")
    add("--trace", metavar="ID", help="with this W3C trace id")
    limit = f"most workflows wanted, default 100, at most {MAX_WORKFLOWS:,}"
    add("--limit", type=bounded_int(1, MAX_WORKFLOWS), metavar="N", help=limit)
    steps = f"most steps wanted, the latest ones, at most {MAX_STEPS:,}"
    add("--steps", type=bounded_int(1, MAX_STEPS), metavar="N", help=steps)


async def run_workflows(invocation: Invocation) -> ExitCode:
    """Runs the command."""
    root = invocation.argument("root")
    _require_fitting_options(invocation, is_one=root is not None)
    async with invocation.session() as session:
        if root is None:
            answer = await _list(session, _list_request(invocation))
            _show_list(invocation.output, answer)
            return ExitCode.COMPLETE
        return await _show_one(invocation, session, root)


def _require_fitting_options(invocation: Invocation, *, is_one: bool) -> None:
    """Refuses an option that would be ignored."""
    foreign = ("tag", "trace", "limit") if is_one else ("steps",)
    given = [name for name in foreign if invocation.argument(name) is not None]
    if given:
        advice = "leave ROOT out to search" if is_one else "it needs a ROOT"
        raise UsageError(f"--{given[0]} does not go with this; {advice}", option=given[0])


def _list_request(invocation: Invocation) -> pb.ListWorkflowsRequest:
    return pb.ListWorkflowsRequest(
        tags=read_assignments("--tag", invocation.argument("tag", ())),
        trace_id=invocation.argument("trace", ""),
        limit=invocation.argument("limit", 0),
    )


async def _list(
    session: OperatorSession, request: pb.ListWorkflowsRequest
) -> pb.ListWorkflowsResponse:
    link = await session.broker()
    stub = correlation_service_pb2_grpc.CorrelationServiceStub(link.channel)
    return await ask(stub.ListWorkflows, request, link.peer, session.timeout_s(_CALL_TIMEOUT_S))


def _show_list(output: Output, answer: pb.ListWorkflowsResponse) -> None:
    extras = {
        "active_count": answer.active_count,
        "expired_count": answer.expired_count,
        "evicted_count": answer.evicted_count,
        "forgotten_step_count": answer.forgotten_step_count,
    }
    rows = [_workflow_row(one) for one in answer.workflows]
    if rows or not output.is_table:
        columns = columns_for(output, _WORKFLOW_COLUMNS, _WORKFLOW_KEYS)
        output.show_listing(Listing("workflows", columns, rows, extras))
    if output.is_table:
        output.remark(
            f"{len(rows)} of {answer.active_count:,} workflows; {answer.expired_count:,} ended,"
            f" {answer.evicted_count:,} were forgotten to make room"
        )


async def _show_one(invocation: Invocation, session: OperatorSession, root: str) -> ExitCode:
    output, max_steps = invocation.output, invocation.argument("steps", DEFAULT_STEPS)
    link = await session.broker()
    stub = correlation_service_pb2_grpc.CorrelationServiceStub(link.channel)
    request = pb.GetWorkflowRequest(root_correlation_id=root, max_steps=max_steps)
    answer = await ask(stub.GetWorkflow, request, link.peer, session.timeout_s(_CALL_TIMEOUT_S))
    extras = {"workflow": to_document(answer.workflow), "is_truncated": answer.is_truncated}
    rows = [_step_row(one) for one in answer.steps]
    columns = columns_for(output, _STEP_COLUMNS, _STEP_KEYS)
    output.show_listing(Listing("steps", columns, rows, extras))
    return _report_truncation(output, answer, max_steps)


def _report_truncation(output: Output, answer: pb.GetWorkflowResponse, max_steps: int) -> ExitCode:
    if not answer.is_truncated:
        return ExitCode.COMPLETE
    if len(answer.steps) >= max_steps:
        if not output.is_json:
            output.remark(f"these are the latest {len(answer.steps)} steps; raise --steps")
        return ExitCode.COMPLETE
    if not output.is_json:
        shown = sum(one.message_count for one in answer.steps)
        output.remark(
            f"degraded: the broker forgot the older steps to stay within its bounds; {shown:,} of"
            f" {answer.workflow.message_count:,} messages are in these",
            style="yellow",
        )
    return ExitCode.DEGRADED


def _workflow_row(workflow: pb.Workflow) -> Row:
    lasted_ns = workflow.active_at.ToNanoseconds() - workflow.started_at.ToNanoseconds()
    stages = [f"{one.name} ({one.message_count:,})" for one in workflow.stages]
    return {
        **to_document(workflow),
        "_active": format_clock(workflow.active_at.ToNanoseconds()),
        "_lasted": format_duration(max(lasted_ns, 0) / 1e9),
        "_stages": stages,
    }


def _step_row(step: pb.TimelineStep) -> Row:
    document = to_document(step)
    correlation = document.pop("correlation") or {}
    return {**document, **correlation, "_time": format_clock(step.accepted_at.ToNanoseconds())}
