"""Reads and writes atoms: .xyz, PDB through gemmi, SHELX .res. Positions here are in Å.

A CCP4 map has its values at grid points, the first one at the cell's origin. A voxel of ours has its centre half a
voxel further. Atoms are written at (r + grid/2 − 1/2) · voxel_size, so that they lie on the density in any viewer.
"""

import dataclasses
import math
import re
from pathlib import Path

import gemmi
import numpy as np

from patterson_jax.errors import InputError, require
from patterson_jax.files.common import require_content, shortened
from patterson_jax.writing import write_whole

PDB_RANGE = (-999.999, 9999.999)  # Å; values that fit the eight columns of a coordinate
SHELX_RANGE = (-5, 5)  # cells; SHELXL takes a value outside as the number of a free variable
ATOMS_NAMED = 99  # in a residue, because a name of four characters has a chemical symbol and two digits
MO_K_ALPHA = 0.71073  # Å
HEAVIEST = 118  # atomic number


@dataclasses.dataclass(frozen=True)
class FileSettings:
    """Units in files. configs/base.py explains the fields, section `files`. Raises InputError if one is invalid."""

    voxel_size: float
    element: str

    def __post_init__(self):
        finite = math.isfinite(self.voxel_size) and self.voxel_size > 0
        require(finite, 'voxel_size', self.voxel_size, 'a positive number of Å')
        require(is_element(self.element), 'element', self.element, "a chemical symbol, or 'X'")


def is_element(symbol: str) -> bool:
    """Whether gemmi knows the chemical symbol; 'X' is an atom of unknown kind."""
    element = gemmi.Element(symbol)  # from the first letters, if the word is longer
    return symbol == 'X' or (element.atomic_number > 0 and element.name.upper() == symbol.upper())


def read_xyz(path: str | Path) -> np.ndarray:
    """Reads the positions of an .xyz file, `(num_atoms, 3)` in Å.

    The first column of an atom is a chemical symbol, a label that begins with one ('O1', 'Fe2+'), or an atomic number.
    Columns after the coordinates are ignored. Exponents may be Fortran's, '1.0D+00'.

    Raises:
        InputError: there is no such file, or a line does not follow the format; the message names the line.
    """
    path = Path(path)
    lines = _lines(path)
    count = lines[0].strip()
    if not (count.isascii() and count.isdigit() and len(count) < 10 and int(count) > 0):
        raise InputError(f'{path}, line 1: {shortened(count)!r}; it must be the number of atoms')
    count = int(count)
    if len(lines) < count + 2:
        raise InputError(f'{path}: it has {max(len(lines) - 2, 0)} atoms; line 1 announces {count}')
    for number, line in enumerate(lines[count + 2 :], start=count + 3):
        if line.strip():
            raise InputError(f'{path}, line {number}: {shortened(line)!r} after the last of {count} atoms')
    atoms = enumerate(lines[2 : count + 2], start=3)
    return np.array([_xyz_position(f'{path}, line {number}', line) for number, line in atoms])


def _lines(path):
    """The lines of a text in UTF-8 or, failing that, in Latin-1."""
    require_content(path)
    content = path.read_bytes()
    if b'\0' in content:
        raise InputError(f'{path}: not a text file')
    try:
        text = content.decode('utf-8-sig')
    except UnicodeDecodeError:
        text = content.decode('latin-1')
    return text.replace('\r\n', '\n').replace('\r', '\n').removesuffix('\n').split('\n')


def _xyz_position(place, line):
    words = line.split()
    position = [_number(word) for word in words[1:4]]
    if len(position) != 3 or not _names_an_element(words[0]) or not all(map(math.isfinite, position)):
        raise InputError(
            f'{place}: {shortened(line)!r}; it must be a chemical symbol, a label or an atomic number, and three '
            'coordinates in Å'
        )
    return position


def _names_an_element(word):
    if word.isascii() and word.isdigit():
        return len(word) <= 3 and 1 <= int(word) <= HEAVIEST
    return is_element(word) or is_element(re.split('[^A-Za-z]', word, maxsplit=1)[0])


