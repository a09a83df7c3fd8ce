"""Crystals from files: every habit of .hkl, .ins and CIF files that was met, as a small made-up file."""

import os
from datetime import timedelta

import gemmi
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patterson_jax.crystal.preparation import prepare
from patterson_jax.errors import InputError
from patterson_jax.files.claims import parse_formula
from patterson_jax.files.crystals import read_crystal
from patterson_jax.files.shelx import FIXED, WORDS, read_hkl

RECORDS = [(1, 0, 0, 12.5, 0.5), (0, -2, 3, -1.25, 0.75), (-10, 4, 12, 99999.5, 100.25), (2, 2, 2, 7.0, 1.0)]
END = '   0   0   0    0.00    0.00'
CELL = 'CELL 0.71073 5.0 6.0 7.0 90 98.5 90'
INS = f"""TITL test in P2(1)/c
{CELL}
ZERR 4 .001 .001 .001 0 .01 0
LATT 1
SYMM -X, .5+Y, .5-Z
SFAC C H N O
UNIT 8 8 4 4
HKLF 4
END
"""


def fixed(records=RECORDS, tail=''):
    return [f'{h:4d}{k:4d}{l:4d}{value:8.2f}{sigma:8.2f}{tail}' for h, k, l, value, sigma in records]


def as_text(lines, newline='\n'):
    return newline.join([*lines, ''])


def crystal(tmp_path, hkl, ins=INS, name='a.hkl', **given):
    path = tmp_path / name
    path.write_bytes(hkl.encode('latin-1') if isinstance(hkl, str) else hkl)
    if ins is not None:
        path.with_suffix('.ins').write_text(ins, encoding='utf-8')
    return read_crystal(path, **given)


def refusal(function, *arguments, **given):
    with pytest.raises(InputError) as caught:
        function(*arguments, **given)
    (line,) = str(caught.value).splitlines()
    return line


def assert_records(columns, records=RECORDS):
    np.testing.assert_array_equal(columns.hkl, [record[:3] for record in records])
    np.testing.assert_allclose(columns.values, [record[3] for record in records])
    np.testing.assert_allclose(columns.sigmas, [record[4] for record in records])


# Reflections.

ENDS = {
    'a record of zeros': [END],
    'a bare 0 0 0': ['   0   0   0'],
    'none': [],
    '-512': ['-512'],
    'empty lines': ['', ''],
    'zeros and batch': [f'{END}   0'],
    'a copy of the .ins': [END, '', *INS.splitlines()],
    'a copy of the .ins without zeros': INS.splitlines(),
    'Ctrl-Z': ['\x1a'],
}


@pytest.mark.parametrize('newline', ['\n', '\r\n', '\r'])
@pytest.mark.parametrize('end', ENDS)
def test_any_end_of_the_file_ends_the_reflections(end, newline):
    columns, rest = read_hkl(as_text([*fixed(), *ENDS[end]], newline), 'a.hkl')
    assert_records(columns)
    assert columns.format == FIXED
    assert ('SFAC C H N O' in rest) == ('.ins' in end)
    assert not columns.notes


def test_an_empty_first_line_and_a_header_are_passed_over():
    columns, _ = read_hkl(as_text(['', *fixed()]), 'a.hkl')
    assert_records(columns)
    columns, _ = read_hkl(as_text(['my crystal, F2 and sigma', *fixed()]), 'a.hkl')
    assert_records(columns)
    assert columns.notes == ('1 lines before the first reflection are not used',)


def test_the_origin_is_no_end_where_it_has_an_intensity():
    columns, _ = read_hkl(as_text([f'{0:4d}{0:4d}{0:4d}{900.0:8.2f}{1.0:8.2f}', *fixed()]), 'a.hkl')
    assert_records(columns)


def test_columns_that_touch_are_read_as_columns():
    lines = ['   0   0   61806.700  47.000', '  -2   0   017931.98   97.99', '   0   0 -1099999.50 1234.56', *fixed()]
    columns, _ = read_hkl(as_text(lines), 'a.hkl')
    assert_records(
        columns, [(0, 0, 6, 1806.7, 47), (-2, 0, 0, 17931.98, 97.99), (0, 0, -10, 99999.5, 1234.56), *RECORDS]
    )
    columns, _ = read_hkl(' -10 -10 -1099999.9999999.99\n', 'a.hkl')
    assert_records(columns, [(-10, -10, -10, 99999.99, 99999.99)])


def test_numbers_without_two_decimals_are_read_as_they_are():
    columns, _ = read_hkl(as_text(['   0   0  -2 276877. 2539.90   3', '  -1   1   1 52001.5 1260.87   1']), 'a.hkl')
    assert_records(columns, [(0, 0, -2, 276877, 2539.9), (-1, 1, 1, 52001.5, 1260.87)])
    assert not columns.notes
    columns, _ = read_hkl(as_text(['   0   0  -2  276877 2539.90', *fixed()]), 'a.hkl')
    assert columns.values[0] == 276877
    assert columns.notes == ('1 values have no decimal point and are taken as they are',)


@pytest.mark.parametrize('tail', ['   3', ' 104', '   0', '   1-0.56594-0.05313 0.24694-0.48340 0.74666-0.54790'])
def test_batch_numbers_and_direction_cosines_do_not_matter(tail):
    columns, _ = read_hkl(as_text(fixed(tail=tail)), 'a.hkl')
    assert_records(columns)
    assert columns.format == FIXED


def test_a_file_of_another_name_that_may_have_the_cell_is_named_and_not_taken(tmp_path):
    (tmp_path / 'other.ins').write_text(INS, encoding='utf-8')
    line = refusal(crystal, tmp_path, as_text(fixed()), None)
    assert line.endswith(
        'has one; other.ins is not read, because it has another name; give it with --config.crystal.cell'
    )


