"""Reads CIF through gemmi: measured reflections, and what the file claims of its crystal.

Reflections are taken from the first of these that the file has: the .hkl file that SHELXL embeds; a loop of measured
F², intensities or F (in a structure's CIF, or in an .fcf); an .fcf that is embedded as text. A dot in a name (DDLm)
counts as an underscore.
"""

import math
import re
from typing import NamedTuple

import gemmi
import numpy as np
from gemmi import cif

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.errors import InputError
from patterson_jax.files.claims import Claims, Columns, chemical_symbol, group_of
from patterson_jax.files.common import shortened
from patterson_jax.files.shelx import UnsolvableDataError, read_hkl, read_instructions, read_trailing_instructions

MEASURED = (  # in loops: tag of an index, of the value, possible tags of σ, whether the value is F
    ('_refln_index_', '_refln_f_squared_meas', ('_refln_f_squared_sigma', '_refln_f_squared_meas_su'), False),
    ('_refln_index_', '_refln_intensity_meas', ('_refln_intensity_sigma', '_refln_intensity_meas_su'), False),
    (
        '_diffrn_refln_index_',
        '_diffrn_refln_intensity_net',
        ('_diffrn_refln_intensity_u', '_diffrn_refln_intensity_sigma', '_diffrn_refln_intensity_net_su'),
        False,
    ),
    ('_refln_index_', '_refln_f_meas', ('_refln_f_sigma', '_refln_f_meas_su'), True),
    ('_refln_index_', '_refln_f_meas_au', ('_refln_f_meas_sigma_au',), True),
)
HKL_TEXTS = ('_shelx_hkl_file',)
RES_TEXTS = ('_shelx_res_file', '_iucr_refine_instructions_details')
CIF_TEXTS = ('_iucr_refine_fcf_details', '_iucr_refine_reflections_details', '_shelx_fcf_file')
UNUSED_STATUS = ('x', '-')  # of a reflection: unreliable, or systematically absent
MOST_REPAIRS = 20  # of lines that are not CIF
CELL_LENGTHS = ('a', 'b', 'c', 'alpha', 'beta', 'gamma')


class CifContent(NamedTuple):
    """Reflections, claims, and the text of an embedded .hkl file ('' without one)."""

    columns: Columns
    claims: Claims
    hkl_text: str


def looks_like_cif(text: str) -> bool:
    """Whether a text is a CIF: after comments and empty lines it begins with data_."""
    return re.match(r'(\s|#[^\n\r]*[\n\r])*data_', text, re.I) is not None


def read_cif_reflections(text: str, name: str, block_name: str = '') -> CifContent:
    """Reads the measured reflections of a CIF and its claims.

    Args:
        text: of the file.
        name: of the file, for messages.
        block_name: of the data block to take; '': the only block that has reflections.

    Raises:
        InputError: the text is not a CIF, or it has no reflections, or several blocks have reflections; or the readers
            of SHELX files refuse an embedded file.
    """
    document, notes = _parse(text, name)
    blocks = [block for block in document if not block_name or block.name == block_name]
    if not blocks:
        names = ', '.join(block.name for block in document)
        raise InputError(f'{name}: no data block {block_name!r}; it has {shortened(names) or "none"}')
    having = [(block, source) for block in blocks if (source := _find_reflections(block))]
    if not having:
        raise InputError(
            f'{name}: no reflections: it has no _shelx_hkl_file and no loop of measured F² or F; give the .hkl'
        )
    if len(having) > 1:
        names = ', '.join(block.name for block, _ in having)
        raise InputError(
            f'{name}: {len(having)} data blocks have reflections; --config.crystal.block must be one of {names}'
        )
    (block, (kind, source)), claims = having[0], _claims(having[0][0], name)
    if claims.cell is None:  # one block may hold the cell for all
        others = [_claims(each, name) for each in document if each is not block and each.find_value('_cell_length_a')]
        claims = claims.completed_by(others[0]) if len(others) == 1 else claims
    if kind == 'cif':
        nested = read_cif_reflections(source, name)
        return CifContent(nested.columns, claims.completed_by(nested.claims), nested.hkl_text)
    claims = claims.completed_by(Claims(notes=tuple(notes)))
    if kind == 'loop':  # a loop has single reflections, even where HKLF 5 was refined
        return CifContent(_loop_columns(source, name), claims, '')
    columns, rest = read_hkl(source, name)
    claims = claims.completed_by(_instructions(block, name)).completed_by(read_trailing_instructions(rest, name))
    return CifContent(columns, claims, source)


