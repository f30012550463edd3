"""The settings that every collector has."""

from dataclasses import dataclass
from pathlib import Path

from daemoneye_mesh.configuration import setting
from daemoneye_mesh.process import ProcessSettings

__all__ = ["CollectorSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorSettings(ProcessSettings):
    """Settings of a collector; a collector with settings of its own extends this class."""

    token_file: Path | None = setting(
        None, help="file with the bootstrap token; below the runtime dir when unset"
    )
    heartbeat_interval_s: float = setting(
        2.0, help="wanted time between heartbeats to the agent", minimum=1.0, maximum=60.0
    )
    outbox_messages: int = setting(
        200_000, help="most events that wait for the broker", minimum=1_000, maximum=10_000_000
    )
    outbox_bytes: int = setting(
        32 << 20, help="most bytes that wait for the broker", minimum=2 << 20, maximum=1 << 30
    )
