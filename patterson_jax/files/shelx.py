"""Reads SHELX files: reflections (.hkl, HKLF 3 and 4) and the claims of an .ins or .res.

By the format, reflections stand in fixed columns, 3I4,2F8, and numbers may touch. Some programs write wider columns, or
words with blanks between. All lines of a file are read in the same one of these ways: the one that fits every line.
"""

import math
import re
from typing import NamedTuple

import gemmi
import numpy as np

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.errors import InputError
from patterson_jax.files.claims import Claims, Columns, chemical_symbol, group_of, is_placeholder
from patterson_jax.files.common import shortened

LATTICES = {1: 'P', 2: 'I', 3: 'R', 4: 'F', 5: 'A', 6: 'B', 7: 'C'}
LARGEST_INDEX = 9999
MOST_WORDS, LONGEST_LINE = 14, 120  # of a reflection with batch number and direction cosines
SET_ASIDE = -1  # batch number of reflections that SHELXL leaves out of refinement
LONGEST_WHOLE_NUMBER = 9  # digits; a longer one is two numbers that touch
INSTRUCTION = re.compile(
    r'((?:TITL|CELL|ZERR|LATT|SYMM|SFAC|UNIT|NEUT|TWIN|BASF|END)(?=\s|$)|HKLF(?=[\s\d-]|$))(.*)', re.I
)
FIXED, WORDS = 'fixed columns 3I4,2F8', 'words between blanks'
WHOLE = re.compile(r'[+-]?\d+')
UNREAD_HKLF = {1: 'condensed data', 2: 'Laue data', 5: 'of twin components', 6: 'of groups of twin components'}


class UnsolvableDataError(InputError):
    """The file is clear, but its data cannot be solved: neutron data, or HKLF other than 3 and 4."""


class _Line(NamedTuple):
    """A line, with (h, k, l, value, σ) as read by columns and as read by words; None where that fails."""

    number: int
    text: str
    by_columns: tuple | None
    by_words: tuple | None

    @property
    def read(self) -> tuple:
        """Its numbers, by columns if possible, else by words; empty if the line is not a reflection."""
        return self.by_columns or self.by_words or ()

    @property
    def is_reflection(self) -> bool:
        """Whether the line can be read as a reflection."""
        return bool(self.read)

    @property
    def is_origin(self) -> bool:
        """Whether h, k, l are all zero."""
        return self.read[:3] == (0, 0, 0)

    @property
    def is_end(self) -> bool:
        """Whether the line is the record of zeros after the last reflection."""
        return self.is_origin and not any(self.read[3:4])


def split_lines(text: str) -> list[str]:
    """Splits a text into lines, whatever characters end them."""
    return text.replace('\r\n', '\n').replace('\r', '\n').replace('\x1a', '\n').split('\n')


def read_hkl(text: str, name: str) -> tuple[Columns, str]:
    """Reads the lines of an .hkl file.

    Args:
        text: of the file.
        name: of the file, for messages.

    Returns:
        The numbers, of which only HKLF tells whether they are F² or F, and the text after the last reflection.

    Raises:
        InputError: there are no reflections; a line among them is not one; lines could be read in two ways; HKLF 5.
    """
    lines = [_read_line(number, text) for number, text in enumerate(split_lines(text), start=1) if text.strip()]
    first = next((index for index, line in enumerate(lines) if line.is_reflection), None)
    if first is None:
        raise InputError(f'{name}: it has no reflections')
    last = next(
        (index for index, line in enumerate(lines) if index > first and (line.is_end or not line.is_reflection)),
        len(lines),
    )
    records = [line for line in lines[first:last] if not line.is_origin]
    following = sum(line.is_reflection and not line.is_origin for line in lines[last:])
    notes = [f'{first} lines before the first reflection are not used'] if first else []
    if following and not lines[last].is_end:
        raise InputError(
            f'{name}, line {lines[last].number}: {shortened(lines[last].text.strip())!r} is not a reflection, but '
            f'{following} reflections follow it; take the line out, or end the list with a line of zeros'
        )
    if following:
        notes.append(f'{following} reflections after the record of zeros are not used')
    if not records:
        raise InputError(f'{name}: it has no reflections')
    rest = '\n'.join(line.text for line in lines[last:] if not line.is_reflection)
    return _columns(records, name, notes), rest


