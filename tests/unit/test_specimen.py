"""The specimen simulator keeps its word: geometry, physics, conventions, noise, truth."""

import gzip
import io
from itertools import pairwise
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import pytest
import starfile
import torch
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from common.contrast_transfer import contrast_transfer
from common.point_groups import octahedral_rotations
from common.poses import relion_angles, relion_matrix
from common.session import FileSource, SpecimenSource, SpecimenSpec
from detector_sim.simulate import simulate
from detector_sim.sources import SourceError, open_source
from detector_sim.specimen import Specimen
from detector_sim.specimen.cage import cage, four_helix_bundle
from detector_sim.specimen.placement import most_discs, place_discs
from detector_sim.specimen.potential import low_pass, potential_of_atoms, potential_of_map
from detector_sim.specimen.projection import Projector
from detector_sim.specimen.scattering import (
    VOLT_SQUARE_ANGSTROM,
    element,
    interaction_parameter,
    mean_residue,
)
from detector_sim.specimen.structure import Atoms, read_atoms, shape_atoms

SMALL = {"side_pixels": 64, "pixel_size_angstrom": 3.0}


@pytest.fixture(scope="module")
def counting() -> Specimen:
    return Specimen(SpecimenSpec(**SMALL, seed=3))


@pytest.fixture(scope="module")
def few_atoms() -> Atoms:
    generator = np.random.default_rng(5)
    positions = generator.uniform(-20, 20, (40, 3))
    kinds = generator.integers(0, 2, 40)
    return Atoms(positions, generator.uniform(0.5, 2, 40), kinds, (element("S"), mean_residue()))


# ---- the cage


def test_octahedral_rotations_are_the_24_of_the_group():
    rotations = octahedral_rotations()
    assert rotations.shape == (24, 3, 3)
    assert len(np.unique(rotations.reshape(24, 9), axis=0)) == 24
    np.testing.assert_array_equal(np.linalg.det(rotations).round(12), 1)
    members = {tuple(r.ravel()) for r in rotations + 0.0}
    assert all(tuple((a @ b + 0.0).ravel()) in members for a in rotations for b in rotations)


def test_cage_is_unchanged_by_every_octahedral_rotation():
    atoms = cage().reshape(-1, 3)
    tree = cKDTree(atoms)
    for rotation in octahedral_rotations():
        distances, partners = tree.query(atoms @ rotation.T)
        assert distances.max() < 1e-9
        assert len(np.unique(partners)) == len(atoms)


def test_chain_is_unbroken_and_nothing_clashes():
    subunit = four_helix_bundle()
    np.testing.assert_allclose(np.linalg.norm(np.diff(subunit, axis=0), axis=1), 3.8, atol=0.05)
    apart = np.abs(np.subtract.outer(np.arange(len(subunit)), np.arange(len(subunit)))) > 2
    assert cdist(subunit, subunit)[apart].min() > 4.2
    subunits = cage()
    assert cKDTree(subunits[0]).query(subunits[1:].reshape(-1, 3))[0].min() > 5.0


def test_helices_of_the_bundle_are_antiparallel():
    subunit = four_helix_bundle()
    starts = [36 * number for number in range(4)]  # 32 residues and a loop of 4
    axes = [subunit[s + 30] - subunit[s] for s in starts]
    for first, second in pairwise(axes):
        assert first @ second < -0.95 * np.linalg.norm(first) * np.linalg.norm(second)


def test_cage_is_a_shell_of_apoferritin_size():
    radii = np.linalg.norm(cage().reshape(-1, 3), axis=1)
    assert 80 < 2 * radii.min() < 86
    assert 118 < 2 * radii.max() < 128
    assert 150 < cage().shape[1] < 180


def test_cage_resembles_the_real_apoferritin(data: Path):
    real, ours = read_atoms(data / "models" / "apoferritin_24mer_ca.pdb"), shape_atoms("cage")
    assert abs(real.diameter - ours.diameter) < 8
    mass = [float((a.weights * a.scatterers[0].forward).sum()) for a in (real, ours)]
    assert abs(mass[0] / mass[1] - 1) < 0.15


