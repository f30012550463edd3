"""How much one collector asks of others."""

from dataclasses import dataclass

from daemoneye_mesh.errors import InvalidConfigError

__all__ = ["TriggerLimits"]


@dataclass(frozen=True, slots=True)
class TriggerLimits:
    """Bounds of a trigger engine.

    Raises:
        InvalidConfigError: one of them is out of range.
    """

    per_minute: int = 100
    """Requests a minute to one target collector; a minute's worth may go at once."""
    dedup_s: float = 300.0
    """How long the same analysis of the same target is not asked for again."""
    max_pending: int = 1000
    """Requests that wait to be emitted, all priorities together."""
    max_remembered: int = 100_000
    """Targets remembered for ``dedup_s``; the oldest are forgotten first."""

    def __post_init__(self) -> None:
        """Checks the bounds."""
        for name, value, minimum in (
            ("per_minute", self.per_minute, 1),
            ("dedup_s", self.dedup_s, 0),
            ("max_pending", self.max_pending, 1),
            ("max_remembered", self.max_remembered, 1),
        ):
            if not minimum <= value < float("inf"):
                raise InvalidConfigError(
                    f"{name} = {value} must be at least {minimum}; correct the limits of triggers",
                    setting=name,
                    value=value,
                    minimum=minimum,
                )
