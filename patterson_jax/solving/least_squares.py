"""Least squares: positions of atoms from amplitudes |F(h)|, by Levenberg and Marquardt's method, coarse to fine.

At low |h| the misfit has few false minima, at high |h| positions are precise. So a set of atoms is refined against
reflections up to a first resolution, then up to higher ones, with the transform of a sphere for each atom; and finished
against all of them with the transform of the voxels that the sphere fills, which is exact. From random starts this is a
solver of its own. Between them an atom that explains nothing is put where the difference map is highest.

Reflections are weighted by 1 / (Fo² + ⟨Fo²⟩), which suits errors in proportion to |F|; free ones have weight 0.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from patterson_jax.precision import exact_products
from patterson_jax.simulation.patterson import atom_factors, read_only, sphere_factor
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.atom_sets import compact
from patterson_jax.solving.reflections import (
    count_within,
    free_reflections,
    highest_resolution,
    r_factor,
    reflections,
    scale_factor,
)

FIRST_WAVE = 0.92  # first resolution, in waves across the inner box
LEAST_DATA = 2.0  # reflections within the first resolution for each atom, at least
REFINEMENT = 1.6  # each resolution is so many times the one before
NUM_STAGES = 3
ITERATIONS = (20, 20, 15)  # of the stages
MAP_WAVE, MAP_ITERATIONS = 4.0, 20  # voxels: shortest wave against which a set from a map is first refined
REPAIR_ITERATIONS = 6
FINISH_ITERATIONS = (6, 4)  # at half the resolution and at all of it
FALLOFF_ITERATIONS = 6
FIRST_DAMPING, EASED, TIGHTENED = 1e-2, 0.4, 4.0


class Stage(NamedTuple):
    """A part of a refinement: the |h| up to which reflections are used, and how many steps are tried."""

    resolution: float
    iterations: int


class Refined(NamedTuple):
    """A set of atoms after refinement.

    Attributes:
        positions: `(num_atoms, 3)`, voxels from the box centre.
        misfit: weighted squared error of the amplitudes over their weighted square.
    """

    positions: Array
    misfit: Array


class Finished(NamedTuple):
    """A set of atoms finished against all reflections.

    Attributes:
        positions: `(num_atoms, 3)`, voxels from the box centre.
        r_factor: R1 over the reflections that were used.
        r_free: R1 over the free ones.
    """

    positions: Array
    r_factor: Array
    r_free: Array


def stages_from_random(problem: Problem) -> list[Stage]:
    """From random positions: coarse to fine; a stage that adds no reflections is left out."""
    highest = highest_resolution(problem)
    first = FIRST_WAVE * problem.grid_size / problem.box_edge
    while count_within(problem, first) < LEAST_DATA * problem.num_atoms and first < highest:
        first *= 1.05
    resolutions = [min(first * REFINEMENT**stage, highest) for stage in range(NUM_STAGES)]
    different = {count_within(problem, each): each for each in resolutions}.values()
    return list(map(Stage, different, ITERATIONS))


def stages_from_map(problem: Problem) -> list[Stage]:
    """From the peaks of a map, which are nearly right: a coarse stage would lead away from them where data are poor."""
    return [Stage(min(problem.grid_size / MAP_WAVE, highest_resolution(problem)), MAP_ITERATIONS)]


def random_positions(key: Array, problem: Problem) -> Array:
    """A random start, `(num_atoms, 3)`, uniform in the inner box; atoms may overlap."""
    half = problem.box_edge / 2
    return jax.random.uniform(key, (problem.num_atoms, 3), jnp.float32, -half, half)


@exact_products
def refine(positions: Array, observed: Array, problem: Problem, stages: Sequence[Stage]) -> Refined:
    """Refines `(num_atoms, 3)` against amplitudes `(num_reflections,)` on the absolute scale, in one stage or more."""
    for resolution, iterations in stages:
        count = count_within(problem, resolution)
        model = functools.partial(sphere_amplitudes, chosen=reflections(problem)[:count], problem=problem)
        positions, misfit = minimise(model, positions, observed, problem, count, iterations)
    return Refined(compact(positions, problem.grid_size), misfit)


def minimise(
    model: Callable[[Array], tuple[Array, Array]],
    positions: Array,
    observed: Array,
    problem: Problem,
    count: int,
    iterations: int,
) -> Refined:
    """Levenberg and Marquardt's method on the first `count` reflections.

    Args:
        model: from positions to amplitudes `(count,)` and their derivatives `(count, num_atoms, 3)`.
        positions: `(num_atoms, 3)`, where to begin; or other parameters of the model, of any shape.
        observed: amplitudes, `(num_reflections,)`.
        problem: tells which reflections are free.
        count: how many reflections to use.
        iterations: steps tried; one that raises the misfit is not taken.
    """
    observed = observed[:count]
    weights = refinement_weights(observed, free_reflections(problem)[:count])

    def normal_equations(positions):
        amplitudes, slopes = model(positions)
        slopes = weights[:, None] * slopes.reshape(count, -1)
        errors = weights * (amplitudes - observed)
        return jnp.sum(errors**2), slopes.T @ slopes, slopes.T @ errors

    def iterate(state, _):
        positions, damping, (cost, normal, gradient) = state
        diagonal = jnp.diag(normal)
        diagonal = diagonal + 1e-6 * jnp.max(diagonal)
        factor = jnp.linalg.cholesky(normal + jnp.diag(damping * diagonal))
        step = jax.scipy.linalg.cho_solve((factor, True), -gradient).reshape(positions.shape)
        trial = positions + step
        equations = normal_equations(trial)
        better = equations[0] < cost  # False if the trial is not a number
        kept = jax.tree.map(
            lambda new, old: jnp.where(better, new, old), (trial, equations), (positions, (cost, normal, gradient))
        )
        return (kept[0], damping * jnp.where(better, EASED, TIGHTENED), kept[1]), None

    # The first step goes nowhere and is taken: so the model is compiled once only.
    nowhere = jnp.eye(positions.size, dtype=positions.dtype), jnp.zeros(positions.size, positions.dtype)
    worst = jnp.asarray(jnp.inf, positions.dtype)
    start = positions, jnp.asarray(FIRST_DAMPING / EASED, positions.dtype), (worst, *nowhere)
    (positions, _, (cost, _, _)), _ = jax.lax.scan(iterate, start, length=1 + iterations)
    return Refined(positions, cost / jnp.sum((weights * observed) ** 2))


def refinement_weights(observed: Array, free: np.ndarray) -> Array:
    """Square roots of the weights of reflections, `(count,)`."""
    return jnp.where(free, 0, 1 / jnp.sqrt(observed**2 + jnp.mean(observed**2)))


def sphere_amplitudes(positions: Array, chosen: np.ndarray, problem: Problem) -> tuple[Array, Array]:
    """Amplitudes of isolated spheres `(count,)` and their derivatives `(count, num_atoms, 3)`."""
    factor = jnp.asarray(sphere_factor(chosen, problem), positions.dtype)
    waves = jnp.asarray(2 * np.pi / problem.grid_size * chosen, positions.dtype)
    cosines, sines, real, imaginary = sphere_parts(positions, factor, waves)
    amplitudes = safe_length(real, imaginary)
    turned = (imaginary / amplitudes * factor)[:, None] * cosines - (real / amplitudes * factor)[:, None] * sines
    return amplitudes, turned[:, :, None] * waves[:, None, :]


def sphere_parts(positions: Array, factor: Array, waves: Array) -> tuple[Array, Array, Array, Array]:
    """cos and sin of each atom's phase, `(count, num_atoms)`; real and negative imaginary part of F, `(count,)`."""
    phases = jnp.sum(waves[:, None, :] * positions[None], axis=-1)
    cosines, sines = jnp.cos(phases), jnp.sin(phases)
    return cosines, sines, factor * jnp.sum(cosines, axis=1), factor * jnp.sum(sines, axis=1)


