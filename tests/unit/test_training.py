"""Training of a prior: interrupted or not it is the same, and its images are what was asked for."""

from __future__ import annotations

import csv
import math
import os
import signal
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from common.session import FileSource, SpecimenSpec
from detector_sim.sources import SourceError
from detector_sim.specimen import Specimen
from reconstructor.priors import load_prior
from reconstructor.priors import training as loop
from reconstructor.priors.base import Flow, PriorCard, Schedule, VariancePreserving
from reconstructor.priors.gaussian import GaussianPrior
from reconstructor.priors.presets import PRESETS, Preset
from reconstructor.priors.training import (
    ImageOrder,
    Recipe,
    TrainingError,
    drawn_levels,
    heeding_signals,
    noised,
    rate_share,
    sample,
    score,
    start_accelerator,
    train,
    turned,
)
from services import training
from services.failure import CannotRun, WrongOption
from services.options import TrainingOptions
from services.training import Part, Request, asked, fourier_cropped, made

SIDE, STEPS = 16, 6
TINY = Preset(
    side_pixels=SIDE,
    channels=(8, 16),
    attention_down=None,
    attention_up=None,
    layers_per_block=1,
    norm_groups=4,
    batch=4,
    accumulation=2,
    learning_rate=1e-2,
    epochs=1,
    turned=True,
    near_signal=0.5,
)
RECIPE = Recipe(
    preset="tiny", prediction="epsilon", images="some", batch=4, accumulation=2, devices=1,
    learning_rate=1e-2, steps=STEPS, seed=3, precision="fp32",
)  # fmt: skip
CARD = PriorCard(
    name="mine", content="clean", prediction="epsilon", side_pixels=SIDE, pixel_size_angstrom=(2.0, 2.0),
    signal_std=0.3, trained_on="noise", images=60, steps=0, batch=1, parameters=0,
)  # fmt: skip
IMAGES = (0.3 * np.random.default_rng(0).standard_normal((60, SIDE, SIDE))).astype(np.float16)
KEPT = ("loss.csv", "diffusion_pytorch_model.safetensors", "card.json", "samples.png", "loss.png")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    monkeypatch.setattr(loop, "SHOWN", 1)
    monkeypatch.setattr(loop, "SAMPLE_STEPS", 5)


def trained(folder: Path, steps: int = STEPS, stop_at: int | None = None, **other: Any) -> PriorCard:
    """Train, or go on; asked to stop after a step, it does."""
    done: list[int] = []
    return train(
        IMAGES,
        RECIPE.model_copy(update={"steps": steps, **other}),
        CARD,
        folder,
        start_accelerator(),
        progress=lambda step, loss: done.append(step),
        stop=lambda: stop_at is not None and done[-1:] == [stop_at],
    )


# ---- the presets


@pytest.mark.parametrize("name", ["paper-128", "paper-256"])
def test_the_papers_network_has_its_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        network = PRESETS[name].network()
    assert sum(weight.numel() for weight in network.parameters()) == 113_668_609
    assert network.config["down_block_types"].index("AttnDownBlock2D") == 4
    assert network.config["up_block_types"].index("AttnUpBlock2D") == 1


def test_the_small_network_fits_the_repository() -> None:
    with torch.device("meta"):
        network = PRESETS["small"].network()
    parameters = sum(weight.numel() for weight in network.parameters())
    assert 1.5e6 < parameters < 2.5e6
    assert 2 * parameters < 5e6, "bytes as float16"
    assert not [name for name, _ in network.named_modules() if "attn" in name or "attentions.0" in name]


# ---- the recipe's parts


@pytest.mark.parametrize("step", [0, 1, 250, 499, 500, 501, 1200, 1999, 2000])
def test_the_rate_is_diffusers_cosine_with_warm_up(step: int) -> None:
    from diffusers.optimization import get_cosine_schedule_with_warmup

    optimiser = torch.optim.SGD([torch.zeros(1)], 1.0)
    expected = get_cosine_schedule_with_warmup(optimiser, 500, 2000).lr_lambdas[0](step)
    assert rate_share(step, 2000) == pytest.approx(expected)


