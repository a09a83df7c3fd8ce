"""The benchmark: what it compares with is the same thing, and a run of the smallest size ends with all figures."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import waves
from benchmarks.speed import convolutions, data
from benchmarks.speed.__main__ import parse_arguments, read_settings
from benchmarks.speed.experiments import base_sections
from benchmarks.speed.in_pytorch import has_torch, torch_network
from benchmarks.timing import measure
from patterson_jax.crystal.waves import cosine_and_sine
from patterson_jax.errors import InputError
from patterson_jax.networks.paper import PattersonNet
from patterson_jax.simulation.density import render
from patterson_jax.simulation.patterson import patterson_map
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving import least_squares

REPOSITORY = Path(__file__).parents[1]


def run(*flags):
    command = [sys.executable, '-m', 'benchmarks.speed', *map(str, flags)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


@pytest.mark.parametrize('target', ['both', 'original'])
def test_numpy_makes_the_same_maps(target):
    problem = Problem.of(grid_size=20, num_atoms=4, atom_radius=1.3, box_edge=10.0, target=target)
    positions, patterson, map_to_learn = data.case_with_numpy(np.random.default_rng(3), problem)
    density = data.render_with_numpy(positions, problem.grid_size, problem.atom_radius)
    exact = jax.jit(render, static_argnums=(1, 2))(positions.astype(np.float32), 20, 1.3)
    error = np.max(np.abs(density - exact))
    assert error < 2e-3  # that of a sub-grid of 20³ points
    # Each term of the Patterson map is a product of two densities, which differ by no more than that.
    allowed = error * (np.sum(density) + np.sum(exact))
    assert np.max(np.abs(patterson - patterson_map(exact))) < allowed < 0.03 * np.max(patterson)
    mean = (exact + exact[::-1, ::-1, ::-1]) / 2 if target == 'both' else exact / 2
    np.testing.assert_allclose(map_to_learn, mean, atol=2e-3)


def test_numpy_draws_atoms_apart_and_centred():
    problem = Problem()
    positions = data.positions_with_numpy(np.random.default_rng(0), problem)
    first, second = np.triu_indices(problem.num_atoms, 1)
    assert np.min(np.linalg.norm(positions[first] - positions[second], axis=1)) >= problem.min_separation
    np.testing.assert_allclose(positions.mean(axis=0), 0, atol=1e-12)


@pytest.mark.parametrize('grid', [None, 8, 16, 64])
def test_sizes_make_a_problem_with_room_for_its_atoms(grid):
    problem, network, settings = base_sections({'grid': grid, 'features': 3, 'batch': 2})
    assert (problem.grid_size, network.features, settings.batch_size) == (grid or 40, 3, 2)
    assert problem.filled_fraction <= Problem().filled_fraction + 1e-9
    assert problem.num_atoms == 10 or problem.grid_size < 16


def test_torch_has_the_same_network():
    pytest.importorskip('torch')
    model = torch_network(PattersonNet())
    assert sum(each.numel() for each in model.parameters()) == 1_202_821


def test_measures_the_later_calls_only():
    calls = []
    timing = measure(lambda: calls.append(0), lambda result: None, 3, 10.0, lambda: len(calls))
    assert timing['at_rest'] == 1
    assert timing['repeats'] == 3
    assert 0 < timing['best'] <= timing['median'] < 0.1


def test_small_run(tmp_path):
    output = tmp_path / 'speed.json'
    result = run(
        '--tables=network,data', '--batches=1', '--direct-batches=', '--repeats=1', '--cell-seconds=1',
        '--grid=8', '--features=2', f'--json={output}',
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert '## network' in result.stdout
    assert '## data' in result.stdout
    figures = json.loads(output.read_text())
    assert {'device', 'cores', 'versions', 'date', 'tables'} <= figures.keys()
    assert {'python', 'jax', 'jaxlib', 'flax', 'optax'} <= figures['versions'].keys()
    assert list(figures['tables']) == ['network', 'data']
    network, maps = (figures['tables'][name]['rows'] for name in ('network', 'data'))
    assert figures['tables']['network']['settings']['grid'] == 8
    assert figures['tables']['network']['peaks']['float32']['gflop_per_second'] > 0
    ours = network[0]
    assert (ours['implementation'], ours['batch']) == ('ours', 1)
    for part in ('step', 'forward'):
        for name in ('seconds_per_example', 'examples_per_second', 'gflop_per_second', 'fraction_of_peak'):
            assert ours[f'{part}_{name}'] > 0
    assert ours['step_seconds_per_example'] * ours['step_examples_per_second'] == pytest.approx(1)
    assert {each['implementation'] for each in maps} == {'NumPy', 'ours'}
    assert all(each['maps_per_second'] > 0 for each in maps)
    assert ('not installed' in result.stdout) == (not has_torch())


@pytest.mark.parametrize(
    ('flag', 'received', 'allowed'),
    [
        ('--tables=nothing', "'nothing'", 'network, parts, data, growth, layers'),
        ('--batches=1,two', "'two'", 'whole numbers from 1'),
        ('--grid=nine', "'nine'", 'a whole number'),
        ('--cell-seconds=long', "'long'", 'a number'),
        ('--grid=9', '9', 'even number'),
        ('--json=/nowhere/at/all.json', "'/nowhere/at/all.json'", 'a directory that exists'),
    ],
)
def test_wrong_flags_are_named(flag, received, allowed):
    with pytest.raises(InputError) as caught:
        read_settings(parse_arguments([flag]))
    assert str(caught.value).startswith(f'{flag.partition("=")[0]} is {received}; it must be ')
    assert allowed in str(caught.value)


def test_every_part_of_a_spectral_convolution_is_timed():
    sizes = {'channels_in': 2, 'channels_out': 3, 'kernel': 3, 'size': 6, 'batch': 1}
    found = convolutions.parts_cell(sizes | {'repeats': 1, 'seconds': 0.01})
    assert set(found) < set(convolutions.PARTS_COLUMNS) and all(seconds > 0 for seconds in found.values())


def test_both_ways_to_take_cosine_and_sine_are_measured_and_ours_are_back_afterwards():
    used = []

    def task():
        used.append(least_squares.cosine_and_sine)
        return waves.phases_alone()

    pair = waves.measure_pair(task, repeats=1, seconds=0.1)
    assert used == [cosine_and_sine, waves.by_xla] and least_squares.cosine_and_sine is cosine_and_sine
    assert pair['ratio'] == pair['xla'] / pair['ours'] > 0
