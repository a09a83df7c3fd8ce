"""Reads a crystal from a file of any kind: measured reflections, with the claims of that file and of those beside it.

The content of a file decides its kind, not its name: a file named .hkl may be a CIF.
"""

import dataclasses
import itertools
import math
import re
from pathlib import Path

import gemmi
import numpy as np

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.reflections import Measurements
from patterson_jax.errors import InputError
from patterson_jax.files.cif import looks_like_cif, read_cif_claims, read_cif_reflections
from patterson_jax.files.claims import (
    CUBIC_ANGSTROM_PER_ATOM,
    Claims,
    Columns,
    measurements_of,
    parse_formula,
    volume_per_atom,
)
from patterson_jax.files.common import require_content, shortened
from patterson_jax.files.shelx import (
    FIXED,
    UnsolvableDataError,
    hklf_matrix,
    read_hkl,
    read_instructions,
    read_trailing_instructions,
    shelxl_reads,
)

INSTRUCTIONS, MODELS = ('.ins', '.res'), ('.cif', '.cif_od')  # files beside an .hkl; the first that has a cell leads
MTZ = b'MTZ '  # the beginning of such a file
SAME_CELL = 0.02  # relative difference up to which a cell may be one at another temperature
ANY = 'any'  # in place of a formula: any elements
SHORTEST_WAVELENGTH, LONGEST_WAVELENGTH = 0.1, 6.0  # Å, of X-rays


@dataclasses.dataclass(frozen=True)
class CrystalFile:
    """A crystal as read from a file.

    Attributes:
        path: of the file.
        measurements: without placeholders; the indices are those of `cell`.
        cell: of the crystal.
        claims: of the files.
        format: how the reflections were read, in words.
        of_amplitudes: whether they were F, not F².
        records: number of reflections in the file.
        notes: a line for each thing that was left out, made up or odd.
        hkl_bytes: the .hkl file if SHELXL can read it with the instruction claims.hklf; None: it must be made anew.
    """

    path: Path
    measurements: Measurements
    cell: UnitCell
    claims: Claims
    format: str
    of_amplitudes: bool
    records: int
    notes: tuple[str, ...]
    hkl_bytes: bytes | None


def read_crystal(
    path: str | Path, *, cell: str = '', formula: str = '', wavelength: float | None = None, block: str = ''
) -> CrystalFile:
    """Reads a crystal from SHELX .hkl, .ins or .res, CIF, .fcf or MTZ.

    What the file does not say of its crystal, from the cell to the formula, may come from an .ins, .res or CIF beside
    it that has the same name. For an .ins or .res the reflections are in the .hkl of that name.

    Args:
        path: the file.
        cell: six numbers in place of those of the files; '': those of the files.
        formula: for example 'C10H10F2N4', in place of that of the files; '': that of the files; 'any': none, so that
            any elements are allowed.
        wavelength: in Å, in place of that of the files; None: that of the files.
        block: name of the data block, for a CIF in which several have reflections or, beside an .hkl, cells.

    Returns:
        The reflections as `measurements`, the `cell`, and the `claims` of the files: wavelength, contents, symmetry.

    Raises:
        InputError: the file cannot be read, or the crystal cannot be solved; the message names the file.
    """
    path = Path(path)
    said = Claims(
        cell=parse_cell(cell, 'cell') if cell else None,
        cell_source='given' if cell else '',
        wavelength=wavelength,
        contents=(formula_given := parse_formula(formula, 'formula') if formula.lower() not in ('', ANY) else None),
        elements=tuple(formula_given or ()),
    )
    require_content(path)
    if path.suffix.lower() in INSTRUCTIONS and not _has_reflections(path):
        path = next(iter(_beside(path, ('.hkl',))), path.with_suffix('.hkl'))
        require_content(path)
    if path.read_bytes()[: len(MTZ)] == MTZ:
        columns, claims = read_mtz(path)
        claims, hkl_bytes = claims.completed_by(_claims_beside(path, block, claims.cell)), None
    elif looks_like_cif(text := _text(path)):
        columns, claims, hkl_text = read_cif_reflections(text, str(path), block)
        hkl_bytes = hkl_text.encode('utf-8') or None
        claims = claims.completed_by(_claims_beside(path, block, claims.cell))
    else:
        columns, rest = read_hkl(text, str(path))
        claims = _claims_beside(path, block).completed_by(read_trailing_instructions(rest, str(path)))
        hkl_bytes = path.read_bytes()
    claims = said.completed_by(claims)
    if formula.lower() == ANY:
        claims = dataclasses.replace(claims, contents=None, elements=())
    known_cell = _checked_cell(claims, path)
    claims = _check_contents(claims, known_cell, bool(formula))
    number, matrix = hklf_matrix(claims.hklf or 'HKLF 4', str(path))
    if hkl_bytes is None:  # HKLF says nothing about a loop or an MTZ file
        number, matrix = 3 if columns.of_amplitudes else 4, np.eye(3)
    columns = dataclasses.replace(columns, of_amplitudes=number == 3)
    measurements, notes = measurements_of(columns, matrix, str(path))
    as_it_was = hkl_bytes is not None and columns.format == FIXED and shelxl_reads(hkl_bytes, len(columns.values))
    return CrystalFile(
        path=path,
        measurements=measurements,
        cell=known_cell,
        claims=dataclasses.replace(claims, hklf=claims.hklf if as_it_was and claims.hklf else 'HKLF 4'),
        format=columns.format,
        of_amplitudes=columns.of_amplitudes,
        records=len(columns.values),
        notes=notes,
        hkl_bytes=hkl_bytes if as_it_was else None,
    )


