"""How many messages a second each identity may publish, on which topics, and all of them together.

Token buckets: a bucket holds up to ``burst`` messages and gains ``messages_per_s``. The rule for a
message is the most specific one: the exact identity before ``kind/+`` before ``+``, then the
longest topic prefix. Each identity has a bucket of its own for each rule that applies to it; one
more bucket is everybody's. Invariant: over any stretch of time an identity gets through a rule at
most ``burst + messages_per_s * seconds`` messages, and what one batch alone has beyond the burst;
a batch passes all its buckets or takes from none.

A batch that is larger than the burst passes when the bucket is full and leaves it in debt, so that
it is slowed down like the rest but never refused for ever.
"""

import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from daemoneye_mesh.errors import InvalidConfigError, InvalidRequestError, RateLimitedError
from daemoneye_mesh.identity import Identity, IdentityKind
from daemoneye_mesh.topic import InvalidTopicError, validate_topic

__all__ = ["InvalidRateLimitError", "RateLimit", "RateLimiter", "parse_rate_limit"]

MIN_MESSAGES_PER_S = 0.001
MAX_MESSAGES_PER_S = 100_000_000
MAX_BURST = 1_000_000_000
MAX_REMEMBERED_TOPICS = 8_192
"""Pairs of identity and topic whose rule is remembered."""

EVERYBODY = "+"
UNIT = "messages/s"

_EXAMPLE = "collector/+ events.process 200000/s burst 400000"
_RULE = re.compile(
    r"(?P<identity>\S+)(?:\s+(?P<prefix>\S+))?"
    r"\s+(?P<rate>[0-9]{1,12}(?:\.[0-9]{1,6})?)/s(?:\s+burst\s+(?P<burst>[0-9]{1,12}))?"
)

_TOLERANCE_S = 1e-6
"""Of rounding in floating-point clocks: whoever waits as long as told must not be told again. It is
one message at a million a second, and does not add up because a bucket is charged exactly."""


