"""``daemoneye tables``: what a query may name."""

from difflib import get_close_matches

from daemoneye.agent.v1 import query_service_pb2, query_service_pb2_grpc
from daemoneye_cli.arguments import Subparsers, add_command
from daemoneye_cli.calls import ask
from daemoneye_cli.document import Document, to_document
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.output import Column, Listing
from daemoneye_mesh.errors import ErrorReason, NotFoundError

__all__ = ["add_parser", "run_tables"]

_CALL_TIMEOUT_S = 5.0

_DESCRIPTION = """\
Lists the tables that a query or a rule may name; with NAME, the columns of one.
Stored tables hold what happened; live ones are asked of the collectors."""

_TABLE_COLUMNS = (
    Column("name", "table"),
    Column("kind", "kind"),
    Column("column_count", "columns", "right"),
    Column("description", "a row is"),
)
_COLUMN_COLUMNS = (
    Column("name", "column"),
    Column("type", "type"),
    Column("description", "meaning"),
)


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "tables",
        summary="list tables and columns",
        description=_DESCRIPTION,
        run=run_tables,
        examples=("daemoneye tables", "daemoneye tables process_events"),
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a table")


async def run_tables(invocation: Invocation) -> ExitCode:
    """Runs the command."""
    async with invocation.session() as session:
        link = await session.agent()
        stub = query_service_pb2_grpc.QueryServiceStub(link.channel)
        request = query_service_pb2.ListTablesRequest()
        answer = await ask(stub.ListTables, request, link.peer, session.timeout_s(_CALL_TIMEOUT_S))
    tables = [to_document(table) for table in answer.tables]
    if name := invocation.argument("name"):
        table = _find(tables, name)
        about = {key: value for key, value in table.items() if key != "columns"}
        listing = Listing("columns", _COLUMN_COLUMNS, table["columns"], about)
    else:
        rows = [{**table, "column_count": len(table["columns"])} for table in tables]
        listing = Listing("tables", _TABLE_COLUMNS, rows)
    invocation.output.show_listing(listing)
    return ExitCode.COMPLETE


def _find(tables: list[Document], name: str) -> Document:
    known = [table["name"] for table in tables]
    if name in known:
        return tables[known.index(name)]
    closest = get_close_matches(name, known, n=1)
    advice = f"did you mean {closest[0]}?" if closest else f"there are {', '.join(known)}"
    raise NotFoundError(
        f"there is no table {name}; {advice}", reason=ErrorReason.TABLE_UNKNOWN, table=name
    )
