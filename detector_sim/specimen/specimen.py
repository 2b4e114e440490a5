"""A specimen under the simulated microscope: frames as a detector counts them, and the truth behind them.

Physics, in the weak-phase approximation: a frame's expected counts are

    dose * pixel^2 * (1 - 2 sigma CTF * V),

V the potential above ice projected along the beam (volt angstrom) and sigma the interaction parameter. An
ideal counting detector then draws Poisson counts. In a particle's frame the CTF acts within the frame, as
programs that reconstruct from such frames assume (its rings wrap around the edges). Ice has no structure
of its own, and inelastic scattering acts through the amplitude contrast alone.

Two kinds of frames:

- counts (``snr`` not given): unsigned integers, protein *dark*, as a detector records them;
- ``snr`` given: float32 in units of the noise's standard deviation, background 0, protein *bright*, as
  programs write extracted particles: frame = s * CTF * V + noise of variance 1, where s makes the variance
  of the signal over the whole frame, mean over frames, ``snr`` times that of the noise.

Frame n depends on the seed and n alone, not on how many frames are made together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.contrast_transfer import contrast_transfer
from common.poses import relion_matrix
from common.roots import ANYWHERE, NotAllowed, Roots
from common.session import STRUCTURES, SpecimenSpec
from detector_sim.specimen.placement import most_discs, place_discs
from detector_sim.specimen.potential import MAP_SUFFIXES, Potential, potential_of_atoms, potential_of_map
from detector_sim.specimen.projection import Projector
from detector_sim.specimen.scattering import interaction_parameter
from detector_sim.specimen.structure import read_atoms, shape_atoms

_STREAM_TRUTH, _STREAM_NOISE = 0, 1
_PROBE = 1 << 63  # numbers of frames that only calibrate: far from any real frame's
_PROBE_FRAMES = 64
_CHUNK_PIXELS = 1 << 19
_CHUNK_FRAMES = 32
_PATCHES = 32  # of a micrograph, projected together
_LARGEST_SHIFT = 0.04  # of a particle from the middle of its frame, in frames
_ASTIGMATISM_ANGSTROM = 300.0  # defocus U - V, at most
_GAP_ANGSTROM = 10.0  # between the particles of a micrograph


@dataclass(frozen=True)
class SimulatedBatch:
    """Frames and what they were made from.

    Attributes
    ----------
    frames : np.ndarray
        (b, H, W): noisy, of the specimen's dtype.
    clean : np.ndarray
        (b, H, W) float32: the same without noise (expected counts, or the signal of ``snr`` frames).
    rotations : np.ndarray
        (n, 3, 3) float64, RELION's matrices, a row per particle.
    metadata : dict[str, list[Any]]
        RELION columns, a value per frame.
    particles : dict[str, list[Any]]
        RELION columns, a value per particle: those of ``metadata`` where a frame is a particle; pose, CTF,
        coordinates and micrograph name where it is a micrograph.
    """

    frames: np.ndarray
    clean: np.ndarray
    rotations: np.ndarray
    metadata: dict[str, list[Any]]
    particles: dict[str, list[Any]]


@dataclass(frozen=True)
class _Chunk:
    """Noise-free frames made together: contrast is 2 sigma CTF * V, positive for protein."""

    contrast: Tensor  # (b, H, W)
    particles_per_frame: int
    rotations: np.ndarray
    metadata: dict[str, list[Any]]
    particles: dict[str, list[Any]]


class Specimen:
    """Frames of a specimen, any of them at any time.

    Parameters
    ----------
    spec : SpecimenSpec

    Attributes
    ----------
    shape : tuple[int, int]
        (height, width) of a frame.
    dtype : np.dtype
        uint8, or uint16 where the dose is too high for it; float32 where ``spec.snr`` is given.
    largest_count : int
        Counts above this are not to be expected (by eight standard deviations); 0 for float frames.
    potential : Potential
        The particle's, in a box that just holds it.

    Raises
    ------
    ValueError
        One line: the structure cannot be read, does not fit the frame, or the dose overflows 16 bits.
    """

    def __init__(self, spec: SpecimenSpec, inputs: Roots = ANYWHERE) -> None:
        if spec.defocus_min_um > spec.defocus_max_um:
            raise ValueError(
                f"defocus_min_um: {spec.defocus_min_um:g} is above defocus_max_um {spec.defocus_max_um:g}"
            )
        self.spec = spec
        self.shape = (spec.side_pixels, spec.side_pixels)
        self.potential = read_potential(spec, inputs)
        self._check_fit()
        self._projector = Projector(self.potential)
        self._sigma = interaction_parameter(spec.voltage_kv)
        side = spec.side_pixels
        self._chunk_frames = max(1, min(_CHUNK_FRAMES, _CHUNK_PIXELS // side**2))
        if spec.output == "micrographs":
            self._chunk_frames = 1
        self._kept: tuple[int, _Chunk] | None = None
        self._mean_counts = spec.dose_per_square_angstrom * spec.pixel_size_angstrom**2
        self._signal_scale = 0.0
        self._calibrate()

    # ---- setting up

    def _check_fit(self) -> None:
        spec, diameter = self.spec, self.potential.diameter_angstrom
        width = spec.side_pixels * spec.pixel_size_angstrom
        if diameter > width:
            least = math.ceil(diameter / spec.pixel_size_angstrom)
            raise ValueError(
                f"side_pixels: {spec.structure} is {diameter:.0f} angstrom wide, the frame {width:.0f}; "
                f"at least {least} pixels of {spec.pixel_size_angstrom:g} angstrom are needed"
            )
        if spec.output == "micrographs":
            most = most_discs(width, diameter + _GAP_ANGSTROM)
            if spec.particles_per_micrograph > most:
                raise ValueError(
                    f"particles_per_micrograph: {spec.particles_per_micrograph} of {diameter:.0f} angstrom "
                    f"do not fit a frame of {width:.0f} angstrom; allowed range 1 to {most}"
                )

    def _calibrate(self) -> None:
        """The dtype that holds the counts, or the signal's scale, from frames of the specimen's own kind."""
        if self.spec.output == "micrographs":
            probes = [self._make_chunk([_PROBE])]
        else:
            numbers = [_PROBE + index for index in range(_PROBE_FRAMES)]
            step = self._chunk_frames
            probes = [self._make_chunk(numbers[i : i + step]) for i in range(0, len(numbers), step)]
        self.largest_count = 0
        if self.spec.snr is not None:
            self.dtype: np.dtype[Any] = np.dtype(np.float32)
            variance = torch.cat([p.contrast.var(dim=(1, 2), correction=0) for p in probes]).mean()
            self._signal_scale = math.sqrt(self.spec.snr / float(variance))
            return
        # bright rings of the CTF, half as much again for frames not seen, and eight standard deviations
        brightest = self._mean_counts * (1 + 1.5 * max(float(-p.contrast.min()) for p in probes))
        self.largest_count = math.ceil(brightest + 8 * math.sqrt(brightest))
        for name in ("uint8", "uint16"):
            if self.largest_count <= np.iinfo(name).max:
                self.dtype = np.dtype(name)
                return
        raise ValueError(
            f"dose_per_square_angstrom: {self._mean_counts:.0f} electrons per pixel do not fit 16 bits; "
            "lower the dose or the pixel size"
        )

    @property
    def optics(self) -> dict[str, Any]:
        """One row of RELION's optics table, but for the image's size."""
        spec = self.spec
        return {
            "rlnVoltage": spec.voltage_kv,
            "rlnSphericalAberration": spec.spherical_aberration_mm,
            "rlnAmplitudeContrast": spec.amplitude_contrast,
        }

    # ---- making frames

    def batch(self, first: int, count: int) -> SimulatedBatch:
        """Frames first .. first+count-1 and their truth."""
        frames = np.empty((count, *self.shape), self.dtype)
        clean = np.empty((count, *self.shape), np.float32)
        rotations: list[np.ndarray] = []
        metadata: dict[str, list[Any]] = {}
        particles: dict[str, list[Any]] = {}
        done = 0
        for chunk, begin, end in self._chunks(first, count):
            made = slice(done, done + end - begin)
            clean[made] = self._noise_free(chunk.contrast[begin:end])
            for index in range(made.start, made.stop):
                frames[index] = self._exposed(clean[index], first + index)
            each = chunk.particles_per_frame
            rotations.append(chunk.rotations[begin * each : end * each])
            for name, values in chunk.metadata.items():
                metadata.setdefault(name, []).extend(values[begin:end])
            for name, values in chunk.particles.items():
                particles.setdefault(name, []).extend(values[begin * each : end * each])
            done = made.stop
        return SimulatedBatch(frames, clean, np.concatenate(rotations), metadata, particles)

    def clean(self, first: int, count: int) -> np.ndarray:
        """``batch(first, count).clean``, (count, H, W) float32, sooner: no noise is drawn."""
        clean = np.empty((count, *self.shape), np.float32)
        done = 0
        for chunk, begin, end in self._chunks(first, count):
            clean[done : done + end - begin] = self._noise_free(chunk.contrast[begin:end])
            done += end - begin
        return clean

    def _chunks(self, first: int, count: int) -> Iterator[tuple[_Chunk, int, int]]:
        """The chunks that hold frames first .. first+count-1, and which of theirs: from, up to."""
        done = 0
        while done < count:
            number, begin = divmod(first + done, self._chunk_frames)
            end = min(self._chunk_frames, begin + count - done)
            yield self._chunk(number), begin, end
            done += end - begin

    def _chunk(self, number: int) -> _Chunk:
        """Frames number*size .. : always made together, so that rounding does not depend on what is asked."""
        if self._kept is None or self._kept[0] != number:
            size = self._chunk_frames
            self._kept = (number, self._make_chunk(list(range(number * size, (number + 1) * size))))
        return self._kept[1]

    def _make_chunk(self, numbers: list[int]) -> _Chunk:
        with torch.inference_mode():
            if self.spec.output == "micrographs":
                return self._make_micrograph(numbers[0])
            return self._make_particles(numbers)

    def _noise_free(self, contrast: Tensor) -> np.ndarray:
        """Clean frames (b, H, W) float32 of a contrast (b, H, W)."""
        if self.spec.snr is not None:
            return contrast.numpy() * np.float32(self._signal_scale)
        # a strong phase object could ask for less than no electrons
        return np.maximum(1 - contrast.numpy(), 0) * np.float32(self._mean_counts)

    def _exposed(self, clean: np.ndarray, number: int) -> np.ndarray:
        """Frame ``number`` (H, W) as it is recorded, of its clean one."""
        noise = self._generator(number, _STREAM_NOISE)
        if self.spec.snr is not None:
            return clean + noise.standard_normal(self.shape, np.float32)
        return np.minimum(noise.poisson(clean), np.iinfo(self.dtype).max)

    def _generator(self, frame: int, stream: int) -> np.random.Generator:
        """Random numbers of one frame: counter-based, so the same on every platform and in any order."""
        bits = np.random.Philox(key=(frame << 64) | self.spec.seed, counter=stream << 192)
        return np.random.Generator(bits)

    def _make_particles(self, numbers: list[int]) -> _Chunk:
        spec = self.spec
        draws = np.stack([self._generator(number, _STREAM_TRUTH).random(8) for number in numbers])
        angles = _uniform_angles(draws[:, :3])
        width = spec.side_pixels * spec.pixel_size_angstrom
        reach = min(_LARGEST_SHIFT * width, (width - self.potential.diameter_angstrom) / 2)
        shifts = (2 * draws[:, 3:5] - 1) * reach  # angstrom
        defocus_u, defocus_v, azimuth = self._defocus(draws[:, 5:])
        rotations = relion_matrix(angles)
        patches = self._projector.project(
            torch.from_numpy(rotations), torch.from_numpy(shifts / spec.pixel_size_angstrom)
        )
        images = _into_middle(patches, spec.side_pixels)
        metadata = _pose_columns(angles, -shifts) | self._ctf_columns(defocus_u, defocus_v, azimuth)
        metadata["rlnRandomSubset"] = [1 + number % 2 for number in numbers]
        contrast = self._transferred(images, defocus_u, defocus_v, azimuth)
        return _Chunk(contrast, 1, rotations, metadata, metadata)

    def _make_micrograph(self, number: int) -> _Chunk:
        spec = self.spec
        generator = self._generator(number, _STREAM_TRUTH)
        defocus_u, defocus_v, azimuth = self._defocus(generator.random((1, 3)))
        count, pixel = spec.particles_per_micrograph, spec.pixel_size_angstrom
        gap = (self.potential.diameter_angstrom + _GAP_ANGSTROM) / pixel
        centres = place_discs(count, spec.side_pixels, gap, generator)  # pixels, x y
        angles = _uniform_angles(generator.random((count, 3)))
        rotations = relion_matrix(angles)
        canvas = torch.zeros(self.shape)
        for begin in range(0, count, _PATCHES):
            chosen = slice(begin, begin + _PATCHES)
            nearest = np.rint(centres[chosen]).astype(int)
            patches = self._projector.project(
                torch.from_numpy(rotations[chosen]), torch.from_numpy(centres[chosen] - nearest)
            )
            for patch, (x, y) in zip(patches, nearest, strict=True):
                _add(canvas, patch, int(y), int(x))
        name = f"micrograph_{number:06d}.mrc"
        frame = self._ctf_columns(defocus_u, defocus_v, azimuth) | {"rlnMicrographName": [name]}
        particles = (
            {"rlnCoordinateX": centres[:, 0].tolist(), "rlnCoordinateY": centres[:, 1].tolist()}
            | _pose_columns(angles, np.zeros((count, 2)))
            | {column: values * count for column, values in frame.items()}
            | {"rlnRandomSubset": [1 + index % 2 for index in range(count)]}
        )
        contrast = self._transferred(canvas[None], defocus_u, defocus_v, azimuth)
        return _Chunk(contrast, count, rotations, frame, particles)

    def _defocus(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Defocus U and V in angstrom and the angle of U in degrees, from draws (n, 3) in [0, 1)."""
        low, high = self.spec.defocus_min_um * 1e4, self.spec.defocus_max_um * 1e4
        mean = low + (high - low) * draws[:, 0]
        astigmatism = _ASTIGMATISM_ANGSTROM * draws[:, 1]
        return mean + astigmatism / 2, mean - astigmatism / 2, 180 * draws[:, 2]

    def _transferred(
        self, images: Tensor, defocus_u: np.ndarray, defocus_v: np.ndarray, azimuth: np.ndarray
    ) -> Tensor:
        """2 sigma CTF * V of projected potentials (b, H, W)."""
        spec = self.spec
        transfer = contrast_transfer(
            torch.from_numpy(defocus_u), torch.from_numpy(defocus_v), torch.from_numpy(azimuth),
            shape=self.shape, pixel_size_angstrom=spec.pixel_size_angstrom, voltage_kv=spec.voltage_kv,
            spherical_aberration_mm=spec.spherical_aberration_mm, amplitude_contrast=spec.amplitude_contrast,
            envelope_b_factor=spec.envelope_b_factor,
        )  # fmt: skip
        return torch.fft.irfft2(torch.fft.rfft2(images) * transfer, s=self.shape) * (2 * self._sigma)

    def _ctf_columns(
        self, defocus_u: np.ndarray, defocus_v: np.ndarray, azimuth: np.ndarray
    ) -> dict[str, list[Any]]:
        count = len(defocus_u)
        return {
            "rlnDefocusU": defocus_u.tolist(), "rlnDefocusV": defocus_v.tolist(),
            "rlnDefocusAngle": azimuth.tolist(), "rlnPhaseShift": [0.0] * count,
            "rlnCtfBfactor": [self.spec.envelope_b_factor] * count, "rlnCtfScalefactor": [1.0] * count,
            "rlnOpticsGroup": [1] * count,
        }  # fmt: skip


