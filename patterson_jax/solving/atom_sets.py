"""Sets of atoms in a periodic cell: brought together, and compared."""

import math

import jax.numpy as jnp
from jax import Array


def compact(positions: Array, grid_size: int) -> Array:
    """Brings atoms `(num_atoms, 3)` of a periodic cell together and their mean to the origin."""
    angles = 2 * math.pi / grid_size * positions
    middle = jnp.arctan2(jnp.mean(jnp.sin(angles), axis=0), jnp.mean(jnp.cos(angles), axis=0))
    middle = middle[None] * (grid_size / (2 * math.pi))
    positions = (positions - middle + grid_size / 2) % grid_size - grid_size / 2
    return positions - jnp.mean(positions, axis=0, keepdims=True)


def same_atoms(first: Array, second: Array, tolerance: float) -> Array:
    """Whether two sets `(num_atoms, 3)` with mean zero are the same, or one the inverse of the other.

    Every atom of each must have one of the other within `tolerance`.
    """

    def close(sign):
        distances = jnp.sum((first[:, None] - sign * second[None]) ** 2, axis=-1)
        farthest = jnp.maximum(jnp.max(jnp.min(distances, axis=0)), jnp.max(jnp.min(distances, axis=1)))
        return farthest <= tolerance**2

    return close(1) | close(-1)
