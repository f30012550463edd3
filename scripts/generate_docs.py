"""Writes the generated parts of docs/, and deploy/config; with --check, fails when one of them is stale.

A part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``. Each is made of what the
programs themselves use (schema, settings, rules, protos), so that a document cannot say otherwise.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from collector_core.settings import CollectorSettings
from daemoneye_agent.config import AgentSettings
from daemoneye_agent.rule import load_builtin_rules
from daemoneye_agent.schema import TABLES
from daemoneye_agent.sql_grammar import FUNCTIONS, TABLE_FUNCTIONS
from daemoneye_cli.exit_code import describe_exit_codes
from daemoneye_eventbus.config import EventBusSettings
from daemoneye_mesh.configuration import environment_prefix
from daemoneye_mesh.errors import ErrorReason
from daemoneye_mesh.process import ProcessSettings
from daemoneye_mesh.setting import Setting, describe_settings, render
from daemoneye_procmond.config import ProcmondSettings

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
CONFIG = ROOT / "deploy" / "config"
PROTOS = ROOT / "protos" / "daemoneye"
EXAMPLE_RULE = DOCS / "examples" / "rule-database-dump.toml"
EXAMPLE_COLLECTOR = ROOT / "examples" / "collector-python" / "loadmon.py"
MAX_WIDTH = 118

PART = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
ANY_MARKER = re.compile(r"<!-- (?:generated: [^>]*|end) -->")
MUST = re.compile(r"(MUST-([A-Z]+)-\d\d): (.*)")

COLLECTOR_AREAS = (
    ("COL", "The service on its socket (`ipc/v1/collector_service.proto`)"),
    ("CTL", "Control (`ipc/v1/collector_control_service.proto`)"),
    ("TASK", "Tasks and their results (`ipc/v1/ipc.proto`)"),
    ("HLT", "Health (`ipc/v1/collector_health.proto`)"),
    ("CFG", "Live configuration (`ipc/v1/collector_config.proto`)"),
    ("LOG", "The log of events (`ipc/v1/event_log.proto`)"),
    ("GAP", "Times in which it did not see everything (`eventbus/v1/collection_gap.proto`)"),
    ("ANA", "Analyses on demand (`common/v1/analysis.proto`)"),
    ("REG", "Registration, heartbeats, tokens (`agent/v1/registry_service.proto`)"),
    ("ENV", "The envelope of every event (`eventbus/v1/eventbus.proto`)"),
    ("BUS", "Publishing (`eventbus/v1/eventbus_service.proto`)"),
    (
        "PROC",
        "Process records and events (`common/v1/common.proto`, `eventbus/v1/event_data.proto`)",
    ),
    ("CMP", "Completeness (`common/v1/completeness.proto`)"),
    ("ERR", "Errors (`common/v1/error.proto`)"),
)
"""The MUST areas that concern the author of a collector, in reading order."""

DUTIES_OF_OTHERS = {"MUST-TASK-01", "MUST-TASK-02", *(f"MUST-BUS-0{n}" for n in range(1, 6))}
"""What stands in those areas and binds the agent or the broker."""

REMEDIES = {
    ErrorReason.UNSPECIFIED: "go by the status code",
    ErrorReason.INTERNAL: "search the server's log for the incident id and report it; retry once at most",
    ErrorReason.REQUEST_INVALID: "correct the field that the metadata names",
    ErrorReason.TOPIC_INVALID: "use 1 to 5 segments of `[a-z0-9_-]+`, the first one events, control or alerts",
    ErrorReason.PATTERN_INVALID: "as for a topic, with `+` for one segment and `#`, last only, for the rest",
    ErrorReason.BATCH_EMPTY: "send nothing when there is nothing to send",
    ErrorReason.MESSAGE_TOO_LARGE: "cut fields and name them in `truncated_fields`, or send smaller batches",
    ErrorReason.ENUM_UNKNOWN: "use a known number, or upgrade the receiver",
    ErrorReason.CONFIG_INVALID: "correct the setting; `--show-config` shows where each value came from",
    ErrorReason.SQL_INVALID: "correct the SQL at the line and column in the metadata, or give each parameter a value",
    ErrorReason.TABLE_UNKNOWN: "choose from `daemoneye tables`",
    ErrorReason.COLUMN_UNKNOWN: "choose from `daemoneye tables NAME`",
    ErrorReason.SQL_FORBIDDEN: "write one plain SELECT, see [rules](rules.md#the-sql-that-is-allowed)",
    ErrorReason.RULE_INVALID: "correct the key that the message names; check with `daemoneye rules validate`",
    ErrorReason.NOT_FOUND: "list what there is and use an id from the list",
    ErrorReason.ALREADY_EXISTS: "use another name, or go on with what is there",
    ErrorReason.TOKEN_MISSING: "send the metadata `authorization: Bearer <token>`",
    ErrorReason.TOKEN_INVALID: "read the token file again: the agent may have made a new key",
    ErrorReason.TOKEN_EXPIRED: "read the token file again; collectors renew before two thirds of its life",
    ErrorReason.TOKEN_AUDIENCE: "get a token for this service with `RegistryService.IssueToken`",
    ErrorReason.ACCESS_DENIED: "look at [who may do what](access.md); do not retry",
    ErrorReason.STATE_INVALID: "bring the callee into the state that the message names, then ask again",
    ErrorReason.NOT_REGISTERED: "register again (MUST-REG-03)",
    ErrorReason.NO_CAPABLE_COLLECTOR: "start or enrol a collector that offers the task",
    ErrorReason.SUPERSEDED: "stop: a newer instance does the work (MUST-REG-03)",
    ErrorReason.LIMIT_REACHED: "wait and try again, with backoff",
    ErrorReason.RESULT_TOO_LARGE: "select less: fewer columns, fewer rows, a narrower filter",
    ErrorReason.FEATURE_UNSUPPORTED: "do without it; the message says what is offered",
    ErrorReason.PEER_UNAVAILABLE: "connect again with backoff; `daemoneye health` says who is away",
    ErrorReason.DRAINING: "connect again with backoff: the server is being stopped or restarted",
    ErrorReason.DEADLINE_EXCEEDED: "allow more time, or ask for less",
    ErrorReason.SOCKET_UNUSABLE: "stop the other server, or set a shorter or another runtime dir",
    ErrorReason.FILE_UNUSABLE: "correct owner and mode as the message says",
    ErrorReason.VERSION_UNSUPPORTED: "upgrade the older side",
    ErrorReason.FILE_MISSING: "wait for the agent to write it, or check the path",
    ErrorReason.STORE_FAILED: "free disk space or repair the disk; the agent retries by itself",
    ErrorReason.RATE_LIMITED: "wait as long as the RetryInfo says, then repeat; raise the limit if this is normal load",
    ErrorReason.SLOW_CONSUMER: "subscribe again and read faster, or ask for a larger queue or another policy",
    ErrorReason.NO_SUBSCRIBER: "keep the batch and repeat it with backoff until a subscriber is back",
    ErrorReason.CONFIG_CONFLICT: "read the configuration again, decide again, send the update with its version",
    ErrorReason.LOG_UNWRITABLE: "make room on the disk of the state dir, or mend its permissions; nothing is lost meanwhile",
    ErrorReason.APPLY_FAILED: "see the collector's log; the former values are in force, so nothing is urgent",
}
"""What a caller does about each reason; a reason without an entry fails the generation."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    escaped = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def columns_of(name: str) -> str:
    """The columns of one table of the schema."""
    rows = [(f"`{one.name}`", one.type.value, one.description) for one in TABLES[name].columns]
    return table(("column", "type", "meaning"), rows)


