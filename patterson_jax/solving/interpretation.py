"""The paper's procedure: from a map of both enantiomorphs to peaks, and from these to one set of atoms (2.4.4).

The map is the network's, or that of the minimum function. Nothing is refined here.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from patterson_jax.precision import exact_products
from patterson_jax.simulation.density import render
from patterson_jax.simulation.encoding import network_input
from patterson_jax.simulation.maps import map_correlation, origin_distances
from patterson_jax.simulation.patterson import (
    atom_factors,
    intensities,
    low_frequencies,
    measured_frequencies,
    patterson_intensities,
)
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.peaks import find_peaks, with_inverses
from patterson_jax.solving.reflections import absolute_scale, r_factor
from patterson_jax.solving.separation import SeparationSettings, separate

Predictor = Callable[[Array], Array]
"""From network inputs `(batch, grid, grid, grid)` to density maps of the same shape."""


class Interpretation(NamedTuple):
    """What was made of one map, or, with a leading axis, of several.

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


def interpret_batch(
    keys: Array, pattersons: Array, predict: Predictor, problem: Problem, settings: SeparationSettings
) -> Interpretation:
    """Predicts and interprets Patterson maps `(batch, grid, grid, grid)`, origin at voxel (0, 0, 0), of any scale.

    Args:
        keys: `(batch,)`, one key for each map; a map's result depends on its own key alone.
        pattersons: the maps.
        predict: the trained network.
        problem: what the maps are of.
        settings: how to separate.
    """
    densities = predict(network_input(pattersons, problem))

    def interpret_one(key, patterson, density):
        return interpret_map(key, patterson, density, problem, settings)

    return jax.vmap(interpret_one)(keys, pattersons, densities)


@exact_products
def interpret_map(
    key: Array, patterson: Array, density: Array, problem: Problem, settings: SeparationSettings
) -> Interpretation:
    """From a density map of both enantiomorphs, and the Patterson map behind it, to one set of atoms."""
    patterson = absolute_scale(patterson, problem)
    chosen = low_frequencies(problem.grid_size, min(settings.resolution, problem.resolution or math.inf))
    measured = patterson_intensities(patterson)[tuple(chosen.T)]

    def factors_of(position):
        return atom_factors(position, chosen, problem.grid_size, problem.atom_radius)

    peaks, heights = find_peaks(density, settings.num_peaks, problem)
    candidates = with_inverses(peaks)
    factors = jax.vmap(factors_of)(candidates)
    separation = separate(key, factors, measured, problem.num_atoms, settings)
    positions = candidates[separation.chosen]
    total = jnp.sum(factors[separation.chosen], axis=0)
    return Interpretation(
        positions=positions,
        density=density,
        candidates=candidates,
        heights=heights,
        r_factor=r_factor(jnp.sqrt(jnp.maximum(measured, 0)), jnp.abs(total)),
        patterson_correlation=patterson_correlation(patterson, positions, problem),
        misfit=separation.history,
    )


def patterson_correlation(patterson: Array, positions: Array, problem: Problem) -> Array:
    """Correlation of a Patterson map with that of positions `(num_atoms, 3)`, without the origin peak.

    Both have the measured frequencies alone.
    """
    squares = intensities(render(positions, problem.grid_size, problem.atom_radius))
    squares = jnp.where(measured_frequencies(problem.grid_size, problem.resolution), squares, 0)
    calculated = jnp.fft.irfftn(squares, s=patterson.shape)
    away = origin_distances(problem.grid_size) > 2 * problem.atom_radius
    return map_correlation(*(jnp.where(away, each, 0) for each in (patterson, calculated)))
