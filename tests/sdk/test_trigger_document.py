"""Files of triggers: taken as a whole, or refused with file, trigger and key."""

from pathlib import Path

import pytest

from collector_core import TriggerPriority
from collector_core.trigger import (
    AnalysisKind,
    ExecutablePathPattern,
    HashMismatch,
    MissingExecutable,
    Predicate,
    ProcessNamePattern,
    ResourceAnomaly,
    SuspiciousParentChild,
    TriggerSpec,
    load_triggers,
)
from collector_core.trigger.document import MAX_FILE_BYTES, MAX_TRIGGERS, InvalidTriggersError
from daemoneye_mesh.errors import InvalidConfigError

GOOD = """
[[trigger]]
id = "deleted"
description = "A process runs a file that is gone."
condition = { kind = "missing_executable" }
analysis_type = "binary_hash"
priority = "high"
target_collector = "procmond"
"""


@pytest.fixture
def write(tmp_path):
    def write_document(text, mode=0o644):
        path = tmp_path / "triggers.toml"
        path.write_text(text)
        path.chmod(mode)
        return path

    return write_document


def with_condition(text):
    return GOOD.replace('{ kind = "missing_executable" }', text)


def test_a_trigger_is_read_with_all_it_says(write):
    text = GOOD.replace('"binary_hash"', '"custom"') + (
        'custom_type = "strings"\narguments = { depth = "2" }\n'
    )
    assert load_triggers(write(text)) == (
        TriggerSpec(
            id="deleted",
            description="A process runs a file that is gone.",
            condition=MissingExecutable(),
            analysis_type=AnalysisKind.CUSTOM,
            custom_type="strings",
            priority=TriggerPriority.HIGH,
            target_collector="procmond",
            arguments={"depth": "2"},
        ),
    )


def test_priority_is_normal_unless_said(write):
    (spec,) = load_triggers(write(GOOD.replace('priority = "high"\n', "")))
    assert spec.priority is TriggerPriority.NORMAL


def test_an_empty_file_has_no_triggers(write):
    assert load_triggers(write("")) == ()


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ('{ kind = "process_name_pattern", pattern = "nc*" }', ProcessNamePattern("nc*")),
        ('{ kind = "executable_path_pattern", pattern = "/x" }', ExecutablePathPattern("/x")),
        ('{ kind = "resource_anomaly", cpu_percent = 80 }', ResourceAnomaly(cpu_percent=80)),
        ('{ kind = "resource_anomaly", memory_bytes = 5 }', ResourceAnomaly(memory_bytes=5)),
        ('{ kind = "hash_mismatch" }', HashMismatch()),
        (
            '{ kind = "suspicious_parent_child", parent = "a", child = "b" }',
            SuspiciousParentChild("a", "b"),
        ),
        ('{ kind = "predicate", expression = "pid = 1" }', Predicate("pid = 1")),
    ],
)
def test_each_kind_of_condition_is_read(write, text, condition):
    (spec,) = load_triggers(write(with_condition(text)))
    assert spec.condition == condition


@pytest.mark.parametrize(
    ("text", "key", "part"),
    [
        (GOOD.replace("priority", "prio"), "prio", "did you mean priority"),
        (GOOD.replace('"high"', '"urgent"'), "priority", "low, normal, high, critical"),
        (GOOD.replace('"high"', "10"), "priority", "must be a text"),
        (GOOD.replace('"high"', "true"), "priority", "must be a text"),
        (GOOD.replace('"binary_hash"', '"hash"'), "analysis_type", "not 'hash'"),
        (GOOD.replace('"binary_hash"', '"custom"'), "custom_type", "1 to 64 bytes"),
        (GOOD + 'custom_type = "x"', "custom_type", "is for analysis_type custom"),
        (GOOD.replace('"procmond"', '"Proc Mond"'), "target_collector", "[a-z0-9_-]"),
        (GOOD.replace('target_collector = "procmond"', ""), "target_collector", "is missing"),
        (GOOD.replace("A process runs a file that is gone.", ""), "description", "1 to 512 bytes"),
        (GOOD + "arguments = { depth = 2 }", "arguments.depth", "must be a text"),
        (GOOD + f'arguments = {{ a = "{"x" * 65536}" }}', "arguments", "65536 bytes"),
        (with_condition('{ kind = "magic" }'), "condition.kind", "not 'magic'"),
        (with_condition('{ pattern = "x" }'), "condition.kind", "must be one of"),
        (with_condition('"missing"'), "condition", "must be a table"),
        (
            with_condition('{ kind = "missing_executable", path = "/x" }'),
            "condition.path",
            "is not known",
        ),
        (
            with_condition('{ kind = "process_name_pattern" }'),
            "condition.pattern",
            "is missing",
        ),
        (
            with_condition('{ kind = "resource_anomaly", memory_bytes = 1.5 }'),
            "condition.memory_bytes",
            "whole number",
        ),
        (
            with_condition('{ kind = "predicate", expression = "pid = " }'),
            "condition.expression",
            "character 7 of the predicate",
        ),
        (with_condition('{ kind = "resource_anomaly" }'), "condition", "needs cpu_percent"),
    ],
)
def test_a_trigger_that_makes_no_sense_is_refused_by_name(write, text, key, part):
    path = write(text)
    with pytest.raises(InvalidTriggersError) as caught:
        load_triggers(path)
    assert caught.value.metadata["key"] == key
    assert caught.value.message.startswith(f"{path}: trigger 'deleted': {key}")
    assert part in caught.value.message
    assert isinstance(caught.value, InvalidConfigError)


def test_a_trigger_without_an_id_is_named_by_its_number(write):
    path = write(GOOD + GOOD.replace('id = "deleted"', ""))
    with pytest.raises(InvalidTriggersError, match="trigger number 2: id is missing"):
        load_triggers(path)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (GOOD + GOOD, "2 triggers have the id 'deleted'"),
        ("triggers = []", "did you mean trigger"),
        ("trigger = 1", "must be written as"),
        ("[trigger]", "must be written as"),
        ("[[trigger", "is not TOML"),
        ("[[trigger]]\n" * (MAX_TRIGGERS + 1), f"at most {MAX_TRIGGERS}"),
        ("#" * (MAX_FILE_BYTES + 1), "is larger than"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(write, text, part):
    with pytest.raises(InvalidTriggersError) as caught:
        load_triggers(write(text))
    assert part in caught.value.message


def test_a_file_that_anybody_may_write_is_refused(write):
    with pytest.raises(InvalidTriggersError, match="chmod o-w"):
        load_triggers(write(GOOD, 0o646))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidTriggersError, match="no such file or directory"):
        load_triggers(tmp_path / "none.toml")


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "latin.toml"
    path.write_bytes(b'x = "\xe4"')
    with pytest.raises(InvalidTriggersError, match="UTF-8"):
        load_triggers(path)


def test_the_most_triggers_are_read(write):
    text = "".join(GOOD.replace('"deleted"', f'"t{n}"') for n in range(MAX_TRIGGERS))
    assert len(load_triggers(write(text))) == MAX_TRIGGERS


def test_the_triggers_of_the_documentation_are_read(write):
    document = (Path(__file__).parents[2] / "docs" / "triggers.md").read_text()
    example = document.split("```toml\n")[1].split("```")[0]
    specs = load_triggers(write(example))
    assert {type(one.condition).__name__ for one in specs} == {
        "ExecutablePathPattern",
        "HashMismatch",
        "MissingExecutable",
        "Predicate",
        "ProcessNamePattern",
        "ResourceAnomaly",
        "SuspiciousParentChild",
    }