def read_mtz(path: Path) -> tuple[Columns, Claims]:
    """Reads the measured values of an MTZ file, merged or not.

    They are the first of these that the file has, with their σ: intensities, intensities of Friedel mates, amplitudes,
    amplitudes of Friedel mates.

    Raises:
        InputError: the file is not an MTZ file, or it has no measured values.
    """
    try:
        mtz = gemmi.read_mtz_file(str(path))
        mtz.switch_to_original_hkl()
        hkl = np.array(mtz.make_miller_array(), np.int64)
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f'{path}: not an MTZ file: {shortened(" ".join(str(error).split()))}') from error
    pairs = list(itertools.pairwise(mtz.columns))
    for kinds in ('JQ', 'KM', 'FQ', 'GL'):
        found = [pair for pair in pairs if pair[0].type + pair[1].type == kinds]
        found = found[: 2 if kinds in ('KM', 'GL') else 1]
        if found:
            signs = [-1 if '-' in value.label else 1 for value, _ in found]
            columns = Columns(
                np.concatenate([sign * hkl for sign in signs]),
                np.concatenate([np.array(value, float) for value, _ in found]),
                np.concatenate([np.array(sigma, float) for _, sigma in found]),
                f'columns {", ".join(value.label for value, _ in found)}',
                kinds in ('FQ', 'GL'),
            )
            group = mtz.spacegroup
            claims = Claims(
                title=mtz.title,
                cell=UnitCell(*mtz.cell.parameters),
                cell_source=str(path),
                wavelength=found[0][0].dataset.wavelength or None,
                symops=tuple(each.triplet() for each in group.operations()) if group else (),
            )
            return columns, claims
    raise InputError(f'{path}: it has no intensities or amplitudes with σ; its columns are {mtz.column_labels()}')


def parse_cell(text: str, name: str) -> UnitCell:
    """Reads a cell from six numbers with blanks or commas between.

    Args:
        text: a, b, c in Å and α, β, γ in degrees.
        name: of the text, for messages.

    Raises:
        InputError: the text is not a cell.
    """
    try:
        numbers = [float(word) for word in re.split(r'[\s,]+', text.strip())]
    except ValueError:
        numbers = []
    good = len(numbers) == 6 and all(map(math.isfinite, numbers)) and min(numbers) > 0
    if not (good and math.isfinite(UnitCell(*numbers).volume) and UnitCell(*numbers).volume > 0):
        raise InputError(
            f"{name} is {text!r}; it must be six numbers, a b c in Å and α β γ in degrees, like '5 6 7 90 98 90'"
        )
    return UnitCell(*numbers)


def _text(path):
    """The text of a file in any encoding; only its ASCII characters matter."""
    require_content(path)
    content = path.read_bytes()
    if content[:2] == b'\x1f\x8b':
        raise InputError(f'{path}: compressed by gzip; uncompress it first')
    if b'\0' in content[:4096]:
        raise InputError(f'{path}: not a text file; it must be SHELX .hkl, .ins or .res, CIF, .fcf or MTZ')
    try:
        return content.decode('utf-8-sig')
    except UnicodeDecodeError:
        return content.decode('latin-1')


