"""Settings that change while a collector runs, brought to the parts that obey them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from collector_core.capability import ChecksSettings, Reconfigures
from collector_core.delivery import Delivery
from collector_core.hashing import FileHasher
from collector_core.live_config import LiveConfig
from collector_core.resources import ResourceGuard
from collector_core.settings import CollectorSettings
from collector_core.source import EventSource
from collector_core.trigger import TriggerEngine, TriggerLimits
from collector_core.vitals import budget_of
from collector_core.wal import WalLimits

__all__ = ["Followers", "follow_settings", "trigger_limits_of", "wal_limits_of"]


@dataclass(frozen=True, slots=True)
class Followers:
    """The parts that are told of changes; others read the settings when they need them."""

    delivery: Delivery
    resources: ResourceGuard
    hasher: FileHasher
    triggers: TriggerEngine

    async def apply(self, settings: CollectorSettings) -> None:
        """Makes them obey."""
        pressure = self.delivery.pressure
        pressure.apply_marks(settings.shed_above_share, settings.shed_below_share)
        await self.delivery.apply_limits(wal_limits_of(settings))
        self.resources.apply_budget(budget_of(settings))
        self.hasher.apply_budget(settings.hash_bytes_per_s)
        self.triggers.apply_limits(trigger_limits_of(settings))
        logging.getLogger().setLevel(settings.log_level.upper())


def follow_settings(
    config: LiveConfig[Any], sources: Sequence[EventSource], followers: Followers
) -> None:
    """Brings every change of the settings to the parts and the sources."""
    config.subscribe(None, followers.apply, "collector")
    for source in sources:
        check = source.check_settings if isinstance(source, ChecksSettings) else None
        reconfigure = source.reconfigure if isinstance(source, Reconfigures) else _take_nothing
        if check is not None or reconfigure is not _take_nothing:
            config.subscribe(check, reconfigure, f"source {source.name}")


def wal_limits_of(settings: CollectorSettings) -> WalLimits:
    """Returns the bounds of the log that the settings give."""
    return WalLimits(
        max_bytes=settings.wal_max_bytes,
        max_age_s=settings.wal_max_age_s,
        segment_bytes=settings.wal_segment_bytes,
    )


def trigger_limits_of(settings: CollectorSettings) -> TriggerLimits:
    """Returns the bounds of triggers that the settings give."""
    return TriggerLimits(per_minute=settings.triggers_per_minute, dedup_s=settings.trigger_dedup_s)


async def _take_nothing(_settings: CollectorSettings) -> None:
    """For a source that checks settings and reads them by itself."""
