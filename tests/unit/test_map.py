"""``cryoflux map``: from a STAR file to maps and curves that other programs read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import mrcfile
import numpy as np
import pytest
import starfile
import torch

from common.session import SpecimenSpec
from detector_sim.simulate import simulate
from reconstructor.volume import fsc, soft_sphere
from reconstructor.volume.files import in_box, read_map, write_map
from reconstructor.volume.particles import known_of
from services.failure import WrongOption
from services.mapping import make_map
from services.options import MapOptions

SIDE, PIXEL = 32, 6.0


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 particles of the ring (C6) as counts, so dark."""
    folder = tmp_path_factory.mktemp("simulated")
    spec = SpecimenSpec(
        structure="ring", side_pixels=SIDE, pixel_size_angstrom=PIXEL, dose_per_square_angstrom=60
    )
    simulate(spec, 240, folder, lambda done: None)
    return folder


def _made(
    simulated: Path, output: Path, capsys: pytest.CaptureFixture[str], **options: Any
) -> tuple[dict[str, Any], str]:
    wanted = MapOptions(**{"symmetry": "C6", "contrast": "dark", **options})
    assert make_map(simulated / "particles.star", output, wanted) == 0
    return json.loads((output / "map.json").read_text()), capsys.readouterr().out


def test_a_map_comes_with_its_halves_and_their_correlation(
    simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about, told = _made(simulated, tmp_path, capsys, reference=simulated / "map.mrc", mask_diameter=150.0)
    assert about["images"] == [120, 120]
    assert about["ctf"]
    assert f"240 particles, C6: {about['resolution_angstrom']:.2f} Å" in told
    # counts of 60 e/A^2 of a hundred kilodaltons, 1440 of them with the symmetry
    assert 2 * PIXEL <= about["resolution_angstrom"] < 15
    assert about["reference_fsc_area"] > 0.9
    for name in ("map.mrc", "half1_map.mrc", "half2_map.mrc"):
        assert mrcfile.validate(tmp_path / name)
        with mrcfile.open(tmp_path / name) as file:
            assert file.data.shape == (SIDE, SIDE, SIDE)
            assert file.is_volume()
            assert float(file.voxel_size.x) == pytest.approx(PIXEL)
    halves = [read_map(tmp_path / f"half{number}_map.mrc")[0] for number in (1, 2)]
    mask = soft_sphere(SIDE, 150 / 2 / PIXEL, 0.1 * SIDE)
    expected = fsc(halves[0] * mask, halves[1] * mask)
    with (tmp_path / "fsc.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["halves"]) for row in rows] == pytest.approx(expected.tolist(), abs=1e-4)
    assert float(rows[1]["resolution_angstrom"]) == pytest.approx(SIDE * PIXEL)
    assert {"halves", "reference"} <= rows[0].keys()
    points = ElementTree.parse(tmp_path / "fsc.xml").getroot().findall("coordinate")
    assert [float(point.findtext("y", "")) for point in points] == pytest.approx(expected.tolist(), abs=1e-4)
    assert float(points[-1].findtext("x", "")) == pytest.approx(1 / (2 * PIXEL))


def test_the_contrast_has_to_be_told(
    simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Taken for bright, a map of counts is the particle's negative."""
    reference = simulated / "map.mrc"
    right, _ = _made(simulated, tmp_path / "dark", capsys, reference=reference)
    wrong, _ = _made(simulated, tmp_path / "bright", capsys, reference=reference, contrast="bright")
    assert wrong["reference_fsc_area"] == pytest.approx(-right["reference_fsc_area"], abs=1e-3)


def test_particles_without_defocus_are_taken_without_ctf(
    simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = starfile.read(simulated / "particles.star")
    particles = tables["particles"].drop(columns=["rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"])
    starfile.write({**tables, "particles": particles}, tmp_path / "particles.star")
    (tmp_path / "particles.mrcs").symlink_to(simulated / "particles.mrcs")
    about, told = _made(tmp_path, tmp_path / "map", capsys)
    assert not about["ctf"]
    assert "taken without CTF" in told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"symmetry": "X3"}, "point group 'X3' is not known"),
        ({"contrast": "grey"}, "--contrast: 'grey' is not known"),
        ({"mask_diameter": 1000.0}, "--mask-diameter: 1000: must be"),
        ({"reference": Path("/nowhere.mrc")}, "--reference: /nowhere.mrc: cannot be read"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(
    simulated: Path, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(WrongOption, match=told) as caught:
        make_map(simulated / "particles.star", tmp_path, MapOptions(**options))
    assert "\n" not in str(caught.value)


def test_particles_without_poses_are_refused(simulated: Path, tmp_path: Path) -> None:
    tables = starfile.read(simulated / "particles.star")
    starfile.write(
        {**tables, "particles": tables["particles"].drop(columns="rlnAngleTilt")}, tmp_path / "some.star"
    )
    (tmp_path / "particles.mrcs").symlink_to(simulated / "particles.mrcs")
    with pytest.raises(WrongOption, match=r"some\.star: no column rlnAngleTilt"):
        make_map(tmp_path / "some.star", tmp_path / "map", MapOptions())
    with pytest.raises(WrongOption, match="STAR"):
        make_map(tmp_path / "particles.mrcs", tmp_path / "map", MapOptions())


def test_a_reference_of_another_pixel_size_is_refused(simulated: Path, tmp_path: Path) -> None:
    write_map(tmp_path / "other.mrc", torch.zeros(SIDE, SIDE, SIDE), 5.0)
    with pytest.raises(WrongOption, match="5 Å a voxel, the particles 6 Å a pixel"):
        make_map(simulated / "particles.star", tmp_path, MapOptions(reference=tmp_path / "other.mrc"))


@pytest.mark.parametrize("side", [9, 12, 16, 21])
def test_a_map_in_another_box_keeps_its_centre(side: int) -> None:
    volume = torch.zeros(12, 14, 11)
    volume[6, 7, 5] = 1.0
    box = in_box(volume, side)
    assert box.shape == (side, side, side)
    assert box[side // 2, side // 2, side // 2] == 1
    assert box.sum() == 1


def test_columns_say_what_backprojection_takes() -> None:
    columns = {
        "rlnAngleRot": [0.0, 10.0, 20.0], "rlnAngleTilt": [0.0, 90.0, 45.0], "rlnAnglePsi": [0.0, 0.0, 5.0],
        "rlnOriginXAngst": [3.0, 0.0, -6.0], "rlnOriginYAngst": [0.0, 1.5, 0.0],
        "rlnCtfScalefactor": [1.0, 0.5, 0.25],
    }  # fmt: skip
    known = known_of(columns, {}, 16, 1.5, first=1)
    assert known.origins_pixels.tolist() == [[2, 0], [0, 1], [-4, 0]]
    assert known.halves.tolist() == [1, 0, 1]
    assert known.transfers.amax((1, 2)).tolist() == [1, 0.5, 0.25]
    assert np.allclose(known.matrices[0], np.eye(3))
    halves = known_of({**columns, "rlnRandomSubset": [2, 2, 1]}, {}, 16, 1.5).halves
    assert halves.tolist() == [1, 1, 0]
    for wrong, told in (
        ({"rlnRandomSubset": [1, 2, 3]}, "rlnRandomSubset: each must be 1 or 2"),
        ({"rlnAngleRot": ["a", "b", "c"]}, "rlnAngleRot: holds what is no number"),
        ({"rlnAngleRot": [0.0, float("nan"), 1.0]}, "not finite"),
        ({"rlnDefocusU": [1e4] * 3, "rlnDefocusV": [1e4] * 3, "rlnDefocusAngle": [0.0] * 3}, "rlnVoltage"),
    ):
        with pytest.raises(ValueError, match=told):
            known_of({**columns, **wrong}, {}, 16, 1.5)
