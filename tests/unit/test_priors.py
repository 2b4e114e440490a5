"""What a prior says of x0 is the posterior mean, and what diffusers' own schedulers say with its network."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

import reconstructor.priors as priors
from reconstructor.priors import NetworkPrior, load_prior, prior_names
from reconstructor.priors.base import Flow, Prediction, PriorCard, Schedule, VariancePreserving
from reconstructor.priors.folder import ASSUMED_SIGNAL_STD, CARD, CONFIG, SCHEDULER, WEIGHTS, read_folder
from reconstructor.priors.gaussian import GaussianPrior

SIZES: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": (8, 16, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
}


def network(**other: Any) -> Any:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(**{**SIZES, **other})


def pipeline(folder: Path, unet: dict[str, Any] | None = None, **levels: Any) -> Path:
    """A folder as diffusers itself makes it."""
    from diffusers import DDPMPipeline, DDPMScheduler

    DDPMPipeline(network(**(unet or {})), DDPMScheduler(**levels)).save_pretrained(folder)
    return folder


def card(net: Any, prediction: Prediction = "epsilon", **other: Any) -> PriorCard:
    told: dict[str, Any] = {
        "name": "tiny", "content": "clean", "prediction": prediction, "side_pixels": 16,
        "pixel_size_angstrom": (3.0, 4.0), "signal_std": 0.2, "trained_on": "nothing: random weights",
        "images": 0, "steps": 0, "batch": 0, "parameters": sum(w.numel() for w in net.parameters()),
    }  # fmt: skip
    return PriorCard(**(told | other))


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as told:  # noqa: PT011 (what it says is what the tests look at)
        read()
    assert "\n" not in str(told.value)
    return str(told.value)


# noise levels


@pytest.mark.parametrize("schedule", [VariancePreserving(), Flow()], ids=lambda s: type(s).__name__)
def test_scales_are_of_the_noise_level_and_time_goes_there_and_back(schedule: Schedule) -> None:
    sigma = schedule.sigma
    assert bool((sigma.diff() > 0).all())
    a, s = schedule.scales(sigma)
    torch.testing.assert_close(s / a, sigma, rtol=1e-12, atol=0)
    assert bool((schedule.time(sigma).diff() > 0).all())
    for level in (sigma[3], sigma[3:4], sigma[:6].view(2, 3)):
        assert schedule.time(level).shape == level.shape
        assert schedule.scales(level)[0].shape == level.shape


def test_a_diffusion_models_time_is_its_step() -> None:
    schedule = VariancePreserving()
    a, s = schedule.scales(schedule.sigma)
    torch.testing.assert_close(a**2 + s**2, torch.ones_like(a), rtol=1e-14, atol=0)
    torch.testing.assert_close(a**2, torch.cumprod(1 - schedule.betas, 0), rtol=1e-12, atol=0)
    steps = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.sigma), steps, rtol=0, atol=1e-9)
    between = (schedule.sigma[41] * schedule.sigma[42]).sqrt()  # the middle of their logarithms
    torch.testing.assert_close(schedule.time(between), torch.tensor(41.5, dtype=torch.float64))
    beyond = torch.tensor([0.0, 1e-9, 1e9], dtype=torch.float64)
    assert schedule.time(beyond).tolist() == [0.0, 0.0, 999.0]
    assert schedule.time(schedule.sigma.float()).dtype == torch.float32


def test_a_flows_time_is_its_share_of_noise() -> None:
    schedule = Flow()
    a, s = schedule.scales(schedule.sigma)
    torch.testing.assert_close(a + s, torch.ones_like(a), rtol=1e-14, atol=0)
    torch.testing.assert_close(schedule.time(schedule.sigma), 1000 * s, rtol=1e-12, atol=0)
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(t / (1 - t)), 1000 * t, rtol=1e-12, atol=0)


# the Gaussian prior


def gaussian(shape: tuple[int, int], schedule: Schedule | None = None) -> GaussianPrior:
    ring = torch.arange(max(shape), dtype=torch.float64)
    return GaussianPrior(torch.where(ring > 0, 4 / (1 + ring**2), 0), shape, schedule)


def covariance(prior: GaussianPrior) -> Tensor:
    """Of the flattened images, (n, n)."""
    n = prior.shape[0] * prior.shape[1]
    basis = torch.eye(n, dtype=torch.float64).view(n, *prior.shape)
    return torch.fft.irfft2(torch.fft.rfft2(basis) * prior.power, s=prior.shape).view(n, n)


@pytest.mark.parametrize("schedule", [VariancePreserving(), Flow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("shape", [(8, 8), (7, 6), (6, 9)])
@pytest.mark.parametrize("level", [1e-3, 0.3, 20.0])
def test_gaussian_posterior_mean_is_that_of_the_dense_problem(
    shape: tuple[int, int], schedule: Schedule, level: float
) -> None:
    prior, sigma = gaussian(shape, schedule), torch.tensor([level], dtype=torch.float64)
    a, s = schedule.scales(sigma)
    C = covariance(prior)
    x_t = images(3, *shape, dtype=torch.float64)
    observed = a**2 * C + s**2 * torch.eye(len(C), dtype=torch.float64)
    expected = a * torch.linalg.solve(observed, x_t.view(3, -1).T).T @ C
    torch.testing.assert_close(prior.x0(x_t, sigma).view(3, -1), expected, rtol=0, atol=1e-8)
    # what is open after that: C - a^2 C (a^2 C + s^2)^-1 C, which is diagonal in Fourier space
    left = C - a**2 * C @ torch.linalg.solve(observed, C)
    basis = torch.eye(len(C), dtype=torch.float64).view(-1, *shape)
    filtered = torch.fft.irfft2(torch.fft.rfft2(basis) * prior.variance(sigma), s=shape)
    torch.testing.assert_close(filtered.view(len(C), -1), left, rtol=0, atol=1e-10)


@pytest.mark.parametrize("schedule", [VariancePreserving(), Flow()], ids=lambda s: type(s).__name__)
def test_posterior_mean_is_tweedies(schedule: Schedule) -> None:
    """a x0 = x_t + s^2 grad log p(x_t), the gradient taken of the density itself."""
    prior, sigma = gaussian((6, 6), schedule), torch.tensor(0.7, dtype=torch.float64)
    a, s = schedule.scales(sigma)
    C = covariance(prior)
    density = torch.distributions.MultivariateNormal(
        torch.zeros(36, dtype=torch.float64), a**2 * C + s**2 * torch.eye(36, dtype=torch.float64)
    )
    x_t = images(2, 6, 6, dtype=torch.float64).requires_grad_()
    (score,) = torch.autograd.grad(density.log_prob(x_t.view(2, 36)).sum(), x_t)
    tweedie = (x_t + s**2 * score) / a
    torch.testing.assert_close(prior.x0(x_t, sigma), tweedie, rtol=0, atol=1e-12)


def test_gaussian_draws_have_its_spectrum_and_its_mean_has_the_least_error() -> None:
    prior, sigma = gaussian((12, 10)), torch.tensor(0.5)
    number = 20_000
    x0 = prior.draw(images(number, 12, 10))
    a, s = prior.schedule.scales(sigma)
    mean = prior.x0(a * x0 + s * images(number, 12, 10, seed=1), sigma)
    error = mean - x0

    def power(x: Tensor) -> Tensor:
        return torch.fft.rfft2(x, norm="ortho").abs().square().mean(0).double()

    # a real coefficient's mean power is known to sqrt(2 / number) = 1 %
    told = prior.power > 0
    assert ((power(x0) / prior.power)[told] - 1).abs().max() < 0.045
    assert ((power(error) / prior.variance(sigma))[told] - 1).abs().max() < 0.045
    assert power(x0)[~told].max() < 1e-9
    # what is wrong with it cannot be told from x_t
    assert (error * mean).sum().abs() < 0.01 * error.norm() * mean.norm()


def test_gaussian_prior_keeps_types_and_the_ends_of_its_levels() -> None:
    prior = gaussian((8, 6))
    for dtype in (torch.float32, torch.float64):
        assert prior.x0(images(2, 8, 6, dtype=dtype), torch.tensor(0.1)).dtype == dtype
    x0 = prior.draw(images(2, 8, 6, dtype=torch.float64))
    torch.testing.assert_close(prior.x0(x0, torch.tensor(0.0)), x0, rtol=0, atol=1e-12)
    assert prior.variance(torch.tensor(0.0)).eq(0).all()
    torch.testing.assert_close(prior.variance(torch.tensor(1e9)), prior.power, rtol=1e-12, atol=0)


def test_gaussian_prior_refuses_what_does_not_fit() -> None:
    assert "7 rings" in refusal(lambda: GaussianPrior(torch.ones(5), (8, 8)))
    assert "at least zero" in refusal(lambda: GaussianPrior(-torch.ones(9), (8, 8)))
    assert "finite" in refusal(lambda: GaussianPrior(torch.full((9,), torch.nan), (8, 8)))
    assert "(B, 8, 6)" in refusal(lambda: gaussian((8, 6)).x0(images(2, 6, 8), torch.tensor(1.0)))
    assert "(B, 8, 6)" in refusal(lambda: gaussian((8, 6)).draw(images(2, 6, 8)))


# networks


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    "levels",
    [
        {},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 400},
        {"trained_betas": [0.01, 0.02, 0.05, 0.1, 0.2], "num_train_timesteps": 5},
    ],
    ids=["linear", "scaled", "cosine", "trained"],
)
def test_a_folder_of_diffusers_gives_what_diffusers_gives(
    tmp_path: Path, prediction: str, levels: dict[str, Any]
) -> None:
    from diffusers import DDPMPipeline

    pipeline(tmp_path, prediction_type=prediction, clip_sample=False, **levels)
    theirs = DDPMPipeline.from_pretrained(tmp_path)
    prior = NetworkPrior.load(tmp_path)
    scheduler, sigma = theirs.scheduler, prior.schedule.sigma
    last = len(sigma) - 1
    assert len(scheduler.betas) == last + 1
    for step in (0, 1, last // 2, last):
        x_t = images(2, 16, 16, seed=step)
        with torch.no_grad():
            output = theirs.unet(x_t[:, None], step).sample
        want = scheduler.step(output, step, x_t[:, None]).pred_original_sample[:, 0]
        # theirs has a^2 in single precision, and divides by a
        torch.testing.assert_close(prior.x0(x_t, sigma[step]), want, rtol=1e-3, atol=1e-3 * float(want.std()))
        assert prior.x0(x_t, sigma[step]).dtype == torch.float32


def test_a_flow_is_the_flow_of_diffusers(tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel

    net = network()
    NetworkPrior(net, card(net, "flow")).save(tmp_path)
    prior = load_prior(tmp_path)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    unet = UNet2DModel.from_pretrained(tmp_path)
    x_t = images(2, 16, 16)
    for t in (0.2, 0.5, 0.9):
        scheduler.set_timesteps(sigmas=[t])  # one step, from there to the image
        with torch.no_grad():
            velocity = unet(x_t[:, None], scheduler.timesteps[0]).sample
        want = scheduler.step(velocity, scheduler.timesteps[0], x_t[:, None]).prev_sample[:, 0]
        sigma = torch.tensor([t / (1 - t)])
        torch.testing.assert_close(prior.x0(x_t, sigma), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_a_network_that_knows_gives_the_image_back(prediction: Prediction) -> None:
    """With the true noise or velocity as the network's output, x0 is exact at every level."""
    x0, noise = images(1, 16, 16), images(1, 16, 16, seed=1)
    net = network()
    prior = NetworkPrior(net, card(net, prediction))
    for sigma in (torch.tensor(0.05), torch.tensor([1.0]), torch.tensor(30.0)):
        a, s = prior.schedule.scales(sigma)
        target = {"epsilon": noise, "v_prediction": a * noise - s * x0, "flow": noise - x0}[prediction]

        def knows(images: Tensor, time: Tensor, return_dict: bool, target: Tensor = target) -> tuple[Tensor]:
            return (target[:, None],)

        net.forward = knows
        got = prior.x0(a * x0 + s * noise, sigma)
        torch.testing.assert_close(got, x0, rtol=0, atol=2e-6 * float(1 + 1 / a))


