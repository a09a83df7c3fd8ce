"""Places the atoms of a small crystal of C, N, O and F, where charge flipping seldom finds phases at 1.2 Å.

A set of equal atoms is rebuilt in part, again and again, as in `rebuilding`: some atoms are taken out at random, or one
and its neighbours, and each is put where the difference map of the others is high; then all are refined. The amplitudes
alone would pile atoms up, so sets are restrained as molecules are: no two atoms are nearer than a bond, none are
between the lengths of a bond and of an angle, and none is alone. What has the lower misfit, with what these restraints
cost, is kept.

In a group with axes or planes, a part that is right but lies at a wrong distance from them is a trap. So every now and
then a part of the set is moved as a whole to where it fits the strongest reflections best, as a translation function
does, and what is left is rebuilt around it. If some trials do not make that better than the set before, it is left.
"""

import dataclasses
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
from patterson_jax.crystal.structure import CrystalData, SpaceGroup
from patterson_jax.crystal.waves import cosine_and_sine
from patterson_jax.precision import exact_products
from patterson_jax.solving import spacegroup
from patterson_jax.solving.absences import groups_of_absences
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
P1 = SpaceGroup(1, 'P 1', ('x,y,z',), certain=False)
LEAST_ATOMS = 5  # in the asymmetric unit; fewer have a centre by chance
MOST_ATOMS, MOST_BY_AXES = 32, 16  # in P1, and in the asymmetric unit of another group
VOLUMES = {  # Å³ in crystals (Hofmann, Acta Cryst. B58, 489, 2002), of the elements that have such bonds
    'H': 5.08,
    'C': 13.87,
    'N': 11.8,
    'O': 11.39,
    'F': 11.17,
}
VOLUME_WITH_HYDROGEN = 18.5  # Å³ for an atom, where the formula has no hydrogen
DENSELY_FILLED, LOOSELY_FILLED = 0.75, 1.7  # units of a formula for which there is room, where one fills the cell
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
IN_P1, IN_OTHER_GROUPS = (3, 8), (12, 30)  # trials for each atom: without success, and in all
MOVED_ONCE_IN = 6  # trials; those between rebuild what was moved
SHIFTS, STRONGEST = 256, 128  # that are tried for a part, and reflections on which they are tried
EXPLAINED, EXPLAINED_WITH_CENTRE = 0.12, 0.2  # highest misfit of sets that may be right, by their group
CLEARLY_LOWER = 0.99  # a misfit below this part of the best is a success


class Symmetry(NamedTuple):
    """Where the images of an atom are: at R x + t.

    Attributes:
        rotations: `(images, 3, 3)`, fractional, the identity first.
        translations: `(images, 3)`, fractional.
        edges: `(3, 3)`, of the cell, Å, as columns.
    """

    rotations: Array
    translations: Array
    edges: Array


class Target(NamedTuple):
    """The data that a set of atoms is to explain.

    Attributes:
        waves: `(images, n, 3)`, 2π hR of the unique reflections; filled up to a multiple of `BUCKET`.
        offsets: `(images, n)`, 2π h·t.
        observed: `(n,)`, E values.
        weights: `(n,)`, square roots of their weights; 0 where there is no reflection.
        squared: `(n,)`, 1/d² in 1/Å².
        symmetry: of the group in which atoms are placed.
    """

    waves: Array
    offsets: Array
    observed: Array
    weights: Array
    squared: Array
    symmetry: Symmetry


class Placed(NamedTuple):
    """A set of atoms.

    Attributes:
        positions: `(atoms, 3)`, fractional, one of each set of images.
        falloff: logarithm of the scale and B, `(2,)`: see `with_falloff`.
        misfit: weighted squared error of the amplitudes over their weighted square, and what the restraints cost.
    """

    positions: Array
    falloff: Array
    misfit: Array


class _Trials(NamedTuple):
    """The set that is rebuilt, the best so far, how many trials were made, and how many since that was found."""

    current: Placed
    best: Placed
    number: Array
    idle: Array


