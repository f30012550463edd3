import pytest

from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_eventbus.service_version import negotiate_version
from daemoneye_mesh.bus_feature import BusFeature
from daemoneye_mesh.errors import ErrorReason, InvalidRequestError, PreconditionError

Version = eventbus_pb2.MessageVersion


def ask(*versions, **fields):
    return negotiate_version(
        eventbus_pb2.VersionNegotiationRequest(supported_versions=versions, **fields)
    )


def test_broker_names_every_feature_that_it_offers():
    assert set(ask(Version(major=1)).server_capabilities) == {str(one) for one in BusFeature}


def test_preferred_version_is_taken_when_both_speak_it():
    chosen = ask(Version(major=1), Version(major=1, minor=7), preferred_version=Version(major=1))
    assert chosen.negotiated_version == Version(major=1)


def test_highest_common_version_is_taken_without_a_preference():
    chosen = ask(Version(major=1), Version(major=1, minor=7), Version(major=2))
    assert chosen.negotiated_version == Version(major=1, minor=7)


def test_no_common_version_is_refused_with_what_the_broker_speaks():
    with pytest.raises(PreconditionError, match=r"speaks daemoneye 1\.x") as refused:
        ask(Version(major=2))
    assert refused.value.reason is ErrorReason.VERSION_UNSUPPORTED


@pytest.mark.parametrize("count", [0, 17])
def test_too_few_or_too_many_versions_are_refused(count):
    with pytest.raises(InvalidRequestError, match="name 1 to 16"):
        ask(*[Version(major=1, minor=number) for number in range(count)])


def test_preferred_version_has_to_be_among_those_spoken():
    with pytest.raises(InvalidRequestError, match="not one of supported_versions"):
        ask(Version(major=1), preferred_version=Version(major=1, minor=1))
