"""The structures that need no file: built from geometry, by the names in ``common.session.STRUCTURES``."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from detector_sim.specimen.barrel import barrel
from detector_sim.specimen.bundle import bundle
from detector_sim.specimen.cage import cage
from detector_sim.specimen.ring import ring

SHAPES: dict[str, Callable[[], Iterable[np.ndarray]]] = {
    "cage": cage,
    "barrel": barrel,
    "ring": ring,
    "bundle": bundle,
}
"""What builds each: C-alpha atoms of its chains, (residues, 3) each, angstrom, x y z."""
