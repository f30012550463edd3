"""Rule documents: TOML files that carry a detection query and the events that prove it.

Invariant: a ``Rule`` exists only when its document is complete and strict (no unknown key), its
SQL is valid over ``process_events`` alone and it returns the columns that make an alert.
"""

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from daemoneye_agent.alert import Severity
from daemoneye_agent.schema import TABLES, ColumnType
from daemoneye_agent.sql import InvalidSqlError, ValidatedQuery, validate
from daemoneye_mesh.errors import ErrorReason, InvalidRequestError

__all__ = [
    "InvalidRuleError",
    "Rule",
    "Sample",
    "load_builtin_rules",
    "load_rules",
    "parse_rule",
]

EVENT_TABLE = TABLES["process_events"]
MAX_FILE_BYTES = 256 * 1024
MAX_RULES = 1_000
MAX_TITLE_CHARS = 512
MAX_DESCRIPTION_CHARS = 8_192
_ID = re.compile(r"[a-z0-9_-]{1,64}")
_TECHNIQUE = re.compile(r"T[0-9]{4}(?:\.[0-9]{3})?")
_REQUIRED = ("id", "title", "description", "severity", "sql", "dedup")
_OPTIONAL = ("references", "attack", "enabled", "positive", "negative")

Sample = Mapping[str, str | int | float]
"""Some columns of one row of ``process_events``; the others take the defaults of the engine."""


class InvalidRuleError(InvalidRequestError):
    """A rule document is not acceptable; the metadata names the file and the key."""

    default_reason = ErrorReason.RULE_INVALID


@dataclass(frozen=True, slots=True)
class Rule:
    """One detection rule."""

    id: str
    title: str
    description: str
    severity: Severity
    query: ValidatedQuery
    dedup: tuple[str, ...]
    """Result columns; alerts whose values are equal in all of them are one alert."""
    references: tuple[str, ...] = ()
    attack: tuple[str, ...] = ()
    """Techniques of MITRE ATT&CK, such as T1059.004."""
    enabled: bool = True
    positive: tuple[Sample, ...] = ()
    negative: tuple[Sample, ...] = ()
    file: str = ""
    """Name of the document it was read from."""
    version: str = ""
    """The first 16 hex digits of the SHA-256 of the document."""

    @property
    def sql(self) -> str:
        """The query as written."""
        return self.query.sql


def load_builtin_rules() -> tuple[Rule, ...]:
    """The rules that come with the agent, in order of their ids."""
    with resources.as_file(resources.files("daemoneye_agent") / "rules") as directory:
        return load_rules(directory)


def load_rules(directory: Path) -> tuple[Rule, ...]:
    """Read every ``*.toml`` of a directory, in order of the rule ids.

    Raises:
        InvalidRuleError: the directory or a file cannot be read, a document is not acceptable or
            two documents have one id. Nothing is loaded then.
    """
    found: dict[str, tuple[Rule, Path]] = {}
    for path in _rule_files(directory):
        rule = parse_rule(_read(path), path.name)
        if rule.id in found:
            other = found[rule.id][1].name
            raise InvalidRuleError(
                f"{path.name}: the id {rule.id!r} is taken by {other}; choose another",
                file=path.name,
                key="id",
                rule_id=rule.id,
                other=other,
            )
        found[rule.id] = (rule, path)
    return tuple(found[rule_id][0] for rule_id in sorted(found))


