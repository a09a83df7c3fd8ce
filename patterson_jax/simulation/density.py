"""Renders atoms to voxels: the exact fraction of each voxel that lies inside a sphere, differentiable (paper, 2.1).

For a point, take the box between the centre of a ball and that point, and the volume that the ball shares with it. The
volume that the ball shares with any box is the mixed difference of these volumes over the eight corners of the box.
They have a closed form, below: inclusion and exclusion of the parts that the three planes through the point cut from an
octant of the ball.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array

OCTANT = math.pi / 6  # volume of an eighth of the unit ball


def render(positions: Array, grid_size: int, atom_radius: float) -> Array:
    """Density of equal spheres on a periodic grid.

    Args:
        positions: `(num_atoms, 3)`, voxels from the box centre; they may lie anywhere, because the box repeats.
        grid_size: voxels along each edge.
        atom_radius: voxels.

    Returns:
        `(grid_size, grid_size, grid_size)`: the fraction of each voxel inside a sphere, summed over spheres.
    """
    blocks, starts = jax.vmap(functools.partial(atom_block, atom_radius=atom_radius))(positions + grid_size / 2)
    index = (starts[:, :, None] + jnp.arange(blocks.shape[-1])[None, None]) % grid_size  # (num_atoms, 3, block)
    x, y, z = index[:, 0, :, None, None], index[:, 1, None, :, None], index[:, 2, None, None, :]
    return jnp.zeros((grid_size,) * 3, positions.dtype).at[x, y, z].add(blocks)


def atom_block(position: Array, atom_radius: float) -> tuple[Array, Array]:
    """Fills the voxels that one sphere can touch.

    Args:
        position: `(3,)`, voxels from the corner of voxel (0, 0, 0).
        atom_radius: voxels.

    Returns:
        fractions: `(block, block, block)`, the part of each voxel inside the sphere; block = ⌈2 · radius⌉ + 1.
        start: `(3,)` integers, the voxel at the block's lowest corner.
    """
    block = math.ceil(2 * atom_radius) + 1
    start = jnp.floor(jax.lax.stop_gradient(position) - atom_radius)
    faces = (start[:, None] + jnp.arange(block + 1, dtype=position.dtype)[None] - position[:, None]) / atom_radius
    corners = corner_volumes(faces)
    volumes = jnp.diff(jnp.diff(jnp.diff(corners, axis=0), axis=1), axis=2) * atom_radius**3
    fractions = volumes - jax.lax.stop_gradient(jnp.minimum(volumes, 0))  # removes rounding errors, keeps the slope
    return fractions, start.astype(jnp.int32)


@jax.custom_jvp
def corner_volumes(faces: Array) -> Array:
    """Volumes of the unit ball inside the boxes from its centre to (x, y, z), with the sign of x·y·z.

    Args:
        faces: `(3, count)`, the values of x, of y and of z.

    Returns:
        `(count, count, count)`, for each x, y and z.
    """
    sides = jnp.minimum(jnp.abs(faces), 1)
    # For the pairs ab, bc and ca at once, which compiles in a third of the time.
    columns = _column_volume(sides[:, :, None], _next(sides)[:, None, :])
    caps = _half_cap_volume(sides)
    a, b, c = _along_axes(sides)
    outside = (
        (columns[0][:, :, None] + columns[1][None] + columns[2].T[:, None])
        + (caps[0][:, None, None] + caps[1][None, :, None] + caps[2][None, None])
        - 2 * OCTANT
    )
    volume = jnp.where(a * a + b * b + c * c < 1, a * b * c, outside)
    return math.prod(_along_axes(jnp.sign(faces))) * volume


@corner_volumes.defjvp
def _corner_volumes_jvp(primals, tangents):
    (faces,), (moves,) = primals, tangents
    following, last = _next(faces), _next(_next(faces))
    areas = _face_area(following[:, :, None, None], last[:, None, :, None], faces[:, None, None, :])
    slopes = areas * moves[:, None, None, :]  # for (y, z, x), (z, x, y) and (x, y, z)
    slope = slopes[0].transpose(2, 0, 1) + slopes[1].transpose(1, 2, 0) + slopes[2]
    return corner_volumes(faces), slope


def _next(values):
    """Values `(3, …)` of the three axes, at each axis those of the next one."""
    return jnp.roll(values, -1, axis=0)


def _along_axes(values):
    """Values `(3, count)` of the three axes, each along its own."""
    return values[0, :, None, None], values[1, None, :, None], values[2, None, None, :]


def _column_volume(a, b):
    """∫₀ᵃ∫₀ᵇ √(1 − x² − y²) over the part of the rectangle inside the unit disc, 0 ≤ a, b ≤ 1."""
    height = jnp.sqrt(jnp.maximum(1 - a * a - b * b, 0))
    return (
        2 * a * b * height
        + a * (3 - a * a) * jnp.arctan2(b, height)
        + b * (3 - b * b) * jnp.arctan2(a, height)
        - 2 * jnp.arctan2(a * b, height)
    ) / 6


def _half_cap_volume(a):
    """Volume of the octant of the unit ball beyond the plane x = a, 0 ≤ a ≤ 1."""
    return math.pi / 12 * (2 - 3 * a + a**3)


def _face_area(y, z, height):
    """Area of the unit ball's section at the given height inside the rectangle from the axis to (y, z), signed."""
    squared_radius = jnp.maximum(1 - height * height, 0)
    radius = _safe_sqrt(squared_radius)
    b, c = jnp.minimum(jnp.abs(y), radius), jnp.minimum(jnp.abs(z), radius)
    b_chord, c_chord = (_safe_sqrt((radius - side) * (radius + side)) for side in (b, c))  # none where side is radius
    angle = jnp.arctan2(b, b_chord) + jnp.arctan2(c, c_chord) - math.pi / 2
    outside = (b * b_chord + c * c_chord + squared_radius * angle) / 2
    area = jnp.where(b * b + c * c < squared_radius, b * c, outside)
    return jnp.sign(y) * jnp.sign(z) * jnp.where(squared_radius > 0, area, 0)


def _safe_sqrt(value):
    """Square root that is 0, with derivative 0, where the value is not positive."""
    positive = value > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, value, 1)), 0)
