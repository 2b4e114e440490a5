"""Frames are read out exactly as the operator says, in integers wherever that is possible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.configuration import CodecSpec
from common.flat_level import FlatLevel
from common.operators import CodedAperture, LinearOperator, MaskSpec, OpenAperture, PhasePlate
from common.session import ReadoutSpec
from common.wire.codec import decode_array, encode_array
from detector_sim.masked_sums import DTYPES
from detector_sim.readout import Readout, make_configuration, quantisation_step

PACKED = CodecSpec(values="integer", coding="packed")
FLOAT = CodecSpec(values="float32", coding="plain")


def random_frames(shape: tuple[int, int, int], dtype: str, seed: int = 0) -> NDArray[Any]:
    """Frames over the whole range of their dtype, its ends included."""
    info = np.iinfo(dtype)
    frames = np.random.default_rng(seed).integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    frames[0, 0, 0], frames[-1, -1, -1] = info.min, info.max
    return frames


def exact(op: LinearOperator, frames: NDArray[Any]) -> NDArray[Any]:
    return op.A(torch.from_numpy(frames.astype(np.float64))).numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "kernel_size", "mask_count", "tile"),
    [
        ((64, 64), 4, 8, None),
        ((64, 64), 2, 4, None),
        ((128, 256), 8, 42, None),
        ((64, 130), 16, 20, None),
        ((64, 64), 32, 30, None),
        ((128, 64), 64, 5, None),
        ((5, 7), 1, 1, None),
        ((66, 70), 4, 8, None),
        ((37, 51), 3, 4, None),
        ((50, 41), 5, 25, None),
        ((150, 290), 4, 3, 12),
        ((40, 300), 7, 9, 21),
        ((20, 30), 4, 16, 400),
        ((33, 33), 11, 2, None),
    ],
)
def test_integer_frames_give_the_operators_own_integers(
    dtype: str, shape: tuple[int, int], kernel_size: int, mask_count: int, tile: int | None
) -> None:
    op = CodedAperture(shape, kernel_size, mask_count, seed=1, tile=tile)
    frames = random_frames((2, *shape), dtype)
    y = Readout(op, PACKED).readout(frames)
    assert y.dtype.kind == "i"
    assert np.array_equal(y, exact(op, frames))


@given(
    kernel_size=st.integers(1, 9),
    share=st.floats(0, 1),
    sides=st.tuples(st.integers(9, 80), st.integers(9, 150)),
    periods=st.integers(1, 7),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=60, deadline=None)
def test_any_coded_aperture_is_read_out_exactly(
    kernel_size: int, share: float, sides: tuple[int, int], periods: int, seed: int, dtype: str
) -> None:
    count = max(1, round(share * kernel_size**2))
    op = CodedAperture(sides, kernel_size, count, seed, kernel_size * periods)
    frames = random_frames((1, *sides), dtype, seed)
    assert np.array_equal(Readout(op, PACKED).readout(frames), exact(op, frames))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("extreme", ["min", "max"])
@pytest.mark.parametrize("kernel_size", [2, 8, 11, 12, 64])
def test_full_pixels_do_not_overflow(dtype: str, extreme: str, kernel_size: int) -> None:
    op = CodedAperture((64, 64), kernel_size, min(kernel_size**2, 40))
    frames = np.full((1, 64, 64), getattr(np.iinfo(dtype), extreme), dtype)
    assert np.array_equal(Readout(op, PACKED).readout(frames), exact(op, frames))


def test_counting_frames_stay_in_16_bits() -> None:
    frames = random_frames((1, 64, 64), "uint8")
    assert Readout(CodedAperture((64, 64), 4, 8), PACKED).readout(frames).dtype == np.int16
    assert Readout(CodedAperture((64, 64), 16, 8), PACKED).readout(frames).dtype == np.int32


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", ">u2", ">i4"])
def test_wide_and_foreign_integers_are_exact_too(dtype: str) -> None:
    op = CodedAperture((30, 41), 4, 8)
    frames = np.random.default_rng(0).integers(0, 2**15, (2, 30, 41)).astype(dtype)
    if np.dtype(dtype).itemsize >= 4:
        frames[0, 0, 0] = 2**31 - 1
    assert np.array_equal(Readout(op, PACKED).readout(frames), exact(op, frames))


def test_sums_that_would_not_be_exact_are_refused() -> None:
    frames = np.full((1, 8, 8), 2**60, np.int64)
    with pytest.raises(ValueError, match="too large to be exact"):
        Readout(CodedAperture((8, 8), 4, 8), PACKED).readout(frames)


def test_strided_and_read_only_frames_are_taken(tmp_path: Path) -> None:
    op = CodedAperture((40, 64), 4, 8)
    frames = random_frames((4, 80, 128), "uint16")
    expected = exact(op, frames[::2, ::2, ::-2])
    assert np.array_equal(Readout(op, PACKED).readout(frames[::2, ::2, ::-2]), expected)
    np.save(tmp_path / "frames.npy", frames[::2, ::2, ::-2])
    mapped = np.load(tmp_path / "frames.npy", mmap_mode="r")
    assert np.array_equal(Readout(op, PACKED).readout(mapped), expected)


def test_the_frames_are_left_as_they_were() -> None:
    frames = random_frames((1, 37, 50), "uint16")
    before = frames.copy()
    Readout(CodedAperture((37, 50), 4, 8), PACKED).readout(frames)
    assert np.array_equal(frames, before)
    assert frames.flags.writeable


def test_measurements_stay_as_they_are_while_anyone_holds_them() -> None:
    """Their memory is used again, but not before the last part of them is gone."""
    op = CodedAperture((512, 1024), 4, 16)
    readout = Readout(op, PACKED)
    frames = [random_frames((1, 512, 1024), "uint16", seed) for seed in range(8)]
    expected = [exact(op, frame) for frame in frames]
    held = [readout.readout(frame) for frame in frames[:6]]
    parts = [measured[0, 3, 5:] for measured in held]
    for measured, wanted in zip(held, expected, strict=False):
        assert np.array_equal(measured, wanted)
    addresses = {measured.ctypes.data for measured in held}
    del held, measured
    readout.readout(frames[6])
    for part, wanted in zip(parts, expected, strict=False):
        assert np.array_equal(part, wanted[0, 3, 5:])
    del part, parts
    again = readout.readout(frames[7])
    assert np.array_equal(again, expected[7])
    assert again.ctypes.data in addresses


def test_an_open_aperture_passes_integers_on() -> None:
    frames = random_frames((2, 5, 6), "uint16")
    y = Readout(OpenAperture((5, 6)), PACKED).readout(frames)
    assert y.dtype == np.uint16
    assert np.array_equal(y, frames)


@pytest.mark.parametrize(
    "op",
    [CodedAperture((20, 22), 4, 8), PhasePlate((20, 22)), OpenAperture((20, 22))],
    ids=lambda op: type(op).__name__,
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ">f4"])
def test_real_frames_give_float32(op: LinearOperator, dtype: str) -> None:
    frames = np.random.default_rng(0).normal(size=(3, 20, 22)).astype(dtype)
    y = Readout(op, FLOAT).readout(frames)
    assert y.dtype == np.float32
    assert np.allclose(y, exact(op, frames), rtol=1e-4, atol=1e-4)


def test_integer_frames_behind_a_phase_plate_give_float32() -> None:
    op = PhasePlate((20, 22))
    frames = random_frames((2, 20, 22), "uint16")
    y = Readout(op, FLOAT).readout(frames)
    assert y.dtype == np.float32
    assert np.allclose(y, exact(op, frames), rtol=1e-5, atol=1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("op", [CodedAperture((8, 8)), PhasePlate((8, 8)), OpenAperture((8, 8))], ids=str)
def test_a_frame_that_is_not_finite_is_named(op: LinearOperator, value: float) -> None:
    frames = np.zeros((5, 8, 8), np.float32)
    frames[3, 2, 1] = value
    with pytest.raises(ValueError, match=r"frame 3 .* not finite"):
        Readout(op, FLOAT).readout(frames)


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 9), (1, 8, 8, 1)])
def test_frames_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    for dtype in (np.uint16, np.float32):
        with pytest.raises(ValueError, match="8, 8"):
            Readout(CodedAperture((8, 8)), PACKED).readout(np.zeros(shape, dtype))


# ---- configurations ---------------------------------------------------------------------------------

APERTURE = MaskSpec(kind="coded-aperture")
PLATE = MaskSpec(kind="phase-plate")
OPEN = MaskSpec(kind="none")


def noisy(dtype: str, level: float = 100, sigma: float = 10) -> NDArray[Any]:
    return np.random.default_rng(3).normal(level, sigma, (4, 64, 64)).astype(dtype)


@pytest.mark.parametrize(
    ("mask", "dtype", "values", "coding"),
    [
        (APERTURE, "uint8", "integer", "bitshuffle-zstd"),
        (OPEN, "int16", "integer", "plain"),
        (PLATE, "uint8", "quantised", "bitshuffle-zstd"),
        (APERTURE, "float32", "quantised", "bitshuffle-zstd"),
        (OPEN, "float32", "quantised", "bitshuffle-zstd"),
    ],
)
def test_auto_chooses_integers_where_there_are_integers(
    mask: MaskSpec, dtype: str, values: str, coding: str
) -> None:
    configuration, op = make_configuration(mask, (64, 64), dtype, ReadoutSpec(), noisy(dtype))
    assert (configuration.codec.values, configuration.codec.coding) == (values, coding)
    assert (configuration.codec.step > 0) == (values == "quantised")
    assert configuration.mask_hash == op.mask_hash
    assert configuration.compression_factor == op.compression_factor
    assert configuration.dtype == dtype


def test_the_same_choices_have_the_same_id() -> None:
    first, _ = make_configuration(PLATE, (64, 64), "float32", ReadoutSpec(), noisy("float32"))
    again, _ = make_configuration(PLATE, (64, 64), "float32", ReadoutSpec(), noisy("float32"))
    other, _ = make_configuration(APERTURE, (64, 64), "float32", ReadoutSpec(), noisy("float32"))
    assert first == again
    assert first.config_id != other.config_id


@pytest.mark.parametrize("values", ["float32", "float16"])
def test_packed_real_numbers_are_refused(values: str) -> None:
    spec = ReadoutSpec(values=values, coding="packed")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=f"readout.coding: 'packed' .* not for {values}"):
        make_configuration(PLATE, (64, 64), "float32", spec, noisy("float32"))


@pytest.mark.parametrize(("mask", "gain"), [(APERTURE, 8**0.5), (PLATE, 1.0), (OPEN, 1.0)], ids=str)
@pytest.mark.parametrize("level", [0.0, 1000.0])
def test_the_step_is_a_share_of_the_noise_whatever_the_level(
    mask: MaskSpec, gain: float, level: float
) -> None:
    """White noise of 10 is 10 in each Fourier coefficient, 10 sqrt(8) in sums over half of 16 pixels."""
    step = quantisation_step(mask.build((64, 64)), noisy("float32", level), 0.125)
    assert step == pytest.approx(0.125 * 10 * gain, rel=0.05)


def test_strong_features_hardly_move_the_step() -> None:
    frames = noisy("float32", 0)
    plain = quantisation_step(PLATE.build((64, 64)), frames, 0.125)
    ky, kx = np.mgrid[:64, :64] * (2 * np.pi / 64)
    pictured = frames + 1000 * np.cos(3 * ky + 2 * kx) + 500 * np.sin(kx)
    assert quantisation_step(PLATE.build((64, 64)), pictured, 0.125) == pytest.approx(plain, rel=0.05)


@pytest.mark.parametrize("level", [0.0, 5.0, -1e30])
def test_frames_without_noise_still_have_a_step(level: float) -> None:
    frames = np.full((2, 16, 16), level, np.float32)
    for mask in (APERTURE, PLATE, OPEN):
        configuration, op = make_configuration(mask, (16, 16), "float32", ReadoutSpec(), frames)
        y = Readout(op, configuration.codec).readout(frames)
        decoded = decode_array(*encode_array(y, configuration.codec))
        assert np.abs(decoded - y).max() <= 0.5 * configuration.codec.step * 1.0001 + 1e-7 * np.abs(y).max()


def test_the_step_is_estimated_from_finite_frames() -> None:
    frames = noisy("float32")
    spoiled = frames.copy()
    spoiled[0, 0, 0] = np.nan
    operator = PLATE.build((64, 64))
    assert quantisation_step(operator, spoiled, 0.125) == quantisation_step(operator, frames[1:], 0.125)
    with pytest.raises(ValueError, match="not finite"):
        quantisation_step(operator, np.full((2, 64, 64), np.nan, np.float32), 0.125)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("mask", [APERTURE, OPEN], ids=str)
def test_integer_frames_cross_the_wire_without_loss(mask: MaskSpec, dtype: str) -> None:
    frames = random_frames((3, 50, 61), dtype)
    configuration, op = make_configuration(mask, (50, 61), dtype, ReadoutSpec(), frames)
    header, buffer = encode_array(Readout(op, configuration.codec).readout(frames), configuration.codec)
    received = FlatLevel(op, configuration.codec.level).put_back(decode_array(header, buffer))
    assert np.array_equal(received, exact(op, frames))
    assert configuration.codec.error_bound == "0 (lossless)"


def test_quantised_measurements_keep_the_stated_bound() -> None:
    frames = noisy("float32")
    configuration, op = make_configuration(PLATE, (64, 64), "float32", ReadoutSpec(), frames)
    y = Readout(op, configuration.codec).readout(frames)
    decoded = decode_array(*encode_array(y, configuration.codec))
    assert np.abs(decoded - y).max() <= configuration.codec.step / 2 + 1e-6 * np.abs(y).max()