def safe_length(real: Array, imaginary: Array) -> Array:
    """√(real² + imaginary²), never 0, so that its derivative is finite."""
    return jnp.sqrt(real**2 + imaginary**2 + 1e-6)


@exact_products
def repair(positions: Array, observed: Array, problem: Problem, rounds: int, resolution: float) -> Refined:
    """Several times moves the atom that explains least to the highest peak of the difference map, and refines.

    A round that does not lower the misfit changes nothing, and the next one tries the atom that explains next to least.

    Args:
        positions: `(num_atoms, 3)`.
        observed: amplitudes `(num_reflections,)` on the absolute scale.
        problem: what the atoms are.
        rounds: how many moves to try.
        resolution: the |h| up to which reflections are used.
    """
    count = count_within(problem, resolution)
    chosen = reflections(problem)[:count]
    model = functools.partial(sphere_amplitudes, chosen=chosen, problem=problem)
    improve = functools.partial(minimise, model, observed=observed, problem=problem, count=count)

    def attempt(state, _):
        refined, rank = state
        moved = move_worst_atom(refined.positions, rank, observed[:count], chosen, problem)
        trial = improve(moved, iterations=REPAIR_ITERATIONS)
        better = trial.misfit < refined.misfit
        refined = jax.tree.map(lambda new, old: jnp.where(better, new, old), trial, refined)
        return (refined, jnp.where(better, 0, (rank + 1) % problem.num_atoms)), None

    start = improve(positions, iterations=REPAIR_ITERATIONS), jnp.zeros((), jnp.int32)
    (refined, _), _ = jax.lax.scan(attempt, start, length=rounds)
    return Refined(compact(refined.positions, problem.grid_size), refined.misfit)


