"""Reads and writes maps: CCP4/MRC, plain or compressed by gzip, of any axis order, byte order and real number type.

A CCP4 map has its values at grid points, the first one at the cell's origin. A voxel of ours has its centre half a
voxel further. `structures.file_positions` places atoms so that they lie on the written density.

This module reads the header itself, so that it never allocates more than the file holds. The format is described by
A. Cheng et al., J. Struct. Biol. 192 (2015) 146-150.
"""

import dataclasses
import gzip
import io
import math
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import gemmi
import numpy as np

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.errors import InputError
from patterson_jax.files.common import require_content
from patterson_jax.writing import write_whole

TYPE_OF_MODE = {0: 'i1', 1: 'i2', 2: 'f4', 6: 'u2', 12: 'f2'}
HEADER_BYTES = 1024
MAP_WORD = slice(208, 212)
STAMP = 212
GZIP_MAGIC = b'\x1f\x8b'
MOST_AFTER_VALUES = 2**20  # bytes in a compressed file that are ignored
MOST_SYMMETRY_OPERATORS = 192
MEMORY_OF_READING = 100  # bytes for each voxel of the cell
MEMORY_OF_SOLVING = 4000  # likewise


class Map(NamedTuple):
    """A cubic map from a file.

    Attributes:
        values: `(grid, grid, grid)`, float32.
        voxel_size: edge of a voxel, Å.
    """

    values: np.ndarray
    voxel_size: float


@dataclasses.dataclass(frozen=True)
class _Header:
    """The header of a map. `shape` and `start` are in the file's order of axes, which `axes` gives."""

    byte_order: str
    shape: tuple[int, ...]
    mode: int
    start: tuple[int, ...]
    sampling: tuple[int, ...]
    cell: tuple[float, ...]
    axes: tuple[int, ...]
    spacegroup: int
    symmetry_bytes: int

    @property
    def type(self) -> np.dtype:
        return np.dtype(self.byte_order + TYPE_OF_MODE[self.mode])

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)

    @property
    def num_voxels(self) -> int:
        """Number of voxels in the cell, or in the file if that has more."""
        return max(math.prod(self.sampling), self.num_values)

    @property
    def has_no_cell(self) -> bool:
        return self.cell[:3] == (0, 0, 0)

    @property
    def num_bytes(self) -> int:
        """Number of bytes in the whole file."""
        return HEADER_BYTES + self.symmetry_bytes + self.num_values * self.type.itemsize


def write_map(path: Path, values: np.ndarray, voxel_size: float) -> None:
    """Writes a cubic map `(grid, grid, grid)` as CCP4: mode 2 (float32), the whole cell, space group P1."""
    edge = values.shape[0] * voxel_size
    write_density(path, values, UnitCell(edge, edge, edge, 90, 90, 90))


def write_density(path: Path, values: np.ndarray, cell: UnitCell) -> None:
    """Writes a map of a whole cell, `(nu, nv, nw)`, as CCP4: mode 2 (float32), space group P1."""
    grid = gemmi.FloatGrid(np.ascontiguousarray(values, np.float32), cell.gemmi)
    grid.spacegroup = gemmi.SpaceGroup('P 1')
    ccp4 = gemmi.Ccp4Map()
    ccp4.grid = grid
    ccp4.update_ccp4_header(2, True)

    def write(part):
        ccp4.write_ccp4_map(str(part))
        if part.stat().st_size < HEADER_BYTES + 4 * values.size:  # gemmi does not notice if the last buffer fails
            raise OSError(f'{path}: could not be written whole; is the disk full?')

    write_whole(path, write)


def require_memory(path: Path) -> None:
    """Raises InputError if solving a map needs more memory than this machine has, or if the file is not a map."""
    path = Path(path)
    with _opened(path) as file:
        header = _read_header(path, file)
    _require_memory(path, header, MEMORY_OF_SOLVING, 'solve')


def _require_memory(path, header, bytes_of_voxel, purpose):
    needed, memory = bytes_of_voxel * header.num_voxels, os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    if needed > memory:
        raise InputError(
            f'{path}: {" x ".join(map(str, header.sampling))} voxels; to {purpose} it takes about {needed / 1e9:.0f} '
            f'GB of memory, and this machine has {memory / 1e9:.0f}; sample the map more coarsely'
        )


def read_map(path: str | Path) -> Map:
    """Reads a CCP4 map of a cubic cell. Without a cell in the header a voxel counts as 1 Å; a note on stderr says so.

    Raises:
        InputError: there is no such file; it is not a CCP4 map or is cut short; it does not cover a whole cubic cell; a
            value is NaN or infinite.
    """
    path = Path(path)
    with _opened(path) as file:
        header = _read_header(path, file)
        _require_memory(path, header, MEMORY_OF_READING, 'read')
        block = _read_values(path, file, header)
    if not np.all(np.isfinite(block)):
        raise InputError(f'{path}: {np.sum(~np.isfinite(block))} of its values are NaN or infinite')
    values = _whole_cell(path, block, header)
    edges, angles = np.array(header.cell[:3]), np.array(header.cell[3:])
    if header.has_no_cell:
        print(f'note: {path}: its header has no cell; a voxel is taken as 1 Å', file=sys.stderr)
        edges, angles = np.array(values.shape, float), np.full(3, 90.0)
    if len(set(values.shape)) > 1 or np.ptp(edges) > 1e-3 * edges[0] or np.any(np.abs(angles - 90) > 1e-3):
        shape, cell = ' x '.join(map(str, values.shape)), ', '.join(f'{value:g}' for value in (*edges, *angles))
        raise InputError(f'{path}: {shape} voxels in a cell of {cell}; only cubic grids in cubic cells can be solved')
    return Map(values, float(edges[0]) / values.shape[0])


