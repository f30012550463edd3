"""The lists of ``daemoneye bus``: topics, subscribers, identities."""

import csv
import io

import pytest

from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import identity_stats_pb2, subscription_pb2
from daemoneye_cli.app import build_parser
from daemoneye_cli.exit_code import describe_exit_codes

ACTIONS = ["top", "topics", "subscribers", "identities", "workflows", "tail", "publish"]


def topic(name, published, offered=0, unrouted=0, size=100):
    return pb.TopicStats(
        topic=name,
        published_count=published,
        published_bytes=published * size,
        offered_count=offered,
        unrouted_count=unrouted,
    )


def subscription(number="1", *, offered, delivered=0, dropped=None, **fields):
    flow = pb.FlowCounters(
        offered_count=offered,
        delivered_count=delivered,
        dropped_count=dropped or {},
        pending_count=fields.pop("pending", 0),
        filtered_count=fields.pop("filtered", 0),
    )
    settings = {"is_attached": True, "max_queue_messages": 1000, "identity": "agent/agent"}
    return pb.SubscriptionInfo(
        subscription_id=number,
        subscriber_id=f"name-{number}",
        patterns=["events.#"],
        flow=flow,
        **{**settings, **fields},
    )


@pytest.fixture
def bus(fakes, monkeypatch, request):
    """The broker of the fake mesh, with counters."""

    class CountingBus(fakes.FakeBus):
        def __init__(self):
            super().__init__()
            self.stats = pb.GetBusStatsResponse(broker_epoch="epoch-1")
            self.subscriptions = []

        async def GetBusStats(self, request, context):
            return self.stats

        async def ListSubscriptions(self, request, context):
            return pb.ListSubscriptionsResponse(subscriptions=self.subscriptions)

    monkeypatch.setattr(fakes, "FakeBus", CountingBus)
    return request.getfixturevalue("mesh").bus


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("action", [[], *([one] for one in ACTIONS)])
def test_every_help_of_the_bus_has_examples_and_exit_statuses(capsys, action):
    with pytest.raises(SystemExit) as exited:
        build_parser().parse_args(["bus", *action, "--help"])
    text = capsys.readouterr().out
    assert exited.value.code == 0
    assert describe_exit_codes() in text
    assert "examples:\n  daemoneye bus " in text
    assert "--runtime-dir" in text
    assert max(map(len, text.splitlines())) <= 100


def test_bus_without_an_action_is_wrong_usage(daemoneye):
    assert daemoneye("bus").code == 2


# -- topics ---------------------------------------------------------------------------------------


def test_topics_are_listed_busiest_first_with_what_nobody_wanted(bus, daemoneye):
    bus.stats.topics.extend([topic("events.a", 5, 5), topic("events.b", 1_000, 10, 990)])
    bus.stats.unrouted_count = 990
    result = daemoneye("bus", "topics")
    assert result.code == 0
    lines = [line.split() for line in result.out.splitlines()[2:]]
    assert lines == [
        ["events.b", "1,000", "97.7", "KiB", "10", "990"],
        ["events.a", "5", "500", "B", "5", "0"],
    ]
    document = daemoneye("bus", "topics", "--format", "json").document
    assert document["unrouted_count"] == 990
    assert document["broker_epoch"] == "epoch-1"
    assert document["topics"][0] == {
        "topic": "events.b",
        "published_count": 1_000,
        "published_bytes": 100_000,
        "offered_count": 10,
        "unrouted_count": 990,
    }
    first = rows_of(daemoneye("bus", "topics", "--format", "csv").out)[0]
    assert (first["topic"], first["published_bytes"]) == ("events.b", "100000")


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("published", ["b", "a", "c"]),
        ("bytes", ["c", "b", "a"]),
        ("offered", ["a", "b", "c"]),
        ("unrouted", ["c", "b", "a"]),
        ("topic", ["a", "b", "c"]),
    ],
)
def test_topics_are_sorted_as_asked(bus, daemoneye, order, names):
    bus.stats.topics.extend(
        [topic("a", 5, 9, 0), topic("b", 7, 3, 1), topic("c", 1, 0, 6, size=10_000)]
    )
    document = daemoneye("bus", "topics", "--sort", order, "--format", "json").document
    assert [one["topic"] for one in document["topics"]] == names


def test_topics_past_the_limit_are_told(bus, daemoneye):
    bus.stats.topics.extend(topic(f"events.t{number}", 1) for number in range(5))
    result = daemoneye("bus", "topics", "--limit", "2")
    assert "events.t1" in result.out
    assert "events.t2" not in result.out
    assert "3 topics more; raise --limit" in result.err
    document = daemoneye("bus", "topics", "--limit", "2", "--format", "json").document
    assert (len(document["topics"]), document["topic_count"]) == (2, 5)


# -- subscribers ----------------------------------------------------------------------------------


def test_subscribers_show_the_equation_and_why_messages_were_dropped(bus, daemoneye):
    dropped = {"dropped_oldest": 3, "expired": 1}
    bus.subscriptions = [
        subscription(offered=20, delivered=10, dropped=dropped, pending=4, filtered=2)
    ]
    result = daemoneye("bus", "subscribers")
    assert result.code == 0
    who, where = (result.out.splitlines()[number].split() for number in (2, 6))
    assert who[:5] == ["1", "name-1", "agent/agent", "events.#", "at-most-once"]
    assert who[5:] == ["attached", *["4", "of", "1,000"]]
    assert where[:6] == ["1", "20", "10", "2", "4", "4"]
    assert where[6:] == ["adds", "up", "dropped_oldest", "3,", "expired", "1"]
    document = daemoneye("bus", "subscribers", "--format", "json").document
    (one,) = document["subscriptions"]
    assert document["adds_up"] is True
    assert (one["dropped"], one["dropped_count"]) == (dropped, 4)
    assert (one["offered_count"], one["unaccounted_count"], one["adds_up"]) == (20, 0, True)


