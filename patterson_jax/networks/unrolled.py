"""The unrolled network: successive estimates of the density, each compared with the measured amplitudes.

The target (A + B) / 2 equals its own inversion through the box centre. So its transform about that point is real,
|F| cos φ, and lies between −|F| and |F| for any phases φ. The Patterson map gives |F|. Each stage of the network makes
an estimate with small convolutions. The estimate is transformed about the centre and clipped to ±|F|. The next stage is
given two maps: the part that was kept and the part that was cut off. Phase retrieval alternates between such
constraints by a rule made by hand (Fienup, Applied Optics 21, 2758, 1982). To learn the steps of an iteration from data
is an idea of Gregor and LeCun (ICML 2010).

Vectors and atoms fill only a part of the grid. So the network sees the inner part of the maps, and its output is zero
outside a smaller part. Convolutions run at half resolution, with the eight voxels of a block as channels. The box
centre lies between two voxels, and the Patterson map is symmetric about the voxel after it. So the network moves the
Patterson map by half a voxel.

The bound ±|F| is right where the data are complete and exact. An unmeasured amplitude is zero in the Patterson map, and
so is its bound; a noisy amplitude can exclude the truth. Nothing is lost, because the next stage gets the part that was
cut off too.

With one stage the network uses no amplitudes: it is plain and compact.
"""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from patterson_jax.errors import require
from patterson_jax.networks.convolution import CONVOLUTIONS
from patterson_jax.networks.density_network import ESTIMATES, DensityNetwork
from patterson_jax.networks.layers import PRECISIONS, Convolution
from patterson_jax.precision import exact_products
from patterson_jax.simulation.problem import Problem

RESIDUAL_SCALE = 0.5  # of the image that a layer adds, so that the sum does not grow with the stages
OUTPUT_SCALE = 0.1  # so that a new network's estimates are near zero
AMPLITUDE_MAP_SCALE = 3.0  # brings the map made from |F| to about the height of the square root of the Patterson map
DENSITY_SCALE = 0.56  # |F| of the input over |F| of the density, at the start: of unit spheres with input_scale 0.7
SQRT_FLOOR = 1e-12  # keeps the gradient of the square root finite


