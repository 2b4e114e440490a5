"""ADMM with the exact data step finds the optimum of the sparse objective, and says what it says it does."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from common.operators import CodedAperture, LinearOperator, OpenAperture, PhasePlate
from reconstructor.recovery.sparse import (
    CosineParameters,
    CosineRecovery,
    SparseRecovery,
    WaveletParameters,
    WaveletRecovery,
)


def scene(op: LinearOperator, count: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    """Minimum-norm images of noisy blobs about zero."""
    generator = torch.Generator().manual_seed(0)
    height, width = op.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    blob = torch.exp(-((y - 0.45 * height) ** 2 + (x - 0.6 * width) ** 2) / (0.02 * height * width))
    images = blob + 0.3 * torch.randn(count, height, width, generator=generator, dtype=torch.float64)
    return op.P((images - images.mean((1, 2), keepdim=True)).to(dtype))


def objective(recovery: SparseRecovery, x0: Tensor, thresholds: Tensor, x: Tensor) -> Tensor:
    """1/2 |P x - x0|^2 + sum lambda |Psi x|, over padded images where the transform pads."""
    height, width = recovery.op.shape
    misfit = recovery.op.P(x[:, :height, :width].contiguous()) - x0
    sparsity = (thresholds * recovery.transform.forward(x).abs()).sum((1, 2))
    return misfit.square().sum((1, 2)) / 2 + sparsity


def fista(recovery: SparseRecovery, x0: Tensor, thresholds: Tensor, iterations: int = 1500) -> Tensor:
    """The independent reference: accelerated proximal gradient (Beck and Teboulle, 2009), step 1."""
    height, width = recovery.op.shape
    below, right = (p - s for p, s in zip(recovery.transform.padded_shape, recovery.op.shape, strict=True))
    x = ahead = pad(x0, (0, right, 0, below))
    t = 1.0
    for _ in range(iterations):
        inside = ahead[:, :height, :width].contiguous()
        stepped = ahead.clone()
        stepped[:, :height, :width] -= recovery.op.P(inside) - x0
        c = recovery.transform.forward(stepped)
        new = recovery.transform.inverse(c.sign() * (c.abs() - thresholds).clamp_min(0))
        t, before = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
        ahead = new + (before - 1) / t * (new - x)
        x = new
    return x


OPERATORS: list[LinearOperator] = [
    CodedAperture((64, 64), 4, 8),
    CodedAperture((62, 49), 8, 20),
    PhasePlate((64, 64), "uniform", 2.5),
    PhasePlate((63, 48), "radial", 2.0),
    OpenAperture((32, 40)),
]
RECOVERIES = [
    (CosineRecovery, CosineParameters()),
    (CosineRecovery, CosineParameters(weighting="flat")),
    (WaveletRecovery, WaveletParameters(wavelet="db2", levels=5)),
    (WaveletRecovery, WaveletParameters(wavelet="sym4", levels=5, weighting="flat")),
]


@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: f"{type(op).__name__}-{op.shape[0]}x{op.shape[1]}")
@pytest.mark.parametrize(("kind", "parameters"), RECOVERIES)
def test_admm_reaches_the_optimum_of_a_long_fista_run(op: LinearOperator, kind, parameters) -> None:
    x0 = scene(op)
    recovery = kind(op, parameters.model_copy(update={"iterations": 1500, "penalty": 0.3}), None)
    thresholds = recovery.thresholds(recovery.estimate(x0))
    best = objective(recovery, x0, thresholds, fista(recovery, x0, thresholds))
    # the wavelets' padding: ADMM minimises over it too, so compare the images it had before cropping
    found = objective(recovery, x0, thresholds, recovery.minimiser(x0, recovery.bounds(thresholds)))
    assert ((found - best) / best).abs().max() < 1e-3


@pytest.mark.parametrize("op", OPERATORS[:4], ids=lambda op: f"{type(op).__name__}-{op.shape[0]}")
def test_default_iterations_of_the_dct_end_within_a_thousandth_of_the_optimum(op: LinearOperator) -> None:
    x0 = scene(op)
    recovery = CosineRecovery(op, CosineParameters(), None)
    thresholds = recovery.thresholds(recovery.estimate(x0))
    best = objective(recovery, x0, thresholds, fista(recovery, x0, thresholds))
    found = objective(recovery, x0, thresholds, recovery.minimiser(x0, recovery.bounds(thresholds)))
    assert ((found - best) / best).max() < 1e-3


def test_soft_thresholding_is_the_answer_where_everything_is_measured() -> None:
    op = OpenAperture((32, 32))
    x0 = scene(op)
    parameters = CosineParameters(strength=2.0, weighting="flat", iterations=200, penalty=1.0)
    recovery = CosineRecovery(op, parameters, None)
    thresholds = recovery.thresholds(recovery.estimate(x0))
    c = recovery.transform.forward(x0)
    shrunk = recovery.transform.inverse(c.sign() * (c.abs() - thresholds).clamp_min(0))
    torch.testing.assert_close(recovery.minimiser(x0, recovery.bounds(thresholds)), shrunk, rtol=0, atol=1e-9)


def test_mean_level_and_approximation_band_are_never_thresholded() -> None:
    op = OpenAperture((64, 64))
    x0 = scene(op)
    for recovery, band in (
        (CosineRecovery(op, CosineParameters(strength=100.0), None), 1),
        (WaveletRecovery(op, WaveletParameters(strength=100.0, levels=3), None), 8),
    ):
        thresholds = recovery.thresholds(recovery.estimate(x0))
        assert (thresholds[:, :band, :band] == 0).all()
        assert (thresholds[:, band:] > 0).all()
        assert (thresholds[:, :, band:] > 0).all()


def test_thresholds_scale_with_the_noise_and_fall_where_signal_is_strong() -> None:
    op = CodedAperture((64, 64))
    x0 = scene(op)
    recovery = CosineRecovery(op, CosineParameters(), None)
    once, ten = (recovery.thresholds(recovery.estimate(scale * x0)) for scale in (1.0, 10.0))
    torch.testing.assert_close(ten, 10 * once, rtol=1e-6, atol=0)
    assert once[:, 1, 1].max() < once[:, 20:, 20:].mean()


def test_no_strength_leaves_the_minimum_norm_image() -> None:
    for op in OPERATORS:
        x0 = scene(op, dtype=torch.float32)
        got = CosineRecovery(op, CosineParameters(strength=0.0), None)(x0.clone())
        torch.testing.assert_close(got, x0, rtol=0, atol=1e-5)
