"""A directory that becomes a log: prepared, locked, put in order, with an end to append to."""

import contextlib
import fcntl
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from collector_core.wal.appender import Appender
from collector_core.wal.catalog import Catalog
from collector_core.wal.clock import LogClock
from collector_core.wal.epoch_book import EpochBook
from collector_core.wal.errors import LogUnusableError, as_unusable, unusable
from collector_core.wal.files import FILE_MODE
from collector_core.wal.limits import SyncPolicy
from collector_core.wal.loss import LogLoss, LossReason
from collector_core.wal.recovery import (
    REPAIR_FILE,
    Recovered,
    Recovery,
    clamp_times,
    recover,
    shorten,
)
from collector_core.wal.segment import BOOT_ID_BYTES
from collector_core.wal.writer import SegmentWriter
from daemoneye_mesh.directories import DirectoryUnusableError, prepare_directory
from daemoneye_mesh.private_file import FileUnusableError

__all__ = ["OpenedLog", "lock_directory", "open_log"]

log = logging.getLogger("daemoneye.wal")

LOCK_FILE = "lock"
MAX_OLD_EPOCHS = 16
MAX_OLD_LOSSES = 32


@dataclass(frozen=True, slots=True)
class OpenedLog:
    """The parts of a log that is open."""

    epoch: int
    recovery: Recovery
    catalog: Catalog
    appender: Appender


def lock_directory(directory: Path) -> int:
    """Prepares a directory and makes it ours until the descriptor is closed.

    Raises:
        LogUnusableError: it cannot be created or written, or another process holds it.
    """
    try:
        prepare_directory(directory, 0o700)
        directory.chmod(0o700)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(directory / LOCK_FILE, flags, FILE_MODE)
    except DirectoryUnusableError as err:
        raise as_unusable(err) from err
    except OSError as err:
        raise unusable(directory, err) from err
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(descriptor, FILE_MODE)
    except BlockingIOError:
        os.close(descriptor)
        raise LogUnusableError(
            f"another process holds the log in {directory}; stop it, or give this one its own",
            path=directory,
        ) from None
    except OSError as err:
        os.close(descriptor)
        raise unusable(directory, err) from err
    return descriptor


def open_log(directory: Path, sync: SyncPolicy, boot_id: str, clock: LogClock) -> OpenedLog:
    """Puts a locked directory in order and gets its log ready to be appended to.

    Raises:
        LogUnusableError: it cannot be used as it is.
        ValueError: the boot id is too long.
    """
    if len(boot_id.encode()) > BOOT_ID_BYTES:
        raise ValueError(f"a boot id has at most {BOOT_ID_BYTES} bytes")
    try:
        recovered = recover(directory, boot_id, clock.unix_ns())
        return _begin(directory, recovered, sync, boot_id, clock)
    except OSError as err:
        raise unusable(directory, err) from err
    except FileUnusableError as err:
        raise as_unusable(err) from err


def finish_repair(directory: Path) -> None:
    """Forgets a repair, once the state on disk tells of what came of it."""
    with contextlib.suppress(OSError):  # it then costs one more epoch
        (directory / REPAIR_FILE).unlink(missing_ok=True)


def _begin(
    directory: Path, recovered: Recovered, sync: SyncPolicy, boot_id: str, clock: LogClock
) -> OpenedLog:
    books, recovery = recovered.books, recovered.recovery
    now_ns = clock.unix_ns()
    clamp_times(books, now_ns)
    epoch = newest = max(books, default=0)
    if recovery.began_epoch:
        epoch = max(now_ns, newest + 1)
        log.info("the log begins epoch %d: %s", epoch, recovery.why_epoch)
    old = {number: book for number, book in books.items() if number != epoch}
    forgotten = shorten(old, MAX_OLD_EPOCHS, MAX_OLD_LOSSES)
    current = books.get(epoch, EpochBook(epoch))
    catalog = Catalog(dict(sorted({**old, epoch: current}.items())), epoch)
    catalog.count_losses(recovery.losses)
    for book in forgotten:
        _forget(book, catalog, now_ns)
    appender = Appender(directory, catalog, boot_id=boot_id, sync=sync, clock=clock)
    if current.segments:
        appender.go_on(SegmentWriter.open(current.segments[-1]))
    else:
        appender.begin()
    catalog.release_all()
    return OpenedLog(epoch, recovery, catalog, appender)


def _forget(book: EpochBook, catalog: Catalog, now_ns: int) -> None:
    """Gives an epoch up of which there is no room to tell."""
    losses = [
        LogLoss(book.epoch, first, last, LossReason.LOG_FULL, now_ns)
        for first, last in book.held(1, book.last_sequence)
    ]
    catalog.count_losses(losses)
    catalog.put_back(book.segments)
    if losses:
        log.error("the log forgets epoch %d, %d events", book.epoch, book.unacknowledged_count)
