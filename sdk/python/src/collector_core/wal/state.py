"""``state.json``: watermarks and losses, which the segments alone do not tell.

Invariant: what is read was written as it is, or is refused as a whole.
"""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

from collector_core.wal.limits import SyncPolicy
from collector_core.wal.loss import LogLoss, LossReason
from collector_core.wal.record import MAX_SEQUENCE
from daemoneye_mesh.private_file import FileUnusableError, read_file

__all__ = ["EpochState", "LogState", "StateDamagedError", "encode_state", "read_state"]

FORMAT = 1
REASONS = tuple(LossReason)
MAX_TIME_NS = 2**63


class StateDamagedError(Exception):
    """The file is there and says nothing that can be believed."""


@dataclass(frozen=True, slots=True)
class EpochState:
    """How far an epoch went when the state was written."""

    epoch: int
    last_sequence: int
    acknowledged_sequence: int
    losses: tuple[LogLoss, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogState:
    """What is remembered of a log from one life to the next.

    Args:
        boot_id: of the boot in which it was written.
        sync: the policy of that life.
        is_clean: whether that life closed the log, with nothing written afterwards.
        written_ns: Unix time.
        active: epoch and first sequence of the segment that was appended to.
        epochs: ascending.
    """

    boot_id: str
    sync: SyncPolicy
    is_clean: bool
    written_ns: int
    active: tuple[int, int]
    epochs: tuple[EpochState, ...]


def encode_state(state: LogState) -> bytes:
    """Returns the content of the file."""
    document: dict[str, object] = {
        "format": FORMAT,
        "boot_id": state.boot_id,
        "sync": state.sync.value,
        "clean": state.is_clean,
        "written_ns": state.written_ns,
        "active": list(state.active),
        "epochs": [
            [epoch.epoch, epoch.last_sequence, epoch.acknowledged_sequence, _losses(epoch)]
            for epoch in state.epochs
        ],
    }
    document["checksum"] = _checksum(document)
    return _dump(document)


def read_state(path: Path) -> LogState | None:
    """Reads the file; None when there is none.

    Raises:
        StateDamagedError: it is not what a log has written.
    """
    try:
        content = read_file(path, forbidden_mode=0).content
        return _decode(json.loads(content))
    except FileNotFoundError:
        return None
    except (FileUnusableError, ValueError, TypeError, LookupError, RecursionError) as err:
        raise StateDamagedError(f"{path} is damaged") from err


def _losses(epoch: EpochState) -> list[list[int]]:
    return [
        [loss.first_sequence, loss.last_sequence, REASONS.index(loss.reason), loss.lost_at_ns]
        for loss in epoch.losses
    ]


def _dump(document: dict[str, object]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _checksum(document: dict[str, object]) -> int:
    return crc32(_dump(document))


def _decode(document: Any) -> LogState:
    if not isinstance(document, dict):
        raise ValueError("no object")
    checksum = document.pop("checksum")
    if document["format"] != FORMAT or checksum != _checksum(document):
        raise ValueError("checksum")
    epochs = tuple(_decode_epoch(*entry) for entry in document["epochs"])
    if any(one.epoch >= other.epoch for one, other in pairwise(epochs)):
        raise ValueError("order of epochs")
    epoch, first_sequence = document["active"]
    return LogState(
        boot_id=str(document["boot_id"]),
        sync=SyncPolicy(document["sync"]),
        is_clean=document["clean"] is True,
        written_ns=_whole(document["written_ns"], MAX_TIME_NS),
        active=(_whole(epoch), _whole(first_sequence)),
        epochs=epochs,
    )


def _decode_epoch(epoch: Any, last: Any, acknowledged: Any, losses: Any) -> EpochState:
    if _whole(epoch) == 0 or _whole(acknowledged) > _whole(last):
        raise ValueError("epoch")
    return EpochState(
        epoch, last, acknowledged, tuple(_decode_loss(epoch, *entry) for entry in losses)
    )


def _decode_loss(epoch: int, first: Any, last: Any, reason: Any, lost_at_ns: Any) -> LogLoss:
    if not 0 < _whole(first) <= _whole(last):
        raise ValueError("loss")
    return LogLoss(
        epoch, first, last, REASONS[_whole(reason, len(REASONS))], _whole(lost_at_ns, MAX_TIME_NS)
    )


def _whole(number: Any, limit: int = MAX_SEQUENCE) -> int:
    if type(number) is not int or not 0 <= number < limit:
        raise ValueError("number")
    return number
