"""Phase retrieval: from amplitudes to a density of which the number of filled voxels and the box are known.

RRR, relaxed-reflect-reflect (Elser, Lan and Bendory, SIAM J. Imaging Sci. 11, 2429, 2018), seeks a map that is in two
sets at once: that of the maps with the measured amplitudes, and that of the maps with few voxels that are not zero,
all positive and in the box. With P_A and P_S the nearest maps in either, an iteration is

    x ← x + β (P_S(2 P_A(x) − x) − P_A(x)),

and the distance between the two projections, the gap, falls when a solution is met. With noise or a wrong support size
there is no common map: the gap falls as far as it can and the iteration wanders off, so the best map met is kept.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from patterson_jax.errors import require
from patterson_jax.precision import exact_products
from patterson_jax.simulation.patterson import frequencies_within, patterson_intensities, structure_factors
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.atom_sets import compact
from patterson_jax.solving.least_squares import stages_from_map
from patterson_jax.solving.methods.method import Method, Proposal, Request
from patterson_jax.solving.peaks import find_peaks

MARGIN = 2.0  # voxels, by which the cube is larger than the atoms need
UNBOXED = 3  # every so many attempts have no cube, in case that the atoms do not fit in it
BLUR = 0.18  # of the shortest wave that is measured; it widens atoms in a map
MAX_HALVINGS = 40  # after which an interval between floats has nothing left inside


@dataclasses.dataclass(frozen=True)
class PhaseRetrievalSettings:
    """How to retrieve phases. Raises InputError.

    Attributes:
        num_iterations: most iterations of a start.
        step: β, the length of an iteration's step.
        tolerance: gap, relative to the density's norm, below which a start has found its map and stops; 0: never.

    On the paper's problem a start comes to 0.05 in 50 iterations, 80 at most; with data cut at 8 of 20 frequencies it
    needs some 400. A step of 0.4 to 0.6 is best; one of 1 failed in three cases of sixteen.
    """

    num_iterations: int = 300
    step: float = 0.5
    tolerance: float = 0.05

    def __post_init__(self):
        require(self.num_iterations >= 1, 'num_iterations', self.num_iterations, '1 or more')
        require(0 < self.step < 2, 'step', self.step, 'more than 0 and less than 2')
        positive = math.isfinite(self.tolerance) and self.tolerance >= 0
        require(positive, 'tolerance', self.tolerance, 'a number, 0 or more')


class Retrieval(NamedTuple):
    """What one start found.

    Attributes:
        density: `(grid, grid, grid)`, the best map met: of one enantiomorph, anywhere in the periodic box, at most
            `num_voxels` voxels above zero, no other below.
        gap: its distance from the map with the measured amplitudes that it was made from, relative to the norm of
            the measured density. Of several starts the one with the smallest gap is the best.
        iterations: how many were made.
    """

    density: Array
    gap: Array
    iterations: Array


def touched_voxels(num_atoms: ArrayLike, atom_radius: ArrayLike) -> Array:
    """Mean number of voxels that spheres at random places touch, no two the same one.

    For one sphere it is 1 + 6r + 3πr² + 4πr³/3 (Steiner).
    """
    r = jnp.asarray(atom_radius, jnp.float32)
    touched = jnp.asarray(num_atoms, jnp.float32) * (1 + 6 * r + 3 * math.pi * r**2 + 4 / 3 * math.pi * r**3)
    return jnp.round(touched).astype(jnp.int32)


@exact_products
def retrieve_density(
    key: Array,
    amplitudes: Array,
    measured: Array | np.ndarray,
    num_voxels: ArrayLike,
    settings: PhaseRetrievalSettings,
    box_edge: ArrayLike = math.inf,
) -> Retrieval:
    """One start of RRR from random phases. Vmap it over keys for more starts, over amplitudes for more maps.

    Args:
        key: fixes the start.
        amplitudes: |F|, `(grid, grid, grid // 2 + 1)`, on the scale of the density; not negative, the same for h and
            −h in the two planes that hold both.
        measured: bool, same shape; where it is False the amplitude is ignored, and free.
        num_voxels: size of the support, about `touched_voxels`; a fifth more does little harm, a fifth less
            does at low resolution.
        settings: how long, with what step.
        box_edge: of a cube in the middle of the cell, voxels; there is nothing outside it.
    """
    measured = jnp.asarray(measured)
    outside = ~_cube(amplitudes.shape[0], box_edge)
    start = _random_phases(key, amplitudes, measured)
    norm = jnp.linalg.norm(start.ravel())

    def searching(state):
        _, best = state
        return (best.gap >= settings.tolerance) & (best.iterations < settings.num_iterations)

    def iterate(state):
        estimate, best = state
        with_amplitudes = project_amplitudes(estimate, amplitudes, measured)
        reflected = jnp.where(outside, 0, 2 * with_amplitudes - estimate)
        on_support = project_support(reflected, num_voxels)
        difference = on_support - with_amplitudes
        gap = jnp.sqrt(jnp.sum(difference**2)) / norm
        density = jnp.where(gap < best.gap, on_support, best.density)
        best = Retrieval(density, jnp.minimum(gap, best.gap), best.iterations + 1)
        return estimate + settings.step * difference, best

    nothing = Retrieval(jnp.zeros_like(start), jnp.full_like(norm, jnp.inf), jnp.int32(0))
    return jax.lax.while_loop(searching, iterate, (start, nothing))[1]


def project_amplitudes(density: Array, amplitudes: Array, measured: Array) -> Array:
    """The nearest map, `(grid, grid, grid)`, with the measured amplitudes; phases and other frequencies stay."""
    factors = structure_factors(density)
    squared = jnp.maximum(factors.real**2 + factors.imag**2, jnp.finfo(density.dtype).tiny)
    scale = jnp.where(measured, amplitudes * jax.lax.rsqrt(squared), 1)
    return _density(factors * scale.astype(factors.dtype))


def project_support(density: Array, num_voxels: ArrayLike) -> Array:
    """The map nearest to `density` with at most `num_voxels` voxels above zero and none below: the largest stay.

    Voxels equal to the smallest that stays, stay as well.
    """
    return jnp.where(density > _separating_value(density, num_voxels), density, 0)


@exact_products
def centred_atoms(density: Array, num_atoms: int, problem: Problem) -> Array:
    """Peaks of the density of one enantiomorph that may lie anywhere in the periodic box.

    The density is moved by whole voxels, so that its circular mean comes within half a voxel of the box centre: a
    part of a voxel would change the amplitudes of atoms that are rendered at these positions.

    Args:
        density: `(grid, grid, grid)`, an atom's greatest density is 1.
        num_atoms: how many peaks.
        problem: size of the grid and of the atoms.

    Returns:
        `(num_atoms, 3)`, voxels from the box centre, within the box.
    """
    size = problem.grid_size
    positions, _ = find_peaks(centre_density(density) / 2, num_atoms, problem)
    return (positions + size / 2) % size - size / 2


def centre_density(density: Array) -> Array:
    """Rolls a periodic map by whole voxels, its circular mean to within half a voxel of the box centre."""
    size = density.shape[0]
    angles = 2 * np.pi / size * (np.arange(size) + 0.5)
    circle = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=-1), density.dtype)
    profiles = jnp.stack([jnp.sum(density, axis=axes) for axes in ((1, 2), (0, 2), (0, 1))])
    cosine, sine = (profiles @ circle).T
    mean = jnp.arctan2(sine, cosine) * (size / (2 * np.pi))
    return jnp.roll(density, jnp.round(size / 2 - mean).astype(jnp.int32), axis=(0, 1, 2))


def _cube(size, edge):
    """Which voxels `(size, size, size)` have their centres in a cube in the middle of the cell."""
    inside = jnp.asarray(np.abs(np.arange(size) + 0.5 - size / 2)) <= edge / 2
    return inside[:, None, None] & inside[None, :, None] & inside[None, None, :]


def _random_phases(key, amplitudes, measured):
    """A map with the measured amplitudes, nothing at the other frequencies, and the phases of uniform noise."""
    size = amplitudes.shape[0]
    noise = jax.random.uniform(key, (size,) * 3, amplitudes.dtype)
    factors = structure_factors(noise)  # of a map without negative density, so that F(000) is positive
    scale = jnp.where(measured, amplitudes / jnp.abs(factors), 0)
    return _density(factors * scale.astype(factors.dtype))


def _density(factors):
    return jnp.fft.irfftn(factors, s=(factors.shape[0],) * 3, axes=(-3, -2, -1))


def _separating_value(values, count):
    """A value, not negative, with exactly `count` of the values above it, or as near to that as ties allow.

    By bisection, which stops as soon as it separates: sorting all values is an order of magnitude slower on CPU.
    """

    def unfinished(state):
        _, _, above, halvings = state
        return (above != count) & (halvings < MAX_HALVINGS)

    def halve(state):
        low, high, _, halvings = state
        middle = (low + high) / 2
        above = _count(values > middle)
        enough = above >= count
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle), above, halvings + 1

    highest = jnp.maximum(jnp.max(values), 0)
    return jax.lax.while_loop(unfinished, halve, (jnp.zeros_like(highest), highest, jnp.int32(-1), jnp.int32(0)))[0]


def _count(mask):
    """Number of True; columns first, which XLA vectorises on CPU."""
    return jnp.sum(jnp.sum(mask.reshape(mask.shape[0], -1), axis=0, dtype=jnp.int32), dtype=jnp.int32)


def propose(request: Request) -> Proposal:
    """The peaks of a density retrieved from random phases, in the box that the problem has for its atoms."""
    measured, problem = request.measured, request.problem
    amplitudes = jnp.sqrt(jnp.maximum(patterson_intensities(measured.patterson), 0))
    known = frequencies_within(problem.grid_size, measured.reflections.longest)
    shortest_wave = problem.grid_size / jnp.sqrt(jnp.asarray(measured.reflections.longest, jnp.float32))
    radius = jnp.hypot(jnp.float32(problem.atom_radius), BLUR * shortest_wave)
    num_voxels = touched_voxels(measured.num_atoms, radius)
    needed = problem.box_edge + 2 * problem.atom_radius + MARGIN
    box_edge = jnp.where(request.number % UNBOXED == UNBOXED - 1, jnp.inf, jnp.float32(needed))
    settings = PhaseRetrievalSettings()
    density = retrieve_density(request.key, amplitudes, known, num_voxels, settings, box_edge).density
    atoms = compact(centred_atoms(density, problem.num_atoms, problem), problem.grid_size, measured.num_atoms)
    return Proposal(atoms[None], stages_from_map(measured, problem))


PHASE_RETRIEVAL = Method('phase_retrieval', stream=2, starts=1, propose=propose)
