import pytest

from collector_core.bus import Guarantee, Overflow, SubscriptionOptions
from collector_core.bus.negotiation import negotiate
from daemoneye_mesh.bus_feature import BusFeature
from daemoneye_mesh.errors import ErrorReason, UnsupportedError

PATTERN = "control.collector.lifecycle"


@pytest.fixture
async def channel(broker, serve, connect):
    server = await serve(broker)
    return connect(server.path)


async def test_client_says_what_it_can_use(broker, channel):
    await negotiate(channel)
    assert set(broker.versions[0].client_capabilities) == {str(one) for one in BusFeature}


async def test_broker_that_offers_what_is_needed_is_agreed_with(broker, channel):
    limits = await negotiate(channel, [BusFeature.GROUPS, BusFeature.HISTORY])
    assert limits.max_message_bytes == 1 << 20


async def test_broker_without_a_needed_feature_is_refused_by_its_name(broker, channel):
    broker.features = ["groups", "of_the_future"]
    with pytest.raises(UnsupportedError, match="does not offer credit, history; upgrade it") as it:
        await negotiate(channel, [BusFeature.GROUPS, BusFeature.HISTORY, BusFeature.CREDIT])
    assert it.value.reason is ErrorReason.FEATURE_UNSUPPORTED
    assert it.value.metadata["features"] == "credit, history"


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({}, set()),
        ({"guarantee": Guarantee.AT_LEAST_ONCE}, {BusFeature.ACKNOWLEDGEMENT}),
        (
            {"guarantee": Guarantee.EXACTLY_ONCE},
            {BusFeature.ACKNOWLEDGEMENT, BusFeature.DUPLICATES},
        ),
        ({"durable_for_s": 9.0, "subscriber_id": "unit"}, {BusFeature.DURABLE}),
        ({"history_s": 0.0}, {BusFeature.HISTORY}),
        ({"consumer_group": "workers"}, {BusFeature.CONSUMER_GROUPS}),
        ({"event_types": [0]}, {BusFeature.FILTERS}),
        ({"min_sequence_number": 0}, {BusFeature.FILTERS}),
        ({"patterns": [(PATTERN, 7)]}, {BusFeature.FILTERS}),
        ({"credit": 0}, {BusFeature.CREDIT}),
        ({"policy": Overflow.BLOCK}, {BusFeature.BLOCK}),
    ],
)
def test_options_say_which_features_they_need(options, needed):
    chosen = SubscriptionOptions(**{"patterns": [PATTERN], **options})
    assert chosen.features == {BusFeature.GROUPS, *needed}
