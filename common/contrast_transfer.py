"""What the microscope makes of a phase object: contrast transfer, in RELION's convention.

CTF(k) = -sin(chi(k)), chi = -pi lambda df(k) k^2 + pi/2 Cs lambda^3 k^4 - arcsin(amplitude contrast), damped
by exp(-B k^2 / 4). It is positive at low frequency. A thin specimen that shifts the phase by phi gives the
intensity 1 - 2 CTF * phi, so protein is dark in a recorded frame; programs that extract particles turn the
contrast round, and then image = CTF * projection.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch_ctf import calculate_ctf_2d

_ANGSTROM_PER_UM = 1e4


def contrast_transfer(
    defocus_u_angstrom: Tensor, defocus_v_angstrom: Tensor, defocus_angle_degrees: Tensor,
    *, shape: tuple[int, int], pixel_size_angstrom: float, voltage_kv: float, spherical_aberration_mm: float,
    amplitude_contrast: float, envelope_b_factor: float | Tensor, phase_shift_degrees: float | Tensor = 0.0,
) -> Tensor:  # fmt: skip
    """The CTF of each frame at the frequencies of ``rfft2``, (B, H, W//2+1) float32.

    Parameters
    ----------
    defocus_u_angstrom, defocus_v_angstrom, defocus_angle_degrees : Tensor
        (B,) as RELION has them: underfocus is positive, the angle is from the x axis to the axis of U.
    envelope_b_factor : float or Tensor
        B, square angstrom; of all, or (B,) of each.
    phase_shift_degrees : float or Tensor
        By a phase plate in the microscope's back focal plane; of all, or (B,) of each.
    """
    transfer = calculate_ctf_2d(
        defocus=(defocus_u_angstrom + defocus_v_angstrom) / (2 * _ANGSTROM_PER_UM),
        astigmatism=(defocus_u_angstrom - defocus_v_angstrom) / (2 * _ANGSTROM_PER_UM),
        astigmatism_angle=defocus_angle_degrees,
        voltage=voltage_kv,
        spherical_aberration=spherical_aberration_mm,
        amplitude_contrast=amplitude_contrast,
        phase_shift=phase_shift_degrees,
        pixel_size=pixel_size_angstrom,
        image_shape=shape,
        rfft=True,
        fftshift=False,
    )
    ky = torch.fft.fftfreq(shape[0], pixel_size_angstrom)[:, None]
    kx = torch.fft.rfftfreq(shape[1], pixel_size_angstrom)[None, :]
    damping = torch.as_tensor(envelope_b_factor).reshape(-1, 1, 1) / 4
    return (transfer * torch.exp((ky**2 + kx**2) * -damping)).to(torch.float32)
