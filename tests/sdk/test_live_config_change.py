from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_core.live_config_change import ConfigOrigin, OriginKind, Overlay, Override, to_text
from collector_core.wal import SyncPolicy
from daemoneye_mesh.configuration import describe_settings, load_settings, setting
from daemoneye_mesh.errors import InvalidConfigError

NOWHERE = Path("/nonexistent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    count: int = setting(10, help="a count", live=True)
    ratio: float = setting(0.5, help="a share", live=True)
    names: tuple[str, ...] = setting(("a",), help="some names", live=True)
    note: str | None = setting(None, help="a note", live=True)
    text: str = setting("", help="a text", live=True)
    is_fast: bool = setting(False, help="whether it is fast", live=True)
    place: Path | None = setting(None, help="where", live=True)
    policy: SyncPolicy = setting(SyncPolicy.COMMIT, help="one of some", live=True)


SETTINGS = {one.name: one for one in describe_settings(Settings)}
TEXTS = {
    "count": ["0", "+99", "-5"],
    "ratio": ["0.1", "1e-09", "1"],
    "names": ["", "a", "a, b,,c"],
    "note": ["", "hello", "\u00fc \n"],
    "text": ["", " x "],
    "is_fast": ["true", "off"],
    "place": ["", "/", "a b", "~"],
    "policy": ["interval"],
}


@pytest.mark.parametrize(("name", "text"), [(name, one) for name in TEXTS for one in TEXTS[name]])
def test_text_of_a_value_reads_back_as_the_value(name, text):
    one = SETTINGS[name]
    for value in (one.default, one.from_text(text)):
        assert one.from_text(to_text(value)) == value


@given(st.floats(allow_nan=False, min_value=-1e15, max_value=1e15), st.text(), st.text())
def test_text_of_any_value_reads_back_as_the_value(ratio, note, names):
    for name, text in (
        ("ratio", repr(ratio)),
        ("note", note.replace("\0", "")),
        ("names", names.replace("\0", "")),
    ):
        value = SETTINGS[name].from_text(text)
        assert SETTINGS[name].from_text(to_text(value)) == value


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("default", ConfigOrigin(OriginKind.DEFAULT)),
        ("file /etc/my dir/x.toml", ConfigOrigin(OriginKind.FILE, "/etc/my dir/x.toml")),
        ("environment DAEMONEYE_X", ConfigOrigin(OriginKind.ENVIRONMENT, "DAEMONEYE_X")),
        ("flag --x", ConfigOrigin(OriginKind.FLAG, "--x")),
    ],
)
def test_origin_of_a_loaded_value_is_understood(text, origin):
    assert ConfigOrigin.parse(text) == origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    low: int = setting(1, help="lower", live=True)
    high: int = setting(5, help="upper", live=True)
    is_fast: bool = setting(False, help="whether it is fast", live=True)
    is_safe: bool = setting(False, help="whether it is safe", live=True)

    def __post_init__(self):
        if self.low >= self.high:
            raise InvalidConfigError("low must be less than high", low=self.low)
        if self.is_fast and self.is_safe:
            raise InvalidConfigError("is_fast and is_safe exclude each other")


def test_as_many_values_as_possible_are_salvaged():
    overlay = Overlay(load_settings(Bounds, "unit", [], {}, NOWHERE, NOWHERE))
    texts = {"low": "8", "high": "9", "is_fast": "true", "is_safe": "true"}
    overrides = {name: Override(text, "agent/agent") for name, text in texts.items()}
    kept, problems = overlay.salvage(overrides)
    assert set(kept) == {"low", "high", "is_fast"}
    assert [problem.fields for problem in problems] == [("is_safe",)]
    built = overlay.build(kept)
    assert (built.low, built.high, built.is_fast, built.is_safe) == (8, 9, True, False)
