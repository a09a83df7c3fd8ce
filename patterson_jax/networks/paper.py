"""The paper's network: 3-D convolutions from a Patterson map to a density map (paper, 2.3).

It has two convolutions on the full grid, a max-pool, convolutions with larger kernels on the half grid, an up-sampling,
and two convolutions on the full grid. There is ReLU between them and tanh at the end; normalisation is optional. The
defaults are the paper's twelve layers and 1,202,821 weights.

Vectors and atoms fill only the middle of the maps. With `input_size` the layers are given no more than that, which
costs less, and the output around it is zero. Weights belong to the `input_size` with which they were trained: they have
learned where the maps end (docs/training.md).
"""

import math
from typing import Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from patterson_jax.errors import require
from patterson_jax.networks.convolution import CONVOLUTIONS
from patterson_jax.networks.density_network import DensityNetwork
from patterson_jax.networks.layers import AXIS, PRECISIONS, Convolution, max_pool, upsample
from patterson_jax.simulation.maps import middle, surround
from patterson_jax.simulation.problem import Problem

BATCH_NORM = ('none', 'early', 'all')


class PattersonNet(DensityNetwork):
    """Maps Patterson maps, as `simulation.encoding.network_input` makes them, to density maps.

    Both are `(batch, grid, grid, grid)`, grid even; the output lies in [−1, 1]. An invalid field raises InputError.

    Attributes:
        features: channels of every hidden layer.
        outer_kernel_size: kernel edge of the layers on the full grid, odd.
        inner_kernel_size: kernel edge of the layers on the half grid, odd.
        encoder_depth: hidden layers on the full grid before the pool.
        inner_depth: hidden layers on the half grid.
        decoder_depth: hidden layers on the full grid after the up-sampling, before the output layer.
        convolution: method of `networks.convolution.convolve`.
        precision: 'float32', 'tf32' or 'bfloat16', of products in the layers. With 'bfloat16' the images between layers
            have that type too. Weights stay in float32.
        batch_norm: which hidden layers are normalised over batch and voxels before their ReLU: 'none' (the paper),
            'early' (those before the pool) or 'all'. With it, training must run under `parallelize`.
        input_size: edge in voxels of the middle of the maps that the layers are given, even; 0: whole maps. Outside it
            the output is zero.
    """

    features: int = 20
    outer_kernel_size: int = 5
    inner_kernel_size: int = 7
    encoder_depth: int = 2
    inner_depth: int = 8
    decoder_depth: int = 1
    convolution: str = 'auto'
    precision: str = 'float32'
    batch_norm: str = 'none'
    input_size: int = 0

    def __post_init__(self):
        require(self.features >= 1, 'features', self.features, '1 or more')
        for field in ('outer_kernel_size', 'inner_kernel_size'):
            size = getattr(self, field)
            require(size >= 1 and size % 2 == 1, field, size, 'an odd number, 1 or more')
        for field in ('encoder_depth', 'inner_depth', 'decoder_depth'):
            require(getattr(self, field) >= 0, field, getattr(self, field), '0 or more')
        require(self.convolution in CONVOLUTIONS, 'convolution', self.convolution, f'one of {", ".join(CONVOLUTIONS)}')
        require(self.precision in PRECISIONS, 'precision', self.precision, f'one of {", ".join(PRECISIONS)}')
        require(self.batch_norm in BATCH_NORM, 'batch_norm', self.batch_norm, f'one of {", ".join(BATCH_NORM)}')
        size = self.input_size
        require(size >= 0 and size % 2 == 0, 'input_size', size, 'an even number, or 0 for whole maps')
        super().__post_init__()

    @nn.compact
    def __call__(self, patterson: Array, train: bool = False) -> Array:
        """Applies the network; in training, batch normalisation uses and updates the statistics of the batch.

        Raises InputError if the maps are smaller than input_size.
        """
        grid = patterson.shape[-1]
        require(self.input_size <= grid, 'input_size', self.input_size, f'at most the edge of the maps, {grid}')

        def hidden_layers(image, part, depth, kernel_size):
            normalised = self.batch_norm == 'all' or (self.batch_norm == 'early' and part == 'encoder')
            for number in range(depth):
                name = f'{part}_{number}'
                # Normalisation removes a bias again; Adam would amplify the rounding errors of its gradient.
                layer = self._convolution(self.features, kernel_size, name, use_bias=not normalised)
                image = layer(image)
                if normalised:
                    axis = None if self.is_initializing() else AXIS
                    norm = nn.BatchNorm(not train, axis=3, axis_name=axis, name=f'{name}_norm')
                    image = norm(image)
                image = jax.nn.relu(image)
            return image

        maps = middle(patterson, self.input_size) if self.input_size else patterson
        image = jnp.moveaxis(maps, 0, -1)[:, :, :, None]
        image = hidden_layers(image, 'encoder', self.encoder_depth, self.outer_kernel_size)
        image = max_pool(image)
        image = hidden_layers(image, 'inner', self.inner_depth, self.inner_kernel_size)
        image = upsample(image)
        image = hidden_layers(image, 'decoder', self.decoder_depth, self.outer_kernel_size)
        image = self._convolution(1, self.outer_kernel_size, 'output')(image)
        density = jnp.tanh(jnp.moveaxis(image[:, :, :, 0], -1, 0).astype(jnp.float32))
        return surround(density, grid)

    def check_problem(self, problem: Problem) -> None:
        """Raises InputError if interatomic vectors can lie outside the middle that the layers are given.

        Of a vector between two centres that is as long as the inner box along an axis, the middle must hold the peak as
        far as a radius beyond its summit. There is half a voxel less of it on one side, as its origin is a voxel.
        """
        grid, size = problem.grid_size, self.input_size
        if not size:
            return
        smallest = 2 * math.ceil(problem.box_edge + problem.atom_radius + 0.5)
        allowed = f'0 or {smallest} to {grid}' if smallest < grid else '0, as the vectors fill the grid'
        require(smallest <= size <= grid, 'model.input_size', size, allowed)
        centred = problem.encoding.origin == 'centre'
        require(centred, 'model.input_size', size, "0 with problem.origin 'corner', where vectors lie outside")

    def seen(self, grid_size: int) -> int:
        """Edge of the middle of the maps: `input_size`, or all of them."""
        return self.input_size or grid_size

    def on_whole_maps(self) -> Self:
        """The network without `input_size`."""
        return self.clone(input_size=0)

    def _convolution(self, features, kernel_size, name, use_bias=True):
        return Convolution(features, kernel_size, self.convolution, self.precision, use_bias, name=name)
