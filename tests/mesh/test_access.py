import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye_mesh.access import MAX_REFUSAL_KEYS, OVERFLOW_NAME, AccessTable, pattern_contains
from daemoneye_mesh.errors import (
    Code,
    ErrorReason,
    InvalidConfigError,
    InvalidRequestError,
    PermissionDeniedError,
)
from daemoneye_mesh.identity import Identity, IdentityKind, Principal
from daemoneye_mesh.topic import DOMAINS, matches

ROOT = Path(__file__).parents[2]
BUS = "/daemoneye.eventbus.v1.EventBusService"
COLLECTOR_SERVICE = "/daemoneye.ipc.v1.CollectorService"

AGENT = Identity("mesh", IdentityKind.AGENT, "agent")
BROKER = Identity("mesh", IdentityKind.BROKER, "eventbus")
OPERATOR = Identity("mesh", IdentityKind.OPERATOR, "alice")
PROCMOND = Principal(
    Identity("mesh", IdentityKind.COLLECTOR, "procmond"), frozenset({"process", "network"})
)


@pytest.fixture
def table():
    return AccessTable.load()


@pytest.mark.parametrize(
    ("caller", "method"),
    [
        (AGENT, f"{COLLECTOR_SERVICE}/ExecuteTask"),
        (AGENT, "/daemoneye.ipc.v1.CollectorControlService/PauseMonitoring"),
        (AGENT, f"{BUS}/GetBusStats"),
        (PROCMOND, "/daemoneye.agent.v1.RegistryService/Heartbeat"),
        (PROCMOND, f"{BUS}/PublishStream"),
        (OPERATOR, "/daemoneye.agent.v1.QueryService/ExecuteQuery"),
        (OPERATOR, "/daemoneye.agent.v1.RegistryService/IssueToken"),
        (OPERATOR, f"{COLLECTOR_SERVICE}/DescribeSchema"),
        (OPERATOR, f"{BUS}/Publish"),
        (OPERATOR, "/daemoneye.eventbus.v1.CorrelationService/ListWorkflows"),
        (AGENT, "/daemoneye.eventbus.v1.CorrelationService/GetWorkflow"),
        (BROKER, "/grpc.health.v1.Health/Watch"),
    ],
)
def test_table_lets_each_kind_call_what_its_work_needs(table, caller, method):
    assert table.may_call(caller, method)


@pytest.mark.parametrize(
    ("caller", "method"),
    [
        (AGENT, "/daemoneye.agent.v1.QueryService/ExecuteQuery"),
        (BROKER, f"{COLLECTOR_SERVICE}/ExecuteTask"),
        (PROCMOND, f"{COLLECTOR_SERVICE}/ExecuteTask"),
        (PROCMOND, f"{BUS}/GetBusStats"),
        (PROCMOND, "/daemoneye.agent.v1.QueryService/ExecuteQuery"),
        (PROCMOND, "/daemoneye.eventbus.v1.CorrelationService/ListWorkflows"),
        (OPERATOR, f"{BUS}/PublishStream"),
        (OPERATOR, f"{COLLECTOR_SERVICE}/ExecuteTask"),
        (OPERATOR, "/daemoneye.agent.v1.RegistryService/RegisterCollector"),
        (AGENT, f"{BUS}/"),
        (AGENT, f"{BUS}/*"),
        (AGENT, BUS),
        (AGENT, f"{BUS}/a/b"[1:]),
        (AGENT, f"{BUS}X/Publish"),
        (AGENT, ""),
        (AGENT, "/"),
    ],
)
def test_table_denies_every_call_it_does_not_list(table, caller, method):
    assert not table.may_call(caller, method)


@pytest.mark.parametrize(
    ("caller", "topic"),
    [
        (PROCMOND, "events.process.lifecycle"),
        (PROCMOND, "events.network"),
        (PROCMOND, "control.health.heartbeat.procmond"),
        (AGENT, "alerts.high.tmp-exec"),
        (AGENT, "control.collector.lifecycle"),
        (BROKER, "control.health.status"),
        (BROKER, "control.audit.refusals"),
        (OPERATOR, "control.operator.alice"),
        (OPERATOR, "control.operator.alice.note"),
    ],
)
def test_table_lets_each_kind_publish_in_its_own_domain(table, caller, topic):
    assert table.may_publish(caller, topic)


@pytest.mark.parametrize(
    ("caller", "topic"),
    [
        (PROCMOND, "events.filesystem.bulk"),
        (PROCMOND, "events.processes.new"),
        (PROCMOND, "events"),
        (PROCMOND, "events.process.+"),
        (PROCMOND, "events.process.#"),
        (PROCMOND, "control.health.heartbeat.other"),
        (PROCMOND, "control.shutdown"),
        (PROCMOND, "alerts.high.fake"),
        (PROCMOND, ""),
        (AGENT, "events.process.lifecycle"),
        (OPERATOR, "alerts.high.fake"),
        (OPERATOR, "control.operator.bob.note"),
        (OPERATOR, "control.operator"),
        (OPERATOR, "control.shutdown"),
        (BROKER, "alerts.high.fake"),
        (Principal(PROCMOND.identity), "events.process.lifecycle"),
    ],
)
def test_table_denies_every_publication_it_does_not_list(table, caller, topic):
    assert not table.may_publish(caller, topic)