def prepare_target(
    hkl: np.ndarray, normalised: np.ndarray, cell: UnitCell, rotations: np.ndarray, translations: np.ndarray
) -> Target:
    """The data of a crystal.

    Args:
        hkl: `(n, 3)`, unique reflections.
        normalised: `(n,)`, their E values.
        cell: of the indices.
        rotations: `(images, 3, 3)`, of the group in this cell, the identity first.
        translations: `(images, 3)`.
    """
    missing = -len(hkl) % BUCKET
    weights = 1 / np.sqrt(normalised**2 + np.mean(normalised**2))
    squared = cell.inverse_spacings(hkl) ** 2
    observed, weights, squared = (np.pad(each, (0, missing)) for each in (normalised, weights, squared))
    hkl = np.pad(hkl, ((0, missing), (0, 0)))
    waves, offsets = 2 * np.pi * (hkl @ rotations), 2 * np.pi * (translations @ hkl.T)

    def on_device(*arrays):
        return (jnp.asarray(each, jnp.float32) for each in arrays)

    symmetry = Symmetry(*on_device(rotations, translations, cell.orthogonalization))
    waves, offsets, observed, weights, squared = on_device(waves, offsets, observed, weights, squared)
    return Target(waves, offsets, observed, weights, squared, symmetry)


