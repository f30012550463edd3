"""What a collector announces follows from the methods that its sources have."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_core import EventSource, SourceCaps
from collector_core.capability import (
    Analyzes,
    AnswersTasks,
    ChecksHealth,
    Closes,
    Degrades,
    Prepares,
    Reconfigures,
    Stops,
    Watches,
    caps_of,
)
from collector_core.monitor import MAX_SOURCES, check_sources
from daemoneye.common.v1 import analysis_pb2, common_pb2
from daemoneye.ipc.v1 import ipc_pb2
from daemoneye_mesh.errors import InvalidConfigError

ENUMERATE = common_pb2.TASK_TYPE_ENUMERATE_PROCESSES
HASH = analysis_pb2.ANALYSIS_TYPE_BINARY_HASH
ALL_CAPS = st.integers(0, 127).map(SourceCaps)


class Named(EventSource):
    """A source that can do nothing yet."""

    def __init__(self, name: str = "one", caps: SourceCaps = SourceCaps.PROCESS) -> None:
        self.name = name
        self.caps = caps


class Answering(Named):
    task_types = frozenset({ENUMERATE})
    tables = ()

    async def execute(self, task: Any, report: Any) -> Any:
        yield common_pb2.ProcessRecord()


class Analyzing(Named):
    analyses = frozenset({HASH})

    async def analyze(self, request: Any) -> Any:
        raise NotImplementedError


def test_bits_are_those_of_the_record() -> None:
    assert {one.name: one.value for one in SourceCaps} == {
        "PROCESS": 1,
        "NETWORK": 2,
        "FILESYSTEM": 4,
        "PERFORMANCE": 8,
        "REALTIME": 16,
        "KERNEL_LEVEL": 32,
        "SYSTEM_WIDE": 64,
    }


@pytest.mark.parametrize(
    ("capability", "method"),
    [
        (Watches, "watch"),
        (Prepares, "prepare"),
        (Stops, "stop"),
        (Closes, "close"),
        (ChecksHealth, "health_check"),
        (Degrades, "degradations"),
        (Reconfigures, "reconfigure"),
    ],
)
def test_capability_is_the_method(capability: type, method: str) -> None:
    able = type("Able", (Named,), {method: lambda self: None})
    assert isinstance(able(), capability)
    assert not isinstance(Named(), capability)


def test_source_that_only_has_the_attribute_of_a_capability_does_not_have_it() -> None:
    half = type("Half", (Named,), {"task_types": frozenset({ENUMERATE}), "tables": ()})
    assert not isinstance(half(), AnswersTasks)
    assert caps_of([half()]).task_types == frozenset()


def test_collector_announces_what_its_sources_can_do_together() -> None:
    network = Named("net", SourceCaps.NETWORK | SourceCaps.REALTIME)
    announced = caps_of([Answering("tasks"), Analyzing("hash", SourceCaps(0)), network])
    assert isinstance(Analyzing(), Analyzes)
    assert announced.task_types == {ENUMERATE}
    assert announced.analyses == {HASH}
    assert announced.caps == SourceCaps.PROCESS | SourceCaps.NETWORK | SourceCaps.REALTIME
    assert announced.domains == (
        ipc_pb2.MONITORING_DOMAIN_PROCESS,
        ipc_pb2.MONITORING_DOMAIN_NETWORK,
    )
    assert announced.domain_names == {"process", "network"}


@given(st.lists(ALL_CAPS, min_size=1, max_size=5), st.randoms())
def test_union_knows_neither_order_nor_repetition(caps: list[SourceCaps], random: Any) -> None:
    sources = [Named(str(number), one) for number, one in enumerate(caps)]
    shuffled = [*sources, *sources]
    random.shuffle(shuffled)
    assert caps_of(sources) == caps_of(shuffled)
    assert all(one in caps_of(sources).caps for one in caps)


@pytest.mark.parametrize(
    ("sources", "problem"),
    [
        ([], "1 to 16 sources"),
        ([Named(str(number)) for number in range(MAX_SOURCES + 1)], "1 to 16 sources"),
        ([Named("a"), Named("a")], "two sources are called a"),
        ([Named("a", SourceCaps.REALTIME)], "no source has a domain"),
    ],
)
def test_sources_that_cannot_run_together_are_refused(sources: Any, problem: str) -> None:
    with pytest.raises(InvalidConfigError, match=problem):
        check_sources(sources)
