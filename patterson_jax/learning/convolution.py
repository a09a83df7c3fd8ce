"""3-D "same" convolution at the machine's speed, with the numbers of `lax.conv_general_dilated`.

XLA convolves in three dimensions on CPU at a small part of what the cores can do, and a 5³ or 7³ kernel is large
enough for the Fourier transform to need far less arithmetic. The spectral method below transforms image and kernel,
multiplies, and transforms back. The kernel is an ordinary real-space parameter for either method, so weights do not
depend on the choice.

Arrays are `(batch, channel, x, y, z)`; kernels `(kernel, kernel, kernel, channels_in, channels_out)`, odd, as in Flax.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

METHODS = ('auto', 'spectral', 'direct')
SPACE = (-3, -2, -1)


def convolve(image: Array, kernel: Array, method: str = 'auto') -> Array:
    """Convolution (as networks mean it: correlation) with zero padding, output of the image's size.

    Args:
        image: `(batch, channels_in, x, y, z)`.
        kernel: `(k, k, k, channels_in, channels_out)`, k odd.
        method: 'spectral', 'direct' (`lax.conv_general_dilated`), or 'auto': spectral on CPU, direct elsewhere.

    Returns:
        `(batch, channels_out, x, y, z)`.

    Raises:
        ValueError: the kernel is not a cube of odd edge, the channels do not match, or no such method.
    """
    if kernel.ndim != 5 or len(set(kernel.shape[:3])) != 1 or kernel.shape[0] % 2 == 0:
        raise ValueError(f'kernel has shape {kernel.shape}; it must be (k, k, k, channels_in, channels_out) with k odd')
    if image.ndim != 5 or image.shape[1] != kernel.shape[3]:
        raise ValueError(f'image has shape {image.shape}; it must be (batch, {kernel.shape[3]}, x, y, z)')
    if method not in METHODS:
        raise ValueError(f'method is {method!r}; it must be one of {", ".join(METHODS)}')
    if method == 'auto':
        method = 'spectral' if jax.default_backend() == 'cpu' else 'direct'
    return spectral_convolution(image, kernel) if method == 'spectral' else direct_convolution(image, kernel)


def direct_convolution(image: Array, kernel: Array) -> Array:
    """The convolution by XLA's own operator."""
    layout = ('NCDHW', 'DHWIO', 'NCDHW')
    return jax.lax.conv_general_dilated(image, kernel, (1, 1, 1), 'SAME', dimension_numbers=layout)


@jax.custom_vjp
def spectral_convolution(image: Array, kernel: Array) -> Array:
    """The convolution by Fourier transforms, with transforms shared between value and gradients."""
    return _forward(image, kernel)[0]


def _forward(image, kernel):
    shape, half = image.shape[-3:], kernel.shape[0] // 2
    image_spectrum = _transform(image, _transform_shape(shape, half))
    kernel_spectrum = _transform(jnp.transpose(kernel, (3, 4, 0, 1, 2)), _transform_shape(shape, half))
    spectrum = _contract(image_spectrum, jnp.conj(kernel_spectrum))
    result = _crop(jnp.roll(_inverse(spectrum, shape, half), (half,) * 3, SPACE), shape)
    return result, (image_spectrum, kernel_spectrum, shape, half)


def _backward(saved, cotangent):
    image_spectrum, kernel_spectrum, shape, half = saved
    cotangent_spectrum = _transform(cotangent, _transform_shape(shape, half))
    spectrum = _contract(cotangent_spectrum, jnp.swapaxes(kernel_spectrum, 0, 1))
    to_image = _crop(jnp.roll(_inverse(spectrum, shape, half), (-half,) * 3, SPACE), shape)
    pairs = zip(image_spectrum, jnp.conj(cotangent_spectrum), strict=True)
    spectrum = functools.reduce(jnp.add, (image[:, None] * other[None] for image, other in pairs))
    taps = (2 * half + 1,) * 3
    to_kernel = _crop(jnp.roll(_inverse(spectrum, shape, half), (half,) * 3, SPACE), taps)
    return to_image, jnp.transpose(to_kernel, (2, 3, 4, 0, 1))


def _transform_shape(shape, half):
    """Sizes that keep what wraps around out of the output: what reaches only the padding may wrap."""
    return tuple(fast_size(max(size, half + 1) + half) for size in shape)


@functools.cache
def fast_size(least: int) -> int:
    """The smallest 2ᵃ3ᵇ5ᶜ that is at least `least`: sizes that Fourier transforms are fast at."""
    size = least
    while True:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 1


def _transform(array, size):
    return jnp.fft.rfftn(array, s=size, axes=SPACE)


def _inverse(spectrum, shape, half):
    return jnp.fft.irfftn(spectrum, s=_transform_shape(shape, half), axes=SPACE)


def _crop(array, shape):
    return array[..., : shape[0], : shape[1], : shape[2]]


def _contract(image_spectrum, kernel_spectrum):
    """Sum over input channels, (b, i, …) and (i, o, …) to (b, o, …); written out, as XLA on CPU fuses it best."""
    products = (image_spectrum[:, i, None] * kernel_spectrum[None, i] for i in range(image_spectrum.shape[1]))
    return functools.reduce(jnp.add, products)


spectral_convolution.defvjp(_forward, _backward)
