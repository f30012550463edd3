"""The settings that every collector has."""

from dataclasses import dataclass
from pathlib import Path

from collector_core.wal import SyncPolicy
from daemoneye_mesh.configuration import setting
from daemoneye_mesh.directories import STATE_DIR_VARIABLE, locate_state_dir
from daemoneye_mesh.errors import InvalidConfigError
from daemoneye_mesh.process import ProcessSettings

__all__ = ["CollectorSettings"]

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorSettings(ProcessSettings):
    """Settings of a collector; a collector with settings of its own extends this class."""

    token_file: Path | None = setting(
        None, help="file with the bootstrap token; below the runtime dir when unset"
    )
    state_dir: Path | None = setting(
        None,
        help="directory below which the log of events is kept; found by itself when unset",
        env=STATE_DIR_VARIABLE,
    )
    heartbeat_interval_s: float = setting(
        2.0, help="wanted time between heartbeats to the agent", minimum=1.0, maximum=60.0
    )
    health_interval_s: float = setting(
        10.0,
        help="time between two health checks of a source",
        minimum=0.1,
        maximum=600.0,
        live=True,
    )
    prepare_timeout_s: float = setting(
        10.0, help="how long a source may take to get ready", minimum=0.1, maximum=600.0
    )
    shutdown_timeout_s: float = setting(
        6.0, help="how long a stop may take in all", minimum=0.5, maximum=300.0, live=True
    )
    outbox_messages: int = setting(
        200_000,
        help="most events in memory that wait for the broker",
        minimum=1_000,
        maximum=10_000_000,
    )
    outbox_bytes: int = setting(
        32 * MIB,
        help="most bytes in memory that wait for the broker",
        minimum=2 * MIB,
        maximum=1 << 30,
    )
    wal_max_bytes: int = setting(
        512 * MIB,
        help="most bytes that the log of events takes; the oldest go first, counted and announced",
        minimum=4 * MIB,
        maximum=1 << 40,
        live=True,
    )
    wal_max_age_s: float = setting(
        7 * 86_400.0,
        help="longest time that the log keeps an event that nobody has stored",
        minimum=60.0,
        maximum=366 * 86_400.0,
        live=True,
    )
    wal_segment_bytes: int = setting(
        16 * MIB, help="size at which a file of the log is full", minimum=MIB, maximum=1 << 30
    )
    wal_sync: SyncPolicy = setting(
        SyncPolicy.COMMIT,
        help="with commit an event is published once it is on disk, with interval before; then a"
        " crash of the host begins a new sequence",
    )
    wal_sync_interval_s: float = setting(
        1.0,
        help="time between two syncs when wal_sync is interval",
        minimum=0.01,
        maximum=60.0,
        live=True,
    )
    shed_above_share: float = setting(
        0.7,
        help="fill of the buffers above which events of lossy classes are left out",
        minimum=0.1,
        maximum=1.0,
        live=True,
    )
    shed_below_share: float = setting(
        0.5,
        help="fill of the buffers below which nothing is left out any more",
        minimum=0.0,
        maximum=0.9,
        live=True,
    )
    cpu_budget_share: float = setting(
        0.5,
        help="share of one core that the collector should stay below; it does without hashes,"
        " enrichment and samples, in this order, when it does not",
        minimum=0.01,
        maximum=64.0,
        live=True,
    )
    rss_budget_bytes: int = setting(
        256 * MIB,
        help="resident memory that the collector should stay below; as for the CPU",
        minimum=32 * MIB,
        maximum=1 << 40,
        live=True,
    )
    hash_roots: tuple[str, ...] = setting(
        (
            "/usr/bin",
            "/usr/sbin",
            "/usr/local/bin",
            "/usr/local/sbin",
            "/bin",
            "/sbin",
            "/usr/lib",
            "/usr/libexec",
            "/opt",
        ),
        help="directories beneath which files may be hashed on demand",
    )
    hash_max_file_bytes: int = setting(
        512 * MIB, help="largest file that is hashed", minimum=1, maximum=1 << 40
    )
    hash_timeout_s: float = setting(
        10.0, help="longest time to hash one file", minimum=0.1, maximum=3600.0
    )
    hash_bytes_per_s: int = setting(
        64 * MIB,
        help="most bytes a second read to hash files",
        minimum=MIB,
        maximum=1 << 40,
        live=True,
    )
    hash_cache_entries: int = setting(
        10_000, help="files whose digests are remembered", minimum=0, maximum=10_000_000
    )
    hash_fuzzy: bool = setting(
        False, help="also compute the ssdeep digest, which is slow; needs the extra 'fuzzy'"
    )
    trigger_file: Path | None = setting(
        None, help="file with the conditions on which analyses are asked for; none when unset"
    )
    triggers_per_minute: int = setting(
        100,
        help="most analyses a minute asked of one collector",
        minimum=1,
        maximum=100_000,
        live=True,
    )
    trigger_dedup_s: float = setting(
        300.0,
        help="how long the same analysis of the same target is not asked for again",
        minimum=0.0,
        maximum=86_400.0,
        live=True,
    )
    analysis_concurrency: int = setting(4, help="analyses that run at once", minimum=1, maximum=256)

    def __post_init__(self) -> None:
        """Checks what concerns several settings."""
        if self.shed_below_share >= self.shed_above_share:
            raise InvalidConfigError(
                f"shed_below_share = {self.shed_below_share} must be less than shed_above_share ="
                f" {self.shed_above_share}",
                shed_below_share=self.shed_below_share,
                shed_above_share=self.shed_above_share,
            )
        if self.wal_max_bytes < 2 * self.wal_segment_bytes:
            raise InvalidConfigError(
                f"wal_max_bytes = {self.wal_max_bytes} must be at least twice wal_segment_bytes ="
                f" {self.wal_segment_bytes}",
                wal_max_bytes=self.wal_max_bytes,
                wal_segment_bytes=self.wal_segment_bytes,
            )

    def state_path(self, collector_id: str) -> Path:
        """Where a collector keeps what outlives it."""
        return (self.state_dir or locate_state_dir()) / "collectors" / collector_id
