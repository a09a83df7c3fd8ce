"""Maps and atoms in files: CCP4/MRC and PDB through gemmi, .xyz, SHELX .res, ChimeraX. The one place that knows Å.

A CCP4 map holds values at grid points, the first one at the cell's origin; a voxel of ours has its centre half a voxel
further. Atoms are written at (r + grid/2 − 1/2) · voxel_size, so that in any viewer they lie on the density.
"""

import dataclasses
import json
import math
import os
import re
from pathlib import Path
from typing import NamedTuple

import gemmi
import numpy as np

from patterson_jax.errors import InputError, require

BYTES_OF_MODE = {0: 1, 1: 2, 2: 4, 6: 2}
HEADER_BYTES = 1024
MOST_SYMMETRY_OPERATORS = 192
MEMORY_OF_SOLVING = 1000  # bytes for each byte of a map
PDB_RANGE = (-999.999, 9999.999)  # what fits the eight columns of a coordinate, Å
SHELX_RANGE = (-5, 5)  # cells; SHELXL takes a value beyond as the number of a free variable
ATOMS_NAMED = 99  # in a residue, for four columns hold a chemical symbol and two digits
MO_K_ALPHA = 0.71073  # Å


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


def write_pdb(path: Path, positions: np.ndarray, cell_edge: float, element: str, comment: str) -> None:
    """Writes positions as a PDB file: HETATM records of unknown ligands, UNL, in a cubic cell, P 1.

    Viewers have no radius for an atom of unknown kind, 'X': it is written as carbon, and a REMARK says so.

    Args:
        path: of the file.
        positions: `(num_atoms, 3)` in Å in the frame of the written map (`file_positions`); they may lie outside the
            cell.
        cell_edge: of the written map, Å.
        element: chemical symbol, or 'X'.
        comment: for the TITLE record, which has no letters but ASCII capitals.

    Raises:
        InputError: a coordinate that the format's columns do not hold.
    """
    _require_within(path, positions, PDB_RANGE, 'Å')
    structure = gemmi.Structure()
    structure.cell, structure.spacegroup_hm = gemmi.UnitCell(*[cell_edge] * 3, 90, 90, 90), 'P 1'
    structure.info['_struct.title'] = _ascii_line(comment)
    symbol, remark = _drawn_element(element)
    if remark:
        structure.raw_remarks = [f'REMARK  99 {remark.upper():69}']
    chain = gemmi.Chain('A')
    for residue_number, names in enumerate(_atom_names(symbol, len(positions)), start=1):
        residue = gemmi.Residue()
        residue.name, residue.seqid, residue.het_flag = 'UNL', gemmi.SeqId(residue_number, ' '), 'H'
        for name, position in names:
            atom = gemmi.Atom()
            atom.name, atom.element, atom.pos = (
                name.upper(),
                gemmi.Element(symbol),
                gemmi.Position(*positions[position]),
            )
            residue.add_atom(atom)
        chain.add_residue(residue)
    model = gemmi.Model(1)
    model.add_chain(chain)
    structure.add_model(model)
    text = structure.make_pdb_string()
    _write_whole(path, lambda part: part.write_text(text, encoding='ascii'))


def write_res(path: Path, positions: np.ndarray, cell_edge: float, element: str, comment: str) -> None:
    """Writes positions as a SHELX .res file: fractional coordinates in a cubic cell, P1, non-centrosymmetric.

    SHELX has no scattering factors for an atom of unknown kind, 'X': it is written as carbon, and a REM says so. The
    wavelength is that of Mo Kα; no data of ours depend on it. More than 99 atoms are divided into residues, for SHELX
    takes names of at most four characters.

    Args:
        path: of the file.
        positions: `(num_atoms, 3)` in Å in the frame of the written map (`file_positions`).
        cell_edge: of the written map, Å.
        element: chemical symbol, or 'X'.
        comment: for TITL, cut so that the line has the 80 characters that SHELX reads.

    Raises:
        InputError: an atom five cells or more from the origin, which SHELX takes for the number of a free variable.
    """
    fractions = np.asarray(positions, np.float64) / cell_edge
    _require_within(path, fractions, SHELX_RANGE, 'cells')
    symbol, remark = _drawn_element(element)
    lines = [
        f'TITL {_ascii_line(comment)[:75]}',
        f'CELL {MO_K_ALPHA} {cell_edge:.5f} {cell_edge:.5f} {cell_edge:.5f} 90 90 90',
        'ZERR 1 0 0 0 0 0 0',
        'LATT -1',
        f'SFAC {symbol}',
        f'UNIT {len(fractions)}',
        *([f'REM {remark}'] if remark else []),
        'FVAR 1.0',
    ]
    for residue_number, names in enumerate(_atom_names(symbol, len(fractions))):
        lines += [f'RESI {residue_number}'] if residue_number else []
        for name, position in names:
            x, y, z = fractions[position]
            lines.append(f'{name:<4} 1 {x:11.6f} {y:11.6f} {z:11.6f} 11.00000 0.05000')
    text = '\n'.join([*lines, 'HKLF 4', 'END']) + '\n'
    _write_whole(path, lambda part: part.write_text(text, encoding='ascii'))


def write_chimerax(path: Path, level: float, sphere_radius: float) -> None:
    """Writes NAME.cxc, with which UCSF ChimeraX shows NAME.pdb and NAME_density.ccp4 of the same directory.

    Args:
        path: of the file; its name gives NAME.
        level: of the map's transparent surface.
        sphere_radius: of the spheres that stand for atoms, Å.
    """
    lines = [
        '# Atoms as spheres in the transparent surface of their map. In an empty session they become models #1 and #2.',
        f'open {_chimerax_name(f"{path.stem}.pdb")}',
        f'open {_chimerax_name(f"{path.stem}_density.ccp4")}',
        'show #1 atoms',
        'style #1 sphere',
        f'size #1 atomRadius {sphere_radius:g}',
        'color #1 firebrick',
        f'volume #2 style surface step 1 level {level:g} color cornflowerblue showOutlineBox true',
        'transparency #2 60',
        'view',
    ]
    text = '\n'.join(lines) + '\n'
    _write_whole(path, lambda part: part.write_text(text, encoding='utf-8'))


def _chimerax_name(name):
    """A file's name for ChimeraX's `open`, which has quotes but no escapes, and reads what they held a second time.

    Characters that do not survive that become the wildcard for one character.
    """
    return '"' + re.sub(r'[":;$*\[\x00-\x1f\x7f\ud800-\udfff]|^~', '?', name) + '"'


def _drawn_element(element):
    """The chemical symbol that stands for an element in files that must have one, and a remark if it is not its own."""
    if element == 'X':
        return 'C', 'The kind of the atoms is not known; they are written as carbon.'
    return gemmi.Element(element).name, ''


def _atom_names(symbol, num_atoms):
    """For each residue its atoms, as pairs of a name of at most four characters and the number of its position."""
    for first in range(0, num_atoms, ATOMS_NAMED):
        numbers = range(first, min(first + ATOMS_NAMED, num_atoms))
        yield [(f'{symbol}{number - first + 1}', number) for number in numbers]


def _ascii_line(text):
    return ' '.join(text.split()).encode('ascii', 'replace').decode()


def _require_within(path, values, allowed, unit):
    low, high = allowed
    bad = np.asarray(values)[~((np.asarray(values) > low) & (np.asarray(values) < high))]
    if bad.size:
        raise InputError(f'{path}: a coordinate is {bad[0]:g} {unit}; the format holds those from {low} to {high}')


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
