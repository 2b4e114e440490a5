"""Backprojection beside that of others: torch-fourier-slice's insertion, cryoDRGN's program if it is there.

cryoDRGN (GPL) is looked for on the path and run as a program; the real sub-tilts it is compared on lie in the
folder that ``CRYOFLUX_DATA`` names. Without either the comparison is left out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import mrcfile
import numpy as np
import torch
from scipy.ndimage import binary_dilation, gaussian_filter
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch_fourier_slice.slice_insertion import insert_central_slices_rfft_3d

from benchmarks.figure import Figure
from benchmarks.timing import fastest
from common.session import FileSource
from detector_sim.sources import open_source
from reconstructor.volume import Backprojection, fsc
from reconstructor.volume.particles import Known, known_of

BATCH, ROUNDS = 64, 5
PIXEL_SIZE = 13.1  # of the sub-tilts
SAME_AREA = 0.99  # of cryoDRGN's area under the FSC to the truth
TIGHT = 0.15  # of the truth's largest value: what the mask encloses, and two voxels more


def run() -> list[Figure]:
    """The figures."""
    torch.set_num_threads(1)
    figures = [figure for side in (64, 128) for figure in _rates(side)]
    data, program = os.environ.get("CRYOFLUX_DATA"), shutil.which("cryodrgn")
    if data and program:
        for name in ("D", "E"):
            figures += _beside_cryodrgn(program, Path(data) / "subtilts", f"10076_class{name}_32")
    return figures


def _rates(side: int) -> list[Figure]:
    images = torch.randn(BATCH, side, side, generator=torch.Generator().manual_seed(0))
    matrices = torch.from_numpy(Rotation.random(BATCH, np.random.default_rng(0)).as_matrix()).float()
    transfers = torch.ones(BATCH, side, side // 2 + 1)
    origins, halves = torch.zeros(BATCH, 2), torch.arange(BATCH) % 2
    shape = (side, side, side)

    def theirs() -> None:
        slices = torch.fft.fftshift(torch.fft.rfft2(images), dim=-2)
        insert_central_slices_rfft_3d(slices, shape, matrices)

    sums = {padding: Backprojection(side, padding=padding) for padding in (1, 2)}
    once, twice, other = fastest(
        lambda: sums[1].add(images, transfers, matrices, origins, halves),
        lambda: sums[2].add(images, transfers, matrices, origins, halves),
        theirs,
        rounds=ROUNDS,
        unmeasured=1,
    )
    note = f"{BATCH} x {side}x{side}, one thread"
    return [
        Figure(f"backprojection, {side} px: rate", BATCH / twice, "img/s", None, f"{note}, padding 2"),
        Figure(f"backprojection, {side} px: rate, padding 1", BATCH / once, "img/s", None, note),
        Figure(
            f"backprojection, {side} px: over torch-fourier-slice's",
            other / once, "x", 1.0, f"{note}, both without padding; theirs has no halves and no CTF",
        ),
    ]  # fmt: skip


def _beside_cryodrgn(program: str, folder: Path, name: str) -> list[Figure]:
    with mrcfile.open(folder / f"{name}.mrc", permissive=True) as file:  # of an old kind, without a stamp
        assert file.data is not None
        truth = torch.from_numpy(file.data.astype(np.float32))
    solid = binary_dilation(truth.numpy() > TIGHT * float(truth.max()), iterations=2)
    mask = torch.from_numpy(gaussian_filter(solid.astype(np.float32), 1))
    star = folder / f"{name}_sim.star"
    with open_source(FileSource(path=str(star), pixel_size_angstrom=PIXEL_SIZE, watch=False)) as source:
        batch = source.read(1 << 20)
        assert batch is not None
        images = -torch.from_numpy(batch.frames.astype(np.float32))
        known = known_of(batch.metadata or {}, source.optics, source.shape[0], PIXEL_SIZE)
    seconds = fastest(lambda: _ours(images, known), rounds=ROUNDS, unmeasured=1)[0]
    ours = _area(_ours(images, known).maps(mask).whole, truth, mask)
    their_map, their_seconds = _theirs(program, star, folder / f"{name}_sim.mrcs")
    theirs = _area(-their_map, truth, mask)
    note = f"{len(images)} sub-tilts of {name}, 32 px"
    return [
        Figure(
            f"{name}: FSC area to the truth, over cryoDRGN's", ours / theirs, "x", SAME_AREA,
            f"{ours:.3f} against {theirs:.3f}; {note}, within a tight mask",
        ),
        Figure(
            f"{name}: rate, over cryoDRGN's", their_seconds / seconds, "x", 1.0,
            f"{len(images) / seconds:.0f} against {len(images) / their_seconds:.0f} img/s; {note}",
        ),
    ]  # fmt: skip


def _ours(images: Tensor, known: Known) -> Backprojection:
    sums = Backprojection(int(images.shape[1]))
    sums.add(images, *known)
    return sums


def _area(volume: Tensor, truth: Tensor, mask: Tensor) -> float:
    return float(fsc(volume * mask, truth * mask)[1:].mean())


def _theirs(program: str, star: Path, stack: Path) -> tuple[Tensor, float]:
    """cryoDRGN's map, and the seconds that it says it took for the images."""
    with tempfile.TemporaryDirectory() as folder:
        poses, transfers = f"{folder}/poses.pkl", f"{folder}/ctf.pkl"
        size, half = ["-D", "32", "--Apix", str(PIXEL_SIZE)], "--no-half-maps"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for command in (
            ["parse_pose_star", str(star), *size, "-o", poses],
            ["parse_ctf_star", str(star), *size, "-o", transfers],
            ["backproject_voxel", str(stack), "--poses", poses, "--ctf", transfers, "-o", folder, half],
        ):
            done = subprocess.run(
                [program, *command], check=True, capture_output=True, text=True, env=environment
            )
        seconds = re.search(r"Backprojected [\d,]+ images in ([\d.]+)s", done.stdout + done.stderr)
        assert seconds is not None, done.stdout + done.stderr
        return torch.from_numpy(mrcfile.read(f"{folder}/backproject.mrc").copy()), float(seconds[1])
