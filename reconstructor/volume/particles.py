"""RELION's columns of particles as backprojection takes them: CTF, pose, half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.contrast_transfer import contrast_transfer
from common.poses import relion_matrix

ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
ORIGINS = ("rlnOriginXAngst", "rlnOriginYAngst")
DEFOCUS = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
MICROSCOPE = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")


class Known(NamedTuple):
    """What is known of particles beside their images; see ``Backprojection.add``."""

    transfers: Tensor
    matrices: Tensor
    origins_pixels: Tensor
    halves: Tensor


def known_of(
    columns: Mapping[str, Sequence[Any]],
    optics: Mapping[str, Any],
    side_pixels: int,
    pixel_size_angstrom: float,
    first: int = 0,
) -> Known:
    """What RELION 3.1's columns say of particles.

    Parameters
    ----------
    columns : mapping
        A value per particle. Without a defocus no CTF is assumed; without rlnRandomSubset particles go to the
        halves in turn.
    optics : mapping
        A row of the optics table.
    side_pixels, pixel_size_angstrom
        Of the images.
    first : int
        Number of the first of these particles in its set.

    Raises
    ------
    ValueError
        One line: a column is missing or holds what is no number.
    """
    count = len(next(iter(columns.values()), ()))
    if missing := [name for name in ANGLES if name not in columns]:
        raise ValueError(f"no column {missing[0]}: particles without a pose make no map")
    origins = [_numbers(columns, name) if name in columns else np.zeros(count) for name in ORIGINS]
    transfers = _transfers(columns, optics, count, side_pixels, pixel_size_angstrom)
    if "rlnCtfScalefactor" in columns:
        transfers = (
            transfers * torch.from_numpy(_numbers(columns, "rlnCtfScalefactor")).float()[:, None, None]
        )
    halves = np.arange(first, first + count) % 2
    if "rlnRandomSubset" in columns:
        halves = _numbers(columns, "rlnRandomSubset") - 1
        if not np.isin(halves, (0, 1)).all():
            raise ValueError("rlnRandomSubset: each must be 1 or 2")
    return Known(
        transfers,
        torch.from_numpy(relion_matrix(np.stack([_numbers(columns, name) for name in ANGLES], axis=1))),
        torch.from_numpy(np.stack(origins, axis=1) / pixel_size_angstrom),
        torch.from_numpy(halves.astype(np.int64)),
    )


def _transfers(
    columns: Mapping[str, Sequence[Any]], optics: Mapping[str, Any], count: int, side: int, pixel: float
) -> Tensor:
    if not has_defocus(columns):
        return torch.ones(count, side, side // 2 + 1)
    if missing := [name for name in MICROSCOPE if name not in optics]:
        raise ValueError(f"no column {missing[0]}: the CTF needs it")
    defocus = [torch.from_numpy(_numbers(columns, name)) for name in DEFOCUS]
    envelope, shift = (
        torch.from_numpy(_numbers(columns, name)) if name in columns else 0.0
        for name in ("rlnCtfBfactor", "rlnPhaseShift")
    )
    voltage, aberration, contrast = (float(optics[name]) for name in MICROSCOPE)
    return contrast_transfer(
        *defocus, shape=(side, side), pixel_size_angstrom=pixel, voltage_kv=voltage,
        spherical_aberration_mm=aberration, amplitude_contrast=contrast, envelope_b_factor=envelope,
        phase_shift_degrees=shift,
    )  # fmt: skip


def has_defocus(columns: Mapping[str, Sequence[Any]]) -> bool:
    """Whether the CTF of the particles is known."""
    return all(name in columns for name in DEFOCUS)


def _numbers(columns: Mapping[str, Sequence[Any]], name: str) -> np.ndarray:
    try:
        values = np.asarray(columns[name], np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: holds what is no number") from None
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: holds numbers that are not finite")
    return values
