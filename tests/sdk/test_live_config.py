import asyncio
import json
import logging
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from collector_core.live_config import (
    ApplyFailedError,
    ConfigChange,
    ConfigConflictError,
    ConfigOrigin,
    LiveConfig,
    OriginKind,
    UpdateRefusedError,
)
from collector_core.live_config_file import OverrideFile
from daemoneye_mesh.configuration import describe_settings, load_settings, setting
from daemoneye_mesh.errors import ErrorReason, InvalidConfigError

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 10
BY = "agent/agent"
NOWHERE = Path("/nonexistent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    low: int = setting(10, help="lower bound", minimum=0, maximum=100, live=True)
    high: int = setting(20, help="upper bound", minimum=0, maximum=100, live=True)
    ratio: float = setting(0.5, help="a share", minimum=0.0, maximum=1.0, live=True)
    names: tuple[str, ...] = setting(("a",), help="some names", live=True)
    note: str | None = setting(None, help="a note", live=True)
    is_fast: bool = setting(False, help="whether it is fast", live=True)
    place: Path = setting(Path("/tmp"), help="where", live=True)
    frozen: int = setting(1, help="known at the start")

    def __post_init__(self):
        if self.low >= self.high:
            raise InvalidConfigError(
                f"low = {self.low} must be less than high = {self.high}",
                low=self.low,
                high=self.high,
            )


def load(cls=Settings, argv=(), environ=None):
    return load_settings(cls, "unit", argv, environ or {}, NOWHERE, NOWHERE)


class Part:
    """A subscriber that remembers what it was given, and fails or hangs as told."""

    def __init__(self, name="part", calls=None):
        self.name = name
        self.value = None
        self.calls = calls if calls is not None else []
        self.fails_for = lambda value: False
        self.hangs_for = lambda value: False
        self.is_refused = lambda value: None
        self.entered = asyncio.Event()

    def check(self, value):
        if message := self.is_refused(value):
            raise InvalidConfigError(message)

    async def apply(self, value):
        self.entered.set()
        self.calls.append((self.name, value.low))
        if self.hangs_for(value):
            await asyncio.Event().wait()
        if self.fails_for(value):
            raise RuntimeError("secret of the part")
        self.value = value


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "config.json"


@pytest.fixture
def make(path):
    def make_config(*parts, **options):
        config = LiveConfig(load(), path, lambda: 1_000, **options)
        for part in parts:
            config.subscribe(part.check, part.apply, part.name)
        config.load()
        return config

    return make_config


def values_in(path):
    return {name: one["value"] for name, one in json.loads(path.read_text())["values"].items()}


async def test_configuration_before_the_first_update_is_that_of_the_start(path):
    loaded = load(argv=["--low", "3"], environ={"DAEMONEYE_UNIT_HIGH": "30"})
    config = LiveConfig(loaded, path)
    config.load()
    assert config.current == loaded.value
    assert (config.version, config.applied_at_ns, config.applied_by) == (0, None, "")
    assert config.origin("low") == ConfigOrigin(OriginKind.FLAG, "--low")
    assert config.origin("high") == ConfigOrigin(OriginKind.ENVIRONMENT, "DAEMONEYE_UNIT_HIGH")
    assert config.origin("ratio") == ConfigOrigin(OriginKind.DEFAULT)
    assert not path.exists()


async def test_origin_of_a_value_of_a_file_is_its_path(tmp_path):
    file = tmp_path / "unit.toml"
    file.write_text("low = 4\n")
    config = LiveConfig(load_settings(Settings, "unit", [], {}, NOWHERE, file))
    assert config.origin("low") == ConfigOrigin(OriginKind.FILE, str(file))


async def test_update_changes_what_it_names_and_keeps_the_rest(make):
    part = Part()
    config = make(part)
    done = await config.update({"low": "5", "names": "x, y"}, by=BY)
    assert done.version == config.version == 1
    assert done.changes == (ConfigChange("low", "10", "5"), ConfigChange("names", "a", "x,y"))
    assert (config.current.low, config.current.high) == (5, 20)
    assert config.current.names == ("x", "y")
    assert part.value is config.current
    assert (config.applied_at_ns, config.applied_by) == (1_000, BY)
    assert config.origin("low") == ConfigOrigin(OriginKind.LIVE, BY)


async def test_update_survives_a_restart_and_stands_above_a_flag(make, path):
    await make().update({"low": "5", "note": "hello"}, by=BY)
    again = LiveConfig(load(argv=["--low", "7", "--high", "70"]), path)
    again.load()
    assert (again.current.low, again.current.high, again.current.note) == (5, 70, "hello")
    assert (again.version, again.applied_at_ns, again.applied_by) == (1, 1_000, BY)
    assert again.origin("low") == ConfigOrigin(OriginKind.LIVE, BY)
    await again.update({}, ["low"], by=BY)
    assert (again.version, again.current.low) == (2, 7)
    assert again.origin("low") == ConfigOrigin(OriginKind.FLAG, "--low")


async def test_file_and_its_directory_are_private(make, path):
    await make().update({"low": "5"}, by=BY)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [one.name for one in path.parent.iterdir()] == [path.name]


async def test_validate_only_changes_nothing_and_says_what_it_would(make, path):
    part = Part()
    config = make(part)
    done = await config.update({"low": "5"}, by=BY, validate_only=True)
    assert (done.version, done.changes) == (0, (ConfigChange("low", "10", "5"),))
    assert (config.version, config.current.low, part.calls) == (0, 10, [])
    assert not path.exists()


async def test_validate_only_is_checked_like_any_other(make):
    part = Part()
    part.is_refused = lambda value: "low = 5 does not suit"
    config = make(part)
    for changes in ({"low": "x"}, {"low": "50"}, {"frozen": "2"}, {"low": "5"}):
        with pytest.raises(UpdateRefusedError):
            await config.update(changes, by=BY, validate_only=True)
    with pytest.raises(ConfigConflictError):
        await config.update({}, by=BY, validate_only=True, expected_version=3)


async def test_update_to_the_same_values_keeps_the_version_and_applies_nothing(make, path):
    part = Part()
    config = make(part)
    await config.update({"low": "5"}, by=BY)
    content, part.calls[:] = path.read_bytes(), []
    assert await config.update({"low": "5"}, by="operator/ann") == await config.update({}, by=BY)
    assert (config.version, part.calls, path.read_bytes()) == (1, [], content)


async def test_value_set_to_what_it_is_anyway_is_kept_from_then_on(make, path):
    part = Part()
    config = make(part)
    done = await config.update({"low": "10"}, by=BY)
    assert (done.version, done.changes, part.calls) == (0, (), [])
    assert config.origin("low").kind is OriginKind.LIVE
    again = LiveConfig(load(argv=["--low", "1"]), path)
    again.load()
    assert again.current.low == 10


async def test_expected_version_lets_only_the_right_one_through(make):
    config = make()
    await config.update({"low": "5"}, by=BY)
    with pytest.raises(ConfigConflictError) as refused:
        await config.update({"low": "6"}, by=BY, expected_version=7)
    assert refused.value.reason is ErrorReason.CONFIG_CONFLICT
    assert refused.value.metadata == {"version": "1", "expected_version": "7"}
    await config.update({"low": "6"}, by=BY, expected_version=1)
    assert config.current.low == 6


@pytest.mark.parametrize(
    ("changes", "reset", "field", "text"),
    [
        ({"lo": "5"}, [], "lo", "lo is unknown; did you mean low?"),
        ({"zzzzzz": "5"}, [], "zzzzzz", "those that can change are low, high"),
        ({}, ["hihg"], "hihg", "did you mean high?"),
        ({"a\nb": "5"}, [], "'a\\nb'", "'a\\nb' is unknown"),
        ({"frozen": "5"}, [], "frozen", "cannot change while the collector runs"),
        ({}, ["frozen"], "frozen", "cannot change while the collector runs"),
        ({"low": "five"}, [], "low", "low = 'five' must be a whole number"),
        ({"low": "101"}, [], "low", "low = '101' must be at most 100"),
        ({"ratio": "nan"}, [], "ratio", "finite"),
        ({"note": "x" * 4097}, [], "note", "must be at most 4096 bytes long"),
        ({"low": "5"}, ["low"], "low", "set and reset at once"),
        ({"low": "20"}, [], "high", "low = 20 must be less than high = 20"),
    ],
)
async def test_wrong_update_is_refused_by_the_name_of_its_field(make, changes, reset, field, text):
    config = make(Part())
    with pytest.raises(UpdateRefusedError) as refused:
        await config.update(changes, reset, by=BY)
    assert refused.value.reason is ErrorReason.CONFIG_INVALID
    assert text in refused.value.metadata[field]
    assert text in refused.value.message
    assert (config.version, config.current.low) == (0, 10)


async def test_all_problems_come_at_once(make):
    with pytest.raises(UpdateRefusedError) as refused:
        await make().update({"low": "x", "frozen": "1", "zz": "1"}, ["nothing"], by=BY)
    assert refused.value.metadata["fields"] == "nothing, low, frozen, zz"
    assert len(refused.value.problems) == 4


async def test_rule_across_fields_is_checked_on_the_whole(make):
    config = make()
    await config.update({"low": "30", "high": "40"}, by=BY)
    with pytest.raises(UpdateRefusedError) as refused:
        await config.update({}, ["high"], by=BY)
    assert refused.value.metadata["fields"] == "low, high"
    await config.update({}, ["low", "high"], by=BY)
    assert (config.current.low, config.current.high, config.version) == (10, 20, 2)


async def test_every_check_is_asked_before_anything_is_applied(make, path):
    one, two = Part("one"), Part("two")
    one.is_refused = two.is_refused = lambda value: value.low == 5 and "low = 5 does not suit"
    config = make(one, two)
    with pytest.raises(UpdateRefusedError) as refused:
        await config.update({"low": "5"}, by=BY)
    assert refused.value.metadata["fields"] == "one, two"
    assert one.calls == two.calls == []
    assert not path.exists()
    await config.update({"low": "6"}, by=BY)


async def test_values_that_are_too_many_bytes_together_are_refused(path):
    fields = {f"text_{n}": setting("", help="x", live=True) for n in range(20)}
    cls = type("Wide", (), {"__annotations__": dict.fromkeys(fields, str), **fields})
    config = LiveConfig(load(dataclass(frozen=True, kw_only=True)(cls)), path)
    changes = dict.fromkeys(fields, "x" * 4_000)
    for validate_only in (True, False):
        with pytest.raises(InvalidConfigError, match=r"take \d+ bytes"):
            await config.update(changes, by=BY, validate_only=validate_only)
    assert not path.exists()


# -- failing in the middle -------------------------------------------------------------------------


async def test_part_that_fails_is_rolled_back_with_those_before_it(make, path, caplog):
    calls = []
    parts = [Part("one", calls), Part("two", calls), Part("three", calls)]
    parts[1].fails_for = lambda value: value.low == 6
    config = make(*parts)
    await config.update({"low": "5"}, by=BY)
    content, calls[:] = path.read_bytes(), []
    with pytest.raises(ApplyFailedError) as failed:
        await config.update({"low": "6"}, by=BY)
    assert failed.value.reason is ErrorReason.APPLY_FAILED
    assert failed.value.metadata == {"subscriber": "two", "is_rolled_back": "true"}
    assert "secret" not in failed.value.message
    assert "secret of the part" in caplog.text
    assert calls == [("one", 6), ("two", 6), ("two", 5), ("one", 5)]
    assert (config.version, config.current.low, config.is_inconsistent) == (1, 5, False)
    assert path.read_bytes() == content
    assert parts[0].value == parts[1].value == config.current


async def test_file_is_gone_again_when_the_first_update_fails(make, path):
    part = Part()
    part.fails_for = lambda value: value.low == 6
    with pytest.raises(ApplyFailedError):
        await make(part).update({"low": "6"}, by=BY)
    assert not path.exists()


async def test_part_that_hangs_is_given_up(make):
    part = Part()
    part.hangs_for = lambda value: value.low == 6
    config = make(part, apply_timeout_s=0.02)
    async with asyncio.timeout(GUARD_S):
        with pytest.raises(ApplyFailedError):
            await config.update({"low": "6"}, by=BY)
    assert (config.current.low, part.value.low, config.is_inconsistent) == (10, 10, False)


async def test_part_that_cancels_itself_has_failed(make):
    async def apply(value):
        raise asyncio.CancelledError

    config = make()
    config.subscribe(None, apply, "odd")
    with pytest.raises(ApplyFailedError):
        await config.update({"low": "6"}, by=BY)
    assert config.is_inconsistent


async def test_cancelled_update_is_rolled_back_and_stays_cancelled(make, path, running):
    one, two = Part("one"), Part("two")
    two.hangs_for = lambda value: value.low == 6
    config = make(one, two)
    update = running(config.update({"low": "6"}, by=BY))
    async with asyncio.timeout(GUARD_S):
        await two.entered.wait()
        update.cancel()
        await asyncio.wait({update})
    assert update.cancelled()
    assert (config.current.low, one.value.low, two.value.low) == (10, 10, 10)
    assert not path.exists()


async def test_rollback_goes_on_when_it_is_cancelled_too(make, path, running, eventually):
    part, gate = Part(), asyncio.Event()
    part.hangs_for = lambda value: value.low == 6
    config = make(part)

    async def apply(value):
        if value.low == 10:
            entered.set()
            await gate.wait()
        applied.append(value.low)

    applied, entered = [], asyncio.Event()
    config.subscribe(None, apply, "slow")
    config.subscribe(None, part.apply, "last")
    part.hangs_for = lambda value: value.low == 6 and len(part.calls) > 1
    update = running(config.update({"low": "6"}, by=BY))
    await eventually(lambda: len(part.calls) == 2, "the update hangs")
    update.cancel()
    await eventually(entered.is_set, "the rollback is under way")
    update.cancel()
    await asyncio.sleep(0)
    assert not update.done()
    gate.set()
    await asyncio.wait({update})
    assert update.cancelled()
    assert (applied, config.current.low, config.is_inconsistent) == ([6, 10], 10, False)


async def test_update_cancelled_while_it_is_written_leaves_the_old_file(
    make, path, running, eventually, monkeypatch
):
    config = make()
    await config.update({"low": "5"}, by=BY)
    content, entered, gate = path.read_bytes(), threading.Event(), threading.Event()

    def write_slowly(file, document):
        entered.set()
        gate.wait(GUARD_S)
        write_really(file, document)
        written.append(path.read_bytes())

    written, write_really = [], OverrideFile.write
    monkeypatch.setattr(OverrideFile, "write", write_slowly)
    update = running(config.update({"low": "6"}, by=BY))
    await eventually(entered.is_set, "the write is under way")
    update.cancel()
    for _ in range(100):
        await asyncio.sleep(0)
    assert not update.done(), "a write cannot be called off, so it is waited for"
    gate.set()
    await asyncio.wait({update})
    assert update.cancelled()
    assert written
    assert written != [content]
    assert (path.read_bytes(), config.current.low) == (content, 5)


async def test_rollback_that_fails_is_told_until_an_update_succeeds(make, caplog):
    part = Part()
    part.fails_for = lambda value: True
    config = make(part)
    with pytest.raises(ApplyFailedError) as failed:
        await config.update({"low": "6"}, by=BY)
    assert failed.value.metadata["is_rolled_back"] == "false"
    assert "restart the collector" in failed.value.message
    assert config.is_inconsistent
    assert config.current.low == 10
    assert "could not be rolled back" in caplog.text
    part.fails_for = lambda value: False
    await config.update({}, by=BY)
    assert not config.is_inconsistent
    assert part.value is config.current


async def test_update_that_cannot_be_kept_is_not_applied(make, path):
    part = Part()
    config = make(part)
    path.parent.mkdir(mode=0o777)
    path.parent.chmod(0o777)
    with pytest.raises(Exception, match="group or others may write") as refused:
        await config.update({"low": "6"}, by=BY)
    assert refused.value.reason is ErrorReason.FILE_UNUSABLE
    assert (part.calls, config.current.low, config.is_inconsistent) == ([], 10, False)
    path.parent.chmod(0o700)
    await config.update({"low": "6"}, by=BY)


async def test_updates_come_one_after_the_other(make, running):
    part, gate = Part(), asyncio.Event()
    config = make(part)

    async def apply(value):
        seen.append(value.low)
        await gate.wait()

    seen = []
    config.subscribe(None, apply, "gate")
    first = running(config.update({"low": "5"}, by=BY))
    await part.entered.wait()
    second = running(config.update({"low": "6"}, by=BY))
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(part.calls) == 1
    assert config.current.low == 10, "not in force before all have applied it"
    gate.set()
    assert ((await first).version, (await second).version) == (1, 2)
    assert seen == [5, 6]


# -- the file of an earlier life -------------------------------------------------------------------


def write(path, values, **fields):
    path.parent.mkdir(mode=0o700, exist_ok=True)
    document = {"format": 1, "version": 4, "applied_at_ns": 7, "applied_by": BY} | fields
    document["values"] = {name: {"value": text, "by": BY} for name, text in values.items()}
    path.write_text(json.dumps(document))
    path.chmod(0o600)


async def test_values_that_are_not_valid_any_more_are_left_out(make, path, caplog):
    write(path, {"low": "5", "high": "x", "frozen": "3", "gone": "1", "ratio": "0.25"})
    with caplog.at_level(logging.WARNING):
        config = make()
    assert (config.current.low, config.current.ratio, config.current.high) == (5, 0.25, 20)
    assert config.version == 4
    assert sorted(text.split()[2] for text in config.problems) == ["frozen", "gone", "high"]
    assert caplog.text.count("left out") == 3
    assert set(values_in(path)) == {"low", "high", "frozen", "gone", "ratio"}
    await config.update({"ratio": "0.5"}, by=BY)
    assert values_in(path) == {"low": "5", "ratio": "0.5"}


async def test_values_that_are_valid_together_only_are_both_kept(make, path):
    write(path, {"low": "80", "high": "90", "ratio": "7"})
    assert (make().current.low, make().current.high) == (80, 90)


async def test_value_that_contradicts_a_new_default_is_left_out_alone(path):
    write(path, {"low": "15", "ratio": "0.1"})
    config = LiveConfig(load(argv=["--low", "1", "--high", "12"]), path)
    config.load()
    assert (config.current.low, config.current.high, config.current.ratio) == (1, 12, 0.1)
    assert "low = '15' contradicts other settings" in config.problems[0]


async def test_fields_are_those_of_the_settings_in_their_order(make):
    config = make()
    await config.update({"names": "p,q", "is_fast": "yes"}, by=BY)
    fields = config.fields()
    assert [one.name for one in fields] == [one.name for one in describe_settings(Settings)]
    texts = {one.name: one.value for one in fields}
    assert texts == {
        "low": "10",
        "high": "20",
        "ratio": "0.5",
        "names": "p,q",
        "note": "",
        "is_fast": "true",
        "place": "/tmp",
        "frozen": "1",
    }
    assert [one.name for one in fields if not one.is_live] == ["frozen"]
    assert {one.help for one in fields if one.name == "ratio"} == {"a share"}
    assert {one.origin.kind for one in fields if one.name == "names"} == {OriginKind.LIVE}
