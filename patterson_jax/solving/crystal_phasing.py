"""Phases of a crystal from its intensities: many starts at once, each judged without knowing the truth.

Starts flip in turns of different recipes; one that has run its course, or whose skewness has jumped and stays, is
finished: elimination, space group from the phases, averaging over it, elimination again. What tells a right map is
that its phases obey operations of the Laue class that nobody told it, that its skewness has jumped, and that another
start comes to the same map.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jax import Array

from patterson_jax.crystal.expansion import Expanded, expand
from patterson_jax.crystal.grid import Grid, grid_for
from patterson_jax.crystal.normalisation import expected_amplitudes, mean_intensities, normalised_amplitudes
from patterson_jax.crystal.scatterers import form_factors
from patterson_jax.crystal.structure import CrystalData, Site, SpaceGroup
from patterson_jax.solving.charge_flipping import (
    RECIPES,
    Recipe,
    Search,
    eliminate,
    flip,
    prepare_search,
    random_density,
    superposed_density,
)
from patterson_jax.solving.spacegroup import (
    CHANCE,
    CHANCE_AT_MOST,
    FoundGroup,
    Frame,
    PhasedReflections,
    agreements_with,
    averaged,
    find_space_group,
    fine_shape,
    half_frames,
    larger_groups,
)

SEARCH_RESOLUTION = 0.8  # Å: finer data cost time and do not help the search
STARTS_AT_ONCE = 4
CYCLES_AT_ONCE = 50
LEAST_CYCLES = 100  # before a start is judged
NOISE = 2  # a start on E values from random phases
FIRST_CYCLES = slice(5, 40)  # of which the median skewness is that of noise
JUMPED = 1.5  # times that, and constant, and a start is worth finishing
FLAT = 1.01  # the skewness has not grown by more over the last cycles
ELIMINATION_CYCLES = 60
COMPLETION_ROUNDS = 3  # of averaging and elimination where the group is to be chosen
OBEYED = 0.5  # least agreement with operations of a group that makes a map promising
CLEAR_JUMP = 4.0  # of the skewness, with which a map without symmetry is promising
SHORTEST_VECTOR, SAME_VECTOR = 1.1, 0.03  # Å, and in fractions of the edges
MOST_VECTORS = 24
SAME_MAP = 0.75  # agreement of the phases of two maps that are the same


@dataclasses.dataclass(frozen=True)
class Crystal:
    """A crystal made ready for the search.

    Attributes:
        data: as given.
        expanded: its reflections in P1.
        amplitudes: `(n,)`, |F| of these, on the scale of the data.
        normalised: `(n,)`, their E values.
        grid: for its density.
        search: the same, on the grid.
        vectors: `(k, 3)`, between atoms, strongest first, in fractions of the axes of the grid.
    """

    data: CrystalData
    expanded: Expanded
    amplitudes: np.ndarray
    normalised: np.ndarray
    grid: Grid
    search: Search
    vectors: np.ndarray


@dataclasses.dataclass(frozen=True)
class PhasedMap:
    """What one start came to, in the frame of its space group.

    Attributes:
        found: the space group, and how the phases agree with it.
        factors: `(n,)` complex, of the crystal's reflections in P1, averaged over the group, in the cell as given with
            the origin of the group; E values times how well equivalents agree, zero where the group extinguishes.
        own: `(n,)` complex, E values with phases before averaging, in the frame in which they were found.
        skewness: of the final map.
        jump: its skewness over that of maps from random phases.
        disagreement: of the amplitudes of the emptied map with those measured.
        obeyed: lowest agreement of the phases with an operation of the group, after elimination that was free to leave
            it.
        start: its number.
        cycles: of charge flipping.
    """

    found: FoundGroup
    factors: np.ndarray
    own: np.ndarray
    skewness: float
    jump: float
    disagreement: float
    obeyed: float
    start: int
    cycles: int

    @property
    def promising(self) -> bool:
        """Whether the phases obey at least half of the Laue class, or the skewness of a map without symmetry jumped.

        Where they obey all of it, it is enough that they do so in the end.
        """
        operations = len(self.found.operations)
        number = self.found.number_kept
        if number == 1:
            return operations == 2 and self.jump > CLEAR_JUMP
        if self.found.kept > OBEYED:
            return 2 * number >= operations
        return number == operations and min(self.found.kept - CHANCE, self.obeyed - OBEYED) > 0

    @property
    def obeys_its_group_alone(self) -> bool:
        """Whether its phases obey the operations of its group, and no others of the Laue class beyond chance."""
        return self.obeyed > OBEYED and (self.found.rejected or 0) <= CHANCE_AT_MOST

    @property
    def rank(self) -> tuple[bool, float]:
        """By which maps are compared."""
        return self.promising, self.jump


@dataclasses.dataclass
class Slot:
    """One of the starts that are under way: its number, its skewness after each cycle, and when it was last judged."""

    start: int
    skewness: list[float] = dataclasses.field(default_factory=list)
    judged_at: int = 0

    @property
    def recipe(self) -> Recipe:
        """How it flips."""
        return RECIPES[self.start % len(RECIPES)]

    @property
    def rank(self) -> int:
        """How many starts before it were superposed, so that each takes another vector."""
        rounds, turn = divmod(self.start, len(RECIPES))
        superposed = [recipe.superposed for recipe in RECIPES]
        return rounds * sum(superposed) + sum(superposed[:turn])

    @property
    def has_ended(self) -> bool:
        """Whether it has made as many cycles as its recipe allows."""
        return len(self.skewness) >= self.recipe.cycles

    @property
    def first_skewness(self) -> float:
        """Of its first cycles, when a start from random phases shows nothing yet."""
        return float(np.median(self.skewness[FIRST_CYCLES]))

    def worth_finishing(self, noise: float) -> bool:
        """Whether its skewness has jumped, if superposed has left that of noise, and stays, or it has ended."""
        if self.has_ended or len(self.skewness) < self.judged_at + LEAST_CYCLES:
            return self.has_ended
        first = noise if self.recipe.superposed else self.first_skewness
        jumped = np.mean(self.skewness[-15:]) > JUMPED * first
        return bool(jumped and np.mean(self.skewness[-20:]) < FLAT * np.mean(self.skewness[-50:-20]))


def prepare_crystal(data: CrystalData) -> Crystal:
    """Expands and normalises the reflections of a crystal and puts them on a grid."""
    expanded = expand(data, SEARCH_RESOLUTION)
    means = mean_intensities(expanded.intensities, expanded.inverse_spacings)
    amplitudes = expected_amplitudes(expanded.intensities, expanded.sigmas, means)
    normalised = normalised_amplitudes(amplitudes, means)
    grid = grid_for(expanded.hkl)
    search = prepare_search(expanded.hkl, normalised, amplitudes, grid)
    vectors = interatomic_vectors(np.asarray(search.patterson), grid, expanded, data.rotations)
    return Crystal(data, expanded, amplitudes, normalised, grid, search, vectors)


def interatomic_vectors(patterson: np.ndarray, grid: Grid, expanded: Expanded, rotations: np.ndarray) -> np.ndarray:
    """The strongest peaks of a Patterson map, `(k, 3)`, k up to `MOST_VECTORS`, in fractions of the axes of the grid.

    Args:
        patterson: its coefficients on the half grid.
        grid: on which they are.
        expanded: the crystal in its primitive cell.
        rotations: `(m, 3, 3)` of the Laue class in the cell as given; of equivalent vectors one is taken.
    """
    values = grid.in_cell_order(scipy.fft.irfftn(patterson, grid.shape))
    highest = np.ones(values.shape, bool)
    for axis in range(3):
        for step in (-1, 1):
            highest &= values >= np.roll(values, step, axis)
    places = np.argwhere(highest)[np.argsort(-values[highest], kind='stable')] / values.shape
    places -= np.rint(places)
    lengths = np.linalg.norm(places @ expanded.cell.orthogonalization.T, axis=1)
    primitive = np.linalg.inv(expanded.basis) @ rotations @ expanded.basis
    vectors, images = [], np.zeros((0, 3))
    for place in places[lengths > SHORTEST_VECTOR]:
        differences = images - place
        if np.any(np.all(np.abs(differences - np.rint(differences)) < SAME_VECTOR, axis=1)):
            continue
        vectors.append(place)
        images = np.concatenate([images, primitive @ place])
        if len(vectors) == MOST_VECTORS:
            break
    return np.reshape(vectors, (-1, 3))[:, grid.axes].astype(np.float32)


def phase(crystal: Crystal, key: Array, max_starts: int) -> Iterator[PhasedMap]:
    """Makes starts, several at a time, and yields what each comes to, in the order in which they end.

    Args:
        crystal: from `prepare_crystal`.
        key: fixes the starts; start i depends on the key and on i alone.
        max_starts: how many are made.
    """
    densities = jnp.zeros((STARTS_AT_ONCE, *crystal.grid.shape), jnp.float32)
    slots = [Slot(start) for start in range(STARTS_AT_ONCE)]
    begun = len(slots)
    noise = 0.0
    while any(slot.start < max_starts for slot in slots):
        densities, skewness = _advance(densities, key, *_instructions(slots, crystal.vectors), crystal.search)
        for slot, values in zip(slots, np.asarray(skewness).tolist(), strict=True):
            slot.skewness += values
        noise = noise or slots[NOISE].first_skewness
        for index, slot in enumerate(slots):
            if slot.start >= max_starts or not slot.worth_finishing(noise):
                continue
            slot.judged_at = len(slot.skewness)
            reached = finish(crystal, np.asarray(densities[index]), slot, noise)
            if reached.promising or slot.has_ended:
                yield reached
                slots[index] = Slot(begun)
                begun += 1


def finish(crystal: Crystal, density: np.ndarray, slot: Slot, noise: float) -> PhasedMap:
    """Sharpens a map `shape`, finds its space group, and averages over it.

    Where the phases barely obey further operations, these are averaged over as well. If they are true, that mends the
    map: its phases still obey them after elimination that was free to leave them, and its amplitudes come nearer to
    those measured.

    Args:
        crystal: from `prepare_crystal`.
        density: as charge flipping left it.
        slot: its start.
        noise: skewness of maps that show nothing.
    """
    factors, _, _ = _eliminate(np.fft.rfftn(density), crystal)
    found = _find_group(crystal, factors)
    if not found.space_group.certain and (found.rejected or 0) > CHANCE:
        factors, _, _ = _eliminate(factors, crystal)
        found = _find_group(crystal, factors)
    own = _structure_factors(crystal, factors)
    expanded = crystal.expanded
    larger = larger_groups(found, expanded.hkl, own, expanded.cell, expanded.basis)

    def completed(group):
        completed = _complete(crystal, own, group.frame, COMPLETION_ROUNDS if larger else 1)
        mean, skewness, disagreement, obeyed = completed
        cycles = len(slot.skewness)
        return PhasedMap(group, mean, own, skewness, skewness / noise, disagreement, obeyed, slot.start, cycles)

    mended = [reached for reached in map(completed, larger) if reached.obeyed > OBEYED]
    return min((completed(found), *mended), key=lambda each: each.disagreement)


def _complete(crystal, own, frame, rounds):
    """Averages over a group and eliminates, in turns: what `PhasedMap` says of the end of that."""
    for _ in range(rounds):
        mean, shift = _averaged(crystal, own, frame)
        again = crystal.grid.place(crystal.expanded.hkl, np.conj(_phased(crystal, mean) / shift))
        factors, skewness, disagreement = _eliminate(again, crystal)
        own = _structure_factors(crystal, factors)
    mean, shift = _averaged(crystal, own, frame)
    agreements = agreements_with(crystal.expanded.in_given_cell(crystal.expanded.hkl), own * shift, frame)
    return mean, float(skewness), float(disagreement), float(agreements.min())


def in_frame(crystal: Crystal, reached: PhasedMap, frame: Frame) -> np.ndarray:
    """E values with phases, `(n,)` complex, averaged over another of the groups that were found; zero where absent."""
    return reached.factors if frame is reached.found.frame else averaged_in_frame(crystal, reached.own, frame)


def averaged_in_frame(crystal: Crystal, own: np.ndarray, frame: Frame) -> np.ndarray:
    """E values with phases, `(n,)` complex, of the crystal's reflections in P1, averaged over a group in its frame."""
    return _averaged(crystal, own, frame)[0]


