from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import pytest

from daemoneye_mesh.configuration import InvalidSettingsError, load_settings, setting
from daemoneye_mesh.errors import Code, ErrorReason, InvalidConfigError


class Policy(StrEnum):
    DROP = "drop"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class Settings:
    scan_interval_s: float = setting(30.0, help="time between scans", minimum=0.1, maximum=3600)
    batch_size: int = setting(1000, help="events a batch", minimum=1, maximum=10_000)
    socket_path: Path = setting(Path("/run/x.sock"), help="where to listen")
    runtime_dir: Path | None = setting(None, help="runtime dir", env="DAEMONEYE_RUNTIME_DIR")
    name: str = setting("procmond", help="name")
    names: tuple[str, ...] = setting((), help="names")
    policy: Policy = setting(Policy.DROP, help="what to do when full")
    style: Literal["auto", "json"] = setting("auto", help="log style")
    level: str = setting("info", help="log level", choices=("info", "debug"))
    is_enriched: bool = setting(False, help="read more")
    limit: int | None = setting(None, help="limit", minimum=1)

    def __post_init__(self):
        if self.limit is not None and self.limit > self.batch_size:
            raise InvalidConfigError("limit exceeds batch_size", setting="limit")


class Host:
    """The layers of one host, in files of a temporary folder."""

    def __init__(self, directory):
        self.system = directory / "system.toml"
        self.user = directory / "user.toml"

    def load(self, *argv, **environ):
        return load_settings(Settings, "procmond", argv, environ, self.system, self.user)

    def problems(self, *argv, **environ):
        with pytest.raises(InvalidSettingsError) as caught:
            self.load(*argv, **environ)
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert caught.value.reason is ErrorReason.CONFIG_INVALID
        return list(caught.value.problems)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_defaults_stand_when_no_layer_says_otherwise(host):
    loaded = host.load()

    assert loaded.value == Settings()
    assert set(loaded.origin.values()) == {"default"}


def test_each_layer_overrides_the_one_below_and_the_origin_says_which(host):
    host.system.write_text("batch_size = 1\nname = 's'\nis_enriched = true\nlevel = 'debug'")
    host.user.write_text("batch_size = 2\nname = 'u'\nis_enriched = false")
    loaded = host.load(
        "--batch-size=4", DAEMONEYE_PROCMOND_BATCH_SIZE="3", DAEMONEYE_PROCMOND_NAME="e"
    )

    assert loaded.value.batch_size == 4
    assert loaded.value.name == "e"
    assert loaded.value.is_enriched is False
    assert loaded.value.level == "debug"
    assert loaded.origin == dict.fromkeys(loaded.origin, "default") | {
        "batch_size": "flag --batch-size",
        "name": "environment DAEMONEYE_PROCMOND_NAME",
        "is_enriched": f"file {host.user}",
        "level": f"file {host.system}",
    }


def test_every_type_is_read_from_a_file(host):
    host.user.write_text(
        """
        scan_interval_s = 5
        batch_size = 7
        socket_path = "/tmp/a.sock"
        runtime_dir = "/tmp"
        names = ["a", "b,c"]
        policy = "block"
        style = "json"
        is_enriched = true
        limit = 3
        """
    )
    value = host.load().value

    assert value == Settings(
        scan_interval_s=5.0,
        batch_size=7,
        socket_path=Path("/tmp/a.sock"),
        runtime_dir=Path("/tmp"),
        names=("a", "b,c"),
        policy=Policy.BLOCK,
        style="json",
        is_enriched=True,
        limit=3,
    )
    assert type(value.scan_interval_s) is float
    assert type(value.policy) is Policy


def test_every_type_is_read_from_the_environment(host):
    value = host.load(
        DAEMONEYE_PROCMOND_SCAN_INTERVAL_S="0.5",
        DAEMONEYE_PROCMOND_SOCKET_PATH="/tmp/a.sock",
        DAEMONEYE_PROCMOND_NAMES="a, b,,",
        DAEMONEYE_PROCMOND_POLICY="block",
        DAEMONEYE_PROCMOND_IS_ENRICHED="ON",
        DAEMONEYE_PROCMOND_LIMIT="",
        DAEMONEYE_RUNTIME_DIR="/tmp",
    ).value

    assert value == Settings(
        scan_interval_s=0.5,
        socket_path=Path("/tmp/a.sock"),
        names=("a", "b"),
        policy=Policy.BLOCK,
        is_enriched=True,
        runtime_dir=Path("/tmp"),
    )


