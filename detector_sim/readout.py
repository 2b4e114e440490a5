"""Frames to measurements, and the configuration that says how they travel."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.configuration import CodecSpec, Configuration
from common.flat_level import FlatLevel
from common.operators import CodedAperture, LinearOperator, MaskSpec, OpenAperture
from common.session import ReadoutSpec
from detector_sim import masked_sums

EXACT_IN_FLOAT64 = 2**53
# a step finer than float32 resolves the largest measurement would only code rounding
FINEST_STEP = 2.0**-24


class Readout:
    """Takes frames through the mask of one configuration.

    Parameters
    ----------
    operator : LinearOperator
        The mask, for frames of its shape.
    codec : CodecSpec
        How the measurements will travel.
    """

    def __init__(self, operator: LinearOperator, codec: CodecSpec) -> None:
        self.operator = operator
        self.codec = codec
        self._level = FlatLevel(operator, codec.level)
        self._table = masked_sums.MaskTable.of(operator) if isinstance(operator, CodedAperture) else None
        self._memory = _ReusedMemory()

    def readout(self, frames: NDArray[Any]) -> NDArray[Any]:
        """Measure frames (B, H, W) of any real dtype: (B, *measurement_shape).

        Integer frames behind a coded or an open aperture give integers, exact and in a type wide enough,
        less what a flat image of the codec's level measures; all else gives float32.

        Raises
        ------
        ValueError
            If a frame has pixels that are not finite (naming the first such frame of the batch), or the
            frames are not of the operator's shape.
        """
        frames = np.asarray(frames)
        if frames.ndim != 3 or frames.shape[1:] != self.operator.shape:
            height, width = self.operator.shape
            raise ValueError(f"frames of shape (B, {height}, {width}) expected, got {frames.shape}")
        if frames.dtype.kind in "iu" and self.operator.is_integer:
            return self._integers(frames)
        if frames.dtype.kind == "f":
            spoiled = np.flatnonzero(~np.isfinite(frames).all(axis=(1, 2)))
            if spoiled.size:
                raise ValueError(f"frame {spoiled[0]} of the batch has pixels that are not finite")
        return self.operator.A(torch.from_numpy(np.require(frames, np.float32, ["C", "W"]))).numpy()

    def _integers(self, frames: NDArray[Any]) -> NDArray[Any]:
        if isinstance(self.operator, OpenAperture):
            return frames
        if self._table is not None and frames.dtype.name in masked_sums.DTYPES:
            shape = (len(frames), *self.operator.measurement_shape)
            out = self._memory.empty(shape, np.dtype(self._sum_dtype(frames.dtype)))
            masked_sums.measure(frames, self._table, out)
            return self._level.take_off(out)
        largest = max(-int(frames.min()), int(frames.max())) * self._pixels_per_sum
        if largest >= EXACT_IN_FLOAT64:
            raise ValueError(f"sums of {frames.dtype} pixels up to {largest:g} are too large to be exact")
        sums = self.operator.A(torch.from_numpy(frames.astype(np.float64))).numpy().astype(np.int64)
        return self._level.take_off(sums)

    def _sum_dtype(self, dtype: np.dtype[Any]) -> type[np.int16] | type[np.int32]:
        limits = np.iinfo(dtype)
        largest = max(-int(limits.min), int(limits.max)) * self._pixels_per_sum
        return np.int16 if largest <= np.iinfo(np.int16).max else np.int32

    @property
    def _pixels_per_sum(self) -> int:
        assert isinstance(self.operator, CodedAperture)
        return self.operator.kernel_size**2


class _ReusedMemory:
    """Memory for large arrays, used again once nobody holds the array or a part of it any more.

    The system hands out fresh memory page by page, each cleared, which for a micrograph takes longer than to
    measure it.
    """

    SMALLEST = 1 << 20  # bytes; what is smaller stays in the process's own memory anyway
    KEPT = 4

    def __init__(self) -> None:
        self._blocks: list[NDArray[np.uint8]] = []

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array whose contents are arbitrary."""
        size = math.prod(shape) * dtype.itemsize
        if size < self.SMALLEST:
            return np.empty(shape, dtype)
        for block in self._blocks:
            # held by the list, by the loop's variable and by the call itself; and by each array made of it
            if block.size >= size and sys.getrefcount(block) == 3:
                return block[:size].view(dtype).reshape(shape)
        block = np.empty(size, np.uint8)
        if len(self._blocks) < self.KEPT:
            self._blocks.append(block)
        return block.view(dtype).reshape(shape)


