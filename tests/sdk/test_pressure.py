"""What is left out when there is too much: lossy classes only, with hysteresis, and counted."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_core.delivery import Pressure
from collector_core.delivery.pressure import KEEP_ONE_IN
from collector_core.event import EventClass
from daemoneye_mesh.errors import InvalidRequestError

HIGH, LOW = 0.6, 0.4
METADATA_MARK = (HIGH + 1) / 2
LOSSY = (EventClass.SAMPLE, EventClass.METADATA)
MARKS = {EventClass.SAMPLE: HIGH, EventClass.METADATA: METADATA_MARK}

steps = st.lists(
    st.one_of(
        st.floats(0, 1),
        st.sampled_from([LOW, HIGH, METADATA_MARK, 0.0, 1.0]),
        st.sampled_from(list(EventClass)),
        st.booleans(),
    ),
    max_size=200,
)


def admitted(pressure: Pressure) -> set[EventClass]:
    return {one for one in EventClass if pressure.admits(one)}


@given(steps)
def test_only_what_the_marks_allow_is_left_out_and_everything_is_counted(
    script: list[float | EventClass | bool],
) -> None:
    pressure = Pressure(HIGH, LOW)
    fills = [0.0]
    asked: Counter[EventClass] = Counter()
    kept: Counter[EventClass] = Counter()
    for step in script:
        if isinstance(step, EventClass):
            asked[step] += 1
            is_kept = pressure.admits(step)
            kept[step] += is_kept
            assert is_kept or pressure.is_shedding
            if step is EventClass.LIFECYCLE:
                assert is_kept
            elif not pressure.is_sampling:
                assert is_kept is not is_over(fills, MARKS[step])
        elif isinstance(step, bool):
            pressure.is_sampling = step
        else:
            pressure.note(step)
            fills.append(step)
    assert asked == kept + pressure.shed_count
    assert EventClass.LIFECYCLE not in pressure.shed_count


def is_over(fills: list[float], mark: float) -> bool:
    """Whether a mark was reached since the fill was last below the lower one."""
    return next((fill >= mark for fill in reversed(fills) if fill < LOW or fill >= mark), False)


def test_samples_go_before_metadata_and_lifecycle_stays() -> None:
    pressure = Pressure(HIGH, LOW)
    assert admitted(pressure) == set(EventClass)
    pressure.note(HIGH)
    assert admitted(pressure) == {EventClass.METADATA, EventClass.LIFECYCLE}
    pressure.note(METADATA_MARK)
    assert admitted(pressure) == {EventClass.LIFECYCLE}
    pressure.note(1.0)
    assert admitted(pressure) == {EventClass.LIFECYCLE}


def test_what_is_left_out_stays_out_until_the_lower_mark_is_passed() -> None:
    pressure = Pressure(HIGH, LOW)
    pressure.note(0.9)
    for fill in (HIGH, 0.5, LOW):
        pressure.note(fill)
        assert admitted(pressure) == {EventClass.LIFECYCLE}
        assert pressure.is_shedding
        assert pressure.fill == fill
    pressure.note(math.nextafter(LOW, 0))
    assert admitted(pressure) == set(EventClass)
    assert not pressure.is_shedding
    pressure.note(0.5)
    assert admitted(pressure) == set(EventClass)


def test_nothing_is_left_out_below_the_upper_mark() -> None:
    pressure = Pressure(HIGH, LOW)
    pressure.note(math.nextafter(HIGH, 0))
    assert admitted(pressure) == set(EventClass)


@pytest.mark.parametrize("event_class", LOSSY)
@pytest.mark.parametrize("count", [1, KEEP_ONE_IN, KEEP_ONE_IN + 1, 10 * KEEP_ONE_IN + 3])
def test_sampling_keeps_the_first_and_then_one_in_so_many(
    event_class: EventClass, count: int
) -> None:
    pressure = Pressure(HIGH, LOW)
    pressure.is_sampling = True
    kept = [pressure.admits(event_class) for _ in range(count)]
    assert kept[0]
    assert sum(kept) == math.ceil(count / KEEP_ONE_IN)
    assert sum(kept) + pressure.shed_count[event_class] == count


def test_sampling_counts_each_class_on_its_own() -> None:
    pressure = Pressure(HIGH, LOW)
    pressure.is_sampling = True
    assert all(pressure.admits(one) for one in EventClass)
    assert not any(pressure.admits(one) for one in LOSSY)
    assert dict(pressure.shed_count) == dict.fromkeys(LOSSY, 1)


def test_end_of_sampling_keeps_everything_again() -> None:
    pressure = Pressure(HIGH, LOW)
    pressure.is_sampling = True
    assert pressure.is_shedding
    pressure.is_sampling = False
    assert not pressure.is_shedding
    assert admitted(pressure) == set(EventClass)
    assert not pressure.shed_count


def test_other_marks_hold_from_the_next_look() -> None:
    pressure = Pressure(HIGH, LOW)
    pressure.note(0.5)
    pressure.apply_marks(0.45, 0.2)
    pressure.note(0.5)
    assert EventClass.SAMPLE not in admitted(pressure)
    pressure.note(0.3)
    assert EventClass.SAMPLE not in admitted(pressure)
    pressure.apply_marks(HIGH, LOW)
    pressure.note(0.3)
    assert admitted(pressure) == set(EventClass)


@pytest.mark.parametrize(("high", "low"), [(0.5, 0.5), (0.4, 0.6)])
def test_marks_in_the_wrong_order_are_refused_and_change_nothing(high: float, low: float) -> None:
    pressure = Pressure(HIGH, LOW)
    with pytest.raises(InvalidRequestError, match="must be below"):
        pressure.apply_marks(high, low)
    pressure.note(HIGH)
    assert pressure.is_shedding
