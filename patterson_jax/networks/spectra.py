"""Tiles of images and their spectra: the parts from which a convolution by Fourier transforms is made.

Arrays are `(x, y, z, channel, batch)`, so that no product needs a transposed copy: transforms act on leading axes, and
the channels and examples of one frequency lie together. An image is cut into tiles, and their number is a further axis
before that of the batch. At 20 points or so a transform is fastest as a product with a small matrix. So all the work is
matrix products: plain ones for the transforms, and one for every frequency from channels to channels.

The transforms are skew-periodic and real, at the frequencies 2π (k + ½) / n, with n even and k < n / 2. What wraps
around comes back with its sign changed. That does not matter, because padding keeps it out of the output. In return
every frequency has a cosine and a sine part; no frequency is real by itself. Cosines and sines along x, y and z make
eight real parts. Sums and differences of these are the four complex amplitudes at (±h, ±k, ±l), up to conjugation.

A spectrum is `(frequency, 2 channels, columns)`: the real parts of all channels, then their imaginary parts. Its
columns are the tiles and examples of an image, or the other channels of a kernel.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

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


class Axis(NamedTuple):
    """How one axis of an image is transformed.

    A tile's output needs a window of the image that is a margin wider on either side. A single tile needs no margin:
    the zeros around the image are also what wraps around.

    Attributes:
        size: points of the image.
        kernel_size: points of the kernel, odd.
        tiles: number of tiles.
        tile: outputs of each tile.
        points: points of the transform, even. It has half as many frequencies.
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
        """`(points, tile)`: the same at the points of a tile's output, times the norm of the inverse transform."""
        return _waves(self.points, 0, self.tile) * np.float32(2 ** (1 / 3) / self.points)

    @property
    def tap_waves(self) -> np.ndarray:
        """`(points, kernel_size)`: the same at the taps of the kernel, for the conjugate spectrum."""
        cosines, sines = np.split(_waves(self.points, self.margin - self.kernel_size // 2, self.kernel_size), 2)
        return np.concatenate([cosines, -sines])


def _waves(points, first, number):
    angles = np.outer(np.arange(points // 2) + 0.5, first + np.arange(number)) * (2 * np.pi / points)
    return np.concatenate([np.cos(angles), np.sin(angles)]).astype(np.float32)


def plan(image_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> list[Axis]:
    """Chooses the tiles of the three axes: for each the number that needs least work in a cube of that size.

    The size of the batch plays no part, so that an example's output is the same bit for bit in any batch.

    Args:
        image_shape: `(x, y, z, …)`.
        kernel_shape: `(k, k, k, channels_in, channels_out)`.
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
    """Operations, roughly, for eight examples with three such axes; a pass through memory counts as 100 a number."""
    pass_and_transform = 100 + 6 * axis.points
    a_point = (channels_in + channels_out) * pass_and_transform + 4 * channels_in * channels_out
    a_kernel_point = channels_in * channels_out * (pass_and_transform + 100)
    return 8 * (axis.tiles * axis.points) ** 3 * a_point + axis.points**3 * a_kernel_point


def cut(image: Array, axes: list[Axis]) -> Array:
    """Cuts an image into the windows that its tiles need.

    Args:
        image: `(x, y, z, channels, batch)`.
        axes: from `plan`.

    Returns:
        `(window, window, window, channels, tile, batch)`, float32; zeros in margins and beyond the image.
    """
    padding = [(axis.margin, axis.margin + axis.tiles * axis.tile - axis.size) for axis in axes]
    image = jnp.pad(image.astype(jnp.float32), [*padding, (0, 0), (0, 0)])
    windows = [
        image[tuple(slice(i * axis.tile, i * axis.tile + axis.window) for i, axis in zip(tile, axes, strict=True))]
        for tile in itertools.product(*(range(axis.tiles) for axis in axes))
    ]
    return jnp.stack(windows, axis=4)


def overlap(windows: Array, axes: list[Axis]) -> Array:
    """The transpose of `cut`: an image in which windows that overlap are added."""
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


def split(image: Array, axes: list[Axis]) -> Array:
    """Splits an image into tiles without margins.

    Args:
        image: `(x, y, z, channels, batch)`.
        axes: from `plan`.

    Returns:
        `(tile, tile, tile, channels, tile, batch)`, float32; zeros beyond the image.
    """
    padding = [(0, axis.tiles * axis.tile - axis.size) for axis in axes]
    image = jnp.pad(image.astype(jnp.float32), [*padding, (0, 0), (0, 0)])
    divided = [each for axis in axes for each in (axis.tiles, axis.tile)]
    image = image.reshape(*divided, *image.shape[3:]).transpose(1, 3, 5, 6, 0, 2, 4, 7)
    return image.reshape(*image.shape[:4], -1, image.shape[-1])


def join(tiles: Array, axes: list[Axis]) -> Array:
    """The transpose of `split`: joins tiles to an image."""
    image = tiles.reshape(*tiles.shape[:4], *(axis.tiles for axis in axes), tiles.shape[-1])
    image = image.transpose(4, 0, 5, 1, 6, 2, 3, 7)
    image = image.reshape(*(axis.tiles * axis.tile for axis in axes), *image.shape[6:])
    return image[tuple(slice(axis.size) for axis in axes)]


def spectrum(array: Array, waves: list[np.ndarray]) -> Array:
    """Transforms the leading three axes.

    Args:
        array: `(x, y, z, channels, …)`.
        waves: of each axis, `(points, x)` and so on.

    Returns:
        `(frequency, 2 channels, columns)`; what follows the channels becomes the columns.
    """
    channels = array.shape[3]
    for axis, matrix in enumerate(waves):
        array = _along(array, matrix, axis)
    half = [points // 2 for points in array.shape[:3]]
    array = array.reshape(2, half[0], 2, half[1], 2, half[2], -1)

    def amplitudes(parity):
        terms = (
            array[None, x, :, y, :, z] * SIGNS[:, number].reshape(4, 1, 1, 1, 1)
            for number, (x, y, z) in enumerate(PARTS)
            if (x + y + z) % 2 == parity
        )
        return functools.reduce(jnp.add, terms)

    return jnp.stack([amplitudes(0), amplitudes(1)], axis=4).reshape(4 * math.prod(half), 2 * channels, -1)


def kernel_spectrum(kernel: Array, axes: list[Axis], other: Array) -> Array:
    """The spectrum of a kernel, computed after the spectrum `other` that it is to be multiplied with.

    It is many times larger than the kernel, and XLA would compute those of all layers at the start of a step, because
    they depend on nothing else. `jax.lax.optimization_barrier` does not hold them back: on CPU, XLA drops it before it
    decides on the order. So there is a real dependence: on a zero that XLA cannot know to be zero. It is made of a
    number of the other spectrum, and is zero even where that number is infinite.

    Args:
        kernel: `(k, k, k, channels, columns)`.
        axes: from `plan`.
        other: a spectrum.
    """
    after = jnp.minimum(jnp.abs(other[0, 0, 0]), 0)
    return spectrum(kernel.astype(jnp.float32) + after, [axis.tap_waves for axis in axes])


def inverse(amplitudes: Array, waves: list[np.ndarray], last: int) -> Array:
    """The transpose of `spectrum`.

    Args:
        amplitudes: `(frequency, 2 channels, columns)`.
        waves: of each axis, `(points, x)` and so on.
        last: columns that are the last axis.

    Returns:
        `(x, y, z, channels, columns / last, last)`.
    """
    half = [len(matrix) // 2 for matrix in waves]
    channels = amplitudes.shape[1] // 2
    amplitudes = amplitudes.reshape(4, 1, half[0], 1, half[1], 1, half[2], 2, -1)
    sines = np.array([sum(part) for part in PARTS]).reshape(2, 1, 2, 1, 2, 1, 1)
    signs = SIGNS.reshape(4, 2, 1, 2, 1, 2, 1, 1)

    def parts(parity):
        of_parity = signs * (sines % 2 == parity)
        return functools.reduce(jnp.add, (of_parity[n] * amplitudes[n, ..., parity, :] for n in range(4)))

    array = jnp.where(sines % 2, parts(1), parts(0)).reshape(*(2 * each for each in half), -1)
    for axis in (2, 1, 0):
        array = _along(array, waves[axis].T, axis)
    return array.reshape(*array.shape[:3], channels, -1, last)


def multiply(kernel: Array, image: Array, conjugate: bool = False) -> Array:
    """Multiplies spectra: at each frequency a matrix from channels to channels.

    Args:
        kernel: `(frequency, 2 channels_out, channels_in)`.
        image: `(frequency, 2 channels_in, columns)`.
        conjugate: multiply by the kernel's complex conjugate.

    Returns:
        `(frequency, 2 channels_out, columns)`.
    """
    real, imaginary = jnp.split(kernel, 2, axis=1)
    if conjugate:
        imaginary = -imaginary
    return _product(jnp.block([[real, -imaginary], [imaginary, real]]), image)


def correlate(left: Array, right: Array) -> Array:
    """Sums over columns of the conjugate of one spectrum times another.

    Args:
        left: `(frequency, 2 a, columns)`.
        right: `(frequency, 2 b, columns)`.

    Returns:
        `(frequency, 2 a, b)`.
    """
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
