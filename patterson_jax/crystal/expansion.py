"""Merged reflections of a crystal as those of a crystal without symmetry, in its reduced primitive cell.

Charge flipping knows no symmetry: it wants the whole sphere of reflections, of a cell without centring, which is
reduced so that it is compact. A step back leads from there to the cell as it was given.
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
        basis: `(3, 3)`, its edges as columns in fractions of the edges as given: x_given = basis x, h = h_given basis.
        hkl: `(n, 3)` int32, in the primitive cell.
        source: `(n,)`, the row of the merged data that each came from.
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
        """Indices `(n, 3)` of the primitive cell as indices of the cell that was given."""
        return np.rint(hkl @ np.linalg.inv(self.basis)).astype(np.int32)


def reduced_primitive_cell(cell: UnitCell, centring: str) -> tuple[UnitCell, np.ndarray]:
    """The Niggli-reduced primitive cell, and its edges `(3, 3)` as columns in fractions of the edges as given."""
    vectors = gemmi.GruberVector(cell.gemmi, centring, track_change_of_basis=True)
    vectors.niggli_reduce()
    basis = np.array(vectors.change_of_basis.rot) / GEMMI_DENOMINATOR
    edges = cell.orthogonalization @ basis
    lengths = np.linalg.norm(edges, axis=0)
    cosines = (edges.T @ edges) / np.outer(lengths, lengths)
    angles = np.degrees(np.arccos([cosines[1, 2], cosines[0, 2], cosines[0, 1]]))
    return UnitCell(*(float(value) for value in (*lengths, *angles))), basis


def expand(data: CrystalData, resolution: float = 0.0) -> Expanded:
    """Expands merged reflections by the rotations of their Laue class, as far as 1/d ≤ 1/`resolution`.

    Where the rotations bring two rows of the data to one place, the first of them is taken.
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
    """Which of `(n, 3)` indices stand for their pair, `(n,)`: the first of l, k, h that is not zero is positive."""
    h, k, l = np.asarray(hkl).T
    return (l > 0) | (l == 0) & ((k > 0) | (k == 0) & (h >= 0))
