"""Averages a network's map over orientations of the Patterson map that it is shown.

A cubic cell looks the same after 48 rotations and reflections about its centre. A network that learned from random
cases does not quite have this symmetry: its errors differ between orientations and partly cancel in the mean of its
maps (docs/training.md says by how much). Inversion is one of the 48 and does not change a Patterson map, so that 24
orientations are different.
"""

import itertools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

# The axis that is reflected, or None, and the order of the axes after that.
ORIENTATIONS = tuple(itertools.product((None, 0, 1, 2), itertools.permutations(range(3))))


def averaged_over_orientations(predict: Callable[[Array], Array], count: int) -> Callable[[Array], Array]:
    """Makes a function like `predict` that gives the mean of its maps in the first `count` of ORIENTATIONS.

    Both take Patterson maps `(batch, grid, grid, grid)`, with the origin at voxel 0 or grid / 2 of each axis, and give
    density maps of that shape. All orientations go through `predict` as one batch.
    """
    if count == 1:
        return predict
    orientations = ORIENTATIONS[:count]

    def predict_in_all(pattersons: Array) -> Array:
        turned = jnp.concatenate([turn_patterson(pattersons, *orientation) for orientation in orientations])
        densities = jnp.split(predict(turned), count)
        pairs = zip(densities, orientations, strict=True)
        turned_back = [turn_back(each, *orientation) for each, orientation in pairs]
        return sum(turned_back[1:], turned_back[0]) / count

    return predict_in_all


def turn_patterson(pattersons: Array, reflected: int | None, order: tuple[int, ...]) -> Array:
    """Turns Patterson maps `(batch, grid, grid, grid)`; voxel i of a reflected axis goes to voxel −i."""
    if reflected is not None:
        pattersons = jnp.roll(jnp.flip(pattersons, 1 + reflected), 1, 1 + reflected)
    return jnp.transpose(pattersons, (0, *(1 + axis for axis in order)))


def turn_back(densities: Array, reflected: int | None, order: tuple[int, ...]) -> Array:
    """Turns density maps of turned Patterson maps back to the first orientation, about the box centre."""
    densities = jnp.transpose(densities, (0, *(1 + int(axis) for axis in np.argsort(order))))
    return densities if reflected is None else jnp.flip(densities, 1 + reflected)
