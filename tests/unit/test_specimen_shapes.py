"""The built-in shapes: ideal backbones, exact symmetry, nothing that clashes, sizes as documented."""

import hashlib
import os
import re
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from common.point_groups import cyclic_rotations, dihedral_rotations, octahedral_rotations
from common.session import STRUCTURES, SpecimenSpec
from detector_sim.specimen import Specimen
from detector_sim.specimen.backbone import (
    HELIX_RADIUS,
    Layer,
    arched_loop,
    ideal_helix,
    ideal_strand,
    layered_domain,
    supercoiled_helix,
)
from detector_sim.specimen.barrel import LAYERS as BARREL_LAYERS
from detector_sim.specimen.bundle import supercoiled_bundle
from detector_sim.specimen.potential import potential_of_atoms
from detector_sim.specimen.projection import Projector
from detector_sim.specimen.shapes import SHAPES
from detector_sim.specimen.structure import shape_atoms

ROOT = Path(__file__).parents[2]
SMALL = {"side_pixels": 64, "pixel_size_angstrom": 3.0, "seed": 5}
SYMMETRIES = {
    "cage": octahedral_rotations(),
    "barrel": dihedral_rotations(7),
    "ring": cyclic_rotations(6),
    "bundle": np.eye(3)[None],
}


@pytest.fixture(scope="module")
def chains() -> dict[str, list[np.ndarray]]:
    return {name: list(build()) for name, build in SHAPES.items()}


def lengths(chain: np.ndarray, apart: int) -> np.ndarray:
    """Distances between residues so far apart in the chain."""
    return np.linalg.norm(chain[apart:] - chain[:-apart], axis=1)


# ---- pieces


def test_helix_has_the_geometry_of_an_alpha_helix():
    helix = ideal_helix(30)
    np.testing.assert_allclose(np.diff(helix[:, 2]), 1.5)
    np.testing.assert_allclose(np.hypot(helix[:, 0], helix[:, 1]), 2.3)
    turns = np.unwrap(np.arctan2(helix[:, 1], helix[:, 0]))
    np.testing.assert_allclose(np.degrees(np.diff(turns)), 100)  # counterclockwise going up: right-handed
    np.testing.assert_allclose(np.linalg.norm(np.diff(helix, axis=0), axis=1), 3.8, atol=0.05)


def test_strand_is_pleated_and_extended():
    strand = ideal_strand(9)
    np.testing.assert_allclose(lengths(strand, 1), 3.8, atol=0.001)
    np.testing.assert_allclose(lengths(strand, 2), 6.64)
    np.testing.assert_allclose(strand.mean(axis=0)[1:], 0, atol=1e-12)


def test_supercoiled_helix_is_an_alpha_helix_on_a_left_handed_coil():
    radius, residues = 7.0, 136  # one turn of the supercoil
    helix = supercoiled_helix(residues, radius, 30.0)
    # the distances that make an alpha helix, a little changed by the coil
    for apart in (1, 2, 3, 4, 7):
        np.testing.assert_allclose(lengths(helix, apart), lengths(ideal_helix(8), apart)[0], rtol=0.05)
    # seven residues are two turns: their mean lies on the axis, which is a helix itself
    axis = np.stack([helix[i : i + 7].mean(axis=0) for i in range(residues - 6)])
    np.testing.assert_allclose(np.hypot(axis[:, 0], axis[:, 1]), radius, atol=0.15)
    turned = np.degrees(np.unwrap(np.arctan2(axis[:, 1], axis[:, 0])))
    assert (np.diff(turned) < 0).all()  # clockwise going up: left-handed
    pitch = 360 * (axis[-1, 2] - axis[0, 2]) / (turned[0] - turned[-1])
    assert pitch == pytest.approx(200, rel=0.01)
    # it rises by 1.5 angstrom a residue along its own axis, which its tilt makes longer than the coil's
    assert np.linalg.norm(np.diff(axis[::7], axis=0), axis=1) / 7 == pytest.approx(1.5, rel=0.01)


def test_arm_is_four_antiparallel_helices_ten_angstrom_apart():
    residues = 40
    arm = supercoiled_bundle(residues)
    helices = [arm[start : start + residues] for start in range(0, len(arm), residues + 4)]
    axes = [np.stack([h[i : i + 7].mean(axis=0) for i in range(residues - 6)]) for h in helices]
    for number in range(4):
        one, other = axes[number], axes[(number + 1) % 4]
        assert 9.5 < cdist(one, other).min(axis=1).mean() < 10.2
        assert (one[-1] - one[0]) @ (other[-1] - other[0]) < 0


