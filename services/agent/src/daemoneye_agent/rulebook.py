"""The loaded rules and which of them run.

Invariant: used from the store's thread only, apart from ``rules`` and ``find``, which read what never
changes, and ``failing``. A rule runs when its document enables it and no operator switched it off, or
when one switched it on; one that failed too often stays off until an operator switches it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from daemoneye_agent.engine import Match, RuleCounters, RuleEngine, RuleFailure
from daemoneye_agent.event import EventRow
from daemoneye_agent.rule import InvalidRuleError, Rule, load_builtin_rules, load_rules
from daemoneye_mesh.errors import NotFoundError

__all__ = ["BUILT_IN", "LoadedRule", "RuleState", "Rulebook", "load_rulebook"]

BUILT_IN = "built-in"


@dataclass(frozen=True, slots=True)
class LoadedRule:
    """A rule and where it was read from."""

    rule: Rule
    origin: str


@dataclass(frozen=True, slots=True)
class RuleState:
    """A rule and what it did."""

    loaded: LoadedRule
    is_enabled: bool
    counters: RuleCounters
    last_failure: str


class Rulebook:
    """All rules of one agent.

    Args:
        rules: the rules by origin; their ids differ.
        switches: what operators decided, by rule id.
    """

    def __init__(self, rules: Sequence[LoadedRule], switches: Mapping[str, bool]) -> None:
        self._rules = {one.rule.id: one for one in rules}
        self._switches = dict(switches)
        self._tripped: dict[str, str] = {}
        self._totals: dict[str, RuleCounters] = {}
        self._last_failures: dict[str, str] = {}
        self._engine = self._build(self._switches, self._tripped)
        self.failing: Mapping[str, str] = MappingProxyType({})
        """The enabled rules that did not look at the latest events, with the reason; may be read
        from any thread."""

    @property
    def rules(self) -> tuple[LoadedRule, ...]:
        """Every rule, by id."""
        return tuple(self._rules[rule_id] for rule_id in sorted(self._rules))

    @property
    def enabled_count(self) -> int:
        """How many rules run."""
        return len(self._engine.rules) - len(self._engine.disabled)

    def find(self, rule_id: str) -> LoadedRule:
        """Returns one rule.

        Raises:
            NotFoundError: there is none of that id.
        """
        if rule_id not in self._rules:
            raise NotFoundError(
                f"there is no rule {rule_id!r}; 'daemoneye rules' lists them", rule_id=rule_id
            )
        return self._rules[rule_id]

    def evaluate(self, rows: Sequence[EventRow]) -> tuple[list[Match], tuple[RuleFailure, ...]]:
        """Runs every enabled rule on new events."""
        if not rows:
            return [], ()  # nobody looked, so nobody's failure is over
        matches = self._engine.evaluate(rows)
        failures = self._engine.failures
        for failure in failures:
            self._last_failures[failure.rule_id] = failure.reason
        self._note_failing(failures)
        return matches, failures

    def note_failure(self, rule_id: str, reason: str) -> None:
        """Takes over why a rule's matches came to nothing, until it runs the next time."""
        self._last_failures[rule_id] = reason
        self.failing = MappingProxyType({**self.failing, rule_id: reason})

    def switch(self, rule_id: str, is_enabled: bool, keep: Callable[[], None]) -> RuleState:
        """Switches a rule on or off; switching it also forgives its failures.

        Args:
            rule_id: which.
            is_enabled: whether it shall run.
            keep: writes the choice down; called once it is clear that the rule can run, and before
                it takes effect.

        Raises:
            NotFoundError: there is none of that id.
            InvalidRuleError: SQLite does not accept its SQL; nothing was changed.
        """
        self.find(rule_id)
        switches = {**self._switches, rule_id: is_enabled}
        tripped = {**self._tripped, **self._engine.disabled}
        tripped.pop(rule_id, None)
        engine = self._build(switches, tripped)
        try:
            keep()
        except BaseException:
            engine.close()
            raise
        for key, counters in self._engine.counters.items():
            self._totals[key] = _sum(self._totals.get(key), counters)
        self._engine.close()
        self._engine, self._switches, self._tripped = engine, switches, tripped
        self._last_failures.pop(rule_id, None)
        self._note_failing(())
        return self.state(rule_id)

    def state(self, rule_id: str) -> RuleState:
        """Returns one rule and what it did since the agent started."""
        loaded = self.find(rule_id)
        current = self._engine.counters.get(rule_id, RuleCounters())
        return RuleState(
            loaded=loaded,
            is_enabled=rule_id in {rule.id for rule in self._engine.rules}
            and rule_id not in self._engine.disabled,
            counters=_sum(self._totals.get(rule_id), current),
            last_failure=self._last_failures.get(rule_id, ""),
        )

    def states(self) -> tuple[RuleState, ...]:
        """Returns every rule by id and what it did."""
        return tuple(self.state(rule_id) for rule_id in sorted(self._rules))

    def close(self) -> None:
        """Frees the memory; the rulebook is of no use afterwards."""
        self._engine.close()

    def _note_failing(self, failures: Sequence[RuleFailure]) -> None:
        latest = {failure.rule_id: failure.reason for failure in failures}
        self.failing = MappingProxyType({**self._tripped, **self._engine.disabled, **latest})

    def _build(self, switches: Mapping[str, bool], tripped: Mapping[str, str]) -> RuleEngine:
        rules = (one.rule for one in self._rules.values() if one.rule.id not in tripped)
        wanted = [rule for rule in rules if switches.get(rule.id, rule.enabled)]
        return RuleEngine([replace(rule, enabled=True) for rule in wanted])


def load_rulebook(rules_dir: Path | None, switches: Mapping[str, bool]) -> Rulebook:
    """Loads the built-in rules and those of ``rules_dir``.

    Raises:
        InvalidRuleError: a document is not acceptable, or an id is used twice; nothing is loaded.
    """
    loaded = [LoadedRule(rule, BUILT_IN) for rule in load_builtin_rules()]
    if rules_dir is not None:
        loaded += _load_further(rules_dir, {one.rule.id for one in loaded})
    return Rulebook(loaded, switches)


def _load_further(rules_dir: Path, known: set[str]) -> list[LoadedRule]:
    rules = load_rules(rules_dir)
    for rule in rules:
        if rule.id in known:
            raise InvalidRuleError(
                f"rule {rule.id!r} in {rules_dir} has the id of a built-in rule; give it another",
                rule_id=rule.id,
            )
    return [LoadedRule(rule, str(rules_dir / rule.file)) for rule in rules]


def _sum(one: RuleCounters | None, other: RuleCounters) -> RuleCounters:
    if one is None:
        return other
    return RuleCounters(
        evaluations=one.evaluations + other.evaluations,
        matches=one.matches + other.matches,
        failures=one.failures + other.failures,
        time_ns=one.time_ns + other.time_ns,
    )
