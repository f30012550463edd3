"""``daemoneye collectors stats``: where the events of a collector are, and whether all are accounted for.

Invariant: ``emitted = logged + dropped + pending`` is checked here and nowhere assumed; counters that do
not add up are shown as they are, with what is missing.
"""

from collections.abc import Iterator
from typing import Any

from daemoneye.agent.v1 import collector_admin_service_pb2 as pb
from daemoneye.ipc.v1 import collector_control_service_pb2 as control_pb2
from daemoneye.ipc.v1 import event_log_pb2
from daemoneye_cli.arguments import Subparsers, add_command
from daemoneye_cli.bus_flow import describe_counts
from daemoneye_cli.collector_call import add_collector_id, ask_admin
from daemoneye_cli.document import Document, enum_name, to_document
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.output import Column, Output, Styled
from daemoneye_cli.text import format_duration, format_size

__all__ = ["add_stats", "show_stats", "unaccounted"]

Stats = control_pb2.GetCollectorStatsResponse

READ_TIMEOUT_S = 10.0

_DESCRIPTION = """\
Shows the counters of a collector since it started. Every event that a source emits is
written to the log, dropped for a stated reason, or still waiting:

    emitted = logged + dropped + pending

Events stay in the log until the agent has stored them; 'log' shows how far it goes, by
epoch. Lost are those that left the log before that.

Exit status 0 when the counters add up and nothing was lost from the log, else 3."""

_WHAT_COLUMNS = (Column("what", ""), Column("value", ""))
_LOG_COLUMNS = (
    Column("source_epoch", "log of epoch"),
    Column("first_sequence", "first held", "right"),
    Column("last_sequence", "last", "right"),
    Column("acknowledged_sequence", "acknowledged", "right"),
    Column("waiting", "not acknowledged", "right"),
    Column("losses", "lost"),
)
_CSV_KEYS = (
    "collector_id",
    "state",
    "source_epoch",
    "source_sequence",
    "emitted_count",
    "logged_count",
    "dropped_total",
    "pending_count",
    "unaccounted_count",
    "unacknowledged_count",
    "lost_total",
    "published_count",
    "replayed_count",
    "log_bytes",
    "uptime",
)


def add_stats(nested: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        nested,
        "stats",
        summary="where the events of a collector are",
        description=_DESCRIPTION,
        run=show_stats,
        examples=(
            "daemoneye collectors stats procmond",
            "daemoneye collectors stats procmond --format json | jq .unacknowledged_count",
        ),
    )
    add_collector_id(parser)


async def show_stats(invocation: Invocation) -> ExitCode:
    """Runs the command."""
    collector_id: str = invocation.arguments.collector_id
    request = pb.GetCollectorCountersRequest(collector_id=collector_id)
    async with invocation.session() as session:
        answer = await ask_admin(
            session, lambda stub: stub.GetCollectorCounters, request, READ_TIMEOUT_S
        )
    _show(invocation.output, collector_id, answer.stats)
    is_whole = unaccounted(answer.stats) == 0 and not any(answer.stats.lost_count.values())
    return ExitCode.COMPLETE if is_whole else ExitCode.DEGRADED


def unaccounted(stats: Stats) -> int:
    """Returns how many events are nowhere; negative when more came out than went in."""
    known = stats.logged_count + sum(stats.dropped_count.values()) + stats.pending_count
    return stats.emitted_count - known


def _show(output: Output, collector_id: str, stats: Stats) -> None:
    document = _document(collector_id, stats)
    if output.is_json:
        output.write_document(document)
    elif output.is_table:
        output.print_table(_WHAT_COLUMNS, _rows(stats), title=f"collector {collector_id}")
        if stats.log_positions:
            output.print_table(_LOG_COLUMNS, [_log_row(one) for one in stats.log_positions])
    else:
        output.write_csv(_CSV_KEYS)
        output.write_csv(document[key] for key in _CSV_KEYS)
        output.flush()


def _document(collector_id: str, stats: Stats) -> Document:
    return {
        "collector_id": collector_id,
        **to_document(stats),
        "dropped_total": sum(stats.dropped_count.values()),
        "lost_total": sum(stats.lost_count.values()),
        "unaccounted_count": unaccounted(stats),
        "adds_up": unaccounted(stats) == 0,
    }


def _rows(stats: Stats) -> Iterator[tuple[str, object]]:
    state = enum_name(control_pb2.MonitoringState.DESCRIPTOR, stats.state)
    yield "state", f"{state}, up {format_duration(stats.uptime.ToNanoseconds() / 1e9)}"
    yield "events", _equation(stats)
    yield "", _balance(stats)
    if any(stats.dropped_count.values()):
        yield "dropped", Styled(describe_counts(stats.dropped_count), "yellow")
    pending = f"{stats.pending_count:,} events, {format_size(stats.pending_bytes)}"
    yield "waiting for the log", pending
    held = (
        f"{stats.unacknowledged_count:,} not acknowledged, {format_size(stats.log_bytes)} on disk"
    )
    yield "log", held
    lost_style = "bold red" if any(stats.lost_count.values()) else ""
    yield "lost from the log", Styled(describe_counts(stats.lost_count) or "none", lost_style)
    published = f"{stats.published_count:,} times, {stats.replayed_count:,} events read again"
    yield "published", published
    yield "sequence", f"{stats.source_sequence:,} of epoch {stats.source_epoch}"
    yield "tasks", describe_counts(stats.task_count) or "none"
    if stats.analysis_count:
        yield "analyses", describe_counts(stats.analysis_count)


def _equation(stats: Stats) -> str:
    sign = "=" if unaccounted(stats) == 0 else "≠"
    return (
        f"{stats.emitted_count:,} emitted {sign} {stats.logged_count:,} logged"
        f" + {sum(stats.dropped_count.values()):,} dropped + {stats.pending_count:,} pending"
    )


def _balance(stats: Stats) -> Styled:
    missing = unaccounted(stats)
    return Styled(f"off by {missing:,}", "bold red") if missing else Styled("adds up", "green")


def _log_row(position: event_log_pb2.LogPosition) -> tuple[Any, ...]:
    settled = max(position.acknowledged_sequence, position.first_sequence - 1)
    return (
        position.source_epoch,
        f"{position.first_sequence:,}"
        if position.first_sequence <= position.last_sequence
        else None,
        f"{position.last_sequence:,}",
        f"{position.acknowledged_sequence:,}",
        f"{max(position.last_sequence - settled, 0):,}",
        ", ".join(_describe_loss(one) for one in position.losses) or "nothing",
    )


def _describe_loss(loss: event_log_pb2.EventLoss) -> str:
    why = enum_name(event_log_pb2.EventLossReason.DESCRIPTOR, loss.reason)
    return f"{loss.first_sequence:,} to {loss.last_sequence:,} ({why})"