def test_every_type_is_read_from_flags(host):
    loaded = host.load(
        "--scan-interval-s", "2", "--names", "a", "--names=b,c", "--no-is-enriched",
        "--policy=block", "--limit", "9",
    )  # fmt: skip

    assert loaded.value == Settings(
        scan_interval_s=2.0, names=("a", "b", "c"), policy=Policy.BLOCK, limit=9
    )
    assert loaded.origin["is_enriched"] == "flag --no-is-enriched"


@pytest.mark.parametrize(
    ("variable", "text", "problem"),
    [
        ("SCAN_INTERVAL_S", "0.09", "must be at least 0.1"),
        ("SCAN_INTERVAL_S", "3600.5", "must be at most 3600"),
        ("SCAN_INTERVAL_S", "nan", "must be a finite number"),
        ("SCAN_INTERVAL_S", "fast", "must be a number"),
        ("BATCH_SIZE", "0", "must be at least 1"),
        ("BATCH_SIZE", "10001", "must be at most 10000"),
        ("BATCH_SIZE", "1.5", "must be a whole number"),
        ("BATCH_SIZE", "1_000", "must be a whole number"),
        ("BATCH_SIZE", "", "must be a whole number"),
        ("POLICY", "Drop", "must be one of drop, block"),
        ("STYLE", "xml", "must be one of auto, json"),
        ("LEVEL", "loud", "must be one of info, debug"),
        ("IS_ENRICHED", "maybe", "must be true or false"),
        ("SOCKET_PATH", "", "must be a path"),
        ("SOCKET_PATH", "/a\0b", "must not contain a NUL character"),
    ],
)
def test_text_out_of_bounds_is_refused_with_its_origin(host, variable, text, problem):
    (found,) = host.problems(**{f"DAEMONEYE_PROCMOND_{variable}": text})

    assert found.startswith(f"{variable.lower()} = {text!a} (environment DAEMONEYE_PROCMOND_")
    assert problem in found


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("scan_interval_s = '5'", "must be a number"),
        ("scan_interval_s = true", "must be a number"),
        ("scan_interval_s = inf", "must be a finite number"),
        ("batch_size = 1.0", "must be a whole number"),
        ("batch_size = true", "must be a whole number"),
        (f"limit = 1{'0' * 400}", "must be a finite number"),
        ("is_enriched = 1", "must be true or false"),
        ("names = 'a'", "must be a list of texts"),
        ("names = [1]", "must be a list of texts"),
        ("policy = 'x'", "must be one of drop, block"),
        ("name = 2026-01-01", "must be a text"),
        ("name = {a = 1}", "must be a text"),
    ],
)
def test_value_of_the_wrong_type_in_a_file_is_refused_with_its_file(host, line, problem):
    host.system.write_text(line)
    (found,) = host.problems()

    assert f"(file {host.system})" in found
    assert problem in found


@pytest.mark.parametrize(("bound", "value"), [("0.1", 0.1), ("3600", 3600.0)])
def test_bounds_belong_to_the_range(host, bound, value):
    assert host.load("--scan-interval-s", bound).value.scan_interval_s == value


def test_unknown_key_is_refused_with_its_file_and_the_closest_known_one(host):
    host.user.write_text("scan_intervall = 5")

    assert host.problems() == [
        f"key scan_intervall in {host.user} is unknown; did you mean scan_interval_s?"
    ]


def test_unknown_variable_of_this_process_is_refused_and_others_are_not_looked_at(host):
    (found,) = host.problems(DAEMONEYE_PROCMOND_BATCHSIZE="1", DAEMONEYE_AGENT_X="1", HOME="/")

    assert "variable DAEMONEYE_PROCMOND_BATCHSIZE in the environment is unknown" in found
    assert "did you mean DAEMONEYE_PROCMOND_BATCH_SIZE?" in found