def read_cif_claims(text: str, name: str, block_name: str = '') -> Claims:
    """The claims of a CIF with or without reflections.

    Args:
        text: of the file.
        name: of the file, for messages.
        block_name: of the data block to take, if the file has it; otherwise it is the only block that has a cell.

    Returns:
        The claims, with those of an embedded .res on how reflections are read; none, with a note, if several blocks
        have a cell.

    Raises:
        InputError: the text is not a CIF.
        UnsolvableDataError: an embedded .res is of neutrons, or of HKLF other than 3 and 4.
    """
    document, _ = _parse(text, name)
    having = [block for block in document if block.find_value('_cell_length_a')]
    having = [block for block in having if block.name == block_name] or having
    if len(having) > 1:
        names = shortened(', '.join(block.name for block in having))
        note = f'{name} is not used: its data blocks {names} have cells; --config.crystal.block chooses one'
        return Claims(notes=(note,))
    if not having:
        return Claims()
    try:
        said = _instructions(having[0], name)
    except UnsolvableDataError:
        raise
    except InputError as error:
        said = Claims(notes=(f'its embedded .res is not used: {error}',))
    return _claims(having[0], name).completed_by(said)


def _parse(text, name):
    """The document, after repairs of lines that are not CIF but whose meaning is clear; and notes on these."""
    notes: list[str] = []
    lines = text.replace('\r\n', '\n').replace('\r', '\n').split('\n')
    for _ in range(MOST_REPAIRS):
        try:
            return cif.read_string('\n'.join(lines), check_level=0), notes
        except (ValueError, RuntimeError) as error:
            message = ' '.join(str(error).split())
            place = re.match(r'\S*?:(\d+)[:,]', message)
            number = int(place[1]) if place else 0
            pair = re.match(r'\s*(_\S+)\s+(\S.*?)\s*$', lines[number - 1]) if 0 < number <= len(lines) else None
            repaired = pair and f'{pair[1]} {cif.quote(pair[2].strip(chr(39) + chr(34)))}'
            if not pair or repaired == lines[number - 1]:
                raise InputError(f'{name}: not a CIF: {message.partition(":")[2] or message}') from error
            lines[number - 1] = repaired
            notes.append(
                f'line {number} is not CIF: {shortened(pair[0].strip(), 40)!r}; its value is taken as it stands'
            )
    raise InputError(f'{name}: not a CIF: more than {MOST_REPAIRS} of its lines are not CIF')


def _plain(tag):
    return tag.lower().replace('.', '_')


def _find_reflections(block):
    """The best reflections of a block, as ('hkl', text), ('loop', …) or ('cif', text); None without reflections."""
    values = {_plain(item.pair[0]): item.pair[1] for item in block if item.pair}
    for tag in HKL_TEXTS:
        if len(text := cif.as_string(values.get(tag, '?'))) > len('?'):
            return 'hkl', text.removeprefix('\n')
    loops = [item.loop for item in block if item.loop]
    for index, value, sigmas, of_amplitudes in MEASURED:
        for loop in loops:
            numbers = {_plain(tag): column for column, tag in enumerate(loop.tags)}
            if value in numbers and all(f'{index}{letter}' in numbers for letter in 'hkl'):
                sigma = next((numbers[tag] for tag in sigmas if tag in numbers), None)
                status = next((numbers[tag] for tag in numbers if tag.endswith('_status')), None)
                columns = ([numbers[f'{index}{letter}'] for letter in 'hkl'], numbers[value], sigma, status)
                return 'loop', (loop, *columns, value, of_amplitudes)
    for tag in CIF_TEXTS:
        if 'refln' in (text := cif.as_string(values.get(tag, '?'))):
            return 'cif', text
    return None


