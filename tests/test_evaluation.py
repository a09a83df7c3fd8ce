import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patterson_jax import evaluation
from patterson_jax.evaluation import EvaluationSettings, describe_scores, evaluate
from patterson_jax.figures import draw_errors, draw_maps
from patterson_jax.networks.paper import PattersonNet
from patterson_jax.simulation.encoding import network_input
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.attempt import Network
from patterson_jax.solving.methods.registry import method_names
from patterson_jax.solving.orientations import averaged_over_orientations
from patterson_jax.solving.separation import SeparationSettings
from patterson_jax.solving.solver import Search

PROBLEM = Problem(grid_size=12, num_atoms=3, min_separation=2.4, box_edge=5.0)
NETWORK = PattersonNet(
    features=2, outer_kernel_size=3, inner_kernel_size=3, encoder_depth=1, inner_depth=1, decoder_depth=1
)
SEPARATION = SeparationSettings(
    num_peaks=6,
    method='annealed',
    num_swaps=50,
    num_chains=1,
    resolution=4.0,
    first_threshold=0.02,
    last_threshold=0.001,
)
SOLVING = Search(method='auto', max_attempts=1)
match_atoms = jax.jit(evaluation.match_atoms)
match_in_place = jax.jit(lambda found, true: evaluation.match_atoms(found, true, translate=False))
TRUE = np.random.default_rng(0).uniform(-6, 6, (10, 3)).astype(np.float32)


def test_exact_atoms_match_in_any_order():
    match = match_atoms(jnp.asarray(TRUE[::-1].copy()), jnp.asarray(TRUE))
    assert np.all(match.within)
    np.testing.assert_allclose(match.errors, 0, atol=1e-5)


def test_the_other_enantiomorph_at_another_origin_matches_too():
    moved = -TRUE + np.array([3.0, -2.0, 5.0], np.float32)
    match = match_atoms(jnp.asarray(moved), jnp.asarray(TRUE))
    assert np.all(match.within)
    np.testing.assert_allclose(match.errors, 0, atol=1e-4)


def test_without_translation_only_the_sign_is_chosen():
    found = -TRUE + np.array([0.5, 0.0, 0.0], np.float32)
    match = match_in_place(jnp.asarray(found), jnp.asarray(TRUE))
    np.testing.assert_allclose(match.aligned, -found, atol=1e-6)
    np.testing.assert_allclose(match.errors, 0.5, atol=1e-5)


def test_one_wrong_atom_does_not_move_the_others():
    found = TRUE.copy()
    found[0] += np.array([0.0, 8.0, 0.0], np.float32)
    match = match_atoms(jnp.asarray(found), jnp.asarray(TRUE))
    assert not match.within[0] and np.all(match.within[1:])
    np.testing.assert_allclose(match.errors[1:], 0, atol=1e-3)


def test_only_mutually_nearest_atoms_are_pairs():
    true = jnp.array([[0.0, 0.0, 0.0], [10.0, 0.0, 0.0], [0.0, 10.0, 0.0]])
    found = jnp.array([[0.1, 0.0, 0.0], [0.2, 0.0, 0.0], [0.0, 10.0, 0.0]])
    match = match_atoms(found, true)
    assert np.asarray(match.within).tolist() == [True, False, True]


@pytest.mark.parametrize('seed', range(3))
def test_pairs_are_those_of_a_brute_force(seed):
    rng = np.random.default_rng(seed)
    true, found = rng.normal(0, 3, (2, 8, 3)).astype(np.float32)
    match = match_atoms(jnp.asarray(found), jnp.asarray(true))
    distances = np.linalg.norm(true[:, None] - np.asarray(match.aligned)[None], axis=-1)
    pairs = [distances[:, distances[row].argmin()].argmin() == row for row in range(8)]
    np.testing.assert_array_equal(match.paired, pairs)
    np.testing.assert_allclose(match.errors, distances.min(1), rtol=1e-5)


@pytest.fixture(scope='module')
def params():
    return jax.jit(NETWORK.init)(jax.random.key(0), jnp.zeros((1, 12, 12, 12)))


