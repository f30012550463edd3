"""What was refused to whom, for the counters of the broker and for the audit.

Refusals are noted one by one for the audit, whatever was refused; refused messages are counted, many
at once, for the counters. Invariant: every refusal noted is collected exactly once, and every message
counted is in exactly one total; names beyond the bounds are added up under ``OTHER``, whatever peers
send.
"""

from dataclasses import dataclass

from daemoneye_eventbus.tally import OTHER
from daemoneye_mesh.errors import ErrorReason

__all__ = ["Refusal", "RefusalLog"]

MAX_TARGET_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class Refusal:
    """What one identity was refused for one reason since the last collection."""

    identity: str
    action: str
    reason: ErrorReason
    target: str
    """What was asked for last, shortened, in printable ASCII."""
    count: int
    """How often."""


class RefusalLog:
    """Counts refusals; ``note`` fits ``daemoneye_mesh.access.RefusalListener``.

    Args:
        max_keys: combinations of identity, action and reason told apart until the next collection,
            and of identity and reason in the counts of messages. Those under ``OTHER`` come on
            top; actions and reasons are words of ours, so they are few.
    """

    def __init__(self, max_keys: int = 4_096) -> None:
        self._max_keys = max_keys
        self._fresh: dict[tuple[str, str, ErrorReason], _Fresh] = {}
        self._messages: dict[tuple[str, ErrorReason], int] = {}

    def note(self, identity: str, action: str, reason: ErrorReason, target: str) -> None:
        """Notes one refusal for the audit.

        Args:
            identity: who was refused, ``kind/id``.
            action: what was tried, such as ``publish``.
            reason: why not.
            target: the method, topic or pattern asked for; foreign text.
        """
        key = (identity, action, reason)
        if key not in self._fresh and len(self._fresh) >= self._max_keys:
            key = (OTHER, action, reason)
        fresh = self._fresh.setdefault(key, _Fresh())
        fresh.count += 1
        fresh.target = target[:MAX_TARGET_CHARACTERS]
        fresh.is_cut = len(target) > MAX_TARGET_CHARACTERS

    def count(self, identity: str, reason: ErrorReason, messages: int) -> None:
        """Counts messages of one identity that were refused."""
        key = (identity, reason)
        if key not in self._messages and len(self._messages) >= self._max_keys:
            key = (OTHER, reason)
        self._messages[key] = self._messages.get(key, 0) + messages

    def collect(self) -> list[Refusal]:
        """Returns what was noted since the last call, in the order in which it began."""
        fresh, self._fresh = self._fresh, {}
        return [Refusal(*key, _printable(one), one.count) for key, one in fresh.items()]

    def by_identity(self) -> dict[str, dict[ErrorReason, int]]:
        """Returns the messages refused since the start, by identity and reason."""
        counts: dict[str, dict[ErrorReason, int]] = {}
        for (identity, reason), messages in self._messages.items():
            counts.setdefault(identity, {})[reason] = messages
        return counts

    def by_reason(self) -> dict[ErrorReason, int]:
        """Returns the messages refused since the start, by reason."""
        counts: dict[ErrorReason, int] = {}
        for (_, reason), messages in self._messages.items():
            counts[reason] = counts.get(reason, 0) + messages
        return counts


@dataclass(slots=True)
class _Fresh:
    count: int = 0
    target: str = ""
    is_cut: bool = False


def _printable(fresh: _Fresh) -> str:
    """Returns the target as text that neither a terminal nor a log line can trip over."""
    escaped = fresh.target.encode("unicode_escape").decode("ascii")
    if not fresh.is_cut and len(escaped) <= MAX_TARGET_CHARACTERS:
        return escaped
    return escaped[: MAX_TARGET_CHARACTERS - 3] + "..."