def shelxl_reads(content: bytes, number: int) -> bool:
    """Whether SHELXL reads `number` reflections from an .hkl file.

    The reflections must begin the file, without a byte order mark or a header, in fixed columns, with decimal points:
    by the format, F8.2, a number without one is a hundredth of what it shows. The list ends at a blank line, at
    h = k = l = 0, or with the file; that must not come earlier or later. Lines end with LF or CRLF.
    """
    text = content.decode('latin-1').replace('\r\n', '\n')
    if '\r' in text:
        return False
    lines = [_read_line(index, line) for index, line in enumerate(text.split('\n')[: number + 1], start=1)]
    reflections, after = lines[:number], lines[number:]
    listed = all(line.by_columns and not line.is_origin for line in reflections)
    listed = listed and all('.' in field or not field.strip() for line in reflections for field in _fields(line.text))
    return listed and all(line.is_origin or not line.text.strip() for line in after)


def _fields(text):
    """The columns of the value and of σ."""
    return text[12:20], text[20:28]


def _columns(records, name, notes):
    """The numbers of the reflections, all in the same format. Raises InputError without such a format."""
    read_twice = [line for line in records if line.by_columns and line.by_words]
    differing = [line for line in read_twice if not _same(line.by_columns, line.by_words)]
    all_columns, all_words = all(line.by_columns for line in records), all(line.by_words for line in records)
    only_batches = all(_has_batch_for_sigma(line) for line in differing)
    if all_columns and differing and not all_words and not only_batches:
        line = next(line for line in differing if not _has_batch_for_sigma(line))
        raise InputError(
            f'{name}, line {line.number}: {shortened(line.text)!r} is {_shown(line.by_columns)} by columns and '
            f'{_shown(line.by_words)} by words, and other lines can only be columns; '
            'put blanks between the numbers'
        )
    if not (all_columns or all_words):
        by_words = sum(line.by_words is not None for line in records) > len(records) / 2
        bad = next(line for line in records if not (line.by_words if by_words else line.by_columns))
        raise InputError(
            f'{name}, line {bad.number}: {shortened(bad.text)!r} does not read as {WORDS if by_words else FIXED}, '
            'as most of the file does; write it as the others are'
        )
    by_columns = all_columns and only_batches
    if not by_columns:
        _refuse_batches_for_sigmas(records, name)
    numbers = np.array([line.by_columns if by_columns else line.by_words for line in records], float)
    batches = [int(batch) for line in records if WHOLE.fullmatch(batch := _batch(line, by_columns))]
    if min(batches, default=0) < SET_ASIDE or (min(batches, default=0) == SET_ASIDE and max(batches) > 1):
        raise InputError(f'{name}: negative batch numbers mean HKLF 5, twin components; it must be HKLF 4 or 3')
    if SET_ASIDE in batches:
        notes.append(f'{batches.count(SET_ASIDE)} reflections are set aside for R_free, and used like the others')
    fields = [line.text[12:20] if by_columns else line.text.split()[3] for line in records]
    without_point = sum(field.strip().isdigit() for field in fields)
    if 0 < without_point < len(records):
        notes.append(f'{without_point} values have no decimal point and are taken as they are')
    return Columns(
        hkl=numbers[:, :3].astype(np.int64),
        values=numbers[:, 3],
        sigmas=numbers[:, 4],
        format=FIXED if by_columns else WORDS,
        notes=tuple(notes),
    )


def _has_batch_for_sigma(line):
    """Whether the columns of σ are blank, so that the fifth word is the batch number."""
    return not line.text[20:28].strip() and WHOLE.fullmatch(line.text[28:32].strip()) is not None


def _refuse_batches_for_sigmas(records, name):
    """Raises InputError if a line of five words may end with σ or with a batch number, and other lines have both."""
    words = [line.text.split() for line in records]
    longer = [each for each in words if len(each) > 5]
    if not longer or len(longer) == len(words) or any(WHOLE.fullmatch(each[4]) for each in longer):
        return
    for line, each in zip(records, words, strict=True):
        if len(each) == 5 and WHOLE.fullmatch(each[4]):
            raise InputError(
                f'{name}, line {line.number}: {shortened(line.text.strip())!r} may end with σ or with a batch number; '
                'other lines have both; write both'
            )


def _batch(line, by_columns):
    """The batch number as text, '' without one; a word is a batch number only if it is a whole number."""
    if by_columns:
        return line.text[28:32].strip()
    word = [*line.text.split(), *[''] * 6][5]
    return word if WHOLE.fullmatch(word) else ''


def _read_line(number, text):
    by_columns = by_words = None
    words = text.split()
    if len(words) > MOST_WORDS or len(text) > LONGEST_LINE:  # more than one reflection
        return _Line(number, text, None, None)
    words = words[:5]
    if len(words) >= 4:
        by_words = _numbers(words[:3], [*words[3:], ''][:2])
    elif words and all(re.fullmatch(r'[+-]?0*\.?0*', word) for word in words):
        by_words = (0, 0, 0, 0.0, math.nan)
    if '\t' not in text[:28] and len(text.rstrip()) > 12:
        by_columns = _numbers([text[0:4], text[4:8], text[8:12]], [text[12:20], text[20:28]])
    return _Line(number, text, by_columns, by_words)


