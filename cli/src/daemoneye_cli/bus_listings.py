"""``daemoneye bus topics`` and ``identities``: what was published, by topic and by publisher."""

from collections.abc import Callable
from typing import Any

from daemoneye.eventbus.v1 import eventbus_service_pb2, identity_stats_pb2
from daemoneye_cli.arguments import Subparsers, add_command, bounded_int
from daemoneye_cli.bus_flow import describe_counts
from daemoneye_cli.bus_stats import MAX_LISTED_TOPICS, Stats, read_stats
from daemoneye_cli.document import to_document
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.output import Column, Listing, Output, Styled
from daemoneye_cli.text import format_iso, format_size

__all__ = [
    "add_identities",
    "add_topics",
    "columns_for",
]

Row = dict[str, Any]

DEFAULT_TOPICS = 50

# Keys with an underscore are for tables alone; JSON shows the numbers themselves.
_TOPIC_COLUMNS = (
    Column("topic", "topic"),
    Column("_published", "published", "right"),
    Column("_bytes", "bytes", "right"),
    Column("_offered", "offered", "right"),
    Column("_unrouted", "unrouted", "right"),
)
_TOPIC_KEYS = ("topic", "published_count", "published_bytes", "offered_count", "unrouted_count")
_IDENTITY_COLUMNS = (
    Column("identity", "identity"),
    Column("_published", "published", "right"),
    Column("_bytes", "bytes", "right"),
    Column("_offered", "offered", "right"),
    Column("stream_count", "streams", "right"),
    Column("subscription_count", "subscriptions", "right"),
    Column("_granted", "queue granted", "right"),
    Column("_refused", "refused", "right"),
    Column("_why", "refused why"),
)
_IDENTITY_KEYS = (
    "identity",
    "published_count",
    "published_bytes",
    "offered_count",
    "stream_count",
    "subscription_count",
    "granted_queue_bytes",
    "refused_total",
    "refused_count",
)

_TOPICS_DESCRIPTION = f"""\
Lists what was published since the broker started, by topic.

  published  messages accepted from publishers
  offered    copies of them offered to subscriptions, filtered ones included
  unrouted   messages that no subscription matched: nobody wanted them

The broker counts each topic until its table is full; '_other' sums the rest, and it
tells the {MAX_LISTED_TOPICS} busiest."""

_IDENTITIES_DESCRIPTION = """\
Lists who published and who holds what at the broker, busiest first: messages
accepted, copies of them offered to subscriptions, open streams, subscriptions, bytes
of queue granted to them, and what was refused by reason. 'docs/errors.md' says what
to do about each reason."""


def add_topics(nested: Subparsers) -> None:
    """Adds ``bus topics``."""
    parser = add_command(
        nested,
        "topics",
        summary="what was published, by topic",
        description=_TOPICS_DESCRIPTION,
        run=list_topics,
        examples=(
            "daemoneye bus topics",
            "daemoneye bus topics --sort unrouted --limit 5",
            "daemoneye bus topics --format json | jq '.topics[] | {topic, published_count}'",
        ),
    )
    parser.add_argument(
        "--sort",
        choices=tuple(_SORT_KEYS),
        default="published",
        help="what to sort by, largest first; 'topic' is by name; default published",
    )
    limit = f"most topics wanted, default {DEFAULT_TOPICS}, at most {MAX_LISTED_TOPICS}"
    parser.add_argument(
        "--limit",
        type=bounded_int(1, MAX_LISTED_TOPICS),
        metavar="N",
        default=DEFAULT_TOPICS,
        help=limit,
    )


def add_identities(nested: Subparsers) -> None:
    """Adds ``bus identities``."""
    add_command(
        nested,
        "identities",
        summary="who published, who holds what, and what was refused",
        description=_IDENTITIES_DESCRIPTION,
        run=list_identities,
        examples=(
            "daemoneye bus identities",
            "daemoneye bus identities --format json | jq '.identities[] | select(.refused_total > 0)'",
        ),
    )


async def list_topics(invocation: Invocation) -> ExitCode:
    """Runs ``bus topics``."""
    async with invocation.session() as session:
        stats = await read_stats(session)
    rows = sorted(
        (_topic_row(one) for one in stats.topics), key=_SORT_KEYS[invocation.arguments.sort]
    )
    limit: int = invocation.arguments.limit
    extras = {**_totals(stats), "topic_count": len(rows)}
    columns = columns_for(invocation.output, _TOPIC_COLUMNS, _TOPIC_KEYS)
    invocation.output.show_listing(Listing("topics", columns, rows[:limit], extras))
    if len(rows) > limit and invocation.output.is_table:
        invocation.output.remark(f"{len(rows) - limit} topics more; raise --limit")
    return ExitCode.COMPLETE


async def list_identities(invocation: Invocation) -> ExitCode:
    """Runs ``bus identities``."""
    async with invocation.session() as session:
        stats = await read_stats(session)
    columns = columns_for(invocation.output, _IDENTITY_COLUMNS, _IDENTITY_KEYS)
    rows = [_identity_row(one) for one in stats.identities]
    invocation.output.show_listing(Listing("identities", columns, rows, _totals(stats)))
    return ExitCode.COMPLETE


def columns_for(
    output: Output, table: tuple[Column, ...], keys: tuple[str, ...]
) -> tuple[Column, ...]:
    """Returns the columns for a person, or those for a program."""
    return table if output.is_table else tuple(Column(key, key) for key in keys)


def _totals(stats: Stats) -> Row:
    started_at = stats.started_at.ToNanoseconds() if stats.HasField("started_at") else None
    return {
        "broker_epoch": stats.broker_epoch,
        "started_at": None if started_at is None else format_iso(started_at),
        "published_count": stats.published_count,
        "published_bytes": stats.published_bytes,
        "unrouted_count": stats.unrouted_count,
        "refused_count": dict(sorted(stats.refused_count.items())),
    }


def _topic_row(topic: eventbus_service_pb2.TopicStats) -> Row:
    return {
        **to_document(topic),
        "_published": f"{topic.published_count:,}",
        "_bytes": format_size(topic.published_bytes),
        "_offered": f"{topic.offered_count:,}",
        "_unrouted": Styled(f"{topic.unrouted_count:,}", "yellow" if topic.unrouted_count else ""),
    }


def _identity_row(identity: identity_stats_pb2.IdentityStats) -> Row:
    refused = sum(identity.refused_count.values())
    return {
        **to_document(identity),
        "refused_total": refused,
        "_published": f"{identity.published_count:,}",
        "_bytes": format_size(identity.published_bytes),
        "_offered": f"{identity.offered_count:,}",
        "_granted": format_size(identity.granted_queue_bytes),
        "_refused": Styled(f"{refused:,}", "bold yellow" if refused else ""),
        "_why": describe_counts(identity.refused_count) or None,
    }


def _by(key: str) -> Callable[[Row], Any]:
    return lambda row: (-row[key], row["topic"])


_SORT_KEYS: dict[str, Callable[[Row], Any]] = {
    "published": _by("published_count"),
    "bytes": _by("published_bytes"),
    "offered": _by("offered_count"),
    "unrouted": _by("unrouted_count"),
    "topic": lambda row: row["topic"],
}