def _rule_files(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise InvalidRuleError(
            f"{directory} is not a directory of rules; correct the setting",
            file=directory,
        )
    files = sorted(path for path in directory.iterdir() if path.suffix == ".toml")
    if len(files) > MAX_RULES:
        raise InvalidRuleError(
            f"{directory} has {len(files)} rules, more than {MAX_RULES}; remove some",
            file=directory,
            count=len(files),
            limit=MAX_RULES,
        )
    return files


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidRuleError(
            f"{path.name} can not be read; check its owner and mode",
            file=path.name,
        ) from error
    if len(content) > MAX_FILE_BYTES:
        raise InvalidRuleError(
            f"{path.name} is larger than {MAX_FILE_BYTES} bytes; split it",
            file=path.name,
            limit_bytes=MAX_FILE_BYTES,
        )
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise InvalidRuleError(f"{path.name} is not UTF-8; save it so", file=path.name) from None


def parse_rule(text: str, file: str) -> Rule:
    """Make a rule of a document; ``file`` is the name errors give.

    Raises:
        InvalidRuleError: a key is missing, unknown or has an unusable value.
    """
    try:
        fields = tomllib.loads(text)
    except RecursionError:
        raise InvalidRuleError(f"{file} is nested too deeply; keep it flat", file=file) from None
    except tomllib.TOMLDecodeError as error:
        # The parser speaks of the document only, which is the caller's own text.
        complaint = str(error)
        raise InvalidRuleError(
            f"{file} is not TOML: {complaint}; correct it there", file=file, complaint=complaint
        ) from None
    document = _Document(file, fields)
    document.check_keys()
    query = document.query()
    return Rule(
        id=document.id(),
        title=document.text("title", MAX_TITLE_CHARS),
        description=document.text("description", MAX_DESCRIPTION_CHARS),
        severity=document.severity(),
        query=query,
        dedup=document.dedup(query),
        references=document.texts("references"),
        attack=document.techniques(),
        enabled=document.flag("enabled"),
        positive=document.samples("positive"),
        negative=document.samples("negative"),
        file=file,
        version=hashlib.sha256(text.encode()).hexdigest()[:16],
    )


@dataclass(frozen=True, slots=True)
class _Document:
    """The keys of one file, read strictly."""

    file: str
    fields: Mapping[str, object]

    def check_keys(self) -> None:
        for key in _REQUIRED:
            if key not in self.fields:
                raise self._error(key, "is missing; add it")
        for key in self.fields:
            if key not in _REQUIRED + _OPTIONAL:
                known = ", ".join(_REQUIRED + _OPTIONAL)
                raise self._error(key, f"is not a key of a rule; use one of {known}")

    def text(self, key: str, max_chars: int = MAX_FILE_BYTES) -> str:
        value = self.fields[key]
        if not isinstance(value, str) or not 0 < len(value.strip()) <= max_chars:
            raise self._error(key, f"must be a text of 1 to {max_chars} characters")
        return value.strip()

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.fields.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._error(key, "must be a list of texts")
        return tuple(value)

    def flag(self, key: str) -> bool:
        value = self.fields.get(key, True)
        if not isinstance(value, bool):
            raise self._error(key, "must be true or false")
        return value

    def id(self) -> str:
        value = self.text("id")
        if not _ID.fullmatch(value):
            raise self._error("id", "must be 1 to 64 of a-z, 0-9, - and _")
        return value

    def severity(self) -> Severity:
        value = self.text("severity")
        if value not in list(Severity):
            raise self._error("severity", f"must be one of {', '.join(Severity)}")
        return Severity(value)

    def techniques(self) -> tuple[str, ...]:
        values = self.texts("attack")
        for value in values:
            if not _TECHNIQUE.fullmatch(value):
                raise self._error("attack", f"{value!r} is no technique; write T1059 or T1059.004")
        return values

    def query(self) -> ValidatedQuery:
        try:
            query = validate(self.text("sql"))
        except InvalidSqlError as error:
            raise self._error("sql", error.message, **error.metadata) from error
        if query.tables != {EVENT_TABLE.name}:
            raise self._error("sql", f"must read {EVENT_TABLE.name} and no other table")
        if query.parameters:
            raise self._error("sql", "must have no parameters; write the values into it")
        if "pid" not in query.columns:
            raise self._error("sql", "must return the column 'pid'; add it to the SELECT")
        return query

    def dedup(self, query: ValidatedQuery) -> tuple[str, ...]:
        names = self.texts("dedup")
        if not names:
            raise self._error("dedup", "must name at least one result column")
        for name in names:
            if name not in query.columns:
                raise self._error("dedup", f"{name!r} is not returned by the SQL; add it there")
        return names

    def samples(self, key: str) -> tuple[Sample, ...]:
        value = self.fields.get(key, [])
        if not isinstance(value, list):
            raise self._error(key, f"must be tables; write [[{key}]]")
        return tuple(self._sample(f"{key}[{number}]", item) for number, item in enumerate(value))

    def _sample(self, key: str, item: object) -> Sample:
        if not isinstance(item, dict) or not item:
            raise self._error(key, "must be a table with at least one column")
        for name, value in item.items():
            self._check_column(f"{key}.{name}", name, value)
        return item

    def _check_column(self, key: str, name: str, value: object) -> None:
        types = {column.name: column.type for column in EVENT_TABLE.columns}
        if name not in types:
            raise self._error(key, f"is not a column of {EVENT_TABLE.name}; see its schema")
        expected = {ColumnType.INTEGER: int, ColumnType.REAL: float, ColumnType.TEXT: str}
        if isinstance(value, bool) or not isinstance(value, expected[types[name]]):
            raise self._error(key, f"must be of type {types[name].value}")

    def _error(self, key: str, complaint: str, **metadata: str) -> InvalidRuleError:
        message = f"{self.file}: {key}: {complaint}"
        return InvalidRuleError(message, reason=None, **{**metadata, "file": self.file, "key": key})