def _numbers(indices, values):
    """(h, k, l, value, σ), or None if these are not numbers. A number that did not fit its field is NaN, as is no σ."""
    try:
        h, k, l = map(int, indices)
        value, sigma = map(_number, values)
    except ValueError:
        return None
    if max(abs(h), abs(k), abs(l)) > LARGEST_INDEX or not values[0].strip():
        return None
    return h, k, l, value, sigma


def _number(text):
    text = text.strip()
    if not text or set(text) == {'*'}:
        return math.nan
    if '_' in text or (text.isdigit() and len(text) > LONGEST_WHOLE_NUMBER):
        raise ValueError(text)
    return float(text.replace('D', 'E').replace('d', 'e'))


def _same(first, second):
    pairs = zip(first[3:], second[3:], strict=True)
    return first[:3] == second[:3] and all(
        a == b or math.isclose(a, b, rel_tol=1e-3) or (math.isnan(a) and math.isnan(b)) for a, b in pairs
    )


def _shown(numbers):
    return ' '.join(f'{number:g}' for number in numbers)


def read_instructions(text: str, name: str) -> Claims:
    """Reads the claims of an .ins or .res file. Atoms, OMIT and SHEL are ignored.

    Raises:
        InputError: CELL, LATT, SYMM or HKLF is invalid; the data are of neutrons; HKLF is not 3 or 4.
    """
    found: dict[str, list[list[str]]] = {}
    for line in _joined_lines(text):
        if match := INSTRUCTION.match(line):
            keyword, rest = match[1].upper(), match[2]
            found.setdefault(keyword, []).append([rest.strip()] if keyword in ('TITL', 'SYMM') else rest.split())
            if keyword in ('HKLF', 'END'):
                break
    if 'NEUT' in found:
        raise UnsolvableDataError(f'{name}: NEUT means neutron data; only X-ray data can be solved')
    hklf = ''
    if 'HKLF' in found:
        hklf = ' '.join(['HKLF', *found['HKLF'][0]])
        hklf_matrix(hklf, name)
    cell, wavelength, cell_sigmas, formula_units = None, None, None, None
    if 'CELL' in found:
        wavelength, *parameters = _floats(name, 'CELL', found['CELL'][0], 7)
        cell = UnitCell(*parameters)
    if 'ZERR' in found:
        formula_units, cell_sigmas = _uncertainties(found['ZERR'][0])
    contents, elements, notes = _contents(found)
    if 'ZERR' in found and cell_sigmas is None:
        notes.append(f'ZERR {shortened(" ".join(found["ZERR"][0]))} does not have seven numbers; it is not used')
    title, symops = found['TITL'][0][0] if 'TITL' in found else '', _symmetry(found, name)
    notes += _check_title(title, symops)
    for keyword in ('TWIN', 'BASF'):
        if keyword in found:
            notes.append(
                f'{keyword} {" ".join(found[keyword][0])}: a twin; it is solved as if it were a single crystal'
            )
    return Claims(
        title=title,
        cell=cell,
        cell_source=name if cell else '',
        cell_sigmas=cell_sigmas,
        wavelength=wavelength or None,
        contents=contents,
        elements=elements,
        formula_units=formula_units,
        symops=symops,
        hklf=hklf,
        notes=tuple(notes),
    )


def read_trailing_instructions(text: str, name: str) -> Claims:
    """The claims of an .ins that is copied behind the reflections of an .hkl file; none if it is invalid.

    Raises:
        UnsolvableDataError: the data are of neutrons; HKLF is not 3 or 4.
    """
    try:
        return read_instructions(text, name)
    except UnsolvableDataError:
        raise
    except InputError:
        return Claims()


def hklf_matrix(hklf: str, name: str) -> tuple[int, np.ndarray]:
    """The number of an HKLF instruction, 3 or 4, and its matrix `(3, 3)`, which multiplies the indices.

    Raises:
        InputError: another number, or an invalid factor or matrix.
    """
    words = hklf.split()[1:]
    try:
        values = [float(word) for word in words]
        number = abs(int(values[0])) if values else 4
    except (ValueError, OverflowError) as error:
        raise InputError(f'{name}: {shortened(hklf)!r}; HKLF must be followed by numbers') from error
    if number in UNREAD_HKLF:
        raise UnsolvableDataError(f'{name}: HKLF {number}, {UNREAD_HKLF[number]}; it must be HKLF 4 or 3')
    if number not in (3, 4):
        raise InputError(f'{name}: HKLF {number}, unknown; it must be HKLF 4 or 3')
    if len(values) > 1 and not 0 < values[1] < math.inf:
        raise InputError(f'{name}: {shortened(hklf)!r}; its factor must be positive')
    if 2 < len(values) < 11:
        raise InputError(f'{name}: {shortened(hklf)!r}; its matrix must have nine numbers')
    matrix = np.reshape(values[2:11], (3, 3)) if len(values) >= 11 else np.eye(3)
    if not (np.all(np.isfinite(matrix)) and abs(np.linalg.det(matrix)) > 1e-3):
        raise InputError(f'{name}: {shortened(hklf)!r}; its matrix makes all indices lie in a plane')
    return number, matrix


