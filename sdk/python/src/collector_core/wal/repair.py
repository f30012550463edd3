"""A segment that turned out damaged while the log is open."""

from pathlib import Path

from collector_core.wal.catalog import Catalog
from collector_core.wal.files import replace_file
from collector_core.wal.quarantine import Quarantine
from collector_core.wal.scan import salvage
from collector_core.wal.segment import Segment

__all__ = ["repair_segment"]


def repair_segment(directory: Path, catalog: Catalog, damaged: Segment, now_ns: int) -> None:
    """Puts a clean file in the place of a damaged one, which is kept aside; counts what is lost.

    Args:
        directory: of the log.
        catalog: knows the segment, and is told of the new one.
        damaged: nobody appends to it.
        now_ns: Unix time.

    Raises:
        OSError: the disk does not take it; nothing has changed.
    """
    if not damaged.path.exists():
        catalog.drop_segment(damaged, now_ns)
        return
    Quarantine(directory).keep_file(damaged.path, now_ns)
    temporary, mended = salvage(damaged)
    replace_file(temporary, damaged.path)
    mended.newest_ns = damaged.newest_ns
    catalog.replace_segment(damaged, mended, now_ns)
