"""``daemoneye inspect``: looks into any process of the mesh by reflection, and calls it with JSON."""

import asyncio
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import MethodDescriptor

from daemoneye_cli.arguments import Parser, Subparsers, add_command
from daemoneye_cli.dynamic_call import DynamicCall, parse_documents
from daemoneye_cli.errors import UsageError
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.output import Column, Format, Listing, encode_json
from daemoneye_cli.proto_text import (
    describe_enum,
    describe_message,
    describe_method,
    describe_service,
    signature,
)
from daemoneye_cli.reflection_client import ReflectionClient
from daemoneye_cli.session import Link, OperatorSession
from daemoneye_cli.text import printable
from daemoneye_mesh.errors import ErrorReason, InvalidConfigError, NotFoundError
from daemoneye_mesh.identity import InvalidIdentityError
from daemoneye_mesh.layout import RuntimeLayout

__all__ = ["add_parser", "call_method", "describe_symbol", "list_services", "resolve_socket"]

MAX_INPUT_CHARS = 16 * 1024 * 1024
_OPEN_PACKAGES = ("grpc.health.", "grpc.reflection.")

_DESCRIPTION = """\
Asks a process for its services by gRPC reflection, shows their types as proto
text, and calls their methods with JSON. Nothing about them is built in: it works
with every collector, in any language.

SOCKET is a short name (agent, eventbus, or a collector id such as procmond) or a
path. Calls to processes of this mesh carry a token for exactly that process.

grpcurl does the same:
  TOKEN=$(cat <runtime dir>/tokens/operator-local.token) \\
    grpcurl -plaintext -unix -expand-headers \\
    -H 'authorization: Bearer ${TOKEN}' <runtime dir>/agent.sock list"""

_EXAMPLES = (
    "daemoneye inspect agent",
    "daemoneye inspect eventbus describe Subscribe",
    "daemoneye inspect procmond call Health/Check",
    """daemoneye inspect agent call QueryService/ExecuteQuery -d '{"sql": "SELECT 1"}'""",
)


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "inspect",
        summary="look into a process and call its methods",
        description=_DESCRIPTION,
        run=list_services,
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "socket", metavar="SOCKET", help="agent, eventbus, a collector id or a path"
    )
    nested = parser.add_subparsers(title="actions", metavar="ACTION", parser_class=Parser)
    add_command(
        nested,
        "list",
        summary="list services and methods (default)",
        description="Lists the services of the process and their methods.",
        run=list_services,
        examples=_EXAMPLES[:1],
    )
    _add_describe(nested)
    _add_call(nested)


def _add_describe(nested: Subparsers) -> None:
    describe = add_command(
        nested,
        "describe",
        summary="show a service, method or type as proto text",
        description=(
            "Shows a service, a method with its request and response, a message or an enum.\n"
            "The last part of a name is enough where it is unique."
        ),
        run=describe_symbol,
        examples=(
            "daemoneye inspect agent describe QueryService",
            "daemoneye inspect agent describe QueryService/ExecuteQuery",
            "daemoneye inspect agent describe daemoneye.common.v1.Completeness",
        ),
    )
    describe.add_argument("symbol", metavar="SYMBOL", help="service, method, message or enum")


def _add_call(nested: Subparsers) -> None:
    call = add_command(
        nested,
        "call",
        summary="call a method with JSON",
        description=(
            "Calls a method. Requests are JSON objects in proto JSON; a method that takes a\n"
            "stream takes as many as there are, one after the other. Each response is one\n"
            "object; with --format json, one line each when the method answers a stream.\n"
            "A stream ends when the server ends it, at --timeout, or with Ctrl-C."
        ),
        run=call_method,
        examples=(
            *_EXAMPLES[2:],
            "daemoneye inspect eventbus call Health/Watch",
            "daemoneye inspect agent call ValidateRule -d @request.json",
        ),
    )
    call.add_argument("method", metavar="METHOD", help="pkg.Service/Method, or its last part")
    call.add_argument(
        "-d",
        "--data",
        default="{}",
        metavar="JSON",
        help="the request; @FILE reads a file, '-' standard input; default {}",
    )


async def list_services(invocation: Invocation) -> ExitCode:
    """Runs ``inspect SOCKET`` and ``inspect SOCKET list``."""
    async with invocation.session() as session:
        link = await _open(session, invocation.arguments.socket)
        try:
            client = ReflectionClient(link, session.timeout_s())
            methods: list[MethodDescriptor] = []
            for name in await client.list_services():
                methods += (await client.find_service(name)).methods
        finally:
            await link.channel.close()
    _show_methods(invocation, link, methods)
    return ExitCode.COMPLETE


async def describe_symbol(invocation: Invocation) -> ExitCode:
    """Runs ``inspect SOCKET describe``."""
    _refuse_csv(invocation)
    symbol: str = invocation.arguments.symbol
    async with invocation.session() as session:
        link = await _open(session, invocation.arguments.socket)
        try:
            kind, name, text = await _describe(ReflectionClient(link, session.timeout_s()), symbol)
        finally:
            await link.channel.close()
    if invocation.output.is_json:
        invocation.output.write_document({"symbol": name, "kind": kind, "text": text})
    else:
        invocation.output.write(printable(text, keep="\n") + "\n")
    return ExitCode.COMPLETE


