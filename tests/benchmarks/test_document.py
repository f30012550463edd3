"""The document about performance says what was measured and nothing else."""

import json
import os
from pathlib import Path

import pytest
from benchmarks.document import NO_RESULT, render_document
from benchmarks.report import RESULTS_DIR, Bar, BenchmarkError, Metric, Outcome, write_result

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "performance.md"
PART = "before\n<!-- measured: bus -->\nstale\n<!-- measured end -->\nafter\n"


def test_document_is_fresh() -> None:
    """When this fails: .venv/bin/python -m benchmarks --render docs/performance.md."""
    is_quick = any(
        json.loads(path.read_text())["settings"]["quick"] for path in RESULTS_DIR.glob("*.json")
    )
    if is_quick and "CI" not in os.environ:
        pytest.skip("a quick run lies over a committed result; git restore benchmarks/results")
    text = DOCUMENT.read_text()
    assert render_document(text, RESULTS_DIR) == text


def test_document_is_of_full_runs() -> None:
    assert "a quick run" not in DOCUMENT.read_text()


def test_figures_machine_and_bars_come_from_the_result(tmp_path: Path) -> None:
    machine = {
        "cpu": "a processor",
        "cores": 2,
        "memory_gib": 1.0,
        "kernel": "Linux 6",
        "python": "CPython 3.11",
        "grpcio": "1.85",
    }
    settings = {"quick": False, "cores_busy_with_others": 0.01, "event_bytes": 300}
    outcome = Outcome(
        1,
        {},
        [Metric("rate", "events/s", 123_456.0, {"nats": 5.5}), Metric("time", "s", 0.5)],
        [Bar.below("time", 1.0, 0.5, "s"), Bar.below("rate", 1.0, 2.0, "s")],
    )
    write_result(tmp_path, "bus", machine, settings, outcome)
    text = render_document(PART, tmp_path)
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert "2 cores of a processor" in text
    assert "a quick run" not in text
    assert "| event bytes | 300 |" in text
    assert "| rate | events/s | 123,500 | 5.5 |" in text
    assert "| time | s | 0.5 |  |" in text
    assert "| time below 1 s | 0.5 s | holds |" in text
    assert "| rate below 1 s | 2 s | **missed** |" in text
    assert render_document(text, tmp_path) == text


def test_part_without_a_result_says_so(tmp_path: Path) -> None:
    assert NO_RESULT in render_document(PART, tmp_path)


@pytest.mark.parametrize(
    "text", ["<!-- measured: bus -->\n", "<!-- measured end -->", "<!-- measured -->"]
)
def test_marker_without_partner_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="has no partner"):
        render_document(text, tmp_path)
