"""The superposition minimum function: from a Patterson map to a map of both enantiomorphs, without a network.

A Patterson map laid over itself, shifted by a vector between two atoms, agrees with itself where an atom and the
inverse of one lie: the minimum of the two shows the structure and its inverse through the middle of the vector
(M. J. Buerger, Vector Space and its Application in Crystal-Structure Investigation, Wiley, 1959). That is what the
network is trained to show, about another centre, and it goes through the same peaks and the same separation.

One superposition needs a vector that occurs once and peaks no wider than atoms. So the map is sharpened first, what was
not measured is extrapolated from the fact that density is not negative, and long vectors, which are the rarest, are
taken first.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from patterson_jax.precision import exact_products
from patterson_jax.simulation.maps import invert_map
from patterson_jax.simulation.patterson import (
    frequencies,
    frequencies_within,
    patterson_intensities,
    sphere_factor,
)
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.atom_sets import compact, same_atoms
from patterson_jax.solving.charge_flipping import shifting_wave
from patterson_jax.solving.interpretation import atoms_of_map
from patterson_jax.solving.least_squares import stages_from_map
from patterson_jax.solving.methods.method import Method, Proposal, Request
from patterson_jax.solving.peaks import summit

SHARPENING = 0.01  # of the squared form factor at |h| = 0, below which there is nothing to be divided by
NUM_EXTRAPOLATIONS = 150  # of measured frequencies to the others
MAX_STARTS = 64  # vectors that are told apart
VECTORS = 4  # of an attempt
EQUAL = 1e-3  # voxels within which sets are the same
LEAST_HEIGHT = 0.3  # of a vector's peak, where that of a single vector is about 1


@exact_products
def minimum_map(patterson: Array, start: Array | int, problem: Problem, measured: Array) -> Array:
    """The minimum function of a Patterson map over one of its vectors.

    Args:
        patterson: `(grid, grid, grid)`, origin at voxel (0, 0, 0), on the absolute scale: its sum is F(000)².
        start: number of the vector, 0 for the most promising. There are at most `MAX_STARTS`, then they come again.
        problem: what the map is of.
        measured: `(grid, grid, grid // 2 + 1)`, which of the map's frequencies were measured, F(000) among them.

    Returns:
        `(grid, grid, grid)`, on the scale of the network's target, where an atom's greatest density is about 1/2, and
        its own inverse through the box centre. Peaks of atoms that lie on inverses of others do not add up.
    """
    factors = sharpened_factors(patterson, problem, measured)
    vector = superposition_vector(factors, start, problem)
    shifted = vector_map(factors, vector / 2)
    # The map shifted the other way is the inverse of this one, because a Patterson map is its own inverse.
    return jnp.maximum(jnp.minimum(shifted, invert_map(shifted)), 0) / 2


def sharpened_factors(patterson: Array, problem: Problem, measured: Array) -> Array:
    """Fourier coefficients of the map in which every vector has the peak of an atom, `(grid, grid, grid // 2 + 1)`.

    The arguments are those of `minimum_map`. |F|² has the form factor f squared; one f is divided out, as
    |F|² f / (f² + ε).
    """
    form = form_factor(problem)
    shape = form / problem.atom_volume
    sharpened = patterson_intensities(patterson) * jnp.asarray(
        shape / (shape**2 + SHARPENING) / problem.atom_volume, patterson.dtype
    )
    return jax.lax.cond(
        jnp.all(measured),
        lambda: sharpened,
        lambda: _extrapolate(sharpened, jnp.asarray(shape, patterson.dtype), measured),
    )


def _extrapolate(sharpened, shape, measured):
    """Fills the frequencies that were not measured, from point vectors of no negative weight that fit the others.

    Projected gradients with the momentum of Beck and Teboulle (SIAM J. Imaging Sci. 2, 183, 2009). The form factor,
    which is at most 1, keeps the steps stable.
    """
    grid = (sharpened.shape[0],) * 3

    def improve(state, momentum):
        points, ahead = state
        misfit = jnp.where(measured, shape * patterson_intensities(ahead) - sharpened, 0)
        improved = jnp.maximum(ahead - jnp.fft.irfftn(shape * misfit, s=grid), 0)
        return (improved, improved + momentum * (improved - points)), None

    step = np.arange(NUM_EXTRAPOLATIONS)
    momenta = jnp.asarray(step / (step + 3), sharpened.dtype)
    points = jnp.zeros(grid, sharpened.dtype)
    (points, _), _ = jax.lax.scan(improve, (points, points), momenta)
    return jnp.where(measured, sharpened, shape * patterson_intensities(points))


def form_factor(problem: Problem) -> np.ndarray:
    """Transform of one atom, a sphere averaged over voxels, about its centre, `(grid, grid, grid // 2 + 1)`.

    It is 0 at the highest frequencies, |h| = grid / 2 along an axis, whose phases say nothing of sub-voxel shifts.
    """
    waves = frequencies(problem.grid_size)
    inside = np.all(np.abs(waves) < problem.grid_size // 2, axis=-1)
    return sphere_factor(waves, problem.grid_size, problem.atom_radius) * inside


def superposition_vector(factors: Array, start: Array | int, problem: Problem) -> Array:
    """Vector `start` of those that suit a superposition, `(3,)` in voxels, best first; 0 if the map has none.

    Args:
        factors: of the sharpened map.
        start: taken modulo the number of vectors that there are, at most `MAX_STARTS`.
        problem: size of the grid and of the atoms.
    """
    vectors = vector_map(factors, jnp.zeros(3, factors.dtype))
    size = problem.grid_size
    axis = np.arange(size) + 0.5 - size / 2
    squared = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2
    one_of_each_pair = np.arange(size**3).reshape((size,) * 3) < size**3 // 2
    allowed = jnp.asarray(one_of_each_pair & (squared > (2 * problem.atom_radius) ** 2))
    peak = allowed & (vectors > LEAST_HEIGHT) & (vectors == _highest_neighbour(vectors))
    # Height above that of a single vector is no merit: it means several vectors.
    merit = jnp.where(peak, jnp.minimum(vectors, 1) * jnp.asarray(squared, vectors.dtype), 0)
    merits, voxels = jax.lax.top_k(merit.ravel(), MAX_STARTS)
    count = jnp.sum(merits > 0)
    voxel = jnp.stack(jnp.unravel_index(voxels[start % jnp.maximum(count, 1)], vectors.shape))
    return jnp.where(count > 0, summit(vectors, voxel) + 0.5 - size / 2, 0)


def vector_map(factors: Array, origin: Array) -> Array:
    """Map of Fourier coefficients of a Patterson map, with its origin moved.

    Args:
        factors: real, `(grid, grid, grid // 2 + 1)`.
        origin: `(3,)`, where to put the origin, voxels from the box centre; any fraction of a voxel.
    """
    size = factors.shape[0]
    # The middle of voxel i lies at i + 1/2 − grid / 2 from the box centre.
    wave = shifting_wave((origin + size / 2 - 0.5) / size, (size,) * 3)
    return jnp.fft.irfftn(factors.astype(wave.dtype) * wave, s=(size,) * 3)


def _highest_neighbour(density):
    """The highest of the 3³ voxels about each, `(grid, grid, grid)`, periodic."""
    for axis in range(3):
        density = jnp.maximum(density, jnp.maximum(jnp.roll(density, 1, axis), jnp.roll(density, -1, axis)))
    return density


def propose(request: Request) -> Proposal:
    """Sets from the minimum functions over several vectors."""
    measured, problem = request.measured, request.problem
    known = frequencies_within(problem.grid_size, measured.reflections.longest)

    def over_vector(start):
        density = minimum_map(measured.patterson, start, problem, known)
        found = atoms_of_map(jax.random.fold_in(request.key, start), density, measured, problem, request.separation)
        return compact(found.positions, problem.grid_size, measured.num_atoms)

    sets = jax.vmap(over_vector)(request.number * VECTORS + jnp.arange(VECTORS))
    return Proposal(sets, stages_from_map(measured, problem))


def different(positions: Array, number: Array) -> Array:
    """Of sets that are equal only the first is evidence: where there are few vectors they come from the same one."""
    equal = jax.vmap(lambda one: jax.vmap(lambda other: same_atoms(one, other, EQUAL))(positions))(positions)
    return ~jnp.any(equal & np.tri(len(positions), k=-1, dtype=bool), axis=1)


MINIMUM_FUNCTION = Method(
    'minimum_function',
    stream=3,
    starts=VECTORS,
    propose=propose,
    independent=different,
    separates=True,
)