def test_a_batch_number_is_no_sigma_where_that_is_blank():
    lines = fixed(tail='   3')
    lines[1] = lines[1][:20] + 8 * ' ' + lines[1][28:]
    columns, _ = read_hkl(as_text(lines), 'a.hkl')
    assert_records(columns, [RECORDS[0], (*RECORDS[1][:4], np.nan), *RECORDS[2:]])
    assert columns.format == FIXED
    columns, _ = read_hkl(as_text([line[:20] + 8 * ' ' + line[28:] for line in lines]), 'a.hkl')
    assert np.all(np.isnan(columns.sigmas))
    words = [' '.join([*map(str, record), '3']) for record in RECORDS]
    words[1] = '0 -2 3 -1.25 3'
    line = refusal(read_hkl, as_text(words), 'a.hkl')
    told = "a.hkl, line 2: '0 -2 3 -1.25 3' may end with σ or with a batch number; other lines have both; write both"
    assert line == told
    columns, _ = read_hkl(as_text([words[0], '0 -2 3 -1.25 0.75', *words[2:]]), 'a.hkl')
    assert_records(columns)


def test_wider_columns_are_read_as_words_though_they_would_fit_the_fixed_ones():
    wide = [f'{h:4d}{k:4d}{l:4d}{value:12.2f}{sigma:12.2f}' for h, k, l, value, sigma in RECORDS]
    assert float(wide[2][12:20]) != RECORDS[2][3]  # which reading by columns would take
    columns, _ = read_hkl(as_text(wide), 'a.hkl')
    assert_records(columns)
    assert columns.format == WORDS


@pytest.mark.parametrize('separator', [' ', '\t', '    '])
def test_free_format_is_read_as_words(separator):
    columns, _ = read_hkl(as_text([separator.join(map(str, record)) for record in RECORDS]), 'a.hkl')
    assert_records(columns)
    assert columns.format == WORDS


def test_lines_that_only_columns_and_others_that_only_words_can_be_are_refused():
    touching = fixed([(0, 0, number, 12345.0, 1.0) for number in range(1, 9)])
    line = refusal(read_hkl, as_text([*touching, '1 2 3 4.0 5.0']), 'a.hkl')
    assert line.startswith("a.hkl, line 9: '1 2 3 4.0 5.0' does not read as fixed columns 3I4,2F8")
    touching = '   0   0 -1099999.50 1234.56'
    line = refusal(read_hkl, as_text([touching, '   1   1   1     12.2512    1.25']), 'a.hkl')
    assert 'line 2' in line
    assert 'by columns' in line


BAD_LINES = ['   1   2   x   12.00    1.00', 'nonsense', '   1   2   3', '   1   2   3   1-.00    1.00']


@pytest.mark.parametrize('bad', BAD_LINES)
def test_a_line_among_the_reflections_that_is_none_is_named(bad):
    line = refusal(read_hkl, as_text([*fixed(), bad, *fixed()]), 'a.hkl')
    cure = 'take the line out, or end the list with a line of zeros'
    assert line == f'a.hkl, line 5: {bad.strip()!r} is not a reflection, but 4 reflections follow it; {cure}'


def test_reflections_after_the_record_of_zeros_are_passed_over_and_counted():
    columns, _ = read_hkl(as_text([*fixed(), END, *fixed()[:3]]), 'a.hkl')
    assert_records(columns)
    assert columns.notes == ('3 reflections after the record of zeros are not used',)


def test_fields_that_overflowed_and_placeholders_are_dropped_and_negative_intensities_kept(tmp_path):
    lines = ['   9   9   9********    1.00', '   1   1   1   -1.00   -1.00', '   1   1   2    0.00    0.00', *fixed()]
    read = crystal(tmp_path, as_text(lines))
    np.testing.assert_array_equal(read.measurements.hkl, [record[:3] for record in RECORDS])
    np.testing.assert_allclose(read.measurements.intensities, [record[3] for record in RECORDS])
    assert read.records == 7
    assert read.notes == (
        '1 left out: no number, or too wide for its column',
        '2 left out: σ ≤ 0, as of a placeholder',
    )


def test_several_reflections_in_a_line_are_none(tmp_path):
    lines = [''.join(fixed()), ''.join(fixed()[::-1])]
    assert 'no reflections' in refusal(read_hkl, as_text(lines), 'a.hkl')
    assert 'no reflections' in refusal(read_hkl, as_text([' '.join(lines[0].split())] * 3), 'a.hkl')


@pytest.mark.parametrize('text', ['', ' \n\n', f'{END}\n', 'nothing\nat all\n', '0 0 0\n'])
def test_a_file_without_reflections_is_refused(tmp_path, text):
    line = refusal(crystal, tmp_path, text)
    assert 'no reflections' in line or 'empty' in line


def test_nothing_but_placeholders_is_refused(tmp_path):
    line = refusal(crystal, tmp_path, as_text(fixed([(1, 0, 0, -1, -1), (2, 0, 0, -1, -1)])))
    assert line.endswith('no reflections are left of 2; 2 left out: σ ≤ 0, as of a placeholder')


def test_without_any_sigma_some_are_made_up_and_it_is_said(tmp_path):
    read = crystal(tmp_path, as_text([' '.join(map(str, record[:4])) for record in RECORDS]))
    assert np.all(read.measurements.sigmas > 0)
    assert read.notes == ('there are no σ; 3 % of each intensity and 1 % of the mean are taken',)


# What .ins and .res files say.


def test_what_an_ins_file_says(tmp_path):
    claims = crystal(tmp_path, as_text(fixed())).claims
    assert claims.cell.parameters == (5, 6, 7, 90, 98.5, 90)
    assert claims.cell_sigmas == (0.001, 0.001, 0.001, 0, 0.01, 0)
    assert (claims.wavelength, claims.title, claims.hklf) == (0.71073, 'test in P2(1)/c', 'HKLF 4')
    assert claims.contents == {'C': 8, 'H': 8, 'N': 4, 'O': 4}
    assert claims.formula_units == 4
    assert set(claims.symops) == {'x,y,z', '-x,y+1/2,-z+1/2', '-x,-y,-z', 'x,-y+1/2,z+1/2'}
    assert claims.centring == 'P'
    assert len(claims.rotations) == 4


