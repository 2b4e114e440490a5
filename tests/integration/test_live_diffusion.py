"""`cryoflux live --recovery diffusion`: two workers, changes in mid-run, every frame accounted for."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import mrcfile
import numpy as np
import pytest
import torch

from common.calibration import Calibration
from common.session import RecoverySpec
from reconstructor.archive import read_frame, read_start
from reconstructor.pace import LEVELS
from reconstructor.recovery import Recovery
from tests.integration.test_live import CRYOFLUX, PATIENCE_SECONDS, Live, refused, table
from tests.tiny_prior import tiny_prior
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(400)

WANTED = 12  # evaluations, where the user says how many


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("priors") / "tiny")


class Finished:
    """A session whose compression factor changes, then its recovery: to the DCT, and back to the prior."""

    def __init__(self, output: Path, prior: Path) -> None:
        self.output = output
        with Live(output, "--side", "32", "--pixel-size", "4.5", "--kernel", "4", "--compression", "4",
                  "--rate", "12", "--reference-every", "10", "--workers", "2",
                  "--recovery", "diffusion", "--parameter", f"prior={prior}") as live:  # fmt: skip
            self.live = live
            first = self.learns(0, 12)
            self.working = live.metrics()["workers"]
            self.picture = live.client.get(f"frames/{first['newest_frame']}").json()
            self.exposed = self.scraped()
            self.setting = live.patch("acquisition", {"compression_factor": 8})
            self.learns(1, 12)
            live.patch("recovery", {"method": "dct"})
            self.recovers_by("dct")
            wrong = {"method": "diffusion", "parameters": {"prior": "no-such-prior"}}
            self.refusal = live.client.patch("recovery", json=wrong)
            back = {"method": "diffusion", "parameters": {"prior": str(prior), "evaluations": WANTED}}
            self.answer = live.patch("recovery", back)
            self.last = self.recovers_by("diffusion")
            self.stopped = live.client.post("stop").status_code
            self.account = live.end()
            self.text = live.text
        self.events = "".join(path.read_text() for path in (output / "logs").glob("control*.log"))

    def learns(self, configuration: int, frames: int) -> dict[str, Any]:
        """Wait until so many frames of a configuration are recovered with the prior."""

        def learned() -> dict[str, Any] | None:
            try:
                figures = self.live.metrics()
            except (httpx.TransportError, json.JSONDecodeError):
                return None
            known = figures.get("configurations", [])[configuration:]
            return figures if known and known[0]["quality"]["learned_frames"] >= frames else None

        return eventually(learned, f"{frames} frames are recovered with the prior", self.live.process)

    def recovers_by(self, method: str) -> dict[str, Any]:
        """Wait until the newest frame was recovered with a method; what is known of it."""

        def newest() -> dict[str, Any] | None:
            answer = self.live.client.get(f"frames/{self.live.metrics()['newest_frame']}")
            return answer.json() if answer.status_code == 200 and answer.json()["method"] == method else None

        return eventually(newest, f"frames are recovered with {method}", self.live.process)

    def scraped(self) -> str:
        """What all the processes tell Prometheus."""
        root = str(self.live.client.base_url).split("/api/")[0]
        targets = [known["targets"][0] for known in self.live.client.get(f"{root}/metrics/targets").json()]
        return "".join(httpx.get(f"http://{address}/metrics").text for address in targets)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, prior: Path) -> Finished:
    return Finished(tmp_path_factory.mktemp("live") / "session", prior)


def test_every_frame_is_accounted_for_and_there_once(finished: Finished) -> None:
    assert finished.stopped == 200
    account = finished.account
    assert account["state"] == "completed"
    accounts, acquired = account["accounts"], account["frames"]["acquired"]
    assert acquired == accounts["acquired"] == accounts["acknowledged"] == account["frames"]["recovered"]
    assert (accounts["in_flight"], accounts["spooled"], accounts["unaccounted"]) == (0, 0, 0)
    assert [int(row["frame_id"]) for row in table(finished.output)] == list(range(acquired))
    assert len({row["worker"] for row in table(finished.output)}) == 2


def test_columns_are_filled_where_the_prior_was_used_and_only_there(finished: Finished) -> None:
    rows = table(finished.output)
    assert Counter(row["method"] for row in rows).keys() == {"diffusion", "dct"}
    chosen = {setting["recovery_id"]: setting for setting in finished.account["recovery"]}
    assert [setting["method"] for setting in finished.account["recovery"]] == [
        "diffusion",
        "dct",
        "diffusion",
    ]
    for row in rows:
        assert row["method"] == chosen[row["recovery_id"]]["method"]
        assert row["posterior_spread"] == ""  # of one sample
        if row["method"] == "dct":
            assert (row["prior_shift"], row["evaluations"]) == ("", "")
            continue
        assert 0 <= float(row["prior_shift"]) < np.inf
        wanted = chosen[row["recovery_id"]]["parameters"].get("evaluations")
        assert int(row["evaluations"]) in (LEVELS if wanted is None else [WANTED])
    assert {row["config_id"] for row in rows if row["method"] == "diffusion"} == {
        known["config_id"] for known in finished.account["configurations"]
    }


def test_the_account_has_the_means_of_the_table(finished: Finished) -> None:
    shifts = [float(row["prior_shift"]) for row in table(finished.output) if row["prior_shift"]]
    quality = finished.account["quality"]
    assert quality["learned_frames"] == len(shifts)
    assert quality["prior_shift"] == pytest.approx(np.mean(shifts))
    for known in finished.account["configurations"]:
        of_it = [
            float(row["prior_shift"])
            for row in table(finished.output)
            if row["prior_shift"] and row["config_id"] == known["config_id"]
        ]
        assert known["quality"]["learned_frames"] == len(of_it)
        assert known["quality"]["prior_shift"] == pytest.approx(np.mean(of_it))


def test_what_the_table_says_of_a_frame_makes_its_image_again(finished: Finished) -> None:
    start = read_start(finished.output)
    assert start is not None
    calibration = Calibration.model_validate(start.calibration)
    chosen = {setting["recovery_id"]: setting for setting in finished.account["recovery"]}
    images = mrcfile.read(finished.output / "recovered.mrcs")
    rows = [row for row in table(finished.output) if row["method"] == "diffusion"]
    for row in (rows[0], rows[len(rows) // 2], rows[-1]):
        setting, frame = chosen[row["recovery_id"]], int(row["frame_id"])
        parameters = {**setting["parameters"], "evaluations": int(row["evaluations"])}
        spec = RecoverySpec(method="diffusion", parameters=parameters, free_share=setting["free_share"])
        configuration, measurement = read_frame(finished.output, frame)
        y = torch.from_numpy(measurement.astype(np.float32))[None]
        recovery = Recovery(configuration.mask.build(configuration.shape), spec, calibration)
        again = recovery(y, [frame])
        scale = np.abs(images[frame]).max()
        assert np.abs(again.images[0].numpy() - images[frame]).max() <= 2e-3 * scale
        assert float(again.prior_shift[0]) == pytest.approx(float(row["prior_shift"]), rel=1e-2)


def test_the_figures_are_told_while_it_runs(finished: Finished) -> None:
    assert finished.picture["method"] == "diffusion"
    assert finished.picture["prior_shift"] is not None
    assert finished.picture["evaluations"] in LEVELS
    assert [worker["evaluations"] in LEVELS for worker in finished.working] == [True, True]
    assert any((worker["frames_per_s_possible"] or 0) > 0 for worker in finished.working)
    assert re.search(r"^cryoflux_session_prior_shift_ratio\{.*\} [\d.]+", finished.exposed, re.MULTILINE)
    assert re.search(r"^cryoflux_frame_prior_shift_ratio_count\{.*\} [1-9]", finished.exposed, re.MULTILINE)
    assert re.search(r"^cryoflux_recovery_evaluations \d+", finished.exposed, re.MULTILINE)
    assert finished.last["evaluations"] == WANTED
    assert all(worker["taken"] for worker in finished.answer["workers"])


def test_an_unknown_prior_is_refused_in_one_line_and_nothing_changes(finished: Finished) -> None:
    assert finished.refusal.status_code == 422
    problem = finished.refusal.json()
    assert [error["field"] for error in problem["errors"]] == ["parameters.prior"]
    assert "no-such-prior" in problem["detail"]
    assert "\n" not in problem["detail"]


def test_it_says_which_prior_it_uses_and_where_the_frames_are_otherwise(finished: Finished) -> None:
    assert "learned prior tiny: trained on nothing: random weights" in finished.text
    assert finished.text.count("was not trained on frames at 4.5 Å a pixel (it knows 1 to 2)") == 2
    assert "prior shift" in finished.text


@pytest.mark.slow  # for a machine that does nothing else: loading takes seconds of a core in each worker
def test_loading_a_network_does_not_silence_a_worker(finished: Finished) -> None:
    assert "registered" in finished.events  # what happened stands there
    assert "is not heard any more" not in finished.events
    assert "worker_silent" not in finished.events
    assert finished.account["frames"]["delivered_twice"] == 0
    assert finished.account["blocks_redelivered"] == 0


def test_recorded_measurements_are_recovered_again_with_the_prior(
    finished: Finished, prior: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    command = [*CRYOFLUX, "recover", str(finished.output), "--recovery", "diffusion", "--output", str(again),
               "--parameter", f"prior={prior}", "--parameter", "samples=2", "--parameter", "evaluations=2",
               "--workers", "2"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    assert "learned prior tiny: trained on nothing: random weights" in done.stdout
    rows = table(again)
    assert [row["frame_id"] for row in rows] == [row["frame_id"] for row in table(finished.output)]
    assert {(row["method"], row["evaluations"]) for row in rows} == {("diffusion", "2")}
    assert all(float(row["posterior_spread"]) >= 0 for row in rows)


@pytest.mark.parametrize("name", ["no-such-prior", "/nowhere/at/all"])
def test_an_unknown_prior_keeps_a_session_from_being_started(name: str, tmp_path: Path) -> None:
    line = refused("live", "--output", str(tmp_path / "session"), "--recovery", "diffusion",
                   "--parameter", f"prior={name}", "--frames", "5", "--port", "0")  # fmt: skip
    assert "--parameter prior" in line
    assert name in line
    assert not (tmp_path / "session").exists()
