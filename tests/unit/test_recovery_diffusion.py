"""Recovery with a learned prior: units, seeds, samples, and both samplers' promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.calibration import Calibration
from common.operators import CodedAperture, LinearOperator, OpenAperture, PhasePlate
from common.session import RecoverySpec
from reconstructor.recovery import Recovered, Recovery, check_recovery, diffusion
from reconstructor.recovery.diffusion import Diffusion, DiffusionParameters, spread_of
from reconstructor.recovery.nesterov import NesterovSampler
from reconstructor.recovery.noise import FrameNoise
from tests.unit.known_prior import SIGNAL_STD, KnownPrior, spectrum
from tests.unit.test_recovery_posterior import Problem

SHAPE = (32, 32)
UNIT, LEVEL = 20.0, 300.0  # of the session's pixels: standard deviation of the signal, mean
OPERATORS: list[LinearOperator] = [
    CodedAperture(SHAPE, 4, 8),
    CodedAperture((30, 35), 8, 20),
    PhasePlate(SHAPE),
    OpenAperture(SHAPE),
]
SAMPLERS: list[dict[str, Any]] = [{"sampler": "posterior"}, {"sampler": "nesterov", "evaluations": 10}]


def name(op: LinearOperator) -> str:
    return f"{type(op).__name__}-{op.shape[0]}x{op.shape[1]}"


def frames(op: LinearOperator, count: int = 16, snr: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Frames of images that the known prior knows, in a session's units, and the same without noise."""
    generator = torch.Generator().manual_seed(seed)
    shape = op.shape
    index = diffusion.Wiener(op, diffusion.WienerParameters.model_validate({}), None).estimate.rings.index
    root = spectrum(shape)[index].sqrt().float()
    white = torch.randn(count, *shape, generator=generator)
    clean = torch.fft.irfft2(torch.fft.rfft2(white) * root, s=shape)
    clean = (clean - clean.mean((1, 2), keepdim=True)) * UNIT / SIGNAL_STD
    noise = UNIT / snr**0.5 * torch.randn(count, *shape, generator=generator)
    return LEVEL + clean + noise, LEVEL + clean


def stands_for_any(prior: KnownPrior, monkeypatch: pytest.MonkeyPatch) -> KnownPrior:
    def load(name: str, device: torch.device) -> KnownPrior:
        return prior

    monkeypatch.setattr(diffusion, "load_prior", load)
    return prior


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> KnownPrior:
    """Stands for whatever prior is asked for."""
    return stands_for_any(KnownPrior(), monkeypatch)


def recovered(
    op: LinearOperator,
    y: Tensor,
    frame_ids: list[int] | None = None,
    calibration: Calibration | None = None,
    **parameters: Any,
) -> Recovered:
    spec = RecoverySpec(method="diffusion", parameters=parameters, free_share=0)
    return Recovery(op, spec, calibration)(y, frame_ids)


def error(images: Tensor, truth: Tensor) -> float:
    return float((images - truth).std() / UNIT)


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("op", OPERATORS, ids=name)
def test_images_come_back_in_the_sessions_units(op: LinearOperator, calibrated: bool) -> None:
    noisy, clean = frames(op, 24)
    calibration = Calibration.from_frames(noisy) if calibrated else None
    y = op.A(noisy)
    got = recovered(op, y, calibration=calibration)
    linear = Recovery(op, RecoverySpec(method="wiener", parameters={"data_weight": 0.0}), calibration)(y)
    # the prior is Gaussian: nothing is to be had beyond the linear estimate, but for its better spectrum
    assert error(got.images, clean) < 1.05 * error(linear.images, clean)
    assert got.prior_shift.shape == (24,)
    assert (got.prior_shift < 0.6).all()
    assert got.spread is None


