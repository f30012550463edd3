"""Detection: every rule runs over every batch of new events, in memory.

Invariant: one rule can neither stop nor delay the others beyond its deadline, and a rule that did
not look is never mistaken for one that found nothing: it stands in ``failures`` or ``disabled``.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import apsw

from daemoneye_agent.alert import build_dedup_key
from daemoneye_agent.event import EVENT_COLUMNS, EventRow, SqlValue
from daemoneye_agent.rule import EVENT_TABLE, InvalidRuleError, Rule, Sample
from daemoneye_agent.sql_guard import (
    Authorizer,
    Deadline,
    add_regexp,
    explain,
    harden,
    restrict,
)
from daemoneye_mesh.errors import DaemoneyeError

__all__ = [
    "EngineLimits",
    "Match",
    "RuleCounters",
    "RuleEngine",
    "RuleFailure",
    "SampleFailure",
    "event_row",
    "test_rule",
]

_PID = EVENT_COLUMNS.index("pid")
_EVENT_ID = EVENT_COLUMNS.index("event_id")
_PATTERNS_PER_RULE = 8
_DEFAULTS: Mapping[str, str | int] = {
    "event_id": 1,
    "source_id": "procmond",
    "source_epoch": 1,
    "source_sequence": 1,
    "time_ns": 1_700_000_000_000_000_000,
    "time": "2023-11-14T22:13:20.000000000Z",
    "kind": "start",
    "pid": 4242,
    "ppid": 4200,
    "boot_id": "00000000-0000-0000-0000-000000000000",
    "start_ticks": 100_000,
    "start_time_ns": 1_700_000_000_000_000_000,
    "uid": 1000,
    "euid": 1000,
    "gid": 1000,
    "egid": 1000,
    "state": "S",
    "thread_count": 1,
    "exe_deleted": 0,
    "exe_memfd": 0,
    "kernel_thread": 0,
    "missing_fields": "",
}


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """The bounds of one evaluation."""

    rule_deadline_s: float = 0.25
    max_matches: int = 1_000
    """For one rule and one batch; what is beyond is a failure of the rule."""
    max_failures: int = 3
    """Consecutive failures after which a rule is disabled."""


@dataclass(frozen=True, slots=True)
class Match:
    """One row that one rule returned."""

    rule: Rule
    event_id: int | None
    """The row's own ``event_id``, else the latest event of its pid in the batch."""
    row: dict[str, SqlValue]

    @property
    def dedup_key(self) -> str:
        """Equal for matches that are one alert: rule id and the values of the dedup columns."""
        return build_dedup_key(self.rule.id, *(self.row[name] for name in self.rule.dedup))


@dataclass(frozen=True, slots=True)
class RuleFailure:
    """One rule that could not look at one batch, or not at all of it."""

    rule_id: str
    reason: str
    consecutive: int
    is_disabled: bool
    """True when this failure disabled the rule."""


@dataclass(slots=True)
class RuleCounters:
    """What one rule did since the engine began."""

    evaluations: int = 0
    matches: int = 0
    failures: int = 0
    time_ns: int = 0


@dataclass(frozen=True, slots=True)
class SampleFailure:
    """A sample of a rule that did not behave."""

    rule_id: str
    sample: str
    reason: str


@dataclass(slots=True)
class _Prepared:
    rule: Rule
    columns: tuple[str, ...]
    counters: RuleCounters = field(default_factory=RuleCounters)
    consecutive: int = 0
    disabled_reason: str | None = None


class _TooManyMatchesError(DaemoneyeError):
    """A rule returned more rows than an evaluation keeps."""


