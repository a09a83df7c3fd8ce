"""Plain charge flipping in NumPy: what benchmarks.crystal_speed compares the search with.

A start has random phases in P1. Density below 1.1 σ changes its sign, F(000) is left free, and strong reflections get
their measured amplitudes back (Oszlányi and Sütő, Acta Cryst. A60, 134, 2004). The weakest fifth keep the calculated
amplitude, and their phases are shifted by π/2 (Acta Cryst. A61, 147, 2005). When the skewness of the density has jumped
and stays, by the limits of our search, ten cycles of low-density elimination polish the map (Shiono and Woolfson, Acta
Cryst. A48, 451, 1992). No symmetry is used. It computes in single precision, in one thread.
"""

import dataclasses

import numpy as np
import scipy.fft

from patterson_jax.crystal.grid import Grid

THRESHOLD, WEAK_PART, TINY = 1.1, 0.2, 1e-20  # σ; of the reflections; least amplitude that is divided by
MOST_CYCLES, LOOK_EVERY, LEAST_CYCLES, POLISHING = 1500, 50, 100, 10
JUMPED, FLAT = 1.5, 1.01  # skewness has jumped above this times its first level; it is constant below this growth
MOST_GROWTH = 1.3  # of the first level over the mean of cycles 5 to 10: a start may jump early


@dataclasses.dataclass(frozen=True)
class Flipped:
    """The end of a start.

    Attributes:
        factors: `(n,)` complex, with the amplitudes that were given, and the phases of crystallography.
        skewness: `(cycles,)`, of the density after each cycle.
        jumped: whether the skewness has jumped.
    """

    factors: np.ndarray
    skewness: np.ndarray
    jumped: bool


def flip_charges(
    hkl: np.ndarray, amplitudes: np.ndarray, grid: Grid, generator: np.random.Generator, most_cycles: int = MOST_CYCLES
) -> Flipped:
    """Runs one start.

    Args:
        hkl: `(n, 3)`, one of each Friedel pair.
        amplitudes: `(n,)`, E values.
        grid: one on which no reflection reaches the border.
        generator: of the first phases.
        most_cycles: after which it ends without a jump.
    """
    weak = amplitudes <= np.quantile(amplitudes, WEAK_PART)
    strong = grid.place(hkl, np.where(weak, 0, amplitudes).astype(np.float32))
    turned = grid.place(hkl, np.where(weak, 1j, 0).astype(np.complex64))
    turned[0, 0, 0] = 1  # F(000) as it is
    phases = np.exp(2j * np.pi * generator.random(len(hkl)))
    density = scipy.fft.irfftn(grid.place(hkl, amplitudes * phases).astype(np.complex64), grid.shape)
    deviation, skewness, jumped = density.std(), [], False
    while len(skewness) < most_cycles and not jumped:
        factors = scipy.fft.rfftn(np.where(density < THRESHOLD * deviation, -density, density))
        factors *= strong / np.maximum(_modulus(factors), TINY) + turned
        density = scipy.fft.irfftn(factors, grid.shape)
        centred = density.ravel() - factors[0, 0, 0].real / density.size
        squares = centred * centred
        variance = squares.mean()
        deviation = np.sqrt(variance)
        skewness.append(np.dot(squares, centred) / centred.size / (variance * deviation))
        jumped = len(skewness) % LOOK_EVERY == 0 and len(skewness) >= LEAST_CYCLES and _has_jumped(skewness)
    measured = grid.place(hkl, amplitudes.astype(np.float32))
    for _ in range(POLISHING):
        factors = scipy.fft.rfftn(np.where(density < density.std(), 0, density))
        factors *= measured / np.maximum(_modulus(factors), TINY)
        density = scipy.fft.irfftn(factors, grid.shape)
    return Flipped(np.conj(grid.take(factors, hkl)), np.array(skewness), jumped)


def _modulus(factors):
    return np.sqrt(factors.real**2 + factors.imag**2)  # np.abs guards against overflow, and takes longer


def _has_jumped(skewness):
    first = min(np.median(skewness[5:40]), MOST_GROWTH * np.mean(skewness[5:10]))
    constant = np.mean(skewness[-20:]) < FLAT * np.mean(skewness[-50:-20])
    return bool(np.mean(skewness[-15:]) > JUMPED * first and constant)
