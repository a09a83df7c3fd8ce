"""The solver: every method on the same cases, agreement, alternatives, the budget; a network that is always right."""

import dataclasses
import functools
import itertools
import os
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patterson_jax.errors import InputError
from patterson_jax.evaluation import match_atoms
from patterson_jax.simulation.density import render
from patterson_jax.simulation.encoding import network_input, target_map
from patterson_jax.simulation.examples import example_key, make_batch, stream_key
from patterson_jax.simulation.homometry import are_congruent, example_pair, periodic_pair
from patterson_jax.simulation.patterson import patterson_map
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving import attempt, programs, solver
from patterson_jax.solving.attempt import Attempt, Network
from patterson_jax.solving.cases import Case
from patterson_jax.solving.least_squares import Finished, stages_from_map, stages_from_random
from patterson_jax.solving.limit import solutions_from_truth
from patterson_jax.solving.methods.method import Method, Proposal
from patterson_jax.solving.methods.random_starts import STARTS
from patterson_jax.solving.methods.registry import METHODS, attempts, classical_names, method_names
from patterson_jax.solving.orientations import averaged_over_orientations
from patterson_jax.solving.separation import SeparationSettings
from patterson_jax.solving.solver import Search, solve_maps

ROOT = Path(__file__).parents[1]
PROBLEM = Problem(grid_size=16, num_atoms=3, min_separation=2.4, box_edge=5.5)
NOISY = PROBLEM.changed(noise=0.6)
SEPARATION = SeparationSettings(
    num_peaks=8,
    method='annealed',
    num_swaps=300,
    num_chains=2,
    resolution=5.0,
    first_threshold=0.02,
    last_threshold=0.001,
)
SEARCH = Search('least_squares', max_attempts=4)
COUNT = 5


def cases(problem=PROBLEM, count=COUNT):
    make = jax.jit(make_batch, static_argnums=3)
    return jax.device_get(make(stream_key(0, 'calibration'), 0, np.arange(count), problem))


def keys(count=COUNT):
    return jax.vmap(lambda index: example_key(stream_key(0, 'separation'), 0, index))(jnp.arange(count))


def solve(method, examples, problem=PROBLEM, network=None, at_once=None, **changes):
    search = dataclasses.replace(SEARCH, method=method, **changes)
    maps = examples.patterson
    return solve_maps(keys(len(maps)), maps, problem, search, SEPARATION, network, at_once=at_once)


def errors(solution, positions):
    return np.asarray(jax.jit(match_atoms)(solution.positions, positions).errors)


@pytest.fixture(scope='module')
def examples():
    return cases()


@pytest.fixture(scope='module')
def least_squares(examples):
    return solve('least_squares', examples)


@pytest.mark.parametrize('method', classical_names())
def test_every_method_finds_every_atom_exactly_and_says_so(method, examples):
    for solution, positions in zip(solve(method, examples), examples.positions, strict=True):
        assert np.max(errors(solution, positions)) < 0.001
        assert solution.verdict == 'solved'
        assert solution.method == method and solution.resolution == 8
        assert max(solution.r_factor, solution.r_free) < 1e-3


def test_a_solution_does_not_depend_on_the_other_maps(examples, least_squares):
    last = jax.tree.map(lambda each: each[-1:], examples)
    alone = solve_maps(keys()[-1:], last.patterson, PROBLEM, SEARCH, SEPARATION)[0]
    assert np.max(errors(alone, least_squares[-1].positions)) < 1e-3  # either enantiomorph
    assert alone.verdict == least_squares[-1].verdict


def test_the_same_keys_give_the_same_solutions_whatever_the_scale(examples, least_squares):
    again = solve('least_squares', examples)
    scaled = solve('least_squares', examples._replace(patterson=37 * examples.patterson))
    for first, second, third in zip(least_squares, again, scaled, strict=True):
        np.testing.assert_array_equal(first.positions, second.positions)
        assert np.max(errors(first, third.positions)) < 1e-3  # either enantiomorph


