"""Rotations of point groups, matrices (n, 3, 3): ``r @ position`` turns a position. Axes are RELION's."""

from __future__ import annotations

import itertools
import re

import numpy as np
from scipy.spatial.transform import Rotation

_Axis = tuple[int, tuple[float, float, float]]  # order and direction

# of RELION (its src/symmetries.cpp), each enough to make its group
_GENERATORS: dict[str, tuple[_Axis, ...]] = {
    "T": ((3, (0, 0, 1)), (2, (0, 2**0.5, 1))),
    "I1": ((2, (1, 0, 0)), (5, (0.8506508070, 0, -0.5257311143)), (3, (0.9341723640, 0.3568220765, 0))),
    "I2": ((2, (0, 0, 1)), (5, (0.5257311143, 0, 0.8506508070)), (3, (0, 0.3568220765, 0.9341723640))),
    "I3": ((2, (-0.5257311143, 0, 0.8506508070)), (5, (0, 0, 1))),
    "I4": ((2, (0.5257311143, 0, 0.8506508070)), (5, (0, 0, -1))),
}
_ORDERS = {"T": 12, "I1": 60, "I2": 60, "I3": 60, "I4": 60}


def point_group(name: str) -> np.ndarray:
    """The rotations of a point group, (n, 3, 3), the identity first.

    Parameters
    ----------
    name : str
        As RELION calls it: C1, C2, ..., D1, D2, ..., T, O, I1 to I4, and I, which is I2; in any case.

    Raises
    ------
    ValueError
        If there is no such group.
    """
    wanted = name.strip().upper()
    if found := re.fullmatch(r"([CD])([1-9]\d{0,2})", wanted):
        order = int(found[2])
        return cyclic_rotations(order) if found[1] == "C" else dihedral_rotations(order)
    if wanted == "O":
        return octahedral_rotations()
    if wanted == "I":
        wanted = "I2"
    if wanted not in _GENERATORS:
        raise ValueError(f"point group {name!r} is not known; must be C1, C2, ..., D1, D2, ..., T, O or I")
    return _closed(_GENERATORS[wanted], _ORDERS[wanted])


def _closed(axes: tuple[_Axis, ...], order: int) -> np.ndarray:
    """All products of turns about axes."""
    turns = [
        Rotation.from_rotvec(2 * np.pi / fold * np.array(axis) / np.linalg.norm(axis)).as_matrix()
        for fold, axis in axes
    ]
    found = [np.eye(3)]
    for one in found:  # which grows meanwhile
        for turn in turns:
            product = one @ turn
            if min(np.abs(product - other).max() for other in found) > 1e-3:
                found.append(product)
    assert len(found) == order
    # axes are written with ten digits: what was multiplied often is brought back to a rotation
    return Rotation.from_matrix(np.stack(found)).as_matrix()


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
