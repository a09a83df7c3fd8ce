"""Peaks of a density map: candidate positions of atoms (paper, 2.4.4).

The map holds two sets of atoms that may overlap, and of two overlapping atoms only one may be a local maximum. So
peaks are taken one at a time, highest first, and each atom is subtracted from the map before the next peak is searched
for. This is CLEAN (Högbom, Astron. Astrophys. Suppl. 15, 417, 1974) with an atom as the beam.
"""

import jax
import jax.numpy as jnp
from jax import Array

from patterson_jax.simulation.density import render
from patterson_jax.simulation.problem import Problem


def find_peaks(density: Array, num_peaks: int, problem: Problem) -> tuple[Array, Array]:
    """The highest peaks of a map of both enantiomorphs.

    Args:
        density: `(grid, grid, grid)`, on the scale of the network's target, where an atom's greatest density is 1/2.
        num_peaks: how many to return.
        problem: size of the grid and of the atoms.

    Returns:
        positions: `(num_peaks, 3)`, voxels from the box centre, in the order in which they were found.
        heights: `(num_peaks,)`, the density at each peak, without the atoms found before it.
    """

    def take_peak(residual, _):
        position, height = highest_peak(residual)
        return residual - render(position[None], problem.grid_size, problem.atom_radius) / 2, (position, height)

    return jax.lax.scan(take_peak, density, length=num_peaks)[1]


def highest_peak(density: Array) -> tuple[Array, Array]:
    """Position of the highest voxel of a periodic map, as the weighted mean of the 3³ voxels about it, and its height.

    Negative density has no weight. The position is in voxels from the box centre.
    """
    height = jnp.max(density)
    voxel = jnp.stack(jnp.unravel_index(jnp.argmax(density), density.shape))
    steps = jnp.arange(-1, 2)
    x, y, z = (voxel[:, None] + steps[None]) % density.shape[0]
    weights = jnp.maximum(density[x[:, None, None], y[None, :, None], z[None, None, :]], 0)
    offsets = jnp.stack(jnp.meshgrid(steps, steps, steps, indexing='ij'), axis=-1).astype(density.dtype)
    total = jnp.maximum(jnp.sum(weights), jnp.finfo(density.dtype).tiny)
    shift = jnp.sum(weights[..., None] * offsets, axis=(0, 1, 2)) / total
    return voxel.astype(density.dtype) + 0.5 + shift - density.shape[0] / 2, height


def summit(density: Array, voxel: Array) -> Array:
    """Top of the parabola through a highest voxel of a periodic map and its neighbours along each axis.

    Args:
        density: `(nx, ny, nz)`.
        voxel: `(3,)` integers, the indices of the voxel.

    Returns:
        `(3,)`, on the scale of the indices.
    """
    steps, shape = jnp.eye(3, dtype=voxel.dtype), jnp.asarray(density.shape, voxel.dtype)
    ahead, behind = (density[tuple(((voxel[None] + sign * steps) % shape[None]).T)] for sign in (1, -1))
    curvature = jnp.maximum(2 * density[tuple(voxel)] - ahead - behind, jnp.finfo(density.dtype).tiny)
    return voxel.astype(density.dtype) + jnp.clip((ahead - behind) / 2 / curvature, -0.5, 0.5)


def with_inverses(positions: Array) -> Array:
    """Positions `(n, 3)`, then their inverses through the box centre, `(2n, 3)` in all (paper, 2.4.4)."""
    return jnp.concatenate([positions, -positions])
