"""The training of the learned projection, whole but small: it learns, and goes on when it was stopped."""

import dataclasses
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import assert_same_run, assert_same_trees, saved_steps

from benchmarks.device import cells, collecting
from benchmarks.device.projection_cells import projection_cell, projection_gradient_cell
from configs import projection
from patterson_jax import experiment, runs
from patterson_jax.config import validate_projection
from patterson_jax.errors import InputError, Unfinished
from patterson_jax.learning import training
from patterson_jax.learning.checkpoints import Checkpoints
from patterson_jax.learning.metrics import read_metrics
from patterson_jax.networks.projection import NUM_CONDITIONS
from patterson_jax.projection_comparison import Comparison, compare
from patterson_jax.projection_training import Cases
from patterson_jax.projection_weights import count_projection_weights, load_projection_weights
from patterson_jax.simulation.training_crystals import TrainingCrystal

pytestmark = pytest.mark.usefixtures('optax_promotes_types')


def tiny_config(**changes):
    config = projection.get_config()
    config.crystals.update(shape=(12, 12, 12), molecule=(5, 8))
    config.states.update(starts=2, near=1.0, most_cycles=20)
    config.model.update(features=4, num_blocks=1)
    config.train.update(num_steps=16, batch_size=2, learning_rate=1e-2, warmup_steps=2, schedule='constant')
    config.train.update(num_validation=3, log_every=2, validate_every=4, most_passes=1)
    config.checkpoint.update(every_steps=8, keep=1)
    config.train.update(changes)
    return config


def run(workdir, **changes):
    config = tiny_config(**changes)
    experiment.run('train', config, workdir)


@pytest.fixture(scope='module')
def brought_back(tmp_path_factory):
    """What a training on a device leaves, beside the directory of the run."""
    output = tmp_path_factory.mktemp('output')
    workdir = output / 'whole'
    as_json = json.loads(json.dumps(tiny_config().to_dict()))
    cell = {'config': as_json, 'changes': {}, 'minutes': 0.0, 'workdir': str(workdir), 'output': str(output)}
    with jax.numpy_dtype_promotion('standard'):
        cells.training(cell, print)
    return output


@pytest.fixture(scope='module')
def whole_run(brought_back):
    return brought_back / 'whole'


def test_the_loss_falls_and_the_log_says_how_far_the_phases_are_right(whole_run):
    rows = read_metrics(whole_run / 'metrics.jsonl')
    assert [row['step'] for row in rows] == list(range(2, 17, 2))
    validated = [row for row in rows if 'validation_loss' in row]
    assert [row['step'] for row in validated] == [4, 8, 12, 16]
    assert validated[-1]['validation_loss'] < validated[0]['validation_loss']
    for row in validated:
        assert all(-1 <= row[f'validation_correlation{name}'] <= 1 for name in ('', '_before', '_later'))
        np.testing.assert_allclose(row['validation_empty_loss'], 1, rtol=1e-4)
    assert len({row['validation_correlation_before'] for row in validated}) == 1  # the same cases
    assert (whole_run / 'figures' / 'losses.png').exists()


@pytest.fixture(scope='module')
def weights(whole_run):
    """Those of the first step, and the best of the run."""
    made = validate_projection(tiny_config())
    return jax.jit(made.task.init)(jax.random.key(0)), load_projection_weights(whole_run, made.model)


def test_weights_are_compared_on_the_validation_crystals_of_the_log_in_batches_of_any_size(whole_run, weights):
    first, trained = weights
    found = compare(validate_projection(tiny_config()).task, first, trained.params)
    (row,) = (row for row in read_metrics(whole_run / 'metrics.jsonl') if row['step'] == trained.step)
    np.testing.assert_allclose(found.loss, row['validation_loss'], rtol=1e-4)
    np.testing.assert_allclose(found.later, row['validation_correlation_later'], rtol=1e-3)
    assert found.crystals == 3 and found.loss < found.loss_before and found.standard_error > 0


