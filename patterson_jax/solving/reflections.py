"""Reflections: the amplitudes |F(h)| behind a Patterson map, those that are measured, and how well atoms explain them.

Each Friedel pair counts once. Reflections are in the order of |h|, so that those up to any resolution come first. One
in twenty is free: it takes no part in least squares, and the R1 of these, R_free (Brünger, Nature 355, 472, 1992),
helps to tell a model that explains the data from one that only fits them. It cannot do so alone: in a cell that is
mostly empty neighbouring reflections are not independent, and methods that work on whole maps have seen them all.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array

from patterson_jax.errors import require
from patterson_jax.simulation.patterson import low_frequencies, patterson_intensities, read_only, within
from patterson_jax.simulation.problem import Problem

FREE_PART = 20  # one reflection in so many


@functools.lru_cache
def reflections(problem: Problem) -> np.ndarray:
    """Measured reflections h with 0 < |h| ≤ `highest_resolution`, in the order of |h|, `(num_reflections, 3)`."""
    chosen = low_frequencies(problem.grid_size, highest_resolution(problem))
    return read_only(chosen[np.argsort(np.sum(chosen**2, axis=-1), kind='stable')])


def highest_resolution(problem: Problem) -> float:
    """The |h| up to which atoms are compared with data: the problem's resolution, at most half the grid."""
    half = problem.grid_size / 2
    return half if problem.resolution is None else min(half, problem.resolution)


def check_enough(problem: Problem) -> None:
    """Raises InputError if a problem's resolution leaves fewer reflections than the atoms have coordinates."""
    number, least = len(reflections(problem)), max(3 * problem.num_atoms, FREE_PART)
    allowed = f'larger: it leaves {number} reflections, and {problem.num_atoms} atoms need {least} or more'
    require(number >= least, 'resolution', problem.resolution, allowed)


def count_within(problem: Problem, resolution: float) -> int:
    """How many of the reflections have |h| ≤ resolution; they are the first ones."""
    return int(np.sum(within(reflections(problem), resolution)))


@functools.lru_cache
def free_reflections(problem: Problem) -> np.ndarray:
    """Which reflections are kept out of refinement, `(num_reflections,)`: the same ones for every map."""
    number = len(reflections(problem))
    free = np.zeros(number, bool)
    free[np.random.default_rng(0).permutation(number)[: number // FREE_PART]] = True
    return read_only(free)


def observed_amplitudes(patterson: Array, problem: Problem) -> Array:
    """|F| of the reflections of a map on the absolute scale, `(num_reflections,)`; 0 where noise made |F|² negative."""
    intensities = patterson_intensities(patterson)[tuple(reflections(problem).T)]
    return jnp.sqrt(jnp.maximum(intensities, 0))


def absolute_scale(patterson: Array, problem: Problem) -> Array:
    """Scales a Patterson map so that its sum is F(000)², the square of the problem's total density."""
    return patterson * ((problem.num_atoms * problem.atom_volume) ** 2 / jnp.sum(patterson))


def r_factor(observed: Array, calculated: Array, scale: Array | None = None) -> Array:
    """R1 = Σ| |Fo| − k|Fc| | / Σ|Fo| of amplitudes `(num_reflections,)`, k by least squares unless it is given."""
    if scale is None:
        scale = scale_factor(observed, calculated)
    return jnp.sum(jnp.abs(observed - scale * calculated)) / jnp.sum(observed)


def scale_factor(observed: Array, calculated: Array) -> Array:
    """The k for which Σ(|Fo| − k|Fc|)² of amplitudes `(num_reflections,)` is least."""
    return jnp.sum(observed * calculated) / jnp.sum(calculated**2)
