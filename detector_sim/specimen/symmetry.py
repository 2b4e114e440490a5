"""Rotations of point groups, as matrices (n, 3, 3): ``r @ position`` turns a position."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.spatial.transform import Rotation


def octahedral_rotations() -> np.ndarray:
    """The 24 rotations of the octahedron (O), (24, 3, 3): signed permutations of the axes, determinant 1."""
    matrices = [
        np.diag(signs)[list(order)]
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1.0, -1.0), repeat=3)
    ]
    return np.stack([m for m in matrices if np.linalg.det(m) > 0])


def cyclic_rotations(order: int) -> np.ndarray:
    """The rotations of C_n, (n, 3, 3): about z."""
    return Rotation.from_euler("z", 2 * np.pi * np.arange(order)[:, None] / order).as_matrix()


def dihedral_rotations(order: int) -> np.ndarray:
    """The rotations of D_n, (2n, 3, 3): those of C_n, and the same after half a turn about x."""
    turns = cyclic_rotations(order)
    return np.concatenate([turns, turns @ np.diag([1.0, -1.0, -1.0])])


def copies(subunit: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """A subunit (residues, 3) under each rotation (n, 3, 3), (n, residues, 3)."""
    return np.einsum("gij,nj->gni", rotations, subunit)