def test_only_a_difference_beyond_its_error_is_better():
    for difference, better in ((-0.1, True), (-0.03, False), (0.0, False), (0.1, False)):
        assert Comparison(9, 1.0, 1.0 + difference, 0.02, 0.5, 0.6).better == better
    assert not Comparison(9, 1.0, 1.0, 0.0, 0.5, 0.5).better  # the same weights


def test_a_run_that_was_stopped_goes_on_and_ends_bit_for_bit_the_same(whole_run, tmp_path, monkeypatch):
    steps = itertools.count(1)
    monkeypatch.setattr(training.StopRequest, 'requested', lambda self: next(steps) == 10)
    monkeypatch.setattr(training.StopRequest, 'reason', 'a test', raising=False)
    with pytest.raises(Unfinished, match='after step 10 of 16'):
        run(tmp_path)
    monkeypatch.undo()
    run(tmp_path)
    assert saved_steps(tmp_path)[-1] == 16
    assert_same_run(tmp_path, whole_run)


def test_a_run_begins_with_the_weights_of_another_and_new_cases(whole_run, tmp_path, monkeypatch):
    config = tiny_config(init_from=str(whole_run))
    begun = []
    monkeypatch.setattr(runs, 'train', lambda *arguments: begun.append(arguments[-1]))
    experiment.run('train', config, tmp_path)
    weights = load_projection_weights(whole_run, validate_projection(config).model)
    assert_same_trees(begun[0].params, weights.params)
    assert (begun[0].examples, begun[0].sets) == (32, 1)
    config.model.features = 6
    with pytest.raises(InputError, match=r'^train\.init_from: .* model\.features was 4 and is 6$'):
        experiment.run('train', config, tmp_path / 'other')


def test_what_is_published_is_the_best_checkpoint_with_a_card(whole_run, tmp_path):
    output = tmp_path / 'published'
    experiment.run('publish', tiny_config(), whole_run, output=output)
    network = validate_projection(tiny_config()).model
    published, trained = (load_projection_weights(each, network) for each in (output, whole_run))
    assert_same_trees(published.params, trained.params)
    card = (output / 'README.md').read_text(encoding='utf-8')
    assert f'| 0 to {2 * published.step} | 2 | 1 | 0.01 | 0 |' in card
    assert f'{2 * published.step} invented crystals of 12 × 12 × 12 voxels' in card
    assert (output / 'figures' / 'losses.png').exists()


def test_what_a_device_trained_replaces_weights_that_are_worse_on_the_same_crystals(
    brought_back, whole_run, weights, tmp_path, capsys
):
    config, target = tiny_config(), tmp_path / 'published'
    save_untrained(tmp_path / 'untrained', whole_run, weights[0])
    experiment.run('publish', config, tmp_path / 'untrained', output=target)
    for again in (False, True):
        collecting.publish_files(brought_back, target)
        said = capsys.readouterr().out
        assert (f'not published: {target} has weights that may be as good: on 3 crystals' in said) == again
        published = load_projection_weights(target, validate_projection(config).model)
        assert_same_trees(published.params, weights[1].params)
    (compared,) = (each['compared'] for each in json.loads((target / 'slices.json').read_text()))
    assert Comparison(**compared).better
    assert f'| against the weights before | {Comparison(**compared)} |' in (target / 'README.md').read_text()


def save_untrained(workdir, like, params):
    """A run like another one that was stopped at its first validation, with other weights."""
    workdir.mkdir()
    shutil.copyfile(like / 'config.json', workdir / 'config.json')
    rows = (like / 'metrics.jsonl').read_text().splitlines()[:2]
    (workdir / 'metrics.jsonl').write_text('\n'.join(rows) + '\n')
    counters = {'step': 4, 'examples': 8, 'sets': 1, 'seconds': 1.0, 'pending': []}
    loss = json.loads(rows[-1])['validation_loss']
    with Checkpoints(workdir / 'checkpoints') as checkpoints:
        checkpoints.save(4, params, {'none': np.zeros(1)}, tiny_config().to_dict(), counters, loss)


