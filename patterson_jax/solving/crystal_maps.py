"""Maps of a crystal in its space group, their peaks, and the equivalents of sites.

All of it runs on the host: a map takes some milliseconds, and its shape differs from crystal to crystal.
"""

import dataclasses
import itertools
import math

import gemmi
import numpy as np

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.grid import fast_size

SAMPLING = 4.0  # grid points in d_min along each axis, at least
RADIUS = 0.6  # Å, of the sphere over which a peak is integrated
SAME_PEAK = 0.3  # Å
NEAR_STEPS = np.array([*itertools.product((-1, 0, 1), repeat=3)])  # lattice vectors

Seitz = tuple[np.ndarray, np.ndarray]
"""The operations of a space group: rotations `(m, 3, 3)` and translations `(m, 3)`, the centring included."""

Contact = tuple[int, int, float, np.ndarray]
"""Atom i of the asymmetric unit, atom j, their distance in Å, and the image of j, `(3,)`."""


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
    points = (SAMPLING * edge / d_min for edge in cell.parameters[:3])
    first, second, third = (2 * fast_size(math.ceil(each / 2), real=True) for each in points)
    return first, second, third


def symmetric_map(
    hkl: np.ndarray, structure_factors: np.ndarray, operations: Seitz, shape: tuple[int, int, int], volume: float
) -> np.ndarray:
    """The map Σ F exp(−2πi h·x) / V over reflections, their equivalents and Friedel mates.

    Args:
        hkl: `(n, 3)` int, one of each set of equivalents, without those that the group forbids.
        structure_factors: `(n,)` complex.
        operations: of the space group.
        shape: of the map; reflections too fine for it are left out.
        volume: of the cell, Å³.

    Returns:
        An array of `shape`, float32.
    """
    half = np.conj(spectrum(hkl, structure_factors, operations, shape)[:, :, : shape[2] // 2 + 1])
    density = np.fft.irfftn(half.astype(np.complex64), shape, axes=(0, 1, 2))
    return (density * (np.prod(shape) / volume)).astype(np.float32)


def spectrum(
    hkl: np.ndarray, structure_factors: np.ndarray, operations: Seitz, shape: tuple[int, int, int]
) -> np.ndarray:
    """Structure factors, those of equivalents and of Friedel mates among them, `shape`, at their indices.

    The arguments are those of `symmetric_map`.
    """
    filled = np.zeros(shape, complex)
    for rotation, translation in zip(*operations, strict=True):
        images = hkl @ rotation
        values = structure_factors * np.exp(-2j * np.pi * (hkl @ translation))
        held = (2 * np.abs(images) < shape).all(axis=1)
        filled[tuple(images[held].T)] = values[held]
        filled[tuple(-images[held].T)] = np.conj(values[held])
    return filled


def sharp_peaks(density: np.ndarray, cell: UnitCell, operations: Seitz, least: float, number: int) -> Peaks:
    """Maxima above a level, interpolated, one of each set of equivalents.

    Args:
        density: the map.
        cell: of the crystal.
        operations: of its space group.
        least: the level.
        number: of maxima in the cell that are examined, the highest ones.
    """
    from scipy import ndimage  # here, because its import takes a tenth of a second that only crystals need

    places = np.argwhere((density == ndimage.maximum_filter(density, 3, mode='wrap')) & (density > least))
    values = density[tuple(places.T)]
    order = np.argsort(-values, kind='stable')[:number]
    positions, heights = _interpolated(density, places[order])
    kept = apart(positions, np.zeros((0, 3)), cell, operations, SAME_PEAK)
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


def apart(positions: np.ndarray, others: np.ndarray, cell: UnitCell, operations: Seitz, least: float) -> np.ndarray:
    """Indices of those positions that no equivalent of another site is nearer to than `least`, in Å.

    The other sites are those of `others`, `(n, 3)`, and of the positions before that are among the answer.
    """
    kept: list[int] = []
    for index, position in enumerate(positions):
        before = np.concatenate([others, positions[kept]])
        if not len(before) or nearest_images(position, before, cell, operations)[0].min() >= least:
            kept.append(index)
    return np.array(kept, int)


def integrate(density: np.ndarray, positions: np.ndarray, cell: UnitCell) -> np.ndarray:
    """Integrals `(n,)` of a map over a sphere of 0.6 Å about positions `(n, 3)`, in the map's units times Å³."""
    shape = np.array(density.shape)
    reach = np.ceil(RADIUS * np.linalg.norm(np.linalg.inv(cell.orthogonalization), axis=1) * shape).astype(int) + 1
    steps = np.array([*itertools.product(*(range(-each, each + 1) for each in reach))])
    nearest = np.rint(positions * shape).astype(int)
    offsets = (nearest[:, None] + steps[None]) / shape - positions[:, None]
    inside = np.linalg.norm(offsets @ cell.orthogonalization.T, axis=-1) <= RADIUS
    values = density[tuple(np.moveaxis((nearest[:, None] + steps[None]) % shape, -1, 0))]
    counts = np.maximum(inside.sum(axis=1), 1)
    return (values * inside).sum(axis=1) / counts * (4 / 3 * np.pi * RADIUS**3)


def values_at(density: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Values `(n,)` of a map at positions `(n, 3)`, by linear interpolation."""
    from scipy import ndimage

    places = (positions * density.shape).T
    return ndimage.map_coordinates(density, places, output=float, order=1, mode='grid-wrap')


def shortest(offsets: np.ndarray, cell: UnitCell) -> np.ndarray:
    """Lengths of vectors `(..., 3)` modulo the lattice, Å; exact only if well below half an edge."""
    return np.linalg.norm((offsets - np.rint(offsets)) @ cell.orthogonalization.T, axis=-1)


def images_of(positions: np.ndarray, operations: Seitz) -> np.ndarray:
    """Images of positions `(n, 3)` under all operations, `(n, m, 3)`, not reduced to one cell."""
    rotations, translations = operations
    return np.einsum('mij,nj->nmi', rotations, positions) + translations[None]


def _vectors(position, others, cell, operations, steps):
    """Vectors to images of other sites in the cells nearby, `(n, images, 3)`, and their lengths, `(n, images)`."""
    offsets = images_of(others, operations) - position
    vectors = ((offsets - np.rint(offsets))[:, :, None] + steps).reshape(len(others), -1, 3)
    return vectors, np.linalg.norm(vectors @ cell.orthogonalization.T, axis=-1)


def nearest_images(
    position: np.ndarray, others: np.ndarray, cell: UnitCell, operations: Seitz
) -> tuple[np.ndarray, np.ndarray]:
    """Finds, of each other site `(n, 3)`, the equivalent nearest to a position.

    Returns:
        distances: `(n,)`, Å.
        images: `(n, 3)`, fractional.
    """
    rectangular = max(abs(np.cos(np.radians(angle))) for angle in cell.parameters[3:]) < 0.02
    # In a rectangular cell a vector within half an edge along each axis is the shortest of its images.
    vectors, lengths = _vectors(position, others, cell, operations, np.zeros((1, 3)) if rectangular else NEAR_STEPS)
    nearest = np.arange(len(others)), np.argmin(lengths, axis=1)
    return lengths[nearest], position + vectors[nearest]


def contacts(positions: np.ndarray, cell: UnitCell, operations: Seitz, reach: float) -> list[Contact]:
    """Pairs of atoms nearer than `reach`, in Å, with all equivalents.

    An atom is not its own neighbour. Each pair appears from both sides, and with every near image of the other atom.
    """
    found = []
    for index, position in enumerate(positions):
        vectors, lengths = _vectors(position, positions, cell, operations, NEAR_STEPS)
        seen: set[tuple[int, ...]] = set()
        for other, image in np.argwhere((lengths < reach) & (lengths > 1e-2)):
            vector = vectors[other, image]
            mark = (int(other), *np.rint(vector * 1e3).astype(int).tolist())
            if mark not in seen:
                seen.add(mark)
                found.append((index, int(other), float(lengths[other, image]), position + vector))
    return found


def settle(position: np.ndarray, cell: UnitCell, operations: Seitz, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
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
    while True:
        offsets = rotations @ position + translations - position
        offsets -= np.rint(offsets)
        distances = shortest(offsets, cell)
        near = distances < tolerance
        if near.all():
            mean = position + offsets.mean(axis=0)
            wrong = shortest(rotations @ mean + translations - mean, cell)
            if wrong.max() < 1e-3:
                return mean, rotations.mean(axis=0)
            near[np.argmax(wrong + distances)] = False
        rotations, translations = rotations[near], translations[near]


def stabiliser(position: np.ndarray, cell: UnitCell, operations: Seitz) -> np.ndarray:
    """Rotations `(m, 3, 3)` of the operations that keep a site in place, within 0.01 Å."""
    rotations, translations = operations
    return rotations[shortest(rotations @ position + translations - position, cell) < 1e-2]


def allowed_reflections(hkl: np.ndarray, symops: tuple[str, ...]) -> np.ndarray:
    """Whether the group allows reflections `(n, 3)`, `(n,)` bool."""
    group = gemmi.GroupOps([gemmi.Op(each) for each in symops])
    return ~group.systematic_absences(np.ascontiguousarray(hkl, np.int32))
