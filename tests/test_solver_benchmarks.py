"""The benchmarks of solvers, on one small cell: a run is resumed, verdicts are counted, mistakes are one line."""

import argparse
import json
import math

import pytest

from benchmarks import solvers, verdicts
from benchmarks.frontier import draw_frontier, wilson_interval
from patterson_jax.errors import InputError
from patterson_jax.simulation.problem import Problem

CELL = (2, 8.0, 0.0)


@pytest.fixture(scope='module')
def output(tmp_path_factory):
    return tmp_path_factory.mktemp('frontier') / 'frontier.json'


def options(output, *more):
    flags = ('--methods=least_squares', '--atoms=2', '--resolutions=8', '--noises=0', '--cases=2', f'--json={output}')
    return solvers.parse_arguments([*flags, *more])


def test_cells_are_the_papers_problem_as_full_with_other_atoms_and_poorer_data():
    assert solvers.cell_problem(10, None, 0.0) == Problem()
    for atoms in (20, 40):
        problem = solvers.cell_problem(atoms, 8.0, 0.3)
        assert (problem.num_atoms, problem.measurement.resolution, problem.measurement.noise) == (atoms, 8.0, 0.3)
        assert problem.box_edge**3 / atoms == pytest.approx(Problem().box_edge ** 3 / 10)


def test_a_cell_is_measured_once_and_again_when_the_settings_change(output, capsys):
    first = solvers.run(options(output), output)
    (cell,) = json.loads(output.read_text())['cells']
    assert [cell] == first
    assert (cell['solved'], cell['recall'], cell['cases']) == (2, 1.0, 2)
    assert cell['verdict']['solved'] == {'right': 2, 'wrong': 0}
    before = output.read_bytes()
    capsys.readouterr()
    assert solvers.run(options(output), output) == first
    assert output.read_bytes() == before and '|' not in capsys.readouterr().err
    (again,) = solvers.run(options(output, '--cases=1'), output)
    assert again['cases'] == 1
    with pytest.raises(InputError, match='orientations is 25; it must be a whole number from 1 to 24'):
        solvers.run(options(output, '--orientations=25', '--noises=0.1'), output)


def test_the_table_and_the_figure_have_every_cell(output, tmp_path):
    cells = solvers.run(options(output), output)
    lines = solvers.table(cells).splitlines()
    assert len(lines) == 2 + len(cells) and lines[2].startswith(
        '| 2 | 8.0 | 0% | least squares | 1.000 | 2 / 2 | 2, 0 |'
    )
    draw_frontier(tmp_path / 'frontier.png', cells)
    assert (tmp_path / 'frontier.png').stat().st_size > 10_000


@pytest.mark.parametrize(('count', 'trials'), [(0, 30), (7, 30), (30, 30), (1, 1)])
def test_the_interval_ends_where_the_count_would_be_1_96_deviations_away(count, trials):
    low, high = wilson_interval(count, trials)
    assert 0 <= low <= count / trials <= high <= 1
    for end in {low, high} - {0.0, 1.0}:
        away = abs(count / trials - end) / math.sqrt(end * (1 - end) / trials)
        assert away == pytest.approx(1.959964)


def test_verdicts_are_counted_against_the_truth():
    settings = argparse.Namespace(stream='calibration', cases=2, attempts=1, method='least_squares')
    words = verdicts.measure_cell(settings, *CELL)
    assert words[:4] == (2, 8.0, '0%', '0.000') and len(words) == len(verdicts.COLUMNS)
    assert words[7] == 'solved 2 right 0 wrong, uncertain 0 right 0 wrong, not solved 0 right 0 wrong'


@pytest.mark.parametrize('flag', ['--methods=neural', '--atoms=many', '--resolutions=high', '--noises=loud'])
def test_a_wrong_flag_ends_with_status_2_and_is_named(flag, output, capsys):
    with pytest.raises(SystemExit) as stop:
        options(output, flag)
    assert stop.value.code == 2
    assert flag.partition('=')[0] in capsys.readouterr().err.splitlines()[-1]
