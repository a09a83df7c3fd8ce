"""Grids for the density of a crystal, and reflections on the half grid of a real map's transform.

FFTs are fast for sizes with factors 2, 3 and 5. There are few sizes, and the axes are sorted, so that many crystals
have the same shape and share compiled programs. A voxel is at most half of d_min. Beyond d_min structure factors are
zero.
"""

import dataclasses
import itertools

import numpy as np

SIZES = (12, 16, 20, 24, 30, 36, 40, 48, 54, 60, 72, 80, 90, 96, 108, 120, 144, 160, 180, 200, 240, 288, 320, 360, 400)


@dataclasses.dataclass(frozen=True)
class Grid:
    """A periodic grid over a cell. Its `shape` ascends; its axis i lies along edge `axes[i]` of the cell."""

    shape: tuple[int, int, int]
    axes: tuple[int, int, int]

    @property
    def half_shape(self) -> tuple[int, int, int]:
        """Shape of the transform of a real map by `numpy.fft.rfftn`."""
        return (*self.shape[:2], self.shape[2] // 2 + 1)

    def place(self, hkl: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Puts values of reflections on the half grid of a real map's transform.

        Args:
            hkl: `(n, 3)`, one of each Friedel pair.
            values: `(n,)`, real or complex; the value of −h is the conjugate.

        Returns:
            An array of `half_shape`, zero where there is no reflection.
        """
        grid = np.zeros(self.half_shape, values.dtype)
        indices = np.asarray(hkl)[:, self.axes]
        for sign, placed in ((1, values), (-1, np.conj(values))):
            inside = sign * indices[:, 2] >= 0
            grid[tuple((sign * indices[inside]).T)] = placed[inside]
        return grid

    def take(self, half_grid: np.ndarray, hkl: np.ndarray) -> np.ndarray:
        """Values `(n,)` of reflections `(n, 3)` on the half grid `half_shape` of a real map's transform."""
        indices = np.asarray(hkl)[:, self.axes]
        mirrored = indices[:, 2] < 0
        values = half_grid[tuple(np.where(mirrored[:, None], -indices, indices).T)]
        return np.where(mirrored, np.conj(values), values)

    def in_cell_order(self, values: np.ndarray) -> np.ndarray:
        """A map of this `shape` with its axes along the edges a, b, c of the cell."""
        return np.transpose(values, np.argsort(self.axes))


def half_grid_frequencies(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The indices h, k and l along the axes of the half grid of a real map of `shape`."""
    first, second = (np.fft.fftfreq(size, 1 / size).astype(np.float32) for size in shape[:2])
    return first, second, np.arange(shape[2] // 2 + 1, dtype=np.float32)


def real_map(half_grid: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The real map of a `shape` whose transform by `numpy.fft.rfftn` is given; of complex64 it is float32."""
    import scipy.fft  # a tenth of a second, which only who solves a crystal need wait

    return scipy.fft.irfftn(half_grid, shape)


def fast_size(needed: int, real: bool = False) -> int:
    """The smallest size from `needed` on for which SciPy's transform of complex, or of real, numbers is fast."""
    import scipy.fft

    return scipy.fft.next_fast_len(needed, real=real)


def real_transform(hkl: np.ndarray, values: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Σ values exp(−2πi h·r) over reflections and their Friedel mates, on a grid of `shape`, float32.

    It is real, because the value of −h is the conjugate.

    Args:
        hkl: `(n, 3)`, one of each Friedel pair.
        values: `(n,)` complex.
        shape: of the grid, on which no reflection reaches the border.
    """
    placed = Grid(shape, (0, 1, 2)).place(hkl, np.conj(values).astype(np.complex64))  # irfftn has exp(+2πi h·r)
    return real_map(placed, shape) * (np.prod(shape) / 2)


def local_maxima(values: np.ndarray, least: float = -np.inf) -> np.ndarray:
    """Places `(k, 3)` of a periodic map, from `least` on, that none of their six neighbours exceeds; highest first."""
    highest = values >= least
    for axis, step in itertools.product(range(3), (-1, 1)):
        highest &= values >= np.roll(values, step, axis)
    return np.argwhere(highest)[np.argsort(-values[highest], kind='stable')]


def grid_for(hkl: np.ndarray) -> Grid:
    """The smallest grid on which no reflection of `(n, 3)` reaches the border of the transform."""
    needed = 2 * np.abs(hkl).max(axis=0) + 2
    first, second, third = (int(axis) for axis in np.argsort(needed, kind='stable'))
    shape = (_size(int(needed[first])), _size(int(needed[second])), _size(int(needed[third])))
    return Grid(shape, (first, second, third))


def _size(needed):
    return next((size for size in SIZES if size >= needed), None) or fast_size(needed, real=True)
