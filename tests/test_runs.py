"""Runs: beginning with another one's weights, going on under the same config, and what an evaluation tells of both."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    CHECKPOINTING,
    NETWORK,
    NORMALISED,
    PAPERS_SETS,
    PROBLEM,
    REPOSITORY,
    SEED,
    SETTINGS,
    assert_same_run,
    last_checkpoint,
    saved_steps,
    tiny_config,
)

from configs import unrolled
from patterson_jax import runs
from patterson_jax.config import validate
from patterson_jax.errors import InputError, Unfinished
from patterson_jax.evaluation import evaluate
from patterson_jax.learning.checkpoints import Checkpoints
from patterson_jax.learning.map_training import MapTask, squared_errors
from patterson_jax.learning.metrics import read_metrics
from patterson_jax.learning.parallel import mean_over_devices, parallelize
from patterson_jax.learning.training import init_state, state_with
from patterson_jax.runs import evaluate_experiment, train_experiment
from patterson_jax.simulation.encoding import network_input
from patterson_jax.simulation.examples import example_key, make_batch, stream_key
from patterson_jax.solving.attempt import Network
from patterson_jax.weights import load_weights

pytestmark = pytest.mark.usefixtures('optax_promotes_types')


@pytest.fixture(scope='module', autouse=True)
def nothing_is_drawn():
    with pytest.MonkeyPatch.context() as patch:
        for name in ('draw_losses', 'draw_maps', 'draw_separation', 'draw_errors'):
            patch.setattr(runs, name, lambda *arguments: None)
        yield


@pytest.fixture
def unevaluated(monkeypatch):
    """Trains without evaluating."""
    monkeypatch.setattr(runs, 'evaluate_experiment', lambda *arguments: None)


def start_run(config, workdir):
    train_experiment(validate(config), config, workdir, {})


def test_the_tiny_config_is_the_tiny_training():
    experiment = validate(tiny_config(NORMALISED, PAPERS_SETS))
    assert (experiment.problem, experiment.model, experiment.train) == (PROBLEM, NORMALISED, PAPERS_SETS)
    assert (experiment.checkpoint, experiment.seed) == (CHECKPOINTING, SEED)


# What the run before counts: at its end, which came after its best weights.
EXAMPLES, SETS, BEST = 1234, 7, 11


@pytest.fixture(scope='module')
def earlier(tmp_path_factory):
    """A run of weights drawn at random, the best of them not the last ones, and the former."""
    directory = tmp_path_factory.mktemp('earlier') / 'run'
    config = tiny_config(NORMALISED, PAPERS_SETS)
    state = init_state(MapTask(NORMALISED, PROBLEM, PAPERS_SETS, SEED))
    rng = np.random.default_rng(0)

    def draw(leaf):
        return rng.uniform(0.05, 0.1, leaf.shape).astype(np.float32)

    best, last = (jax.tree.map(draw, state.params) for _ in range(2))
    saved = (best, BEST, 617, 4, 0.1), (last, 2 * BEST, EXAMPLES, SETS, 0.2)
    with Checkpoints(directory / 'checkpoints', keep=2) as checkpoints:
        for params, step, examples, sets, loss in saved:
            counters = {'step': step, 'examples': examples, 'sets': sets, 'seconds': 1.0, 'pending': []}
            optimizer = state_with(params, PAPERS_SETS).optimizer
            checkpoints.save(step, params, optimizer, config.to_dict(), counters, loss)
    return directory, best


def later_config(earlier):
    return tiny_config(NORMALISED, dataclasses.replace(PAPERS_SETS, init_from=str(earlier[0]), log_every=1))


@pytest.fixture(scope='module')
def later(earlier, tmp_path_factory):
    """A run that begins with the best weights of the earlier one."""
    workdir = tmp_path_factory.mktemp('later') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, 'evaluate_experiment', lambda *arguments: None)
        start_run(later_config(earlier), workdir)
    return workdir


def test_a_run_begins_with_the_best_weights_of_another_on_the_sets_that_follow(earlier, later):
    """Its first loss is that of those weights on the first batch of the first set that the other has not begun."""
    order = jax.random.permutation(example_key(stream_key(SEED, 'order'), SETS, 0), PAPERS_SETS.set_size)

    def losses(params, order):
        batch = make_batch(stream_key(SEED, 'training'), SETS, order[: PAPERS_SETS.batch_size], PROBLEM)
        inputs = network_input(batch.patterson, PROBLEM.num_atoms, PROBLEM.encoding)
        predicted, _ = NORMALISED.apply(params, inputs, train=True, mutable=['batch_stats'])
        return mean_over_devices([jnp.mean(each) for each in squared_errors(predicted, batch.target)])

    loss, empty_loss, correlation = parallelize(losses)(earlier[1], order)
    first = read_metrics(later / 'metrics.jsonl')[0]
    assert first['step'] == 1
    assert first['loss'] == pytest.approx(float(loss), rel=1e-4)
    assert first['empty_loss'] == pytest.approx(float(empty_loss), rel=1e-5)
    assert first['correlation'] == pytest.approx(float(correlation), abs=1e-4)
    assert first['learning_rate'] == 0  # its schedule and its optimiser begin anew


def test_a_run_counts_on_from_the_one_it_began_with(later):
    rows = read_metrics(later / 'metrics.jsonl')
    assert [row['step'] for row in rows] == list(range(1, 21))
    assert [row['examples'] for row in rows] == [EXAMPLES + 8 * step for step in range(1, 21)]
    # 20 batches of 8 in sets of 16, each for three epochs.
    assert last_checkpoint(later)[1] == {'step': 20, 'examples': EXAMPLES + 160, 'sets': SETS + 4, 'pending': []}


def test_a_run_once_begun_does_not_need_the_one_it_began_with(earlier, later, tmp_path, unevaluated, monkeypatch):
    copy = shutil.copytree(earlier[0], tmp_path / 'earlier')
    config = later_config((copy,))
    steps = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr('patterson_jax.learning.training.StopRequest.requested', lambda *_: next(steps) == 11)
        with pytest.raises(Unfinished):
            start_run(config, tmp_path / 'run')
    assert saved_steps(tmp_path / 'run')[-1] == 11
    shutil.rmtree(copy)
    start_run(config, tmp_path / 'run')
    assert_same_run(tmp_path / 'run', later)


def test_a_chain_of_runs_counts_all_that_was_before(later, tmp_path, unevaluated, monkeypatch):
    monkeypatch.setattr(runs, 'train', lambda *arguments: given.append(arguments[-1]))
    given = []
    start_run(tiny_config(NORMALISED, dataclasses.replace(PAPERS_SETS, init_from=str(later))), tmp_path / 'run')
    (start,) = given
    assert (start.examples, start.sets) == (EXAMPLES + 160, SETS + 4)


@pytest.mark.parametrize(
    ('network', 'place', 'reason'),
    [
        (NORMALISED, 'none', 'no such directory, nor a network that comes with the code: '),
        (NORMALISED, '', 'it has no checkpoint'),
        (NETWORK, 'run', "these weights are for another config: model.batch_norm was 'all' and is 'none'"),
    ],
)
def test_a_run_that_cannot_begin_with_the_weights_it_names_is_refused_before_anything_is_written(
    earlier, tmp_path, monkeypatch, network, place, reason
):
    monkeypatch.setattr(runs, 'train', lambda *arguments: pytest.fail('training began'))
    named = earlier[0].parent / place
    config = tiny_config(network, dataclasses.replace(PAPERS_SETS, init_from=str(named)))
    with pytest.raises(InputError) as refusal:
        start_run(config, tmp_path / 'run')
    assert str(refusal.value).startswith(f'train.init_from: {named}: {reason}')
    assert len(str(refusal.value).splitlines()) == 1
    assert not any(path.is_file() for path in tmp_path.rglob('*'))


def test_a_run_may_begin_with_a_network_that_comes_with_the_code(tmp_path, unevaluated, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where nothing is called so
    monkeypatch.setattr(runs, 'train', lambda *arguments: given.append(arguments[-1]))
    given = []
    config = unrolled.get_config('slice')
    config.train.init_from = 'unrolled'
    start_run(config, tmp_path / 'run')
    (start,) = given
    assert start.examples == read_metrics(REPOSITORY / 'pretrained' / 'unrolled' / 'metrics.jsonl')[-1]['examples']


def test_a_run_of_no_cases_to_evaluate_is_only_trained(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(runs, 'train', lambda *arguments: trained.append(arguments))
    config = tiny_config()
    config.evaluate.num_cases = 0
    start_run(config, tmp_path / 'run')
    assert len(trained) == 1
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['config.json']
    with pytest.raises(InputError, match=r'^evaluate\.num_cases is 0; it must be 1 or more to evaluate$'):
        evaluate_experiment(validate(config), config, tmp_path / 'run')


def test_methods_that_need_no_network_are_evaluated_without_any_weights(tmp_path, monkeypatch, capsys):
    scores = {'recall': 0.5, 'matched': 4, 'solved': 1, 'mean_error': 0.25}
    given = []

    def evaluate(*arguments):
        given.append(arguments)
        counts = {'cases': 4, 'atoms': 8, 'seed': SEED, 'device': 'cpu'}
        return counts | {'least_squares': scores, 'random': scores}, None

    monkeypatch.setattr(runs, 'evaluate', evaluate)
    for name in ('draw_maps', 'draw_separation'):
        monkeypatch.setattr(runs, name, lambda *arguments: pytest.fail('there is no network to draw'))
    drawn = []
    monkeypatch.setattr(runs, 'draw_errors', lambda path, report: drawn.append((path, report['least_squares'])))
    config = tiny_config()
    config.evaluate.methods = 'least_squares'
    experiment = validate(config)
    evaluate_experiment(experiment, config, tmp_path / 'run')
    ((*settings, seed, network),) = given
    assert settings == [experiment.problem, experiment.separate, experiment.solve, experiment.evaluate]
    assert (seed, network) == (SEED, None)
    report = json.loads((tmp_path / 'run' / 'evaluation.json').read_text())
    assert 'weights' not in report and report['least_squares'] == scores
    assert report['settings']['solve'] == config.solve.to_dict()
    assert drawn == [(tmp_path / 'run' / 'figures' / 'errors.png', scores)]
    assert '4 of 8' in (tmp_path / 'run' / 'report.html').read_text(encoding='utf-8')
    assert 'least squares: 50.00% of atoms' in capsys.readouterr().out
    for methods in ('network', 'least_squares,network', ''):
        config.evaluate.methods = methods
        with pytest.raises(InputError, match='it has no checkpoint'):
            evaluate_experiment(validate(config), config, tmp_path / 'run')


def test_only_the_time_limit_may_change_when_a_run_goes_on(later, earlier, tmp_path, monkeypatch):
    copy = shutil.copytree(later, tmp_path / 'run')
    monkeypatch.setattr(runs, 'evaluate_experiment', lambda *arguments: None)
    before = {path: path.read_bytes() for path in copy.rglob('*') if path.is_file()}
    for field, value in (('init_from', ''), ('set_size', 24), ('epochs_per_set', 1), ('log_every', 2)):
        config = later_config(earlier)
        was = repr(config.train[field])
        config.train[field] = value
        with pytest.raises(InputError) as refusal:
            start_run(config, copy)
        expected = f'{copy} has a run of another config: train.{field} was {was} and is {value!r}. Name another'
        assert str(refusal.value).startswith(expected)
    assert {path: path.read_bytes() for path in copy.rglob('*') if path.is_file()} == before
    config = later_config(earlier)
    config.train.max_minutes = 7.0
    start_run(config, copy)
    assert json.loads((copy / 'config.json').read_text())['config']['train']['max_minutes'] == 7


def test_weights_with_running_averages_are_evaluated_as_they_were_trained(later, earlier, tmp_path, capsys):
    """They come from the checkpoint; the same evaluated as they are in memory gives the same report."""
    config = later_config(earlier)
    experiment = validate(config)
    evaluate_experiment(experiment, config, tmp_path, later)
    report = json.loads((tmp_path / 'evaluation.json').read_text())
    weights = load_weights(experiment, config, later)
    assert weights.params.keys() == {'params', 'batch_stats'}
    with Checkpoints(later / 'checkpoints', read_only=True) as checkpoints:
        losses = {step: checkpoints.manager.metrics(step)['validation_loss'] for step in saved_steps(later)}
    assert report.pop('weights') == {'step': min(losses, key=losses.get), 'trained_on': config.problem.to_dict()}
    assert report.pop('settings') == {
        'seed': SEED,
        'problem': config.problem.to_dict(),
        'separate': config.separate.to_dict(),
        'solve': config.solve.to_dict(),
        'evaluate': {'num_cases': 4, 'batch_size': 4, 'methods': '', 'more_orientations': 0},
    }
    moved = jax.tree.map(np.array, weights.params)
    assert any(np.any(each['mean'] != 0) for each in moved['batch_stats'].values())

    def scores(params):
        settings = experiment.separate, experiment.solve, experiment.evaluate, SEED
        return evaluate(PROBLEM, *settings, Network(experiment.model.apply, params))[0]

    expected = scores(moved)
    for each in (report, expected):
        each['separated'].pop('seconds_per_case')
    assert report == json.loads(json.dumps(expected))
    for each in moved['batch_stats'].values():
        each['mean'] += 0.5
    assert scores(moved)['map'] != report['map']
    assert f'{report["cases"]} unseen cases' in capsys.readouterr().out


def test_the_best_weights_are_evaluated_and_the_counters_are_the_last_ones(earlier):
    config = tiny_config(NORMALISED, SETTINGS)
    weights = load_weights(validate(config), config, earlier[0])
    assert (weights.step, weights.counters['step'], weights.counters['examples']) == (BEST, 22, EXAMPLES)
    jax.tree.map(np.testing.assert_array_equal, weights.params, earlier[1])
