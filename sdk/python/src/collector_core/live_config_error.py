"""Why an update of the configuration does not come into force."""

from collections.abc import Sequence
from dataclasses import dataclass

from daemoneye_mesh.errors import ConflictError, ErrorReason, InternalError, InvalidConfigError

__all__ = ["ApplyFailedError", "ConfigConflictError", "ConfigProblem", "UpdateRefusedError"]


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing that stands in the way of an update."""

    fields: tuple[str, ...]
    message: str


class UpdateRefusedError(InvalidConfigError):
    """An update of the configuration is refused; nothing changed.

    Args:
        problems: everything to correct; the metadata has each under the names of its fields.
    """

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        listed = "; ".join(problem.message for problem in problems)
        super().__init__(f"the update is refused: {listed}; correct it and send it again")
        self.problems = tuple(problems)
        fields = list(dict.fromkeys(name for one in problems for name in one.fields))
        self.metadata["fields"] = ", ".join(fields)
        for problem in problems:
            self.metadata.update(dict.fromkeys(problem.fields, problem.message))


class ConfigConflictError(ConflictError):
    """Another version is in force than the caller has seen."""

    default_reason = ErrorReason.CONFIG_CONFLICT


class ApplyFailedError(InternalError):
    """A part of the collector could not apply an update.

    Args:
        subscriber: which part.
        is_rolled_back: whether what was in force before is in force again.
    """

    default_reason = ErrorReason.APPLY_FAILED

    def __init__(self, subscriber: str, is_rolled_back: bool) -> None:
        state = (
            "what was in force before is in force; the log of the collector says why"
            if is_rolled_back
            else "what was before could not be restored; restart the collector"
        )
        super().__init__(
            f"{subscriber} could not apply the update, {state}",
            subscriber=subscriber,
            is_rolled_back="true" if is_rolled_back else "false",
        )
