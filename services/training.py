"""``cryoflux train prior``: any source of a session becomes a set of images, and the set a prior.

The set is one file of float16 images, ``images.npy``, read through memory mapping; ``images.json`` beside it
says what was asked for and what came of it. A set made for the same request is used again; ``images.json`` is
written last, so one that was interrupted is made anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from common.session import STRUCTURES as BUILT_IN
from common.session import FileSource, SpecimenSpec
from common.whole import replacing
from detector_sim.sources import Source, SourceError, open_source
from detector_sim.specimen import Specimen
from detector_sim.specimen.specimen import read_potential
from reconstructor.priors import NetworkPrior, load_prior
from reconstructor.priors.base import PriorCard
from reconstructor.priors.presets import PRESETS
from reconstructor.priors.training import (
    Precision,
    Recipe,
    TrainingError,
    check_folder,
    heeding_signals,
    start_accelerator,
    train,
)
from services import specification as wanted
from services.display import counting
from services.failure import CannotRun, WrongOption
from services.options import TrainingOptions

LOCK = ".training.lock"
SET, IMAGES, ABOUT = "images", "images.npy", "images.json"
STRUCTURES = ("cage", "barrel", "ring")  # the other one that is built in is what they are tested on
FIELD_ANGSTROM = 192.0  # side of a simulated frame that holds any that is built in
ROOM = 1.45  # the same, over a structure's diameter
LARGEST_FRAME = 4096  # pixels
FIRST_SEED = 1 << 42  # of specimens: far from any that a session is likely to show
LARGEST_B = 100.0  # square angstrom, of the envelopes; the smallest is the specimen's
SMALLEST_B = 40.0
JITTER = 0.3  # of the amplitude: sessions' scales are estimates
PROBED = 256  # frames that the scale is found from
SCALE_SHARE = 0.999  # of the pixels, which come to lie in [-1, 1]
LARGEST = 2.0  # beyond, pixels are defects
MOST_WINDOWS = 256  # of a frame, where it is not known how many frames there are
AT_A_TIME = 64  # frames
MOST_PIXELS = 1 << 24  # in memory at a time
LINE_EVERY_SECONDS = 30.0
RUNNING = 100  # steps that the loss shown is the mean over


class Part(BaseModel):
    """A share of a set: one specimen, or one file or folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    specimen: SpecimenSpec | None = None
    file: FileSource | None = None
    stamp: str | None = Field(
        default=None, description="of a file: size and time, so that a change is noticed"
    )


class Request(BaseModel):
    """What a set is asked to hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: tuple[Part, ...]
    content: Literal["clean", "frames"]
    whole: bool = Field(description="frames Fourier-cropped to the side; else windows are cut from them")
    side_pixels: PositiveInt
    images: PositiveInt = Field(description="at most so many")
    seed: NonNegativeInt

    @property
    def key(self) -> str:
        """A hash: two requests that have it in common give the same set."""
        # what is as always does not count, so that a new option leaves the sets that are there alone
        return hashlib.sha256(self.model_dump_json(exclude_defaults=True).encode()).hexdigest()[:16]


class About(BaseModel):
    """What is in a set; ``images.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    request: Request
    images: PositiveInt = Field(description="of float16, (images, side, side)")
    signal_std: PositiveFloat = Field(description="of the pixels of whole frames")
    pixel_size_angstrom: tuple[float, float] = Field(description="smallest and largest")
    description: str


# ---- the command --------------------------------------------------------------------------------------