def placement_grid(hkl: np.ndarray) -> tuple[int, int, int]:
    """The shape of the grid of difference maps for reflections in P1: even along each axis."""
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
        num_atoms: in the asymmetric unit.
        shape: of the grid of difference maps, from `placement_grid`.
    """
    placing, rebuilding = jax.random.split(key)
    images = len(target.waves)
    falloff = jnp.asarray([-0.5 * math.log(num_atoms * images), 0])
    random = jax.random.uniform(placing, (num_atoms, 3))
    patience, most = (each * num_atoms for each in (IN_P1 if images == 1 else IN_OTHER_GROUPS))

    def goes_on(state):
        return (state.number < most) & (state.idle < patience)

    def trial(state):
        choosing = jax.random.fold_in(rebuilding, state.number)
        moves = (state.number % MOVED_ONCE_IN == 0) & (images > 1)
        given = either(moves, state.best, state.current)
        rebuilt = rebuild_part(choosing, moves, given, target, shape)
        current = either(moves | (rebuilt.misfit < given.misfit), rebuilt, given)
        better, clearly = (rebuilt.misfit < part * state.best.misfit for part in (1, CLEARLY_LOWER))
        best = either(better, rebuilt, state.best)
        return _Trials(current, best, state.number + 1, jnp.where(clearly, 0, state.idle + 1))

    start = refined(random, falloff, target, FIRST_ITERATIONS)
    return jax.lax.while_loop(goes_on, trial, _Trials(start, start, jnp.int32(0), jnp.int32(0))).best


def either(condition: Array, first: Placed, second: Placed) -> Placed:
    """The first set where a condition holds, otherwise the second."""
    return jax.tree.map(lambda one, other: jnp.where(condition, one, other), first, second)


def refined(positions: Array, falloff: Array, target: Target, iterations: ArrayLike) -> Placed:
    """A set of atoms `(atoms, 3)` after some steps of least squares, with restraints."""
    number = len(positions)
    norm = jnp.sum((target.weights * target.observed) ** 2)

    def equations_at(parameters):
        positions, falloff = parameters[:-2].reshape(number, 3), parameters[-2:]
        amplitudes, slopes = point_amplitudes(positions, target)
        amplitudes, slopes = with_falloff(falloff, amplitudes, slopes.reshape(len(amplitudes), -1), target.squared)
        data = normal_equations(amplitudes, slopes, target.observed, target.weights)
        restrained = restraint_equations(positions, target.symmetry)
        factor = RESTRAINED * norm / number
        return data._replace(
            misfit=data.misfit + factor * restrained.misfit,
            normal=data.normal.at[:-2, :-2].add(factor * restrained.normal),
            gradient=data.gradient.at[:-2].add(factor * restrained.gradient),
        )

    parameters, equations = minimise(equations_at, jnp.append(positions.ravel(), falloff), iterations)
    positions = parameters[:-2].reshape(number, 3) % 1
    misfit = equations.misfit / norm + RESTRAINED * jnp.mean(loneliness(positions, target.symmetry))
    return Placed(positions, parameters[-2:], misfit)


def phases_of(positions: Array, target: Target) -> Array:
    """Phases of the waves of all images of atoms `(atoms, 3)`: `(images, n, atoms)`."""
    return target.waves @ positions.T + target.offsets[:, :, None]


def point_amplitudes(positions: Array, target: Target) -> tuple[Array, Array]:
    """Amplitudes of points `(atoms, 3)` and their images, `(n,)`, and their derivatives `(n, atoms, 3)`."""
    cosines, sines = cosine_and_sine(phases_of(positions, target))
    real, imaginary = jnp.sum(cosines, axis=(0, 2)), jnp.sum(sines, axis=(0, 2))
    amplitudes = safe_length(real, imaginary)
    turned = (imaginary / amplitudes)[None, :, None] * cosines - (real / amplitudes)[None, :, None] * sines
    return amplitudes, jnp.sum(turned[:, :, :, None] * target.waves[:, :, None, :], axis=0)


def distances_to_images(positions: Array, others: Array, symmetry: Symmetry) -> tuple[Array, Array]:
    """Vectors, Å, to positions `(n, 3)` from all images of others `(m, 3)`: `(n, m, images, 3)`; lengths.

    Each is from the nearest of the translated ones. Those below half of the least distance between opposite faces of
    the cell are the shortest.
    """
    images = jnp.einsum('rij,mj->mri', symmetry.rotations, others) + symmetry.translations[None]
    vectors = positions[:, None, None] - images[None]
    vectors = (vectors - jnp.rint(vectors)) @ symmetry.edges.T
    return vectors, jnp.sqrt(jnp.sum(vectors**2, axis=-1) + 1e-8)


def distances_between_atoms(positions: Array, symmetry: Symmetry) -> tuple[Array, Array]:
    """The same between atoms `(n, 3)` and all images of them; the length from an atom to itself is infinite."""
    vectors, lengths = distances_to_images(positions, positions, symmetry)
    itself = jnp.eye(len(positions), dtype=bool)
    return vectors, lengths.at[:, :, 0].set(jnp.where(itself, jnp.inf, lengths[:, :, 0]))


def restraint(lengths: Array) -> tuple[Array, Array]:
    """How far distances, Å, are from those in molecules: 0 for a bond, an angle or more; and its derivative."""
    near = jnp.maximum((NO_BOND - lengths) / BOND_WIDTH, 0)
    off = (lengths - BETWEEN) / BETWEEN_WIDTH
    between = jnp.maximum(1 - off**2, 0)
    slope = jnp.where(near > 0, -1 / BOND_WIDTH, 0) + jnp.where(between > 0, -2 * off / BETWEEN_WIDTH, 0)
    return near + between, slope


def restraint_equations(positions: Array, symmetry: Symmetry) -> Equations:
    """Normal equations of half the sum of squared restraints, from each atom `(atoms, 3)` to all images of all."""
    number = len(positions)
    vectors, lengths = distances_between_atoms(positions, symmetry)
    off, slope = restraint(lengths)
    slopes = (slope / lengths)[:, :, :, None] * vectors @ symmetry.edges
    turned = -jnp.einsum('nmri,rij->nmrj', slopes, symmetry.rotations)  # by the atom whose image it is
    own = jnp.einsum('nmri,nmrj->nij', slopes, slopes) + jnp.einsum('nmri,nmrj->mij', turned, turned)
    between = jnp.einsum('nmri,nmrj->nimj', slopes, turned)
    normal = between + between.transpose(2, 3, 0, 1)
    normal = normal.at[jnp.arange(number), :, jnp.arange(number), :].add(own)
    gradient = jnp.einsum('nmr,nmri->ni', off, slopes) + jnp.einsum('nmr,nmri->mi', off, turned)
    size = 3 * number
    return Equations(
        jnp.sum(off**2) / 2, normal.reshape(size, size) / 2, gradient.ravel() / 2, jnp.zeros(0, gradient.dtype)
    )


def loneliness(positions: Array, symmetry: Symmetry) -> Array:
    """Of each atom 0 if another one is as near as a bond, 1 if none is, `(atoms,)`."""
    _, lengths = distances_between_atoms(positions, symmetry)
    return jnp.clip((jnp.min(lengths, axis=(1, 2)) - BONDED) / (ALONE - BONDED), 0, 1)


def rebuild_part(key: Array, moves: Array, given: Placed, target: Target, shape: tuple[int, int, int]) -> Placed:
    """A set after some atoms were taken out, put where they are missed, and all refined.

    Args:
        key: of the random numbers.
        moves: whether the others are moved first, all together.
        given: the set.
        target: the data.
        shape: of the grid of difference maps.
    """
    if len(target.waves) == 1:
        positions, order, size = some_to_take_out(key, given.positions, target)
    else:
        choices = moved_part, some_to_take_out
        positions, order, size = jax.lax.cond(moves, *choices, key, given.positions, target)
    positions = put_where_missed(given._replace(positions=positions), order, size, target, shape)
    return refined(positions, given.falloff, target, ALL_ITERATIONS)


def some_to_take_out(key: Array, positions: Array, target: Target) -> tuple[Array, Array, Array]:
    """Atoms at random; or, in half of the cases, one and those nearest to it.

    Returns:
        The positions as they are, `(atoms, 3)`; an order of the atoms; and how many of the first are to be taken out.
    """
    sizing, choosing, middle, kind = jax.random.split(key, 4)
    number = len(positions)
    size = jax.random.randint(sizing, (), 1, max(1, int(TAKEN_OUT * number)) + 1)
    _, lengths = distances_to_images(positions, positions, target.symmetry)
    near = jnp.min(lengths, axis=2)[jax.random.randint(middle, (), 0, number)]
    scores = jnp.where(jax.random.bernoulli(kind), near, jax.random.uniform(choosing, (number,)))
    return positions, jnp.argsort(scores), size


def moved_part(key: Array, positions: Array, target: Target) -> tuple[Array, Array, Array]:
    """Moves an atom and those nearest to it together; the others are to be taken out.

    Each atom is taken at its image that is nearest. Of random shifts, and of none, the one is taken with which the
    amplitudes of the moved atoms correlate best with the strongest E values; or, in half of the cases, the best of the
    shifts.

    Returns:
        As `some_to_take_out`; the positions are those of the images, moved.
    """
    sizing, shifting, middle, kind = jax.random.split(key, 4)
    number, symmetry = len(positions), target.symmetry
    size = jax.random.randint(sizing, (), 0, number)
    chosen = positions[jax.random.randint(middle, (), 0, number)]
    _, lengths = distances_to_images(chosen[None], positions, symmetry)
    nearest = jnp.argmin(lengths[0], axis=1)
    gathered = jnp.einsum('nij,nj->ni', symmetry.rotations[nearest], positions) + symmetry.translations[nearest]
    farthest_first = jnp.argsort(-jnp.min(lengths[0], axis=1))
    moved = jnp.ones(number, bool).at[farthest_first].set(jnp.arange(number) >= size)
    shifts = jax.random.uniform(shifting, (SHIFTS, 3)).at[0].set(0)
    scores = fit_of_shifts(shifts, gathered, moved, target)
    stays = jnp.where(jax.random.bernoulli(kind), -jnp.inf, scores[0])
    shift = shifts[jnp.argmax(scores.at[0].set(stays))]
    return gathered + shift[None], farthest_first, size


def fit_of_shifts(shifts: Array, positions: Array, moved: Array, target: Target) -> Array:
    """How well atoms that are moved together explain the strongest E values, for each shift `(shifts, 3)`.

    Args:
        shifts: in fractions of the edges.
        positions: `(atoms, 3)`.
        moved: `(atoms,)`, which atoms there are; the others are left out.
        target: the data.

    Returns:
        Σ E A / √ΣA² over these reflections, of the amplitudes A of the moved atoms and their images, `(shifts,)`.
    """
    observed, strongest = jax.lax.top_k(target.observed, min(STRONGEST, len(target.observed)))
    waves, phases = target.waves[:, strongest], phases_of(positions, target)[:, strongest]
    parts = jnp.sum(unit_waves(phases) * jnp.where(moved, 1, 0)[None, None], axis=2)
    turns = unit_waves(jnp.einsum('rni,si->srn', waves, shifts))
    amplitudes = jnp.abs(jnp.sum(parts[None] * turns, axis=1)) * jnp.where(target.weights[strongest] > 0, 1, 0)[None]
    return amplitudes @ observed / jnp.sqrt(jnp.sum(amplitudes**2, axis=1))


def unit_waves(phases: Array) -> Array:
    """exp(i phases)."""
    return jax.lax.complex(*cosine_and_sine(phases))


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
    observed, weights = target.observed, target.weights
    scale = jnp.exp(given.falloff[0] - given.falloff[1] * target.squared)
    places, turns = half_places(target.waves, shape), unit_waves(-target.offsets)
    present = jnp.ones(len(order), bool).at[order].set(jnp.arange(len(order)) >= size)

    def put(turn, state):
        positions, present, real, imaginary = state
        missed = jnp.where(weights > 0, observed / safe_length(real, imaginary) - 1, 0)
        factors = jax.lax.complex(missed * real, missed * imaginary)
        density = map_on_grid(factors[None] * turns, places, shape)
        place = best_candidate(density, positions, present, target.symmetry)
        others = real, imaginary
        place, cosine, sine = refine_alone(
            place, others, target.waves, scale, observed, weights, ALONE_ITERATIONS, target.offsets
        )
        atom = order[turn]
        return positions.at[atom].set(place % 1), present.at[atom].set(True), real + cosine, imaginary + sine

    waves = cosine_and_sine(phases_of(given.positions, target))
    real, imaginary = (scale * jnp.sum(jnp.where(present[None, None], each, 0), axis=(0, 2)) for each in waves)
    return jax.lax.fori_loop(0, size, put, (given.positions, present, real, imaginary))[0]


def best_candidate(density: Array, positions: Array, present: Array, symmetry: Symmetry) -> Array:
    """The place `(3,)` of a high peak that fits atoms `(atoms, 3)`, of which some are present, and its own images.

    The highest point of each block of 2 × 2 × 2 counts as a peak.
    """
    first, second, third = (size // 2 for size in density.shape)
    blocks = density.reshape(first, 2, second, 2, third, 2).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 8)
    heights, chosen = jax.lax.top_k(jnp.max(blocks, axis=1), min(CANDIDATES, len(blocks)))
    corner = jnp.stack(jnp.unravel_index(chosen, (first, second, third)), axis=1)
    inside = jnp.stack(jnp.unravel_index(jnp.argmax(blocks[chosen], axis=1), (2, 2, 2)), axis=1)
    places = (2 * corner + inside).astype(density.dtype) / jnp.asarray(density.shape, density.dtype)[None]
    _, lengths = distances_to_images(places, positions, symmetry)
    lengths = jnp.where(present[None, :, None], lengths, jnp.inf)
    to_itself = jax.vmap(lambda place: distances_between_atoms(place[None], symmetry)[1][0, 0])(places)
    off, _ = restraint(jnp.concatenate([lengths.reshape(len(places), -1), to_itself], axis=1))
    clashing = jnp.sum(jnp.minimum(off, MOST_CLASHING) ** 2, axis=1)
    bonding = jnp.where(jnp.any(lengths < BONDED, axis=(1, 2)), BONDING, 0)
    highest = jnp.max(heights)  # not heights[0]: XLA would sort the whole map
    scores = heights / jnp.maximum(highest, 1e-9) - CLASHING * clashing + bonding
    return places[jnp.argmax(scores)]


def half_places(waves: Array, shape: tuple[int, int, int]) -> tuple[Array, Array, Array]:
    """Where the waves and those of Friedel mates lie on the half grid of `shape`; outside of it where they do not."""
    hkl = jnp.rint(waves.reshape(-1, 3) / (2 * np.pi)).astype(jnp.int32)
    h, k, l = jnp.concatenate([hkl, -hkl]).T
    return h % shape[0], k % shape[1], jnp.where(l < 0, shape[2], l)


def map_on_grid(factors: Array, places: tuple[Array, Array, Array], shape: tuple[int, int, int]) -> Array:
    """The map with structure factors `(images, n)`, 0 where there is no reflection, on a grid of `shape`."""
    half = jnp.zeros((shape[0], shape[1], shape[2] // 2 + 1), factors.dtype)
    half = half.at[places].set(jnp.concatenate([factors.conj().ravel(), factors.ravel()]), mode='drop')
    return jnp.fft.irfftn(half, s=shape)


def placement_groups(crystal: Crystal) -> list[SpaceGroup]:
    """The groups in which atoms are placed; none if they cannot be placed.

    The crystal must be of C, N, O and F, cut at 1.05 to 1.5 Å, and have 5 to 32 atoms in P1, or 5 to 16 in the
    asymmetric unit of another group. This must have the absences of the data, beside those of the centring: see
    `groups_of_absences`. Groups with an inversion centre and mirror planes are left out: atoms of molecules lie on
    those. That a group has a centre is certain if all groups with these absences have one.
    """
    data, d_min = crystal.data, 1 / float(crystal.expanded.inverse_spacings.max())
    if not FINEST <= d_min <= COARSEST or not set(data.formula or {}) <= set(VOLUMES):
        return []
    atoms = atoms_in_cell(data, crystal.expanded.cell.volume)
    if data.laue_class == '-1':
        return [P1] if LEAST_ATOMS <= atoms <= MOST_ATOMS else []
    if atoms > MOST_BY_AXES * len(data.rotations):
        return []
    candidates = groups_of_absences(data)
    only_with_centre = all(group.has_centre for group in candidates)
    groups = []
    for group in candidates:
        size = round(atoms / len(np.unique(group.operations[0], axis=0)))
        if LEAST_ATOMS <= size <= MOST_BY_AXES and not (group.has_centre and has_mirror(group)):
            groups.append(dataclasses.replace(group, certain=only_with_centre))
    return groups


def has_mirror(group: SpaceGroup) -> bool:
    """Whether an operation of a group is a mirror plane, without a glide."""
    for rotation, translation in zip(*group.operations, strict=True):
        glide = (rotation + np.eye(3)) @ translation / 2
        if np.linalg.det(rotation) < 0 and np.trace(rotation) == 1 and np.allclose(glide, np.rint(glide)):
            return True
    return False


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
        return round(atoms / (math.ceil(DENSELY_FILLED / units) if units > 0.5 else round(1 / units)))
    return round(atoms * (round(units) if units > LOOSELY_FILLED else 1))


def placed_maps(crystal: Crystal, groups: list[SpaceGroup], key: Array) -> Iterator[PhasedMap]:
    """Places atoms again and again, each time from other random places, and yields the maps with their phases.

    Args:
        crystal: from `prepare_crystal`.
        groups: from `placement_groups`, one or more; each start takes the next of them.
        key: fixes the starts; start i depends on the key and on i alone.
    """
    expanded = crystal.expanded
    targets = [target_of_crystal(crystal, group) for group in groups]
    shape, in_cell = placement_grid(expanded.hkl), atoms_in_cell(crystal.data, expanded.cell.volume)
    for start in itertools.count():
        target = targets[start % len(targets)]
        number = round(in_cell / len(target.waves))
        placed = place_atoms(jax.random.fold_in(key, start), target, number, shape)
        rotations, translations, _ = map(np.asarray, target.symmetry)
        images = np.einsum('rij,nj->nri', rotations, np.asarray(placed.positions)) + translations
        group = groups[start % len(groups)]
        explained = bool(placed.misfit <= (EXPLAINED_WITH_CENTRE if group.has_centre else EXPLAINED))
        yield map_of_atoms(crystal, images.reshape(-1, 3), group, explained, start)


def target_of_crystal(crystal: Crystal, group: SpaceGroup) -> Target:
    """The unique reflections of a crystal, and the operations of a group, in the primitive cell."""
    expanded = crystal.expanded
    rotations, translations = group.operations
    _, kept = np.unique(rotations, axis=0, return_index=True)  # the others are the same with the centring
    rotations, translations = rotations[kept], translations[kept]
    inverse = np.linalg.inv(expanded.basis)
    rotations, translations = inverse @ rotations @ expanded.basis, translations @ inverse.T
    first = np.argsort([not np.allclose(each, np.eye(3)) for each in rotations], kind='stable')
    rows = np.sort(np.unique(expanded.source, return_index=True)[1])
    hkl, normalised = expanded.hkl[rows], crystal.normalised[rows]
    return prepare_target(hkl, normalised, expanded.cell, np.rint(rotations[first]), translations[first])


def map_of_atoms(
    crystal: Crystal, positions: np.ndarray, placed_in: SpaceGroup, explained: bool, start: int
) -> PhasedMap:
    """The map with the phases of equal atoms in P1, `(atoms, 3)`, and its space group.

    Args:
        crystal: from `prepare_crystal`.
        positions: of all images.
        placed_in: the group of the atoms. If that has a centre which is not certain, no group with one is: that the
            phases obey it tells nothing.
        explained: see `PhasedMap`.
        start: likewise.
    """
    expanded = crystal.expanded
    waves = np.exp(2j * np.pi * (expanded.hkl @ positions.T))
    own = phased_reflections(crystal, waves.sum(axis=1))
    found = spacegroup.find_space_group(expanded, own, crystal.data.rotations)
    mean, _, _ = spacegroup.averaged(expanded, own, found.space_group, found.frame.origin)
    _, _, disagreement, obeyed = complete(crystal, own, found.frame)  # its phases are no better than the atoms'
    if placed_in.has_centre and not placed_in.certain:
        found, obeyed = found._replace(space_group=dataclasses.replace(found.space_group, certain=False)), 0.0
    return PhasedMap(found, mean, own, 0.0, disagreement, obeyed, start, cycles=0, learned=False, explained=explained)
