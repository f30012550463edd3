"""What the broker refuses, as errors of the mesh's one tree.

Invariant: each carries the bound it stands for in its metadata, so that a publisher can adapt
without parsing the sentence. The topic grammar's own errors are in ``daemoneye_mesh.topic``.
"""

from daemoneye_mesh.errors import (
    ConflictError,
    ErrorReason,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    UnavailableError,
    UnsupportedError,
)

__all__ = [
    "BatchTooLargeError",
    "BrokerDrainingError",
    "EmptyBatchError",
    "ForeignSourceError",
    "InvalidMessageError",
    "InvalidSubscriptionError",
    "MailboxBusyError",
    "MessageTooLargeError",
    "NoSubscriberError",
    "SlowConsumerError",
    "SubscriptionLimitError",
    "SupersededSubscriptionError",
    "UnacknowledgedTopicError",
    "UnsupportedSettingError",
    "require_within",
]


class EmptyBatchError(InvalidRequestError):
    """A batch without messages asks for nothing; most likely a defect of the publisher."""

    default_reason = ErrorReason.BATCH_EMPTY

    def __init__(self) -> None:
        super().__init__("the batch has no messages; send at least one")


class MessageTooLargeError(InvalidRequestError):
    """One encoded message exceeds the broker's bound."""

    default_reason = ErrorReason.MESSAGE_TOO_LARGE

    def __init__(self, index: int, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"message {index} of the batch is {size_bytes} bytes; send at most {limit_bytes} bytes",
            index=index,
            size_bytes=size_bytes,
            limit_bytes=limit_bytes,
        )


class BatchTooLargeError(InvalidRequestError):
    """A batch exceeds the broker's bound in messages or in bytes."""

    default_reason = ErrorReason.MESSAGE_TOO_LARGE

    def __init__(self, size: int, limit: int, unit: str) -> None:
        super().__init__(
            f"the batch has {size} {unit}; split it into batches of at most {limit} {unit}",
            size=size,
            limit=limit,
            unit=unit,
        )


class InvalidMessageError(InvalidRequestError):
    """The envelope of one message of a batch is malformed."""

    def __init__(
        self, index: int, problem: str, remedy: str, reason: ErrorReason | None = None
    ) -> None:
        super().__init__(
            f"message {index} of the batch: {problem}; {remedy}",
            reason=reason,
            index=index,
            problem=problem,
        )


class ForeignSourceError(PermissionDeniedError):
    """A message names another source than its publisher, whose events it would then pass for."""

    def __init__(self, index: int, source_id: str, own_id: str) -> None:
        shown = ascii(source_id[:80])
        super().__init__(
            f"message {index} of the batch has source_id {shown}; set your own, {own_id}",
            index=index,
            source_id=shown,
            own_id=own_id,
        )


class UnsupportedSettingError(UnsupportedError):
    """A setting of the contract that this broker does not honour, and so does not accept."""

    default_reason = ErrorReason.FEATURE_UNSUPPORTED

    def __init__(self, setting: str, remedy: str) -> None:
        super().__init__(
            f"this broker does not offer {setting}; {remedy}", setting=setting, remedy=remedy
        )


class SlowConsumerError(OverloadedError):
    """The queue overflowed and the subscriber had asked to be disconnected rather than skip."""

    default_reason = ErrorReason.SLOW_CONSUMER

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        super().__init__(
            f"the queue of {max_messages} messages and {max_bytes} bytes overflowed; "
            "subscribe again and read faster, or ask for a larger queue",
            max_messages=max_messages,
            max_bytes=max_bytes,
        )


class NoSubscriberError(UnavailableError):
    """Nobody is there who would acknowledge what the publisher wants acknowledged."""

    default_reason = ErrorReason.NO_SUBSCRIBER

    def __init__(self) -> None:
        super().__init__(
            "nobody is there to acknowledge the batch; keep it and repeat it with backoff"
        )


class UnacknowledgedTopicError(NoSubscriberError):
    """A topic of the batch has no subscription that acknowledges."""

    def __init__(self, topic: str) -> None:
        UnavailableError.__init__(
            self,
            f"nobody acknowledges {topic} right now; keep the batch and repeat it with backoff",
            topic=topic,
        )


class SupersededSubscriptionError(ConflictError):
    """The same durable subscription was opened by a newer stream."""

    def __init__(self, subscriber_id: str) -> None:
        super().__init__(
            f"the subscription {subscriber_id} was opened again elsewhere; end one of the two",
            subscriber_id=subscriber_id,
        )


class InvalidSubscriptionError(InvalidRequestError):
    """A subscription asks for something the broker would never grant."""

    default_reason = ErrorReason.REQUEST_INVALID


class SubscriptionLimitError(OverloadedError):
    """As many subscriptions are open as the broker allows."""

    default_reason = ErrorReason.LIMIT_REACHED

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} subscriptions are open, which is the limit; close one or raise the limit",
            limit=limit,
        )


class BrokerDrainingError(UnavailableError):
    """The broker is shutting down and takes nothing new."""

    default_reason = ErrorReason.DRAINING

    def __init__(self) -> None:
        super().__init__("the broker is shutting down; connect again")


class MailboxBusyError(InternalError):
    """Two tasks took from one mailbox, which would split its order between them."""

    def __init__(self) -> None:
        super().__init__("the mailbox has a consumer already; take from one task only")


def require_within(name: str, value: int, minimum: int, maximum: int) -> None:
    """Refuses a setting of a subscription that is out of its range.

    Raises:
        InvalidSubscriptionError: it is.
    """
    if not minimum <= value <= maximum:
        raise InvalidSubscriptionError(
            f"{name} is {value}; use a value from {minimum} to {maximum}",
            setting=name,
            value=value,
            minimum=minimum,
            maximum=maximum,
        )
