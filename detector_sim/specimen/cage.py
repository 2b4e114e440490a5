"""A protein cage built from nothing but geometry: 24 four-helix bundles under octahedral symmetry.

It is made like apoferritin: each subunit is a bundle of four antiparallel alpha helices and a short fifth
one across its end, lying flat in a shell about 120 angstrom wide around an empty core about 80 angstrom
wide; 24 copies under the rotations of the octahedron (point group O) close the shell. Everything is at the
level of C-alpha atoms. Lengths in angstrom, coordinates (x, y, z).
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from common.point_groups import copies, octahedral_rotations
from detector_sim.specimen.backbone import (
    LOOP_RESIDUES,
    PACKING_DISTANCE,
    RISE_PER_RESIDUE,
    UPSIDE_DOWN,
    arched_loop,
    ideal_helix,
    up_and_down,
)

HELIX_RESIDUES = 32
SHORT_HELIX_RESIDUES = 14

# Where the subunit lies in the shell: found by a search for the widest gap between subunits (5.1 angstrom
# between C-alpha atoms, as in crystals).
SUBUNIT_RADIUS = 48.5
SUBUNIT_ANGLES_ZYX_DEGREES = (-12.8, -55.3, 150.2)


def four_helix_bundle() -> np.ndarray:
    """One subunit, chain order, (residues, 3): radial direction +x, bundle axis z, centred at the origin.

    Helices A to D stand at the corners of a square, up, down, up, down, joined by short loops; helix E
    lies across the lower end.
    """
    corner = PACKING_DISTANCE / 2
    corners = [(-corner, -corner), (corner, -corner), (corner, corner), (-corner, corner)]
    helices: list[np.ndarray] = []
    for number, (x, y) in enumerate(corners):
        helix = ideal_helix(HELIX_RESIDUES, phase_degrees=45.0 + 90.0 * number)
        helices.append((helix @ UPSIDE_DOWN if number % 2 else helix) + np.array([x, y, 0.0]))
    standing = up_and_down(helices)
    half_length = RISE_PER_RESIDUE * (HELIX_RESIDUES - 1) / 2
    # helix E: from under D across the end to under A and B
    along_minus_y = Rotation.from_euler("x", 90, degrees=True).as_matrix()
    under = np.array([0.0, 0.0, -half_length - PACKING_DISTANCE])
    short = ideal_helix(SHORT_HELIX_RESIDUES) @ along_minus_y.T + under
    loop = arched_loop(standing[-1], short[0], np.array([0.0, 1.0, 0.0]), LOOP_RESIDUES)
    subunit = np.concatenate([standing, loop, short])
    return subunit - subunit.mean(axis=0)


def cage() -> np.ndarray:
    """All C-alpha atoms, (24, residues, 3): centred at the origin, four-fold axes along x, y and z."""
    orientation = Rotation.from_euler("ZYX", SUBUNIT_ANGLES_ZYX_DEGREES, degrees=True).as_matrix()
    subunit = (four_helix_bundle() + np.array([SUBUNIT_RADIUS, 0.0, 0.0])) @ orientation.T
    return copies(subunit, octahedral_rotations())