class InvalidRateLimitError(InvalidConfigError):
    """A rate limit cannot be obeyed as it is written; the operator must change it."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """One rule: who may publish how fast below a topic.

    Args:
        identity: ``kind/id``, ``kind/+`` for all of a kind, or ``+`` for all.
        topic_prefix: whole segments such as ``events.process``; empty for all topics.
        messages_per_s: of each identity for itself.
        burst: messages at once after a rest. Make it several times the largest batch, 10,000
            messages: a batch near the burst has to wait until the bucket is nearly full.

    Raises:
        InvalidRateLimitError: a part is malformed or out of range.
    """

    identity: str
    topic_prefix: str
    messages_per_s: float
    burst: int

    def __post_init__(self) -> None:
        _check_identity(self.identity)
        _check_prefix(self.topic_prefix)
        _check_range("rate", self.messages_per_s, MIN_MESSAGES_PER_S, MAX_MESSAGES_PER_S)
        _check_range("burst", self.burst, 1, MAX_BURST)


def parse_rate_limit(text: str) -> RateLimit:
    """Reads a rule such as ``collector/+ events.process 200000/s burst 400000``.

    The topic prefix may be left out and means all topics then; the burst too, it is then twice the
    messages of a second.

    Raises:
        InvalidRateLimitError: malformed; the message says how to write it.
    """
    found = _RULE.fullmatch(text.strip())
    if found is None:
        shown = ascii(text[:120])
        raise InvalidRateLimitError(
            f"the rate limit {shown} is not understood; write it like '{_EXAMPLE}'",
            text=shown,
            example=_EXAMPLE,
        )
    rate = float(found["rate"])
    burst = int(found["burst"]) if found["burst"] else _default_burst(rate)
    return RateLimit(found["identity"], found["prefix"] or "", rate, burst)


class RateLimiter:
    """Admits or refuses batches.

    Memory is bounded by ``max_buckets``, and forgetting grants nothing. Only buckets that are not
    full are stored: one that is not there is full, so one that has refilled is forgotten without a
    trace. When all places are taken by buckets that still owe, a newcomer shares one bucket per
    rule with the other newcomers, and a bucket of its own begins with the debt of the shared one.
    Under such a crowd some identities get less than their rule says; none ever gets more.

    Args:
        rules: at most one for each pair of identity and topic prefix.
        global_rate: messages a second of all identities together, and twice that at once after a
            rest; None for no such bound.
        monotonic: the clock, in seconds.
        max_buckets: buckets stored at a time.

    Raises:
        InvalidRateLimitError: two rules are for the same identity and topic prefix, or the global
            rate is out of range.
    """

    def __init__(
        self,
        rules: Iterable[RateLimit] = (),
        global_rate: float | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        max_buckets: int = 4_096,
    ) -> None:
        self._meters = _by_identity(rules)
        self._global = _global_meter(global_rate)
        self._monotonic = monotonic
        self._buckets = _BucketTable(max_buckets)
        self._meter_of = lru_cache(maxsize=MAX_REMEMBERED_TOPICS)(self._find_meter)

    @property
    def is_open(self) -> bool:
        """Whether nothing is limited, so that nobody need count messages by topic."""
        return not self._meters and self._global is None

    def admit(self, identity: str, counts_by_topic: Mapping[str, int]) -> None:
        """Takes a whole batch from the buckets of its publisher and of everybody, or nothing.

        Args:
            identity: the publisher, ``kind/id``.
            counts_by_topic: the messages of the batch; the topics are valid ones.

        Raises:
            RateLimitedError: a bucket lacks messages; the error says when the same batch will fit
                if nothing else is taken meanwhile.
        """
        if self.is_open:
            return
        now_s = self._monotonic()
        charges = self._charges(identity, counts_by_topic)
        late_s, meter = 0.0, None
        for key, count in charges.items():
            fits_in_s = key[1].fits_at(self._buckets.full_at(key), count) - now_s
            if fits_in_s > late_s:
                late_s, meter = fits_in_s, key[1]
        if meter is not None and late_s > _TOLERANCE_S:
            raise _refusal(identity, meter, late_s)
        for key, count in charges.items():
            self._buckets.charge(key, count, now_s)

    def _charges(self, identity: str, counts_by_topic: Mapping[str, int]) -> "dict[_Key, int]":
        counts: dict[_Key, int] = {}
        for topic, count in counts_by_topic.items():
            meter = self._meter_of(identity, topic)
            if meter is not None:
                key = (identity, meter)
                counts[key] = counts.get(key, 0) + count
        if self._global is not None:
            counts[EVERYBODY, self._global] = sum(counts_by_topic.values())
        return counts

    def _find_meter(self, identity: str, topic: str) -> "_Meter | None":
        kind = identity.partition("/")[0]
        for pattern in (identity, f"{kind}/+", EVERYBODY):
            meters = self._meters.get(pattern)
            meter = _longest(meters, topic) if meters else None
            if meter is not None:
                return meter
        return None


class _Meter:
    """One rule, with the bucket of those who have none of their own.

    A bucket is one number, the time at which it will be full: that needs no refilling.
    """

    __slots__ = ("burst", "is_global", "messages_per_s", "shared_full_at", "topic_prefix")

    def __init__(self, rule: RateLimit, *, is_global: bool = False) -> None:
        self.topic_prefix = rule.topic_prefix
        self.messages_per_s = rule.messages_per_s
        self.burst = rule.burst
        self.is_global = is_global
        self.shared_full_at = -math.inf

    def fits_at(self, full_at: float, count: int) -> float:
        """When so many messages are in a bucket, or it is full."""
        return full_at - (self.burst - min(count, self.burst)) / self.messages_per_s


_Key = tuple[str, _Meter]


class _BucketTable:
    """The buckets that are not full, least recently used first."""

    def __init__(self, max_buckets: int) -> None:
        self._max_buckets = max_buckets
        self._full_at: OrderedDict[_Key, float] = OrderedDict()

    def full_at(self, key: _Key) -> float:
        """Returns when the bucket will be full; the shared one's time where there is no own."""
        own = self._full_at.get(key)
        return key[1].shared_full_at if own is None else own

    def charge(self, key: _Key, count: int, now_s: float) -> None:
        """Takes messages from a bucket, into debt if need be."""
        full_at = max(now_s, self.full_at(key)) + count / key[1].messages_per_s
        if key in self._full_at or self._has_room(now_s):
            self._full_at[key] = full_at
            self._full_at.move_to_end(key)
        else:
            key[1].shared_full_at = full_at

    def _has_room(self, now_s: float) -> bool:
        if len(self._full_at) < self._max_buckets:
            return True
        oldest, full_at = next(iter(self._full_at.items()))
        if full_at <= now_s:
            del self._full_at[oldest]
            return True
        # To the back with it: one that owes for hours must not hide those that have refilled.
        self._full_at.move_to_end(oldest)
        return False


