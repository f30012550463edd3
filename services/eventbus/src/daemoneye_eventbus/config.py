"""The settings of the broker."""

from dataclasses import dataclass

from daemoneye_mesh.configuration import setting
from daemoneye_mesh.errors import InvalidConfigError
from daemoneye_mesh.limits import MAX_MESSAGE_BYTES
from daemoneye_mesh.process import ProcessSettings

__all__ = ["EventBusSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventBusSettings(ProcessSettings):
    """Settings of ``daemoneye-eventbus``."""

    max_subscriptions: int = setting(
        1_024, help="subscriptions open at a time", minimum=1, maximum=100_000
    )
    default_queue_messages: int = setting(
        65_536, help="messages queued for a subscriber that does not say", minimum=1
    )
    max_queue_messages: int = setting(
        1_000_000, help="most messages a subscriber may have queued", minimum=1, maximum=10_000_000
    )
    max_queue_bytes: int = setting(
        16 << 20,
        help="bytes queued for a subscriber that does not say, and the most it may have",
        minimum=MAX_MESSAGE_BYTES,
        maximum=1 << 30,
    )

    max_streams_per_identity: int = setting(
        256, help="open streams, for publishing and subscribing, of one identity", minimum=1
    )
    max_subscriptions_per_identity: int = setting(
        256,
        help="subscriptions of one identity, those that wait for its return included",
        minimum=1,
    )
    max_queue_bytes_per_identity: int = setting(
        1 << 30,
        help="bytes of queue granted to the subscriptions of one identity",
        minimum=MAX_MESSAGE_BYTES,
    )
    max_messages_per_s: int = setting(
        2_000_000,
        help="messages a second accepted from all publishers together; at least a full batch",
        minimum=10_000,
        maximum=100_000_000,
    )
    rate_limits: tuple[str, ...] = setting(
        (),
        help="limits such as 'collector/+ events.process 50000/s burst 100000'; see docs/bus.md",
    )
    retained_messages: int = setting(
        262_144, help="messages kept for subscribers that come late; 0 keeps none", minimum=0
    )
    retained_bytes: int = setting(
        16 << 20,
        help="memory in bytes for messages kept for subscribers that come late; 0 keeps none",
        minimum=0,
    )
    retained_age_s: float = setting(
        60.0, help="seconds for which messages are kept for them; 0 keeps none", minimum=0
    )
    max_tracked_steps: int = setting(
        10_000, help="steps of workflows that are remembered; 0 remembers none", minimum=0
    )
    max_workflows: int = setting(1_000, help="workflows that are remembered", minimum=1)
    workflow_timeout_s: float = setting(
        300.0, help="seconds without a message after which a workflow has ended", minimum=1
    )

    def __post_init__(self) -> None:
        if self.default_queue_messages > self.max_queue_messages:
            raise InvalidConfigError(
                f"default_queue_messages = {self.default_queue_messages} must be at most"
                f" max_queue_messages = {self.max_queue_messages}",
                default_queue_messages=self.default_queue_messages,
                max_queue_messages=self.max_queue_messages,
            )
