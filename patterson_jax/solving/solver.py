"""Patterson map to atoms: predicted map, peaks, separation, figures of merit (paper, 2.4.4 and 3.3 to 3.5).

The answer is one of two enantiomorphs: a set of atoms and its inverse have the same Patterson map.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from patterson_jax.errors import InputError
from patterson_jax.simulation.density import map_correlation, render
from patterson_jax.simulation.examples import network_input
from patterson_jax.simulation.patterson import (
    atom_factors,
    low_frequencies,
    patterson_intensities,
    patterson_map,
)
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.peaks import find_peaks, with_inverses
from patterson_jax.solving.separation import SeparationSettings, separate

SYMMETRY_TOLERANCE = 1e-3  # of the map's range
SPECTRUM_TOLERANCE = 1e-3  # of the highest coefficient

Predictor = Callable[[Array], Array]
"""From network inputs `(batch, grid, grid, grid)` to density maps of the same shape."""


class Solution(NamedTuple):
    """What was found behind one Patterson map, or, with a leading axis, behind several.

    Attributes:
        positions: `(num_atoms, 3)`, voxels from the box centre.
        density: `(grid, grid, grid)`, the predicted map of both enantiomorphs.
        candidates: `(2 · num_peaks, 3)`, the peaks of that map, then their inverses.
        heights: `(num_peaks,)`, density at the peaks.
        r_factor: R1 of the positions over the low frequencies.
        patterson_correlation: correlation of measured and calculated Patterson map, origin peak left out.
        misfit: what the separation minimised, after each swap of the best chain, `(num_swaps,)`.
    """

    positions: Array
    density: Array
    candidates: Array
    heights: Array
    r_factor: Array
    patterson_correlation: Array
    misfit: Array


def solve_batch(
    keys: Array, pattersons: Array, predict: Predictor, problem: Problem, settings: SeparationSettings
) -> Solution:
    """Solves Patterson maps `(batch, grid, grid, grid)`, origin at voxel (0, 0, 0), of any scale.

    Args:
        keys: `(batch,)`, one key for each map; a map's result depends on its own key alone.
        pattersons: the maps.
        predict: the trained network.
        problem: what the maps are of.
        settings: how to separate.
    """
    densities = predict(network_input(pattersons, problem))

    def solve_one(key, patterson, density):
        return interpret_map(key, patterson, density, problem, settings)

    return jax.vmap(solve_one)(keys, pattersons, densities)


def interpret_map(
    key: Array, patterson: Array, density: Array, problem: Problem, settings: SeparationSettings
) -> Solution:
    """From a density map of both enantiomorphs, and the Patterson map behind it, to one set of atoms."""
    patterson = absolute_scale(patterson, problem)
    chosen = low_frequencies(problem.grid_size, settings.resolution)
    measured = patterson_intensities(patterson)[tuple(chosen.T)]

    def factors_of(position):
        return atom_factors(position, chosen, problem.grid_size, problem.atom_radius)

    peaks, heights = find_peaks(density, settings.num_peaks, problem)
    candidates = with_inverses(peaks)
    factors = jax.vmap(factors_of)(candidates)
    separation = separate(key, factors, measured, problem.num_atoms, settings)
    positions = candidates[separation.chosen]
    total = jnp.sum(factors[separation.chosen], axis=0)
    return Solution(
        positions=positions,
        density=density,
        candidates=candidates,
        heights=heights,
        r_factor=r_factor(jnp.sqrt(jnp.maximum(measured, 0)), jnp.abs(total)),
        patterson_correlation=patterson_correlation(patterson, positions, problem),
        misfit=separation.history,
    )


def absolute_scale(patterson: Array, problem: Problem) -> Array:
    """Scales a Patterson map so that its sum is F(000)², the square of the problem's total density."""
    return patterson * ((problem.num_atoms * problem.atom_volume) ** 2 / jnp.sum(patterson))


def r_factor(observed: Array, calculated: Array) -> Array:
    """R1 = Σ| |Fo| − k|Fc| | / Σ|Fo| of amplitudes `(num_frequencies,)`, k by least squares."""
    scale = jnp.sum(observed * calculated) / jnp.sum(calculated**2)
    return jnp.sum(jnp.abs(observed - scale * calculated)) / jnp.sum(observed)


def patterson_correlation(patterson: Array, positions: Array, problem: Problem) -> Array:
    """Correlation of a Patterson map with that of positions `(num_atoms, 3)`, without the origin peak."""
    calculated = patterson_map(render(positions, problem.grid_size, problem.atom_radius))
    away = origin_distances(problem.grid_size) > 2 * problem.atom_radius
    return map_correlation(*(jnp.where(away, each, 0) for each in (patterson, calculated)))


def origin_distances(grid_size: int) -> np.ndarray:
    """Distance of each voxel of a periodic map from the nearest origin, `(grid, grid, grid)`, voxels."""
    axis = np.minimum(np.arange(grid_size), grid_size - np.arange(grid_size))
    return np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)


def check_patterson(patterson: np.ndarray, problem: Problem) -> None:
    """Raises InputError if a map `(grid, grid, grid)` cannot be a Patterson map that the network takes."""

    def refuse(fault):
        raise InputError(f'no Patterson map that can be solved: {fault}')

    size = patterson.shape[0]
    if size != problem.grid_size:
        refuse(f'it has {size} voxels along each edge, and the network was trained on {problem.grid_size}')
    highest = np.unravel_index(np.argmax(patterson), patterson.shape)
    inverse = np.roll(np.flip(patterson), 1, axis=(0, 1, 2))
    spread = np.ptp(patterson)
    if spread == 0:
        refuse('it is the same everywhere')
    if highest == (size // 2,) * 3:
        refuse('its origin is in the centre of the cell; shift it by half a cell along each axis')
    if np.max(np.abs(patterson - inverse)) > SYMMETRY_TOLERANCE * spread:
        refuse('it is not its own inverse through the origin')
    if patterson[0, 0, 0] < patterson[highest]:
        refuse('its highest value is not at the origin; has the origin peak been taken out? It is needed')
    spectrum = np.fft.rfftn(patterson).real.ravel()[1:]
    if np.sum(patterson) < 0.1 * np.max(spectrum):
        refuse(
            'its sum, F(000)², is less than a tenth of the highest |F|²; '
            'add the constant that makes the empty parts of the map zero'
        )
    if np.min(spectrum) < -SPECTRUM_TOLERANCE * np.max(spectrum):
        refuse(f'its Fourier coefficients, |F|², go down to {np.min(spectrum) / np.max(spectrum):.2g} of the highest')
