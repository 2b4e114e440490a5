"""Tweezers built from nothing but geometry: two long bundles of helices between a hinge and two heads.

They are made after the architecture of SMC complexes and Rad50 (Hopfner and Tainer, Curr. Opin. Struct. Biol.
13, 249, 2003): a hinge from which two coiled-coil arms go out, each with a globular head at its end. The arms
are shorter than there, four helices thick, and of different lengths, and the heads are different, so that
nothing is symmetric. Five chains. Everything is at the level of C-alpha atoms. Lengths in angstrom,
coordinates (x, y, z).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from detector_sim.specimen.backbone import (
    PACKING_DISTANCE,
    UPSIDE_DOWN,
    Layer,
    layered_domain,
    supercoiled_helix,
    up_and_down,
)

HINGE = (Layer("strands", 6, 8), Layer("helices", 3, 16))


class _Arm(NamedTuple):
    """An arm with its head; lengths from where the arms begin, along the arm."""

    helix_residues: int
    middle: float
    head: tuple[Layer, ...]
    head_middle: float
    side: float  # of the hinge's middle: +1 or -1 along x


# Placed so that C-alpha atoms of different chains are 6 angstrom apart, or more.
ARMS = (
    _Arm(56, 45.0, (Layer("helices", 3, 20), Layer("strands", 7, 8), Layer("strands", 7, 8),
                    Layer("helices", 3, 20)), 112.75, 1.0),
    _Arm(44, 37.0, (Layer("helices", 2, 18), Layer("strands", 5, 8), Layer("helices", 2, 18)), 92.5, -1.0),
)  # fmt: skip
HINGE_HEIGHT = 13.5
ARM_FROM_MIDDLE = 14.0
OPENING_DEGREES = 14.0  # of each arm from -z
SKEW_DEGREES = 8.0  # of each arm out of the common plane


def supercoiled_bundle(helix_residues: int) -> np.ndarray:
    """Four antiparallel helices wound about each other along z, one chain, (residues, 3)."""
    radius = PACKING_DISTANCE / np.sqrt(2)
    helices: list[np.ndarray] = []
    for number in range(4):
        if number % 2:  # upside down about x, a helix at -phi comes to lie at phi
            helices.append(supercoiled_helix(helix_residues, radius, -90.0 * number) @ UPSIDE_DOWN)
        else:
            helices.append(supercoiled_helix(helix_residues, radius, 90.0 * number))
    return up_and_down(helices)


def bundle() -> list[np.ndarray]:
    """The C-alpha atoms of each chain, (residues, 3): hinge, arm, head, arm, head; centred on their mass."""
    lying = Rotation.from_euler("y", 90, degrees=True).as_matrix()  # layers along z, strands along x
    chains = [layered_domain(HINGE) @ lying.T + np.array([0.0, 0.0, HINGE_HEIGHT])]
    for arm in ARMS:
        angles = (-arm.side * OPENING_DEGREES, arm.side * SKEW_DEGREES)
        turned = Rotation.from_euler("yx", angles, degrees=True).as_matrix()
        begin, along = np.array([arm.side * ARM_FROM_MIDDLE, 0.0, 0.0]), -turned[:, 2]
        chains.append(supercoiled_bundle(arm.helix_residues) @ turned.T + begin + arm.middle * along)
        chains.append(layered_domain(arm.head) @ (turned @ lying).T + begin + arm.head_middle * along)
    centre = np.concatenate(chains).mean(axis=0)
    return [chain - centre for chain in chains]
