"""Training of a learned prior: a loop that goes on after an interruption as if there had been none.

Everything random in a step (which images, how they are turned, the noise and its level) follows from the seed
and the step alone, and so does the learning rate. What has to be kept is the step, the network, the optimiser
and the running average of the weights: the file ``checkpoint.pt``, replaced as a whole.

The recipe is cryoSENSE's (supplement F.2): AdamW, a cosine after 500 steps of warming up, clipped gradients,
and an exponential moving average of the weights, which is what becomes the prior.
"""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from common.rings import ring_means
from common.whole import replacing
from reconstructor.priors.base import Denoiser, Flow, PriorCard, Schedule
from reconstructor.priors.folder import usual_schedule
from reconstructor.priors.gaussian import GaussianPrior
from reconstructor.priors.network import NetworkPrior
from reconstructor.priors.pictures import draw_losses, draw_samples
from reconstructor.priors.presets import PRESETS

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import UNet2DModel
    from diffusers.training_utils import EMAModel

CHECKPOINT, RECIPE, LOSSES = "checkpoint.pt", "training.json", "loss.csv"
LOSS_PICTURE, SAMPLE_PICTURE = "loss.png", "samples.png"

WARM_UP_STEPS = 500
BETAS, WEIGHT_DECAY, ADAM_EPSILON = (0.95, 0.999), 1e-6, 1e-8
LARGEST_GRADIENT = 1.0
INVERSE_GAMMA, POWER, LARGEST_DECAY = 1.0, 0.75, 0.9999
LOG_SPREAD = 1.2  # of noise levels about the signal's strength
SHORTEST_TIME = 1e-3  # of a flow: at no noise at all nothing can be learned, at nothing else neither

HELD_OUT = 256  # images that are never trained on, but at most one in ten
SCORED_AT = (0.5, 1.0, 2.0, 4.0)  # noise over signal
SAMPLES, SAMPLE_STEPS = 16, 50
SHOWN = 20  # times in a training that it is scored and its pictures are drawn
SAVE_SECONDS = 120.0
LOSS_STEPS = 500  # that the loss in the card is the mean over

Precision = Literal["fp32", "bf16"]


class TrainingError(ValueError):
    """A training cannot begin or go on. The message is one line: what was wrong, where, what to do."""


