"""Generates the committed Python contract from protos/; with --check, fails when it is stale.

The generator is pinned old on purpose (constraints.txt): generated code demands a runtime at least
as new as its generator. Output: sdk/python/src/daemoneye/** and daemoneye_mesh/reasons.py.
"""

import argparse
import filecmp
import importlib.resources
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
SDK = ROOT / "sdk" / "python" / "src"
PACKAGE = SDK / "daemoneye"
REASONS = SDK / "daemoneye_mesh" / "reasons.py"
DOCSTRING = '"""Generated from protos/{source} by scripts/generate.py; do not edit."""\n'


def compile_protos(target: Path) -> None:
    """Runs protoc over every proto of ours into ``target``."""
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    binaries = Path(sys.executable).parent
    command = [
        sys.executable,
        *("-m", "grpc_tools.protoc"),
        *(f"-I{PROTOS}", f"-I{well_known}"),
        f"--plugin=protoc-gen-mypy={binaries / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={binaries / 'protoc-gen-mypy_grpc'}",
        *(f"--python_out={target}", f"--grpc_python_out={target}"),
        *(f"--mypy_out=quiet:{target}", f"--mypy_grpc_out=quiet,async_only:{target}"),
        *sources,
    ]
    subprocess.run(command, check=True, cwd=PROTOS)
    drop_empty_service_modules(target)
    for folder in sorted({path.parent for path in target.rglob("*.py")} | package_folders(target)):
        source = folder.relative_to(target).as_posix()
        (folder / "__init__.py").write_text(DOCSTRING.format(source=source))
    (target / "daemoneye" / "py.typed").touch()


def package_folders(target: Path) -> set[Path]:
    """Every folder below ``target`` that must be a package."""
    return {path for path in target.rglob("*") if path.is_dir()}


def drop_empty_service_modules(target: Path) -> None:
    """Removes the *_pb2_grpc files of protos without a service: they hold nothing."""
    for path in target.rglob("*_pb2_grpc.py"):
        name = path.relative_to(target).as_posix().replace("_pb2_grpc.py", ".proto")
        if not re.search(r"^service ", (PROTOS / name).read_text(), re.MULTILINE):
            path.unlink()
            path.with_suffix(".pyi").unlink(missing_ok=True)


def render_reasons() -> str:
    """Returns the module that mirrors the ErrorReason enum without importing protobuf."""
    text = (PROTOS / "daemoneye/common/v1/error.proto").read_text()
    names = re.findall(r"^  ERROR_REASON_(\w+) = \d+;", text, re.MULTILINE)
    members = "\n".join(f'    {name} = "{name}"' for name in names)
    return (
        DOCSTRING.format(source="daemoneye/common/v1/error.proto")
        + '\nfrom enum import StrEnum\n\n__all__ = ["ErrorReason"]\n\n\nclass ErrorReason(StrEnum):\n'
        + '    """What went wrong; the names travel in google.rpc.ErrorInfo.reason."""\n\n'
        + members
        + "\n"
    )


def files_below(folder: Path) -> set[Path]:
    """The generated files below ``folder``, relative to it."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder) for path in found if "__pycache__" not in path.parts}


def find_stale(fresh: Path) -> list[str]:
    """Names what differs between ``fresh`` and what is committed."""
    wanted, present = files_below(fresh), files_below(PACKAGE)
    stale = [f"missing: daemoneye/{path}" for path in sorted(wanted - present)]
    stale += [f"left over: daemoneye/{path}" for path in sorted(present - wanted)]
    both = sorted(wanted & present)
    stale += [
        f"stale: daemoneye/{path}"
        for path in both
        if not filecmp.cmp(fresh / path, PACKAGE / path, shallow=False)
    ]
    if REASONS.read_text() != render_reasons():
        stale.append("stale: daemoneye_mesh/reasons.py")
    return stale


def main() -> int:
    """Generates, or checks; the exit status says whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="fail when the committed code is stale"
    )
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        compile_protos(Path(scratch))
        fresh = Path(scratch) / "daemoneye"
        if check:
            stale = find_stale(fresh)
            print("\n".join(stale) or "generated code is fresh")
            return 1 if stale else 0
        shutil.rmtree(PACKAGE, ignore_errors=True)
        shutil.copytree(fresh, PACKAGE)
    REASONS.write_text(render_reasons())
    print(f"generated {len(files_below(PACKAGE))} files in {PACKAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
