"""The settings of procmond."""

from dataclasses import dataclass
from pathlib import Path

from collector_core.settings import CollectorSettings
from daemoneye_mesh.configuration import setting

__all__ = ["ProcmondSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcmondSettings(CollectorSettings):
    """Settings of ``procmond``."""

    scan_interval_s: float = setting(
        0.5,
        help="time between two looks at all processes; what lives shorter may go unseen",
        minimum=0.05,
        maximum=3600.0,
        live=True,
    )
    scan_cpu_share: float = setting(
        0.05,
        help="most of one core that scanning may take; on a large host scans get rarer",
        minimum=0.001,
        maximum=1.0,
        live=True,
    )
    max_processes: int = setting(
        65_536, help="processes that are kept track of", minimum=256, maximum=4_194_304
    )
    proc_dir: Path = setting(Path("/proc"), help="where procfs is mounted")
