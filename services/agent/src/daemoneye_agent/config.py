"""The settings of the agent."""

import re
from dataclasses import dataclass
from pathlib import Path

from daemoneye_mesh.configuration import setting
from daemoneye_mesh.directories import STATE_DIR_VARIABLE, locate_state_dir
from daemoneye_mesh.errors import InvalidConfigError
from daemoneye_mesh.process import ProcessSettings

__all__ = ["AgentSettings"]

_NAME = re.compile(r"[a-z0-9_-]{1,64}")
DOMAINS = frozenset({"process", "network", "filesystem", "performance"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings(ProcessSettings):
    """Settings of ``daemoneye-agent``.

    Raises:
        InvalidConfigError: a name is malformed or used twice, or a collector is no ID=DOMAIN.
    """

    state_dir: Path | None = setting(
        None,
        help="directory of the event store and the signing key; found by itself when unset",
        env=STATE_DIR_VARIABLE,
    )
    collectors: tuple[str, ...] = setting(
        ("procmond=process",),
        help="collectors that get an identity, each as ID=DOMAIN or ID=DOMAIN+DOMAIN",
    )
    operators: tuple[str, ...] = setting(("local",), help="operators that get an identity")
    token_ttl_s: int = setting(
        3600, help="life of a token; renewed long before", minimum=60, maximum=86_400
    )
    rules_dir: Path | None = setting(
        None, help="directory of further rules (*.toml), beside the built-in ones"
    )
    retention_days: int = setting(7, help="days that events are kept", minimum=1, maximum=365)
    max_store_bytes: int = setting(
        2 << 30, help="size at which the oldest events go", minimum=1 << 20, maximum=1 << 50
    )
    max_alerts: int = setting(100_000, help="alerts that are kept", minimum=1, maximum=10_000_000)
    query_timeout_s: float = setting(
        10.0, help="how long one query may run", minimum=0.1, maximum=60.0
    )

    def __post_init__(self) -> None:
        entries = [entry.partition("=")[0] for entry in self.collectors]
        for setting_name, names in (("collectors", entries), ("operators", list(self.operators))):
            _check_names(setting_name, names)
        for entry in self.collectors:
            _parse_collector(entry)

    @property
    def state_path(self) -> Path:
        """Directory of what outlives a boot."""
        return self.state_dir or locate_state_dir()

    @property
    def collector_domains(self) -> dict[str, frozenset[str]]:
        """The domains of each collector that gets an identity."""
        return dict(_parse_collector(entry) for entry in self.collectors)


def _check_names(setting_name: str, names: list[str]) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise InvalidConfigError(
                f"{setting_name} has {name!r}; use 1 to 64 of a-z 0-9 _ -",
                setting=setting_name,
                entry=name,
            )
        if names.count(name) > 1:
            raise InvalidConfigError(
                f"{setting_name} has {name!r} more than once; write ID=DOMAIN+DOMAIN in one entry",
                setting=setting_name,
                entry=name,
            )


def _parse_collector(entry: str) -> tuple[str, frozenset[str]]:
    collector_id, _, text = entry.partition("=")
    domains = frozenset(text.split("+"))
    if not domains <= DOMAINS:
        raise InvalidConfigError(
            f"collectors has {entry!r}; write ID=DOMAIN, with domains of {', '.join(sorted(DOMAINS))}",
            setting="collectors",
            entry=entry,
        )
    return collector_id, domains
