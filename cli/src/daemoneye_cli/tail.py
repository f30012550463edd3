"""A subscription as the command uses it: the first connection fails at once, later ones are retried.

``BusSubscription`` never gives up, which is right for a process and wrong for a person who mistyped the
runtime dir; so the broker is asked once before.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc.aio

from collector_core.bus import (
    BrokenError,
    BusSubscription,
    Delivery,
    Gap,
    Opened,
    SubscriptionOptions,
    negotiate,
)
from daemoneye_cli.calls import explain_failure
from daemoneye_cli.session import Link

__all__ = ["Delivery", "Gap", "Opened", "SubscriptionOptions", "follow"]

NEGOTIATE_TIMEOUT_S = 5.0


async def follow(
    link: Link, options: SubscriptionOptions
) -> AsyncGenerator[Opened | Delivery | Gap, None]:
    """Yields what the broker tells, over any number of connections, until closed.

    Raises:
        UnsupportedError: the broker lacks a feature that the options need.
        PermissionDeniedError: the operator may not subscribe to a pattern.
        DaemoneyeError: the broker cannot be reached the first time.
    """
    try:
        await negotiate(link.channel, options.features)
    except grpc.aio.AioRpcError as error:
        raise explain_failure(error, link.peer, NEGOTIATE_TIMEOUT_S) from None
    try:
        async with aclosing(BusSubscription(link.channel, options).items()) as items:
            async for item in items:
                yield item
    except BrokenError as error:
        raise error.cause from None  # its code says what the person has to change
