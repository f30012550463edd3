"""The predicate language: what it means, and what it refuses at load."""

import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_core.trigger import Predicate, Subject
from collector_core.trigger.grammar import MAX_DEPTH, parse_predicate
from collector_core.trigger.lexer import MAX_PREDICATE_CHARS, InvalidPredicateError
from collector_core.trigger.subject import FIELDS, KINDS

SUBJECT = Subject(
    kind="start",
    name="nc",
    path="/tmp/nc",
    cmdline="nc -l 4444",
    pid=4711,
    ppid=1,
    user="www-data",
    cpu_percent=12.5,
    memory_bytes=1 << 20,
    file_exists=True,
    parent_name="bash",
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name = 'nc'", True),
        ("name == 'nc'", True),
        ('name = "nc"', True),
        ("name = 'NC'", False),
        ("name != 'nc'", False),
        ("name <> 'nc'", False),
        ("'nc' = name", True),
        ("pid > 4710", True),
        ("pid >= 4711", True),
        ("pid < 4711", False),
        ("pid <= 4711", True),
        ("5000 > pid", True),
        ("cpu_percent > 12.4", True),
        ("cpu_percent > -1", True),
        ("pid != ppid", True),
        ("name in ('ncat', 'nc')", True),
        ("name not in ('ncat', 'nc')", False),
        ("pid in (1, 4711)", True),
        ("path glob '/tmp/*'", True),
        ("path not glob '/tmp/*'", False),
        ("cmdline LIKE '%NC -L%'", True),
        ("file_exists", True),
        ("not file_exists", False),
        ("file_exists = true", True),
        ("file_exists != TRUE", False),
        ("kind = 'start' and user = 'www-data'", True),
        ("kind = 'exec' or user = 'www-data'", True),
        ("kind = 'exec' or user = 'root' and pid = 4711", False),
        ("(user = 'www-data' or kind = 'exec') and pid = 4711", True),
        ("not kind = 'exec' and pid = 4711", True),
        ("not (kind = 'start' or pid = 4711)", False),
        ("name = 'it''s'", False),
        ("sha256 = 'x'", None),
        ("not sha256 = 'x'", None),
        ("sha256 in ('x')", None),
        ("parent_path glob '*'", None),
        ("sha256 = 'x' or name = 'nc'", True),
        ("sha256 = 'x' and name = 'nc'", None),
        ("sha256 = 'x' and name = 'x'", False),
        ("sha256 = parent_path", None),
    ],
)
def test_a_predicate_is_true_false_or_unknown(text, expected):
    assert parse_predicate(text).expression.evaluate(SUBJECT) is expected
    assert Predicate(text).holds(SUBJECT) is (expected is True)


def test_quotes_are_doubled_within_a_text():
    assert Predicate("name = 'it''s'").holds(Subject(name="it's"))
    assert Predicate('name = "a""b"').holds(Subject(name='a"b'))


@pytest.mark.parametrize("name", FIELDS)
def test_an_unknown_field_makes_nothing_true(name):
    text = {
        "text": f"{name} = 'start' or not {name} = 'start'",
        "number": f"{name} < 1 or {name} >= 1",
        "true or false": f"{name} or not {name}",
    }[FIELDS[name].value]
    assert not Predicate(text).holds(Subject())


@pytest.mark.parametrize(
    ("text", "position", "part"),
    [
        ("", 1, "the end"),
        ("name", 1, "says nothing by itself"),
        ("name =", 7, "the end"),
        ("nam = 'x'", 1, "try name"),
        ("exe = 'x'", 1, "there is no field 'exe'"),
        ("name = 1", 8, "a text never equals a number"),
        ("pid = '1'", 7, "a number never equals a text"),
        ("pid = name", 7, "a number never equals a text"),
        ("file_exists = 1", 15, "true or false never equals a number"),
        ("name > 'x'", 6, "for numbers"),
        ("file_exists < true", 13, "for numbers"),
        ("1 = 1", 3, "two constants"),
        ("'x' in ('x')", 1, "a field has to stand before"),
        ("name in ()", 10, "')'"),
        ("name in ('a', 1)", 15, "never equals"),
        ("name in (path)", 10, "constants only"),
        ("name in 'a'", 9, "'('"),
        ("pid glob '1*'", 1, "only texts match"),
        ("name glob path", 11, "no text"),
        ("name glob '[a'", 11, "not closed"),
        ("name not = 'x'", 10, "after 'not'"),
        ("name = 'x' pid = 1", 12, "comes too late"),
        ("(name = 'x'", 12, "')'"),
        ("name = 'x')", 11, "comes too late"),
        ("name = 'x", 8, "not closed"),
        ("name = 'x' and", 15, "the end"),
        ("and name = 'x'", 1, "'and' stands where"),
        ("name = 'x'; drop", 11, "no meaning"),
        ("name = nc", 8, "there is no field 'nc'"),
        ("pid = 1e5", 7, "no number"),
        ("pid = 1.2.3", 7, "no number"),
        ("pid = --1", 7, "no number"),
        ("kind = 'created'", 8, "there is no kind 'created'"),
        ("kind in ('start', 'x')", 19, "there is no kind"),
        ("true", 1, "says nothing"),
        ("not", 4, "the end"),
    ],
)
def test_a_predicate_that_makes_no_sense_is_refused_with_its_place(text, position, part):
    with pytest.raises(InvalidPredicateError, match=f"^character {position} of") as caught:
        Predicate(text)
    assert part in caught.value.message


