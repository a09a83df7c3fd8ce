"""The paper's procedure (2.4.4): from a map of both enantiomorphs to peaks, and from peaks to one set of atoms.

The map comes from a network or from the minimum function. Nothing is refined here.
"""

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
from patterson_jax.solving.atom_sets import taken_places
from patterson_jax.solving.peaks import find_peaks, with_inverses
from patterson_jax.solving.reflections import Measured, measure, r_factor, reflections
from patterson_jax.solving.separation import SeparationSettings, separate

Predictor = Callable[[Array], Array]
"""From network inputs `(batch, grid, grid, grid)` to density maps of the same shape."""


class Interpretation(NamedTuple):
    """The result for one map, or, with a leading axis, for several.

    Attributes:
        positions: `(num_atoms, 3)`, voxels from the box centre.
        density: `(grid, grid, grid)`, the predicted map of both enantiomorphs.
        candidates: `(2 · num_peaks, 3)`, the peaks of that map, then their inverses.
        heights: `(num_peaks,)`, density at the peaks.
        r_factor: R1 of the positions over the low frequencies.
        patterson_correlation: correlation of measured and calculated Patterson map, origin peak left out.
        misfit: `(num_swaps,)`, what the separation minimises, after each swap of the best chain.
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
    densities = predict(network_input(pattersons, problem.num_atoms, problem.encoding))
    return jax.vmap(lambda *each: interpret_map(*each, problem, settings))(keys, pattersons, densities)


@exact_products
def interpret_map(
    key: Array, patterson: Array, density: Array, problem: Problem, settings: SeparationSettings
) -> Interpretation:
    """Finds one set of atoms in a density map of both enantiomorphs, with the Patterson map from which it was made.

    Both maps are `(grid, grid, grid)`; the Patterson map has its origin at voxel (0, 0, 0).
    """
    measured = measure(patterson, reflections(problem), problem.num_atoms, problem.atom_volume)
    found = atoms_of_map(key, density, measured, problem, settings)
    correlation = patterson_correlation(measured.patterson, found.positions, problem)
    return Interpretation(**found._asdict(), density=density, patterson_correlation=correlation)


class AtomsOfMap(NamedTuple):
    """The set of atoms in a map of both enantiomorphs; the fields are those of `Interpretation`."""

    positions: Array
    candidates: Array
    heights: Array
    r_factor: Array
    misfit: Array


def atoms_of_map(
    key: Array, density: Array, measured: Measured, problem: Problem, settings: SeparationSettings
) -> AtomsOfMap:
    """Chooses, of the peaks of a map of both enantiomorphs, the set of atoms `(places, 3)` that fits the data best.

    Places that are not taken hold further peaks. Only frequencies up to the settings' resolution are compared.
    """
    hkl = low_frequencies(problem.grid_size, settings.resolution)
    known = jnp.sum(hkl**2, axis=-1) <= measured.reflections.longest
    intensities = jnp.where(known, patterson_intensities(measured.patterson)[tuple(hkl.T)], 0)

    def factors_of(position):
        factors = atom_factors(position, hkl, problem.grid_size, problem.atom_radius)
        return jnp.where(known, factors, 0)

    peaks, heights = find_peaks(density, settings.num_peaks, problem)
    candidates = with_inverses(peaks)
    factors = jax.vmap(factors_of)(candidates)
    separation = separate(key, factors, intensities, measured.num_atoms, settings)
    chosen = separation.order[: problem.num_atoms]
    taken = taken_places(chosen, measured.num_atoms)[:, None]
    total = jnp.sum(jnp.where(taken, factors[chosen], 0), axis=0)
    observed = jnp.sqrt(jnp.maximum(intensities, 0))
    r1 = r_factor(observed, jnp.abs(total))
    return AtomsOfMap(candidates[chosen], candidates, heights, r1, separation.history)


def patterson_correlation(patterson: Array, positions: Array, problem: Problem) -> Array:
    """Correlation of a Patterson map with that of positions `(num_atoms, 3)`, without the origin peak.

    Both maps are limited to the measured frequencies.
    """
    squares = intensities(render(positions, problem.grid_size, problem.atom_radius))
    squares = jnp.where(measured_frequencies(problem.grid_size, problem.measurement.resolution), squares, 0)
    calculated = jnp.fft.irfftn(squares, s=patterson.shape)
    away = origin_distances(problem.grid_size) > 2 * problem.atom_radius
    return map_correlation(*(jnp.where(away, each, 0) for each in (patterson, calculated)))
