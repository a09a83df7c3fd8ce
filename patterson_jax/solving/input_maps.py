"""Maps that a person hands over: is it a Patterson map, how far is it measured, what is missing of it."""

import dataclasses

import numpy as np

from patterson_jax.errors import InputError
from patterson_jax.simulation.patterson import frequencies, measured_frequencies
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.reflections import check_enough

SYMMETRY_TOLERANCE = 1e-3  # of the map's range
SPECTRUM_TOLERANCE = 1e-3  # of the highest coefficient
VANISHING = 1e-5  # part of the highest |F|² below which a coefficient counts as not measured
NEARLY_ALL = 0.8  # of the highest |h| of a grid, in whose corners atoms may give next to nothing; from there on, all
MISSING_ORIGIN = 0.5  # part of the highest |F|² below which F(000)² counts as missing


def checked_patterson(patterson: np.ndarray) -> np.ndarray:
    """A Patterson map `(grid, grid, grid)` in double precision, on a scale on which single precision can hold it.

    Only the exponents of the values are changed, so that no digit of them is.

    Raises:
        InputError: the array cannot be a Patterson map; the message says what to mend.
    """

    def refuse(fault):
        raise InputError(f'no Patterson map that can be solved: {fault}')

    if patterson.ndim != 3 or len(set(patterson.shape)) > 1:
        refuse(f'its shape is {patterson.shape}; it must have three axes of the same length')
    if patterson.size == 0:
        refuse('it is empty')
    if not np.issubdtype(patterson.dtype, np.floating) and not np.issubdtype(patterson.dtype, np.integer):
        refuse(f'its values are of the type {patterson.dtype}; they must be real numbers')
    if not np.all(np.isfinite(patterson)):
        refuse(f'{np.sum(~np.isfinite(patterson))} of its values are NaN or infinite')

    # Halved, because the range of values as large as a float can be is larger than that.
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
    """The problem with a map's grid and resolution: the given one, else the |h| beyond which its spectrum vanishes.

    Raises:
        InputError: the map's grid is too small for the problem, or too little of it is measured.
    """
    if resolution is None:
        resolution = inferred_resolution(patterson)
    try:
        fitted = dataclasses.replace(problem, grid_size=len(patterson), resolution=resolution)
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
    """A map without what lies beyond the problem's resolution."""
    if problem.resolution is None:
        return patterson
    measured = measured_frequencies(problem.grid_size, problem.resolution)
    spectrum = np.where(measured, np.fft.rfftn(patterson), 0)
    return np.fft.irfftn(spectrum, s=patterson.shape, axes=(0, 1, 2)).astype(patterson.dtype)


def restore_origin_term(patterson: np.ndarray, problem: Problem) -> np.ndarray:
    """A map whose F(000)² is missing, with the constant that makes its empty part zero on average.

    Empty is what no vector between two atoms of the inner box reaches. A map that has F(000)² is returned as it is.

    Raises:
        InputError: F(000)² is missing, and vectors reach every part of the cell or the empty part is not below zero.
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
            'no Patterson map that can be solved: F(000)² is missing, and where no vector of the inner box reaches '
            'nothing tells the zero of the map; add the constant that makes its empty parts zero'
        )
    return (patterson - level).astype(patterson.dtype)
