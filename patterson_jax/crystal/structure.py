"""A crystal's data before it is solved, and its solution after: the contract between reading, solving and writing.

Everything here is on the host, in the given cell. Rotations act on fractional coordinates as column vectors,
x' = R x, and on Miller indices as row vectors, h' = h R.
"""

import dataclasses
import functools

import gemmi
import numpy as np

from patterson_jax.crystal.cell import UnitCell


@dataclasses.dataclass(frozen=True)
class CrystalData:
    """Measured intensities of one crystal, merged, with what is known of it.

    Attributes:
        cell: as given.
        hkl: `(n, 3)` int32, one of each set of equivalents under the Laue class, without F(000) and without
            absences of the centring.
        intensities: `(n,)`, F² on any scale; may be negative.
        sigmas: `(n,)`, their standard uncertainties, positive.
        laue_class: its symbol, for example '2/m' or 'm-3m'.
        rotations: `(m, 3, 3)` int, the operations of the Laue class in this cell, with the inversion.
        centring: P, A, B, C, I, F or R (obverse).
        wavelength: Å, or None.
        formula: element → number of atoms in the cell, or in any part of it. None: unknown.
        elements: chemical symbols that may occur, where numbers are not known; empty: those of the formula, or any.
        possible: `(k, 3, 3)` int, rotations of the lattice that the intensities may have. They include those of the
            Laue class. Atoms that obey another one show that the class is too low. None: there are no others.
        warnings: lines about faults of the data, for a person to read.
    """

    cell: UnitCell
    hkl: np.ndarray
    intensities: np.ndarray
    sigmas: np.ndarray
    laue_class: str
    rotations: np.ndarray
    centring: str
    wavelength: float | None = None
    formula: dict[str, float] | None = None
    elements: tuple[str, ...] = ()
    possible: np.ndarray | None = None
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class SpaceGroup:
    """A space group in the given cell.

    Attributes:
        number: of International Tables, 1 to 230; 0 for a subgroup that was not looked up.
        hm: Hermann-Mauguin symbol in this cell's setting, 'P 1 21/c 1', or the standard one if the setting has none.
        symops: all operations, with the centring, written like 'x,y,z'. Centrosymmetric groups have an inversion
            centre at the origin.
        certain: whether the data leave no other choice.
        candidates: Hermann-Mauguin symbols of the other choices.
    """

    number: int
    hm: str
    symops: tuple[str, ...]
    certain: bool
    candidates: tuple[str, ...] = ()

    @functools.cached_property
    def operations(self) -> tuple[np.ndarray, np.ndarray]:
        """Rotations `(m, 3, 3)` int and translations `(m, 3)`, centring included, in the order of `symops`."""
        operations = [gemmi.Op(each) for each in self.symops]
        return (
            np.array([each.rot for each in operations]) // gemmi.Op.DEN,
            np.array([each.tran for each in operations]) / gemmi.Op.DEN,
        )

    @property
    def has_centre(self) -> bool:
        """Whether there is an inversion centre."""
        return self.centre is not None

    @property
    def centre(self) -> tuple[float, float, float] | None:
        """The translation t of an inversion x' = −x + t; None if there is no inversion centre."""
        rotations, translations = self.operations
        inversions = np.flatnonzero(np.all(rotations == -np.eye(3, dtype=int), axis=(1, 2)))
        return tuple(translations[inversions[0]].tolist()) if len(inversions) else None


@dataclasses.dataclass(frozen=True)
class Site:
    """An atom of the asymmetric unit.

    Attributes:
        label: for example 'C1'.
        element: chemical symbol.
        fract: fractional coordinates.
        u_iso: Å².
        occupancy: of the site by the atom; 1 is full, on special positions too.
        multiplicity: number of sites in the cell.
        confidence: in the element, from 0 to 1.
    """

    label: str
    element: str
    fract: tuple[float, float, float]
    u_iso: float
    occupancy: float
    multiplicity: int
    confidence: float = 1.0


@dataclasses.dataclass(frozen=True)
class CrystalSolution:
    """The answer to one crystal.

    Attributes:
        verdict: 'solved', 'uncertain' or 'not solved'.
        reasons: for the verdict, in words.
        space_group: None where none was found.
        atoms: the asymmetric unit, near the middle of the cell, as one connected molecule where possible.
        r_factor: R1 of the refined isotropic model over reflections with F > 4σ(F); None without a model.
        resolution: d_min of the data, Å.
        starts: number of starts tried.
        seconds: of all the work, without compilation.
        density: `(nu, nv, nw)`, roughly in electrons/Å³, the map from which atoms were taken; None without one.
        finished_by: what finished the map from which atoms were taken, in words: elimination, a learned projection, or
            atoms that were placed.
    """

    verdict: str
    reasons: tuple[str, ...]
    space_group: SpaceGroup | None
    atoms: tuple[Site, ...]
    r_factor: float | None
    resolution: float
    starts: int
    seconds: float
    density: np.ndarray | None = None
    finished_by: str = 'elimination'