def phased_by_atoms(crystal: Crystal, atoms: tuple[Site, ...], group: SpaceGroup) -> np.ndarray:
    """E values with the phases of atoms, `(n,)` complex, of the crystal's reflections in P1.

    Args:
        crystal: from `prepare_crystal`.
        atoms: of the asymmetric unit of a group.
        group: in the cell as given.
    """
    hkl = crystal.expanded.in_given_cell(crystal.expanded.hkl)
    spacings = crystal.expanded.inverse_spacings
    rotations, translations = group.operations
    elements = sorted({atom.element for atom in atoms})
    table = np.asarray(form_factors(elements, spacings))
    total = np.zeros(len(hkl), complex)
    for atom in atoms:
        waves = np.exp(2j * np.pi * (hkl @ (rotations @ np.array(atom.fract) + translations).T)).sum(axis=1)
        scattering = table[elements.index(atom.element)] * np.exp(-2 * np.pi**2 * atom.u_iso * spacings**2)
        total += atom.multiplicity / len(rotations) * scattering * waves
    return _phased(crystal, total)


def subgroups(crystal: Crystal, reached: PhasedMap) -> list[Frame]:
    """Frames of groups with half of the operations of a map's group, for when that one does not explain the data."""
    expanded, found = crystal.expanded, reached.found
    phased = PhasedReflections(expanded.hkl, reached.own)
    return half_frames(phased, list(found.operations[: found.number_kept]), expanded.cell, expanded.basis)


