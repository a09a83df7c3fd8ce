"""Expands the merged reflections of a crystal to P1, in its reduced primitive cell.

Charge flipping works without symmetry. It needs the whole sphere of reflections, and a cell without centring, which is
reduced so that it is compact. `Expanded.in_given_cell` leads back to the given cell.
"""

import dataclasses

import gemmi
import numpy as np

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.structure import CrystalData

GEMMI_DENOMINATOR = gemmi.Op.DEN


@dataclasses.dataclass(frozen=True)
class Expanded:
    """Reflections of a crystal in P1, one of each Friedel pair, in the reduced primitive cell.

    Attributes:
        cell: primitive, Niggli-reduced.
        basis: `(3, 3)`, its edges as columns, in fractions of the given edges: x_given = basis x, h = h_given basis.
        hkl: `(n, 3)` int32, in the primitive cell.
        source: `(n,)`, the row of the merged data from which each reflection is taken.
        intensities: `(n,)`.
        sigmas: `(n,)`.
    """

    cell: UnitCell
    basis: np.ndarray
    hkl: np.ndarray
    source: np.ndarray
    intensities: np.ndarray
    sigmas: np.ndarray

    @property
    def inverse_spacings(self) -> np.ndarray:
        """1/d of the reflections, `(n,)` in 1/Å."""
        return self.cell.inverse_spacings(self.hkl)

    def in_given_cell(self, hkl: np.ndarray) -> np.ndarray:
        """Converts indices `(n, 3)` of the primitive cell to those of the given cell."""
        return np.rint(hkl @ np.linalg.inv(self.basis)).astype(np.int32)


def reduced_primitive_cell(cell: UnitCell, centring: str) -> tuple[UnitCell, np.ndarray]:
    """The Niggli-reduced primitive cell, and its edges as columns `(3, 3)` in fractions of the given edges."""
    vectors = gemmi.GruberVector(cell.gemmi, centring, track_change_of_basis=True)
    vectors.niggli_reduce()
    basis = np.array(vectors.change_of_basis.rot) / GEMMI_DENOMINATOR
    edges = cell.orthogonalization @ basis
    lengths = np.linalg.norm(edges, axis=0)
    cosines = (edges.T @ edges) / np.outer(lengths, lengths)
    angles = np.degrees(np.arccos([cosines[1, 2], cosines[0, 2], cosines[0, 1]]))
    return UnitCell(*(float(value) for value in (*lengths, *angles))), basis


def expand(data: CrystalData, resolution: float = 0.0) -> Expanded:
    """Expands merged reflections by the rotations of their Laue class.

    Where the rotations bring two rows of the data to one place, the first of them is taken.

    Args:
        data: merged reflections.
        resolution: d_min in Å; finer reflections are left out. 0: all are kept.
    """
    cell, basis = reduced_primitive_cell(data.cell, data.centring)
    number = len(data.hkl)
    equivalents = np.concatenate([data.hkl @ rotation for rotation in data.rotations])
    hkl = np.rint(equivalents @ basis).astype(np.int32)
    hkl = np.where(first_of_friedel_pair(hkl)[:, None], hkl, -hkl)
    hkl, where = np.unique(hkl, axis=0, return_index=True)
    spacings = cell.inverse_spacings(hkl)
    inside = (spacings > 0) & (spacings * resolution <= 1 + 1e-6)
    source = where[inside] % number
    return Expanded(cell, basis, hkl[inside], source, data.intensities[source], data.sigmas[source])


def first_of_friedel_pair(hkl: np.ndarray) -> np.ndarray:
    """Whether indices `(n, 3)` stand for their Friedel pair, `(n,)`: the first nonzero one of l, k, h is positive."""
    h, k, l = np.asarray(hkl).T
    return (l > 0) | (l == 0) & ((k > 0) | (k == 0) & (h >= 0))