def _by_identity(rules: Iterable[RateLimit]) -> dict[str, dict[str, _Meter]]:
    meters: dict[str, dict[str, _Meter]] = {}
    for rule in rules:
        by_prefix = meters.setdefault(rule.identity, {})
        if rule.topic_prefix in by_prefix:
            raise InvalidRateLimitError(
                f"{rule.identity} has two rate limits on {_place(rule.topic_prefix)}; leave one",
                identity=rule.identity,
                topic_prefix=rule.topic_prefix,
            )
        by_prefix[rule.topic_prefix] = _Meter(rule)
    return meters


def _global_meter(rate: float | None) -> _Meter | None:
    if rate is None:
        return None
    return _Meter(RateLimit(EVERYBODY, "", rate, _default_burst(rate)), is_global=True)


def _longest(meters: Mapping[str, _Meter], topic: str) -> _Meter | None:
    prefix = topic
    while prefix and prefix not in meters:
        prefix = prefix.rpartition(".")[0]
    return meters.get(prefix)


def _refusal(identity: str, meter: _Meter, late_s: float) -> RateLimitedError:
    retry_after_ms = math.ceil(late_s * 1_000)
    limit = f"{meter.messages_per_s:.15g}"
    who = "all identities together" if meter.is_global else identity
    return RateLimitedError(
        f"{who} may publish {limit} {UNIT} on {_place(meter.topic_prefix)}; "
        f"wait {retry_after_ms} ms, then send the batch again",
        retry_after_s=late_s,
        identity=identity,
        topic_prefix=meter.topic_prefix,
        limit=limit,
        unit=UNIT,
        retry_after_ms=retry_after_ms,
        scope="global" if meter.is_global else "identity",
    )


def _place(topic_prefix: str) -> str:
    return topic_prefix or "all topics"


def _default_burst(messages_per_s: float) -> int:
    if (
        not messages_per_s < MAX_BURST
    ):  # out of range, as the check of the rate will say; also a NaN
        return MAX_BURST
    return max(1, math.ceil(2 * messages_per_s))


def _check_range(what: str, value: float, minimum: float, maximum: float) -> None:
    if not minimum <= value <= maximum:
        raise InvalidRateLimitError(
            f"the {what} {value} of a rate limit is out of range; use {minimum} to {maximum}",
            what=what,
            value=value,
            minimum=minimum,
            maximum=maximum,
        )


def _check_identity(pattern: str) -> None:
    kind, slash, own_id = pattern.partition("/")
    if pattern == EVERYBODY:
        return
    try:
        if not slash:
            raise InvalidRequestError("it has no '/'")
        Identity("any", IdentityKind(kind), "any" if own_id == EVERYBODY else own_id)
    except (InvalidRequestError, ValueError):
        shown, kinds = ascii(pattern[:80]), ", ".join(IdentityKind)
        raise InvalidRateLimitError(
            f"a rate limit is for {shown}, which is no identity; write kind/id, kind/+ or + "
            f"with one of the kinds {kinds}",
            identity=shown,
            kinds=kinds,
        ) from None


def _check_prefix(prefix: str) -> None:
    if not prefix:
        return
    try:
        validate_topic(prefix)
    except InvalidTopicError as error:
        shown = ascii(prefix[:80])
        raise InvalidRateLimitError(
            f"a rate limit is for topics below {shown}: {error.metadata['problem']}; write whole "
            "segments such as events.process without wildcards, or leave it out for all topics",
            topic_prefix=shown,
            problem=error.metadata["problem"],
        ) from None
