"""Crystals from files to files: what is said of them, what is written, what is refused; one that is solved."""

import contextlib
import dataclasses
import io
import json
from pathlib import Path

import gemmi
import numpy as np
import pytest
from ml_collections import ConfigDict

import patterson_jax as pj
from configs import crystal as crystal_config
from configs import quick
from patterson_jax import experiment
from patterson_jax.config import validate_crystal
from patterson_jax.crystal.reflections import sphere
from patterson_jax.crystal.structure import CrystalSolution, Site, SpaceGroup
from patterson_jax.crystal_runs import describe, name_contradictions, solve_crystal_file, write_results
from patterson_jax.crystals import read_and_prepare
from patterson_jax.errors import InputError
from patterson_jax.files.crystal_results import calculated_structure_factors
from patterson_jax.files.crystals import parse_cell, read_crystal
from patterson_jax.solving import crystal_solver

CRYSTALS = Path(__file__).parents[1] / 'docs' / 'crystals'
CELL = '5.1 6.2 7.3 90 99.5 90'
GROUP = SpaceGroup(
    14, 'P 1 21/c 1', tuple(each.triplet() for each in gemmi.SpaceGroup('P 1 21/c 1').operations()), True
)
ATOMS = (
    Site('S1', 'S', (0.21, 0.33, 0.17), 0.03, 1.0, 4),
    Site('O1', 'O', (0.40, 0.42, 0.27), 0.04, 1.0, 4),
)
SOLUTION = CrystalSolution('solved', (), GROUP, ATOMS, 0.031, 0.8, 2, 0.5, np.ones((8, 10, 12), np.float32))
INS = f'TITL made up\nCELL 0.71073 {CELL}\nLATT 1\nSYMM -X,.5+Y,.5-Z\nSFAC S O\nUNIT 4 4\nHKLF 4\nEND\n'


def write_input(directory, ins=INS, turn=None):
    """Every reflection of a structure of ATOMS, all equivalents, in a.hkl with a.ins beside it."""
    directory.mkdir(exist_ok=True)
    cell = parse_cell(CELL, 'cell')
    half = sphere(cell, 0.8)
    hkl = np.concatenate([half, -half])
    squares = np.abs(calculated_structure_factors(hkl, cell, GROUP, ATOMS)) ** 2
    lines = [f'{h:4d}{k:4d}{l:4d}{value:8.2f}{1.0:8.2f}' for (h, k, l), value in zip(hkl, squares, strict=True)]
    (directory / 'a.hkl').write_bytes('\r\n'.join([*lines, '   0   0   0', '']).encode())
    (directory / 'a.ins').write_text(ins, encoding='utf-8')
    return directory / 'a.hkl'


def settings(**changes):
    config = crystal_config.get_config()
    config.crystal.update(changes)
    return validate_crystal(config)[1]


def refusal(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    (line,) = str(caught.value).splitlines()
    return line


def test_three_lines_say_what_was_taken_for_what_and_a_table_which_symmetry_there_is(tmp_path):
    lines = describe(*read_and_prepare(write_input(tmp_path), settings()))
    count = 2 * len(sphere(parse_cell(CELL, 'cell'), 0.8))
    assert lines[0] == (
        f'a.hkl: F² and σ(F²) of {count} reflections in fixed columns 3I4,2F8; cell 5.1 6.2 7.3 90 99.5 90 (a.ins), '
        'wavelength 0.71073 Å, contents S4 O4'
    )
    assert lines[1].startswith(
        'symmetry: Laue class 2/m, as the file claims, and the equivalents show; lattice P; R_int 0'
    )
    assert lines[2].startswith('resolution ')
    assert ' to 0.80 Å, complete to 100.0%; ⟨|E² − 1|⟩' in lines[2]
    table = [line.split() for line in lines if line.startswith('*')]
    assert table[0][:2] == ['*', '2/m']
    assert lines[-1].startswith('  lattice: mean E²')


@pytest.mark.parametrize(
    ('network', 'formula', 'said'),
    [
        ('projection', 'CN', 'maps are finished by a learned projection ('),
        ('projection', 'SO', 'maps are finished by elimination or a learned projection ('),
        ('projection', 'any', 'maps are finished by elimination or a learned projection ('),
        ('none', 'CN', ''),
    ],
)
def test_it_is_said_how_maps_are_finished(tmp_path, monkeypatch, capsys, network, formula, said):
    def refuse(*arguments, **settings):
        raise InputError('no search is made')

    monkeypatch.setattr(crystal_solver, 'solve_crystal', refuse)
    arguments = settings(network=network, formula=formula), 0, tmp_path / 'out', write_input(tmp_path)
    assert 'no search is made' in refusal(solve_crystal_file, *arguments)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('maps are finished')]
    assert len(lines) == bool(said)
    assert all(line.startswith(said) for line in lines)