@pytest.mark.parametrize(
    ('lines', 'count', 'centring'),
    [
        ('', 0, None),
        ('LATT 1', 2, 'P'),
        ('LATT -1', 1, 'P'),
        ('latt -1\nsymm -x,y+0.5,-z', 2, 'P'),
        ('SYMM -X,0.5+Y,0.5-Z', 4, 'P'),
        ('LATT 7\nSYMM -x,y,-z+1/2', 8, 'C'),
        ('LATT -4', 4, 'F'),
        ('LATT 3\nSYMM -Y,X-Y,Z+ 0.00000\nSYMM -X+Y,-X,Z', 18, 'R'),
        ('LATT -1\nSYMM -Y,X-Y,Z+ 0.33333\nSYMM -X+Y,-X,.6667+Z', 3, 'P'),
    ],
)
def test_lattice_and_symmetry_are_claimed_only_where_they_are_given(tmp_path, lines, count, centring):
    claims = crystal(tmp_path, as_text(fixed()), f'TITL\n{CELL}\n{lines}\nHKLF 4\n').claims
    assert (len(claims.symops), claims.centring) == (count, centring)
    assert (claims.rotations is None) == (count == 0)


def test_continued_lines_comments_and_scattering_factors_are_understood(tmp_path):
    ins = f"""TITL first =
{CELL} ! of the crystal
SFAC C      2.3100  20.8439   1.0200  10.2075   1.5886   0.5687   0.8650 =
           51.6512   0.2156   0.0033   0.0016     1.15   0.7700  12.0110
SFAC CU 13.3380  3.5828  7.1676  0.2470  5.6158 11.3966  1.6735 64.8126 =
  1.1910 0.3201 1.2651 100.0 1.32 63.546
SFAC h =
  N
UNIT 10. 2 =
  12 4
OMIT 1 0 0
SHEL 99 2
TITL second
C1 1 0.1 0.2 0.3 11.0 0.01 0.02 =
  0.03 0.0 0.0 0.0
HKLF4
SFAC Xx
"""
    claims = crystal(tmp_path, as_text(fixed()), ins).claims
    assert claims.contents == {'C': 10, 'Cu': 2, 'H': 12, 'N': 4}
    assert (claims.title, claims.hklf, claims.notes) == ('first =', 'HKLF 4', ())


@pytest.mark.parametrize(
    ('unit', 'note'),
    [
        ('', 'there is no UNIT'),
        ('UNIT 26 26 26 26', 'UNIT 26 26 26 26 is a placeholder'),
        ('UNIT 8 8', 'UNIT 8 8 does not fit SFAC'),
        ('UNIT 0 0 0 0', 'UNIT 0 0 0 0 does not fit SFAC'),
        ('UNIT 900 8 90 90', 'the formula leaves 0.2 Å³ of the cell'),
    ],
)
def test_numbers_of_atoms_that_mean_nothing_are_not_used_but_their_elements_are(tmp_path, unit, note):
    claims = crystal(tmp_path, as_text(fixed()), f'{CELL}\nSFAC C H N O\n{unit}\nHKLF 4\n').claims
    assert (claims.contents, claims.elements) == (None, ('C', 'H', 'N', 'O'))
    assert claims.notes[0].startswith(note)
    assert claims.notes[0].endswith('numbers of atoms are not used')


def test_equal_numbers_may_be_a_formula(tmp_path):
    claims = crystal(tmp_path, as_text(fixed()), f'{CELL}\nSFAC Na CL\nUNIT 4 4\nHKLF 4\n').claims
    assert claims.contents == {'Na': 4, 'Cl': 4}


def test_a_twin_is_reported(tmp_path):
    ins = INS.replace('HKLF', 'TWIN -1 0 0 0 -1 0 0 0 1\nBASF 0.3\nHKLF')
    notes = crystal(tmp_path, as_text(fixed()), ins).claims.notes
    assert notes[0] == 'TWIN -1 0 0 0 -1 0 0 0 1: a twin; it is solved as if it were a single crystal'
    assert notes[1].startswith('BASF 0.3')
    claims = crystal(tmp_path, as_text(fixed()), INS.replace('test in', 'x\nTWIN4.res')).claims
    assert not claims.notes


def test_hklf_3_is_of_amplitudes_whose_squares_keep_the_sign(tmp_path):
    lines = fixed([(1, 0, 0, 5.0, 0.25), (2, 0, 0, -2.0, 0.5)])
    read = crystal(tmp_path, as_text(lines), INS.replace('HKLF 4', 'HKLF 3'))
    np.testing.assert_allclose(read.measurements.intensities, [25, -4])
    np.testing.assert_allclose(read.measurements.sigmas, [2.5, 2])
    assert (read.of_amplitudes, read.claims.hklf) == (True, 'HKLF 3')