@pytest.mark.parametrize("parameters", [*SAMPLERS, {"samples": 4, "evaluations": 4}], ids=str)
@pytest.mark.parametrize("op", OPERATORS, ids=name)
def test_a_frame_does_not_depend_on_its_batch(op: LinearOperator, parameters: dict[str, Any]) -> None:
    noisy, _ = frames(op)
    y = op.A(noisy)
    ids = [1000 + 7 * i for i in range(16)]
    together = recovered(op, y, ids, **parameters)
    alone = recovered(op, y[3:4], ids[3:4], **parameters)
    # a gradient over its norm makes much of rounding where little is left of it
    rounding = 1e-4 if parameters.get("sampler") == "nesterov" else 1e-5
    assert (together.images[3] - alone.images[0]).abs().max() < rounding * together.images[3].abs().max()
    assert together.prior_shift[3] == pytest.approx(alone.prior_shift[0].item(), rel=1e-3)
    if together.spread is not None and alone.spread is not None:
        assert (together.spread[3] - alone.spread[0]).abs().max() < 1e-3 * together.spread[3].max()
    turned = recovered(op, y.flip(0), ids[::-1], **parameters)
    assert (turned.images.flip(0) - together.images).abs().max() < rounding * together.images.abs().max()


def test_chunks_carry_their_frames_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    op = OPERATORS[0]
    y = op.A(frames(op)[0])
    whole = recovered(op, y, list(range(50, 66)), samples=2, evaluations=4)
    monkeypatch.setattr(Diffusion, "chunk_pixels", 5 * 32 * 32)
    cut = recovered(op, y, list(range(50, 66)), samples=2, evaluations=4)
    assert (cut.images - whole.images).abs().max() < 1e-5 * whole.images.abs().max()
    assert cut.spread is not None
    assert whole.spread is not None
    torch.testing.assert_close(cut.spread, whole.spread, rtol=1e-3, atol=1e-3)


def test_noise_follows_seed_and_frame() -> None:
    op = OPERATORS[0]
    y = op.A(frames(op, 2)[0])[:1].expand(2, -1, -1, -1).contiguous()
    first = recovered(op, y, [5, 6], samples=2).images
    assert (first[0] - first[1]).abs().max() < 1e-3 * UNIT  # pairs leave nothing of it, if all is Gaussian
    draws = recovered(op, y, [5, 6], sampler="nesterov", evaluations=10).images
    assert (draws[0] - draws[1]).abs().max() > 0.01 * UNIT
    again = recovered(op, y, [5, 6], sampler="nesterov", evaluations=10).images
    assert torch.equal(draws, again)
    other = recovered(op, y, [5, 6], sampler="nesterov", evaluations=10, seed=1).images
    assert (draws - other).abs().max() > 0.01 * UNIT
    unnamed = recovered(op, y, sampler="nesterov", evaluations=10).images
    torch.testing.assert_close(
        unnamed, recovered(op, y, [0, 1], sampler="nesterov", evaluations=10).images, rtol=0, atol=0
    )
    with pytest.raises(ValueError, match="frame_ids: 3 numbers for 2 measurements"):
        recovered(op, y, [1, 2, 3])


def test_noise_is_white_and_its_streams_are_apart() -> None:
    like = torch.empty(4, 64, 65)
    noise = FrameNoise(3, [0, 0, 0, 2**53 - 1], [0, 1, 2, 0])
    first, second = noise.draw(like), noise.draw(like)
    assert torch.equal(first[0], -first[1])
    everything = torch.cat([first[[0, 2, 3]], second[[0, 2, 3]]]).flatten(1)
    correlation = everything @ everything.T / everything.shape[1]
    assert (correlation - torch.eye(6)).abs().max() < 0.06
    assert everything.pow(4).mean() == pytest.approx(3, abs=0.15)
    assert everything.abs().max() < 7
    alone = FrameNoise(3, [0], [2]).draw(like[:1])
    assert torch.equal(alone[0], first[2])
    in_double = FrameNoise(3, [0], [2]).draw(like[:1].double())
    assert (in_double[0] - first[2]).abs().max() < 1e-5


@pytest.mark.parametrize("op", OPERATORS, ids=name)
def test_samples_give_mean_and_spread(op: LinearOperator) -> None:
    noisy, clean = frames(op, 4)
    calibration = Calibration.from_frames(frames(op, 64, seed=1)[0])
    y = op.A(noisy)
    got = recovered(op, y, calibration=calibration, samples=32)
    assert got.spread is not None
    assert got.spread.shape == got.images.shape
    # posterior spread is what the mean is wrong by
    assert float(got.spread.square().mean().sqrt()) / UNIT == pytest.approx(error(got.images, clean), rel=0.2)
    mean = recovered(op, y, calibration=calibration)
    assert (got.images - mean.images).std() < 0.05 * UNIT


