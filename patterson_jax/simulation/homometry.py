"""Different atoms with the same Patterson map: true ambiguity, and ambiguity that empty space removes (paper, 2.4.3).

Sets of atoms are homometric if they have the same interatomic vectors, each equally often, and so the same Patterson
map. A set and its inverse, the enantiomorph, are always homometric. There are other pairs: the sums U + V and the
differences U − V of two sets of points. Their vectors are (u − u′) + (v − v′) and (u − u′) − (v − v′). These are the
same, because v and v′ can be exchanged. Yet unless U or V is its own inverse, the two sets are usually neither
translations nor inverses of each other (A. L. Patterson, Phys. Rev. 65, 195, 1944; R. Hosemann and S. N. Bagchi, Acta
Cryst. 7, 237, 1954). No amount of empty space removes this ambiguity.

In a periodic map, vectors that differ by an edge of the cell are the same. This makes more sets homometric: the
ambiguity of the paper's Figure 4. It disappears if the atoms fill less than half of the cell along each edge.

All computations are small and use NumPy in float64 on the host.
"""

import itertools
from typing import NamedTuple

import numpy as np

from patterson_jax.errors import InputError, require
from patterson_jax.simulation.problem import Problem

TRIALS = 20_000
MOST_TILINGS = 32  # tilings to examine; a set as regular as a lattice has very many
MOST_STEPS = 100_000  # of the search for tilings, about half a second
FEWEST = 3  # two atoms are always their own inverse


