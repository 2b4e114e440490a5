"""The soak's own judgement: it must see what it is there to see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

from benchmarks.soak import page, plots
from benchmarks.soak.growth import growth
from benchmarks.soak.plan import SHARES, plan
from benchmarks.soak.results import check
from benchmarks.soak.verdict import findings
from benchmarks.soak.watch import accounts_of
from common.session import PatternSource
from detector_sim.sources import open_source

PATTERN = PatternSource(shape=(64, 64))
FRAMES = 40


def level(percent_per_hour: float, seconds: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A curve of 200 MB with noise of a few pages and rare spikes, sampled once a second."""
    generator = np.random.default_rng(seed)
    at = np.arange(seconds, dtype=float)
    values = 200e6 * (1 + percent_per_hour / 100 * at / 3600) + generator.normal(0, 20e3, seconds)
    values[generator.random(seconds) < 0.05] += 30e6
    return at, values


@pytest.mark.parametrize("truth", [0.0, 3.0, -3.0, 20.0])
def test_growth_is_measured_through_noise_and_spikes(truth: float) -> None:
    found = growth(*level(truth), 180.0)
    assert found is not None
    expected = truth * 200e6 / found.level  # per cent of what it is in the middle
    assert found.low <= expected <= found.high
    assert found.percent_per_hour == pytest.approx(expected, abs=0.4)
    assert found.is_flat == (truth < 1)
    assert found.verdict == ("flat" if truth < 1 else "grows")


def test_a_warm_up_is_no_growth_and_too_short_a_time_tells_nothing() -> None:
    at, values = level(0.0)
    values[at < 180] *= 0.5
    warm = growth(at, values, 180.0)
    assert warm is not None
    assert warm.is_flat
    with_it = growth(at, values, 0.0)
    assert with_it is not None
    assert not with_it.is_flat or with_it.verdict != "flat" or with_it.high > warm.high
    assert growth(at[:20], values[:20], 0.0) is None
    assert growth(at, values, 1000.0) is None


def test_the_same_seed_gives_the_same_plan_and_faults_leave_a_supervisor_time() -> None:
    assert plan(20, 3) == plan(20, 3)
    assert plan(20, 3) != plan(20, 4)
    assert plan(20, 3, ("steady",)) == [phase for phase in plan(20, 3) if phase.name == "steady"]
    assert [phase.name for phase in plan(20, 3)] == list(SHARES)
    for seed in range(20):
        storm = plan(20, seed)[0]
        verbs = {deed.verb for deed in storm.deeds}
        assert verbs >= {"acquisition", "recovery", "pause", "kill", "hang"}
        ends: dict[str, list[float]] = {}
        for deed in storm.deeds:
            if deed.target:
                ends.setdefault(deed.target, []).append(deed.at)
        assert set(ends) == {"worker-1", "worker-2", "detector", "control"}
        for times in ends.values():
            assert all(sum(at <= other < at + 60 for other in times) <= 5 for at in times)


def finished(folder: Path, **frames: int) -> Path:
    """A session's results as they should be: an open aperture, so that images are the frames."""
    images = open_source(PATTERN).read(FRAMES).frames.astype(np.float32)
    with mrcfile.new(folder / "recovered.mrcs", images, overwrite=True) as stack:
        stack.set_image_stack()
    rows = "".join(f"{frame},1.0,minimum_norm\n" for frame in range(FRAMES))
    (folder / "frames.csv").write_text(f"frame_id,compression_factor,method\n{rows}")
    counts = {"acquired": FRAMES, "recovered": FRAMES, "lost": 0, "delivered_twice": 0, **frames}
    account = {
        "session": "s",
        "state": "completed",
        "error": None,
        "frames": {**counts, "lost_by_reason": {}},
        "accounts": {"unaccounted": 0},
        "blocks_redelivered": 0,
        "detector_restarts": 0,
        "elapsed_seconds": 2.0,
        "frames_per_s": 20.0,
        "wire_mbit_per_s": 1.0,
        "idle_seconds": 0.0,
        "latency": {"p50_seconds": 0.1, "p99_seconds": 0.2},
        "acquisition": [{}],
        "recovery": [{}],
    }
    (folder / "session.json").write_text(json.dumps(account))
    return folder


def test_results_as_they_should_be_are_found_so(tmp_path: Path) -> None:
    found = check(finished(tmp_path), PATTERN)
    assert found["wrong"] == []
    assert found["numbers_read"] == FRAMES


@pytest.mark.parametrize("factor", ["1.0", "2.0"])
def test_images_in_each_other_s_slots_are_found(tmp_path: Path, factor: str) -> None:
    folder = finished(tmp_path)
    table = folder / "frames.csv"
    table.write_text(table.read_text().replace(",1.0", f",{factor}"))
    with mrcfile.mmap(folder / "recovered.mrcs", mode="r+") as stack:
        stack.data[[3, 8]] = stack.data[[8, 3]]
    assert check(folder, PATTERN)["wrong"] == ["2 images are not those of their slots, such as 3"]