def test_a_device_times_the_step_and_a_pass_and_its_gradient_is_that_of_the_host(tmp_path):
    files = {name: str(tmp_path / f'{name}.npy') for name in ('direct', 'auto')}
    config = tiny_config().to_dict()
    cell = {'config': json.loads(json.dumps(config)), 'batch': 2, 'repeats': 1, 'seconds': 0.0}
    found = projection_cell(cell | {'convolution': 'auto'})
    assert found['step']['best'] > found['forward']['best'] > 0
    for convolution, file in files.items():
        projection_gradient_cell(cell | {'convolution': convolution, 'gradient': file})
    direct, products = (np.load(file) for file in files.values())
    assert len(direct) == count_projection_weights(validate_projection(tiny_config()).model)
    np.testing.assert_allclose(direct, products, rtol=1e-3, atol=1e-5)


def test_the_gradient_is_that_of_the_last_pass_alone():
    """The loss of a step with a pass before is the loss without one on the maps after that pass."""
    task = validate_projection(tiny_config()).task
    weights = task.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 4)
    shape, half = (2, 12, 12, 12), (2, 12, 12, 7)
    density = jax.random.normal(keys[0], shape) ** 3
    factors, states = (jnp.fft.rfftn(jax.random.normal(key, shape), axes=(1, 2, 3)) for key in keys[1:3])
    amplitudes = jnp.abs(factors) * (jax.random.uniform(keys[3], half) > 0.5)
    axes = jnp.broadcast_to(6 * jnp.eye(3), (2, 3, 3))
    ones = jnp.ones(2)
    crystals = TrainingCrystal(axes, amplitudes, factors, density, 1.2 * ones, ones > 0, jnp.zeros(2, jnp.int32))
    cases = Cases(crystals, states, jnp.zeros((2, NUM_CONDITIONS)))
    passed = jax.jit(task.passed)(weights, cases, np.int32(1))
    assert np.mean(np.abs(passed.factors - states)) > 0.1

    def loss(weights, cases):
        return jnp.mean(task.figures(weights, cases)['loss'])

    def whole(weights):
        return loss(weights, task.passed(jax.lax.stop_gradient(weights), cases, 1))

    ours, theirs = jax.jit(jax.grad(whole))(weights), jax.jit(jax.grad(loss))(weights, passed)
    for each, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(each, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ('section', 'field', 'value', 'message'),
    [
        ('crystals', 'shape', (12, 12), r'crystals\.shape is \(12, 12\); it must be 3 values in brackets'),
        ('crystals', 'shape', (12, 12, 13), r'crystals\.shape is \(12, 12, 13\); it must be three even numbers'),
        ('crystals', 'd_min', (1.1, 'x'), r"crystals\.d_min\[1\] is 'x'; it must be a number"),
        ('states', 'near', 1.5, r'states\.near is 1\.5; it must be from 0 to 1'),
        ('train', 'most_passes', -1, r'train\.most_passes is -1; it must be 0 or more'),
        ('model', 'features', 0, r'model\.features is 0; it must be 1 or more'),
    ],
)
def test_a_bad_field_is_refused_in_words(section, field, value, message):
    config = tiny_config()
    del config[section][field]
    config[section][field] = value
    with pytest.raises(InputError, match=message):
        validate_projection(config)


def test_the_config_is_that_of_its_experiment_and_trains_or_publishes(tmp_path):
    config = projection.get_config()
    made = validate_projection(config)
    assert made.crystals.shape == config.crystals.shape
    assert made.train.most_passes == config.train.most_passes
    assert json.loads(json.dumps(config.to_dict()))['states'] == dataclasses.asdict(made.states)
    with pytest.raises(
        InputError, match=r'^--mode is .evaluate.; it must be train or publish for a learned projection$'
    ):
        experiment.run('evaluate', config, tmp_path)
    with pytest.raises(ValueError, match='it has gpu'):
        projection.get_config('small')