def test_loop_that_cannot_reach_is_refused():
    with pytest.raises(ValueError, match="cannot span"):
        arched_loop(np.zeros(3), np.array([30.0, 0, 0]), np.array([0.0, 0, 1]), 4)


def test_layers_of_a_domain_are_packed_as_in_proteins():
    domain = layered_domain(BARREL_LAYERS)
    first = 18 + 4 + 18 + 4  # residues before the first sheet
    strands = [domain[first + 10 * n : first + 10 * n + 8] for n in range(5)]  # 8 and a turn of 2
    second = first + 5 * 8 + 4 * 2 + 4
    across = domain[second : second + 8]
    for one, other in combinations(strands, 2):
        spacing = abs(one[:, 1].mean() - other[:, 1].mean())
        assert spacing == pytest.approx(4.8 * round(spacing / 4.8))
    for one, other in pairwise(strands):
        np.testing.assert_allclose(one, other[::-1] - [0, other[0, 1] - one[0, 1], 0], atol=1e-9)
    assert across[:, 0].mean() - strands[0][:, 0].mean() == pytest.approx(10)
    assert strands[0][:, 0].mean() - domain[:18, 0].mean() == pytest.approx(10, abs=0.2 * HELIX_RADIUS)


@pytest.mark.parametrize("kind", ["helices", "strands"])
def test_single_layer_is_a_domain_too(kind: str):
    domain = layered_domain([Layer(kind, 3, 9)])
    np.testing.assert_allclose(domain.mean(axis=0), 0, atol=1e-9)
    assert np.ptp(domain[:9, 2]) > 11


# ---- shapes


def test_every_name_of_a_session_is_a_shape():
    assert tuple(SHAPES) == STRUCTURES


@pytest.mark.parametrize(("order", "rotations"), [(7, dihedral_rotations(7)), (6, cyclic_rotations(6))])
def test_rotations_are_a_group(order: int, rotations: np.ndarray):
    np.testing.assert_allclose(np.linalg.det(rotations), 1)
    np.testing.assert_allclose(np.linalg.matrix_power(rotations[1], order), np.eye(3), atol=1e-12)
    products = np.einsum("aij,bjk->abik", rotations, rotations).reshape(-1, 9)
    distances, members = cKDTree(rotations.reshape(-1, 9)).query(products)
    assert distances.max() < 1e-12
    assert (np.bincount(members) == len(rotations)).all()


@pytest.mark.parametrize("name", STRUCTURES)
def test_shape_is_unchanged_by_its_rotations(chains: dict[str, list[np.ndarray]], name: str):
    atoms = np.concatenate(chains[name])
    tree = cKDTree(atoms)
    for rotation in SYMMETRIES[name]:
        distances, partners = tree.query(atoms @ rotation.T)
        assert distances.max() < 1e-9
        assert len(np.unique(partners)) == len(atoms)


@pytest.mark.parametrize("name", STRUCTURES)
def test_chains_are_unbroken_and_nothing_clashes(chains: dict[str, list[np.ndarray]], name: str):
    for chain in chains[name]:
        np.testing.assert_allclose(lengths(chain, 1), 3.8, atol=0.05)
    atoms = np.concatenate(chains[name])
    tree = cKDTree(atoms)
    assert tree.query(atoms, k=2)[0][:, 1].min() > 3.5
    pairs = tree.query_pairs(4.2, output_type="ndarray")
    assert (pairs[:, 1] - pairs[:, 0] <= 2).all()  # only neighbours in the chain are as near as that
    chain_of = np.repeat(np.arange(len(chains[name])), [len(chain) for chain in chains[name]])
    pairs = tree.query_pairs(5.0, output_type="ndarray")
    assert (chain_of[pairs[:, 0]] == chain_of[pairs[:, 1]]).all()