def agreement(crystal: Crystal, first: PhasedMap, second: PhasedMap) -> float:
    """How well two maps agree, at most 1, with the origin and the hand at which they agree best."""
    hkl, weights = crystal.expanded.hkl, crystal.normalised**2
    shape = fine_shape(hkl)
    grid = Grid(shape, (0, 1, 2))
    highest = 0.0
    for hand in (1, -1):
        terms = weights * np.exp(1j * (np.angle(first.factors) - hand * np.angle(second.factors)))
        values = scipy.fft.irfftn(grid.place(hkl, terms).astype(np.complex64), shape)
        highest = max(highest, float(values.max()) * np.prod(shape) / (2 * np.sum(weights)))
    return highest


def _instructions(slots, vectors):
    """For each slot whether it begins, its start, whether from a vector, the vector, amplitudes and threshold."""
    superposed = np.array([slot.recipe.superposed and slot.rank < len(vectors) for slot in slots])
    chosen = [vectors[slot.rank] if use else np.zeros(3) for slot, use in zip(slots, superposed, strict=True)]
    return (
        np.array([not slot.skewness for slot in slots]),
        np.array([slot.start for slot in slots], np.int32),
        superposed,
        np.array(chosen, np.float32),
        np.array([slot.recipe.amplitudes for slot in slots], np.int32),
        np.array([slot.recipe.threshold for slot in slots], np.float32),
    )


