"""From a command line to an exit status: parse, run, and tell what went wrong in one place."""

import argparse
import asyncio
import logging
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any

from daemoneye_cli import (
    alerts,
    bus,
    collectors,
    events,
    health,
    inspection,
    query,
    rules,
    tables,
    up,
)
from daemoneye_cli.arguments import Parser, add_global_options, make_epilog
from daemoneye_cli.errors import ChildFailedError, UsageError, hint_for
from daemoneye_cli.exit_code import ExitCode, exit_code_of
from daemoneye_cli.invocation import Invocation, Options
from daemoneye_cli.output import Format, Output, encode_json
from daemoneye_cli.text import printable
from daemoneye_mesh.error_interceptor import unwrap
from daemoneye_mesh.errors import DaemoneyeError
from daemoneye_mesh.logs import bind_correlation

__all__ = ["build_parser", "run"]

_COMMANDS = (up, query, events, alerts, rules, collectors, bus, health, tables, inspection)

_DESCRIPTION = """\
DaemonEye watches what runs on this host. Bring the mesh up, ask it in SQL, follow
its events and alerts, and look inside each of its processes."""

_EXAMPLES = (
    "daemoneye up                               the whole mesh in the foreground",
    'daemoneye query "SELECT pid, name, exe FROM processes WHERE uid = 0"',
    "daemoneye events --kind exec               what is executed, as it happens",
    "daemoneye alerts --since 1h --severity high",
    "daemoneye health --format json             for monitoring, with exit status",
    "daemoneye inspect agent                    services and methods of the agent",
)


def run(argv: Sequence[str]) -> ExitCode:
    """Runs one command line and returns its exit status."""
    _prepare_streams()
    try:
        arguments = build_parser().parse_args(list(argv))
    except UsageError as error:
        return _report(error, _fallback_output(argv))
    output = _output(arguments)
    with _logs_to(output):
        return _run_reported(arguments, output)


def _run_reported(arguments: argparse.Namespace, output: Output) -> ExitCode:
    try:
        return asyncio.run(_run_command(arguments, output))
    except KeyboardInterrupt:
        is_endless = getattr(arguments, "is_endless", lambda _: False)(arguments)
        return ExitCode.COMPLETE if is_endless else ExitCode.INTERRUPTED
    except BrokenPipeError:
        _discard_stdout()
        return ExitCode.PIPE_CLOSED
    except Exception as error:
        cause = unwrap(error)
        if isinstance(cause, DaemoneyeError):
            return _report(cause, output)
        if isinstance(cause, BrokenPipeError):
            _discard_stdout()
            return ExitCode.PIPE_CLOSED
        raise


def build_parser() -> Parser:
    """Returns the parser of the whole command line."""
    parser = Parser(prog="daemoneye", description=_DESCRIPTION, epilog=make_epilog(_EXAMPLES))
    version = f"daemoneye {metadata.version('daemoneye-cli')}"
    parser.add_argument("--version", action="version", version=version)
    add_global_options(parser)
    subparsers = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True, parser_class=Parser
    )
    for module in _COMMANDS:
        module.add_parser(subparsers)
    return parser


async def _run_command(arguments: argparse.Namespace, output: Output) -> ExitCode:
    options = Options(
        runtime_dir=getattr(arguments, "runtime_dir", None),
        timeout_s=getattr(arguments, "timeout", None),
        token_file=getattr(arguments, "token_file", None),
    )
    with bind_correlation(uuid.uuid4().hex[:16]):
        code: ExitCode = await arguments.run(Invocation(arguments, options, output))
    output.flush()
    return code


def _output(arguments: argparse.Namespace) -> Output:
    return Output(
        Format(getattr(arguments, "format", Format.TABLE)),
        is_colour_wanted=not getattr(arguments, "no_color", False),
        stdout=sys.stdout,
        stderr=sys.stderr,
    )


def _fallback_output(argv: Sequence[str]) -> Output:
    """The output for a command line that could not be parsed."""
    joined = " ".join(argv)
    is_json = "--format json" in joined or "--format=json" in joined
    chosen = Format.JSON if is_json else Format.TABLE
    return Output(chosen, is_colour_wanted=False, stdout=sys.stdout, stderr=sys.stderr)


def _report(error: DaemoneyeError, output: Output) -> ExitCode:
    code = exit_code_of(error)
    if output.is_json:
        sys.stderr.write(encode_json({"error": describe_error(error)}) + "\n")
        return code
    if isinstance(error, UsageError) and error.usage:
        output.remark(error.usage)
    # Only our own message about a child has lines; one from a peer must not look like several.
    lines = error.message.splitlines() if isinstance(error, ChildFailedError) else [error.message]
    output.remark(f"error: {printable(lines[0])}", style="bold red")
    for line in lines[1:]:
        output.remark(printable(line))
    if hint := hint_for(error):
        output.remark(f"hint: {hint}")
    return code


def describe_error(error: DaemoneyeError) -> dict[str, Any]:
    """Returns an error as a document."""
    document: dict[str, Any] = {
        "code": error.code.name,
        "reason": error.reason.value,
        "message": error.message,
        "metadata": error.metadata,
        "exit_status": int(exit_code_of(error)),
    }
    if hint := hint_for(error):
        document["hint"] = hint
    return document


class _RemarkHandler(logging.Handler):
    """Shows warnings of the SDK, such as a lost subscription, on standard error."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.WARNING)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        self._output.remark(f"warning: {record.getMessage()}", style="yellow")


@contextmanager
def _logs_to(output: Output) -> Iterator[None]:
    logger = logging.getLogger("daemoneye")
    handler, propagate = _RemarkHandler(output), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _prepare_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _discard_stdout() -> None:
    """Keeps the interpreter from complaining again when it flushes at the end."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
