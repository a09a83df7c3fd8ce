"""Examples: from a key to atoms, the network's input and its target (paper, 2.4).

Nothing is stored. An example is a pure function of (seed, stream, set, index). So every device, host and batch makes
the same one.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from patterson_jax.precision import exact_products
from patterson_jax.simulation.atoms import draw_positions
from patterson_jax.simulation.density import render
from patterson_jax.simulation.encoding import target_map
from patterson_jax.simulation.measurement import measured_map
from patterson_jax.simulation.problem import Problem

# Numbers, because they are folded into keys: to change one is to change every case of its stream.
STREAMS = {
    'training': 0,
    'validation': 1,
    'calibration': 2,
    'evaluation': 3,
    'separation': 4,
    'random': 5,
    'order': 6,
    'files': 7,
}
NOISE = 2**32 - 1  # folded into an example's key for its noise; the attempts at its positions are numbered from 0


class Example(NamedTuple):
    """One case.

    Attributes:
        positions: `(num_atoms, 3)`, voxels from the box centre.
        patterson: `(grid, grid, grid)`, the Patterson map as it is measured, origin at voxel (0, 0, 0).
        target: `(grid, grid, grid)`, the map that the network should return.
    """

    positions: Array
    patterson: Array
    target: Array


def stream_key(seed: int, stream: str) -> Array:
    """Key of a stream of cases with a name in `STREAMS`. Streams share no case."""
    return jax.random.fold_in(jax.random.key(seed), STREAMS[stream])


def example_key(stream: Array, set_number: Array | int, index: Array | int) -> Array:
    """Key of case `index` of set `set_number` of a stream (a key from `stream_key`)."""
    return jax.random.fold_in(jax.random.fold_in(stream, set_number), index)


@exact_products
def make_example(key: Array, problem: Problem) -> Example:
    """The case that belongs to a key."""
    positions = draw_positions(key, problem)
    density = render(positions, problem.grid_size, problem.atom_radius)
    patterson = measured_map(jax.random.fold_in(key, NOISE), density, problem.measurement)
    return Example(positions, patterson, target_map(density, problem.encoding))


def make_batch(stream: Array, set_number: Array | int, indices: Array, problem: Problem) -> Example:
    """Cases `indices` `(batch,)` of one set, or each of its own set, `(batch,)`, stacked along a leading axis."""
    sets = jnp.broadcast_to(set_number, indices.shape)
    keys = jax.vmap(functools.partial(example_key, stream))(sets, indices)
    return jax.vmap(lambda key: make_example(key, problem))(keys)
