"""Errors of the bus client; most of them are states of a subscription or an outbox.

::

    AnswerOrderError      InternalError         the broker answered a batch that it has not
    MessageTooLargeError  InvalidRequestError   no broker takes a message of this size
    ClosedError           PreconditionError     used after it was closed
    BusyError             PreconditionError     somebody else iterates over it
    BrokenError           UnavailableError      refused for good, or unreachable for too long
    SlowConsumerError     OverloadedError       the broker ended it: we did not keep up
"""

from daemoneye_mesh.errors import (
    DaemoneyeError,
    ErrorReason,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    PreconditionError,
    UnavailableError,
)

__all__ = [
    "AnswerOrderError",
    "BrokenError",
    "BusyError",
    "ClosedError",
    "MessageTooLargeError",
    "SlowConsumerError",
]


class AnswerOrderError(InternalError):
    """The broker answered a batch that is not in flight."""

    def __init__(self, batch_id: int) -> None:
        super().__init__(
            f"an answer came to batch {batch_id}, which is not in flight; connect again",
            batch_id=batch_id,
        )


class MessageTooLargeError(InvalidRequestError):
    """A message is larger than the broker takes; its maker must shorten it.

    Args:
        size_bytes: of the message, its envelope included.
        limit_bytes: what the broker takes.
    """

    default_reason = ErrorReason.MESSAGE_TOO_LARGE

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"an event of {size_bytes} bytes is more than {limit_bytes}; truncate its fields and"
            " mark them in truncated_fields",
            size_bytes=size_bytes,
            limit_bytes=limit_bytes,
        )


class ClosedError(PreconditionError):
    """The subscription was closed; open another one."""

    def __init__(self) -> None:
        super().__init__("the subscription is closed; open another one")


class BusyError(PreconditionError):
    """Somebody iterates over the subscription already."""

    def __init__(self) -> None:
        super().__init__("the subscription is being iterated over; use another one")


class BrokenError(UnavailableError):
    """The subscription will not come back by itself.

    Args:
        cause: what the broker said last, or why it could not be reached; its message and reason are
            those of this error too.
    """

    def __init__(self, cause: DaemoneyeError) -> None:
        super().__init__(cause.message, reason=cause.reason)
        self.metadata = dict(cause.metadata)
        self.retry_after_s = cause.retry_after_s
        self.cause = cause


class SlowConsumerError(OverloadedError):
    """The broker ended the subscription: its queue was full and the policy is to disconnect.

    Args:
        cause: what the broker said.
    """

    def __init__(self, cause: DaemoneyeError) -> None:
        super().__init__(cause.message, reason=ErrorReason.SLOW_CONSUMER)
        self.metadata = dict(cause.metadata)
