"""Rule documents: strict, complete, and refused with the file and the key at fault."""

from pathlib import Path

import pytest

from daemoneye_agent.alert import Severity
from daemoneye_agent.rule import MAX_FILE_BYTES, InvalidRuleError, load_rules, parse_rule
from daemoneye_mesh.errors import ErrorReason

DOCUMENT = {
    "id": '"from-tmp"',
    "title": '"Program from /tmp"',
    "description": '"""\nWhat it means.\n"""',
    "severity": '"medium"',
    "sql": "'''\nSELECT pid, exe FROM process_events WHERE exe GLOB '/tmp/*'\n'''",
    "dedup": '["exe"]',
}


def document(**changes: str | None) -> str:
    fields = {**DOCUMENT, **changes}
    return "".join(f"{key} = {value}\n" for key, value in fields.items() if value is not None)


def test_parse_rule_reads_a_whole_document() -> None:
    text = document(references='["https://attack.mitre.org/"]', attack='["T1059.004"]') + (
        '[[positive]]\nexe = "/tmp/x"\npid = 7\n[[negative]]\nexe = "/x"\n'
    )
    rule = parse_rule(text, "a.toml")
    assert (rule.id, rule.title, rule.severity) == (
        "from-tmp",
        "Program from /tmp",
        Severity.MEDIUM,
    )
    assert rule.description == "What it means."
    assert rule.sql.startswith("SELECT pid")
    assert rule.dedup == ("exe",)
    assert rule.attack == ("T1059.004",)
    assert rule.enabled
    assert rule.positive == ({"exe": "/tmp/x", "pid": 7},)
    assert rule.negative == ({"exe": "/x"},)


def test_version_of_a_rule_changes_with_its_document() -> None:
    one, two = parse_rule(document(), "a"), parse_rule(document(severity='"high"'), "a")
    assert one.version == parse_rule(document(), "b").version
    assert one.version != two.version
    assert len(one.version) == 16


def test_parse_rule_keeps_a_rule_disabled() -> None:
    assert not parse_rule(document(enabled="false"), "a.toml").enabled


@pytest.mark.parametrize("key", DOCUMENT)
def test_parse_rule_refuses_a_missing_key(key: str) -> None:
    with pytest.raises(InvalidRuleError, match="is missing") as caught:
        parse_rule(document(**{key: None}), "a.toml")
    assert caught.value.reason is ErrorReason.RULE_INVALID
    assert caught.value.metadata["file"] == "a.toml"
    assert caught.value.metadata["key"] == key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sevirity", '"high"'),
        ("id", '"From Tmp"'),
        ("id", '"' + "x" * 65 + '"'),
        ("title", '""'),
        ("title", "7"),
        ("title", '"' + "x" * 513 + '"'),
        ("severity", '"urgent"'),
        ("references", '"https://attack.mitre.org/"'),
        ("attack", '["1059"]'),
        ("enabled", '"yes"'),
        ("dedup", "[]"),
        ("dedup", '["name"]'),
        ("positive", '["x"]'),
        ("positive", "7"),
    ],
)
def test_parse_rule_refuses_a_bad_value_and_names_its_key(key: str, value: str) -> None:
    with pytest.raises(InvalidRuleError) as caught:
        parse_rule(document(**{key: value}), "a.toml")
    assert caught.value.metadata["key"].startswith(key)
    assert caught.value.message.startswith("a.toml: ")


@pytest.mark.parametrize(
    ("sql", "complaint"),
    [
        ("SELECT exe FROM process_events", "must return the column 'pid'"),
        ("SELECT pid, exe FROM processes", "must read process_events"),
        (
            "SELECT e.pid, e.exe FROM process_events e, alerts a",
            "must read process_events and no other",
        ),
        ("SELECT 1 AS pid, 2 AS exe", "must read process_events"),
        ("SELECT pid, exe FROM process_events WHERE exe = :exe", "must have no parameters"),
        ("SELECT pid, exee FROM process_events", "no column 'exee'"),
        ("DELETE FROM process_events", "only SELECT is allowed"),
    ],
)
def test_parse_rule_refuses_sql_that_can_not_be_a_rule(sql: str, complaint: str) -> None:
    with pytest.raises(InvalidRuleError, match=complaint) as caught:
        parse_rule(document(sql=f"'''{sql}'''"), "a.toml")
    assert caught.value.metadata["key"] == "sql"
    assert caught.value.reason is ErrorReason.RULE_INVALID


@pytest.mark.parametrize(
    ("sample", "key"),
    [
        ('exee = "/x"', "positive[0].exee"),
        ('pid = "7"', "positive[0].pid"),
        ("exe_deleted = true", "positive[0].exe_deleted"),
        ("exe = 7", "positive[0].exe"),
        ("", "positive[0]"),
    ],
)
def test_parse_rule_refuses_a_sample_that_is_no_event(sample: str, key: str) -> None:
    with pytest.raises(InvalidRuleError) as caught:
        parse_rule(f"{document()}[[positive]]\n{sample}\n", "a.toml")
    assert caught.value.metadata["key"] == key


def test_parse_rule_refuses_text_that_is_not_toml() -> None:
    with pytest.raises(InvalidRuleError, match=r"a\.toml is not TOML"):
        parse_rule("id = ", "a.toml")


def test_load_rules_reads_every_document_in_order_of_ids(tmp_path: Path) -> None:
    (tmp_path / "1.toml").write_text(document(id='"zeta"'))
    (tmp_path / "2.toml").write_text(document(id='"alpha"'))
    (tmp_path / "README.md").write_text("not a rule")
    assert [rule.id for rule in load_rules(tmp_path)] == ["alpha", "zeta"]


def test_load_rules_refuses_two_documents_with_one_id(tmp_path: Path) -> None:
    (tmp_path / "1.toml").write_text(document())
    (tmp_path / "2.toml").write_text(document())
    with pytest.raises(InvalidRuleError, match=r"2\.toml: .* taken by 1\.toml") as caught:
        load_rules(tmp_path)
    assert caught.value.metadata["rule_id"] == "from-tmp"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"\xff", "not UTF-8"), (b"#" * (MAX_FILE_BYTES + 1), "larger than")],
)
def test_load_rules_refuses_a_file_that_is_no_document(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    (tmp_path / "1.toml").write_bytes(content)
    with pytest.raises(InvalidRuleError, match=complaint):
        load_rules(tmp_path)


def test_load_rules_refuses_what_it_can_not_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidRuleError, match="not a directory") as caught:
        load_rules(tmp_path / "absent")
    assert caught.value.reason is ErrorReason.RULE_INVALID
    (tmp_path / "1.toml").mkdir()
    with pytest.raises(InvalidRuleError, match=r"1\.toml can not be read"):
        load_rules(tmp_path)
