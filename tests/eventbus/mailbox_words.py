"""Groups of words, and what a mailbox hands over as one line of text, for the tests of the mailbox."""

import asyncio
from collections.abc import Iterable

from daemoneye_eventbus.group import Envelope, Group
from daemoneye_eventbus.mailbox import Batch, Closed, Gap, Mailbox, Notice
from daemoneye_eventbus.receipt import Receipt

__all__ = ["Texts", "group_of", "is_waiting", "take", "take_all", "text_of"]


class Texts:
    """Content of short texts, one a message; a piece repeats the envelope."""

    def __init__(self, items: list[str], envelope_bytes: int = 0) -> None:
        self.items = items
        self.envelope_bytes = envelope_bytes
        self.size_bytes = envelope_bytes + sum(map(len, items))

    def split(self, count: int) -> tuple["Texts", "Texts"]:
        head, tail = self.items[:count], self.items[count:]
        return Texts(head, self.envelope_bytes), Texts(tail, self.envelope_bytes)


def group_of(text: str, receipt: Receipt | None = None, ttl_ms: int = 0) -> Group:
    """Build a group of the words of a text."""
    items = text.split()
    envelope = Envelope(topic="events.a", source_id="a", count=len(items), ttl_ms=ttl_ms)
    return Group(envelope, Texts(items), receipt)


def text_of(groups: Iterable[Group]) -> str:
    """Say the words of groups, with a bar between two groups."""
    words = []
    for group in groups:
        assert isinstance(group.content, Texts)
        assert group.count == len(group.content.items)
        words.append(" ".join(group.content.items))
    return "|".join(words)


async def take(mailbox: Mailbox, max_messages: int = 1_000, max_bytes: int = 1_000_000) -> str:
    """Say what is taken: position, colon and words; or reason and positions; or the end."""
    match await mailbox.take(max_messages, max_bytes):
        case Batch() as batch:
            again = "again " if batch.is_redelivered else ""
            return f"{again}{batch.first_position}: {text_of(batch.groups)}"
        case Gap() as gap:
            return f"{gap.reason} {gap.first_position}-{gap.last_position} of {gap.size_bytes}"
        case Notice(content):
            return f"notice {content}"
        case Closed() as end:
            return f"end {end.reason}"


async def take_all(mailbox: Mailbox) -> list[str]:
    """Take until the mailbox has ended; it must have been closed."""
    taken: list[str] = []
    while not (taken and taken[-1].startswith("end")):
        taken.append(await take(mailbox))
    return taken


async def is_waiting(mailbox: Mailbox) -> bool:
    """Say whether a consumer would have to wait."""
    try:
        async with asyncio.timeout(0):
            await mailbox.take(1_000, 1_000_000)
    except TimeoutError:
        return True
    return False
