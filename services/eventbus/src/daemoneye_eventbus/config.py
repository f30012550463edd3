"""The settings of the broker."""

from dataclasses import dataclass
from pathlib import Path

from daemoneye_mesh.directories import RUNTIME_DIR_VARIABLE
from daemoneye_mesh.errors import InvalidConfigError
from daemoneye_mesh.layout import DEFAULT_TRUST_DOMAIN
from daemoneye_mesh.limits import MAX_MESSAGE_BYTES
from daemoneye_mesh.logs import LEVELS, LogStyle
from daemoneye_mesh.setting import setting

__all__ = ["PROCESS", "EventBusConfig"]

PROCESS = "daemoneye-eventbus"


@dataclass(frozen=True, slots=True)
class EventBusConfig:
    """What an operator can set; see ``daemoneye-eventbus --help``."""

    runtime_dir: Path | None = setting(
        None, help="directory of the sockets; found by rule when unset", env=RUNTIME_DIR_VARIABLE
    )
    trust_domain: str = setting(
        DEFAULT_TRUST_DOMAIN,
        help="trust domain of every identity",
        env="DAEMONEYE_TRUST_DOMAIN",
    )
    log_level: str = setting("info", help="lowest level logged", choices=LEVELS)
    log_style: LogStyle = setting(LogStyle.AUTO, help="how log lines look")
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
