"""What a network is given, a Patterson map on a scale of its own, and what it should return (paper, 2.4)."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from patterson_jax.simulation.maps import centre_origin, invert_map
from patterson_jax.simulation.problem import Problem


def network_input(patterson: Array, problem: Problem, num_atoms: ArrayLike | None = None) -> Array:
    """Patterson maps `(..., grid, grid, grid)` as the network takes them, whatever their scale.

    The origin is moved to voxel grid / 2 unless the problem leaves it in the corner, and the origin peak, the sum of
    the atoms' self-vectors, is brought to `input_scale` per atom, of which there are as many as the problem says unless
    `num_atoms` is given.
    """
    origin_peak = patterson[..., :1, :1, :1]
    num_atoms = jnp.asarray(problem.num_atoms if num_atoms is None else num_atoms, patterson.dtype)
    scaled = patterson * (problem.input_scale * num_atoms / origin_peak)
    return centre_origin(scaled) if problem.origin == 'centre' else scaled


def target_map(density: Array, problem: Problem) -> Array:
    """The network's target for the density of A: (A + B) / 2 with B the inverse of A, or A / 2 (2.4.2)."""
    if problem.target == 'original':
        return density / 2
    return (density + invert_map(density)) / 2
