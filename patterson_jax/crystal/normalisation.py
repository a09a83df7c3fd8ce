"""From intensities with their errors to amplitudes, and to E values, which do not fall off with resolution.

In a shell of 1/d the mean intensity is that of the cell's contents at random places (Wilson, Nature 150, 152, 1942). A
measured intensity may be negative; a true one is not. So an amplitude is its expected value, given the measurement, its
σ and the mean of its shell (French and Wilson, Acta Cryst. A34, 517, 1978). The acentric distribution is used, because
the space group is not known yet.
"""

import numpy as np

REFLECTIONS_IN_SHELL = 75
LEAST_SHELLS, MOST_SHELLS = 3, 30
SHELLS_FOR_A_CURVE = 6  # more shells than that are joined by lines; fewer are fitted by one line
QUADRATURE_NODES = 96
SIGMAS_BEYOND = 6.0  # where the normal distribution is taken to end


def mean_intensities(intensities: np.ndarray, inverse_spacings: np.ndarray) -> np.ndarray:
    """The expected mean intensity at the 1/d of each reflection, `(n,)`, positive.

    All shells have the same number of reflections. Straight lines in 1/d² join the logarithms of their means. Where
    there are few shells, one line is fitted (Wilson's plot).

    Args:
        intensities: `(n,)`, of all reflections of a sphere or of half a sphere, so that each counts as often as it
            occurs.
        inverse_spacings: `(n,)`, 1/Å.
    """
    squared = inverse_spacings**2
    count = int(np.clip(len(intensities) // REFLECTIONS_IN_SHELL, LEAST_SHELLS, MOST_SHELLS))
    shells = np.array_split(np.argsort(squared, kind='stable'), count)
    centres = np.array([squared[shell].mean() for shell in shells])
    means = np.array([intensities[shell].mean() for shell in shells])
    logarithms = np.log(np.maximum(means, 1e-6 * np.abs(intensities).mean()))
    if count > SHELLS_FOR_A_CURVE:
        return np.exp(np.interp(squared, centres, logarithms))
    return np.exp(np.polyval(np.polyfit(centres, logarithms, 1), squared))


def expected_amplitudes(intensities: np.ndarray, sigmas: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Expected |F| given measured intensities; about √I where I is far above its σ, positive everywhere.

    Args:
        intensities: `(n,)`, F² as measured, on any scale.
        sigmas: `(n,)`, their standard uncertainties.
        means: `(n,)`, the mean intensity of the shell of each, positive.

    Returns:
        `(n,)`.
    """
    centre = intensities - sigmas**2 / means  # prior times likelihood is a normal distribution cut at zero
    centre = np.clip(centre, -(SIGMAS_BEYOND**2) * sigmas, None)  # below, the tail's shape hardly changes
    lowest = np.sqrt(np.maximum(centre - SIGMAS_BEYOND * sigmas, 0))
    highest = np.sqrt(np.maximum(centre, 0) + SIGMAS_BEYOND * sigmas)
    nodes, weights = np.polynomial.legendre.leggauss(QUADRATURE_NODES)
    amplitudes = lowest[:, None] + (highest - lowest)[:, None] * (nodes + 1) / 2
    exponents = -(((amplitudes**2 - centre[:, None]) / sigmas[:, None]) ** 2) / 2
    densities = np.exp(exponents - exponents.max(axis=1, keepdims=True)) * amplitudes * weights
    return (densities * amplitudes).sum(axis=1) / densities.sum(axis=1)


def normalised_amplitudes(amplitudes: np.ndarray, means: np.ndarray) -> np.ndarray:
    """E values `(n,)` of amplitudes `(n,)`, scaled to a mean square of 1."""
    values = amplitudes / np.sqrt(means)
    return values / np.sqrt(np.mean(values**2))