def test_the_matrix_of_hklf_is_applied_and_kept(tmp_path):
    hklf = 'HKLF 4 1 0 1 0 1 0 0 0 0 -1'
    read = crystal(tmp_path, as_text(fixed()), INS.replace('HKLF 4', hklf))
    np.testing.assert_array_equal(read.measurements.hkl, [(k, h, -l) for h, k, l, _, _ in RECORDS])
    assert read.claims.hklf == hklf
    half = crystal(tmp_path, as_text(fixed()), INS.replace('HKLF 4', 'HKLF 4 1 .5 0 0 0 1 0 0 0 1'))
    np.testing.assert_array_equal(half.measurements.hkl, [(0, -2, 3), (-5, 4, 12), (1, 2, 2)])
    assert half.notes == ('1 left out: fractional indices after the matrix',)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (('HKLF 4', 'HKLF 5'), 'HKLF 5, of twin components; it must be HKLF 4 or 3'),
        (('HKLF 4', 'HKLF 6'), 'HKLF 6, of groups of twin components'),
        (('HKLF 4', 'HKLF 2'), 'HKLF 2, Laue data'),
        (('HKLF 4', 'HKLF four'), 'HKLF must be followed by numbers'),
        (('HKLF 4', 'HKLF 1e999'), 'HKLF must be followed by numbers'),
        (('HKLF 4', 'HKLF 4 0'), 'its factor must be positive'),
        (('HKLF 4', 'HKLF 4 1 0 1 0 1'), 'its matrix must have nine numbers'),
        (('HKLF 4', 'HKLF 4 1 1 0 0 1 0 0 0 0 1'), 'its matrix makes all indices lie in a plane'),
        (('SFAC', 'NEUT\nSFAC'), 'NEUT means neutron data'),
        (('0.71073 5.0', '0.0251 5.0'), 'wavelength is 0.0251 Å; it must be of X-rays'),
        (('0.71073 5.0', '5.0'), "CELL '5.0 6.0 7.0 90 98.5 90'; it must be 7 numbers"),
        (('90 98.5 90', '90 98.5 x'), 'it must be 7 numbers'),
        (('90 98.5 90', '20 98.5 150'), 'it must be six numbers'),
        (('LATT 1', 'LATT 9'), "LATT '9'; it must be 1 to 7, or negative"),
        (('.5-Z', '.5-Q'), 'LATT 1 and 1 SYMM do not make a group'),
        ((CELL, ''), 'no cell'),
    ],
)
def test_an_ins_file_that_cannot_be_used_is_refused_in_a_line(tmp_path, change, message):
    assert message in refusal(crystal, tmp_path, as_text(fixed()), INS.replace(*change))


def test_negative_batch_numbers_are_those_of_twin_components(tmp_path):
    assert 'HKLF 5' in refusal(crystal, tmp_path, as_text([*fixed(tail='  -2'), *fixed(tail='   1')]))
    words = [' '.join(map(str, record)) for record in RECORDS]
    twins = as_text([f'{words[0]} -2', *(f'{line} 1' for line in words)])
    assert 'HKLF 5' in refusal(crystal, tmp_path, twins)
    assert crystal(tmp_path, twins.replace('-2', '2', 1)).records == 5
    assert crystal(tmp_path, twins.replace('-2', '-0.2', 1)).records == 5  # a direction cosine


def test_reflections_that_are_set_aside_are_used(tmp_path):
    flagged = as_text([*fixed(RECORDS[:1], '  -1'), *fixed(RECORDS[1:])])
    read = crystal(tmp_path, flagged)
    assert (read.records, read.notes) == (4, ('1 reflections are set aside for R_free, and used like the others',))
    assert 'HKLF 5' in refusal(crystal, tmp_path, as_text([*fixed(tail='  -1'), *fixed(tail='   2')]))


def test_an_element_that_is_not_known_restricts_the_crystal_to_no_others(tmp_path):
    claims = crystal(tmp_path, as_text(fixed()), INS.replace('SFAC C H N O', 'SFAC C H N Q')).claims
    assert (claims.contents, claims.elements) == (None, ())
    assert claims.notes == ('SFAC Q is not an element; no elements are taken from the file',)


def test_a_zerr_that_is_not_complete_is_not_used(tmp_path):
    claims = crystal(tmp_path, as_text(fixed()), INS.replace('ZERR 4 .001 .001 .001 0 .01 0', 'ZERR 4')).claims
    assert (claims.cell.a, claims.cell_sigmas, claims.formula_units) == (5, None, None)
    assert claims.notes == ('ZERR 4 does not have seven numbers; it is not used',)


@pytest.mark.parametrize('content', ['', 'CELL what'])
def test_a_broken_file_beside_is_left_out(tmp_path, content):
    (tmp_path / 'a.res').write_text(content, encoding='utf-8')
    read = crystal(tmp_path, as_text(fixed()), None, cell='5 6 7 90 98.5 90')
    (note,) = read.claims.notes
    assert note.startswith(f'not used: {tmp_path}/a.res: ')
    line = refusal(read_crystal, tmp_path / 'a.hkl')
    assert 'no cell' in line and 'a.res: ' in line and 'another name' not in line
    (tmp_path / 'a.cif').write_text(CIF, encoding='utf-8')
    assert read_crystal(tmp_path / 'a.hkl').cell.a == 5


def test_files_beside_are_found_whatever_their_letters_and_the_first_leads(tmp_path):
    (tmp_path / 'A.RES').write_text(INS.replace('5.0 6.0', '5.5 6.0'), encoding='utf-8')
    read = crystal(tmp_path, as_text(fixed()), None)
    assert read.claims.cell.a == 5.5
    assert read.claims.cell_source.endswith('A.RES')
    assert crystal(tmp_path, as_text(fixed())).claims.cell.a == 5.0
    assert read_crystal(tmp_path / 'a.ins').records == 4
    assert 'no such file' in refusal(read_crystal, tmp_path / 'b.ins')


def test_a_copy_of_the_ins_after_the_reflections_serves_where_none_is_beside(tmp_path):
    claims = crystal(tmp_path, as_text([*fixed(), END, *INS.splitlines()]), None).claims
    assert (claims.cell.b, claims.contents['C']) == (6.0, 8)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (('SFAC', 'NEUT\nSFAC'), 'NEUT means neutron data'),
        (('HKLF 4', 'HKLF 5'), 'HKLF 5'),
        (('HKLF 4', 'HKLF 6'), 'HKLF 6'),
    ],
)
def test_a_copy_of_the_ins_that_tells_of_data_that_cannot_be_solved_is_heeded(tmp_path, change, message):
    def lines(ins):
        return as_text([*fixed(), END, *ins.splitlines()])

    given = {'cell': '5 6 7 90 98.5 90'}
    assert message in refusal(crystal, tmp_path, lines(INS.replace(*change)), None, **given)
    broken = INS.replace(CELL, 'CELL what')
    assert message in refusal(crystal, tmp_path, lines(broken.replace(*change)), None, **given)
    assert crystal(tmp_path, lines(broken), None, **given).records == len(RECORDS)


