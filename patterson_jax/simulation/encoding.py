"""The input of a network, a Patterson map on a fixed scale, and its target (paper, 2.4)."""

import dataclasses

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from patterson_jax.errors import is_real, require
from patterson_jax.simulation.maps import centre_origin, invert_map

TARGETS = ('both', 'original')
ORIGINS = ('centre', 'corner')


@dataclasses.dataclass(frozen=True)
class Encoding:
    """The input and the target of a network. Raises InputError if a field is invalid.

    Attributes:
        target: 'both': the network's target is (A + B) / 2 with B the inverse of A (2.4.2); 'original': it is A / 2.
        input_scale: height that the self-vector peak of one atom has in the network's input.
        origin: where the network's input has the origin of the Patterson map: 'centre', at voxel grid / 2, or
            'corner', at voxel 0.
    """

    target: str = 'both'
    input_scale: float = 0.7
    origin: str = 'centre'

    def __post_init__(self):
        require(self.target in TARGETS, 'target', self.target, f'one of {", ".join(TARGETS)}')
        positive = is_real(self.input_scale) and self.input_scale > 0
        require(positive, 'input_scale', self.input_scale, 'a positive number')
        require(self.origin in ORIGINS, 'origin', self.origin, f'one of {", ".join(ORIGINS)}')


def network_input(patterson: Array, num_atoms: ArrayLike, encoding: Encoding) -> Array:
    """Patterson maps `(..., grid, grid, grid)`, on any scale, as the network takes them.

    The origin moves to voxel grid / 2, unless the encoding leaves it in the corner. The maps are scaled so that the
    origin peak, the sum of the atoms' self-vectors, is `input_scale` for each atom.
    """
    origin_peak = patterson[..., :1, :1, :1]
    scaled = patterson * (encoding.input_scale * jnp.asarray(num_atoms, patterson.dtype) / origin_peak)
    return centre_origin(scaled) if encoding.origin == 'centre' else scaled


def target_map(density: Array, encoding: Encoding) -> Array:
    """The network's target for the density of A: (A + B) / 2 with B the inverse of A, or A / 2 (2.4.2)."""
    if encoding.target == 'original':
        return density / 2
    return (density + invert_map(density)) / 2
