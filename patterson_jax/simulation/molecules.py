"""Simulates the maps of given atoms (paper, 2.1 and 2.2)."""

import functools
import math
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from patterson_jax.compiler import avoid_wrong_fusion, require_right_results
from patterson_jax.errors import InputError, is_real, is_whole, real_array, require
from patterson_jax.simulation.density import render
from patterson_jax.simulation.examples import example_key, stream_key
from patterson_jax.simulation.measurement import Measurement, measured_map
from patterson_jax.simulation.problem import Problem


class Simulated(NamedTuple):
    """Simulated maps.

    Attributes:
        patterson: `(grid, grid, grid)`, float32; its origin is at voxel (0, 0, 0).
        density: `(grid, grid, grid)`, float32, the filled part of each voxel; the atoms are centred.
    """

    patterson: np.ndarray
    density: np.ndarray


def simulate(
    positions: ArrayLike,
    voxel_size: float = 1.0,
    *,
    grid_size: int = 40,
    atom_radius: float = 1.0,
    noise: float = 0.0,
    resolution: float | None = None,
    seed: int = 0,
) -> Simulated:
    """Simulates the Patterson map and the density of equal spheres in an otherwise empty cubic cell, P1.

    Args:
        positions: `(num_atoms, 3)` in Å; with the default voxel size, in voxels. Their mean is moved to the centre.
        voxel_size: edge of a voxel, Å.
        grid_size: number of voxels along each edge of the maps; even.
        atom_radius: radius of the spheres, voxels.
        noise: relative standard deviation of the measured amplitudes |F|.
        resolution: |h| up to which amplitudes are measured; None: all of them.
        seed: fixes the noise.

    Returns:
        The two maps, `patterson` and `density`.

    Raises:
        InputError: an argument is invalid, the spheres overlap, or the cell is so small that vectors would overlap.
    """
    avoid_wrong_fusion()
    require_right_results()
    allowed = 'finite numbers, (num_atoms, 3), Å'
    positions = real_array(positions, 'positions', allowed).astype(np.float64)
    require(positions.ndim == 2 and positions.shape[1] == 3, 'positions.shape', positions.shape, '(num_atoms, 3)')
    require(bool(np.all(np.isfinite(positions))), 'positions', positions.tolist(), 'finite')
    require(is_whole(seed) and 0 <= seed < 2**32, 'seed', seed, f'a whole number from 0 to {2**32 - 1}')
    require(is_whole(grid_size), 'grid_size', grid_size, 'an even number, 8 or more')
    require(is_real(atom_radius), 'atom_radius', atom_radius, 'a number of voxels')
    half = grid_size / 2 - atom_radius
    problem = Problem(
        grid_size, len(positions), atom_radius, 0.0, max(half, 1.0), measurement=Measurement(noise, resolution)
    )
    return simulate_problem(place_atoms(positions, problem, voxel_size), problem, seed)


def place_atoms(positions: np.ndarray, problem: Problem, voxel_size: float, setting: str = 'voxel_size') -> np.ndarray:
    """Converts positions in Å to voxels from their mean.

    Args:
        positions: `(num_atoms, 3)` in Å.
        problem: gives the radius of the atoms and the cell.
        voxel_size: Å.
        setting: the user's name for the voxel size, for messages.

    Returns:
        `(num_atoms, 3)`, float32.

    Raises:
        InputError: the spheres overlap, or their vectors overlap in the cell.
    """
    require(is_real(voxel_size) and voxel_size > 0, setting, voxel_size, 'a positive number of Å')
    voxels = positions / voxel_size
    voxels = voxels - np.mean(voxels, axis=0)
    extent, room = np.max(np.ptp(voxels, axis=0)), problem.grid_size / 2 - 2 * problem.atom_radius
    if extent > room:
        cure = ''
        if room > 0:
            cure = f' ({setting}={math.ceil(100 * voxel_size * extent / room) / 100:.2f} makes room)'
        raise InputError(
            f'{extent * voxel_size:.2f} Å across; its vectors overlap in this cell above '
            f'{max(room, 0) * voxel_size:.2f} Å{cure}'
        )
    distances = np.linalg.norm(voxels[:, None] - voxels[None], axis=-1) + np.diag(np.full(len(voxels), np.inf))
    nearest = np.min(distances)
    if nearest < 2 * problem.atom_radius:
        first, second = np.argwhere(distances == nearest)[0] + 1
        raise InputError(
            f'atoms {first} and {second} are {nearest * voxel_size:.3f} Å apart; their spheres overlap below '
            f'{2 * problem.atom_radius * voxel_size:.3f} Å'
        )
    return voxels.astype(np.float32)


def simulate_problem(positions: np.ndarray, problem: Problem, seed: int) -> Simulated:
    """Simulates the maps of atoms at positions `(num_atoms, 3)`, voxels from the centre.

    Args:
        positions: of the atoms.
        problem: gives radius, grid, noise and resolution.
        seed: of the noise.
    """
    key = example_key(stream_key(seed, 'files'), 0, 0)
    return Simulated(*map(np.asarray, _maps(key, positions, problem)))


@functools.partial(jax.jit, static_argnums=2)
def _maps(key: Array, positions: Array, problem: Problem) -> tuple[Array, Array]:
    density = render(positions, problem.grid_size, problem.atom_radius)
    return measured_map(key, density, problem.measurement), density
