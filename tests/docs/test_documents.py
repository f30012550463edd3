"""The documents are true: commands run, links resolve, code parses, generated parts are fresh.

A fenced block ``console`` holds commands behind ``$ ``; words behind it on the first line say more:
``exit=3`` or ``exit=0|3`` (the status each command ends with, 0 when left out), ``output`` (what
follows a command is exactly what it prints, ``…`` standing for anything, spaces not counted) and
``grpcurl`` (needs that binary). What cannot run here stands in a ``sh`` block and in ``RUN_ELSEWHERE``.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from daemoneye_agent.engine import test_rule as run_samples
from daemoneye_agent.rule import parse_rule
from daemoneye_mesh.completeness import DegradedReason

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
SESSION = ROOT / "docs" / "first-collector.md"
"""One session from its first to its last line; tests/docs/test_first_collector.py goes through it."""
COMMAND_DOCUMENTS = [ROOT / "README.md", *sorted({*(ROOT / "docs").rglob("*.md")} - {SESSION})]
RULES = sorted((ROOT / "docs" / "examples").glob("*.toml"))
MAX_LINE_CHARS = 120
GRPCURL = ROOT / ".tools" / "grpcurl"

RUN_ELSEWHERE = {
    "make run": "tests/integration/test_make_run.py",
    "make test": ".ci/run",
    "daemoneye-agent": "tests/integration/conftest.py",
    "daemoneye-eventbus": "tests/integration/conftest.py",
    "procmond": "tests/integration/conftest.py",
    "DAEMONEYE_AGENT_COLLECTORS=procmond=process,loadmon=performance daemoneye up": (
        "tests/integration/test_example_collector.py"
    ),
    ".venv/bin/python examples/collector-python/loadmon.py": (
        "tests/integration/test_example_collector.py"
    ),
    "daemoneye events 'events.performance.#'": "tests/integration/test_example_collector.py",
}
"""Commands of ``sh`` blocks, which run until they are stopped, and what runs them instead."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a document."""

    path: Path
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"

    @property
    def statuses(self) -> set[int]:
        """The exit statuses that are right."""
        for word in self.words:
            if word.startswith("exit="):
                return {int(status) for status in word.removeprefix("exit=").split("|")}
        return {0}

    def steps(self) -> Iterator[tuple[str, str]]:
        """Each command, continuation lines joined, and the output shown below it."""
        commands: list[tuple[str, list[str]]] = []
        is_open = False
        for line in self.text.splitlines():
            if line.startswith("$ "):
                commands.append((line.removeprefix("$ "), []))
            elif is_open:
                commands[-1] = (f"{commands[-1][0]}\n{line}", [])
            else:
                commands[-1][1].append(line)
            is_open = line.endswith("\\") and (line.startswith("$ ") or is_open)
        for command, output in commands:
            yield command, "\n".join(output)


def blocks_of(path: Path) -> Iterator[Block]:
    """Every fenced block of a document."""
    text = path.read_text()
    for match in re.finditer(r"^```(\w+)([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(path, line, match[1], tuple(match[2].split()), match[3])


BLOCKS = [block for path in COMMAND_DOCUMENTS for block in blocks_of(path)]


def blocks(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def matches(shown: str, printed: str) -> bool:
    """Whether a transcript shows what was printed; ``…`` is anything, spaces do not count."""
    words = " ".join(shown.split())
    pattern = ".*".join(re.escape(part) for part in words.split("…"))
    return re.fullmatch(pattern, " ".join(printed.split())) is not None


# -- commands -------------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.timeout(180)
@pytest.mark.parametrize("block", blocks("console"), ids=str)
def test_commands_of_a_document_do_what_it_says(block: Block, shell: Any) -> None:
    if "grpcurl" in block.words:
        require_grpcurl()
    for command, shown in block.steps():
        status, printed = shell.run(command)
        assert status in block.statuses, f"$ {command}\n{printed}\nexit status {status}"
        if "output" in block.words:
            assert matches(shown, printed), f"$ {command}\n{printed}\nbut the document has\n{shown}"


def require_grpcurl() -> None:
    if not GRPCURL.exists() and not shutil.which("grpcurl"):
        assert "CI" not in os.environ, "CI needs grpcurl: make grpcurl"
        pytest.skip("grpcurl is not installed; run 'make grpcurl'")


@pytest.mark.parametrize("block", blocks("console"), ids=str)
def test_a_console_block_has_commands_and_known_words_only(block: Block) -> None:
    assert block.text.startswith("$ ")
    for word in block.words:
        assert re.fullmatch(r"exit=\d+(\|\d+)*|output|grpcurl", word), word
    if "output" not in block.words:
        assert not any(shown for _, shown in block.steps()), "shown and not compared"


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_a_command_that_is_not_run_here_is_run_elsewhere(block: Block) -> None:
    for line in block.text.splitlines():
        command = line.partition("  #")[0].strip()
        assert command in RUN_ELSEWHERE, f"{command!r}: make it a console block, or name its test"


@pytest.mark.parametrize(("command", "where"), RUN_ELSEWHERE.items())
def test_what_runs_a_command_elsewhere_exists(command: str, where: str) -> None:
    assert (ROOT / where).is_file()
    assert any(command in block.text for block in blocks("sh")), "no document has it any more"


# -- code -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_of_a_document_compiles(block: Block) -> None:
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    compile(block.text, str(block), "exec", flags=flags, dont_inherit=True)


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_toml_of_a_document_parses(block: Block) -> None:
    fields = tomllib.loads(block.text)
    if "sql" in fields:
        parse_rule(block.text, str(block))


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_an_example_rule_passes_its_samples(path: Path) -> None:
    rule = parse_rule(path.read_text(), path.name)
    assert path.name == f"rule-{rule.id}.toml"
    assert run_samples(rule) == []


def test_every_language_of_a_block_is_checked() -> None:
    assert {block.language for block in BLOCKS} <= {"console", "sh", "python", "toml", "text"}


# -- links, texts ---------------------------------------------------------------------------------


def prose_of(path: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors_of(path: Path) -> set[str]:
    """What ``#…`` may name in a document, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.+)$", prose_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(path)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), target
        assert linked.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors_of(linked), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_path_of_a_developers_machine(path: Path) -> None:
    found = re.findall(r"/(?:root|work|Users)/\S*|/home/(?!user\b)\S+", path.read_text())
    assert found == []


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_lines_are_short_but_in_tables_and_transcripts(path: Path) -> None:
    lines = (line for line in prose_of(path).splitlines() if not line.startswith("|"))
    assert [line for line in lines if len(line) > MAX_LINE_CHARS] == []


def test_generated_parts_are_fresh() -> None:
    command = [sys.executable, "scripts/generate_docs.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_operators_are_told_about_every_degraded_reason() -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    assert [one for one in DegradedReason if f"| `{one.lower()}` |" not in text] == []


def troubles() -> list[str]:
    """The messages of the troubleshooting table."""
    text = (ROOT / "docs" / "operating.md").read_text()
    section = text.partition("| message | cause |")[2].partition("\n\n")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


@pytest.fixture(scope="module")
def messages() -> str:
    """All sources, with adjacent literals joined as Python joins them."""
    folders = ("sdk/python/src", "services", "cli/src")
    sources = (path.read_text() for one in folders for path in sorted((ROOT / one).rglob("*.py")))
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources))


@pytest.mark.parametrize("message", troubles())
def test_a_message_of_the_troubleshooting_table_is_in_the_programs(
    message: str, messages: str
) -> None:
    parts = [part.strip() for part in message.split("…")]
    assert all(part in messages for part in parts if part), parts
