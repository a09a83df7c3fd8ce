"""The symmetry of a lattice and of the intensities on it: Laue classes and centring.

gemmi finds the rotations of the lattice (after Le Page, J. Appl. Cryst. 15, 255, 1982). Each of their subgroups,
together with the inversion, is a Laue class that the lattice allows.
"""

import dataclasses
import functools
import itertools

import gemmi
import numpy as np

from patterson_jax.crystal.cell import UnitCell

LARGEST_OBLIQUITY = 1.0  # degrees between an axis of the lattice and the normal of its plane
CENTRINGS = {  # fractional vectors beside the origin
    'P': (),
    'A': ((0, 1 / 2, 1 / 2),),
    'B': ((1 / 2, 0, 1 / 2),),
    'C': ((1 / 2, 1 / 2, 0),),
    'I': ((1 / 2, 1 / 2, 1 / 2),),
    'F': ((0, 1 / 2, 1 / 2), (1 / 2, 0, 1 / 2), (1 / 2, 1 / 2, 0)),
    'R': ((2 / 3, 1 / 3, 1 / 3), (1 / 3, 2 / 3, 2 / 3)),
}
REVERSE = ((1 / 3, 2 / 3, 1 / 3), (2 / 3, 1 / 3, 2 / 3))  # the rhombohedral lattice turned by 180° about c
LAUE_SYMBOLS = {  # by the number of rotations, inversion included, and by the highest order of a proper rotation
    (2, 1): '-1',
    (4, 2): '2/m',
    (6, 3): '-3',
    (8, 2): 'mmm',
    (8, 4): '4/m',
    (12, 3): '-3m',
    (12, 6): '6/m',
    (16, 4): '4/mmm',
    (24, 3): 'm-3',
    (24, 6): '6/mmm',
    (48, 4): 'm-3m',
}
ORDER_BY_TRACE = {3: 1, -1: 2, 0: 3, 1: 4, 2: 6}  # of a proper rotation


@dataclasses.dataclass(frozen=True)
class LaueClass:
    """A Laue class in the axes of a cell.

    Attributes:
        symbol: for example '2/m'.
        rotations: `(m, 3, 3)` int, with the inversion.
        setting: the full symbol of its symmorphic space group, for example 'P 1 2/m 1'; '' where the axes are unusual.
    """

    symbol: str
    rotations: np.ndarray
    setting: str

    @property
    def order(self) -> int:
        """Number of rotations."""
        return len(self.rotations)

    @functools.cached_property
    def members(self) -> frozenset[tuple[int, ...]]:
        """The rotations as tuples of nine numbers."""
        return rotation_set(self.rotations)


def rotation_set(rotations: np.ndarray) -> frozenset[tuple[int, ...]]:
    """Rotations `(m, 3, 3)` as a set of tuples."""
    return frozenset(tuple(map(int, each)) for each in np.reshape(rotations, (-1, 9)))


def laue_symbol(rotations: np.ndarray) -> str:
    """The symbol of the Laue class with these rotations `(m, 3, 3)`, which include the inversion."""
    proper = [each for each in rotations if np.linalg.det(each) > 0]
    return LAUE_SYMBOLS[len(rotations), max(ORDER_BY_TRACE[int(np.trace(each))] for each in proper)]


def with_inversion(rotations: np.ndarray) -> np.ndarray:
    """Rotations `(m, 3, 3)` and their negatives, each once, in the given order."""
    every = np.concatenate([rotations, -rotations])
    _, first = np.unique(every.reshape(-1, 9), axis=0, return_index=True)
    return every[np.sort(first)]


def lattice_rotations(cell: UnitCell, centring: str) -> np.ndarray:
    """Proper rotations `(m, 3, 3)` int of the lattice, within a degree.

    Rotations that are not whole numbers in the axes of this cell are left out: they need other axes.
    """
    operations = gemmi.find_lattice_symmetry(cell.gemmi, centring, LARGEST_OBLIQUITY).sym_ops
    rotations = np.array([each.rot for each in operations])
    whole = np.all(rotations % gemmi.Op.DEN == 0, axis=(1, 2))
    return rotations[whole] // gemmi.Op.DEN


def laue_classes(cell: UnitCell, centring: str) -> list[LaueClass]:
    """All Laue classes that the lattice allows, in every orientation, those with the fewest rotations first."""
    rotations = lattice_rotations(cell, centring)
    number = {tuple(each.ravel()): index for index, each in enumerate(rotations)}
    product = [[number[tuple((a @ b).ravel())] for b in rotations] for a in rotations]
    pairs = itertools.combinations_with_replacement(number.values(), 2)
    found = {_closure({first, second}, product) for first, second in pairs}
    groups = sorted(found, key=lambda group: (len(group), sorted(group)))
    return [make_laue_class(rotations[sorted(group)], centring) for group in groups]


def make_laue_class(rotations: np.ndarray, centring: str) -> LaueClass:
    """The Laue class of rotations `(m, 3, 3)` that form a group, with the inversion or without."""
    rotations = with_inversion(rotations)
    operations = gemmi.GroupOps([_operation(rotation) for rotation in rotations])
    vectors = np.array([(0, 0, 0), *CENTRINGS[centring]]) * gemmi.Op.DEN
    operations.cen_ops = np.rint(vectors).astype(int).tolist()
    group = gemmi.find_spacegroup_by_ops(operations)
    return LaueClass(laue_symbol(rotations), rotations, group.xhm() if group else '')


def _operation(rotation):
    operation = gemmi.Op()
    operation.rot = (rotation * gemmi.Op.DEN).tolist()
    return operation


def _closure(members, product):
    """The group that elements generate, from the table of products."""
    members = set(members)
    while more := {product[a][b] for a in members for b in members} - members:
        members |= more
    return frozenset(members)


def absent_by_centring(hkl: np.ndarray, vectors: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    """Whether a centring by these vectors makes reflections `(n, 3)` absent, `(n,)`."""
    phases = np.asarray(hkl) @ np.reshape(vectors, (-1, 3)).T
    return np.any(np.abs(phases - np.rint(phases)) > 0.1, axis=1)
