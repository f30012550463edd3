"""Each condition, holding and not, and silent about what is not known."""

import pytest

from collector_core.trigger import (
    ExecutablePathPattern,
    HashMismatch,
    MissingExecutable,
    Predicate,
    ProcessNamePattern,
    ResourceAnomaly,
    Subject,
    SuspiciousParentChild,
)
from daemoneye_mesh.errors import InvalidConfigError

GOOD, BAD = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("condition", "subject", "holds"),
    [
        (ProcessNamePattern("nc*"), Subject(name="ncat"), True),
        (ProcessNamePattern("nc*"), Subject(name="rsync"), False),
        (ProcessNamePattern("*"), Subject(), False),
        (ExecutablePathPattern("/tmp/*"), Subject(path="/tmp/x"), True),
        (ExecutablePathPattern("/tmp/*"), Subject(path="/usr/bin/x"), False),
        (ExecutablePathPattern("*"), Subject(name="kthreadd"), False),
        (MissingExecutable(), Subject(path="/x", file_exists=False), True),
        (MissingExecutable(), Subject(path="/x", file_exists=True), False),
        (MissingExecutable(), Subject(name="kthreadd"), False),
        (ResourceAnomaly(cpu_percent=80), Subject(cpu_percent=80.1), True),
        (ResourceAnomaly(cpu_percent=80), Subject(cpu_percent=80.0), False),
        (ResourceAnomaly(cpu_percent=80), Subject(memory_bytes=1 << 40), False),
        (ResourceAnomaly(memory_bytes=100), Subject(memory_bytes=101), True),
        (ResourceAnomaly(memory_bytes=100), Subject(memory_bytes=99), False),
        (ResourceAnomaly(cpu_percent=80, memory_bytes=100), Subject(memory_bytes=101), True),
        (ResourceAnomaly(cpu_percent=0), Subject(), False),
        (HashMismatch(), Subject(has_on_disk_mismatch=True), True),
        (HashMismatch(), Subject(), False),
        (HashMismatch(path="/bin/su", sha256=GOOD), Subject(path="/bin/su", sha256=BAD), True),
        (HashMismatch(path="/bin/su", sha256=GOOD), Subject(path="/bin/su", sha256=GOOD), False),
        (
            HashMismatch(path="/bin/su", sha256="A" * 64),
            Subject(path="/bin/su", sha256=GOOD),
            False,
        ),
        (HashMismatch(path="/bin/su", sha256=GOOD), Subject(path="/bin/ls", sha256=BAD), False),
        (HashMismatch(path="/bin/su", sha256=GOOD), Subject(path="/bin/su"), False),
        (SuspiciousParentChild("nginx", "*sh"), Subject(name="bash", parent_name="nginx"), True),
        (SuspiciousParentChild("nginx", "*sh"), Subject(name="cat", parent_name="nginx"), False),
        (SuspiciousParentChild("nginx", "*sh"), Subject(name="bash", parent_name="sshd"), False),
        (SuspiciousParentChild("*", "*"), Subject(name="bash"), False),
        (
            SuspiciousParentChild("*/soffice.bin", "/bin/*"),
            Subject(name="x", path="/bin/sh", parent_path="/opt/lo/soffice.bin"),
            True,
        ),
        (
            SuspiciousParentChild("*/soffice.bin", "/bin/*"),
            Subject(name="/bin/sh", parent_name="/soffice.bin"),
            False,
        ),
        (Predicate("pid = 1"), Subject(pid=1), True),
        (Predicate("pid = 1"), Subject(pid=2), False),
        (Predicate("not pid = 1"), Subject(), False),
    ],
)
def test_a_condition_holds_only_when_it_is_known_to(condition, subject, holds):
    assert condition.holds(subject) is holds


@pytest.mark.parametrize(
    "make",
    [
        lambda: ProcessNamePattern("[x"),
        lambda: ExecutablePathPattern("x" * 2000),
        lambda: SuspiciousParentChild("x", "[x"),
        ResourceAnomaly,
        lambda: ResourceAnomaly(cpu_percent=-1),
        lambda: ResourceAnomaly(cpu_percent=float("nan")),
        lambda: ResourceAnomaly(memory_bytes=-1),
        lambda: HashMismatch(path="/bin/su"),
        lambda: HashMismatch(sha256=GOOD),
        lambda: HashMismatch(path="/bin/su", sha256="abc"),
        lambda: Predicate("pid"),
    ],
)
def test_a_condition_that_makes_no_sense_is_refused(make):
    with pytest.raises(InvalidConfigError):
        make()


def test_equal_conditions_are_equal():
    assert ProcessNamePattern("a*") == ProcessNamePattern("a*")
    assert Predicate("pid = 1") != Predicate("pid = 2")
