"""``daemoneye bus publish``: one message from an operator."""

import argparse
import asyncio
import base64
import binascii
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemoneye.eventbus.v1 import eventbus_pb2, eventbus_service_pb2, eventbus_service_pb2_grpc
from daemoneye_cli.arguments import Subparsers, add_command, bounded_int, positive_seconds
from daemoneye_cli.bus_assignment import read_assignments
from daemoneye_cli.bus_message import OPERATIONS, TYPES, Draft, make_message, read_message
from daemoneye_cli.calls import ask
from daemoneye_cli.dynamic_call import parse_documents
from daemoneye_cli.errors import UsageError
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.session import OperatorSession
from daemoneye_mesh.errors import (
    DaemoneyeError,
    ErrorReason,
    InvalidRequestError,
    UnauthenticatedError,
    UnavailableError,
)
from daemoneye_mesh.identity import Identity
from daemoneye_mesh.token import FileTokenSource
from daemoneye_mesh.topic import validate_topic

__all__ = ["add_publish", "run_publish"]

MAX_INPUT_CHARS = 4 * 1024 * 1024
_CALL_TIMEOUT_S = 5.0
_MESSAGE_OPTIONS = ("type", "operation", "target", "param", "header", "priority", "ttl")

_DESCRIPTION = """\
Publishes one message and says into how many subscriber queues it went. Operators may
publish on control.operator.<own id>.# only; 'docs/access.md' has the whole table.

Without --json it is a control message with --param as its parameters. With --json
it is a whole EventBusMessage in proto JSON; topic, publisher, time and id are filled
in where they are left out, and TOPIC must be its topic.

Nobody subscribes: the message is accepted and goes nowhere. That is said, and the
exit status is 0; with --require-subscriber it is 4."""


def add_publish(nested: Subparsers) -> None:
    """Adds ``bus publish``."""
    parser = add_command(
        nested,
        "publish",
        summary="publish one message",
        description=_DESCRIPTION,
        run=run_publish,
        examples=(
            "daemoneye bus publish control.operator.local.note --param text='drill begins'",
            "daemoneye bus publish control.operator.local.ping --require-subscriber --ttl 5",
            "daemoneye bus publish control.operator.local.note --json message.json",
            """echo '{"control_message": {"operation": "CONTROL_OPERATION_STATUS_REPORT"}}' |\\
    daemoneye bus publish control.operator.local.note --json -""",
        ),
    )
    parser.add_argument("topic", metavar="TOPIC", help="1 to 5 segments joined by dots")
    _add_message_options(parser)
    parser.add_argument(
        "--json", metavar="FILE", help="a whole EventBusMessage; '-' reads standard input"
    )
    parser.add_argument(
        "--require-subscriber", action="store_true", help="exit status 4 when nobody subscribes"
    )


def _add_message_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--type", choices=tuple(TYPES), help="type of the message, default control")
    operation = "what it asks for, default status-report; one of " + ", ".join(OPERATIONS)
    add("--operation", choices=tuple(OPERATIONS), metavar="NAME", help=operation)
    add("--target", metavar="ID", help="the component that is meant; default every receiver")
    add("--param", action="append", metavar="KEY=VALUE", help="a parameter; may be repeated")
    add("--header", action="append", metavar="KEY=VALUE", help="a header; may be repeated")
    add("--priority", type=bounded_int(0, 255), metavar="N", help="0 (default) to 255, most urgent")
    ttl = "how long it may wait for a subscriber; default as long as the queue holds it"
    add("--ttl", type=positive_seconds, metavar="SECONDS", help=ttl)


async def run_publish(invocation: Invocation) -> ExitCode:
    """Runs the command."""
    validate_topic(invocation.arguments.topic)
    make = await _maker(invocation)
    async with invocation.session() as session:
        link = await session.broker()
        message = make(await asyncio.to_thread(own_id, session))
        stub = eventbus_service_pb2_grpc.EventBusServiceStub(link.channel)
        request = eventbus_service_pb2.PublishRequest(messages=[message])
        answer = await ask(stub.Publish, request, link.peer, session.timeout_s(_CALL_TIMEOUT_S))
    _show(invocation, message.metadata, answer)
    if answer.routed_count == 0 and invocation.arguments.require_subscriber:
        raise UnavailableError(
            f"the broker accepted the message, and nobody subscribes to {message.metadata.topic};"
            " start who should, see 'daemoneye bus subscribers', and publish it again",
            reason=ErrorReason.NO_SUBSCRIBER,
            topic=message.metadata.topic,
        )
    return ExitCode.COMPLETE


