"""``cryoflux bench hallucination``: its figures are what they are said to be, and the command as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from common.session import SpecimenSpec
from detector_sim.specimen import Specimen
from services.failure import WrongOption
from services.hallucination import bench_hallucination, figures, measure
from services.hallucination.likeness import Projections, best_matches, left_open, transfers_of
from services.options import HallucinationOptions, MaskOptions
from tests.tiny_prior import tiny_prior

SPEC = SpecimenSpec(side_pixels=32, pixel_size_angstrom=6.0, snr=1.0)


def images(seed: int) -> Tensor:
    return torch.randn(5, 32, 32, generator=torch.Generator().manual_seed(seed)).double()


def test_what_was_added_is_right_or_invented() -> None:
    added, missing = images(0), images(1)
    right, invented = figures.right_and_invented(added, missing)
    torch.testing.assert_close(right + invented, added)
    torch.testing.assert_close(figures.cosine(right, missing).abs(), torch.ones(5).double())
    torch.testing.assert_close(figures.cosine(invented, missing), torch.zeros(5).double(), atol=1e-12, rtol=0)
    # Pythagoras, in units of what was added
    share = figures.cosine(added, missing).square()
    torch.testing.assert_close((figures.norm(invented) / figures.norm(added)).square(), 1 - share)


def test_all_error_is_removed_by_what_is_missing_and_none_by_nothing() -> None:
    missing = images(0)
    ones = torch.ones(5).double()
    torch.testing.assert_close(figures.error_removed(missing, missing), ones)
    torch.testing.assert_close(figures.error_removed(0 * missing, missing), 0 * ones)
    torch.testing.assert_close(figures.error_removed(-missing, missing), -3 * ones)


def test_figures_that_tell_apart() -> None:
    low, high = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    assert figures.told_apart(low, high) == 1
    assert figures.told_apart(high, low) == 0
    assert figures.told_apart(low, low) == 0.5
    assert figures.ranks_agree(low, high) == pytest.approx(1)
    assert figures.ranks_agree(torch.arange(4), -torch.arange(4).exp()) == pytest.approx(-1)


def test_a_featureless_image_has_the_same_spectrum() -> None:
    flat = images(0).sign()  # as strong at every pixel, so that place takes nothing from the spectrum
    drawn = figures.featureless(flat)
    torch.testing.assert_close(torch.fft.rfft2(drawn).abs(), torch.fft.rfft2(flat).abs())
    assert figures.cosine(drawn, flat).abs().max() < 0.2


def test_a_projection_is_found_again_wherever_it_lies() -> None:
    library = {name: Projections(SPEC.model_copy(update={"structure": name}), 8) for name in ("cage", "ring")}
    batch = Specimen(SPEC).batch(0, 2)
    transfers = transfers_of(SPEC, batch.metadata)
    everything = torch.ones(32, 17)
    moved = [
        torch.fft.irfft2(library["ring"].seen(transfer)[pose], s=(32, 32)).roll((3, -4), (0, 1))
        for pose, transfer in enumerate(transfers)
    ]
    (found,) = best_matches([torch.stack(moved)], library, transfers, everything)
    torch.testing.assert_close(found["ring"], torch.ones(2).double(), atol=1e-5, rtol=0)
    assert bool((found["cage"] < 0.95).all())


def test_a_particle_looks_like_its_own_specimen() -> None:
    names = ("cage", "barrel", "ring", "bundle")
    specs = {name: SPEC.model_copy(update={"structure": name}) for name in names}
    library = {name: Projections(spec, 64) for name, spec in specs.items()}
    for name, spec in specs.items():
        batch = Specimen(spec).batch(0, 6)
        clean = torch.from_numpy(batch.clean).double()
        clean -= clean.mean((1, 2), keepdim=True)
        (found,) = best_matches([clean], library, transfers_of(spec, batch.metadata), torch.ones(32, 17))
        best = torch.stack([found[other] for other in names]).argmax(0)
        assert (best == names.index(name)).double().mean() > 0.8, name


def test_what_is_left_open_is_the_share_that_is_missing() -> None:
    truth = images(0)
    torch.testing.assert_close(left_open(truth / 2, truth), torch.full((32, 17), 0.5))


def options(folder: Path, prior: Path, **more: object) -> HallucinationOptions:
    usual = {"frames": 3, "samples": 2, "evaluations": 2, "known": ["cage", "ring"]}
    return HallucinationOptions(prior=str(prior), output=folder, **{**usual, **more})  # type: ignore[arg-type]


def test_the_command_writes_figures_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "PROJECTIONS", 8)
    prior = tiny_prior(tmp_path / "prior", pixel_size_angstrom=(6.0, 6.0))
    mask = MaskOptions(kernel=8, masks=26)
    assert bench_hallucination(options(tmp_path / "out", prior), mask, torch.device("cpu")) == 0
    result = json.loads((tmp_path / "out" / "hallucination.json").read_text())
    assert {name: found["known"] for name, found in result["specimens"].items()} == {
        "cage": True, "ring": True, "bundle": False,
    }  # fmt: skip
    assert set(result["told_apart_from_known"]) == {"bundle"}
    for found in result["specimens"].values():
        assert len(found["prior_shift"]) == 3
        assert found["recoveries"]["wiener"]["error"] < found["recoveries"]["minimum_norm"]["error"]
        shares = found["added"]["likest"]["missing"]
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
    assert np.asarray(Image.open(tmp_path / "out" / "hallucination.png")).std() > 0
    shown = capsys.readouterr().out
    assert "trained on nothing: random weights" in shown
    assert "bundle told from the specimens it knows" in shown


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"prior": "nowhere"}, "--prior"),
        ({"structure": ["nothing.pdb"]}, "--structure"),
        ({"pixel_size": 1.0}, "--structure"),
        ({"snr": -1.0}, "--snr"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(tmp_path: Path, more: dict[str, object], words: str) -> None:
    prior = tiny_prior(tmp_path / "prior", pixel_size_angstrom=(6.0, 6.0))
    with pytest.raises(WrongOption, match=words) as told:
        bench_hallucination(
            HallucinationOptions(**{"prior": str(prior), "output": tmp_path, **more}),  # type: ignore[arg-type]
            MaskOptions(),
            torch.device("cpu"),
        )
    assert "\n" not in str(told.value)


def test_a_prior_of_noisy_frames_cannot_be_held_against_a_particle(tmp_path: Path) -> None:
    prior = tiny_prior(tmp_path / "prior", content="frames")
    with pytest.raises(WrongOption, match="images without noise"):
        bench_hallucination(options(tmp_path, prior), MaskOptions(), torch.device("cpu"))
