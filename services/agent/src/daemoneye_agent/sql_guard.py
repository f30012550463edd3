"""The second line: what an apsw connection that runs foreign SQL may do, enforced by SQLite itself.

Invariant: a hardened connection reads the offered tables and calls the allowed functions, nothing
else, whatever text reaches it; no regular expression takes more than linear time; every statement
ends at its deadline.
"""

import re
import time
from collections.abc import Callable, Iterable
from functools import lru_cache

import apsw
import re2

from daemoneye_agent.event import SqlValue
from daemoneye_agent.sql_grammar import FUNCTIONS, OPERATOR_FUNCTIONS, TABLE_FUNCTIONS
from daemoneye_agent.sql_text import InvalidSqlError, location, refusal
from daemoneye_mesh.errors import (
    DaemoneyeError,
    ErrorReason,
    InternalError,
    OverloadedError,
    UnavailableError,
)

__all__ = ["Authorizer", "Deadline", "add_regexp", "explain", "harden", "restrict"]

MAX_PATTERN_BYTES = 1024
_PATTERN_MEMORY_BYTES = 1 << 20
_PARTITION = re.compile(r"(?P<table>[a-z_]+)_[0-9]{8}(?:_[0-9]+)?")
_CALLABLE = FUNCTIONS | OPERATOR_FUNCTIONS
# SQLite calls the progress callback every so many steps of its machine: a few times a millisecond.
_PROGRESS_STEPS = 5_000

_SWITCHES = (
    (apsw.SQLITE_DBCONFIG_DEFENSIVE, 1),
    (apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0),
    (apsw.SQLITE_DBCONFIG_DQS_DML, 0),
    (apsw.SQLITE_DBCONFIG_DQS_DDL, 0),
    (apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0),
    (apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0),
    (apsw.SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER, 0),
)

_LIMITS = (
    (apsw.SQLITE_LIMIT_LENGTH, 8 << 20),
    # Views of the store are long: SQLite parses them under the same limit.
    (apsw.SQLITE_LIMIT_SQL_LENGTH, 1 << 20),
    (apsw.SQLITE_LIMIT_EXPR_DEPTH, 500),
    # A view over one partition a day has one arm a day.
    (apsw.SQLITE_LIMIT_COMPOUND_SELECT, 500),
    (apsw.SQLITE_LIMIT_VDBE_OP, 5_000_000),
    (apsw.SQLITE_LIMIT_COLUMN, 500),
    (apsw.SQLITE_LIMIT_FUNCTION_ARG, 64),
    (apsw.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 4096),
    (apsw.SQLITE_LIMIT_VARIABLE_NUMBER, 100),
    (apsw.SQLITE_LIMIT_ATTACHED, 0),
    (apsw.SQLITE_LIMIT_TRIGGER_DEPTH, 0),
    (apsw.SQLITE_LIMIT_WORKER_THREADS, 0),
)


def harden(connection: apsw.Connection) -> None:
    """Turn off what foreign SQL never needs and bound what it may use."""
    for switch, value in _SWITCHES:
        connection.config(switch, value)
    for limit, value in _LIMITS:
        connection.limit(limit, value)


class Authorizer:
    """Allows SELECT over the offered tables, and the allowed functions; denies the rest."""

    def __init__(self, tables: Iterable[str]) -> None:
        self._tables = frozenset(tables)
        self._readable = self._tables | frozenset(TABLE_FUNCTIONS)
        self.cte_names: frozenset[str] = frozenset()
        self.is_trusted = False
        """True while statements of our own are prepared on the same connection."""

    def __call__(
        self,
        operation: int,
        first: str | None,
        second: str | None,
        _database: str | None,
        view: str | None,
    ) -> int:
        """Answer SQLite's question; see sqlite3_set_authorizer for the arguments."""
        if self.is_trusted or operation == apsw.SQLITE_SELECT:
            return apsw.SQLITE_OK
        if operation == apsw.SQLITE_READ:
            allowed = self._may_read((first or "").lower(), second or "", (view or "").lower())
        else:
            allowed = operation == apsw.SQLITE_FUNCTION and (second or "").lower() in _CALLABLE
        return apsw.SQLITE_OK if allowed else apsw.SQLITE_DENY

    def _may_read(self, table: str, column: str, view: str) -> bool:
        if table in self._readable:
            return True
        # A CTE of which no column is used shows up by its name.
        if not column and table in self.cte_names:
            return True
        partition = _PARTITION.fullmatch(table)
        # Named directly only where the planner copied the view and no column is used.
        is_through_view = bool(view) or not column
        return partition is not None and partition["table"] in self._tables and is_through_view