class UnrolledNet(DensityNetwork):
    """From Patterson maps with their origin in the centre to density maps, both `(batch, grid, grid, grid)`.

    The output lies in [−1, 1] and equals its own inversion. In training the earlier estimates are left in the
    collection ESTIMATES, as maps of the same shape. Raises InputError if a field is invalid.

    Attributes:
        features: channels of the image that goes from stage to stage.
        kernel_size: kernel edge of every convolution, at half resolution; odd.
        stages: number of estimates; the last one is the output.
        layers: residual convolutions in a stage, beside the one that takes in the clipped estimate.
        input_size: edge in voxels of the part of the maps that the network sees; a multiple of 4.
        output_size: edge in voxels of the part of the output that is not zero; a multiple of 4, at most input_size.
        convolution: method of `networks.convolution.convolve`.
        precision: 'float32', 'tf32' or 'bfloat16', of products in the layers. With 'bfloat16' the images between layers
            have that type too. Transforms stay in float32.
    """

    is_local: ClassVar[bool] = False  # its estimates are transformed
    any_grid: ClassVar[bool] = True  # it sees the middle of a map alone, in blocks about the centre of any grid

    features: int = 48
    kernel_size: int = 5
    stages: int = 6
    layers: int = 0
    input_size: int = 28
    output_size: int = 20
    convolution: str = 'auto'
    precision: str = 'float32'

    def __post_init__(self):
        for field in ('features', 'stages'):
            require(getattr(self, field) >= 1, field, getattr(self, field), '1 or more')
        size = self.kernel_size
        require(size >= 1 and size % 2 == 1, 'kernel_size', size, 'an odd number, 1 or more')
        require(self.layers >= 0, 'layers', self.layers, '0 or more')
        for field in ('input_size', 'output_size'):
            size = getattr(self, field)
            require(size >= 4 and size % 4 == 0, field, size, 'a multiple of 4, 4 or more')
        fits = self.output_size <= self.input_size
        require(fits, 'output_size', self.output_size, f'at most input_size, {self.input_size}')
        require(self.convolution in CONVOLUTIONS, 'convolution', self.convolution, f'one of {", ".join(CONVOLUTIONS)}')
        require(self.precision in PRECISIONS, 'precision', self.precision, f'one of {", ".join(PRECISIONS)}')
        super().__post_init__()

    @nn.compact
    def __call__(self, patterson: Array, train: bool = False) -> Array:
        """Applies the network. Raises InputError if the maps are smaller than input_size."""
        grid = patterson.shape[-1]
        require(self.input_size <= grid, 'input_size', self.input_size, f'at most the edge of the maps, {grid}')
        amplitudes, image = measured_maps(patterson, self.input_size)
        image = self._layer('first')(image)
        if self.stages > 1:
            amplitudes /= self.param('density_scale', nn.initializers.constant(DENSITY_SCALE), ())
        estimate: Array | None = None
        for stage in range(self.stages):
            if estimate is not None:
                maps = [to_blocks(each) for each in constrain(estimate, amplitudes, self.input_size)]
                image += RESIDUAL_SCALE * self._layer(f'take_{stage}')(jnp.concatenate(maps, axis=3))
            for number in range(self.layers):
                image += RESIDUAL_SCALE * self._layer(f'layer_{stage}_{number}')(image)
            estimate = self._estimate(image, f'output_{stage}')
            if train and stage < self.stages - 1 and not self.is_initializing():
                self.sow(ESTIMATES, 'maps', self._whole(estimate, grid))
        return self._whole(estimate, grid)

    def check_problem(self, problem: Problem) -> None:
        """Raises InputError if the target is not symmetric about the centre, or if atoms can lie outside the output."""
        for field, needed in (('origin', 'centre'), ('target', 'both')):
            value = getattr(problem.encoding, field)
            require(value == needed, f'problem.{field}', value, f'{needed!r} with the unrolled network')
        filled = problem.box_edge + 2 * problem.atom_radius
        enough = self.output_size >= filled
        require(enough, 'model.output_size', self.output_size, f'problem.box_edge and an atom, {filled:g}, or more')
        grid, seen = problem.grid_size, self.input_size
        require(seen <= grid, 'model.input_size', seen, f'at most problem.grid_size, {grid}')

    def seen(self, grid_size: int) -> int:
        """Edge of the middle of the maps, `input_size` on every grid."""
        return self.input_size

    def _layer(self, name):
        convolution = Convolution(self.features, self.kernel_size, self.convolution, self.precision, name=name)
        return lambda image: nn.relu(convolution(image))

    def _estimate(self, image, name):
        """The density in the part of the grid where atoms can be, from the image; it equals its own inversion."""
        margin = (self.input_size - self.output_size) // 4
        needed = min(margin, self.kernel_size // 2)
        image = image[(slice(margin - needed, len(image) - margin + needed),) * 3]
        image = Convolution(8, self.kernel_size, self.convolution, self.precision, name=name)(image)
        image = image[(slice(needed, len(image) - needed),) * 3].astype(jnp.float32)
        maps = from_blocks(image)
        return jnp.tanh(OUTPUT_SCALE / 2 * (maps + jnp.flip(maps, (0, 1, 2))))

    def _whole(self, estimate, grid):
        margin = (grid - self.output_size) // 2
        return jnp.moveaxis(jnp.pad(estimate, [(margin, margin)] * 3 + [(0, 0)]), -1, 0)


def measured_maps(patterson: Array, size: int) -> tuple[Array, Array]:
    """The input of the first stage and the amplitudes, from Patterson maps `(batch, grid, grid, grid)`.

    Args:
        patterson: maps with their origin in the centre.
        size: edge of the inner part to use, voxels.

    Returns:
        |F| on the input's scale, as `cosine_transform` orders it, and two maps of interatomic vectors about the box
        centre, at half resolution, `(size/2, size/2, size/2, 16, batch)`. One is the square root of the Patterson map,
        in which coinciding vectors do not outshine the others. The other is made from |F| instead of |F|² and has
        sharper peaks.
    """
    grid, points = patterson.shape[-1], centred_points(size)
    maps = jnp.moveaxis(patterson, 0, -1)
    squares = jnp.maximum(cosine_transform(maps, np.arange(grid) - grid // 2, grid), 0)
    amplitudes = jnp.sqrt(squares)
    vectors = inverse_cosine_transform(squares, points, grid)
    root = jnp.sign(vectors) * jnp.sqrt(jnp.abs(vectors) + SQRT_FLOOR)
    sharp = AMPLITUDE_MAP_SCALE * inverse_cosine_transform(amplitudes, points, grid)
    return amplitudes, jnp.concatenate([to_blocks(root), to_blocks(sharp)], axis=3)


def constrain(estimate: Array, amplitudes: Array, size: int) -> tuple[Array, Array]:
    """Splits an estimate into the part that the amplitudes allow and the rest: two maps `(size, size, size, batch)`.

    Args:
        estimate: `(output, output, output, batch)`, symmetric about the box centre, output at most `size`.
        amplitudes: |F|, as `cosine_transform` orders it.
        size: voxels along each edge of the two maps; their sum is the estimate.
    """
    grid, output = len(amplitudes) + 1, len(estimate)
    spectrum = cosine_transform(estimate, centred_points(output), grid)
    kept = inverse_cosine_transform(jnp.clip(spectrum, -amplitudes, amplitudes), centred_points(size), grid)
    margin = (size - output) // 2
    return kept, jnp.pad(estimate, [(margin, margin)] * 3 + [(0, 0)]) - kept


def centred_points(size: int) -> np.ndarray:
    """Places of the inner `size` voxels of an axis, `(size,)`, in voxels from the box centre."""
    return np.arange(size) - (size - 1) / 2


def to_blocks(maps: Array) -> Array:
    """Turns maps `(x, y, z, batch)` into images `(x/2, y/2, z/2, 8, batch)`; the voxels of a block become channels."""
    x, y, z, batch = maps.shape
    maps = maps.reshape(x // 2, 2, y // 2, 2, z // 2, 2, batch)
    return maps.transpose(0, 2, 4, 1, 3, 5, 6).reshape(x // 2, y // 2, z // 2, 8, batch)


def from_blocks(image: Array) -> Array:
    """The inverse of `to_blocks`."""
    x, y, z, _, batch = image.shape
    image = image.reshape(x, y, z, 2, 2, 2, batch).transpose(0, 3, 1, 4, 2, 5, 6)
    return image.reshape(2 * x, 2 * y, 2 * z, batch)


@exact_products
def cosine_transform(maps: Array, points: np.ndarray, grid: int) -> Array:
    """Transforms maps that are symmetric about the point 0: the sum of values times cos(2π h·x / grid).

    It is one real matrix product along each axis, with cos + sin (Bracewell, J. Opt. Soc. Am. 73, 1832, 1983). Because
    the map is symmetric, the terms with one or three sines cancel.

    Args:
        maps: `(points, points, points, batch)`.
        points: places of the voxels of an axis, in voxels; with each place also its negative, modulo `grid`.
        grid: voxels along each edge of the unit cell, even.

    Returns:
        `(grid − 1, grid − 1, grid − 1, batch)`, −grid / 2 < h < grid / 2 along each axis. |h| = grid / 2 is left out,
        because the voxels do not fix its phase.
    """
    return _from_products_of_sums(_along_axes(_waves(points, grid), maps))


@exact_products
def inverse_cosine_transform(spectrum: Array, points: np.ndarray, grid: int) -> Array:
    """Transforms a symmetric spectrum, as `cosine_transform` gives it, to maps at some points, `(points, …, batch)`.

    The points need not be those of the original map. They must be in such an order that reversing them changes their
    signs; in any other order the values are wrong.
    """
    return _from_products_of_sums(_along_axes(_waves(points, grid).T, spectrum)) / grid**3


def _waves(points, grid):
    angles = 2 * np.pi / grid * np.outer(np.arange(1 - grid // 2, grid // 2), points)
    return (np.cos(angles) + np.sin(angles)).astype(np.float32)


def _along_axes(matrix, array):
    """Applies a matrix to each of the first three axes, without any transposition."""
    for axis in range(3):
        shape = array.shape
        before = math.prod(shape[:axis])
        matrices = jnp.broadcast_to(matrix, (before, *matrix.shape))
        rows = array.reshape(before, shape[axis], -1)
        dimensions = (((2,), (1,)), ((0,), (0,)))
        array = jax.lax.dot_general(matrices, rows, dimensions)
        array = array.reshape(*shape[:axis], len(matrix), *shape[axis + 1 :])
    return array


def _from_products_of_sums(products):
    """Converts sums of (cos + sin)(cos + sin)(cos + sin) at (±a, ±b, ±c) to sums of cos(a + b + c)."""
    return (sum(jnp.flip(products, axis) for axis in range(3)) - products) / 2
