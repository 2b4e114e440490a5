"""What a real Prometheus scraped of a real session, and what the rules made of it."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from common import metrics
from tests.conftest import program
from tests.monitoring.conftest import OF_A_LEARNED_PRIOR, Watched
from tests.monitoring.installation import MONITORING

PARTS = {"control": "control", "detector": "detector", "worker-1": "reconstructor"}
RULES = {
    path.name: yaml.safe_load(path.read_text())["groups"]
    for path in sorted((MONITORING / "rules").glob("*.yml"))
}
ALL_RULES = [rule for groups in RULES.values() for group in groups for rule in group["rules"]]
GPU = "cryoflux_gpu_"


def scrape(watched: Watched, name: str) -> str:
    return httpx.get(f"http://{watched.installation.targets()[name]}/metrics", timeout=30).text


def test_every_process_is_found_by_the_control_plane(watched: Watched) -> None:
    up = {
        (one["metric"]["component"], one["metric"]["name"])
        for one in watched.prometheus.over("up == 1", watched.began, watched.ended)
    }
    assert up == {
        ("control", "control"),
        ("detector", "detector"),
        ("reconstructor", "worker-1"),
        ("reconstructor", "worker-2"),
        ("reconstructor", "worker-3"),
    }


@pytest.mark.parametrize("name", PARTS)
def test_an_exposition_is_clean_for_promtool(watched: Watched, name: str) -> None:
    checked = subprocess.run(
        [program("promtool", "prometheus"), "check", "metrics"],
        input=scrape(watched, name), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@pytest.mark.parametrize("name", PARTS)
def test_a_process_serves_exactly_the_metrics_that_are_defined_for_it(watched: Watched, name: str) -> None:
    served = {family.name: family for family in text_string_to_metric_families(scrape(watched, name))}
    defined = {
        metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name: metric
        for metric in metrics.ALL.values()
        if PARTS[name] in metric.parts and not metric.name.startswith(GPU)
    }
    ours = {known for known in served if known.startswith("cryoflux_") and not known.startswith(GPU)}
    assert ours == set(defined)
    for known in ours:
        assert served[known].type == defined[known].kind
        assert served[known].documentation == defined[known].help
        labels = {label for sample in served[known].samples for label in sample.labels} - {"le"}
        assert labels <= set(defined[known].labels), known
    assert "process_resident_memory_bytes" in served


def test_every_scrape_accounts_for_every_frame(watched: Watched) -> None:
    (found,) = watched.prometheus.over("cryoflux:frames_unaccounted", watched.began, watched.ended)
    assert len(found["values"]) > 10
    assert {value for _, value in found["values"]} == {"0"}
    acquired = watched.prometheus.value("cryoflux_frames_acquired_total")
    assert acquired is not None
    assert acquired > 600


def test_counters_never_decrease_over_two_sessions(watched: Watched) -> None:
    window = f"{round(watched.ended - watched.began) + 5}s"
    names = [metric.name for metric in metrics.ALL.values() if metric.kind == "counter"]
    for name in names:
        found = watched.prometheus.now(f'resets({name}{{name!~"worker-[23]"}}[{window}])', watched.ended)
        assert found, name
        assert all(one["value"][1] == "0" for one in found), name
    first, second = (
        watched.installation.client.get(f"/api/v1/sessions/{session['id']}/metrics").json()["frames"]
        for session in watched.installation.client.get("/api/v1/sessions").json()
    )
    now = watched.prometheus.value("cryoflux_frames_acquired_total")
    assert first["acquired"] == 80
    assert now is not None
    assert now > second["acquired"] * 0.5 + 80


def test_the_accounts_are_those_of_the_rest_interface(watched: Watched) -> None:
    """Asked one after the other while frames flow, so between two readings of one lies the other."""
    name = "cryoflux_frames_acquired_total"
    before = watched.installation.metrics()["frames"]["acquired"]
    told = re.search(rf"^{name} (\S+)$", scrape(watched, "detector"), re.MULTILINE)
    assert told
    assert before + 80 <= float(told[1])


def test_every_rule_is_evaluated_without_error(watched: Watched) -> None:
    groups = watched.prometheus.client.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len(ALL_RULES)
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_stands_on_data_of_a_real_session(watched: Watched, rule: dict[str, Any]) -> None:
    watched.prometheus.over(rule["expr"], watched.began, watched.ended)  # refused if it is not a query
    if OF_A_LEARNED_PRIOR.search(rule["expr"]):
        return
    if "record" in rule:
        assert watched.prometheus.over(rule["record"], watched.began, watched.ended), "records nothing"
    asked = re.findall(r"\b((?:cryoflux|process)[a-z_:0-9]*|up)\b(?=\s*[{\[)<>=!/*+-]|\s|$)", rule["expr"])
    asked = [name for name in asked if not name.startswith(GPU)]
    assert asked or GPU in rule["expr"] or rule["expr"].startswith("vector")
    for name in asked:
        found = watched.prometheus.over(name, watched.began, watched.ended)
        assert found, f"{name}, which {rule.get('alert')} asks for, is not there"


def test_the_worker_that_was_killed_was_told(watched: Watched) -> None:
    fired = watched.prometheus.over('ALERTS{alertstate="firing"}', watched.began, watched.ended)
    names = {one["metric"]["alertname"] for one in fired}
    gone = {one["metric"]["how"] for one in fired if one["metric"]["alertname"] == "CryofluxWorkerGone"}
    assert gone == {"gone"}  # the one that was killed, not the one that said goodbye
    assert not names & {"CryofluxFramesLost", "CryofluxFramesUnaccounted", "CryofluxStoreFailing"}


def test_a_scrape_takes_little_of_the_data_path(watched: Watched) -> None:
    """Scrapes by eight threads at once, and frames flow on meanwhile."""
    from concurrent.futures import ThreadPoolExecutor

    before = watched.installation.metrics()["frames"]["acknowledged"]
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda name: scrape(watched, name), ["detector", "worker-1"] * 40))
    assert all("cryoflux_build_info" in text for text in texts)
    watched.installation.reaches(before + 30)
    unaccounted = [_unaccounted(text) for text in texts if "cryoflux_frames_acquired_total" in text]
    assert set(unaccounted) == {0.0}


def _unaccounted(text: str) -> float:
    """Frames that the accounts of one exposition do not explain."""
    values = {
        family.name: sum(sample.value for sample in family.samples)
        for family in text_string_to_metric_families(text)
        if family.name.startswith("cryoflux_frames_")
    }
    parts = ("acknowledged", "in_flight", "spooled", "lost")
    return values["cryoflux_frames_acquired"] - sum(values[f"cryoflux_frames_{part}"] for part in parts)