def test_a_frames_result_does_not_depend_on_its_batch() -> None:
    net = network()
    prior = NetworkPrior(net, card(net))
    x_t, sigma = images(5, 16, 16), prior.schedule.sigma[400]
    together = prior.x0(x_t, sigma)
    alone = torch.cat([prior.x0(x_t[k : k + 1], sigma) for k in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(together, prior.x0(x_t, sigma))


@pytest.mark.parametrize("shape", [(17, 13), (3, 20), (18, 16)])
def test_sides_that_do_not_halve_are_reflected_and_cropped(shape: tuple[int, int]) -> None:
    net = network()
    prior = NetworkPrior(net, card(net))
    x_t, sigma = images(2, *shape), prior.schedule.sigma[300]
    got = prior.x0(x_t, sigma)
    assert got.shape == x_t.shape
    # the same by hand: numpy's reflection does not repeat the edge either
    (top, bottom), (left, right) = [(-side % 4 // 2, -side % 4 - -side % 4 // 2) for side in shape]
    padded = torch.nn.functional.pad(x_t[:, None], (left, right, top, bottom), mode="reflect")
    with torch.no_grad():
        output = net(padded, prior.schedule.time(sigma).float())[0][:, 0]
    a, s = prior.schedule.scales(sigma)
    whole = output[:, top : top + shape[0], left : left + shape[1]]
    torch.testing.assert_close(got, (x_t - s * whole) / a, rtol=1e-5, atol=1e-5)


def test_images_that_cannot_be_continued_are_refused() -> None:
    net = network()
    prior = NetworkPrior(net, card(net))
    sigma = torch.tensor(1.0)
    for prior.multiple in (4, 8, 16, 32):
        said = refusal(lambda: prior.x0(images(1, 1, 16), sigma))
        assert f"multiples of {prior.multiple}" in said
        least = int(said.split(" pixels on")[0].split()[-1])
        assert prior.x0(images(1, least, 16), sigma).shape == (1, least, 16)
        refusal(lambda side=least - 1: prior.x0(images(1, side, 16), sigma))
    assert "(B, H, W)" in refusal(lambda: prior.x0(images(1, 1, 16, 16), sigma))


def test_what_a_prior_gives_is_an_ordinary_tensor() -> None:
    net = network()
    prior = NetworkPrior(net, card(net))
    got = prior.x0(images(1, 16, 16, dtype=torch.float64), torch.tensor(1.0))
    assert got.dtype == torch.float64
    assert not got.is_inference()
    assert not got.requires_grad
    got.clamp_(-1, 1)


# folders


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_a_saved_prior_is_the_same_again(tmp_path: Path, prediction: Prediction) -> None:
    net = network()
    told = card(net, prediction, scores={"psnr": 20.5}, loss=0.1)
    schedule = None if prediction == "flow" else VariancePreserving(torch.linspace(1e-3, 0.1, 50))
    prior = NetworkPrior(net, told, schedule)
    for _ in range(2):  # over what is already there, too
        prior.save(tmp_path)
    again = NetworkPrior.load(tmp_path)
    assert again.card == told
    assert type(again.schedule) is type(prior.schedule)
    torch.testing.assert_close(again.schedule.sigma, prior.schedule.sigma, rtol=0, atol=0)
    x_t, sigma = images(2, 16, 16), torch.tensor(0.7)
    assert torch.equal(again.x0(x_t, sigma), prior.x0(x_t, sigma))
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {
        CARD, CONFIG, SCHEDULER, WEIGHTS,
    }  # fmt: skip


def test_weights_stored_in_half_run_in_single_precision(tmp_path: Path) -> None:
    net = network()
    prior = NetworkPrior(net, card(net))
    prior.save(tmp_path / "half", torch.float16)
    prior.save(tmp_path / "single")
    assert {w.dtype for w in load_file(tmp_path / "half" / WEIGHTS).values()} == {torch.float16}
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("half", "single")]
    assert sizes[0] < 0.6 * sizes[1]
    half = NetworkPrior.load(tmp_path / "half")
    assert {w.dtype for w in half.network.parameters()} == {torch.float32}
    x_t, sigma = images(2, 16, 16), torch.tensor(0.7)
    torch.testing.assert_close(half.x0(x_t, sigma), prior.x0(x_t, sigma), rtol=0.02, atol=0.02)


def test_a_folder_without_a_card_says_that_nothing_is_known(tmp_path: Path) -> None:
    made_up = load_prior(pipeline(tmp_path / "theirs", prediction_type="v_prediction")).card
    assert (made_up.name, made_up.content, made_up.prediction) == ("theirs", "frames", "v_prediction")
    assert made_up.signal_std == ASSUMED_SIGNAL_STD
    assert made_up.pixel_size_angstrom is None
    assert made_up.side_pixels == 16
    assert made_up.parameters == sum(w.numel() for w in network().parameters())
    assert "nothing is known" in made_up.trained_on
    assert f"{ASSUMED_SIGNAL_STD}" in made_up.trained_on


def test_a_card_put_beside_a_pipeline_is_believed(tmp_path: Path) -> None:
    told = card(network(), signal_std=0.31)
    (pipeline(tmp_path) / CARD).write_text(told.model_dump_json())
    assert load_prior(tmp_path).card == told
    (tmp_path / CARD).write_text(card(network(), "flow").model_dump_json())
    assert "says that flow is predicted" in refusal(lambda: load_prior(tmp_path))
    (tmp_path / CARD).write_text(card(network(), parameters=5).model_dump_json())
    assert "5 parameters" in refusal(lambda: load_prior(tmp_path))


def test_a_card_must_go_with_network_and_levels() -> None:
    net = network()
    assert "does not go with" in refusal(lambda: NetworkPrior(net, card(net), Flow()))
    assert "does not go with" in refusal(lambda: NetworkPrior(net, card(net, "flow"), VariancePreserving()))
    assert "has" in refusal(lambda: NetworkPrior(net, card(net, parameters=7)))
    for wrong in ({"signal_std": torch.inf}, {"signal_std": 0}, {"prediction": "sample"}, {"colour": 1}):
        with pytest.raises(ValidationError):
            PriorCard(**{**card(net).model_dump(), **wrong})


def test_plain_model_without_levels_has_the_usual_ones(tmp_path: Path) -> None:
    net = network()
    net.save_pretrained(tmp_path)
    assert "neither card.json nor" in refusal(lambda: read_folder(tmp_path))
    (tmp_path / CARD).write_text(card(net).model_dump_json())
    assert torch.equal(load_prior(tmp_path).schedule.sigma, VariancePreserving().sigma)
    (tmp_path / CARD).write_text(card(net, "flow").model_dump_json())
    assert isinstance(load_prior(tmp_path).schedule, Flow)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def grow_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[:8] = (2**40).to_bytes(8, "little")
    path.write_bytes(content)


C, W, S = f"unet/{CONFIG}", f"unet/{WEIGHTS}", SCHEDULER


@pytest.mark.parametrize(
    ("file", "spoil", "told"),
    [
        (C, Path.unlink, "config.json: missing"),
        (C, lambda p: cut(p, 0.5), "not JSON"),
        (C, lambda p: p.write_bytes(b"\xff\xfe\x00"), "not JSON"),
        (C, lambda p: p.write_text("[" * 100_000), "not JSON"),
        (C, lambda p: p.write_text("[1]"), "a JSON object"),
        (C, lambda p: p.write_text(" " * 1_000_001), "1000000 bytes"),
        (C, lambda p: edit(p, in_channels=3), "in_channels: Input should be 1, got '3'"),
        (C, lambda p: edit(p, out_channels=2), "out_channels: Input should be 1, got '2'"),
        (C, lambda p: edit(p, _class_name="UNet2DConditionModel"), "should be 'UNet2DModel'"),
        (C, lambda p: edit(p, sample_size=None), "sample_size"),
        (C, lambda p: edit(p, num_class_embeds=10), "num_class_embeds"),
        (C, lambda p: edit(p, time_embedding_type="fourier"), "time_embedding_type"),
        (C, lambda p: edit(p, layers_per_block=10**9), "layers_per_block"),
        (C, lambda p: edit(p, layers_per_block=2), "does not fit config.json: "),
        (C, lambda p: edit(p, block_out_channels=[16, 16, 16]), "does not fit config.json: "),
        (C, lambda p: edit(p, block_out_channels=[16_384] * 3), "does not fit config.json: "),
        (C, lambda p: edit(p, block_out_channels=[8, 16]), "no UNet2DModel can be made of it"),
        (C, lambda p: edit(p, norm_num_groups=5), "no UNet2DModel can be made of it"),
        (C, lambda p: edit(p, act_fn="no such"), "no UNet2DModel can be made of it"),
        (W, Path.unlink, "safetensors: missing"),
        (W, lambda p: p.rename(p.with_name("diffusion_pytorch_model.bin")), "pickled weights are not read"),
        (W, lambda p: p.rename(p.with_name(f"{p.name}.index.json")), "several files"),
        (W, lambda p: cut(p, 0.9), "not a whole safetensors file"),
        (W, lambda p: cut(p, 0.001), "not a whole safetensors file"),
        (W, lambda p: cut(p, 0), "not a whole safetensors file"),
        (W, grow_header, "not a whole safetensors file"),
        (W, lambda p: p.write_bytes(p.read_bytes() + bytes(64)), "not a whole safetensors file"),
        (W, lambda p: rewrite(p, lambda w: w["conv_in.weight"].fill_(torch.nan)), "not finite"),
        (W, lambda p: rewrite(p, lambda w: w.pop("conv_in.bias")), "conv_in.bias is missing"),
        (W, lambda p: rewrite(p, lambda w: w.update(extra=torch.ones(3))), "extra is (3,)"),
        (W, lambda p: rewrite(p, lambda w: w.update(extra=torch.ones(3).bool())), "not of floating point"),
        (S, Path.unlink, "what it predicts is not known"),
        (S, lambda p: p.write_text("{"), "not JSON"),
        (S, lambda p: edit(p, prediction_type="sample"), "should be 'epsilon' or 'v_prediction'"),
        (S, lambda p: edit(p, beta_schedule="sigmoid"), "beta_schedule: Input should be 'linear'"),
        (S, lambda p: edit(p, _class_name="KarrasVeScheduler"), "_class_name: Input should be 'DDPM"),
        (S, lambda p: edit(p, rescale_betas_zero_snr=True), "rescale_betas_zero_snr"),
        (S, lambda p: edit(p, num_train_timesteps=10**9), "num_train_timesteps"),
        (S, lambda p: edit(p, trained_betas=[0.9] * 1000), "smaller betas"),
        (S, lambda p: edit(p, trained_betas=[0.1, 2.0]), "trained_betas.1"),
        ("model_index.json", lambda p: edit(p, vqvae=["diffusers", "VQModel"]), "needs vqvae"),
        ("model_index.json", lambda p: p.write_text("no"), "not JSON"),
    ],
)  # fmt: skip
def test_broken_folders_are_refused_in_one_line(
    tmp_path: Path, made: Path, file: str, spoil: Callable[[Path], object], told: str
) -> None:
    folder = shutil.copytree(made, tmp_path / "prior")
    spoil(folder / file)
    said = refusal(lambda: NetworkPrior.load(folder))
    assert told in said
    assert str(folder) in said
    assert len(said) < 600


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"signal_std": 0}, "signal_std: Input should be greater than 0, got '0'"),
        ({"content": "dirty"}, "content: Input should be 'clean' or 'frames'"),
        ({"colour": "red"}, "colour: Extra inputs"),
    ],
)
def test_broken_cards_are_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    net = network()
    NetworkPrior(net, card(net)).save(tmp_path)
    edit(tmp_path / CARD, **changes)
    said = refusal(lambda: NetworkPrior.load(tmp_path))
    assert str(tmp_path / CARD) in said
    assert told in said