def _loop_columns(source, name):
    """The numbers of a loop. Without a column of σ, the σ are those in parentheses after the values."""
    loop, indices, value, sigma, status, tag, of_amplitudes = source
    width, table = loop.width(), loop.values
    if not table:
        raise InputError(f'{name}: its loop of {tag} has no reflections')
    columns = [table[column::width] for column in range(width)]
    hkl = np.array([[cif.as_number(word) for word in columns[index]] for index in indices]).T
    if not np.all(np.isfinite(hkl)):
        number = int(np.argmin(np.all(np.isfinite(hkl), axis=1)))
        words = ' '.join(columns[index][number] for index in indices)
        raise InputError(f'{name}: the indices of reflection {number + 1} are {shortened(words)!r}')
    values = np.array([cif.as_number(word) for word in columns[value]])
    if sigma is not None:
        sigmas = np.array([cif.as_number(word) for word in columns[sigma]])
    else:
        sigmas = np.array([_in_parentheses(word) for word in columns[value]])
    notes = []
    if status is not None:
        used = np.array([word.strip('\'"') not in UNUSED_STATUS for word in columns[status]])
        if not np.all(used):
            notes.append(f'{np.sum(~used)} reflections marked as unreliable or absent are not used')
        hkl, values, sigmas = hkl[used], values[used], sigmas[used]
    return Columns(np.rint(hkl).astype(np.int64), values, sigmas, f'the loop of {tag}', of_amplitudes, tuple(notes))


def _in_parentheses(word):
    """The standard uncertainty in a number like '12.34(5)'; NaN without one."""
    match = re.fullmatch(r'[+-]?\d*\.?(\d*)\((\d+)\)', word)
    return int(match[2]) * 10.0 ** -len(match[1]) if match else math.nan


def _claims(block, name):
    """The claims of a block."""
    values = {_plain(item.pair[0]): cif.as_string(item.pair[1]) for item in block if item.pair}
    numbers = [cif.as_number(values.get(f'_cell_{_cell_tag(each)}', '?')) for each in CELL_LENGTHS]
    small, notes = _small_structure(block, values)
    cell = UnitCell(*numbers) if all(map(math.isfinite, numbers)) and min(numbers) > 0 else None
    sigmas = [_in_parentheses(values.get(f'_cell_{_cell_tag(each)}', '?')) for each in CELL_LENGTHS]
    formula_units = cif.as_number(values.get('_cell_formula_units_z', '?'))
    contents, elements = _formula(values.get('_chemical_formula_sum', ''), formula_units)
    operations = list(small.symops)
    if not operations and small.spacegroup:
        operations = [operation.triplet() for operation in small.spacegroup.operations()]
    try:
        symops = group_of(operations, 'P', False) if operations else ()
    except ValueError:
        symops = ()
    return Claims(
        title=block.name,
        cell=cell,
        cell_source=name if cell else '',
        cell_sigmas=tuple(np.nan_to_num(sigmas).tolist()) if cell else None,
        wavelength=small.wavelength if small.wavelength > 0 else None,  # it is NaN for '?'
        probe=values.get('_diffrn_radiation_probe', '').strip('?. ').lower(),
        contents=contents,
        elements=elements,
        formula_units=formula_units if formula_units > 0 else None,
        symops=symops,
        notes=notes,
    )


def _small_structure(block, values):
    """The structure that gemmi finds in a block, and a note on what it does not understand."""
    try:
        return gemmi.make_small_structure_from_block(block), ()
    except (RuntimeError, ValueError) as error:
        small = gemmi.SmallStructure()
        small.wavelength = np.nan_to_num(cif.as_number(values.get('_diffrn_radiation_wavelength', '?')))
        return small, (f'the symmetry of the CIF is not used: {shortened(" ".join(str(error).split()))}',)


def _cell_tag(parameter):
    return f'length_{parameter}' if len(parameter) == 1 else f'angle_{parameter}'


def _formula(text, formula_units):
    """Atoms in the cell, and elements, of a formula; None and () if the text is not a formula."""
    words = re.findall(r'([A-Z][a-z]?)(\d*\.?\d*)', text)
    symbols = [known for symbol, _ in words if (known := chemical_symbol(symbol))]
    if not words or len(symbols) < len(words):
        return None, ()
    units = formula_units if formula_units > 0 else 1.0
    contents: dict[str, float] = {}
    for symbol, (_, number) in zip(symbols, words, strict=True):
        contents[symbol] = contents.get(symbol, 0) + units * (float(number) if number.strip('.') else 1.0)
    return contents, tuple(contents)


def _instructions(block, name):
    """How an embedded .res reads the reflections, and whether it treats the crystal as a twin."""
    values = {_plain(item.pair[0]): item.pair[1] for item in block if item.pair}
    for tag in RES_TEXTS:
        if tag in values and 'HKLF' in (text := cif.as_string(values[tag])):
            said = read_instructions(text, name)
            twin = tuple(note for note in said.notes if note.startswith(('TWIN', 'BASF')))
            return Claims(hklf=said.hklf, notes=twin)
    return Claims()
