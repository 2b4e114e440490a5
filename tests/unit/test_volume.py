"""Backprojection and shell correlation: identities, and simulated particles against their map."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor

from common.contrast_transfer import contrast_transfer
from common.point_groups import point_group
from common.poses import relion_matrix
from common.session import SpecimenSpec
from detector_sim.specimen import Specimen
from reconstructor.volume import Backprojection, fsc, soft_sphere
from reconstructor.volume.insertion import insert, insert_anywhere

SIDE, PIXEL = 32, 6.0


def _orientations(count: int, seed: int = 0) -> Tensor:
    generator = np.random.default_rng(seed)
    draws = generator.random((count, 3))
    angles = np.stack(
        [360 * draws[:, 0], np.degrees(np.arccos(1 - 2 * draws[:, 1])), 360 * draws[:, 2]], axis=1
    )
    return torch.from_numpy(relion_matrix(angles))


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- point groups


@pytest.mark.parametrize(
    ("name", "order"),
    [("C1", 1), ("c5", 5), ("D2", 4), ("D7", 14), ("T", 12), ("O", 24), ("I", 60), ("I1", 60), ("I3", 60),
     ("I4", 60)],
)  # fmt: skip
def test_the_rotations_of_a_point_group_are_closed(name: str, order: int) -> None:
    group = point_group(name)
    assert group.shape == (order, 3, 3)
    assert np.allclose(group[0], np.eye(3))
    assert np.allclose(np.linalg.det(group), 1)
    products = np.einsum("aij,bjk->abik", group, group).reshape(-1, 9)
    nearest = np.abs(products[:, None] - group.reshape(1, -1, 9)).max(2).min(1)
    assert nearest.max() < 1e-6
    apart = np.abs(group.reshape(-1, 1, 9) - group.reshape(1, -1, 9)).max(2)
    assert (apart + np.eye(order)).min() > 0.01


@pytest.mark.parametrize("name", ["C0", "D", "X", "I5", "C1000", ""])
def test_a_point_group_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="point group"):
        point_group(name)


@pytest.mark.parametrize("name", ["T", "O", "I2"])
def test_the_cubic_groups_stand_as_in_relion(name: str) -> None:
    """Which axis lies along z: of order 3 for T, 4 for O, 2 for I2."""
    about_z = [turn for turn in point_group(name) if np.allclose(turn[2], [0, 0, 1])]
    assert len(about_z) == {"T": 3, "O": 4, "I2": 2}[name]


# ---- shells


def test_shells_are_those_of_the_whole_volume() -> None:
    first, second = (
        _noise(12, 12, 12).double(),
        _noise(12, 12, 12, seed=1).double() + 0.5 * _noise(12, 12, 12),
    )
    f, g = np.fft.fftn(first.numpy()), np.fft.fftn(second.numpy())
    axis = np.fft.fftfreq(12) * 12
    shell = np.rint(np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)).astype(int)
    found = fsc(first, second)
    assert found.shape == (7,)
    assert found[0] == 1
    for k in range(1, 7):
        inside = shell == k
        power = np.sum(np.abs(f[inside]) ** 2) * np.sum(np.abs(g[inside]) ** 2)
        expected = np.sum(f[inside] * g[inside].conj()).real / np.sqrt(power)
        assert float(found[k]) == pytest.approx(expected, abs=1e-12)


def test_maps_of_different_size_are_not_compared() -> None:
    with pytest.raises(ValueError, match="must be alike"):
        fsc(torch.zeros(4, 4, 4), torch.zeros(4, 4, 6))


def test_a_soft_sphere_is_one_inside_and_zero_outside() -> None:
    mask = soft_sphere(32, 8, 4)
    assert mask[16, 16, 16 + 8] == 1
    assert mask[16, 16 + 12, 16] == 0
    assert 0 < mask[16 + 10, 16, 16] < 1


# ---- insertion


@pytest.mark.parametrize("padding", [1, 2])
def test_compiled_insertion_is_that_of_tensor_operations(padding: int) -> None:
    count, padded = 5, padding * SIDE
    values = torch.complex(_noise(count, SIDE, SIDE // 2 + 1), _noise(count, SIDE, SIDE // 2 + 1, seed=1))
    weights = _noise(count, SIDE, SIDE // 2 + 1, seed=2).square()
    matrices, halves = _orientations(count).float().contiguous(), torch.tensor([0, 1, 1, 0, 1])
    made = [torch.zeros(2, padded, padded, padded // 2 + 1, 3) for _ in range(2)]
    for sums, way in zip(made, (insert, insert_anywhere), strict=True):
        way(sums, values, weights, matrices, halves, padding)
    # a sample that falls on the plane kx = 0 may be rounded to either side of it: compare what it amounts to
    assert torch.allclose(made[0].sum((1, 2, 3))[:, 2], made[1].sum((1, 2, 3))[:, 2], rtol=1e-5)
    differing = ((made[0] - made[1]).abs() > 1e-4).float().mean()
    assert differing < 1e-3


def test_each_sample_counts_once() -> None:
    """Weights are spread over eight corners and none is lost."""
    sums = torch.zeros(2, SIDE, SIDE, SIDE // 2 + 1, 3)
    weights = torch.ones(3, SIDE, SIDE // 2 + 1)
    insert(sums, weights.to(torch.complex64), weights, _orientations(3).float().contiguous(),
           torch.tensor([0, 0, 1]), 1)  # fmt: skip
    kx, ky = torch.arange(SIDE // 2 + 1)[None, :], torch.fft.fftfreq(SIDE, 1 / SIDE)[:, None]
    samples = int(((4 * (kx**2 + ky**2) < SIDE**2) & ~((kx == 0) & (ky < 0))).sum())
    assert sums[..., 2].sum((1, 2, 3)).tolist() == pytest.approx([2 * samples, samples], rel=1e-5)
    assert torch.equal(sums[..., 0], sums[..., 2])


# ---- maps


def test_points_become_a_point() -> None:
    """Projections of a point at the centre are a point: every slice is one, and so is the transform."""
    count = 400
    images = torch.zeros(count, SIDE, SIDE)
    origins = torch.from_numpy(np.random.default_rng(0).integers(-3, 4, (count, 2)))
    places = SIDE // 2 - origins
    images[torch.arange(count), places[:, 1], places[:, 0]] = 1.0
    map_ = Backprojection(SIDE)
    map_.add(images, torch.ones(count, SIDE, SIDE // 2 + 1), _orientations(count), origins,
             torch.arange(count) % 2)  # fmt: skip
    assert map_.counts == [count // 2, count // 2]
    whole = map_.maps().whole
    assert int(whole.argmax()) == (SIDE // 2 * SIDE + SIDE // 2) * SIDE + SIDE // 2
    # all coefficients in the shells below N / 2 (64 samples of the padded transform), over the number of all
    assert float(whole.max()) == pytest.approx(4 / 3 * np.pi * (31.5 / 64) ** 3, rel=0.02)


@functools.cache
def _particles(structure: str, count: int) -> tuple[dict[str, Tensor], Tensor]:
    """What ``Backprojection.add`` takes, of clean simulated particles, and the map they come from."""
    spec = SpecimenSpec(structure=structure, side_pixels=SIDE, pixel_size_angstrom=PIXEL, snr=1.0)
    specimen = Specimen(spec)
    made = specimen.batch(0, count)
    column = {name: torch.tensor(values) for name, values in made.metadata.items()}
    transfers = contrast_transfer(
        column["rlnDefocusU"], column["rlnDefocusV"], column["rlnDefocusAngle"], shape=(SIDE, SIDE),
        pixel_size_angstrom=PIXEL, voltage_kv=spec.voltage_kv,
        spherical_aberration_mm=spec.spherical_aberration_mm, amplitude_contrast=spec.amplitude_contrast,
        envelope_b_factor=spec.envelope_b_factor,
    )  # fmt: skip
    given = {
        "images": torch.from_numpy(made.clean),
        "transfers": transfers,
        "matrices": torch.from_numpy(made.rotations),
        "origins_pixels": torch.stack([column["rlnOriginXAngst"], column["rlnOriginYAngst"]], 1) / PIXEL,
        "halves": column["rlnRandomSubset"] - 1,
    }
    potential = specimen.potential.volume
    truth = torch.zeros(SIDE, SIDE, SIDE)
    side = min(SIDE, int(potential.shape[0]))
    there, here = (slice(whole // 2 - side // 2, whole // 2 - side // 2 + side)
                   for whole in (int(potential.shape[0]), SIDE))  # fmt: skip
    truth[here, here, here] = potential[there, there, there]
    return given, truth


@pytest.mark.parametrize("padding", [1, 2])
def test_clean_particles_give_back_the_map_nearly_to_nyquist(padding: int) -> None:
    given, truth = _particles("bundle", 500)
    map_ = Backprojection(SIDE, padding=padding)
    for first in range(0, 500, 128):
        map_.add(**{name: values[first : first + 128] for name, values in given.items()})
    mask = soft_sphere(SIDE, 0.45 * SIDE, 0.05 * SIDE)
    curve = fsc(map_.maps().whole * mask, truth * mask)
    assert float(curve[: int(0.9 * SIDE / 2) + 1].min()) > 0.9
    maps = map_.maps(mask)
    assert torch.equal(maps.fsc, fsc(maps.halves[0] * mask, maps.halves[1] * mask))
    assert float(maps.fsc[: SIDE // 2].min()) > 0.5


def test_maps_have_the_same_scale_whatever_the_padding() -> None:
    given, _ = _particles("ring", 300)
    made = []
    for padding in (1, 2):
        map_ = Backprojection(SIDE, padding=padding)
        map_.add(**given)
        made.append(map_.maps().whole)
    assert float((made[0] * made[1]).sum() / made[1].square().sum()) == pytest.approx(1, abs=0.03)


def test_symmetry_is_that_of_the_specimen() -> None:
    """Few particles of the cage (O) are enough where its symmetry is known; a wrong one spoils the map."""
    given, truth = _particles("cage", 10)
    mask = soft_sphere(SIDE, 0.45 * SIDE, 0.05 * SIDE)
    areas = {}
    for symmetry in ("C1", "O", "C5"):
        map_ = Backprojection(SIDE, symmetry, padding=1)
        map_.add(**given)
        areas[symmetry] = float(fsc(map_.maps().whole * mask, truth * mask)[1 : SIDE // 2].mean())
    assert areas["O"] > 0.98
    assert areas["C1"] < areas["O"] - 0.05
    assert areas["C5"] < areas["O"] - 0.2


def test_halves_are_independent() -> None:
    given, _ = _particles("ring", 300)
    both = Backprojection(SIDE, padding=1)
    both.add(**given)
    first = given["halves"] == 0
    alone = Backprojection(SIDE, padding=1)
    alone.add(**{name: values[first] for name, values in given.items()})
    assert torch.equal(both._sums[0], alone._sums[0])
    assert alone.counts == [int(first.sum()), 0]
    assert not alone.maps().halves[1].any()


def test_halves_of_noisy_particles_foretell_how_the_whole_agrees_with_the_truth() -> None:
    """FSC of the whole to the truth is sqrt(2 f / (1 + f)) of the halves' (Rosenthal and Henderson 2003)."""
    given, truth = _particles("barrel", 600)
    noisy = {**given, "images": given["images"] + 3 * _noise(600, SIDE, SIDE)}
    map_ = Backprojection(SIDE)
    map_.add(**noisy)
    mask = soft_sphere(SIDE, 0.45 * SIDE, 0.1 * SIDE)
    maps = map_.maps(mask)
    found = fsc(maps.whole * mask, truth * mask)[2 : SIDE // 2]
    half = maps.fsc[2 : SIDE // 2].clamp_min(0)
    foretold = (2 * half / (1 + half)).sqrt()
    assert 0.2 < float(half.min()) < 0.9, "noise matters"
    assert float((found - foretold).abs().mean()) < 0.05


def test_shells_that_are_seen_unevenly_are_weighted_by_what_the_halves_agree_in() -> None:
    """Against dividing by the weights alone."""
    given, truth = _particles("barrel", 600)
    given = {name: values[:120] for name, values in given.items()}
    noisy = {**given, "images": given["images"] + 4 * _noise(120, SIDE, SIDE)}
    map_ = Backprojection(SIDE)
    map_.add(**noisy)
    mask = soft_sphere(SIDE, 0.45 * SIDE, 0.1 * SIDE)
    plain = map_._map(map_._sums.sum(0), torch.full((SIDE // 2 + 1,), 1e-3, dtype=torch.float64))
    areas = [float(fsc(some * mask, truth * mask)[1:].mean()) for some in (plain, map_.maps(mask).whole)]
    assert areas[1] > areas[0] + 0.02


@pytest.mark.parametrize("side", [6, 33])
def test_an_odd_or_tiny_side_is_refused(side: int) -> None:
    with pytest.raises(ValueError, match="must be even"):
        Backprojection(side)


def test_wrong_images_and_halves_are_refused() -> None:
    map_ = Backprojection(SIDE, padding=1)
    given, _ = _particles("cage", 10)
    with pytest.raises(ValueError, match="must be"):
        map_.add(**{**given, "images": torch.zeros(10, SIDE, SIDE - 2)})
    with pytest.raises(ValueError, match="halves"):
        map_.add(**{**given, "halves": torch.full((10,), 2)})