def move_worst_atom(positions: Array, rank: Array, observed: Array, chosen: np.ndarray, problem: Problem) -> Array:
    """Takes out the atom without which the misfit is lowest, or `rank` places from it, and puts it where it is missed.

    That is the highest point, within the reach of the inner box, of the difference map with coefficients Fo − |Fc| and
    the phases of the atoms that are left.
    """
    factor = jnp.asarray(sphere_factor(chosen, problem), positions.dtype)
    waves = jnp.asarray(2 * np.pi / problem.grid_size * chosen, positions.dtype)
    weights = refinement_weights(observed, free_reflections(problem)[: len(chosen)])
    cosines, sines, real, imaginary = sphere_parts(positions, factor, waves)
    reals = real[:, None] - factor[:, None] * cosines
    imaginaries = imaginary[:, None] - factor[:, None] * sines
    misfits = jnp.sum((weights[:, None] * (safe_length(reals, imaginaries) - observed[:, None])) ** 2, axis=0)
    worst = jnp.argsort(misfits)[rank]
    left_real, left_imaginary = reals[:, worst], imaginaries[:, worst]
    missed = jnp.where(weights > 0, observed / safe_length(left_real, left_imaginary) - 1, 0)
    coefficients = jax.lax.complex(missed * left_real, -missed * left_imaginary)
    return positions.at[worst].set(highest_point(coefficients, chosen, problem))


def highest_point(coefficients: Array, chosen: np.ndarray, problem: Problem) -> Array:
    """Where a map with Fourier coefficients `(count,)` at the reflections `chosen` is highest, `(3,)`.

    The map is sampled at a third of the shortest wave, where centred atoms of the inner box can be.
    """
    table, opposite, points, near = _difference_grid(chosen.tobytes(), problem)
    padded = jnp.append(coefficients, 0)[table]
    padded = jnp.where(opposite, padded.conj(), padded)
    values = jnp.fft.irfftn(padded, s=(len(table),) * 3).ravel()
    return jnp.asarray(points, jnp.float32)[jnp.argmax(jnp.where(near, values, -jnp.inf))]


