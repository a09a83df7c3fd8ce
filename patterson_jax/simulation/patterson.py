"""Density to structure factors, amplitudes and Patterson map, P = F⁻¹(|F|²) (paper, 2.2, equation 5).

Structure factors are kept as the half space that a real map needs, `(grid, grid, grid // 2 + 1)`, in the order of
`jnp.fft.rfftn`. A Patterson map has its origin at voxel (0, 0, 0), as crystallographers keep it, unless a name says
"centred".
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from patterson_jax.simulation.density import atom_block


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
    """|F|² behind Patterson maps; noise of either sign where there is none."""
    return structure_factors(patterson).real


def centre_origin(patterson: Array) -> Array:
    """Moves the origin of Patterson maps from voxel 0 to voxel grid / 2 of each axis."""
    return jnp.fft.fftshift(patterson, axes=(-3, -2, -1))


def frequencies(grid_size: int) -> np.ndarray:
    """Integer frequencies h of the half space, `(grid, grid, grid // 2 + 1, 3)`."""
    whole = np.rint(np.fft.fftfreq(grid_size) * grid_size).astype(int)
    half = np.arange(grid_size // 2 + 1)
    return np.stack(np.meshgrid(whole, whole, half, indexing='ij'), axis=-1)


def low_frequencies(grid_size: int, resolution: float) -> np.ndarray:
    """Frequencies of the half space with 0 < |h| ≤ resolution, one of each Friedel pair, `(num_frequencies, 3)`."""
    every = frequencies(grid_size).reshape(-1, 3)
    squared = np.sum(every**2, axis=-1)
    x, y, z = every.T
    number, opposite = (sign * y % grid_size * grid_size + sign * x % grid_size for sign in (1, -1))
    twin = ((z == 0) | (z == grid_size // 2)) & (number > opposite)  # h and −h both lie in these two planes
    return every[(squared > 0) & (squared <= resolution**2) & ~twin]


def atom_factors(position: Array, chosen: np.ndarray, grid_size: int, atom_radius: float) -> Array:
    """Structure factors of one atom rendered alone, without a transform of the whole grid.

    Args:
        position: `(3,)`, voxels from the box centre.
        chosen: frequencies `(num_frequencies, 3)`, integers, half space.
        grid_size: voxels along each edge.
        atom_radius: voxels.

    Returns:
        Complex `(num_frequencies,)`, equal to those entries of `structure_factors` of the rendered atom. Those of
        several atoms add up.
    """
    block, start = atom_block(position + grid_size / 2, atom_radius)
    limit = int(np.abs(chosen).max())
    waves = jnp.arange(-limit, limit + 1)
    voxels = start[:, None] + jnp.arange(block.shape[0])[None]
    # Whole numbers are reduced before they become an angle, so that float32 keeps the phase exact.
    turns = (voxels[:, :, None] * waves[None, None]) % grid_size
    angles = 2 * np.pi / grid_size * turns.astype(position.dtype)
    phases = jax.lax.complex(jnp.cos(angles), -jnp.sin(angles))  # (3, block, waves)
    along_z = jnp.einsum('xyz,zl->xyl', block.astype(phases.dtype), phases[2, :, limit:])
    along_yz = jnp.einsum('xyl,yk->xkl', along_z, phases[1])
    factors = jnp.einsum('xkl,xh->hkl', along_yz, phases[0])
    h, k, l = chosen.T
    return factors[h + limit, k + limit, l]
