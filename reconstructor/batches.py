"""From blocks to images: decode, recover in batches of one configuration, judge the reference frames."""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch

from common.calibration import Calibration
from common.clock import SteadyClock
from common.configuration import Configuration
from common.flat_level import FlatLevel
from common.operators.base import LinearOperator
from common.session import LEARNED, RecoverySpec
from common.wire.codec import decode_array
from common.wire.control import error_line
from common.wire.messages import ConfigurationNotice, Frames, Start
from reconstructor.lpips import SMALLEST_SIDE, Lpips
from reconstructor.memory import (
    PAUSES_SECONDS,
    BatchKey,
    BatchLimits,
    does_not_fit,
    is_out_of_memory,
    release,
)
from reconstructor.pace import Pace
from reconstructor.quality import frc, frc_resolution, lpips, psnr, ssim
from reconstructor.recovery import Recovered, Recovery, check_recovery
from reconstructor.recovery.diffusion import DiffusionParameters
from reconstructor.writer import Learned, Results

log = logging.getLogger(__name__)

RECOVERIES_KEPT = 8
JOINED_PIXELS = 2_097_152  # small blocks are recovered together up to this; larger ones overlap with writing
HIGHEST_PSNR = 200.0  # where image and reference are equal to rounding


class Block(NamedTuple):
    """A message with frames, as it came."""

    header: Frames
    buffers: Sequence[memoryview]


@dataclass(frozen=True)
class RecoveryChoice:
    """The recovery in force; ``recovery_id`` stands in every frame's line of the table."""

    spec: RecoverySpec
    recovery_id: str


@dataclass(eq=False, slots=True)
class Outcome:
    """What became of a block: results to be written, and frames that could not be recovered."""

    block: Block
    results: Results | None
    rejected: dict[int, str] = field(default_factory=dict)  # frame_id -> reason
    is_last: bool = True  # of the outcomes of this block, where it is recovered frame by frame


class _Told(NamedTuple):
    """What a recovery says of a frame beside its image."""

    free_residual: float | None
    learned: Learned | None


@dataclass(frozen=True, eq=False)
class _Task:
    """What blocks are recovered with; ``evaluations`` of a learned prior, if that is used."""

    configuration: Configuration
    operator: LinearOperator
    recovery: Recovery
    choice: RecoveryChoice
    evaluations: int | None

    @property
    def key(self) -> BatchKey:
        return BatchKey(self.configuration.config_id, self.choice.spec.method)


