"""The layers of networks: convolutions of some precision, pooling and its opposite."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from patterson_jax.networks.convolution import convolve

AXIS = 'devices'  # over which parallel work runs, and batch normalisation takes its means
PRECISIONS = {  # the type of what goes from layer to layer, and how JAX is to multiply matrices within one
    'float32': ('float32', 'highest'),
    'tf32': ('float32', 'tensorfloat32'),
    'bfloat16': ('bfloat16', 'default'),
}


class Convolution(nn.Module):
    """A "same" convolution, with bias or without; `(x, y, z, channel, batch)` in and out, He-normal weights.

    The weights are of single precision; they are rounded where they are used. The image is in the type of `precision`.
    """

    features: int
    kernel_size: int
    method: str = 'auto'
    precision: str = 'float32'
    use_bias: bool = True

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """Applies the layer."""
        shape = (self.kernel_size,) * 3 + (image.shape[3], self.features)
        kernel = self.param('kernel', nn.initializers.he_normal(), shape)
        kind, products = PRECISIONS[self.precision]
        image = convolve(image.astype(kind), kernel.astype(kind), self.method, products)
        if not self.use_bias:
            return image
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        return image + bias.astype(image.dtype)[None, None, None, :, None]


def max_pool(image: Array) -> Array:
    """Maximum over blocks of 2³ of the first three axes, as pairs along each axis.

    `nn.max_pool` has a gradient that GPUs refuse in deterministic mode; this form has not.
    """
    for axis in range(3):
        even = jax.lax.slice_in_dim(image, 0, None, 2, axis)
        odd = jax.lax.slice_in_dim(image, 1, None, 2, axis)
        image = jnp.maximum(even, odd)
    return image


def upsample(image: Array) -> Array:
    """Repeats every value of the first three axes 2³ times."""
    for axis in range(3):
        image = jnp.repeat(image, 2, axis=axis)
    return image