@pytest.mark.parametrize(
    ("caller", "pattern"),
    [
        (PROCMOND, "control.collector.instance.procmond"),
        (PROCMOND, "control.collector.instance.procmond.#"),
        (PROCMOND, "control.collector.instance.procmond.+"),
        (PROCMOND, "control.shutdown"),
        (AGENT, "events.+.lifecycle"),
        (OPERATOR, "alerts.#"),
        (OPERATOR, "#"),
        (OPERATOR, "+.health.#"),
    ],
)
def test_table_grants_a_subscription_that_lies_within_the_granted_ones(table, caller, pattern):
    assert table.may_subscribe(caller, pattern)


@pytest.mark.parametrize(
    ("caller", "pattern"),
    [
        (PROCMOND, "#"),
        (PROCMOND, "control.#"),
        (PROCMOND, "control.collector.instance.+.#"),
        (PROCMOND, "control.collector.instance.other.#"),
        (PROCMOND, "control.collector.+"),
        (PROCMOND, "+.shutdown"),
        (PROCMOND, "events.process.#"),
        (BROKER, "events.#"),
        (AGENT, "events.*"),
        (AGENT, "events.#.x"),
        (AGENT, ""),
    ],
)
def test_table_denies_a_subscription_that_is_wider_than_the_granted_ones(table, caller, pattern):
    assert not table.may_subscribe(caller, pattern)


def test_table_refusal_names_identity_and_method_and_is_counted(table):
    for _ in range(2):
        with pytest.raises(PermissionDeniedError) as caught:
            table.require_call(OPERATOR, f"{BUS}/PublishStream")

    assert (caught.value.code, caught.value.reason) == (
        Code.PERMISSION_DENIED,
        ErrorReason.ACCESS_DENIED,
    )
    assert caught.value.metadata["identity"] == "operator/alice"
    assert caught.value.metadata["method"] == f"{BUS}/PublishStream"
    assert f"operator/alice may not call method {BUS}/PublishStream" in caught.value.message
    assert table.refusals == {("operator/alice", "call"): 2}


def test_table_refusal_of_a_topic_says_which_ones_are_granted(table):
    with pytest.raises(PermissionDeniedError) as published:
        table.require_publish(PROCMOND, "events.filesystem.bulk")
    with pytest.raises(PermissionDeniedError) as subscribed:
        table.require_subscribe(BROKER, "events.#")

    assert published.value.metadata["allowed"] == (
        "events.network.#, events.process.#, control.health.heartbeat.procmond"
    )
    assert published.value.metadata["topic"] == "events.filesystem.bulk"
    assert subscribed.value.metadata["pattern"] == "events.#"
    assert table.refusals == {
        ("collector/procmond", "publish"): 1,
        ("broker/eventbus", "subscribe"): 1,
    }


def test_table_requirements_pass_and_count_nothing_when_granted(table):
    table.require_call(AGENT, f"{BUS}/Publish")
    table.require_publish(AGENT, "alerts.high.x")
    table.require_subscribe(AGENT, "events.#")

    assert not table.refusals


@pytest.mark.parametrize(
    ("caller", "expected"), [(AGENT, True), (BROKER, False), (OPERATOR, False), (PROCMOND, False)]
)
def test_table_lets_only_the_agent_make_publishers_wait(table, caller, expected):
    assert table.may_block(caller) is expected


def test_table_refusal_to_block_names_the_policy_and_is_counted(table):
    table.require_block(AGENT)
    with pytest.raises(PermissionDeniedError) as caught:
        table.require_block(OPERATOR)

    assert caught.value.reason is ErrorReason.ACCESS_DENIED
    assert caught.value.metadata == {
        "identity": "operator/alice",
        "action": "block",
        "policy": "OVERFLOW_POLICY_BLOCK",
    }
    assert table.refusals == {("operator/alice", "block"): 1}


def test_table_tells_its_listener_of_every_refusal(table):
    heard = []

    def listen(identity, action, reason, target):
        heard.append((identity, action, reason, target))

    table.on_refusal = listen
    table.require_publish(AGENT, "alerts.high.x")
    for refused in (
        lambda: table.require_call(OPERATOR, f"{BUS}/PublishStream"),
        lambda: table.require_publish(OPERATOR, "control.shutdown"),
        lambda: table.require_subscribe(BROKER, "events.#"),
        lambda: table.require_block(PROCMOND),
    ):
        with pytest.raises(PermissionDeniedError):
            refused()

    denied = ErrorReason.ACCESS_DENIED
    assert heard == [
        ("operator/alice", "call", denied, f"{BUS}/PublishStream"),
        ("operator/alice", "publish", denied, "control.shutdown"),
        ("broker/eventbus", "subscribe", denied, "events.#"),
        ("collector/procmond", "block", denied, "OVERFLOW_POLICY_BLOCK"),
    ]


