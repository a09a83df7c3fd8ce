"""Layers of networks: convolutions of several precisions, pooling and up-sampling."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from patterson_jax.networks.convolution import convolve

AXIS = 'devices'  # the axis of parallel work; batch normalisation takes its means over it
PRECISIONS = {  # the type of images between layers, and the precision of matrix products within a layer
    'float32': ('float32', 'highest'),
    'tf32': ('float32', 'tensorfloat32'),
    'bfloat16': ('bfloat16', 'default'),
}


class Convolution(nn.Module):
    """A "same" convolution with He-normal weights, from and to images `(x, y, z, channel, batch)`.

    The weights are kept in float32 and rounded when they are used. The image has the type of `precision`.

    Attributes:
        features: channels of the output.
        kernel_size: edge of the kernel, odd.
        method: of `networks.convolution.convolve`.
        precision: a name in PRECISIONS.
        use_bias: whether to add a bias.
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
    """Maximum over blocks of 2³ voxels of the first three axes, taken in pairs along each axis.

    GPUs in deterministic mode refuse the gradient of `nn.max_pool`; they accept that of this form.
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