class Recoverer:
    """Recovers the blocks of one series after another.

    Operators and recoveries are built when first needed and kept, the ``RECOVERIES_KEPT`` used last.

    Parameters
    ----------
    batch_pixels : int
        Pixels recovered at a time; a frame that is larger is recovered alone. Where memory does not hold
        as many, fewer are: see ``reconstructor.memory``.
    batch_changed : callable
        ``batch_changed(key, frames, is_less)``: so many frames are recovered at a time from now on.
    keeps_pace : bool
        Give a learned prior as many evaluations as the stream leaves time for, where the user does not say
        how many.
    lpips : Lpips, optional
        Reference frames are judged by it too.

    Attributes
    ----------
    pace : Pace or None
        Of the learned prior that frames are recovered with, in a stream that it must keep up with.
    joined_frames : int
        Up to how many frames of the series it pays to recover blocks together.
    frames_per_batch : int
        How many frames of the series are recovered in one call at most.
    frames_at_a_time : int
        How many the last call took at most: ``frames_per_batch`` where memory is not short.
    """

    def __init__(
        self,
        device: torch.device,
        batch_pixels: int,
        batch_changed: Callable[[BatchKey, int, bool], None] = lambda key, frames, is_less: None,
        *,
        keeps_pace: bool = False,
        lpips: Lpips | None = None,
    ) -> None:
        self._device, self._batch_pixels, self._lpips = device, batch_pixels, lpips
        self._keeps_pace = keeps_pace
        self._pace_of = ""  # the recovery_id that it is measured for
        self.pace: Pace | None = None
        self._clock = SteadyClock()
        self._configurations: dict[str, Configuration] = {}
        self._operators: OrderedDict[str, LinearOperator] = OrderedDict()
        self._recoveries: OrderedDict[tuple[str, str, int | None], Recovery] = OrderedDict()
        self._fresh: Recovery | None = None  # built and not called yet: its first call tells no cost
        self._levels: dict[str, FlatLevel] = {}
        self._limits = BatchLimits(batch_changed)
        self._pauses: Iterator[float] = iter(())
        self._series = ""
        self.frames_per_batch = self.frames_at_a_time = 1
        self.joined_frames = 1

    @property
    def batch_halvings(self) -> int:
        """How often a batch did not fit into memory and was halved."""
        return self._limits.halvings

    def start(self, start: Start) -> None:
        """Begin a series."""
        self._clock.set()
        self._series = start.series
        self._pixel_size = start.pixel_size_angstrom
        self._calibration = Calibration.model_validate(start.calibration)
        pixels = start.shape[0] * start.shape[1]
        self.frames_per_batch = self.frames_at_a_time = max(1, self._batch_pixels // pixels)
        self.joined_frames = max(1, min(self._batch_pixels, JOINED_PIXELS) // pixels)
        self._configurations.clear()
        self._levels.clear()
        self._recoveries.clear()  # they depend on the calibration
        self._pace_of = ""

    def configure(self, notice: ConfigurationNotice) -> bool:
        """Take note of a configuration; False if it was known."""
        configuration = Configuration.model_validate(notice.configuration)
        known = configuration.config_id in self._configurations
        self._configurations[configuration.config_id] = configuration
        return not known

    def keep_pace(self, choice: RecoveryChoice) -> Pace | None:
        """What is measured of a recovery in this series' stream; None where it has no learned prior."""
        if not self._keeps_pace or choice.spec.method != LEARNED:
            self.pace, self._pace_of = None, ""
        elif choice.recovery_id != self._pace_of:
            self.pace, self._pace_of = Pace(_fixed_evaluations(choice.spec)), choice.recovery_id
        return self.pace

    def _evaluations(self, choice: RecoveryChoice) -> int | None:
        """Of a learned prior, for the frames that are recovered next."""
        if choice.spec.method != LEARNED:
            return None
        pace = self.keep_pace(choice)
        return _parameters(choice.spec).evaluations if pace is None else pace.standing.evaluations

    def recover(self, blocks: Sequence[Block], choice: RecoveryChoice) -> list[Outcome]:
        """Recover blocks of one configuration together; one outcome for each, in order.

        If that fails each block is tried alone, and halved as long as it fails, so that a bad frame does not
        take others with it.
        """
        self._pauses = iter(PAUSES_SECONDS)
        try:
            task = self._prepare(blocks[0].header, choice)
        except Exception as error:
            log.exception("no recovery for configuration %s", blocks[0].header.config_id)
            reason = error_line(error)
            return [Outcome(block, None, dict.fromkeys(wanted_frames(block), reason)) for block in blocks]
        try:
            return self._together(blocks, task)
        except Exception:
            log.warning("a batch failed: what of it can be recovered is", exc_info=True)
        return [self._apart(block, task) for block in blocks]

    def _prepare(self, header: Frames, choice: RecoveryChoice) -> _Task:
        configuration = self._configurations.get(header.config_id)
        if configuration is None or header.series != self._series:
            raise ValueError(f"configuration {header.config_id} of series {header.series} was not announced")
        evaluations = self._evaluations(choice)
        key = (configuration.config_id, choice.recovery_id, evaluations)
        if key not in self._recoveries:
            try:
                recovery = self._built(configuration, choice, evaluations)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                recovery = None
            if recovery is None:  # again, without those that are kept, once the error holds nothing any more
                self._make_room()
                recovery = self._built(configuration, choice, evaluations)
            self._recoveries[key] = self._fresh = recovery
        self._recoveries.move_to_end(key)
        if len(self._recoveries) > RECOVERIES_KEPT:
            self._recoveries.popitem(last=False)
        return _Task(configuration, self._operator(configuration), self._recoveries[key], choice, evaluations)

    def _built(
        self, configuration: Configuration, choice: RecoveryChoice, evaluations: int | None
    ) -> Recovery:
        spec = choice.spec
        if evaluations is not None:
            spec = spec.model_copy(update={"parameters": {**spec.parameters, "evaluations": evaluations}})
        return Recovery(self._operator(configuration), spec, self._calibration)

    def _make_room(self) -> None:
        """Let go of everything that can be built again."""
        self._recoveries.clear()
        self._operators.clear()
        self._levels.clear()
        release(self._device)

    def _operator(self, configuration: Configuration) -> LinearOperator:
        key = configuration.config_id
        if key not in self._operators:
            operator = configuration.mask.build(configuration.shape)
            if operator.mask_hash != configuration.mask_hash:
                raise ValueError(
                    f"mask drawn here ({operator.mask_hash}) differs from the detector's "
                    f"({configuration.mask_hash}): both ends must run the same version"
                )
            self._operators[key] = operator.on(self._device)
        self._operators.move_to_end(key)
        if len(self._operators) > RECOVERIES_KEPT:
            self._operators.popitem(last=False)
        return self._operators[key]

    def _together(self, blocks: Sequence[Block], task: _Task) -> list[Outcome]:
        rows = [_rows(block) for block in blocks]
        parts = [
            self._measurements(block, block_rows, task)
            for block, block_rows in zip(blocks, rows, strict=True)
        ]
        frame_ids = [
            frame
            for block, block_rows in zip(blocks, rows, strict=True)
            for frame in _frame_ids(block, block_rows)
        ]
        images, told = self._images(parts[0] if len(parts) == 1 else np.concatenate(parts), frame_ids, task)
        outcomes: list[Outcome] = []
        first = 0
        for block, block_rows in zip(blocks, rows, strict=True):
            last = first + len(block_rows)
            results = self._results(block, block_rows, images[first:last], told[first:last], task)
            outcomes.append(Outcome(block, results))
            first = last
        return outcomes

    def _apart(self, block: Block, task: _Task) -> Outcome:
        """What can be recovered of a block of which something cannot."""
        rows = _rows(block)
        outcome = Outcome(block, None)
        try:
            measurements = self._measurements(block, rows, task)
        except Exception as error:
            outcome.rejected = dict.fromkeys(wanted_frames(block), error_line(error))
        else:
            found = list(self._halved(block, rows, measurements, task, outcome.rejected))
            outcome.results = _joined(found) if found else None
        for reason in dict.fromkeys(outcome.rejected.values()):
            frames = [frame for frame, why in outcome.rejected.items() if why == reason]
            log.warning("frames %s cannot be recovered: %s", frames, reason)
        return outcome

    def _halved(
        self,
        block: Block,
        rows: Sequence[int],
        measurements: np.ndarray,
        task: _Task,
        rejected: dict[int, str],
    ) -> Iterator[Results]:
        """Results of those frames that can be recovered; the others go into ``rejected``, with the reason."""
        try:
            found = self._images(measurements, _frame_ids(block, rows), task)
            results = self._results(block, rows, *found, task)
        except Exception as error:
            if len(rows) == 1:
                is_sound = np.isfinite(measurements).all()
                rejected[block.header.frame_ids[rows[0]]] = (
                    error_line(error) if is_sound else "the measurement holds numbers that are not finite"
                )
                return
        else:
            yield results
            return
        middle = len(rows) // 2
        for part in (slice(None, middle), slice(middle, None)):
            yield from self._halved(block, rows[part], measurements[part], task, rejected)

    def _measurements(self, block: Block, rows: Sequence[int], task: _Task) -> np.ndarray:
        """Measurements of some frames of a block, (len(rows), *measurement_shape)."""
        shape = (len(block.header.frame_ids), *task.operator.measurement_shape)
        measurements = decode_array(block.header.payload, block.buffers[0], shape)
        if len(rows) < len(measurements):
            measurements = measurements[list(rows)]
        level = self._levels.get(task.configuration.config_id)
        if level is None:
            level = FlatLevel(task.operator, task.configuration.codec.level)
            self._levels[task.configuration.config_id] = level
        return level.put_back(measurements)

    def _images(
        self, measurements: np.ndarray, frame_ids: Sequence[int], task: _Task
    ) -> tuple[np.ndarray, list[_Told]]:
        """Images (n, H, W) float32 of measurements (n, *measurement_shape), and what is said of each."""
        images: list[np.ndarray] = []
        told: list[_Told] = []
        most, limits, key = self.frames_per_batch, self._limits, task.key
        first = 0
        while first < len(measurements):
            self.frames_at_a_time = size = limits.frames(key, most)
            part = measurements[first : first + size]
            found = self._image_batch(part, frame_ids[first : first + size], task)
            if found is not None:
                limits.went_well(key, len(part), most)
                images.append(found[0])
                told += found[1]
                first += len(part)
            elif len(part) > 1:
                limits.halve(key, len(part), most)
                release(self._device)
            else:
                self._await_memory(task)
        return images[0] if len(images) == 1 else np.concatenate(images), told

    def _image_batch(
        self, measurements: np.ndarray, frame_ids: Sequence[int], task: _Task
    ) -> tuple[np.ndarray, list[_Told]] | None:
        """The same of as many as are recovered in one call; None if memory does not hold them."""
        is_fresh, self._fresh, began = task.recovery is self._fresh, None, time.monotonic()
        try:
            y = torch.from_numpy(measurements.astype(np.float32, copy=False)).to(self._device)
            recovered = task.recovery(y, frame_ids)
            if not torch.isfinite(recovered.images.sum()):  # one number tells of any that is not
                raise ValueError("the recovered image is not finite")
            residual = [_known(value) for value in recovered.free_residual.tolist()]
            images = recovered.images.cpu().numpy()
            if task.evaluations is not None and self.pace is not None and not is_fresh:
                self.pace.took(len(images), task.evaluations, time.monotonic() - began)
            learned = _learned(recovered, task.evaluations)
            return images, [_Told(*of_frame) for of_frame in zip(residual, learned, strict=True)]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        return None  # only here the error, which holds what was computed, is gone

    def _await_memory(self, task: _Task) -> None:
        """One frame alone did not fit: give back what can be, and wait whether others do, now and then.

        Raises
        ------
        MemoryError
            If that was done already for these blocks.
        """
        pause = next(self._pauses, None)
        if pause is None:
            shape = task.configuration.shape
            raise MemoryError(does_not_fit(shape, task.choice.spec.method, self._device))
        kept = (task.configuration.config_id, task.choice.recovery_id, task.evaluations)
        self._make_room()
        self._recoveries[kept], self._operators[kept[0]] = task.recovery, task.operator
        time.sleep(pause)

    def _results(
        self,
        block: Block,
        rows: Sequence[int],
        images: np.ndarray,
        told: Sequence[_Told],
        task: _Task,
    ) -> Results:
        results = Results(
            header=block.header,
            buffers=block.buffers,
            rows=rows,
            images=images,
            compression_factor=task.configuration.compression_factor,
            recovery_id=task.choice.recovery_id,
            method=task.choice.spec.method,
            recovered_at=self._clock.now(),
            free_residual=[of_frame.free_residual for of_frame in told],
            learned=[of_frame.learned for of_frame in told if of_frame.learned is not None],
        )
        self._judge(results, task)
        return results

    def _judge(self, results: Results, task: _Task) -> None:
        """Compare the frames that were also sent whole."""
        header = results.header
        if header.reference_payload is None:
            return
        positions = {header.frame_ids[row]: k for k, row in enumerate(results.rows)}
        present = [(k, frame) for k, frame in enumerate(header.reference_ids) if frame in positions]
        if not present:
            return
        shape = (len(header.reference_ids), *task.configuration.shape)
        whole = decode_array(header.reference_payload, results.buffers[1], shape)
        for k, frame in present:  # one at a time: float64 transforms of micrographs are large
            pair = results.images[positions[frame]], whole[k].astype(np.float32)
            figures = self._compared(*pair, self._device)
            if figures is None:  # a GPU whose memory the recovery fills
                release(self._device)
                figures = self._compared(*pair, torch.device("cpu"))
            if figures is None:
                raise MemoryError("out of memory while a reference frame was compared")
            measured = (results.psnr, results.ssim, results.lpips, results.frc_resolution_angstrom)
            for named, value in zip(measured, figures, strict=True):
                if _known(value) is not None:
                    named[frame] = value

    def _compared(
        self, recovered: np.ndarray, whole: np.ndarray, device: torch.device
    ) -> tuple[float, float, float, float] | None:
        """PSNR in dB, SSIM, LPIPS (NaN: not measured) and resolution in angstrom of an image (H, W).

        None if memory does not suffice.
        """
        try:
            reference = torch.from_numpy(whole[None]).to(device)
            image = torch.from_numpy(recovered[None]).to(device)
            resolution = frc_resolution(frc(image, reference), self._pixel_size, side=max(image.shape[1:]))
            found = min(float(psnr(image, reference)), HIGHEST_PSNR)
            perceived = math.nan
            if self._lpips is not None and min(recovered.shape) >= SMALLEST_SIDE:
                perceived = float(lpips(image, reference, self._lpips))
            return found, float(ssim(image, reference)), perceived, float(resolution)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        return None


def _joined(found: Sequence[Results]) -> Results:
    """Parts of one block, in order, as one."""
    first = found[0]
    if len(found) == 1:
        return first
    return replace(
        first,
        rows=[row for part in found for row in part.rows],
        images=np.concatenate([part.images for part in found]),
        free_residual=[value for part in found for value in part.free_residual],
        learned=[value for part in found for value in part.learned],
        psnr={frame: value for part in found for frame, value in part.psnr.items()},
        ssim={frame: value for part in found for frame, value in part.ssim.items()},
        lpips={frame: value for part in found for frame, value in part.lpips.items()},
        frc_resolution_angstrom={
            frame: value for part in found for frame, value in part.frc_resolution_angstrom.items()
        },
    )


def _rows(block: Block) -> Sequence[int]:
    """Which frames of a block are to be recovered."""
    header = block.header
    if header.wanted is None:
        return range(len(header.frame_ids))
    wanted = set(header.wanted)
    return [row for row, frame in enumerate(header.frame_ids) if frame in wanted]


def _frame_ids(block: Block, rows: Sequence[int]) -> list[int]:
    return [block.header.frame_ids[row] for row in rows]


def wanted_frames(block: Block) -> list[int]:
    """The frame_ids of a block that are to be recovered."""
    return _frame_ids(block, _rows(block))


def _fixed_evaluations(spec: RecoverySpec) -> int | None:
    """How many evaluations a learned prior is given whatever they cost; None where that is left open."""
    parameters = _parameters(spec)
    is_open = parameters.sampler == "posterior" and spec.parameters.get("evaluations") is None
    return None if is_open else parameters.evaluations


def _parameters(spec: RecoverySpec) -> DiffusionParameters:
    parameters = check_recovery(spec)
    assert isinstance(parameters, DiffusionParameters)
    return parameters


def _learned(recovered: Recovered, evaluations: int | None) -> list[Learned | None]:
    """What the prior did to each frame; None of each where none was used."""
    if evaluations is None:
        return [None] * len(recovered.images)
    shifts = recovered.prior_shift.tolist()
    spread = recovered.spread
    spreads = [math.nan] * len(shifts) if spread is None else spread.flatten(1).mean(1).tolist()
    return [Learned(_finite(a), _finite(b), evaluations) for a, b in zip(shifts, spreads, strict=True)]


def _finite(value: float) -> float | None:
    """The value, unless it is no number or infinite (a flat image, one sample)."""
    return value if math.isfinite(value) else None


def _known(value: float) -> float | None:
    """The value, unless it is not a number (nothing was held out, a constant reference)."""
    return None if math.isnan(value) else value