def test_table_answers_the_same_question_for_each_caller_on_its_own(table):
    topic = "control.health.heartbeat.procmond"
    other = Principal(Identity("mesh", IdentityKind.COLLECTOR, "other"), PROCMOND.domains)
    narrow = Principal(PROCMOND.identity, frozenset({"network"}))

    for _ in range(2):
        assert table.may_publish(PROCMOND, topic)
        assert not table.may_publish(other, topic)
        assert table.may_publish(PROCMOND, "events.process.x")
        assert not table.may_publish(narrow, "events.process.x")


def test_table_keeps_no_topic_that_is_longer_than_one_may_be(table):
    topic = "events.process." + "x" * 1_000_000
    references = sys.getrefcount(topic)

    assert not table.may_publish(PROCMOND, topic)

    assert sys.getrefcount(topic) == references


def test_table_calls_a_malformed_topic_malformed_and_not_forbidden(table):
    with pytest.raises(InvalidRequestError) as topic:
        table.require_publish(AGENT, "events..x")
    with pytest.raises(InvalidRequestError) as pattern:
        table.require_subscribe(AGENT, "events.*")

    assert topic.value.reason is ErrorReason.TOPIC_INVALID
    assert pattern.value.reason is ErrorReason.PATTERN_INVALID


def test_table_refusal_counter_is_bounded(table):
    for number in range(MAX_REFUSAL_KEYS + 10):
        with pytest.raises(PermissionDeniedError):
            table.require_call(Identity("mesh", IdentityKind.BROKER, f"b{number}"), "/a.B/C")

    assert len(table.refusals) == MAX_REFUSAL_KEYS + 1
    assert table.refusals[OVERFLOW_NAME, "call"] == 10


def test_table_leaves_only_health_and_reflection_open(table):
    services = {entry.partition("/")[0] for entry in table.open_methods}

    assert services == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert table.is_open("/grpc.health.v1.Health/Check")
    assert not table.is_open(f"{BUS}/Publish")


def test_table_lists_only_services_and_methods_of_the_contract(table):
    contract = set()
    for file in (ROOT / "protos").rglob("*_service.proto"):
        text = file.read_text("utf-8")
        package = re.search(r"^package (\S+);", text, re.MULTILINE)[1]
        service = re.search(r"^service (\w+) ", text, re.MULTILINE)[1]
        methods = re.findall(r"^  rpc (\w+)\(", text, re.MULTILINE)
        contract |= {f"{package}.{service}/{method}" for method in [*methods, "*"]}

    listed = {entry for grants in table.grants.values() for entry in grants.call}

    assert listed - contract == set()


@pytest.mark.parametrize(
    "document",
    [
        "not toml",
        "[stranger]",
        "open = 'all'",
        "open = ['grpc.health.v1.Health']",
        "open = ['*/*']",
        "agent = 7",
        "[agent]\nwrite = []",
        "[agent]\ncall = ['daemoneye.*/Publish']",
        "[agent]\ncall = ['daemoneye.a.v1.B/Pub*']",
        "[agent]\ncall = [7]",
        "[agent]\npublish = ['events.*']",
        "[agent]\npublish = ['events.x{id}']",
        "[agent]\npublish = ['events.{name}']",
        "[agent]\nsubscribe = ['other.#']",
        "[agent]\nblock = 'yes'",
        "[agent]\nblock = 1",
    ],
)
def test_table_file_is_refused_when_it_breaks_the_form(tmp_path, document):
    (tmp_path / "access.toml").write_text(document)

    with pytest.raises(InvalidConfigError, match="access table is refused"):
        AccessTable.load(tmp_path / "access.toml")


def test_table_denies_everything_to_a_kind_the_file_leaves_out(tmp_path):
    (tmp_path / "access.toml").write_text("[agent]\npublish = ['control.#']")
    table = AccessTable.load(tmp_path / "access.toml")

    assert table.may_publish(AGENT, "control.x")
    assert not table.may_publish(BROKER, "control.x")
    assert not table.may_call(AGENT, "/grpc.health.v1.Health/Check")


# Two literals that patterns use and one they never do: enough to tell any two patterns apart.
_TOPICS = [
    ".".join([domain, *rest])
    for domain in DOMAINS
    for depth in range(5)
    for rest in product(("a", "b", "z"), repeat=depth)
]
_SEGMENTS = st.lists(st.sampled_from(["a", "b", "+"]), max_size=3)


@st.composite
def patterns(draw):
    first = draw(st.sampled_from([*DOMAINS, "+", "+", "#"]))
    if first == "#":
        return first
    tail = draw(st.sampled_from([[], ["#"]]))
    return ".".join([first, *draw(_SEGMENTS), *tail])


@given(patterns(), patterns())
def test_pattern_contains_another_exactly_when_it_matches_all_its_topics(allowed, requested):
    wanted = [topic for topic in _TOPICS if matches(requested, topic)]

    assert pattern_contains(allowed, requested) == all(matches(allowed, one) for one in wanted)


def test_access_page_is_the_printed_table():
    printed = subprocess.run(
        [sys.executable, "-m", "daemoneye_mesh.access"],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT / "sdk/python/src")},
        timeout=30,
    ).stdout

    assert (ROOT / "docs/access.md").read_text("utf-8") == printed
