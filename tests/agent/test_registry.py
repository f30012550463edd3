"""Leases of collectors, on a clock that the test moves."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from daemoneye_agent.registry import (
    MAX_COLLECTORS,
    Collector,
    CollectorRegistry,
    CollectorState,
    Heartbeat,
    InstanceSupersededError,
    NotRegisteredError,
    RegistrationRequest,
    ReportedHealth,
    Transition,
)
from daemoneye_mesh.errors import (
    ConflictError,
    ErrorReason,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    PreconditionError,
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def wall_ns(self) -> int:
        return int(self.now_s * 10**9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> CollectorRegistry:
    return CollectorRegistry(clock, clock.wall_ns)


def make_request(name: str = "procmond", epoch: int = 1, **other: object) -> RegistrationRequest:
    return RegistrationRequest(name, epoch, **other)


def beat(
    registry: CollectorRegistry,
    epoch: int = 1,
    sequence: int = 1,
    health: ReportedHealth = ReportedHealth.HEALTHY,
    detail: str = "",
) -> None:
    registry.heartbeat(Heartbeat("procmond", epoch, sequence, health, detail), "procmond")


def sweep(registry: CollectorRegistry, clock: Clock, seconds: int) -> list[Transition]:
    changes: list[Transition] = []
    for _ in range(seconds):
        clock.now_s += 1
        changes += registry.expire()
    return changes


def find(registry: CollectorRegistry) -> Collector:
    collector = registry.get("procmond")
    assert collector is not None
    return collector


def state(registry: CollectorRegistry) -> CollectorState:
    return find(registry).state


def test_registration_grants_a_lease_of_three_intervals(registry: CollectorRegistry) -> None:
    lease = registry.register(make_request(heartbeat_interval_s=2), "procmond")
    assert (lease.heartbeat_interval_s, lease.lease_s) == (2, 6)
    assert state(registry) is CollectorState.REGISTERED


@pytest.mark.parametrize(
    ("wanted_s", "granted_s"),
    [(None, 5), (0, 5), (-3, 5), (float("nan"), 5), (0.01, 1), (7.5, 7.5), (1e9, 60)],
)
def test_heartbeat_interval_is_kept_in_range(
    registry: CollectorRegistry, wanted_s: float | None, granted_s: float
) -> None:
    lease = registry.register(make_request(heartbeat_interval_s=wanted_s), "procmond")
    assert lease.heartbeat_interval_s == granted_s


@pytest.mark.parametrize("name", ["", "Procmond", "a.b", "a/b", "x" * 65, "a b", "é", "a\n"])
def test_malformed_collector_id_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="malformed"):
        make_request(name)


@pytest.mark.parametrize(
    "fields",
    [
        {"domains": ("d",) * 257},
        {"capabilities": ("c" * 513,)},
        {"capabilities": ("",)},
        {"version": "v" * 513},
        {"socket_path": "/" * 513},
        {"epoch": -1},
        {"pid": -1},
    ],
)
def test_registration_beyond_its_bounds_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError):
        make_request(**fields)


def test_heartbeat_beyond_its_bounds_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        Heartbeat("procmond", 1, 1, metrics={f"m{number}": 1.0 for number in range(65)})
    with pytest.raises(InvalidRequestError):
        Heartbeat("procmond", 1, 1, detail="x" * 513)


def test_nobody_speaks_for_another_collector(registry: CollectorRegistry) -> None:
    with pytest.raises(PermissionDeniedError, match="own token"):
        registry.register(make_request(), "netmond")
    registry.register(make_request(), "procmond")
    with pytest.raises(PermissionDeniedError):
        registry.heartbeat(Heartbeat("procmond", 1, 1), "netmond")
    with pytest.raises(PermissionDeniedError):
        registry.deregister("procmond", 1, "netmond")
    assert state(registry) is CollectorState.REGISTERED


def test_heartbeat_of_an_unknown_collector_is_told_to_register(
    registry: CollectorRegistry,
) -> None:
    with pytest.raises(NotRegisteredError, match="register again") as caught:
        beat(registry)
    assert isinstance(caught.value, PreconditionError)
    assert caught.value.reason is ErrorReason.NOT_REGISTERED


def test_heartbeat_of_a_newer_instance_that_never_registered_is_told_to_register(
    registry: CollectorRegistry,
) -> None:
    registry.register(make_request(epoch=1), "procmond")
    with pytest.raises(NotRegisteredError):
        beat(registry, epoch=2)


def test_newer_instance_supersedes_the_older(registry: CollectorRegistry) -> None:
    registry.register(make_request(epoch=1), "procmond")
    registry.register(make_request(epoch=2), "procmond")
    with pytest.raises(InstanceSupersededError) as caught:
        beat(registry, epoch=1)
    assert isinstance(caught.value, ConflictError)
    assert caught.value.reason is ErrorReason.SUPERSEDED
    assert caught.value.metadata["current_epoch"] == "2"
    with pytest.raises(InstanceSupersededError):
        registry.deregister("procmond", 1, "procmond")
    beat(registry, epoch=2)
    assert find(registry).registration.instance_epoch == 2


def test_older_instance_cannot_register_even_after_the_newer_left(
    registry: CollectorRegistry,
) -> None:
    registry.register(make_request(epoch=5), "procmond")
    with pytest.raises(InstanceSupersededError):
        registry.register(make_request(epoch=4), "procmond")
    registry.deregister("procmond", 5, "procmond")
    with pytest.raises(InstanceSupersededError):
        registry.register(make_request(epoch=4), "procmond")


def test_same_instance_may_register_again_with_new_details(registry: CollectorRegistry) -> None:
    registry.register(make_request(version="1"), "procmond")
    registry.register(make_request(version="2"), "procmond")
    assert find(registry).registration.version == "2"
    assert len(registry.collectors()) == 1


@pytest.mark.parametrize(
    ("health", "expected"),
    [
        (ReportedHealth.STARTING, CollectorState.REGISTERED),
        (ReportedHealth.HEALTHY, CollectorState.SERVING),
        (ReportedHealth.DEGRADED, CollectorState.DEGRADED),
        (ReportedHealth.UNHEALTHY, CollectorState.UNAVAILABLE),
    ],
)
def test_heartbeat_moves_the_state_to_the_health_it_reports(
    registry: CollectorRegistry, health: ReportedHealth, expected: CollectorState
) -> None:
    registry.register(make_request(), "procmond")
    beat(registry, health=health, detail="polling only")
    assert state(registry) is expected
    assert find(registry).reason.endswith("polling only")


def test_three_missed_heartbeats_make_a_collector_unavailable(
    registry: CollectorRegistry, clock: Clock
) -> None:
    registry.register(make_request(heartbeat_interval_s=5), "procmond")
    beat(registry)
    assert sweep(registry, clock, 14) == []
    assert find(registry).missed_heartbeats == 2
    [change] = sweep(registry, clock, 1)
    assert (change.before, change.after) == (CollectorState.SERVING, CollectorState.UNAVAILABLE)
    assert change.reason == "no heartbeat for 15 s"
    assert sweep(registry, clock, 60) == []


def test_collector_that_registers_and_never_beats_becomes_unavailable(
    registry: CollectorRegistry, clock: Clock
) -> None:
    registry.register(make_request(heartbeat_interval_s=1), "procmond")
    assert len(sweep(registry, clock, 3)) == 1


def test_heartbeats_in_time_keep_a_collector_serving(
    registry: CollectorRegistry, clock: Clock
) -> None:
    registry.register(make_request(heartbeat_interval_s=5), "procmond")
    for sequence in range(1, 10):
        beat(registry, sequence=sequence)
        assert sweep(registry, clock, 14) == []
    assert state(registry) is CollectorState.SERVING


def test_unavailable_collector_recovers_with_its_next_heartbeat(
    registry: CollectorRegistry, clock: Clock
) -> None:
    registry.register(make_request(), "procmond")
    sweep(registry, clock, 20)
    assert state(registry) is CollectorState.UNAVAILABLE
    beat(registry)
    assert state(registry) is CollectorState.SERVING


def test_sleep_of_the_host_costs_no_lease_but_silence_after_it_does(
    registry: CollectorRegistry, clock: Clock
) -> None:
    registry.register(make_request(heartbeat_interval_s=5), "procmond")
    beat(registry)
    clock.now_s += 3600
    assert registry.expire() == ()
    assert sweep(registry, clock, 4) == []
    assert len(sweep(registry, clock, 1)) == 1


def test_every_sleep_of_the_host_is_forgiven_when_heartbeats_came_between(
    registry: CollectorRegistry, clock: Clock
) -> None:
    registry.register(make_request(), "procmond")
    for sequence in range(1, 4):
        beat(registry, sequence=sequence)
        clock.now_s += 3600
        assert registry.expire() == ()


def test_sweeps_that_always_come_late_still_expire_a_silent_collector(
    registry: CollectorRegistry, clock: Clock
) -> None:
    registry.register(make_request(heartbeat_interval_s=5), "procmond")
    changes: list[Transition] = []
    for _ in range(2):
        clock.now_s += 30
        changes += registry.expire()
    assert [change.after for change in changes] == [CollectorState.UNAVAILABLE]


def test_heartbeats_that_never_came_are_counted_by_their_numbers(
    registry: CollectorRegistry,
) -> None:
    registry.register(make_request(), "procmond")
    for sequence in (1, 2, 5, 5, 6):
        beat(registry, sequence=sequence)
    assert find(registry).sequence_gaps == 2


def test_deregistered_collector_stays_known_and_must_register_again(
    registry: CollectorRegistry, clock: Clock
) -> None:
    registry.register(make_request(), "procmond")
    registry.deregister("procmond", 1, "procmond", "shutting down")
    assert (state(registry), find(registry).reason) == (
        CollectorState.DEREGISTERED,
        "shutting down",
    )
    assert sweep(registry, clock, 60) == []
    with pytest.raises(NotRegisteredError):
        beat(registry)
    with pytest.raises(NotRegisteredError):
        registry.deregister("procmond", 1, "procmond")
    registry.register(make_request(epoch=1), "procmond")
    assert state(registry) is CollectorState.REGISTERED


def test_changes_are_called_back_in_order_until_unsubscribed(
    registry: CollectorRegistry, clock: Clock
) -> None:
    changes: list[Transition] = []
    unsubscribe = registry.on_change(changes.append)
    registry.register(make_request(), "procmond")
    beat(registry)
    beat(registry, sequence=2)
    sweep(registry, clock, 15)
    unsubscribe()
    beat(registry, sequence=3)
    assert [(change.before, change.after) for change in changes] == [
        (None, CollectorState.REGISTERED),
        (CollectorState.REGISTERED, CollectorState.SERVING),
        (CollectorState.SERVING, CollectorState.UNAVAILABLE),
    ]
    assert changes[-1].at_ns == 1015 * 10**9


def test_callback_sees_the_new_state_in_place(registry: CollectorRegistry) -> None:
    seen: list[CollectorState] = []
    registry.on_change(lambda _: seen.append(state(registry)))
    registry.register(make_request(), "procmond")
    beat(registry)
    assert seen == [CollectorState.REGISTERED, CollectorState.SERVING]


def test_transitions_are_kept_over_instances_and_bounded(registry: CollectorRegistry) -> None:
    for epoch in range(1, 100):
        registry.register(make_request(epoch=epoch), "procmond")
    transitions = find(registry).transitions
    assert len(transitions) == 32
    assert transitions[-1].instance_epoch == 99
    assert transitions[-1].reason == "instance 98 was superseded"


def test_number_of_collectors_is_bounded_and_the_departed_make_room(
    registry: CollectorRegistry, clock: Clock
) -> None:
    for number in range(MAX_COLLECTORS):
        registry.register(make_request(f"c{number}"), f"c{number}")
    with pytest.raises(OverloadedError, match="stop one first"):
        registry.register(make_request("late"), "late")
    registry.register(make_request("c7", epoch=2), "c7")
    for name in ("c9", "c3"):
        clock.now_s += 1
        registry.deregister(name, 1, name)
    registry.register(make_request("late"), "late")
    names = {collector.registration.collector_id for collector in registry.collectors()}
    assert len(names) == MAX_COLLECTORS
    assert "c9" not in names
    assert {"c3", "late"} <= names


class RegistryMachine(RuleBasedStateMachine):
    """Random lives of one collector against a model of a few lines."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.registry = CollectorRegistry(self.clock, self.clock.wall_ns)
        self.changes: list[Transition] = []
        self.registry.on_change(self.changes.append)
        self.epoch = -1
        self.is_left = True
        self.silent_s = 0

    @rule(epoch=st.integers(0, 5))
    def register(self, epoch: int) -> None:
        if epoch < self.epoch:
            with pytest.raises(InstanceSupersededError):
                self.registry.register(make_request(epoch=epoch), "procmond")
            return
        self.registry.register(make_request(epoch=epoch, heartbeat_interval_s=2), "procmond")
        self.epoch, self.is_left, self.silent_s = epoch, False, 0

    @rule(epoch=st.integers(0, 5), health=st.sampled_from(ReportedHealth))
    def beat(self, epoch: int, health: ReportedHealth) -> None:
        if epoch < self.epoch:
            with pytest.raises(InstanceSupersededError):
                beat(self.registry, epoch)
        elif epoch > self.epoch or self.is_left:
            with pytest.raises(NotRegisteredError):
                beat(self.registry, epoch)
        else:
            beat(self.registry, epoch, health=health)
            self.silent_s = 0

    @rule()
    def leave(self) -> None:
        if not self.is_left:
            self.registry.deregister("procmond", self.epoch, "procmond")
            self.is_left = True

    @rule(seconds=st.integers(1, 8))
    def wait(self, seconds: int) -> None:
        sweep(self.registry, self.clock, seconds)
        self.silent_s += seconds

    @invariant()
    def states_follow_the_model(self) -> None:
        collector = self.registry.get("procmond")
        if collector is None:
            assert self.epoch == -1
            return
        assert collector.registration.instance_epoch == self.epoch
        assert (collector.state is CollectorState.DEREGISTERED) == self.is_left
        if self.silent_s >= 6 and not self.is_left:
            assert collector.state is CollectorState.UNAVAILABLE

    @invariant()
    def changes_form_a_chain(self) -> None:
        for before, after in zip(self.changes, self.changes[1:], strict=False):
            assert after.before is before.after


RegistryMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestRegistryLives = RegistryMachine.TestCase
