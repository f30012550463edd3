"""Positions and losses of the log as messages of the contract."""

from collector_core.wal import LogLoss, LogPosition, LossReason
from daemoneye.ipc.v1 import event_log_pb2 as pb

__all__ = ["to_loss", "to_position"]

_REASONS = {
    LossReason.LOG_FULL: pb.EVENT_LOSS_REASON_LOG_FULL,
    LossReason.LOG_EXPIRED: pb.EVENT_LOSS_REASON_LOG_EXPIRED,
    LossReason.LOG_CORRUPT: pb.EVENT_LOSS_REASON_LOG_CORRUPT,
    LossReason.REFUSED: pb.EVENT_LOSS_REASON_REFUSED,
}


def to_loss(loss: LogLoss) -> pb.EventLoss:
    """Returns one loss."""
    message = pb.EventLoss(
        first_sequence=loss.first_sequence,
        last_sequence=loss.last_sequence,
        reason=_REASONS[loss.reason],
    )
    message.lost_at.FromNanoseconds(loss.lost_at_ns)
    return message


def to_position(position: LogPosition) -> pb.LogPosition:
    """Returns how far one epoch goes."""
    return pb.LogPosition(
        source_epoch=position.epoch,
        first_sequence=position.first_sequence,
        last_sequence=position.last_sequence,
        acknowledged_sequence=position.acknowledged_sequence,
        losses=map(to_loss, position.losses),
    )
