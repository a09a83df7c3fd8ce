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
from patterson_jax.solving.charge_flipping import TINY, WEAK_PART
from patterson_jax.solving.crystal_phasing import (
    CYCLES_AT_ONCE,
    EARLIEST,
    FIRST_CYCLES,
    FLAT,
    JUMPED,
    LEAST_CYCLES,
    MOST_GROWTH,
)

THRESHOLD = 1.1  # σ
MOST_CYCLES, POLISHING = 1500, 10


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
        jumped = len(skewness) % CYCLES_AT_ONCE == 0 and len(skewness) >= LEAST_CYCLES and _has_jumped(skewness)
    measured = grid.place(hkl, amplitudes.astype(np.float32))
    for _ in range(POLISHING):
        factors = scipy.fft.rfftn(np.where(density < density.std(), 0, density))
        factors *= measured / np.maximum(_modulus(factors), TINY)
        density = scipy.fft.irfftn(factors, grid.shape)
    return Flipped(np.conj(grid.take(factors, hkl)), np.array(skewness), jumped)


def _modulus(factors):
    return np.sqrt(factors.real**2 + factors.imag**2)  # np.abs guards against overflow, and takes longer


def _has_jumped(skewness):
    first = min(np.median(skewness[FIRST_CYCLES]), MOST_GROWTH * np.mean(skewness[EARLIEST]))
    constant = np.mean(skewness[-20:]) < FLAT * np.mean(skewness[-50:-20])
    return bool(np.mean(skewness[-15:]) > JUMPED * first and constant)
