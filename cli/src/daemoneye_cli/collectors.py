"""``daemoneye collectors``: which collectors there are and what they miss, and what steers them."""

from daemoneye.agent.v1 import collector_admin_service_pb2 as pb
from daemoneye_cli.arguments import Parser, Subparsers, add_command
from daemoneye_cli.bus_listings import columns_for
from daemoneye_cli.collector_call import ask_admin
from daemoneye_cli.collector_config import add_config
from daemoneye_cli.collector_health import add_health, status_cell
from daemoneye_cli.collector_shutdown import add_shutdown
from daemoneye_cli.collector_stats import add_stats
from daemoneye_cli.collector_steering import add_steering
from daemoneye_cli.completeness import read_completeness, to_completeness_document
from daemoneye_cli.document import Document, to_document
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.output import Column, Listing, Styled

__all__ = ["add_parser", "list_collectors"]

_CALL_TIMEOUT_S = 5.0

_DESCRIPTION = """\
Lists the collectors that are or were registered with the agent: the state of each lease,
the status in the collector's own words, its backlog, which are the events in its log that
the agent has not stored yet, whether it sheds events, and what it cannot see now. All but
the state is as of its last heartbeat; 'health ID' asks the collector itself.

'docs/collector-operations.md' explains how to steer, configure and mend a collector."""

_EXAMPLES = (
    "daemoneye collectors",
    "daemoneye collectors health procmond",
    "daemoneye collectors config procmond set scan_interval_s=2",
    "daemoneye collectors pause procmond",
    "daemoneye collectors --format json | jq '.collectors[] | {collector_id, status}'",
)

# Keys with an underscore are for tables alone; JSON and CSV show the values themselves.
_COLUMNS = (
    Column("collector_id", "collector"),
    Column("state", "state"),
    Column("_status", "status"),
    Column("_backlog", "backlog", "right"),
    Column("_shedding", "shedding"),
    Column("version", "version"),
    Column("pid", "pid", "right"),
    Column("domains", "domains"),
    Column("last_heartbeat_at", "last heartbeat"),
    Column("missing", "cannot see"),
)
_CSV_KEYS = (
    *("collector_id", "state", "version", "pid", "domains", "last_heartbeat_at", "missing"),
    *("status", "unacknowledged_count", "is_shedding", "config_version"),
)
_STYLES = {"serving": "green", "degraded": "yellow", "unavailable": "bold red"}


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "collectors",
        summary="list, check, configure and steer collectors",
        description=_DESCRIPTION,
        run=list_collectors,
        examples=_EXAMPLES,
    )
    nested = parser.add_subparsers(title="actions", metavar="ACTION", parser_class=Parser)
    add_command(
        nested,
        "list",
        summary="list collectors (default)",
        description=_DESCRIPTION,
        run=list_collectors,
        examples=_EXAMPLES,
    )
    for add in (add_health, add_stats, add_config, add_steering, add_shutdown):
        add(nested)


async def list_collectors(invocation: Invocation) -> ExitCode:
    """Runs ``collectors`` and ``collectors list``."""
    async with invocation.session() as session:
        answer = await ask_admin(
            session,
            lambda stub: stub.ListCollectors,
            pb.ListCollectorsRequest(),
            _CALL_TIMEOUT_S,
        )
    rows = [_collector_row(one) for one in answer.collectors]
    columns = columns_for(invocation.output, _COLUMNS, _CSV_KEYS)
    invocation.output.show_listing(Listing("collectors", columns, rows))
    return ExitCode.COMPLETE


def _collector_row(collector: pb.CollectorInfo) -> Document:
    document = to_document(collector)
    missing = read_completeness(collector.completeness, collector.collector_id)
    has_beaten = collector.HasField("last_heartbeat_at")
    return {
        **document,
        "state": Styled(document["state"], _STYLES.get(document["state"], "")),
        "completeness": to_completeness_document(missing),
        "missing": [one.message for one in missing],
        "_status": status_cell(collector.status) if has_beaten else None,
        "_backlog": f"{collector.unacknowledged_count:,}" if has_beaten else None,
        "_shedding": _shedding_cell(collector) if has_beaten else None,
    }


def _shedding_cell(collector: pb.CollectorInfo) -> Styled:
    return Styled("yes", "bold red") if collector.is_shedding else Styled("no", "")
