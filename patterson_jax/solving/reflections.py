"""Reflections: the amplitudes |F(h)| behind a Patterson map, those that are measured, and how well atoms explain them.

Each Friedel pair counts once. Reflections are in the order of |h|, so that those up to any resolution come first. One
in twenty is free: it takes no part in least squares, and the R1 of these, R_free (Brünger, Nature 355, 472, 1992),
helps to tell a model that explains the data from one that only fits them. It cannot do so alone: in a cell that is
mostly empty neighbouring reflections are not independent, and methods that work on whole maps have seen them all.

Reflections are an argument of compiled programs. They are padded, so that data which end a little earlier need no other
program. Atoms are padded too: a set has a number of places. Its atoms take the first places, and the others repeat the
first atom.
"""

import functools
import math

import flax.struct
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from patterson_jax.errors import require
from patterson_jax.precision import exact_products
from patterson_jax.simulation.patterson import (
    longest_measured,
    low_frequencies,
    patterson_intensities,
    read_only,
    sphere_factor,
)
from patterson_jax.simulation.problem import Problem

FREE_PART = 20  # one reflection in so many
CHUNK = 128  # reflections that least squares takes at once
Numbers = Array | np.ndarray  # on the host before it is given to what is compiled


@flax.struct.dataclass
class Reflections:
    """Reflections with 0 < |h| ≤ half the grid, in the order of |h|, one of each Friedel pair; `length` with padding.

    Attributes:
        hkl: `(length, 3)` int32.
        form_factors: `(length,)`, of one atom, in voxels.
        free: `(length,)`, which are kept out of refinement: the same ones for every map.
        number: how many there are; what comes after these is padding.
        longest: the largest |h|² that is measured, reflections beyond half the grid among them.
        grid_size: voxels along each edge of the cell's map.
        limit: a whole number that no |h| is above; with the grid it fixes the length.
    """

    hkl: Numbers
    form_factors: Numbers
    free: Numbers
    number: Numbers
    longest: Numbers
    grid_size: int = flax.struct.field(pytree_node=False)
    limit: int = flax.struct.field(pytree_node=False)

    @property
    def squared_lengths(self) -> Array:
        """|h|², `(length,)` int32; of padding larger than any."""
        squared = jnp.sum(jnp.asarray(self.hkl) ** 2, axis=-1)
        return jnp.where(jnp.arange(len(squared)) < self.number, squared, np.iinfo(np.int32).max)

    def count_within(self, squared_length: ArrayLike) -> Array:
        """How many have at most this |h|²; they are the first ones."""
        largest = jnp.floor(squared_length).astype(jnp.int32)
        return jnp.sum(self.squared_lengths <= largest, dtype=jnp.int32)

    def within(self, limit: int) -> Array:
        """The hkl `(length, 3)` among which are all with |h| ≤ limit, no more of them than are needed for that."""
        return jnp.asarray(self.hkl)[: _padded_number(self.grid_size, min(limit, self.limit))]


@flax.struct.dataclass
class Measured:
    """What is known of one map, or, with a leading axis of `patterson` and `observed`, of several.

    Attributes:
        patterson: `(grid, grid, grid)`, origin at voxel (0, 0, 0), on the absolute scale: its sum is F(000)².
        observed: |F| of its reflections, `(length,)`; 0 where noise made |F|² negative, and where padded.
        reflections: which these are.
        num_atoms: how many atoms there are, at most as many as a set has places.
    """

    patterson: Array
    observed: Array
    reflections: Reflections
    num_atoms: Numbers | int


def reflections(problem: Problem) -> Reflections:
    """The reflections of a problem that are measured, on the host."""
    longest = longest_measured(problem.grid_size, problem.measurement.resolution)
    return _reflections(problem.grid_size, problem.atom_radius, longest)


