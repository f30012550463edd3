"""Health to its message; the only place of health that knows the contract's types."""

from collections.abc import Iterable

from collector_core.health import ComponentSnapshot, HealthSnapshot
from collector_core.resources import ResourceUse
from daemoneye.ipc.v1 import collector_health_pb2 as pb
from daemoneye_mesh.completeness import Degradation
from daemoneye_mesh.completeness_message import to_completeness

__all__ = ["to_health_response", "to_resource_use"]


def to_health_response(
    snapshot: HealthSnapshot,
    use: ResourceUse | None,
    degradations: Iterable[Degradation],
    uptime_s: float,
) -> pb.CheckHealthResponse:
    """Returns the answer to CheckHealth.

    Args:
        snapshot: the collector and its parts.
        use: what the process uses; None before the first measurement.
        degradations: what the collector cannot see now.
        uptime_s: time since it started, by a clock that is never set.
    """
    response = pb.CheckHealthResponse(
        status=pb.CollectorStatus.Value("COLLECTOR_STATUS_" + snapshot.status),
        components=[_to_component(component) for component in snapshot.components],
        is_shedding=snapshot.is_shedding,
        completeness=to_completeness(degradations),
    )
    response.since.FromNanoseconds(snapshot.since_ns)
    response.uptime.FromNanoseconds(round(uptime_s * 1e9))
    if use is not None:
        response.resources.CopyFrom(to_resource_use(use))
    return response


def to_resource_use(use: ResourceUse) -> pb.ResourceUse:
    """Returns the message of a measurement."""
    return pb.ResourceUse(
        cpu_share=use.cpu_share,
        cpu_budget_share=use.cpu_budget_share,
        rss_bytes=use.rss_bytes,
        rss_budget_bytes=use.rss_budget_bytes,
        level=pb.DegradationLevel.Value("DEGRADATION_LEVEL_" + use.level.name),
    )


def _to_component(component: ComponentSnapshot) -> pb.ComponentHealth:
    message = pb.ComponentHealth(
        name=component.name,
        status=pb.CollectorStatus.Value("COLLECTOR_STATUS_" + component.status),
        message=component.message,
        failure_count=component.failure_count,
    )
    message.since.FromNanoseconds(component.since_ns)
    message.checked_at.FromNanoseconds(component.checked_at_ns)
    return message
