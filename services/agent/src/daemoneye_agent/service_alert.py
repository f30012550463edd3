"""``agent.v1.AlertService``: the alerts that are kept."""

import asyncio
from collections.abc import Sequence
from typing import Any

from google.protobuf import timestamp_pb2

from daemoneye.agent.v1 import alert_service_pb2 as pb
from daemoneye.agent.v1 import alert_service_pb2_grpc
from daemoneye_agent.alert import Alert
from daemoneye_agent.alert_message import from_severity, to_alert_payload
from daemoneye_agent.store import EventStore
from daemoneye_agent.store_thread import StoreThread
from daemoneye_mesh.errors import InvalidRequestError
from daemoneye_mesh.limits import MAX_BATCH_BYTES

__all__ = ["AlertServicer"]

DEFAULT_ALERTS = 100
MAX_ALERTS = 1_000

_MAX_TIME_NS = 2**63 - 1
_MAX_SECONDS = 253_402_300_799  # the end of the year 9999, the last a Timestamp may name
_MIN_SECONDS = -62_135_596_800


class AlertServicer(alert_service_pb2_grpc.AlertServiceServicer):
    """Answers operators about alerts.

    Args:
        store: thread that owns the event store.
    """

    def __init__(self, store: StoreThread) -> None:
        self._store = store

    async def ListAlerts(
        self, request: pb.ListAlertsRequest, context: Any
    ) -> pb.ListAlertsResponse:
        """Lists alerts, latest first."""
        if request.max_alerts > MAX_ALERTS:
            raise InvalidRequestError(
                f"max_alerts {request.max_alerts} is more than {MAX_ALERTS}; ask for fewer",
                field="max_alerts",
                limit=MAX_ALERTS,
            )
        limit = request.max_alerts or DEFAULT_ALERTS
        found = await self._store.run(
            EventStore.list_alerts,
            since_ns=_to_ns(request.since) if request.HasField("since") else -_MAX_TIME_NS,
            floor=from_severity(request.min_severity),
            rule_id=request.rule_id or None,
            limit=limit + 1,
        )
        return await asyncio.to_thread(_to_response, found, limit)

    async def GetAlert(self, request: pb.GetAlertRequest, context: Any) -> pb.GetAlertResponse:
        """Reads one alert."""
        alert = await self._store.run(EventStore.get_alert, request.alert_id)
        return pb.GetAlertResponse(alert=to_alert_payload(alert), row_json=alert.row)


def _to_response(found: Sequence[Alert], limit: int) -> pb.ListAlertsResponse:
    response = pb.ListAlertsResponse(has_more=len(found) > limit)
    size_bytes = 0
    for alert in found[:limit]:
        payload = to_alert_payload(alert)
        size_bytes += payload.ByteSize() + 8
        if size_bytes > MAX_BATCH_BYTES and response.alerts:
            response.has_more = True  # more than one message may hold
            break
        response.alerts.append(payload)
    return response


def _to_ns(since: timestamp_pb2.Timestamp) -> int:
    if not _MIN_SECONDS <= since.seconds <= _MAX_SECONDS or not 0 <= since.nanos < 1_000_000_000:
        raise InvalidRequestError(
            f"since is no time: {since.seconds} s and {since.nanos} ns; use the years 1 to 9999",
            field="since",
            seconds=since.seconds,
            nanos=since.nanos,
        )
    return max(min(since.ToNanoseconds(), _MAX_TIME_NS), -_MAX_TIME_NS)
