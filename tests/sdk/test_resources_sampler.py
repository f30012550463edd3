import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_core.resources import Sampler


def test_sampler_keeps_the_first_and_then_one_in_so_many():
    sampler = Sampler(3)
    assert [sampler.keep("a") for _ in range(7)] == [True, False, False, True, False, False, True]
    assert (sampler.kept_count, sampler.dropped_count) == (3, 4)


def test_sampler_counts_each_key_on_its_own():
    sampler = Sampler(2)
    assert [sampler.keep(key) for key in "aabab"] == [True, False, True, True, False]


def test_sampler_of_one_keeps_everything():
    sampler = Sampler(1)
    assert all(sampler.keep("a") for _ in range(10))


def test_sampler_follows_a_change_of_its_rate():
    sampler = Sampler(1000)
    assert [sampler.keep("a") for _ in range(3)] == [True, False, False]
    sampler.keep_one_in = 2
    assert [sampler.keep("a") for _ in range(3)] == [True, False, True]


def test_keys_beyond_the_bound_share_one_count():
    sampler = Sampler(3, max_keys=1)
    assert sampler.keep("own")
    assert [sampler.keep(f"other {number}") for number in range(4)] == [True, False, False, True]
    assert [sampler.keep("own") for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize("keep_one_in", [0, -1])
def test_sampler_that_would_keep_nothing_is_refused(keep_one_in):
    with pytest.raises(ValueError, match="keep_one_in"):
        Sampler(keep_one_in)
    sampler = Sampler(1)
    with pytest.raises(ValueError, match="keep_one_in"):
        sampler.keep_one_in = keep_one_in
    with pytest.raises(ValueError, match="max_keys"):
        Sampler(1, max_keys=keep_one_in)


@given(st.lists(st.sampled_from("abcdef")), st.integers(1, 5), st.integers(1, 4))
def test_sampling_is_repeatable_and_counts_everything(keys, keep_one_in, max_keys):
    first, second = Sampler(keep_one_in, max_keys), Sampler(keep_one_in, max_keys)
    kept = [first.keep(key) for key in keys]
    assert kept == [second.keep(key) for key in keys]
    assert (first.kept_count, first.dropped_count) == (sum(kept), len(kept) - sum(kept))
