"""``daemoneye collectors``: which collectors there are, what they miss, and making them pause."""

from daemoneye.agent.v1 import collector_admin_service_pb2 as pb
from daemoneye.agent.v1 import collector_admin_service_pb2_grpc
from daemoneye_cli.arguments import Parser, Subparsers, add_command
from daemoneye_cli.calls import ask
from daemoneye_cli.completeness import read_completeness, to_completeness_document
from daemoneye_cli.document import Document, to_document
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.output import Column, Listing, Styled

__all__ = ["add_parser", "list_collectors", "steer_collector"]

_CALL_TIMEOUT_S = 5.0
_STEER_TIMEOUT_S = 10.0

_DESCRIPTION = """\
Lists the collectors that are or were registered with the agent, the state of each
lease, and what each cannot see now."""

_EXAMPLES = (
    "daemoneye collectors",
    "daemoneye collectors pause procmond",
    "daemoneye collectors --format json | jq '.collectors[] | {collector_id, state}'",
)

_COLUMNS = (
    Column("collector_id", "collector"),
    Column("state", "state"),
    Column("version", "version"),
    Column("pid", "pid", "right"),
    Column("domains", "domains"),
    Column("last_heartbeat_at", "last heartbeat"),
    Column("missing", "cannot see"),
)
_STYLES = {"serving": "green", "degraded": "yellow", "unavailable": "bold red"}


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "collectors",
        summary="list and steer collectors",
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
    _add_steer(nested, "pause", "Makes a collector stop watching; it still answers queries.")
    _add_steer(nested, "resume", "Makes a collector watch again.")


def _add_steer(nested: Subparsers, name: str, description: str) -> None:
    parser = add_command(
        nested,
        name,
        summary=description.rstrip(".").lower(),
        description=description,
        run=steer_collector,
        examples=(f"daemoneye collectors {name} procmond",),
    )
    parser.add_argument("collector_id", metavar="ID", help="id of the collector")
    parser.set_defaults(steer=name)


async def list_collectors(invocation: Invocation) -> ExitCode:
    """Runs ``collectors`` and ``collectors list``."""
    async with invocation.session() as session:
        link = await session.agent()
        stub = collector_admin_service_pb2_grpc.CollectorAdminServiceStub(link.channel)
        timeout_s = session.timeout_s(_CALL_TIMEOUT_S)
        answer = await ask(stub.ListCollectors, pb.ListCollectorsRequest(), link.peer, timeout_s)
    rows = [_collector_document(one) for one in answer.collectors]
    invocation.output.show_listing(Listing("collectors", _COLUMNS, rows))
    return ExitCode.COMPLETE


async def steer_collector(invocation: Invocation) -> ExitCode:
    """Runs ``collectors pause`` and ``collectors resume``."""
    collector_id: str = invocation.arguments.collector_id
    action: str = invocation.arguments.steer
    async with invocation.session() as session:
        link = await session.agent()
        stub = collector_admin_service_pb2_grpc.CollectorAdminServiceStub(link.channel)
        timeout_s = session.timeout_s(_STEER_TIMEOUT_S)
        if action == "pause":
            pause = pb.PauseCollectorRequest(collector_id=collector_id)
            await ask(stub.PauseCollector, pause, link.peer, timeout_s)
        else:
            resume = pb.ResumeCollectorRequest(collector_id=collector_id)
            await ask(stub.ResumeCollector, resume, link.peer, timeout_s)
    state = "paused" if action == "pause" else "watching"
    if invocation.output.is_table:
        invocation.output.remark(f"collector {collector_id} is {state}")
    else:
        invocation.output.show_record({"collector_id": collector_id, "state": state})
    return ExitCode.COMPLETE


def _collector_document(collector: pb.CollectorInfo) -> Document:
    document = to_document(collector)
    missing = read_completeness(collector.completeness, collector.collector_id)
    return {
        **document,
        "state": Styled(document["state"], _STYLES.get(document["state"], "")),
        "completeness": to_completeness_document(missing),
        "missing": [one.message for one in missing],
    }
