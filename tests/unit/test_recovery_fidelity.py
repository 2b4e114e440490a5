"""The defaults keep what docs/fidelity.md promises, on real images and against simulated truth."""

from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from torch import Tensor

from common.calibration import Calibration
from common.operators import CodedAperture, LinearOperator, PhasePlate
from common.session import SpecimenSpec
from detector_sim.specimen import Specimen
from reconstructor.quality import psnr, ssim
from reconstructor.recovery import recover

FILES = ("empiar10076_paper_sample.mrcs", "empiar10076_7.mrcs")
MASKS = ("coded-aperture", "phase-plate")
# rounding of float32 images
EQUAL_DB, EQUAL_SSIM = 1e-4, 1e-6


def build(mask: str, x: Tensor, symmetry: str = "paper") -> LinearOperator:
    shape = (x.shape[1], x.shape[2])
    if mask == "coded-aperture":
        return CodedAperture(shape, 4, 8)
    return PhasePlate(shape, "uniform", 2.5, symmetry=symmetry)  # pyright: ignore[reportArgumentType]


def real(data: Path, file: str) -> Tensor:
    """Particles, each scaled to 0 ... 1."""
    stack = torch.from_numpy(mrcfile.read(data / "particles" / file).astype(np.float32))
    x = stack.reshape(-1, *stack.shape[-2:])
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    return (x - low) / (high - low)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("method", ["dct", "wavelet", "tv"])
def test_no_real_image_comes_out_worse_than_by_minimum_norm(
    data: Path, file: str, mask: str, method: str
) -> None:
    x = real(data, file)
    op = build(mask, x)
    y = op.A(x)
    base, got = recover(y, op, "minimum_norm"), recover(y, op, method)
    assert (psnr(got, x, 1.0) >= psnr(base, x, 1.0) - EQUAL_DB).all()
    assert (ssim(got, x, 1.0) >= ssim(base, x, 1.0) - EQUAL_SSIM).all()


def test_minimum_norm_of_the_sample_image_is_as_known(data: Path) -> None:
    x = real(data, FILES[0])
    op = build("coded-aperture", x)
    got = recover(op.A(x), op, "minimum_norm")
    assert psnr(got, x, 1.0).item() == pytest.approx(22.30, abs=0.2)
    assert ssim(got, x, 1.0).item() == pytest.approx(0.693, abs=0.01)
    op = build("phase-plate", x)
    y = op.A(x)
    got = recover(y, op, "minimum_norm")
    assert ssim(got, x, 1.0).item() == pytest.approx(0.781, abs=0.015)
    # the known PSNR, 21.85, is that of a draw without DC, of the image scaled to -1 ... 1
    without_dc = got - got.mean((1, 2), keepdim=True) + 0.5
    assert psnr(without_dc, x, 1.0).item() == pytest.approx(21.85, abs=0.25)


@pytest.mark.parametrize("snr", [0.1, 0.05])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("symmetry", ["hermitian", "paper"])
def test_every_prior_is_a_decibel_above_minimum_norm_against_the_truth(
    snr: float, mask: str, symmetry: str
) -> None:
    batch = Specimen(SpecimenSpec(snr=snr)).batch(0, 16)
    noisy, clean = torch.from_numpy(batch.frames).float(), torch.from_numpy(batch.clean).float()
    op = build(mask, noisy, symmetry)
    y = op.A(noisy)
    base = psnr(recover(y, op, "minimum_norm"), clean)
    for calibration in (None, Calibration.from_frames(noisy[:4])):
        for method in ("wiener", "dct", "wavelet", "tv"):
            gain = psnr(recover(y, op, method, calibration=calibration), clean) - base
            assert gain.mean() > 1.0, (method, gain)
