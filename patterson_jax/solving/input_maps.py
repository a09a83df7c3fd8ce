"""Checks a user's map: is it a Patterson map, what is its resolution, and is F(000) missing?"""

import numpy as np

from patterson_jax.errors import InputError
from patterson_jax.simulation.patterson import frequencies, measured_frequencies
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.reflections import check_enough

SYMMETRY_TOLERANCE = 1e-3  # of the map's range
SPECTRUM_TOLERANCE = 1e-3  # of the highest coefficient
VANISHING = 1e-5  # part of the highest |F|² below which a coefficient counts as not measured
NEARLY_ALL = 0.8  # part of the highest |h| from which all counts as measured: atoms hardly reach the grid's corners
MISSING_ORIGIN = 0.5  # part of the highest |F|² below which F(000)² counts as missing


def checked_patterson(patterson: np.ndarray) -> np.ndarray:
    """Checks a Patterson map `(grid, grid, grid)`; returns it in float64, on a scale that suits float32.

    The scale is a power of two, so that no digit changes.

    Raises:
        InputError: the array cannot be a Patterson map; the message says what to correct.
    """

    def refuse(fault):
        raise InputError(f'no Patterson map that can be solved: {fault}')

    if patterson.ndim != 3 or len(set(patterson.shape)) > 1:
        refuse(f'its shape is {patterson.shape}; it must have three axes of the same length')
    if patterson.size == 0:
        refuse('it is empty')
    if patterson.dtype.kind not in 'fiu':
        refuse(f'its values are of the type {patterson.dtype}; they must be real numbers')
    if not np.all(np.isfinite(patterson)):
        refuse(f'{np.sum(~np.isfinite(patterson))} of its values are NaN or infinite')

    # Halved, because the range of the largest floats is itself too large for a float.
    _, exponent = np.frexp(np.ptp(np.asarray(patterson, np.float64) / 2))
    patterson = np.ldexp(np.asarray(patterson, np.float64), -int(exponent))
    size = patterson.shape[0]
    highest = np.unravel_index(np.argmax(patterson), patterson.shape)
    inverse = np.roll(np.flip(patterson), 1, axis=(0, 1, 2))
    spread = np.ptp(patterson)
    if spread == 0:
        refuse('it is the same everywhere')
    if size % 2 or size < 8:
        refuse(f'it has {size} voxels along each edge; it must be an even number, 8 or more')
    if highest == (size // 2,) * 3:
        refuse('its origin is in the centre of the cell; shift it by half a cell along each axis')
    if np.max(np.abs(patterson - inverse)) > SYMMETRY_TOLERANCE * spread:
        refuse('it is not its own inverse through the origin')
    if patterson[0, 0, 0] < patterson[highest]:
        refuse('its highest value is not at the origin; has the origin peak been taken out? It is needed')
    spectrum = np.fft.rfftn(patterson).real.ravel()[1:]
    if np.min(spectrum) < -SPECTRUM_TOLERANCE * np.max(spectrum):
        refuse(f'its Fourier coefficients, |F|², go down to {np.min(spectrum) / np.max(spectrum):.2g} of the highest')
    return patterson


def fit_problem(patterson: np.ndarray, problem: Problem, resolution: float | None) -> Problem:
    """The problem with its grid and resolution taken from a map.

    Args:
        patterson: the map `(grid, grid, grid)`.
        problem: number, size and inner box of the atoms.
        resolution: highest |h| measured; None: the |h| beyond which the spectrum of the map vanishes.

    Raises:
        InputError: the grid is too small for the problem, or too few frequencies are measured.
    """
    if resolution is None:
        resolution = inferred_resolution(patterson)
    try:
        fitted = problem.changed(grid_size=len(patterson), resolution=resolution)
        check_enough(fitted)
        return fitted
    except InputError as error:
        raise InputError(f'{len(patterson)} voxels along each edge, and for that problem.{error}') from error


def inferred_resolution(patterson: np.ndarray) -> float | None:
    """The |h| beyond which the spectrum of a map `(grid, grid, grid)` vanishes; None if it does not."""
    grid_size = len(patterson)
    intensities = np.abs(np.fft.rfftn(np.asarray(patterson, np.float64)).real)
    lengths = np.sqrt(np.sum(frequencies(grid_size) ** 2, axis=-1))
    highest = float(np.max(lengths[intensities > VANISHING * np.max(intensities)]))
    return None if highest > NEARLY_ALL * np.max(lengths) else highest


def cut_map(patterson: np.ndarray, problem: Problem) -> np.ndarray:
    """Sets the Fourier coefficients of a map beyond the problem's resolution to zero."""
    if problem.measurement.resolution is None:
        return patterson
    measured = measured_frequencies(problem.grid_size, problem.measurement.resolution)
    spectrum = np.where(measured, np.fft.rfftn(patterson), 0)
    return np.fft.irfftn(spectrum, s=patterson.shape, axes=(0, 1, 2)).astype(patterson.dtype)


def restore_origin_term(patterson: np.ndarray, problem: Problem) -> np.ndarray:
    """Restores a missing F(000)²: subtracts the constant that makes the empty part of the map zero on average.

    The empty part is where no vector between two atoms of the inner box can reach. A map with F(000)² is unchanged.

    Raises:
        InputError: F(000)² is missing, and there is no empty part or it is not below zero.
    """
    spectrum = np.fft.rfftn(patterson).real.ravel()
    if np.sum(patterson) >= MISSING_ORIGIN * np.max(spectrum[1:]):
        return patterson
    grid_size = len(patterson)
    axis = np.minimum(np.arange(grid_size), grid_size - np.arange(grid_size))
    farthest = np.maximum(np.maximum(axis[:, None, None], axis[None, :, None]), axis[None, None, :])
    empty = farthest > problem.box_edge + 2 * problem.atom_radius + 1
    level = np.mean(patterson[empty]) if np.any(empty) else 0
    if level >= 0:
        raise InputError(
            'no Patterson map that can be solved: F(000)² is missing, and the map has no empty part below zero from '
            'which it could be restored; add the constant that makes empty parts of the map zero'
        )
    return (patterson - level).astype(patterson.dtype)
