"""The deployment holds together, as far as that can be seen without a container engine.

docker-compose.yml is read as text: its blocks by indentation, which is all that the checks need.
"""

import json
import re
import tomllib
from pathlib import Path

import pytest

from daemoneye_agent.config import AgentSettings
from daemoneye_eventbus.config import EventBusSettings
from daemoneye_mesh.configuration import environment_prefix, load_settings
from daemoneye_mesh.health_probe import PROBE_TIMEOUT_S
from daemoneye_mesh.layout import RuntimeLayout
from daemoneye_mesh.setting import describe_settings, render
from daemoneye_procmond.config import ProcmondSettings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
CONFIG = ROOT / "deploy" / "config"
README = ROOT / "deploy" / "README.md"
BASE_IMAGE = "python:3.11-slim-bookworm"
LAYOUT = RuntimeLayout(Path("/run/daemoneye"))
NOWHERE = Path("/nonexistent/config.toml")

PROCESSES = {
    "agent": ("daemoneye-agent", AgentSettings, LAYOUT.agent_socket),
    "eventbus": ("daemoneye-eventbus", EventBusSettings, LAYOUT.eventbus_socket),
    "procmond": ("procmond", ProcmondSettings, LAYOUT.collector_socket("procmond")),
}
"""By service: its process, its settings and its socket."""

each_service = pytest.mark.parametrize("service", sorted(PROCESSES))


def strip_comments(text):
    return "".join(line for line in text.splitlines(keepends=True) if line.strip()[:1] != "#")


def blocks(text, indent):
    """Returns the lines below each key that stands at ``indent`` spaces, by key."""
    pattern = rf"^ {{{indent}}}([a-z-]+):[^\n]*\n((?: {{{indent + 1},}}[^\n]*\n|\n)*)"
    return dict(re.findall(pattern, strip_comments(text), re.MULTILINE))


def keys(block):
    return set(re.findall(r"^ *([a-z_]+):", block, re.MULTILINE))


def scalars(block):
    return dict(re.findall(r"^ +([A-Za-z_]+): (\S+)$", block, re.MULTILINE))


def mounts(service):
    """Returns the target and mode of each volume of ``service``, by its source."""
    found = re.findall(r"^ +- ([^:\s]+):(/[^:\s]+)(:ro)?$", SERVICES[service], re.MULTILINE)
    return {source: (target, mode) for source, target, mode in found}


def dockerfile(service):
    return (ROOT / "services" / service / "Dockerfile").read_text()


def load(service, argv=(), environ=None, system_path=NOWHERE):
    process, settings, _ = PROCESSES[service]
    return load_settings(settings, process, argv, environ or {}, system_path, NOWHERE)


SERVICES = blocks(blocks(COMPOSE, 0)["services"], 2)
HARDENED = blocks(COMPOSE, 0)["x-hardened"]


def test_stack_has_every_service_that_has_an_image():
    assert set(SERVICES) == set(PROCESSES)
    assert {path.parent.name for path in ROOT.glob("services/*/Dockerfile")} == set(PROCESSES)


def test_hardening_gives_no_user_network_file_or_capability():
    assert scalars(HARDENED).items() >= {
        ("user", '"10001:10001"'),
        ("network_mode", "none"),
        ("read_only", "true"),
        ("restart", "unless-stopped"),
    }
    assert "cap_drop:\n    - ALL\n" in HARDENED
    assert "- no-new-privileges:true\n" in HARDENED
    assert "noexec" in HARDENED


@each_service
def test_service_is_hardened_and_takes_nothing_of_it_back(service):
    assert "    <<: *hardened\n" in SERVICES[service]
    assert not keys(SERVICES[service]) & keys(HARDENED)
    assert not keys(SERVICES[service]) & {
        "privileged",
        "cap_add",
        "ports",
        "devices",
        "userns_mode",
    }
    assert "mem_limit" in keys(SERVICES[service])


def test_only_the_collector_sees_the_processes_of_the_host():
    assert [one for one in SERVICES if "    pid: host\n" in SERVICES[one]] == ["procmond"]


STATE_VOLUMES = {"agent": "state", "procmond": "procmond-state"}


def test_whoever_keeps_state_has_a_volume_of_its_own_for_it():
    for service, volume in STATE_VOLUMES.items():
        assert [one for one in SERVICES if volume in mounts(one)] == [service]
        assert mounts(service)[volume] == ("/var/lib/daemoneye", "")


@each_service
def test_service_shares_the_sockets_and_reads_its_configuration(service):
    found = mounts(service)
    assert found["run"] == (str(LAYOUT.root), "")
    assert found["./deploy/config"] == ("/etc/daemoneye", ":ro")
    assert {one for one in found if not one.startswith(("/", "."))} <= set(
        blocks(blocks(COMPOSE, 0)["volumes"], 2)
    )
    assert all(mode == ":ro" for source, (_, mode) in found.items() if source.startswith("/"))


