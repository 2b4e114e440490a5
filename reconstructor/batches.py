"""From blocks to images: decode, recover in batches of one configuration, judge the reference frames."""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from common.calibration import Calibration
from common.configuration import Configuration
from common.flat_level import FlatLevel
from common.operators.base import LinearOperator
from common.session import RecoverySpec
from common.wire.codec import decode_array
from common.wire.control import error_line
from common.wire.messages import ConfigurationNotice, Frames, Start
from reconstructor.quality import frc, frc_resolution, psnr, ssim
from reconstructor.recovery import Recovery
from reconstructor.writer import Results

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


class Recoverer:
    """Recovers the blocks of one series after another.

    Operators and recoveries are built when first needed and kept, the ``RECOVERIES_KEPT`` used last.

    Parameters
    ----------
    batch_pixels : int
        Pixels recovered at a time; a frame that is larger is recovered alone.

    Attributes
    ----------
    joined_frames : int
        Up to how many frames of the series it pays to recover blocks together.
    frames_per_batch : int
        How many frames of the series are recovered in one call at most.
    """

    def __init__(self, device: torch.device, batch_pixels: int) -> None:
        self._device, self._batch_pixels = device, batch_pixels
        self._configurations: dict[str, Configuration] = {}
        self._operators: OrderedDict[str, LinearOperator] = OrderedDict()
        self._recoveries: OrderedDict[tuple[str, str], Recovery] = OrderedDict()
        self._levels: dict[str, FlatLevel] = {}
        self._series = ""
        self.frames_per_batch = 1
        self.joined_frames = 1

    def start(self, start: Start) -> None:
        """Begin a series."""
        self._series = start.series
        self._pixel_size = start.pixel_size_angstrom
        self._calibration = Calibration.model_validate(start.calibration)
        pixels = start.shape[0] * start.shape[1]
        self.frames_per_batch = max(1, self._batch_pixels // pixels)
        self.joined_frames = max(1, min(self._batch_pixels, JOINED_PIXELS) // pixels)
        self._configurations.clear()
        self._levels.clear()
        self._recoveries.clear()  # they depend on the calibration

    def configure(self, notice: ConfigurationNotice) -> bool:
        """Take note of a configuration; False if it was known."""
        configuration = Configuration.model_validate(notice.configuration)
        known = configuration.config_id in self._configurations
        self._configurations[configuration.config_id] = configuration
        return not known

    def recover(self, blocks: Sequence[Block], choice: RecoveryChoice) -> list[Outcome]:
        """Recover blocks of one configuration together; one outcome for each, in order.

        If that fails they are tried frame by frame, so that a bad frame does not take others with it.
        """
        try:
            configuration, recovery = self._prepare(blocks[0].header, choice)
        except Exception as error:
            log.exception("no recovery for configuration %s", blocks[0].header.config_id)
            reason = error_line(error)
            return [Outcome(block, None, dict.fromkeys(_wanted(block), reason)) for block in blocks]
        try:
            return self._together(blocks, configuration, recovery, choice)
        except Exception:
            log.warning("a batch failed, its frames are tried one by one", exc_info=True)
        return [self._one_by_one(block, configuration, recovery, choice) for block in blocks]

    def _prepare(self, header: Frames, choice: RecoveryChoice) -> tuple[Configuration, Recovery]:
        configuration = self._configurations.get(header.config_id)
        if configuration is None or header.series != self._series:
            raise ValueError(f"configuration {header.config_id} of series {header.series} was not announced")
        key = (configuration.config_id, choice.recovery_id)
        if key not in self._recoveries:
            operator = self._operator(configuration)
            self._recoveries[key] = Recovery(operator, choice.spec, self._calibration)
        self._recoveries.move_to_end(key)
        if len(self._recoveries) > RECOVERIES_KEPT:
            self._recoveries.popitem(last=False)
        return configuration, self._recoveries[key]

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

    def _together(
        self,
        blocks: Sequence[Block],
        configuration: Configuration,
        recovery: Recovery,
        choice: RecoveryChoice,
    ) -> list[Outcome]:
        rows = [_rows(block) for block in blocks]
        parts = [
            self._measurements(block, block_rows, configuration)
            for block, block_rows in zip(blocks, rows, strict=True)
        ]
        images, free_residual = self._images(parts[0] if len(parts) == 1 else np.concatenate(parts), recovery)
        outcomes: list[Outcome] = []
        first = 0
        for block, block_rows in zip(blocks, rows, strict=True):
            last = first + len(block_rows)
            results = self._results(
                block, block_rows, images[first:last], free_residual[first:last], configuration, choice
            )
            outcomes.append(Outcome(block, results))
            first = last
        return outcomes

    def _one_by_one(
        self, block: Block, configuration: Configuration, recovery: Recovery, choice: RecoveryChoice
    ) -> Outcome:
        rows, images, free_residual = [], [], []
        rejected: dict[int, str] = {}
        for row in _rows(block):
            try:
                image, residual = self._images(self._measurements(block, [row], configuration), recovery)
            except Exception as error:
                rejected[block.header.frame_ids[row]] = error_line(error)
            else:
                rows.append(row)
                images.append(image[0])
                free_residual.extend(residual)
        if not rows:
            return Outcome(block, None, rejected)
        results = self._results(block, rows, np.stack(images), free_residual, configuration, choice)
        return Outcome(block, results, rejected)

    def _measurements(self, block: Block, rows: Sequence[int], configuration: Configuration) -> np.ndarray:
        """Measurements of some frames of a block, (len(rows), *measurement_shape)."""
        measurements = decode_array(block.header.payload, block.buffers[0])
        if len(measurements) != len(block.header.frame_ids):
            frames = len(block.header.frame_ids)
            raise ValueError(f"{len(measurements)} measurements came for {frames} frames")
        if len(rows) < len(measurements):
            measurements = measurements[list(rows)]
        level = self._levels.get(configuration.config_id)
        if level is None:
            level = FlatLevel(self._operator(configuration), configuration.codec.level)
            self._levels[configuration.config_id] = level
        return level.put_back(measurements)

    def _images(self, measurements: np.ndarray, recovery: Recovery) -> tuple[np.ndarray, list[float | None]]:
        """Images (n, H, W) float32 of measurements (n, *measurement_shape), and their free residuals."""
        images: list[np.ndarray] = []
        free_residual: list[float | None] = []
        for first in range(0, len(measurements), self.frames_per_batch):
            part = measurements[first : first + self.frames_per_batch].astype(np.float32, copy=False)
            recovered = recovery(torch.from_numpy(part).to(self._device))
            if not torch.isfinite(recovered.images.sum()):  # one number tells of any that is not
                raise ValueError("the recovered image is not finite")
            images.append(recovered.images.cpu().numpy())
            free_residual += [_known(value) for value in recovered.free_residual.tolist()]
        return images[0] if len(images) == 1 else np.concatenate(images), free_residual

    def _results(
        self,
        block: Block,
        rows: Sequence[int],
        images: np.ndarray,
        free_residual: Sequence[float | None],
        configuration: Configuration,
        choice: RecoveryChoice,
    ) -> Results:
        results = Results(
            header=block.header,
            buffers=block.buffers,
            rows=rows,
            images=images,
            compression_factor=configuration.compression_factor,
            recovery_id=choice.recovery_id,
            method=choice.spec.method,
            recovered_at=time.time(),
            free_residual=free_residual,
        )
        self._judge(results)
        return results

    def _judge(self, results: Results) -> None:
        """Compare the frames that were also sent whole."""
        header = results.header
        if header.reference_payload is None:
            return
        positions = {header.frame_ids[row]: k for k, row in enumerate(results.rows)}
        present = [(k, frame) for k, frame in enumerate(header.reference_ids) if frame in positions]
        if not present:
            return
        whole = decode_array(header.reference_payload, results.buffers[1])
        for k, frame in present:  # one at a time: float64 transforms of micrographs are large
            reference = torch.from_numpy(whole[k : k + 1].astype(np.float32)).to(self._device)
            position = positions[frame]
            image = torch.from_numpy(results.images[position : position + 1]).to(self._device)
            resolution = frc_resolution(frc(image, reference), self._pixel_size, side=max(image.shape[1:]))
            for figures, value in (
                (results.psnr, min(float(psnr(image, reference)), HIGHEST_PSNR)),
                (results.ssim, float(ssim(image, reference))),
                (results.frc_resolution_angstrom, float(resolution)),
            ):
                if _known(value) is not None:
                    figures[frame] = value


def _rows(block: Block) -> Sequence[int]:
    """Which frames of a block are to be recovered."""
    header = block.header
    if header.wanted is None:
        return range(len(header.frame_ids))
    wanted = set(header.wanted)
    return [row for row, frame in enumerate(header.frame_ids) if frame in wanted]


def _wanted(block: Block) -> list[int]:
    return [block.header.frame_ids[row] for row in _rows(block)]


def _known(value: float) -> float | None:
    """The value, unless it is not a number (nothing was held out, a constant reference)."""
    return None if math.isnan(value) else value
