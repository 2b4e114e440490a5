"""Noise variance and signal spectrum come out right from measurements alone, whatever the mask."""

import pytest
import torch

from common.calibration import Calibration
from common.operators import CodedAperture, LinearOperator, OpenAperture, PhasePlate
from reconstructor.recovery.spectrum import SpectrumEstimator

SHAPE = (128, 128)
NOISE, SIGNAL_ENERGY = 4.0, 2000.0
CENTRE_MEASURED, CENTRE_LEFT_OUT = 1, 0  # seeds of annular plates
OPERATORS: list[LinearOperator] = [
    OpenAperture(SHAPE),
    CodedAperture(SHAPE, 4, 8),
    CodedAperture(SHAPE, 8, 42),
    PhasePlate(SHAPE),
    PhasePlate(SHAPE, "radial", 2.5),
    PhasePlate(SHAPE, "annular", 2.5, seed=CENTRE_MEASURED),
    PhasePlate(SHAPE, symmetry="paper"),
]


def frames(count: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy frames of a stationary signal below 0.08 cycles a pixel, and the signal alone."""
    generator = torch.Generator().manual_seed(0)
    k = torch.sqrt(torch.fft.fftfreq(128)[:, None] ** 2 + torch.fft.rfftfreq(128)[None, :] ** 2)
    white = torch.randn(count, *SHAPE, generator=generator)
    signal = torch.fft.irfft2(torch.fft.rfft2(white) * torch.exp(-((k / 0.03) ** 2)), s=SHAPE)
    signal -= signal.mean((1, 2), keepdim=True)
    signal *= (SIGNAL_ENERGY * NOISE) ** 0.5 / signal.flatten(1).norm(dim=1)[:, None, None]
    return signal + NOISE**0.5 * torch.randn(count, *SHAPE, generator=generator), signal


@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: f"{type(op).__name__}-{op.mask_hash[:4]}")
def test_noise_and_signal_are_told_apart(op: LinearOperator) -> None:
    noisy, _ = frames()
    spectrum = SpectrumEstimator(op, None)(op.P(noisy - noisy.mean((1, 2), keepdim=True)))
    assert spectrum.noise_variance.shape == (24,)
    assert spectrum.noise_variance.mean() == pytest.approx(NOISE, rel=0.05)
    assert spectrum.noise_variance.std() < 0.1 * NOISE
    assert spectrum.signal_energy.mean() == pytest.approx(SIGNAL_ENERGY, rel=0.2)


def test_calibration_holds_for_every_frame_and_agrees_with_the_frames() -> None:
    noisy, _ = frames()
    op = CodedAperture(SHAPE)
    spectrum = SpectrumEstimator(op, Calibration.from_frames(noisy))(op.P(noisy))
    assert spectrum.noise_variance.shape == (1,)
    assert spectrum.noise_variance.item() == pytest.approx(NOISE, rel=0.02)
    assert spectrum.signal_energy.item() == pytest.approx(SIGNAL_ENERGY, rel=0.05)


def test_pure_noise_has_next_to_no_signal() -> None:
    noise = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(5))
    op = CodedAperture(SHAPE)
    spectrum = SpectrumEstimator(op, None)(op.P(noise))
    assert spectrum.signal_energy.abs().max() < 150


def test_calibration_of_another_shape_is_refused() -> None:
    calibration = Calibration.from_frames(torch.randn(2, 64, 64))
    with pytest.raises(ValueError, match=r"calibration: 46 rings.*128x128 have 92"):
        SpectrumEstimator(OpenAperture(SHAPE), calibration)


def test_energy_is_not_told_where_the_plate_leaves_out_the_low_frequencies() -> None:
    noisy, _ = frames(2)
    op = PhasePlate(SHAPE, "annular", 2.5, seed=CENTRE_LEFT_OUT)
    assert torch.isinf(SpectrumEstimator(op, None)(op.P(noisy)).signal_energy).all()
    assert torch.isfinite(SpectrumEstimator(op, Calibration.from_frames(noisy))(noisy).signal_energy).all()