def test_what_is_given_leads(tmp_path):
    given = {'cell': '5.1, 6.1, 7.1, 90 99 90', 'formula': 'C2 H2NO', 'wavelength': 1.5418}
    claims = crystal(tmp_path, as_text(fixed()), **given).claims
    assert claims.cell.parameters == (5.1, 6.1, 7.1, 90, 99, 90)
    assert (claims.cell_source, claims.wavelength) == ('given', 1.5418)
    assert claims.contents == {'C': 2, 'H': 2, 'N': 1, 'O': 1}
    assert crystal(tmp_path, as_text(fixed()), None, cell='5 6 7 90 98 90').claims.cell.beta == 98


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'cell': '5 6 7'}, "cell is '5 6 7'; it must be six numbers"),
        ({'cell': '5 6 7 90 98 x'}, 'it must be six numbers'),
        ({'cell': '5 6 7 10 20 90'}, 'it must be six numbers'),
        ({'formula': 'water'}, "formula is 'water'; it must be a formula like C10H10F2N4"),
        ({'formula': 'C6Qq2'}, 'it must be a formula'),
        ({'formula': 'C60'}, 'formula C60 leaves 3.5 Å³ of the cell for an atom; it must be 5 or more'),
        ({'wavelength': 0.02}, 'it must be of X-rays'),
    ],
)
def test_what_is_given_must_make_sense(tmp_path, given, message):
    assert message in refusal(crystal, tmp_path, as_text(fixed()), **given)


def test_formulas():
    assert parse_formula('C10H10F2N4', 'f') == {'C': 10, 'H': 10, 'F': 2, 'N': 4}
    assert parse_formula('Cl3 Cs In0.07 Sn0.9', 'f') == {'Cl': 3, 'Cs': 1, 'In': 0.07, 'Sn': 0.9}
    assert parse_formula('CD3OH', 'f') == {'C': 1, 'H': 4, 'O': 1}


def test_the_hkl_file_is_kept_byte_for_byte_where_shelxl_can_read_it(tmp_path):
    content = as_text(fixed(), '\r\n')
    assert crystal(tmp_path, content).hkl_bytes == content.encode()
    free = crystal(tmp_path, as_text([' '.join(map(str, record)) for record in RECORDS]))
    assert (free.hkl_bytes, free.claims.hklf) == (None, 'HKLF 4')


@pytest.mark.parametrize('after', [[], [END], ['   0   0   0'], [''], [END, *INS.splitlines()]])
def test_what_follows_the_end_of_the_list_is_kept(tmp_path, after):
    content = as_text([*fixed(), *after])
    assert crystal(tmp_path, content).hkl_bytes == content.encode()


@pytest.mark.parametrize(
    'content',
    [
        as_text(['a header', *fixed()]),
        as_text(['', *fixed()]),
        as_text([*fixed()[:2], '', *fixed()[2:]]),
        as_text([*fixed()[:2], *fixed([(0, 0, 0, 5.0, 1.0)]), *fixed()[2:]]),
        as_text(fixed(), '\r'),
        '\ufeff' + as_text(fixed()),
        as_text([*fixed(), *INS.splitlines()]),
        as_text(line.replace('7.00', '   7') for line in fixed()),  # for SHELXL 0.07
    ],
)
def test_an_hkl_file_in_columns_that_shelxl_reads_otherwise_is_written_anew(tmp_path, content):
    read = crystal(tmp_path, content.encode())
    assert (read.format, read.hkl_bytes, read.records) == (FIXED, None, len(RECORDS))


OTHER_FILES = [(b'\x1f\x8b\x08abc', 'gzip'), (b'MTZ \0\0\0\1', 'not an MTZ file'), (b'\xff\xfe1\0 \0', 'not a text')]


@pytest.mark.parametrize(('content', 'message'), OTHER_FILES)
def test_other_files_are_refused_in_a_line(tmp_path, content, message):
    assert message in refusal(crystal, tmp_path, content)


# CIF.

CIF = """data_first
_cell_length_a 5.00(2)
_cell_length_b 6.0
_cell_length_c 7.000(3)
_cell_angle_alpha 90
_cell_angle_beta 98.5(1)
_cell_angle_gamma 90
_chemical_formula_sum 'C2 H2 N O'
_cell_formula_units_Z 4
_diffrn_radiation_wavelength 0.71073
loop_
_space_group_symop_operation_xyz
x,y,z
-x,y+1/2,-z+1/2
-x,-y,-z
x,-y+1/2,z+1/2
"""


def embedded(lines, tag='_shelx_hkl_file'):
    return f'{tag}\n;\n{as_text(lines)};\n'


INDICES = tuple(f'_refln_index_{letter}' for letter in 'hkl')


def loop(values, tags=(*INDICES, '_refln_F_squared_meas', '_refln_F_squared_sigma')):
    return as_text(['loop_', *tags, *values])


ROWS = [' '.join(map(str, record)) for record in RECORDS]


def test_an_embedded_hkl_file_and_what_a_cif_says(tmp_path):
    hkl = ['', *fixed(), END, *INS.replace('HKLF 4', 'HKLF 3').splitlines()]
    res = embedded(INS.splitlines(), '_shelx_res_file')
    read = crystal(tmp_path, CIF + res + embedded(hkl), None, 'a.cif')
    claims = read.claims
    np.testing.assert_allclose(read.measurements.intensities, [record[3] for record in RECORDS])
    assert claims.cell.parameters == (5, 6, 7, 90, 98.5, 90)
    np.testing.assert_allclose(claims.cell_sigmas, (0.02, 0, 0.003, 0, 0.1, 0))
    assert claims.contents == {'C': 8, 'H': 8, 'N': 4, 'O': 4}
    assert (claims.wavelength, claims.title, claims.hklf, len(claims.symops)) == (0.71073, 'first', 'HKLF 4', 4)
    assert read.hkl_bytes is None  # SHELXL would end at the empty line before the first reflection
    kept = crystal(tmp_path, CIF + res + embedded(hkl[1:]), None, 'a.cif').hkl_bytes
    assert kept.decode().splitlines() == hkl[1:]
    assert 'HKLF 5' in refusal(crystal, tmp_path, CIF + res.replace('HKLF 4', 'HKLF 5') + embedded(hkl), None, 'b.cif')


