"""Reflections and their equivalents: merging, agreement of equivalents, completeness.

Rotations act on Miller indices as row vectors, h' = h R. A Laue class is given by all its rotations. They include the
inversion, so that Friedel pairs are equivalent.
"""

import dataclasses

import numpy as np

from patterson_jax.crystal.cell import UnitCell

HIGHEST_INDEX = 2**20 - 1
BITS = 21  # of an index in a key


@dataclasses.dataclass(frozen=True)
class Measurements:
    """Intensities as measured, or as a file has them, with equivalents not merged.

    Attributes:
        hkl: `(n, 3)` int32, without F(000).
        intensities: `(n,)`, F² on any scale; may be negative.
        sigmas: `(n,)`, their standard uncertainties, positive.
    """

    hkl: np.ndarray
    intensities: np.ndarray
    sigmas: np.ndarray

    def __len__(self) -> int:
        return len(self.hkl)

    def select(self, rows: np.ndarray) -> 'Measurements':
        """The measurements of these rows, given as a mask or as numbers."""
        return Measurements(self.hkl[rows], self.intensities[rows], self.sigmas[rows])


@dataclasses.dataclass(frozen=True)
class Merged:
    """One reflection of each set of equivalents.

    Attributes:
        reflections: the weighted means.
        counts: `(n,)`, the number of measurements in each mean.
        r_int: Σ|I − ⟨I⟩| / Σ|I| over the measurements that have equivalents; None if none has.
        compared: the number of these measurements.
    """

    reflections: Measurements
    counts: np.ndarray
    r_int: float | None
    compared: int


def index_keys(hkl: np.ndarray) -> np.ndarray:
    """One whole number for each triple of indices `(…, 3)`; the numbers sort by l, then k, then h."""
    h, k, l = np.moveaxis(np.asarray(hkl, np.int64) + HIGHEST_INDEX, -1, 0)
    return (l << 2 * BITS) | (k << BITS) | h


def indices_of_keys(keys: np.ndarray) -> np.ndarray:
    """The indices `(…, 3)` int32 of keys: the inverse of `index_keys`."""
    mask = (1 << BITS) - 1
    parts = [keys & mask, (keys >> BITS) & mask, keys >> 2 * BITS]
    return (np.stack(parts, axis=-1) - HIGHEST_INDEX).astype(np.int32)


def equivalent_keys(hkl: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Keys `(n,)` that equivalent reflections share: the highest key among the equivalents of each."""
    highest = np.full(len(hkl), -1, np.int64)
    for rotation in rotations:
        np.maximum(highest, index_keys(hkl @ rotation), out=highest)
    return highest


def merge(measurements: Measurements, rotations: np.ndarray) -> Merged:
    """Merges equivalents with weights 1/σ².

    The σ of a mean follows from the σ of the measurements or from their scatter, whichever gives more.

    Args:
        measurements: in any order.
        rotations: `(m, 3, 3)`, of the Laue class.
    """
    keys, group = np.unique(equivalent_keys(measurements.hkl, rotations), return_inverse=True)
    intensities, weights = measurements.intensities, 1 / measurements.sigmas**2
    counts, total = np.bincount(group), np.bincount(group, weights)
    means = np.bincount(group, weights * intensities) / total
    deviations = intensities - means[group]
    scatter = np.bincount(group, weights * deviations**2) / np.maximum(counts - 1, 1) / total
    sigmas = np.sqrt(np.maximum(1 / total, scatter))
    repeated = counts[group] > 1
    spread, sum_compared = np.sum(np.abs(deviations[repeated])), np.sum(np.abs(intensities[repeated]))
    r_int = float(spread / sum_compared) if sum_compared > 0 else None
    return Merged(Measurements(indices_of_keys(keys), means, sigmas), counts, r_int, int(np.sum(repeated)))


def stabilisers(hkl: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """The number of rotations that leave each reflection unchanged, `(n,)`."""
    return sum(np.all(hkl @ rotation == hkl, axis=1).astype(int) for rotation in rotations)


def sphere(cell: UnitCell, d_min: float) -> np.ndarray:
    """Indices `(n, 3)` of all reflections with d ≥ d_min in Å, one of each Friedel pair, without F(000)."""
    reach = [int(edge / d_min * (1 + 1e-9)) for edge in cell.parameters[:3]]
    h, k, l = (np.arange(-each, each + 1, dtype=np.int32) for each in reach)
    hkl = np.stack(np.meshgrid(h, k, l[l >= 0], indexing='ij'), axis=-1).reshape(-1, 3)
    hkl = hkl[index_keys(hkl) > index_keys(np.zeros(3, int))]
    return hkl[cell.inverse_spacings(hkl) <= (1 + 1e-6) / d_min]


def count_unique(hkl: np.ndarray, rotations: np.ndarray) -> float:
    """The number of unique reflections in a sphere; `hkl` has one of each Friedel pair in it."""
    return float(np.sum(2 * stabilisers(hkl, rotations)) / len(rotations))
