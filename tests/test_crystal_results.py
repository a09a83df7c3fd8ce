"""Solved crystals in files, read back by gemmi and by a reader of .res files of the test's own."""

import dataclasses
import itertools

import gemmi
import numpy as np
import pytest

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.reflections import Measurements
from patterson_jax.crystal.structure import CrystalData, CrystalSolution, Site, SpaceGroup
from patterson_jax.errors import InputError
from patterson_jax.files.claims import Claims, group_of
from patterson_jax.files.crystal_results import (
    atom_names,
    calculated_structure_factors,
    overall_scale,
    solution_content,
    write_crystal_cif,
    write_crystal_res,
    write_hkl,
)
from patterson_jax.files.maps import write_density
from patterson_jax.files.shelx import read_hkl, read_instructions

CELL = UnitCell(10.27, 4.674, 11.31, 90.0, 92.19, 90.0)
CUBE = UnitCell(5.6, 5.6, 5.6, 90.0, 90.0, 90.0)
RHOMBOHEDRAL = UnitCell(16.2, 16.2, 11.24, 90.0, 90.0, 120.0)


def space_group(symbol):
    group = gemmi.SpaceGroup(symbol)
    return SpaceGroup(group.number, group.xhm(), tuple(each.triplet() for each in group.operations()), True)


def sites(group, *atoms):
    """Atoms (label, element, fract, u) with the multiplicity of their places."""
    made = []
    for label, element, fract, u_iso in atoms:
        images = np.array([gemmi.Op(each).apply_to_xyz(fract) for each in group.symops])
        multiplicity = len(np.unique(np.round(images % 1 % 1, 4) % 1, axis=0))
        made.append(Site(label, element, fract, u_iso, 1.0, multiplicity))
    return tuple(made)


def copper_complex():
    group = space_group('P 1 21/n 1')
    atoms = sites(
        group,
        ('Cu1', 'Cu', (0.5, 0.0, 0.5), 0.021),
        ('O1', 'O', (0.66205, 0.2036, 0.50633), 0.024),
        ('O2', 'O', (0.43475, 0.1977, 0.63436), 0.024),
        ('C1', 'C', (0.6893, 0.4157, 0.57275), 0.021),
    )
    return CELL, group, atoms


def chloride():
    group = space_group('F m -3 m')
    return CUBE, group, sites(group, ('CL1', 'Cl', (0.0, 0.0, 0.0), 0.02), ('NA1', 'Na', (0.5, 0.5, 0.5), 0.018))


def polar():
    group = space_group('P 41')
    cell = UnitCell(7.5, 7.5, 15.8, 90.0, 90.0, 90.0)
    return cell, group, sites(group, ('N1', 'N', (0.1, 0.2, 0.3), 0.05), ('C1', 'C', (-0.2, 1.3, 0.4), 0.04))


def trigonal():
    group = space_group('R -3 c:H')
    atoms = sites(group, ('FE1', 'Fe', (0.0, 0.0, 0.5), 0.02), ('O4', 'O', (1 / 3, 0.478579, 0.416667), 0.026))
    return RHOMBOHEDRAL, group, atoms


STRUCTURES = [copper_complex, chloride, polar, trigonal]


def crystal(make, **changes):
    cell, group, atoms = make()
    hkl = np.array(list(itertools.product(range(4), repeat=3))[1:], np.int32)
    operations = gemmi.GroupOps([gemmi.Op(each) for each in group.symops])
    hkl = hkl[[not operations.is_systematically_absent(each.tolist()) for each in hkl]]
    intensities = 6.25 * np.abs(calculated_structure_factors(hkl, cell, group, atoms, changes.get('wavelength'))) ** 2
    data = CrystalData(
        cell, hkl, intensities, np.ones(len(hkl)), '-1', np.stack([np.eye(3), -np.eye(3)]), 'P', **changes
    )
    return data, CrystalSolution('solved', ('two starts agree',), group, atoms, 0.04, 0.8, 5, 1.5)


def read_res(text):
    """(instructions as keyword → words, atoms as name → numbers)."""
    instructions, atoms = {}, {}
    for line in text.splitlines():
        keyword, *words = line.split()
        if 'FVAR' in instructions and keyword not in ('HKLF', 'END'):
            atoms[keyword] = [float(word) for word in words]
        else:
            instructions.setdefault(keyword, []).append(words)
    return instructions, atoms