def test_flags_lead_and_contradictions_are_noted(tmp_path):
    path = write_input(tmp_path, INS.replace('SYMM -X,.5+Y,.5-Z\n', ''))
    lines = describe(*read_and_prepare(path, settings(cell='5.1 6.2 7.3 90 99.5 90', formula='SO', laue='-1')))
    assert '(given)' in lines[0]
    assert 'Laue class -1, as asked for' in lines[1]
    noted = describe(*read_and_prepare(path, settings()))[3]
    assert noted.startswith('note: the file claims the Laue class -1, the data show 2/m')
    line = refusal(read_and_prepare, path, settings(laue='6/m'))
    assert line == f"{path}: laue is '6/m'; it must be one that the lattice allows: -1, 2/m"


def test_the_formula_of_the_files_can_be_left_out(tmp_path):
    crystal, prepared = read_and_prepare(write_input(tmp_path), settings(formula='any'))
    assert (crystal.claims.contents, crystal.claims.elements) == (None, ())
    assert (prepared.data.formula, prepared.data.elements) == (None, ())
    assert crystal.claims.symops and describe(crystal, prepared)[0].endswith('contents unknown')


def test_cards_that_contradict_what_is_found_are_named_with_it(tmp_path):
    crystal = read_crystal(write_input(tmp_path))
    assert name_contradictions(crystal, SOLUTION) == []
    wrong = INS.replace('made up', 'made up in P2(1)').replace('.5-Z', '-Z').replace('UNIT 4 4', 'UNIT 4 12')
    crystal = read_crystal(write_input(tmp_path, wrong))
    assert crystal.claims.notes == ('TITL says P2(1), LATT and SYMM say P 1 21/m 1',)
    assert name_contradictions(crystal, SOLUTION) == [
        'the files claim the space group P 1 21/m 1, but the phases show P 1 21/c 1',
        'the files claim S4 O12 in the cell, without hydrogen, but the atoms found are S4 O4',
    ]
    doubtful = dataclasses.replace(SOLUTION, verdict='uncertain', space_group=dataclasses.replace(GROUP, certain=False))
    assert name_contradictions(crystal, doubtful) == []
    _, prepared = read_and_prepare(tmp_path / 'a.hkl', settings())
    write_results(crystal, prepared, SOLUTION, tmp_path, 0)
    assert len(json.loads((tmp_path / 'a.json').read_text(encoding='utf-8'))['warnings']) == 3


def test_a_cell_that_is_given_has_not_the_uncertainties_of_another(tmp_path):
    path = write_input(tmp_path, INS.replace('LATT', 'ZERR 4 .001 .002 .003 0 .04 0\nLATT'))
    assert read_crystal(path).claims.cell_sigmas == (0.001, 0.002, 0.003, 0, 0.04, 0)
    crystal, prepared = read_and_prepare(path, settings(cell='5.1 6.2 7.3 90 99.5 90'))
    assert (crystal.claims.cell_sigmas, crystal.claims.formula_units) == (None, 4)
    write_results(crystal, prepared, SOLUTION, tmp_path, 0)
    words = (tmp_path / 'a.res').read_text(encoding='ascii').splitlines()[2].split()
    assert (words[:2], set(map(float, words[2:]))) == (['ZERR', '4.00'], {0.0})


def test_all_files_of_a_solution_are_written_and_the_reflections_byte_for_byte(tmp_path):
    path = write_input(tmp_path / 'in')
    crystal, prepared = read_and_prepare(path, settings())
    output = tmp_path / 'out'
    output.mkdir()
    written = write_results(crystal, prepared, SOLUTION, output, 7)
    assert sorted(each.name for each in written) == sorted(each.name for each in output.iterdir())
    assert {each.name for each in written} == {'a.json', 'a.html', 'a.res', 'a.hkl', 'a.cif', 'a.png', 'a_density.ccp4'}
    assert (output / 'a.hkl').read_bytes() == path.read_bytes()
    report = json.loads((output / 'a.json').read_text(encoding='utf-8'))
    assert (report['verdict'], report['space_group']['number'], len(report['atoms'])) == ('solved', 14, 2)
    assert (report['seed'], report['laue_class'], report['reflections']['unique']) == (7, '2/m', len(prepared.data.hkl))
    again, merged = read_and_prepare(output / 'a.hkl', settings())  # with the .res beside it
    assert again.claims.cell == crystal.claims.cell
    assert set(again.claims.symops) == set(GROUP.symops)
    np.testing.assert_array_equal(merged.data.hkl, prepared.data.hkl)


