"""Maps and atoms in files: CCP4/MRC through gemmi, and .xyz. The one place that knows Å.

A CCP4 map holds values at grid points, the first one at the cell's origin; a voxel of ours has its centre half a voxel
further. Atoms are written at (r + grid/2 − 1/2) · voxel_size, so that in any viewer they lie on the density.
"""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import gemmi
import numpy as np

from patterson_jax.errors import InputError, require

BYTES_OF_MODE = {0: 1, 1: 2, 2: 4, 6: 2}
HEADER_BYTES = 1024
MOST_SYMMETRY_OPERATORS = 192


@dataclasses.dataclass(frozen=True)
class FileSettings:
    """Units in files; the fields are explained in configs/base.py, section `files`. Raises InputError."""

    voxel_size: float
    element: str

    def __post_init__(self):
        finite = math.isfinite(self.voxel_size) and self.voxel_size > 0
        require(finite, 'voxel_size', self.voxel_size, 'a positive number of Å')
        require(is_element(self.element), 'element', self.element, "a chemical symbol, or 'X'")


class Map(NamedTuple):
    """A cubic map from a file: `values` `(grid, grid, grid)` float32 and `voxel_size` in Å."""

    values: np.ndarray
    voxel_size: float


def is_element(symbol: str) -> bool:
    """Whether gemmi knows the chemical symbol; 'X' is an atom of unknown kind."""
    element = gemmi.Element(symbol)  # which takes the first letters of a longer word
    return symbol == 'X' or (element.atomic_number > 0 and element.name.upper() == symbol.upper())


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

    _write_whole(path, write)


def read_map(path: Path) -> Map:
    """Reads a CCP4 map of a cubic cell.

    Raises:
        InputError: no such file; not a CCP4 map, or one cut short; not the whole of a cubic cell; not a number.
    """
    path = Path(path)
    _require_content(path)
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


def read_xyz(path: Path) -> np.ndarray:
    """Reads the positions of an .xyz file, `(num_atoms, 3)` in Å.

    Raises:
        InputError: no such file, or a line that is not as the format has it; the line is named.
    """
    path = Path(path)
    _require_content(path)
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f'{path}: not a text file') from error
    count = lines[0].strip()
    if not (count.isascii() and count.isdigit() and len(count) < 10 and int(count) > 0):
        raise InputError(f'{path}, line 1: {_shortened(count)!r}; it must be the number of atoms')
    count = int(count)
    if len(lines) < count + 2:
        raise InputError(f'{path}: {max(len(lines) - 2, 0)} atoms; line 1 announces {count}')
    for number, line in enumerate(lines[count + 2 :], start=count + 3):
        if line.strip():
            raise InputError(f'{path}, line {number}: {_shortened(line)!r} after the last of {count} atoms')
    atoms = enumerate(lines[2 : count + 2], start=3)
    return np.array([_xyz_position(f'{path}, line {number}', line) for number, line in atoms])


def _xyz_position(place, line):
    words = line.split()
    try:
        position = [float(word) for word in words[1:4]]
    except ValueError:
        position = []
    if len(position) != 3 or not is_element(words[0]) or not all(map(math.isfinite, position)):
        raise InputError(f'{place}: {_shortened(line)!r}; it must be a chemical symbol and three coordinates in Å')
    return position


def write_xyz(path: Path, positions: np.ndarray, element: str, comment: str) -> None:
    """Writes positions `(num_atoms, 3)` in Å as an .xyz file."""
    atoms = (f'{element:<2} {x:12.6f} {y:12.6f} {z:12.6f}' for x, y, z in np.asarray(positions))
    text = '\n'.join([str(len(positions)), ' '.join(comment.split()), *atoms]) + '\n'
    _write_whole(path, lambda part: part.write_text(text, encoding='utf-8'))


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON file, indented, with lists of numbers on one line; whole or not at all.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
    """
    text = json.dumps(content, indent=2, allow_nan=False)
    text = re.sub(r'\[[^][{}"]*\]', lambda match: re.sub(r'\s*\n\s*', ' ', match[0]), text) + '\n'
    _write_whole(path, lambda part: part.write_text(text, encoding='utf-8'))


def file_positions(positions: np.ndarray, grid_size: int, voxel_size: float) -> np.ndarray:
    """Positions in voxels from the box centre as Å in the frame of the written map."""
    return (np.asarray(positions) + grid_size / 2 - 0.5) * voxel_size


def voxel_positions(positions: np.ndarray, voxel_size: float) -> np.ndarray:
    """Positions in Å as voxels from their mean."""
    voxels = np.asarray(positions) / voxel_size
    return voxels - np.mean(voxels, axis=0)


def _write_whole(path, write):
    """Writes beside the file and renames, so that a file never stands there half written."""
    part = path.with_name(f'.{path.name}.part')
    try:
        write(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _require_content(path):
    if not path.is_file():
        raise InputError(f'{path}: {"not a file" if path.exists() else "no such file"}')
    if path.stat().st_size == 0:
        raise InputError(f'{path}: the file is empty')


def _shortened(text, length=60):
    return text if len(text) <= length else text[: length - 1] + '…'


def make_directory(path: Path, name: str) -> None:
    """Makes a directory if there is none. Raises InputError, naming what the user called it, if that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f'{name} is {path}; it must be a directory that can be made or written: {error.strerror}'
        ) from error
