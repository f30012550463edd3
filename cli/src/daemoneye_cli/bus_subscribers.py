"""``daemoneye bus subscribers``: who subscribes to what, and where each of their messages went."""

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from daemoneye_cli.arguments import Subparsers, add_command
from daemoneye_cli.bus_flow import balance_cell, describe_counts, read_flow
from daemoneye_cli.bus_stats import (
    Subscription,
    fill_of,
    read_subscriptions,
    state_of,
    subscription_document,
)
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.output import Column, Listing, Output, Styled

__all__ = ["STATE_STYLES", "add_subscribers", "list_subscribers", "queue_cell"]

STATE_STYLES = {"attached": "green", "paused": "yellow", "away": "yellow"}

# Two tables, since one would be too wide for a terminal: who they are, and where it all went.
_WHO_COLUMNS = (
    Column("subscription_id", "id"),
    Column("subscriber_id", "name"),
    Column("identity", "identity"),
    Column("patterns", "patterns"),
    Column("_kind", "guarantee"),
    Column("_state", "state"),
    Column("_queue", "queue", "right"),
)
_FLOW_COLUMNS = (
    Column("subscription_id", "id"),
    Column("_offered", "offered", "right"),
    Column("_delivered", "= delivered", "right"),
    Column("_filtered", "+ filtered", "right"),
    Column("_dropped", "+ dropped", "right"),
    Column("_pending", "+ pending", "right"),
    Column("_balance", ""),
    Column("_why", "dropped why"),
)
_SUBSCRIBER_KEYS = (
    "subscription_id",
    "subscriber_id",
    "identity",
    "patterns",
    "guarantee",
    "consumer_group",
    "state",
    "pending_bytes",
    "max_queue_messages",
    "max_queue_bytes",
    "offered_count",
    "delivered_count",
    "filtered_count",
    "dropped_count",
    "pending_count",
    "unaccounted_count",
    "unacknowledged_count",
    "redelivered_count",
    "dropped",
)
_SUBSCRIBERS_DESCRIPTION = """\
Lists the open subscriptions, oldest first, and where each of their messages went:

  offered = delivered + filtered + dropped + pending

A row that does not add up is marked and makes the exit status 3: that is a defect of
the broker, please report it. NAME keeps the subscriptions with that id or name, or of
that identity.

A terminal shows two tables: who they are, and below it where their messages went.

  state      attached: its stream stands; paused: its subscriber asked for a pause;
             away: a durable one that waits for its subscriber
  queue      messages waiting, of as many as may wait
  delivered  handed over; with acknowledgements: acknowledged
  filtered   held back by a filter, a priority floor or as repeats: not lost
  dropped    lost to this subscriber, who was told by a gap marker at the place"""


def add_subscribers(nested: Subparsers) -> None:
    """Adds ``bus subscribers``."""
    parser = add_command(
        nested,
        "subscribers",
        summary="who subscribes to what, and where their messages went",
        description=_SUBSCRIBERS_DESCRIPTION,
        run=list_subscribers,
        examples=(
            "daemoneye bus subscribers",
            "daemoneye bus subscribers agent/agent",
            "daemoneye bus subscribers --format json | jq '.subscriptions[] | select(.dropped != {})'",
        ),
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="an id, a name or an identity")


async def list_subscribers(invocation: Invocation) -> ExitCode:
    """Runs ``bus subscribers``."""
    name = invocation.argument("name")
    async with invocation.session() as session:
        found = await read_subscriptions(session)
    wanted = [one for one in found if name is None or name in _names(one)]
    if not wanted and invocation.output.is_table:
        invocation.output.remark(_nobody(name))
    else:
        _show_subscribers(invocation.output, wanted)
    return _report_unbalanced(invocation.output, wanted)


def queue_cell(subscription: Subscription) -> Styled:
    """Returns how full a queue is, in messages or bytes, whichever is fuller."""
    flow, limit = subscription.flow, subscription.max_queue_messages
    text = f"{flow.pending_count:,} of {limit:,}" if limit else f"{flow.pending_count:,}"
    fill = fill_of(subscription)
    return Styled(text, "bold red" if fill >= 0.9 else "yellow" if fill >= 0.5 else "")


def _report_unbalanced(output: Output, subscriptions: Sequence[Subscription]) -> ExitCode:
    """Tells of subscriptions whose messages are not all accounted for."""
    unbalanced = [one for one in subscriptions if read_flow(one.flow).unaccounted]
    for one in unbalanced if not output.is_json else ():
        flow = read_flow(one.flow)
        output.remark(
            f"degraded: subscription {one.subscription_id} ({one.identity}) does not add up:"
            f" {flow.equation}; report it with the broker's log",
            style="bold red",
        )
    return ExitCode.DEGRADED if unbalanced else ExitCode.COMPLETE


def _show_subscribers(output: Output, subscriptions: Sequence[Subscription]) -> None:
    rows = [_subscriber_row(one) for one in subscriptions]
    if not output.is_table:
        columns = tuple(Column(key, key) for key in _SUBSCRIBER_KEYS)
        is_balanced = all(row["adds_up"] for row in rows)
        output.show_listing(Listing("subscriptions", columns, rows, {"adds_up": is_balanced}))
        return
    for columns in (_WHO_COLUMNS, _FLOW_COLUMNS):
        output.print_table(columns, [[row[column.key] for column in columns] for row in rows])
        if columns is _WHO_COLUMNS:
            output.print_line(Text())


def _subscriber_row(subscription: Subscription) -> dict[str, Any]:
    flow = read_flow(subscription.flow)
    document = subscription_document(subscription)
    group = f" in {document['consumer_group']}" if document["consumer_group"] else ""
    state = state_of(subscription)
    return {
        **document,
        "_kind": f"{document['guarantee']}{group}",
        "_state": Styled(state, STATE_STYLES[state]),
        "_queue": queue_cell(subscription),
        "_offered": f"{flow.offered:,}",
        "_delivered": f"{flow.delivered:,}",
        "_filtered": f"{flow.filtered:,}",
        "_dropped": Styled(f"{flow.dropped_count:,}", "bold yellow" if flow.dropped_count else ""),
        "_pending": f"{flow.pending:,}",
        "_balance": balance_cell(flow),
        "_why": describe_counts(flow.dropped) or None,
    }


def _names(subscription: Subscription) -> tuple[str, str, str]:
    return subscription.subscription_id, subscription.subscriber_id, subscription.identity


def _nobody(name: str | None) -> str:
    if name is None:
        return "nobody subscribes"
    return f"no subscription has the id, name or identity {name}; leave NAME out to see all"
