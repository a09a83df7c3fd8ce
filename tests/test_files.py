"""Maps and atoms in files, held against gemmi, a CCP4 writer of the test's own, and a disk that is full."""

import contextlib
import dataclasses
import gzip
import json
import re
import resource
import struct
import tracemalloc
from pathlib import Path

import gemmi
import jax
import numpy as np
import pytest

from patterson_jax.errors import InputError
from patterson_jax.files.common import plain_name
from patterson_jax.files.maps import read_map, require_memory, write_map
from patterson_jax.files.structures import (
    file_positions,
    read_xyz,
    write_pdb,
    write_res,
    write_xyz,
)
from patterson_jax.files.viewers import write_chimerax
from patterson_jax.simulation.density import render
from patterson_jax.simulation.maps import origin_distances
from patterson_jax.simulation.patterson import patterson_map
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.input_maps import checked_patterson, restore_origin_term
from patterson_jax.writing import write_json

draw = jax.jit(render, static_argnums=(1, 2))
TYPE_OF_MODE = {0: 'i1', 1: 'i2', 2: 'f4', 6: 'u2', 12: 'f2'}


def ccp4_bytes(
    block,
    sampling,
    cell,
    axes=(1, 2, 3),
    start=(0, 0, 0),
    mode=2,
    byte_order='<',
    spacegroup=1,
    symmetry=b'',
    stamp=None,
):
    """A CCP4 file, written from the format's description. `block` and `start` are in x, y, z; `axes` in file order."""
    order = [axis - 1 for axis in axes]
    stamp = stamp or (b'\x44\x44\x00\x00' if byte_order == '<' else b'\x11\x11\x00\x00')
    header = struct.pack(
        f'{byte_order}10i6f3i3f2i',
        *(block.shape[axis] for axis in order),
        mode,
        *(start[axis] for axis in order),
        *sampling,
        *cell,
        *axes,
        *(block.min(), block.max(), block.mean()),
        spacegroup,
        len(symmetry),
    )
    header = header.ljust(208, b'\0') + b'MAP ' + stamp
    columns_fastest = np.transpose(block, order[::-1]).astype(byte_order + TYPE_OF_MODE[mode])
    return header.ljust(1024, b'\0') + symmetry + columns_fastest.tobytes()


def cubic_bytes(values, edge=4.0, **changes):
    return ccp4_bytes(values, **({'sampling': values.shape, 'cell': (edge, edge, edge, 90, 90, 90)} | changes))


def whole_numbers(*shape):
    """Values that every mode holds exactly and no two axes share."""
    return np.random.default_rng(0).integers(0, 100, shape).astype(np.float32)