def _number(word):
    """A real number as C or Fortran writes it; NaN if the word is not one."""
    if not re.fullmatch(r'[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([EeDd][+-]?[0-9]+)?', word):
        return math.nan
    return float(word.upper().replace('D', 'E'))


def write_xyz(path: Path, positions: np.ndarray, element: str, comment: str) -> None:
    """Writes positions `(num_atoms, 3)` in Å as an .xyz file."""
    atoms = (f'{element:<2} {x:12.6f} {y:12.6f} {z:12.6f}' for x, y, z in np.asarray(positions))
    text = '\n'.join([str(len(positions)), ' '.join(comment.split()), *atoms]) + '\n'
    write_whole(path, lambda part: part.write_text(text, encoding='utf-8'))


def write_pdb(path: Path, positions: np.ndarray, cell_edge: float, element: str, comment: str) -> None:
    """Writes positions as a PDB file: HETATM records of unknown ligands, UNL, in a cubic cell, P 1.

    Viewers have no radius for an atom of unknown kind, 'X'. It is written as carbon, and a REMARK says so.

    Args:
        path: of the file.
        positions: `(num_atoms, 3)` in Å, in the frame of the written map (`file_positions`); they may lie outside the
            cell.
        cell_edge: of the written map, Å.
        element: chemical symbol, or 'X'.
        comment: for the TITLE record, which is written in ASCII capitals.

    Raises:
        InputError: a coordinate does not fit its columns.
    """
    _require_within(path, positions, PDB_RANGE, 'Å')
    structure = gemmi.Structure()
    structure.cell, structure.spacegroup_hm = gemmi.UnitCell(cell_edge, cell_edge, cell_edge, 90, 90, 90), 'P 1'
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
    write_whole(path, lambda part: part.write_text(text, encoding='ascii'))


def write_res(path: Path, positions: np.ndarray, cell_edge: float, element: str, comment: str) -> None:
    """Writes positions as a SHELX .res file: fractional coordinates in a cubic cell, P1, non-centrosymmetric.

    SHELX has no scattering factors for an atom of unknown kind, 'X'. It is written as carbon, and a REM says so. The
    wavelength is that of Mo Kα; nothing here depends on it. More than 99 atoms are divided into residues, because names
    in SHELX have at most four characters.

    Args:
        path: of the file.
        positions: `(num_atoms, 3)` in Å in the frame of the written map (`file_positions`).
        cell_edge: of the written map, Å.
        element: chemical symbol, or 'X'.
        comment: for TITL, cut to the 80 characters of a line that SHELX reads.

    Raises:
        InputError: an atom is five cells or more from the origin; SHELX would read a free variable there.
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
    write_whole(path, lambda part: part.write_text(text, encoding='ascii'))


def _drawn_element(element):
    """The chemical symbol to write for an element, and a remark if the element is unknown."""
    if element == 'X':
        return 'C', 'The kind of the atoms is not known; they are written as carbon.'
    return gemmi.Element(element).name, ''


def _atom_names(symbol, num_atoms):
    """The atoms of each residue, as pairs of a name of at most four characters and the row of the position."""
    for first in range(0, num_atoms, ATOMS_NAMED):
        numbers = range(first, min(first + ATOMS_NAMED, num_atoms))
        yield [(f'{symbol}{number - first + 1}', number) for number in numbers]


def _ascii_line(text):
    return ' '.join(text.split()).encode('ascii', 'replace').decode()


def _require_within(path, values, allowed, unit):
    low, high = allowed
    bad = np.asarray(values)[~((np.asarray(values) > low) & (np.asarray(values) < high))]
    if bad.size:
        raise InputError(f'{path}: a coordinate is {bad[0]:g} {unit}; in this format it must be from {low} to {high}')


def file_positions(positions: np.ndarray, grid_size: int, voxel_size: float) -> np.ndarray:
    """Converts positions `(…, 3)` in voxels from the box centre to Å in the frame of the written map."""
    return (np.asarray(positions) + grid_size / 2 - 0.5) * voxel_size