def test_an_earlier_result_is_replaced_and_nothing_else(tmp_path):
    crystal, prepared = read_and_prepare(write_input(tmp_path / 'in'), settings())
    output = tmp_path / 'out'
    output.mkdir()
    write_results(crystal, prepared, SOLUTION, output, 0)
    nothing = dataclasses.replace(SOLUTION, verdict='not solved', space_group=None, atoms=(), density=None)
    assert [each.name for each in write_results(crystal, prepared, nothing, output, 0)] == ['a.json', 'a.html']
    assert sorted(each.name for each in output.iterdir()) == ['a.html', 'a.json']
    assert json.loads((output / 'a.json').read_text(encoding='utf-8'))['files'].keys() == {'.html'}
    (output / 'a.json').write_text('{}', encoding='utf-8')
    line = refusal(write_results, crystal, prepared, SOLUTION, output, 0)
    assert line == f'{output / "a.json"} exists and is not an earlier result; name another --output'


@pytest.mark.parametrize('ending', ['.res', '.cif', '.hkl'])
def test_a_result_that_was_refined_or_edited_is_left_alone(tmp_path, ending):
    crystal, prepared = read_and_prepare(write_input(tmp_path / 'in'), settings())
    output = tmp_path / 'out'
    output.mkdir()
    write_results(crystal, prepared, SOLUTION, output, 0)
    file = output / f'a{ending}'
    file.write_text(file.read_text(encoding='utf-8').replace('1', '2'), encoding='utf-8')
    before = {each: each.read_bytes() for each in output.iterdir()}
    message = f'{file} was refined or edited after it was written; move it away or name another --output'
    assert refusal(write_results, crystal, prepared, SOLUTION, output, 0) == message
    assert refusal(solve_crystal_file, settings(), 0, output, crystal.path) == message
    assert {each: each.read_bytes() for each in output.iterdir()} == before
    file.rename(output / 'kept')
    write_results(crystal, prepared, SOLUTION, output, 0)
    assert file.exists()


def test_a_refined_result_beside_its_input_is_left_alone(tmp_path):
    path = write_input(tmp_path)
    write_results(*read_and_prepare(path, settings()), SOLUTION, tmp_path, 0)
    (tmp_path / 'a.res').write_text('TITL refined', encoding='ascii')
    line = refusal(write_results, *read_and_prepare(path, settings()), SOLUTION, tmp_path, 0)
    assert line.startswith(f'{tmp_path / "a.res"} was refined or edited')
    assert (tmp_path / 'a.res').read_text(encoding='ascii') == 'TITL refined'


def test_nothing_is_replaced_if_a_result_cannot_be_made(tmp_path):
    crystal, prepared = read_and_prepare(write_input(tmp_path / 'in'), settings())
    output = tmp_path / 'out'
    output.mkdir()
    write_results(crystal, prepared, SOLUTION, output, 0)
    before = {each: each.read_bytes() for each in output.iterdir()}
    operations = tuple(each.triplet() for each in gemmi.SpaceGroup('P n n n:1').operations())
    odd = dataclasses.replace(SOLUTION, space_group=SpaceGroup(48, 'P n n n:1', operations, True))
    assert 'SHELX has no LATT' in refusal(write_results, crystal, prepared, odd, output, 1)
    assert {each: each.read_bytes() for each in output.iterdir()} == before


def test_results_may_stand_beside_their_input_which_is_left_alone(tmp_path):
    path = write_input(tmp_path)
    content = path.read_bytes()
    write_results(*read_and_prepare(path, settings()), SOLUTION, tmp_path, 0)
    write_results(*read_and_prepare(path, settings()), SOLUTION, tmp_path, 0)
    assert path.read_bytes() == content
    assert (tmp_path / 'a.ins').read_text(encoding='utf-8') == INS