def test_spread_is_unbiased_with_pairs_and_without_linearity() -> None:
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(200_000, 4, 1, 1, generator=generator)
    pairs = torch.stack([white[:, :2], -white[:, :2]], 2).flatten(1, 2)
    bent = pairs + 0.5 * (pairs.square() - 1)  # variance 1 + 0.25 * 2
    assert spread_of(bent).square().mean() == pytest.approx(1.5, rel=0.02)
    assert spread_of(bent[:, :2]).square().mean() == pytest.approx(1.0, rel=0.02)
    assert torch.equal(spread_of(bent[:, :3]), spread_of(bent[:, :2]))


def test_a_prior_of_frames_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    stands_for_any(KnownPrior("frames"), monkeypatch)
    for op in OPERATORS[:3]:
        y = op.A(frames(op)[0])
        again = op.A(recovered(op, y).images)
        # as exact as the mean level is
        assert (again - y).abs().max() < 1e-4 * y.abs().max()


@pytest.mark.parametrize("op", OPERATORS, ids=name)
def test_blank_and_hopeless_frames_are_no_trouble(op: LinearOperator) -> None:
    for parameters in SAMPLERS:
        blank = recovered(op, op.A(torch.full((2, *op.shape), 7.0)), **parameters)
        assert (blank.images - 7).abs().max() < 1e-3
        noise = torch.randn(2, *op.shape, generator=torch.Generator().manual_seed(0))
        hopeless = recovered(op, op.A(noise), **parameters)
        assert torch.isfinite(hopeless.images).all()


def test_evaluations_are_as_many_as_asked_for(known: KnownPrior) -> None:
    op = OPERATORS[0]
    y = op.A(frames(op, 1)[0])
    asked: dict[str, tuple[dict[str, Any], int]] = {
        "mean": ({}, 20),
        "one": ({"evaluations": 1}, 1),
        "two": ({"evaluations": 2}, 2),
        "many": ({"evaluations": 50}, 50),
        "draws": ({"samples": 3, "evaluations": 7}, 21),
        "nesterov": ({"sampler": "nesterov", "evaluations": 12}, 12),
    }
    for parameters, count in asked.values():
        known.asked.clear()
        recovered(op, y, **parameters)
        assert sum(images for images, _ in known.asked) == count


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"batch_norm": True}, "batch_norm: a parameter of sampler nesterov; posterior has none such"),
        ({"zeta_max": 3.0}, "zeta_max: a parameter of sampler nesterov; posterior has none such"),
        ({"sampler": "nesterov", "start": "noise"}, "start: a parameter of sampler posterior; nesterov has"),
        ({"sampler": "ddim"}, "sampler: .*'posterior' or 'nesterov', got 'ddim'"),
        ({"start": -1.0}, "start: must be above 0, got -1.0"),
        ({"evaluations": 0}, "evaluations: .*greater than or equal to 1, got 0"),
        ({"steps": 3}, "unknown parameter 'steps'; its parameters are: prior, sampler"),
    ],
)
def test_what_a_sampler_has_not_is_refused_in_one_line(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"recovery diffusion: {message}") as refused:
        check_recovery(RecoverySpec(method="diffusion", parameters=parameters))
    assert "\n" not in str(refused.value)


def test_defaults_are_those_of_the_sampler() -> None:
    assert DiffusionParameters.model_validate({}).evaluations == 20
    assert DiffusionParameters.model_validate({"sampler": "nesterov"}).evaluations == 1000
    assert DiffusionParameters.model_validate({"sampler": "nesterov", "evaluations": 5}).evaluations == 5


def test_a_prior_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    op = OPERATORS[0]
    y = op.A(frames(op, 1)[0])
    with pytest.raises(ValueError, match="nothing"):
        recovered(op, y, prior=str(tmp_path / "nothing"))


# ---- Algorithm 1


@pytest.mark.parametrize("op", OPERATORS[:3:2], ids=name)
def test_nesterov_is_the_same_in_a_batch_but_not_with_the_authors_norm(op: LinearOperator) -> None:
    y = op.A(frames(op)[0])
    many = recovered(op, y, sampler="nesterov", evaluations=50)
    alone = torch.cat(
        [recovered(op, y[i : i + 1], [i], sampler="nesterov", evaluations=50).images for i in range(16)]
    )
    assert (many.images - alone).abs().max() < 2e-3 * UNIT  # rounding, of which the norms make much
    whole = recovered(op, y, sampler="nesterov", evaluations=50, batch_norm=True)
    one = recovered(op, y[:1], sampler="nesterov", evaluations=50, batch_norm=True)
    assert (whole.images[0] - one.images[0]).std() > 0.05 * UNIT
    # of one image both norms are the same
    torch.testing.assert_close(one.images[0], alone[0], rtol=0, atol=2e-3 * UNIT)


