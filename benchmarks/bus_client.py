"""What a client of any system has to offer to the workers of the bus benchmark."""

from typing import Protocol

__all__ = ["Receiver", "Sender"]


class Sender(Protocol):
    """The publishing half."""

    async def open(self) -> None:
        """Connects."""

    async def send(self, frames: list[bytes]) -> None:
        """Publishes in order; waits as the client's own flow control has it."""

    async def settle(self) -> None:
        """Returns when nothing is left in the client."""

    async def close(self) -> None:
        """Disconnects."""


class Receiver(Protocol):
    """The subscribing half: one subscription for each tally, each fed every event it gets."""

    reconnects: int
    """Times that a connection was lost."""

    async def open(self) -> None:
        """Returns when every subscription stands."""

    async def close(self) -> None:
        """Disconnects."""