# ---- potential


def test_interaction_parameter_at_300_kv():
    assert interaction_parameter(300) == pytest.approx(0.6526e-3, rel=1e-3)
    assert pytest.approx(47.878, rel=1e-4) == VOLT_SQUARE_ANGSTROM


def test_potential_is_the_direct_sum_over_atoms(few_atoms: Atoms):
    pixel = 1.7
    potential = potential_of_atoms(few_atoms, pixel)
    side = len(potential.volume)
    transform = torch.fft.rfftn(torch.fft.ifftshift(potential.volume)) * pixel**3
    generator = np.random.default_rng(0)
    for index in generator.integers(0, side // 3, (20, 3)):  # z y x
        k = index[::-1] / (side * pixel)
        squared = torch.tensor(float(k @ k), dtype=torch.float64)
        factors = np.array([float(s.form_factor(squared)) for s in few_atoms.scatterers])
        waves = np.exp(-2j * np.pi * few_atoms.positions @ k) * few_atoms.weights * factors[few_atoms.kinds]
        expected = VOLT_SQUARE_ANGSTROM * waves.sum() * float(low_pass(squared, 0.5 / pixel))
        assert abs(complex(transform[tuple(index)]) - expected) < 2e-3 * VOLT_SQUARE_ANGSTROM


def test_potential_integrates_to_the_forward_amplitudes():
    atoms = shape_atoms("cage")
    potential = potential_of_atoms(atoms, 3.0)
    forward = float((atoms.weights * mean_residue().forward).sum())
    assert float(potential.volume.sum()) * 27 == pytest.approx(VOLT_SQUARE_ANGSTROM * forward, rel=1e-4)


def _pdb(path: Path, lines: list[str]) -> Path:
    text = "\n".join(lines) + "\nEND\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def _atom(serial: int, name: str, residue: str, number: int, x: float, symbol: str) -> str:
    return (
        f"ATOM  {serial:5d}  {name:<3s} {residue:>3s} A{number:4d}    {x:8.3f}{0:8.3f}{0:8.3f}"
        f"  1.00 20.00          {symbol:>2s}"
    )


@pytest.mark.parametrize("name", ["model.pdb", "model.pdb.gz"])
def test_residues_given_by_their_ca_become_beads_of_their_mass(tmp_path: Path, name: str):
    lines = [_atom(1, "CA", "GLY", 1, 0, "C"), _atom(2, "CA", "TRP", 2, 3.8, "C")]
    atoms = read_atoms(_pdb(tmp_path / name, lines))
    assert atoms.scatterers == (mean_residue(),)
    np.testing.assert_allclose(atoms.weights * 110, [57.05, 186.2], atol=0.2)


def test_full_atoms_get_their_missing_hydrogens_and_lose_their_waters(tmp_path: Path):
    lines = [_atom(i, n, "GLY", 1, 1.5 * i, n[0]) for i, n in enumerate(("N", "CA", "C", "O"))]
    lines.append(_atom(9, "O", "HOH", 2, 20, "O"))
    atoms = read_atoms(_pdb(tmp_path / "model.pdb", lines))
    assert len(atoms.positions) == 8
    hydrogens = [atoms.scatterers[kind] == element("H") for kind in atoms.kinds]
    assert atoms.weights[hydrogens].sum() == pytest.approx(3)  # glycine in a chain: C2 H3 N O


def test_mmcif_gives_the_same_atoms_as_pdb(tmp_path: Path):
    lines = [_atom(i, n, "ALA", 1, 1.5 * i, n[0]) for i, n in enumerate(("N", "CA", "C", "O", "CB"))]
    pdb = _pdb(tmp_path / "model.pdb", lines)
    structure = gemmi.read_structure(str(pdb))
    structure.setup_entities()
    structure.make_mmcif_document().write_file(str(tmp_path / "model.cif"))
    a, b = read_atoms(pdb), read_atoms(tmp_path / "model.cif")
    np.testing.assert_allclose(a.positions, b.positions)
    np.testing.assert_allclose(a.weights, b.weights)


def _write_map(path: Path, volume: np.ndarray, pixel: float) -> Path:
    with mrcfile.new(path, volume.astype(np.float32), overwrite=True) as file:
        file.voxel_size = pixel
    return path


def test_map_becomes_a_potential_at_another_pixel_size(tmp_path: Path):
    fine = potential_of_atoms(shape_atoms("cage"), 2.4)
    path = _write_map(tmp_path / "map.mrc", 0.01 * fine.volume.numpy() + 5, 2.4)  # any scale, any background
    ours, direct = potential_of_map(path, 3.0), potential_of_atoms(shape_atoms("cage"), 3.0)
    side = min(len(ours.volume), len(direct.volume))
    middles = []
    for volume in (ours.volume, direct.volume):
        start = len(volume) // 2 - side // 2
        middles.append(volume[start : start + side, start : start + side, start : start + side].flatten())
    assert float(torch.corrcoef(torch.stack(middles))[0, 1]) > 0.98
    assert 0.6 < float(middles[0].std() / middles[1].std()) < 1.4
    assert ours.diameter_angstrom == pytest.approx(direct.diameter_angstrom, abs=15)


# ---- projection


def test_relion_matrix_is_relions_own_formula():
    generator = np.random.default_rng(1)
    angles = generator.uniform((-180, 0, -180), (180, 180, 180), (50, 3))
    (ca, cb, cg), (sa, sb, sg) = (f(np.radians(angles)).T for f in (np.cos, np.sin))
    expected = np.array([
        [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
        [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
        [sb * ca, sb * sa, cb],
    ])  # fmt: skip
    matrices = relion_matrix(angles)
    np.testing.assert_allclose(matrices, expected.transpose(2, 0, 1), atol=1e-12)
    np.testing.assert_allclose(relion_angles(matrices), angles, atol=1e-6)


def _direct_projection(
    atoms: Atoms, rotation: np.ndarray, shift: np.ndarray, side: int, pixel: float
) -> np.ndarray:
    """Sum over atoms in two dimensions, exact up to Nyquist."""
    x, y = (atoms.positions @ rotation.T)[:, :2].T + shift[:, None] * pixel
    k = np.fft.fftfreq(side, pixel)
    squared = torch.from_numpy(k[:, None] ** 2 + k[None, :] ** 2)
    rows, columns = np.exp(-2j * np.pi * np.outer(k, y)), np.exp(-2j * np.pi * np.outer(x, k))
    transform = np.zeros((side, side), complex)
    for kind, scatterer in enumerate(atoms.scatterers):
        chosen = atoms.kinds == kind
        factor = scatterer.form_factor(squared).numpy()
        transform += ((rows[:, chosen] * atoms.weights[chosen]) @ columns[chosen]) * factor
    transform *= low_pass(squared, 0.5 / pixel).numpy() * VOLT_SQUARE_ANGSTROM / pixel**2
    return np.fft.fftshift(np.fft.ifft2(transform).real)


@pytest.mark.parametrize("which", ["cage", "few"])
def test_projection_is_the_direct_sum_over_atoms(which: str, few_atoms: Atoms):
    atoms, pixel = (shape_atoms("cage"), 3.0) if which == "cage" else (few_atoms, 2.0)
    projector = Projector(potential_of_atoms(atoms, pixel))
    angles = np.array([[0.0, 0, 0], [10, 40, 77], [-160, 120, -30], [45, 90, 0]])
    shifts = np.array([[0.0, 0], [1.3, -2.6], [-0.5, 0.25], [2, 1]])
    rotations = relion_matrix(angles)
    images = projector.project(torch.from_numpy(rotations), torch.from_numpy(shifts)).numpy()
    for image, rotation, shift in zip(images, rotations, shifts, strict=True):
        expected = _direct_projection(atoms, rotation, shift, projector.side, pixel)
        assert np.sqrt(((image - expected) ** 2).mean()) < 0.05 * expected.std()


# ---- contrast transfer


def _ctf(u: float, v: float, angle: float, side: int = 256, **changes: float) -> np.ndarray:
    parameters = {
        "pixel_size_angstrom": 1.5, "voltage_kv": 300.0, "spherical_aberration_mm": 2.7,
        "amplitude_contrast": 0.07, "envelope_b_factor": 0.0,
    } | changes  # fmt: skip
    values = (torch.tensor([value]) for value in (u, v, angle))
    return contrast_transfer(*values, shape=(side, side), **parameters)[0].numpy()


def test_ctf_is_zero_where_theory_says():
    wavelength = 0.019687
    transfer = _ctf(15000.0, 15000.0, 0.0, spherical_aberration_mm=0.0, amplitude_contrast=0.0)
    profile, step = transfer[0], 1 / (256 * 1.5)
    crossings = np.flatnonzero(np.diff(np.sign(profile[1:]))) + 1
    found = [(i + profile[i] / (profile[i] - profile[i + 1])) * step for i in crossings]
    expected = np.sqrt(np.arange(1, len(found) + 1) / (wavelength * 15000))
    assert len(found) > 20
    np.testing.assert_allclose(found, expected, atol=0.2 * step)


def test_ctf_is_relions_formula_with_astigmatism_and_envelope():
    ky, kx = np.fft.fftfreq(256, 1.5)[:, None], np.fft.rfftfreq(256, 1.5)[None, :]
    squared, azimuth = kx**2 + ky**2, np.arctan2(ky, kx)
    wavelength = 12.2643247 / np.sqrt(3e5 * (1 + 3e5 * 0.978466e-6))
    for angle in (0.0, 25.0, 110.0):
        defocus = -(21000 + 18000) / 2 - (21000 - 18000) / 2 * np.cos(2 * (azimuth - np.radians(angle)))
        phase = np.pi * wavelength * defocus * squared + np.pi / 2 * 2.7e7 * wavelength**3 * squared**2
        expected = -np.sin(phase - np.arcsin(0.07)) * np.exp(-80 / 4 * squared)
        found = _ctf(21000.0, 18000.0, angle, envelope_b_factor=80.0)
        np.testing.assert_allclose(found, expected, atol=2e-3)
        assert found[0, 0] == pytest.approx(0.07)


# ---- frames


def test_counts_are_poisson_about_the_clean_frame(counting: Specimen):
    batch = counting.batch(0, 64)
    assert batch.frames.dtype == counting.dtype
    noise, mean = batch.frames - batch.clean, batch.clean.mean()
    error = 5 / np.sqrt(noise.size)
    assert mean == pytest.approx(20 * 9, rel=0.02)
    assert abs(noise.mean()) < error * np.sqrt(mean)
    assert abs(noise.var() / mean - 1) < error * np.sqrt(2 + 1 / mean)


def test_dtype_is_the_smallest_that_holds_the_dose():
    assert Specimen(SpecimenSpec(**SMALL, dose_per_square_angstrom=5)).dtype == np.uint8
    assert Specimen(SpecimenSpec(**SMALL, dose_per_square_angstrom=50)).dtype == np.uint16


@pytest.mark.parametrize("snr", [0.05, 0.5])
def test_snr_is_as_stated(snr: float):
    batch = Specimen(SpecimenSpec(**SMALL, snr=snr)).batch(0, 128)
    noise = batch.frames - batch.clean
    assert batch.frames.dtype == np.float32
    assert noise.var() == pytest.approx(1, rel=0.01)
    assert batch.clean.var(axis=(1, 2)).mean() / noise.var() == pytest.approx(snr, rel=0.1)


def test_protein_is_dark_in_counts_and_bright_at_a_given_snr(counting: Specimen):
    floats = Specimen(SpecimenSpec(**SMALL, seed=3, snr=0.1))
    grid = np.hypot(*np.mgrid[-32:32, -32:32])
    inside, outside = grid < 20, grid > 30
    dark, bright = counting.batch(0, 16).clean, floats.batch(0, 16).clean
    assert dark[:, inside].mean() < dark[:, outside].mean()
    assert bright[:, inside].mean() > bright[:, outside].mean()
    # the same signal but for its sign and unit
    assert np.corrcoef(dark.ravel(), bright.ravel())[0, 1] == pytest.approx(-1, abs=1e-5)


def test_clean_frame_is_ctf_times_projection_at_the_pose_of_its_metadata():
    specimen = Specimen(SpecimenSpec(**SMALL, seed=8, snr=1.0))
    batch = specimen.batch(0, 2)
    row = {name: values[1] for name, values in batch.metadata.items()}
    rotation = relion_matrix(np.array([[row["rlnAngleRot"], row["rlnAngleTilt"], row["rlnAnglePsi"]]]))[0]
    np.testing.assert_allclose(batch.rotations[1], rotation)
    shift = -np.array([row["rlnOriginXAngst"], row["rlnOriginYAngst"]]) / 3.0
    assert np.abs(shift).max() > 0.1
    image = _direct_projection(shape_atoms("cage"), rotation, shift, 64, 3.0)
    transfer = _ctf(
        row["rlnDefocusU"], row["rlnDefocusV"], row["rlnDefocusAngle"], side=64,
        pixel_size_angstrom=3.0, envelope_b_factor=row["rlnCtfBfactor"],
    )  # fmt: skip
    expected = np.fft.irfft2(np.fft.rfft2(image) * transfer)
    assert np.corrcoef(expected.ravel(), batch.clean[1].ravel())[0, 1] > 0.998


def test_orientations_are_uniform(counting: Specimen):
    axes = counting.batch(0, 400).rotations[:, 2]  # the beam, seen from the specimen
    assert np.abs(axes.mean(axis=0)).max() < 5 * np.sqrt(1 / 3 / 400)
    np.testing.assert_allclose(axes.T @ axes / 400, np.eye(3) / 3, atol=0.08)


def test_frames_depend_on_seed_and_number_alone(counting: Specimen):
    whole = counting.batch(0, 70)
    again = Specimen(SpecimenSpec(**SMALL, seed=3))
    parts = [again.batch(first, count) for first, count in ((41, 29), (0, 1), (1, 40))]
    for name in ("frames", "clean", "rotations"):
        joined = np.concatenate([getattr(parts[i], name) for i in (1, 2, 0)])
        np.testing.assert_array_equal(joined, getattr(whole, name))
    for column, values in whole.metadata.items():
        assert [*parts[1].metadata[column], *parts[2].metadata[column], *parts[0].metadata[column]] == values
    other = Specimen(SpecimenSpec(**SMALL, seed=4)).batch(0, 1)
    assert other.metadata["rlnAngleRot"] != whole.metadata["rlnAngleRot"][:1]
    assert not np.array_equal(other.frames[0], whole.frames[0])


@pytest.mark.parametrize("changes", [{}, {"snr": 0.2}, {"output": "micrographs", "side_pixels": 160}])
def test_clean_frames_alone_are_those_of_the_batch(changes: dict):
    specimen = Specimen(SpecimenSpec(**SMALL | {"particles_per_micrograph": 4} | changes, seed=2))
    clean = specimen.clean(30, 3)
    assert clean.dtype == np.float32
    np.testing.assert_array_equal(clean, specimen.batch(30, 3).clean)


# ---- micrographs


def test_discs_do_not_overlap_and_stay_inside():
    generator = np.random.default_rng(2)
    count = most_discs(1000, 60)
    centres = place_discs(count, 1000, 60, generator)
    distances = cdist(centres, centres) + np.diag(np.full(count, np.inf))
    assert distances.min() >= 60
    assert centres.min() >= 30
    assert centres.max() <= 970
    with pytest.raises(ValueError, match="do not fit"):
        place_discs(count + 1, 1000, 60, generator)


def test_micrograph_has_its_particles_where_its_coordinates_say():
    spec = SpecimenSpec(
        output="micrographs", side_pixels=160, pixel_size_angstrom=3.0, particles_per_micrograph=4, snr=1.0
    )
    specimen = Specimen(spec)
    batch = specimen.batch(0, 2)
    assert batch.frames.shape == (2, 160, 160)
    assert len(batch.rotations) == len(batch.particles["rlnCoordinateX"]) == 8
    for name in ("rlnDefocusU", "rlnDefocusV", "rlnMicrographName"):
        assert len(set(batch.particles[name][:4])) == 1
        assert batch.particles[name][::4] == batch.metadata[name]
    # all particles, summed directly from their atoms at their coordinates and poses
    x, y = (np.array(batch.particles[f"rlnCoordinate{axis}"][:4]) for axis in "XY")
    image = np.zeros((160, 160))
    for index in range(4):
        shift = np.array([x[index], y[index]]) - 80
        image += _direct_projection(shape_atoms("cage"), batch.rotations[index], shift, 160, 3.0)
    row = {name: values[0] for name, values in batch.metadata.items()}
    transfer = _ctf(
        row["rlnDefocusU"], row["rlnDefocusV"], row["rlnDefocusAngle"], side=160,
        pixel_size_angstrom=3.0, envelope_b_factor=60.0,
    )  # fmt: skip
    expected = np.fft.irfft2(np.fft.rfft2(image) * transfer)
    assert np.corrcoef(expected.ravel(), batch.clean[0].ravel())[0, 1] > 0.995


# ---- what cannot be made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"structure": "/nowhere/model.pdb"}, "structure: /nowhere/model.pdb: no such file"),
        (
            {"structure": "octopus"},
            "structure: octopus: no such file; give 'cage', 'barrel', 'ring', 'bundle', or a PDB",
        ),
        ({"side_pixels": 64}, "side_pixels: cage is 132 angstrom wide, the frame 96; at least 89 pixels"),
        ({"defocus_min_um": 2.0, "defocus_max_um": 1.0}, "defocus_min_um: 2 is above"),
        ({**SMALL, "pixel_size_angstrom": 10.0, "dose_per_square_angstrom": 1000.0}, "do not fit 16 bits"),
        ({**SMALL, "output": "micrographs"}, "particles_per_micrograph: 60 .* allowed range 1 to"),
    ],
)
def test_impossible_specimen_is_refused_in_one_line(changes: dict, message: str):
    with pytest.raises(SourceError, match=message) as caught:
        open_source(SpecimenSource(specimen=SpecimenSpec(**changes)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pdb", b"not a model\n", "no atoms"),
        ("a.cif", b"not a model\n", "not a PDB or mmCIF"),
        ("a.mrc", b"not a map", "not an MRC file"),
    ],
)
def test_unreadable_structure_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, message: str):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Specimen(SpecimenSpec(**SMALL, structure=str(path)))
    assert "\n" not in str(caught.value)