# by name


def test_an_unknown_name_is_told_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(priors, "BOX", tmp_path / "box")
    assert prior_names() == []
    assert "'nothing': not known; there is none in the box" in refusal(lambda: load_prior("nothing"))
    for name in ("large", "small"):
        net = network()
        NetworkPrior(net, card(net, name=name)).save(tmp_path / "box" / name)
    assert prior_names() == ["large", "small"]
    assert "there is large, small, or a folder" in refusal(lambda: load_prior("nothing"))
    assert load_prior("small").card.name == "small"
    # a folder of the same name is meant only where it is said to be one
    net = network()
    NetworkPrior(net, card(net, name="mine")).save("small")
    assert load_prior("small").card.name == "small"
    assert load_prior("./small").card.name == "mine"
    assert load_prior(Path("small").resolve()).card.name == "mine"
    assert "not known" in refusal(lambda: load_prior(f"small/{CARD}"))


def test_priors_are_kept_until_their_files_change(tmp_path: Path) -> None:
    net = network()
    prior = NetworkPrior(net, card(net))
    prior.save(tmp_path)
    first = load_prior(tmp_path)
    assert load_prior(str(tmp_path), torch.device("cpu")) is first
    edit(tmp_path / CARD, signal_std=0.125)
    os.utime(tmp_path / CARD, ns=(1, 1))
    assert load_prior(tmp_path).card.signal_std == 0.125
    assert priors._loaded.cache_info().maxsize == priors.KEPT


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_within_bfloat16() -> None:
    net, other = network(), network()
    here, there = NetworkPrior(net, card(net)), NetworkPrior(other, card(other), device="cuda")
    x_t, sigma = images(3, 18, 16), here.schedule.sigma[300]
    want = here.x0(x_t, sigma)
    for _ in range(2):
        got = there.x0(x_t.cuda(), sigma)
        assert got.is_cuda
        assert (got.cpu() - want).norm() < 0.02 * want.norm()
        there.compile()
