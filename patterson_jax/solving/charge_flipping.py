"""Charge flipping: finds the phases of a crystal in P1 from its amplitudes, because most of the cell is nearly empty.

Density below a threshold changes its sign, the measured amplitudes are restored, and this is repeated until the
skewness of the density jumps (Oszlányi and Sütő, Acta Cryst. A60, 134, 2004). Weak reflections keep their amplitude,
and their phase is shifted by π/2 (Acta Cryst. A61, 147, 2005). E values and F, and thresholds of 1.1 and 1.4 σ, solve
different crystals. F(000) is left free, as there, or scaled with the amplitudes in each cycle: free, light crystals
need fewer cycles at 0.8 Å; scaled, more crystals are solved at 1.2 Å (docs/crystals.md).

Low-density elimination (Shiono and Woolfson, Acta Cryst. A48, 451, 1992) then sharpens the map: density below 1 σ is
set to zero.

Transforms are those of NumPy, Σ ρ exp(−2πi h·r), on the half grid of a real map. The structure factors of
crystallography are their conjugates. A compiled program depends only on shapes; reflections are arguments.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from patterson_jax.crystal.grid import Grid, half_grid_frequencies
from patterson_jax.precision import exact_products

WEAK_PART = 0.2  # of the reflections, the weakest
ELIMINATION_THRESHOLD = 1.0  # σ of the density
TINY = 1e-20  # added to squares of amplitudes


class Search(NamedTuple):
    """The data of a crystal for charge flipping, on the half grid; `(2, *half_shape)` for E values and for F.

    Attributes:
        strong: `(2, *half_shape)`, amplitudes of strong reflections, zero elsewhere.
        turns: `(2, *half_shape)`, 1 for weak reflections, −1 for their Friedel mates, zero elsewhere.
        amplitudes: `half_shape`, E values of all reflections.
        patterson: `half_shape`, coefficients of the sharpened Patterson map without its origin peak.
        mean_is_free: whether F(000), the mean of the density, is left free; else it is scaled with the amplitudes.
    """

    strong: Array
    turns: Array
    amplitudes: Array
    patterson: Array
    mean_is_free: Array | bool = False


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of a start.

    Attributes:
        amplitudes: 0 for E values, 1 for F.
        threshold: below which density changes its sign, in σ of the density.
        superposed: whether it starts from a superposed Patterson map; otherwise it starts from random phases.
        cycles: number of cycles.
    """

    amplitudes: int
    threshold: float
    superposed: bool
    cycles: int


# The recipes are used in turn. Of eight starts on E at 1.1 σ in each of 17 crystals, 75 random and 108 superposed ones
# were right after 100 cycles, 119 and 128 after 600. Superposition does not help F. Crystals without heavy atoms or
# inversion need E at 1.1 σ and many cycles. Only F at 1.4 σ solves the cage of a sodalite.
RECIPES = (
    Recipe(0, 1.1, True, 1000),
    Recipe(1, 1.4, False, 400),
    Recipe(0, 1.1, False, 1500),
    Recipe(1, 1.1, False, 400),
    Recipe(0, 1.1, True, 1000),
    Recipe(1, 1.4, False, 400),
    Recipe(0, 1.4, False, 400),
    Recipe(1, 1.1, False, 400),
)


def prepare_search(
    hkl: np.ndarray, normalised: np.ndarray, amplitudes: np.ndarray, grid: Grid, mean_is_free: bool = False
) -> Search:
    """Puts the reflections of a crystal on the half grid.

    Args:
        hkl: `(n, 3)`, one of each Friedel pair.
        normalised: `(n,)`, E values.
        amplitudes: `(n,)`, |F| on any scale.
        grid: one on which no reflection reaches the border.
        mean_is_free: see `Search`.
    """
    strong, turns = [], []
    for values in (normalised, amplitudes / np.sqrt(np.mean(amplitudes**2))):
        weak = values <= np.quantile(values, WEAK_PART)
        strong.append(grid.place(hkl, np.where(weak, 0, values)))
        turns.append(grid.place(hkl, np.where(weak, 1j, 0)).imag)
    patterson = grid.place(hkl, normalised**2 - 1)
    arrays = (np.stack(strong), np.stack(turns), grid.place(hkl, normalised), patterson)
    return Search(*(jnp.asarray(array, jnp.float32) for array in arrays))._replace(
        mean_is_free=jnp.asarray(mean_is_free)
    )


def random_density(key: Array, search: Search, kind: Array, shape: tuple[int, int, int]) -> Array:
    """A map of `shape` with the strong amplitudes and random phases.

    Args:
        key: of the phases.
        search: the data of the crystal.
        kind: 0 for E values, 1 for F.
        shape: of the grid.
    """
    factors = jnp.fft.rfftn(jax.random.normal(key, shape))
    return jnp.fft.irfftn(phased(factors, search.strong[kind]), s=shape)


def superposed_density(vector: Array, search: Search, kind: Array, shape: tuple[int, int, int]) -> Array:
    """A map of `shape` with the phases of a superposition: the sharpened Patterson map and a copy moved by a vector.

    The superposition takes the smaller value at each point. If the vector joins two atoms, it contains the structure
    and its image (Buerger, 1959).

    Args:
        vector: `(3,)`, in fractions of the axes of the grid.
        search: the data of the crystal.
        kind: 0 for E values, 1 for F.
        shape: of the grid.
    """
    patterson = search.patterson.astype(jnp.complex64)
    moved = patterson * shifting_wave(vector, shape)
    least = jnp.minimum(jnp.fft.irfftn(patterson, s=shape), jnp.fft.irfftn(moved, s=shape))
    return jnp.fft.irfftn(phased(jnp.fft.rfftn(least), search.strong[kind]), s=shape)