# ---- sets on disk


def _assert_valid(path: Path) -> None:
    told = io.StringIO()
    assert mrcfile.validate(path, print_file=told), told.getvalue()


@pytest.mark.parametrize(("snr", "dtype"), [(None, np.uint16), (0.2, np.float32)])
def test_particle_set_is_what_the_specimen_gives(tmp_path: Path, snr: float | None, dtype: type):
    spec = SpecimenSpec(**SMALL, snr=snr, seed=6)
    told: list[int] = []
    written = simulate(spec, 10, tmp_path / "set", told.append)
    batch = Specimen(spec).batch(0, 10)
    assert told[-1] == written.count == 10
    for path in (written.frames, written.clean, written.map):
        _assert_valid(path)
        with mrcfile.open(path) as file:
            assert file.voxel_size.x == pytest.approx(3.0)
    frames, clean = mrcfile.read(written.frames), mrcfile.read(written.clean)
    assert frames.dtype == dtype
    np.testing.assert_array_equal(frames, batch.frames)
    np.testing.assert_array_equal(clean, batch.clean)
    assert mrcfile.read(written.map).shape == (64, 64, 64)
    tables = starfile.read(written.star)
    assert tables["optics"]["rlnImagePixelSize"].tolist() == [3.0]
    assert tables["optics"]["rlnVoltage"].tolist() == [300.0]
    particles = tables["particles"]
    assert particles["rlnImageName"].iloc[9] == "000010@particles.mrcs"
    assert particles["rlnRandomSubset"].tolist() == [1, 2] * 5
    for column in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnDefocusU", "rlnOriginXAngst"):
        np.testing.assert_allclose(particles[column], batch.metadata[column], atol=1e-5)
    with open_source(FileSource(path=str(written.star))) as source:
        again = source.read(10)
        assert again is not None
        np.testing.assert_array_equal(again.frames, frames)
        assert again.metadata is not None
        np.testing.assert_allclose(again.metadata["rlnDefocusV"], batch.metadata["rlnDefocusV"], atol=1e-5)
        assert source.optics["rlnSphericalAberration"] == 2.7