class Deadline:
    """A progress callback that stops the running statement when its time is over."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = float("inf")

    def start(self, seconds: float) -> None:
        """Give what runs next this much time."""
        self._at = self._clock() + seconds

    def stop(self) -> None:
        """Give unlimited time again."""
        self._at = float("inf")

    @property
    def is_over(self) -> bool:
        """True when the time is used up."""
        return self._clock() >= self._at


def restrict(connection: apsw.Connection, authorizer: Authorizer, deadline: Deadline) -> None:
    """Put the authorizer and the deadline in force; the last step before foreign SQL."""
    connection.authorizer = authorizer
    connection.set_progress_handler(lambda: deadline.is_over, _PROGRESS_STEPS)


def add_regexp(connection: apsw.Connection, *, max_patterns: int) -> None:
    """Define ``REGEXP``: an RE2 search, NULL when either side is NULL, ``(?i)`` to ignore case."""
    compiled = lru_cache(maxsize=max_patterns)(_compile)

    def regexp(*arguments: SqlValue) -> bool | None:
        pattern, value = arguments
        if pattern is None or value is None:
            return None
        text = value if isinstance(value, bytes) else str(value).encode()
        return bool(compiled(str(pattern)).search(text))

    connection.create_scalar_function("regexp", regexp, 2, deterministic=True)


def _compile(pattern: str) -> "re2._Regexp":
    if len(pattern.encode()) > MAX_PATTERN_BYTES:
        raise _bad_pattern(pattern, f"is longer than {MAX_PATTERN_BYTES} bytes; shorten it")
    options = re2.Options()
    options.max_mem = _PATTERN_MEMORY_BYTES
    options.never_capture = True
    options.log_errors = False
    options.dot_nl = True
    try:
        return re2.compile(pattern, options)
    except re2.error:
        raise _bad_pattern(
            pattern, "is not RE2; it has no look-around or back-references"
        ) from None


def _bad_pattern(pattern: str, complaint: str) -> InvalidSqlError:
    shown = pattern[:64]
    return InvalidSqlError(f"the regular expression {shown!r} {complaint}", pattern=shown)


# SQLite's sentence, what it means, our reason. Groups of the pattern become metadata.
_SENTENCES: tuple[tuple[re.Pattern[str], str, ErrorReason], ...] = (
    (
        re.compile(r"no such table: (?P<name>.+)"),
        "there is no table {name!r}; see the tables in the schema",
        ErrorReason.TABLE_UNKNOWN,
    ),
    (
        re.compile(r"no such column: \"?(?P<name>[^\" ]+)"),
        "there is no column {name!r} here; see the columns of the table in its schema",
        ErrorReason.COLUMN_UNKNOWN,
    ),
    (
        re.compile(r"ambiguous column name: (?P<name>.+)"),
        "the column {name!r} exists more than once; write table.{name}",
        ErrorReason.SQL_INVALID,
    ),
    (
        re.compile(r"no such function: (?P<name>.+)"),
        "there is no function {name!r}; use a built-in such as lower, substr or REGEXP",
        ErrorReason.SQL_FORBIDDEN,
    ),
    (
        re.compile(r"wrong number of arguments to function (?P<name>.+)\(\)"),
        "the function {name!r} takes another number of arguments; correct the call",
        ErrorReason.SQL_INVALID,
    ),
    (
        re.compile(r"misuse of (?:aggregate|window)s?:?(?: function)? ?(?P<name>[^()]*)(?:\(\))?"),
        "the aggregate {name!r} can not stand here; move it to the columns, HAVING or ORDER BY",
        ErrorReason.SQL_INVALID,
    ),
    (
        re.compile(r'near "(?P<near>.*)": syntax error', re.DOTALL),
        "the query is not valid SQLite near {near!r}; check the syntax there",
        ErrorReason.SQL_INVALID,
    ),
    (
        re.compile(r"Expression tree is too large.*"),
        "the query has too many conditions in one chain; use IN or a shorter query",
        ErrorReason.SQL_FORBIDDEN,
    ),
    (
        re.compile(r"too many .*|at most [0-9]+ tables in a join"),
        "the query grows larger than SQLite takes; split it",
        ErrorReason.SQL_FORBIDDEN,
    ),
    (
        re.compile(r"malformed JSON|bad JSON path.*|JSON .*"),
        "a JSON function met text or a path that is not JSON; test it with json_valid",
        ErrorReason.SQL_INVALID,
    ),
    (
        re.compile(r"(not authorized.*|access to .+ is prohibited)", re.DOTALL),
        "the query reads or calls something that is not offered; see the tables in the schema",
        ErrorReason.SQL_FORBIDDEN,
    ),
)


def explain(error: Exception, sql: str) -> DaemoneyeError:
    """Turn what apsw raised while a query ran into an error of ours; its text stays behind."""
    if isinstance(error, DaemoneyeError):
        return error
    if isinstance(error, (apsw.SQLError, apsw.AuthError)):
        return _explain_statement(error, sql)
    for kinds, make in _FAILURES:
        if isinstance(error, kinds):
            return make()
    return InternalError("the event store failed to answer; see the log of the agent")


_FAILURES: tuple[tuple[tuple[type[Exception], ...], Callable[[], DaemoneyeError]], ...] = (
    (
        (UnicodeDecodeError,),
        lambda: InvalidSqlError("a value of the result is not valid text; wrap it in hex()"),
    ),
    (
        (OverflowError,),
        lambda: InvalidSqlError("a parameter does not fit in 64 bits; send it as text"),
    ),
    (
        (apsw.TooBigError,),
        lambda: OverloadedError(
            "a value of the query grew too large; select less of it with substr",
            reason=ErrorReason.RESULT_TOO_LARGE,
        ),
    ),
    (
        (apsw.BusyError, apsw.LockedError, apsw.SchemaChangeError),
        lambda: UnavailableError("the event store is busy; try again"),
    ),
    (
        (apsw.NoMemError, apsw.FullError),
        lambda: OverloadedError("the query needs more memory than there is; narrow it"),
    ),
    (
        (apsw.CantOpenError,),
        lambda: UnavailableError(
            "the event store can not be opened; check the state directory",
            reason=ErrorReason.STORE_FAILED,
        ),
    ),
)


def _explain_statement(error: apsw.Error, sql: str) -> DaemoneyeError:
    sentence = str(error)
    offset = getattr(error, "error_offset", -1)
    where = location(sql, offset) if isinstance(offset, int) and offset >= 0 else {}
    for pattern, message, reason in _SENTENCES:
        match = pattern.search(sentence)
        if match is not None:
            found = {key: value or "" for key, value in match.groupdict().items()}
            return InvalidSqlError(message.format(**found), reason=reason, **{**where, **found})
    near = f" near {where['near']!r}" if where else ""
    return refusal(f"the query is not valid SQLite{near}; check it there", where)
