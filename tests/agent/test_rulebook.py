"""The rules that run are those of the documents, but for what operators and failures decided."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemoneye_agent.engine import event_row
from daemoneye_agent.rule import InvalidRuleError, Rule, load_builtin_rules
from daemoneye_agent.rulebook import BUILT_IN, LoadedRule, Rulebook, load_rulebook
from daemoneye_mesh.errors import NotFoundError

MakeRule = Callable[..., Rule]
ROW = event_row({"name": "sh"})
ENDLESS = (
    "SELECT pid, name, (SELECT count(*) FROM process_events a, process_events b, process_events c,"
    " process_events d, process_events e) AS c FROM process_events"
)
INVALID_AT_RUN = "SELECT pid, name, abs(-9223372036854775807 - 1) AS c FROM process_events"


def nothing() -> None:
    """Keeps no choice."""


@pytest.fixture
def make_book() -> Iterator[Callable[..., Rulebook]]:
    books: list[Rulebook] = []

    def make(*rules: Rule, **switches: bool) -> Rulebook:
        books.append(Rulebook([LoadedRule(rule, BUILT_IN) for rule in rules], switches))
        return books[-1]

    yield make
    for book in books:
        book.close()


def matching(book: Rulebook) -> list[str]:
    return [match.rule.id for match in book.evaluate([ROW])[0]]


def test_rulebook_runs_what_its_documents_enable(
    make_book: Callable[..., Rulebook], make_rule: MakeRule
) -> None:
    book = make_book(make_rule("one"), make_rule("two", enabled=False))
    assert matching(book) == ["one"]
    assert book.enabled_count == 1
    assert [state.is_enabled for state in book.states()] == [True, False]


def test_rulebook_obeys_the_switches_of_operators_over_the_documents(
    make_book: Callable[..., Rulebook], make_rule: MakeRule
) -> None:
    book = make_book(
        make_rule("one"), make_rule("two", enabled=False), one=False, two=True, gone=True
    )
    assert matching(book) == ["two"]


def test_rulebook_switches_a_rule_and_keeps_the_counters(
    make_book: Callable[..., Rulebook], make_rule: MakeRule
) -> None:
    book = make_book(make_rule("one"), make_rule("two"))
    matching(book)
    kept: list[str] = []
    assert not book.switch("one", False, lambda: kept.append("off")).is_enabled
    assert matching(book) == ["two"]
    state = book.switch("one", True, lambda: kept.append("on"))
    assert (state.is_enabled, state.counters.evaluations, state.counters.matches) == (True, 1, 1)
    assert matching(book) == ["one", "two"]
    assert book.state("two").counters.evaluations == 3
    assert kept == ["off", "on"]


def test_rulebook_does_not_know_a_rule_it_has_not(
    make_book: Callable[..., Rulebook], make_rule: MakeRule
) -> None:
    book = make_book(make_rule("one"))
    for ask in (book.find, book.state, lambda name: book.switch(name, True, nothing)):
        with pytest.raises(NotFoundError, match="'gone'"):
            ask("gone")


def test_rulebook_changes_nothing_when_the_choice_cannot_be_kept(
    make_book: Callable[..., Rulebook], make_rule: MakeRule
) -> None:
    book = make_book(make_rule("one"))

    def refuse() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        book.switch("one", False, refuse)
    assert matching(book) == ["one"]
    assert book.state("one").is_enabled


def test_rule_that_fails_is_told_until_it_looks_again(
    make_book: Callable[..., Rulebook], make_rule: MakeRule
) -> None:
    book = make_book(make_rule("bad", INVALID_AT_RUN), make_rule("good"))
    assert matching(book) == ["good"]
    assert list(book.failing) == ["bad"]
    assert book.evaluate([]) == ([], ())
    assert list(book.failing) == ["bad"]  # nobody looked meanwhile
    assert book.state("bad").last_failure == book.failing["bad"]


def test_rule_that_failed_too_often_stays_off_and_told_when_another_is_switched(
    make_book: Callable[..., Rulebook], make_rule: MakeRule
) -> None:
    book = make_book(make_rule("bad", INVALID_AT_RUN), make_rule("good"))
    for _ in range(4):
        matching(book)
    assert not book.state("bad").is_enabled
    assert "disabled" in book.failing["bad"]
    book.switch("good", False, nothing)
    matching(book)
    assert not book.state("bad").is_enabled
    assert (list(book.failing), book.enabled_count) == (["bad"], 0)
    assert book.switch("bad", True, nothing).is_enabled
    assert (dict(book.failing), book.state("bad").last_failure) == ({}, "")


def test_rule_that_takes_too_long_stops_no_other(
    make_book: Callable[..., Rulebook], make_rule: MakeRule
) -> None:
    book = make_book(make_rule("a-endless", ENDLESS), make_rule("good"))
    matches, failures = book.evaluate([ROW] * 300)
    assert {match.rule.id for match in matches} == {"good"}
    assert [failure.rule_id for failure in failures] == ["a-endless"]
    assert "longer than" in book.failing["a-endless"]


def test_rule_whose_matches_come_to_nothing_is_told(
    make_book: Callable[..., Rulebook], make_rule: MakeRule
) -> None:
    book = make_book(make_rule("one"))
    book.note_failure("one", "no column 'x'")
    assert (dict(book.failing), book.state("one").last_failure) == (
        {"one": "no column 'x'"},
        "no column 'x'",
    )
    matching(book)
    assert dict(book.failing) == {}


def test_built_in_rules_are_loaded_without_a_directory() -> None:
    book = load_rulebook(None, {})
    assert [one.rule.id for one in book.rules] == sorted(rule.id for rule in load_builtin_rules())
    assert {one.origin for one in book.rules} == {BUILT_IN}
    book.close()


def test_rules_of_a_directory_come_beside_the_built_in_ones(
    rules_dir: Path, make_document: Callable[..., str]
) -> None:
    (rules_dir / "mine.toml").write_text(
        make_document("mine", "SELECT pid, name FROM process_events")
    )
    book = load_rulebook(rules_dir, {})
    assert book.find("mine").origin.startswith(str(rules_dir))
    assert len(book.rules) == len(load_builtin_rules()) + 1
    book.close()


def test_rule_with_the_id_of_a_built_in_one_is_refused(
    rules_dir: Path, make_document: Callable[..., str]
) -> None:
    taken = load_builtin_rules()[0].id
    (rules_dir / "mine.toml").write_text(
        make_document(taken, "SELECT pid, name FROM process_events")
    )
    with pytest.raises(InvalidRuleError, match=taken):
        load_rulebook(rules_dir, {})