@exact_products
def flip(densities: Array, kinds: Array, thresholds: Array, search: Search, cycles: int) -> tuple[Array, Array]:
    """Runs cycles of charge flipping for several starts at once.

    Args:
        densities: `(starts, *shape)`.
        kinds: `(starts,)`, 0 for E values, 1 for F.
        thresholds: `(starts,)`, in σ of the density.
        search: the data of the crystal.
        cycles: number of cycles.

    Returns:
        Densities `(starts, *shape)`, and their skewness after each cycle, `(starts, cycles)`.
    """
    return jax.vmap(_flip_one, (0, 0, 0, None, None))(densities, kinds, thresholds, search, cycles)


def _flip_one(density, kind, threshold, search, cycles):
    shape, size = density.shape, density.size
    strong, turns = search.strong[kind], search.turns[kind]
    counts = friedel_counts(strong)
    total = jnp.vdot(counts.ravel(), strong.ravel())

    def cycle(state, _):
        density, sigma = state
        factors = jnp.fft.rfftn(jnp.where(density < threshold * sigma, -density, density))
        squared = jnp.maximum(factors.real**2 + factors.imag**2, TINY)
        inverse = jax.lax.rsqrt(squared)
        scale = total / jnp.vdot(counts.ravel(), (squared * inverse).ravel())
        along = (strong * inverse).at[0, 0, 0].set(jnp.where(search.mean_is_free, 1, scale))
        across = turns * jnp.minimum(scale, inverse)
        factors = factors * jax.lax.complex(along, across)
        density = jnp.fft.irfftn(factors, s=shape)
        deviations = density - factors[0, 0, 0].real / size
        squares = deviations * deviations
        variance = jnp.vdot(deviations.ravel(), deviations.ravel()) / size
        skewness = jnp.vdot(squares.ravel(), deviations.ravel()) / size / variance**1.5
        return (density, jnp.sqrt(variance)), skewness

    (density, _), skewness = jax.lax.scan(cycle, (density, jnp.std(density)), None, length=cycles)
    return density, skewness


@exact_products
def eliminate(factors: Array, search: Search, shape: tuple[int, int, int], cycles: int) -> tuple[Array, Array, Array]:
    """Runs cycles of low-density elimination with the E values of all reflections.

    Args:
        factors: the transform of a map, `half_shape`.
        search: the data of the crystal.
        shape: of the grid.
        cycles: number of cycles.

    Returns:
        The transform `half_shape` with the measured amplitudes, the skewness of its map, and the mean difference
        between measured amplitudes and those of the map after elimination, relative to their mean.
    """
    measured = search.amplitudes

    def cycle(_, state):
        factors, _ = state
        density = jnp.fft.irfftn(factors, s=shape)
        kept = jnp.where(density < ELIMINATION_THRESHOLD * jnp.std(density), 0, density)
        calculated = jnp.fft.rfftn(kept)
        return phased(calculated, measured), calculated

    factors, calculated = jax.lax.fori_loop(0, cycles, cycle, (factors, factors))
    density = jnp.fft.irfftn(factors, s=shape)
    skewness = jnp.mean(density**3) / jnp.mean(density**2) ** 1.5  # the mean of the density is zero
    return factors, skewness, amplitude_disagreement(calculated, measured)


def friedel_counts(amplitudes: Array) -> Array:
    """How many reflections of the sphere each point of the half grid stands for; 0 without an amplitude."""
    twice = jnp.arange(amplitudes.shape[2]) > 0
    return jnp.where(amplitudes > 0, jnp.where(twice, 2, 1).astype(amplitudes.dtype)[None, None, :], 0)


def phased(factors: Array, amplitudes: Array) -> Array:
    """The amplitudes `half_shape` with the phases of the factors `half_shape`."""
    squared = factors.real**2 + factors.imag**2
    return factors * (amplitudes * jax.lax.rsqrt(jnp.maximum(squared, TINY))).astype(factors.dtype)


def shifting_wave(vector: Array, shape: tuple[int, int, int]) -> Array:
    """Factors on the half grid of a map of `shape` are multiplied by these to move it by a `vector`, `(3,)`.

    The vector is in fractions of the edges.
    """
    indices = np.meshgrid(*half_grid_frequencies(shape), indexing='ij', sparse=True)
    angle = sum(2 * np.pi * vector[axis] * along for axis, along in enumerate(indices))
    return jax.lax.complex(jnp.cos(angle), -jnp.sin(angle))


def amplitude_disagreement(calculated: Array, measured: Array) -> Array:
    """Mean difference between measured amplitudes and those of factors, both `half_shape`, relative to their mean."""
    counts, sizes = friedel_counts(measured), jnp.sqrt(calculated.real**2 + calculated.imag**2)
    total = jnp.sum(counts * measured)
    scale = total / jnp.maximum(jnp.sum(counts * sizes), TINY)
    return jnp.sum(counts * jnp.abs(sizes * scale - measured)) / total
