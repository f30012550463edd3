"""A mesh that answers from memory: the real contract, chassis, tokens and access table.

Run as a program it is one small process with a health service, for the tests of ``up``:
``fake_mesh.py SOCKET [behaviour…]``.
"""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import grpc
import grpc.aio
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from daemoneye.agent.v1 import (
    alert_service_pb2,
    alert_service_pb2_grpc,
    collector_admin_service_pb2,
    collector_admin_service_pb2_grpc,
    query_service_pb2,
    query_service_pb2_grpc,
    registry_service_pb2,
    registry_service_pb2_grpc,
    rule_service_pb2,
    rule_service_pb2_grpc,
    status_service_pb2,
    status_service_pb2_grpc,
)
from daemoneye.common.v1 import common_pb2, completeness_pb2
from daemoneye.eventbus.v1 import (
    event_data_pb2,
    eventbus_pb2,
    eventbus_service_pb2,
    eventbus_service_pb2_grpc,
)
from daemoneye.ipc.v1 import (
    collector_config_pb2,
    collector_control_service_pb2,
    collector_health_pb2,
)
from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.authentication import AuthInterceptor, caller
from daemoneye_mesh.bus_feature import BusFeature
from daemoneye_mesh.completeness import Degradation, DegradedReason
from daemoneye_mesh.completeness_message import to_completeness
from daemoneye_mesh.errors import ErrorReason, InvalidRequestError, NotFoundError
from daemoneye_mesh.identity import Identity
from daemoneye_mesh.layout import RuntimeLayout
from daemoneye_mesh.server import MeshServer
from daemoneye_mesh.token import TokenIssuer, TokenVerifier, write_token_file, write_trust_bundle

TTL = timedelta(minutes=5)
POLLING = Degradation(DegradedReason.POLLING, "procmond", "processes are polled every second")


def value(one):
    kinds = {int: "integer", float: "real", str: "text", bytes: "blob"}
    if one is None:
        return query_service_pb2.SqlValue()
    return query_service_pb2.SqlValue(**{kinds[type(one)]: one})


class FakeQueries(query_service_pb2_grpc.QueryServiceServicer):
    """Answers what ``batches`` holds; the SQL texts below make it misbehave."""

    def __init__(self):
        self.columns = ["pid", "name"]
        self.batches = [[(1, "init"), (2, "sh")]]
        self.degradations = ()
        self.requests = []

    async def ExecuteQuery(self, request, context):
        self.requests.append(request)
        if request.sql == "bad":
            raise InvalidRequestError(
                "near 'bad': syntax error; write one SELECT",
                reason=ErrorReason.SQL_INVALID,
                near="bad",
            )
        if request.sql == "sleep":
            await asyncio.Event().wait()
        rows = 0
        yield query_service_pb2.ExecuteQueryResponse(columns=self.columns)
        for batch in self.batches:
            rows += len(batch)
            values = [query_service_pb2.SqlRow(values=[value(one) for one in row]) for row in batch]
            yield query_service_pb2.ExecuteQueryResponse(rows=values)
        if request.sql == "fail late":
            raise InvalidRequestError("a column went away; ask again", column="x")
        if request.sql == "crash":
            raise RuntimeError("/etc/shadow")
        if request.sql != "cut":
            yield query_service_pb2.ExecuteQueryResponse(
                is_last=True, completeness=to_completeness(self.degradations), row_count=rows
            )

    async def ListTables(self, request, context):
        column = query_service_pb2.TableColumn(name="pid", type="INTEGER", description="process id")
        table = query_service_pb2.TableInfo(
            name="processes",
            kind=query_service_pb2.TABLE_KIND_LIVE,
            description="a process that runs now",
            columns=[column],
        )
        return query_service_pb2.ListTablesResponse(tables=[table])


class FakeRegistry(registry_service_pb2_grpc.RegistryServiceServicer):
    def __init__(self, issuer):
        self.issuer = issuer
        self.audiences = []

    async def IssueToken(self, request, context):
        self.audiences.append(request.audience)
        token = self.issuer.issue(caller().identity, request.audience, TTL)
        response = registry_service_pb2.IssueTokenResponse(token=token)
        response.expires_at.GetCurrentTime()
        response.expires_at.seconds += int(TTL.total_seconds())
        return response


