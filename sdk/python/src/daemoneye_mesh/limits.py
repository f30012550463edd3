"""Sizes and counts that both sides of a call must agree on."""

__all__ = [
    "MAX_BATCH_BYTES",
    "MAX_BATCH_MESSAGES",
    "MAX_CHUNK_BYTES",
    "MAX_CONNECTIONS",
    "MAX_MESSAGE_BYTES",
    "MAX_RECEIVE_BYTES",
    "PROTOCOL_VERSION",
]

PROTOCOL_VERSION = 1
"""Version of the collector protocol that this build speaks."""

MAX_MESSAGE_BYTES = 1 << 20
"""One event bus message, encoded."""

MAX_BATCH_BYTES = 4 << 20
"""One batch of event bus messages, encoded."""

MAX_BATCH_MESSAGES = 10_000
"""Messages in one batch."""

MAX_CHUNK_BYTES = 1 << 20
"""One chunk of a streamed answer, encoded."""

MAX_RECEIVE_BYTES = MAX_BATCH_BYTES + (64 << 10)
"""What gRPC takes in one message: a full batch and its framing."""

MAX_CONNECTIONS = 256
"""Connections to one server."""