def test_every_round_sees_each_image_once_and_none_that_is_held_out() -> None:
    order = ImageOrder(60, seed=1)
    assert len(order.held_out) == 6
    rounds = [order.take(turn * 54, 54) for turn in range(3)]
    for numbers in rounds:
        assert sorted(numbers) == sorted(set(range(60)) - set(order.held_out.tolist()))
    assert not (rounds[0] == rounds[1]).all()
    # from any place on, whatever was taken before
    np.testing.assert_array_equal(ImageOrder(60, seed=1).take(40, 80), np.concatenate(rounds)[40:120])


def test_an_image_is_turned_in_each_of_eight_ways() -> None:
    image = torch.arange(9.0).reshape(3, 3)
    ways = {
        tuple(way.flatten().tolist())
        for quarter in range(4)
        for way in (image.rot90(quarter, (0, 1)), image.rot90(quarter, (0, 1)).flip(1))
    }
    found = turned(image.expand(200, 3, 3), torch.Generator().manual_seed(0))
    assert {tuple(way.flatten().tolist()) for way in found} == ways


@pytest.mark.parametrize("schedule", [VariancePreserving(), Flow()])
def test_the_target_gives_the_image_back(schedule: Schedule) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 8, 8, generator=generator)
    sigma = drawn_levels(32, schedule, generator, 0.3, 0.5)
    x_t, times, target = noised(images, sigma, schedule, generator)
    a, s = (scale.float()[:, None, None] for scale in schedule.scales(sigma))
    found = x_t - s * target if isinstance(schedule, Flow) else (x_t - s * target) / a
    torch.testing.assert_close(found * a, images * a, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(schedule.time(sigma).float(), times)


def test_levels_are_the_papers_unless_they_are_to_be_near_the_signal() -> None:
    schedule, generator = VariancePreserving(), torch.Generator().manual_seed(0)
    levels = drawn_levels(1000, schedule, generator, 0.3, near_signal=0.0)
    torch.testing.assert_close(levels.sort().values, schedule.sigma)  # each once
    near = drawn_levels(999, schedule, generator, 0.3, near_signal=1.0)
    assert float(near.median()) == pytest.approx(0.3, rel=0.01)
    assert float(near.log().std()) == pytest.approx(1.2, rel=0.02)
    both = drawn_levels(1000, Flow(), generator, 0.3, near_signal=0.5)
    assert float(both.median()) == pytest.approx(0.55, rel=0.1)


def test_ddim_draws_from_a_gaussian_prior() -> None:
    power = torch.logspace(0, -2, 12, dtype=torch.float64)
    prior = GaussianPrior(power, (16, 16))
    noise = torch.randn(64, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = sample(prior, noise, steps=1000)
    # of a Gaussian prior the way from noise to image is linear: the exact draw from the same noise
    exact = prior.draw(noise)
    assert float((made - exact).norm() / exact.norm()) < 0.02


def test_a_gaussian_prior_scores_as_the_gaussian_prior() -> None:
    power = torch.logspace(0, -2, 12, dtype=torch.float64)
    noise = torch.randn(256, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prior = GaussianPrior(power, (16, 16))
    images = prior.draw(noise).float()
    scores = score(prior, images, float(images.std()), seed=1)
    for ratio in ("0.5", "1", "2", "4"):
        own, best = scores[f"error_at_noise_{ratio}"], scores[f"gaussian_error_at_noise_{ratio}"]
        assert own == pytest.approx(best, rel=0.03)
        assert 0 < own < 1


# ---- a training


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "mine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", TINY)
        patch.setattr(loop, "SHOWN", 1)
        patch.setattr(loop, "SAMPLE_STEPS", 5)
        card = trained(folder)
    assert card.steps == STEPS
    return folder


def test_interrupted_and_resumed_it_is_the_same_to_the_last_bit(uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for stop_at in (1, 4):
        assert trained(folder, stop_at=stop_at).steps == stop_at
    assert trained(folder).steps == STEPS
    for name in KEPT:
        assert (folder / name).read_bytes() == (uninterrupted / name).read_bytes(), name


def test_losses_after_the_checkpoint_are_had_again(uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    trained(folder, stop_at=2)
    with (folder / "loss.csv").open("a") as file:
        file.write("3,9.0,9.0,9.0\n4,9.")  # a process that was killed between two checkpoints
    trained(folder)
    assert (folder / "loss.csv").read_bytes() == (uninterrupted / "loss.csv").read_bytes()


def test_a_checkpoint_is_replaced_as_a_whole(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    trained(folder, stop_at=2)

    def breaks(state: object, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", breaks)
        with pytest.raises(OSError, match="No space"):
            trained(folder, stop_at=4)
    assert not list(folder.glob(".*"))
    trained(folder)
    assert (folder / KEPT[1]).read_bytes() == (uninterrupted / KEPT[1]).read_bytes()


def test_the_folder_is_a_prior(uninterrupted: Path) -> None:
    prior = load_prior(uninterrupted)
    card = prior.card
    assert (card.name, card.steps, card.batch, card.prediction) == ("mine", STEPS, 8, "epsilon")
    assert card.parameters == sum(weight.numel() for weight in prior.network.parameters())
    assert {"error_at_noise_1", "gaussian_error_at_noise_1"} <= card.scores.keys()
    assert {weight.dtype for weight in load_file(uninterrupted / KEPT[1]).values()} == {torch.float16}
    with (uninterrupted / "loss.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == STEPS
    assert card.loss == pytest.approx(sum(losses) / STEPS)
    assert Image.open(uninterrupted / "samples.png").size == (4 * 36 - 4, 4 * 36 - 4)
    assert not list(uninterrupted.glob(".*"))


def test_a_flow_trains_from_the_weights_of_another_prior(uninterrupted: Path, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"prediction": "flow", "steps": 1, "start": "there"})
    start = load_prior(uninterrupted)
    train(IMAGES, recipe, CARD, tmp_path / "flow", start_accelerator(), start=start)
    prior = load_prior(tmp_path / "flow")
    assert isinstance(prior.schedule, Flow)
    # the first step has a rate of zero, so that the weights are still those it began from
    for name, weight in prior.network.state_dict().items():
        torch.testing.assert_close(weight, start.network.state_dict()[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"preset": "paper-128"}, "another preset (tiny there, paper-128 now); name another folder"),
        ({"learning_rate": 0.5}, "another learning rate (0.01 there, 0.5 now)"),
        ({"images": "others"}, "another set of images"),
    ],
)
def test_another_training_in_the_folder_is_left_alone(
    uninterrupted: Path, other: dict[str, Any], words: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.iterdir()}
    with pytest.raises(TrainingError, match="holds a training with") as told:
        trained(uninterrupted, **other)
    assert words in str(told.value)
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.iterdir()} == before


def test_a_broken_checkpoint_is_told_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    trained(folder, stop_at=1)
    (folder / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(TrainingError, match="is no checkpoint of this training") as told:
        trained(folder)
    assert "\n" not in str(told.value)


def test_too_few_images_are_told_with_how_many_it_takes(tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"batch": 16})
    with pytest.raises(TrainingError, match="at least 35 are needed"):
        train(IMAGES[:34], recipe, CARD, tmp_path, start_accelerator())
    ImageOrder(35, 0).take(0, 32)
    assert len(ImageOrder(35, 0).trained) == 32


def test_another_network_cannot_be_begun_from(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "tiny", Preset(**{**vars(TINY), "channels": (8, 8)}))
    with pytest.raises(TrainingError, match="another network than the preset's"):
        train(IMAGES, RECIPE, CARD, tmp_path, start_accelerator(), start=load_prior(uninterrupted))


def test_a_first_signal_is_noted_and_the_second_acts_as_always() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with heeding_signals() as noted:
        assert noted() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert noted() == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


# ---- the sets


def stack(path: Path, images: np.ndarray, pixel_size: float = 1.5) -> Path:
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(images.astype(np.float32))
        file.set_image_stack()
        file.voxel_size = pixel_size
    return path


def request(*files: Path, side: int = 16, images: int = 100, whole: bool = False) -> Request:
    parts = tuple(Part(file=FileSource(path=str(path), kind="file")) for path in files)
    return Request(parts=parts, content="frames", whole=whole, side_pixels=side, images=images, seed=0)


def read(folder: Path) -> np.ndarray:
    return np.load(folder / "images.npy").astype(np.float32)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape)


@pytest.mark.filterwarnings("ignore:Data array contains NaN")
def test_frames_are_about_zero_and_nearly_all_of_them_within_one(tmp_path: Path) -> None:
    frames = 100 + 7 * noise(20, 16, 16)
    frames[3, 2, 2] = np.nan
    about = made(request(stack(tmp_path / "a.mrcs", frames), images=19), tmp_path / "set")
    images = read(tmp_path / "set")
    assert images.shape == (19, 16, 16)
    assert abs(images.mean()) < 0.01
    assert float(images.std()) == pytest.approx(about.signal_std, rel=0.05)
    assert 0.998 < (np.abs(images) <= 1).mean() < 1
    assert images[3, 2, 2] == 0, "no number: level"
    assert about.pixel_size_angstrom == (1.5, 1.5)
    assert about.description == "a.mrcs; 1.5 angstrom a pixel"


def test_a_set_is_used_again_for_the_same_request_alone(tmp_path: Path) -> None:
    path = stack(tmp_path / "a.mrcs", noise(30, 16, 16))
    first = made(request(path, images=20), tmp_path / "set")
    written = (tmp_path / "set" / "images.npy").stat().st_mtime_ns
    assert made(request(path, images=20), tmp_path / "set") == first
    assert (tmp_path / "set" / "images.npy").stat().st_mtime_ns == written
    assert made(request(path, images=25), tmp_path / "set").images == 25
    np.save(tmp_path / "set" / "images.npy", np.zeros((3, 16, 16)))
    assert made(request(path, images=25), tmp_path / "set").images == 25
    assert read(tmp_path / "set").shape == (25, 16, 16)


def test_an_interrupted_set_is_made_anew(tmp_path: Path) -> None:
    path = stack(tmp_path / "a.mrcs", noise(200, 16, 16))
    asked_for = [0, signal.SIGINT, signal.SIGINT]
    with pytest.raises(CannotRun, match="interrupted") as told:
        made(request(path, images=200), tmp_path / "set", lambda: asked_for.pop(0))
    assert told.value.exit_code == 130
    assert not (tmp_path / "set" / "images.json").exists()
    assert made(request(path, images=200), tmp_path / "set").images == 200


def test_larger_frames_give_windows_at_random_places(tmp_path: Path) -> None:
    row, column = np.mgrid[:40, :48]
    frames = np.stack([row + 100 * column] * 8)
    about = made(request(stack(tmp_path / "a.mrcs", frames)), tmp_path / "set")
    images = read(tmp_path / "set")
    assert len(images) == 8 * 2 * 3, "as many as lie side by side"
    step = (images[:, 0, 1] - images[:, 0, 0]).mean()
    corners = {tuple(np.round(image[0, :1] / step, 1)) for image in images}
    assert len(corners) > 30
    # every window is a piece of the frame: the same steps in it everywhere
    np.testing.assert_allclose(np.diff(images, axis=2), step, atol=4e-3)
    assert about.images == len(images)


def test_whole_frames_are_cropped_in_fourier_space(tmp_path: Path) -> None:
    x = np.arange(32) / 32
    waves = 5 + np.cos(2 * np.pi * (3 * x[:, None] + 2 * x[None, :]))
    small = fourier_cropped(waves[None], 16)
    np.testing.assert_allclose(small[0], waves[::2, ::2], atol=1e-12)
    about = made(request(stack(tmp_path / "a.mrcs", noise(12, 32, 32)), whole=True), tmp_path / "set")
    assert (about.images, about.pixel_size_angstrom) == (12, (3.0, 3.0))


def test_each_file_has_its_share_and_its_own_scale(tmp_path: Path) -> None:
    files = [
        stack(tmp_path / "a.mrcs", noise(30, 16, 16), 1.0),
        stack(tmp_path / "b.mrcs", 50 + 1000 * noise(30, 16, 16), 2.0),
    ]
    about = made(request(*files, images=20), tmp_path / "set")
    images = read(tmp_path / "set")
    assert float(images[:10].std()) == pytest.approx(float(images[10:].std()), rel=0.05)
    assert about.pixel_size_angstrom == (1.0, 2.0)


@pytest.mark.parametrize(
    ("frames", "whole", "words"),
    [
        (np.ones((3, 16, 16)), False, "flat or no numbers"),
        (noise(3, 8, 8), False, "8x8 are smaller than the preset's images of 16 pixels"),
        (noise(3, 16, 24), True, "--whole needs square frames"),
    ],
)
def test_frames_that_nothing_can_be_learned_from(
    tmp_path: Path, frames: np.ndarray, whole: bool, words: str
) -> None:
    path = stack(tmp_path / "a.mrcs", frames)
    with pytest.raises(SourceError, match=words) as told:
        made(request(path, whole=whole), tmp_path / "set")
    assert str(path) in str(told.value)


def test_simulated_images_are_the_simulators_without_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SpecimenSpec(structure="cage", side_pixels=32, pixel_size_angstrom=6.0, envelope_b_factor=40.0)
    wish = Request(
        parts=(Part(specimen=spec),), content="clean", whole=False, side_pixels=32, images=40, seed=0
    )
    monkeypatch.setattr(training, "JITTER", 0.0)
    monkeypatch.setattr(training, "LARGEST_B", 40.0)
    about = made(wish, tmp_path / "set")
    images = read(tmp_path / "set")
    clean = Specimen(spec).batch(0, 40).clean / (20 * 36) - 1
    clean *= about.signal_std / np.sqrt(np.square(Specimen(spec).batch(0, 256).clean / (20 * 36) - 1).mean())
    sign = np.sign((images * clean).sum((1, 2)))
    np.testing.assert_allclose(images, sign[:, None, None] * clean, atol=2e-3)
    assert 10 < (sign > 0).sum() < 30, "either sign of the contrast"
    # other amplitudes and envelopes
    monkeypatch.undo()
    made(wish.model_copy(update={"seed": 1}), tmp_path / "set")
    ratio = np.abs(read(tmp_path / "set")).max((1, 2)) / np.abs(clean).max((1, 2))
    assert ratio.min() < 0.85
    assert ratio.max() > 1.05
    assert ratio.max() < 1.31


# ---- what the options mean


def test_by_default_whole_particles_and_windows_of_all_structures() -> None:
    wish = asked(TrainingOptions())
    found = {
        (part.specimen.structure, part.specimen.pixel_size_angstrom, part.specimen.side_pixels)
        for part in wish.parts
        if part.specimen
    }
    structures = ("cage", "barrel", "ring")
    assert found == {(name, *kind) for name in structures for kind in ((3.0, 64), (1.5, 128))}
    assert (wish.content, wish.side_pixels, wish.images) == ("clean", 64, 40_000)
    assert len({part.specimen.seed for part in wish.parts if part.specimen}) == 6
    assert asked(TrainingOptions(preset="paper-128")).side_pixels == 128


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prediction": "score"}, "--prediction: 'score' is not known"),
        ({"content": "both"}, "--content: 'both' is not known"),
        ({"input": ["a.mrcs"], "content": "clean"}, "--content: images without noise come from"),
        ({"input": ["a.mrcs"], "structure": ["cage"]}, "--structure: belongs to --input specimen"),
        ({"input": ["pattern"]}, "--input: pattern: not images"),
        ({"input": ["a.h5"]}, "--input: a.h5: not images"),
        ({"input": ["a.mrcs"], "pixel_size": [1.0, 2.0]}, "--pixel-size: files have one"),
        ({"dose": [20.0]}, "--dose, --snr: belong to --content frames"),
        ({"content": "frames", "dose": [-1.0]}, "--dose: must be above 0"),
        ({"pixel_size": [0.0]}, "--pixel-size: 0: must be at least 0.0469"),
        ({"pixel_size": [math.nan]}, "--pixel-size: nan: must be at least"),
        ({"learning_rate": math.nan}, "--learning-rate: must be a number"),
        ({"structure": ["nothing.pdb"]}, "--structure: "),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(WrongOption) as told:
        asked(TrainingOptions(**options))
    assert words in str(told.value)
    assert "\n" not in str(told.value)