class FakeAlerts(alert_service_pb2_grpc.AlertServiceServicer):
    def __init__(self):
        self.alerts = []
        self.requests = []

    async def ListAlerts(self, request, context):
        self.requests.append(request)
        return alert_service_pb2.ListAlertsResponse(alerts=self.alerts)

    async def GetAlert(self, request, context):
        for alert in self.alerts:
            if alert.alert_id == request.alert_id:
                return alert_service_pb2.GetAlertResponse(alert=alert, row_json='{"pid": 7}')
        raise NotFoundError(
            f"there is no alert {request.alert_id}; list them", alert_id=request.alert_id
        )


class FakeRules(rule_service_pb2_grpc.RuleServiceServicer):
    def __init__(self):
        self.rule = rule_service_pb2.Rule(
            rule_id="reverse-shell",
            title="Reverse shell",
            severity=eventbus_pb2.ALERT_SEVERITY_CRITICAL,
            sql="SELECT 1",
            is_enabled=True,
            match_count=3,
        )

    async def ListRules(self, request, context):
        return rule_service_pb2.ListRulesResponse(rules=[self.rule])

    async def GetRule(self, request, context):
        if request.rule_id != self.rule.rule_id:
            raise NotFoundError(f"there is no rule {request.rule_id}", rule_id=request.rule_id)
        return rule_service_pb2.GetRuleResponse(rule=self.rule)

    async def SetRuleEnabled(self, request, context):
        self.rule.is_enabled = request.is_enabled
        return rule_service_pb2.SetRuleEnabledResponse(rule=self.rule)

    async def ValidateRule(self, request, context):
        is_valid = "good" in request.document
        failures = [] if is_valid else ["sample 1 should match and does not"]
        return rule_service_pb2.ValidateRuleResponse(
            is_valid=is_valid, sample_failures=failures, sample_count=2
        )


class FakeAdmin(collector_admin_service_pb2_grpc.CollectorAdminServiceServicer):
    """One collector, procmond, that obeys; ``failures`` are raised first, one a call."""

    def __init__(self):
        self.paused = []
        self.requests = []
        self.failures = []
        self.collector = collector_admin_service_pb2.CollectorInfo(
            collector_id="procmond",
            state=collector_admin_service_pb2.COLLECTOR_STATE_DEGRADED,
            pid=7,
            domains=["process"],
            completeness=to_completeness([POLLING]),
        )
        self.health = collector_health_pb2.CheckHealthResponse(
            status=collector_health_pb2.COLLECTOR_STATUS_OK, completeness=to_completeness(())
        )
        self.former = []
        """The health of the first answers, before ``health``."""
        self.stats = collector_control_service_pb2.GetCollectorStatsResponse()
        self.config = collector_config_pb2.GetConfigResponse()
        field = self.config.fields.add
        live, default = collector_config_pb2.CONFIG_ORIGIN_LIVE, 1
        field(name="scan_interval_s", value="2", origin=live, origin_detail="agent", is_live=True)
        field(name="proc_dir", value="/proc", origin=default, help="where procfs is mounted")
        field(name="token_file", origin=default)

    async def ListCollectors(self, request, context):
        return collector_admin_service_pb2.ListCollectorsResponse(collectors=[self.collector])

    async def PauseCollector(self, request, context):
        self._take(request)
        self.paused.append(request.collector_id)
        return collector_admin_service_pb2.PauseCollectorResponse()

    async def ResumeCollector(self, request, context):
        self._take(request)
        self.paused.remove(request.collector_id)
        return collector_admin_service_pb2.ResumeCollectorResponse()

    async def StartCollector(self, request, context):
        self._take(request)
        return collector_admin_service_pb2.StartCollectorResponse()

    async def StopCollector(self, request, context):
        self._take(request)
        return collector_admin_service_pb2.StopCollectorResponse()

    async def RestartCollector(self, request, context):
        self._take(request)
        return collector_admin_service_pb2.RestartCollectorResponse()

    async def CheckCollector(self, request, context):
        self._take(request)
        health = self.former.pop(0) if self.former else self.health
        return collector_admin_service_pb2.CheckCollectorResponse(health=health)

    async def GetCollectorCounters(self, request, context):
        self._take(request)
        return collector_admin_service_pb2.GetCollectorCountersResponse(stats=self.stats)

    async def EndCollector(self, request, context):
        self._take(request)
        return collector_admin_service_pb2.EndCollectorResponse()

    async def GetCollectorConfig(self, request, context):
        self._take(request)
        return collector_admin_service_pb2.GetCollectorConfigResponse(config=self.config)

    async def ConfigureCollector(self, request, context):
        self._take(request)
        update, values = request.update, {one.name: one.value for one in self.config.fields}
        wanted = {**dict(update.changes), **dict.fromkeys(update.reset_fields, "0.5")}
        changes = [
            collector_config_pb2.ConfigChange(name=name, before=values[name], after=wanted[name])
            for name in sorted(wanted)
            if values[name] != wanted[name]
        ]
        if changes and not update.validate_only:
            self.config.version += 1
            for one in self.config.fields:
                one.value = wanted.get(one.name, one.value)
        done = collector_config_pb2.UpdateConfigResponse(
            version=self.config.version, changes=changes
        )
        return collector_admin_service_pb2.ConfigureCollectorResponse(update=done)

    def _take(self, request):
        self.requests.append(request)
        if self.failures:
            raise self.failures.pop(0)
        if request.collector_id != "procmond":
            raise NotFoundError(
                f"there is no collector {request.collector_id!r}; 'daemoneye collectors' lists them",
                collector_id=request.collector_id,
            )