def scored(params, num_cases, batch_size, problem=PROBLEM, num_shown=7, methods='', solving=SOLVING):
    settings = EvaluationSettings(num_cases, batch_size, methods)
    network = params and Network(NETWORK.apply, params)
    return evaluate(problem, SEPARATION, solving, settings, seed=3, network=network, num_shown=num_shown)


def without_timings(report):
    return {
        name: {field: value for field, value in scores.items() if field != 'seconds_per_case'}
        if isinstance(scores, dict)
        else scores
        for name, scores in report.items()
    }


@pytest.fixture(scope='module')
def ten(params):
    """Scores of ten cases, the paper's procedure alone, four at once."""
    return scored(params, 10, 4)


@pytest.fixture(scope='module')
def in_orientations(params):
    """The same of four cases, where the network is shown them in one orientation and in two."""
    return {
        number: scored(params, 4, 4, solving=dataclasses.replace(SOLVING, orientations=number)) for number in (1, 2)
    }


def test_report_is_the_same_again_and_does_not_depend_on_the_batch(params, ten):
    first, again, whole = ten, scored(params, 10, 4), scored(params, 10, 10)
    assert without_timings(first[0]) == without_timings(again[0]) == without_timings(whole[0])
    np.testing.assert_allclose(first[1].examples.positions, whole[1].examples.positions)


def test_the_scores_are_of_the_mean_map_of_all_orientations_asked_for(params, in_orientations):
    (other, _), (report, shown) = in_orientations.values()
    predict = jax.jit(averaged_over_orientations(functools.partial(NETWORK.apply, params), 2))
    expected = predict(network_input(shown.examples.patterson, PROBLEM.num_atoms, PROBLEM.encoding))
    np.testing.assert_allclose(shown.solutions.density, expected, atol=1e-6)
    assert report['map'] != other['map']


def test_more_orientations_are_scored_beside_the_others_as_if_alone(params, in_orientations):
    settings = EvaluationSettings(4, 4, '', more_orientations=2)
    network = Network(NETWORK.apply, params)
    report, shown = evaluate(PROBLEM, SEPARATION, SOLVING, settings, seed=3, network=network)
    more = without_timings(report).pop('in_more_orientations')
    (other, expected), (alone, _) = in_orientations.values()
    assert more['orientations'] == 2 and more['map'] == alone['map'] != other['map'] == report['map']
    assert more['separated_in_place'] == alone['separated_in_place']
    np.testing.assert_array_equal(shown.solutions.density, expected.solutions.density)


def test_report_counts_are_consistent(ten):
    report, shown = ten
    assert report['cases'] == 10 and report['atoms'] == 30
    assert sum(report['separated']['histogram']['counts']) == report['separated']['matched'] <= 30
    assert 0 <= report['random']['recall'] <= 1
    assert shown.examples.positions.shape == (7, 3, 3)
    assert shown.solutions.density.shape == (7, 12, 12, 12)
    assert shown.solutions.misfit.shape == (7, SEPARATION.num_swaps)


@pytest.fixture(scope='module')
def filled(params):
    return scored(params, 8, 8, dataclasses.replace(PROBLEM, filled_corner=1.6), num_shown=8)


def test_maps_are_scored_beside_empty_ones(filled):
    report, shown = filled
    density, target = (np.asarray(each, np.float64) for each in (shown.solutions.density, shown.examples.target))
    assert density.shape == target.shape == (8, 12, 12, 12)
    assert report['map']['mse'] == pytest.approx(np.mean((density - target) ** 2), rel=1e-5)
    assert report['map']['mse_of_empty_map'] == pytest.approx(np.mean(target**2), rel=1e-5)
    assert report['map']['mse'] != pytest.approx(report['map']['mse_of_empty_map'], rel=0.01)


