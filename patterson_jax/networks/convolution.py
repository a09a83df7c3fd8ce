"""3-D "same" convolution at the machine's speed, with the numbers of `lax.conv_general_dilated`.

XLA convolves in three dimensions on CPU at a small part of what the cores can do, and 5³ and 7³ kernels are large
enough for the Fourier transform to need far less arithmetic. The spectral method transforms tiles of the image and the
kernel, multiplies, and transforms back. At 20 points or so a transform is fastest as a product with a small matrix, so
that all the work is matrix products, plain ones for the transforms and one for every frequency from channels to
channels. The kernel is an ordinary real-space parameter for either method, so weights do not depend on the choice.

Arrays are `(x, y, z, channel, batch)`, so that no product needs a transposed copy: transforms act on leading axes, and
the channels and examples of one frequency lie together. Kernels are `(kernel, kernel, kernel, channels_in,
channels_out)`, odd, as in Flax.

The transforms are of the skew-periodic kind: real ones at the frequencies 2π (k + ½) / n, n even, k < n / 2. What wraps
around comes back with its sign changed, which does not matter, as the tiles are padded to keep it out of the output. In
return every frequency has a cosine and a sine part, none is real by itself. Cosines and sines along x, y and z are
eight real parts; sums and differences of these are the four complex amplitudes at (±h, ±k, ±l), up to conjugation.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

CONVOLUTIONS = ('auto', 'spectral', 'direct')

# The sign of (cosine or sine along x, y, z) in the four amplitudes at (h, ±k, ±l): (−i)^sines = 1, −i, −1, i, times −1
# for every sine along an axis whose index is negative. An odd number of sines makes the imaginary parts.
PARTS = tuple(itertools.product((0, 1), repeat=3))
SIGNS = np.array(
    [
        [(1, -1, -1, 1)[sum(part)] * y ** part[1] * z ** part[2] for part in PARTS]
        for y, z in itertools.product((1, -1), repeat=2)
    ],
    np.float32,
)


def convolve(image: Array, kernel: Array, method: str = 'auto', products: str = 'highest') -> Array:
    """Convolution (as networks mean it: correlation) with zero padding, output of the image's size.

    Args:
        image: `(x, y, z, channels_in, batch)`.
        kernel: `(k, k, k, channels_in, channels_out)`, k odd.
        method: 'spectral', 'direct' (`lax.conv_general_dilated`), or 'auto': what `fastest_method` says.
        products: how exactly to multiply, a name that `jax.default_matmul_precision` knows. On CPU all are float32.

    Returns:
        `(x, y, z, channels_out, batch)`, of the image's type.

    Raises:
        ValueError: the kernel is not a cube of odd edge, the channels do not match, or no such method.
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
    """The convolution by XLA's own operator."""
    layout = ('DHWCN', 'DHWIO', 'DHWCN')
    with jax.default_matmul_precision(products):
        return jax.lax.conv_general_dilated(image, kernel, (1, 1, 1), 'SAME', dimension_numbers=layout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def spectral_convolution(image: Array, kernel: Array, products: str = 'highest') -> Array:
    """The convolution by Fourier transforms, in float32, with transforms shared between value and gradients."""
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
    image_spectrum = _spectrum(_cut(image, axes), [axis.window_waves for axis in axes])
    kernel_spectrum = _kernel_spectrum(jnp.swapaxes(kernel, 3, 4), axes, image_spectrum)
    spectrum = _product(_as_matrices(kernel_spectrum), image_spectrum)
    result = _join(_inverse(spectrum, [axis.tile_waves for axis in axes], image.shape[4]), axes)
    return result.astype(image.dtype), (image_spectrum, kernel, image.shape)


def _gradients(saved, cotangent):
    image_spectrum, kernel, shape = saved
    axes = plan(shape, kernel.shape)
    cotangent_spectrum = _spectrum(_split(cotangent, axes), [axis.tile_waves for axis in axes])
    kernel_spectrum = _kernel_spectrum(kernel, axes, cotangent_spectrum)
    spectrum = _product(_as_matrices(kernel_spectrum, conjugate=True), cotangent_spectrum)
    to_image = _overlap(_inverse(spectrum, [axis.window_waves for axis in axes], shape[4]), axes)
    spectrum = _correlation(image_spectrum, cotangent_spectrum)
    to_kernel = _inverse(spectrum, [axis.tap_waves for axis in axes], kernel.shape[4])[..., 0, :]
    return to_image.astype(cotangent.dtype), to_kernel.astype(kernel.dtype)


class Axis(NamedTuple):
    """How one axis of an image is transformed.

    A tile's output needs a window of the image that is a margin wider on either side. A single tile needs no margin:
    the zeros around the image are also what wraps around.

    Attributes:
        size: of the image.
        kernel_size: of the kernel, odd.
        tiles: how many.
        tile: outputs of each.
        points: of the transform, even; half as many frequencies.
    """

    size: int
    kernel_size: int
    tiles: int
    tile: int
    points: int

    @property
    def margin(self) -> int:
        """Points that a tile's window reaches beyond it, on either side."""
        return self.kernel_size // 2 if self.tiles > 1 else 0

    @property
    def window(self) -> int:
        """Points of the image that a tile's output needs."""
        return self.tile + 2 * self.margin

    @property
    def window_waves(self) -> np.ndarray:
        """`(points, window)`: cosines, then sines, at the points of a window."""
        return _waves(self.points, 0, self.window)

    @property
    def tile_waves(self) -> np.ndarray:
        """`(points, tile)`: the same at the points of a tile's output, and with the norm of the inverse transform."""
        return _waves(self.points, 0, self.tile) * np.float32(2 ** (1 / 3) / self.points)

    @property
    def tap_waves(self) -> np.ndarray:
        """`(points, kernel_size)`: the same at the taps of the kernel, of the conjugate."""
        cosines, sines = np.split(_waves(self.points, self.margin - self.kernel_size // 2, self.kernel_size), 2)
        return np.concatenate([cosines, -sines])


def _waves(points, first, number):
    angles = np.outer(np.arange(points // 2) + 0.5, first + np.arange(number)) * (2 * np.pi / points)
    return np.concatenate([np.cos(angles), np.sin(angles)]).astype(np.float32)


def plan(image_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> list[Axis]:
    """The three axes, each with as many tiles as would be best if the image were a cube of its size.

    It does not ask for the size of the batch, so that an example's output is the same bit for bit in any batch.
    """
    kernel_size, *channels = kernel_shape[2:]

    def axis(size, tiles):
        half, tile = kernel_size // 2, -(-size // tiles)
        needed = tile + (half if tiles == 1 else 2 * half)
        return Axis(size, kernel_size, tiles, tile, needed + needed % 2)

    def cost(axis):
        return _work(axis, *channels)

    return [min((axis(size, tiles) for tiles in range(1, size + 1)), key=cost) for size in image_shape[:3]]


def _work(axis, channels_in, channels_out):
    """Operations, in about, on eight examples with three such axes, a pass through memory counted as 100 a number."""
    pass_and_transform = 100 + 6 * axis.points
    a_point = (channels_in + channels_out) * pass_and_transform + 4 * channels_in * channels_out
    a_kernel_point = channels_in * channels_out * (pass_and_transform + 100)
    return 8 * (axis.tiles * axis.points) ** 3 * a_point + axis.points**3 * a_kernel_point


def fastest_method(image_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> str:
    """What 'auto' means, from measurement: on CPU the spectral method, unless the kernel is a point."""
    return 'spectral' if jax.default_backend() == 'cpu' and kernel_shape[0] > 1 else 'direct'


def _spectrum(array, waves):
    """(x, y, z, a, …) to amplitudes (frequency, real parts of all a then imaginary parts, the others)."""
    channels = array.shape[3]
    for axis, matrix in enumerate(waves):
        array = _along(array, matrix, axis)
    half = [points // 2 for points in array.shape[:3]]
    array = array.reshape(2, half[0], 2, half[1], 2, half[2], -1)

    def amplitudes(parity):
        terms = (
            SIGNS[:, number].reshape(4, 1, 1, 1, 1) * array[None, x, :, y, :, z]
            for number, (x, y, z) in enumerate(PARTS)
            if (x + y + z) % 2 == parity
        )
        return functools.reduce(jnp.add, terms)

    return jnp.stack([amplitudes(0), amplitudes(1)], axis=4).reshape(4 * math.prod(half), 2 * channels, -1)


def _kernel_spectrum(kernel, axes, other):
    """The spectrum of a kernel, made after the one that it is to be multiplied with.

    It is many times larger than the kernel, and XLA would make those of all layers at the start of a step, for they
    depend on nothing else. `jax.lax.optimization_barrier` does not keep them back: on CPU, XLA drops it before it
    decides on the order. So there is a real dependence: on a zero that is made of a number of the other spectrum,
    also if that number is infinite, and that XLA cannot know to be zero.
    """
    after = jnp.minimum(jnp.abs(other[0, 0, 0]), 0)
    return _spectrum(kernel.astype(jnp.float32) + after, [axis.tap_waves for axis in axes])


def _inverse(spectrum, waves, last):
    """The transpose of `_spectrum`; the others are divided into two axes, the last one `last` long."""
    half = [len(matrix) // 2 for matrix in waves]
    channels = spectrum.shape[1] // 2
    amplitudes = spectrum.reshape(4, 1, half[0], 1, half[1], 1, half[2], 2, -1)
    sines = np.array([sum(part) for part in PARTS]).reshape(2, 1, 2, 1, 2, 1, 1)
    signs = SIGNS.reshape(4, 2, 1, 2, 1, 2, 1, 1)

    def parts(parity):
        chosen = signs * (sines % 2 == parity)
        return functools.reduce(jnp.add, (chosen[n] * amplitudes[n, ..., parity, :] for n in range(4)))

    array = jnp.where(sines % 2, parts(1), parts(0)).reshape(*(2 * each for each in half), -1)
    for axis in (2, 1, 0):
        array = _along(array, waves[axis].T, axis)
    return array.reshape(*array.shape[:3], channels, -1, last)


def _as_matrices(spectrum, conjugate=False):
    """Amplitudes (f, 2 a, b) as real matrices (f, 2 a, 2 b) that multiply by them, or by their conjugates."""
    real, imaginary = jnp.split(spectrum, 2, axis=1)
    if conjugate:
        imaginary = -imaginary
    return jnp.block([[real, -imaginary], [imaginary, real]])


def _correlation(left, right):
    """Sums over examples of conjugate amplitudes (f, 2 a, m) times amplitudes (f, 2 b, m), as (f, 2 a, b)."""
    a, b = left.shape[1] // 2, right.shape[1] // 2
    products = _product_with_transpose(left, right)
    real = products[:, :a, :b] + products[:, a:, b:]
    imaginary = products[:, :a, b:] - products[:, a:, :b]
    return jnp.concatenate([real, imaginary], axis=1)


def _along(array, matrix, axis):
    """Applies a matrix (new, old) to an axis, as a product for each index before it, so that nothing is transposed."""
    shape = array.shape
    before = math.prod(shape[:axis])
    matrices = jnp.broadcast_to(matrix, (before, *matrix.shape))
    array = _product(matrices, array.reshape(before, shape[axis], -1))
    return array.reshape(*shape[:axis], len(matrix), *shape[axis + 1 :])


def _product(left, right):
    """Matrix products (f, a, b) (f, b, c) to (f, a, c)."""
    return jax.lax.dot_general(left, right, (((2,), (1,)), ((0,), (0,))))


def _product_with_transpose(left, right):
    """Matrix products (f, a, b) (f, c, b) to (f, a, c)."""
    return jax.lax.dot_general(left, right, (((2,), (2,)), ((0,), (0,))))


def _cut(image, axes):
    """(x, y, z, c, b) to windows (wx, wy, wz, c, tile, b), margins and whatever lies beyond the image filled with 0."""
    padding = [(axis.margin, axis.margin + axis.tiles * axis.tile - axis.size) for axis in axes]
    image = jnp.pad(image.astype(jnp.float32), [*padding, (0, 0), (0, 0)])
    windows = [
        image[tuple(slice(i * axis.tile, i * axis.tile + axis.window) for i, axis in zip(tile, axes, strict=True))]
        for tile in itertools.product(*(range(axis.tiles) for axis in axes))
    ]
    return jnp.stack(windows, axis=4)


def _overlap(windows, axes):
    """The transpose of `_cut`: sums what overlaps."""
    sizes = [axis.tiles * axis.tile for axis in axes]
    tiles = itertools.product(*(range(axis.tiles) for axis in axes))
    terms = (
        jnp.pad(
            windows[..., number, :],
            [(i * axis.tile, size - (i + 1) * axis.tile) for i, axis, size in zip(tile, axes, sizes, strict=True)]
            + [(0, 0), (0, 0)],
        )
        for number, tile in enumerate(tiles)
    )
    image = functools.reduce(jnp.add, terms)
    return image[tuple(slice(axis.margin, axis.margin + axis.size) for axis in axes)]


def _split(image, axes):
    """(x, y, z, c, b) to tiles (tx, ty, tz, c, tile, b), filled with 0 beyond the image."""
    padding = [(0, axis.tiles * axis.tile - axis.size) for axis in axes]
    image = jnp.pad(image.astype(jnp.float32), [*padding, (0, 0), (0, 0)])
    divided = [each for axis in axes for each in (axis.tiles, axis.tile)]
    image = image.reshape(*divided, *image.shape[3:]).transpose(1, 3, 5, 6, 0, 2, 4, 7)
    return image.reshape(*image.shape[:4], -1, image.shape[-1])


def _join(tiles, axes):
    """The transpose of `_split`."""
    image = tiles.reshape(*tiles.shape[:4], *(axis.tiles for axis in axes), tiles.shape[-1])
    image = image.transpose(4, 0, 5, 1, 6, 2, 3, 7)
    image = image.reshape(*(axis.tiles * axis.tile for axis in axes), *image.shape[6:])
    return image[tuple(slice(axis.size) for axis in axes)]