def own_settings(cls: type, base: type) -> str:
    """The settings of ``cls`` that ``base`` does not have."""
    inherited = {one.name for one in describe_settings(base)} if base is not cls else set()
    rows = [
        (f"`{one.name}`", f"`{render(one.default)}`", describe_bounds(one), one.help)
        for one in describe_settings(cls)
        if one.name not in inherited
    ]
    return table(("setting", "default", "allowed", "meaning"), rows)


def describe_bounds(one: Setting) -> str:
    """What a setting accepts, in a few words."""
    if one.choices:
        return ", ".join(one.choices)
    if one.type is bool:
        return "true, false"
    bounds = [
        f"{word} {bound:,}"
        for word, bound in (("from", one.minimum), ("to", one.maximum))
        if bound is not None
    ]
    kinds: dict[type, str] = {tuple: "list of texts", Path: "path"}
    return " ".join(bounds) or kinds.get(one.type, "text")


def builtin_rules() -> str:
    """The rules that come with the agent."""
    rows = [
        (f"`{rule.id}`", rule.severity.value, rule.title, ", ".join(rule.attack))
        for rule in load_builtin_rules()
    ]
    return table(("rule", "severity", "title", "ATT&CK"), rows)


def functions() -> str:
    """The SQL functions that a query may call."""
    names = (*FUNCTIONS, *TABLE_FUNCTIONS)
    return wrap(", ".join(f"`{name}`" for name in sorted(names)) + ".") + "\n"