def test_a_step_of_nesterov_is_that_of_the_paper() -> None:
    """Two steps by hand, from the formulas of Algorithm 1 as corrected."""
    op = CodedAperture((16, 16), 4, 8)
    prior, generator = KnownPrior(), torch.Generator().manual_seed(0)
    target = op.P(0.3 * torch.randn(2, 16, 16, generator=generator))
    sampler = NesterovSampler(op, 2, (0.1, 0.9), (0.5, 1.0), False)
    got = sampler(prior, target, FrameNoise(0, [0, 1], [0, 0]))
    noise = FrameNoise(0, [0, 1], [0, 0])
    y, x, m = op.A(target), noise.draw(target), torch.zeros_like(target)
    shares = 1 / (1 + prior.schedule.sigma[[999, 0]].square())
    for i, (kappa, zeta) in enumerate(((0.1, 0.5), (0.9, 1.0))):
        now, before = float(shares[i]), float(shares[i + 1]) if i == 0 else 1.0
        alpha = now / before
        x0 = prior.x0(x, prior.schedule.sigma[[999, 0]][i]).clamp(-1, 1)
        mean = alpha**0.5 * (1 - before) / (1 - now) * x + before**0.5 * (1 - alpha) / (1 - now) * x0
        z = noise.draw(target) if i == 0 else torch.zeros_like(target)
        p = (x0 - kappa * m).clamp(-1, 1).requires_grad_()
        (gradient,) = torch.autograd.grad((y - op.A(p)).square().sum(), p)
        gradient = gradient / gradient.flatten(1).norm(dim=1)[:, None, None]
        m = kappa * m + zeta * 500 * gradient  # 1000 steps' worth in two
        x = (mean + ((1 - before) / (1 - now) * (1 - alpha)) ** 0.5 * z - m).clamp(-1, 1)
    torch.testing.assert_close(got, x.detach(), rtol=0, atol=1e-5)


def test_more_steps_than_noise_levels_are_refused() -> None:
    prior = KnownPrior()
    prior.schedule.sigma = prior.schedule.sigma[:100]
    sampler = NesterovSampler(OPERATORS[0], 101, (0.1, 0.9), (0.0, 1.0), False)
    with pytest.raises(ValueError, match=r"the prior has 100 noise levels.*got 101"):
        sampler(prior, torch.zeros(1, *SHAPE), FrameNoise(0, [0], [0]))


@pytest.mark.parametrize("op", [CodedAperture((16, 16), 4, 8), PhasePlate((16, 16))], ids=name)
def test_what_nesterov_reaches_for_a_gaussian_prior(op: LinearOperator) -> None:
    """Not the posterior, and this is why.

    It takes y for free of noise and comes to fit it, noise and all, so its mean is far off where there is
    noise, and its draws differ much less than the posterior's; and it clamps x_t to [-1, 1], which noise of
    variance one overruns: without any measurement, it draws with hardly more than half the prior's variance.
    """
    problem, count = Problem(op, 1.0), 24
    target = problem.minimum_norm.float().expand(count, -1, -1).contiguous()
    noise_std = SIGNAL_STD
    constants: dict[str, Any] = {"evaluations": 1000, "kappa": (0.1, 0.9), "batch_norm": False}
    images = NesterovSampler(op, zeta=(1e-10, 1.0), **constants)(
        problem.prior, target, FrameNoise(0, [0] * count, range(count))
    ).double()
    misfit = (op.P(images.float()) - target).square().mean().sqrt()
    assert misfit < 0.15 * noise_std
    assert 0.7 < problem.mean_error(images) < 1.6
    assert -0.95 < problem.variance_error(images) < -0.8
    if not isinstance(op, CodedAperture):
        return  # without the gradient no mask has a part in it
    free = NesterovSampler(op, zeta=(0.0, 0.0), **constants)(
        problem.prior, target, FrameNoise(0, [0] * count, range(count))
    )
    assert free.var(0).mean() == pytest.approx(0.56 * SIGNAL_STD**2, rel=0.1)