class FakeStatus(status_service_pb2_grpc.StatusServiceServicer):
    def __init__(self):
        self.degradations = ()
        self.told = []
        """The degradations of every answer."""

    async def GetStatus(self, request, context):
        self.told.append(self.degradations)
        component = status_service_pb2.ComponentStatus(
            component="eventbus", is_serving=True, message="subscribed"
        )
        response = status_service_pb2.GetStatusResponse(
            version="0.1.0",
            components=[component],
            completeness=to_completeness(self.degradations),
            enabled_rule_count=15,
        )
        response.uptime.FromSeconds(125)
        return response


class FakeBus(eventbus_service_pb2_grpc.EventBusServiceServicer):
    """Every subscriber gets ``items``, then nothing more until the server stops."""

    def __init__(self):
        self.items = []
        self.patterns = []
        self.epoch = "epoch-1"
        self.closed = asyncio.Event()

    async def NegotiateVersion(self, request, context):
        version = request.request.preferred_version
        answer = eventbus_pb2.VersionNegotiationResponse(
            negotiated_version=version,
            server_capabilities=[str(feature) for feature in BusFeature],
            negotiation_success=True,
        )
        return eventbus_service_pb2.NegotiateVersionResponse(response=answer)

    async def Subscribe(self, requests, context):
        request = await anext(aiter(requests))
        self.patterns += [one.pattern for one in request.open.config.topic_patterns]
        opened = eventbus_service_pb2.SubscriptionOpened(broker_epoch=self.epoch)
        yield eventbus_service_pb2.SubscribeResponse(opened=opened)
        for item in self.items:
            yield item
        await self.closed.wait()


class FakeMesh:
    """Agent, broker and a collector, each on its own socket."""

    def __init__(self, root):
        self.layout = RuntimeLayout(root)
        self.issuer = TokenIssuer(ec.generate_private_key(ec.SECP256R1()), self.layout.trust_domain)
        self.queries = FakeQueries()
        self.registry = FakeRegistry(self.issuer)
        self.alerts = FakeAlerts()
        self.rules = FakeRules()
        self.admin = FakeAdmin()
        self.status = FakeStatus()
        self.bus = FakeBus()
        self.servers = {}

    @property
    def token_file(self):
        return self.layout.token_file(self.layout.operator())

    def write_token(self, identity=None, audience=None):
        identity = identity or self.layout.operator()
        audience = audience or self.layout.agent.spiffe_id
        self.layout.tokens_dir.mkdir(mode=0o700, exist_ok=True)
        write_token_file(self.token_file, self.issuer.issue(identity, audience, TTL))

    def server(self, socket, owner: Identity):
        verifier = TokenVerifier(
            self.layout.trust_bundle, owner.spiffe_id, self.layout.trust_domain
        )
        server = MeshServer(socket, AuthInterceptor(verifier, AccessTable.load()))
        self.servers[owner.id] = server
        return server

    async def start(self):
        write_trust_bundle(self.layout.trust_bundle, [self.issuer.public_key])
        self.write_token()
        agent = self.server(self.layout.agent_socket, self.layout.agent)
        for module, name, servicer in (
            (query_service_pb2_grpc, "QueryService", self.queries),
            (registry_service_pb2_grpc, "RegistryService", self.registry),
            (alert_service_pb2_grpc, "AlertService", self.alerts),
            (rule_service_pb2_grpc, "RuleService", self.rules),
            (collector_admin_service_pb2_grpc, "CollectorAdminService", self.admin),
            (status_service_pb2_grpc, "StatusService", self.status),
        ):
            add = getattr(module, f"add_{name}Servicer_to_server")
            agent.add(add, servicer, f"daemoneye.agent.v1.{name}")
        broker = self.server(self.layout.eventbus_socket, self.layout.broker)
        broker.add(
            eventbus_service_pb2_grpc.add_EventBusServiceServicer_to_server,
            self.bus,
            "daemoneye.eventbus.v1.EventBusService",
        )
        collector = self.layout.collector("procmond")
        self.server(self.layout.collector_socket("procmond"), collector)
        for server in self.servers.values():
            await server.start()
            await server.set_serving(True)

    async def stop(self):
        self.bus.closed.set()
        for server in self.servers.values():
            await server.drain(0.5)


