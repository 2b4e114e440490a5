"""A protein cage built from nothing but geometry: 24 four-helix bundles under octahedral symmetry.

It is made like apoferritin: each subunit is a bundle of four antiparallel alpha helices and a short fifth
one across its end, lying flat in a shell about 120 angstrom wide around an empty core about 80 angstrom
wide; 24 copies under the rotations of the octahedron (point group O) close the shell. Everything is at the
level of C-alpha atoms. Lengths in angstrom, coordinates (x, y, z).
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy.optimize import brentq
from scipy.spatial.transform import Rotation

# The alpha helix of Pauling, Corey and Branson (PNAS 37, 205, 1951), as crystals have it.
RISE_PER_RESIDUE = 1.5
TURN_PER_RESIDUE_DEGREES = 100.0
HELIX_RADIUS = 2.3
CA_CA_DISTANCE = 3.8  # of neighbours in the chain, trans peptide bond

HELIX_RESIDUES = 32
SHORT_HELIX_RESIDUES = 14
LOOP_RESIDUES = 4
HELIX_SPACING = 10.0  # between the axes of neighbouring helices

# Where the subunit lies in the shell: found by a search for the widest gap between subunits (5.1 angstrom
# between C-alpha atoms, as in crystals).
SUBUNIT_RADIUS = 48.5
SUBUNIT_ANGLES_ZYX_DEGREES = (-12.8, -55.3, 150.2)


def octahedral_rotations() -> np.ndarray:
    """The 24 rotations of the octahedron, (24, 3, 3): signed permutations of the axes, determinant 1."""
    matrices = [
        np.diag(signs)[list(order)]
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1.0, -1.0), repeat=3)
    ]
    return np.stack([m for m in matrices if np.linalg.det(m) > 0])


def ideal_helix(residues: int, phase_degrees: float = 0.0) -> np.ndarray:
    """C-alpha atoms of a right-handed alpha helix along +z, centred at the origin, (residues, 3)."""
    index = np.arange(residues)
    angle = np.radians(phase_degrees + TURN_PER_RESIDUE_DEGREES * index)
    z = RISE_PER_RESIDUE * (index - (residues - 1) / 2)
    return np.stack([HELIX_RADIUS * np.cos(angle), HELIX_RADIUS * np.sin(angle), z], axis=1)


def arched_loop(start: np.ndarray, end: np.ndarray, bulge: np.ndarray, residues: int) -> np.ndarray:
    """Residues on a circular arc between two C-alpha atoms, (residues, 3), each 3.8 angstrom from the next.

    The arc leaves the line from ``start`` to ``end`` (which are not part of the result) towards ``bulge``.

    Raises
    ------
    ValueError
        If so few residues cannot reach from one end to the other.
    """
    span = float(np.linalg.norm(end - start))
    steps = residues + 1
    if span >= steps * CA_CA_DISTANCE:
        raise ValueError(f"a loop of {residues} residues cannot span {span:.1f} angstrom")

    def excess(angle: float) -> float:  # the arc's half opening, from its chord and its steps
        return np.sin(angle) / np.sin(angle / steps) - span / CA_CA_DISTANCE

    half = float(brentq(excess, 1e-6, np.pi - 1e-6))
    radius = span / (2 * np.sin(half))
    along = (end - start) / span
    across = bulge - along * (along @ bulge)
    across /= np.linalg.norm(across)
    centre = (start + end) / 2 - across * radius * np.cos(half)
    angles = np.linspace(-half, half, steps + 1)[1:-1, None]
    return centre + radius * (np.sin(angles) * along + np.cos(angles) * across)


def four_helix_bundle() -> np.ndarray:
    """One subunit, chain order, (residues, 3): radial direction +x, bundle axis z, centred at the origin.

    Helices A to D stand at the corners of a square, up, down, up, down, joined by short loops; helix E
    lies across the lower end.
    """
    corner = HELIX_SPACING / 2
    corners = [(-corner, -corner), (corner, -corner), (corner, corner), (-corner, corner)]
    up = np.array([0.0, 0.0, 1.0])
    upside_down = np.diag([1.0, -1.0, -1.0])
    chain: list[np.ndarray] = []
    for number, (x, y) in enumerate(corners):
        helix = ideal_helix(HELIX_RESIDUES, phase_degrees=45.0 + 90.0 * number)
        if number % 2:
            helix = helix @ upside_down
        helix = helix + np.array([x, y, 0.0])
        if chain:
            chain.append(arched_loop(chain[-1][-1], helix[0], up if number % 2 else -up, LOOP_RESIDUES))
        chain.append(helix)
    half_length = RISE_PER_RESIDUE * (HELIX_RESIDUES - 1) / 2
    # helix E: from under D across the end to under A and B
    along_minus_y = Rotation.from_euler("x", 90, degrees=True).as_matrix()
    under = np.array([0.0, 0.0, -half_length - HELIX_SPACING])
    short = ideal_helix(SHORT_HELIX_RESIDUES) @ along_minus_y.T + under
    chain.append(arched_loop(chain[-1][-1], short[0], np.array([0.0, 1.0, 0.0]), LOOP_RESIDUES))
    chain.append(short)
    subunit = np.concatenate(chain)
    return subunit - subunit.mean(axis=0)


def cage() -> np.ndarray:
    """All C-alpha atoms, (24, residues, 3): centred at the origin, four-fold axes along x, y and z."""
    orientation = Rotation.from_euler("ZYX", SUBUNIT_ANGLES_ZYX_DEGREES, degrees=True).as_matrix()
    subunit = (four_helix_bundle() + np.array([SUBUNIT_RADIUS, 0.0, 0.0])) @ orientation.T
    return np.einsum("gij,nj->gni", octahedral_rotations(), subunit)