def exit_codes() -> str:
    """The exit statuses of the command."""
    lines = describe_exit_codes().splitlines()[1:]
    rows = [line.split(maxsplit=1) for line in lines]
    return table(("status", "meaning"), [(f"{number}", meaning) for number, meaning in rows])


def comments_of(text: str) -> list[str]:
    """The paragraphs of all comments of a proto, each as one line."""
    paragraphs: list[list[str]] = [[]]
    for line in text.splitlines():
        comment = re.match(r"\s*// ?(.*)", line)
        words = comment.group(1).strip() if comment else ""
        if not words or MUST.match(words) or words.startswith(("Errors:", "buf:", "The pair of")):
            paragraphs.append([])
        if words:
            paragraphs[-1].append(words)
    return [" ".join(words) for words in paragraphs if words]


def must_sentences() -> dict[str, list[tuple[str, str]]]:
    """The numbered sentences of the contract, (id, sentence) by area."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(PROTOS.rglob("*.proto")):
        for paragraph in comments_of(path.read_text()):
            if match := MUST.fullmatch(paragraph):
                number, area, sentence = match.groups()
                found.setdefault(area, []).append((number, sentence))
    return {area: sorted(sentences) for area, sentences in found.items()}


def collector_musts() -> str:
    """What the contract demands of a collector, by area."""
    sentences = must_sentences()
    parts = []
    for area, title in COLLECTOR_AREAS:
        lines = [
            wrap(f"- **{number}**: {text}", "  ")
            for number, text in sentences[area]
            if number not in DUTIES_OF_OTHERS
        ]
        parts.append(f"**{title}**\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def error_reasons() -> str:
    """The reason catalogue of error.proto."""
    text = (PROTOS / "common/v1/error.proto").read_text()
    found = re.findall(r"// (?:\[(\w+)\] )?(.*)\n  ERROR_REASON_(\w+) = \d+;", text)
    rows = [
        (f"`{name}`", code or "any", meaning, REMEDIES[ErrorReason(name)])
        for code, meaning, name in found
    ]
    if len(rows) != len(ErrorReason):
        raise SystemExit("error.proto has reasons that are not read; correct error_reasons()")
    return table(("reason", "status code", "what happened", "what the caller does"), rows)


def fenced(path: Path, language: str) -> str:
    """A whole file as a code block."""
    return f"```{language}\n{path.read_text()}```\n"


def wrap(text: str, indent: str = "") -> str:
    """Breaks a line at ``MAX_WIDTH``, never inside of a word."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > MAX_WIDTH:
            lines.append(line)
            line = indent + word
        else:
            line = f"{line} {word}" if line else word
    return "\n".join([*lines, line])


PARTS: dict[str, Callable[[], str]] = {
    "process-events-columns": lambda: columns_of("process_events"),
    "alerts-columns": lambda: columns_of("alerts"),
    "collector-events-columns": lambda: columns_of("collector_events"),
    "collection-gaps-columns": lambda: columns_of("collection_gaps"),
    "analysis-results-columns": lambda: columns_of("analysis_results"),
    "event-losses-columns": lambda: columns_of("event_losses"),
    "shared-settings": lambda: own_settings(ProcessSettings, ProcessSettings),
    "agent-settings": lambda: own_settings(AgentSettings, ProcessSettings),
    "eventbus-settings": lambda: own_settings(EventBusSettings, ProcessSettings),
    "collector-settings": lambda: own_settings(CollectorSettings, ProcessSettings),
    "procmond-settings": lambda: own_settings(ProcmondSettings, CollectorSettings),
    "builtin-rules": builtin_rules,
    "sql-functions": functions,
    "example-rule": lambda: fenced(EXAMPLE_RULE, "toml"),
    "example-collector": lambda: fenced(EXAMPLE_COLLECTOR, "python"),
    "collector-musts": collector_musts,
    "error-reasons": error_reasons,
    "exit-codes": exit_codes,
}


