"""Channels to the servers of the mesh, and the token that goes with every call.

One channel a peer for life; create it inside the running loop. The token is asked of its source for
each call, so a renewed one is used at once.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from daemoneye_mesh.error_interceptor import CORRELATION_KEY
from daemoneye_mesh.errors import DaemoneyeError
from daemoneye_mesh.limits import MAX_RECEIVE_BYTES
from daemoneye_mesh.logs import correlation_id
from daemoneye_mesh.sockets import socket_target

__all__ = ["TokenSource", "channel_options", "correlation_metadata", "open_channel"]

TokenSource = Callable[[], str]
"""Returns the token to send now; called from a gRPC thread, so it must be quick and thread-safe."""

log = logging.getLogger("daemoneye.channel")


def channel_options() -> list[tuple[str, int | str]]:
    """Channel arguments of every client; the reasons stand beside them."""
    return [
        # Without it the authority is the percent-encoded path, which strict servers refuse.
        ("grpc.default_authority", "localhost"),
        # The defaults back off to two minutes, for a server that is back after a second.
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Despite its name also the time that one attempt to connect may take: hundreds of clients may
        # come back at once.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # Notice a stopped (SIGSTOP) server; a dead one is seen by its closed socket.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # As for the server: without the probe, and with room for batches.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 1 << 20),
        ("grpc.http2.max_frame_size", 1 << 20),
        ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
        # Otherwise two channels to one path share a socket, and a bulk stream delays the other.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def open_channel(path: Path, token_source: TokenSource | None = None) -> grpc.aio.Channel:
    """Opens a channel to the server at ``path``; connecting happens with the first call.

    Args:
        path: socket of the server.
        token_source: gives the bearer token; None for health and reflection only.

    Raises:
        InvalidConfigError: the path cannot be a socket path.
    """
    target = socket_target(path)
    if token_source is None:
        return grpc.aio.insecure_channel(target, options=channel_options())
    local = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
    bearer = grpc.metadata_call_credentials(_BearerPlugin(token_source), name="daemoneye-bearer")
    credentials = grpc.composite_channel_credentials(local, bearer)
    return grpc.aio.secure_channel(target, credentials, options=channel_options())


def correlation_metadata() -> tuple[tuple[str, str], ...]:
    """Returns call metadata that carries the current correlation id on, if there is one."""
    current = correlation_id.get()
    return ((CORRELATION_KEY, current),) if current else ()


class _BearerPlugin(grpc.AuthMetadataPlugin):
    """Adds ``authorization: Bearer``; a source that fails makes the call fail, not go out bare."""

    def __init__(self, token_source: TokenSource) -> None:
        self._token_source = token_source

    def __call__(self, context: Any, callback: Any) -> None:
        try:
            metadata = (("authorization", f"Bearer {self._token_source()}"),)
        except DaemoneyeError as error:
            log.debug("no token for a call: %s", error.message)
            callback((), error)
            return
        callback(metadata, None)