def _opened(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """The open file; a compressed one is uncompressed while it is read."""
    require_content(path)
    with path.open('rb') as file:
        compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    return gzip.open(path) if compressed else path.open('rb')


def _read(path, file, num_bytes):
    try:
        return file.read(num_bytes)
    except EOFError as error:
        raise InputError(f'{path}: cut short, the end of the compressed file is missing; copy it again') from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f'{path}: damaged, gzip cannot uncompress it ({error}); copy it again') from error


def _read_header(path, file):
    """The header of a map. Raises InputError if it is not one, or if the file holds less than the cell needs."""
    not_a_map = f'{path}: not a CCP4 map'
    content = _read(path, file, HEADER_BYTES)
    if len(content) < HEADER_BYTES:
        raise InputError(f'{not_a_map}: it has {len(content)} bytes; the header alone has {HEADER_BYTES}')
    if content[MAP_WORD] != b'MAP ':
        raise InputError(f"{not_a_map}: its header lacks the word 'MAP'; give a CCP4 or MRC file")
    header = _parsed(content)
    if min(header.shape) < 1 or header.mode not in TYPE_OF_MODE:
        raise InputError(
            f'{not_a_map} of real numbers: its header says {list(header.shape)} values of mode {header.mode}; the mode '
            f'must be one of {", ".join(map(str, TYPE_OF_MODE))}'
        )
    if header.symmetry_bytes < 0:
        raise InputError(f'{not_a_map}: its header announces {header.symmetry_bytes} bytes of symmetry')
    if header.has_no_cell and header.sampling == (0, 0, 0):
        along = dict(zip(header.axes, header.shape, strict=True))
        header = dataclasses.replace(header, sampling=tuple(along.get(axis, 0) for axis in (1, 2, 3)))
    if sorted(header.axes) != [1, 2, 3]:
        raise InputError(f'{not_a_map}: its header names the axes {list(header.axes)}')
    if min(header.sampling) < 1:
        raise InputError(f'{not_a_map}: its header divides the cell into {list(header.sampling)} voxels')
    if math.prod(header.sampling) > MOST_SYMMETRY_OPERATORS * header.num_values:
        raise InputError(
            f'{path}: the map covers only part of the cell; write it again with the limits of the whole cell'
        )
    if not header.has_no_cell and not all(math.isfinite(value) and value > 0 for value in header.cell):
        raise InputError(f'{path}: its header gives the cell as {", ".join(f"{value:g}" for value in header.cell)}')
    return header


def _parsed(content):
    """The header in the byte order of its machine stamp; without a valid stamp, in the order that makes sense.

    In the wrong byte order the small numbers of the mode and of the lengths of axes become large.
    """
    orders = {0x44: '<', 0x11: '>'}.get(content[STAMP], '<>')
    headers = [_parsed_in_order(content, order) for order in orders]
    return min(headers, key=lambda header: (header.mode not in TYPE_OF_MODE, max(map(abs, header.shape))))


def _parsed_in_order(content, order):
    words = struct.unpack_from(f'{order}10i6f3i3f2i', content)
    return _Header(order, words[:3], words[3], words[4:7], words[7:10], words[10:16], words[16:19], *words[22:24])


def _read_values(path, file, header):
    """The values of the file, float32, fastest axis first."""
    size = header.num_values * header.type.itemsize
    content = _read(path, file, header.symmetry_bytes + size)
    if len(content) < header.symmetry_bytes + size:
        found = HEADER_BYTES + len(content)
        raise InputError(
            f'{path}: cut short, {found} bytes where its header announces {header.num_bytes}; copy it again'
        )
    if isinstance(file, gzip.GzipFile) and len(_read(path, file, MOST_AFTER_VALUES)) == MOST_AFTER_VALUES:
        raise InputError(f'{path}: uncompressed it has far more than the {header.num_bytes} bytes of its header')
    values = np.frombuffer(content, header.type, header.num_values, header.symmetry_bytes)
    return values.reshape(header.shape, order='F').astype(np.float32)


def _whole_cell(path, block, header):
    """The values of the whole cell along x, y, z. The operations of the space group fill what the file leaves out."""
    order = [header.axes.index(axis) for axis in (1, 2, 3)]
    block = block.transpose(order)
    places = [
        (header.start[place] + np.arange(length)) % sampling
        for place, length, sampling in zip(order, block.shape, header.sampling, strict=True)
    ]
    values = np.full(header.sampling, np.nan, np.float32)
    values[np.ix_(*places)] = block
    group = gemmi.find_spacegroup_by_number(header.spacegroup)
    if group is not None and np.any(np.isnan(values)):
        _expand(path, values, group)
    if np.any(np.isnan(values)):
        raise InputError(
            f'{path}: the map covers only part of the cell; write it again with the limits of the whole cell'
        )
    return values


def _expand(path, values, group):
    """Copies the known values to their images under the operations of the space group, in place."""
    known, sampling = np.nonzero(~np.isnan(values)), np.array(values.shape)
    for operation in group.operations():
        rotation = np.array(operation.rot) / operation.DEN * sampling[:, None] / sampling
        points = rotation @ known + (np.array(operation.tran) / operation.DEN * sampling)[:, None]
        whole = np.rint(points).astype(int)
        if np.max(np.abs(points - whole)) > 1e-6:
            sizes = ' x '.join(map(str, sampling))
            raise InputError(f'{path}: {sizes} voxels do not fit its space group, {group.hm}')
        values[tuple(whole % sampling[:, None])] = values[known]