def test_an_input_that_a_result_would_overwrite_is_left_alone_and_refused_before_it_is_solved(tmp_path):
    kept = write_input(tmp_path).read_text(encoding='utf-8').splitlines()
    records = [line for line in kept if line.strip('0 ')]
    free = [' '.join((line[:4], line[4:8], line[8:12], line[12:20], line[20:28])) for line in records]
    cell = ''.join(
        f'_cell_{tag} {value}\n'
        for tag, value in zip(
            ('length_a', 'length_b', 'length_c', 'angle_alpha', 'angle_beta', 'angle_gamma'), CELL.split(), strict=True
        )
    )
    embedded = '\n'.join(['data_a', cell, '_shelx_hkl_file', ';', *records, ';', ''])
    inputs = {'free/a.hkl': '\n'.join(free), 'cif/a.cif': embedded, 'cif_called_hkl/a.hkl': embedded}
    for name, content in inputs.items():
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(content, encoding='utf-8')
        crystal, prepared = read_and_prepare(path, settings(cell=CELL))
        message = f'{path} is the input, which a result would overwrite; name another --output'
        assert refusal(write_results, crystal, prepared, SOLUTION, path.parent, 0) == message
        assert refusal(solve_crystal_file, settings(cell=CELL), 0, path.parent, path) == message
        assert [(each.name, each.read_text(encoding='utf-8')) for each in path.parent.iterdir()] == [
            (path.name, content)
        ]


def test_the_turn_of_a_reverse_lattice_goes_into_hklf(tmp_path):
    crystal, prepared = read_and_prepare(write_input(tmp_path / 'in', INS.replace('HKLF 4', 'HKLF 4 2')), settings())
    turned = dataclasses.replace(prepared, change=np.diag([-1, -1, 1]))
    write_results(crystal, turned, SOLUTION, tmp_path, 0)
    assert 'HKLF 4 2 -1 0 0 0 -1 0 0 0 1' in (tmp_path / 'a.res').read_text(encoding='ascii').splitlines()
    free = dataclasses.replace(crystal, hkl_bytes=None)
    write_results(free, turned, SOLUTION, tmp_path, 0)
    assert 'HKLF 4' in (tmp_path / 'a.res').read_text(encoding='ascii').splitlines()
    read = read_crystal(tmp_path / 'a.hkl').measurements
    np.testing.assert_array_equal(read.hkl, crystal.measurements.hkl * [-1, -1, 1])


@pytest.fixture(scope='module')
def perovskite(tmp_path_factory):
    """The command on the perovskite that comes with the code, between two inputs that cannot be solved."""
    directory = tmp_path_factory.mktemp('perovskite')
    (directory / 'empty.hkl').write_text('', encoding='utf-8')
    bad = write_input(directory / 'bad', INS.replace('CELL', 'REM'))
    inputs = (directory / 'empty.hkl', CRYSTALS / 'perovskite.cif', bad)
    with pytest.raises(InputError) as caught, contextlib.redirect_stdout(io.StringIO()) as printed:
        experiment.run('solve', crystal_config.get_config(), directory, inputs=inputs, output=directory / 'out')
    return directory / 'out', printed.getvalue(), str(caught.value).splitlines()


def test_the_command_solves_a_measured_crystal(perovskite):
    output, printed, _ = perovskite
    report = json.loads((output / 'perovskite.json').read_text(encoding='utf-8'))
    assert (report['verdict'], report['space_group']['number'], report['starts'] >= 1) == ('solved', 221, True)
    found = {atom['element']: atom for atom in report['atoms']}
    assert {element: atom['multiplicity'] for element, atom in found.items()} == {'Cs': 1, 'Sn': 1, 'Cl': 3}
    difference = np.subtract(found['Cs']['fract'], found['Sn']['fract'])
    np.testing.assert_allclose(np.abs(difference - np.rint(difference)), 0.5, atol=1e-4)
    lines = printed.splitlines()
    assert lines[0].startswith('perovskite.cif: F² and σ(F²) of 759 reflections in fixed columns')
    assert lines[-1].startswith('perovskite: solved, P m -3 m (221), ')
    assert lines[-1].endswith('perovskite.json, .html, .res, .hkl, .cif, .png, _density.ccp4')
    density = np.array(gemmi.read_ccp4_map(str(output / 'perovskite_density.ccp4')).grid)
    for atom in report['atoms']:
        place = [round(size * fract) % size for size, fract in zip(density.shape, atom['fract'], strict=True)]
        assert density[tuple(place)] > 1.5 * density.std()


def test_the_reflections_of_a_cif_are_written_as_they_were_embedded(perovskite):
    text = (CRYSTALS / 'perovskite.cif').read_text(encoding='utf-8')
    embedded = text.partition('_shelx_hkl_file\n;\n')[2].partition('\n;')[0]
    assert (perovskite[0] / 'perovskite.hkl').read_text(encoding='utf-8').rstrip('\n') == embedded.rstrip('\n')


