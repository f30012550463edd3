"""Whatever succeeds or fails, in whatever order: memory, file and parts hold the last good values."""

import asyncio
import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from collector_core.live_config import ApplyFailedError, LiveConfig, UpdateRefusedError
from daemoneye_mesh.configuration import load_settings, setting
from daemoneye_mesh.errors import InvalidConfigError, PreconditionError

NOWHERE = Path("/nonexistent")
FIELDS = ("low", "high", "size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    low: int = setting(2, help="lower", minimum=0, maximum=9, live=True)
    high: int = setting(5, help="upper", minimum=0, maximum=9, live=True)
    size: int = setting(1, help="size", minimum=0, maximum=9, live=True)

    def __post_init__(self):
        if self.low >= self.high:
            raise InvalidConfigError("low must be less than high", low=self.low)


@dataclass(frozen=True)
class Step:
    changes: dict[str, str]
    reset: list[str]
    validate_only: bool
    trouble: str
    """``fail0``, ``fail1``, ``cancel``, ``disk`` or nothing."""


steps = st.builds(
    Step,
    st.dictionaries(
        st.sampled_from([*FIELDS, "unknown"]), st.integers(-1, 10).map(str), max_size=2
    ),
    st.lists(st.sampled_from(FIELDS), max_size=1),
    st.booleans().filter(lambda one: not one) | st.booleans(),
    st.sampled_from(["", "", "", "fail0", "fail1", "cancel", "disk"]),
)


class Part:
    def __init__(self):
        self.value = None
        self.trouble = ""

    async def apply(self, value):
        trouble, self.trouble = self.trouble, ""
        if trouble == "fail":
            raise RuntimeError
        if trouble == "cancel":
            asyncio.current_task().cancel()
            await asyncio.sleep(0)
        self.value = value


async def carry_out(config, parts, path, step):
    """Runs one step; returns its outcome, or None when it did not succeed."""
    if step.trouble.startswith("fail"):
        parts[int(step.trouble[-1])].trouble = "fail"
    elif step.trouble == "cancel":
        parts[1].trouble = "cancel"
    elif step.trouble == "disk":
        path.parent.chmod(0o722)
    options = {"by": "agent/agent", "validate_only": step.validate_only}
    work = asyncio.ensure_future(config.update(step.changes, step.reset, **options))
    await asyncio.wait({work})
    path.parent.chmod(0o700)
    for part in parts:
        part.trouble = ""
    refusals = (UpdateRefusedError, ApplyFailedError, PreconditionError, asyncio.CancelledError)
    with contextlib.suppress(*refusals):
        return work.result()
    return None


def reopen(path):
    loaded = load_settings(Settings, "unit", [], {}, NOWHERE, NOWHERE)
    config = LiveConfig(loaded, path, lambda: 7)
    config.load()
    return config


async def check(sequence, folder):
    path = folder / "config.json"
    config, parts = reopen(path), [Part(), Part()]
    for part in parts:
        part.value = config.current
        config.subscribe(None, part.apply, "part")
    good, version = config.current, 0
    for step in sequence:
        done = await carry_out(config, parts, path, step)
        if done is not None and not step.validate_only and done.changes:
            version += 1
            assert config.current != good
            good = config.current
        assert config.current == good
        assert config.version == version
        assert [part.value for part in parts] == [good, good]
        assert not config.is_inconsistent
        again = reopen(path)
        assert (again.current, again.version, again.problems) == (good, version, ())
        assert again.fields() == config.fields()


@settings(max_examples=60)
@given(st.lists(steps, max_size=12))
def test_last_good_configuration_is_in_force_in_the_file_and_in_all_parts(sequence):
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(check(sequence, Path(folder)))
