"""``daemoneye bus``: looks at the event bus, listens on it, and publishes on it."""

from daemoneye_cli.arguments import Parser, Subparsers, add_command
from daemoneye_cli.bus_listings import add_identities, add_topics
from daemoneye_cli.bus_publish import add_publish
from daemoneye_cli.bus_subscribers import add_subscribers
from daemoneye_cli.bus_tail import add_tail
from daemoneye_cli.bus_top import add_top
from daemoneye_cli.bus_workflows import add_workflows

__all__ = ["add_parser"]

_DESCRIPTION = """\
Looks at the event bus: what is published, who subscribes, where each message went,
and what was refused. Every message offered to a subscription is delivered, filtered,
dropped or pending, and these commands check that it adds up.

'docs/bus.md' explains what the bus promises and what to do when something drops."""

_EXAMPLES = (
    "daemoneye bus top                          what happens now, refreshed",
    "daemoneye bus subscribers                  who keeps up, who does not",
    "daemoneye bus topics --sort unrouted       what nobody wants",
    "daemoneye bus tail 'control.#'             messages with their envelope",
    "daemoneye bus publish control.operator.local.note --param text=hello",
)


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "bus",
        summary="look at the event bus, listen, publish",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    nested = parser.add_subparsers(
        title="actions", dest="action", metavar="ACTION", required=True, parser_class=Parser
    )
    for add in (
        add_top,
        add_topics,
        add_subscribers,
        add_identities,
        add_workflows,
        add_tail,
        add_publish,
    ):
        add(nested)
