"""``daemoneye query``: one SELECT, its rows as they come, and whether they are all."""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

from daemoneye.agent.v1 import query_service_pb2, query_service_pb2_grpc
from daemoneye_cli.arguments import Subparsers, add_command, bounded_int
from daemoneye_cli.calls import read_stream
from daemoneye_cli.completeness import exit_code_for, read_completeness, report_degradations
from daemoneye_cli.errors import UsageError
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.parameter import parse_parameters
from daemoneye_cli.row_writer import RowWriter, SqlCell, make_row_writer
from daemoneye_cli.session import Link
from daemoneye_mesh.channel import correlation_metadata
from daemoneye_mesh.completeness import Degradation, DegradedReason
from daemoneye_mesh.errors import DaemoneyeError, InternalError

__all__ = ["add_parser", "run_query"]

QUERY_TIMEOUT_S = 60.0
MAX_SQL_CHARS = 32 * 1024
MAX_ROWS = 1_000_000

_DESCRIPTION = """\
Runs one SELECT of SQLite's dialect over the tables that 'daemoneye tables' lists:
stored ones (process_events, alerts, …) and live ones (processes, …), which are
asked of the collectors while the query runs.

Rows are written as they arrive. The answer says whether it is complete; when it
is degraded the exit status is 3 and the reasons are on standard error, or inside
the document with --format json:
  {"columns": […], "rows": [{…}, …], "row_count": n, "completeness": {…}}
Should the query fail after the first rows, the document ends with an "error"."""

_EXAMPLES = (
    'daemoneye query "SELECT pid, name, cmdline FROM processes ORDER BY cpu_time_ms DESC LIMIT 10"',
    'daemoneye query "SELECT * FROM process_events WHERE name = :name" --param name=sshd',
    'daemoneye query "SELECT pid FROM processes WHERE uid >= :uid" --param uid:integer=1000',
    "daemoneye query --format csv - < report.sql > report.csv",
)


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "query",
        summary="ask the mesh in SQL",
        description=_DESCRIPTION,
        run=run_query,
        examples=_EXAMPLES,
    )
    parser.add_argument("sql", metavar="SQL", help="one SELECT; '-' reads it from standard input")
    parser.add_argument(
        "--param",
        dest="params",
        action="append",
        default=[],
        metavar="NAME[:TYPE]=VALUE",
        help="value of :NAME; TYPE is integer, real, text, blob (hex) or null, else it is guessed",
    )
    parser.add_argument(
        "--max-rows",
        type=bounded_int(1, MAX_ROWS),
        metavar="N",
        default=0,
        help="most rows wanted; default 10,000, the limit of the agent is 1,000,000",
    )


async def run_query(invocation: Invocation) -> ExitCode:
    """Runs the command."""
    request = query_service_pb2.ExecuteQueryRequest(
        sql=await _read_sql(invocation.arguments.sql),
        parameters=parse_parameters(invocation.arguments.params),
        max_rows=invocation.arguments.max_rows,
    )
    writer = make_row_writer(invocation.output)
    async with invocation.session() as session:
        link = await session.agent()
        degradations = await _copy(link, request, writer, session.timeout_s(QUERY_TIMEOUT_S))
    report_degradations(invocation.output, degradations)
    return exit_code_for(degradations)


async def _read_sql(argument: str) -> str:
    sql = argument
    if argument == "-":
        sql = await asyncio.to_thread(sys.stdin.read, MAX_SQL_CHARS + 1)
    if not sql.strip():
        raise UsageError("the SQL is empty; give one SELECT, or '-' and it on standard input")
    if len(sql) > MAX_SQL_CHARS:
        raise UsageError(
            f"the SQL is longer than {MAX_SQL_CHARS} characters; shorten it", limit=MAX_SQL_CHARS
        )
    return sql


@dataclass(slots=True)
class _Progress:
    """How far an answer has come."""

    column_count: int | None = None
    is_finished: bool = False
    degradations: tuple[Degradation, ...] = ()
    row_count: int = 0


async def _copy(
    link: Link,
    request: query_service_pb2.ExecuteQueryRequest,
    writer: RowWriter,
    timeout_s: float,
) -> tuple[Degradation, ...]:
    """Writes the answer as it comes and returns what is missing from it."""
    stub = query_service_pb2_grpc.QueryServiceStub(link.channel)
    call = stub.ExecuteQuery(request, timeout=timeout_s, metadata=correlation_metadata())
    progress = _Progress()
    try:
        await _copy_parts(read_stream(call, link.peer, timeout_s), writer, progress)
    except DaemoneyeError as error:
        writer.fail(error)
        raise
    if not progress.is_finished:
        progress.degradations = (_cut_short(),)
    writer.end(progress.degradations)
    return progress.degradations


async def _copy_parts(
    parts: AsyncIterator[query_service_pb2.ExecuteQueryResponse],
    writer: RowWriter,
    progress: _Progress,
) -> None:
    async for part in parts:
        if progress.column_count is None:
            progress.column_count = len(part.columns)
            writer.begin(list(part.columns))
        writer.add([_cells(row, progress.column_count) for row in part.rows])
        progress.row_count += len(part.rows)
        if part.is_last:
            progress.is_finished = True
            progress.degradations = read_completeness(part.completeness, "agent")
            if part.row_count != progress.row_count:
                progress.degradations += (_miscounted(part.row_count, progress.row_count),)


def _cells(row: query_service_pb2.SqlRow, column_count: int) -> list[SqlCell]:
    if len(row.values) != column_count:
        raise InternalError(
            f"the agent sent a row of {len(row.values)} values for {column_count} columns; report"
            " it, and ask again with fewer columns",
            values=len(row.values),
            columns=column_count,
        )
    return [_cell(value) for value in row.values]


def _cell(value: query_service_pb2.SqlValue) -> SqlCell:
    match value.WhichOneof("kind"):
        case "integer":
            return value.integer
        case "real":
            return value.real
        case "text":
            return value.text
        case "blob":
            return value.blob.hex()
        case _:
            return None


def _cut_short() -> Degradation:
    return Degradation(
        DegradedReason.READ_ERRORS, "agent", "the answer ended without its last part"
    )


def _miscounted(told: int, seen: int) -> Degradation:
    message = f"the agent counted {told} rows and {seen} arrived"
    return Degradation(DegradedReason.READ_ERRORS, "agent", message)