@functools.partial(jax.jit, donate_argnums=0)
def _advance(densities, key, fresh, starts, superposed, vectors, kinds, thresholds, search):
    shape = densities.shape[1:]

    def begin(start, superposed, vector, kind):
        random = random_density(jax.random.fold_in(key, start), search, kind, shape)
        return jnp.where(superposed, superposed_density(vector, search, kind, shape), random)

    begun = jax.vmap(begin)(starts, superposed, vectors, kinds)
    densities = jnp.where(fresh[:, None, None, None], begun, densities)
    return flip(densities, kinds, thresholds, search, CYCLES_AT_ONCE)


_eliminate_on_device = jax.jit(eliminate, static_argnames=('shape', 'cycles'))


def _eliminate(factors, crystal):
    return _eliminate_on_device(factors.astype(np.complex64), crystal.search, crystal.grid.shape, ELIMINATION_CYCLES)


def _structure_factors(crystal, factors):
    """E values with the phases of a transform on the half grid, as crystallographers have them."""
    hkl = crystal.expanded.hkl
    return _phased(crystal, np.conj(crystal.grid.take(np.asarray(factors), hkl)))


def _phased(crystal, factors):
    return crystal.normalised * np.exp(1j * np.angle(factors))


def _averaged(crystal, own, frame):
    """Structure factors averaged over a group in its frame, and the factors that have led there."""
    hkl = crystal.expanded.in_given_cell(crystal.expanded.hkl)
    shift = np.exp(-2j * np.pi * (hkl @ frame.origin))
    return averaged(hkl, own * shift, frame.rotations, frame.translations), shift


def _find_group(crystal, factors):
    expanded, data = crystal.expanded, crystal.data
    own = _structure_factors(crystal, factors)
    return find_space_group(expanded.hkl, own, data.rotations, expanded.cell, expanded.basis)
