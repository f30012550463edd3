"""The configuration of a running collector: versioned, changed as a whole, or not at all.

Invariants: ``current`` is always the last configuration that every subscriber has applied, and the
file says the same; an update that fails, hangs or is cancelled half-way is rolled back, first the
file and then the subscribers. A rollback that fails itself is logged, and ``is_inconsistent`` says so
until an update succeeds. Updates are serial.

A value that an update set stands above flags, environment and files until it is reset, also after a
restart.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Generic, NoReturn, TypeVar

from collector_core.control_task import finish, is_cancelling
from collector_core.live_config_change import (
    ConfigChange,
    ConfigOrigin,
    OriginKind,
    Overlay,
    to_text,
)
from collector_core.live_config_error import (
    ApplyFailedError,
    ConfigConflictError,
    ConfigProblem,
    UpdateRefusedError,
)
from collector_core.live_config_file import OverrideDocument, OverrideFile
from daemoneye_mesh.configuration import Loaded
from daemoneye_mesh.errors import DaemoneyeError, InvalidConfigError

__all__ = [
    "APPLY_TIMEOUT_S",
    "ApplyFailedError",
    "ConfigChange",
    "ConfigConflictError",
    "ConfigFieldView",
    "ConfigOrigin",
    "ConfigUpdate",
    "LiveConfig",
    "OriginKind",
    "UpdateRefusedError",
    "to_text",
]

APPLY_TIMEOUT_S = 5.0
"""How long one subscriber may take to apply a configuration."""

T = TypeVar("T")

log = logging.getLogger("daemoneye.config")


@dataclass(frozen=True, slots=True)
class ConfigUpdate:
    """What an update did, or would do."""

    version: int
    """The version in force now."""
    changes: tuple[ConfigChange, ...]


@dataclass(frozen=True, slots=True)
class ConfigFieldView:
    """One field with its value in force, for people."""

    name: str
    value: str
    """As on the command line; empty when unset."""
    origin: ConfigOrigin
    is_live: bool
    help: str


@dataclass(frozen=True, slots=True)
class _State(Generic[T]):
    value: T
    document: OverrideDocument


@dataclass(frozen=True, slots=True)
class _Subscriber(Generic[T]):
    name: str
    check: Callable[[T], None] | None
    apply: Callable[[T], Awaitable[None]]


class _SubscriberError(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class LiveConfig(Generic[T]):
    """The configuration of one collector.

    Args:
        loaded: what the process started with.
        path: absolute path of the file in which updates outlive the process; without one they end
            with it.
        now_ns: clock for the time of updates, ns since the epoch.
        apply_timeout_s: how long one subscriber may take.
    """

    def __init__(
        self,
        loaded: Loaded[T],
        path: Path | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        apply_timeout_s: float = APPLY_TIMEOUT_S,
    ) -> None:
        self._loaded = loaded
        self._overlay = Overlay(loaded)
        self._file = OverrideFile(path, now_ns) if path is not None else None
        self._now_ns = now_ns
        self._apply_timeout_s = apply_timeout_s
        self._state = _State(loaded.value, OverrideDocument())
        self._subscribers: list[_Subscriber[T]] = []
        self._turn = asyncio.Lock()
        self.problems: tuple[str, ...] = ()
        """What of the file could not be used, a sentence each."""
        self.is_inconsistent = False
        """Whether a rollback failed, so that parts of the collector may follow other values."""

    @property
    def current(self) -> T:
        """The configuration in force."""
        return self._state.value

    @property
    def version(self) -> int:
        """The version in force; 0 before the first update."""
        return self._state.document.version

    @property
    def applied_at_ns(self) -> int | None:
        """When the last update that changed a value was applied, ns since the epoch."""
        return self._state.document.applied_at_ns

    @property
    def applied_by(self) -> str:
        """Identity that asked for it; empty before the first."""
        return self._state.document.applied_by

    def origin(self, name: str) -> ConfigOrigin:
        """Returns where the value of a field comes from.

        Raises:
            KeyError: there is no such field.
        """
        override = self._state.document.overrides.get(name)
        if override is not None:
            return ConfigOrigin(OriginKind.LIVE, override.by)
        return ConfigOrigin.parse(self._loaded.origin[name])

    def fields(self) -> tuple[ConfigFieldView, ...]:
        """Returns all fields in the order of their declaration."""
        return tuple(
            ConfigFieldView(
                name=one.name,
                value=to_text(getattr(self.current, one.name)),
                origin=self.origin(one.name),
                is_live=one.is_live,
                help=one.help,
            )
            for one in self._loaded.settings
        )

    def load(self) -> None:
        """Reads what updates of earlier lives set. Blocks; call it once, before the first update.

        What is not valid any more is left out, logged and told in ``problems``.

        Raises:
            FileUnusableError: the file cannot be used and cannot be set aside either.
        """
        if self._file is None:
            return
        document, trouble = self._file.read()
        kept, left_out = self._overlay.salvage(document.overrides)
        for problem in left_out:
            log.warning("a value set by an update is left out: %s", problem.message)
        left_out_texts = [f"left out: {problem.message}" for problem in left_out]
        self.problems = tuple([trouble] if trouble else []) + tuple(left_out_texts)
        document = replace(document, overrides=MappingProxyType(kept))
        self._state = _State(self._overlay.build(kept), document)

    def subscribe(
        self,
        check: Callable[[T], None] | None,
        apply: Callable[[T], Awaitable[None]],
        name: str,
    ) -> None:
        """Registers a part of the collector that follows the configuration.

        Args:
            check: raises InvalidConfigError for a configuration that ``apply`` could not follow;
                quick, without effects.
            apply: makes a configuration take effect. It may be cancelled, and is called with the
                configuration before when it, or a later subscriber, fails.
            name: names the part in errors and logs.
        """
        self._subscribers.append(_Subscriber(name, check, apply))

    async def update(
        self,
        changes: Mapping[str, str],
        reset: Sequence[str] = (),
        *,
        by: str,
        validate_only: bool = False,
        expected_version: int = 0,
    ) -> ConfigUpdate:
        """Changes some fields; the others keep their values.

        Args:
            changes: new values by field, as on the command line.
            reset: fields that go back to the value they would have without updates.
            by: identity that asks.
            validate_only: whether it is only checked.
            expected_version: the version that the caller has seen; 0 is any.

        Raises:
            ConfigConflictError: another version is in force.
            UpdateRefusedError: with everything that is wrong with it.
            ApplyFailedError: a subscriber failed or hung; rolled back unless it says otherwise.
            PreconditionError: FILE_UNUSABLE; it cannot be kept, so it was not applied.
        """
        async with self._turn:
            self._check_version(expected_version)
            new = self._plan(changes, reset, by)
            found = self._overlay.compare(self.current, new.value)
            if not validate_only:
                await self._commit(new, found)
            return ConfigUpdate(self.version, found)

    def _check_version(self, expected_version: int) -> None:
        if expected_version not in (0, self.version):
            raise ConfigConflictError(
                f"version {self.version} of the configuration is in force, not {expected_version};"
                " read it again and decide",
                version=self.version,
                expected_version=expected_version,
            )

    def _plan(self, changes: Mapping[str, str], reset: Sequence[str], by: str) -> _State[T]:
        old = self._state.document
        overrides = self._overlay.merge(old.overrides, changes, reset, by)
        value = self._overlay.build(overrides)
        self._check(value)
        document = replace(old, overrides=MappingProxyType(overrides))
        if self._overlay.compare(self.current, value):
            document = replace(
                document, version=old.version + 1, applied_at_ns=self._now_ns(), applied_by=by
            )
        document.encode()  # too large is a matter of the request, not of the disk
        return _State(value, document)

    def _check(self, value: T) -> None:
        problems: list[ConfigProblem] = []
        for one in self._subscribers:
            try:
                if one.check is not None:
                    one.check(value)
            except InvalidConfigError as error:
                problems.append(self._overlay.problem_of(error, one.name))
        if problems:
            raise UpdateRefusedError(problems)

    async def _commit(self, new: _State[T], found: tuple[ConfigChange, ...]) -> None:
        # A value that is set to what it is anyway is kept, but there is nothing to apply.
        is_applied = bool(found) or self.is_inconsistent
        if not is_applied and new.document == self._state.document:
            return
        stored = self._file.snapshot() if self._file is not None else None
        called: list[_Subscriber[T]] = []
        try:
            await self._store(new.document)
            for one in self._subscribers if is_applied else ():
                called.append(one)
                await self._apply(one, new.value)
        except BaseException as error:
            await self._give_up(stored, called, error)
        self._state = new
        self.is_inconsistent = False
        names = ", ".join(change.name for change in found) or "no value changed"
        log.info("version %d of the configuration is in force: %s", self.version, names)

    async def _give_up(
        self, stored: bytes | None, called: Sequence[_Subscriber[T]], error: BaseException
    ) -> NoReturn:
        await finish(self._roll_back(stored, called))
        if isinstance(error, _SubscriberError):
            raise ApplyFailedError(error.name, not self.is_inconsistent) from None
        raise error

    async def _store(self, document: OverrideDocument) -> None:
        if self._file is not None:
            await finish(asyncio.to_thread(self._file.write, document))

    async def _apply(self, subscriber: _Subscriber[T], value: T) -> None:
        try:
            async with asyncio.timeout(self._apply_timeout_s):
                await subscriber.apply(value)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelling():
                raise
            log.error(
                "%s could not apply a configuration",
                subscriber.name,
                exc_info=error,
                extra={"subscriber": subscriber.name},
            )
            raise _SubscriberError(subscriber.name) from None

    async def _roll_back(self, stored: bytes | None, called: Sequence[_Subscriber[T]]) -> None:
        is_restored = await self._restore_file(stored)
        for one in reversed(called):
            try:
                await self._apply(one, self.current)
            except _SubscriberError:
                is_restored = False
        if not is_restored:
            self.is_inconsistent = True
            log.critical("an update of the configuration could not be rolled back; restart")

    async def _restore_file(self, stored: bytes | None) -> bool:
        if self._file is None:
            return True
        try:
            await asyncio.to_thread(self._file.restore, stored)
        except DaemoneyeError as error:
            log.error("the file of the configuration cannot be restored: %s", error.message)
            return False
        return True