def test_starts_that_agree_are_counted(least_squares):
    for solution in least_squares:
        assert 1 <= solution.agreeing <= solution.starts
        assert solution.starts % STARTS == 0
    assert max(solution.agreeing for solution in least_squares) > 1


def test_noise_that_hides_the_answer_is_not_solved_and_uses_up_the_attempts():
    problem = NOISY.changed(noise=1.0)
    scrambled = cases(problem)
    for solution in solve('least_squares', scrambled, problem.changed(noise=0.0), max_attempts=2):
        assert solution.verdict != 'solved'
        assert solution.starts == 2 * STARTS
        assert all(rival.r_factor >= solution.r_factor for rival in solution.rivals)


def test_with_noise_sets_that_are_wrong_are_not_called_solved_and_some_that_are_right_are():
    problem = PROBLEM.changed(noise=0.25)
    noisy = cases(problem, 12)
    right = []
    for solution, positions in zip(solve('least_squares', noisy, problem), noisy.positions, strict=True):
        right.append(np.max(errors(solution, positions)) <= 1)
        assert right[-1] or solution.verdict != 'solved'
        assert solution.agreeing >= 2 or solution.verdict != 'solved'
        right[-1] &= solution.verdict == 'solved'
    assert sum(right) >= 6


def test_a_network_agrees_with_itself_once(examples):
    one = jax.tree.map(lambda each: each[:1], examples)
    problem = PROBLEM.changed(noise=0.25)
    noisy = jax.tree.map(lambda each: each[:1], cases(problem))
    network = Network(lambda params, inputs: jnp.broadcast_to(params, inputs.shape), noisy.target)
    solution = solve('network', noisy, problem, network)[0]
    assert (solution.agreeing, solution.starts, solution.verdict) == (1, SEARCH.max_attempts, 'uncertain')
    assert np.max(errors(solution, one.positions[0])) < 1  # the same atoms as without noise


def test_what_lies_beyond_the_resolution_is_not_looked_at(examples):
    """Separation would compare up to |h| = 5; the map has nothing beyond 4."""
    problem = PROBLEM.changed(resolution=4.0)
    cut = cases(problem)
    for solution, positions in zip(solve('minimum_function', cut, problem), cut.positions, strict=True):
        assert solution.resolution == 4
        assert np.max(errors(solution, positions)) < 0.01 and solution.verdict == 'solved'


def test_maps_are_solved_alike_one_by_one_and_several_at_once(examples, least_squares):
    together = solve('least_squares', examples, at_once=4)  # four, then one
    for first, second in zip(least_squares, together, strict=True):
        assert np.max(errors(first, second.positions)) < 1e-3  # either enantiomorph
        assert (first.verdict, first.method, first.starts) == (second.verdict, second.method, second.starts)


class Clock:
    """A time that passes only in attempts, a second in each; notes for how many maps they are."""

    def __init__(self, monkeypatch):
        self.now, self.sizes, run_attempt = 0.0, [], solver.run_attempt
        monkeypatch.setattr(programs.time, 'perf_counter', lambda: self.now)
        monkeypatch.setattr(programs, '_compilations', [])

        def timed(*given):
            self.now += 1
            self.sizes.append(len(given[5]))
            return run_attempt(*given)

        monkeypatch.setattr(solver, 'run_attempt', timed)


def test_seconds_are_wall_time_and_survivors_have_programs_of_their_size(monkeypatch, examples):
    """Of five maps one has nothing but noise, and is left over for later attempts."""
    clock = Clock(monkeypatch)
    maps = examples.patterson.copy()
    maps[3] = cases(PROBLEM.changed(noise=1.0), 4).patterson[3]
    solutions = solve('least_squares', examples._replace(patterson=maps), at_once=4, max_attempts=3)
    assert clock.sizes == [4, 1, 1, 1]
    assert [each.seconds for each in solutions] == [0.25, 0.25, 0.25, 0.25 + 2, 1]
    assert sum(each.seconds for each in solutions) == clock.now


