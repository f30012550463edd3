"""``daemoneye rules``: list, read, check and switch detection rules."""

import asyncio
import sys
from pathlib import Path

from daemoneye.agent.v1 import rule_service_pb2, rule_service_pb2_grpc
from daemoneye_cli.alert_line import severity_name, severity_style
from daemoneye_cli.arguments import Parser, Subparsers, add_command
from daemoneye_cli.calls import ask
from daemoneye_cli.document import Document, to_document
from daemoneye_cli.errors import UsageError
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.invocation import Invocation
from daemoneye_cli.output import Column, Listing, Output, Styled
from daemoneye_mesh.errors import ErrorReason
from daemoneye_mesh.rpc_status import from_detail

__all__ = ["add_parser", "list_rules", "set_rule", "show_rule", "validate_rule"]

MAX_DOCUMENT_BYTES = 64 * 1024
_CALL_TIMEOUT_S = 5.0
_VALIDATE_TIMEOUT_S = 10.0

_DESCRIPTION = """\
Lists the rules the agent runs, with how often each matched and failed. A rule is
one SELECT that runs on every batch of new events; it carries samples that it must
and must not match, which 'rules validate' runs through the real path."""

_EXAMPLES = (
    "daemoneye rules",
    "daemoneye rules show reverse-shell",
    "daemoneye rules validate my-rule.toml",
    "daemoneye rules disable crypto-miner",
)

_COLUMNS = (
    Column("rule_id", "rule"),
    Column("severity", "severity"),
    Column("state", "state"),
    Column("match_count", "matches", "right"),
    Column("failure_count", "failures", "right"),
    Column("title", "title"),
)


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "rules",
        summary="list, check and switch rules",
        description=_DESCRIPTION,
        run=list_rules,
        examples=_EXAMPLES,
    )
    nested = parser.add_subparsers(title="actions", metavar="ACTION", parser_class=Parser)
    add_command(
        nested,
        "list",
        summary="list rules (default)",
        description=_DESCRIPTION,
        run=list_rules,
        examples=_EXAMPLES,
    )
    _add_show(nested)
    _add_validate(nested)
    _add_switch(nested, "enable", is_enabled=True)
    _add_switch(nested, "disable", is_enabled=False)


def _add_show(nested: Subparsers) -> None:
    show = add_command(
        nested,
        "show",
        summary="read one rule",
        description="Shows one rule with its SQL, its counters and its last failure.",
        run=show_rule,
        examples=("daemoneye rules show reverse-shell",),
    )
    show.add_argument("rule_id", metavar="ID", help="id of the rule")


def _add_validate(nested: Subparsers) -> None:
    validate = add_command(
        nested,
        "validate",
        summary="check a rule document",
        description=(
            "Checks a rule document and runs its samples, without loading it. An invalid one is\n"
            "exit status 5."
        ),
        run=validate_rule,
        examples=("daemoneye rules validate my-rule.toml", "daemoneye rules validate - < r.toml"),
    )
    validate.add_argument("file", metavar="FILE", help="TOML file; '-' is standard input")


def _add_switch(nested: Subparsers, name: str, *, is_enabled: bool) -> None:
    parser = add_command(
        nested,
        name,
        summary=f"{name} a rule",
        description=f"Will {name} one rule. The choice survives restarts of the agent.",
        run=set_rule,
        examples=(f"daemoneye rules {name} crypto-miner",),
    )
    parser.add_argument("rule_id", metavar="ID", help="id of the rule")
    parser.set_defaults(is_enabled=is_enabled)


async def list_rules(invocation: Invocation) -> ExitCode:
    """Runs ``rules`` and ``rules list``."""
    async with invocation.session() as session:
        link = await session.agent()
        stub = rule_service_pb2_grpc.RuleServiceStub(link.channel)
        request = rule_service_pb2.ListRulesRequest()
        answer = await ask(stub.ListRules, request, link.peer, session.timeout_s(_CALL_TIMEOUT_S))
    rows = [_rule_document(rule) for rule in answer.rules]
    invocation.output.show_listing(Listing("rules", _COLUMNS, rows))
    return ExitCode.COMPLETE