@pytest.mark.parametrize(
    ('tags', 'of_amplitudes'),
    [
        (('_refln_F_squared_meas', '_refln_F_squared_sigma'), False),
        (('_refln_intensity_meas', '_refln_intensity_sigma'), False),
        (('_refln_F_meas', '_refln_F_sigma'), True),
        (('_refln.F_squared_meas', '_refln.F_squared_meas_su'), False),
        (('_diffrn_refln_intensity_net', '_diffrn_refln_intensity_u'), False),
    ],
)
def test_loops_of_reflections(tmp_path, tags, of_amplitudes):
    joint = tags[0][: len('_refln.')] if '.' in tags[0] else f'{tags[0].partition("refln")[0]}refln_'
    text = CIF + loop(ROWS, (*(f'{joint}index_{letter}' for letter in 'hkl'), *tags))
    read = crystal(tmp_path, text, None, 'a.cif')
    values = np.array([record[3] for record in RECORDS])
    np.testing.assert_allclose(read.measurements.intensities, values * np.abs(values) if of_amplitudes else values)
    assert (read.of_amplitudes, read.hkl_bytes, read.claims.hklf) == (of_amplitudes, None, 'HKLF 4')


def test_an_fcf_of_list_4_with_status_and_unmeasured_ones(tmp_path):
    values = ('F_squared_calc', 'F_squared_meas', 'F_squared_sigma', 'observed_status')
    tags = [*INDICES, *(f'_refln_{value}' for value in values)]
    rows = ['1 0 0 10.0 12.5 0.5 o', '2 0 0 0.1 -1.25 0.75 <', '3 0 0 1 99 1 x', '4 0 0 1 ? ? o']
    read = crystal(tmp_path, CIF + loop(rows, tags), None, 'a.fcf')
    np.testing.assert_allclose(read.measurements.intensities, [12.5, -1.25])
    assert read.notes[0] == '1 reflections marked as unreliable or absent are not used'


def test_a_sigma_in_parentheses_or_none(tmp_path):
    tags = (*INDICES, '_refln_F_squared_meas')
    read = crystal(tmp_path, CIF + loop(['1 0 0 12.5(5)', '2 0 0 -1.25(75)'], tags), None, 'a.cif')
    np.testing.assert_allclose(read.measurements.sigmas, [0.5, 0.75])
    read = crystal(tmp_path, CIF + loop(['1 0 0 12.5', '2 0 0 -1.25'], tags), None, 'b.cif')
    assert 'there are no σ' in read.notes[0]


def test_a_whole_fcf_as_text_with_a_block_of_its_own(tmp_path):
    nested = ['data_inside', *loop(ROWS).splitlines()]
    read = crystal(tmp_path, CIF + embedded(nested, '_iucr_refine_fcf_details'), None, 'a.cif')
    assert_records(read_columns(read))


def read_columns(read):
    measured = read.measurements
    return type('Columns', (), {'hkl': measured.hkl, 'values': measured.intensities, 'sigmas': measured.sigmas})


def test_several_blocks_with_reflections_are_named_and_not_guessed(tmp_path):
    text = CIF + loop(ROWS) + CIF.replace('data_first', 'data_second') + loop(ROWS[:2])
    line = refusal(crystal, tmp_path, text, None, 'a.cif')
    assert line.endswith('2 data blocks have reflections; --config.crystal.block must be one of first, second')
    assert crystal(tmp_path, text, None, 'a.cif', block='second').records == 2
    line = refusal(crystal, tmp_path, text, None, 'a.cif', block='third')
    assert line.endswith("no data block 'third'; it has first, second")


def test_a_block_without_a_cell_takes_that_of_the_only_other_one(tmp_path):
    assert crystal(tmp_path, f'{CIF}data_x\n{loop(ROWS)}', None, 'a.cif').claims.cell.a == 5


@pytest.mark.parametrize(
    'broken',
    ["_space_group_name_Hall '-P 2ybc\n", '_a [1 2 3]\n', '_b 1\n_b 2\n', '_c\n', "_d 'it's\n"],
)
def test_what_is_no_cif_but_clear_is_read(tmp_path, broken):
    head, _, rest = CIF.partition('_chemical')
    read = crystal(tmp_path, f'{head}{broken}_chemical{rest}{loop(ROWS)}', None, 'a.cif')
    assert (read.claims.contents['C'], read.records) == (8, 4)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (CIF, 'no reflections: it has no _shelx_hkl_file and no loop of measured F² or F'),
        (CIF + loop(ROWS).rsplit(' ', 1)[0], 'not a CIF'),
        (CIF + loop([]), 'no reflections'),
        (CIF + loop(['a 0 0 1 1']), "the indices of reflection 1 are 'a 0 0'"),
        (CIF + embedded(['nothing']), 'no reflections'),
        (
            CIF + '_diffrn_radiation_probe neutron\n' + loop(ROWS),
            'the data are of neutrons; only X-ray data can be solved',
        ),
        (CIF.replace('0.71073', '0.0251') + loop(ROWS), 'electron data cannot be solved'),
        (CIF.replace('_cell_length_a', '_cell_length_q') + loop(ROWS), 'no cell'),
        ('data_a\n;\nopen', 'not a CIF'),
    ],
)
def test_a_cif_that_cannot_be_used_is_refused_in_a_line(tmp_path, text, message):
    assert message in refusal(crystal, tmp_path, text, None, 'a.cif')


