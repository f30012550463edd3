"""``KEY=VALUE`` arguments that may be given several times."""

from collections.abc import Iterable

from daemoneye_cli.errors import UsageError

__all__ = ["read_assignments"]


def read_assignments(option: str, texts: Iterable[str]) -> dict[str, str]:
    """Reads what was given for one option.

    Raises:
        UsageError: one is no KEY=VALUE, or a key is given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UsageError(
                f"{option} {text[:80]!a} is not understood; write {option} KEY=VALUE",
                option=option,
                value=text[:80],
            )
        if key in found:
            raise UsageError(
                f"{option} {key[:80]!a} is given twice; give it once", option=option, key=key[:80]
            )
        found[key] = value
    return found
