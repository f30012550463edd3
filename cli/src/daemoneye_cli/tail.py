"""A subscription as the command uses it: the first connection fails at once, later ones are retried.

``BusSubscriber`` never gives up, which is right for a process and wrong for a person who mistyped the
runtime dir; so the broker is asked once before.
"""

from collections.abc import AsyncGenerator, Sequence

import grpc.aio

from collector_core.publisher import negotiate_version
from collector_core.subscriber import BusSubscriber, Delivery, Gap, Opened
from daemoneye_cli.calls import explain_failure
from daemoneye_cli.session import Link
from daemoneye_mesh.topic import validate_pattern

__all__ = ["Delivery", "Gap", "Opened", "follow"]

NEGOTIATE_TIMEOUT_S = 5.0


async def follow(
    link: Link, patterns: Sequence[str], subscriber_id: str = "daemoneye-cli"
) -> AsyncGenerator[Opened | Delivery | Gap, None]:
    """Yields what the broker tells, over any number of connections, until closed.

    Raises:
        InvalidPatternError: a pattern breaks the grammar.
        PermissionDeniedError: the operator may not subscribe to a pattern.
        DaemoneyeError: the broker cannot be reached the first time.
    """
    for pattern in patterns:
        validate_pattern(pattern)
    try:
        await negotiate_version(link.channel)
    except grpc.aio.AioRpcError as error:
        raise explain_failure(error, link.peer, NEGOTIATE_TIMEOUT_S) from None
    items = BusSubscriber(link.channel, subscriber_id, patterns).items()
    try:
        async for item in items:
            yield item
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()
