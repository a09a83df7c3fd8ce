"""The quality of the measured amplitudes of a case, and the Patterson map that they give."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from patterson_jax.errors import is_real, require
from patterson_jax.simulation.patterson import (
    friedel_representatives,
    intensities,
    measured_frequencies,
    patterson_map,
)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The quality of the data. Raises InputError if a field is invalid.

    Attributes:
        noise: relative standard deviation of the measured amplitudes |F|.
        resolution: |h| up to which amplitudes are measured; in the Patterson map the others are zero. None: all are
            measured.
    """

    noise: float = 0.0
    resolution: float | None = None

    def __post_init__(self):
        require(is_real(self.noise) and 0 <= self.noise <= 1, 'noise', self.noise, 'from 0 to 1')
        complete = self.resolution is None or (is_real(self.resolution) and self.resolution >= 1)
        allowed = 'a number, 1 or more, or None where every amplitude is measured'
        require(complete, 'resolution', self.resolution, allowed)


def measured_map(key: Array, density: Array, measurement: Measurement) -> Array:
    """The Patterson map `(grid, grid, grid)` that an experiment gives, with noise and up to a resolution.

    Amplitudes are multiplied by 1 + noise · g, g normal, one for each Friedel pair. F(000) has no noise: it is not
    measured but known from what the cell holds.
    """
    noise, resolution = measurement.noise, measurement.resolution
    if not noise and resolution is None:
        return patterson_map(density)
    squares, grid_size = intensities(density), density.shape[-1]
    if noise:
        draws = jax.random.normal(key, squares.shape, squares.dtype).ravel()[friedel_representatives(grid_size)]
        squares = squares * ((1 + noise * draws) ** 2).at[0, 0, 0].set(1)
    squares = jnp.where(measured_frequencies(grid_size, resolution), squares, 0)
    return jnp.fft.irfftn(squares, s=density.shape, axes=(-3, -2, -1))
