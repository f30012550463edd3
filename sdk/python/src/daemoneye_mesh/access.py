"""The one table that says who may call which method and use which topic; deny by default.

The table is ``access.toml`` beside this module. Invariant: what the table does not grant is
refused: an unknown method, a malformed topic, a pattern that is wider than a granted one.
Run as a program it prints the table as Markdown (``docs/access.md``).
"""

import re
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from daemoneye_mesh.errors import (
    ErrorReason,
    InvalidConfigError,
    InvalidRequestError,
    PermissionDeniedError,
)
from daemoneye_mesh.identity import Caller, Identity, IdentityKind, Principal
from daemoneye_mesh.topic import (
    DOMAINS,
    MAX_TOPIC_BYTES,
    MULTI_WILDCARD,
    SINGLE_WILDCARD,
    covers,
    validate_pattern,
    validate_topic,
)

__all__ = ["AccessTable", "Grants", "RefusalListener", "pattern_contains", "render_markdown"]

RefusalListener = Callable[[str, str, ErrorReason, str], None]
"""Hears of a refusal: identity name, action, reason, and the method, topic or pattern asked for."""

MAX_REFUSAL_KEYS = 4096
OVERFLOW_NAME = "(others)"
"""Counts the refusals of whoever came after the counter was full."""

_METHOD = re.compile(r"[A-Za-z0-9_.]+\.[A-Za-z0-9_]+/(?:[A-Za-z0-9_]+|\*)")
_ACTIONS = ("call", "publish", "subscribe")
_BLOCK = "block"
_BLOCKING_POLICY = "OVERFLOW_POLICY_BLOCK"
_PLACEHOLDERS = {"{id}": "id", "{domain}": "domain"}
_NO_DOMAINS: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Grants:
    """What one kind of identity may do; topics still hold their placeholders."""

    call: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    may_block: bool = False
    """Whether it may ask for the overflow policy that makes publishers wait."""