def test_a_late_survivor_has_no_longer_budget(monkeypatch, examples):
    """Three of four maps are solved at once; the fourth has nothing but noise, and its attempts are its own seconds."""
    clock = Clock(monkeypatch)
    maps = examples.patterson[:4].copy()
    maps[3] = cases(PROBLEM.changed(noise=1.0), 4).patterson[3]
    search = {'at_once': 4, 'max_attempts': 20, 'max_seconds': 3.0}
    solutions = solve('least_squares', examples._replace(patterson=maps), **search)
    assert clock.sizes == [4, 1, 1]  # a fourth might end at 3.25; by shares of a quarter there would be twelve
    assert [each.seconds for each in solutions] == [0.25, 0.25, 0.25, 0.25 + 2]
    assert sum(each.seconds for each in solutions) == clock.now


def test_the_seconds_of_all_maps_are_nearly_all_of_the_wall_time(examples):
    solve('least_squares', examples)  # compiles
    began = time.perf_counter()
    solutions = solve('least_squares', examples)
    wall = time.perf_counter() - began
    assert 0.5 * wall < sum(each.seconds for each in solutions) <= wall


def test_a_network_that_gives_no_numbers_is_passed_over_or_named(examples):
    one = jax.tree.map(lambda each: each[:1], examples)
    network = Network(lambda params, inputs: jnp.broadcast_to(params, inputs.shape), np.full_like(one.target, np.nan))
    solution = solve('auto', one, network=network)[0]
    assert solution.verdict == 'solved' and solution.method != 'network'
    assert np.max(errors(solution, one.positions[0])) < 0.001
    with pytest.raises(InputError, match='none of 2 starts gave positions that are numbers'):
        solve('network', one, network=network, max_attempts=2)


def test_the_method_that_is_named_is_the_one_whose_atoms_are_shown(examples):
    """The network nearly finds the atoms; what is shown in the end is what least squares made exact."""
    case, atoms = Case(PROBLEM), np.asarray(examples.positions[0])
    for method, error, r_factor in (('network', 0.01, 0.02), ('least_squares', 0, 1e-6), ('phase_retrieval', 0, 9e-7)):
        finished = Finished(atoms + np.float32(error), np.array(r_factor), np.array(r_factor))
        case.add(Attempt((finished,), np.array(False), np.array(1), None), method, 1, 0.0)
    (only,) = case.found
    assert (only.method, only.r_factor, only.agreeing) == ('least_squares', 1e-6, 3)


DOUBLE = """
import jax, patterson_jax as pj
patterson = pj.simulate([[0.0, 1.1, 0.4], [2.6, -0.5, 0.3], [-2.6, -0.6, -0.7]], grid_size=16).patterson
answer = pj.solve(patterson, 3, method='phase_retrieval', max_attempts=1)
print(jax.config.jax_enable_x64, answer.positions_voxels.dtype, answer.r_factor < 1e-3)
"""


def test_double_precision_elsewhere_does_no_harm():
    """In a process of its own, where nothing is compiled yet for single precision."""
    environment = os.environ | {'JAX_ENABLE_X64': '1'}
    command = [sys.executable, '-c', DOUBLE]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ['True', 'float32', 'True']


def test_no_attempt_begins_that_might_not_end_in_time():
    solutions = solve('least_squares', cases(NOISY), PROBLEM, max_attempts=9, max_seconds=1e-6)
    assert {solution.starts for solution in solutions} == {STARTS}


def test_auto_asks_the_network_once_and_then_the_classical_methods_in_turn():
    def first(count, name, has_network):
        return [(method.name, number) for method, number in itertools.islice(attempts(name, has_network), count)]

    turns = [(method, number) for number in range(3) for method in classical_names()]
    assert first(8, 'auto', True) == [('network', 0), *turns[:7]]
    assert first(8, 'auto', False) == turns[:8]
    assert first(2, 'phase_retrieval', True) == [('phase_retrieval', 0), ('phase_retrieval', 1)]


