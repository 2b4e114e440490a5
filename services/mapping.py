"""``cryoflux map``: particles with known poses become a map, its halves and their shell correlation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.session import FileSource
from common.whole import replacing
from detector_sim.sources import FrameBatch, Source, SourceError, open_source
from reconstructor.quality import frc_resolution
from reconstructor.volume import Backprojection, Maps, fsc, soft_sphere
from reconstructor.volume.files import in_box, read_map, write_fsc, write_map
from reconstructor.volume.particles import has_defocus, known_of
from services import specification as wanted
from services.display import counting
from services.failure import CannotRun, WrongOption
from services.options import MapOptions

AT_A_TIME = 64  # particles
HALVES_AT, TRUTH_AT = 0.143, 0.5  # where FSC is taken for the resolution
EDGE = 0.1  # of the box: of the mask's soft edge
SIZE_TOLERANCE = 0.01  # of a voxel's side


def make_map(particles: Path, output: Path, options: MapOptions) -> int:
    """Read, backproject, compare, write.

    Raises
    ------
    CannotRun
        In one line.
    """
    if options.contrast not in ("bright", "dark"):
        raise WrongOption(f"--contrast: {options.contrast!r} is not known; must be bright or dark")
    if particles.suffix.lower() != ".star":
        raise WrongOption(f"{particles}: poses are read from a STAR file; name that")
    try:
        source = open_source(wanted.validated(FileSource, {"path": str(particles), "kind": "file"}, "source"))
    except SourceError as error:
        raise WrongOption(str(error)) from error
    with source:
        if source.shape[0] != source.shape[1]:
            raise WrongOption(f"{particles}: images of {source.shape[0]}x{source.shape[1]}: must be square")
        reference = _reference(options.reference, source)
        mask = _mask(options.mask_diameter, source)
        try:
            sums = Backprojection(source.shape[0], options.symmetry, options.padding)
        except ValueError as error:
            raise WrongOption(str(error)) from error
        with_transfer = _add_all(sums, source, particles, dark=options.contrast == "dark")
        pixel_size = source.pixel_size_angstrom
    maps = sums.maps(mask)
    curves = {"halves": maps.fsc}
    if reference is not None:
        curves["reference"] = fsc(maps.whole * mask, reference * mask)
    try:
        _write(output, maps, curves, pixel_size)
        about: dict[str, Any] = {"particles": str(particles), "ctf": with_transfer}
        about |= _about(sums, curves, pixel_size, options)
        with replacing(output / "map.json") as temporary:
            temporary.write_text(json.dumps(about, indent=2) + "\n")
    except OSError as error:
        raise CannotRun(f"{error.filename or output}: {error.strerror or error}") from error
    told = f"{sum(sums.counts)} particles, {options.symmetry}: "
    told += f"{about['resolution_angstrom']:.2f} Å (FSC {HALVES_AT})"
    if reference is not None:
        told += f", {about['reference_resolution_angstrom']:.2f} Å to the reference (FSC {TRUTH_AT})"
    if not with_transfer:
        told += "; no defocus is given: taken without CTF"
    print(f"{output / 'map.mrc'}: {told}")
    return 0


def _add_all(sums: Backprojection, source: Source, particles: Path, *, dark: bool) -> bool:
    """Add every particle; whether their CTF is known."""
    done, with_transfer = 0, True
    with counting("particles", source.frame_count or 0) as progress:
        while (batch := _read(source)) is not None:
            columns = batch.metadata or {}
            try:
                known = known_of(columns, source.optics, source.shape[0], source.pixel_size_angstrom, done)
            except ValueError as error:
                raise WrongOption(f"{particles}: {error}") from error
            with_transfer = has_defocus(columns)
            images = torch.from_numpy(batch.frames.astype(np.float32))
            images = images - images.mean((1, 2), keepdim=True)
            sums.add(-images if dark else images, *known)
            done += len(images)
            progress(done)
    return with_transfer


def _read(source: Source) -> FrameBatch | None:
    try:
        return source.read(AT_A_TIME)
    except SourceError as error:
        raise CannotRun(str(error)) from error


def _reference(path: Path | None, source: Source) -> Tensor | None:
    if path is None:
        return None
    try:
        volume, pixel_size = read_map(path)
    except ValueError as error:
        raise WrongOption(f"--reference: {error}") from error
    if abs(pixel_size / source.pixel_size_angstrom - 1) > SIZE_TOLERANCE:
        told = f"{pixel_size:.4g} Å a voxel, the particles {source.pixel_size_angstrom:.4g} Å a pixel"
        raise WrongOption(f"--reference: {path}: has {told}")
    return in_box(volume, source.shape[0])


def _mask(diameter_angstrom: float | None, source: Source) -> Tensor:
    side = source.shape[0]
    radius = 0.375 * side if diameter_angstrom is None else diameter_angstrom / 2 / source.pixel_size_angstrom
    if not 1 <= radius <= side / 2:
        most = side * source.pixel_size_angstrom
        raise WrongOption(f"--mask-diameter: {diameter_angstrom:g}: must be above 0 and at most {most:.4g} Å")
    return soft_sphere(side, radius, EDGE * side)


def _write(output: Path, maps: Maps, curves: dict[str, Tensor], pixel_size: float) -> None:
    output.mkdir(parents=True, exist_ok=True)
    write_map(output / "map.mrc", maps.whole, pixel_size)
    for number, half in enumerate(maps.halves, start=1):
        write_map(output / f"half{number}_map.mrc", half, pixel_size)
    write_fsc(output, curves, int(maps.whole.shape[0]), pixel_size)


def _about(
    sums: Backprojection, curves: dict[str, Tensor], pixel_size: float, options: MapOptions
) -> dict[str, Any]:
    about: dict[str, Any] = {
        "images": sums.counts,
        "symmetry": options.symmetry,
        "pixel_size_angstrom": pixel_size,
        "resolution_angstrom": float(frc_resolution(curves["halves"][None], pixel_size, HALVES_AT)),
        "fsc_area": float(curves["halves"][1:].mean()),
    }
    if (curve := curves.get("reference")) is not None:
        about |= {
            "reference": str(options.reference),
            "reference_resolution_angstrom": float(frc_resolution(curve[None], pixel_size, TRUTH_AT)),
            "reference_fsc_area": float(curve[1:].mean()),
        }
    return about