def own_id(session: OperatorSession) -> str:
    """Returns the id in the operator's own token, which the broker holds a publisher to.

    Raises:
        UnauthenticatedError: the file holds no token of a mesh.
    """
    token = FileTokenSource(session.token_file).token()
    try:
        claims = token.split(".")[1]
        subject = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["sub"]
        return Identity.parse(subject).id
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error, DaemoneyeError):
        raise UnauthenticatedError(
            f"token file {session.token_file} holds no token of a mesh; use the one that the agent"
            " wrote",
            reason=ErrorReason.FILE_UNUSABLE,
            token_file=session.token_file,
        ) from None


Maker = Callable[[str], eventbus_pb2.EventBusMessage]
"""Makes the message, given the id of its publisher."""


async def _maker(invocation: Invocation) -> Maker:
    """Reads options or input, so that what is wrong with them shows before anybody is asked."""
    file = invocation.argument("json")
    if file is None:
        make_message(_draft(invocation, "unknown"))
        return lambda source_id: make_message(_draft(invocation, source_id))
    _refuse_message_options(invocation)
    document = _only_one(parse_documents(await asyncio.to_thread(_read_text, file)))
    return lambda source_id: read_message(document, _draft(invocation, source_id))


def _draft(invocation: Invocation, source_id: str) -> Draft:
    return Draft(
        topic=invocation.arguments.topic,
        source_id=source_id,
        time_ns=time.time_ns(),
        type=invocation.argument("type", "control"),
        operation=invocation.argument("operation", ""),
        target=invocation.argument("target", ""),
        parameters=read_assignments("--param", invocation.argument("param", ())),
        headers=read_assignments("--header", invocation.argument("header", ())),
        priority=invocation.argument("priority", 0),
        ttl_ms=math.ceil(invocation.argument("ttl", 0.0) * 1_000),
    )


def _refuse_message_options(invocation: Invocation) -> None:
    given = [name for name in _MESSAGE_OPTIONS if invocation.argument(name) is not None]
    if given:
        raise UsageError(
            f"--{given[0]} does not go with --json; say it in the message", option=given[0]
        )


def _only_one(documents: list[Any]) -> Any:
    if len(documents) != 1:
        raise InvalidRequestError(
            f"there are {len(documents)} messages in the input; give exactly one",
            count=len(documents),
        )
    return documents[0]


def _read_text(name: str) -> str:
    try:
        if name == "-":
            text = sys.stdin.read(MAX_INPUT_CHARS + 1)
        else:
            with Path(name).open(encoding="utf-8") as file:
                text = file.read(MAX_INPUT_CHARS + 1)
    except (OSError, UnicodeDecodeError) as error:
        why = "not UTF-8"
        if isinstance(error, OSError):
            why = (error.strerror or "unknown reason").lower()
        raise UsageError(
            f"cannot read {name} ({why}); check the path",
            reason=ErrorReason.FILE_UNUSABLE,
            file=name,
        ) from None
    if len(text) > MAX_INPUT_CHARS:
        raise UsageError(
            f"the message is longer than {MAX_INPUT_CHARS} characters; a message has at most 1 MiB",
            limit=MAX_INPUT_CHARS,
        )
    return text


def _show(
    invocation: Invocation,
    metadata: eventbus_pb2.MessageMetadata,
    answer: eventbus_service_pb2.PublishResponse,
) -> None:
    output = invocation.output
    if not output.is_table:
        output.show_record(
            {
                "topic": metadata.topic,
                "message_id": metadata.message_id,
                "source_id": metadata.source_id,
                "accepted_count": answer.accepted_count,
                "routed_count": answer.routed_count,
            }
        )
    elif answer.routed_count:
        plural = "" if answer.routed_count == 1 else "s"
        output.remark(
            f"published {metadata.message_id}; it went to {answer.routed_count:,} subscriber{plural}"
        )
    elif not invocation.arguments.require_subscriber:
        output.remark(
            f"published {metadata.message_id}; nobody subscribes to {metadata.topic}",
            style="yellow",
        )
