"""Names of terminals from the device number in a stat line.

Invariant: a number that is not known is shown as ``major:minor``, never guessed.
"""

__all__ = ["name_terminal"]

_PTS_MAJORS = range(136, 144)
_MAJOR_TTY = 4
_MAJOR_ALIAS = 5
_SERIAL_FIRST_MINOR = 64
_ALIASES = {0: "tty", 1: "console", 2: "ptmx"}
_SERIAL_NAMES = {166: "ttyACM", 188: "ttyUSB", 229: "hvc"}


def name_terminal(tty_nr: int) -> str | None:
    """The name below /dev of a ``tty_nr``, such as ``pts/0``; None for no terminal."""
    if tty_nr == 0:
        return None
    number = tty_nr & 0xFFFFFFFF  # the kernel prints it signed
    major = (number >> 8) & 0xFFF
    minor = (number & 0xFF) | ((number >> 12) & 0xFFF00)
    if major in _PTS_MAJORS:
        return f"pts/{(major - _PTS_MAJORS.start) * 256 + minor}"
    if major == _MAJOR_TTY:
        serial = minor - _SERIAL_FIRST_MINOR
        return f"ttyS{serial}" if serial >= 0 else f"tty{minor}"
    if major == _MAJOR_ALIAS and minor in _ALIASES:
        return _ALIASES[minor]
    if major in _SERIAL_NAMES:
        return f"{_SERIAL_NAMES[major]}{minor}"
    return f"{major}:{minor}"