def test_a_bad_input_does_not_stop_the_others(perovskite):
    output, _, refused = perovskite
    assert len(refused) == 2
    assert refused[0].endswith('empty.hkl: the file is empty')
    assert 'a.hkl: no cell' in refused[1]
    assert {path.stem.removesuffix('_density') for path in output.iterdir()} == {'perovskite'}


def test_what_arrays_leave_out_is_said(monkeypatch, capsys):
    def refuse(*arguments, **settings):
        raise InputError('no search is made')

    monkeypatch.setattr(crystal_solver, 'solve_crystal', refuse)
    measured = pj.read_crystal(CRYSTALS / 'perovskite.cif').measurements
    sigmas = measured.sigmas.copy()
    sigmas[:2] = 0
    with pytest.raises(InputError, match='no search is made'):
        pj.solve_crystal(measured.hkl, measured.intensities, sigmas, (5.5592, 5.5592, 5.5592, 90, 90, 90))
    assert 'note: 2 left out: σ ≤ 0, as of a placeholder' in capsys.readouterr().err.splitlines()


def test_arrays_are_solved_like_files(perovskite):
    measured = pj.read_crystal(CRYSTALS / 'perovskite.cif').measurements
    cell = (5.5592, 5.5592, 5.5592, 90, 90, 90)
    arrays = (measured.hkl, measured.intensities, measured.sigmas)
    solution = pj.solve_crystal(*arrays, cell, wavelength=0.71073, formula='CsSnCl3')
    assert (solution.verdict, solution.space_group.number) == ('solved', 221)
    assert sorted(atom.element for atom in solution.atoms) == ['Cl', 'Cs', 'Sn']
    with pytest.raises(InputError, match='shapes of hkl, intensities and sigmas is'):
        pj.solve_crystal(measured.hkl[:, :2], *arrays[1:], cell)
    with pytest.raises(InputError, match='cell is'):
        pj.solve_crystal(*arrays, (5, 5, 5, 10, 20, 90))
    with pytest.raises(InputError, match='3 different reflections; it takes at least 10'):
        pj.solve_crystal(*(array[:3] for array in arrays), cell)
    mistakes = {'wavelength': 'Mo', 'formula': 3, 'seed': 1.5, 'laue': 3}
    for name, value in mistakes.items():
        with pytest.raises(InputError, match=f'{name} is {value!r}'):
            pj.solve_crystal(*arrays, cell, **{name: value})
    with pytest.raises(
        InputError, match='hkl: no reflections are left of 10; 10 left out: indices that are not numbers'
    ):
        pj.solve_crystal(np.full((10, 3), np.nan), *(array[:10] for array in arrays[1:]), cell)
    with pytest.raises(InputError, match='cell is None'):
        pj.solve_crystal(*arrays, None)
    with pytest.raises(InputError, match='sigmas is NoneType None'):
        pj.solve_crystal(*arrays[:2], None, cell)
    with pytest.raises(InputError, match='hkl: no reflections'):
        pj.solve_crystal(*(array[:0] for array in arrays), cell)


def test_crystals_are_only_solved_and_only_with_their_config(tmp_path):
    line = refusal(experiment.run, 'train', crystal_config.get_config(), tmp_path)
    assert line == "--mode is 'train'; it must be solve for crystals"
    path = write_input(tmp_path / 'in')
    line = refusal(experiment.run, 'solve', quick.get_config(), tmp_path, None, (path,), tmp_path / 'out')
    assert line == f'{path}: these are reflections of a crystal; solve them with --config=crystal'


def test_the_config_is_checked():
    assert settings(max_starts=3, wavelength=1.5).wavelength == 1.5
    for changes, message in (
        ({'max_starts': 0}, 'crystal.max_starts is 0; it must be 1 or more'),
        ({'max_seconds': -1.0}, 'crystal.max_seconds is -1.0; it must be a number of seconds'),
        ({'formula': 3}, 'crystal.formula is 3; it must be a word'),
        ({'celll': ''}, 'crystal has no field celll; did you mean cell?'),
    ):
        config = crystal_config.get_config().to_dict()
        config['crystal'] |= changes
        assert refusal(validate_crystal, ConfigDict(config)).startswith(message)
    with pytest.raises(ValueError, match="'x' is not a variant"):
        crystal_config.get_config('x')