def make_configuration(
    mask: MaskSpec, shape: tuple[int, int], dtype: str, spec: ReadoutSpec, first_frames: NDArray[Any]
) -> tuple[Configuration, LinearOperator]:
    """Resolve every choice of how frames are measured and sent.

    Parameters
    ----------
    mask : MaskSpec
    shape : tuple[int, int]
        (height, width) of the frames in pixels.
    dtype : str
        NumPy name of the frames' dtype.
    spec : ReadoutSpec
        What was asked for. *auto* values: integers where frames and mask give integers, else quantised in
        steps of ``quantisation_sigma`` noise standard deviations. *auto* coding: plain for the whole integer
        frames of an open aperture, the conventional acquisition; bitshuffle-zstd for all else.
    first_frames : (B, H, W) array
        Frames to estimate the noise from.

    Raises
    ------
    ValueError
        If the mask does not fit the shape, the coding does not go with the values, or no frame is finite.
    """
    operator = mask.build(shape)
    gives_integers = operator.is_integer and np.dtype(dtype).kind in "iu"
    values = spec.values if spec.values != "auto" else "integer" if gives_integers else "quantised"
    is_raw = values == "integer" and isinstance(operator, OpenAperture)
    coding = spec.coding if spec.coding != "auto" else "plain" if is_raw else "bitshuffle-zstd"
    if coding == "packed" and values in ("float16", "float32"):
        raise ValueError(
            f"readout.coding: 'packed' is for integers and quantised values, not for {values}; "
            "choose 'plain', 'bitshuffle-lz4' or 'bitshuffle-zstd'"
        )
    step = (
        quantisation_step(operator, first_frames, spec.quantisation_sigma) if values == "quantised" else 0.0
    )
    level = round(float(first_frames.mean())) if values == "integer" and not is_raw else 0
    configuration = Configuration.create(
        mask,
        shape,
        dtype,
        CodecSpec(values=values, step=step, coding=coding, level=level),
        mask_hash=operator.mask_hash,
        compression_factor=operator.compression_factor,
        printed_compression_factor=operator.printed_compression_factor,
    )
    return configuration, operator


def quantisation_step(operator: LinearOperator, frames: NDArray[Any], sigmas: float) -> float:
    """A step of ``sigmas`` noise standard deviations of the measurements, in their units; three digits.

    The noise is the median absolute deviation of the measurements from those of a flat image of the same
    level (which leaves out DC, and how many holes each block has open); a picture's few strong
    coefficients hardly move it.

    Raises
    ------
    ValueError
        If not one of the frames (B, H, W) is finite.
    """
    finite = frames[np.isfinite(frames).all(axis=(1, 2))]
    if not len(finite):
        raise ValueError("the first frames have pixels that are not finite; there is nothing to measure")
    y = operator.A(torch.from_numpy(finite.astype(np.float64)))
    flat = operator.A(torch.ones(1, *operator.shape, dtype=torch.float64))
    level = operator.mean_level(y).view(-1, *[1] * (y.ndim - 1))
    residual = (y - level * flat).numpy()
    noise = 1.4826 * float(np.median(np.abs(residual - np.median(residual))))
    step = max(sigmas * noise, FINEST_STEP * float(y.abs().max()))
    return float(f"{step:.3g}") if step > 0 else 1.0
