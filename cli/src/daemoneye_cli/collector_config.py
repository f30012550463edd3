"""``daemoneye collectors config``: the configuration of a running collector, and changing it."""

import re
from collections.abc import Iterable

from daemoneye.agent.v1 import collector_admin_service_pb2 as pb
from daemoneye.ipc.v1 import collector_config_pb2
from daemoneye_cli.arguments import Parser, Subparsers, add_command, bounded_int
from daemoneye_cli.collector_call import add_collector_id, ask_admin, ask_admin_twice, make_key
from daemoneye_cli.document import Document, to_document
from daemoneye_cli.errors import UsageError
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.output import Column, Listing, Output, Styled

__all__ = ["add_config", "get_config", "parse_changes", "set_config"]

READ_TIMEOUT_S = 10.0
UPDATE_TIMEOUT_S = 15.0
MAX_CHANGES = 64

_ASSIGNMENT = re.compile(r"([a-z][a-z0-9_]{0,63})=(.*)", re.DOTALL)
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")

_DESCRIPTION = """\
Shows the configuration that is in force in a running collector: each setting with its
value, where the value comes from, and whether it may change while the collector runs.

'set' changes settings without a restart. What is set so outlives restarts, and comes
before flags, environment and files until it is reset."""

_GET_EXAMPLES = (
    "daemoneye collectors config procmond",
    "daemoneye collectors config procmond get --format json | jq .version",
    "daemoneye collectors config procmond set scan_interval_s=2",
    "daemoneye collectors config procmond set --reset scan_interval_s",
)

_SET_DESCRIPTION = """\
Changes settings of a running collector: all of the named ones or none. Settings that are
not named keep their values. It shows what changed, before and after.

--validate checks and changes nothing. --expect-version refuses (exit status 1) when
somebody else has changed something since you read that version. A value that is unknown,
out of range or fixed while the collector runs is refused by name (exit status 5). Where
the collector fails to apply a change, it goes back to the former values (exit status 1)."""

_SET_EXAMPLES = (
    "daemoneye collectors config procmond set scan_interval_s=2",
    "daemoneye collectors config procmond set scan_interval_s=2 scan_cpu_share=0.02 --validate",
    "daemoneye collectors config procmond set --reset scan_cpu_share --expect-version 3",
)

_COLUMNS = (
    Column("name", "setting"),
    Column("_value", "value"),
    Column("_origin", "from"),
    Column("is_live", "changes live"),
    Column("help", "meaning"),
)
_CSV_KEYS = ("name", "value", "origin", "origin_detail", "is_live", "help")
_CHANGE_COLUMNS = (
    Column("name", "setting"),
    Column("before", "before"),
    Column("after", "after"),
)


def add_config(nested: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        nested,
        "config",
        summary="read and change the configuration of a running collector",
        description=_DESCRIPTION,
        run=get_config,
        examples=_GET_EXAMPLES,
    )
    add_collector_id(parser)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", parser_class=Parser)
    add_command(
        actions,
        "get",
        summary="show it (default)",
        description=_DESCRIPTION,
        run=get_config,
        examples=_GET_EXAMPLES,
    )
    _add_set(actions)


def _add_set(actions: Subparsers) -> None:
    parser = add_command(
        actions,
        "set",
        summary="change settings without a restart",
        description=_SET_DESCRIPTION,
        run=set_config,
        examples=_SET_EXAMPLES,
    )
    add = parser.add_argument
    assignments = "settings with their new values, before or behind the options"
    add("assignments", nargs="*", metavar="NAME=VALUE", help=assignments)
    reset = "back to the value it has without 'set'; may be repeated"
    add("--reset", action="append", default=[], metavar="NAME", help=reset)
    add("--validate", action="store_true", help="check only, change nothing")
    version = "refuse when another version is in force"
    add("--expect-version", type=bounded_int(1, 2**63 - 1), metavar="N", help=version)


async def get_config(invocation: Invocation) -> ExitCode:
    """Runs ``config ID`` and ``config ID get``."""
    collector_id: str = invocation.arguments.collector_id
    request = pb.GetCollectorConfigRequest(collector_id=collector_id)
    async with invocation.session() as session:
        answer = await ask_admin(
            session, lambda stub: stub.GetCollectorConfig, request, READ_TIMEOUT_S
        )
    _show_config(invocation.output, collector_id, answer.config)
    return ExitCode.COMPLETE