@functools.lru_cache
def _difference_grid(chosen_bytes, problem):
    """For each frequency of a coarse half space the number of its reflection, and whether it is the opposite of it.

    Then the positions of the coarse voxels, and which of them to look at.
    """
    chosen = np.frombuffer(chosen_bytes, int).reshape(-1, 3)
    size = max(3 * int(np.max(np.abs(chosen))), 8)
    size += size % 2
    table = np.full((size, size, size // 2 + 1), len(chosen))
    opposite = np.zeros(table.shape, bool)
    for sign in (1, -1):
        x, y, z = sign * chosen.T
        inside = z >= 0
        place = (x[inside] % size, y[inside] % size, z[inside])
        table[place] = np.flatnonzero(inside)
        opposite[place] = sign < 0
    axis = (np.arange(size) * problem.grid_size / size + problem.grid_size / 2) % problem.grid_size
    axis = axis - problem.grid_size / 2
    points = np.stack(np.meshgrid(axis, axis, axis, indexing='ij'), axis=-1).reshape(-1, 3)
    near = np.all(np.abs(points) <= 0.75 * problem.box_edge + problem.atom_radius, axis=-1)
    return tuple(map(read_only, (table, opposite, points, near)))


@exact_products
def finish(positions: Array, observed: Array, problem: Problem) -> Finished:
    """Refines against all reflections with the exact transform of the voxels that spheres fill.

    The positions matter then to a part of a voxel, not only the vectors between them. Amplitudes that come from no
    voxels are explained better by isolated spheres, refined at half the resolution; the lower R1 decides. Atoms of
    another size or shape differ, nearly, by a scale and a fall-off with |h|, which are refined with the positions.

    Args:
        positions: `(num_atoms, 3)`, voxels from the box centre, refined before.
        observed: amplitudes `(num_reflections,)` on the absolute scale.
        problem: what the atoms are.
    """
    highest = highest_resolution(problem)
    half = max(
        highest / 2, stages_from_random(problem)[-1].resolution
    )  # with less than the stages had, noise would lead astray
    stages = tuple(zip((half, highest), FINISH_ITERATIONS, strict=True))
    voxels = _finish_with(voxel_amplitudes, positions, observed, problem, stages)
    spheres = _finish_with(sphere_amplitudes, positions, observed, problem, stages[:1])
    better = voxels.r_factor < spheres.r_factor
    return jax.tree.map(lambda new, old: jnp.where(better, new, old), voxels, spheres)


def _finish_with(amplitudes_of, positions, observed, problem, stages):
    chosen, free = reflections(problem), free_reflections(problem)
    parameters = jnp.append(positions.ravel(), jnp.zeros(2, positions.dtype))
    for resolution, iterations in stages:
        count = count_within(problem, resolution)

        def model(parameters, used=chosen[:count]):
            amplitudes, slopes = amplitudes_of(parameters[:-2].reshape(positions.shape), used, problem)
            return with_falloff(parameters[-2:], amplitudes, slopes.reshape(len(used), -1), used, problem)

        parameters = minimise(model, parameters, observed, problem, count, iterations).positions
    positions = parameters[:-2].reshape(positions.shape)
    calculated = amplitudes_of(positions, chosen, problem)[0]

    def scaled(falloff):
        return with_falloff(falloff, calculated, jnp.zeros((len(chosen), 0), calculated.dtype), chosen, problem)

    falloff = minimise(scaled, parameters[-2:], observed, problem, len(chosen), FALLOFF_ITERATIONS).positions
    calculated = scaled(falloff)[0]
    scale = scale_factor(observed[~free], calculated[~free])
    return Finished(positions, *(r_factor(observed[each], calculated[each], scale) for each in (~free, free)))


def with_falloff(
    falloff: Array, amplitudes: Array, slopes: Array, chosen: np.ndarray, problem: Problem
) -> tuple[Array, Array]:
    """Amplitudes multiplied by exp(k − B (|h| / grid)²), and their derivatives.

    Args:
        falloff: k and B, `(2,)`, B in voxels².
        amplitudes: `(count,)`.
        slopes: their derivatives with respect to other parameters, `(count, num_parameters)`.
        chosen: frequencies `(count, 3)`.
        problem: tells the grid.

    Returns:
        The amplitudes and their derivatives `(count, num_parameters + 2)`, the last two with respect to k and B.
    """
    squared = jnp.asarray(np.sum((chosen / problem.grid_size) ** 2, axis=-1), amplitudes.dtype)
    factor = jnp.exp(falloff[0] - falloff[1] * squared)
    amplitudes = factor * amplitudes
    own = jnp.stack([amplitudes, -squared * amplitudes], axis=-1)
    return amplitudes, jnp.concatenate([factor[:, None] * slopes, own], axis=-1)


def voxel_amplitudes(positions: Array, chosen: np.ndarray, problem: Problem) -> tuple[Array, Array]:
    """Amplitudes of spheres rendered to voxels `(count,)` and their derivatives `(count, num_atoms, 3)`."""

    def factors_of(position):
        return atom_factors(position, chosen, problem.grid_size, problem.atom_radius)

    def with_slopes(position):
        factors, slope_along = jax.linearize(factors_of, position)
        return factors, jax.vmap(slope_along, out_axes=-1)(jnp.eye(3, dtype=position.dtype))

    factors, slopes = jax.vmap(with_slopes)(positions)  # (num_atoms, count), (num_atoms, count, 3)
    total = jnp.sum(factors, axis=0)
    amplitudes = safe_length(total.real, total.imag)
    cosine, sine = (part[None, :, None] / amplitudes[None, :, None] for part in (total.real, total.imag))
    turned = cosine * slopes.real + sine * slopes.imag
    return amplitudes, jnp.moveaxis(turned, 0, 1)
