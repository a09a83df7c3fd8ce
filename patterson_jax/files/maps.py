"""Maps in files: CCP4/MRC, through gemmi.

A CCP4 map holds values at grid points, the first one at the cell's origin; a voxel of ours has its centre half a voxel
further. `structures.file_positions` puts atoms where they lie on the written density.
"""

import math
import os
from pathlib import Path
from typing import NamedTuple

import gemmi
import numpy as np

from patterson_jax.errors import InputError
from patterson_jax.files.common import require_content, write_whole

BYTES_OF_MODE = {0: 1, 1: 2, 2: 4, 6: 2}
HEADER_BYTES = 1024
MOST_SYMMETRY_OPERATORS = 192
MEMORY_OF_SOLVING = 1000  # bytes for each byte of a map


class Map(NamedTuple):
    """A cubic map from a file: `values` `(grid, grid, grid)` float32 and `voxel_size` in Å."""

    values: np.ndarray
    voxel_size: float


def write_map(path: Path, values: np.ndarray, voxel_size: float) -> None:
    """Writes a cubic map `(grid, grid, grid)` as CCP4, mode 2 (float32), the whole cell, space group P1."""
    edge = values.shape[0] * voxel_size
    grid = gemmi.FloatGrid(np.asarray(values, np.float32), gemmi.UnitCell(edge, edge, edge, 90, 90, 90))
    grid.spacegroup = gemmi.SpaceGroup('P 1')
    ccp4 = gemmi.Ccp4Map()
    ccp4.grid = grid
    ccp4.update_ccp4_header(2, True)

    def write(part):
        ccp4.write_ccp4_map(str(part))
        if part.stat().st_size < HEADER_BYTES + 4 * values.size:  # gemmi does not see that the last buffer fails
            raise OSError(f'{path}: could not be written whole; is the disk full?')

    write_whole(path, write)


def require_memory(path: Path) -> None:
    """Raises InputError if a map is so large that this machine cannot hold what solving it takes."""
    if not path.is_file():
        return  # which reading it tells
    needed, memory = MEMORY_OF_SOLVING * path.stat().st_size, os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    if needed > memory:
        raise InputError(
            f'{path}: {path.stat().st_size / 1e9:.1f} GB; to solve it takes about {needed / 1e9:.0f} GB of memory, and '
            f'this machine has {memory / 1e9:.0f}; sample the map more coarsely'
        )


def read_map(path: Path) -> Map:
    """Reads a CCP4 map of a cubic cell.

    Raises:
        InputError: no such file; not a CCP4 map, or one cut short; not the whole of a cubic cell; not a number.
    """
    path = Path(path)
    require_content(path)
    ccp4 = _read_ccp4(path)
    values = np.array(ccp4.grid, copy=False)
    if not np.all(np.isfinite(values)):
        raise InputError(f'{path}: {np.sum(~np.isfinite(values))} of its values are NaN or infinite')
    ccp4.setup(math.nan)  # expands by symmetry and puts the axes in order
    values, cell = np.array(ccp4.grid), ccp4.grid.unit_cell
    if np.any(np.isnan(values)):
        raise InputError(f'{path}: the map covers only part of the cell; the whole cell is needed')
    edges, angles = np.array(cell.parameters[:3]), np.array(cell.parameters[3:])
    if len(set(values.shape)) > 1 or np.ptp(edges) > 1e-3 * edges[0] or np.any(np.abs(angles - 90) > 1e-3):
        shape = ' x '.join(map(str, values.shape))
        raise InputError(
            f'{path}: {shape} voxels in a cell of {", ".join(f"{value:g}" for value in cell.parameters)}; '
            'only cubic grids in cubic cells can be solved'
        )
    return Map(values.astype(np.float32), float(edges[0]) / values.shape[0])


def _read_ccp4(path):
    """The map as gemmi reads it, once its size has been found to agree with its header."""
    not_a_map = f'{path}: not a CCP4 map'
    if path.stat().st_size < HEADER_BYTES:
        raise InputError(f'{not_a_map}: {path.stat().st_size} bytes, and the header alone has {HEADER_BYTES}')
    with path.open('rb') as file:
        if file.read(2) == b'\x1f\x8b':
            raise InputError(f'{not_a_map}, but a file compressed by gzip; uncompress it first')
    try:
        header = gemmi.read_ccp4_header(str(path))
        shape, mode, symmetry_bytes = [header.header_i32(word) for word in (1, 2, 3)], *map(header.header_i32, (4, 24))
        if min(shape) < 1 or mode not in BYTES_OF_MODE:
            raise InputError(f'{not_a_map} of numbers: its header says {shape} values of mode {mode}')
        expected = HEADER_BYTES + symmetry_bytes + math.prod(shape) * BYTES_OF_MODE[mode]
        if path.stat().st_size < expected:
            raise InputError(f'{path}: cut short, {path.stat().st_size} bytes where its header announces {expected}')
        sampling = [header.header_i32(word) for word in (8, 9, 10)]
        if min(sampling) < 1:
            raise InputError(f'{not_a_map}: its header divides the cell into {sampling} voxels')
        if math.prod(sampling) > MOST_SYMMETRY_OPERATORS * math.prod(shape):
            raise InputError(f'{path}: the map covers only part of the cell; the whole cell is needed')
        cell = [header.header_float(word) for word in range(11, 17)]
        if not all(math.isfinite(value) and value > 0 for value in cell):
            raise InputError(f'{path}: its header gives the cell as {", ".join(f"{value:g}" for value in cell)}')
        return gemmi.read_ccp4_map(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f'{not_a_map}: {" ".join(str(error).split())}') from error