def train_prior(folder: Path, options: TrainingOptions) -> int:
    """Make the set, and train until the last step or an interruption.

    Raises
    ------
    CannotRun
        In one line.
    """
    if options.preset not in PRESETS:
        raise WrongOption(f"--preset: {options.preset!r} is not known; must be one of {', '.join(PRESETS)}")
    preset = PRESETS[options.preset]
    request = asked(options)
    folder = folder.absolute()
    start = _start(options.start)
    accelerator = start_accelerator(precision := _precision(options.precision))
    recipe = Recipe(
        preset=options.preset, prediction=options.prediction, images=request.key,
        batch=options.batch or preset.batch, accumulation=preset.accumulation,
        devices=accelerator.num_processes, learning_rate=options.learning_rate or preset.learning_rate,
        steps=options.steps or 1, seed=options.seed, precision=precision, start=options.start,
    )  # fmt: skip
    try:
        check_folder(folder, recipe)  # before another set of images replaces its own
        with heeding_signals() as interrupted, _alone(folder, needed=accelerator.is_main_process):
            with accelerator.main_process_first():  # the others find the set that it made
                about = made(request, folder / SET, interrupted)
            if options.steps is None:
                steps = math.ceil(preset.epochs * about.images / recipe.images_per_step)
                recipe = recipe.model_copy(update={"steps": steps})
            card = PriorCard(
                name=folder.name, content=request.content, prediction=recipe.prediction,
                side_pixels=request.side_pixels, pixel_size_angstrom=about.pixel_size_angstrom,
                signal_std=about.signal_std, trained_on=about.description, images=about.images,
                steps=0, batch=recipe.images_per_step, parameters=0,
            )  # fmt: skip
            images = np.load(folder / SET / IMAGES, mmap_mode="r")
            with _stepping(recipe, shown=accelerator.is_main_process) as progress:
                card = train(
                    images, recipe, card, folder, accelerator,
                    start=start, progress=progress, stop=lambda: bool(interrupted()),
                )  # fmt: skip
            if card.steps < recipe.steps:
                told = f"interrupted at step {card.steps}; the same command goes on from there"
                raise CannotRun(told, 128 + interrupted())
    except (TrainingError, SourceError) as error:
        raise WrongOption(str(error)) from error
    except OSError as error:
        raise CannotRun(f"{error.filename or folder}: {error.strerror or error}") from error
    if accelerator.is_main_process:
        print(
            f"{folder}: {card.steps} steps on {card.images} images, loss {card.loss:.5f}; {card.trained_on}"
        )
    return 0


@contextmanager
def _alone(folder: Path, *, needed: bool) -> Generator[None, None, None]:
    """Nobody else trains in the folder meanwhile; of several processes of a training, one sees to it."""
    if not needed:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise WrongOption(f"{folder}: another training is at work there; name another folder") from None
        yield
    finally:
        os.close(lock)


def _start(name: str | None) -> NetworkPrior | None:
    try:
        return None if name is None else load_prior(name)
    except ValueError as error:
        raise WrongOption(f"--from: {error}") from error


def _precision(name: str) -> Precision:
    match name:
        case "auto":
            return "bf16" if torch.cuda.is_available() else "fp32"
        case "fp32" | "bf16":
            return name
        case _:
            raise WrongOption(f"--precision: {name!r} is not known; must be one of auto, fp32, bf16")


def asked(options: TrainingOptions) -> Request:
    """The set of images that the options mean.

    Raises
    ------
    WrongOption
        If a value is out of range, or does not go with another.
    """
    preset = PRESETS[options.preset]
    if options.prediction not in ("epsilon", "flow"):
        raise WrongOption(f"--prediction: {options.prediction!r} is not known; must be epsilon or flow")
    for name in ("learning_rate", "snr", "defocus_min_um", "defocus_max_um"):
        value = getattr(options, name)
        if value is not None and not math.isfinite(value):
            raise WrongOption(f"--{name.replace('_', '-')}: must be a number, got {value}")
    if options.content not in (None, "clean", "frames"):
        raise WrongOption(f"--content: {options.content!r} is not known; must be clean or frames")
    inputs = options.input or ["specimen"]
    files = [name for name in inputs if name != "specimen"]
    content: Any = options.content or ("frames" if files else "clean")
    if files and content == "clean":
        raise WrongOption("--content: images without noise come from the specimen simulator alone")
    parts = [_file_part(name, options) for name in files]
    if "specimen" in inputs:
        parts += _specimen_parts(options, preset.side_pixels, content)
    elif unfit := next((name for name in ("structure", "dose", "snr") if getattr(options, name)), None):
        raise WrongOption(f"--{unfit}: belongs to --input specimen")
    return Request(
        parts=tuple(parts),
        content=content,
        whole=options.whole,
        side_pixels=preset.side_pixels,
        images=options.images,
        seed=options.seed,
    )