def test_low_counts_are_stored_in_one_byte(tmp_path: Path):
    spec = SpecimenSpec(**SMALL, dose_per_square_angstrom=5)
    written = simulate(spec, 3, tmp_path)
    frames = mrcfile.read(written.frames)
    assert frames.dtype == np.int8
    np.testing.assert_array_equal(frames, Specimen(spec).batch(0, 3).frames)


def test_micrograph_set_names_every_particle(tmp_path: Path):
    spec = SpecimenSpec(
        output="micrographs", side_pixels=200, pixel_size_angstrom=3.0, particles_per_micrograph=4
    )
    written = simulate(spec, 2, tmp_path)
    particles = starfile.read(written.star)["particles"]
    assert len(particles) == 8
    for name in particles["rlnMicrographName"].unique():
        _assert_valid(tmp_path / name)
        _assert_valid(written.clean / Path(name).name)
    assert len(starfile.read(tmp_path / "micrographs.star")["micrographs"]) == 2
    with open_source(FileSource(path=str(written.frames))) as source:
        assert source.frame_count == 2
        assert source.pixel_size_angstrom == pytest.approx(3.0)


def test_set_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot be written") as caught:
        simulate(SpecimenSpec(**SMALL), 1, tmp_path / "file")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="at least 1"):
        simulate(SpecimenSpec(**SMALL), 0, tmp_path)


def test_specimen_is_an_endless_source():
    with open_source(SpecimenSource(specimen=SpecimenSpec(**SMALL, seed=3))) as source:
        first, second = source.read(3), source.read(2)
        assert first is not None
        assert second is not None
        assert source.frame_count is None
        assert source.optics["rlnImageSize"] == 64
        expected = Specimen(SpecimenSpec(**SMALL, seed=3)).batch(0, 5)
        np.testing.assert_array_equal(np.concatenate([first.frames, second.frames]), expected.frames)
        assert second.metadata is not None
        assert second.metadata["rlnAnglePsi"] == expected.metadata["rlnAnglePsi"][3:]


@pytest.mark.parametrize("name", ["models/groel_1oel.pdb.gz", "maps/groel_emd1997.mrc"])
def test_real_models_and_maps_can_be_simulated(data: Path, name: str):
    spec = SpecimenSpec(structure=str(data / name), pixel_size_angstrom=4.0, side_pixels=64)
    batch = Specimen(spec).batch(0, 2)
    assert batch.frames.shape == (2, 64, 64)
    assert batch.clean.std() > 1
