import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_core.live_config_change import Override
from collector_core.live_config_file import OverrideDocument, OverrideFile
from daemoneye_mesh.errors import InvalidConfigError
from daemoneye_mesh.private_file import FileUnusableError

DOCUMENT = OverrideDocument(3, {"low": Override("5", "agent/agent")}, 77, "agent/agent")
VALID = json.loads(DOCUMENT.encode())


@pytest.fixture
def file(tmp_path):
    return OverrideFile(tmp_path / "config.json", lambda: 1_234)


def put(file, content, mode=0o600):
    file.path.write_bytes(content)
    file.path.chmod(mode)


texts = st.text(max_size=40)
documents = st.builds(
    OverrideDocument,
    st.integers(0, 2**63 - 1),
    st.dictionaries(texts, st.builds(Override, texts, texts), max_size=8),
    st.none() | st.integers(0, 2**63 - 1),
    texts,
)


@given(documents)
def test_document_reads_back_as_it_was_written(document):
    assert OverrideDocument.decode(document.encode()) == document


@given(st.binary(max_size=200) | documents.map(lambda one: one.encode()[:-5]))
def test_anything_else_is_refused_and_never_breaks_the_reader(content):
    with pytest.raises(ValueError, match=r"^(is no|has)"):
        OverrideDocument.decode(content)


@pytest.mark.parametrize(
    "fields",
    [
        {"format": 2},
        {"version": -1},
        {"version": "3"},
        {"version": True},
        {"version": 2**63},
        {"version": None},
        {"applied_at_ns": "x"},
        {"applied_by": 5},
        {"values": []},
        {"values": {"low": "5"}},
        {"values": {"low": {"value": 5, "by": "x"}}},
        {"values": {"low": {"value": "5"}}},
    ],
    ids=str,
)
def test_document_with_a_wrong_part_is_set_aside_whole(file, fields):
    content = json.dumps(VALID | fields).encode()
    put(file, content)
    document, trouble = file.read()
    aside = file.path.with_name("config.json.unusable-1234")
    assert document == OverrideDocument()
    assert str(aside) in trouble
    assert aside.read_bytes() == content
    assert not file.path.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 50_000, b"null", b" " * 70_000])
def test_corrupt_file_is_set_aside(file, content):
    put(file, content)
    assert file.read()[0] == OverrideDocument()
    (aside,) = file.path.parent.iterdir()
    assert aside.read_bytes() == content


def test_file_that_others_may_read_is_not_trusted(file):
    put(file, DOCUMENT.encode(), 0o644)
    document, trouble = file.read()
    assert document == OverrideDocument()
    assert "open to others" in trouble


def test_symbolic_link_is_not_followed(file, tmp_path):
    target = tmp_path / "target"
    target.write_bytes(DOCUMENT.encode())
    target.chmod(0o600)
    file.path.symlink_to(target)
    assert file.read()[0] == OverrideDocument()
    assert target.exists()


def test_written_document_is_read_by_the_next_life(file):
    file.write(DOCUMENT)
    assert OverrideFile(file.path, lambda: 0).read() == (DOCUMENT, "")
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_restored_file_is_the_one_of_the_snapshot(file):
    put(file, json.dumps(VALID | {"version": 1}).encode())
    content = file.path.read_bytes()
    file.read()
    stored = file.snapshot()
    file.write(DOCUMENT)
    file.restore(stored)
    assert file.path.read_bytes() == content


def test_restoring_what_is_there_does_not_write(file):
    file.write(DOCUMENT)
    before = file.path.stat()
    file.restore(file.snapshot())
    assert file.path.stat().st_ino == before.st_ino


def test_restoring_before_the_first_write_removes_the_file(file):
    stored = file.snapshot()
    file.write(DOCUMENT)
    file.restore(stored)
    assert not file.path.exists()
    file.restore(stored)


def test_document_that_the_reader_would_not_take_is_not_written(file):
    overrides = {f"f{n}": Override("x" * 4_000, "agent/agent") for n in range(16)}
    with pytest.raises(InvalidConfigError, match="60000 are allowed"):
        file.write(OverrideDocument(1, overrides))
    assert not file.path.exists()


def test_write_into_a_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "plain").write_text("")
    with pytest.raises(Exception, match="plain") as refused:
        OverrideFile(tmp_path / "plain" / "config.json", lambda: 0).write(DOCUMENT)
    assert refused.value.reason == FileUnusableError.default_reason


def test_missing_directory_is_like_a_missing_file(tmp_path):
    assert OverrideFile(tmp_path / "no" / "such", lambda: 0).read() == (OverrideDocument(), "")


def test_file_that_cannot_even_be_moved_away_is_an_error(tmp_path):
    (tmp_path / "plain").write_text("")
    with pytest.raises(FileUnusableError, match="move it away"):
        OverrideFile(tmp_path / "plain" / "config.json", lambda: 0).read()
