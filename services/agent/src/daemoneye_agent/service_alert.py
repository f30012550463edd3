"""``agent.v1.AlertService``: the alerts that are kept."""

from typing import Any

from daemoneye.agent.v1 import alert_service_pb2 as pb
from daemoneye.agent.v1 import alert_service_pb2_grpc
from daemoneye_agent.alert_message import from_severity, to_alert_payload
from daemoneye_agent.store import EventStore
from daemoneye_agent.store_thread import StoreThread
from daemoneye_mesh.errors import InvalidRequestError

__all__ = ["AlertServicer"]

DEFAULT_ALERTS = 100
MAX_ALERTS = 1_000


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
        since_ns = request.since.ToNanoseconds() if request.HasField("since") else 0
        found = await self._store.run(
            EventStore.list_alerts,
            since_ns=since_ns,
            floor=from_severity(request.min_severity),
            rule_id=request.rule_id or None,
            limit=limit + 1,
        )
        return pb.ListAlertsResponse(
            alerts=map(to_alert_payload, found[:limit]), has_more=len(found) > limit
        )

    async def GetAlert(self, request: pb.GetAlertRequest, context: Any) -> pb.GetAlertResponse:
        """Reads one alert."""
        alert = await self._store.run(EventStore.get_alert, request.alert_id)
        return pb.GetAlertResponse(alert=to_alert_payload(alert), row_json=alert.row)
