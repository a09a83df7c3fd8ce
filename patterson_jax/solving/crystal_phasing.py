"""Finds the phases of a crystal from its intensities: runs many starts at once, and judges each without the truth.

Each start runs charge flipping by one of the recipes, which are used in turn. It is finished when its skewness has
jumped and stays, or after its last cycle. Then low-density elimination sharpens its map, its phases give the space
group, the map is averaged over that group, and elimination follows again. Other ways to sharpen a map can be tried
beside elimination; the best map is taken. Three signs tell a right map: its phases obey operations of the Laue class,
which charge flipping did not use; its skewness has jumped; and another start leads to the same map.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from patterson_jax.crystal.expansion import Expanded, expand
from patterson_jax.crystal.grid import Grid, grid_for, local_maxima, real_map, real_transform
from patterson_jax.crystal.normalisation import expected_amplitudes, mean_intensities, normalised_amplitudes
from patterson_jax.crystal.scatterers import form_factors
from patterson_jax.crystal.structure import CrystalData, Site, SpaceGroup
from patterson_jax.solving import spacegroup
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

SEARCH_RESOLUTION = 0.8  # Å; finer data cost time and do not help the search
FREE_MEAN_TO = 1.05  # Å, the resolution up to which charge flipping leaves the mean of the density free
STARTS_AT_ONCE = 4
CYCLES_AT_ONCE = 50
LEAST_CYCLES = 100  # of a start before it is judged, and before it is judged again
NOISE_START = 2  # number of a start on E values from random phases; it tells the skewness of noise
FIRST_CYCLES = slice(5, 40)  # in these the skewness is that of noise; the median is taken
EARLIEST, MOST_GROWTH = slice(5, 10), 1.3  # of a quick start: at most so many times the mean over these
JUMPED = 1.5  # a start is finished if its skewness is above this times that of noise, and constant
FLAT = 1.01  # skewness is constant if it has grown by less than this factor over the last cycles
ELIMINATION_CYCLES = 60
MOST_SHARPENED = 2  # times that a map is sharpened until its group is clear
COMPLETION_ROUNDS = 3  # of averaging and elimination, where there are larger groups to choose from
OBEYED = 0.5  # least agreement of the phases with the operations of its group, of a promising map
CLEAR_JUMP = 4.0  # least ratio of its skewness to that of noise, of a promising map without symmetry
SHORTEST_VECTOR, SAME_VECTOR = 1.1, 0.03  # Å, and in fractions of the edges
MOST_VECTORS = 24
SAME_MAP = 0.75  # two maps are the same if their phases agree by more than this


@dataclasses.dataclass(frozen=True)
class Crystal:
    """A crystal that is ready for the search.

    Attributes:
        data: as given.
        expanded: its reflections in P1.
        amplitudes: `(n,)`, |F| of these, on the scale of the data.
        normalised: `(n,)`, their E values.
        grid: for its density.
        search: the amplitudes on that grid, for charge flipping.
        vectors: `(k, 3)`, peaks of its Patterson map, highest first, in fractions of the axes of the grid.
    """

    data: CrystalData
    expanded: Expanded
    amplitudes: np.ndarray
    normalised: np.ndarray
    grid: Grid
    search: Search
    vectors: np.ndarray


# From factors on the half grid of a crystal to those of a better map, its skewness, and how far its amplitudes are from
# those measured.
Sharpen = Callable[[np.ndarray | Array, Crystal], tuple[Array, Array, Array]]


@dataclasses.dataclass(frozen=True)
class PhasedMap:
    """The map to which one start led, and its space group.

    Attributes:
        found: the space group, and how the phases agree with it.
        factors: `(n,)` complex, E values with phases of the crystal's reflections in P1, averaged over the group, with
            the origin of the group. The worse equivalents agree, the smaller is their mean; absent reflections have 0.
        own: `(n,)` complex, E values with phases before averaging, with the origin at which they were found.
        jump: skewness of the final map, divided by that of maps from random phases.
        disagreement: mean difference between amplitudes after elimination and measured ones, relative to their mean.
        obeyed: lowest agreement of the phases with an operation of the group, after elimination without symmetry.
        start: number of the start, among those of its kind.
        cycles: number of cycles of charge flipping.
        learned: whether something else than elimination has finished it; jump and disagreement are then those after a
            further elimination.
        explained: whether the atoms that were placed explain the amplitudes; None if charge flipping led to the map. A
            map of atoms has neither a jump nor cycles: both are 0.
    """

    found: spacegroup.FoundGroup
    factors: np.ndarray
    own: np.ndarray
    jump: float
    disagreement: float
    obeyed: float
    start: int
    cycles: int
    learned: bool
    explained: bool | None = None

    @property
    def promising(self) -> bool:
        """Whether the map may be right.

        Its phases must obey a group with at least half of the operations of the Laue class. If it has all of them, it
        is enough that they are obeyed after the last elimination. A map without symmetry is promising only in the
        class -1, if its skewness has jumped clearly, or if it is of atoms. Atoms must explain the amplitudes.
        """
        operations = len(self.found.operations)
        number = self.found.number_kept
        if self.explained is False:
            return False
        if number == 1:
            return operations == 2 and (self.explained or self.jump > CLEAR_JUMP)
        if self.found.kept > OBEYED:
            return self.has_enough_symmetry
        return number == operations and self.found.kept > spacegroup.CHANCE and self.obeyed > OBEYED

    @property
    def finished_by(self) -> str:
        """What finished it, in words for a person."""
        if self.explained is not None:
            return 'atoms that were placed'
        return 'a learned projection' if self.learned else 'elimination'

    @property
    def obeys_its_group_alone(self) -> bool:
        """Whether its phases obey the operations of its group, and no others of the Laue class beyond chance."""
        return self.obeyed > OBEYED and self.found.rejected <= spacegroup.CHANCE_AT_MOST

    @property
    def has_enough_symmetry(self) -> bool:
        """Whether its group has at least half of the operations of the Laue class; a right group has all or half."""
        return 2 * self.found.number_kept >= len(self.found.operations)

    @property
    def rank(self) -> tuple[bool, float]:
        """The key by which maps of one crystal are sorted; the best map has the highest.

        Of promising maps at low resolution, wrong ones have the higher skewness more often than not. The disagreement
        of amplitudes tells them, but has no limit that holds for all crystals (docs/crystals.md, 'Which start').
        """
        return self.promising, -self.disagreement


@dataclasses.dataclass
class Slot:
    """A start in progress.

    Attributes:
        start: its number.
        skewness: after each cycle.
        judged_at: number of cycles at which it was last judged.
        quick: whether its skewness may jump within the first cycles, as it does if the mean of the density is free.
    """

    start: int
    skewness: list[float] = dataclasses.field(default_factory=list)
    judged_at: int = 0
    quick: bool = False

    @property
    def recipe(self) -> Recipe:
        """The settings of its charge flipping."""
        return RECIPES[self.start % len(RECIPES)]

    @property
    def rank(self) -> int:
        """The number of superposed starts before it, so that each of these takes another vector."""
        return sum(RECIPES[start % len(RECIPES)].superposed for start in range(self.start))

    @property
    def has_ended(self) -> bool:
        """Whether it has run all the cycles of its recipe."""
        return len(self.skewness) >= self.recipe.cycles

    @property
    def first_skewness(self) -> float:
        """That of noise: the median over its first cycles, in which a map from random phases shows no structure."""
        median = float(np.median(self.skewness[FIRST_CYCLES]))
        return min(median, MOST_GROWTH * float(np.mean(self.skewness[EARLIEST]))) if self.quick else median

    def worth_finishing(self, noise: float) -> bool:
        """Whether it has ended, or its skewness has jumped and stays.

        A superposed start shows structure from the beginning, so it is compared with `noise`, the skewness of maps that
        show none; other starts are compared with their own first cycles.
        """
        if self.has_ended or len(self.skewness) < self.judged_at + LEAST_CYCLES:
            return self.has_ended
        first = noise if self.recipe.superposed else self.first_skewness
        jumped = np.mean(self.skewness[-15:]) > JUMPED * first
        return bool(jumped and np.mean(self.skewness[-20:]) < FLAT * np.mean(self.skewness[-50:-20]))


def prepare_crystal(data: CrystalData) -> Crystal:
    """Expands the reflections of a crystal to P1, down to 0.8 Å, normalises them and puts them on a grid."""
    expanded = expand(data, SEARCH_RESOLUTION)
    means = mean_intensities(expanded.intensities, expanded.inverse_spacings)
    amplitudes = expected_amplitudes(expanded.intensities, expanded.sigmas, means)
    normalised = normalised_amplitudes(amplitudes, means)
    grid = grid_for(expanded.hkl)
    free = bool(1 / expanded.inverse_spacings.max() < FREE_MEAN_TO)
    search = prepare_search(expanded.hkl, normalised, amplitudes, grid, free)
    vectors = interatomic_vectors(np.asarray(search.patterson), grid, expanded, data.rotations)
    return Crystal(data, expanded, amplitudes, normalised, grid, search, vectors)


def interatomic_vectors(patterson: np.ndarray, grid: Grid, expanded: Expanded, rotations: np.ndarray) -> np.ndarray:
    """The strongest peaks of a Patterson map, `(k, 3)`, k up to `MOST_VECTORS`, in fractions of the axes of the grid.

    Args:
        patterson: its coefficients on the half grid.
        grid: of these coefficients.
        expanded: the crystal in its primitive cell.
        rotations: `(m, 3, 3)`, of the Laue class in the given cell; of equivalent vectors one is taken.
    """
    values = grid.in_cell_order(real_map(patterson, grid.shape))
    places = local_maxima(values) / values.shape
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


_eliminate_on_device = jax.jit(eliminate, static_argnames=('shape', 'cycles'))


def eliminated(factors: np.ndarray | Array, crystal: Crystal) -> tuple[Array, Array, Array]:
    """Factors `half_shape` of a map of a crystal after low-density elimination; see `charge_flipping.eliminate`."""
    return _eliminate_on_device(factors.astype(np.complex64), crystal.search, crystal.grid.shape, ELIMINATION_CYCLES)


def phase(
    crystal: Crystal, key: Array, max_starts: int, sharpeners: tuple[Sharpen, ...] = (eliminated,)
) -> Iterator[PhasedMap]:
    """Runs starts, several at a time, and yields the map of each, in the order in which they end.

    Args:
        crystal: from `prepare_crystal`.
        key: fixes the starts; start i depends on the key and on i alone.
        max_starts: number of starts.
        sharpeners: each finishes the map of a start, and the best of these maps is taken.
    """
    densities = jnp.zeros((STARTS_AT_ONCE, *crystal.grid.shape), jnp.float32)
    quick = bool(crystal.search.mean_is_free)
    coming = (Slot(number, quick=quick) for number in itertools.count())
    slots = list(itertools.islice(coming, STARTS_AT_ONCE))
    noise = 0.0
    while any(slot.start < max_starts for slot in slots):
        densities, skewness = _advance(densities, key, *_instructions(slots, crystal.vectors), crystal.search)
        for slot, values in zip(slots, np.asarray(skewness).tolist(), strict=True):
            slot.skewness += values
        noise = noise or slots[NOISE_START].first_skewness
        for index, slot in enumerate(slots):
            if slot.start >= max_starts or not slot.worth_finishing(noise):
                continue
            slot.judged_at = len(slot.skewness)
            density = np.asarray(densities[index])
            finished = (finish(crystal, density, slot, noise, sharpen) for sharpen in sharpeners)
            reached = max(finished, key=lambda each: each.rank)
            if reached.promising or slot.has_ended:
                yield reached
                slots[index] = next(coming)


def finish(crystal: Crystal, density: np.ndarray, slot: Slot, noise: float, sharpen: Sharpen = eliminated) -> PhasedMap:
    """Sharpens a map, finds its space group, and averages over it.

    Larger groups are tried too, if the phases obey their operations weakly. Averaging over true operations improves a
    map: its phases still obey them after elimination without symmetry, and its amplitudes come nearer to the measured
    ones. Of the group found first and the larger ones that are still obeyed, the one with the lowest disagreement of
    amplitudes is taken.

    Args:
        crystal: from `prepare_crystal`.
        density: `shape`, the result of charge flipping.
        slot: its start.
        noise: skewness of maps that show no structure.
        sharpen: low-density elimination, or what takes its place.
    """
    factors: np.ndarray | Array = np.fft.rfftn(density)
    for _ in range(MOST_SHARPENED):
        factors, _, _ = sharpen(factors, crystal)
        own = _structure_factors(crystal, factors)
        found = spacegroup.find_space_group(crystal.expanded, own, crystal.data.rotations)
        if found.space_group.certain or found.rejected <= spacegroup.CHANCE:
            break
    larger = spacegroup.larger_groups(found, crystal.expanded, own)
    rounds = COMPLETION_ROUNDS if larger else 1
    maps = []
    for group in (found, *larger):
        mean, skewness, disagreement, obeyed = complete(crystal, own, group.frame, rounds, sharpen)
        if group is found or obeyed > OBEYED:
            jump, cycles, learned = skewness / noise, len(slot.skewness), sharpen is not eliminated
            maps.append(PhasedMap(group, mean, own, jump, disagreement, obeyed, slot.start, cycles, learned))
    return min(maps, key=lambda each: each.disagreement)


def complete(
    crystal: Crystal, own: np.ndarray, frame: spacegroup.Frame, rounds: int = 1, sharpen: Sharpen = eliminated
) -> tuple[np.ndarray, float, float, float]:
    """Averages over a group and sharpens, in turns.

    Args:
        crystal: from `prepare_crystal`.
        own: `(n,)` complex, E values with phases, of the reflections in P1.
        frame: the group, and where its origin lies.
        rounds: how often.
        sharpen: low-density elimination, or what takes its place.

    Returns:
        Factors `(n,)`, skewness, disagreement and how well the group is obeyed: see `PhasedMap`.
    """
    for _ in range(rounds):
        mean, shift, _ = spacegroup.averaged(crystal.expanded, own, frame.group, frame.origin)
        again = crystal.grid.place(crystal.expanded.hkl, np.conj(phased_reflections(crystal, mean) / shift))
        factors, skewness, disagreement = sharpen(again, crystal)
        own = _structure_factors(crystal, factors)
    mean, _, agreements = spacegroup.averaged(crystal.expanded, own, frame.group, frame.origin)
    return mean, float(skewness), float(disagreement), float(agreements.min())


def phased_reflections(crystal: Crystal, factors: np.ndarray) -> np.ndarray:
    """The E values of a crystal's reflections in P1 with the phases of factors, both `(n,)`."""
    return crystal.normalised * np.exp(1j * np.angle(factors))


