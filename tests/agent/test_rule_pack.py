"""The rules that come with the agent: every sample runs, and every negative could have matched."""

from dataclasses import replace

import pytest
from sqlglot import exp, parse_one

from daemoneye_agent.engine import RuleEngine, event_row, test_rule
from daemoneye_agent.rule import Rule, Sample, load_builtin_rules
from daemoneye_agent.sql import validate

PACK = load_builtin_rules()
NEGATIVES = [(rule, sample) for rule in PACK for sample in rule.negative]


def alerts_for(*samples: Sample) -> set[str]:
    engine = RuleEngine(PACK)
    matches = engine.evaluate([event_row(sample) for sample in samples])
    assert engine.failures == ()
    engine.close()
    return {match.rule.id for match in matches}


def without_where(rule: Rule) -> Rule:
    select = parse_one(rule.sql, read="sqlite")
    assert isinstance(select, exp.Select)
    select.set("where", None)
    return replace(rule, query=validate(select.sql(dialect="sqlite")))


def test_pack_covers_what_it_promises() -> None:
    assert {rule.id for rule in PACK} >= {
        "crypto-miner",
        "deleted-executable-running",
        "download-piped-to-interpreter",
        "encoded-command-to-shell",
        "execution-from-temporary-directory",
        "hidden-directory-executable",
        "kernel-thread-impersonation",
        "log-or-history-clearing",
        "memfd-executable",
        "package-manager-spawns-shell",
        "preload-manipulation",
        "reverse-shell",
        "script-from-temporary-directory",
        "setuid-shell",
        "web-server-spawns-shell",
    }


@pytest.mark.parametrize("rule", PACK, ids=lambda rule: rule.id)
def test_rule_matches_its_positive_samples_and_no_negative(rule: Rule) -> None:
    assert test_rule(rule) == []


@pytest.mark.parametrize("rule", PACK, ids=lambda rule: rule.id)
def test_rule_is_documented_and_has_samples_of_both_kinds(rule: Rule) -> None:
    assert rule.enabled
    assert rule.attack
    assert rule.references
    assert len(rule.positive) >= 2
    assert len(rule.negative) >= 2
    assert "event_id" in rule.query.columns


@pytest.mark.parametrize(
    ("rule", "sample"), NEGATIVES, ids=[f"{rule.id}-{n}" for n, (rule, _) in enumerate(NEGATIVES)]
)
def test_negative_sample_would_match_without_the_condition(rule: Rule, sample: Sample) -> None:
    engine = RuleEngine([without_where(rule)])
    assert [match.rule.id for match in engine.evaluate([event_row(sample)])] == [rule.id]
    engine.close()


@pytest.mark.parametrize("kind", ["start", "exec"])
def test_program_copied_to_tmp_raises_an_alert(kind: str) -> None:
    event: Sample = {"kind": kind, "name": "x", "exe": "/tmp/x", "cmdline": "/tmp/x 5"}
    assert alerts_for(event) == {"execution-from-temporary-directory"}


def test_ordinary_processes_raise_nothing() -> None:
    ordinary: list[Sample] = [
        {"name": "systemd", "exe": "/usr/lib/systemd/systemd", "cmdline": "/sbin/init", "pid": 1},
        {"name": "sshd", "exe": "/usr/sbin/sshd", "cmdline": "sshd: user [priv]", "uid": 0},
        {"name": "kthreadd", "kernel_thread": 1, "kind": "inventory", "pid": 2},
        {"name": "cron", "exe": "/usr/sbin/cron", "cmdline": "/usr/sbin/cron -f", "uid": 0},
        {"name": "sh", "exe": "/usr/bin/dash", "cmdline": "/bin/sh -c 'run-parts /etc/cron.daily'"},
        {"name": "node", "exe": "/home/u/.nvm/versions/node/v20/bin/node", "cmdline": "npm run x"},
        {"name": "sudo", "exe": "/usr/bin/sudo", "cmdline": "sudo -i", "uid": 1000, "euid": 0},
        {"name": "rsync", "exe": "/usr/bin/rsync", "cmdline": "rsync -e ssh a b:/tmp/"},
        {"name": "vim", "exe": "/usr/bin/vim", "cmdline": "vim /tmp/notes.txt", "cwd": "/tmp"},
        {"name": "python3", "exe": "/usr/bin/python3", "cmdline": "python3 -m http.server"},
        {"name": "x"},
    ]
    assert alerts_for(*ordinary) == set()
