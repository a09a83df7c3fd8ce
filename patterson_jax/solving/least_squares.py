"""Least squares: positions of atoms from amplitudes |F(h)|, by Levenberg and Marquardt's method, coarse to fine.

At low |h| the misfit has few false minima, at high |h| positions are precise. So a set of atoms is refined against
reflections up to a first resolution, then up to higher ones, with the transform of a sphere for each atom; and finished
against all of them with the transform of the voxels that the sphere fills, which is exact. From random starts this is a
solver of its own. Between them a set can be rebuilt in part (`rebuilding`).

Reflections are weighted by 1 / (Fo² + ⟨Fo²⟩), which suits errors in proportion to |F|; free ones have weight 0. Normal
equations are summed over chunks of reflections, as many as there are, so that one program serves every resolution.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from patterson_jax.crystal.waves import cosine_and_sine
from patterson_jax.precision import exact_products
from patterson_jax.simulation.patterson import atom_factors_and_slopes
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.atom_sets import compact, taken_places
from patterson_jax.solving.reflections import CHUNK, Measured, Reflections, r_factor, scale_factor

FIRST_WAVE = 0.92  # first resolution, in waves across the inner box
LEAST_DATA = 2  # reflections within the first resolution for each atom, at least
REFINEMENT = 1.6  # each resolution is so many times the one before
ITERATIONS = (20, 20, 15)  # of the stages from random positions
MAP_WAVE, MAP_ITERATIONS = 4.0, 20  # voxels: shortest wave against which a set from a map is first refined
FINISH_ITERATIONS = (6, 4)  # with spheres and with voxels
FALLOFF_ITERATIONS = 6
FIRST_DAMPING, EASED, TIGHTENED = 1e-2, 0.4, 4.0


class Stages(NamedTuple):
    """Parts of a refinement, along an axis: how many reflections are used, and how many steps are tried.

    A part with as many reflections as the one before has no steps.
    """

    counts: Array
    iterations: Array


class Refined(NamedTuple):
    """A set of atoms after refinement.

    Attributes:
        positions: `(places, 3)`, voxels from the box centre.
        misfit: weighted squared error of the amplitudes over their weighted square.
    """

    positions: Array
    misfit: Array


class Finished(NamedTuple):
    """A set of atoms finished against all reflections.

    Attributes:
        positions: `(places, 3)`, voxels from the box centre.
        r_factor: R1 over the reflections that were used.
        r_free: R1 over the free ones.
    """

    positions: Array
    r_factor: Array
    r_free: Array


class Equations(NamedTuple):
    """Normal equations at some parameters.

    Attributes:
        misfit: weighted squared error.
        normal: `(num_parameters, num_parameters)`.
        gradient: `(num_parameters,)`, half of the misfit's.
        amplitudes: of the model, `(count,)`, where they are kept.
    """

    misfit: Array
    normal: Array
    gradient: Array
    amplitudes: Array


def stages_from_random(measured: Measured, problem: Problem) -> Stages:
    """From random positions: coarse to fine, the first with two reflections for each atom or more."""
    held = measured.reflections
    needed = jnp.clip(LEAST_DATA * jnp.asarray(measured.num_atoms), 1, held.number)
    first = jnp.maximum(first_resolution(problem) ** 2, held.squared_lengths[needed - 1].astype(jnp.float32))
    squared = first * (REFINEMENT ** (2 * np.arange(len(ITERATIONS)))).astype(np.float32)
    return Stages(jax.vmap(held.count_within)(squared), jnp.asarray(ITERATIONS))


def first_resolution(problem: Problem) -> float:
    """The |h| up to which reflections are used first from random positions."""
    return FIRST_WAVE * problem.grid_size / problem.box_edge


def stages_from_map(measured: Measured, problem: Problem) -> Stages:
    """From the peaks of a map, which are nearly right: a coarse stage would lead away from them where data are poor."""
    count = measured.reflections.count_within((problem.grid_size / MAP_WAVE) ** 2)
    return Stages(jnp.stack([count, count]), jnp.asarray([MAP_ITERATIONS, 0]))


def random_positions(key: Array, problem: Problem) -> Array:
    """A random start, `(num_atoms, 3)`, uniform in the inner box; atoms may overlap."""
    half = problem.box_edge / 2
    return jax.random.uniform(key, (problem.num_atoms, 3), jnp.float32, -half, half)


@exact_products
def refine(positions: Array, measured: Measured, stages: Stages) -> Refined:
    """Refines `(places, 3)` against the amplitudes, in one stage or more."""

    def through(refined, stage):
        count, iterations = stage
        return minimise_spheres(refined.positions, measured, count, iterations), None

    counts, iterations = stages
    iterations = jnp.where(jnp.append(True, counts[1:] != counts[:-1]), iterations, 0)
    start = Refined(positions, jnp.asarray(jnp.inf, positions.dtype))
    refined, _ = jax.lax.scan(through, start, (counts, iterations))
    return _compact(refined, measured)


def _compact(refined, measured):
    positions = compact(refined.positions, measured.reflections.grid_size, measured.num_atoms)
    return Refined(positions, refined.misfit)


def minimise_spheres(positions: Array, measured: Measured, count: ArrayLike, iterations: ArrayLike) -> Refined:
    """`minimise` of positions `(places, 3)` of isolated spheres, on the first `count` reflections."""

    model = functools.partial(_flat_spheres, measured)
    parameters, equations = minimise(_in_chunks(model, measured, count), positions.ravel(), iterations)
    norm = jnp.sum((refinement_weights(measured, count) * measured.observed) ** 2)
    return Refined(parameters.reshape(positions.shape), equations.misfit / norm)


def _flat_spheres(measured, parameters, hkl, form_factors):
    """`sphere_amplitudes` of coordinates `(3 · places,)`, and their derivatives `(count, 3 · places)`."""
    positions, grid_size = parameters.reshape(-1, 3), measured.reflections.grid_size
    amplitudes, slopes = sphere_amplitudes(positions, hkl, form_factors, measured.num_atoms, grid_size)
    return amplitudes, slopes.reshape(len(amplitudes), -1)


def minimise(
    equations_at: Callable[[Array], Equations], parameters: Array, iterations: ArrayLike, kept: int = 0
) -> tuple[Array, Equations]:
    """Levenberg and Marquardt's method.

    Args:
        equations_at: from parameters to their normal equations.
        parameters: `(num_parameters,)`, where to begin.
        iterations: steps tried; one that raises the misfit is not taken.
        kept: how many amplitudes the equations keep.

    Returns:
        The parameters that were reached, and the equations there.
    """

    def iterate(_, state):
        parameters, damping, equations = state
        diagonal = jnp.diag(equations.normal)
        diagonal = diagonal + 1e-6 * jnp.max(diagonal)  # a place that is not taken has zeros
        factor = jnp.linalg.cholesky(equations.normal + jnp.diag(damping * diagonal))
        trial = parameters + jax.scipy.linalg.cho_solve((factor, True), -equations.gradient)
        there = equations_at(trial)
        better = there.misfit < equations.misfit  # False if the trial is not a number
        reached = jax.tree.map(lambda new, old: jnp.where(better, new, old), (trial, there), (parameters, equations))
        return reached[0], damping * jnp.where(better, EASED, TIGHTENED), reached[1]

    # The first step goes nowhere and is taken: so the model is compiled once only.
    nowhere = _nothing(parameters, kept)._replace(
        misfit=jnp.asarray(jnp.inf, parameters.dtype), normal=jnp.eye(len(parameters), dtype=parameters.dtype)
    )
    start = parameters, jnp.asarray(FIRST_DAMPING / EASED, parameters.dtype), nowhere
    parameters, _, equations = jax.lax.fori_loop(0, 1 + jnp.asarray(iterations), iterate, start)
    return parameters, equations


def refinement_weights(measured: Measured, count: ArrayLike) -> Array:
    """Square roots of the weights of reflections, `(length,)`; those after the first `count` have none."""
    used = jnp.arange(len(measured.observed)) < count
    squares = jnp.where(used, measured.observed**2, 0)
    mean = jnp.sum(squares) / jnp.asarray(count, squares.dtype)
    return jnp.where(used & ~measured.reflections.free, 1 / jnp.sqrt(squares + mean), 0)


def normal_equations(amplitudes: Array, slopes: Array, observed: Array, weights: Array) -> Equations:
    """Normal equations of some reflections, the amplitudes left out."""
    slopes, errors = weights[:, None] * slopes, weights * (amplitudes - observed)
    return Equations(jnp.sum(errors**2), slopes.T @ slopes, slopes.T @ errors, jnp.zeros(0, errors.dtype))


def refine_alone(
    place: Array,
    others: tuple[Array, Array],
    waves: Array,
    form_factors: Array,
    observed: Array,
    weights: Array,
    iterations: ArrayLike,
    offsets: ArrayLike = 0.0,
) -> tuple[Array, Array, Array]:
    """Refines one atom and its images, the others as they are.

    Args:
        place: `(3,)`, where it is.
        others: real and negative imaginary part of their structure factors, each `(count,)`.
        waves: `(images, count, 3)`, phases of reflections for each unit along the axes.
        form_factors: of the atom, `(count,)`.
        observed: amplitudes, `(count,)`.
        weights: square roots of the weights, `(count,)`.
        iterations: steps tried.
        offsets: phases of the images of an atom at the origin, `(images, count)`; 0 for the atom alone.

    Returns:
        Where it is then, and both parts of its own structure factors.
    """
    real, imaginary = others

    def images(place):
        cosines, sines = cosine_and_sine(waves @ place + offsets)
        return form_factors[None] * cosines, form_factors[None] * sines

    def equations_at(place):
        cosines, sines = images(place)
        total_real, total_imaginary = real + cosines.sum(axis=0), imaginary + sines.sum(axis=0)
        amplitudes = safe_length(total_real, total_imaginary)
        turned = (total_imaginary[None] * cosines - total_real[None] * sines) / amplitudes[None]
        return normal_equations(amplitudes, jnp.sum(turned[:, :, None] * waves, axis=0), observed, weights)

    place, _ = minimise(equations_at, place, iterations)
    cosines, sines = images(place)
    return place, cosines.sum(axis=0), sines.sum(axis=0)


def _nothing(parameters, kept=0):
    """Normal equations of no reflections, with `kept` amplitudes."""
    size = len(parameters)
    return Equations(*(jnp.zeros(shape, parameters.dtype) for shape in ((), (size, size), (size,), (kept,))))


def _in_chunks(model, measured, count):
    """Normal equations of the first `count` reflections, for a model that takes parameters, hkl and form factors."""
    held, weights = measured.reflections, refinement_weights(measured, count)
    arrays = held.hkl, held.form_factors, measured.observed, weights

    def equations_at(parameters):
        def add(chunk, sums):
            hkl, form_factors, observed, weights = (
                jax.lax.dynamic_slice_in_dim(jnp.asarray(each), chunk * CHUNK, CHUNK) for each in arrays
            )
            amplitudes, slopes = model(parameters, hkl, form_factors)
            return jax.tree.map(jnp.add, sums, normal_equations(amplitudes, slopes, observed, weights))

        return jax.lax.fori_loop(0, (count + CHUNK - 1) // CHUNK, add, _nothing(parameters))

    return equations_at


def sphere_amplitudes(
    positions: Array, hkl: Array, form_factors: Array, num_atoms: ArrayLike, grid_size: int
) -> tuple[Array, Array]:
    """Amplitudes of isolated spheres `(count,)` and their derivatives `(count, places, 3)`."""
    waves = waves_of(hkl, grid_size)
    cosines, sines, real, imaginary = sphere_parts(positions, form_factors, waves, num_atoms)
    amplitudes = safe_length(real, imaginary)
    turned = (imaginary / amplitudes * form_factors)[:, None] * cosines
    turned = turned - (real / amplitudes * form_factors)[:, None] * sines
    return amplitudes, turned[:, :, None] * waves[:, None, :]


def waves_of(hkl: ArrayLike, grid_size: int) -> Array:
    """Phases of reflections `(count, 3)` for each voxel along the axes."""
    return 2 * np.pi / grid_size * jnp.asarray(hkl, jnp.float32)


def sphere_parts(
    positions: Array, form_factors: Array, waves: Array, num_atoms: ArrayLike
) -> tuple[Array, Array, Array, Array]:
    """cos and sin of each atom's phase, `(count, places)`; real and negative imaginary part of F, `(count,)`.

    Of places that are not taken both are 0.
    """
    phases = jnp.sum(waves[:, None, :] * positions[None], axis=-1)
    taken = taken_places(positions, num_atoms)[None]
    cosines, sines = (jnp.where(taken, each, 0) for each in cosine_and_sine(phases))
    return cosines, sines, form_factors * jnp.sum(cosines, axis=1), form_factors * jnp.sum(sines, axis=1)


def safe_length(real: Array, imaginary: Array) -> Array:
    """√(real² + imaginary²), never 0, so that its derivative is finite."""
    return jnp.sqrt(real**2 + imaginary**2 + 1e-6)


@exact_products
def finish(positions: Array, measured: Measured, problem: Problem) -> Finished:
    """Refines against all reflections with the exact transform of the voxels that spheres fill.

    The positions matter then to a part of a voxel, not only the vectors between them. Amplitudes that come from no
    voxels are explained better by isolated spheres, refined at half the resolution before; the lower R1 decides. Atoms
    of another size or shape differ, nearly, by a scale and a fall-off with |h|, which are refined with the positions.

    Args:
        positions: `(places, 3)`, voxels from the box centre, refined before.
        measured: the data.
        problem: what the atoms are.
    """
    held, shape = measured.reflections, positions.shape
    squared = _squared_waves(held.hkl, held.grid_size)
    # With less than the stages had, noise would lead astray.
    half = jnp.maximum(held.count_within(_highest_squared(held) // 4), stages_from_random(measured, problem).counts[-1])

    def of_spheres(parameters, hkl, form_factors):
        amplitudes, slopes = _flat_spheres(measured, parameters[:-2], hkl, form_factors)
        return with_falloff(parameters[-2:], amplitudes, slopes, _squared_waves(hkl, held.grid_size))

    def equations_of_voxels(parameters):
        amplitudes, slopes = voxel_amplitudes(
            parameters[:-2].reshape(shape), held, measured.num_atoms, problem.atom_radius
        )
        amplitudes, slopes = with_falloff(parameters[-2:], amplitudes, slopes.reshape(len(squared), -1), squared)
        equations = normal_equations(amplitudes, slopes, measured.observed, refinement_weights(measured, held.number))
        return equations._replace(amplitudes=amplitudes)

    start = jnp.append(positions.ravel(), jnp.zeros(2, positions.dtype))
    spheres, _ = minimise(_in_chunks(of_spheres, measured, half), start, FINISH_ITERATIONS[0])
    voxels, at_voxels = minimise(equations_of_voxels, spheres, FINISH_ITERATIONS[1], len(squared))
    at_spheres, _ = of_spheres(spheres, jnp.asarray(held.hkl), jnp.asarray(held.form_factors))
    judged = jax.vmap(lambda amplitudes: _r_factors(amplitudes, measured, squared))
    r_factors, r_frees = judged(jnp.stack([at_voxels.amplitudes, at_spheres]))
    best = jnp.where(r_factors[0] < r_factors[1], 0, 1)
    found = jnp.stack([voxels, spheres])[best, :-2].reshape(shape)
    return Finished(found, r_factors[best], r_frees[best])


def _highest_squared(held):
    """The largest |h|² of the reflections, up to which atoms are compared with data."""
    return jnp.minimum(held.longest, (held.grid_size // 2) ** 2)


def _r_factors(amplitudes, measured, squared):
    """R1 of the reflections that are used and of the free ones, after a last look at scale and fall-off."""
    held = measured.reflections
    weights = refinement_weights(measured, held.number)

    def scaled(falloff):
        return with_falloff(falloff, amplitudes, jnp.zeros((len(amplitudes), 0), amplitudes.dtype), squared)

    def equations_at(falloff):
        values, slopes = scaled(falloff)
        return normal_equations(values, slopes, measured.observed, weights)

    best, _ = scaled(minimise(equations_at, jnp.zeros(2, amplitudes.dtype), FALLOFF_ITERATIONS)[0])
    present = jnp.arange(len(amplitudes)) < held.number
    used, free = present & ~held.free, present & held.free
    scale = scale_factor(measured.observed, best, used)
    return tuple(r_factor(measured.observed, best, scale, where) for where in (used, free))


def _squared_waves(hkl, grid_size):
    """(|h| / grid)², `(count,)`."""
    return jnp.sum((jnp.asarray(hkl, jnp.float32) / grid_size) ** 2, axis=-1)


def with_falloff(falloff: Array, amplitudes: Array, slopes: Array, squared: Array) -> tuple[Array, Array]:
    """Amplitudes multiplied by exp(k − B (|h| / grid)²), and their derivatives.

    Args:
        falloff: k and B, `(2,)`, B in voxels².
        amplitudes: `(count,)`.
        slopes: their derivatives with respect to other parameters, `(count, num_parameters)`.
        squared: (|h| / grid)², `(count,)`.

    Returns:
        The amplitudes and their derivatives `(count, num_parameters + 2)`, the last two with respect to k and B.
    """
    factor = jnp.exp(falloff[0] - falloff[1] * squared)
    amplitudes = factor * amplitudes
    own = jnp.stack([amplitudes, -squared * amplitudes], axis=-1)
    return amplitudes, jnp.concatenate([factor[:, None] * slopes, own], axis=-1)


def voxel_amplitudes(
    positions: Array, held: Reflections, num_atoms: ArrayLike, atom_radius: float
) -> tuple[Array, Array]:
    """Amplitudes of spheres rendered to voxels `(length,)` and their derivatives `(length, places, 3)`."""
    hkl = jnp.asarray(held.hkl)

    def factors_of(position):
        return atom_factors_and_slopes(position, hkl, held.grid_size, atom_radius, held.limit)

    taken = taken_places(positions, num_atoms)[:, None]
    factors, slopes = jax.vmap(factors_of)(positions)  # (places, length), (places, 3, length)
    factors, slopes = jnp.where(taken, factors, 0), jnp.where(taken[..., None], slopes, 0)
    total = jnp.sum(factors, axis=0)
    amplitudes = safe_length(total.real, total.imag)
    cosine, sine = (part[None, None] / amplitudes[None, None] for part in (total.real, total.imag))
    turned = cosine * slopes.real + sine * slopes.imag
    return amplitudes, jnp.moveaxis(turned, -1, 0)
