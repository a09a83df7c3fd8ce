"""Density to structure factors, amplitudes and Patterson map, P = F⁻¹(|F|²) (paper, 2.2, equation 5).

Structure factors are kept as the half space that a real map needs, `(grid, grid, grid // 2 + 1)`, in the order of
`jnp.fft.rfftn`. A Patterson map has its origin at voxel (0, 0, 0), as crystallographers keep it, unless a name says
"centred".
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from patterson_jax.precision import exact_products
from patterson_jax.simulation.density import atom_block

ROUNDING = 1 + 1e-9  # of the square of a resolution, which may come from a square root


def structure_factors(density: Array) -> Array:
    """Discrete Fourier transform of maps `(..., grid, grid, grid)`: complex `(..., grid, grid, grid // 2 + 1)`."""
    return jnp.fft.rfftn(density, axes=(-3, -2, -1))


def intensities(density: Array) -> Array:
    """|F|² of density maps."""
    factors = structure_factors(density)
    return factors.real**2 + factors.imag**2


def patterson_map(density: Array) -> Array:
    """Patterson maps of density maps, both `(..., grid, grid, grid)`, origin at voxel (0, 0, 0)."""
    return jnp.fft.irfftn(intensities(density), s=density.shape[-3:], axes=(-3, -2, -1))


def patterson_intensities(patterson: Array) -> Array:
    """|F|² of Patterson maps. Where it is zero, rounding leaves small values of either sign."""
    return structure_factors(patterson).real


def measured_frequencies(grid_size: int, resolution: float | None) -> np.ndarray:
    """Which frequencies of the half space have |h| ≤ resolution, `(grid, grid, grid // 2 + 1)`; all of them if None."""
    return np.sum(frequencies(grid_size) ** 2, axis=-1) <= longest_measured(grid_size, resolution)


def longest_measured(grid_size: int, resolution: float | None) -> int:
    """The largest |h|² that a resolution leaves, at most that of the grid's corner; None leaves all."""
    corner = 3 * (grid_size // 2) ** 2
    return corner if resolution is None else min(math.floor(resolution**2 * ROUNDING), corner)


def frequencies_within(grid_size: int, longest: Array | np.ndarray | int) -> Array:
    """Which frequencies of the half space have |h|² ≤ longest, `(grid, grid, grid // 2 + 1)`; it may be traced."""
    whole = jnp.minimum(jnp.arange(grid_size), grid_size - jnp.arange(grid_size)) ** 2
    half = whole[: grid_size // 2 + 1]
    return whole[:, None, None] + whole[None, :, None] + half[None, None, :] <= longest


def read_only(array: np.ndarray) -> np.ndarray:
    """The same array, made read-only: arrays in a cache are shared."""
    array.flags.writeable = False
    return array


@functools.lru_cache
def friedel_representatives(grid_size: int) -> np.ndarray:
    """For each frequency of the half space the flat index of h or of −h, the same for both.

    Returns:
        `(grid, grid, grid // 2 + 1)`; a frequency whose opposite is not in the half space has its own index.
    """
    half = grid_size // 2 + 1
    x, y, z = np.meshgrid(np.arange(grid_size), np.arange(grid_size), np.arange(half), indexing='ij')
    index = (x * grid_size + y) * half + z
    opposite = (-x % grid_size * grid_size + -y % grid_size) * half + z
    return read_only(np.where((z == 0) | (z == grid_size // 2), np.minimum(index, opposite), index))


def frequencies(grid_size: int) -> np.ndarray:
    """Integer frequencies h of the half space, `(grid, grid, grid // 2 + 1, 3)`."""
    whole = np.rint(np.fft.fftfreq(grid_size) * grid_size).astype(int)
    half = np.arange(grid_size // 2 + 1)
    return np.stack(np.meshgrid(whole, whole, half, indexing='ij'), axis=-1)


def low_frequencies(grid_size: int, resolution: float | None) -> np.ndarray:
    """Frequencies of the half space with 0 < |h| ≤ resolution, one of each Friedel pair, `(num_frequencies, 3)`."""
    representatives = friedel_representatives(grid_size)
    kept = representatives == np.arange(representatives.size).reshape(representatives.shape)
    kept &= measured_frequencies(grid_size, resolution)
    kept[0, 0, 0] = False
    return frequencies(grid_size)[kept]


def atom_factors(position: Array, hkl: np.ndarray, grid_size: int, atom_radius: float) -> Array:
    """Structure factors of one atom rendered alone, without a transform of the whole grid.

    Args:
        position: `(3,)`, voxels from the box centre.
        hkl: frequencies `(num_frequencies, 3)`, integers, half space.
        grid_size: voxels along each edge.
        atom_radius: voxels.

    Returns:
        Complex `(num_frequencies,)`, equal to those entries of `structure_factors` of the rendered atom. Those of
        several atoms add up.
    """
    block, start = atom_block(position + grid_size / 2, atom_radius)
    return _block_factors(block[None], start, hkl, grid_size, int(np.abs(hkl).max()))[0]


def atom_factors_and_slopes(
    position: Array, hkl: Array | np.ndarray, grid_size: int, atom_radius: float, limit: int
) -> tuple[Array, Array]:
    """`atom_factors`, and their derivatives with respect to the position, complex `(3, num_frequencies)`.

    `hkl` may be traced; none of h, k, l is above `limit`, a whole number.
    """

    def block_at(position):
        block, start = atom_block(position + grid_size / 2, atom_radius)
        return block, (block, start)

    slopes, (block, start) = jax.jacfwd(block_at, has_aux=True)(position)
    blocks = jnp.concatenate([block[None], jnp.moveaxis(slopes, -1, 0)])
    factors = _block_factors(blocks, start, hkl, grid_size, limit)
    return factors[0], factors[1:]


@exact_products
def _block_factors(blocks, start, hkl, grid_size, limit):
    """Structure factors `(count, num_frequencies)` of blocks of voxels `(count, block, block, block)` at one place."""
    waves = jnp.arange(-limit, limit + 1)
    voxels = start[:, None] + jnp.arange(blocks.shape[-1])[None]
    # Whole numbers are reduced before they become an angle, so that float32 keeps the phase exact.
    turns = (voxels[:, :, None] * waves[None, None]) % grid_size
    angles = 2 * np.pi / grid_size * turns.astype(blocks.dtype)
    phases = jax.lax.complex(jnp.cos(angles), -jnp.sin(angles))  # (3, block, waves)
    along_z = jnp.einsum('nxyz,zl->nxyl', blocks.astype(phases.dtype), phases[2, :, limit:])
    along_yz = jnp.einsum('nxyl,yk->nxkl', along_z, phases[1])
    factors = jnp.einsum('nxkl,xh->nhkl', along_yz, phases[0])
    h, k, l = hkl.T
    return factors[:, h + limit, k + limit, l]


def sphere_factor(hkl: np.ndarray, grid_size: int, atom_radius: float) -> np.ndarray:
    """Form factor of one atom, a sphere averaged over voxels, at frequencies `(..., 3)`: real, about its centre.

    It has no aliasing: what the grid folds back from higher frequencies is left out. `atom_factors` includes it.
    """
    wave = 2 * np.pi / grid_size * atom_radius * np.linalg.norm(hkl, axis=-1)
    safe = np.where(wave > 0, wave, 1)
    sphere = np.where(wave > 0, 3 * (np.sin(safe) - safe * np.cos(safe)) / safe**3, 1)
    return 4 / 3 * np.pi * atom_radius**3 * sphere * np.prod(np.sinc(hkl / grid_size), axis=-1)
