"""Which request for an analysis is passed on next, to whom, and which is given up; no I/O.

Invariants: what waits is bounded in number and bytes; a target never has more analyses under way than
it offers, all targets together never more than ``max_active``; the urgent go first. A request that
cannot be delivered is given up ``patience_s`` after that first showed.
"""

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from daemoneye_agent.retry_pace import RetryPace
from daemoneye_agent.workflow_record import Asked, Cause

__all__ = ["Offer", "Order", "Presence", "Probe", "Start", "WorkQueue"]

MAX_ORDERS = 1_000
MAX_BYTES = 16 << 20
MAX_ACTIVE = 16
UNKNOWN_LIMIT = 4
"""Analyses at once of a target that does not say how many it can do."""
PATIENCE_S = 300.0
FIRST_RETRY_S = 0.5
MAX_RETRY_S = 15.0

Presence = Callable[[str], "int | Cause"]
"""Tells which instance of a collector is in service, or why none is."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a collector said it can do."""

    analyses: frozenset[int] | None = None
    """Numbers of ``AnalysisType``; None when it did not say."""
    limit: int = UNKNOWN_LIMIT


@dataclass(slots=True, eq=False)
class Order:
    """One request that is to be passed on."""

    asked: Asked
    encoded: bytes
    """The request as it is sent."""
    analysis: int
    """Number of ``AnalysisType``."""
    urgency: int
    """Higher goes first."""
    queued_s: float
    pace: RetryPace
    failing_since_s: float | None = None
    cause: Cause | None = None
    """Why the latest attempt came to nothing."""

    @property
    def target(self) -> str:
        """Collector that is to be asked."""
        return self.asked.target_collector

    @property
    def rank(self) -> tuple[int, int]:
        """Where it stands in the line."""
        return -self.urgency, self.asked.event_id

    def fail(self, cause: Cause, now_s: float) -> None:
        """Takes note of an attempt that came to nothing."""
        self.cause = cause
        if self.failing_since_s is None:
            self.failing_since_s = now_s
        self.pace.fail(now_s)


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask a collector what it offers."""

    target: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Start:
    """Pass a request on."""

    order: Order


@dataclass(slots=True)
class _Target:
    """A collector as far as it was asked; ``epoch`` is the instance that made the offer."""

    pace: RetryPace
    epoch: int | None = None
    offer: Offer = Offer()
    active: int = 0
    is_probed: bool = False
    failing_since_s: float | None = None
    cause: Cause | None = None

    @property
    def has_room(self) -> bool:
        if self.is_probed:
            return False
        return self.epoch is None or self.active < self.offer.limit

    def offers(self, analysis: int) -> bool:
        return self.offer.analyses is None or analysis in self.offer.analyses

    def fail(self, cause: Cause, now_s: float) -> None:
        self.cause, self.epoch = cause, None
        if self.failing_since_s is None:
            self.failing_since_s = now_s
        self.pace.fail(now_s)


class WorkQueue:
    """Requests that wait and the targets they wait for.

    Args:
        presence: whether a target is in service.
        jitter: a number from 0 to 1, to spread retries.
        max_orders: requests that wait or are under way.
        max_bytes: their size as they are sent.
        max_active: calls to collectors at once.
        patience_s: how long a request waits for a target that cannot be asked.
    """

    def __init__(
        self,
        presence: Presence,
        jitter: Callable[[], float],
        *,
        max_orders: int = MAX_ORDERS,
        max_bytes: int = MAX_BYTES,
        max_active: int = MAX_ACTIVE,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._presence = presence
        self._jitter = jitter
        self._max_orders, self._max_bytes = max_orders, max_bytes
        self._max_active = max_active
        self._patience_s = patience_s
        self._orders: list[Order] = []
        self._targets: dict[str, _Target] = {}
        self._size_bytes = 0
        self._started = 0
        self._probes = 0

    def __len__(self) -> int:
        return len(self._orders)

    @property
    def active(self) -> int:
        """Calls that are under way."""
        return self._started + self._probes

    def make_pace(self) -> RetryPace:
        """Returns how a new order is to be tried again."""
        return RetryPace(FIRST_RETRY_S, MAX_RETRY_S, self._jitter)

    def add(self, order: Order) -> tuple[Order, ...]:
        """Takes a request in; returns what has no room: the request itself, or others.

        Requests that wait for somebody who cannot be asked make room for those that need not.
        """
        victims = self._find_victims(order)
        if victims is None:
            return (order,)
        self._remove(victims)
        self._size_bytes += len(order.encoded)
        self._put(order)
        return victims

    def next_step(self, now_s: float) -> Probe | Start | None:
        """Returns what to do now and counts it as under way; None when there is nothing."""
        if self.active >= self._max_active:
            return None
        for index, order in enumerate(self._orders):
            target = self._targets[order.target]
            if not target.has_room or not target.pace.is_due(now_s):
                continue
            if not order.pace.is_due(now_s):
                continue
            epoch = self._presence(order.target)
            if isinstance(epoch, Cause):
                target.fail(epoch, now_s)
            elif target.epoch != epoch:
                target.is_probed = True
                self._probes += 1
                return Probe(order.target, epoch)
            elif not target.offers(order.analysis):
                order.fail(Cause.NOT_OFFERED, now_s)
            else:
                del self._orders[index]
                target.active += 1
                self._started += 1
                return Start(order)
        return None

    def note_offer(self, probe: Probe, offer: Offer) -> None:
        """Takes over what an instance offers."""
        target = self._end_probe(probe)
        target.epoch, target.offer = probe.epoch, offer
        target.failing_since_s = target.cause = None
        target.pace.reset()

    def note_unreached(self, probe: Probe, cause: Cause, now_s: float) -> None:
        """Takes note that a target could not be asked what it offers."""
        self._end_probe(probe).fail(cause, now_s)
        self._prune(probe.target)

    def put_back(self, order: Order, cause: Cause, now_s: float) -> None:
        """Lets a request wait again; one that could not be delivered makes its target be probed."""
        self._end(order)
        order.fail(cause, now_s)
        target = self._targets[order.target]
        if cause is Cause.UNREACHABLE:
            target.epoch = None
        self._size_bytes += len(order.encoded)
        self._put(order)

    def finish(self, order: Order) -> None:
        """Forgets a request that was passed on and answered."""
        self._end(order)
        self._prune(order.target)

    def hasten(self, target_id: str) -> None:
        """Tries again at once what waits for a target, since that has changed."""
        target = self._targets.get(target_id)
        if target is None:
            return
        target.pace.reset()
        for order in self._orders:
            if order.target == target_id:
                order.pace.reset()

    def take_expired(self, now_s: float) -> list[tuple[Order, Cause]]:
        """Removes and returns what is given up, with the reason."""
        expired = [
            (order, cause)
            for order in self._orders
            if (cause := self._find_expired(order, now_s)) is not None
        ]
        self._remove([order for order, _ in expired])
        return expired

    def _find_victims(self, order: Order) -> tuple[Order, ...] | None:
        """What has to go for an order, the least urgent and latest first; None when it has to."""
        row_excess = len(self._orders) + self._started + 1 - self._max_orders
        byte_excess = self._size_bytes + len(order.encoded) - self._max_bytes
        if row_excess <= 0 and byte_excess <= 0:
            return ()
        if self._is_stuck(order):
            return None
        victims: list[Order] = []
        for other in filter(self._is_stuck, reversed(self._orders)):
            victims.append(other)
            byte_excess -= len(other.encoded)
            if len(victims) >= row_excess and byte_excess <= 0:
                return tuple(victims)
        return None

    def _is_stuck(self, order: Order) -> bool:
        """Whether it waits, or would wait, for somebody who cannot be asked."""
        if order.failing_since_s is not None:
            return True
        target = self._targets.get(order.target)
        if target is None or target.epoch is None:
            return isinstance(self._presence(order.target), Cause)
        return target.failing_since_s is not None

    def _remove(self, orders: Sequence[Order]) -> None:
        if not orders:
            return
        gone = {id(order) for order in orders}
        self._orders = [order for order in self._orders if id(order) not in gone]
        self._size_bytes -= sum(len(order.encoded) for order in orders)
        for target_id in {order.target for order in orders}:
            self._prune(target_id)

    def _find_expired(self, order: Order, now_s: float) -> Cause | None:
        target = self._targets[order.target]
        own_s, its_s = order.failing_since_s, target.failing_since_s
        if own_s is not None and now_s - own_s >= self._patience_s:
            return target.cause or order.cause
        if its_s is not None and now_s - max(its_s, order.queued_s) >= self._patience_s:
            return target.cause
        return None

    def _put(self, order: Order) -> None:
        insort(self._orders, order, key=lambda one: one.rank)
        if order.target not in self._targets:
            self._targets[order.target] = _Target(self.make_pace())

    def _end(self, order: Order) -> None:
        self._targets[order.target].active -= 1
        self._started -= 1
        self._size_bytes -= len(order.encoded)

    def _end_probe(self, probe: Probe) -> _Target:
        target = self._targets[probe.target]
        target.is_probed = False
        self._probes -= 1
        return target

    def _prune(self, target_id: str) -> None:
        """Forgets a target that nobody asks for, unless its offer is known."""
        target = self._targets[target_id]
        is_busy = target.epoch is not None or target.active or target.is_probed
        if not is_busy and not any(order.target == target_id for order in self._orders):
            del self._targets[target_id]