class AccessTable:
    """Answers, and counts, who may do what.

    Args:
        open_methods: methods which need no token.
        grants: what each kind of identity may do; a kind left out may do nothing.
    """

    def __init__(self, open_methods: Iterable[str], grants: Mapping[IdentityKind, Grants]) -> None:
        self.open_methods = tuple(open_methods)
        self.grants = {kind: grants.get(kind, Grants()) for kind in IdentityKind}
        self.refusals: Counter[tuple[str, str]] = Counter()
        """How often whom was refused what: (identity name, ``call|publish|subscribe|block``)."""
        self.on_refusal: RefusalListener | None = None
        """Hears of every refusal by this table, in the middle of the call: it must return at once."""

    @classmethod
    def load(cls, path: Path | None = None) -> "AccessTable":
        """Reads the table that comes with the package, or another one.

        Raises:
            InvalidConfigError: the file breaks the form described in ``access.toml``.
        """
        source = path or resources.files("daemoneye_mesh") / "access.toml"
        try:
            document = tomllib.loads(source.read_text("utf-8"))
        except (OSError, ValueError):
            raise _broken("it cannot be read as TOML") from None
        return cls._of(document)

    @classmethod
    def _of(cls, document: dict[str, Any]) -> "AccessTable":
        kinds = {kind.value for kind in IdentityKind}
        if unknown := document.keys() - kinds - {"open"}:
            raise _broken(f"section {min(unknown)!a} is unknown")
        grants = {IdentityKind(kind): _grants(kind, document[kind]) for kind in kinds & {*document}}
        open_methods = _texts(document, "open")
        for method in open_methods:
            _check_method(method)
        return cls(open_methods, grants)

    def is_open(self, method: str) -> bool:
        """Whether ``/package.Service/Method`` may be called without a token."""
        return _is_listed(method, self.open_methods)

    def may_call(self, caller: Caller | Identity, method: str) -> bool:
        """Whether the caller may call ``/package.Service/Method``."""
        granted = self._grants_of(caller).call
        return self.is_open(method) or _is_listed(method, granted)

    def may_publish(self, caller: Caller | Identity, topic: str) -> bool:
        """Whether the caller may publish on a topic; a malformed topic may nobody use."""
        identity = caller if isinstance(caller, Identity) else caller.identity
        domains = _NO_DOMAINS if isinstance(caller, Identity) else caller.domains
        if len(topic) > MAX_TOPIC_BYTES:  # nobody fills the memory of answers with these
            return False
        return _is_granted(self.grants[identity.kind].publish, identity.id, domains, topic)

    def may_subscribe(self, caller: Caller | Identity, pattern: str) -> bool:
        """Whether every topic which the pattern can match lies within the caller's grants."""
        allowed = self._patterns(caller, "subscribe")
        return _all_within(pattern, allowed)

    def may_block(self, caller: Caller | Identity) -> bool:
        """Whether the caller may ask for ``OVERFLOW_POLICY_BLOCK``, which slows publishers down."""
        return self._grants_of(caller).may_block

    def require_call(self, caller: Caller | Identity, method: str) -> None:
        """Refuses a call which ``may_call`` denies.

        Raises:
            PermissionDeniedError: reason ACCESS_DENIED, with identity and method.
        """
        if not self.may_call(caller, method):
            raise self._refuse(caller, "call", "method", method)

    def require_publish(self, caller: Caller | Identity, topic: str) -> None:
        """Refuses a publication which ``may_publish`` denies.

        Raises:
            InvalidTopicError: the topic breaks the grammar.
            PermissionDeniedError: reason ACCESS_DENIED, with identity and topic.
        """
        if not self.may_publish(caller, topic):
            validate_topic(topic)
            raise self._refuse(caller, "publish", "topic", topic)

    def require_subscribe(self, caller: Caller | Identity, pattern: str) -> None:
        """Refuses a subscription which ``may_subscribe`` denies.

        Raises:
            InvalidPatternError: the pattern breaks the grammar.
            PermissionDeniedError: reason ACCESS_DENIED, with identity and pattern.
        """
        if not self.may_subscribe(caller, pattern):
            validate_pattern(pattern)
            raise self._refuse(caller, "subscribe", "pattern", pattern)

    def require_block(self, caller: Caller | Identity) -> None:
        """Refuses ``OVERFLOW_POLICY_BLOCK`` where ``may_block`` denies it.

        Raises:
            PermissionDeniedError: reason ACCESS_DENIED, with identity and policy.
        """
        if not self.may_block(caller):
            sentence = (
                f"may not make publishers wait with {_BLOCKING_POLICY}; choose another policy"
            )
            raise self._deny(caller, _BLOCK, _BLOCKING_POLICY, sentence, policy=_BLOCKING_POLICY)

    def _grants_of(self, caller: Caller | Identity) -> Grants:
        return self.grants[_principal(caller).identity.kind]

    def _patterns(self, caller: Caller | Identity, action: str) -> tuple[str, ...]:
        principal = _principal(caller)
        granted: tuple[str, ...] = getattr(self._grants_of(principal), action)
        return _expand(granted, principal.identity.id, principal.domains)

    def _refuse(
        self, caller: Caller | Identity, action: str, noun: str, target: str
    ) -> PermissionDeniedError:
        metadata = {noun: target}
        remedy = "docs/access.md lists what it may"
        if action != "call":  # the list of methods would be longer than a status may be
            metadata["allowed"] = ", ".join(self._patterns(caller, action)) or "nothing"
            remedy = f"it may {metadata['allowed']}"
        sentence = f"may not {action} {noun} {target}; {remedy}"
        return self._deny(caller, action, target, sentence, **metadata)

    def _deny(
        self, caller: Caller | Identity, action: str, target: str, sentence: str, **metadata: str
    ) -> PermissionDeniedError:
        name = _principal(caller).identity.name
        described: dict[str, Any] = {"identity": name, "action": action, **metadata}
        error = PermissionDeniedError(f"{name} {sentence}", **described)
        self._count(name, action)
        if self.on_refusal is not None:
            self.on_refusal(name, action, error.reason, target)
        return error

    def _count(self, name: str, action: str) -> None:
        is_full = len(self.refusals) >= MAX_REFUSAL_KEYS
        if is_full and (name, action) not in self.refusals:
            name = OVERFLOW_NAME
        self.refusals[name, action] += 1


def pattern_contains(allowed: str, requested: str) -> bool:
    """Whether every topic that ``requested`` can match is matched by ``allowed`` too.

    Exact for the topics of the mesh: a wildcard in the first segment means its three domains.

    Raises:
        InvalidPatternError: one of the patterns breaks the grammar.
    """
    return all(covers(allowed, pattern) for pattern in _by_domain(requested))


def render_markdown(table: AccessTable) -> str:
    """Returns the table as a page for people, the content of ``docs/access.md``."""
    sections = [_INTRODUCTION, _bullets("Open to everybody", table.open_methods)]
    for kind in IdentityKind:
        grants = table.grants[kind]
        sections.append(f"## {kind.value.capitalize()}\n")
        sections.append(_bullets("May call", grants.call))
        sections.append(_bullets("May publish", grants.publish))
        sections.append(_bullets("May subscribe to", grants.subscribe))
        sections.append(_bullets("May make publishers wait", _blocking(grants)))
    return "\n".join(sections)


