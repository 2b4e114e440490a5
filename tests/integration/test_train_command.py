"""``cryoflux train prior`` as a process: trained on a user's stack, stopped, and gone on with."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from reconstructor.priors import load_prior
from tests.waiting import eventually


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    path = tmp_path / "particles.mrcs"
    with mrcfile.new(path) as file:
        file.set_data(np.random.default_rng(0).standard_normal((40, 64, 64)).astype(np.float32))
        file.set_image_stack()
        file.voxel_size = 1.5
    return path


def command(folder: Path, stack: Path, *options: str) -> subprocess.Popen[str]:
    arguments = ["train", "prior", str(folder), "--input", str(stack), "--batch", "4", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "services.cli", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_stopped_it_goes_on_and_the_folder_is_a_prior(tmp_path: Path, stack: Path) -> None:
    folder = tmp_path / "mine"
    first = command(folder, stack, "--steps", "100000")
    eventually(lambda: (folder / "loss.csv").exists(), "training begins", alive=first)
    other = command(folder, stack, "--steps", "100000")
    _, told = other.communicate(timeout=120)
    assert other.returncode == 2
    assert "another training is at work there" in told
    first.send_signal(signal.SIGTERM)
    _, told = first.communicate(timeout=120)
    assert first.returncode == 128 + signal.SIGTERM
    assert "the same command goes on from there" in told.splitlines()[-1]
    steps = load_prior(folder).card.steps

    second = command(folder, stack, "--steps", str(steps + 1))
    said, told = second.communicate(timeout=300)
    assert second.returncode == 0, told
    assert said.startswith(f"{folder}: {steps + 1} steps on 40 images")
    card = load_prior(folder).card
    assert (card.name, card.content, card.steps, card.images) == ("mine", "frames", steps + 1, 40)
    assert card.trained_on == "particles.mrcs; 1.5 angstrom a pixel"
    assert (folder / "samples.png").exists()
    assert (folder / "loss.png").exists()

    third = command(folder, stack, "--preset", "paper-128")
    said, told = third.communicate(timeout=120)
    assert third.returncode == 2
    assert told.splitlines() == [
        f"cryoflux train prior: {folder}: holds a training with another preset (small there, paper-128 now); "
        "name another folder"
    ]
    assert load_prior(folder).card == card


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--preset", "large"], "--preset: 'large' is not known; must be one of small, paper-128, paper-256"),
        (["--preset", "paper-128"], "frames of 64x64 are smaller than the preset's images of 128 pixels"),
        (["--from", "nowhere"], "--from: prior 'nowhere': not known"),
        (["--batch", "64"], "40 images are too few"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    tmp_path: Path, stack: Path, options: list[str], words: str
) -> None:
    ended = command(tmp_path / "mine", stack, *options)
    _, told = ended.communicate(timeout=120)
    assert ended.returncode == 2
    assert len(told.splitlines()) == 1
    assert told.startswith("cryoflux train prior: ")
    assert words in told
