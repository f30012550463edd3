"""Saying whether an answer is whole: on standard error, in the document and in the exit status."""

from daemoneye.common.v1 import completeness_pb2
from daemoneye_cli.document import Document
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.output import Output
from daemoneye_mesh.completeness import Degradation
from daemoneye_mesh.completeness_message import from_completeness

__all__ = ["exit_code_for", "read_completeness", "report_degradations", "to_completeness_document"]


def read_completeness(
    message: completeness_pb2.Completeness, subject: str
) -> tuple[Degradation, ...]:
    """Returns what is missing, as ``daemoneye_mesh.completeness_message`` reads it."""
    return from_completeness(message, subject)


def to_completeness_document(degradations: tuple[Degradation, ...]) -> Document:
    """Returns the JSON form."""
    return {
        "state": "degraded" if degradations else "complete",
        "causes": [
            {"reason": one.reason.value.lower(), "subject": one.subject, "message": one.message}
            for one in degradations
        ],
    }


def report_degradations(output: Output, degradations: tuple[Degradation, ...]) -> None:
    """Tells a person what is missing; with JSON it stands in the document."""
    if output.is_json:
        return
    for one in degradations:
        output.remark(f"degraded: {describe(one)}", style="yellow")


def describe(degradation: Degradation) -> str:
    """Returns one sentence about what is missing."""
    return f"{degradation.subject}: {degradation.reason.value.lower()}: {degradation.message}"


def exit_code_for(degradations: tuple[Degradation, ...]) -> ExitCode:
    """Returns the exit status of an answer."""
    return ExitCode.DEGRADED if degradations else ExitCode.COMPLETE
