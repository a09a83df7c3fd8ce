"""Inverts, shifts, cuts and compares maps. All are arrays `(..., grid, grid, grid)` and periodic."""

import jax.numpy as jnp
import numpy as np
from jax import Array


def invert_map(density: Array) -> Array:
    """Inverts maps `(..., grid, grid, grid)` through the box centre: voxel i goes to grid − 1 − i."""
    return jnp.flip(density, axis=(-3, -2, -1))


def centre_origin(patterson: Array) -> Array:
    """Moves the origin of Patterson maps from voxel 0 to voxel grid / 2 of each axis."""
    return jnp.fft.fftshift(patterson, axes=(-3, -2, -1))


def middle(maps: Array, size: int) -> Array:
    """The middle `(..., size, size, size)` of maps `(..., grid, grid, grid)`, with the same centre."""
    first = (maps.shape[-1] - size) // 2
    inside = slice(first, first + size)
    return maps[..., inside, inside, inside]


def surround(maps: Array, grid_size: int) -> Array:
    """Puts maps `(..., size, size, size)` in the middle of empty maps of edge `grid_size`: the opposite of `middle`."""
    margin = (grid_size - maps.shape[-1]) // 2
    return jnp.pad(maps, [(0, 0)] * (maps.ndim - 3) + [(margin, margin)] * 3)


def origin_distances(grid_size: int) -> np.ndarray:
    """Distance of each voxel of a periodic map from the nearest origin, `(grid, grid, grid)`, voxels."""
    axis = np.minimum(np.arange(grid_size), grid_size - np.arange(grid_size))
    return np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)


def map_correlation(first: Array, second: Array) -> Array:
    """Pearson correlation of maps over the last three axes; 0 where a map is constant."""

    def standardised(each):
        low, high = (reduce(each, axis=(-3, -2, -1), keepdims=True) for reduce in (jnp.min, jnp.max))
        each = (each - low) / jnp.where(high > low, high - low, 1)
        each = each - jnp.mean(each, axis=(-3, -2, -1), keepdims=True)
        squared = jnp.sum(each**2, axis=(-3, -2, -1), keepdims=True)
        return each / jnp.sqrt(jnp.where(squared > 0, squared, 1))

    return jnp.sum(standardised(first) * standardised(second), axis=(-3, -2, -1))
