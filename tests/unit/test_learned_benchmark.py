"""The benchmark of learned priors goes on where it was, and its page says what was measured and what not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.learned import page, quality
from benchmarks.learned.quality import Cell, at_least_as_good
from services.training import FIRST_SEED
from tests.tiny_prior import tiny_prior

MASK = "K=16 b=102"


def cell(psnr: list[float], first: int = 0) -> Cell:
    """One whose figures all rise with ``psnr``; a chunk for each."""
    figures = [f"{against} {figure}" for against in quality.AGAINST for figure in quality.FIGURES]
    chunks = {
        str(first + number): {"seconds": 1.0, **{name: [value, value + 1] for name in figures}}
        for number, value in enumerate(psnr)
    }
    return Cell({}, chunks)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The recoveries that are really done."""
    done: list[str] = []
    judged = quality.judged

    def counting(*arguments: object) -> object:
        done.append(str(arguments[2]))
        return judged(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(quality, "judged", counting)
    return done


def test_it_goes_on_where_it_was(tmp_path: Path, counted: list[str]) -> None:
    asked = (["wiener", "minimum norm"], [MASK], "cpu")
    quality.measure(tmp_path, "none", 16, *asked)
    assert counted == ["minimum norm", "wiener"]  # the cheap one first, however they are named
    before = quality.read(tmp_path, MASK, "wiener")
    quality.measure(tmp_path, "none", 32, *asked)
    assert counted[2:] == ["minimum norm", "wiener"]
    after = quality.read(tmp_path, MASK, "wiener")
    assert before is not None
    assert after is not None
    assert after.frames == 32
    assert after.chunks["0"] == before.chunks["0"]
    assert set(quality.cells(tmp_path)) == {(MASK, "minimum norm"), (MASK, "wiener")}


def test_figures_of_other_weights_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []

    def judged(frames: object, mask: str, recovery: str, *more: object) -> dict[str, object]:
        counted.append(recovery)
        return cell([1.0]).chunks["0"]

    monkeypatch.setattr(quality, "judged", judged)
    asked = (["minimum norm", "posterior, 10"], [MASK], "cpu")
    prior = tiny_prior(tmp_path / "prior", side_pixels=64)
    quality.measure(tmp_path, str(prior), 16, *asked)
    quality.measure(tmp_path, str(prior), 16, *asked)
    assert counted == ["minimum norm", "posterior, 10"]
    other = tiny_prior(tmp_path / "other", side_pixels=64, signal_std=0.5)
    quality.measure(tmp_path, str(other), 16, *asked)
    assert counted[2:] == ["posterior, 10"]


def test_its_particles_are_none_of_the_training() -> None:
    assert quality.SEED < FIRST_SEED
    frames = [quality.held_out(chunk) for chunk in range(4)]
    assert [some.structure for some in frames] == ["cage", "barrel", "ring", "cage"]
    assert frames[0].numbers.start == quality.REFERENCES  # those of the calibration are not judged
    assert frames[3].numbers.start == frames[0].numbers.stop


def test_means_are_compared_over_the_frames_that_both_have() -> None:
    known = {
        (MASK, "ours"): cell([5.0, 1.0]),
        (MASK, "same"): cell([5.0]),
        (MASK, "better"): cell([9.0, 2.0], first=1),
    }
    same = at_least_as_good(known, "ours", ("same",), (MASK,), ("truth", "frame"))
    assert (same.held, same.asked, same.failed, same.missing) == (6, 6, [], 0)
    better = at_least_as_good(known, "ours", ("better",), (MASK, "C=10"), ("truth",))
    assert (better.held, better.asked, better.missing) == (0, 6, 3)
    assert better.failed[0] == "K=16 b=102, truth psnr: better ahead by 8 ± 0"


def test_the_page_says_what_was_measured_and_what_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "learned-prior.md"
    shutil.copy(page.DOCUMENT, document)
    monkeypatch.setattr(page, "DOCUMENT", document)
    page.write(tmp_path / "nothing")
    empty = document.read_text()
    assert empty.count(page.NOT_YET) >= 3
    assert "**holds**" not in empty
    quality.measure(tmp_path, "none", 16, ["minimum norm"], [MASK], "cpu")
    (tmp_path / "speed-cpu.txt").write_text("a machine\n")
    page.write(tmp_path)
    written = document.read_text()
    (row,) = [line for line in written.splitlines() if line.startswith("| minimum norm |")][:1]
    assert row.count("–") == len(quality.MASKS) - 1
    assert "a machine" in written
    page.write(tmp_path)
    assert document.read_text() == written
