"""What a specimen is made of: scatterers at positions, from a coordinate file or from a built-in shape."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np

from common.roots import ANYWHERE, Roots
from detector_sim.specimen.scattering import MEAN_RESIDUE_MASS, Scatterer, element, mean_residue
from detector_sim.specimen.shapes import SHAPES

MAX_BYTES = 1_000_000_000  # unpacked; the largest of the Protein Data Bank have half of it
FORMATS = {
    ".pdb": gemmi.CoorFormat.Pdb,
    ".ent": gemmi.CoorFormat.Pdb,
    ".cif": gemmi.CoorFormat.Mmcif,
    ".mmcif": gemmi.CoorFormat.Mmcif,
}
_WATER_MASS = 18.015  # lost when a residue joins a chain


@dataclass(frozen=True)
class Atoms:
    """Scatterers of a few kinds at many positions, centred on their scattering mass.

    Attributes
    ----------
    positions : np.ndarray
        (n, 3) float64, x y z, angstrom.
    weights : np.ndarray
        (n,) float64: how many of its kind each one counts for (occupancy; a residue's mass).
    kinds : np.ndarray
        (n,) int64, index into ``scatterers``.
    scatterers : tuple[Scatterer, ...]
        The kinds.
    """

    positions: np.ndarray
    weights: np.ndarray
    kinds: np.ndarray
    scatterers: tuple[Scatterer, ...]

    @property
    def diameter(self) -> float:
        """Of the smallest sphere about the origin that holds every centre, angstrom."""
        return 2 * float(np.linalg.norm(self.positions, axis=1).max())


def shape_atoms(name: str) -> Atoms:
    """A built-in shape, one of ``SHAPES``, a bead a residue."""
    positions = np.concatenate([*SHAPES[name]()])
    count = len(positions)
    return Atoms(positions, np.ones(count), np.zeros(count, np.int64), (mean_residue(),))


def read_atoms(path: Path, inputs: Roots = ANYWHERE) -> Atoms:
    """The first model of a PDB or mmCIF file (also .gz), without its waters, as it stands in the file.

    A residue given by its C-alpha alone becomes a bead of the residue's mass. Where hydrogens are missing,
    those the residue should have are spread over its other atoms. B factors are left alone: they describe
    the experiment the model came from.

    Raises
    ------
    ValueError
        If the file cannot be read or holds no atoms, in one line.
    """
    content = _content(path, inputs)
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    form = FORMATS.get(suffixes[-1] if suffixes else "", gemmi.CoorFormat.Detect)
    try:
        structure = gemmi.read_structure_string(content, format=form)
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{path}: not a PDB or mmCIF file ({' '.join(str(error).split())})") from error
    gathered = _Gathering()
    if len(structure):
        for chain in structure[0]:
            for residue in chain:
                if not residue.is_water():
                    gathered.add(residue)
    if not gathered.positions:
        raise ValueError(f"{path}: no atoms in it; give a PDB or mmCIF file with coordinates")
    return gathered.atoms()


def _content(path: Path, inputs: Roots) -> bytes:
    """What is in a file, unpacked."""
    try:
        with inputs.open(path) as file:
            unpacked = gzip.GzipFile(fileobj=file) if path.suffix.lower() == ".gz" else file
            content = unpacked.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path}: more than {MAX_BYTES} bytes; structures up to that can be read")
    return content


class _Gathering:
    """Grows atom by atom."""

    def __init__(self) -> None:
        self.positions: list[list[float]] = []
        self._weights: list[float] = []
        self._kinds: list[int] = []
        self._scatterers: dict[Scatterer, int] = {}

    def add(self, residue: gemmi.Residue) -> None:
        """A residue's atoms, or the bead that stands for it."""
        known = gemmi.find_tabulated_residue(residue.name)
        in_chain = known.is_amino_acid() or known.is_nucleic_acid()
        if known.is_amino_acid() and [atom.name for atom in residue] == ["CA"]:
            mass = max(known.weight - _WATER_MASS, 0.0) or MEAN_RESIDUE_MASS
            self._place(residue[0], mean_residue(), mass / MEAN_RESIDUE_MASS)
            return
        for atom in residue:
            self._place(atom, element(atom.element.name))
        if any(atom.element.is_hydrogen for atom in residue):
            return
        missing = known.hydrogen_count - (2 if in_chain else 0)
        for atom in residue:
            self._place(atom, element("H"), max(missing, 0) / len(residue))

    def _place(self, atom: gemmi.Atom, scatterer: Scatterer, weight: float = 1.0) -> None:
        if weight * atom.occ <= 0:
            return
        self.positions.append(atom.pos.tolist())
        self._weights.append(weight * atom.occ)
        self._kinds.append(self._scatterers.setdefault(scatterer, len(self._scatterers)))

    def atoms(self) -> Atoms:
        """All of them, centred."""
        positions = np.array(self.positions)
        weights = np.array(self._weights)
        kinds = np.array(self._kinds, np.int64)
        scatterers = tuple(self._scatterers)
        masses = weights * np.array([abs(s.forward) for s in scatterers])[kinds]
        centre = (positions * masses[:, None]).sum(axis=0) / masses.sum()
        return Atoms(positions - centre, weights, kinds, scatterers)
