"""Maps of a crystal in its space group, their peaks, and the equivalents of sites.

All of it runs on the host: a map takes some milliseconds, and its shape differs from crystal to crystal.
"""

import dataclasses
import math

import gemmi
import numpy as np

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.grid import fast_size

SAMPLING = 4.0  # grid points in d_min along each axis, at least
RADIUS = 0.6  # Å, of the sphere over which a peak is integrated


@dataclasses.dataclass(frozen=True)
class Peaks:
    """Maxima of a map, one of each set of equivalents, highest first.

    Attributes:
        positions: `(n, 3)`, fractional.
        heights: `(n,)`, in the map's units.
        integrals: `(n,)`, of the map over a sphere of 0.6 Å, times Å³.
    """

    positions: np.ndarray
    heights: np.ndarray
    integrals: np.ndarray


def grid_shape(cell: UnitCell, d_min: float) -> tuple[int, int, int]:
    """Points along the axes: even, with factors 2, 3 and 5 only, at least four in d_min."""
    first, second, third = (
        2 * fast_size(math.ceil(SAMPLING * edge / d_min / 2), real=True) for edge in (cell.a, cell.b, cell.c)
    )
    return first, second, third


def symmetric_map(
    hkl: np.ndarray,
    structure_factors: np.ndarray,
    operations: tuple[np.ndarray, np.ndarray],
    shape: tuple[int, int, int],
    volume: float,
) -> np.ndarray:
    """The map Σ F exp(−2πi h·x) / V over reflections, their equivalents and Friedel mates.

    Args:
        hkl: `(n, 3)` int, one of each set of equivalents, without those that the group forbids.
        structure_factors: `(n,)` complex.
        operations: rotations `(m, 3, 3)` and translations `(m, 3)`.
        shape: of the map; reflections too fine for it are left out.
        volume: of the cell, Å³.

    Returns:
        An array of `shape`, float32.
    """
    spectrum = np.zeros(shape, np.complex64)
    for rotation, translation in zip(*operations, strict=True):
        images = hkl @ rotation
        values = structure_factors * np.exp(-2j * np.pi * (hkl @ translation))
        held = (2 * np.abs(images) < shape).all(axis=1)
        spectrum[tuple(images[held].T)] = np.conj(values[held])
        spectrum[tuple(-images[held].T)] = values[held]
    half = spectrum[:, :, : shape[2] // 2 + 1]
    return (np.fft.irfftn(half, shape, axes=(0, 1, 2)) * (np.prod(shape) / volume)).astype(np.float32)


def sharp_peaks(
    density: np.ndarray, cell: UnitCell, operations: tuple[np.ndarray, np.ndarray], least: float, number: int
) -> Peaks:
    """Maxima above a level, interpolated, one of each set of equivalents.

    Args:
        density: the map.
        cell: of the crystal.
        operations: of its space group.
        least: the level.
        number: of maxima in the cell that are examined, the highest ones.
    """
    highest = density
    for axis in range(3):
        highest = np.maximum(highest, np.maximum(np.roll(highest, 1, axis), np.roll(highest, -1, axis)))
    places = np.argwhere((density == highest) & (density > least))
    values = density[tuple(places.T)]
    order = np.argsort(-values, kind='stable')[:number]
    positions, heights = _interpolated(density, places[order])
    kept = _one_of_each(positions, cell, operations)
    positions, heights = positions[kept], heights[kept]
    return Peaks(positions, heights, integrate(density, positions, cell))


def _interpolated(density, places):
    """Vertices of parabolas along each axis through maxima at grid points `(n, 3)`, and the heights there."""
    shape = np.array(density.shape)
    middle = density[tuple(places.T)]
    shifts, gain = np.zeros(places.shape), np.zeros(len(places))
    for axis in range(3):
        below, above = (density[tuple(((places + step * np.eye(3, dtype=int)[axis]) % shape).T)] for step in (-1, 1))
        bend = np.minimum(below - 2 * middle + above, -1e-12)
        shifts[:, axis] = np.clip((below - above) / 2 / bend, -0.5, 0.5)
        gain += (above - below) * shifts[:, axis] / 4
    return (places + shifts) / shape, middle + gain


def _one_of_each(positions, cell, operations):
    """Indices of the first of each set of equivalents, in order; sites within 0.3 Å are the same."""
    kept: list[int] = []
    for index, position in enumerate(positions):
        if not kept or nearest_images(position, positions[kept], cell, operations)[0].min() > 0.3:
            kept.append(index)
    return np.array(kept, int)


def integrate(density: np.ndarray, positions: np.ndarray, cell: UnitCell) -> np.ndarray:
    """Integrals `(n,)` of a map over a sphere of 0.6 Å about positions `(n, 3)`, in the map's units times Å³."""
    shape = np.array(density.shape)
    reach = np.ceil(RADIUS * np.linalg.norm(np.linalg.inv(cell.orthogonalization), axis=1) * shape).astype(int) + 1
    steps = np.stack(np.meshgrid(*(np.arange(-each, each + 1) for each in reach), indexing='ij'), -1).reshape(-1, 3)
    nearest = np.rint(positions * shape).astype(int)
    offsets = (nearest[:, None] + steps[None]) / shape - positions[:, None]
    inside = np.linalg.norm(offsets @ cell.orthogonalization.T, axis=-1) <= RADIUS
    values = density[tuple(np.moveaxis((nearest[:, None] + steps[None]) % shape, -1, 0))]
    counts = np.maximum(inside.sum(axis=1), 1)
    return (values * inside).sum(axis=1) / counts * (4 / 3 * np.pi * RADIUS**3)


def values_at(density: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Values `(n,)` of a map at positions `(n, 3)`, by linear interpolation."""
    shape = np.array(density.shape)
    scaled = positions * shape
    low = np.floor(scaled).astype(int)
    rest = scaled - low
    total = np.zeros(len(positions))
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, rest, 1 - rest), axis=1)
        total += weight * density[tuple(((low + corner) % shape).T)]
    return total


def shortest(offsets: np.ndarray, cell: UnitCell) -> np.ndarray:
    """Lengths of vectors `(..., 3)` modulo the lattice, Å; exact only if well below half an edge."""
    return np.linalg.norm((offsets - np.rint(offsets)) @ cell.orthogonalization.T, axis=-1)


def images_of(positions: np.ndarray, operations: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Images of positions `(n, 3)` under all operations, `(n, m, 3)`, not reduced to one cell."""
    rotations, translations = operations
    return np.einsum('mij,nj->nmi', rotations, positions) + translations[None]


def nearest_images(
    position: np.ndarray, others: np.ndarray, cell: UnitCell, operations: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Finds, of each other site `(n, 3)`, the equivalent nearest to a position.

    Returns:
        distances: `(n,)`, Å.
        images: `(n, 3)`, fractional.
    """
    images = images_of(others, operations)
    offsets = images - position
    offsets -= np.rint(offsets)
    steps = _near_steps(cell)
    lengths = np.linalg.norm((offsets[:, :, None] + steps) @ cell.orthogonalization.T, axis=-1)
    best = np.argmin(lengths.reshape(len(others), -1), axis=1)
    operation, step = np.unravel_index(best, lengths.shape[1:])
    rows = np.arange(len(others))
    return lengths[rows, operation, step], position + offsets[rows, operation] + steps[step]


def _near_steps(cell):
    """Lattice vectors that may shorten a vector within half an edge along each axis; only 0 in a rectangular cell."""
    if max(abs(np.cos(np.radians(angle))) for angle in (cell.alpha, cell.beta, cell.gamma)) < 0.02:
        return np.zeros((1, 3))
    return np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing='ij'), -1).reshape(-1, 3)


def contacts(
    positions: np.ndarray, cell: UnitCell, operations: tuple[np.ndarray, np.ndarray], reach: float
) -> list[tuple[int, int, float, np.ndarray]]:
    """Pairs of atoms nearer than `reach`, in Å, with all equivalents.

    Returns:
        A list of (atom i of the unit, atom j, distance, the image of j). An atom is not its own neighbour. Each pair
        appears from both sides, and with every near image of j.
    """
    found = []
    images = images_of(positions, operations)
    steps = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing='ij'), -1).reshape(-1, 3)
    for index, position in enumerate(positions):
        offsets = images - position
        offsets -= np.rint(offsets)
        vectors = offsets[:, :, None] + steps
        lengths = np.linalg.norm(vectors @ cell.orthogonalization.T, axis=-1)
        near = np.argwhere((lengths < reach) & (lengths > 1e-2))
        seen: set[tuple[int, ...]] = set()
        for other, operation, step in near:
            vector = vectors[other, operation, step]
            mark = (int(other), *np.rint(vector * 1e3).astype(int).tolist())
            if mark not in seen:
                seen.add(mark)
                found.append((index, int(other), float(lengths[other, operation, step]), position + vector))
    return found


def settle(
    position: np.ndarray, cell: UnitCell, operations: tuple[np.ndarray, np.ndarray], tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Puts a site that is near to a special position exactly onto it.

    Args:
        position: `(3,)`, fractional.
        cell: of the crystal.
        operations: of its space group.
        tolerance: Å; an image nearer than this is the same atom.

    Returns:
        position: the mean of the images that are the same atom.
        projector: `(3, 3)`, the mean rotation of the operations that keep the site; it maps shifts to allowed ones.
    """
    rotations, translations = operations
    keeping = np.arange(len(rotations))
    while True:
        offsets = rotations[keeping] @ position + translations[keeping] - position
        offsets -= np.rint(offsets)
        distances = shortest(offsets, cell)
        near = distances < tolerance
        if near.all():
            mean = position + offsets.mean(axis=0)
            wrong = shortest(rotations[keeping] @ mean + translations[keeping] - mean, cell)
            if wrong.max() < 1e-3:
                return mean, rotations[keeping].mean(axis=0)
            worst = np.argmax(wrong + distances)
            near[worst] = False
        keeping = keeping[near]


def stabiliser_order(position: np.ndarray, cell: UnitCell, operations: tuple[np.ndarray, np.ndarray]) -> int:
    """Number of operations that keep a site in place, within 0.01 Å."""
    rotations, translations = operations
    return int((shortest(rotations @ position + translations - position, cell) < 1e-2).sum())


def allowed_reflections(hkl: np.ndarray, symops: tuple[str, ...]) -> np.ndarray:
    """Whether the group allows reflections `(n, 3)`, `(n,)` bool."""
    group = gemmi.GroupOps([gemmi.Op(each) for each in symops])
    return ~group.systematic_absences(np.ascontiguousarray(hkl, np.int32))
