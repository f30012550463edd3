"""What one message and one batch may be, as the broker says it."""

from dataclasses import dataclass

from daemoneye_mesh.limits import MAX_BATCH_BYTES, MAX_BATCH_MESSAGES, MAX_MESSAGE_BYTES

__all__ = ["PublishLimits"]


@dataclass(frozen=True, slots=True)
class PublishLimits:
    """Limits of the broker; the defaults are those of the contract."""

    max_message_bytes: int = MAX_MESSAGE_BYTES
    """One message, its envelope included."""
    max_batch_bytes: int = MAX_BATCH_BYTES
    """One batch."""
    max_batch_messages: int = MAX_BATCH_MESSAGES
    """Messages of one batch."""
