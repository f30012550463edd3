"""A setting of the agent is obeyed or refused with a remedy."""

from pathlib import Path
from typing import Any

import pytest

from daemoneye_agent.config import AgentSettings
from daemoneye_mesh.errors import InvalidConfigError


def test_collectors_get_the_domains_of_their_entries() -> None:
    settings = AgentSettings(collectors=("procmond=process", "all=network+filesystem"))
    assert settings.collector_domains == {
        "procmond": {"process"},
        "all": {"network", "filesystem"},
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"collectors": ("procmond",)}, "ID=DOMAIN"),
        ({"collectors": ("procmond=",)}, "ID=DOMAIN"),
        ({"collectors": ("procmond=proces",)}, "ID=DOMAIN"),
        ({"collectors": ("procmond=process+",)}, "ID=DOMAIN"),
        ({"collectors": ("=process",)}, "a-z 0-9"),
        ({"collectors": ("../x=process",)}, "a-z 0-9"),
        ({"collectors": ("a=process", "a=network")}, "more than once"),
        ({"operators": ("Local",)}, "a-z 0-9"),
        ({"operators": ("",)}, "a-z 0-9"),
        ({"operators": ("one", "one")}, "more than once"),
    ],
)
def test_entry_that_makes_no_identity_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfigError, match=said):
        AgentSettings(**changes)


def test_state_lies_where_it_was_told_to(tmp_path: Path) -> None:
    assert AgentSettings(state_dir=tmp_path).state_path == tmp_path
