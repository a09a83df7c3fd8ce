"""Moves the atoms of a set together in a periodic cell, and compares sets.

A set is an array with a fixed number of places. The first `num_atoms` places are taken by its atoms. The others repeat
the first atom, so that a set with empty places can be compared like any other.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


def taken_places(positions: Array, num_atoms: ArrayLike) -> Array:
    """Which places of a set `(places, 3)` are taken, `(places,)`."""
    return jnp.arange(positions.shape[0]) < num_atoms


def fill_places(positions: np.ndarray, places: int) -> np.ndarray:
    """A set `(num_atoms, 3)` with more places, `(places, 3)`, on the host."""
    empty = np.repeat(positions[:1], places - len(positions), axis=0)
    return np.concatenate([positions, empty]).astype(np.float32)


def compact(positions: Array, grid_size: int, num_atoms: ArrayLike | None = None) -> Array:
    """Moves atoms `(places, 3)` of a periodic cell together, mean zero; all places are taken if `num_atoms` is None."""
    num_atoms = positions.shape[0] if num_atoms is None else num_atoms
    taken = taken_places(positions, num_atoms)[:, None]

    def mean(values):
        return jnp.sum(jnp.where(taken, values, 0), axis=0, keepdims=True) / jnp.asarray(num_atoms, values.dtype)

    angles = 2 * math.pi / grid_size * positions
    middle = jnp.arctan2(mean(jnp.sin(angles)), mean(jnp.cos(angles))) * (grid_size / (2 * math.pi))
    positions = (positions - middle + grid_size / 2) % grid_size - grid_size / 2
    positions = positions - mean(positions)
    return jnp.where(taken, positions, positions[:1])


def same_atoms(first: Array, second: Array, tolerance: float) -> Array:
    """Whether two sets `(places, 3)` with mean zero are the same, or one is the inverse of the other.

    Every atom of each set must have an atom of the other within `tolerance`.
    """

    def close(sign):
        distances = jnp.sum((first[:, None] - sign * second[None]) ** 2, axis=-1)
        farthest = jnp.maximum(jnp.max(jnp.min(distances, axis=0)), jnp.max(jnp.min(distances, axis=1)))
        return farthest <= tolerance**2

    return close(1) | close(-1)
