"""One map as it comes from outside: its number of atoms, and what of it the solver is told."""

import dataclasses

import jax
import numpy as np
import pytest

from patterson_jax.errors import InputError
from patterson_jax.simulation.examples import make_batch, stream_key
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving import map_solver
from patterson_jax.solving.attempt import Network
from patterson_jax.solving.map_solver import SolveSettings, likely_numbers, solve_map
from patterson_jax.solving.separation import SeparationSettings

SMALL = Problem(grid_size=16, num_atoms=3, min_separation=2.4, box_edge=5.5)


def maps(problem, count):
    make = jax.jit(make_batch, static_argnums=3)
    return np.asarray(make(stream_key(0, 'calibration'), 0, np.arange(count), problem).patterson)


@pytest.mark.parametrize(
    ('number', 'noise', 'resolution'), [(2, 0.0, None), (10, 0.0, None), (10, 0.3, None), (10, 0.0, 8.0)]
)
def test_the_number_of_atoms_is_nearly_what_the_origin_peak_says(number, noise, resolution):
    problem = Problem.of(num_atoms=number, noise=noise, resolution=resolution)
    unknown = dataclasses.replace(problem, num_atoms=1)
    for patterson in maps(problem, 3):
        numbers = likely_numbers(patterson, unknown)
        assert number in numbers[:3] and min(numbers) >= 1 and len(set(numbers)) == len(numbers)
        assert numbers[0] == number or noise or resolution


@pytest.mark.parametrize('values', [np.zeros((8, 8, 8)), np.ones((8, 8, 8)), -np.eye(8)[None] * np.ones((8, 1, 1))])
def test_a_map_without_a_sum_or_a_peak_has_no_number_of_atoms(values):
    with pytest.raises(InputError, match='the number of atoms cannot be told'):
        likely_numbers(values, Problem(grid_size=8, num_atoms=1, box_edge=2.0))


def test_the_resolution_that_is_given_is_the_one_that_is_solved_to():
    (values,) = maps(SMALL, 1)
    settings = SolveSettings('least_squares', 1, resolution=5.0)
    solved = solve_map(values, SMALL, settings, SeparationSettings(num_peaks=8), 0)
    assert solved.solution.resolution == solved.problem.measurement.resolution == 5
    assert (
        solve_map(values, SMALL, SolveSettings('least_squares', 1), SeparationSettings(num_peaks=8), 0).problem == SMALL
    )


def test_the_scale_of_a_map_makes_no_difference():
    (values,) = maps(SMALL, 1)
    settings, separation = SolveSettings('least_squares', 1), SeparationSettings(num_peaks=8)
    expected = solve_map(values, SMALL, settings, separation, 0).solution
    for scale in (2.0**-330, 2.0**400):
        found = solve_map(values.astype(np.float64) * scale, SMALL, settings, separation, 0).solution
        np.testing.assert_array_equal(found.positions, expected.positions)
        assert found.verdict == expected.verdict == 'solved'


@pytest.mark.parametrize(
    ('change', 'fault'),
    [
        ({'grid_size': 20}, '16 voxels along each edge, and the network was trained on 20'),
        ({'atom_radius': 1.2}, 'atom_radius is 1 voxels, and the network was trained on 1.2'),
    ],
)
def test_a_network_of_another_grid_or_atom_is_refused_or_gone_without(change, fault):
    (values,) = maps(SMALL, 1)
    network = Network(lambda params, inputs: inputs, {}, dataclasses.replace(SMALL, **change))
    separation = SeparationSettings(num_peaks=8)
    with pytest.raises(InputError, match=fault):
        solve_map(values, SMALL, SolveSettings('network', 1), separation, 0, network)
    solved = solve_map(values, SMALL, SolveSettings('auto', 1), separation, 0, network)
    assert solved.solution.method == 'least_squares'


def test_a_network_for_any_grid_is_used_where_it_suits_the_problem():
    example = jax.jit(make_batch, static_argnums=3)(stream_key(0, 'calibration'), 0, np.arange(1), SMALL)

    def too_narrow(problem):
        raise InputError('model.output_size is 4')

    for check, method in ((lambda problem: None, 'network'), (too_narrow, 'least_squares')):
        trained = dataclasses.replace(SMALL, grid_size=20)
        network = Network(lambda params, inputs: params + 0 * inputs, np.asarray(example.target), trained, check)
        settings, separation = SolveSettings('auto', 1), SeparationSettings(num_peaks=8)
        solution = solve_map(np.asarray(example.patterson[0]), SMALL, settings, separation, 0, network).solution
        assert (solution.method, solution.verdict) == (method, 'solved')
    with pytest.raises(InputError, match=r'^model\.output_size is 4$'):
        solve_map(np.asarray(example.patterson[0]), SMALL, SolveSettings('network', 1), separation, 0, network)


@pytest.mark.parametrize('failing', [{3}, set(range(10))])
def test_numbers_of_atoms_that_give_nothing_do_not_stop_the_others(monkeypatch, failing):
    """The neighbours are asked, what is left of the seconds is shared by those left, and what all took is told."""
    (values,) = maps(SMALL, 1)
    settings, separation = SolveSettings('phase_retrieval', 1, 9.0), SeparationSettings(num_peaks=8)
    found = dataclasses.replace(solve_map(values, SMALL, settings, separation, 0).solution, seconds=1.0)
    asked = []

    def solve_some(keys, pattersons, problem, search, *others, places):
        assert places >= problem.num_atoms
        asked.append((problem.num_atoms, search.max_seconds))
        if problem.num_atoms in failing:
            raise InputError('none of 1 starts gave positions that are numbers')
        return [dataclasses.replace(found, positions=found.positions[: problem.num_atoms], r_factor=0.1)]

    monkeypatch.setattr(map_solver, 'solve_maps', solve_some)
    unknown = dataclasses.replace(settings, num_atoms_known=False)
    if 1 in failing:
        with pytest.raises(InputError, match='none of 1 starts gave positions that are numbers'):
            solve_map(values, SMALL, unknown, separation, 0)
        return
    solution = solve_map(values, SMALL, unknown, separation, 0).solution
    numbers, shares = zip(*asked, strict=True)
    assert numbers[0] == 3 and len(numbers) == len(set(numbers)) > 2 and solution.seconds == len(numbers) - 1
    np.testing.assert_allclose(shares, [(9 - max(n - 1, 0)) / (len(numbers) - n) for n in range(len(numbers))])