def _file_part(name: str, options: TrainingOptions) -> Part:
    if name in ("pattern", "archive") or Path(name).suffix.lower() in wanted.ARCHIVES:
        raise WrongOption(
            f"--input: {name}: not images; give an MRC, TIFF or STAR file, a folder, or 'specimen'"
        )
    if options.pixel_size is not None and len(options.pixel_size) > 1:
        raise WrongOption("--pixel-size: files have one; give it once")
    pixel_size = options.pixel_size[0] if options.pixel_size else None
    path = Path(name).absolute()
    fields = wanted.given(path=str(path), pixel_size_angstrom=pixel_size, kind="file")
    return Part(file=wanted.validated(FileSource, fields, "source"), stamp=_stamp(path))


def _stamp(path: Path) -> str | None:
    """Sizes and times of a file, or of the files in a folder."""
    if not path.exists():
        return None  # opening it will say so
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]


def _specimen_parts(options: TrainingOptions, side: int, content: str) -> list[Part]:
    """Every structure at every pixel size, and for noisy frames every dose."""
    if content == "clean" and (options.dose or options.snr):
        raise WrongOption("--dose, --snr: belong to --content frames; images without noise have none")
    parts: list[Part] = []
    for structure in options.structure or STRUCTURES:
        field = _field(structure)
        for pixel_size in options.pixel_size or (field / side, field / side / 2):
            for dose in options.dose or [None]:
                fields = wanted.given(
                    structure=structure,
                    pixel_size_angstrom=pixel_size,
                    side_pixels=_frame_side(field, pixel_size, side),
                    envelope_b_factor=SMALLEST_B if content == "clean" else None,
                    dose_per_square_angstrom=dose,
                    snr=options.snr,
                    defocus_min_um=options.defocus_min_um,
                    defocus_max_um=options.defocus_max_um,
                    seed=FIRST_SEED + (options.seed << 10) + len(parts),
                )
                spec = wanted.validated(SpecimenSpec, fields, "source.specimen")
                stamp = None if structure in BUILT_IN else _stamp(Path(structure))
                parts.append(Part(specimen=spec, stamp=stamp))
    return parts


def _field(structure: str) -> float:
    """Side in angstrom of a frame that holds a structure, with room for the CTF's rings about it."""
    if structure in BUILT_IN:
        return FIELD_ANGSTROM
    try:
        return ROOM * read_potential(SpecimenSpec(structure=structure)).diameter_angstrom
    except ValueError as error:
        raise WrongOption(f"--structure: {error}") from error


def _frame_side(field: float, pixel_size: float, side: int) -> int:
    """Pixels of the frame: the images', or as many times that as hold the structure."""
    times = field / (side * pixel_size) if pixel_size > 0 else math.inf
    if not times <= LARGEST_FRAME / side:
        least = field / LARGEST_FRAME
        raise WrongOption(f"--pixel-size: {pixel_size:g}: must be at least {least:.3g} for such a structure")
    return side * max(1, math.ceil(times - 1e-6))


# ---- the set ------------------------------------------------------------------------------------------