def _joined_lines(text):
    """Lines without comments; continued lines are joined."""
    joined = ''
    for line in split_lines(text):
        if re.match(r'\s*(TITL|REM)', line, re.I):
            yield line.strip()
            joined = ''
            continue
        line = line.partition('!')[0].rstrip()
        if joined or line.endswith('='):
            joined = f'{joined} {line.rstrip("=")}'
            if not line.endswith('='):
                yield joined.strip()
                joined = ''
        else:
            yield line.strip()
    yield joined.strip()


def _check_title(title, symops):
    """A note if the title ends with another space group than that of the operations."""
    match = re.search(r'\bin\s+([PABCIFR][-\d()/a-z\s:]*)$', title)
    if match is None:
        return []
    named = gemmi.find_spacegroup_by_name(re.sub('[()]', '', match[1]).strip())
    meant = gemmi.find_spacegroup_by_ops(gemmi.GroupOps([gemmi.Op(each) for each in symops])) if symops else None
    if named is None or meant is None or named.number == meant.number:
        return []
    return [f'TITL says {match[1].strip()}, LATT and SYMM say {meant.hm}']


def _floats(name, keyword, words, count):
    try:
        values = [float(word) for word in words[:count]]
    except ValueError:
        values = []
    if len(values) < count or not all(map(math.isfinite, values)):
        raise InputError(f'{name}: {keyword} {shortened(" ".join(words))!r}; it must be {count} numbers')
    return values


def _uncertainties(words):
    """The number of formula units and the σ of the cell in ZERR; both None if it is invalid."""
    try:
        units, *sigmas = _floats('', 'ZERR', words, 7)
    except InputError:
        return None, None
    return units, tuple(sigmas)


def _contents(found):
    """Numbers of atoms in the cell, elements, and notes on oddities."""
    labels: list[str] = []
    for words in found.get('SFAC', []):
        explicit = len(words) > 1 and re.fullmatch(r'[+-]?[\d.]+(E[+-]?\d+)?', words[1], re.I)
        labels += words[:1] if explicit else words
    named = {label: chemical_symbol(label) for label in labels}
    unknown = [label for label in labels if named[label] is None]
    symbols = [symbol for label in labels if (symbol := named[label])]
    elements = tuple(dict.fromkeys(symbols))
    numbers = [word for words in found.get('UNIT', []) for word in words]
    if not labels:
        return None, (), []
    if unknown:
        return None, (), [f'SFAC {unknown[0]} is not an element; no elements are taken from the file']
    try:
        counts = [float(number) for number in numbers]
    except ValueError:
        counts = []
    if len(counts) < len(labels) or min(counts) < 0 or max(counts) == 0:
        said = 'there is no UNIT' if not numbers else f'UNIT {shortened(" ".join(numbers))} does not fit SFAC'
        return None, elements, [f'{said}; numbers of atoms are not used']
    contents: dict[str, float] = {}
    for symbol, count in zip(symbols, counts, strict=False):
        contents[symbol] = contents.get(symbol, 0) + count
    if is_placeholder(contents):
        return None, elements, [f'UNIT {" ".join(numbers)} is a placeholder; numbers of atoms are not used']
    return {element: count for element, count in contents.items() if count}, elements, []


def _symmetry(found, name):
    """The claimed operations; none without LATT and SYMM, because files that lack both do not mean the default, P-1."""
    if 'LATT' not in found and 'SYMM' not in found:
        return ()
    latt = found.get('LATT', [['1']])[0]
    try:
        number = int(float(latt[0]))
        centring = LATTICES[abs(number)]
    except (IndexError, KeyError, ValueError) as error:
        raise InputError(f'{name}: LATT {" ".join(latt)!r}; it must be 1 to 7, or negative') from error
    symm = [words[0] for words in found.get('SYMM', [])]
    try:
        return group_of(symm, centring, number > 0)
    except ValueError as error:
        raise InputError(f'{name}: LATT {number} and {len(symm)} SYMM do not make a group: {error}') from error
