"""Fast 3-D "same" convolution, with the same results as `lax.conv_general_dilated`.

On a CPU, XLA's convolution in three dimensions is much slower than the cores allow. With 5³ and 7³ kernels, convolution
by Fourier transforms needs far less arithmetic on any device. The spectral method transforms tiles of the image and the
kernel, multiplies, and transforms back (`patterson_jax/networks/spectra.py`). The kernel is an ordinary real-space
parameter for either method, so weights do not depend on the choice.

Arrays are `(x, y, z, channel, batch)`. Kernels are `(kernel, kernel, kernel, channels_in, channels_out)`, odd, as in
Flax.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from patterson_jax.networks.spectra import (
    correlate,
    cut,
    inverse,
    join,
    kernel_spectrum,
    multiply,
    overlap,
    plan,
    spectrum,
    split,
)

CONVOLUTIONS = ('auto', 'spectral', 'direct')


def convolve(image: Array, kernel: Array, method: str = 'auto', products: str = 'highest') -> Array:
    """Convolution (as networks mean it: correlation) with zero padding, output of the image's size.

    Args:
        image: `(x, y, z, channels_in, batch)`.
        kernel: `(k, k, k, channels_in, channels_out)`, k odd.
        method: 'spectral', 'direct' (`lax.conv_general_dilated`), or 'auto' (`fastest_method` decides).
        products: precision of products, a name for `jax.default_matmul_precision`. On CPU all are float32.

    Returns:
        `(x, y, z, channels_out, batch)`, of the image's type.

    Raises:
        ValueError: the kernel is not a cube of odd edge, the channels do not match, or the method is unknown.
    """
    if kernel.ndim != 5 or len(set(kernel.shape[:3])) != 1 or kernel.shape[0] % 2 == 0:
        raise ValueError(f'kernel has shape {kernel.shape}; it must be (k, k, k, channels_in, channels_out) with k odd')
    if image.ndim != 5 or image.shape[3] != kernel.shape[3]:
        raise ValueError(f'image has shape {image.shape}; it must be (x, y, z, {kernel.shape[3]}, batch)')
    if method not in CONVOLUTIONS:
        raise ValueError(f'method is {method!r}; it must be one of {", ".join(CONVOLUTIONS)}')
    if method == 'auto':
        method = fastest_method(image.shape, kernel.shape)
    by_method = spectral_convolution if method == 'spectral' else direct_convolution
    return by_method(image, kernel, products)


def direct_convolution(image: Array, kernel: Array, products: str = 'highest') -> Array:
    """Convolves with XLA's own operator; arguments as in `convolve`."""
    layout = ('DHWCN', 'DHWIO', 'DHWCN')
    with jax.default_matmul_precision(products):
        return jax.lax.conv_general_dilated(image, kernel, (1, 1, 1), 'SAME', dimension_numbers=layout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def spectral_convolution(image: Array, kernel: Array, products: str = 'highest') -> Array:
    """Convolves by Fourier transforms in float32; arguments as in `convolve`. Gradients reuse transforms."""
    return _forward(image, kernel, products)[0]


def _forward(image, kernel, products):
    with jax.default_matmul_precision(products):
        return _value(image, kernel)


def _backward(products, saved, cotangent):
    with jax.default_matmul_precision(products):
        return _gradients(saved, cotangent)


spectral_convolution.defvjp(_forward, _backward)


def _value(image, kernel):
    axes = plan(image.shape, kernel.shape)
    of_image = spectrum(cut(image, axes), [axis.window_waves for axis in axes])
    of_kernel = kernel_spectrum(jnp.swapaxes(kernel, 3, 4), axes, of_image)
    result = inverse(multiply(of_kernel, of_image), [axis.tile_waves for axis in axes], image.shape[4])
    return join(result, axes).astype(image.dtype), (of_image, kernel, image.shape)


def _gradients(saved, cotangent):
    of_image, kernel, shape = saved
    axes = plan(shape, kernel.shape)
    of_cotangent = spectrum(split(cotangent, axes), [axis.tile_waves for axis in axes])
    of_kernel = kernel_spectrum(kernel, axes, of_cotangent)
    product = multiply(of_kernel, of_cotangent, conjugate=True)
    to_image = overlap(inverse(product, [axis.window_waves for axis in axes], shape[4]), axes)
    product = correlate(of_image, of_cotangent)
    to_kernel = inverse(product, [axis.tap_waves for axis in axes], kernel.shape[4])[..., 0, :]
    return to_image.astype(cotangent.dtype), to_kernel.astype(kernel.dtype)


def fastest_method(image_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> str:
    """The method for 'auto': 'spectral' on CPU for all but points, on GPU for kernels of 5³ and more; else 'direct'.

    On an H200 it makes a step of the paper's network six times as fast (docs/speed.md). 3³ kernels and the unrolled
    network were not measured there.
    """
    smallest = {'cpu': 3, 'gpu': 5}.get(jax.default_backend())
    return 'spectral' if smallest and kernel_shape[0] >= smallest else 'direct'
