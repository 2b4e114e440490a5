"""For a Gaussian prior the sampler draws from the exact posterior, whatever the mask.

The exact one is that of the dense problem in float64. Draws come in pairs of opposite noise, the mean of
which has none of it as far as the sampler is linear: it is, but for the few steps of conjugate gradients.
"""

import pytest
import torch
from torch import Tensor

from common.operators import CodedAperture, LinearOperator, OpenAperture, PhasePlate
from reconstructor.priors.base import Flow, VariancePreserving
from reconstructor.priors.gaussian import GaussianPrior
from reconstructor.recovery.noise import FrameNoise
from reconstructor.recovery.posterior import DataStep, PosteriorSampler
from reconstructor.recovery.wiener import Wiener, WienerParameters
from tests.unit.known_prior import SIGNAL_STD, spectrum

SHAPE = (16, 16)
DRAWS = 512
OPERATORS: list[LinearOperator] = [
    CodedAperture(SHAPE, 4, 8),
    CodedAperture(SHAPE, 8, 40),
    PhasePlate(SHAPE),
    PhasePlate(SHAPE, "radial", 1.4, symmetry="paper"),
    OpenAperture(SHAPE),
]


def name(op: LinearOperator) -> str:
    return f"{type(op).__name__}-C{op.compression_factor:.1f}"


class Problem:
    """A measurement of a Gaussian image, and its exact posterior."""

    def __init__(self, op: LinearOperator, snr: float, is_exact: bool = False) -> None:
        self.op = op
        power = spectrum(op.shape)
        variance = SIGNAL_STD**2 / snr
        if is_exact:  # the noise is a part of the image
            power = (power + variance) * snr / (1 + snr)
        self.power = power[None]
        self.noise_variance = None if is_exact else torch.tensor([variance], dtype=torch.float64)
        self.prior = GaussianPrior(power, op.shape)
        n = op.shape[0] * op.shape[1]
        basis = torch.eye(n, dtype=torch.float64).view(n, *op.shape)
        P = op.P(basis).flatten(1)
        C = torch.fft.irfft2(torch.fft.rfft2(basis) * self.prior.power, s=op.shape).flatten(1)
        v = 0.0 if is_exact else variance
        gain = C @ P @ torch.linalg.pinv(P @ C @ P + v * P, hermitian=True, rtol=1e-10)
        self.covariance = C - gain @ P @ C
        generator = torch.Generator().manual_seed(0)
        white = torch.randn(2, *op.shape, generator=generator, dtype=torch.float64)
        self.minimum_norm = op.P(self.prior.draw(white[:1]) + v**0.5 * white[1:])
        self.mean = (gain @ self.minimum_norm.flatten()).view(op.shape)
        self.wiener = Wiener(op, WienerParameters.model_validate({}), None)

    def images(self, evaluations: int, start: float | str, is_draw: bool, count: int = DRAWS) -> Tensor:
        sampler = PosteriorSampler(self.wiener, evaluations, start, is_draw)  # pyright: ignore[reportArgumentType]
        target = self.minimum_norm.float().expand(count, -1, -1).contiguous()
        noise = FrameNoise(0, [0] * count, range(count))
        return sampler(self.prior, target, self.power, self.noise_variance, noise).double()

    def mean_error(self, images: Tensor) -> float:
        return float((images.mean(0) - self.mean).norm() / self.mean.norm())

    def variance_error(self, images: Tensor) -> float:
        variance = images.var(0, correction=0)
        return float(variance.sum() / self.covariance.trace() - 1)


@pytest.mark.parametrize("start", ["auto", "noise"])
@pytest.mark.parametrize("snr", [0.1, 1.0])
@pytest.mark.parametrize("op", OPERATORS, ids=name)
def test_draws_have_mean_and_variance_of_the_posterior(op: LinearOperator, snr: float, start: str) -> None:
    problem = Problem(op, snr)
    images = problem.images(20, start, True)
    assert problem.mean_error(images) < 0.02
    assert abs(problem.variance_error(images)) < 0.05


@pytest.mark.parametrize("op", OPERATORS[:4], ids=name)
def test_draws_are_right_where_noise_is_a_part_of_the_image(op: LinearOperator) -> None:
    problem = Problem(op, 1.0, is_exact=True)
    for start in ("auto", "noise"):
        images = problem.images(20, start, True)
        assert problem.mean_error(images) < 0.02
        assert abs(problem.variance_error(images)) < 0.05
        # and every one of them has what was measured, to rounding
        error = op.P(images.float()) - problem.minimum_norm
        assert error.abs().max() < 1e-5


@pytest.mark.parametrize("op", OPERATORS[:4], ids=name)
def test_every_direction_has_its_variance(op: LinearOperator) -> None:
    problem = Problem(op, 1.0)
    images = problem.images(20, "auto", True, 4096)
    variances, directions = torch.linalg.eigh(problem.covariance)
    found = ((images - images.mean(0)).flatten(1) @ directions).square().mean(0)
    strong = variances > 0.02 * variances.max()
    # 2048 pairs tell a variance to 3 %
    assert (found / variances - 1)[strong].square().mean().sqrt() < 0.05