def made(request: Request, folder: Path, interrupted: Callable[[], int] = lambda: 0) -> About:
    """A set in ``folder``: the one that is there if it is of this request, else a new one.

    Raises
    ------
    CannotRun
        If it was interrupted.
    SourceError
        One line: an input cannot be used.
    """
    about = folder / ABOUT
    try:
        there = About.model_validate_json(about.read_bytes())
        if there.request == request and _is_whole(folder / IMAGES, there):
            return there
    except (OSError, ValueError):
        pass
    folder.mkdir(parents=True, exist_ok=True)
    about.unlink(missing_ok=True)
    shape = (request.images, request.side_pixels, request.side_pixels)
    unfinished = folder / f".{IMAGES}"
    images = _new_file(unfinished, shape)
    makers = [_maker(part, request, number) for number, part in enumerate(request.parts)]
    # what nearly all pixels of all parts lie within, in units of their standard deviation
    probes = np.concatenate([np.abs(maker.probe).ravel() for maker in makers])
    signal_std = 1 / float(np.quantile(probes, SCALE_SHARE))
    done = 0
    with counting("images", request.images) as progress:
        for number, maker in enumerate(makers):
            share = request.images * (number + 1) // len(makers) - request.images * number // len(makers)
            for some in maker.images(share):
                if interrupted():
                    raise CannotRun("interrupted; the set of images is made anew", 128 + interrupted())
                images[done : done + len(some)] = np.clip(some * signal_std, -LARGEST, LARGEST)
                done += len(some)
                progress(done)
    if done == 0:
        raise SourceError("the input holds no frames")
    images.flush()
    if done < request.images:
        fewer = _new_file(folder / IMAGES, (done, *shape[1:]))
        for begin in range(0, done, 4096):
            fewer[begin : begin + 4096] = images[begin : min(done, begin + 4096)]
        fewer.flush()
        unfinished.unlink()
    else:
        os.replace(unfinished, folder / IMAGES)
    pixel_sizes = [maker.pixel_size_angstrom for maker in makers]
    result = About(
        request=request,
        images=done,
        signal_std=signal_std,
        pixel_size_angstrom=(min(pixel_sizes), max(pixel_sizes)),
        description=_description(request, pixel_sizes),
    )
    with replacing(about) as temporary:
        temporary.write_text(result.model_dump_json(indent=2) + "\n")
    return result


