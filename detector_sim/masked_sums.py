"""Integer frames through a coded aperture at the speed of memory: b masked sums for every block of pixels.

How it is fast. A detector that shares its machine with workers has one core, and a frame should cost little
more than to copy it. So each group of 64 columns is loaded once, for all rows of a row of blocks, and stays
in registers while all masks pass over it; a mask is laid out as the pixels are, 0 or all bits set, so that
one AND masks 32 pixels of 16 bits; masked pixels are added in 32-bit lanes, two pixels a lane, and only the
sums are folded from lanes to blocks. The measurements are written once, in the order in which they travel.

Tried on 4096x4096 uint16, K = 4, b = 8, one thread, as a fraction of the speed of copying the frame:
permuting pixels and multiplying matrices 0.02; loops that a compiler vectorises, over masks as bits 0.02, as
0/1 factors 0.19 (what they lose is the checks before each short loop, and the folding in memory); this, in
LLVM's vector instructions, 0.6. These are LLVM's own, not a particular processor's: any processor will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, gcd
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from common.compiled import compiled
from common.operators import CodedAperture

DTYPES = ("uint8", "int8", "uint16", "int16")
COLUMNS = 64  # pixels of a row worked at a time: two vectors of 32


@dataclass(frozen=True)
class MaskTable:
    """The plate of a coded aperture, laid out as the pixels are read.

    Attributes
    ----------
    kernel_size : int
        K, side of the blocks in pixels.
    side : int
        The power of two (at least 2) that blocks are padded to.
    lanes : (rows, groups, b, side, 64) int16
        0 where a hole is closed, -1 (all bits) where it is open; rows of blocks until the plate repeats, and
        groups of 64 (padded) columns until it does.
    """

    kernel_size: int
    side: int
    lanes: NDArray[np.int16]

    @classmethod
    def of(cls, operator: CodedAperture) -> MaskTable:
        """The table of an operator."""
        K, b = operator.kernel_size, operator.mask_count
        side = max(2, 1 << (K - 1).bit_length())
        blocks = COLUMNS // side
        period = operator.tile // K
        _, block_rows, block_columns = operator.measurement_shape
        rows = min(period, block_rows)
        groups = min(period // gcd(period, blocks), ceil(block_columns / blocks))
        column = np.arange(groups * blocks) % period
        by_block = operator.masks.reshape(b, period, K, period, K)[:, :rows][:, :, :, column]
        # aligned to cache lines: a load that straddles two of them takes twice the time
        memory = np.zeros(rows * groups * b * side * COLUMNS + 32, np.int16)
        start = -memory.ctypes.data % 64 // 2
        lanes = memory[start : memory.size - 32 + start].reshape(rows, groups, b, side, blocks, side)
        lanes[:, :, :, :K, :, :K] = (
            -by_block.reshape(b, rows, K, groups, blocks, K).transpose(1, 3, 0, 2, 4, 5).astype(np.int16)
        )
        return cls(K, side, lanes.reshape(rows, groups, b, side, COLUMNS))


def measure(frames: NDArray[Any], table: MaskTable, out: NDArray[Any]) -> None:
    """Sum integer frames through all masks, exactly.

    Parameters
    ----------
    frames : (B, H, W) uint8, int8, uint16 or int16
    table : MaskTable
        Of the operator for (H, W).
    out : (B, b, ceil(H/K), ceil(W/K)) int16 or int32
        Where the sums go; wide enough for K^2 times the largest value.
    """
    frames = np.ascontiguousarray(frames, frames.dtype.newbyteorder("=")).view()
    # memory-mapped frames are read-only; so that both need one compilation, all are
    frames.flags.writeable = False
    _measure(frames, table.kernel_size, (0,) * (table.side.bit_length() - 1), table.lanes, out)


@compiled
def _measure(frames, kernel_size, doublings, lanes, out):  # compiled
    """``doublings``: as many as make the padded side of 1; a tuple, for its length is part of its type."""
    count, height, width = frames.shape
    masks, block_rows, block_columns = out.shape[1:]
    rows, groups, _, side, columns = lanes.shape
    blocks = columns // side
    pixels, lane, sums = frames.reshape(-1), lanes.reshape(-1), out.reshape(-1)
    patch = np.zeros(side * columns, frames.dtype)
    patch_sums = np.empty(masks * blocks, out.dtype)
    plane = block_rows * block_columns
    for n in range(count):
        for row in range(block_rows):
            top = row * kernel_size
            covered = min(kernel_size, height - top)
            for first in range(0, block_columns, blocks):
                mask = ((row % rows) * groups + first // blocks % groups) * masks * side * columns
                target = n * masks * plane + row * block_columns + first
                left = first * kernel_size
                if covered == side and left + columns <= width and kernel_size == side:
                    start = (n * height + top) * width + left
                    _masked_group(doublings, pixels, start, width, lane, mask, sums, target, plane, masks)
                    continue
                # over the edge, or blocks that need padding: from a copy with zeros where there is no pixel
                present = min(blocks, block_columns - first)
                patch[:] = 0
                for r in range(covered):
                    source = (n * height + top + r) * width + left
                    for block in range(present):
                        place = r * columns + block * side
                        for c in range(min(kernel_size, width - left - block * kernel_size)):
                            patch[place + c] = pixels[source + c]
                        source += kernel_size
                _masked_group(doublings, patch, 0, columns, lane, mask, patch_sums, 0, blocks, masks)
                for i in range(masks):
                    for block in range(present):
                        sums[target + i * plane + block] = patch_sums[i * blocks + block]


@intrinsic
def _masked_group(typing_context, doublings, pixels, start, width, lane, mask, sums, target, plane, masks):
    """Blocks of one group of columns through all masks.

    ``pixels[start + r * width + c]``, r < side, c < 64, against ``lane[mask + (i * side + r) * 64 + c]`` into
    ``sums[target + i * plane + block]``, for each mask i.
    """
    side = 2 ** len(doublings)
    signature = types.void(
        doublings, pixels, types.intp, types.intp, lane, types.intp, sums, types.intp, types.intp, types.intp
    )

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Sequence[Any]) -> Any:
        def data(position: int) -> Any:
            array_type = signature.args[position]
            return context.make_array(array_type)(context, builder, arguments[position]).data

        def at(array: Any, offset: Any, vector: ir.VectorType) -> Any:
            return builder.bitcast(builder.gep(array, [offset]), vector.as_pointer())

        def load(array: Any, offset: Any, vector: ir.VectorType) -> Any:
            return builder.load(at(array, offset, vector), align=vector.element.width // 8)

        def plus(value: Any, number: int) -> Any:
            return builder.add(value, ir.Constant(value.type, number))

        def times(value: Any, number: int) -> Any:
            return builder.mul(value, ir.Constant(value.type, number))

        _, _, start, width, _, mask, _, target, plane, masks = arguments
        pixels, lane, sums = data(1), data(4), data(6)
        dtype = signature.args[1].dtype
        halves = [(row, column) for column in (0, 32) for row in range(side)]

        def pixel_vector(row: int, column: int) -> Any:
            offset = plus(builder.add(start, times(width, row)), column)
            values = load(pixels, offset, _vector(32, dtype.bitwidth))
            if dtype.bitwidth == 16:
                return values
            return (builder.sext if dtype.signed else builder.zext)(values, _vector(32, 16))

        vectors = {half: pixel_vector(*half) for half in halves}
        with cgutils.for_range(builder, masks, intp=mask.type) as loop:
            open_holes = builder.add(mask, times(loop.index, side * COLUMNS))
            folded: list[Any] = []
            for column in (0, 32):
                masked = [
                    builder.and_(
                        vectors[row, column],
                        load(lane, plus(open_holes, row * COLUMNS + column), _vector(32, 16)),
                    )
                    for row in range(side)
                ]
                if dtype.bitwidth == 8:  # the sum of a column of bytes fits 16 bits
                    masked = [_sum(builder, masked)]
                folded.append(_sum_of_pairs(builder, masked, dtype.signed))
            # lanes hold two neighbouring columns; fold them until each holds a block
            if side > 2:
                folded = [_fold(builder, *folded)]
            for _ in range(len(doublings) - 2):
                folded = [_fold(builder, folded[0], folded[0], folded[0].type.count)]
            for part, values in enumerate(folded):
                width_out = signature.args[6].dtype.bitwidth
                narrow = builder.trunc(values, _vector(values.type.count, 16)) if width_out == 16 else values
                offset = builder.add(
                    builder.add(target, builder.mul(loop.index, plane)), ir.Constant(plane.type, 16 * part)
                )
                builder.store(narrow, at(sums, offset, narrow.type), align=width_out // 8)
        return context.get_dummy_value()

    return signature, generate


def _vector(count: int, bits: int) -> ir.VectorType:
    return ir.VectorType(ir.IntType(bits), count)


def _sum(builder: ir.IRBuilder, values: Sequence[Any]) -> Any:
    total = values[0]
    for value in values[1:]:
        total = builder.add(total, value)
    return total


def _sum_of_pairs(builder: ir.IRBuilder, values: Sequence[Any], signed: bool) -> Any:
    """The sum of vectors of 32 numbers of 16 bits, in 16 lanes of 32 bits, neighbours together."""
    pairs = [builder.bitcast(value, _vector(16, 32)) for value in values]
    sixteen = ir.Constant(pairs[0].type, [16] * 16)
    if signed:
        odd = _sum(builder, [builder.ashr(pair, sixteen) for pair in pairs])
        even = _sum(builder, [builder.ashr(builder.shl(pair, sixteen), sixteen) for pair in pairs])
        return builder.add(even, odd)
    odd = _sum(builder, [builder.lshr(pair, sixteen) for pair in pairs])
    low_half = ir.Constant(pairs[0].type, [0xFFFF] * 16)
    even = _sum(builder, [builder.and_(pair, low_half) for pair in pairs])
    return builder.add(even, odd)


def _fold(builder: ir.IRBuilder, first: Any, second: Any, count: int = 32) -> Any:
    """Sums of neighbouring lanes of ``first`` and ``second`` together (``count`` lanes in all)."""

    def every_other(start: int) -> Any:
        places = ir.Constant(_vector(count // 2, 32), list(range(start, count, 2)))
        return builder.shuffle_vector(first, second, places)

    return builder.add(every_other(0), every_other(1))
