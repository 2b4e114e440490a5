"""Projections of a potential along the beam, see ``common.poses`` for the convention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_fourier_slice.slice_extraction import extract_central_slices_rfft_3d
from torch_fourier_slice.volume_utils import separable_sinc2_correction

from detector_sim.specimen.potential import Potential, even_fast_side

_OVERSAMPLING = 4.0
"""Side of the padded volume over the particle's diameter: linear interpolation then errs by about 3 %."""
_LEAST_OVERSAMPLING = 2.0
_PADDED_SIDE = 400
"""Beyond this side, 256 MB, only the least oversampling is paid for."""


class Projector:
    """Projects one potential in many directions: central slices of its Fourier transform.

    Parameters
    ----------
    potential : Potential
        Kept on the CPU; its transform, padded, takes 4 bytes per padded voxel.
    """

    def __init__(self, potential: Potential) -> None:
        self.side = int(potential.volume.shape[0])
        self._pixel = potential.pixel_size_angstrom
        particle = potential.diameter_angstrom / potential.pixel_size_angstrom
        wanted = min(_OVERSAMPLING * particle, max(_LEAST_OVERSAMPLING * particle, _PADDED_SIDE))
        self._padded = even_fast_side(max(wanted, self.side))
        before = self._padded // 2 - self.side // 2
        after = self._padded - self.side - before
        volume = F.pad(potential.volume, (before, after) * 3)
        # linear interpolation in Fourier space multiplies real space by sinc^2
        volume = volume / separable_sinc2_correction(tuple(volume.shape))
        transform = torch.fft.rfftn(torch.fft.ifftshift(volume))
        self._transform = torch.fft.fftshift(transform, dim=(0, 1))
        half = self.side // 2 + 1
        self._ramp_y = torch.fft.fftfreq(self.side)[:, None]
        self._ramp_x = torch.fft.rfftfreq(self.side)[None, :half]

    def project(self, rotations: Tensor, shifts_pixels: Tensor) -> Tensor:
        """The potential integrated along the beam, (B, P, P) float32, volt angstrom.

        Parameters
        ----------
        rotations : Tensor
            (B, 3, 3) RELION's matrices.
        shifts_pixels : Tensor
            (B, 2), x y: where the particle lies, from pixel P // 2.
        """
        # The image needs only every (padded / side)-th frequency of the padded grid: its own grid is the
        # padded one stretched, and so is the matrix; the slice then fills the middle of a padded slice.
        stretch = self._padded / self.side
        slices = extract_central_slices_rfft_3d(
            self._transform,
            rotations.transpose(-1, -2).to(torch.float32) * stretch,
            fftfreq_max=0.5 / stretch,
        )
        first = self._padded // 2 - self.side // 2
        slices = slices[:, first : first + self.side, : self.side // 2 + 1]
        slices = torch.fft.ifftshift(slices, dim=-2)
        shifts = shifts_pixels.to(torch.float32)
        turns = shifts[:, 0, None, None] * self._ramp_x + shifts[:, 1, None, None] * self._ramp_y
        slices = slices * torch.polar(torch.full_like(turns, self._pixel), turns * (-2 * math.pi))
        images = torch.fft.irfft2(slices, s=(self.side, self.side))
        return torch.fft.fftshift(images, dim=(-2, -1))