async def set_config(invocation: Invocation) -> ExitCode:
    """Runs ``config ID set``."""
    collector_id: str = invocation.arguments.collector_id
    changes = parse_changes(invocation.arguments.assignments)
    resets = _parse_resets(invocation.arguments.reset, changes)
    if not changes and not resets:
        raise UsageError("nothing is to be changed; write NAME=VALUE or --reset NAME")
    update = collector_config_pb2.UpdateConfigRequest(
        changes=changes,
        reset_fields=resets,
        validate_only=invocation.arguments.validate,
        expected_version=invocation.argument("expect_version", 0),
        idempotency_key=make_key(),
    )
    request = pb.ConfigureCollectorRequest(collector_id=collector_id, update=update)
    output = invocation.output
    async with invocation.session() as session:
        answer = await ask_admin_twice(
            session, lambda stub: stub.ConfigureCollector, request, UPDATE_TIMEOUT_S, output
        )
    _show_changes(output, collector_id, answer.update, is_applied=not update.validate_only)
    return ExitCode.COMPLETE


def parse_changes(assignments: Iterable[str]) -> dict[str, str]:
    """Reads ``NAME=VALUE`` of each setting to change; the value may be empty or hold a ``=``.

    Raises:
        UsageError: one is malformed or given twice, or there are too many.
    """
    changes: dict[str, str] = {}
    for assignment in assignments:
        found = _ASSIGNMENT.fullmatch(assignment)
        if found is None:
            raise UsageError(
                f"{assignment[:80]!a} is not understood; write NAME=VALUE, such as"
                " scan_interval_s=2",
                assignment=assignment[:80],
            )
        if found[1] in changes:
            raise UsageError(f"{found[1]} is given twice; give it once", setting=found[1])
        changes[found[1]] = found[2]
    _check_count(len(changes))
    return changes


def _parse_resets(names: Iterable[str], changes: dict[str, str]) -> list[str]:
    resets = sorted(set(names))
    for name in resets:
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name[:80]!a} is no name of a setting; see 'config ID'", name=name)
        if name in changes:
            raise UsageError(f"{name} is both set and reset; choose one", setting=name)
    _check_count(len(resets))
    return resets


def _check_count(count: int) -> None:
    if count > MAX_CHANGES:
        raise UsageError(
            f"{count} settings are more than {MAX_CHANGES} at once; make several updates",
            count=count,
            limit=MAX_CHANGES,
        )


def _show_config(
    output: Output, collector_id: str, config: collector_config_pb2.GetConfigResponse
) -> None:
    document = to_document(config)
    rows = [_field_row(field) for field in document.pop("fields")]
    if output.is_table:
        cells = ([row[column.key] for column in _COLUMNS] for row in rows)
        output.print_table(_COLUMNS, cells, title=_describe_version(collector_id, document))
        return
    columns = tuple(Column(key, key) for key in _CSV_KEYS)
    output.show_listing(
        Listing("fields", columns, rows, {"collector_id": collector_id, **document})
    )


def _field_row(field: Document) -> Document:
    is_changed = field["origin"] == "live"
    origin = f"{field['origin']} {field['origin_detail']}".rstrip()
    return {
        **field,
        "_value": Styled(field["value"] or "(unset)", "" if field["value"] else "dim"),
        "_origin": Styled(origin, "yellow" if is_changed else ""),
    }


def _describe_version(collector_id: str, config: Document) -> str:
    if not config["version"]:
        return f"{collector_id}: never changed while it ran (version 0)"
    when, who = config["applied_at"] or "an unknown time", config["applied_by"] or "somebody"
    return f"{collector_id}: version {config['version']}, set at {when} by {who}"


def _show_changes(
    output: Output,
    collector_id: str,
    update: collector_config_pb2.UpdateConfigResponse,
    *,
    is_applied: bool,
) -> None:
    document = to_document(update)
    rows = document["changes"]
    if not output.is_table:
        extras = {
            "collector_id": collector_id,
            "version": document["version"],
            "is_applied": is_applied,
        }
        output.show_listing(Listing("changes", _CHANGE_COLUMNS, rows, extras))
        return
    if rows:
        output.print_table(_CHANGE_COLUMNS, [_change_cells(row) for row in rows])
    output.remark(_describe_outcome(collector_id, update, is_applied=is_applied))


def _change_cells(row: Document) -> tuple[object, ...]:
    before, after = row["before"] or "(unset)", row["after"] or "(unset)"
    return (row["name"], Styled(f"- {before}", "red"), Styled(f"+ {after}", "green"))


def _describe_outcome(
    collector_id: str, update: collector_config_pb2.UpdateConfigResponse, *, is_applied: bool
) -> str:
    in_force = f"version {update.version} is in force in {collector_id}"
    if not is_applied:
        would = "this would change" if update.changes else "this would change nothing"
        return f"{would}; it was only checked, {in_force}"
    return (
        in_force if update.changes else f"nothing changed, the values were so already; {in_force}"
    )
