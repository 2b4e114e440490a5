"""A ring built from nothing but geometry: six domains around a hole.

It is made like the sliding clamps of replication (Krishna et al., Cell 79, 1233, 1994: PCNA, PDB 1PLQ, six
like domains in a ring 80 angstrom wide around a hole of 34): in each domain two helices line the hole and two
antiparallel sheets, of five and six strands, lie outside of them. Clamps are two or three chains; here each
domain is a chain of its own, and the point group is C6. Everything is at the level of C-alpha atoms. Lengths
in angstrom, coordinates (x, y, z).
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from common.point_groups import copies, cyclic_rotations
from detector_sim.specimen.backbone import Layer, layered_domain

LAYERS = (Layer("helices", 2, 20), Layer("strands", 5, 8), Layer("strands", 6, 8))

# Found by a search for the widest gap between domains (7 angstrom between C-alpha atoms).
DOMAIN_RADIUS = 29.0
DOMAIN_ANGLES_ZYX_DEGREES = (-15.6, 2.0, -4.7)


def ring() -> np.ndarray:
    """All C-alpha atoms, (6, residues, 3): centred at the origin, six-fold axis z."""
    orientation = Rotation.from_euler("ZYX", DOMAIN_ANGLES_ZYX_DEGREES, degrees=True).as_matrix()
    domain = layered_domain(LAYERS) @ orientation.T + np.array([DOMAIN_RADIUS, 0.0, 0.0])
    return copies(domain, cyclic_rotations(6))
