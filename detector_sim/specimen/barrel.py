"""A barrel built from nothing but geometry: four stacked rings of seven subunits.

It is made like the 20S proteasome of Thermoplasma (Löwe et al., Science 268, 533, 1995; PDB 1PMA: 148 by 113
angstrom): 28 subunits in rings of seven under point group D7, inner and outer rings placed differently. Each
subunit is a sandwich of two antiparallel sheets of five strands between two layers of two helices, layered
along the barrel. The gates that close the proteasome's ends are left out: a channel 35 to 45 angstrom wide
goes all the way. Everything is at the level of C-alpha atoms. Lengths in angstrom, coordinates (x, y, z).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from common.point_groups import copies, dihedral_rotations
from detector_sim.specimen.backbone import Layer, layered_domain

LAYERS = (
    Layer("helices", 2, 18),
    Layer("strands", 5, 8),
    Layer("strands", 5, 8),
    Layer("helices", 2, 18),
)


class _Place(NamedTuple):
    """Of the subunits of a ring: cylinder coordinates of their middles, and their own turns."""

    radius: float
    height: float
    azimuth_degrees: float
    angles_zyx_degrees: tuple[float, float, float]


# Found by a search for the widest gaps between subunits (at least 5.3 angstrom between C-alpha atoms).
INNER = _Place(37.5, 18.4, -14.8, (-14.0, 4.4, 14.8))
OUTER = _Place(36.0, 54.0, 8.1, (-6.4, 1.9, 13.3))


def barrel() -> np.ndarray:
    """All C-alpha atoms, (28, residues, 3): centred at the origin, seven-fold axis z, a two-fold axis x."""
    domain = layered_domain(LAYERS)
    lying = Rotation.from_euler("y", -90, degrees=True).as_matrix()  # layers along z, strands along x
    rings: list[np.ndarray] = []
    for place in (INNER, OUTER):
        turned = Rotation.from_euler("ZYX", place.angles_zyx_degrees, degrees=True).as_matrix() @ lying
        around = Rotation.from_euler("z", place.azimuth_degrees, degrees=True).as_matrix()
        subunit = (domain @ turned.T + np.array([place.radius, 0.0, place.height])) @ around.T
        rings.append(copies(subunit, dihedral_rotations(7)))
    return np.concatenate(rings)
