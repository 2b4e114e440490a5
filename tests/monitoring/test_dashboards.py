"""The dashboards: made by the generator, valid by Grafana's schema, and every query returns data."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from services.monitoring.generate.__main__ import DASHBOARDS, made
from tests.conftest import program
from tests.monitoring.conftest import OF_A_LEARNED_PRIOR, Watched
from tests.monitoring.installation import MONITORING, ROOT, SCRAPE_SECONDS

SCHEMA = Path(__file__).parent / "schema"
WITHOUT_DATA = {
    "GPU utilisation": "the machine of the tests need not have a GPU",
    "GPU memory": "the machine of the tests need not have a GPU",
}
BOARDS = ("session", "workers")


def board(name: str) -> dict[str, Any]:
    return json.loads((DASHBOARDS / f"{name}.json").read_text())


class Asked(NamedTuple):
    """A query of a dashboard."""

    where: str
    expr: str
    instant: bool = False


def queries(name: str) -> Iterator[Asked]:
    """Every query of a dashboard: panels, annotations, variables."""
    document = board(name)
    for panel in document["panels"]:
        for target in panel.get("targets", []):
            yield Asked(panel["title"], target["expr"], target["instant"])
    for annotation in document["annotations"]["list"]:
        yield Asked(annotation["name"], annotation["expr"])
    for variable in document["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
            assert found, variable["query"]
            yield Asked(variable["name"], f"count by ({found[2]}) ({found[1]}{{{found[2]}!=''}})")


ASKED = [
    pytest.param(asked, id=f"{name}: {asked.where}: {number}")
    for name in BOARDS
    for number, asked in enumerate(queries(name))
]


def as_grafana_asks(expr: str, seconds: float) -> str:
    """A query with Grafana's variables filled in, over a range of so many seconds."""
    filled = {
        "$__rate_interval": f"{4 * SCRAPE_SECONDS}s",  # what Grafana makes of the data source's timeInterval
        "$__range": f"{round(seconds)}s",
        "$worker": ".*",
    }
    for name, value in filled.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, f"a variable that the test does not know: {expr}"
    return expr


def has_data(series: list[dict[str, Any]]) -> bool:
    """Whether there is a finite value anywhere."""
    values = [value for one in series for _, value in one.get("values", [one.get("value")])]
    return any(math.isfinite(float(value)) for value in values)


@pytest.mark.parametrize("asked", ASKED)
def test_a_query_returns_data_of_a_real_session(watched: Watched, asked: Asked) -> None:
    expr = as_grafana_asks(asked.expr, watched.ended - watched.began)
    if asked.instant:
        series = watched.prometheus.now(expr, watched.ended)
    else:
        series = watched.prometheus.over(expr, watched.began, watched.ended)
    # where there may be no data, at least the query is one (else the API refuses it)
    if not OF_A_LEARNED_PRIOR.search(asked.expr):
        assert has_data(series) or asked.where in WITHOUT_DATA, f"{asked.where}: no data: {expr}"


def test_marks_stand_where_the_configuration_changed(watched: Watched) -> None:
    (mark,) = [asked for asked in queries("session") if asked.where == "Configuration changes"]
    series = watched.prometheus.over(mark.expr, watched.began, watched.ended)
    times = {
        (one["metric"]["mask"], one["metric"]["compression_factor"], float(value) / 1000)
        for one in series
        for _, value in one["values"]
    }
    settings = sorted(times, key=lambda known: known[2])
    # of the second session; the first one may have been over between two scrapes
    assert [(mask, factor) for mask, factor, _ in settings][-2:] == [
        ("coded-aperture", "2"),
        ("coded-aperture", "4"),
    ]
    assert len(settings) <= 3
    assert all(watched.began < at < watched.ended for *_, at in settings)


def test_the_link_limit_is_the_sessions_and_holds(watched: Watched) -> None:
    """4 Mbit/s, and frames of 64 × 64 bytes."""
    limit = watched.prometheus.value("cryoflux_session_link_limit_bytes_per_second")
    raw_limit = watched.prometheus.value("cryoflux_session_raw_frames_per_second_limit")
    assert (limit, raw_limit) == (500_000, 500_000 / 64**2)
    seconds = watched.ended - watched.began
    window = f"{round(seconds)}s"
    sent = watched.prometheus.now(f"increase(cryoflux_wire_bytes_total[{window}])", watched.ended)
    assert 0 < float(sent[0]["value"][1]) / seconds < limit