def read_potential(spec: SpecimenSpec, inputs: Roots = ANYWHERE) -> Potential:
    """The potential of ``spec.structure``; ``inputs``: what may be read.

    Raises
    ------
    ValueError
        One line: no such file, or it cannot be read.
    """
    if spec.structure in STRUCTURES:
        return potential_of_atoms(shape_atoms(spec.structure), spec.pixel_size_angstrom)
    path = Path(spec.structure)
    try:
        with inputs.open(path):
            pass
        if path.suffix.lower() in MAP_SUFFIXES:
            return potential_of_map(path, spec.pixel_size_angstrom, inputs)
        return potential_of_atoms(read_atoms(path, inputs), spec.pixel_size_angstrom)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        own = ", ".join(f"'{name}'" for name in STRUCTURES)
        told = f"structure: {path}: no such file; give {own}, or a PDB, mmCIF or MRC file"
        raise ValueError(told) from None
    except OSError as error:
        raise ValueError(f"structure: {path}: cannot be read ({error.strerror or error})") from error
    except NotAllowed as error:
        raise ValueError(f"source.specimen.structure: {error}") from error


def _uniform_angles(draws: np.ndarray) -> np.ndarray:
    """Orientations uniform over all rotations: rot, tilt, psi in degrees from draws (n, 3) in [0, 1)."""
    tilt = np.degrees(np.arccos(1 - 2 * draws[:, 1]))
    return np.stack([360 * draws[:, 0] - 180, tilt, 360 * draws[:, 2] - 180], axis=1)


def _pose_columns(angles: np.ndarray, origins_angstrom: np.ndarray) -> dict[str, list[Any]]:
    names = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
    return dict(zip(names, np.concatenate([angles, origins_angstrom], axis=1).T.tolist(), strict=True))


def _into_middle(patches: Tensor, side: int) -> Tensor:
    """Patches (b, P, P) in the middle of frames (b, side, side), pixel P // 2 on pixel side // 2."""
    frames = torch.zeros(len(patches), side, side)
    for frame, patch in zip(frames, patches, strict=True):
        _add(frame, patch, side // 2, side // 2)
    return frames


def _add(canvas: Tensor, patch: Tensor, y: int, x: int) -> None:
    """Add a patch (P, P) with its pixel P // 2 at (y, x); what falls outside is lost."""
    side, (height, width) = int(patch.shape[0]), canvas.shape
    top, left = y - side // 2, x - side // 2
    first_row, last_row = max(0, top), min(height, top + side)
    first_column, last_column = max(0, left), min(width, left + side)
    inside = patch[first_row - top : last_row - top, first_column - left : last_column - left]
    canvas[first_row:last_row, first_column:last_column] += inside