def test_images_of_the_same_noise_in_each_other_s_slots_are_found_by_their_numbers(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    with mrcfile.mmap(folder / "recovered.mrcs", mode="r+") as stack:
        stack.data[[3, 19]] = stack.data[[19, 3]]
    assert check(folder, PATTERN)["wrong"] == ["2 images are not those of their slots, such as 3"]


def test_a_slot_that_was_never_written_is_found(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    with mrcfile.mmap(folder / "recovered.mrcs", mode="r+") as stack:
        stack.data[16] = 0
    assert check(folder, PATTERN)["wrong"] == ["1 images are not those of their slots, such as 16"]


@pytest.mark.parametrize(
    ("before", "after", "wrong"),
    [
        ("\n7,1.0,minimum_norm\n", "\n", "1 frames are not recovered, such as 7"),
        (
            "\n7,1.0,minimum_norm\n",
            "\n7,1.0,dct\n7,1.0,dct\n",
            "1 frames stand twice in frames.csv, such as 7",
        ),
    ],
)
def test_frames_that_are_missing_or_double_are_found(
    tmp_path: Path, before: str, after: str, wrong: str
) -> None:
    table = finished(tmp_path) / "frames.csv"
    table.write_text(table.read_text().replace(before, after))
    assert check(tmp_path, PATTERN)["wrong"] == [wrong]


def test_lost_frames_are_told(tmp_path: Path) -> None:
    table = finished(tmp_path, lost=1, recovered=FRAMES - 1) / "frames.csv"
    table.write_text(table.read_text().replace("\n7,1.0,minimum_norm\n", "\n"))
    assert check(tmp_path, PATTERN)["wrong"] == ["1 frames lost: {}"]


def document(tmp_path: Path) -> dict[str, Any]:
    """A soak in which nothing went wrong."""
    at, rss = level(0.0)
    curve = {"at": at.tolist(), "rss": rss.tolist(), "pss": rss.tolist(), "anonymous": rss.tolist()}
    steady = dict.fromkeys(("descriptors", "threads", "processor_seconds"), [20] * len(at))
    accounts = [
        {
            "at": float(second),
            "acquired": 60 * second,
            "acknowledged": 60 * second - 5,
            "in_flight": 3,
            "spooled": 2,
            "lost": 0,
            "wire_bytes": 1000 * second,
            "unaccounted": 0,
            "latency": {"0.1": 30 * second, "1.0": 60 * second, "+Inf": 60 * second},
        }
        for second in range(600)
    ]
    return {
        "began_at": 0.0,
        "machine": "a machine",
        "minutes": 20.0,
        "seed": 0,
        "phases": [
            {"name": "steady", "began": 0.0, "ended": 600.0, "sessions": [check(finished(tmp_path), PATTERN)]}
        ],
        "deeds": [
            {"at": 5.0, "verb": "kill", "target": "worker-1", "outcome": "done", "is_wrong": False},
            {"at": 9.0, "verb": "pause", "target": "", "outcome": "409 no", "is_wrong": False},
        ],
        "processes": {"control/1": {"name": "control", "pid": 1, **curve, **steady}},
        "accounts": accounts,
        "unanswered": 0,
        "ended_by_themselves": [],
        "errors": [],
    }


def broken(told: dict[str, Any]) -> list[str]:
    return [finding.promise for finding in findings(told) if not finding.is_kept]


def test_every_promise_can_be_broken(tmp_path: Path) -> None:
    good = document(tmp_path)
    assert broken(good) == []

    def spoilt(**parts: Any) -> str:
        (promise,) = broken({**good, **parts})
        return promise

    process = good["processes"]["control/1"]
    assert "acknowledged +" in spoilt(
        accounts=[*good["accounts"], {**good["accounts"][-1], "unaccounted": 1}]
    )
    session = {**good["phases"][0]["sessions"][0], "wrong": ["1 frames lost"]}
    assert "exactly once" in spoilt(phases=[{**good["phases"][0], "sessions": [session]}])
    leaking = {**process, "rss": level(5.0)[1].tolist()}
    assert spoilt(processes={"control/1": leaking}).startswith("memory")
    leaking = {**process, "descriptors": [20 + second // 100 for second in range(600)]}
    assert spoilt(processes={"control/1": leaking}).startswith("descriptors")
    assert "process" in spoilt(ended_by_themselves=["worker-1 ended with code 1: out of memory"])
    assert "change" in spoilt(deeds=[{**good["deeds"][1], "outcome": "422 no", "is_wrong": True}])
    assert "error" in spoilt(errors=["detector: ERROR"])


def test_figures_and_plots_are_put_into_the_page_and_nowhere_else(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / page.PAGE).write_text(f"before\n\n{page.BEGIN}\n\nold\n\n{page.END}\n\nafter\n")
    told = document(tmp_path)
    page.publish(told, docs)
    text = (docs / page.PAGE).read_text()
    assert text.startswith(f"before\n\n{page.BEGIN}\n")
    assert text.endswith(f"{page.END}\n\nafter\n")
    assert "old" not in text
    for name in plots.PLOTS:
        assert f"](pictures/soak-{name}.png)" in text
        assert (docs / "pictures" / f"soak-{name}.png").stat().st_size > 5000
    page.publish(told, docs)
    assert (docs / page.PAGE).read_text() == text
    (docs / page.PAGE).write_text("no marks")
    with pytest.raises(ValueError, match="are missing"):
        page.publish(told, docs)


def test_a_scrape_s_identity_is_summed_over_reasons() -> None:
    text = """# TYPE cryoflux_frames_acquired counter
cryoflux_frames_acquired_total 10.0
# TYPE cryoflux_frames_acknowledged counter
cryoflux_frames_acknowledged_total 4.0
# TYPE cryoflux_frames_lost counter
cryoflux_frames_lost_total{reason="stopped"} 1.0
cryoflux_frames_lost_total{reason="rejected"} 2.0
# TYPE cryoflux_frames_in_flight gauge
cryoflux_frames_in_flight 2.0
# TYPE cryoflux_frames_spooled gauge
cryoflux_frames_spooled 0.0
"""
    found = accounts_of(text)
    assert (found["lost"], found["unaccounted"]) == (3, 1)


def test_the_documentation_has_the_marks() -> None:
    text = (Path(__file__).parents[2] / "docs" / page.PAGE).read_text()
    assert text.count(page.BEGIN) == text.count(page.END) == 1
    assert text.index(page.BEGIN) < text.index(page.END)
