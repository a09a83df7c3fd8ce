import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patterson_jax.errors import NonFiniteError
from patterson_jax.learning.checkpoints import Checkpoints, CheckpointSettings
from patterson_jax.learning.metrics import read_metrics
from patterson_jax.learning.network import PattersonNet
from patterson_jax.learning.parallel import parallelize, replicate, share_of_batch
from patterson_jax.learning.training import (
    TrainingSettings,
    init_state,
    learning_rate_schedule,
    make_train_step,
    make_validation,
    squared_errors,
    train,
)
from patterson_jax.simulation.examples import make_batch, network_input, stream_key
from patterson_jax.simulation.problem import Problem

PROBLEM = Problem(grid_size=12, num_atoms=2, min_separation=2.4, box_edge=4.0)
NETWORK = PattersonNet(
    features=4, outer_kernel_size=3, inner_kernel_size=3, encoder_depth=1, inner_depth=1, decoder_depth=1
)
SETTINGS = TrainingSettings(
    num_steps=20,
    batch_size=8,
    learning_rate=1e-3,
    warmup_steps=4,
    schedule='cosine',
    set_size=40,
    epochs_per_set=1,
    init_from='',
    max_minutes=0.0,
    num_validation=10,
    log_every=2,
    validate_every=4,
)
CHECKPOINTING = CheckpointSettings(every_steps=8, keep=1)
SEED = 5


@pytest.fixture(scope='module', autouse=True)
def optax_promotes_types():
    """Optax multiplies floats by an integer count, which the strict mode of the other tests forbids."""
    with jax.numpy_dtype_promotion('standard'):
        yield


def with_biases(state):
    """Without biases the sign of rounding errors in the empty parts of a map would decide which units are active."""
    return state.replace(weights=jax.tree.map(lambda weights: weights + 0.01, state.weights))


def squared_errors_of(params, batch):
    return squared_errors(NETWORK.apply(params, network_input(batch.patterson, PROBLEM)), batch.target)


def take_steps(count):
    """Losses of the first steps and a hash of the cases they saw; run with one device and with several."""

    def cases(step):
        indices = step * SETTINGS.batch_size + share_of_batch(SETTINGS.batch_size)
        positions = make_batch(stream_key(SEED, 'training'), 0, indices, PROBLEM).positions
        return jax.lax.all_gather(positions, 'devices', tiled=True)

    step, see = parallelize(make_train_step(NETWORK, PROBLEM, SETTINGS, SEED), donate=True), parallelize(cases)
    state = replicate(with_biases(init_state(NETWORK, PROBLEM, SETTINGS, SEED)))
    losses, digest = [], hashlib.sha256()
    for number in range(count):
        digest.update(np.asarray(see(np.int32(number))).tobytes())
        state, metrics = step(state)
        losses.append(float(metrics['loss']))
    validation = make_validation(NETWORK, PROBLEM, SETTINGS, SEED)(state.params)
    return {'devices': jax.device_count(), 'losses': losses, 'cases': digest.hexdigest(), **validation}


