"""Dataclasses that travel between a benchmark and its workers, one line of JSON each.

Standard library only: each peer's interpreter runs it.
"""

import json
from dataclasses import asdict
from typing import Any, Self, cast

__all__ = ["JsonLine"]


class JsonLine:
    """Base of such a dataclass; ``from_json`` is overridden where a field is one itself."""

    __slots__ = ()

    @classmethod
    def parse(cls, line: str | bytes) -> Self:
        """Reads one."""
        return cls.from_json(json.loads(line))

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Makes one of its fields."""
        return cls(**fields)

    def dump(self) -> str:
        """Writes one."""
        return json.dumps(asdict(cast(Any, self)))
