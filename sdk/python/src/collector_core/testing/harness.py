"""One running collector in a test, wherever it runs: what it is waited for, what it has sent."""

from abc import ABC, abstractmethod

from collector_core.testing.changes import DEFAULT_TIMEOUT_S
from collector_core.testing.mesh import FakeMesh
from collector_core.testing.peer import CollectorPeer
from collector_core.testing.seen_event import SeenEvent

__all__ = ["CollectorEndedError", "CollectorHarness"]

EVERYTHING = "#"


class CollectorEndedError(AssertionError):
    """A collector ended while something was expected of it.

    Args:
        collector_id: its id.
        how: how it ended, with what it said last.
    """

    def __init__(self, collector_id: str, how: str) -> None:
        super().__init__(f"{collector_id} ended: {how}")
        self.collector_id = collector_id


class CollectorHarness(ABC):
    """One collector of a ``FakeMesh``.

    Args:
        mesh: the mesh.
        collector_id: its id.
    """

    def __init__(self, mesh: FakeMesh, collector_id: str) -> None:
        self.mesh = mesh
        self.collector_id = collector_id
        self._returned: dict[str, int] = {}

    @property
    def peer(self) -> CollectorPeer:
        """Its services, as the agent calls them, and its delivery."""
        return self.mesh.agent.collector(self.collector_id)

    @property
    @abstractmethod
    def exit_status(self) -> int | None:
        """Its exit status; None while it runs. Negative: the signal that killed it."""

    @abstractmethod
    def describe_end(self) -> str:
        """How it ended, with what it said last."""

    async def wait_ready(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Returns when it is SERVING and registered.

        Raises:
            CollectorEndedError: it ended instead.
            ConditionTimeoutError: it did neither in time.
        """

        async def is_ready() -> bool:
            self.check_running()
            is_registered = self.mesh.agent.is_registered(self.collector_id)
            return is_registered and await self.peer.is_serving()

        what = f"{self.collector_id} is SERVING and registered"
        await self.mesh.until(is_ready, what, timeout_s)

    async def wait_ended(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
        """Returns its exit status once it has ended by itself.

        Raises:
            ConditionTimeoutError: it still runs.
        """
        what = f"{self.collector_id} has ended"
        await self.mesh.until(lambda: self.exit_status is not None, what, timeout_s)
        status = self.exit_status
        assert status is not None  # noqa: S101 -- for the type checker: nothing un-ends it
        return status

    def events(self, topic_pattern: str = EVERYTHING) -> list[SeenEvent]:
        """Returns what has arrived on matching topics, each event once."""
        return [event for event in self.peer.events if event.is_on(topic_pattern)]

    async def next_event(
        self, topic_pattern: str = EVERYTHING, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> SeenEvent:
        """Returns the next event on matching topics that was not returned for this pattern yet.

        Raises:
            CollectorEndedError: it ended before it sent one.
            ConditionTimeoutError: none came in time.
        """
        index = self._returned.get(topic_pattern, 0)

        def find() -> SeenEvent | None:
            found = self.events(topic_pattern)[index:]
            if not found:
                self.check_running()
            return found[0] if found else None

        what = f"{self.collector_id} sends an event on {topic_pattern}"
        event: SeenEvent = await self.mesh.until(find, what, timeout_s)
        self._returned[topic_pattern] = index + 1
        return event

    def check_running(self) -> None:
        """Refuses a collector that has ended.

        Raises:
            CollectorEndedError: with how it ended.
        """
        if self.exit_status is not None:
            raise CollectorEndedError(self.collector_id, self.describe_end())