CONFIG_HEAD = """\
# Settings of {process}, all of them at their defaults. It is read as
# /etc/daemoneye/{name}.toml.
#
# To change one, remove the # in front of it and restart the process. What is unknown or out of
# range is refused, and the process does not start. Flags and the environment come before this
# file; {process} --show-config prints what is in force and where it came from.
"""

CONFIG_LIVE = """\
# Those marked "live" can be changed without a restart, too: daemoneye collectors config.
"""

EXAMPLES = {
    "runtime_dir": "/run/daemoneye",
    "state_dir": "/var/lib/daemoneye",
    "token_file": "/run/daemoneye/tokens/collector-procmond.token",
    "rules_dir": "/etc/daemoneye/rules.d",
    "trigger_file": "/etc/daemoneye/triggers.toml",
}
"""What a setting could be that has no default."""

PROCESSES: dict[str, type] = {
    "daemoneye-agent": AgentSettings,
    "daemoneye-eventbus": EventBusSettings,
    "procmond": ProcmondSettings,
}


def config_files() -> Iterator[tuple[Path, str]]:
    """Yields path and content of every file."""
    for process, cls in PROCESSES.items():
        name = process.removeprefix("daemoneye-")
        settings = describe_settings(cls)
        is_collector = process == "procmond"
        head = CONFIG_HEAD.format(process=process, name=name) + (
            CONFIG_LIVE if is_collector else ""
        )
        parts = [_describe(one, process, is_collector) for one in settings]
        yield CONFIG / f"{name}.toml", "\n".join([head, *parts])


def _describe(one: Setting, process: str, is_collector: bool) -> str:
    help_text = one.help[0].upper() + one.help[1:]
    facts = [*_bounds(one)]
    if is_collector and one.is_live:
        facts.append("live")
    facts.append(f"in the environment {one.env or environment_prefix(process) + one.name.upper()}")
    line = "; ".join(facts)
    value = render(EXAMPLES[one.name] if one.default is None else one.default)
    return f"# {help_text}.\n# {line[0].upper()}{line[1:]}.\n#{one.name} = {value}\n"


def _bounds(one: Setting) -> Iterator[str]:
    if one.default is None:
        yield "unset by default"
    if one.type is bool:
        yield "true or false"
    if one.choices:
        yield f"one of {', '.join(one.choices)}"
    if one.minimum is not None:
        yield f"at least {one.minimum}"
    if one.maximum is not None:
        yield f"at most {one.maximum}"


def regenerate(text: str, name: str = "document") -> str:
    """Returns a document with every generated part as it should be."""
    rest = ANY_MARKER.search(PART.sub("", text))
    if rest:
        raise SystemExit(f"{name}: {rest.group()} has no partner; correct the markers")
    unknown = sorted({match.group(2) for match in PART.finditer(text)} - PARTS.keys())
    if unknown:
        raise SystemExit(
            f"{name}: {unknown[0]} is no generated part; use one of {', '.join(PARTS)}"
        )
    return PART.sub(lambda match: f"{match[1]}\n{PARTS[match[2]]()}\n{match[3]}", text)


def main() -> int:
    """Generates, or checks; the exit status says whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when a document is stale")
    check = parser.parse_args().check
    stale = []
    documents = [
        (path, regenerate(path.read_text(), path.name)) for path in sorted(DOCS.glob("*.md"))
    ]
    for path, after in [*documents, *config_files()]:
        if path.read_text() == after:
            continue
        stale.append(path.relative_to(ROOT))
        if not check:
            path.write_text(after)
    for path in stale:
        print(f"{'stale' if check else 'written'}: {path}")
    if not stale:
        print("generated documents are fresh")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