@pytest.mark.parametrize(("delivered", "missing"), [(9, 1), (12, -2)])
def test_row_that_does_not_add_up_is_shown_and_degrades(bus, daemoneye, delivered, missing):
    bus.subscriptions = [subscription("1", offered=3, delivered=3)]
    bus.subscriptions.append(subscription("2", offered=10, delivered=delivered))
    result = daemoneye("bus", "subscribers")
    assert result.code == 3
    assert f"off by {missing}" in result.out.splitlines()[8]
    assert "degraded: subscription 2 (agent/agent) does not add up: 10 offered ≠" in result.err
    result = daemoneye("bus", "subscribers", "--format", "json")
    assert (result.code, result.err) == (3, "")
    assert result.document["adds_up"] is False
    assert [one["unaccounted_count"] for one in result.document["subscriptions"]] == [0, missing]
    result = daemoneye("bus", "subscribers", "--format", "csv")
    assert result.code == 3
    assert rows_of(result.out)[1]["unaccounted_count"] == str(missing)


@pytest.mark.parametrize(
    ("flags", "state"),
    [
        ({}, "attached"),
        ({"is_paused": True}, "paused"),
        ({"is_attached": False}, "away"),
        ({"is_attached": False, "is_paused": True}, "away"),
    ],
)
def test_subscription_has_its_state(bus, daemoneye, flags, state):
    bus.subscriptions = [subscription(offered=0, **flags)]
    document = daemoneye("bus", "subscribers", "--format", "json").document
    assert document["subscriptions"][0]["state"] == state
    assert state in daemoneye("bus", "subscribers").out


def test_subscription_shows_its_guarantee_and_group(bus, daemoneye):
    qos = subscription_pb2.QosSettings(
        delivery_guarantee=subscription_pb2.DELIVERY_GUARANTEE_AT_LEAST_ONCE
    )
    config = subscription_pb2.SubscriptionConfig(consumer_group="workers", qos_settings=qos)
    bus.subscriptions = [subscription(offered=0, config=config)]
    assert "at-least-once in workers" in daemoneye("bus", "subscribers").out
    one = daemoneye("bus", "subscribers", "--format", "json").document["subscriptions"][0]
    assert (one["guarantee"], one["consumer_group"]) == ("at-least-once", "workers")


@pytest.mark.parametrize("name", ["2", "name-2", "operator/local"])
def test_subscribers_are_found_by_id_name_or_identity(bus, daemoneye, name):
    bus.subscriptions = [
        subscription("1", offered=5),  # does not add up, and was not asked for
        subscription("2", offered=1, delivered=1, identity="operator/local"),
    ]
    result = daemoneye("bus", "subscribers", name, "--format", "json")
    assert result.code == 0
    assert [one["subscription_id"] for one in result.document["subscriptions"]] == ["2"]


def test_subscriber_that_is_not_there_is_said(bus, daemoneye):
    result = daemoneye("bus", "subscribers", "nobody")
    assert result.code == 0
    assert "no subscription has the id, name or identity nobody" in result.err


def test_name_of_a_subscriber_cannot_steer_the_terminal(bus, daemoneye):
    bus.subscriptions = [subscription(offered=0)]
    bus.subscriptions[0].subscriber_id = "\x1b[2J[red]x"
    result = daemoneye("bus", "subscribers")
    assert "\x1b" not in result.out
    assert "\\x1b[2J[red]x" in result.out


# -- identities -----------------------------------------------------------------------------------


def test_identities_show_what_was_refused_to_whom(bus, daemoneye):
    bus.stats.identities.append(
        identity_stats_pb2.IdentityStats(
            identity="collector/procmond",
            published_count=1_500,
            published_bytes=2048,
            refused_count={"RATE_LIMITED": 7, "ACCESS_DENIED": 2},
            stream_count=1,
            granted_queue_bytes=1 << 20,
        )
    )
    (line,) = daemoneye("bus", "identities").out.splitlines()[2:]
    assert line.split()[:4] == ["collector/procmond", "1,500", "2.0", "KiB"]
    assert line.rstrip().endswith("9   RATE_LIMITED 7, ACCESS_DENIED 2")
    (one,) = daemoneye("bus", "identities", "--format", "json").document["identities"]
    assert one["refused_total"] == 9
    assert one["refused_count"] == {"RATE_LIMITED": 7, "ACCESS_DENIED": 2}
    (row,) = rows_of(daemoneye("bus", "identities", "--format", "csv").out)
    assert (row["refused_total"], row["granted_queue_bytes"]) == ("9", "1048576")


def test_lists_need_the_broker(mesh, daemoneye):
    mesh.layout.eventbus_socket.unlink()
    for action in ("topics", "subscribers", "identities"):
        result = daemoneye("bus", action)
        assert (result.code, result.out) == (4, "")
        assert "no broker: there is no socket" in result.err
