"""Writes the figures of committed results into a document.

A part stands between ``<!-- measured: NAME -->`` and ``<!-- measured end -->`` and is made of
``results/NAME.json`` alone, so that a document cannot say what was not measured.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import BenchmarkError, show

__all__ = ["render_document"]

PART = re.compile(r"(<!-- measured: ([a-z-]+) -->\n).*?(<!-- measured end -->)", re.DOTALL)
ANY_MARKER = re.compile(r"<!-- measured[^>]*-->")
NO_RESULT = "No result is committed yet.\n"


def render_document(text: str, results: Path) -> str:
    """Returns a document with every measured part as its result has it.

    Args:
        text: the document as it is.
        results: directory of the results.

    Raises:
        BenchmarkError: a marker has no partner.
    """
    if rest := ANY_MARKER.search(PART.sub("", text)):
        raise BenchmarkError(f"{rest.group()} has no partner; correct the markers")
    return PART.sub(lambda match: f"{match[1]}\n{_part(results, match[2])}\n{match[3]}", text)


def _part(results: Path, name: str) -> str:
    path = results / f"{name}.json"
    if not path.is_file():
        return NO_RESULT
    result = json.loads(path.read_text())
    parts = [_machine(result), _figures(result["results"])]
    if result["bars"]:
        parts.append(_bars(result["bars"]))
    return "\n".join(parts)


def _machine(result: Mapping[str, Any]) -> str:
    machine, settings = result["machine"], result["settings"]
    hurried = ", a quick run" if settings["quick"] else ""
    lines = [
        f"Measured on {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB,",
        f"{machine['kernel']}, {machine['python']}, with gRPC {machine['grpcio']}{hurried}.",
        f"Others kept {settings['cores_busy_with_others']} cores busy meanwhile.",
        "",
        *_table(
            ["setting", ""],
            (
                [key.replace("_", " "), str(value)]
                for key, value in settings.items()
                if key not in ("quick", "cores_busy_with_others")
            ),
        ),
    ]
    return "\n".join([*lines, ""])


def _figures(metrics: Sequence[Mapping[str, Any]]) -> str:
    peers = list(dict.fromkeys(peer for metric in metrics for peer in metric["peers"]))
    rows = (
        [
            *(metric["metric"], metric["unit"], show(metric["value"])),
            *(show(metric["peers"][peer]) if peer in metric["peers"] else "" for peer in peers),
        ]
        for metric in metrics
    )
    return "\n".join([*_table(["figure", "unit", "ours", *peers], rows), ""])


def _bars(bars: Sequence[Mapping[str, Any]]) -> str:
    rows = (
        [
            f"{bar['name']} {show(bar['limit'])} {bar['unit']}",
            f"{show(bar['value'])} {bar['unit']}",
            "holds" if bar["holds"] else "**missed**",
        ]
        for bar in bars
    )
    return "\n".join([*_table(["bar", "measured", ""], rows), ""])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
