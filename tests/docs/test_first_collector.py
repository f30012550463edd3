"""The guide to a first collector does what it says: every step, in order, in one shell.

Blocks ``python file=NAME`` and ``toml file=NAME`` are written to that file of the current folder, which
the text before them must name. Blocks ``console`` are typed into one bash that lives for the whole
guide. Words behind ``console``: ``output`` (what stands below a command is what it prints, ``…`` being
anything), ``like`` (the same, and a number stands for any number), ``exit=0|3`` (the statuses that are
right, 0 when left out) and ``soon`` (it becomes so within a while).
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "first-collector.md"
COMMAND_LIMIT_S = 60.0
SOON_S = 40.0
STOP_LIMIT_S = 20.0
POLL_S = 0.2
MAX_LINE_CHARS = 118
KNOWN_WORDS = re.compile(r"output|like|soon|exit=\d+(\|\d+)*|file=[a-z_]+\.(py|toml)")


@dataclass(frozen=True)
class Block:
    """One fenced block and the text before it."""

    language: str
    words: tuple[str, ...]
    text: str
    before: str
    line: int

    def word(self, name: str) -> str:
        """The value of ``name=value``; empty when it is not there."""
        found = [one.partition("=")[2] for one in self.words if one.startswith(f"{name}=")]
        return found[0] if found else ""

    @property
    def statuses(self) -> set[int]:
        """The exit statuses that are right."""
        return {int(one) for one in (self.word("exit") or "0").split("|")}

    @property
    def is_compared(self) -> bool:
        """Whether what is shown below a command is what it prints."""
        return bool({"output", "like"} & {*self.words})

    def steps(self) -> Iterator[tuple[str, str]]:
        """Each command with the output that is shown below it."""
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            yield command, shown


def read_blocks() -> list[Block]:
    text, blocks, end = GUIDE.read_text(), [], 0
    for match in re.finditer(r"^```(\w+)([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start()) + 1
        before = text[end : match.start()]
        blocks.append(Block(match[1], tuple(match[2].split()), match[3], before, line))
        end = match.end()
    return blocks


BLOCKS = read_blocks()


class Terminal:
    """One bash with job control that reads commands as a person types them."""

    def __init__(self, home: Path) -> None:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DAEMONEYE_", "XDG_", "PYTEST_"))
        }
        binaries = [str(Path(sys.executable).parent), os.environ["PATH"]]
        self._log = (home / "terminal.log").open("w+")
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=ROOT,
            env={
                **kept,
                "HOME": str(home),
                "PATH": os.pathsep.join(binaries),
                "COLUMNS": "200",
                "TERM": "dumb",
            },
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._count = 0
        self.run("set -m")  # as in a terminal: a job in the background is a group of its own

    @property
    def folder(self) -> Path:
        """Where the shell is."""
        return Path(f"/proc/{self._bash.pid}/cwd").readlink()

    def run(self, command: str) -> tuple[int, str]:
        """Types a command; returns its status and what came out meanwhile."""
        self._count += 1
        marker = f"--step {self._count} "
        begin = self._log.seek(0, os.SEEK_END)
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{command}\nprintf '%s%s\\n' '{marker}' $?\n")
        self._bash.stdin.flush()
        deadline_s = time.monotonic() + COMMAND_LIMIT_S
        while True:
            self._log.seek(begin)
            printed, found, status = self._log.read().partition(marker)
            if found and status.endswith("\n"):
                return int(status), printed
            assert time.monotonic() < deadline_s, f"$ {command}\n{printed}\ndoes not end"
            time.sleep(POLL_S / 10)

    def close(self) -> list[int]:
        """Ends the shell; returns the processes that were still there."""
        self._bash.stdin.close()  # type: ignore[union-attr]
        self._bash.wait(STOP_LIMIT_S)
        self._log.close()
        left = processes_of_session(self._bash.pid)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return left


def processes_of_session(session: int) -> list[int]:
    """Ids of the processes of a session, those that are only waited for left out."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            pids.append(int(entry.parent.name))
    return pids


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="de-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def matches(shown: str, printed: str, *, is_exact: bool) -> bool:
    """Whether a transcript shows what was printed; ``…`` is anything, spaces do not count."""
    parts = (part.strip() for part in " ".join(shown.split()).split("…"))
    pattern = ".*".join(map(re.escape, parts))
    if not is_exact:
        pattern = re.sub(r"\d+", r"\\d+", pattern)
    return re.fullmatch(pattern, " ".join(printed.split())) is not None


def do_step(terminal: Terminal, block: Block, command: str, shown: str) -> None:
    deadline_s = time.monotonic() + (SOON_S if "soon" in block.words else 0)
    while True:
        status, printed = terminal.run(command)
        is_right = status in block.statuses
        if block.is_compared:
            is_right = is_right and matches(shown, printed, is_exact="output" in block.words)
        if is_right:
            return
        if time.monotonic() > deadline_s:
            logs = [f"-- {path.name}\n{path.read_text()}" for path in terminal.folder.glob("*.log")]
            pytest.fail(
                "\n".join([f"line {block.line}: $ {command}", printed, f"status {status}", *logs])
            )
        time.sleep(POLL_S)


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_the_guide_leads_from_an_empty_folder_to_a_collector(home: Path) -> None:
    terminal = Terminal(home)
    try:
        for block in BLOCKS:
            if name := block.word("file"):
                (terminal.folder / name).write_text(block.text)
            for command, shown in block.steps() if block.language == "console" else ():
                do_step(terminal, block, command, shown)
    finally:
        left = terminal.close()
    assert left == [], "the guide leaves processes behind"
    assert not [path for path in home.rglob("*") if path.is_socket()]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line-{block.line}")
def test_a_block_of_the_guide_is_one_that_is_run(block: Block) -> None:
    assert all(KNOWN_WORDS.fullmatch(word) for word in block.words), block.words
    if block.language == "console":
        assert block.text.startswith("$ ")
        if not block.is_compared:
            assert not any(shown for _, shown in block.steps()), "shown and not compared"
    else:
        name = block.word("file")
        assert name, "it is neither typed nor written to a file"
        assert f"`{name}`" in block.before, f"the text before does not name {name}"


def test_lines_of_the_guide_are_short() -> None:
    lines = enumerate(GUIDE.read_text().splitlines(), 1)
    long = [number for number, line in lines if len(line) > MAX_LINE_CHARS]
    assert long == []


def test_no_word_of_the_guide_is_about_another_machine() -> None:
    assert re.findall(r"/(?:home|root|work|Users)/\S*", GUIDE.read_text()) == []