def test_methods_have_random_numbers_of_their_own():
    """To change a stream is to change every answer of its method."""
    streams = {name: method.stream for name, method in METHODS.items()}
    assert streams == {'network': 0, 'least_squares': 1, 'phase_retrieval': 2, 'minimum_function': 3}
    assert all(name == method.name for name, method in METHODS.items())


@functools.cache
def shapes_of(function, structure, shapes, choices):
    """Of what a program gives; most programs are the same for all methods."""
    return jax.eval_shape(functools.partial(function, **dict(choices)), *jax.tree.unflatten(structure, shapes))


@pytest.mark.parametrize('name', METHODS)
def test_what_makes_no_difference_makes_no_other_program(name, monkeypatch):
    """Nothing is compiled here: what would be is noted."""
    made, method, problem = set(), METHODS[name], PROBLEM.changed(resolution=6.0)

    def noted(*key):
        made.add(key)
        program = Future()
        program.set_result(lambda *_: jax.tree.map(lambda each: np.zeros(each.shape, each.dtype), shapes_of(*key)))
        return program

    monkeypatch.setattr(programs, '_program', noted)
    monkeypatch.setattr(attempt, 'EXPLAINED', 0.0)  # so that every set is rebuilt
    network = Network(broadcast, np.zeros((16, 16, 16), np.float32)) if method.needs_network else None

    def added(problem=problem, separation=SEPARATION, number=0, places=None):
        before = made.copy()
        maps = np.zeros((1, 16, 16, 16), np.float32)
        attempt.run_attempt(method, number, problem, separation, network, keys(1), maps, places=places)
        names = [function.__name__ for function, *_ in made - before]
        assert len(names) == len(set(names))  # what is begun is what is called
        return set(names)

    first = added()
    predicts = {'predict_all'} if method.needs_network else set()
    assert first == {'measure_all', 'propose_all', 'refine_all', 'choose_all', 'rebuild_all', 'finish_all'} | predicts
    for same in (
        {'noise': 0.3},
        {'min_separation': 1.0},
        {'centred': False},
        {'target': 'original'},
        {'resolution': 5.1},  # which ends between |h| of 5 and 6 as well
    ):
        assert not added(problem.changed(**same))
    assert not added(number=1)
    for told in ({'input_scale': 1.0}, {'origin': 'corner'}):
        assert added(problem.changed(**told)) == predicts
    separates = {'propose_all'} if method.separates else set()
    assert added(separation=dataclasses.replace(SEPARATION, num_swaps=7)) == separates
    assert added(problem.changed(box_edge=5.0)) == {'propose_all', 'rebuild_all', 'finish_all'}
    assert added(problem.changed(resolution=6.1)) == first - predicts - {'choose_all'}
    assert added(problem.changed(atom_radius=1.1)) == {'measure_all', 'propose_all', 'rebuild_all', 'finish_all'}
    assert added(places=5) == first - predicts - {'measure_all'}
    assert not added(problem.changed(num_atoms=4), places=5)
    assert added(problem.changed(num_atoms=4)) == first - predicts - {'measure_all'}


def broadcast(params, inputs):
    return jnp.broadcast_to(params, inputs.shape)


