"""``agent.v1.QueryService``: SQL in, rows and completeness out."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from daemoneye.agent.v1 import query_service_pb2 as pb
from daemoneye.agent.v1 import query_service_pb2_grpc
from daemoneye_agent.event import EventRow, SqlValue
from daemoneye_agent.query_pool import QueryAnswer, QueryPool
from daemoneye_agent.schema import TABLES, Table, TableKind
from daemoneye_mesh.completeness import Degradation, merge_degradations
from daemoneye_mesh.completeness_message import to_completeness
from daemoneye_mesh.errors import ErrorReason, InvalidRequestError, OverloadedError
from daemoneye_mesh.limits import MAX_BATCH_BYTES

__all__ = ["QueryServicer"]

MAX_ROWS = 1_000_000

_KINDS = {TableKind.STORED: pb.TABLE_KIND_STORED, TableKind.LIVE: pb.TABLE_KIND_LIVE}


class QueryServicer(query_service_pb2_grpc.QueryServiceServicer):
    """Answers queries.

    Args:
        pool: runs them.
        degradations_of: what may be missing from the named stored tables.
    """

    def __init__(
        self,
        pool: QueryPool,
        degradations_of: Callable[[frozenset[str]], tuple[Degradation, ...]],
    ) -> None:
        self._pool = pool
        self._degradations_of = degradations_of

    async def ExecuteQuery(
        self, request: pb.ExecuteQueryRequest, context: Any
    ) -> AsyncIterator[pb.ExecuteQueryResponse]:
        """Runs and streams; the completeness comes last."""
        if request.max_rows > MAX_ROWS:
            raise InvalidRequestError(
                f"max_rows {request.max_rows} is more than {MAX_ROWS}; ask for fewer",
                field="max_rows",
                limit=MAX_ROWS,
            )
        parameters = {name: _from_value(value) for name, value in request.parameters.items()}
        answers = self._pool.run(
            request.sql, parameters, request.max_rows, context.time_remaining()
        )
        known: tuple[Degradation, ...] | None = None
        answer = QueryAnswer((), ())
        row_count = 0
        async with aclosing(answers) as pieces:
            async for answer in pieces:
                if known is None:
                    known = self._degradations_of(answer.tables)
                    yield pb.ExecuteQueryResponse(columns=answer.columns)
                for response in _to_responses(answer.rows):
                    yield response
                row_count += len(answer.rows)
        yield pb.ExecuteQueryResponse(
            is_last=True,
            row_count=row_count,
            completeness=to_completeness(
                merge_degradations(
                    known or (), self._degradations_of(answer.tables), answer.degradations
                )
            ),
        )

    async def ListTables(
        self, request: pb.ListTablesRequest, context: Any
    ) -> pb.ListTablesResponse:
        """Lists the tables, stored ones first."""
        return pb.ListTablesResponse(tables=[_to_table(table) for table in TABLES.values()])


def _from_value(value: pb.SqlValue) -> SqlValue:
    kind = value.WhichOneof("kind")
    return None if kind is None else getattr(value, kind)


def _to_responses(rows: Sequence[EventRow]) -> Iterator[pb.ExecuteQueryResponse]:
    """Yields the rows in responses that fit into a message."""
    if not rows:
        return
    response = pb.ExecuteQueryResponse(rows=map(_to_row, rows))
    size_bytes = response.ByteSize()
    if size_bytes <= MAX_BATCH_BYTES:
        yield response
    elif len(rows) > 1:
        middle = len(rows) // 2
        yield from _to_responses(rows[:middle])
        yield from _to_responses(rows[middle:])
    else:
        raise OverloadedError(
            f"one row has {size_bytes} bytes, more than {MAX_BATCH_BYTES}; select less of it with"
            " substr",
            reason=ErrorReason.RESULT_TOO_LARGE,
            size_bytes=size_bytes,
            limit_bytes=MAX_BATCH_BYTES,
        )


def _to_row(row: EventRow) -> pb.SqlRow:
    return pb.SqlRow(values=map(_to_value, row))


def _to_value(value: SqlValue) -> pb.SqlValue:
    match value:
        case None:
            return pb.SqlValue()
        case int():
            return pb.SqlValue(integer=value)
        case float():
            return pb.SqlValue(real=value)
        case str():
            return pb.SqlValue(text=value)
        case bytes():
            return pb.SqlValue(blob=value)


def _to_table(table: Table) -> pb.TableInfo:
    columns = [
        pb.TableColumn(name=column.name, type=column.type, description=column.description)
        for column in table.columns
    ]
    return pb.TableInfo(
        name=table.name, kind=_KINDS[table.kind], description=table.description, columns=columns
    )
