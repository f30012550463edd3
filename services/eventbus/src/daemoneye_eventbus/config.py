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

    def __post_init__(self) -> None:
        if self.default_queue_messages > self.max_queue_messages:
            raise InvalidConfigError(
                f"default_queue_messages = {self.default_queue_messages} must be at most"
                f" max_queue_messages = {self.max_queue_messages}",
                default_queue_messages=self.default_queue_messages,
                max_queue_messages=self.max_queue_messages,
            )