def write(tmp_path, make, claims=None, hklf='HKLF 4', **changes):
    data, solution = crystal(make, **changes)
    path = tmp_path / 'a.res'
    write_crystal_res(path, data, solution, claims or Claims(), 'a in P', hklf)
    return data, solution, path.read_text(encoding='ascii')


@pytest.mark.parametrize('wavelength', [None, 1.54184])
@pytest.mark.parametrize('make', STRUCTURES)
def test_structure_factors_are_those_of_gemmi(make, wavelength):
    cell, group, atoms = make()
    hkl = np.array([[1, 1, 1], [2, 0, 0], [2, 2, 4], [-1, 3, 4], [0, 0, 4], [1, 1, 3]])
    small = gemmi.SmallStructure()
    small.cell, small.spacegroup_hm, small.symops = cell.gemmi, group.hm, list(group.symops)
    for atom in atoms:
        site = gemmi.SmallStructure.Site()
        site.label, site.element = atom.label, gemmi.Element(atom.element)
        site.fract, site.u_iso, site.occ = gemmi.Fractional(*atom.fract), atom.u_iso, atom.occupancy
        small.add_site(site)
    small.determine_and_set_spacegroup('S.H2')
    small.change_occupancies_to_crystallographic()
    calculator = gemmi.StructureFactorCalculatorX(small.cell)
    if wavelength:
        calculator.addends.add_cl_fprime(gemmi.hc / wavelength)
    expected = [calculator.calculate_sf_from_small_structure(small, each.tolist()) for each in hkl]
    calculated = calculated_structure_factors(hkl, cell, group, atoms, wavelength)
    np.testing.assert_allclose(calculated, expected, atol=2e-3)


@pytest.mark.parametrize('make', STRUCTURES)
def test_a_res_file_says_all_that_shelxl_needs(tmp_path, make):
    claims = Claims(cell_sigmas=(0.001, 0.002, 0.003, 0.0, 0.04, 0.0))
    data, solution, text = write(tmp_path, make, claims, wavelength=1.54184)
    assert max(map(len, text.splitlines())) <= 80
    instructions, atoms = read_res(text)
    said = read_instructions(text, 'a.res')
    assert said.cell.parameters == data.cell.parameters
    assert (said.wavelength, said.cell_sigmas, said.title) == (1.54184, claims.cell_sigmas, 'a in P')
    group = solution.space_group
    assert set(said.symops) == set(group_of(list(group.symops), 'P', False))
    symm = [' '.join(words) for words in instructions.get('SYMM', [])]
    assert 'X,Y,Z' not in symm
    centred = '-x,-y,-z' in group.symops
    assert (int(instructions['LATT'][0][0]) > 0) == centred
    centring = {'P': 1, 'F': 4, 'R': 3}[said.centring]
    assert len(symm) + 1 == len(group.symops) / (2 if centred else 1) / centring
    for keyword, words in {'L.S.': ['10'], 'BOND': [], 'FMAP': ['2'], 'PLAN': ['20'], 'HKLF': ['4']}.items():
        assert instructions[keyword] == [words]
    assert float(instructions['FVAR'][0][0]) == pytest.approx(2.5, rel=1e-4)
    symbols = instructions['SFAC'][0]
    assert [float(word) for word in instructions['UNIT'][0]] == [
        sum(atom.multiplicity for atom in solution.atoms if atom.element == symbol) for symbol in symbols
    ]
    for atom, (name, numbers) in zip(solution.atoms, atoms.items(), strict=True):
        assert name == atom.label
        assert symbols[int(numbers[0]) - 1] == atom.element
        np.testing.assert_allclose(numbers[1:4], atom.fract, atol=1e-6)
        assert numbers[4] == pytest.approx(10 + atom.multiplicity / len(group.symops), abs=1e-5)
        assert numbers[5] == pytest.approx(atom.u_iso)


def test_codes_of_special_positions(tmp_path):
    _, atoms = read_res(write(tmp_path, copper_complex)[2])
    assert (atoms['Cu1'][4], atoms['O1'][4]) == (10.5, 11)
    _, atoms = read_res(write(tmp_path, trigonal)[2])
    assert (atoms['FE1'][4], atoms['O4'][4]) == (10.16667, 10.5)