def test_a_cif_that_is_called_hkl_is_read_as_what_it_is(tmp_path):
    text = '\ufeff# comment\r\n\r\n' + (CIF + loop(ROWS)).replace('\n', '\r\n')
    path = tmp_path / 'a.hkl'
    path.write_bytes(text.encode())
    assert read_crystal(path).records == 4


def test_an_hkl_file_takes_its_cell_from_a_cif_beside_it(tmp_path):
    (tmp_path / 'a.cif').write_text(CIF, encoding='utf-8')
    claims = crystal(tmp_path, as_text(fixed()), None).claims
    assert (claims.cell.a, len(claims.symops)) == (5, 4)


@pytest.mark.parametrize('unknown', ['?', '.'])
def test_a_wavelength_that_a_cif_does_not_know_is_none(tmp_path, unknown):
    text = CIF.replace('_diffrn_radiation_wavelength 0.71073', f'_diffrn_radiation_wavelength {unknown}')
    assert text != CIF
    assert crystal(tmp_path, text + loop(ROWS), None, 'a.cif').claims.wavelength is None


def test_an_embedded_res_of_a_cif_beside_tells_how_reflections_are_read(tmp_path):
    def beside(hklf):
        res = embedded(INS.replace('HKLF 4', hklf).splitlines(), '_shelx_res_file')
        (tmp_path / 'a.cif').write_text(CIF + res, encoding='utf-8')

    beside('HKLF 3')
    read = crystal(tmp_path, as_text(fixed(RECORDS[:1])), None)
    np.testing.assert_allclose(read.measurements.intensities, [12.5**2])
    beside('HKLF 4 1 0 0 1 0 1 0 1 0 0')
    assert crystal(tmp_path, as_text(fixed(RECORDS[:1])), None).measurements.hkl.tolist() == [[0, 0, 1]]
    beside('NEUT\nHKLF 4')
    assert 'neutron' in refusal(crystal, tmp_path, as_text(fixed()), None)


def test_a_block_chooses_among_the_cells_of_a_cif_beside(tmp_path):
    (tmp_path / 'a.cif').write_text(CIF + CIF.replace('data_first', 'data_second'), encoding='utf-8')
    line = refusal(crystal, tmp_path, as_text(fixed()), None)
    assert 'its data blocks first, second have cells; --config.crystal.block chooses one' in line
    assert crystal(tmp_path, as_text(fixed()), None, block='second').claims.title == 'second'


def test_reflections_in_cif_take_what_they_do_not_say_from_the_files_beside(tmp_path):
    cell = '\n'.join(line for line in CIF.splitlines() if line.startswith(('data_', '_cell_length', '_cell_angle')))
    text = f'{cell}\n{loop(ROWS)}'
    claims = crystal(tmp_path, text, name='a.fcf').claims
    assert (claims.contents['C'], claims.wavelength, len(claims.symops)) == (8, 0.71073, 4)
    assert (claims.cell_source, claims.cell_sigmas[0]) == (str(tmp_path / 'a.fcf'), 0.02)
    claims = crystal(tmp_path, text, INS.replace('5.0 6.0', '5.0 6.5'), name='a.fcf').claims
    assert (claims.contents, claims.notes) == (None, (f'{tmp_path}/a.ins is not used, as it has another cell',))
    (tmp_path / 'a.cif').write_text(CIF, encoding='utf-8')
    assert read_crystal(tmp_path / 'a.fcf').claims.contents['C'] == 8
    twin = crystal(tmp_path, text, INS.replace('HKLF 4', 'HKLF 5'), name='b.fcf')  # a loop has single reflections
    (note,) = twin.claims.notes
    assert twin.records == len(RECORDS) and 'HKLF 5' in note and note.startswith('not used: ')
    np.testing.assert_array_equal(twin.measurements.hkl, read_crystal(tmp_path / 'a.fcf').measurements.hkl)


def test_a_broken_embedded_res_leaves_the_rest_of_a_cif_beside(tmp_path):
    res = embedded(INS.replace('LATT 1', 'LATT 99').splitlines(), '_shelx_res_file')
    (tmp_path / 'a.cif').write_text(CIF + res, encoding='utf-8')
    claims = crystal(tmp_path, as_text(fixed()), None).claims
    assert claims.cell.a == 5 and claims.contents['C'] == 8
    (note,) = claims.notes
    assert note.startswith('its embedded .res is not used: ') and "LATT '99'" in note


def test_of_an_embedded_res_only_notes_on_twins_count(tmp_path):
    res = embedded(INS.replace('C H N O', 'C H N Q').replace('LATT', 'TWIN\nLATT').splitlines(), '_shelx_res_file')
    (tmp_path / 'a.cif').write_text(CIF + res, encoding='utf-8')
    (note,) = crystal(tmp_path, as_text(fixed()), None).claims.notes
    assert note.startswith('TWIN')


def test_a_cif_that_is_called_res_is_read_as_what_it_is(tmp_path):
    (tmp_path / 'a.res').write_text(CIF + loop(ROWS), encoding='utf-8')
    assert read_crystal(tmp_path / 'a.res').records == 4
    assert crystal(tmp_path, as_text(fixed()), None).cell.a == 5


def test_an_ins_may_stand_beside_a_cif_that_is_called_hkl(tmp_path):
    read = crystal(tmp_path, CIF + loop(ROWS))
    again = read_crystal(tmp_path / 'a.ins')
    assert again.format == read.format == 'the loop of _refln_f_squared_meas'
    np.testing.assert_array_equal(again.measurements.intensities, read.measurements.intensities)


# MTZ.