def process_message(subtype="CREATED", pid=42, **fields):
    record = common_pb2.ProcessRecord(
        pid=pid, name="sleep", executable_path="/bin/sleep", command_line=["/bin/sleep", "5"]
    )
    event = event_data_pb2.ProcessEventData(
        process=record,
        subtype=event_data_pb2.ProcessEventSubtype.Value(
            f"PROCESS_EVENT_SUBTYPE_PROCESS_{subtype}"
        ),
        **fields,
    )
    payload = eventbus_pb2.CollectionEventPayload(process_event=event)
    metadata = eventbus_pb2.MessageMetadata(
        topic="events.process.lifecycle",
        timestamp=1_700_000_000_123_456_789,
        source_id="procmond",
        source_sequence=pid,
    )
    return eventbus_pb2.EventBusMessage(metadata=metadata, collection_event=payload)


def alert_payload(alert_id="a1", severity="HIGH", rule_id="reverse-shell", count=1):
    return eventbus_pb2.AlertPayload(
        alert_id=alert_id,
        severity=eventbus_pb2.AlertSeverity.Value(f"ALERT_SEVERITY_{severity}"),
        title="Reverse shell",
        description="bash talks to 192.0.2.1",
        rule_id=rule_id,
        count=count,
        first_seen_ns=1_700_000_000_000_000_000,
        last_seen_ns=1_700_000_001_000_000_000,
        completeness=completeness_pb2.Completeness(
            state=completeness_pb2.COMPLETENESS_STATE_COMPLETE
        ),
    )


def alert_message(**fields):
    metadata = eventbus_pb2.MessageMetadata(topic="alerts.high.reverse-shell")
    return eventbus_pb2.EventBusMessage(metadata=metadata, alert=alert_payload(**fields))


def batch(*messages):
    items = eventbus_service_pb2.MessageBatch(messages=messages)
    return eventbus_service_pb2.SubscribeResponse(batch=items)


def gap(count):
    marker = eventbus_service_pb2.GapMarker(
        dropped_count=count, reason=eventbus_service_pb2.GAP_REASON_DROPPED_OLDEST
    )
    return eventbus_service_pb2.SubscribeResponse(gap=marker)


class PlainHealth(health_pb2_grpc.HealthServicer):
    async def Watch(self, request, context):
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        await asyncio.Event().wait()


async def run_small_process(socket, behaviours):
    """Serves health until SIGTERM. Behaviours: die, stubborn, child, leave."""
    if "die" in behaviours:
        sys.stderr.write('{"level": "critical", "message": "no \\u001b[31mluck today"}\n')
        sys.exit(3)
    if "child" in behaviours:
        await asyncio.create_subprocess_exec("sleep", "600")
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(PlainHealth(), server)
    server.add_insecure_port(f"unix:{socket}")
    stop = asyncio.Event()
    action = (lambda: None) if "stubborn" in behaviours else stop.set
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, action)
    await server.start()
    await stop.wait()
    if "leave" in behaviours:
        os._exit(0)
    await server.stop(0)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(run_small_process(Path(sys.argv[1]), sys.argv[2:]))
