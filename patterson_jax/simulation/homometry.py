"""Different atoms with the same Patterson map: the ambiguity that is true, and that which empty space removes (2.4.3).

Sets of atoms are homometric if they have the same vectors between atoms, each as often, and so the same Patterson map.
A set and its inverse are; that is the enantiomorph, which no Patterson map can tell. There are others. The sums and the
differences of two sets, U + V and U − V, have the vectors (u − u′) + (v − v′) and (u − u′) − (v − v′), which are the
same, because v and v′ change places; yet unless U or V is its own inverse the two are as a rule neither translations
nor inverses of each other (A. L. Patterson, Phys. Rev. 65, 195, 1944; R. Hosemann and S. N. Bagchi, Acta Cryst. 7, 237,
1954). No amount of empty space helps there.

In a periodic map vectors that differ by an edge of the cell are one, which makes more sets homometric. That is the
ambiguity of the paper's Figure 4, and with the atoms confined to less than half of the cell it is gone.

All of this is small NumPy on the host, in float64.
"""

import itertools
from typing import NamedTuple

import numpy as np

from patterson_jax.errors import InputError, require
from patterson_jax.simulation.problem import Problem

TRIALS = 20_000
MOST_TILINGS = 32  # of a set as regular as a lattice, which has very many, that are looked at
MOST_STEPS = 100_000  # of the search for tilings, some half a second
FEWEST = 3  # two atoms are always their own inverse


