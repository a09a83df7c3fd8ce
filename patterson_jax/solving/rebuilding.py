"""A set of atoms rebuilt in part, again and again: atoms are taken out at random and put where they are missed.

This is ruin and recreate (Schrimpf et al., J. Comput. Phys. 159, 139, 2000). Taking out atoms at random frees the
phases from those that are wrong, as in the random omit maps of direct methods (Schneider and Sheldrick, Acta Cryst.
D58, 1772, 2002). Each goes to the highest point of the difference map of the atoms that are there, and is refined
alone; then all are refined. What has a lower misfit is kept.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from patterson_jax.precision import exact_products
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.atom_sets import compact, taken_places
from patterson_jax.solving.least_squares import (
    ITERATIONS,
    MAP_WAVE,
    REFINEMENT,
    Refined,
    first_resolution,
    minimise_spheres,
    refine_alone,
    refinement_weights,
    safe_length,
    sphere_parts,
    waves_of,
)
from patterson_jax.solving.reflections import Measured

TAKEN_OUT = 2  # one atom in so many, at most
PATIENCE, LEAST_PATIENCE = 2, 20  # trials without success before the set is left: for each atom, and at least
MOST_TRIALS = 3  # so many times as many
ALONE_ITERATIONS = 3  # of an atom that is put in, the others as they are
ALL_ITERATIONS = 2
CLEARLY_LOWER = 0.999  # a misfit below this part of the best is a success


class _Trials(NamedTuple):
    """The best set so far, how many trials were made, and how many since it was found."""

    best: Refined
    number: Array
    idle: Array


@exact_products
def rebuild(key: Array, positions: Array, measured: Measured, problem: Problem) -> Array:
    """The set with the lowest misfit that is found by rebuilding parts of a set, `(places, 3)`.

    Args:
        key: of the random numbers.
        positions: `(places, 3)`, refined before.
        measured: the data; no reflections beyond `difference_limit` are used.
        problem: what the atoms are.
    """
    held = measured.reflections
    count = held.count_within(difference_limit(problem) ** 2)
    num_atoms = jnp.asarray(measured.num_atoms)
    most = (num_atoms + TAKEN_OUT - 1) // TAKEN_OUT
    patience = jnp.maximum(PATIENCE * num_atoms, LEAST_PATIENCE)

    def goes_on(state):
        return (state.number < MOST_TRIALS * patience) & (state.idle < patience)

    def trial(state):
        taking, choosing = jax.random.split(jax.random.fold_in(key, state.number))
        size = jax.random.randint(taking, (), 1, most + 1)
        scores = jax.random.uniform(choosing, positions.shape[:1])
        order = jnp.argsort(jnp.where(taken_places(positions, num_atoms), scores, jnp.inf))
        begin = put_where_missed(state.best.positions, order, size, measured, count, problem)
        rebuilt = minimise_spheres(begin, measured, count, ALL_ITERATIONS)
        better = rebuilt.misfit < state.best.misfit
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), rebuilt, state.best)
        clearly = rebuilt.misfit < CLEARLY_LOWER * state.best.misfit
        return _Trials(best, state.number + 1, jnp.where(clearly, 0, state.idle + 1))

    start = minimise_spheres(positions, measured, count, 0)
    best, _, _ = jax.lax.while_loop(goes_on, trial, _Trials(start, jnp.int32(0), jnp.int32(0)))
    return compact(best.positions, held.grid_size, num_atoms)


def difference_limit(problem: Problem) -> int:
    """The |h|, a whole number, up to which difference maps are made: where sets from maps are refined, or beyond."""
    last = first_resolution(problem) * REFINEMENT ** (len(ITERATIONS) - 1)
    return min(math.ceil(max(problem.grid_size / MAP_WAVE, last)), problem.grid_size // 2)


def put_where_missed(
    positions: Array, order: Array, number: ArrayLike, measured: Measured, count: ArrayLike, problem: Problem
) -> Array:
    """Takes out the first atoms of an order, and puts each, one after the other, where the atoms so far miss it.

    That is the highest point, within the reach of the inner box, of the difference map with coefficients Fo − |Fc| and
    the phases of the atoms that are there. There it is refined alone.

    Args:
        positions: `(places, 3)`.
        order: `(places,)`, numbers of places.
        number: how many of them are taken out.
        measured: the data.
        count: how many reflections to use, the first ones; none beyond `difference_limit` is.
        problem: what the atoms are.
    """
    held, limit = measured.reflections, difference_limit(problem)
    hkl = held.within(limit)
    form_factors, observed = jnp.asarray(held.form_factors)[: len(hkl)], measured.observed[: len(hkl)]
    weights, waves = refinement_weights(measured, count)[: len(hkl)], waves_of(hkl, held.grid_size)
    cosines, sines, real, imaginary = sphere_parts(positions, form_factors, waves, measured.num_atoms)
    out = jnp.zeros_like(positions[:, 0]).at[order].set(jnp.where(jnp.arange(len(positions)) < number, 1.0, 0.0))

    def put(turn, state):
        positions, real, imaginary = state
        missed = jnp.where(weights > 0, observed / safe_length(real, imaginary) - 1, 0)
        place = highest_point(jax.lax.complex(missed * real, -missed * imaginary), hkl, limit, problem)

        place, cosine, sine = refine_alone(
            place, (real, imaginary), waves[None], form_factors, observed, weights, ALONE_ITERATIONS
        )
        return positions.at[order[turn]].set(place), real + cosine, imaginary + sine

    left = real - form_factors * (cosines @ out), imaginary - form_factors * (sines @ out)
    return jax.lax.fori_loop(0, number, put, (positions, *left))[0]


def highest_point(coefficients: Array, hkl: Array, limit: int, problem: Problem) -> Array:
    """Where a map with Fourier coefficients `(count,)` is highest, `(3,)`, voxels from the box centre.

    The map is sampled at a third of the shortest wave, where centred atoms of the inner box can be.

    Args:
        coefficients: of reflections, one of each Friedel pair; 0 where there is none.
        hkl: `(count, 3)`.
        limit: a whole number that no |h| with a coefficient is above.
        problem: tells the cell and the inner box.
    """
    size = max(3 * limit, 8)
    size += size % 2
    both, values = jnp.concatenate([hkl, -hkl]), jnp.concatenate([coefficients, coefficients.conj()])
    h, k, l = both.T
    outside = 2 * size  # dropped
    half = jnp.zeros((size, size, size // 2 + 1), coefficients.dtype)
    half = half.at[h % size, k % size, jnp.where(l < 0, outside, l)].add(values, mode='drop')
    density = jnp.fft.irfftn(half, s=(size,) * 3)
    axis = (np.arange(size) * problem.grid_size / size + problem.grid_size / 2) % problem.grid_size
    axis = (axis - problem.grid_size / 2).astype(np.float32)
    near = np.abs(axis) <= 0.75 * problem.box_edge + problem.atom_radius
    density = jnp.where(near[:, None, None] & near[None, :, None] & near[None, None, :], density, -jnp.inf)
    rows = density.reshape(size * size, size)
    row = jnp.argmax(jnp.max(rows, axis=1))  # XLA takes far longer to tell where all are highest than how high
    return jnp.asarray(axis)[jnp.stack([row // size, row % size, jnp.argmax(rows[row])])]