def test_hydrogen_of_a_fitting_formula_is_counted_and_an_unknown_wavelength_is_said(tmp_path):
    _, _, text = write(tmp_path, copper_complex, formula={'Cu': 1, 'O': 4, 'C': 2, 'H': 6})
    instructions, _ = read_res(text)
    assert instructions['SFAC'] == [['C', 'H', 'Cu', 'O']]
    assert instructions['UNIT'] == [['4', '12', '2', '8']]
    assert instructions['ZERR'][0][0] == '2.00'
    claims = Claims(formula_units=1.0, contents={'Cu': 2, 'O': 8, 'C': 5, 'H': 20})
    _, _, text = write(tmp_path, copper_complex, claims)
    assert read_res(text)[0]['ZERR'][0][0] == '1.00'
    _, _, text = write(tmp_path, copper_complex, Claims(formula_units=1.0, contents={'Cu': 1, 'O': 4, 'C': 2}))
    assert read_res(text)[0]['ZERR'][0][0] == '2.00'
    assert 'REM The wavelength is not known; that of Mo K alpha is written.' in text
    _, _, text = write(tmp_path, copper_complex, formula={'Cu': 1, 'O': 1, 'C': 9, 'H': 6})
    assert read_res(text)[0]['SFAC'] == [['C', 'Cu', 'O']]


def test_the_scale_counts_a_factor_of_hklf_and_of_the_file(tmp_path):
    _, _, text = write(tmp_path, copper_complex, hklf='HKLF 4 0.01 1 0 0 0 1 0 0 0 1')
    assert float(read_res(text)[0]['FVAR'][0][0]) == pytest.approx(0.25, rel=1e-4)
    data, solution = crystal(chloride)
    write_crystal_res(tmp_path / 'a.res', data, solution, Claims(), 'a', 'HKLF 4', 4.0)
    fvar = read_res((tmp_path / 'a.res').read_text(encoding='ascii'))[0]['FVAR'][0][0]
    assert float(fvar) == pytest.approx(5, rel=1e-4)
    assert overall_scale(data, solution.space_group, solution.atoms) == pytest.approx(2.5)


@pytest.mark.parametrize('hklf', ['HKLF 3', 'HKLF 3 0.3 0 1 0 1 0 0 0 0 -1', 'HKLF 4 0.3', 'HKLF -4'])
def test_the_scale_turns_what_is_calculated_into_what_shelxl_makes_of_the_file(tmp_path, hklf):
    """SHELXL refines FVAR² Fc² against S F² of HKLF 4, and against (S F)² of HKLF 3."""
    _, solution, text = write(tmp_path, copper_complex, hklf=hklf, wavelength=0.71073)
    hkl = np.array([[1, 1, 1], [2, 0, 0], [0, 3, 1]])
    calculated = np.abs(calculated_structure_factors(hkl, CELL, solution.space_group, solution.atoms, 0.71073)) ** 2
    squares = 6.25 * calculated
    words = [float(word) for word in hklf.split()[1:]]
    factor = words[1] if len(words) > 1 else 1.0
    read = (factor * np.sqrt(squares)) ** 2 if words[0] == 3 else factor * squares
    np.testing.assert_allclose(float(read_res(text)[0]['FVAR'][0][0]) ** 2 * calculated, read, rtol=1e-4)


def test_an_inversion_away_from_the_origin_is_refused(tmp_path):
    data, solution = crystal(polar)
    operations = tuple(each.triplet() for each in gemmi.SpaceGroup('P n n n:1').operations())
    odd = CrystalSolution('solved', (), SpaceGroup(48, 'P n n n:1', operations, True), solution.atoms, 0.1, 1, 1, 1)
    with pytest.raises(InputError, match='SHELX has no LATT'):
        write_crystal_res(tmp_path / 'a.res', data, odd, Claims(), 'a', 'HKLF 4')


def test_names_are_of_the_element_short_and_different():
    atoms = [
        ('C1', 'C'),
        ('C1', 'C'),
        ('CA1', 'C'),
        ('CA1', 'Ca'),
        ('C12345', 'C'),
        ('X', 'N'),
        ('c1', 'C'),
        ('N9', 'O'),
    ]
    names = atom_names(tuple(Site(label, element, (0, 0, 0), 0.1, 1, 1) for label, element in atoms))
    assert names == ['C1', 'C2', 'C3', 'CA1', 'C4', 'N1', 'C5', 'O1']
    many = atom_names(tuple(Site('', 'Cl', (0, 0, 0), 0.1, 1, 1) for _ in range(300)))
    assert len(set(many)) == 300
    assert max(map(len, many)) == 4


