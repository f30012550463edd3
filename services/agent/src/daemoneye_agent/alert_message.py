"""Alerts as messages of the bus and of ``AlertService``."""

import json
from collections.abc import Iterator, Mapping, Sequence

from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_agent.alert import COMPLETE, Alert, Severity
from daemoneye_mesh.completeness import Degradation, DegradedReason
from daemoneye_mesh.completeness_message import to_completeness
from daemoneye_mesh.errors import ErrorReason, InvalidRequestError

__all__ = [
    "describe_degradations",
    "from_severity",
    "parse_degradations",
    "to_alert_message",
    "to_alert_payload",
    "to_severity",
]

SOURCE_ID = "agent"
_MAX_METADATA_CHARS = 1024
_MAX_TEXT_CHARS = 4096
_DEGRADED = "degraded: "


def to_severity(severity: Severity) -> eventbus_pb2.AlertSeverity.ValueType:
    """Returns the enum number of a severity."""
    return eventbus_pb2.AlertSeverity.Value(f"ALERT_SEVERITY_{severity.upper()}")


def from_severity(number: int) -> Severity:
    """Returns the severity of an enum number.

    Raises:
        InvalidRequestError: the number is not known.
    """
    if number not in eventbus_pb2.AlertSeverity.values():
        raise InvalidRequestError(
            f"severity {number} is not known; use 0 (info) to 4 (critical)",
            reason=ErrorReason.ENUM_UNKNOWN,
            number=number,
        )
    name = eventbus_pb2.AlertSeverity.Name(eventbus_pb2.AlertSeverity.ValueType(number))
    return Severity(name.removeprefix("ALERT_SEVERITY_").lower())


def to_alert_payload(
    alert: Alert, degradations: Sequence[Degradation] | None = None
) -> eventbus_pb2.AlertPayload:
    """Returns the message of an alert; its stored completeness stands where none is given."""
    row: dict[str, object] = json.loads(alert.row)
    return eventbus_pb2.AlertPayload(
        alert_id=alert.alert_id,
        severity=to_severity(alert.severity),
        title=alert.title,
        description=alert.description,
        source=str(row.get("source_id") or SOURCE_ID),
        affected_resources=list(_resources(row)),
        metadata={
            name: str(value)[:_MAX_METADATA_CHARS]
            for name, value in row.items()
            if value is not None
        },
        completeness=to_completeness(
            parse_degradations(alert.completeness) if degradations is None else degradations
        ),
        rule_id=alert.rule_id,
        dedup_key=alert.dedup_key,
        count=alert.count,
        first_seen_ns=alert.first_seen_ns,
        last_seen_ns=alert.last_seen_ns,
    )


def to_alert_message(
    alert: Alert, degradations: Sequence[Degradation]
) -> eventbus_pb2.EventBusMessage:
    """Returns the message that is published for an alert."""
    return eventbus_pb2.EventBusMessage(
        metadata=eventbus_pb2.MessageMetadata(
            message_id=f"{alert.alert_id}-{alert.count}",
            topic=alert.topic,
            message_type=eventbus_pb2.MESSAGE_TYPE_ALERT,
            timestamp=alert.last_seen_ns,
            source_id=SOURCE_ID,
        ),
        alert=to_alert_payload(alert, degradations),
    )


def describe_degradations(degradations: Sequence[Degradation]) -> str:
    """Returns the text of the ``completeness`` column, such as ``degraded: polling procmond``."""
    causes = dict.fromkeys(
        f"{one.reason.lower()} {one.subject.replace(',', '')}" for one in degradations
    )
    return f"{_DEGRADED}{', '.join(causes)}"[:_MAX_TEXT_CHARS] if causes else COMPLETE


def parse_degradations(text: str) -> tuple[Degradation, ...]:
    """Returns what ``describe_degradations`` wrote; the sentences were not kept."""
    if text == COMPLETE:
        return ()
    causes = (cause.partition(" ") for cause in text.removeprefix(_DEGRADED).split(", "))
    return tuple(
        Degradation(
            DegradedReason.__members__.get(reason.upper(), DegradedReason.READ_ERRORS),
            subject,
            f"{subject} was degraded ({reason}) when the alert was raised",
        )
        for reason, _, subject in causes
    )


def _resources(row: Mapping[str, object]) -> Iterator[str]:
    identity = [row.get(name) for name in ("boot_id", "pid", "start_ticks")]
    if None not in identity:
        yield f"process:{'/'.join(map(str, identity))}"
    if row.get("exe"):
        yield f"file:{row['exe']}"