class RuleEngine:
    """Evaluates a fixed set of rules; to change the set, make another engine.

    Not safe for use from two threads at once; every method blocks.
    """

    def __init__(
        self,
        rules: Iterable[Rule],
        *,
        limits: EngineLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare every enabled rule.

        Raises:
            InvalidRuleError: SQLite does not accept the SQL of a rule.
        """
        self._limits = limits or EngineLimits()
        enabled = [rule for rule in rules if rule.enabled]
        self._deadline = Deadline(clock)
        self._authorizer = Authorizer([EVENT_TABLE.name])
        self._connection = self._open(len(enabled))
        self._prepared = {rule.id: self._prepare(rule) for rule in enabled}
        self.failures: tuple[RuleFailure, ...] = ()
        """The rules that failed in the latest evaluation."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules of the engine, those it had to disable included."""
        return tuple(prepared.rule for prepared in self._prepared.values())

    @property
    def counters(self) -> dict[str, RuleCounters]:
        """What every rule did, by rule id; a copy."""
        return {key: replace(prepared.counters) for key, prepared in self._prepared.items()}

    @property
    def disabled(self) -> dict[str, str]:
        """The rules that failed too often in a row, with the reason of the last failure."""
        return {
            key: prepared.disabled_reason
            for key, prepared in self._prepared.items()
            if prepared.disabled_reason is not None
        }

    def evaluate(self, rows: Sequence[EventRow]) -> list[Match]:
        """Run every rule over one batch; ``failures`` then tells which rules did not look.

        Args:
            rows: events with their ``event_id``, values in the order of the schema.
        """
        self.failures = ()
        if not rows:
            return []
        latest = {row[_PID]: row[_EVENT_ID] for row in rows}
        self._load(rows)
        try:
            return self._run_all(latest)
        finally:
            self._unload()

    def close(self) -> None:
        """Free the memory; the engine is of no use afterwards."""
        self._connection.close()

    def _open(self, rules: int) -> apsw.Connection:
        connection = apsw.Connection(":memory:", statementcachesize=rules + 16)
        harden(connection)
        add_regexp(connection, max_patterns=(rules + 1) * _PATTERNS_PER_RULE)
        columns = ", ".join(
            f'"{column.name}" {column.type.value}' for column in EVENT_TABLE.columns
        )
        connection.execute("PRAGMA journal_mode = OFF").fetchall()
        connection.execute(f"CREATE TABLE {EVENT_TABLE.name}({columns})")
        restrict(connection, self._authorizer, self._deadline)
        return connection

    def _prepare(self, rule: Rule) -> _Prepared:
        columns: tuple[str, ...] = ()

        def note(cursor: apsw.Cursor, _sql: str, _bindings: object) -> bool:
            nonlocal columns
            columns = tuple(column[0].lower() for column in cursor.get_description())
            return True

        cursor = self._connection.cursor()
        cursor.exec_trace = note
        self._authorizer.cte_names = rule.query.cte_names
        try:
            cursor.execute(rule.sql).fetchall()
        except (DaemoneyeError, apsw.Error) as error:
            reason = explain(error, rule.sql).message
            raise InvalidRuleError(
                f"the SQL of rule {rule.id} can not run: {reason}",
                rule_id=rule.id,
                complaint=reason,
            ) from error
        return _Prepared(rule, columns)

    def _load(self, rows: Sequence[EventRow]) -> None:
        marks = ", ".join("?" * len(EVENT_COLUMNS))
        self._execute_own("BEGIN")
        try:
            self._executemany_own(f"INSERT INTO process_events VALUES ({marks})", rows)  # noqa: S608 - marks only
        finally:
            self._execute_own("COMMIT")

    def _unload(self) -> None:
        self._deadline.stop()
        self._execute_own("DELETE FROM process_events")

    def _execute_own(self, sql: str) -> None:
        self._executemany_own(sql, [()])

    def _executemany_own(self, sql: str, rows: Iterable[EventRow]) -> None:
        self._authorizer.is_trusted = True
        try:
            self._connection.executemany(sql, rows).fetchall()
        finally:
            self._authorizer.is_trusted = False

    def _run_all(self, latest: Mapping[SqlValue, SqlValue]) -> list[Match]:
        matches: list[Match] = []
        failures: list[RuleFailure] = []
        for prepared in self._prepared.values():
            if prepared.disabled_reason is None:
                self._run_counted(prepared, latest, matches, failures)
        self.failures = tuple(failures)
        return matches

    def _run_counted(
        self,
        prepared: _Prepared,
        latest: Mapping[SqlValue, SqlValue],
        matches: list[Match],
        failures: list[RuleFailure],
    ) -> None:
        before, began_ns = len(matches), time.perf_counter_ns()
        try:
            self._run(prepared, latest, matches)
        except (DaemoneyeError, apsw.Error, UnicodeDecodeError) as error:
            failures.append(self._failed(prepared, error))
        else:
            prepared.consecutive = 0
        counters = prepared.counters
        counters.evaluations += 1
        counters.matches += len(matches) - before
        counters.time_ns += time.perf_counter_ns() - began_ns

    def _run(
        self, prepared: _Prepared, latest: Mapping[SqlValue, SqlValue], matches: list[Match]
    ) -> None:
        rule, limit = prepared.rule, self._limits.max_matches
        self._deadline.start(self._limits.rule_deadline_s)
        self._authorizer.cte_names = rule.query.cte_names
        for number, values in enumerate(self._connection.execute(rule.sql)):
            if number >= limit:
                raise _TooManyMatchesError(
                    f"it returned more than {limit} rows for one batch; narrow it", limit=limit
                )
            row = dict(zip(prepared.columns, values, strict=True))
            matches.append(Match(rule, _event_id(row, latest), row))

    def _failed(self, prepared: _Prepared, error: Exception) -> RuleFailure:
        reason = self._reason(prepared.rule, error)
        prepared.counters.failures += 1
        prepared.consecutive += 1
        is_disabled = prepared.consecutive >= self._limits.max_failures
        if is_disabled:
            reason = f"{reason}; disabled after {prepared.consecutive} failures in a row"
            prepared.disabled_reason = reason
        return RuleFailure(prepared.rule.id, reason, prepared.consecutive, is_disabled)

    def _reason(self, rule: Rule, error: Exception) -> str:
        if isinstance(error, apsw.InterruptError):
            return f"it took longer than {self._limits.rule_deadline_s * 1000:g} ms for one batch"
        return explain(error, rule.sql).message


def _event_id(row: Mapping[str, SqlValue], latest: Mapping[SqlValue, SqlValue]) -> int | None:
    event_id = row.get("event_id", latest.get(row.get("pid")))
    return event_id if isinstance(event_id, int) else None


def event_row(sample: Sample) -> EventRow:
    """A whole row of ``process_events`` from some of its columns; the rest are defaults or NULL."""
    return tuple(sample.get(name, _DEFAULTS.get(name)) for name in EVENT_COLUMNS)


def test_rule(rule: Rule) -> list[SampleFailure]:
    """Run a rule over each of its samples, alone, on the path that real events take.

    Returns:
        One entry for each sample that behaved otherwise than it says, or is missing.
    """
    engine = RuleEngine([replace(rule, enabled=True)])
    try:
        return [
            *_check(engine, rule.id, "positive", rule.positive),
            *_check(engine, rule.id, "negative", rule.negative),
        ]
    finally:
        engine.close()


def _check(
    engine: RuleEngine, rule_id: str, kind: str, samples: Sequence[Sample]
) -> Iterable[SampleFailure]:
    if not samples:
        yield SampleFailure(rule_id, kind, f"there is no {kind} sample; add one")
    for number, sample in enumerate(samples, start=1):
        matched = bool(engine.evaluate([event_row(sample)]))
        name = f"{kind} {number}"
        if engine.failures:
            yield SampleFailure(rule_id, name, engine.failures[0].reason)
        elif matched != (kind == "positive"):
            yield SampleFailure(rule_id, name, "it matched" if matched else "it did not match")


# The name is what the command calls; without this pytest would collect it from a test module.
test_rule.__test__ = False  # type: ignore[attr-defined]