def test_unknown_name_that_resembles_none_is_refused_with_the_known_ones(host):
    host.user.write_text("zzz = 5\n'a\\u001bb' = 1".replace("'", '"'))
    first, second = host.problems()

    assert "key zzz in" in first
    assert "known are scan_interval_s, batch_size" in first
    assert "\\x1b" in second
    assert "\x1b" not in second


def test_shared_variable_has_no_second_name_of_the_process(host):
    (found,) = host.problems(DAEMONEYE_PROCMOND_RUNTIME_DIR="/tmp")

    assert "did you mean DAEMONEYE_RUNTIME_DIR?" in found


def test_unknown_flag_is_refused_with_the_closest_known_one(host):
    assert host.problems("--batchsize", "5") == [
        "flag --batchsize is unknown; did you mean --batch-size?"
    ]


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--batch"], "flag --batch is unknown"),
        (["stray"], "argument 'stray' is not expected"),
        (["--batch-size"], "expected one argument"),
    ],
)
def test_malformed_command_line_is_refused(host, argv, problem):
    (found,) = host.problems(*argv)

    assert problem in found


def test_problems_of_all_layers_are_reported_at_once(host):
    host.system.write_text("batch_size = 0\nother = 1")
    host.user.write_text("level = ")
    problems = host.problems("--limit=0", "--unknown", DAEMONEYE_PROCMOND_POLICY="x")

    assert len(problems) == 6
    for part in ("batch_size", "other", str(host.user), "limit", "--unknown", "policy"):
        assert any(part in problem for problem in problems), part


def test_rule_across_settings_is_reported_like_any_other(host):
    assert host.problems("--limit=5", "--batch-size=4") == ["limit exceeds batch_size"]


def test_config_flag_takes_the_place_of_both_files(host, tmp_path):
    host.system.write_text("name = 's'")
    host.user.write_text("broken = [")
    chosen = tmp_path / "chosen.toml"
    chosen.write_text("batch_size = 5")
    loaded = host.load("--config", str(chosen), DAEMONEYE_PROCMOND_NAME="e")

    assert (loaded.value.batch_size, loaded.value.name) == (5, "e")
    assert loaded.origin["batch_size"] == f"file {chosen}"


def test_config_flag_must_name_a_file_that_exists(host, tmp_path):
    assert host.problems("--config", str(tmp_path / "no.toml")) == [
        f"file {tmp_path / 'no.toml'} does not exist"
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"= 1", "is not TOML"), (b"\xff", "is not UTF-8"), (b"#" * 2**21, "is larger than")],
    ids=["no-toml", "no-utf8", "large"],
)
def test_unreadable_file_is_refused(host, content, problem):
    host.user.write_bytes(content)
    (found,) = host.problems()

    assert found.startswith(f"file {host.user} {problem}")


def test_directory_in_place_of_a_file_is_refused(host):
    host.user.mkdir()

    assert host.problems() == [f"file {host.user} cannot be read (is a directory)"]


def test_file_anybody_may_write_is_refused(host):
    host.user.write_text("batch_size = 5")
    host.user.chmod(0o646)

    assert host.problems() == [f"file {host.user} may be written by anybody; run chmod o-w on it"]


def test_describe_lists_value_and_origin_of_every_setting(host):
    loaded = host.load("--names=a,b", "--is-enriched")
    rows = {row.name: row for row in loaded.describe()}

    assert list(rows) == list(loaded.origin)
    assert (rows["names"].value, rows["names"].origin) == ('["a", "b"]', "flag --names")
    assert rows["is_enriched"].value == "true"
    assert rows["limit"].value == "(unset)"
    assert rows["scan_interval_s"].help == "time between scans"


def test_origin_and_value_cannot_be_changed(host):
    loaded = host.load()

    with pytest.raises(TypeError):
        loaded.origin["name"] = "x"
    with pytest.raises(AttributeError):
        loaded.value.name = "x"
