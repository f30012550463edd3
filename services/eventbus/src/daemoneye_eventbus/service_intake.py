"""Takes one publisher's batches in: reads, checks, and hands them to the broker.

Invariant: a batch that breaks any rule is refused whole, before anything of it is delivered, and
every message of it counts as refused under the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_eventbus.broker import Broker
from daemoneye_eventbus.group import Group
from daemoneye_eventbus.rate_limit import RateLimiter
from daemoneye_eventbus.receipt import Receipt
from daemoneye_eventbus.refusals import RefusalLog
from daemoneye_eventbus.service_envelope import EnvelopeReader, count_messages
from daemoneye_eventbus.tracker import Tracker
from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.errors import (
    DaemoneyeError,
    ErrorReason,
    InvalidRequestError,
    PermissionDeniedError,
)
from daemoneye_mesh.identity import Caller

__all__ = ["Accepted", "Intake", "IntakeRules"]

_ASSURANCES = frozenset(eventbus_pb2.PublishAssurance.values())


@dataclass(frozen=True, slots=True)
class IntakeRules:
    """What every batch is held to, and who keeps book.

    Args:
        access: who may use which topics.
        rates: how fast.
        refusals: told of every refusal.
        tracker: told of what is accepted with a correlation.
    """

    access: AccessTable
    rates: RateLimiter
    refusals: RefusalLog
    tracker: Tracker


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a batch that was not refused."""

    count: int
    routed_count: int
    receipt: Receipt | None
    """To be waited for before the batch is answered; None when it can be answered now."""


class Intake:
    """Takes the batches of one publisher.

    Args:
        broker: delivers.
        publisher: the verified identity.
        rules: what its batches are held to.
    """

    def __init__(self, broker: Broker, publisher: Caller, rules: IntakeRules) -> None:
        self._broker = broker
        self._publisher = publisher
        self._name = publisher.identity.name
        self._rules = rules
        self._reader = EnvelopeReader(publisher.identity.id)

    async def accept(
        self, messages: Sequence[bytes], groups: Sequence[bytes], assurance: int
    ) -> Accepted:
        """Publishes one batch of encoded messages and groups.

        Raises:
            DaemoneyeError: why it is refused; nothing of it was delivered.
        """
        found: list[Group] = []
        try:
            self._broker.require_open()
            receipt = _receipt_for(assurance)
            found = self._reader.read(messages, groups)
            self._judge(found)
            routed = await self._broker.publish(self._name, found, receipt)
        except DaemoneyeError as refusal:
            count = sum(group.count for group in found) or count_messages(messages, groups)
            self._note(refusal, count)
            raise
        for group in found:
            if group.envelope.correlation is not None:
                self._rules.tracker.track(group.envelope)
        return Accepted(sum(group.count for group in found), routed, receipt)

    def refuse(self, refusal: DaemoneyeError) -> None:
        """Counts a batch that could not even be read."""
        self._note(refusal, 1)

    def _judge(self, groups: Sequence[Group]) -> None:
        counts: dict[str, int] = {}
        for group in groups:
            counts[group.topic] = counts.get(group.topic, 0) + group.count
        for topic in counts:
            self._rules.access.require_publish(self._publisher, topic)
        self._rules.rates.admit(self._name, counts)

    def _note(self, refusal: DaemoneyeError, count: int) -> None:
        # The access table has told the log of what it refused itself; here go the counts.
        is_noted = isinstance(refusal, PermissionDeniedError) and "topic" in refusal.metadata
        target = refusal.metadata.get("topic", "")
        self._rules.refusals.count(self._name, refusal.reason, count)
        if not is_noted:
            self._rules.refusals.note(self._name, "publish", refusal.reason, target)


def _receipt_for(assurance: int) -> Receipt | None:
    if assurance not in _ASSURANCES:
        raise InvalidRequestError(
            f"assurance {assurance} is unknown; use a value of PublishAssurance",
            reason=ErrorReason.ENUM_UNKNOWN,
            assurance=assurance,
        )
    return Receipt() if assurance == eventbus_pb2.PUBLISH_ASSURANCE_ACKNOWLEDGED else None
