"""Typed, layered configuration: flags, then environment, then user file, system file, defaults.

A service declares a frozen dataclass whose fields are made with ``setting()``. Invariants: a key,
variable or flag that no setting has is refused with the closest one that exists; every value knows
where it came from; all problems are reported at once, and a process never starts with some of them.

Names for a process ``procmond`` (a leading ``daemoneye-`` is left out): files
``/etc/daemoneye/procmond.toml`` and ``$XDG_CONFIG_HOME/daemoneye/procmond.toml`` with flat keys,
variables ``DAEMONEYE_PROCMOND_<FIELD>``, flags ``--<field>``. ``--config FILE`` takes the place of
both files.
"""

import os
import stat
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Generic, TypeVar

from daemoneye_mesh.arguments import Arguments, parse_arguments
from daemoneye_mesh.errors import InvalidConfigError
from daemoneye_mesh.setting import Setting, describe_settings, render, setting

__all__ = [
    "InvalidSettingsError",
    "Loaded",
    "SettingRow",
    "environment_prefix",
    "load_settings",
    "parse_process_arguments",
    "setting",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
SYSTEM_DIRECTORY = Path("/etc/daemoneye")
MAX_FILE_BYTES = 1024 * 1024
EXIT_REFUSED = 2
DEFAULT_ORIGIN = "default"


class InvalidSettingsError(InvalidConfigError):
    """The configuration is refused.

    Args:
        process: whose configuration it is.
        problems: one sentence for each thing to correct.
    """

    def __init__(self, process: str, problems: Sequence[str]) -> None:
        listed = "; ".join(problems)
        super().__init__(
            f"the configuration of {process} is refused: {listed}; correct it and start again",
            process=process,
            problems=listed,
        )
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One line of ``--show-config``."""

    name: str
    value: str
    """As a configuration file would write it; ``(unset)`` for None."""
    origin: str
    help: str


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T_co]):
    """A valid configuration, and where each value came from."""

    value: T_co
    origin: Mapping[str, str]
    """``flag --x``, ``environment DAEMONEYE_…``, ``file /etc/…`` or ``default``, by field."""
    settings: tuple[Setting, ...]

    def describe(self) -> tuple[SettingRow, ...]:
        """Returns every setting with its value and origin, for printing."""
        return tuple(
            SettingRow(one.name, render(getattr(self.value, one.name)), origin, one.help)
            for one in self.settings
            for origin in [self.origin[one.name]]
        )


def load_settings(
    cls: type[T],
    process: str,
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    system_path: Path | None = None,
    user_path: Path | None = None,
) -> Loaded[T]:
    """Builds a configuration from all layers.

    Args:
        cls: the settings dataclass.
        process: the name of the process, such as ``procmond``.
        argv: the flags, without the program; none when left out.
        environ: the environment; that of this process when left out.
        system_path: the system file, ``/etc/daemoneye/<process>.toml`` when left out.
        user_path: the user file, below ``$XDG_CONFIG_HOME`` or ``~/.config`` when left out.

    Raises:
        InvalidSettingsError: with every problem of every layer.
    """
    environment = os.environ if environ is None else environ
    settings = describe_settings(cls)
    arguments = parse_arguments(settings, _short(process), argv or ())
    paths = [
        system_path or SYSTEM_DIRECTORY / f"{_short(process)}.toml",
        user_path or _user_path(process, environment),
    ]
    layers = _Layers(settings, process)
    layers.problems += arguments.problems
    layers.add_files(paths, arguments.config_path)
    layers.add_environment(environment)
    layers.add_flags(arguments)
    return layers.build(cls)


def parse_process_arguments(
    cls: type[T],
    process: str,
    *,
    description: str = "",
    version: str | None = None,
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Loaded[T]:
    """Loads the configuration for a ``__main__``: answers ``--help`` and the like, or refuses.

    Prints and exits for ``--help``, ``--version`` and ``--show-config`` (status 0) and for an
    invalid configuration (status 2, one problem a line on standard error).

    Args:
        cls: the settings dataclass.
        process: the name of the process.
        description: what the process is, for ``--help``.
        version: what ``--version`` prints; that of the distribution of ``cls`` when left out.
        argv: the flags; those of this process when left out.
        environ: the environment; that of this process when left out.
    """
    flags = sys.argv[1:] if argv is None else argv
    about = (description, version or _distribution_version(cls))
    arguments = parse_arguments(describe_settings(cls), _short(process), flags, about)
    try:
        loaded = load_settings(cls, process, flags, environ)
    except InvalidSettingsError as refusal:
        lines = "".join(f"  - {problem}\n" for problem in refusal.problems)
        sys.stderr.write(f"{process}: the configuration is refused; correct this:\n{lines}")
        raise SystemExit(EXIT_REFUSED) from None
    if arguments.is_show_config:
        sys.stdout.write(_show(loaded.describe()))
        raise SystemExit(0)
    return loaded


def environment_prefix(process: str) -> str:
    """Returns how the environment variables of a process begin, such as ``DAEMONEYE_PROCMOND_``."""
    return f"DAEMONEYE_{_short(process).upper().replace('-', '_')}_"


class _Layers:
    """Collects values from the lowest layer to the highest, and every problem on the way."""

    def __init__(self, settings: tuple[Setting, ...], process: str) -> None:
        self._settings = {one.name: one for one in settings}
        self._process = process
        self._values = {one.name: one.default for one in settings}
        self._origin = dict.fromkeys(self._settings, DEFAULT_ORIGIN)
        self.problems: list[str] = []

    def add_files(self, paths: Sequence[Path | None], config_path: Path | None) -> None:
        if config_path is not None:
            self._add_file(config_path, must_exist=True)
            return
        for path in paths:
            if path is not None:
                self._add_file(path, must_exist=False)

    def add_environment(self, environ: Mapping[str, str]) -> None:
        prefix = environment_prefix(self._process)
        names = {one.env or prefix + one.name.upper(): one for one in self._settings.values()}
        for variable, text in sorted(environ.items()):
            if variable in names:
                one = names[variable]
                self._add(one, f"environment {variable}", text, one.from_text)
            elif variable.startswith(prefix):
                field = variable.removeprefix(prefix).lower()
                known = {one.name: name for name, one in names.items()}
                self._refuse_unknown(f"variable {variable} in the environment", field, known)

    def add_flags(self, arguments: Arguments) -> None:
        for name, (flag, text) in arguments.values.items():
            one = self._settings[name]
            self._add(one, f"flag {flag}", text, one.from_text)

    def build(self, cls: type[T]) -> Loaded[T]:
        if not self.problems:
            try:
                value = cls(**self._values)
                return Loaded(value, MappingProxyType(self._origin), (*self._settings.values(),))
            except InvalidConfigError as err:  # a rule across settings, from __post_init__
                self.problems.append(err.message)
        raise InvalidSettingsError(self._process, self.problems)

    def _add_file(self, path: Path, *, must_exist: bool) -> None:
        try:
            document = _read_toml(path)
        except FileNotFoundError:
            if must_exist:
                self.problems.append(f"file {path} does not exist")
            return
        except ValueError as err:
            self.problems.append(f"file {path} {err}")
            return
        for key, raw in document.items():
            if key in self._settings:
                one = self._settings[key]
                self._add(one, f"file {path}", raw, one.from_toml)
            else:
                shown = key[:80] if key.isprintable() else ascii(key[:80])
                known = {name: name for name in self._settings}
                self._refuse_unknown(f"key {shown} in {path}", key, known)

    def _add(self, one: Setting, origin: str, raw: object, convert: Callable[..., object]) -> None:
        try:
            self._values[one.name] = convert(raw)
            self._origin[one.name] = origin
        except ValueError as err:
            shown = ascii(raw)[:80]
            self.problems.append(f"{one.name} = {shown} ({origin}) must {err}")

    def _refuse_unknown(self, what: str, field: str, known: Mapping[str, str]) -> None:
        """Reports a name that no setting has; ``known`` says how each field is spelled there."""
        closest = get_close_matches(field, known, n=1, cutoff=0.5)
        spellings = ", ".join(known.values())
        hint = f"did you mean {known[closest[0]]}?" if closest else f"known are {spellings}"
        self.problems.append(f"{what} is unknown; {hint}")


def _read_toml(path: Path) -> dict[str, object]:
    """Reads a file that others cannot have planted; ValueError continues "file PATH ..."."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IWOTH:
                raise ValueError("may be written by anybody; run chmod o-w on it")
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as err:
        raise ValueError(f"cannot be read ({os.strerror(err.errno or 0).lower()})") from None
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"is larger than {MAX_FILE_BYTES} bytes")
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    except tomllib.TOMLDecodeError as err:
        raise ValueError(f"is not TOML: {str(err)[:200]}") from None


def _user_path(process: str, environ: Mapping[str, str]) -> Path | None:
    base = environ.get("XDG_CONFIG_HOME", "")
    if not base.startswith("/"):  # the XDG specification: a relative path is to be ignored
        home = environ.get("HOME", "")
        base = f"{home}/.config" if home.startswith("/") else ""
    return Path(base) / "daemoneye" / f"{_short(process)}.toml" if base else None


def _short(process: str) -> str:
    return process.removeprefix("daemoneye-")


def _distribution_version(cls: type) -> str:
    package = cls.__module__.partition(".")[0]
    try:
        return metadata.version(package.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return "unknown"


def _show(rows: Sequence[SettingRow]) -> str:
    """Returns the configuration as a valid configuration file whose comments say the origins."""
    lines = [f"# {row.name} (unset)" if row.value == "(unset)" else _line(row) for row in rows]
    width = max(map(len, lines), default=0)
    return "".join(
        f"{line:<{width}}  # {row.origin}\n" for line, row in zip(lines, rows, strict=True)
    )


def _line(row: SettingRow) -> str:
    return f"{row.name} = {row.value}"
