"""Pieces of protein backbones with ideal geometry, C-alpha atoms: what the built-in shapes are made of.

Helices, strands and loops are joined to chains in which neighbours are 3.8 angstrom apart. Lengths in
angstrom, coordinates (x, y, z); arrays (residues, 3) float64 in chain order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.optimize import brentq

# The alpha helix of Pauling, Corey and Branson (PNAS 37, 205, 1951), as crystals have it.
RISE_PER_RESIDUE = 1.5
TURN_PER_RESIDUE_DEGREES = 100.0
HELIX_RADIUS = 2.3
CA_CA_DISTANCE = 3.8  # of neighbours in the chain, trans peptide bond

# Helices wound about each other, left-handed (Crick, Acta Cryst. 6, 689, 1953): seven residues in two turns.
SUPERCOIL_PITCH = 200.0
SUPERCOIL_TURN_PER_RESIDUE_DEGREES = 720.0 / 7

# The pleated sheet of Pauling and Corey (PNAS 37, 729, 1951), flat: sheets of proteins are twisted.
STRAND_RISE = 3.32
PLEAT = 0.924  # of a C-alpha atom from the strand's axis: with the rise, neighbours are 3.8 apart
STRAND_SPACING = 4.8  # between the axes of neighbouring strands, hydrogen-bonded

# Packing of secondary structure (Chothia, Levitt and Richardson, PNAS 74, 4130, 1977): 10 angstrom between
# the axes of helices, between a helix and a sheet, between two sheets.
PACKING_DISTANCE = 10.0

LOOP_RESIDUES = 4
HAIRPIN_RESIDUES = 2  # between neighbouring strands: a beta turn

UPSIDE_DOWN = np.diag([1.0, -1.0, -1.0])  # half a turn about x


class Layer(NamedTuple):
    """One layer of a domain: helices or strands side by side, up and down by turns.

    Attributes
    ----------
    kind : "helices" or "strands"
    count : int
        How many.
    residues : int
        Of each.
    """

    kind: Literal["helices", "strands"]
    count: int
    residues: int


def ideal_helix(residues: int, phase_degrees: float = 0.0) -> np.ndarray:
    """C-alpha atoms of a right-handed alpha helix along +z, centred at the origin, (residues, 3)."""
    index = np.arange(residues)
    angle = np.radians(phase_degrees + TURN_PER_RESIDUE_DEGREES * index)
    z = RISE_PER_RESIDUE * (index - (residues - 1) / 2)
    return np.stack([HELIX_RADIUS * np.cos(angle), HELIX_RADIUS * np.sin(angle), z], axis=1)


def ideal_strand(residues: int) -> np.ndarray:
    """C-alpha atoms of an extended strand along +z, pleated along x, centred at the origin, (residues, 3)."""
    index = np.arange(residues)
    z = STRAND_RISE * (index - (residues - 1) / 2)
    return np.stack([PLEAT * (-1.0) ** index, np.zeros(residues), z], axis=1)


def supercoiled_helix(residues: int, radius: float, place_degrees: float) -> np.ndarray:
    """An alpha helix wound about z, from below to above the origin, (residues, 3).

    Parameters
    ----------
    radius : float
        Of the helix's axis about z.
    place_degrees : float
        Direction, from x, in which the axis lies at z = 0.
    """
    index = np.arange(residues) - (residues - 1) / 2
    tilt = -np.arctan(2 * np.pi * radius / SUPERCOIL_PITCH)
    along = RISE_PER_RESIDUE * np.cos(tilt) * index
    turned = np.radians(place_degrees) - 2 * np.pi * along / SUPERCOIL_PITCH
    outward = np.stack([np.cos(turned), np.sin(turned), np.zeros(residues)], axis=1)
    sideways = np.stack([-np.sin(turned), np.cos(turned), np.zeros(residues)], axis=1)
    angle = np.radians(SUPERCOIL_TURN_PER_RESIDUE_DEGREES) * index
    up = np.array([0.0, 0.0, 1.0])
    across = np.cos(tilt) * sideways - np.sin(tilt) * up  # of the helix's own axis, with outward
    circle = np.cos(angle)[:, None] * outward + np.sin(angle)[:, None] * across
    return radius * outward + HELIX_RADIUS * circle + along[:, None] * up


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


def up_and_down(helices: Sequence[np.ndarray]) -> np.ndarray:
    """Helices along z joined to one chain, the first going up, the next down and so on, in their places.

    Parameters
    ----------
    helices : sequence of np.ndarray
        (residues, 3) each, as the chain runs.
    """
    chain = [helices[0]]
    for number, helix in enumerate(helices[1:]):
        bulge = np.array([0.0, 0.0, -1.0 if number % 2 else 1.0])
        chain += [arched_loop(chain[-1][-1], helix[0], bulge, LOOP_RESIDUES), helix]
    return np.concatenate(chain)


def layered_domain(layers: Sequence[Layer]) -> np.ndarray:
    """A domain of layers of helices and antiparallel sheets, one unbroken chain, centred on its mass.

    Helices and strands run along z, lie side by side along y and are layered along x. The chain goes through
    a layer from one side to the other and through the next layer back.
    """
    chain: list[np.ndarray] = []
    upward = True
    for number, layer in enumerate(layers):
        spacing = STRAND_SPACING if layer.kind == "strands" else PACKING_DISTANCE
        places = spacing * (np.arange(layer.count) - (layer.count - 1) / 2)
        for place, y in enumerate(places[:: -1 if number % 2 else 1]):
            if layer.kind == "strands":
                element = ideal_strand(layer.residues)[:: 1 if upward else -1]
            else:
                element = ideal_helix(layer.residues) @ (np.eye(3) if upward else UPSIDE_DOWN)
            element = element + np.array([PACKING_DISTANCE * number, y, 0.0])
            if chain:
                within_sheet = layer.kind == "strands" and place > 0
                bulge = np.array([0.0, 0.0, -1.0 if upward else 1.0])  # beyond the end just reached
                residues = HAIRPIN_RESIDUES if within_sheet else LOOP_RESIDUES
                chain.append(arched_loop(chain[-1][-1], element[0], bulge, residues))
            chain.append(element)
            upward = not upward
    domain = np.concatenate(chain)
    return domain - domain.mean(axis=0)
