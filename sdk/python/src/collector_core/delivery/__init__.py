"""From ``emit`` to the broker by way of the log: intake, committer, feeder.

``emit`` numbers an event and buffers it; the committer writes what is buffered to the log, as one
group commit; the feeder hands what is in the log to the outbox that the publisher sends from, from
memory while the broker keeps up and from disk when it does not. The agent's ``Acknowledge`` lets go of
the log, its ``Replay`` has a range sent again.
"""

from collector_core.delivery.pipeline import Delivery, DeliveryBounds, ReplayAnswer
from collector_core.delivery.pressure import Pressure

__all__ = ["Delivery", "DeliveryBounds", "Pressure", "ReplayAnswer"]