def mtz(path, *columns):
    """A file of (label, type, values) with the indices of the first records."""
    made = gemmi.Mtz(with_base=True)
    made.spacegroup = gemmi.SpaceGroup('P 1 21/c 1')
    made.add_dataset('x').wavelength = 0.71073
    made.set_cell_for_all(gemmi.UnitCell(5, 6, 7, 90, 98.5, 90))
    for label, kind, _ in columns:
        made.add_column(label, kind)
    rows = [[*record[:3], *values] for record, *values in zip(RECORDS, *(each[2] for each in columns), strict=False)]
    made.set_data(np.array(rows, np.float32))
    made.write_to_file(str(path))
    return path


def test_intensities_of_an_mtz_file(tmp_path):
    columns = ('FC', 'F', [1, 2]), ('IMEAN', 'J', [12.5, -1.25]), ('SIGIMEAN', 'Q', [0.5, 0.75]), ('FREE', 'I', [0, 3])
    read = read_crystal(mtz(tmp_path / 'a.mtz', *columns))
    assert_records(read_columns(read), RECORDS[:2])
    claims = read.claims
    assert (claims.cell.parameters, len(claims.symops)) == ((5, 6, 7, 90, 98.5, 90), 4)
    assert (claims.wavelength, read.format, read.hkl_bytes) == (pytest.approx(0.71073), 'columns IMEAN', None)


def test_friedel_mates_and_amplitudes_of_an_mtz_file(tmp_path):
    mates = [('I(+)', 'K', [12.5, np.nan]), ('SIGI(+)', 'M', [0.5, np.nan])]
    mates += [('I(-)', 'K', [11.5, -2.0]), ('SIGI(-)', 'M', [0.25, 1.0])]
    read = read_crystal(mtz(tmp_path / 'a.mtz', *mates))
    assert_records(read_columns(read), [(1, 0, 0, 12.5, 0.5), (-1, 0, 0, 11.5, 0.25), (0, 2, -3, -2, 1)])
    assert read.notes == ('1 left out: no number, or too wide for its column',)
    read = read_crystal(mtz(tmp_path / 'b.mtz', ('F', 'F', [3, 4]), ('SIGF', 'Q', [0.5, 0.5])))
    np.testing.assert_allclose(read.measurements.intensities, [9, 16])
    assert read.of_amplitudes


def test_an_mtz_file_without_measured_values_is_refused(tmp_path):
    line = refusal(read_crystal, mtz(tmp_path / 'a.mtz', ('FC', 'F', [3, 4]), ('PHIC', 'P', [0, 0])))
    assert line.endswith("it has no intensities or amplitudes with σ; its columns are ['H', 'K', 'L', 'FC', 'PHIC']")
    (tmp_path / 'b.mtz').write_bytes((tmp_path / 'a.mtz').read_bytes()[:90])
    assert 'not an MTZ file' in refusal(read_crystal, tmp_path / 'b.mtz')


# Broken files.

JUNK = [*'*-=!"\';\n\r\t\0é.?#', 'nan', 'inf', '1e999', '-1', '0', '9999999999', 'loop_', 'data_', '_x', '\u2028', '٣']
LINES = [
    'SYMM X,Y,Z\n',
    'SYMM X+1/7,Y,Z\n',
    'SYMM X,X,Z\n',
    'LATT 3\n',
    'SFAC =\n',
    'UNIT nan\n',
    'HKLF 4 nan 1 0 0 0 1 0 0 0 1\n',
    'CELL 0.7 1e200 1e200 1e200 90 90 90\n',
    'CELL 0.7 900 900 900 90 90 90\n',
    'ZERR inf inf inf inf inf inf inf\n',
]


EDITS = st.lists(
    st.tuples(
        st.sampled_from(['insert', 'cut', 'repeat', 'change', 'head', 'tail']),
        st.floats(0, 1),
        st.sampled_from([1, 4, 30, 80]),
        st.sampled_from(JUNK + LINES),
        st.characters(min_codepoint=1, max_codepoint=255),
    ),
    min_size=1,
    max_size=20,
)
EXAMPLES = int(os.environ.get('BROKEN_FILES', '50'))  # of each kind; 2000 were run


def broken(text, edits):
    """A text with some characters changed, inserted, cut out or repeated."""
    for kind, where, length, junk, character in edits:
        place = int(where * len(text))
        head, part, tail = text[:place], text[place : place + length], text[place + length :]
        text = {
            'insert': head + junk + part + tail,
            'cut': head + tail,
            'repeat': head + part + part + tail,
            'change': head + character + part[1:] + tail,
            'head': head or ' ',
            'tail': part + tail or ' ',
        }[kind]
    return text


@pytest.mark.parametrize('kind', ['.hkl', '.ins', '.cif', '.fcf'])
def test_a_broken_file_is_read_or_refused_in_a_line(tmp_path, kind):
    records = [(h, k, l, 10.0 * (h + k + l), 1.0) for h in range(1, 4) for k in range(3) for l in range(-2, 3)]
    hkl, rows = as_text([*fixed(records), END]), [' '.join(map(str, record)) for record in records]
    cif = CIF + (embedded([*fixed(records), END]) if kind == '.cif' else loop(rows))
    outcomes = {True: 0, False: 0}

    @settings(
        max_examples=EXAMPLES,
        deadline=timedelta(seconds=30),
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(EDITS)
    def check(edits):
        (tmp_path / 'a.hkl').write_text(broken(hkl, edits) if kind == '.hkl' else hkl, encoding='utf-8')
        (tmp_path / 'a.ins').write_text(broken(INS, edits) if kind == '.ins' else INS, encoding='utf-8')
        path = tmp_path / f'a{kind if kind in (".cif", ".fcf") else ".hkl"}'
        if path.suffix != '.hkl':
            path.write_text(broken(cif, edits), encoding='utf-8')
        try:
            read = read_crystal(path)
            claims = read.claims
            prepare(read.measurements, claims.cell, wavelength=claims.wavelength, claimed=claims.rotations)
            outcomes[True] += 1
        except InputError as error:
            assert len(str(error).splitlines()) == 1
            outcomes[False] += 1

    check()
    assert min(outcomes.values()) > 3
