"""How strongly matter in ice scatters electrons, as sums of Gaussians.

The electron scattering amplitude of an atom is f(k) = sum_i a_i exp(-b_i k^2 / 4), a_i in angstrom, b_i in
square angstrom, k in cycles per angstrom (Peng et al., Acta Cryst. A52, 257, 1996). Its potential is
h^2 / (2 pi m e) = 47.878 V square angstrom times the Fourier transform of f. What the microscope sees is the
difference to the ice that the atom displaces, so a Gaussian ball of water of the atom's volume is subtracted
(Fraser, MacRae and Suzuki, J. Appl. Cryst. 11, 693, 1978).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import gemmi
import torch
from scipy import constants
from torch import Tensor

VOLT_SQUARE_ANGSTROM = 1e20 * constants.h**2 / (2 * math.pi * constants.m_e * constants.e)
"""h^2 / (2 pi m e) = 47.878: a scatterer's integrated potential (V A^3) over its amplitude f(0) (A)."""

_AVOGADRO_PER_CUBIC_ANGSTROM = constants.N_A * 1e-24
_ICE_DENSITY = 0.93  # vitreous ice, g/cm3
_WATERS_PER_CUBIC_ANGSTROM = _ICE_DENSITY / 18.015 * _AVOGADRO_PER_CUBIC_ANGSTROM

# Volumes of atoms in molecules, cubic angstrom (Svergun, Barberato and Koch, J. Appl. Cryst. 28, 768, 1995).
_ATOM_VOLUMES = {"H": 5.15, "C": 16.44, "N": 2.49, "O": 9.13, "P": 5.73, "S": 19.86}

# The mean residue of proteins: atoms, volume in cubic angstrom, mass in dalton.
_RESIDUE_ATOMS = {"C": 4.95, "N": 1.35, "O": 1.48, "S": 0.04, "H": 7.8}
_RESIDUE_VOLUME = 134.0
MEAN_RESIDUE_MASS = 110.0
_RESIDUE_SPREAD = 1.3  # standard deviation along each axis of a residue's matter about its bead, angstrom


@dataclass(frozen=True)
class Scatterer:
    """f(k) = sum_i amplitudes_i exp(-widths_i k^2 / 4), relative to the ice displaced.

    Attributes
    ----------
    amplitudes : tuple[float, ...]
        Angstrom.
    widths : tuple[float, ...]
        Square angstrom (B factors).
    """

    amplitudes: tuple[float, ...]
    widths: tuple[float, ...]

    @property
    def forward(self) -> float:
        """f(0), angstrom."""
        return sum(self.amplitudes)

    def form_factor(self, squared_frequency: Tensor) -> Tensor:
        """f at k^2 in cycles^2 per square angstrom, same shape."""
        total = torch.zeros_like(squared_frequency)
        for amplitude, width in zip(self.amplitudes, self.widths, strict=True):
            total += amplitude * torch.exp(squared_frequency * (-width / 4))
        return total


def _vacuum(symbol: str) -> Scatterer:
    coefficients = gemmi.Element(symbol).c4322
    if coefficients is None or not any(coefficients.a):
        coefficients = gemmi.Element("C").c4322  # an element that the tables lack
    return Scatterer(tuple(coefficients.a), tuple(coefficients.b))


@cache
def ice_amplitude_density() -> float:
    """Forward amplitude of vitreous ice, angstrom per cubic angstrom; times 47.878 it is 4.5 V."""
    return _WATERS_PER_CUBIC_ANGSTROM * (_vacuum("O").forward + 2 * _vacuum("H").forward)


@cache
def element(symbol: str) -> Scatterer:
    """An atom of this element in ice."""
    atom = _vacuum(symbol)
    sphere = 4 / 3 * math.pi * gemmi.Element(symbol).vdw_r ** 3
    volume = _ATOM_VOLUMES.get(symbol, 0.6 * sphere)  # 0.6: spheres of bonded atoms overlap
    # a Gaussian exp(-pi r^2 / v^(2/3)) has volume v
    return Scatterer(
        (*atom.amplitudes, -ice_amplitude_density() * volume),
        (*atom.widths, 4 * math.pi * volume ** (2 / 3)),
    )


@cache
def mean_residue() -> Scatterer:
    """A bead that stands for a whole residue of mean composition, in ice."""
    matter = sum(count * _vacuum(symbol).forward for symbol, count in _RESIDUE_ATOMS.items())
    net = matter - ice_amplitude_density() * _RESIDUE_VOLUME
    return Scatterer((net,), (8 * math.pi**2 * _RESIDUE_SPREAD**2,))


@cache
def protein_potential_above_ice() -> float:
    """Mean inner potential of protein less that of ice, volts."""
    return VOLT_SQUARE_ANGSTROM * mean_residue().forward / _RESIDUE_VOLUME


def interaction_parameter(voltage_kv: float) -> float:
    """Phase shift per projected potential, radian per volt angstrom (0.653e-3 at 300 kV).

    sigma = 2 pi m e lambda / h^2 with the relativistic mass and wavelength.
    """
    energy = constants.e * voltage_kv * 1e3
    rest = constants.m_e * constants.c**2
    momentum = math.sqrt(energy * (energy + 2 * rest)) / constants.c
    mass = constants.m_e + energy / constants.c**2
    return 2 * math.pi * mass * constants.e / (constants.h * momentum) * 1e-10