@pytest.mark.parametrize(
    ("name", "residues", "size"),
    [
        ("cage", 3792, (119, 119, 119)),
        ("barrel", 5264, (114, 115, 144)),
        ("ring", 948, (85, 83, 40)),
        ("bundle", 962, (122, 53, 149)),
    ],
)
def test_sizes_are_those_of_the_documentation(
    chains: dict[str, list[np.ndarray]], name: str, residues: int, size: tuple[int, int, int]
):
    atoms = np.concatenate(chains[name])
    assert len(atoms) == residues
    np.testing.assert_allclose(np.ptp(atoms, axis=0), size, atol=0.6)
    np.testing.assert_allclose(atoms.mean(axis=0), 0, atol=1e-9)
    told = (ROOT / "docs" / "simulator.md").read_text()
    row = re.search(rf"^\| `{name}` .*$", told, re.MULTILINE)
    assert row is not None
    assert f"{len(chains[name])} chains, {residues} residues" in row[0]
    assert " x ".join(map(str, size)) in row[0].replace("×", "x")


def test_barrel_and_ring_are_hollow(chains: dict[str, list[np.ndarray]]):
    for name, inner, outer in (("barrel", 35, 116), ("ring", 29, 87)):
        atoms = np.concatenate(chains[name])
        across = 2 * np.hypot(atoms[:, 0], atoms[:, 1])
        assert across.min() == pytest.approx(inner, abs=1)
        assert across.max() == pytest.approx(outer, abs=1)


def test_bundle_has_no_symmetry(chains: dict[str, list[np.ndarray]]):
    atoms = np.concatenate(chains["bundle"])
    # a half turn about any of its axes of inertia, all that a two-fold axis could be, takes it elsewhere
    _, axes = np.linalg.eigh(np.cov(atoms.T))
    for axis in axes.T:
        half_turn = 2 * np.outer(axis, axis) - np.eye(3)
        assert cKDTree(atoms).query(atoms @ half_turn.T)[0].max() > 10
    assert len({len(chain) for chain in chains["bundle"]}) == 5


# ---- their images


def test_shape_is_told_from_one_projection_in_any_direction():
    count, side = 40, 48
    rotations = torch.from_numpy(Rotation.random(count, rng=np.random.default_rng(0)).as_matrix())
    ring = np.rint(side * np.hypot(*np.meshgrid(*[np.fft.fftfreq(side)] * 2))).astype(int).ravel()
    known: list[np.ndarray] = []  # amplitudes by ring: the same however an image is turned in its plane
    for name in STRUCTURES:
        projector = Projector(potential_of_atoms(shape_atoms(name), 6.0))
        images = projector.project(rotations, torch.zeros(count, 2)).numpy()
        spare = (side - projector.side) // 2
        amplitudes = np.abs(np.fft.fft2(np.pad(images, [(0, 0), (spare, spare), (spare, spare)])))
        rings = np.stack([np.bincount(ring, one.ravel())[:12] for one in amplitudes]) / np.bincount(ring)[:12]
        known.append(rings / rings[:, :1])
    rings, shape = np.concatenate(known), np.repeat(np.arange(len(known)), count)
    apart = cdist(rings, rings)
    np.fill_diagonal(apart, np.inf)
    nearest = shape[apart.argmin(axis=1)]
    assert (nearest == shape).mean() > 0.95


@pytest.mark.parametrize("name", STRUCTURES)
def test_shape_fits_the_frame_of_the_prior_in_the_box(name: str):
    specimen = Specimen(SpecimenSpec(**SMALL, structure=name))
    assert specimen.potential.diameter_angstrom < 64 * 3.0
    signal = specimen.clean(0, 4) - 180
    assert (signal.std(axis=(1, 2)) > 1).all()


def _digest(chains: dict[str, list[np.ndarray]], frames: np.ndarray) -> str:
    atoms = [np.concatenate(chains[name]).tobytes() for name in STRUCTURES]
    return hashlib.sha256(b"".join([*atoms, frames.tobytes()])).hexdigest()


def test_other_processes_make_the_same_atoms_and_frames(chains: dict[str, list[np.ndarray]]):
    told = (
        "from tests.unit.test_specimen_shapes import SHAPES, SMALL, Specimen, SpecimenSpec, _digest\n"
        "frames = Specimen(SpecimenSpec(**SMALL, structure='ring')).batch(3, 2).frames\n"
        "print(_digest({name: list(build()) for name, build in SHAPES.items()}, frames))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", told],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    frames = Specimen(SpecimenSpec(**SMALL, structure="ring")).batch(3, 2).frames
    assert done.stdout.strip() == _digest(chains, frames)