def homometric_pair(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All sums and all differences of two sets of points, which are homometric.

    Args:
        first: U, `(num_first, 3)`.
        second: V, `(num_second, 3)`.

    Returns:
        U + V and U − V, each `(num_first · num_second, 3)`; row i · num_second + j is from points i and j. If U or V is
        its own inverse the two sets are congruent, and points coincide where sums or differences do.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    plus, minus = (first[:, None] + sign * second[None] for sign in (1, -1))
    return plus.reshape(-1, 3), minus.reshape(-1, 3)


def interatomic_vectors(positions: np.ndarray) -> np.ndarray:
    """Vectors from each atom `(num_atoms, 3)` to each other one, `(num_atoms · (num_atoms − 1), 3)`."""
    positions = np.asarray(positions, np.float64)
    return (positions[None] - positions[:, None])[~np.eye(len(positions), dtype=bool)]


def are_homometric(
    first: np.ndarray, second: np.ndarray, tolerance: float = 1e-3, cell_edge: float | None = None
) -> bool:
    """Whether two sets of atoms `(num_atoms, 3)` have the same vectors, each as often.

    Args:
        first: one set.
        second: the other.
        tolerance: vectors whose coordinates differ by no more are the same; well below what distinct ones differ by.
        cell_edge: of a cubic cell in which the atoms repeat; None: they do not.
    """
    return _same_points(interatomic_vectors(first), interatomic_vectors(second), tolerance, cell_edge)


def are_congruent(
    first: np.ndarray, second: np.ndarray, tolerance: float = 1e-3, cell_edge: float | None = None
) -> bool:
    """Whether two sets of atoms are equal up to a translation and an inversion through a point, but not a rotation.

    Sets that are congruent in this sense are homometric in a trivial way. The arguments are those of `are_homometric`.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape:
        return False
    return any(
        _same_points(first - first[0], sign * (second - origin), tolerance, cell_edge)
        for sign in (1, -1)
        for origin in second
    )


class Partners(NamedTuple):
    """Sets homometric to a given one: `sets`, `(num_atoms, 3)` each; `complete`, whether all ways were looked at."""

    sets: list[np.ndarray]
    complete: bool


def homometric_partners(positions: np.ndarray, tolerance: float = 1e-3) -> Partners:
    """Sets homometric to a set of atoms and not congruent to it, as far as sums and differences give any.

    For each way in which the atoms are U + V, with three or more points in U and in V, the set U − V. Atoms as regular
    as a lattice can be taken apart in ways whose number grows exponentially; the search for them is bounded.

    Args:
        positions: `(num_atoms, 3)`.
        tolerance: by which atoms may miss their places in U + V.
    """
    positions = np.asarray(positions, np.float64)
    number, complete, steps = len(positions), True, itertools.count()
    partners: list[np.ndarray] = []
    shifts = positions - positions[0]
    # moved[t, i]: which atom lies where shift t takes atom i; −1: none.
    distances = np.linalg.norm(positions[None, :, None] + shifts[:, None, None] - positions[None, None], axis=-1)
    moved = np.where(np.min(distances, axis=2) <= tolerance, np.argmin(distances, axis=2), -1)
    for size in range(FEWEST, number // FEWEST + 1):
        if number % size == 0:
            tilings, all_of_them = _tilings(moved, size, steps)
            complete &= all_of_them
            for first, translations in tilings:
                partner = homometric_pair(positions[first], shifts[translations])[1]
                if not any(are_congruent(partner, each, tolerance) for each in (positions, *partners)):
                    partners.append(partner)
    return Partners(partners, complete)


def _tilings(moved, size, steps):
    """Sets of `size` atoms, the first one among them, and translations, the zero among them, that give every atom once.

    Translations are added as long as `size` atoms have their images among the atoms; in a set without such structure
    only the zero translation does. `steps` counts them. Returns the tilings, and whether they are all that there are.
    """
    number = len(moved)

    def extend(translations, common, following):
        if len(translations) == number // size:
            if len(common) == size and len(np.unique(moved[np.ix_(translations, common)])) == number:
                yield common, translations
            return
        for translation in range(following, number):
            if next(steps) >= MOST_STEPS:
                return
            left = common[moved[translation, common] >= 0]
            if len(left) >= size and 0 in left:
                yield from extend([*translations, translation], left, translation + 1)

    found = list(itertools.islice(extend([0], np.arange(number), 1), MOST_TILINGS + 1))
    return found[:MOST_TILINGS], len(found) <= MOST_TILINGS and next(steps) < MOST_STEPS


def _same_points(first, second, tolerance, cell_edge):
    """Whether each point of the first set is near as many points of its own set as of the other."""
    if first.shape != second.shape:
        return False

    def near(others):
        difference = first[:, None] - others[None]
        if cell_edge is not None:
            difference -= cell_edge * np.round(difference / cell_edge)
        return np.sum(np.max(np.abs(difference), axis=-1) <= tolerance, axis=1)

    return bool(np.all(near(first) == near(second)))


def example_pair(problem: Problem, sizes: tuple[int, int] = (3, 3), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two homometric sets of atoms, not congruent, that are cases of a problem in all but the number of atoms.

    Found by drawing U and V until their sums and their differences both suit: atoms at least `min_separation` apart, in
    the inner box, all vectors' peaks within half of the grid. Coordinates are whole numbers and their mean is zero, so
    that every atom of both sets lies in the same way on the voxels, and the maps of the two sets are equal to rounding.

    Args:
        problem: gives grid, radius, separation and inner box. Its number of atoms is not used: it need not be a product
            of two numbers of 3 or more, and 9 is the least such product.
        sizes: atoms of U and of V.
        seed: of the draws; other seeds give other pairs.

    Returns:
        U + V and U − V, each `(sizes[0] · sizes[1], 3)`, voxels from the box centre, in the order of `homometric_pair`.

    Raises:
        InputError: a size below 3, or no pair found, because the inner box is too small for so many atoms.
    """
    require(min(sizes) >= FEWEST, 'sizes', sizes, f'{FEWEST} or more each; fewer atoms are always their own inverse')
    rng = np.random.default_rng(seed)
    widest = min(problem.box_edge, problem.grid_size / 2 - 2 * problem.atom_radius)
    separation = max(problem.min_separation, 1)
    for first, second in zip(*(_centred_sets(rng, size, widest / 2, separation) for size in sizes), strict=False):
        pair = homometric_pair(first, second)
        if np.all(_suit(np.stack(pair), widest / 2, separation)) and not are_congruent(*pair):
            return pair
    raise InputError(
        f'box_edge is {problem.box_edge:g}; it must be larger, or min_separation smaller: in none of {TRIALS} trials '
        f'did {sizes[0] * sizes[1]} homometric atoms, {separation:g} apart, find room in {widest:g} voxels'
    )


def _centred_sets(rng, size, reach, min_separation):
    """Random sets of points that suit, `(number, size, 3)`, with whole coordinates whose sum is zero."""
    points = rng.integers(-int(reach), int(reach), (TRIALS, size - 1, 3), endpoint=True)
    sets = np.concatenate([points, -np.sum(points, axis=1, keepdims=True)], axis=1)
    return sets[_suit(sets, reach, min_separation)]


def _suit(sets, reach, min_separation):
    """Which sets `(number, size, 3)` have no coordinate beyond `reach` and no points closer than the separation."""
    first, second = np.triu_indices(sets.shape[1], 1)
    distances = np.linalg.norm(sets[:, first] - sets[:, second], axis=-1)
    return (np.max(np.abs(sets), axis=(1, 2)) <= reach) & (np.min(distances, axis=1) >= min_separation)


def periodic_pair(cell_edge: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of four atoms that are homometric in a small cubic cell, and are not in one twice as large.

    Five of the six vectors between atoms (and their opposites) are the same in both sets. The sixth ends in the one set
    at (1, −1, 0) quarters of an edge from the origin, in the other at (1, 3, 0), which is as far from the next origin:
    one peak, whose vector may come from either.

    The text of the paper's Figure 4 has three atoms and no coordinates. These are not they, but the same kind: three
    equal atoms never suffice. The sides of a triangle add up to zero. If they still do with one of them reversed,
    twice that side is a period, and to reverse it changes nothing; so in three atoms' Patterson map only the cells from
    which they are taken, and the inverse, are ambiguous. Four are the fewest, as in Patterson's own examples (1944).

    Args:
        cell_edge: of the small cell, voxels, a multiple of 8; neighbours are a quarter of it apart.

    Returns:
        Two arrays `(4, 3)`, voxels from the centre, whole numbers, z = 0.

    Raises:
        InputError: an edge that is no multiple of 8.
    """
    require(cell_edge > 0 and cell_edge % 8 == 0, 'cell_edge', cell_edge, 'a multiple of 8')
    quarters = np.array([[(0, 0), (0, 1), (1, 0), (1, 2)], [(0, 0), (0, 1), (1, 1), (1, 3)]])
    flat = (quarters - 1.5) * cell_edge / 4
    first, second = np.pad(flat, ((0, 0), (0, 0), (0, 1)))
    return first, second
