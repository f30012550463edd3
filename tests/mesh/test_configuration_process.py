import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from daemoneye_mesh.configuration import (
    environment_prefix,
    load_settings,
    parse_process_arguments,
    setting,
)
from daemoneye_mesh.setting import describe_settings


@dataclass(frozen=True, slots=True)
class Settings:
    interval_s: float = setting(30, help="time between scans, 100% exact", minimum=0.1)
    name: str = setting("x", help="name", choices=("x", 'q"\x1b', "z"))
    folder: Path | None = setting(None, help="folder", env="DAEMONEYE_STATE_DIR")
    names: tuple[str, ...] = setting(("a",), help="names")
    is_on: bool = setting(True, help="on")


def start(tmp_path, *argv, **environ):
    return parse_process_arguments(
        Settings,
        "daemoneye-tester",
        description="Tests things.",
        version="1.2.3",
        argv=argv,
        environ={"XDG_CONFIG_HOME": str(tmp_path)} | environ,
    )


def test_process_starts_with_its_settings(tmp_path):
    loaded = start(tmp_path, "--interval-s=5", DAEMONEYE_TESTER_NAME="z")

    assert loaded.value == Settings(interval_s=5.0, name="z")


def test_process_reads_its_user_file_below_xdg_config_home_or_home(tmp_path):
    (tmp_path / ".config/daemoneye").mkdir(parents=True)
    (tmp_path / "daemoneye").symlink_to(tmp_path / ".config/daemoneye")
    (tmp_path / "daemoneye/tester.toml").write_text("interval_s = 7")
    missing = tmp_path / "none.toml"
    by_xdg = start(tmp_path)
    by_home = load_settings(
        Settings,
        "daemoneye-tester",
        environ={"HOME": str(tmp_path), "XDG_CONFIG_HOME": "relative"},
        system_path=missing,
    )

    assert by_xdg.value == by_home.value == Settings(interval_s=7.0)
    assert by_home.origin["interval_s"] == f"file {tmp_path}/.config/daemoneye/tester.toml"


def test_process_without_a_home_has_no_user_file(tmp_path):
    assert load_settings(Settings, "tester", environ={}).value == Settings()


def test_show_config_prints_a_configuration_file_with_origins(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        start(tmp_path, "--show-config", "--no-is-on", DAEMONEYE_TESTER_NAME='q"\x1b')
    printed = capsys.readouterr().out

    assert caught.value.code == 0
    assert tomllib.loads(printed) == {
        "interval_s": 30.0,
        "name": 'q"\x1b',
        "names": ["a"],
        "is_on": False,
    }
    assert "\x1b" not in printed
    assert len(printed.splitlines()) == len(fields(Settings))
    assert "# environment DAEMONEYE_TESTER_NAME" in printed
    assert "# flag --no-is-on" in printed
    assert printed.count("# default") == 3


def test_help_shows_each_flag_with_its_bounds_and_default(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        start(tmp_path, "--help")
    printed = " ".join(capsys.readouterr().out.split())

    assert caught.value.code == 0
    assert "Tests things." in printed
    assert "time between scans, 100% exact (at least 0.1; default 30.0)" in printed
    assert 'name (one of x, q"' in printed
    assert "folder (default unset)" in printed
    for flag in ("--is-on, --no-is-on", "--config FILE", "--show-config", "--version"):
        assert flag in printed


def test_version_is_printed(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        start(tmp_path, "--version")

    assert caught.value.code == 0
    assert capsys.readouterr().out == "tester 1.2.3\n"


def test_invalid_configuration_ends_the_process_with_every_problem(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        start(tmp_path, "--show-config", "--interval-s=0", "--nam=z", DAEMONEYE_TESTER_ON="1")
    captured = capsys.readouterr()

    assert caught.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("daemoneye-tester: the configuration is refused")
    assert len([line for line in captured.err.splitlines() if line.startswith("  - ")]) == 3


@pytest.mark.parametrize(
    ("process", "prefix"),
    [("procmond", "DAEMONEYE_PROCMOND_"), ("daemoneye-agent", "DAEMONEYE_AGENT_"),
     ("my-mond", "DAEMONEYE_MY_MOND_")],
)  # fmt: skip
def test_environment_prefix_follows_the_name_of_the_process(process, prefix):
    assert environment_prefix(process) == prefix


def declared(hint, default, **options):
    namespace = {"__annotations__": {"x": hint}, "x": setting(default, help="x", **options)}
    return dataclass(frozen=True)(type("Declared", (), namespace))


@pytest.mark.parametrize(
    ("hint", "default", "options"),
    [
        (dict, None, {}),
        (list[str], None, {}),
        (tuple[int, ...], (), {}),
        (int | str, 1, {}),
        (int, None, {}),
        (int, 0, {"minimum": 1}),
        (int, 1, {"choices": ("1",)}),
        (str, "a", {"choices": ("b",)}),
        (str, "a", {"minimum": 1}),
        (float, "1", {}),
    ],
    ids=str,
)
def test_declaration_that_cannot_be_obeyed_is_a_defect_found_at_the_start(hint, default, options):
    with pytest.raises(TypeError, match="setting x: "):
        describe_settings(declared(hint, default, **options))


@pytest.mark.parametrize("text", ["inf", "-inf", "nan", "1e300"])
def test_number_without_bounds_must_still_be_finite(text):
    (unbounded,) = describe_settings(declared(float, 1.0))

    with pytest.raises(ValueError, match="finite number"):
        unbounded.from_text(text)


def test_field_that_is_no_setting_is_a_defect():
    @dataclass(frozen=True)
    class Undeclared:
        x: int = 1

    with pytest.raises(TypeError, match="not declared with setting"):
        describe_settings(Undeclared)