def homometric_pair(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All sums and all differences of two sets of points: two homometric sets.

    Args:
        first: U, `(num_first, 3)`.
        second: V, `(num_second, 3)`.

    Returns:
        U + V and U − V, each `(num_first · num_second, 3)`; row i · num_second + j is from points i and j. If U or V is
        its own inverse, the two sets are congruent.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    plus, minus = (first[:, None] + sign * second[None] for sign in (1, -1))
    return plus.reshape(-1, 3), minus.reshape(-1, 3)


def interatomic_vectors(positions: np.ndarray) -> np.ndarray:
    """Vectors from each atom `(num_atoms, 3)` to each other atom, `(num_atoms · (num_atoms − 1), 3)`."""
    positions = np.asarray(positions, np.float64)
    return (positions[None] - positions[:, None])[~np.eye(len(positions), dtype=bool)]


def are_homometric(
    first: np.ndarray, second: np.ndarray, tolerance: float = 1e-3, cell_edge: float | None = None
) -> bool:
    """Whether two sets of atoms `(num_atoms, 3)` have the same interatomic vectors, each equally often.

    Args:
        first: one set.
        second: the other.
        tolerance: vectors are the same if no coordinate differs by more. It must be well below the difference of
            distinct vectors.
        cell_edge: of a cubic cell in which the atoms repeat; None: they do not repeat.
    """
    return _same_points(interatomic_vectors(first), interatomic_vectors(second), tolerance, cell_edge)


def are_congruent(
    first: np.ndarray, second: np.ndarray, tolerance: float = 1e-3, cell_edge: float | None = None
) -> bool:
    """Whether two sets of atoms are equal after a translation and perhaps an inversion; rotations are not tried.

    Such sets are homometric in a trivial way. The arguments are those of `are_homometric`.
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
    """Sets homometric to a given one: `sets`, `(num_atoms, 3)` each; `complete`, whether the search was exhaustive."""

    sets: list[np.ndarray]
    complete: bool


def homometric_partners(positions: np.ndarray, tolerance: float = 1e-3) -> Partners:
    """Finds sets that are homometric to a set of atoms, and not congruent to it, by sums and differences.

    For each way to write the atoms as U + V, with three or more points in U and in V, it gives the set U − V. Atoms as
    regular as a lattice have exponentially many such ways; so the search is bounded.

    Args:
        positions: `(num_atoms, 3)`.
        tolerance: distance by which atoms may miss their places in U + V.
    """
    positions = np.asarray(positions, np.float64)
    number, complete, steps = len(positions), True, itertools.count()
    partners: list[np.ndarray] = []
    shifts = positions - positions[0]
    # moved[t, i]: the atom at the place to which shift t takes atom i; −1: there is none.
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
    """Sets of `size` atoms, with the first atom, and translations, with zero, that together give every atom once.

    Translations are added as long as `size` atoms have images among the atoms; in a set without such structure only the
    zero translation qualifies. `steps` counts the trials. Returns the tilings, and whether these are all.
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
    """Whether each point of the first set is near equally many points of both sets."""
    if first.shape != second.shape:
        return False

    def near(others):
        difference = first[:, None] - others[None]
        if cell_edge is not None:
            difference -= cell_edge * np.round(difference / cell_edge)
        return np.sum(np.max(np.abs(difference), axis=-1) <= tolerance, axis=1)

    return bool(np.all(near(first) == near(second)))


def example_pair(problem: Problem, sizes: tuple[int, int] = (3, 3), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draws two homometric sets of atoms, not congruent, that fit a problem except for the number of atoms.

    U and V are drawn until the atoms of their sums and of their differences are at least `min_separation` apart, lie in
    the inner box, and have all vectors' peaks within half of the grid. Coordinates are whole numbers with mean zero. So
    every atom of both sets lies in the same way on the voxels, and the maps of the two sets are equal to rounding.

    Args:
        problem: gives grid, radius, separation and inner box. Its number of atoms is not used, because it may not be a
            product of two numbers of 3 or more; 9 is the least such product.
        sizes: atoms of U and of V.
        seed: of the draws; other seeds give other pairs.

    Returns:
        U + V and U − V, each `(sizes[0] · sizes[1], 3)`, voxels from the box centre, in the order of `homometric_pair`.

    Raises:
        InputError: a size is below 3, or no pair was found, because the inner box is too small for so many atoms.
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
    """Random suitable sets of points, `(number, size, 3)`, with whole coordinates whose sum is zero."""
    points = rng.integers(-int(reach), int(reach), (TRIALS, size - 1, 3), endpoint=True)
    sets = np.concatenate([points, -np.sum(points, axis=1, keepdims=True)], axis=1)
    return sets[_suit(sets, reach, min_separation)]


def _suit(sets, reach, min_separation):
    """Whether sets `(number, size, 3)` have no coordinate beyond `reach` and no points closer than the separation."""
    first, second = np.triu_indices(sets.shape[1], 1)
    distances = np.linalg.norm(sets[:, first] - sets[:, second], axis=-1)
    return (np.max(np.abs(sets), axis=(1, 2)) <= reach) & (np.min(distances, axis=1) >= min_separation)


def periodic_pair(cell_edge: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of four atoms that are homometric in a small cubic cell but not in a cell twice as large.

    Five of the six vectors between atoms (and their opposites) are the same in both sets. The sixth ends at (1, −1, 0)
    quarters of an edge from the origin in one set, and at (1, 3, 0) in the other, which is as far from the next origin.
    In the small cell both give the same peak.

    The paper's Figure 4 has three atoms and no coordinates. These sets are of the same kind, but have four atoms,
    because three equal atoms are never enough: the sides of a triangle add up to zero; if they still do with one side
    reversed, twice that side is a period, and reversing it changes nothing. Four is the least number, as in Patterson's
    own examples (1944).

    Args:
        cell_edge: of the small cell, voxels, a multiple of 8; neighbours are a quarter of it apart.

    Returns:
        Two arrays `(4, 3)`, voxels from the centre, whole numbers, z = 0.

    Raises:
        InputError: the edge is not a multiple of 8.
    """
    require(cell_edge > 0 and cell_edge % 8 == 0, 'cell_edge', cell_edge, 'a multiple of 8')
    quarters = np.array([[(0, 0), (0, 1), (1, 0), (1, 2)], [(0, 0), (0, 1), (1, 1), (1, 3)]])
    flat = (quarters - 1.5) * cell_edge / 4
    first, second = np.pad(flat, ((0, 0), (0, 0), (0, 1)))
    return first, second