def test_a_known_shape_and_another_number_of_atoms_compile_nothing(examples):
    """What JAX compiles is counted, whatever it is for."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    cut = PROBLEM.changed(resolution=4.6)
    pair = cases(dataclasses.replace(cut, num_atoms=2))
    for problem, of in ((cut, examples), (PROBLEM.changed(num_atoms=2, resolution=4.3), pair)):
        compiled.clear()
        solution = solve_maps(keys(1), of.patterson[:1], problem, SEARCH, SEPARATION, places=4)[0]
        assert len(solution.positions) == problem.num_atoms
    assert not [name for name in compiled if 'backend_compile' in name]


def test_a_new_method_is_one_function_and_one_line_of_the_registry(monkeypatch, examples):
    """It begins with the truth and its inverse, a little off, and with atoms at random."""
    near = jnp.asarray(examples.positions[0] + np.float32(0.1))
    near = near - jnp.mean(near, axis=0, keepdims=True)

    def propose(request):
        wrong = jax.random.uniform(request.key, near.shape, minval=-2, maxval=2)
        return Proposal(jnp.stack([wrong, near, -near]), stages_from_map(request.measured, request.problem))

    def independent(positions, number):
        return jnp.array([False, True, True])

    method = Method('hindsight', stream=99, starts=3, propose=propose, independent=independent)
    monkeypatch.setitem(METHODS, method.name, method)
    one = jax.tree.map(lambda each: each[:1], examples)
    (solution,) = solve('hindsight', one, max_attempts=1)
    assert 'hindsight' in method_names() and 'hindsight' in classical_names()
    assert (solution.verdict, solution.method, solution.starts, solution.agreeing) == ('solved', 'hindsight', 3, 2)
    assert np.max(errors(solution, one.positions[0])) < 0.001


def test_a_network_that_is_right_is_refined_to_the_truth_and_its_map_is_kept(examples):
    one = jax.tree.map(lambda each: each[:1], examples)
    network = Network(lambda params, inputs: jnp.broadcast_to(params, inputs.shape), one.target)
    for method in ('network', 'auto'):
        solution = solve(method, one, network=network)[0]
        assert solution.method == 'network' and solution.verdict == 'solved'
        assert np.max(errors(solution, one.positions[0])) < 0.001
        np.testing.assert_array_equal(solution.prediction.density, one.target[0])
        assert solution.prediction.candidates.shape == (2 * SEPARATION.num_peaks, 3)
        assert solution.prediction.heights.shape == (SEPARATION.num_peaks,)


def test_the_network_is_shown_a_map_in_as_many_orientations_as_are_asked_for(examples):
    one = jax.tree.map(lambda each: each[:1], examples)
    network = Network(lambda params, inputs: params * jnp.tanh(inputs), one.target)
    solution = solve('network', one, network=network, max_attempts=1, orientations=3)[0]
    predict = averaged_over_orientations(lambda inputs: network.apply(network.params, inputs), 3)
    expected = predict(network_input(one.patterson, PROBLEM.num_atoms, PROBLEM.encoding))[0]
    np.testing.assert_allclose(solution.prediction.density, expected, atol=1e-6)
    assert (
        np.max(
            np.abs(
                expected
                - network.apply(one.target, network_input(one.patterson, PROBLEM.num_atoms, PROBLEM.encoding))[0]
            )
        )
        > 1e-3
    )


def test_an_atom_that_is_missing_from_the_networks_map_is_put_where_the_data_miss_it(examples):
    one = jax.tree.map(lambda each: each[:1], examples)
    left = jax.jit(lambda positions: target_map(render(positions, 16, 1.0), PROBLEM.encoding))(one.positions[0, 1:])
    network = Network(lambda params, inputs: jnp.broadcast_to(params, inputs.shape), left)
    solution = solve('network', one, network=network)[0]
    assert solution.verdict == 'solved'
    assert np.max(errors(solution, one.positions[0])) < 0.001


@pytest.mark.parametrize('lost', [False, True])
def test_a_set_that_was_rebuilt_into_another_has_no_agreement_and_a_right_one_keeps_it(lost, monkeypatch):
    """Rebuilding lowers the misfit of the right set a little, and gives its atoms in another order."""
    monkeypatch.setattr(attempt, 'EXPLAINED', 0.0)  # so that right sets are rebuilt too
    problem = Problem(grid_size=24, num_atoms=6, min_separation=2.0, box_edge=9.0)
    noisy = cases(problem.changed(noise=0.15), 1)
    true = noisy.positions[0]
    wrong = np.where(np.arange(6)[:, None] == 5, np.float32([3, -3, 3]), np.float32(0)) * np.float32(lost)

    def propose(request):
        stages = stages_from_map if lost else stages_from_random  # the latter might find the lost atom
        positions = jnp.stack([true + wrong, true + wrong + np.float32(0.01)])
        return Proposal(positions, stages(request.measured, request.problem))

    method = Method('given', stream=9, starts=2, propose=propose)
    found = attempt.run_attempt(method, 0, problem, SEPARATION, None, keys(1), noisy.patterson)
    assert int(found.agreeing[0]) == (1 if lost else 2)
    rebuilt = Case(problem)
    rebuilt.add(jax.tree.map(lambda each: np.asarray(each)[0], found), 'given', 2, 1.0)
    assert np.max(errors(rebuilt.solution(), true)) < 0.3


def test_auto_goes_on_when_the_network_is_wrong(examples, monkeypatch):
    monkeypatch.setattr(attempt, 'EXPLAINED', np.inf)  # else so few atoms would come to their places all the same
    one = jax.tree.map(lambda each: each[:1], examples)
    network = Network(lambda params, inputs: jnp.broadcast_to(params, inputs.shape), np.zeros_like(one.target))
    solution = solve('auto', one, network=network)[0]
    assert solution.verdict == 'solved' and solution.starts > 1
    assert np.max(errors(solution, one.positions[0])) < 0.001


@jax.jit
def map_of(positions):
    return patterson_map(render(positions, 40, 1.0))


def test_of_a_homometric_pair_both_sets_come_back_and_compilation_is_not_counted(monkeypatch):
    """By one start: that the other set is as good follows from the first one being of the form U + V."""
    compiling, clock = [], time.perf_counter

    class Slow:
        """Compiles when it is waited for, and takes long."""

        def __init__(self, compile_):
            self.compile_, self.program = compile_, None

        def done(self):
            return self.program is not None

        def result(self):
            if not self.done():
                compiling.append(1000.0)
                self.program = self.compile_()
            return self.program

    programs._program.cache_clear()
    monkeypatch.setattr(programs, '_compiler', SimpleNamespace(submit=Slow))
    monkeypatch.setattr(programs.time, 'perf_counter', lambda: clock() + sum(compiling))
    problem = Problem(num_atoms=9)
    pair = example_pair(problem)
    search = dataclasses.replace(SEARCH, method='phase_retrieval')
    for positions in pair:
        given = np.asarray(map_of(jnp.asarray(positions, jnp.float32)))
        solution = solve_maps(keys(1), given[None], problem, search, SEPARATION)[0]
        found = [solution.positions, *solution.alternatives]
        assert solution.verdict == 'uncertain' and len(found) == 2
        assert compiling and solution.seconds < 1000
        for true in pair:
            assert [are_congruent(each, true, 0.05) for each in found].count(True) == 1


def test_the_ambiguity_of_a_small_cell_is_gone_in_a_large_one():
    """The paper's Figure 4: two sets with the same map in a cell of 16 voxels, solved in one of 40."""
    problem = Problem(num_atoms=4, box_edge=13.0)
    search = dataclasses.replace(SEARCH, method='phase_retrieval')
    pair = [each - np.mean(each, axis=0) for each in periodic_pair(16)]
    for positions, other in itertools.permutations(pair):
        given = np.asarray(map_of(jnp.asarray(positions, jnp.float32)))
        solution = solve_maps(keys(1), given[None], problem, search, SEPARATION)[0]
        assert solution.verdict == 'solved' and not solution.alternatives
        assert are_congruent(solution.positions, positions, 0.02)
        assert not are_congruent(solution.positions, other, 0.5)


def test_clean_data_keep_the_truth_and_noise_moves_it(examples):
    kept = solutions_from_truth(examples.patterson, examples.positions, PROBLEM)
    for solution, true in zip(kept, examples.positions, strict=True):
        assert solution.verdict == 'solved' and solution.method == 'truth' and solution.starts == 1
        assert np.max(errors(solution, true)) < 1e-4
    noisy = cases(PROBLEM.changed(noise=1.0))
    moved = solutions_from_truth(noisy.patterson, noisy.positions, PROBLEM)
    assert all(solution.verdict != 'solved' for solution in moved)
    assert max(np.max(errors(*pair)) for pair in zip(moved, noisy.positions, strict=True)) > 0.05