@each_service
def test_environment_of_the_service_is_accepted_and_names_its_mounts(service):
    environ = scalars(blocks(SERVICES[service], 4)["environment"])
    loaded = load(service, environ=environ)
    assert loaded.value.layout == LAYOUT
    if service in STATE_VOLUMES:
        assert loaded.value.state_dir == Path(mounts(service)[STATE_VOLUMES[service]][0])


@each_service
def test_service_is_built_from_its_own_dockerfile_at_the_root(service):
    build = scalars(blocks(SERVICES[service], 4)["build"])
    assert build == {"context": ".", "dockerfile": f"services/{service}/Dockerfile"}
    assert f"    image: daemoneye-{service}:local\n" in SERVICES[service]


@each_service
def test_image_installs_and_starts_what_the_member_declares(service):
    text = dockerfile(service)
    member = tomllib.loads((ROOT / "services" / service / "pyproject.toml").read_text())["project"]
    assert f" --find-links /wheels {member['name']}\n" in text
    (command,) = json.loads(re.search(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[1])
    assert command in member["scripts"]
    assert command == PROCESSES[service][0]


@each_service
def test_image_takes_the_wheels_into_a_clean_base_without_root(service):
    text = dockerfile(service)
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == [BASE_IMAGE, BASE_IMAGE]
    final = text.rpartition("\nFROM ")[2]
    assert "pip" not in final
    assert "\nUSER 10001:10001\n" in final
    assert "install -d -o 10001 -g 10001 -m 0750 /run/daemoneye" in final
    is_stateful = "install -d -o 10001 -g 10001 -m 0700 /var/lib/daemoneye" in final
    assert is_stateful == (service in STATE_VOLUMES)


@each_service
def test_image_copies_only_what_exists_and_the_engine_is_sent(service):
    sources = re.findall(r"^COPY (?!--from)(\S+) ", dockerfile(service), re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sent = [line[1:] for line in ignored if line.startswith("!")]
    assert "*" in ignored
    assert set(sources) == {"constraints.txt", "sdk/python", f"services/{service}"}
    for source in sources:
        assert (ROOT / source).exists()
        assert any(source == one or source.startswith(one + "/") for one in sent), source


@each_service
def test_image_is_probed_at_the_socket_of_its_process(service):
    found = re.search(r"^HEALTHCHECK (.*) \\\n +CMD (.*)$", dockerfile(service), re.MULTILINE)
    options, command = found[1], json.loads(found[2])
    assert command == ["python", "-m", "daemoneye_mesh.health_probe", str(PROCESSES[service][2])]
    assert float(re.search(r"--timeout=(\d+)s", options)[1]) > PROBE_TIMEOUT_S


def test_every_configuration_file_belongs_to_a_service():
    assert {path.stem for path in CONFIG.glob("*.toml")} == set(PROCESSES)


@each_service
def test_example_configuration_changes_no_default(service):
    loaded = load(service, ["--config", str(CONFIG / f"{service}.toml")])
    assert loaded.value == load(service).value
    assert set(loaded.origin.values()) == {"default"}


@each_service
def test_example_configuration_without_its_hashes_is_valid_and_says_the_defaults(service, tmp_path):
    text = (CONFIG / f"{service}.toml").read_text()
    path = tmp_path / "uncommented.toml"
    path.write_text(re.sub(r"^#(?=[a-z])", "", text, flags=re.MULTILINE))
    loaded = load(service, ["--config", str(path)])
    for one in loaded.settings:
        assert loaded.origin[one.name] == f"file {path}", f"{one.name} is not in the example"
        if one.default is not None:
            assert getattr(loaded.value, one.name) == one.default
            assert f"\n#{one.name} = {render(one.default)}\n" in text


@each_service
def test_example_configuration_says_the_meaning_and_bounds_of_each_setting(service):
    text = (CONFIG / f"{service}.toml").read_text()
    process, settings, _ = PROCESSES[service]
    described = describe_settings(settings)
    order = re.findall(r"^#([a-z_]+) = ", text, re.MULTILINE)
    assert order == [one.name for one in described]
    for one in described:
        comment = comment_above(text, one.name)
        variable = one.env or environment_prefix(process) + one.name.upper()
        assert one.help.lower() in comment.lower()
        assert f"in the environment {variable}.".lower() in comment.lower()
        assert ("unset by default" in comment.lower()) == (one.default is None)
        assert not one.choices or f"one of {', '.join(one.choices)}" in comment.lower()
        assert one.minimum is None or f"at least {one.minimum}" in comment.lower()
        assert one.maximum is None or f"at most {one.maximum}" in comment.lower()


def comment_above(text, name):
    """Returns the comment of a setting on one line."""
    (paragraph,) = (one for one in text.split("\n\n") if f"\n#{name} = " in one)
    return " ".join(line.removeprefix("# ") for line in paragraph.splitlines()[:-1])


def test_links_of_the_readme_resolve():
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README.read_text())
    assert targets
    for target in targets:
        assert (README.parent / target).exists(), target


def test_readme_names_the_volumes_as_they_are_called():
    for block in blocks(blocks(COMPOSE, 0)["volumes"], 2).values():
        assert scalars(block)["name"] in README.read_text()