def phased_by_atoms(crystal: Crystal, atoms: tuple[Site, ...], group: SpaceGroup) -> np.ndarray:
    """E values with phases calculated from atoms, `(n,)` complex, of the crystal's reflections in P1.

    Args:
        crystal: from `prepare_crystal`.
        atoms: the asymmetric unit.
        group: their space group, in the given cell.
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
    return phased_reflections(crystal, total)


def agreement(crystal: Crystal, first: PhasedMap, second: PhasedMap) -> float:
    """The agreement of the phases of two maps, at most 1, at the origin and with the hand that make it highest."""
    hkl, weights = crystal.expanded.hkl, crystal.normalised**2
    angles, shape = np.angle(first.factors), spacegroup.fine_shape(hkl)
    terms = (weights * np.exp(1j * (angles - hand * np.angle(second.factors))) for hand in (1, -1))
    return max(float(real_transform(hkl, each, shape).max()) for each in terms) / np.sum(weights)


def _instructions(slots, vectors):
    """For each slot: whether it begins, its start, whether it is superposed, its vector, amplitudes and threshold."""
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


def _structure_factors(crystal, factors):
    """E values with the phases of a transform on the half grid, with the sign that crystallography uses."""
    hkl = crystal.expanded.hkl
    return phased_reflections(crystal, np.conj(crystal.grid.take(np.asarray(factors), hkl)))
