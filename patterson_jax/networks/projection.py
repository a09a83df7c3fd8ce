"""A small periodic network from maps of crystals with wrong phases to maps of sharp atoms, for any cell.

Charge flipping and low-density elimination change each point of a map by its own value alone. This network also uses
what surrounds a point: bonds, rings, contacts. Its layers are residual 3³ convolutions that wrap around the cell, so
that one set of weights serves every grid.

The layers work on blocks of 2³ voxels: each block is one point with eight channels. So a layer has an eighth of the
work, and sees twice as far. Voxels of 0.5 Å are fine enough for that if the data end at 1.2 Å or at lower resolution.

Resolution, noise, completeness, and the edges and angles of a voxel are further inputs (`conditions`). Each layer
scales and shifts its channels by a linear function of these (Perez et al., FiLM, 2018).
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from patterson_jax.errors import require

BLOCK = 2  # voxels along each edge of a block
CONVOLUTIONS = ('auto', 'products', 'direct')
USUAL_RESOLUTION, USUAL_VOXEL = 1.3, 0.5  # Å, at which the conditions are 0
NUM_CONDITIONS = 9


def conditions(axes: Array, shape: tuple[int, int, int], d_min: Array, noise: Array, completeness: Array) -> Array:
    """The further inputs of the network for a crystal, `(NUM_CONDITIONS,)`, each of the order of 1.

    Args:
        axes: `(3, 3)`, those of the cell along the axes of the grid, Å; a row each.
        shape: of the grid.
        d_min: resolution of the data, Å, `()`.
        noise: relative error of the amplitudes, `()`.
        completeness: share of the reflections to `d_min` that are measured, `()`.
    """
    voxel = axes / jnp.asarray(shape, jnp.float32)[:, None]
    edges = jnp.sqrt(jnp.sum(voxel**2, axis=1))
    units = voxel / edges[:, None]
    cosines = jnp.stack([jnp.vdot(units[i], units[j]) for i, j in ((1, 2), (0, 2), (0, 1))])
    data = jnp.stack([(d_min - USUAL_RESOLUTION) * 5, noise * 10, (1 - completeness) * 10])
    return jnp.concatenate([data, (edges - USUAL_VOXEL) * 10, cosines * 3])


def periodic_convolution(image: Array, kernel: Array, method: str = 'auto') -> Array:
    """Convolves, as networks mean it, with a 3³ kernel that wraps around.

    Args:
        image: `(batch, x, y, z, channels_in)`.
        kernel: `(3, 3, 3, channels_in, channels_out)`.
        method: 'products', a sum of matrix products; 'direct', `lax.conv_general_dilated`; 'auto', the first on CPU,
            where XLA's own operator is several times slower, and the second elsewhere.

    Returns:
        `(batch, x, y, z, channels_out)`.
    """
    if method == 'auto':
        method = 'products' if jax.default_backend() == 'cpu' else 'direct'
    if method == 'products':
        return _by_products(image, kernel)
    layout = ('NDHWC', 'DHWIO', 'NDHWC')
    return jax.lax.conv_general_dilated(_wrapped(image), kernel, (1, 1, 1), 'VALID', dimension_numbers=layout)


@jax.custom_vjp
def _by_products(image, kernel):
    """Nine matrix products, one for each step along x and y; neighbours along z lie side by side."""
    taps = kernel.reshape(9, -1, kernel.shape[-1])
    return sum(part @ tap for part, tap in zip(_neighbours(image), taps, strict=True))


def _products_forward(image, kernel):
    return _by_products(image, kernel), (image, kernel)


def _products_backward(saved, cotangent):
    """The gradients are products of the same kind; those that JAX derives take twice as long."""
    image, kernel = saved
    to_image = _by_products(cotangent, jnp.swapaxes(kernel[::-1, ::-1, ::-1], 3, 4))
    flat = cotangent.reshape(-1, cotangent.shape[-1])
    to_kernel = jnp.stack([part.reshape(-1, part.shape[-1]).T @ flat for part in _neighbours(image)])
    return to_image, to_kernel.reshape(kernel.shape)


_by_products.defvjp(_products_forward, _products_backward)


def _neighbours(image):
    """For each step along x and y, `(batch, x, y, z, 3 channels)`: the image so moved, its neighbours along z."""
    x, y, z = image.shape[1:4]
    padded = _wrapped(image)
    rows = jnp.concatenate([padded[:, :, :, step : step + z] for step in range(3)], axis=-1)
    return [rows[:, i : i + x, j : j + y] for i, j in itertools.product(range(3), repeat=2)]


def _wrapped(image):
    return jnp.pad(image, [(0, 0), (1, 1), (1, 1), (1, 1), (0, 0)], mode='wrap')


class PeriodicConvolution(nn.Module):
    """`periodic_convolution` with He-normal weights and a bias.

    Attributes:
        features: channels of the output.
        method: of `periodic_convolution`.
        gain: factor on the standard deviation of the first weights.
    """

    features: int
    method: str = 'auto'
    gain: float = 1.0

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """Applies the layer."""
        initial = nn.initializers.variance_scaling(2 * self.gain**2, 'fan_in', 'truncated_normal')
        kernel = self.param('kernel', initial, (3, 3, 3, image.shape[-1], self.features))
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        return periodic_convolution(image, kernel, self.method) + bias[None, None, None, None, :]


class ProjectionNet(nn.Module):
    """Maps densities `(batch, x, y, z)` of standard deviation 1, x, y and z even, to those of sharp atoms.

    The output, of the same shape, has standard deviation 1 where it is right. An invalid field raises InputError.

    Attributes:
        features: channels of a layer.
        num_blocks: residual layers between the first and the last.
        convolution: method of `periodic_convolution`.
    """

    features: int = 24
    num_blocks: int = 5
    convolution: str = 'auto'

    def __post_init__(self):
        require(self.features >= 1, 'features', self.features, '1 or more')
        require(self.num_blocks >= 0, 'num_blocks', self.num_blocks, '0 or more')
        require(self.convolution in CONVOLUTIONS, 'convolution', self.convolution, f'one of {", ".join(CONVOLUTIONS)}')
        super().__post_init__()

    @nn.compact
    def __call__(self, density: Array, told: Array) -> Array:
        """Applies the network to densities and what `conditions` says of each, `(batch, NUM_CONDITIONS)`."""
        image = self._layer(into_blocks(density), told, 'first')
        for number in range(self.num_blocks):
            image = image + 0.5 * self._layer(image, told, f'block_{number}')
        last = PeriodicConvolution(BLOCK**3, self.convolution, gain=0.3, name='last')
        return out_of_blocks(last(image))

    def _layer(self, image, told, name):
        image = PeriodicConvolution(self.features, self.convolution, name=name)(image)
        modulation = nn.Dense(2 * self.features, kernel_init=nn.initializers.zeros, name=f'{name}_told')(told)
        scale, shift = jnp.split(modulation[:, None, None, None, :], 2, axis=-1)
        return jax.nn.relu(image * (1 + scale) + shift)


def into_blocks(density: Array) -> Array:
    """Densities `(batch, x, y, z)` as blocks `(batch, x/2, y/2, z/2, 8)`."""
    batch, *shape = density.shape
    halves = [part for size in shape for part in (size // BLOCK, BLOCK)]
    return jnp.transpose(density.reshape(batch, *halves), (0, 1, 3, 5, 2, 4, 6)).reshape(
        batch, *(size // BLOCK for size in shape), BLOCK**3
    )


def out_of_blocks(image: Array) -> Array:
    """The inverse of `into_blocks`."""
    batch, x, y, z, _ = image.shape
    parts = jnp.transpose(image.reshape(batch, x, y, z, BLOCK, BLOCK, BLOCK), (0, 1, 4, 2, 5, 3, 6))
    return parts.reshape(batch, x * BLOCK, y * BLOCK, z * BLOCK)
