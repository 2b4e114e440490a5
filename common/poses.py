"""Orientations in RELION's convention.

A point r of the specimen (x, y, z, from its centre) falls on the image at (R r)_xy, R being RELION's matrix
of the angles rot, tilt, psi: turned about z by rot, about the new y by tilt, about the new z by psi. An
origin offset (rlnOriginXAngst, rlnOriginYAngst) says how far the *image* has to be moved to bring the
particle to its centre: the particle lies at minus the origin.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation


def relion_matrix(angles_degrees: np.ndarray) -> np.ndarray:
    """RELION's matrices (n, 3, 3), specimen to image, of (n, 3) angles rot, tilt, psi."""
    return Rotation.from_euler("ZYZ", angles_degrees, degrees=True).inv().as_matrix()


def relion_angles(matrices: np.ndarray) -> np.ndarray:
    """The angles rot, tilt, psi (n, 3), degrees, of matrices (n, 3, 3)."""
    return Rotation.from_matrix(matrices).inv().as_euler("ZYZ", degrees=True)
