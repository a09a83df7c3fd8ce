"""A network's map, averaged over orientations of the cell in which the network is shown a Patterson map.

A cubic cell looks the same after 48 rotations and reflections about its centre. A network that learned from random
cases is not quite indifferent to them: its errors differ from one orientation to the next, and partly cancel in the
mean of its maps (by how much: docs/training.md). Inversion is one of the 48 and leaves a Patterson map as it is, so
that 24 are different.
"""

import itertools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

# The axis that is reflected, None if none is, and the order in which the axes then are.
ORIENTATIONS = tuple(itertools.product((None, 0, 1, 2), itertools.permutations(range(3))))


def averaged_over_orientations(predict: Callable[[Array], Array], count: int) -> Callable[[Array], Array]:
    """A function like `predict` that gives the mean of its maps in the first `count` of ORIENTATIONS.

    Both take Patterson maps `(batch, grid, grid, grid)`, their origin at voxel 0 or grid / 2 of each axis, and give
    density maps of that shape. All orientations are predicted as one batch.
    """
    if count == 1:
        return predict
    chosen = ORIENTATIONS[:count]

    def predict_in_all(pattersons: Array) -> Array:
        turned = jnp.concatenate([turn_patterson(pattersons, *orientation) for orientation in chosen])
        densities = jnp.split(predict(turned), count)
        turned_back = [turn_back(each, *orientation) for each, orientation in zip(densities, chosen, strict=True)]
        return sum(turned_back[1:], turned_back[0]) / count

    return predict_in_all


def turn_patterson(pattersons: Array, reflected: int | None, order: tuple[int, ...]) -> Array:
    """Patterson maps `(batch, grid, grid, grid)` in another orientation; voxel i of a reflected axis goes to −i."""
    if reflected is not None:
        pattersons = jnp.roll(jnp.flip(pattersons, 1 + reflected), 1, 1 + reflected)
    return jnp.transpose(pattersons, (0, *(1 + axis for axis in order)))


def turn_back(densities: Array, reflected: int | None, order: tuple[int, ...]) -> Array:
    """Density maps of Patterson maps that were turned, in the first orientation; they turn about the box centre."""
    densities = jnp.transpose(densities, (0, *(1 + int(axis) for axis in np.argsort(order))))
    return densities if reflected is None else jnp.flip(densities, 1 + reflected)
