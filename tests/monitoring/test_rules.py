"""The rules by themselves: valid, tested for firing and for silence, and explained."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import program
from tests.monitoring.installation import MONITORING, ROOT

TESTS = Path(__file__).parent / "alerts_test.yml"
GUIDE = ROOT / "docs/monitoring.md"
RULES = [
    rule
    for path in sorted((MONITORING / "rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [program("promtool", "prometheus"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_configuration_and_rules_are_valid() -> None:
    checked = promtool("check", "config", str(MONITORING / "prometheus.yml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("rules found") == 2


def test_alerts_fire_when_they_should_and_only_then() -> None:
    tested = promtool("test", "rules", str(TESTS))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_a_rule_that_is_wrong_would_be_found(tmp_path: Path) -> None:
    """The tests of rules can fail: with a lower bound of quality the alert no longer fires."""
    folder = tmp_path / "services/monitoring/rules"
    folder.mkdir(parents=True)
    for path in (MONITORING / "rules").glob("*.yml"):
        (folder / path.name).write_text(path.read_text().replace("vector(15)", "vector(10)"))
    copy = tmp_path / "tests/monitoring/alerts_test.yml"
    copy.parent.mkdir(parents=True)
    copy.write_text(TESTS.read_text())
    tested = promtool("test", "rules", str(copy))
    assert tested.returncode != 0
    assert "CryofluxQualityLow" in tested.stdout + tested.stderr


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_is_tested_both_ways(rule: dict[str, Any]) -> None:
    cases = [
        case
        for test in yaml.safe_load(TESTS.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
        if case["alertname"] == rule["alert"]
    ]
    assert any(case.get("exp_alerts") for case in cases), "no test in which it fires"
    assert any(not case.get("exp_alerts") for case in cases), "no test in which it must not"


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    told = rule["annotations"]
    assert told["summary"]
    assert told["description"].endswith("."), told["description"]
    page, _, anchor = told["runbook"].partition("#")
    assert ROOT / page == GUIDE
    section = GUIDE.read_text().partition(f"\n### {rule['alert']}\n")[2].partition("\n#")[0]
    assert anchor == rule["alert"].lower()
    assert "**What to do**" in section, f"docs/monitoring.md does not say what to do about {rule['alert']}"


def test_the_guide_explains_no_alert_that_is_not_there() -> None:
    explained = re.findall(r"^### (Cryoflux\w+)$", GUIDE.read_text(), re.MULTILINE)
    assert sorted(explained) == sorted(rule["alert"] for rule in ALERTS)