def refusal(function, *arguments):
    """The one line with which InputError refuses."""
    with pytest.raises(InputError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_a_written_map_is_read_back_exactly(tmp_path):
    values = np.random.default_rng(0).normal(size=(10, 10, 10)).astype(np.float32)
    for written in (values, values.astype(float).transpose(2, 0, 1), values[::-1]):
        write_map(tmp_path / 'map.ccp4', written, 0.37)
        read = read_map(tmp_path / 'map.ccp4')
        np.testing.assert_array_equal(read.values, written.astype(np.float32), strict=True)
        assert read.voxel_size == pytest.approx(0.37, rel=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ['map.ccp4']


def test_gemmi_finds_the_whole_cell_in_a_written_map(tmp_path):
    values = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    write_map(tmp_path / 'map.ccp4', values, 0.5)
    ccp4 = gemmi.read_ccp4_map(str(tmp_path / 'map.ccp4'))
    words = [ccp4.header_i32(word) for word in range(1, 11)]
    assert words == [8, 8, 8, 2, 0, 0, 0, 8, 8, 8]  # shape, float32, start, sampling
    assert [ccp4.header_i32(word) for word in (17, 18, 19, 23)] == [1, 2, 3, 1]  # axes, space group
    statistics = [ccp4.header_float(word) for word in (20, 21, 22)]
    assert statistics == pytest.approx([values.min(), values.max(), values.mean()], abs=1e-6)
    assert ccp4.grid.unit_cell.parameters == (4, 4, 4, 90, 90, 90)
    np.testing.assert_array_equal(np.array(ccp4.grid), values)


def pdb_atoms(path):
    """Cell and atoms as gemmi reads them."""
    structure = gemmi.read_pdb(str(path))
    return structure.cell, [place.atom for place in structure[0].all()]


def res_content(path):
    """The instructions of a SHELX file by name, and its atoms: (name, SFAC number, x, y, z, occupancy, U).

    As strict as SHELXL's manual: lines of 80 ASCII characters, instructions in their order, names of four characters
    and once in a residue.
    """
    lines = path.read_text(encoding='ascii').splitlines()
    instructions, atoms, names, order = {}, [], set(), []
    for line in lines:
        assert len(line) <= 80
        word, *values = line.split()
        if word in ('TITL', 'CELL', 'ZERR', 'LATT', 'SFAC', 'UNIT', 'FVAR', 'HKLF', 'END', 'REM', 'RESI'):
            order += [word] * (word not in ('REM', 'RESI'))
            instructions.setdefault(word, values)
            names = set() if word == 'RESI' else names
        else:
            number, *parameters = values
            assert re.fullmatch('[A-Z][A-Za-z]?[0-9]{1,3}', word)
            assert len(word) <= 4
            assert word not in names
            assert len(parameters) == 5
            names.add(word)
            atoms.append((word, int(number), *map(float, parameters)))
            assert order[-1] == 'FVAR'
    assert order == ['TITL', 'CELL', 'ZERR', 'LATT', 'SFAC', 'UNIT', 'FVAR', 'HKLF', 'END']
    return instructions, atoms


def res_positions(path):
    instructions, atoms = res_content(path)
    return np.array([atom[2:5] for atom in atoms]) * float(instructions['CELL'][1])


def assert_on_density(grid, atom, voxel_size):
    points = [(point.value, grid.point_to_position(point).tolist()) for point in grid]
    weights, places = (np.array(each) for each in zip(*points, strict=True))
    centre_of_mass = weights @ places / weights.sum()
    # A sphere's mass, put at the centres of its voxels, has its centre up to 0.024 voxel off the sphere's.
    np.testing.assert_allclose(centre_of_mass, atom, atol=0.03 * voxel_size)
    assert grid.interpolate_value(gemmi.Position(*atom), order=3) > 0.95 * weights.max()


def test_written_atoms_lie_on_the_written_density(tmp_path):
    rng, grid_size, voxel_size = np.random.default_rng(0), 16, 0.7
    for position in rng.uniform(-3, 3, (4, 1, 3)).astype(np.float32):
        write_map(tmp_path / 'atom.ccp4', np.asarray(draw(position, grid_size, 1.0)), voxel_size)
        atoms = file_positions(position, grid_size, voxel_size)
        write_xyz(tmp_path / 'atom.xyz', atoms, 'C', 'one atom')
        write_pdb(tmp_path / 'atom.pdb', atoms, grid_size * voxel_size, 'C', 'one atom')
        write_res(tmp_path / 'atom.res', atoms, grid_size * voxel_size, 'C', 'one atom')

        grid = gemmi.read_ccp4_map(str(tmp_path / 'atom.ccp4'), setup=True).grid
        cell, (pdb_atom,) = pdb_atoms(tmp_path / 'atom.pdb')
        assert cell.parameters == pytest.approx(grid.unit_cell.parameters, abs=1e-5)
        places = (read_xyz(tmp_path / 'atom.xyz')[0], pdb_atom.pos.tolist(), res_positions(tmp_path / 'atom.res')[0])
        for atom in places:
            assert_on_density(grid, atom, voxel_size)


@pytest.mark.parametrize(
    ('axes', 'start', 'mode', 'byte_order'),
    [
        ((3, 2, 1), (0, 0, 0), 2, '<'),
        ((2, 3, 1), (-3, 5, 8), 2, '>'),
        ((3, 1, 2), (0, -16, 1), 1, '<'),
        ((1, 3, 2), (2, 2, 2), 0, '<'),
        ((2, 1, 3), (0, 0, -1), 6, '<'),
        ((1, 2, 3), (0, 0, 0), 12, '<'),
        ((3, 2, 1), (1, 2, 3), 12, '>'),
    ],
)
def test_a_map_reads_the_same_in_any_order_start_and_mode(tmp_path, axes, start, mode, byte_order):
    values = whole_numbers(8, 8, 8)
    block = np.roll(values, [-each for each in start], axis=(0, 1, 2))  # its first value is the one at `start`
    (tmp_path / 'map.ccp4').write_bytes(cubic_bytes(block, axes=axes, start=start, mode=mode, byte_order=byte_order))
    read = read_map(tmp_path / 'map.ccp4')
    np.testing.assert_array_equal(read.values, values, strict=True)
    assert read.voxel_size == 0.5


@pytest.mark.parametrize('mode', [0, 2, 12])
@pytest.mark.parametrize('byte_order', ['<', '>'])
def test_a_machine_stamp_of_zeros_leaves_the_byte_order_to_be_found(tmp_path, mode, byte_order):
    values = whole_numbers(8, 8, 8)
    (tmp_path / 'map.ccp4').write_bytes(cubic_bytes(values, mode=mode, byte_order=byte_order, stamp=bytes(4)))
    np.testing.assert_array_equal(read_map(tmp_path / 'map.ccp4').values, values, strict=True)


@pytest.mark.parametrize('angles', [(0, 0, 0), (90, 90, 90)])
@pytest.mark.parametrize('sampling', [(0, 0, 0), (8, 8, 8)])
def test_in_a_map_without_a_cell_a_voxel_is_taken_for_one_angstrom_and_that_is_said(tmp_path, capsys, angles, sampling):
    path, values = tmp_path / 'map.ccp4', whole_numbers(8, 8, 8)
    path.write_bytes(cubic_bytes(values, cell=(0, 0, 0, *angles), sampling=sampling))
    read = read_map(path)
    np.testing.assert_array_equal(read.values, values)
    assert read.voxel_size == 1
    assert capsys.readouterr() == ('', f'note: {path}: its header has no cell; a voxel is taken as 1 Å\n')
    path.write_bytes(cubic_bytes(values))
    read_map(path)
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('name', ['map.ccp4.gz', 'map.ccp4', 'map.mrc'])
def test_a_gzipped_map_is_read_whatever_its_name(tmp_path, name):
    values = whole_numbers(8, 8, 8)
    (tmp_path / name).write_bytes(gzip.compress(cubic_bytes(values)))
    require_memory(tmp_path / name)
    np.testing.assert_array_equal(read_map(tmp_path / name).values, values, strict=True)


def test_a_compressed_map_takes_no_more_memory_than_its_header_announces(tmp_path):
    bomb, vast = tmp_path / 'bomb.ccp4.gz', tmp_path / 'vast.ccp4.gz'
    bomb.write_bytes(gzip.compress(WHOLE + bytes(3 * 10**7)))
    size = (50_000,) * 3
    header = struct.pack('<10i', *size, 2, 0, 0, 0, *size) + WHOLE[40:1024]
    vast.write_bytes(gzip.compress(header + bytes(3 * 10**7)))
    tracemalloc.start()
    try:
        for path, fragment in ((bomb, 'far more than the 3072 bytes'), (vast, 'GB of memory, and this machine has')):
            assert fragment in refusal(read_map, path)
        assert 'GB of memory, and this machine has' in refusal(require_memory, vast)
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_a_name_is_plain_without_the_ending_of_its_format_and_of_gzip():
    names = ('map.ccp4', 'map.ccp4.gz', 'map.gz', 'map', 'my.own.map.ccp4')
    assert [plain_name(Path('maps.of.mine') / name) for name in names] == ['map', 'map', 'map', 'map', 'my.own.map']


def test_half_a_cell_with_an_inversion_centre_reads_as_the_whole(tmp_path):
    values = whole_numbers(8, 8, 8)
    values = values + np.roll(np.flip(values), 1, axis=(0, 1, 2))
    operators = b''.join(line.ljust(80) for line in (b'X,Y,Z', b'-X,-Y,-Z'))
    half = cubic_bytes(values[:5], sampling=(8, 8, 8), spacegroup=2, symmetry=operators)
    (tmp_path / 'half.ccp4').write_bytes(half)
    np.testing.assert_array_equal(read_map(tmp_path / 'half.ccp4').values, values)


@pytest.mark.parametrize('spacegroup', [19, 198, 227])
def test_a_part_of_the_cell_is_expanded_as_gemmi_does(tmp_path, spacegroup):
    grid = gemmi.FloatGrid(np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32))
    grid.spacegroup = gemmi.find_spacegroup_by_number(spacegroup)
    grid.symmetrize_max()
    values, path = np.array(grid), tmp_path / 'part.ccp4'
    path.write_bytes(cubic_bytes(values[:7], sampling=(8, 8, 8), spacegroup=spacegroup, axes=(2, 3, 1)))
    np.testing.assert_array_equal(read_map(path).values, values)
    np.testing.assert_array_equal(np.array(gemmi.read_ccp4_map(str(path), setup=True).grid), values)
    odd = cubic_bytes(np.ones((6, 7, 7)), sampling=(7, 7, 7), spacegroup=spacegroup)
    path.write_bytes(odd)
    assert '7 x 7 x 7 voxels do not fit its space group' in refusal(read_map, path)


def with_value(value):
    values = whole_numbers(8, 8, 8)
    values[1, 2, 3] = values[3, 2, 1] = value
    return cubic_bytes(values)


def damaged(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


CUBE = whole_numbers(8, 8, 8)
WHOLE = cubic_bytes(CUBE)
PARTIAL = 'only part of the cell; write it again with the limits of the whole cell'
NOT_CUBIC = 'only cubic grids in cubic cells'
NO_MAPS = {
    'missing': (None, 'no such file'),
    'empty': (b'', 'is empty'),
    'text': (b'3\n', 'not a CCP4 map', '2 bytes', '1024'),
    'random bytes': (np.random.default_rng(0).bytes(5000), 'not a CCP4 map'),
    'another format': (b'PK' * 4000, 'not a CCP4 map'),
    'header only': (WHOLE[:1024], 'cut short', '1024 bytes', '3072'),
    'truncated': (WHOLE[:-1], 'cut short', '3071 bytes', '3072'),
    'no values': (bytes(4) + WHOLE[4:], 'not a CCP4 map', '[0, 8, 8]'),
    'complex values': (WHOLE.replace(b'\2\0\0\0', b'\4\0\0\0', 1), 'not a CCP4 map', 'mode 4', '0, 1, 2, 6, 12'),
    'one axis twice': (WHOLE[:64] + struct.pack('<3i', 1, 1, 2) + WHOLE[76:], 'not a CCP4 map'),
    'NaN': (with_value(np.nan), '2 of its values are NaN or infinite'),
    'infinite': (with_value(-np.inf), '2 of its values are NaN or infinite'),
    'grid not cubic': (cubic_bytes(whole_numbers(8, 8, 10)), '8 x 8 x 10 voxels', NOT_CUBIC),
    'cell not cubic': (cubic_bytes(CUBE, cell=(4, 4, 4.1, 90, 90, 90)), '4, 4, 4.1, 90, 90, 90', NOT_CUBIC),
    'cell oblique': (cubic_bytes(CUBE, cell=(4, 4, 4, 90, 100, 90)), '4, 4, 4, 90, 100, 90', NOT_CUBIC),
    'cell flat': (cubic_bytes(CUBE, cell=(4, 4, 0, 90, 90, 90)), 'cell', '4, 4, 0, 90, 90, 90'),
    'cell without angles': (cubic_bytes(CUBE, cell=(4, 4, 4, 0, 0, 0)), 'cell', '4, 4, 4, 0, 0, 0'),
    'no cell, not cubic': (cubic_bytes(CUBE[:6], cell=(0,) * 6, sampling=(6, 8, 8)), '6 x 8 x 8 voxels', NOT_CUBIC),
    'symmetry of negative length': (WHOLE[:92] + struct.pack('<i', -80) + WHOLE[96:], 'not a CCP4 map', '-80 bytes'),
    'gzip cut short': (gzip.compress(WHOLE)[:-20], 'cut short', 'compressed'),
    'gzip of a map cut short': (gzip.compress(WHOLE[:-1]), 'cut short', '3071 bytes', '3072'),
    'gzip damaged': (damaged(gzip.compress(WHOLE), -6), 'damaged', 'gzip'),
    'gzip of text': (gzip.compress(b'3\n'), 'not a CCP4 map', '2 bytes'),
    'gzip that is none': (b'\x1f\x8b' + bytes(5000), 'damaged', 'gzip'),
    'cell not a number': (cubic_bytes(CUBE, cell=(np.nan, np.nan, np.nan, 90, 90, 90)), 'cell', 'nan, nan, nan'),
    'part of the cell': (cubic_bytes(CUBE[:7], sampling=(8, 8, 8)), PARTIAL),
    'speck of a vast cell': (cubic_bytes(CUBE, sampling=(65536, 65536, 65536)), PARTIAL),
    'sampling negative': (cubic_bytes(CUBE, sampling=(-8, 8, 8)), 'not a CCP4 map', '-8, 8, 8'),
    'sampling zero': (cubic_bytes(CUBE, sampling=(8, 8, 0)), 'not a CCP4 map', '8, 8, 0'),
}


@pytest.mark.parametrize(('content', 'fragments'), [(case[0], case[1:]) for case in NO_MAPS.values()], ids=NO_MAPS)
def test_what_is_no_whole_cubic_map_is_refused_by_name(tmp_path, content, fragments):
    path = tmp_path / 'map.ccp4'
    if content is not None:
        path.write_bytes(content)
    message = refusal(read_map, path)
    assert message.startswith(f'{path}: ')
    for fragment in fragments:
        assert fragment in message.removeprefix(f'{path}: ')


def test_positions_come_back_from_xyz_as_they_went(tmp_path):
    positions = np.random.default_rng(0).uniform(-1000, 1000, (7, 3))
    path = tmp_path / 'atoms.xyz'
    for element, comment in (('C', 'map.ccp4: R1 0.1'), ('Fe', 'one\ntwo\r\n\n\tthree\u2028four'), ('X', '')):
        write_xyz(path, positions, element, comment)
        lines = path.read_text(encoding='utf-8').split('\n')
        assert len(lines) == 10
        assert [lines[0], lines[1], lines[9]] == ['7', ' '.join(comment.split()), '']
        assert {line.split()[0] for line in lines[2:9]} == {element}
        np.testing.assert_allclose(read_xyz(path), positions, rtol=0, atol=5.1e-7)


def test_xyz_of_other_programs_is_read(tmp_path):
    lines = (' 3 ', '', 'c\t-1.5 2 3e-1 0.25', 'CL 0 0 0 # no charge', ' X .5 -.5 +.5', ' ', '')
    (tmp_path / 'atoms.xyz').write_text('\r\n'.join(lines), encoding='utf-8', newline='')
    np.testing.assert_array_equal(read_xyz(tmp_path / 'atoms.xyz'), [[-1.5, 2, 0.3], [0, 0, 0], [0.5, -0.5, 0.5]])


XYZ_LINES = {
    'label': 'O1 1.5 -2 0.25',
    'label of two letters': 'Cl12A 1.5 -2 0.25',
    'charge': 'Fe3+ 1.5 -2 0.25',
    'label with other signs': 'C_2* 1.5 -2 0.25',
    'deuterium': 'D1 1.5 -2 0.25',
    'atomic number': '8 1.5 -2 0.25',
    'highest atomic number': '118 1.5 -2 0.25',
    'Fortran exponents': 'O 1.5D+00 -0.2d1 25.D-2',
    'exponents of C': 'O +15e-1 -.2E+1 2.5E-01',
    'tabs and more columns': '\tO\t1.5\t-2.\t\t0.25\t-0.834 O2- 17 ',
}


@pytest.mark.parametrize('line', XYZ_LINES.values(), ids=XYZ_LINES)
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'latin-1'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_atoms_are_read_as_people_write_them(tmp_path, line, encoding, end):
    text = end.join(['2', 'in Å,\x85 µ', line, 'H 0 0 0', '', ''])
    (tmp_path / 'atoms.xyz').write_text(text, encoding=encoding, newline='')
    np.testing.assert_array_equal(read_xyz(tmp_path / 'atoms.xyz'), [[1.5, -2, 0.25], [0, 0, 0]])


ELEMENTS = ('C', 'C', False), ('Fe', 'Fe', False), ('FE', 'Fe', False), ('X', 'C', True)


@pytest.mark.parametrize(('element', 'written', 'remark'), ELEMENTS, ids=[case[0] for case in ELEMENTS])
def test_positions_come_back_from_pdb_as_they_went(tmp_path, element, written, remark):
    path, positions = tmp_path / 'atoms.pdb', np.random.default_rng(0).uniform(-999, 9999, (205, 3))
    positions[0] = -0.0001
    write_pdb(path, positions, 14.8, element, 'map.ccp4:\nR1 0.1 ' + 'ö' * 100)
    cell, atoms = pdb_atoms(path)
    assert cell.parameters == (14.8, 14.8, 14.8, 90, 90, 90)
    assert gemmi.read_pdb(str(path)).spacegroup_hm == 'P 1'
    np.testing.assert_allclose([atom.pos.tolist() for atom in atoms], positions, rtol=0, atol=5.1e-4)
    assert {(atom.element.name, atom.occ, atom.b_iso) for atom in atoms} == {(written, 1.0, 20.0)}
    text = path.read_text(encoding='ascii')
    assert {len(line) for line in text.splitlines()} == {80}
    assert text.startswith('TITLE     MAP.CCP4: R1 0.1 ')
    assert text.count('?') == 100
    assert ('NOT KNOWN; THEY ARE WRITTEN AS CARBON' in text) == remark


@pytest.mark.parametrize(('element', 'written', 'remark'), ELEMENTS, ids=[case[0] for case in ELEMENTS])
def test_positions_come_back_from_res_as_they_went(tmp_path, element, written, remark):
    path, positions = tmp_path / 'atoms.res', np.random.default_rng(0).uniform(-50, 50, (205, 3))
    write_res(path, positions, 14.8, element, 'map.ccp4:\nR1 0.1 ' + 'ö' * 100)
    instructions, atoms = res_content(path)
    assert [float(value) for value in instructions['CELL']] == [0.71073, 14.8, 14.8, 14.8, 90, 90, 90]
    expected = {'LATT': ['-1'], 'SFAC': [written], 'UNIT': ['205'], 'HKLF': ['4'], 'FVAR': ['1.0']}
    assert {name: instructions[name] for name in expected} == expected
    assert instructions['TITL'][:3] == ['map.ccp4:', 'R1', '0.1']
    assert ('carbon.' in instructions.get('REM', [])) == remark
    np.testing.assert_allclose(res_positions(path), positions, rtol=0, atol=5.1e-7 * 14.8)
    assert {(atom[1], *atom[5:]) for atom in atoms} == {(1, 11.0, 0.05)}
    assert atoms[0][0] == f'{written}1'


def test_more_atoms_than_four_digits_count_are_written_without_fault(tmp_path):
    positions = np.random.default_rng(0).uniform(0, 20, (10100, 3))
    write_pdb(tmp_path / 'many.pdb', positions, 20.0, 'Fe', '')
    write_res(tmp_path / 'many.res', positions, 20.0, 'Fe', '')
    structure = gemmi.read_pdb(str(tmp_path / 'many.pdb'))
    places = [(str(place.residue.seqid), place.atom.name) for place in structure[0].all()]
    assert len(set(places)) == 10100
    read = [place.atom.pos.tolist() for place in structure[0].all()]
    np.testing.assert_allclose(read, positions, rtol=0, atol=5.1e-4)
    np.testing.assert_allclose(res_positions(tmp_path / 'many.res'), positions, rtol=0, atol=1.1e-5)


@pytest.mark.parametrize(
    ('write', 'bad', 'fragments'),
    [
        (write_pdb, 10000.0, ('10000 Å', '-999.999 to 9999.999')),
        (write_pdb, -1000.0, ('-1000 Å', '-999.999 to 9999.999')),
        (write_pdb, np.nan, ('nan Å',)),
        (write_res, 50.0, ('5 cells', '-5 to 5')),
        (write_res, -np.inf, ('-inf cells', '-5 to 5')),
    ],
)
def test_coordinates_that_a_format_cannot_hold_are_refused(tmp_path, write, bad, fragments):
    message = refusal(write, tmp_path / 'atoms', np.array([[0, 0, 0], [0, bad, 0]]), 10.0, 'C', '')
    for fragment in (str(tmp_path / 'atoms'), *fragments):
        assert fragment in message
    assert not list(tmp_path.iterdir())


def opened_by_chimerax(directory, arguments):
    """The files that ChimeraX opens, by the rules of its `open`: a name is read twice, without escapes."""
    for _ in range(2):
        quoted = re.match(r'"(.*?)"(?:\s|$)(.*)', arguments)
        name, rest = quoted.groups() if quoted else re.match(r'([^;\s]*)(.*)', arguments).groups()
        assert not rest
        arguments = f'"{name}"' if re.search(r'\s|^["\']', name) else name
    if (directory / name).exists():
        return [name]
    assert ':' not in name  # a database would be asked
    return [path.name for path in directory.glob(name)]


NAMES = [
    'ozone',
    'two words',
    'a "quoted" name',
    '"',
    "it's  'so' ",
    'a;b',
    'a; b',
    '[1] {2} #3',
    '~$HOME 100%',
    '1: x',
    'ö\t',
]


@pytest.mark.parametrize('name', NAMES)
def test_chimerax_opens_the_atoms_and_the_map_beside_the_script_whatever_their_name(tmp_path, name):
    names = [f'{name}.pdb', f'{name}_density.ccp4']
    for each in (*names, 'another.pdb', 'another_density.ccp4'):
        (tmp_path / each).touch()
    write_chimerax(tmp_path / f'{name}.cxc', 0.125, 0.35)
    lines = (tmp_path / f'{name}.cxc').read_text(encoding='utf-8').split('\n')
    opened = [opened_by_chimerax(tmp_path, line.removeprefix('open ')) for line in lines if line.startswith('open ')]
    assert opened == [[each] for each in names]
    assert {line.split()[0] for line in lines if line} == {
        *('#', 'open', 'show', 'style', 'size', 'color', 'volume', 'transparency', 'view')
    }
    assert 'style #1 sphere' in lines
    assert 'size #1 atomRadius 0.35' in lines
    (volume,) = (line for line in lines if line.startswith('volume #2 '))
    assert 'style surface' in volume
    assert 'level 0.125' in volume


def xyz_with(line):
    return f'3\n\nC 0 0 0\n{line}\nC 2 2 2\n'


NO_XYZ = {
    'missing': (None, 'no such file'),
    'empty': ('', 'is empty'),
    'binary': (b'\xff\xfe' + WHOLE, 'not a text file'),
    'count a word': ('C 0 0 0\n', 'line 1', "'C 0 0 0'", 'the number of atoms'),
    'count zero': ('0\n\n', 'line 1', "'0'", 'the number of atoms'),
    'count negative': ('-1\n\n', 'line 1', "'-1'", 'the number of atoms'),
    'count a fraction': ('1.0\n\nC 0 0 0\n', 'line 1', "'1.0'", 'the number of atoms'),
    'count of no end': ('9' * 5000 + '\n\nC 0 0 0\n', 'line 1', "'999", 'the number of atoms'),
    'short': ('3\n\nC 0 0 0\nC 1 1 1\n', '2 atoms', 'line 1 announces 3'),
    'count alone': ('3\n', '0 atoms', 'line 1 announces 3'),
    'over-long': ('1\n\nC 0 0 0\n\nC 1 1 1\n', 'line 5', "'C 1 1 1' after the last of 1 atoms"),
    'unknown element': (xyz_with('Qq 1 1 1'), 'line 4', "'Qq 1 1 1'", 'a chemical symbol'),
    'element in full': (xyz_with('Carbon 1 1 1'), 'line 4', "'Carbon 1 1 1'", 'a chemical symbol'),
    'label of no element': (xyz_with('Qq1 1 1 1'), 'line 4', "'Qq1 1 1 1'", 'a label'),
    'label in brackets': (xyz_with('(C) 1 1 1'), 'line 4', "'(C) 1 1 1'", 'a label'),
    'atomic number zero': (xyz_with('0 1 1 1'), 'line 4', "'0 1 1 1'", 'an atomic number'),
    'atomic number too high': (xyz_with('119 1 1 1'), 'line 4', "'119 1 1 1'", 'an atomic number'),
    'coordinates alone': (xyz_with('1.0 1 1 1'), 'line 4', "'1.0 1 1 1'", 'a chemical symbol'),
    'exponent without digits': (xyz_with('C 1.0D 1 1'), 'line 4', "'C 1.0D 1 1'", 'three coordinates'),
    'digits in groups': (xyz_with('C 1_0 1 1'), 'line 4', "'C 1_0 1 1'", 'three coordinates'),
    'two bytes a letter': ('1\n\nC 0 0 0\n'.encode('utf-16'), 'not a text file'),
    'no element': (xyz_with('1 1 1'), 'line 4', "'1 1 1'", 'a chemical symbol'),
    'too few columns': (xyz_with('C 1 1'), 'line 4', "'C 1 1'", 'three coordinates'),
    'blank line': (xyz_with(''), 'line 4', "''", 'three coordinates'),
    'not a number': (xyz_with('C 1 one 1'), 'line 4', "'C 1 one 1'", 'three coordinates'),
    'NaN': (xyz_with('C 1 nan 1'), 'line 4', "'C 1 nan 1'", 'three coordinates'),
    'infinite': (xyz_with('C 1 1 1e999'), 'line 4', "'C 1 1 1e999'", 'three coordinates'),
    'very long line': (xyz_with('C 1 1 ' + 'x' * 10**6), 'line 4', "'C 1 1 xxx", 'three coordinates'),
}


@pytest.mark.parametrize(('content', 'fragments'), [(case[0], case[1:]) for case in NO_XYZ.values()], ids=NO_XYZ)
def test_what_is_no_xyz_is_refused_by_file_and_line(tmp_path, content, fragments):
    path = tmp_path / 'atoms.xyz'
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refusal(read_xyz, path)
    assert message.startswith(str(path))
    assert len(message) < len(str(path)) + 200
    for fragment in fragments:
        assert fragment in message.removeprefix(str(path))


def test_the_box_centre_lies_between_voxels():
    np.testing.assert_allclose(file_positions(np.zeros((1, 3)), 16, 0.5), np.full((1, 3), 3.75))


@contextlib.contextmanager
def full_disk(num_bytes):
    """Lets no file grow beyond so many bytes: a write of more fails, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


WRITERS = {
    'map': lambda path: write_map(path, np.ones((16, 16, 16)), 0.5),
    'map as small as a buffer': lambda path: write_map(path, np.ones((8, 8, 8)), 0.5),
    'xyz': lambda path: write_xyz(path, np.ones((100, 3)), 'C', 'comment'),
    'xyz that cannot be encoded': lambda path: write_xyz(path, np.ones((1, 3)), 'C', 'half a pair: \ud800'),
    'PDB': lambda path: write_pdb(path, np.ones((100, 3)), 9.0, 'C', 'comment'),
    'SHELX': lambda path: write_res(path, np.ones((100, 3)), 9.0, 'C', 'comment'),
    'ChimeraX': lambda path: write_chimerax(path, 0.2, 0.5),
    'JSON': lambda path: write_json(path, {'numbers': list(range(1000))}),
    'JSON of NaN': lambda path: write_json(path, {'numbers': [1.0, np.nan]}),
}


@pytest.mark.parametrize('write', WRITERS.values(), ids=WRITERS)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, write):
    old, new = tmp_path / 'old', tmp_path / 'new'
    old.write_bytes(b'of an earlier run')
    for path in (old, new):
        room = 100 if write is WRITERS['ChimeraX'] else 1500
        with pytest.raises((OSError, ValueError)), full_disk(room):
            write(path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {'old': b'of an earlier run'}


def test_json_holds_what_was_written_and_a_list_of_numbers_on_one_line(tmp_path):
    content = {'input': 'maps [1,  2] {"3"}.ccp4', 'positions': [[1.5, -2, 3e-9], []], 'ä': {'none': None}}
    write_json(tmp_path / 'report.json', content)
    text = (tmp_path / 'report.json').read_text(encoding='utf-8')
    assert json.loads(text) == content
    assert '1.5, -2, 3e-09' in text
    assert text.endswith('}\n')


PROBLEM = Problem(grid_size=16, num_atoms=3, min_separation=2.4, box_edge=4.5)
POSITIONS = np.float32([[-2.1, 0.3, 1.2], [1.7, -1.6, 0.4], [0.2, 2.2, -1.9]])


@pytest.fixture(scope='module')
def patterson():
    return np.asarray(patterson_map(draw(POSITIONS, PROBLEM.grid_size, PROBLEM.atom_radius)))


def with_spectrum(patterson, change):
    spectrum = np.fft.rfftn(patterson).real
    return np.fft.irfftn(change(spectrum), patterson.shape, (0, 1, 2)).astype(np.float32)


def without_high_frequencies(spectrum):
    frequencies = np.meshgrid(*([np.fft.fftfreq(16) * 16] * 2), np.arange(9), indexing='ij')
    return np.where(sum(each**2 for each in frequencies) <= 25, spectrum, 0)


def with_noise(spectrum):
    return spectrum * np.random.default_rng(0).uniform(0.6, 1.4, spectrum.shape)


def with_one_value_wrong(patterson):
    values = patterson.copy()
    values[2, 3, 4] += np.float32(0.01) * np.max(patterson)
    return values


def one_negative(spectrum):
    spectrum[1, 2, 3] = -0.05 * np.max(spectrum.ravel()[1:])
    return spectrum


def test_patterson_maps_of_any_scale_cut_and_noisy_ones_too_are_taken(patterson, tmp_path):
    for scale in (1e-12, 0.01, 1, 1e12):
        checked_patterson(patterson * np.float32(scale))
    checked_patterson(with_spectrum(patterson, without_high_frequencies))
    noisy = with_spectrum(patterson, with_noise)
    checked_patterson((noisy + np.roll(np.flip(noisy), 1, axis=(0, 1, 2))) / 2)
    write_map(tmp_path / 'patterson.ccp4', patterson, 0.5)
    checked_patterson(read_map(tmp_path / 'patterson.ccp4').values)


NO_PATTERSONS = {
    'odd grid': (lambda patterson: np.pad(patterson, (0, 3)), '19 voxels along each edge', 'an even number, 8 or more'),
    'small grid': (lambda patterson: patterson[:6, :6, :6], '6 voxels along each edge', 'an even number, 8 or more'),
    'constant': (np.ones_like, 'the same everywhere'),
    'nothing': (np.zeros_like, 'the same everywhere'),
    'origin in the centre': (np.fft.fftshift, 'origin is in the centre', 'shift it by half a cell along each axis'),
    'origin elsewhere': (lambda patterson: np.roll(patterson, (3, 1, 0), (0, 1, 2)), 'not its own inverse'),
    'one value wrong': (with_one_value_wrong, 'not its own inverse'),
    'a density': (lambda patterson: np.asarray(draw(POSITIONS, 16, 1.0)), 'not its own inverse'),
    'origin peak taken out': (
        lambda patterson: np.where(origin_distances(16) <= 2, 0, patterson),
        'highest value is not at the origin',
        'origin peak been taken out',
        'needed',
    ),
    'negative coefficients': (lambda patterson: with_spectrum(patterson, one_negative), '|F|²', '-0.05 of the highest'),
}


@pytest.mark.parametrize(
    ('change', 'fragments'), [(case[0], case[1:]) for case in NO_PATTERSONS.values()], ids=NO_PATTERSONS
)
def test_what_is_no_patterson_map_is_refused_with_the_fault(patterson, change, fragments):
    for scale in (1, 1e-6):
        message = refusal(checked_patterson, change(patterson) * np.float32(scale))
        assert message.startswith('no Patterson map that can be solved: ')
        for fragment in fragments:
            assert fragment in message


WITHOUT_ORIGIN_TERM = {
    'too low': lambda patterson: patterson - np.float32(0.1) * np.max(patterson),
    'mean zero': lambda patterson: patterson - np.mean(patterson),
    'mean just above zero': lambda patterson: patterson - np.float32(0.999) * np.mean(patterson),
}


@pytest.mark.parametrize('change', WITHOUT_ORIGIN_TERM.values(), ids=WITHOUT_ORIGIN_TERM)
def test_a_missing_origin_term_is_restored_or_refused_where_vectors_may_reach_everywhere(patterson, change):
    wider = dataclasses.replace(PROBLEM, box_edge=5.5)
    for scale in (1, 1e-6):
        changed = change(patterson) * np.float32(scale)
        restored = restore_origin_term(changed, PROBLEM)
        np.testing.assert_allclose(restored, patterson * scale, atol=1e-6 * scale * np.max(patterson))
        message = refusal(restore_origin_term, changed, wider)
        assert message.startswith('no Patterson map that can be solved: F(000)² is missing')
        assert 'add the constant' in message
