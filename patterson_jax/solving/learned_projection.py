"""A network in place of low-density elimination: a map, what the network makes of it, the measured amplitudes again.

Transforms are those of NumPy on the half grid, as in `charge_flipping.py`. The network is a function from a map
`shape` of standard deviation 1 to one of sharp atoms.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jax import Array

from patterson_jax.crystal.grid import Grid
from patterson_jax.precision import exact_products
from patterson_jax.solving.charge_flipping import TINY, friedel_counts

VOXEL = 0.48  # Å, in the middle of what the network has learned from
EVEN_SIZES = tuple(
    size for size in range(8, 321, 2) if scipy.fft.next_fast_len(size, real=True) == size
)  # that have no other factors than 2, 3 and 5


class Projected(NamedTuple):
    """Where passes through a network have come to, and what the last of them changed.

    Attributes:
        factors: `half_shape`, measured amplitudes with the phases of the network's map.
        skewness: of their map.
        disagreement: mean difference between measured amplitudes and those of the network's map, relative to their
            mean.
        kept: mean cosine of the angles by which the last pass has turned phases, weighted by E².
    """

    factors: Array
    skewness: Array
    disagreement: Array
    kept: Array


def standard_map(factors: Array, amplitudes: Array, shape: tuple[int, int, int]) -> Array:
    """The map `shape` of phases with amplitudes, both `half_shape`, divided by its standard deviation."""
    density = jnp.fft.irfftn(phased(factors, amplitudes), s=shape)
    return density * jax.lax.rsqrt(jnp.maximum(jnp.mean(density**2), TINY))  # its mean is zero


def phased(factors: Array, amplitudes: Array) -> Array:
    """The amplitudes `half_shape` with the phases of the factors `half_shape`."""
    squared = factors.real**2 + factors.imag**2
    return factors * (amplitudes * jax.lax.rsqrt(jnp.maximum(squared, TINY))).astype(factors.dtype)


def project(
    network: Callable[[Array], Array],
    factors: Array,
    amplitudes: Array,
    shape: tuple[int, int, int],
    passes: Array | int,
) -> Projected:
    """Passes a map through a network, several times; at least once.

    Args:
        network: from a map `shape` of standard deviation 1 to a map of atoms.
        factors: `half_shape`; their phases count.
        amplitudes: `half_shape`, measured E values; zero where nothing was measured.
        shape: of the grid.
        passes: how many.
    """

    def once(_, state):
        before, _ = state
        return jnp.fft.rfftn(network(standard_map(before, amplitudes, shape))), before

    calculated, before = jax.lax.fori_loop(0, passes, once, (factors, factors))
    counts = friedel_counts(amplitudes)
    weights = counts * amplitudes**2
    ones = jnp.ones_like(amplitudes)
    cosines = (phased(calculated, ones) * jnp.conj(phased(before, ones))).real
    sizes, total = jnp.sqrt(calculated.real**2 + calculated.imag**2), jnp.sum(counts * amplitudes)
    scale = total / jnp.maximum(jnp.sum(counts * sizes), TINY)
    density = standard_map(calculated, amplitudes, shape)
    return Projected(
        phased(calculated, amplitudes),
        jnp.mean(density**3),
        jnp.sum(counts * jnp.abs(sizes * scale - amplitudes)) / total,
        jnp.sum(weights * cosines) / jnp.sum(weights),
    )


@dataclasses.dataclass(frozen=True)
class LearnedProjection:
    """A trained network on a crystal.

    Attributes:
        predict: from weights, a map `shape` and what the network is told, to a map of atoms.
        weights: of the network.
        told: what the network is told of the crystal.
        hkl: `(n, 3)`, of the crystal in P1, one of each Friedel pair.
        grid: for the network's maps.
        amplitudes: E values on its half grid.
    """

    predict: Callable[[Any, Array, Array], Array]
    weights: Any
    told: Array
    hkl: np.ndarray
    grid: Grid
    amplitudes: Array

    def passed(self, factors: np.ndarray, passes: int) -> tuple[np.ndarray, Projected]:
        """Factors `(n,)` of the reflections after passes through the network, and what is told of the last of them."""
        placed = self.grid.place(self.hkl, factors.astype(np.complex64))
        projected = _project(
            self.predict, self.weights, self.told, placed, self.amplitudes, self.grid.shape, np.int32(passes)
        )
        return self.grid.take(np.asarray(projected.factors), self.hkl), projected


@functools.partial(jax.jit, static_argnums=(0, 5))
@exact_products
def _project(predict, weights, told, factors, amplitudes, shape, passes):
    return project(lambda density: predict(weights, density, told), factors, amplitudes, shape, passes)


def network_grid(hkl: np.ndarray, edges: np.ndarray, axes: tuple[int, int, int]) -> Grid:
    """A grid of even sizes whose voxels are nearest to `VOXEL`, on which no reflection reaches the border.

    Args:
        hkl: `(n, 3)`.
        edges: `(3,)` of the cell, Å.
        axes: edges of the cell along the axes of the grid.
    """
    needed = 2 * np.abs(hkl).max(axis=0) + 2
    sizes = []
    for axis in axes:
        possible = [size for size in EVEN_SIZES if size >= needed[axis]] or [2 * -(-int(needed[axis]) // 2)]
        sizes.append(min(possible, key=lambda size: abs(np.log(edges[axis] / size / VOXEL))))
    return Grid((sizes[0], sizes[1], sizes[2]), axes)