def test_atoms_in_the_corner_are_scored_apart_from_the_others_where_the_network_put_them(filled):
    report, shown = filled
    match, reached = shown.match_in_place, PROBLEM.box_edge / 2 - 1.6
    scores = {'inside': [], 'elsewhere': []}
    for positions, errors, paired in zip(shown.examples.positions, match.errors, match.paired, strict=True):
        places = ['inside' if min(atom) > reached or max(atom) < -reached else 'elsewhere' for atom in positions]
        assert 'inside' in places
        for place, error, pair in zip(places, errors, paired, strict=True):
            scores[place].append((error, pair))
    for place, found in scores.items():
        errors = [error for error, pair in found if pair]
        assert report['corner'][place] == {
            'atoms': len(found),
            'recall': pytest.approx(sum(error <= 1 for error in errors) / len(found)),
            'mean_error': pytest.approx(sum(errors) / len(errors), rel=1e-5),
        }
    assert len(scores['inside']) + len(scores['elsewhere']) == report['atoms'] == 24
    assert report['corner']['inside'] != report['corner']['elsewhere']


def test_a_corner_that_training_left_empty_is_filled_in_evaluation(params, filled):
    report, shown = scored(params, 8, 8, dataclasses.replace(PROBLEM, empty_corner=1.6), num_shown=8)
    for each in (report, filled[0]):
        each['separated'].pop('seconds_per_case', None)
    assert report == filled[0]
    np.testing.assert_array_equal(shown.examples.positions, filled[1].examples.positions)


def test_without_a_corner_there_are_no_scores_of_one(ten):
    assert 'corner' not in ten[0]


def test_where_no_atom_or_pair_is_there_is_no_mean_of_them():
    problem = Problem(grid_size=12, num_atoms=1, box_edge=5.0, centred=False, filled_corner=2.0)
    positions, match = np.array([[[2.0, 2.0, 2.0]]]), (np.zeros((1, 1, 3)), np.array([[False]]), np.array([[0.5]]))
    scores = {'positions': positions, 'match_in_place': evaluation.Match(*match)}
    assert evaluation._corner_scores(scores, problem) == {
        'inside': {'atoms': 1, 'recall': 0.0, 'mean_error': None},
        'elsewhere': {'atoms': 0, 'recall': None, 'mean_error': None},
    }


def test_of_the_cases_shown_three_are_drawn_as_maps(ten, monkeypatch):
    figures = []
    monkeypatch.setattr('patterson_jax.pictures.save_figure', lambda path, figure: figures.append(figure))
    draw_maps(None, ten[1], PROBLEM)
    titles = [axes.get_title().partition(':')[0] for axes in figures[0].axes[::2]]
    assert titles == ['case 1', 'case 2', 'case 3']


@pytest.fixture(scope='module')
def classical():
    """Scores of least squares without any network."""
    return scored(None, 8, 4, methods='least_squares')


@pytest.fixture(scope='module')
def paper(params):
    """Scores of the paper's procedure alone."""
    return scored(params, 8, 4)


@pytest.fixture(scope='module')
def both(params):
    """Scores of the network and of least squares."""
    return scored(params, 8, 4, methods='network,least_squares')


def assert_counts_add_up(scores, report):
    cases, atoms = report['cases'], report['atoms']
    assert scores['verdict'].keys() == {'solved', 'uncertain', 'not solved'}
    counts = [each[kind] for each in scores['verdict'].values() for kind in ('right', 'wrong')]
    assert min(counts) >= 0 and sum(counts) == cases
    assert sum(each['right'] for each in scores['verdict'].values()) == scores['solved']
    assert sum(scores['histogram']['counts']) == scores['matched'] <= atoms
    assert scores['solved'] <= cases
    assert min(scores['r_factor'], scores['r_free'], scores['seconds_per_case']) > 0


def test_without_a_network_there_are_scores_of_the_methods_alone(classical):
    report, shown = classical
    assert shown is None
    assert report.keys() == {'cases', 'atoms', 'seed', 'device', 'random', 'least_squares'}
    assert_counts_add_up(report['least_squares'], report)


def test_least_squares_finds_clean_cases_exactly_and_says_so(classical):
    report, _ = classical
    scores = report['least_squares']
    assert scores['recall'] == 1 and scores['solved'] == report['cases'] == 8
    assert scores['mean_error'] < 0.01 and scores['r_factor'] < 0.01
    assert scores['verdict']['solved'] == {'right': 8, 'wrong': 0}
    assert report['random']['recall'] < 0.9


