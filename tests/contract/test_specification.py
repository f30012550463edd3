"""The protos as a specification: MUST sentences, error reasons, services and their errors."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

from daemoneye.common.v1 import completeness_pb2, error_pb2
from daemoneye_mesh.completeness import DegradedReason
from daemoneye_mesh.errors import DaemoneyeError, ErrorReason

ROOT = Path(__file__).resolve().parents[2]
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))
PACKAGES = (
    "daemoneye_mesh",
    "collector_core",
    "daemoneye_eventbus",
    "daemoneye_procmond",
    "daemoneye_agent",
    "daemoneye_cli",
)
MUST = re.compile(r"// (MUST-[A-Z]+-\d\d): ")
SERVICES = {
    "daemoneye.ipc.v1.CollectorService",
    "daemoneye.ipc.v1.CollectorControlService",
    "daemoneye.eventbus.v1.CorrelationService",
    "daemoneye.eventbus.v1.EventBusService",
    "daemoneye.agent.v1.RegistryService",
    "daemoneye.agent.v1.CollectorAdminService",
    "daemoneye.agent.v1.QueryService",
    "daemoneye.agent.v1.RuleService",
    "daemoneye.agent.v1.AlertService",
    "daemoneye.agent.v1.AuditService",
    "daemoneye.agent.v1.StatusService",
}


def modules() -> list[object]:
    names = (path.relative_to(ROOT / "protos").with_suffix("") for path in PROTOS)
    return [importlib.import_module(".".join(name.parts) + "_pb2") for name in names]


def test_every_must_sentence_has_a_number_of_its_own() -> None:
    found = [number for path in PROTOS for number in MUST.findall(path.read_text())]
    assert len(found) >= 30
    assert sorted(found) == sorted(set(found))


@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.name)
def test_a_must_that_is_written_is_numbered(path: Path) -> None:
    """A capital MUST stands in a sentence that begins with its number, or in one about numbers."""
    text = re.sub(r"\n\s*//(?! *MUST-)", " ", path.read_text())
    unnumbered = [
        line.strip()
        for line in text.splitlines()
        if re.search(r"\bMUST\b(?!-)", line) and not MUST.search(line)
    ]
    assert unnumbered == []


def test_the_services_of_the_architecture_are_in_the_contract() -> None:
    found = {
        service.full_name
        for module in modules()
        for service in module.DESCRIPTOR.services_by_name.values()  # type: ignore[attr-defined]
    }
    assert found == SERVICES


def test_error_reasons_in_code_are_those_of_the_contract() -> None:
    names = {name.removeprefix("ERROR_REASON_") for name in error_pb2.ErrorReason.keys()}  # noqa: SIM118
    assert {str(reason) for reason in ErrorReason} == names


def test_degraded_reasons_in_code_are_those_of_the_contract() -> None:
    names = {
        name.removeprefix("DEGRADED_REASON_")
        for name in completeness_pb2.DegradedReason.keys()  # noqa: SIM118
    }
    assert {str(reason) for reason in DegradedReason} | {"UNSPECIFIED"} == names


def all_errors(root: type[DaemoneyeError]) -> set[type[DaemoneyeError]]:
    return {root, *(one for child in root.__subclasses__() for one in all_errors(child))}


def our_errors() -> list[type[DaemoneyeError]]:
    """Every error class there is, once every module was imported."""
    for name in PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.iter_modules(package.__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found = all_errors(DaemoneyeError) - {DaemoneyeError}
    return sorted(
        (cls for cls in found if cls.__module__.partition(".")[0] in PACKAGES),
        key=lambda cls: cls.__qualname__,
    )


@pytest.mark.parametrize("cls", our_errors(), ids=lambda cls: cls.__name__)
def test_the_reason_of_an_error_goes_with_its_code(cls: type[DaemoneyeError]) -> None:
    """The comment of each reason names its status code in brackets."""
    text = (ROOT / "protos/daemoneye/common/v1/error.proto").read_text()
    found = re.findall(r"// \[(\w+)\][^\n]*\n  ERROR_REASON_(\w+) =", text)
    codes = {name: code for code, name in found}
    assert codes[cls.default_reason] == cls.code.name