def _beside(path, endings):
    """Files of the same name with these endings, in the order of the endings; upper and lower case are the same."""
    if not path.parent.is_dir():
        return []
    others = {each.name.lower(): each for each in sorted(path.parent.iterdir()) if each.is_file()}
    return [others[name] for ending in endings if (name := path.stem.lower() + ending) in others]


def _other_claims(path):
    """The first file of another name beside a file that may have claims; '' if there is none."""
    endings = (*INSTRUCTIONS, *MODELS)
    files = (each for each in sorted(path.parent.iterdir()) if each.suffix.lower() in endings)
    return next((each.name for each in files if each.stem.lower() != path.stem.lower()), '')


def _has_reflections(path):
    """Whether a file is of a kind that holds reflections itself, whatever its name."""
    return path.read_bytes()[: len(MTZ)] == MTZ or looks_like_cif(_text(path))


def _claims_beside(path, block, cell=None):
    """The claims of the files beside a file of reflections.

    One that cannot be read is left out, with a note. Where the file has a cell itself, so are those of another cell,
    and those on data that cannot be solved: its reflections are not those that they refine.
    """
    claims = Claims()
    for other in _beside(path, (*INSTRUCTIONS, *MODELS)):
        if other == path:
            continue
        try:
            text = _text(other)
            is_cif = looks_like_cif(text)
            read = read_cif_claims(text, str(other), block) if is_cif else read_instructions(text, str(other))
        except InputError as error:
            if isinstance(error, UnsolvableDataError) and cell is None:
                raise
            read = Claims(notes=(f'not used: {error}',))
        if cell and read.cell and not _same_cell(cell, read.cell):
            read = Claims(notes=(f'{other} is not used, as it has another cell',))
        claims = claims.completed_by(read)
        if claims.cell:
            break
    return claims


def _same_cell(first, second):
    return bool(np.allclose(first.parameters, second.parameters, rtol=SAME_CELL, atol=0))


def _check_contents(claims, cell, given):
    """Takes numbers of atoms that the cell cannot hold out of the claims. Raises InputError if the user gave them."""
    if not claims.contents:
        return claims
    volume, (least, most) = volume_per_atom(claims.contents, cell), CUBIC_ANGSTROM_PER_ATOM
    if given and volume < least:
        formula = ' '.join(f'{element}{number:g}' for element, number in claims.contents.items())
        raise InputError(
            f'formula {formula} leaves {volume:.1f} Å³ of the cell for an atom; it must be {least:g} or more'
        )
    if given or least <= volume <= most:
        return claims
    told = f'the formula leaves {volume:.1f} Å³ of the cell for an atom that is not hydrogen'
    note = f'{told}; numbers of atoms are not used'
    return dataclasses.replace(claims, contents=None, notes=(*claims.notes, note))


def _checked_cell(claims, path):
    """The cell. Raises InputError without a cell, or if cell, probe or wavelength are such that it cannot be solved."""
    if claims.cell is None:
        others = _other_claims(path)
        hint = f'; {others} is not read, because it has another name' if others else ''
        unread = ''.join(f'; {note}' for note in claims.notes if 'not used' in note)
        raise InputError(
            f'{path}: no cell: no .ins, .res or CIF of the same name has one{hint}{unread}; '
            'give it with --config.crystal.cell'
        )
    parse_cell(' '.join(f'{number:.10g}' for number in claims.cell.parameters), f'{claims.cell_source}: cell')
    if any(probe in claims.probe for probe in ('neutron', 'electron')):
        raise InputError(f'{path}: the data are of {claims.probe}s; only X-ray data can be solved')
    wavelength = claims.wavelength
    if wavelength is not None and not SHORTEST_WAVELENGTH <= wavelength <= LONGEST_WAVELENGTH:
        raise InputError(
            f'{path}: wavelength is {wavelength:g} Å; it must be of X-rays, from {SHORTEST_WAVELENGTH} to '
            f'{LONGEST_WAVELENGTH:g} Å; electron data cannot be solved'
        )
    return claims.cell