def test_with_a_network_its_maps_its_atoms_as_they_are_and_refined_and_each_other_method_are_scored(both, paper):
    report, shown = both
    entries = {'map', 'separated', 'separated_in_place', 'refined', 'least_squares', 'random'}
    assert report.keys() == {'cases', 'atoms', 'seed', 'device', *entries}
    for name in ('refined', 'least_squares'):
        assert_counts_add_up(report[name], report)
    assert shown.solutions.density.shape == (7, 12, 12, 12)
    alone = paper[0]
    assert 'refined' not in alone and 'verdict' not in alone['separated']
    for name, scores in without_timings(alone).items():
        assert without_timings(report)[name] == scores  # the paper's procedure is scored the same beside others


def test_a_methods_scores_are_the_same_again_beside_others_and_with_any_batch_of_the_network(classical, both):
    again = scored(None, 8, 1, methods='least_squares')[0]
    for report in (again, both[0]):
        for name in ('least_squares', 'random'):
            assert without_timings(report)[name] == without_timings(classical[0])[name]


def test_cases_that_do_not_fit_in_memory_together_are_scored_in_parts(classical, monkeypatch):
    monkeypatch.setattr(evaluation, 'CASES_IN_MEMORY', 4)  # as many as are solved at once
    assert without_timings(scored(None, 8, 4, methods='least_squares')[0]) == without_timings(classical[0])


def test_the_scores_are_described_in_a_line_for_each(classical, both, paper):
    names = {
        'separated': 'network, separated',
        'refined': 'network, refined',
        'least_squares': 'least squares',
        'random': 'at random',
    }
    for (report, _), expected in (
        (classical, ('least_squares', 'random')),
        (both, ('separated', 'refined', 'least_squares', 'random')),
        (paper, ('separated', 'random')),
    ):
        first, *lines = describe_scores(report).splitlines()
        assert first == f'{report["cases"]} unseen cases of 3 atoms'
        assert [line.partition(':')[0] for line in lines] == [names[name] for name in expected]
        for name, line in zip(expected, lines, strict=True):
            assert f'{report[name]["recall"]:.2%} of atoms' in line
            assert f'{report[name]["solved"]} cases with every atom' in line
            assert ('said to be solved' in line) == (name not in ('separated', 'random'))
            assert ('map correlation' in line) == (name == 'separated')
    line = describe_scores(classical[0]).splitlines()[1]
    assert '8 said to be solved, 0 of them wrongly' in line


def test_every_method_has_a_name_and_a_line_of_its_own_where_scores_are_told(classical):
    report = classical[0]
    scores = report['least_squares']
    several = {name: value for name, value in report.items() if name != 'least_squares'}
    several |= {name: scores for name in method_names() if name != 'network'}
    lines = describe_scores(several).splitlines()[1:]
    starts = [line.partition(':')[0] for line in lines]
    assert starts == ['least squares', 'phase retrieval', 'minimum function', 'all methods in turn', 'at random']


@pytest.mark.parametrize(
    ('which', 'curves'),
    [
        ('classical', ['least squares']),
        ('both', ['network, at', 'as the network', 'network, refined', 'least squares']),
        ('paper', ['network, at', 'as the network']),
    ],
)
def test_errors_are_drawn_of_what_was_scored_and_nothing_else(which, curves, classical, both, paper, monkeypatch):
    figures = []
    monkeypatch.setattr('patterson_jax.pictures.save_figure', lambda path, figure: figures.append(figure))
    report = {'classical': classical, 'both': both, 'paper': paper}[which][0]
    draw_errors(None, report)
    (axes,) = figures[0].axes
    (legend,) = figures[0].legends  # of the figure: within the axes it would hide bars
    assert axes.get_legend() is None
    labels = [text.get_text() for text in legend.get_texts()]
    # Legends of histograms come in the order in which they were drawn.
    assert len(labels) == len(curves)
    for label, start in zip(labels, curves, strict=True):
        assert label.startswith(start)
        assert f' of {report["atoms"]} paired' in label