@functools.lru_cache
def _reflections(grid_size, atom_radius, longest):
    limit = min(math.ceil(math.sqrt(longest)), grid_size // 2)
    hkl = _sphere(grid_size, limit)
    number = int(np.sum(np.sum(hkl**2, axis=-1) <= longest))
    length = _padded_number(grid_size, limit)
    hkl = read_only(np.pad(hkl, ((0, length - len(hkl)), (0, 0))).astype(np.int32))
    free = np.zeros(length, bool)
    free[np.random.default_rng(0).permutation(number)[: number // FREE_PART]] = True
    form_factors = read_only(sphere_factor(hkl, grid_size, atom_radius).astype(np.float32))
    counts = np.asarray(number, np.int32), np.asarray(longest, np.int32)
    return Reflections(hkl, form_factors, read_only(free), *counts, grid_size=grid_size, limit=limit)


@functools.lru_cache
def _sphere(grid_size, limit):
    """Reflections with 0 < |h| ≤ limit in the order of |h|, `(number, 3)`."""
    hkl = low_frequencies(grid_size, limit)
    return read_only(hkl[np.argsort(np.sum(hkl**2, axis=-1), kind='stable')])


def _padded_number(grid_size, limit):
    """The number of reflections with |h| ≤ limit, made up to whole chunks."""
    return CHUNK * math.ceil(len(_sphere(grid_size, limit)) / CHUNK)


def check_enough(problem: Problem) -> None:
    """Raises InputError if a problem's resolution leaves fewer reflections than the atoms have coordinates."""
    number, least = int(reflections(problem).number), max(3 * problem.num_atoms, FREE_PART)
    allowed = f'larger: it leaves {number} reflections, and {problem.num_atoms} atoms need {least} or more'
    require(number >= least, 'resolution', problem.measurement.resolution, allowed)


def highest_resolution(problem: Problem) -> float:
    """The |h| up to which atoms are compared with data: the problem's resolution, at most half the grid."""
    half = problem.grid_size / 2
    return half if problem.measurement.resolution is None else min(half, problem.measurement.resolution)


@exact_products
def measure(patterson: Array, held: Reflections, num_atoms: Numbers | int, atom_volume: float) -> Measured:
    """What is known of a map `(grid, grid, grid)` of any scale, given its reflections and the atoms in the cell."""
    patterson = absolute_scale(patterson, num_atoms, atom_volume)
    return Measured(patterson, observed_amplitudes(patterson, held), held, num_atoms)


def observed_amplitudes(patterson: Array, held: Reflections) -> Array:
    """|F| of the reflections of a map, `(length,)`; 0 where noise made |F|² negative, and where padded."""
    h, k, l = jnp.asarray(held.hkl).T
    intensities = patterson_intensities(patterson)[h, k, l]
    present = jnp.arange(len(intensities)) < held.number
    return jnp.where(present, jnp.sqrt(jnp.maximum(intensities, 0)), 0)


def absolute_scale(patterson: Array, num_atoms: ArrayLike, atom_volume: float) -> Array:
    """Scales a Patterson map so that its sum is F(000)², the square of the total density of the atoms."""
    total = atom_volume * jnp.asarray(num_atoms, patterson.dtype)
    return patterson * (total**2 / jnp.sum(patterson))


def r_factor(
    observed: Array, calculated: Array, scale: Array | None = None, where: Array | np.ndarray | None = None
) -> Array:
    """R1 = Σ| |Fo| − k|Fc| | / Σ|Fo| of amplitudes `(num_reflections,)`, k by least squares unless it is given.

    `where` tells which of the reflections count; all of them if it is None.
    """
    if scale is None:
        scale = scale_factor(observed, calculated, where)
    errors, observed = jnp.abs(observed - scale * calculated), jnp.asarray(observed)
    return jnp.sum(errors, where=where) / jnp.sum(observed, where=where)


def scale_factor(observed: Array, calculated: Array, where: Array | np.ndarray | None = None) -> Array:
    """The k for which Σ(|Fo| − k|Fc|)² of amplitudes `(num_reflections,)` is least, of those that `where` tells."""
    return jnp.sum(observed * calculated, where=where) / jnp.sum(calculated**2, where=where)