def _new_file(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A memory-mapped file of float16 with room on the disk: a full disk would otherwise end the process."""
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return images


def _is_whole(path: Path, about: About) -> bool:
    shape = (about.images, about.request.side_pixels, about.request.side_pixels)
    return bool(np.load(path, mmap_mode="r").shape == shape)


def _description(request: Request, pixel_sizes: list[float]) -> str:
    specimens = [part.specimen for part in request.parts if part.specimen]
    files = [Path(part.file.path).name for part in request.parts if part.file]
    told = list(files)
    if specimens:
        names = dict.fromkeys(Path(specimen.structure).stem for specimen in specimens)
        noise = "without noise" if request.content == "clean" else "with the noise of counting"
        first = specimens[0]
        told.append(
            f"simulated particles ({', '.join(names)}) {noise}, "
            f"defocus {first.defocus_min_um:g} to {first.defocus_max_um:g} um"
        )
    sizes = " and ".join(f"{size:.4g}" for size in sorted(set(pixel_sizes)))
    return f"{'; '.join(told)}; {sizes} angstrom a pixel"


class _Maker:
    """Makes the images of one part.

    Attributes
    ----------
    probe : np.ndarray
        (n, H, W) float32 whole frames about level zero, of standard deviation one.
    pixel_size_angstrom : float
        Of the images.
    """

    probe: np.ndarray
    pixel_size_angstrom: float

    def __init__(self, request: Request, number: int) -> None:
        self.request = request
        self.number = number
        self.level = 0.0
        self.std = 1.0

    def frames(self) -> Iterator[np.ndarray]:
        """Frames from the first one on, (b, H, W) float32 as the source has them."""
        raise NotImplementedError

    def windows_per_frame(self, shape: tuple[int, int], count: int) -> int:
        """How many images a frame gives where ``count`` are wanted."""
        raise NotImplementedError

    def images(self, count: int) -> Iterator[np.ndarray]:
        """At most ``count`` images (b, side, side) float32, of standard deviation one before they vary."""
        side, frame, done = self.request.side_pixels, 0, 0
        for frames in self.frames():
            frames = self.levelled(frames)
            if not self.request.whole:
                each = self.windows_per_frame(frames.shape[1:], count)
                frames = np.concatenate(
                    [self.cut(image, frame + index, each) for index, image in enumerate(frames)]
                )
            some = self.varied(frames[: count - done], done)
            frame += len(frames)
            done += len(some)
            assert some.shape[1:] == (side, side)
            yield some
            if done >= count:
                return

    def levelled(self, frames: np.ndarray) -> np.ndarray:
        """Frames about level zero, of standard deviation one; whole ones Fourier-cropped to the side."""
        frames = np.where(np.isfinite(frames), frames, self.level)
        if self.request.whole:
            frames = fourier_cropped(frames, self.request.side_pixels)
        return ((frames - self.level) / self.std).astype(np.float32)

    def measure(self, frames: np.ndarray, level: float | None = None) -> None:
        """Level and standard deviation, and the probe, from frames as the source has them."""
        finite = frames[np.isfinite(frames)]
        self.level = level if level is not None else float(finite.mean()) if finite.size else 0.0
        self.std = float(np.sqrt(np.mean(np.square(self.levelled(frames), dtype=np.float64))))
        if not (math.isfinite(self.std) and self.std > 0):
            raise SourceError(f"{self.name}: the first frames are flat or no numbers: nothing to learn")
        self.probe = self.levelled(frames)

    def cut(self, image: np.ndarray, frame: int, count: int) -> np.ndarray:
        """``count`` windows at random places of a frame (H, W)."""
        side = self.request.side_pixels
        places = self.generator(frame, 0).random((count, 2))
        spare = np.array(image.shape) - side
        corners = np.floor(places * (spare + 1)).astype(int)
        return np.stack([image[y : y + side, x : x + side] for y, x in corners])

    def varied(self, images: np.ndarray, first: int) -> np.ndarray:
        """Images as they are; simulated ones in more variety."""
        return images

    def generator(self, number: int, stream: int) -> np.random.Generator:
        """Random numbers of a frame, an image, ..."""
        seed = np.random.SeedSequence([self.request.seed, self.number, number, stream])
        return np.random.Generator(np.random.Philox(seed))

    @property
    def name(self) -> str:
        """As errors call the part."""
        raise NotImplementedError


def _maker(part: Part, request: Request, number: int) -> _Maker:
    if part.specimen is not None:
        return _SpecimenMaker(part.specimen, request, number)
    assert part.file is not None
    return _FileMaker(part.file, request, number)


class _SpecimenMaker(_Maker):
    """Simulated frames, without noise or with it."""

    def __init__(self, spec: SpecimenSpec, request: Request, number: int) -> None:
        super().__init__(request, number)
        self.spec = spec
        self.pixel_size_angstrom = spec.pixel_size_angstrom * (
            spec.side_pixels / request.side_pixels if request.whole else 1
        )
        try:
            self.specimen = Specimen(spec)
        except ValueError as error:
            raise SourceError(str(error)) from error
        level = 0.0 if spec.snr is not None else spec.dose_per_square_angstrom * spec.pixel_size_angstrom**2
        self.measure(self._made(0, PROBED), level)

    @property
    def name(self) -> str:
        """Of the structure."""
        return self.spec.structure

    def _made(self, first: int, count: int) -> np.ndarray:
        if self.request.content == "clean":
            return self.specimen.clean(first, count)
        return self.specimen.batch(first, count).frames.astype(np.float32)

    def frames(self) -> Iterator[np.ndarray]:
        """Endless."""
        first = 0
        while True:
            yield self._made(first, AT_A_TIME)
            first += AT_A_TIME

    def windows_per_frame(self, shape: tuple[int, int], count: int) -> int:
        """One: frames cost nothing."""
        return 1

    def varied(self, images: np.ndarray, first: int) -> np.ndarray:
        """Images without noise: other envelopes, other amplitudes, and either sign of the contrast."""
        if self.request.content == "frames":
            return images
        draws = np.stack([self.generator(first + index, 1).random(3) for index in range(len(images))])
        amplitude = (1 + JITTER * (2 * draws[:, 0] - 1)) * np.where(draws[:, 1] < 0.5, 1, -1)
        more = (LARGEST_B - SMALLEST_B) * draws[:, 2]
        side = images.shape[-1]
        ky, kx = np.fft.fftfreq(side), np.fft.rfftfreq(side)
        squared = (ky[:, None] ** 2 + kx[None, :] ** 2) / self.pixel_size_angstrom**2
        damping = amplitude[:, None, None] * np.exp(-more[:, None, None] / 4 * squared)
        return np.fft.irfft2(np.fft.rfft2(images) * damping, s=(side, side)).astype(np.float32)


class _FileMaker(_Maker):
    """Frames of files, as they were recorded."""

    def __init__(self, spec: FileSource, request: Request, number: int) -> None:
        super().__init__(request, number)
        self.spec = spec
        with self._open() as source:
            self.count = source.frame_count
            self.pixel_size_angstrom = source.pixel_size_angstrom * (
                max(source.shape) / request.side_pixels if request.whole else 1
            )
            if min(source.shape) < request.side_pixels:
                height, width = source.shape
                raise SourceError(
                    f"{spec.path}: frames of {height}x{width} are smaller than the preset's images of "
                    f"{request.side_pixels} pixels; take a smaller preset"
                )
            if request.whole and source.shape[0] != source.shape[1]:
                raise SourceError(f"{spec.path}: --whole needs square frames; without it windows are cut")
        probe: list[np.ndarray] = []
        for some in self.frames():
            probe.append(some)
            if sum(map(len, probe)) >= PROBED or sum(part.size for part in probe) >= MOST_PIXELS:
                break
        if not probe:
            raise SourceError(f"{spec.path}: holds no frames")
        self.measure(np.concatenate(probe))

    @property
    def name(self) -> str:
        """Its path."""
        return self.spec.path

    def _open(self) -> Source:
        return open_source(self.spec)

    def frames(self) -> Iterator[np.ndarray]:
        """All of them."""
        with self._open() as source:
            count = min(AT_A_TIME, max(1, MOST_PIXELS // (source.shape[0] * source.shape[1])))
            while (batch := source.read(count)) is not None:
                if len(batch):
                    yield batch.frames.astype(np.float32)

    def windows_per_frame(self, shape: tuple[int, int], count: int) -> int:
        """As many as lie side by side, unless fewer of each are enough."""
        side = self.request.side_pixels
        most = (shape[0] // side) * (shape[1] // side)
        return min(most, math.ceil(count / self.count) if self.count else MOST_WINDOWS)


def fourier_cropped(frames: np.ndarray, side: int) -> np.ndarray:
    """Square frames (b, H, H) brought to ``side`` pixels: their low frequencies, the mean kept."""
    full = frames.shape[-1]
    if full == side:
        return frames
    low, high = side // 2, side - side // 2
    spectrum = np.fft.rfft2(frames)[..., : side // 2 + 1]
    spectrum = np.concatenate([spectrum[..., :high, :], spectrum[..., full - low :, :]], axis=-2)
    return np.fft.irfft2(spectrum, s=(side, side)) * (side / full) ** 2


# ---- how it goes --------------------------------------------------------------------------------------


@contextmanager
def _stepping(recipe: Recipe, *, shown: bool) -> Generator[Callable[[int, float], None], None, None]:
    """A progress bar with loss, rate and time left; where there is no terminal, a line now and then."""
    console = Console(stderr=True, highlight=False)
    began: tuple[int, float] | None = None
    line_at = 0.0
    mean: float | None = None

    def figures(step: int) -> str:
        if began is None or mean is None or step == began[0]:
            return f"{step}/{recipe.steps}"
        rate = (step - began[0]) / max(time.monotonic() - began[1], 1e-9)
        left = timedelta(seconds=round((recipe.steps - step) / rate))
        speed = f"{rate * recipe.images_per_step:.1f} images/s"
        return f"{step}/{recipe.steps}  loss {mean:.4f}  {speed}  {left} left"

    bar = Progress(
        TextColumn("training"), BarColumn(), TextColumn("{task.fields[figures]}"),
        console=console, disable=not (shown and console.is_terminal),
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=recipe.steps, figures="")

        def report(step: int, loss: float) -> None:
            nonlocal began, line_at, mean
            mean = loss if mean is None else mean + (loss - mean) / RUNNING
            if began is None:
                began = (step, time.monotonic())
            bar.update(task, completed=step, figures=figures(step))
            if shown and not console.is_terminal and time.monotonic() >= line_at:
                line_at = time.monotonic() + LINE_EVERY_SECONDS
                console.print(f"training {figures(step)}")

        yield report
