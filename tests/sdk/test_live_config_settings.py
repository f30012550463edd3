"""Every live setting of a collector can be updated, and no other."""

from pathlib import Path

import pytest

from collector_core.live_config import LiveConfig, UpdateRefusedError, to_text
from collector_core.settings import CollectorSettings
from daemoneye_mesh.configuration import describe_settings, load_settings

BY = "agent/agent"
NOWHERE = Path("/nonexistent")
NEW_TEXTS = {
    "health_interval_s": "11.5",
    "shutdown_timeout_s": "7",
    "shed_above_share": "0.8",
    "shed_below_share": "0.25",
}
LIVE = [one for one in describe_settings(CollectorSettings) if one.is_live]


def load():
    return load_settings(CollectorSettings, "unit", [], {}, NOWHERE, NOWHERE)


def new_text_of(one):
    """Returns a valid value of a setting that is not its default."""
    if one.name in NEW_TEXTS:
        return NEW_TEXTS[one.name]
    others = [text for text in one.choices if text != one.default]
    return others[0] if others else to_text(one.default + 1)


@pytest.mark.parametrize("one", LIVE, ids=lambda one: one.name)
async def test_live_setting_of_a_collector_can_be_updated(one, tmp_path):
    config = LiveConfig(load(), tmp_path / "config.json")
    text = new_text_of(one)
    done = await config.update({one.name: text}, by=BY)
    assert [change.name for change in done.changes] == [one.name]
    assert getattr(config.current, one.name) == one.from_text(text) != one.default
    again = LiveConfig(load(), tmp_path / "config.json")
    again.load()
    assert again.current == config.current
    assert again.problems == ()


def test_there_are_live_settings():
    assert len(LIVE) > 5


@pytest.mark.parametrize(
    "one",
    [one for one in describe_settings(CollectorSettings) if not one.is_live],
    ids=lambda one: one.name,
)
async def test_other_setting_of_a_collector_is_refused(one):
    config = LiveConfig(load())
    with pytest.raises(UpdateRefusedError, match=f"{one.name} cannot change while"):
        await config.update({one.name: to_text(one.default)}, by=BY)


async def test_configuration_without_a_file_is_kept_in_memory():
    config = LiveConfig(load())
    config.load()
    await config.update({"health_interval_s": "6"}, by=BY)
    assert (config.current.health_interval_s, config.version) == (6, 1)