def test_a_setting_that_is_not_tabulated_has_no_symbol_in_the_cif(tmp_path):
    data, solution = crystal(copper_complex)
    group = dataclasses.replace(solution.space_group, number=2, hm='P -1', symops=('x,y,z', '-x+1/4,-y,-z'))
    path = tmp_path / 'a.cif'
    write_crystal_cif(path, data, dataclasses.replace(solution, space_group=group), Claims(), 'a')
    block = gemmi.cif.read(str(path)).sole_block()
    symbols = [block.find_value(f'_space_group_{tag}') for tag in ('name_H-M_alt', 'name_Hall', 'IT_number')]
    assert symbols == ['?', None, '2']


@pytest.mark.parametrize('make', STRUCTURES)
def test_gemmi_reads_the_cif(tmp_path, make):
    data, solution = crystal(make, wavelength=0.71073)
    path = tmp_path / 'a.cif'
    write_crystal_cif(path, data, solution, Claims(), 'a')
    small = gemmi.read_small_structure(str(path))
    np.testing.assert_allclose(small.cell.parameters, data.cell.parameters)
    assert (small.spacegroup.xhm(), small.wavelength) == (solution.space_group.hm, 0.71073)
    assert set(small.symops) == set(solution.space_group.symops)
    assert len(small.get_all_unit_cell_sites()) == sum(atom.multiplicity for atom in solution.atoms)
    for site, atom in zip(small.sites, solution.atoms, strict=True):
        assert (site.label, site.element.name, site.occ) == (atom.label, atom.element, 1)
        np.testing.assert_allclose(site.fract.tolist(), atom.fract, atol=1e-6)
        assert site.u_iso == pytest.approx(atom.u_iso)
    block = gemmi.cif.read(str(path)).sole_block()
    assert float(block.find_value('_refine_ls_R_factor_gt')) == 0.04


@pytest.mark.parametrize(('scale', 'least'), [(1.0, 1.0), (1e7, 5e3), (1e-5, 1e-7)])
def test_an_hkl_file_holds_intensities_of_any_size(tmp_path, scale, least):
    random = np.random.default_rng(0)
    hkl = random.integers(-30, 30, (50, 3)).astype(np.int32)
    intensities = scale * np.concatenate([random.exponential(100, 49), [-3.0]])
    measured = Measurements(hkl, intensities, np.maximum(0.02 * np.abs(intensities), least))
    written = write_hkl(tmp_path / 'a.hkl', measured)
    text = (tmp_path / 'a.hkl').read_text(encoding='ascii')
    assert {len(line) for line in text.splitlines()} == {28}
    columns, rest = read_hkl(text, 'a.hkl')
    np.testing.assert_array_equal(columns.hkl, hkl)
    factor = columns.values[0] / intensities[0]
    assert factor == pytest.approx(written, rel=0.02)
    np.testing.assert_allclose(columns.values, factor * intensities, rtol=0.02, atol=0.6)
    assert np.all(columns.sigmas > 0)
    assert not rest


def test_the_content_of_the_json_file():
    data, solution = crystal(copper_complex)
    content = solution_content(data, solution)
    assert content['space_group'] == {
        'number': 14,
        'hm': 'P 1 21/n 1',
        'standard_hm': 'P 1 21/c 1',
        'symops': list(solution.space_group.symops),
        'certain': True,
        'candidates': [],
    }
    assert content['atoms'][0] == {
        'label': 'Cu1',
        'element': 'Cu',
        'fract': [0.5, 0.0, 0.5],
        'u_iso': 0.021,
        'occupancy': 1.0,
        'multiplicity': 2,
        'element_confidence': 1.0,
    }
    fields = ('verdict', 'reasons', 'cell', 'r_factor', 'resolution', 'starts', 'seconds')
    assert [content[each] for each in fields] == [
        'solved',
        ['two starts agree'],
        list(CELL.parameters),
        0.04,
        0.8,
        5,
        1.5,
    ]
    nothing = solution_content(data, CrystalSolution('not solved', (), None, (), None, 0.8, 3, 0.1))
    assert (nothing['space_group'], nothing['atoms'], nothing['r_factor']) == (None, [], None)


def test_a_density_of_any_cell_is_written_whole(tmp_path):
    values = np.random.default_rng(0).normal(size=(6, 4, 8)).astype(np.float32)
    write_density(tmp_path / 'a.ccp4', values, CELL)
    read = gemmi.read_ccp4_map(str(tmp_path / 'a.ccp4'))
    read.setup(np.nan)
    np.testing.assert_array_equal(np.array(read.grid), values)
    np.testing.assert_allclose(read.grid.unit_cell.parameters, CELL.parameters, rtol=1e-6)