async def call_method(invocation: Invocation) -> ExitCode:
    """Runs ``inspect SOCKET call``."""
    _refuse_csv(invocation)
    documents = parse_documents(await asyncio.to_thread(_read_data, invocation.arguments.data))
    async with invocation.session() as session:
        plain = await _open(session, invocation.arguments.socket)
        try:
            client = ReflectionClient(plain, session.timeout_s())
            method = await client.find_method(invocation.arguments.method)
            link = await _link_for(session, plain, method)
            call = DynamicCall(link, method, client.pool)
            async with aclosing(call.run(documents, session.given_timeout_s)) as answers:
                async for answer in answers:
                    _show_answer(invocation, method, answer)
        finally:
            await plain.channel.close()
    return ExitCode.COMPLETE


def resolve_socket(layout: RuntimeLayout, text: str) -> Path:
    """Returns the socket that an operator named.

    Raises:
        UsageError: the text is neither a short name nor a path.
    """
    if "/" in text.removeprefix("collectors/") or text.endswith(".sock"):
        return Path(text).expanduser().absolute()
    known = {"agent": layout.agent_socket, "eventbus": layout.eventbus_socket}
    known["broker"] = layout.eventbus_socket
    if text in known:
        return known[text]
    try:
        return layout.collector_socket(layout.collector(text.removeprefix("collectors/")).id)
    except InvalidIdentityError:
        raise UsageError(
            f"{text[:80]!a} is no socket; write agent, eventbus, a collector id such as"
            " procmond, or a path",
            socket=text[:80],
        ) from None


async def _open(session: OperatorSession, text: str) -> Link:
    socket = resolve_socket(session.layout, text)
    return await session.open(socket, session.name_of(socket))


async def _link_for(session: OperatorSession, plain: Link, method: MethodDescriptor) -> Link:
    """Returns a link with a token where the method needs one and the mesh can give one."""
    if method.containing_service.full_name.startswith(_OPEN_PACKAGES):
        return plain
    try:
        session.layout.owner_of(plain.peer.socket)
    except InvalidConfigError:  # not of this mesh: a token of ours is none of its business
        return plain
    return await session.to_owner(plain.peer.socket)


async def _describe(client: ReflectionClient, symbol: str) -> tuple[str, str, str]:
    """Returns kind, full name and text of a symbol."""
    try:
        service = await client.find_service(symbol)
        return "service", service.full_name, describe_service(service)
    except NotFoundError as error:
        not_found = error
    try:
        method = await client.find_method(symbol)
        return "method", method.full_name, describe_method(method)
    except NotFoundError:
        pass  # it may be a type
    try:
        await client.load(symbol)
    except NotFoundError:
        raise NotFoundError(
            f"there is no service, method or type {symbol[:120]!a}; write the full name of a"
            f" type, or see: {not_found.message}",
            symbol=symbol[:120],
        ) from None
    return _describe_type(client, symbol)


def _describe_type(client: ReflectionClient, symbol: str) -> tuple[str, str, str]:
    try:
        return "message", symbol, describe_message(client.pool.FindMessageTypeByName(symbol))
    except KeyError:
        pass  # then it is an enum
    try:
        return "enum", symbol, describe_enum(client.pool.FindEnumTypeByName(symbol))
    except KeyError:
        raise NotFoundError(
            f"{symbol[:120]!a} is no service, method, message or enum; describe its container",
            symbol=symbol[:120],
        ) from None


def _show_methods(invocation: Invocation, link: Link, methods: list[MethodDescriptor]) -> None:
    output = invocation.output
    if output.is_table:
        last = ""
        for method in methods:
            service = method.containing_service.full_name
            if service != last:
                output.write(printable(service) + "\n")
                last = service
            output.write(f"  {printable(signature(method))}\n")
        output.flush()
        return
    rows = [
        {
            "service": method.containing_service.full_name,
            "method": method.name,
            "request": method.input_type.full_name,
            "response": method.output_type.full_name,
            "is_client_streaming": method.client_streaming,
            "is_server_streaming": method.server_streaming,
        }
        for method in methods
    ]
    columns = tuple(Column(key, key) for key in _METHOD_KEYS)
    output.show_listing(Listing("methods", columns, rows, {"socket": str(link.peer.socket)}))


_METHOD_KEYS = (
    "service",
    "method",
    "request",
    "response",
    "is_client_streaming",
    "is_server_streaming",
)


def _show_answer(invocation: Invocation, method: MethodDescriptor, answer: Any) -> None:
    output = invocation.output
    if output.is_json and method.server_streaming:
        output.write_line(answer)
    else:
        output.write(encode_json(answer, indent=2) + "\n")
        output.flush()


def _refuse_csv(invocation: Invocation) -> None:
    if invocation.output.format is Format.CSV:
        raise UsageError("this answer has no csv format; use --format json or table")


def _read_data(argument: str) -> str:
    if argument in ("-", "@-"):
        text = sys.stdin.read(MAX_INPUT_CHARS + 1)
    elif argument.startswith("@"):
        text = _read_file(argument[1:])
    else:
        text = argument
    if len(text) > MAX_INPUT_CHARS:
        raise UsageError(
            f"the requests are longer than {MAX_INPUT_CHARS} characters; send fewer",
            limit=MAX_INPUT_CHARS,
        )
    return text


def _read_file(name: str) -> str:
    try:
        with Path(name).open(encoding="utf-8") as file:
            return file.read(MAX_INPUT_CHARS + 1)
    except (OSError, UnicodeDecodeError) as error:
        why = "not UTF-8"
        if isinstance(error, OSError):
            why = (error.strerror or "unknown reason").lower()
        raise UsageError(
            f"cannot read {name} ({why}); check the path",
            reason=ErrorReason.FILE_UNUSABLE,
            file=name,
        ) from None