def test_eight_devices_see_the_same_cases_and_losses_as_one():
    code = 'import json, test_training; print(json.dumps(test_training.take_steps(20)))'
    environment = os.environ | {'JAX_NUM_CPU_DEVICES': '8', 'PYTHONPATH': os.pathsep.join(['tests', '.'])}
    output = subprocess.run(
        [sys.executable, '-W', 'error', '-c', code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    eight, one = json.loads(output), take_steps(20)
    assert (one['devices'], eight['devices']) == (1, 8)
    assert one['cases'] == eight['cases']
    np.testing.assert_allclose(eight['losses'], one['losses'], rtol=1e-4)
    np.testing.assert_allclose(eight['validation_loss'], one['validation_loss'], rtol=1e-4)
    np.testing.assert_allclose(eight['validation_correlation'], one['validation_correlation'], rtol=1e-3)


def test_step_is_adam_on_the_gradient_of_the_mean_squared_error():
    """Without warm-up Adam's first step moves every weight by the learning rate against the sign of its gradient."""
    settings = dataclasses.replace(SETTINGS, warmup_steps=0, schedule='constant', learning_rate=1e-3)
    before = with_biases(init_state(NETWORK, PROBLEM, settings, SEED))

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        batch = make_batch(stream_key(SEED, 'training'), 0, jnp.arange(8), PROBLEM)
        return jnp.mean(squared_errors_of(params, batch)[0])

    error, gradients = loss(before.params)
    after, metrics = parallelize(make_train_step(NETWORK, PROBLEM, settings, SEED))(replicate(before))
    np.testing.assert_allclose(metrics['loss'], error, rtol=1e-5)
    norm = np.sqrt(sum(np.sum(np.square(each)) for each in jax.tree.leaves(gradients)))
    np.testing.assert_allclose(metrics['gradient_norm'], norm, rtol=1e-4)
    for old, new, slope in zip(*map(jax.tree.leaves, (before.params, after.params, gradients)), strict=True):
        clear = np.abs(slope) > 1e-6  # far above Adam's epsilon
        np.testing.assert_allclose((new - old)[clear], (-1e-3 * np.sign(slope))[clear], rtol=0.02)
    assert int(after.step) == 1


def test_validation_is_the_mean_over_exactly_the_validation_cases():
    params = init_state(NETWORK, PROBLEM, SETTINGS, SEED).params
    measured = make_validation(NETWORK, PROBLEM, SETTINGS, SEED)(replicate(params))

    @jax.jit
    def scores(params):
        batch = make_batch(stream_key(SEED, 'validation'), 0, jnp.arange(10), PROBLEM)
        return squared_errors_of(params, batch)

    errors, empty_errors, correlations = scores(params)
    np.testing.assert_allclose(measured['validation_loss'], np.mean(errors), rtol=1e-5)
    np.testing.assert_allclose(measured['validation_empty_loss'], np.mean(empty_errors), rtol=1e-5)
    np.testing.assert_allclose(measured['validation_correlation'], np.mean(correlations), rtol=1e-4)


def test_learning_rate_warms_up_and_decays():
    cosine = learning_rate_schedule(SETTINGS)
    np.testing.assert_allclose([cosine(0), cosine(2), cosine(4), cosine(20)], [0, 5e-4, 1e-3, 1e-5], rtol=1e-5)
    constant = learning_rate_schedule(dataclasses.replace(SETTINGS, schedule='constant'))
    np.testing.assert_allclose([constant(0), constant(4), constant(20)], [0, 1e-3, 1e-3], rtol=1e-5)


def run(workdir, settings=SETTINGS):
    workdir.mkdir(exist_ok=True)
    return train(NETWORK, PROBLEM, settings, CHECKPOINTING, SEED, workdir, {'seed': SEED})


def without_timings(rows):
    return [
        {name: value for name, value in row.items() if name not in ('seconds', 'examples_per_second')} for row in rows
    ]


@pytest.fixture(scope='module')
def whole_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('whole')
    return run(workdir), workdir


def test_run_lowers_the_loss_and_logs_what_it_promises(whole_run):
    rows = read_metrics(whole_run[1] / 'metrics.jsonl')
    assert [row['step'] for row in rows] == list(range(2, 21, 2))
    assert [row['step'] for row in rows if 'validation_loss' in row] == [4, 8, 12, 16, 20]
    assert rows[-1]['validation_loss'] < rows[1]['validation_loss']
    assert all(row['examples'] == 8 * row['step'] for row in rows)


def test_run_started_again_in_its_workdir_goes_on_and_ends_bit_for_bit_the_same(whole_run, tmp_path):
    """A run that stops after its checkpoint of step 8, with rows of steps that will be taken again in its log."""
    settings = dataclasses.replace(SETTINGS, num_steps=20)
    whole, whole_dir = whole_run
    with Checkpoints(whole_dir / 'checkpoints', read_only=True) as checkpoints:
        assert checkpoints.latest_step == 20
    workdir = tmp_path / 'stopped'
    with pytest.raises(KeyboardInterrupt):
        _run_until(workdir, settings, step=14)
    rows = read_metrics(workdir / 'metrics.jsonl')
    assert rows[-1]['step'] == 12
    resumed = run(workdir, settings)
    for ours, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    expected = read_metrics(whole_dir / 'metrics.jsonl')
    assert without_timings(read_metrics(workdir / 'metrics.jsonl')) == without_timings(expected)


def _run_until(workdir, settings, step):
    """Interrupts a run as Ctrl-C would, when it logs the given step."""
    from patterson_jax.learning import training

    class Interrupted(training.MetricsLog):
        def write(self, row):
            if row['step'] >= step:
                raise KeyboardInterrupt
            super().write(row)

    original, training.MetricsLog = training.MetricsLog, Interrupted
    try:
        run(workdir, settings)
    finally:
        training.MetricsLog = original


def test_best_checkpoint_is_kept_beside_the_latest(tmp_path):
    def params(value):
        return {'weight': jnp.full((2,), value)}

    losses = {1: 0.5, 2: 0.1, 3: 0.4, 4: 0.3}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, params(float(step)), params(0.0), {}, {'step': step, 'seconds': 1.0}, loss)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert (checkpoints.best_step, checkpoints.latest_step) == (2, 4)
        restored = checkpoints.restore(2, params=params(0.0), counters=None)
    np.testing.assert_array_equal(restored['params']['weight'], [2, 2])
    assert restored['counters'] == {'step': 2, 'seconds': 1.0}
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name.isdigit()) == ['2', '4']


def test_diverging_run_stops_with_metric_and_step_and_keeps_its_checkpoint(tmp_path):
    run(tmp_path, dataclasses.replace(SETTINGS, num_steps=8, schedule='constant'))
    settings = dataclasses.replace(SETTINGS, learning_rate=1e30, warmup_steps=0, schedule='constant')
    with pytest.raises(NonFiniteError, match=r'(loss|correlation|gradient_norm) is (nan|inf) at step \d+'):
        run(tmp_path, settings)
    with Checkpoints(tmp_path / 'checkpoints', read_only=True) as checkpoints:
        assert checkpoints.latest_step == 8


def test_cut_last_line_of_the_log_is_left_out(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    for damage in ('{"st', '{"loss": 1}\n{"step": 3}\n', '[3]\n', '\x00\x00'):
        path.write_text('{"step": 1}\n{"step": 2}\n' + damage)
        assert read_metrics(path) == [{'step': 1}, {'step': 2}]
