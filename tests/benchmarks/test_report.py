"""What a benchmark writes, and that it refuses to write about nothing."""

import asyncio
import json
import socket
import sys
from pathlib import Path

import pytest
from benchmarks import __main__ as runner
from benchmarks.occupation import Occupation
from benchmarks.report import (
    Bar,
    BenchmarkError,
    BrokenEquationError,
    Metric,
    NothingDeliveredError,
    Outcome,
    check_flow,
    describe_machine,
    percentile,
    render,
    write_result,
)
from hypothesis import given
from hypothesis import strategies as st

MACHINE = {"cpu": "a processor", "cores": 2}


def outcome(delivered_count: int = 5) -> Outcome:
    return Outcome(
        delivered_count=delivered_count,
        settings={"duration_s": 1.0},
        results=[Metric("rate", "events/s", 123_456.789, {"peer": 10.0}), Metric("time", "s", 0.5)],
        bars=[Bar.below("time", 1.0, 0.5, "s")],
        notes=["a peer is left out"],
    )


def test_result_file_has_exactly_the_agreed_keys(tmp_path: Path) -> None:
    path = write_result(tmp_path / "new", "bus", MACHINE, {"quick": True}, outcome())
    assert path == tmp_path / "new" / "bus.json"
    assert json.loads(path.read_text()) == {
        "name": "bus",
        "machine": MACHINE,
        "settings": {"quick": True},
        "results": [
            {"metric": "rate", "unit": "events/s", "value": 123_500.0, "peers": {"peer": 10.0}},
            {"metric": "time", "unit": "s", "value": 0.5, "peers": {}},
        ],
        "bars": [{"name": "time below", "limit": 1.0, "value": 0.5, "unit": "s", "holds": True}],
    }


def test_nothing_delivered_is_refused_and_keeps_the_older_result(tmp_path: Path) -> None:
    path = write_result(tmp_path, "bus", MACHINE, {}, outcome())
    before = path.read_text()
    with pytest.raises(NothingDeliveredError):
        write_result(tmp_path, "bus", MACHINE, {}, outcome(delivered_count=0))
    assert path.read_text() == before


def test_outcome_without_figures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NothingDeliveredError):
        write_result(tmp_path, "bus", MACHINE, {}, Outcome(1, {}, []))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("offered", "delivered", "announced"), [(10, 10, 0), (10, 7, 3)])
def test_flow_that_adds_up_passes(offered: int, delivered: int, announced: int) -> None:
    check_flow(offered, delivered, announced)


@pytest.mark.parametrize(
    ("offered", "delivered", "announced", "error"),
    [
        (10, 9, 0, BrokenEquationError),
        (10, 10, 1, BrokenEquationError),
        (10, 11, 0, BrokenEquationError),
        (10, 0, 10, NothingDeliveredError),
        (0, 0, 0, NothingDeliveredError),
    ],
)
def test_flow_that_does_not_add_up_fails(
    offered: int, delivered: int, announced: int, error: type[BenchmarkError]
) -> None:
    with pytest.raises(error):
        check_flow(offered, delivered, announced)


@pytest.mark.parametrize(("value", "below", "at_least"), [(1, True, False), (2, False, True)])
def test_bar_holds_on_the_right_side_of_its_limit(
    value: float, below: bool, at_least: bool
) -> None:
    assert Bar.below("figure", 2, value, "s").holds is below
    assert Bar.at_least("figure", 2, value, "s").holds is at_least


@given(st.lists(st.floats(0, 1e9), min_size=1), st.floats(0.01, 1))
def test_percentile_is_the_smallest_value_that_covers_the_share(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert sum(value < found for value in values) < share * len(values)


def test_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(NothingDeliveredError):
        percentile([], 0.5)


def test_machine_is_described_without_saying_whose_it_is() -> None:
    machine = describe_machine()
    assert set(machine) == {
        *("cpu", "cores", "memory_gib", "kernel", "python", "grpcio", "protobuf"),
    }
    text = json.dumps(machine)
    assert all(machine.values())
    assert socket.gethostname() not in text
    assert "/home" not in text
    assert str(Path(__file__).resolve().parents[2]) not in text


def test_occupation_counts_only_the_work_of_others() -> None:
    begun = Occupation(wall_s=10, all_s=100, own_s=5)
    assert Occupation(wall_s=20, all_s=115, own_s=10).others_since(begun) == 1.0
    assert Occupation(wall_s=20, all_s=104, own_s=10).others_since(begun) == 0.0


def test_table_shows_figures_peers_bars_and_notes() -> None:
    table = render("bus", MACHINE, outcome())
    assert "123,457" in table
    assert "peer" in table
    assert "holds" in table
    assert "note: a peer is left out" in table
    missed = Outcome(1, {}, outcome().results, [Bar.below("time", 1.0, 2.0, "s")])
    assert "MISSED" in render("bus", MACHINE, missed)


def test_runner_reports_failure_when_nothing_was_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def measure(quick: bool) -> Outcome:
        await asyncio.sleep(0)
        return outcome(delivered_count=0 if quick else 1)

    monkeypatch.setattr(runner, "BENCHMARKS", {"bus": measure})
    monkeypatch.setattr(runner, "RESULTS_DIR", tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "bus"])
    monkeypatch.setenv("QUICK", "1")
    assert runner.main() == runner.EXIT_FAILED
    assert "delivered nothing" in capsys.readouterr().err
    monkeypatch.setenv("QUICK", "0")
    assert runner.main() == 0
    assert json.loads((tmp_path / "bus.json").read_text())["settings"]["quick"] is False


def test_runner_names_what_there_is_when_a_name_is_unknown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "buss"])
    assert runner.main() == runner.EXIT_UNKNOWN
    assert "there are bus, bus-scale, enumeration" in capsys.readouterr().out