async def show_rule(invocation: Invocation) -> ExitCode:
    """Runs ``rules show``."""
    async with invocation.session() as session:
        link = await session.agent()
        stub = rule_service_pb2_grpc.RuleServiceStub(link.channel)
        request = rule_service_pb2.GetRuleRequest(rule_id=invocation.arguments.rule_id)
        answer = await ask(stub.GetRule, request, link.peer, session.timeout_s(_CALL_TIMEOUT_S))
    invocation.output.show_record(_rule_document(answer.rule))
    return ExitCode.COMPLETE


async def set_rule(invocation: Invocation) -> ExitCode:
    """Runs ``rules enable`` and ``rules disable``."""
    async with invocation.session() as session:
        link = await session.agent()
        stub = rule_service_pb2_grpc.RuleServiceStub(link.channel)
        request = rule_service_pb2.SetRuleEnabledRequest(
            rule_id=invocation.arguments.rule_id, is_enabled=invocation.arguments.is_enabled
        )
        timeout_s = session.timeout_s(_CALL_TIMEOUT_S)
        answer = await ask(stub.SetRuleEnabled, request, link.peer, timeout_s)
    if invocation.output.is_table:
        state = "enabled" if answer.rule.is_enabled else "disabled"
        invocation.output.remark(f"rule {answer.rule.rule_id} is {state}")
    else:
        invocation.output.show_record(_rule_document(answer.rule))
    return ExitCode.COMPLETE


async def validate_rule(invocation: Invocation) -> ExitCode:
    """Runs ``rules validate``."""
    document = await asyncio.to_thread(_read_document, invocation.arguments.file)
    async with invocation.session() as session:
        link = await session.agent()
        stub = rule_service_pb2_grpc.RuleServiceStub(link.channel)
        request = rule_service_pb2.ValidateRuleRequest(document=document)
        timeout_s = session.timeout_s(_VALIDATE_TIMEOUT_S)
        answer = await ask(stub.ValidateRule, request, link.peer, timeout_s)
    _show_verdict(invocation.output, answer)
    return ExitCode.COMPLETE if answer.is_valid else ExitCode.INVALID


def _rule_document(rule: rule_service_pb2.Rule) -> Document:
    state = Styled("enabled", "green") if rule.is_enabled else Styled("disabled", "dim")
    return {
        **to_document(rule),
        "severity": severity_style(severity_name(rule.severity)),
        "state": state,
    }


def _read_document(name: str) -> str:
    try:
        if name == "-":
            content = sys.stdin.buffer.read(MAX_DOCUMENT_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                content = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        why = (error.strerror or "unknown reason").lower()
        raise UsageError(
            f"cannot read {name} ({why}); check the path",
            reason=ErrorReason.FILE_UNUSABLE,
            file=name,
        ) from None
    if len(content) > MAX_DOCUMENT_BYTES:
        raise UsageError(
            f"{name} is larger than {MAX_DOCUMENT_BYTES} bytes; a rule is smaller", file=name
        )
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not UTF-8; save it as UTF-8", file=name) from None


def _show_verdict(output: Output, answer: rule_service_pb2.ValidateRuleResponse) -> None:
    problems = [from_detail(detail) for detail in answer.errors]
    if output.is_json:
        errors = [
            {"reason": one.reason.value, "message": one.message, "metadata": one.metadata}
            for one in problems
        ]
        output.write_document({**to_document(answer), "errors": errors})
        return
    if not output.is_table:
        output.write_csv(["kind", "message"])
        for one in problems:
            output.write_csv(["error", one.message])
        for failure in answer.sample_failures:
            output.write_csv(["sample", failure])
        return
    for one in problems:
        output.remark(f"error: {one.message}", style="bold red")
    for failure in answer.sample_failures:
        output.remark(f"sample: {failure}", style="red")
    verdict = "valid" if answer.is_valid else "not valid"
    output.remark(f"the rule is {verdict}; {answer.sample_count} samples ran")
