"""Places the atoms of a small triclinic crystal of C, N, O and F, as charge flipping seldom finds phases at 1.2 Å.

A set of equal atoms is rebuilt in part, again and again, as in `rebuilding`: some atoms are taken out at random, or one
and its neighbours, and each is put where the difference map of the others is high; then all are refined. The amplitudes
alone would pile atoms up, so sets are restrained as molecules are: no two atoms are nearer than a bond, none are
between the lengths of a bond and of an angle, and none is alone. What has the lower misfit, with what these restraints
cost, is kept.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.grid import fast_size
from patterson_jax.crystal.structure import CrystalData
from patterson_jax.precision import exact_products
from patterson_jax.solving import spacegroup
from patterson_jax.solving.crystal_elements import without_hydrogen
from patterson_jax.solving.crystal_phasing import Crystal, PhasedMap, complete, phased_reflections
from patterson_jax.solving.least_squares import (
    Equations,
    minimise,
    normal_equations,
    refine_alone,
    safe_length,
    with_falloff,
)

FINEST, COARSEST = 1.05, 1.5  # Å; finer data need no such search, coarser ones do not fix the atoms
LEAST_ATOMS, MOST_ATOMS = 5, 32  # in the cell; fewer have a centre by chance
VOLUMES = {  # Å³ in crystals (Hofmann, Acta Cryst. B58, 489, 2002), of the elements that have such bonds
    'H': 5.08,
    'D': 5.08,
    'C': 13.87,
    'N': 11.8,
    'O': 11.39,
    'F': 11.17,
}
VOLUME_WITH_HYDROGEN = 18.5  # Å³ for an atom, where the formula has no hydrogen
LOOSELY_FILLED = 1.7  # units of a formula up to which one may fill the cell
SAMPLING = 3  # grid points in the shortest wave along each axis
BUCKET = 64  # reflections; their number is filled up to a multiple of it
NO_BOND, BOND_WIDTH = 1.25, 0.25  # Å; nearer atoms repel each other, by 1 at the difference
BETWEEN, BETWEEN_WIDTH = 1.92, 0.3  # Å; no two atoms are so far apart, give or take the width
BONDED, ALONE = 1.6, 1.75  # Å to the nearest atom, of one that is bonded and of one that is alone
RESTRAINED = 0.3  # weight of the restraints of a set, where the misfit of no atoms is 1
CANDIDATES = 32  # peaks of a difference map from which one is chosen
CLASHING, BONDING = 0.35, 0.25  # what restraints and a bond count for a peak, relative to the highest one
MOST_CLASHING = 1.5  # what a restraint comes to at most then
FIRST_ITERATIONS, ALL_ITERATIONS, ALONE_ITERATIONS = 10, 2, 2
TAKEN_OUT = 0.6  # of the atoms, at most
PATIENCE, MOST_TRIALS = 3, 8  # trials for each atom: without success, and in all
CLEARLY_LOWER = 0.99  # a misfit below this part of the best is a success


class Target(NamedTuple):
    """The data that a set of atoms is to explain.

    Attributes:
        waves: `(n, 3)`, 2π hkl, one of each Friedel pair; filled up to a multiple of `BUCKET`.
        observed: `(n,)`, E values.
        weights: `(n,)`, square roots of their weights; 0 where there is no reflection.
        squared: `(n,)`, 1/d² in 1/Å².
        edges: `(3, 3)`, of the cell, Å, as columns.
    """

    waves: Array
    observed: Array
    weights: Array
    squared: Array
    edges: Array


class Placed(NamedTuple):
    """A set of atoms.

    Attributes:
        positions: `(atoms, 3)`, fractional.
        falloff: logarithm of the scale and B, `(2,)`: see `with_falloff`.
        misfit: weighted squared error of the amplitudes over their weighted square, and what the restraints cost.
    """

    positions: Array
    falloff: Array
    misfit: Array


class _Trials(NamedTuple):
    best: Placed
    number: Array
    idle: Array


def prepare_target(hkl: np.ndarray, normalised: np.ndarray, cell: UnitCell) -> Target:
    """The data of a crystal, from `(n, 3)` indices in P1, one of each Friedel pair, and their E values `(n,)`."""
    missing = -len(hkl) % BUCKET
    weights = 1 / np.sqrt(normalised**2 + np.mean(normalised**2))
    squared = cell.inverse_spacings(hkl) ** 2
    filled = (np.pad(each, (0, missing)) for each in (normalised, weights, squared))
    waves = 2 * np.pi * np.pad(hkl, ((0, missing), (0, 0)))
    return Target(*(jnp.asarray(each, jnp.float32) for each in (waves, *filled, cell.orthogonalization)))


def placement_grid(hkl: np.ndarray) -> tuple[int, int, int]:
    """The shape of the grid of difference maps: even along each axis."""
    first, second, third = (
        2 * fast_size(math.ceil(SAMPLING * reach / 2), real=True) for reach in np.abs(hkl).max(axis=0)
    )
    return first, second, third


@functools.partial(jax.jit, static_argnames=('num_atoms', 'shape'))
@exact_products
def place_atoms(key: Array, target: Target, num_atoms: int, shape: tuple[int, int, int]) -> Placed:
    """Places atoms at random in the cell, and rebuilds the set until nothing is gained.

    Args:
        key: of the random numbers.
        target: the data.
        num_atoms: in the cell.
        shape: of the grid of difference maps, from `placement_grid`.
    """
    placing, rebuilding = jax.random.split(key)
    falloff = jnp.asarray([-0.5 * math.log(num_atoms), 0])
    random = jax.random.uniform(placing, (num_atoms, 3))

    def goes_on(state):
        return (state.number < MOST_TRIALS * num_atoms) & (state.idle < PATIENCE * num_atoms)

    def trial(state):
        rebuilt = rebuild_part(jax.random.fold_in(rebuilding, state.number), state.best, target, shape)
        better, clearly = (rebuilt.misfit < part * state.best.misfit for part in (1, CLEARLY_LOWER))
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), rebuilt, state.best)
        return _Trials(best, state.number + 1, jnp.where(clearly, 0, state.idle + 1))

    start = refined(random, falloff, target, FIRST_ITERATIONS)
    return jax.lax.while_loop(goes_on, trial, _Trials(start, jnp.int32(0), jnp.int32(0))).best


def refined(positions: Array, falloff: Array, target: Target, iterations: ArrayLike) -> Placed:
    """A set of atoms `(atoms, 3)` after some steps of least squares, with restraints."""
    number = len(positions)
    norm = jnp.sum((target.weights * target.observed) ** 2)

    def equations_at(parameters):
        positions, falloff = parameters[:-2].reshape(number, 3), parameters[-2:]
        amplitudes, slopes = point_amplitudes(positions, target.waves)
        amplitudes, slopes = with_falloff(falloff, amplitudes, slopes.reshape(len(amplitudes), -1), target.squared)
        data = normal_equations(amplitudes, slopes, target.observed, target.weights)
        restrained = restraint_equations(positions, target.edges)
        factor = RESTRAINED * norm / number
        return data._replace(
            misfit=data.misfit + factor * restrained.misfit,
            normal=data.normal.at[:-2, :-2].add(factor * restrained.normal),
            gradient=data.gradient.at[:-2].add(factor * restrained.gradient),
        )

    parameters, equations = minimise(equations_at, jnp.append(positions.ravel(), falloff), iterations)
    positions = parameters[:-2].reshape(number, 3) % 1
    misfit = equations.misfit / norm + RESTRAINED * jnp.mean(loneliness(positions, target.edges))
    return Placed(positions, parameters[-2:], misfit)


def point_amplitudes(positions: Array, waves: Array) -> tuple[Array, Array]:
    """|Σ exp(i wave·x)| of points `(atoms, 3)`, `(n,)`, and its derivatives `(n, atoms, 3)`."""
    phases = waves @ positions.T
    cosines, sines = jnp.cos(phases), jnp.sin(phases)
    real, imaginary = jnp.sum(cosines, axis=1), jnp.sum(sines, axis=1)
    amplitudes = safe_length(real, imaginary)
    turned = (imaginary / amplitudes)[:, None] * cosines - (real / amplitudes)[:, None] * sines
    return amplitudes, turned[:, :, None] * waves[:, None, :]


def distances_between(positions: Array, others: Array, edges: Array) -> tuple[Array, Array]:
    """Vectors, Å, from the nearest images of others `(m, 3)` to positions `(n, 3)`: `(n, m, 3)`; lengths `(n, m)`.

    Those below half of the least distance between opposite faces of the cell are the shortest.
    """
    vectors = positions[:, None] - others[None]
    vectors = (vectors - jnp.rint(vectors)) @ edges.T
    return vectors, jnp.sqrt(jnp.sum(vectors**2, axis=-1) + 1e-8)


def restraint(lengths: Array) -> tuple[Array, Array]:
    """How far distances, Å, are from those in molecules: 0 for a bond, an angle or more; and its derivative."""
    near = jnp.maximum((NO_BOND - lengths) / BOND_WIDTH, 0)
    off = (lengths - BETWEEN) / BETWEEN_WIDTH
    between = jnp.maximum(1 - off**2, 0)
    slope = jnp.where(near > 0, -1 / BOND_WIDTH, 0) + jnp.where(between > 0, -2 * off / BETWEEN_WIDTH, 0)
    return near + between, slope


def restraint_equations(positions: Array, edges: Array) -> Equations:
    """Normal equations of the restraints between atoms `(atoms, 3)`: the sum of their squares over all pairs."""
    number = len(positions)
    vectors, lengths = distances_between(positions, positions, edges)
    off, slope = restraint(jnp.where(jnp.eye(number, dtype=bool), jnp.inf, lengths))
    slopes = (slope / lengths)[:, :, None] * vectors @ edges
    blocks = slopes[:, :, :, None] * slopes[:, :, None, :]
    own = jnp.eye(number)[:, :, None, None] * jnp.sum(blocks, axis=1)[:, None]
    normal = jnp.swapaxes(own - blocks, 1, 2).reshape(3 * number, 3 * number)
    gradient = jnp.sum(off[:, :, None] * slopes, axis=1).ravel()
    return Equations(jnp.sum(off**2) / 2, normal, gradient, jnp.zeros(0, gradient.dtype))


def loneliness(positions: Array, edges: Array) -> Array:
    """Of each atom 0 if another one is as near as a bond, 1 if none is, `(atoms,)`."""
    _, lengths = distances_between(positions, positions, edges)
    nearest = jnp.min(jnp.where(jnp.eye(len(positions), dtype=bool), jnp.inf, lengths), axis=1)
    return jnp.clip((nearest - BONDED) / (ALONE - BONDED), 0, 1)


def rebuild_part(key: Array, given: Placed, target: Target, shape: tuple[int, int, int]) -> Placed:
    """A set after some atoms were taken out, put where they are missed, and all refined.

    They are chosen at random; or, in half of the cases, they are one and those nearest to it.
    """
    sizing, choosing, middle, kind = jax.random.split(key, 4)
    number = len(given.positions)
    size = jax.random.randint(sizing, (), 1, max(1, int(TAKEN_OUT * number)) + 1)
    _, lengths = distances_between(given.positions, given.positions, target.edges)
    near = lengths[jax.random.randint(middle, (), 0, number)]
    scores = jnp.where(jax.random.bernoulli(kind), near, jax.random.uniform(choosing, (number,)))
    positions = put_where_missed(given, jnp.argsort(scores), size, target, shape)
    return refined(positions, given.falloff, target, ALL_ITERATIONS)


def put_where_missed(
    given: Placed, order: Array, size: ArrayLike, target: Target, shape: tuple[int, int, int]
) -> Array:
    """Takes out the first atoms of an order, and puts each, one after the other, where those that are there miss it.

    That is a high peak of their difference map, with coefficients Eo − |Ec|, which neither clashes with them nor
    is far from all of them. There it is refined alone.

    Args:
        given: the set.
        order: `(atoms,)`, numbers of atoms.
        size: how many of them are taken out.
        target: the data.
        shape: of the grid of difference maps.
    """
    waves, observed, weights = target.waves, target.observed, target.weights
    scale = jnp.exp(given.falloff[0] - given.falloff[1] * target.squared)
    places = half_places(waves, shape)
    present = jnp.ones(len(order), bool).at[order].set(jnp.arange(len(order)) >= size)

    def put(turn, state):
        positions, present, real, imaginary = state
        missed = jnp.where(weights > 0, observed / safe_length(real, imaginary) - 1, 0)
        density = map_on_grid(jax.lax.complex(missed * real, missed * imaginary), places, shape)
        place = best_candidate(density, positions, present, target.edges)

        place, cosine, sine = refine_alone(place, (real, imaginary), waves, scale, observed, weights, ALONE_ITERATIONS)
        atom = order[turn]
        return positions.at[atom].set(place % 1), present.at[atom].set(True), real + cosine, imaginary + sine

    phases = waves @ given.positions.T
    there = jnp.where(present, 1.0, 0.0)
    real, imaginary = scale * (jnp.cos(phases) @ there), scale * (jnp.sin(phases) @ there)
    return jax.lax.fori_loop(0, size, put, (given.positions, present, real, imaginary))[0]


def best_candidate(density: Array, positions: Array, present: Array, edges: Array) -> Array:
    """The place `(3,)` of a high peak that fits atoms `(atoms, 3)`, of which some are present.

    The highest point of each block of 2 × 2 × 2 counts as a peak.
    """
    first, second, third = (size // 2 for size in density.shape)
    blocks = density.reshape(first, 2, second, 2, third, 2).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 8)
    heights, chosen = jax.lax.top_k(jnp.max(blocks, axis=1), min(CANDIDATES, len(blocks)))
    corner = jnp.stack(jnp.unravel_index(chosen, (first, second, third)), axis=1)
    inside = jnp.stack(jnp.unravel_index(jnp.argmax(blocks, axis=1)[chosen], (2, 2, 2)), axis=1)
    places = (2 * corner + inside).astype(density.dtype) / jnp.asarray(density.shape, density.dtype)[None]
    _, lengths = distances_between(places, positions, edges)
    lengths = jnp.where(present[None], lengths, jnp.inf)
    off, _ = restraint(lengths)
    clashing = jnp.sum(jnp.minimum(off, MOST_CLASHING) ** 2, axis=1)
    bonding = jnp.where(jnp.any(lengths < BONDED, axis=1), BONDING, 0)
    scores = heights / jnp.maximum(heights[0], 1e-9) - CLASHING * clashing + bonding
    return places[jnp.argmax(scores)]


def half_places(waves: Array, shape: tuple[int, int, int]) -> tuple[Array, Array, Array]:
    """Where reflections and their Friedel mates lie on the half grid of `shape`; outside of it where they do not."""
    hkl = jnp.rint(waves / (2 * np.pi)).astype(jnp.int32)
    h, k, l = jnp.concatenate([hkl, -hkl]).T
    return h % shape[0], k % shape[1], jnp.where(l < 0, shape[2], l)


def map_on_grid(factors: Array, places: tuple[Array, Array, Array], shape: tuple[int, int, int]) -> Array:
    """The map with structure factors `(n,)`, 0 where there is no reflection, on a grid of `shape`."""
    half = jnp.zeros((shape[0], shape[1], shape[2] // 2 + 1), factors.dtype)
    half = half.at[places].set(jnp.concatenate([factors.conj(), factors]), mode='drop')
    return jnp.fft.irfftn(half, s=shape)


def atoms_can_be_placed(crystal: Crystal) -> bool:
    """Whether a crystal is triclinic, cut at 1.05 to 1.5 Å, and has 5 to 32 atoms of C, N, O and F in the cell.

    In P1, other crystals have as many reflections for each atom, but most of them are equivalent.
    """
    data, d_min = crystal.data, 1 / float(crystal.expanded.inverse_spacings.max())
    if len(data.rotations) > 2 or not FINEST <= d_min <= COARSEST or not set(data.formula or {}) <= set(VOLUMES):
        return False
    return LEAST_ATOMS <= atoms_in_cell(data, crystal.expanded.cell.volume) <= MOST_ATOMS


def atoms_in_cell(data: CrystalData, volume: float) -> int:
    """The number of atoms without hydrogen in a primitive cell of some volume, Å³; 0 without a formula.

    It is a multiple, or a part, of the formula: the one that fills the cell as crystals of light atoms do.
    """
    formula = {symbol: count for symbol, count in (data.formula or {}).items() if count > 0}
    others = without_hydrogen(formula)
    atoms = sum(others.values())
    if not atoms:
        return 0
    hydrogen_is_given = len(others) < len(formula)
    filled = sum(VOLUMES[symbol] * count for symbol, count in formula.items())
    units = volume / (filled if hydrogen_is_given else atoms * VOLUME_WITH_HYDROGEN)
    if units < 1:
        return round(atoms / round(1 / units))
    return round(atoms * (round(units) if units > LOOSELY_FILLED else 1))


def placed_maps(crystal: Crystal, key: Array) -> Iterator[PhasedMap]:
    """Places atoms again and again, each time from other random places, and yields the maps with their phases.

    Args:
        crystal: from `prepare_crystal`; `atoms_can_be_placed`.
        key: fixes the starts; start i depends on the key and on i alone.
    """
    expanded = crystal.expanded
    target = prepare_target(expanded.hkl, crystal.normalised, expanded.cell)
    shape, number = placement_grid(expanded.hkl), atoms_in_cell(crystal.data, expanded.cell.volume)
    for start in itertools.count():
        placed = place_atoms(jax.random.fold_in(key, start), target, number, shape)
        yield map_of_atoms(crystal, np.asarray(placed.positions), float(placed.misfit), start)


def map_of_atoms(crystal: Crystal, positions: np.ndarray, misfit: float, start: int) -> PhasedMap:
    """The map with the phases of equal atoms in P1, `(atoms, 3)`, and its space group."""
    expanded = crystal.expanded
    waves = np.exp(2j * np.pi * (expanded.hkl @ positions.T))
    own = phased_reflections(crystal, waves.sum(axis=1))
    found = spacegroup.find_space_group(expanded, own, crystal.data.rotations)
    mean, _, _ = spacegroup.averaged(expanded, own, found.space_group, found.frame.origin)
    _, _, disagreement, obeyed = complete(crystal, own, found.frame)  # its phases are no better than the atoms'
    return PhasedMap(found, mean, own, 0.0, disagreement, obeyed, start, cycles=0, learned=False, misfit=misfit)
