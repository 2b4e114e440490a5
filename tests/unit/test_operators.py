"""One suite over every measurement operator, then what is particular to each mask."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.operators import CodedAperture, LinearOperator, MaskSpec, OpenAperture, PhasePlate
from common.operators.draw import random_bits, weighted_choice
from common.operators.fourier_masks import PARTS, Pairs, mirrored

BUILDERS: dict[str, Callable[[], LinearOperator]] = {
    "aperture": lambda: CodedAperture((64, 64)),
    "aperture-one-mask": lambda: CodedAperture((32, 32), 2, 1),
    "aperture-singular": lambda: CodedAperture((32, 32), 2, 4),
    "aperture-square-blocks": lambda: CodedAperture((24, 24), 4, 16),
    "aperture-unpooled": lambda: CodedAperture((12, 13), 1, 1),
    "aperture-thin": lambda: CodedAperture((48, 48), 8, 8),
    "aperture-wide": lambda: CodedAperture((48, 32), 8, 42, seed=3),
    "aperture-not-divisible": lambda: CodedAperture((37, 50), 4, 8),
    "aperture-odd-kernel": lambda: CodedAperture((40, 41), 3, 5, tile=9),
    "aperture-tile-below-frame": lambda: CodedAperture((70, 90), 4, 6, tile=16),
    "aperture-tile-above-frame": lambda: CodedAperture((30, 20), 5, 7, tile=100),
    "aperture-micrograph": lambda: CodedAperture((150, 310), 16, 128),
    "aperture-one-block": lambda: CodedAperture((8, 8), 8, 20),
    "aperture-edge-smaller-than-b": lambda: CodedAperture((33, 33), 8, 40),
    "uniform": lambda: PhasePlate((64, 64)),
    "uniform-odd": lambda: PhasePlate((33, 47), compression_factor=3),
    "uniform-oblong": lambda: PhasePlate((32, 51), compression_factor=1.3),
    "uniform-everything": lambda: PhasePlate((16, 18), compression_factor=1),
    "annular": lambda: PhasePlate((64, 64), "annular"),
    "annular-oblong": lambda: PhasePlate((50, 31), "annular", 4, seed=2),
    "radial": lambda: PhasePlate((64, 64), "radial"),
    "radial-odd": lambda: PhasePlate((45, 45), "radial", 5, seed=1),
    "uniform-paper": lambda: PhasePlate((64, 64), symmetry="paper"),
    "annular-paper": lambda: PhasePlate((64, 64), "annular", symmetry="paper"),
    "radial-paper-odd": lambda: PhasePlate((33, 40), "radial", symmetry="paper"),
    "open": lambda: OpenAperture((20, 31)),
    "aperture-held-out": lambda: CodedAperture((37, 50), 4, 8).hold_out(0.1)[0],
    "uniform-held-out": lambda: PhasePlate((33, 40)).hold_out(0.1)[0],
    "paper-held-out": lambda: PhasePlate((32, 32), symmetry="paper").hold_out(0.1)[0],
}

every_operator = pytest.mark.parametrize("name", BUILDERS)
small = pytest.mark.parametrize("name", [n for n, build in BUILDERS.items() if np.prod(build().shape) < 1700])
whole = pytest.mark.parametrize("name", [n for n in BUILDERS if "held-out" not in n])


def images(op: LinearOperator, count: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, *op.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def measurements(op: LinearOperator, count: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, *op.measurement_shape, generator=generator, dtype=dtype)


def relative(error: Tensor, scale: Tensor) -> float:
    return float(error.norm() / scale.norm())


def dense(op: LinearOperator) -> Tensor:
    """A as a matrix, (numbers in y, pixels)."""
    height, width = op.shape
    basis = torch.eye(height * width, dtype=torch.float64).view(-1, height, width)
    return op.A(basis).flatten(1).T


@every_operator
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_adjoint_is_the_transpose(name: str, dtype: torch.dtype, tolerance: float) -> None:
    op = BUILDERS[name]()
    x, y = images(op, dtype=dtype), measurements(op, dtype=dtype)
    Ax, Aty = op.A(x), op.A_adjoint(y)
    assert Ax.dtype == Aty.dtype == dtype
    assert abs(float((Ax * y).sum() - (x * Aty).sum())) <= tolerance * float(Ax.norm() * y.norm())


@every_operator
def test_measuring_the_minimum_norm_image_gives_the_measurement_back(name: str) -> None:
    op = BUILDERS[name]()
    y = op.A(images(op))
    assert relative(op.A(op.A_dagger(y)) - y, y) < 1e-10


@every_operator
def test_float32_is_as_exact_as_the_mask_allows(name: str) -> None:
    op = BUILDERS[name]()
    x = images(op, dtype=torch.float32)
    y = op.A(x)
    assert relative(op.P(x).double() - op.P(x.double()), x) < 1e-5
    assert relative(op.A(op.P(x)) - y, y) < 1e-5


@small
def test_A_dagger_is_the_pseudo_inverse(name: str) -> None:
    op = BUILDERS[name]()
    numbers = int(np.prod(op.measurement_shape))
    basis = torch.eye(numbers, dtype=torch.float64).view(-1, *op.measurement_shape)
    expected = torch.linalg.pinv(dense(op), rtol=1e-9)
    assert relative(op.A_dagger(basis).flatten(1).T - expected, expected) < 1e-9


@small
def test_whitened_operator_has_orthonormal_rows(name: str) -> None:
    op = BUILDERS[name]()
    A = dense(op)
    W = op.whiten(A.T.reshape(-1, *op.measurement_shape)).flatten(1).T
    # where rows of A depend, W W^T is the projector onto their range
    assert torch.allclose(W @ W.T, A @ torch.linalg.pinv(A, rtol=1e-9), atol=1e-9)
    assert abs(float(torch.linalg.matrix_norm(W, 2)) - 1) < 1e-9
    assert abs(float((W @ W.T).trace()) - int(torch.linalg.matrix_rank(A, rtol=1e-9))) < 1e-6


@every_operator
def test_P_is_the_orthogonal_projector_A_dagger_A(name: str) -> None:
    op = BUILDERS[name]()
    x, z = images(op), images(op).flip(0)
    Px = op.P(x)
    assert relative(Px - op.A_dagger(op.A(x)), x) < 1e-10
    assert relative(op.P(Px) - Px, x) < 1e-10
    assert abs(float((Px * z).sum() - (x * op.P(z)).sum())) < 1e-10 * float(x.norm() * z.norm())


@every_operator
def test_whitened_misfit_is_the_distance_of_projections(name: str) -> None:
    op = BUILDERS[name]()
    x, truth = images(op), images(op).flip(0)
    misfit = op.whiten(op.A(x) - op.A(truth)).flatten(1).norm(dim=1)
    distance = (op.P(x) - op.A_dagger(op.A(truth))).flatten(1).norm(dim=1)
    assert torch.allclose(misfit, distance, rtol=1e-9)


@every_operator
def test_projection_is_idempotent_and_meets_the_measurement(name: str) -> None:
    op = BUILDERS[name]()
    y, x = op.A(images(op)), images(op).flip(0)
    projected = op.project(x, y)
    assert relative(op.A(projected) - y, y) < 1e-10
    assert relative(op.project(projected, y) - projected, projected) < 1e-10
    # nearest: the correction is orthogonal to what the mask does not see
    unseen = x - op.P(x)
    assert abs(float(((projected - x) * unseen).sum())) < 1e-9 * float(x.norm() ** 2)


@every_operator
def test_compression_factor_is_pixels_over_numbers_measured(name: str) -> None:
    op = BUILDERS[name]()
    assert op.compression_factor == op.shape[0] * op.shape[1] / op.measurement_count
    if "held-out" not in name:
        assert op.measurement_count == int(np.prod(op.measurement_shape))


@every_operator
def test_mean_level_of_a_flat_image_is_its_level(name: str) -> None:
    op = BUILDERS[name]()
    flat = torch.full((2, *op.shape), 7.25, dtype=torch.float64)
    assert torch.allclose(op.mean_level(op.A(flat)), torch.full((2,), 7.25, dtype=torch.float64), rtol=1e-12)


@every_operator
def test_mean_level_is_near_the_mean_of_any_image(name: str) -> None:
    op = BUILDERS[name]()
    x = images(op) + 5
    # each pixel counts a few times more or less than on average: no more than a few standard errors
    error = (op.mean_level(op.A(x)) - x.mean((1, 2))).abs().max()
    assert float(error) < 5 / op.measurement_count**0.5


@every_operator
def test_each_image_of_a_batch_is_measured_by_itself(name: str) -> None:
    op = BUILDERS[name]()
    x = images(op, 40)
    for action in (op.A, op.P, lambda t: op.A_dagger(op.A(t))):
        assert torch.allclose(action(x)[17:18], action(x[17:18]), rtol=1e-12, atol=1e-12)


@every_operator
def test_non_contiguous_and_integer_images_are_taken(name: str) -> None:
    op = BUILDERS[name]()
    x = torch.randint(0, 100, (2, *op.shape), dtype=torch.int16)
    expected = op.A(x.double())
    assert op.A(x).dtype == torch.float32
    assert relative(op.A(x).double() - expected, expected) < 1e-6
    turned = x.double().transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.allclose(op.A(turned), expected, rtol=1e-12, atol=1e-9)


@every_operator
def test_wrong_shapes_are_named(name: str) -> None:
    op = BUILDERS[name]()
    with pytest.raises(ValueError, match=f"{op.shape[0]}, {op.shape[1]}"):
        op.A(torch.zeros(1, op.shape[0] + 1, op.shape[1]))
    with pytest.raises(ValueError, match="measurements of shape"):
        op.A_dagger(torch.zeros(1, *op.measurement_shape, 2))


@every_operator
def test_measurement_picture_is_finite(name: str) -> None:
    op = BUILDERS[name]()
    picture = op.measurement_picture(op.A(images(op)))
    assert picture.ndim == 3
    assert picture.shape[0] == 3
    assert bool(picture.isfinite().all())


@whole
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
def test_held_out_measurements_are_not_used(name: str, share: float) -> None:
    op = BUILDERS[name]()
    rest, held = op.hold_out(share, seed=5)
    x = images(op)
    y = op.A(x)
    assert held.dtype == torch.bool
    assert held.shape == op.measurement_shape
    assert rest.measurement_shape == op.measurement_shape
    assert rest.measurement_count == op.measurement_count - int(held.sum())
    # kept measurements are the same, held-out ones zero
    assert torch.allclose(rest.A(x), torch.where(held, 0, y), atol=1e-12)
    # and whatever stands in the held-out places changes nothing
    spoiled = torch.where(held, 1e6, y)
    assert torch.equal(rest.A_dagger(spoiled), rest.A_dagger(y))
    assert torch.equal(rest.mean_level(spoiled), rest.mean_level(y))
    assert torch.equal(rest.whiten(spoiled), rest.whiten(y))


@whole
def test_hold_out_depends_on_mask_and_seed_alone(name: str) -> None:
    _, held = BUILDERS[name]().hold_out(0.2, seed=1)
    _, again = BUILDERS[name]().hold_out(0.2, seed=1)
    _, other = BUILDERS[name]().hold_out(0.2, seed=2)
    assert torch.equal(held, again)
    if name != "open":
        assert not torch.equal(held, other)


@pytest.mark.parametrize("share", [-0.1, 0.51, float("nan")])
@pytest.mark.parametrize("name", ["aperture", "uniform", "open"])
def test_hold_out_share_out_of_range_is_refused(name: str, share: float) -> None:
    with pytest.raises(ValueError, match=r"0 to 0\.5"):
        BUILDERS[name]().hold_out(share)


def test_held_out_share_is_exact_to_rounding() -> None:
    op = CodedAperture((256, 256), 4, 8)
    rest, held = op.hold_out(0.05)
    assert int(held[:, :32, :32].sum()) == round(0.05 * 8 * 32 * 32)
    assert torch.equal(held[:, :32, :32], held[:, 32:, 32:])  # the same ones in every tile
    assert rest.measurement_count == op.measurement_count - int(held.sum())

    plate = PhasePlate((64, 64))
    _, held = plate.hold_out(0.05)
    assert int(held.sum()) == 2 * round(0.05 * plate.measurement_count / 2)
    assert not bool(held[0])  # DC
    # real and imaginary part go together
    singles = int(np.count_nonzero([plate.mask[i, j] for i in (0, 32) for j in (0, 32)]))
    doubles = (plate.measurement_count - singles) // 2
    assert torch.equal(held[singles : singles + doubles], held[singles + doubles :])


def test_gradients_flow_through_every_action() -> None:
    for name in ("aperture-not-divisible", "uniform-odd"):
        op = BUILDERS[name]()
        x = images(op, 1).requires_grad_()
        y = op.A(images(op, 2)[1:])
        (op.whiten(op.A(x) - y).square().sum() / 2).backward()
        assert x.grad is not None
        assert relative(x.grad - (op.P(x.detach()) - op.A_dagger(y)), x.grad) < 1e-9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_operator
def test_cuda_agrees_with_cpu(name: str) -> None:
    op = BUILDERS[name]()
    x = images(op, dtype=torch.float64)
    y = op.A(x)
    for action, argument in (
        (op.A, x), (op.A_adjoint, y), (op.A_dagger, y), (op.P, x), (op.whiten, y), (op.mean_level, y)
    ):  # fmt: skip
        on_cuda = action(argument.cuda())
        assert on_cuda.is_cuda
        assert relative(on_cuda.cpu() - action(argument), action(argument)) < 1e-9


# ---- masks ------------------------------------------------------------------------------------------

SPECS = [
    {"kind": "coded-aperture", "kernel_size": 4, "mask_count": 8, "seed": 11},
    {"kind": "coded-aperture", "kernel_size": 3, "mask_count": 2, "seed": 2**53 - 1, "tile": 12},
    {"kind": "phase-plate", "pattern": "uniform", "seed": 11},
    {"kind": "phase-plate", "pattern": "annular", "compression_factor": 7, "ring_width": 0.1},
    {"kind": "phase-plate", "pattern": "radial", "compression_factor": 1.5},
    {"kind": "phase-plate", "pattern": "uniform", "symmetry": "paper"},
    {"kind": "phase-plate", "pattern": "radial", "symmetry": "paper"},
    {"kind": "none"},
]
HASHES = [
    "2fad0cfaaa99e4a2",
    "86bb8da7dcaaac97",
    "b21e01a6114807b0",
    "5b041aa677620764",
    "51c396029610484d",
    "40448a5cd173fede",
    "bd954aa88554c2ea",
    "140bedbf9c3f6d56",
]


def test_same_spec_gives_the_same_mask_in_another_process() -> None:
    program = (
        "import json, sys\n"
        "from common.operators import MaskSpec\n"
        "for spec in json.loads(sys.argv[1]):\n"
        "    print(MaskSpec(**spec).build((48, 45)).mask_hash)\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program, json.dumps(SPECS)], check=True, capture_output=True, text=True
    ).stdout.split()
    assert output == [MaskSpec(**spec).build((48, 45)).mask_hash for spec in SPECS]
    assert len(set(output)) == len(SPECS)


def test_masks_do_not_drift_between_releases() -> None:
    """A change here makes recorded measurements unreadable: it needs a new kind of mask."""
    hashes = [MaskSpec(**spec).build((48, 45)).mask_hash for spec in SPECS]
    assert hashes == HASHES


def test_masks_do_not_touch_the_global_generator() -> None:
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    expected = np.random.random(), torch.rand(())  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    for spec in SPECS:
        MaskSpec(**spec).build((48, 45)).hold_out(0.1)
    assert (np.random.random(), torch.rand(())) == expected  # noqa: NPY002


def test_other_seeds_give_other_masks() -> None:
    for spec in SPECS[:-1]:
        assert (
            MaskSpec(**{**spec, "seed": 5}).build((48, 45)).mask_hash
            != MaskSpec(**spec).build((48, 45)).mask_hash
        )


@given(
    kernel_size=st.integers(1, 6),
    share=st.floats(0, 1),
    sides=st.tuples(st.integers(6, 40), st.integers(6, 40)),
    seed=st.integers(0, 2**63 - 1),
    periods=st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_any_coded_aperture_pools_what_its_masks_let_through(
    kernel_size: int, share: float, sides: tuple[int, int], seed: int, periods: int
) -> None:
    count = max(1, round(share * kernel_size**2))
    op = CodedAperture(sides, kernel_size, count, seed, kernel_size * periods)
    x = torch.randint(0, 1000, (2, *sides), generator=torch.Generator().manual_seed(seed % 2**31)).double()
    rows, columns = (np.arange(side) % op.tile for side in sides)
    masked = torch.from_numpy(op.masks[:, rows[:, None], columns]) * x[:, None]
    height, width = (-side % kernel_size for side in sides)
    padded = torch.nn.functional.pad(masked, (0, width, 0, height))
    pooled = padded.unflatten(3, (-1, kernel_size)).unflatten(2, (-1, kernel_size)).sum((3, 5))
    y = op.A(x)
    assert torch.equal(y, pooled)
    assert relative(op.A(op.P(x)) - y, y + 1) < 1e-8


def test_coded_aperture_masks_repeat_from_tile_to_tile() -> None:
    op = CodedAperture((256, 256))
    x = images(op, 1)[:, :128, :128].repeat(1, 2, 2)
    y = op.A(x)
    assert op.tile == 128
    assert torch.equal(y[..., :32, :32], y[..., 32:, 32:])


def test_half_of_the_holes_are_open() -> None:
    masks = CodedAperture((128, 128)).masks
    assert abs(masks.mean() - 0.5) < 4 * 0.5 / masks.size**0.5


def test_a_plate_of_more_masks_continues_one_of_fewer() -> None:
    assert np.array_equal(CodedAperture((64, 64), 4, 12).masks[:5], CodedAperture((64, 64), 4, 5).masks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"shape": (64, 10), "kernel_size": 16},
            "kernel_size 16 is larger than the frame's side of 10 pixels",
        ),
        ({"shape": (64, 64), "kernel_size": 2, "mask_count": 5}, "allowed range 1 to 4"),
        ({"shape": (64, 64), "tile": 30}, "multiple of kernel_size 4"),
        ({"shape": (64, 64), "tile": 0}, "multiple of kernel_size 4"),
        ({"shape": (64, 64), "mask_count": 0}, "at least 1"),
        ({"shape": (64, 64), "seed": -1}, "seed"),
        ({"shape": (64, 0)}, "at least 1 pixel"),
        ({"shape": (64,)}, "height, width"),
    ],
)
def test_coded_aperture_that_does_not_fit_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodedAperture(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pattern": "spiral"}, "uniform, annular, radial"),
        ({"symmetry": "odd"}, "hermitian, paper"),
        ({"compression_factor": 0.9}, "1 to 100"),
        ({"compression_factor": 101}, "1 to 100"),
        ({"ring_width": 0}, "ring_width"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_phase_plate_out_of_range_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PhasePlate((32, 32), **arguments)


@given(
    sides=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    pattern=st.sampled_from(["uniform", "annular", "radial"]),
    compression_factor=st.floats(1, 20),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=60, deadline=None)
def test_hermitian_masks_are_symmetric_with_dc(
    sides: tuple[int, int], pattern: str, compression_factor: float, seed: int
) -> None:
    op = PhasePlate(sides, pattern, compression_factor, seed)  # pyright: ignore[reportArgumentType]
    ky, kx = np.nonzero(op.mask)
    assert op.mask[-ky % sides[0], -kx % sides[1]].all()
    assert op.mask[0, 0]
    assert op.measurement_count == op.mask.sum()
    assert op.printed_compression_factor == op.compression_factor
    if pattern == "uniform":
        wanted = max(round(sides[0] * sides[1] / compression_factor), 1)
        assert op.measurement_count in (wanted, wanted - 1)
    x = images(op, 1)
    expected = torch.fft.ifft2(torch.fft.fft2(x) * torch.from_numpy(op.mask)).real
    assert relative(op.P(x) - expected, x) < 1e-12
    y = measurements(op, 1)
    assert relative(op.A(op.A_adjoint(y)) - y, y) < 1e-12  # A A^T = I


@pytest.mark.parametrize("pattern", ["uniform", "annular", "radial"])
@pytest.mark.parametrize("compression_factor", [1.25, 2, 2.5, 5, 10, 50])
def test_wanted_compression_factor_is_the_honest_one(pattern: str, compression_factor: float) -> None:
    op = PhasePlate((128, 128), pattern, compression_factor)  # pyright: ignore[reportArgumentType]
    # to a whole pair; at the ends of each of k rings or sectors, and DC
    slack = 1.5 if pattern == "uniform" else 2 * round(100 / compression_factor) + 1
    assert abs(op.measurement_count - 128**2 / compression_factor) <= slack
    assert abs(op.compression_factor / compression_factor - 1) < 0.01


@pytest.mark.parametrize("shape", [(128, 128), (64, 64), (101, 101), (90, 127)])
def test_rings_and_sectors_are_of_equal_area(shape: tuple[int, int]) -> None:
    pairs = Pairs(shape)
    assert int(pairs.size.sum()) == shape[0] * shape[1]
    for order in (np.lexsort((pairs.ky, pairs.squared_radius())), np.lexsort((pairs.kx, pairs.angle()))):
        area = np.bincount(pairs.equal_parts(order), pairs.size, PARTS)
        assert np.abs(area - shape[0] * shape[1] / PARTS).max() <= 2


@pytest.mark.parametrize("compression_factor", [2, 2.5, 10])
def test_k_of_100_rings_are_chosen_and_low_ones_more_often(compression_factor: float) -> None:
    pairs = Pairs((128, 128))
    order = np.lexsort((pairs.ky, pairs.squared_radius()))
    ring = pairs.equal_parts(order)
    chosen = np.zeros(PARTS)
    for seed in range(20):
        mask = PhasePlate((128, 128), "annular", compression_factor, seed).mask
        share = np.bincount(ring, mask[pairs.ky, pairs.kx] * pairs.size, PARTS) / np.bincount(
            ring, pairs.size
        )
        share[0] = round(share[0])  # DC alone may stand for a ring that was not chosen
        assert set(share) <= {0.0, 1.0}
        assert share.sum() == round(100 / compression_factor)
        chosen += share
    assert chosen[:20].mean() > chosen[80:].mean()


def test_a_narrow_ring_bias_keeps_to_low_frequencies() -> None:
    narrow, wide = (PhasePlate((64, 64), "annular", 10, ring_width=w).mask for w in (0.02, 10))
    radius = np.hypot(*np.meshgrid(*[np.fft.fftfreq(64)] * 2))
    assert radius[narrow].mean() < 0.5 * radius[wide].mean()


def test_weighted_choice_follows_the_weights() -> None:
    weights = np.array([4.0, 2.0, 1.0, 1.0])
    first = np.bincount([weighted_choice(weights, 1, seed, "test")[0] for seed in range(2000)], minlength=4)
    assert np.abs(first / 2000 - weights / 8).max() < 0.04
    assert all(len(set(weighted_choice(weights, 3, seed, "test"))) == 3 for seed in range(20))


def test_random_bits_are_fair_and_independent_of_each_other() -> None:
    a, b = (random_bits((100, 100), 0, purpose) for purpose in ("a", "b"))
    assert abs(a.mean() - 0.5) < 0.02
    assert abs((a == b).mean() - 0.5) < 0.02


def test_paper_masks_measure_more_than_they_print() -> None:
    """At a printed C of 2.5 uniform and radial masks really measure about 64 % of the plane, rings 40 %."""
    measured = {}
    for pattern in ("uniform", "annular", "radial"):
        op = PhasePlate((128, 128), pattern, 2.5, symmetry="paper")
        assert op.printed_compression_factor == 2.5
        assert op.measurement_count == (op.mask | mirrored(op.mask)).sum()
        measured[pattern] = 1 / op.compression_factor
    assert measured["uniform"] == pytest.approx(0.64, abs=0.01)
    assert measured["radial"] == pytest.approx(0.63, abs=0.03)
    assert measured["annular"] == pytest.approx(0.40, abs=0.01)


def test_paper_uniform_masks_draw_the_printed_number_of_frequencies() -> None:
    op = PhasePlate((64, 64), symmetry="paper", compression_factor=4)
    assert op.mask.sum() in (1024, 1025)  # DC is added where the draw missed it


@pytest.mark.parametrize("shape", [(64, 64), (33, 40)])
def test_paper_operator_is_the_real_part_of_the_masked_transform(shape: tuple[int, int]) -> None:
    op = PhasePlate(shape, "uniform", 2.5, symmetry="paper")
    x = images(op)
    B = torch.from_numpy(op.mask)
    expected = torch.fft.ifft2(torch.fft.fft2(x) * B).real
    # y scaled back to unit coefficients and transformed: A_adjoint of the whitened-and-weighted numbers
    assert relative(op.A_adjoint(op.whiten(op.A(x))) - expected, x) < 1e-12


def test_mask_spec_builds_what_the_constructors_build() -> None:
    shape = (40, 45)
    for spec, op in (
        (MaskSpec(kind="coded-aperture", kernel_size=3, mask_count=4, seed=9), CodedAperture(shape, 3, 4, 9)),
        (
            MaskSpec(kind="phase-plate", pattern="annular", compression_factor=3, seed=4, ring_width=0.5),
            PhasePlate(shape, "annular", 3, 4, ring_width=0.5),
        ),
        (
            MaskSpec(kind="phase-plate", symmetry="paper"),
            PhasePlate(shape, symmetry="paper"),
        ),
        (MaskSpec(kind="none"), OpenAperture(shape)),
    ):
        assert spec.build(shape).mask_hash == op.mask_hash
        assert MaskSpec.model_validate_json(spec.model_dump_json()) == spec


@given(wanted=st.floats(1, 16))
@settings(max_examples=30, deadline=None)
def test_nearest_compression_factor_is_chosen(wanted: float) -> None:
    spec = MaskSpec(kind="coded-aperture", kernel_size=4, mask_count=8, seed=3, tile=64)
    got = spec.with_compression_factor(wanted).build((64, 64))
    assert isinstance(got, CodedAperture)
    assert (got.kernel_size, got.seed, got.tile) == (4, 3, 64)
    assert abs(got.compression_factor - wanted) == min(abs(16 / b - wanted) for b in range(1, 17))


def test_phase_plate_keeps_its_pattern_when_the_factor_changes() -> None:
    spec = MaskSpec(kind="phase-plate", pattern="radial", seed=3).with_compression_factor(4)
    assert spec == MaskSpec(kind="phase-plate", pattern="radial", seed=3, compression_factor=4)
    assert MaskSpec(kind="none").with_compression_factor(1) == MaskSpec(kind="none")


@pytest.mark.parametrize(
    ("spec", "wanted", "highest"),
    [
        ({"kind": "coded-aperture"}, 17, 16),
        ({"kind": "coded-aperture"}, 0.5, 16),
        ({"kind": "phase-plate"}, 101, 100),
        ({"kind": "none"}, 2, 1),
        ({"kind": "phase-plate"}, float("nan"), 100),
    ],
)
def test_impossible_compression_factor_names_the_range(spec: dict, wanted: float, highest: int) -> None:
    with pytest.raises(ValueError, match=f"allowed range 1 to {highest}"):
        MaskSpec(**spec).with_compression_factor(wanted)


def test_a_micrograph_is_measured_as_its_tiles_are() -> None:
    op, tile = CodedAperture((1200, 1240)), CodedAperture((128, 128))
    x = images(op, 1, torch.float32)
    assert torch.equal(op.A(x)[..., 32:64, 64:96], tile.A(x[:, 128:256, 256:384]))
    assert torch.allclose(op.P(x)[:, 128:256, 256:384], tile.P(x[:, 128:256, 256:384]), atol=1e-5)