def test_committed_files_are_what_the_generator_makes() -> None:
    stale = [str(path.relative_to(ROOT)) for path, text in made().items() if path.read_text() != text]
    assert not stale, f"{stale}: run make monitoring"


def test_nothing_of_the_running_system_needs_the_generator() -> None:
    code = (
        "import sys; sys.modules['grafana_foundation_sdk'] = None\n"
        "import services.cli, services.control_plane.app, services.control_plane.server\n"
        "import detector_sim.detector, reconstructor.worker\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", BOARDS)
def test_panels_say_what_they_show_and_lie_beside_one_another(name: str) -> None:
    document = board(name)
    taken: dict[tuple[int, int], str] = {}
    for panel in document["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24, panel["title"]
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        if panel["type"] in ("timeseries", "stat"):
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        if panel["type"] == "timeseries":
            legends = [target["legendFormat"] for target in panel["targets"]]
            assert len(set(legends)) == len(legends), panel["title"]
            assert "__auto" not in legends, panel["title"]
    ids = [panel["id"] for panel in document["panels"]]
    assert len(set(ids)) == len(ids)


def test_provisioning_fits_the_dashboards() -> None:
    folder = MONITORING / "grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards/cryoflux.yaml").read_text())["providers"]
    scrape = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape  # Grafana's $__rate_interval depends on it
    assert provider["type"] == "file"
    for name in BOARDS:
        (variable,) = [v for v in board(name)["templating"]["list"] if v["type"] == "datasource"]
        assert (variable["query"], variable["current"]["value"]) == (source["type"], source["uid"])
    uids = {board(name)["uid"] for name in BOARDS}
    assert {link["url"] for name in BOARDS for link in board(name)["links"]} == {f"/d/{uid}" for uid in uids}


# ---- Grafana's schema


class Compiler:
    """TypeScript with Grafana's published types."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("package.json", "check.ts"):
            (folder / name).write_text((SCHEMA / name).read_text())
        npm = program("npm", "npm")
        command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"]
        installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if installed.returncode:
            missing = f"Grafana's schema cannot be installed: {installed.stderr[-500:]}"
            if os.environ.get("CI"):
                pytest.fail(missing)
            pytest.skip(missing)

    def complaints(self, document: dict[str, Any]) -> str:
        """What the types say against a dashboard; empty: nothing."""
        text = "import type { OurDashboard } from './check';\nexport const it: OurDashboard = "
        (self.folder / "dashboard.ts").write_text(f"{text}{json.dumps(document, indent=1)};\n")
        options = (
            "--noEmit --strict --module nodenext --moduleResolution nodenext --target es2022 --skipLibCheck"
        )
        command = ["node", "node_modules/typescript/lib/tsc.js", *options.split(), "dashboard.ts"]
        told = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert (told.returncode == 0) == (not told.stdout), told
        return told.stdout


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    return Compiler(tmp_path_factory.mktemp("schema"))


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_is_valid_by_grafanas_types(compiler: Compiler, name: str) -> None:
    assert compiler.complaints(board(name)) == ""


def _first(document: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(panel for panel in document["panels"] if panel["type"] == kind)


def _drawn(document: dict[str, Any]) -> dict[str, Any]:
    return _first(document, "timeseries")["fieldConfig"]["defaults"]["custom"]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda d: d.update(refresh=5), "number"),
        (lambda d: d.update(tittle="x"), "tittle"),
        (lambda d: _drawn(d).update(drawStyle="x"), "line"),
        (lambda d: _drawn(d).update(lineWith=1), "lineWith"),
        (lambda d: _first(d, "stat")["options"].update(colorMode="x"), "colorMode|background"),
        (lambda d: _first(d, "heatmap")["options"].update(cellGap="x"), "cellGap|number"),
        (lambda d: _first(d, "table")["targets"][0].pop("expr"), "expr"),
        (lambda d: _first(d, "stat").update(type="stats"), "stats"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_the_types_would_find_what_is_wrong(compiler: Compiler, spoil: Any, told: str) -> None:
    document = board("session")
    spoil(document)
    assert re.search(told, compiler.complaints(document))
