"""What the broker does by the clock: what is due, and telling what it refused.

Refusals of a period are published in one message a kind, on a control topic for the audit ledger, so
that whoever floods the broker with refused calls does not flood the ledger too.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_eventbus.broker import Broker
from daemoneye_eventbus.group import Envelope, Group
from daemoneye_eventbus.refusals import Refusal, RefusalLog
from daemoneye_eventbus.service_group import make_group
from daemoneye_eventbus.tracker import Tracker
from daemoneye_mesh.identity import Identity

__all__ = ["REFUSAL_TOPIC", "Upkeep"]

REFUSAL_TOPIC = "control.audit.refusals"
SWEEP_S = 0.1
REPORT_S = 1.0

log = logging.getLogger("daemoneye.eventbus")


class Upkeep:
    """Runs beside the server.

    Args:
        broker: swept.
        tracker: swept.
        refusals: reported.
        identity: of the broker, as which it publishes.
    """

    def __init__(
        self,
        broker: Broker,
        tracker: Tracker,
        refusals: RefusalLog,
        identity: Identity,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._broker = broker
        self._tracker = tracker
        self._refusals = refusals
        self._identity = identity
        self._wall_ns = wall_ns

    async def run(self) -> None:
        """Sweeps and reports until cancelled."""
        reported_s = time.monotonic()
        while True:
            await asyncio.sleep(SWEEP_S)
            self._broker.sweep()
            now_s = time.monotonic()
            if now_s - reported_s >= REPORT_S:
                reported_s = now_s
                self._tracker.sweep(now_s)
                await self.report()

    async def report(self) -> None:
        """Publishes what was refused since the last report."""
        refusals = self._refusals.collect()
        if refusals:
            groups = [self._encode(refusal) for refusal in refusals]
            await self._broker.publish(self._identity.name, groups)

    def _encode(self, refusal: Refusal) -> Group:
        message = eventbus_pb2.EventBusMessage(
            metadata=eventbus_pb2.MessageMetadata(timestamp=self._wall_ns()),
            control_message=eventbus_pb2.ControlMessagePayload(
                operation=eventbus_pb2.CONTROL_OPERATION_STATUS_REPORT,
                parameters={
                    "identity": refusal.identity,
                    "action": refusal.action,
                    "reason": str(refusal.reason),
                    "target": refusal.target,
                    "count": str(refusal.count),
                },
            ),
        )
        envelope = Envelope(
            topic=REFUSAL_TOPIC,
            source_id=self._identity.id,
            message_type=eventbus_pb2.MESSAGE_TYPE_CONTROL_MESSAGE,
        )
        return make_group(envelope, [message.SerializeToString()])