def test_depth_is_bounded():
    deep = "(" * MAX_DEPTH + "pid = 1" + ")" * MAX_DEPTH
    assert Predicate(deep).holds(Subject(pid=1))
    with pytest.raises(InvalidPredicateError, match="levels deep"):
        Predicate(f"({deep})")
    with pytest.raises(InvalidPredicateError, match="levels deep"):
        Predicate("not " * (MAX_DEPTH + 1) + "pid = 1")
    wide = " and ".join(["(pid = 1)"] * 40)
    assert Predicate(wide).holds(Subject(pid=1))


def test_size_is_bounded():
    longest = "name = '" + "x" * (MAX_PREDICATE_CHARS - 9) + "'"
    assert not Predicate(longest).holds(SUBJECT)
    with pytest.raises(InvalidPredicateError, match="1025 characters, more than 1024"):
        Predicate(longest + " ")


def test_a_predicate_knows_its_fields():
    assert Predicate("pid = 1 or not cmdline like '%x%'").fields == {"pid", "cmdline"}


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        predicate = Predicate(text)
    except InvalidPredicateError:
        return
    assert predicate.holds(SUBJECT) in (True, False)


@given(st.lists(st.sampled_from([*FIELDS, "(", ")", "not", "and", "=", "in", "'x'", "1", ","])))
def test_any_row_of_words_is_read_or_refused(words):
    try:
        predicate = Predicate(" ".join(words))
    except InvalidPredicateError:
        return
    assert predicate.holds(SUBJECT) in (True, False)


# A second reading of the language, from trees to text and straight to the answer.

OPERATORS = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
TEXTS = st.sampled_from(["a", "b", "it's", "", 'say "x"'])
NUMBERS = st.sampled_from([0, 1, 2, -3, 0.5])
LEAVES = st.one_of(
    st.tuples(
        st.just("compare"), st.sampled_from(["pid", "ppid"]), st.sampled_from([*OPERATORS]), NUMBERS
    ),
    st.tuples(
        st.just("compare"), st.sampled_from(["name", "user"]), st.sampled_from(["=", "!="]), TEXTS
    ),
    st.tuples(
        st.just("in"), st.sampled_from(["name", "user"]), st.lists(TEXTS, min_size=1, max_size=3)
    ),
    st.tuples(st.just("truth"), st.just("file_exists")),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3)),
    ),
    max_leaves=6,
)
SUBJECTS = st.builds(
    Subject,
    name=st.none() | TEXTS,
    user=st.none() | TEXTS,
    pid=st.none() | st.integers(0, 2),
    ppid=st.none() | st.integers(0, 2),
    file_exists=st.none() | st.booleans(),
    kind=st.sampled_from(KINDS),
)


def quote(value):
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def write(tree):
    match tree:
        case ("compare", name, symbol, value):
            return f"{name} {symbol} {quote(value)}"
        case ("in", name, values):
            return f"{name} in ({', '.join(map(quote, values))})"
        case ("truth", name):
            return name
        case ("not", inner):
            return f"not ({write(inner)})"
        case (word, terms):
            return f" {word} ".join(f"({write(term)})" for term in terms)


def answer(tree, subject):
    match tree:
        case ("compare", name, symbol, value):
            known = getattr(subject, name)
            return None if known is None else OPERATORS[symbol](known, value)
        case ("in", name, values):
            known = getattr(subject, name)
            return None if known is None else known in values
        case ("truth", name):
            return getattr(subject, name)
        case ("not", inner):
            known = answer(inner, subject)
            return None if known is None else not known
        case (word, terms):
            answers = [answer(term, subject) for term in terms]
            decisive = word == "or"
            if decisive in answers:
                return decisive
            return None if None in answers else not decisive


def depth(tree):
    match tree:
        case ("not", inner):
            return 2 + depth(inner)
        case ("and" | "or", terms):
            return 1 + max(map(depth, terms))
    return 0


@given(TREES, SUBJECTS)
def test_a_predicate_means_what_a_naive_reading_of_its_tree_does(tree, subject):
    text = write(tree)
    if depth(tree) > MAX_DEPTH or len(text) > MAX_PREDICATE_CHARS:
        with pytest.raises(InvalidPredicateError):
            parse_predicate(text)
        return
    assert parse_predicate(text).expression.evaluate(subject) is answer(tree, subject)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2)), min_size=1, max_size=6), SUBJECTS)
def test_and_binds_closer_than_or(terms, subject):
    text = f"pid = {terms[0][1]}"
    groups = [[terms[0][1]]]
    for is_and, number in terms[1:]:
        text += f" {'and' if is_and else 'or'} pid = {number}"
        if is_and:
            groups[-1].append(number)
        else:
            groups.append([number])
    expected = any(all(subject.pid == number for number in group) for group in groups)
    assert Predicate(text).holds(subject) is (expected and subject.pid is not None)
