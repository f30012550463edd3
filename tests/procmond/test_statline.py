import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye_procmond.statline import PF_KTHREAD, parse_stat

REAL = (
    b"9435 (cat) R 9432 9430 2583 34816 -1 4194304 116 0 0 0 7 5 0 0 20 0 3 0 137955 3133440 383 "
    b"18446744073709551615 94190108221440 94190108241321 140734858759488 0 0 0 0 0 0 0 0 0 17 0 0 0 "
    b"0 0 0 94190108257328 94190108258944 94191106396160 140734858767032 140734858767052 "
    b"140734858767055 140734858768363 256\n"
)


def test_parse_stat_finds_each_field() -> None:
    stat = parse_stat(REAL)
    assert stat == (
        *(9435, b"cat", "R", 9432, 9430, 2583, 34816, 4194304, 12, 3, 137955, 383),
        *(94190108221440, 140734858759488, 140734858767055, 256),
    )
    assert stat.signature == (94190108221440, 140734858759488, 140734858767055)
    assert not stat.is_kernel_thread


@pytest.mark.parametrize(
    "comm", [b"a) R 1 (b", b"(", b")", b")))) S 1 1", b"\n\n) Z 0", b"", b" ", b"\xff\xfe)"]
)
def test_parse_stat_is_not_fooled_by_a_hostile_name(comm: bytes) -> None:
    assert parse_stat(REAL.replace(b"(cat)", b"(" + comm + b")")) == parse_stat(REAL)._replace(
        comm=comm
    )


@given(
    st.binary(max_size=64),
    st.sampled_from("RSDZTtXI"),
    st.lists(st.integers(-(2**63), 2**64 - 1), min_size=49, max_size=49),
)
def test_parse_stat_reads_back_what_the_kernel_prints(
    comm: bytes, state: str, numbers: list[int]
) -> None:
    tail = " ".join(map(str, numbers)).encode()
    stat = parse_stat(b"77 (" + comm + b") " + state.encode() + b" " + tail + b"\n")
    assert (stat.pid, stat.comm, stat.state) == (77, comm, state)
    assert (stat.ppid, stat.session_id) == (numbers[0], numbers[2])
    assert (stat.flags, stat.thread_count) == (numbers[5], numbers[16])
    assert (stat.start_ticks, stat.rss_pages) == (numbers[18], numbers[20])
    assert (stat.start_code, stat.start_stack) == (numbers[22], numbers[24])
    assert (stat.env_start, stat.wait_status) == (numbers[46], numbers[48])


@given(st.binary(max_size=400))
def test_parse_stat_refuses_garbage_with_value_error_only(raw: bytes) -> None:
    try:
        parse_stat(raw)
    except ValueError:
        return
    assert b"(" in raw


@pytest.mark.parametrize(
    "raw", [b"", b"12", b"12 (sh", b"(sh) S 1", b") 12 (", b"x" + REAL, REAL[:60]]
)
def test_parse_stat_refuses_what_is_no_stat_line(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"malformed|invalid literal"):
        parse_stat(raw)


def test_parse_stat_of_an_old_kernel_has_no_signature() -> None:
    short = b" ".join(REAL.split()[:30])
    assert parse_stat(short).signature is None


def test_stat_signature_is_unknown_when_the_kernel_hides_addresses() -> None:
    for hidden in (0, 1):
        assert parse_stat(REAL)._replace(start_stack=hidden).signature is None


def test_stat_flags_show_a_kernel_thread() -> None:
    assert parse_stat(REAL)._replace(flags=PF_KTHREAD | 0x40).is_kernel_thread


@pytest.mark.parametrize(
    ("state", "thread_count", "is_exited"),
    [("Z", 1, True), ("Z", 0, True), ("X", 0, True), ("Z", 4, False), ("S", 1, False)],
)
def test_stat_is_exited_only_when_no_thread_is_left(
    state: str, thread_count: int, is_exited: bool
) -> None:
    stat = parse_stat(REAL)._replace(state=state, thread_count=thread_count)
    assert stat.is_exited is is_exited


@pytest.mark.parametrize("part", ["start_code", "start_stack", "env_start"])
@pytest.mark.parametrize("unset", [0, 1])
def test_image_that_is_half_made_has_no_signature_yet(part: str, unset: int) -> None:
    """An exec sets the stack before everything else that tells one image from another."""
    assert parse_stat(REAL)._replace(**{part: unset}).signature is None