class Recipe(BaseModel):
    """How a prior is trained; kept beside its checkpoint as ``training.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str = Field(description="network, see presets.PRESETS")
    prediction: Literal["epsilon", "flow"] = Field(description="what the network gives: noise, or a velocity")
    images: str = Field(description="which: a hash of what they were made from")
    batch: int = Field(ge=1, description="images that a device takes at a time")
    accumulation: int = Field(ge=1, description="so many times before the optimiser steps")
    devices: int = Field(ge=1, description="that train together")
    learning_rate: float = Field(gt=0, description="the largest")
    steps: int = Field(ge=1, description="of the optimiser; the learning rate falls to zero until then")
    seed: int = Field(ge=0, description="of everything random")
    precision: Precision = Field(description="of the network's arithmetic; weights are kept in fp32")
    start: str | None = Field(default=None, description="prior whose weights it began from")

    @property
    def images_per_step(self) -> int:
        """Over all devices."""
        return self.batch * self.accumulation * self.devices


MAY_CHANGE = frozenset({"steps"})  # when a training goes on
TOLD = {"images": "set of images", "devices": "number of devices", "learning_rate": "learning rate"}


def start_accelerator(precision: Precision = "fp32") -> Accelerator:
    """What runs a training: every GPU that ``accelerate launch`` was given, one GPU, or the CPU."""
    from datetime import timedelta

    from accelerate import Accelerator, InitProcessGroupKwargs

    # the other processes wait while the first makes the images
    patient = InitProcessGroupKwargs(timeout=timedelta(hours=12))
    return Accelerator(mixed_precision="no" if precision == "fp32" else precision, kwargs_handlers=[patient])


def train(
    images: np.ndarray,
    recipe: Recipe,
    card: PriorCard,
    folder: Path,
    accelerator: Accelerator,
    *,
    start: NetworkPrior | None = None,
    progress: Callable[[int, float], None] = lambda step, loss: None,
    stop: Callable[[], bool] = lambda: False,
) -> PriorCard:
    """Train a prior in ``folder``, or go on with the training that is there.

    The folder becomes the prior's, see ``network.NetworkPrior.save``, with weights in float16; it can be used
    from the first save on. Beside it are the checkpoint, the recipe, ``loss.csv``, and pictures of the losses
    and of samples.

    Parameters
    ----------
    images : np.ndarray
        (N, H, W) float16 or float32, as the network is to see them; may be memory-mapped.
    card : PriorCard
        What is known of the images; what training adds is filled in.
    accelerator : Accelerator
        From ``start_accelerator``, of the recipe's precision.
    start : NetworkPrior, optional
        A new training begins from its weights.
    progress : callable
        Told step and loss after each step.
    stop : callable
        Asked after each step; true: all is saved, and the training returns.

    Returns
    -------
    PriorCard
        With the steps done: ``recipe.steps`` where the training came to its end.

    Raises
    ------
    TrainingError
        If the folder holds another training, the images are too few or of another size, or the weights to
        start from do not fit the network.
    """
    return _Training(images, recipe, card, folder, accelerator, start).run(progress, stop)


class _Training:
    """A training as it stands after ``step`` steps."""

    def __init__(
        self,
        images: np.ndarray,
        recipe: Recipe,
        card: PriorCard,
        folder: Path,
        accelerator: Accelerator,
        start: NetworkPrior | None,
    ) -> None:
        from diffusers.training_utils import EMAModel

        self.preset = preset = PRESETS[recipe.preset]
        self.recipe, self.folder, self.accelerator = recipe, folder, accelerator
        self.schedule = usual_schedule(recipe.prediction)
        self.order = ImageOrder(len(images), recipe.seed)
        self.images = images
        check_folder(folder, recipe)
        _check_images(images, self.order, recipe, preset.side_pixels)
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / RECIPE) as temporary:
                temporary.write_text(recipe.model_dump_json(indent=2) + "\n")

        torch.manual_seed(recipe.seed)
        network = preset.network()
        if start is not None:
            _take_weights(network, start)
        self.card = card.model_copy(
            update={
                "prediction": recipe.prediction,
                "batch": recipe.images_per_step,
                "parameters": sum(weight.numel() for weight in network.parameters()),
            }
        )
        if accelerator.device.type == "cuda":
            network = network.to(memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(
            network.parameters(), recipe.learning_rate, BETAS, ADAM_EPSILON, WEIGHT_DECAY
        )
        self.network, self.optimiser = accelerator.prepare(network, optimiser)
        self.average: EMAModel = EMAModel(
            self._bare().parameters(),
            decay=LARGEST_DECAY,
            use_ema_warmup=True,
            inv_gamma=INVERSE_GAMMA,
            power=POWER,
        )
        self.step = 0
        self._restore()
        self.losses = _Losses(folder / LOSSES, self.step) if accelerator.is_main_process else None

    def run(self, progress: Callable[[int, float], None], stop: Callable[[], bool]) -> PriorCard:
        """Until the last step, or until ``stop``."""
        recipe = self.recipe
        shown_every = max(1, recipe.steps // SHOWN)
        saved_at = time.monotonic()
        self.network.train()
        while self.step < recipe.steps and not self._any(stop()):
            loss, gradient = self._advance()
            if not math.isfinite(loss):
                told = (
                    f"the loss is {loss} at step {self.step}; take a smaller learning rate, and a new folder"
                )
                raise TrainingError(f"{self.folder}: {told}")
            if self.losses is None:
                continue
            self.losses.add(self.step, loss, self._rate(self.step - 1), gradient)
            progress(self.step, loss)
            if self.step % shown_every == 0 or self.step == recipe.steps:
                self._show()
            if time.monotonic() - saved_at >= SAVE_SECONDS:
                self._save()
                saved_at = time.monotonic()
        if self.losses is not None:
            self._save()
        self.accelerator.wait_for_everyone()
        return self._card()

    def _any(self, here: bool) -> bool:
        """Whether any process says so: all have to leave the loop at the same step."""
        if self.accelerator.num_processes == 1:
            return here
        told = torch.tensor(float(here), device=self.accelerator.device)
        return bool(self.accelerator.reduce(told, "sum").item())

    # ---- a step

    def _advance(self) -> tuple[float, float]:
        """One step of the optimiser: its loss, and the length of its gradient."""
        accelerator, recipe = self.accelerator, self.recipe
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate(self.step)
        total = torch.zeros((), device=accelerator.device)
        for part in range(recipe.accumulation):
            last = part == recipe.accumulation - 1
            with nullcontext() if last else accelerator.no_sync(self.network):
                loss = self._loss(part) / recipe.accumulation
                accelerator.backward(loss)
            total += loss.detach()
        gradient = accelerator.clip_grad_norm_(self.network.parameters(), LARGEST_GRADIENT)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.average.step(self._bare().parameters())
        self.step += 1
        return float(accelerator.reduce(total, "mean")), float(gradient)

    def _loss(self, part: int) -> Tensor:
        """Mean squared error of the network on one batch of images."""
        recipe, device = self.recipe, self.accelerator.device
        place = (self.step * recipe.accumulation + part) * recipe.devices + self.accelerator.process_index
        chosen = self.order.take(place * recipe.batch, recipe.batch)
        seed = np.random.SeedSequence([recipe.seed, place]).generate_state(1, np.uint64)[0] >> np.uint64(1)
        generator = torch.Generator(device).manual_seed(int(seed))
        images = torch.from_numpy(self.images[chosen].astype(np.float32)).to(device)
        if self.preset.turned:
            images = turned(images, generator)
        sigma = drawn_levels(
            len(images), self.schedule, generator, self.card.signal_std, self.preset.near_signal
        )
        x_t, times, target = noised(images, sigma, self.schedule, generator)
        given = self.network(x_t[:, None], times, return_dict=False)[0][:, 0]
        return (given.float() - target).square().mean()

    def _rate(self, step: int) -> float:
        return self.recipe.learning_rate * rate_share(step, self.recipe.steps)

    # ---- what is kept

    def _bare(self) -> UNet2DModel:
        return self.accelerator.unwrap_model(self.network)

    def _save(self) -> None:
        """The checkpoint, and the prior as it is now."""
        assert self.losses is not None
        self.losses.flush()
        state = {
            "step": self.step,
            "network": self._bare().state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.state_dict(),
            "scores": self.card.scores,
        }
        with replacing(self.folder / CHECKPOINT) as path, path.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        self.prior().save(self.folder, torch.float16)

    def _restore(self) -> None:
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self._bare().load_state_dict(state["network"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.average.load_state_dict(state["average"])
            self.average.to(self.accelerator.device)
            self.step = int(state["step"])
            self.card = self.card.model_copy(update={"scores": dict(state["scores"])})
        except Exception as error:  # a file that is no checkpoint fails in many ways
            told = " ".join(str(error).split())[:200]
            raise TrainingError(
                f"{path}: is no checkpoint of this training ({told}); name another folder or remove it"
            ) from error

    def prior(self) -> NetworkPrior:
        """The prior as it is now: the average of the weights."""
        network = self.preset.network().to(self.accelerator.device)
        self.average.copy_to(network.parameters())
        return NetworkPrior(network, self._card(), self.schedule, self.accelerator.device)

    def _card(self) -> PriorCard:
        loss = self.losses.mean() if self.losses is not None else None
        return self.card.model_copy(update={"steps": self.step, "loss": loss})

    def _show(self) -> None:
        """Score the prior, and draw its pictures."""
        assert self.losses is not None
        prior = self.prior()
        held_out = torch.from_numpy(self.images[np.sort(self.order.held_out)].astype(np.float32))
        scores = score(prior, held_out.to(prior.device), self.card.signal_std, self.recipe.seed)
        self.card = self.card.model_copy(update={"scores": scores})
        side = self.preset.side_pixels
        noise = torch.randn((SAMPLES, side, side), generator=torch.Generator().manual_seed(self.recipe.seed))
        made = sample(prior, noise.to(prior.device), SAMPLE_STEPS).cpu()
        self.losses.flush()
        draw_samples(made, self.folder / SAMPLE_PICTURE)
        draw_losses(*read_losses(self.folder / LOSSES), self.folder / LOSS_PICTURE)


# ---- the recipe's parts -------------------------------------------------------------------------------


class ImageOrder:
    """Which images are trained on when: all of them, in another order each time round.

    Parameters
    ----------
    count : int
        Images there are; some of them, drawn at random, are held out.
    seed : int
        Of the drawing.

    Attributes
    ----------
    held_out : np.ndarray
        Numbers of the images that are never trained on.
    trained : np.ndarray
        Numbers of all others.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.seed = seed
        order = self._shuffled(np.arange(count), 0)
        kept = min(HELD_OUT, count // 10)
        self.held_out, self.trained = order[:kept], order[kept:]
        self._rounds: dict[int, np.ndarray] = {}

    def take(self, place: int, count: int) -> np.ndarray:
        """Numbers of ``count`` images from this place of the endless order on."""
        chosen = np.empty(count, np.int64)
        done = 0
        while done < count:
            turn, begin = divmod(place + done, len(self.trained))
            some = self._round(turn)[begin : begin + count - done]
            chosen[done : done + len(some)] = some
            done += len(some)
        return chosen

    def _round(self, turn: int) -> np.ndarray:
        if turn not in self._rounds:
            self._rounds = {turn: self._shuffled(self.trained, turn + 1)}
        return self._rounds[turn]

    def _shuffled(self, numbers: np.ndarray, stream: int) -> np.ndarray:
        bits = np.random.Philox(key=self.seed, counter=stream << 192)
        return np.random.Generator(bits).permutation(numbers)


def rate_share(step: int, steps: int) -> float:
    """Learning rate over the largest: rises over the first 500 steps, then half a cosine down to zero."""
    if step < WARM_UP_STEPS:
        return step / WARM_UP_STEPS
    done = (step - WARM_UP_STEPS) / max(1, steps - WARM_UP_STEPS)
    return max(0.0, 0.5 * (1 + math.cos(math.pi * done)))


def turned(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, H, H), each in one of the eight ways that a square falls on itself, at random."""
    ways = torch.randint(8, (len(images),), generator=generator, device=images.device)
    result = images.clone()
    for way in range(1, 8):
        chosen = ways == way
        some = images[chosen].rot90(way % 4, (-2, -1))
        result[chosen] = some.flip(-1) if way >= 4 else some
    return result


def drawn_levels(
    count: int, schedule: Schedule, generator: torch.Generator, signal_std: float, near_signal: float
) -> Tensor:
    """Noise levels to train on, (count,) float64.

    Parameters
    ----------
    signal_std : float
        Of the images.
    near_signal : float
        Share of the levels drawn near it: log sigma normal about its logarithm, with 1.2 as standard
        deviation (Karras et al. 2022). The rest: a diffusion model's own, each as likely; a flow's times,
        uniform in 0 to 1.
    """
    device = generator.device
    # spread evenly over a batch, so that its loss depends less on which levels it happened to get
    first = torch.rand((), generator=generator, device=device, dtype=torch.float64)
    share = (first + torch.arange(count, device=device)) / count
    near = share < near_signal
    quantile = (share / max(near_signal, 1e-9)).clamp(1e-4, 1 - 1e-4)
    normal = math.sqrt(2) * torch.erfinv(2 * quantile - 1)
    lognormal = signal_std * torch.exp(LOG_SPREAD * normal)
    uniform = ((share - near_signal) / max(1 - near_signal, 1e-9)).clamp(0, 1)
    if isinstance(schedule, Flow):
        t = SHORTEST_TIME + (1 - 2 * SHORTEST_TIME) * uniform
        return torch.where(near, lognormal, t / (1 - t))
    levels = schedule.sigma.to(device)
    step = (uniform * len(levels)).long().clamp_max(len(levels) - 1)
    return torch.where(near, lognormal.clamp(levels[0], levels[-1]), levels[step])


def noised(
    images: Tensor, sigma: Tensor, schedule: Schedule, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Images with noise, as the network is trained on them.

    Parameters
    ----------
    images : Tensor
        (B, H, W) float32.
    sigma : Tensor
        (B,) noise levels.

    Returns
    -------
    x_t : Tensor
        (B, H, W), a x0 + s e.
    times : Tensor
        (B,) float32, what the network is told of the noise level.
    target : Tensor
        (B, H, W), what it should give: of a diffusion model the noise e, of a flow the velocity e - x0.
    """
    a, s = (scale.float()[:, None, None] for scale in schedule.scales(sigma))
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    target = noise - images if isinstance(schedule, Flow) else noise
    return a * images + s * noise, schedule.time(sigma).float(), target


def sample(prior: Denoiser, noise: Tensor, steps: int) -> Tensor:
    """Images of a prior alone: DDIM (Song et al. 2021), from the largest noise level down.

    Parameters
    ----------
    noise : Tensor
        (B, H, W) white, of variance one, on the prior's device.

    Returns
    -------
    Tensor
        (B, H, W).
    """
    schedule = prior.schedule
    chosen = torch.linspace(len(schedule.sigma) - 1, 0, steps).round().long()
    sigmas = schedule.sigma[chosen]
    x_t = noise * float(schedule.scales(sigmas[0])[1])
    x0 = x_t
    for index, sigma in enumerate(sigmas):
        x0 = prior.x0(x_t, sigma)
        if index + 1 < len(sigmas):
            a, s = (float(scale) for scale in schedule.scales(sigma))
            next_a, next_s = (float(scale) for scale in schedule.scales(sigmas[index + 1]))
            x_t = next_a * x0 + next_s / s * (x_t - a * x0)
    return x0


def score(prior: Denoiser, images: Tensor, signal_std: float, seed: int) -> dict[str, float]:
    """How well images are told from noise, beside the best that a radial spectrum alone allows.

    Parameters
    ----------
    images : Tensor
        (N, H, W), not trained on, on the prior's device.
    signal_std : float
        Of the signal.

    Returns
    -------
    dict
        ``error_at_noise_R`` for noise of R times the signal's standard deviation: squared error of the mean
        of x0 over the energy of the images. ``gaussian_error_at_noise_R``: the same of the Gaussian prior
        with these images' own spectrum.
    """
    shape = (int(images.shape[1]), int(images.shape[2]))
    power = torch.fft.rfft2(images.double(), norm="ortho").abs().square().mean(0)
    linear = GaussianPrior(ring_means(power, shape), shape, prior.schedule)
    energy = float(images.square().mean())
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(images.device)
    scores: dict[str, float] = {}
    for ratio in SCORED_AT:
        sigma = torch.tensor(ratio * signal_std, dtype=torch.float64)
        a, s = (float(scale) for scale in prior.schedule.scales(sigma))
        x_t = a * images + s * noise
        for name, known in (("", prior), ("gaussian_", linear)):
            found = torch.cat([known.x0(some, sigma) for some in x_t.split(64)])
            error = float((found - images).square().mean()) / energy
            scores[f"{name}error_at_noise_{ratio:g}"] = round(error, 5)
    return scores


# ---- files --------------------------------------------------------------------------------------------


def read_losses(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses of a ``loss.csv``."""
    with path.open(newline="") as file:
        rows = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
    return np.array([step for step, _ in rows]), np.array([loss for _, loss in rows])


class _Losses:
    """``loss.csv``: a line a step, of which none is after the checkpoint's."""

    COLUMNS = ("step", "loss", "learning_rate", "gradient_norm")

    def __init__(self, path: Path, step: int) -> None:
        lines: list[str] = []
        if step and path.exists():
            lines = path.read_text().splitlines()[1 : step + 1]
        with replacing(path) as temporary:
            temporary.write_text("\n".join([",".join(self.COLUMNS), *lines]) + "\n")
        self._last = deque((float(line.split(",")[1]) for line in lines[-LOSS_STEPS:]), maxlen=LOSS_STEPS)
        self._file = path.open("a")

    def add(self, step: int, loss: float, rate: float, gradient: float) -> None:
        self._file.write(f"{step},{loss!r},{rate!r},{gradient!r}\n")
        self._last.append(loss)

    def mean(self) -> float | None:
        return sum(self._last) / len(self._last) if self._last else None

    def flush(self) -> None:
        self._file.flush()


def check_folder(folder: Path, recipe: Recipe) -> None:
    """Refuse a folder that holds a training with another recipe; how many steps it has may change.

    Raises
    ------
    TrainingError
        One line.
    """
    path = folder / RECIPE
    try:
        there: Mapping[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path}: cannot be read ({error}); name another folder") from error
    for name, value in recipe.model_dump(mode="json").items():
        if there.get(name) != value and name not in MAY_CHANGE:
            raise TrainingError(
                f"{folder}: holds a training with another {TOLD.get(name, name)} "
                f"({there.get(name)!s:.60} there, {value!s:.60} now); name another folder"
            )


def _check_images(images: np.ndarray, order: ImageOrder, recipe: Recipe, side: int) -> None:
    if images.ndim != 3 or images.shape[1:] != (side, side):
        raise TrainingError(
            f"images of shape {tuple(images.shape)}: {recipe.preset} is trained on (N, {side}, {side})"
        )
    taken = recipe.images_per_step
    if len(order.trained) < taken:
        raise TrainingError(
            f"{len(images)} images are too few: a step takes {taken}, and one in ten is held out, so that at "
            f"least {taken + (taken - 1) // 9} are needed; give more of them, or take a smaller batch"
        )


def _take_weights(network: UNet2DModel, start: NetworkPrior) -> None:
    there = {name: weight.shape for name, weight in start.network.state_dict().items()}
    wanted = {name: weight.shape for name, weight in network.state_dict().items()}
    if there != wanted:
        raise TrainingError(
            f"{start.card.name}: cannot be begun from: it is another network than the preset's"
        )
    network.load_state_dict(start.network.state_dict())


# ---- interruption -------------------------------------------------------------------------------------


@contextmanager
def heeding_signals() -> Generator[Callable[[], int], None, None]:
    """While in it, SIGINT and SIGTERM only make a note of themselves: the signal's number, else 0.

    A second one of them acts as always. Outside the main thread, where none is heard, nothing is noted.
    """
    noted = 0

    def note(number: int, frame: object) -> None:
        nonlocal noted
        noted = number
        for heard, handler in before.items():
            signal.signal(heard, handler)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield lambda: noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