@pytest.mark.parametrize("evaluations", [1, 2, 5])
@pytest.mark.parametrize("op", OPERATORS, ids=name)
def test_the_mean_needs_few_evaluations_and_has_little_left_to_chance(
    op: LinearOperator, evaluations: int
) -> None:
    problem = Problem(op, 0.1)
    images = problem.images(evaluations, "auto", False, 64)
    assert problem.mean_error(images) < 0.01
    assert problem.variance_error(images) < -0.6
    if isinstance(op, OpenAperture):
        assert problem.variance_error(images) < -0.99


@pytest.mark.parametrize("op", OPERATORS[:4], ids=name)
def test_the_linear_step_is_the_posterior_mean(op: LinearOperator) -> None:
    for problem in (Problem(op, 1.0), Problem(op, 1.0, is_exact=True)):
        target = problem.minimum_norm
        step = DataStep(problem.wiener, target, problem.power, problem.noise_variance)
        got = step.linear(torch.zeros_like(target))
        assert (got[0] - problem.mean).norm() < 1e-3 * problem.mean.norm()


@pytest.mark.parametrize("op", OPERATORS[:4], ids=name)
def test_what_added_noise_hid_is_given_back(op: LinearOperator) -> None:
    """E[x0 | z, x_t] from E[x0 | what the prior saw], where z shows through more noise than it has."""
    problem = Problem(op, 1.0)
    n = op.shape[0] * op.shape[1]
    basis = torch.eye(n, dtype=torch.float64).view(n, *op.shape)
    P = op.P(basis).flatten(1)
    C = torch.fft.irfft2(torch.fft.rfft2(basis) * problem.prior.power, s=op.shape).flatten(1)
    assert problem.noise_variance is not None
    v, sigma = float(problem.noise_variance), 2.0
    generator = torch.Generator().manual_seed(1)
    white = torch.randn(1, *op.shape, generator=generator, dtype=torch.float64)
    seen, hidden = white - op.P(white), op.P(white)
    x_t = sigma * seen + problem.minimum_norm + (sigma**2 - v) ** 0.5 * hidden
    a, _ = VariancePreserving().scales(torch.tensor(sigma, dtype=torch.float64))
    told = problem.prior.x0(x_t * a, torch.tensor([sigma]))
    step = DataStep(problem.wiener, problem.minimum_norm, problem.power, problem.noise_variance)
    level = torch.tensor([sigma], dtype=torch.float64)
    got = told
    for _ in range(6):  # each goes on where the last one ended
        got = step.after(told.clone(), level, hidden)
    precision = torch.linalg.inv(C) + P / v + (torch.eye(n) - P) / sigma**2
    right = (problem.minimum_norm / v + sigma * seen / sigma**2).flatten()
    expected = torch.linalg.solve(precision, right).view(op.shape)
    assert (got[0] - expected).norm() < 1e-3 * expected.norm()


def test_levels_fall_to_the_noise_and_for_draws_beyond() -> None:
    op = PhasePlate(SHAPE)
    wiener = Wiener(op, WienerParameters.model_validate({}), None)
    power = spectrum(SHAPE)[None]
    own = torch.tensor([0.04, 0.5], dtype=torch.float64)
    for schedule in (VariancePreserving(), Flow()):
        mean, above = PosteriorSampler(wiener, 6, is_draw=False).levels(schedule, power, own)
        assert mean.shape == (2, 6)
        assert above == 5
        torch.testing.assert_close(mean[:, -1], own.sqrt())
        draw, above = PosteriorSampler(wiener, 20).levels(schedule, power, own)
        assert (draw[:, 1:] < draw[:, :-1]).all()
        torch.testing.assert_close(draw[:, above], own.sqrt())
        assert (draw[:, -1] < 0.5 * own.sqrt()).all()
        one, above = PosteriorSampler(wiener, 1).levels(schedule, power, own)
        assert above == 0
        torch.testing.assert_close(one[:, 0], own.sqrt())
        noise, _ = PosteriorSampler(wiener, 20, "noise").levels(schedule, power, own)
        assert (noise[:, 0] > 10 * power.amax().sqrt()).all()
        given, _ = PosteriorSampler(wiener, 20, 3.0).levels(schedule, power, own)
        torch.testing.assert_close(given[:, 0], torch.full((2,), 3.0, dtype=torch.float64))


def test_a_flow_draws_from_the_same_posterior() -> None:
    problem = Problem(OPERATORS[0], 1.0)
    problem.prior = GaussianPrior(problem.power[0], SHAPE, Flow())
    images = problem.images(20, "auto", True)
    assert problem.mean_error(images) < 0.02
    assert abs(problem.variance_error(images)) < 0.05