_INTRODUCTION = """\
# Who may do what

Printed from `sdk/python/src/daemoneye_mesh/access.toml` by `python -m daemoneye_mesh.access`; edit
that file, not this one. What is not listed is denied, and every refusal is counted.

Methods are `package.Service/Method`, or `/*` for all of a service. In topics `+` is one segment and
`#` zero or more; `{id}` is the caller's own id and `{domain}` each event domain its token grants. A
subscription is granted when every topic its pattern can match is granted. Who may make publishers
wait may ask for `OVERFLOW_POLICY_BLOCK`, which slows them down while its own queue is full.
"""


def _principal(caller: Caller | Identity) -> Caller:
    return Principal(caller) if isinstance(caller, Identity) else caller


def _is_listed(method: str, granted: tuple[str, ...]) -> bool:
    service, slash, name = method.removeprefix("/").partition("/")
    if not slash or not name or name == "*" or not method.startswith("/"):
        return False
    return f"{service}/{name}" in granted or f"{service}/*" in granted


@lru_cache(maxsize=1024)
def _expand(granted: tuple[str, ...], own_id: str, domains: frozenset[str]) -> tuple[str, ...]:
    expanded: list[str] = []
    for pattern in granted:
        own = pattern.replace("{id}", own_id)
        is_per_domain = "{domain}" in own
        names = sorted(domains) if is_per_domain else [""]
        expanded += [own.replace("{domain}", name) for name in names]
    return tuple(expanded)


# The broker asks for every group, and publishers repeat the same few topics: one look then answers
# for all patterns. The table does not change, so an answer holds for ever. Whoever invents topics to
# fill this makes the others ask again, no more.
@lru_cache(maxsize=16_384)
def _is_granted(granted: tuple[str, ...], own_id: str, domains: frozenset[str], topic: str) -> bool:
    try:
        validate_topic(topic)
        return any(covers(pattern, topic) for pattern in _expand(granted, own_id, domains))
    except InvalidRequestError:
        return False


def _all_within(requested: str, allowed: tuple[str, ...]) -> bool:
    try:
        return all(
            any(covers(pattern, part) for pattern in allowed) for part in _by_domain(requested)
        )
    except InvalidRequestError:
        return False


def _by_domain(pattern: str) -> tuple[str, ...]:
    first, *rest = validate_pattern(pattern)
    if first == MULTI_WILDCARD:
        rest = [MULTI_WILDCARD]
    elif first != SINGLE_WILDCARD:
        return (pattern,)
    return tuple(".".join([domain, *rest]) for domain in DOMAINS)


def _grants(kind: str, section: object) -> Grants:
    keys = (*_ACTIONS, _BLOCK)
    if not isinstance(section, dict) or section.keys() - set(keys):
        raise _broken(f"section {kind} may hold {', '.join(keys)} and nothing else")
    may_block = section.get(_BLOCK, False)
    if not isinstance(may_block, bool):
        raise _broken(f"{_BLOCK} of section {kind} is neither true nor false")
    call, publish, subscribe = (_texts(section, action) for action in _ACTIONS)
    for method in call:
        _check_method(method)
    for topic in (*publish, *subscribe):
        _check_topic(topic)
    return Grants(call, publish, subscribe, may_block)


def _texts(section: Mapping[str, object], key: str) -> tuple[str, ...]:
    entries = section.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise _broken(f"{key} is no list of texts")
    return tuple(entries)


def _check_method(method: str) -> None:
    if not _METHOD.fullmatch(method):
        raise _broken(f"{method!a} is neither package.Service/Method nor package.Service/*")


def _check_topic(topic: str) -> None:
    segments = (_PLACEHOLDERS.get(segment, segment) for segment in topic.split("."))
    try:
        validate_pattern(".".join(segments))
    except InvalidRequestError as err:
        raise _broken(err.message) from None


def _broken(problem: str) -> InvalidConfigError:
    return InvalidConfigError(
        f"the access table is refused: {problem}; correct it or reinstall the package",
        problem=problem,
    )


def _blocking(grants: Grants) -> tuple[str, ...]:
    return (_BLOCKING_POLICY,) if grants.may_block else ()


def _bullets(title: str, entries: tuple[str, ...]) -> str:
    lines = "\n".join(f"- `{entry}`" for entry in entries) or "- nothing"
    return f"**{title}**\n\n{lines}\n"


if __name__ == "__main__":
    sys.stdout.write(render_markdown(AccessTable.load()))
