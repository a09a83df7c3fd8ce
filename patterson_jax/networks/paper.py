"""The paper's network: 3-D convolutions from a Patterson map to a density map (paper, 2.3).

It has two convolutions on the full grid, a max-pool, convolutions with larger kernels on the half grid, an up-sampling,
and two convolutions on the full grid. There is ReLU between them and tanh at the end; normalisation is optional. The
defaults are the paper's twelve layers and 1,202,821 weights.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from patterson_jax.errors import require
from patterson_jax.networks.convolution import CONVOLUTIONS
from patterson_jax.networks.density_network import DensityNetwork
from patterson_jax.networks.layers import AXIS, PRECISIONS, Convolution, max_pool, upsample

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
        super().__post_init__()

    @nn.compact
    def __call__(self, patterson: Array, train: bool = False) -> Array:
        """Applies the network; in training, batch normalisation uses and updates the statistics of the batch."""

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

        image = jnp.moveaxis(patterson, 0, -1)[:, :, :, None]
        image = hidden_layers(image, 'encoder', self.encoder_depth, self.outer_kernel_size)
        image = max_pool(image)
        image = hidden_layers(image, 'inner', self.inner_depth, self.inner_kernel_size)
        image = upsample(image)
        image = hidden_layers(image, 'decoder', self.decoder_depth, self.outer_kernel_size)
        image = self._convolution(1, self.outer_kernel_size, 'output')(image)
        return jnp.tanh(jnp.moveaxis(image[:, :, :, 0], -1, 0).astype(jnp.float32))

    def check_crop(self, crop: int) -> None:
        """Raises InputError with batch normalisation."""
        unnormalised = self.batch_norm == 'none'
        require(unnormalised, 'train.crop', crop, '0 with model.batch_norm, which needs the moments of whole maps')

    def _convolution(self, features, kernel_size, name, use_bias=True):
        return Convolution(features, kernel_size, self.convolution, self.precision, use_bias, name=name)
