import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    NETWORK,
    NORMALISED,
    PAPERS_SETS,
    PROBLEM,
    SEED,
    SETTINGS,
    assert_same_run,
    assert_same_trees,
    damage,
    log_of,
    run,
    saved_steps,
    without_timings,
)

from patterson_jax.errors import InputError, NonFiniteError
from patterson_jax.learning import training
from patterson_jax.learning.checkpoints import Checkpoints, CheckpointSettings
from patterson_jax.learning.map_training import MapTask, squared_errors, training_batch
from patterson_jax.learning.metrics import read_metrics
from patterson_jax.learning.parallel import parallelize, replicate
from patterson_jax.learning.training import (
    init_state,
    learning_rate_schedule,
    make_train_step,
    make_validation,
)
from patterson_jax.simulation.encoding import network_input
from patterson_jax.simulation.examples import make_batch, stream_key

pytestmark = pytest.mark.usefixtures('optax_promotes_types')


def with_biases(state):
    """Without biases the sign of rounding errors in the empty parts of a map would decide which units are active."""
    return state.replace(weights=jax.tree.map(lambda weights: weights + 0.01, state.weights))


def test_errors_and_correlation_are_those_of_the_voxels_of_each_map():
    predicted, target = np.random.default_rng(0).normal(size=(2, 3, 6, 6, 6)).astype(np.float32)
    found = squared_errors(predicted, target)
    pairs = [
        (each.ravel().astype(float), true.ravel().astype(float)) for each, true in zip(predicted, target, strict=True)
    ]
    for number, (each, true) in enumerate(pairs):
        expected = np.mean((each - true) ** 2), np.mean(true**2), np.corrcoef(each, true)[0, 1]
        np.testing.assert_allclose([values[number] for values in found], expected, rtol=1e-4)


def take_steps(count, normalised):
    """What the first steps saw and gave; run with one device and with several."""
    network, settings = (NORMALISED, PAPERS_SETS) if normalised else (NETWORK, SETTINGS)

    def cases(step):
        positions = training_batch(step, PROBLEM, settings, SEED, 0).positions
        return jax.lax.all_gather(positions, 'devices', tiled=True)

    task = MapTask(network, PROBLEM, settings, SEED)
    step, see = parallelize(make_train_step(task), donate=True), parallelize(cases)
    state = replicate(with_biases(init_state(task)))
    losses, digest = [], hashlib.sha256()
    for number in range(count):
        digest.update(np.asarray(see(np.int32(number))).tobytes())
        state, metrics = step(state)
        losses.append(float(metrics['loss']))
    validation = make_validation(task)(state.params)
    statistics = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(state.statistics)]
    return {
        'devices': jax.device_count(),
        'losses': losses,
        'cases': digest.hexdigest(),
        'statistics': statistics,
        **validation,
    }


@pytest.fixture(scope='module')
def eight_and_one():
    """What twenty steps on eight devices and on one saw and gave, each of both networks.

    In XLA's default way of fusing operations, unlike the other tests: normalisation enlarges what is rounded otherwise.
    Without it one device may fuse as in the other tests, which share its programs.
    """
    code = 'import json; from test_training import take_steps; print(json.dumps([take_steps(20, each) for each in {}]))'
    flags = ' '.join(flag for flag in os.environ['XLA_FLAGS'].split() if 'fusion_emitters' not in flag)
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(['tests', '.']), 'XLA_FLAGS': flags}
    outputs = [
        subprocess.run(
            [sys.executable, '-W', 'error', '-c', code.format(networks)],
            env=environment | {'JAX_NUM_CPU_DEVICES': f'{devices}'},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for devices, networks in ((8, (False, True)), (1, (True,)))
    ]
    eight, one = map(json.loads, outputs)
    return eight, [take_steps(20, False), *one]


@pytest.mark.parametrize('normalised', [False, True])
def test_eight_devices_see_the_same_cases_and_losses_as_one(eight_and_one, normalised):
    eight, one = (each[normalised] for each in eight_and_one)
    assert (one['devices'], eight['devices']) == (1, 8)
    assert one['cases'] == eight['cases']
    np.testing.assert_allclose(eight['losses'], one['losses'], rtol=1e-4)
    np.testing.assert_allclose(eight['validation_loss'], one['validation_loss'], rtol=1e-4)
    np.testing.assert_allclose(eight['validation_correlation'], one['validation_correlation'], rtol=1e-3)
    assert len(one['statistics']) == (6 if normalised else 0)
    for start, values in zip(3 * (0, 1), one['statistics'], strict=False):  # means and variances
        assert np.all(np.abs(np.subtract(values, start)) > 1e-4)
    for ours, theirs in zip(eight['statistics'], one['statistics'], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_weights_at_the_start_are_those_of_the_best_compiled_program(monkeypatch):
    """In XLA's default way of fusing operations, unlike the other tests."""
    task = MapTask(NETWORK, PROBLEM, SETTINGS, SEED)
    compiled = functools.partial(jax.jit, task.init)
    usual = {'xla_cpu_use_fusion_emitters': True} if 'xla_cpu_use_fusion_emitters' in os.environ['XLA_FLAGS'] else {}
    init = compiled(compiler_options=usual | {'xla_backend_optimization_level': 3})
    with monkeypatch.context() as patch:
        patch.setattr(training, '_init_of', training._init_of.__wrapped__)  # another test may have compiled it
        patch.setattr(jax, 'jit', lambda _, compiler_options: compiled(compiler_options=usual | compiler_options))
        state = init_state(task)
    assert_same_trees(state.params, init(jax.random.key(SEED)))


def test_step_is_adam_on_the_gradient_of_the_mean_squared_error():
    """Without warm-up Adam's first step moves every weight by the learning rate against the sign of its gradient."""
    settings = dataclasses.replace(SETTINGS, warmup_steps=0, learning_rate=1e-3)
    before = with_biases(init_state(MapTask(NETWORK, PROBLEM, settings, SEED)))

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        batch = make_batch(stream_key(SEED, 'training'), 0, jnp.arange(8), PROBLEM)
        inputs = network_input(batch.patterson, PROBLEM.num_atoms, PROBLEM.encoding)
        return jnp.mean((NETWORK.apply(params, inputs) - batch.target) ** 2)

    error, gradients = loss(before.params)
    after, metrics = parallelize(make_train_step(MapTask(NETWORK, PROBLEM, settings, SEED)))(replicate(before))
    np.testing.assert_allclose(metrics['loss'], error, rtol=1e-5)
    norm = np.sqrt(sum(np.sum(np.square(each)) for each in jax.tree.leaves(gradients)))
    np.testing.assert_allclose(metrics['gradient_norm'], norm, rtol=1e-4)
    for old, new, slope in zip(*map(jax.tree.leaves, (before.params, after.params, gradients)), strict=True):
        clear = np.abs(slope) > 1e-6  # far above Adam's epsilon
        np.testing.assert_allclose((new - old)[clear], (-1e-3 * np.sign(slope))[clear], rtol=0.02)
    assert int(after.step) == 1


def test_validation_is_the_mean_over_exactly_the_validation_cases():
    """In which the corner that training leaves empty is filled."""
    params = init_state(MapTask(NETWORK, PROBLEM, SETTINGS, SEED)).params
    training, testing = (dataclasses.replace(PROBLEM, **{field: 1.2}) for field in ('empty_corner', 'filled_corner'))
    measured = make_validation(MapTask(NETWORK, training, SETTINGS, SEED))(replicate(params))

    @jax.jit
    def scores(params):
        batch = make_batch(stream_key(SEED, 'validation'), 0, jnp.arange(10), testing)
        inputs = network_input(batch.patterson, PROBLEM.num_atoms, PROBLEM.encoding)
        return squared_errors(NETWORK.apply(params, inputs), batch.target)

    errors, empty_errors, correlations = scores(params)
    np.testing.assert_allclose(measured['validation_loss'], np.mean(errors), rtol=1e-5)
    np.testing.assert_allclose(measured['validation_empty_loss'], np.mean(empty_errors), rtol=1e-5)
    np.testing.assert_allclose(measured['validation_correlation'], np.mean(correlations), rtol=1e-4)


@functools.cache
def compiled_schedule(settings):
    def positions(step, seed, sets_before):
        return training_batch(step, PROBLEM, settings, seed, sets_before).positions

    return parallelize(positions)


@functools.cache
def compiled_set(size):
    def positions(seed, set_number):
        return make_batch(stream_key(seed, 'training'), set_number, jnp.arange(size), PROBLEM).positions

    return jax.jit(positions)


def cases_seen(settings, num_steps, seed=SEED, sets_before=0):
    """(set, index) of every case that a run sees, by comparing positions with those of whole sets."""
    numbers = range(sets_before, sets_before + settings.sets_begun(num_steps))
    cases = {}
    for number in numbers:
        positions = np.asarray(compiled_set(settings.set_size)(seed, number))
        cases |= {case.tobytes(): (number, index) for index, case in enumerate(positions)}
    assert len(cases) == settings.set_size * len(numbers)
    see = compiled_schedule(settings)
    batches = [np.asarray(see(np.int32(step), seed, sets_before)) for step in range(num_steps)]
    assert all(len(batch) == settings.batch_size for batch in batches)
    return [cases[case.tobytes()] for batch in batches for case in batch]


def test_every_epoch_is_a_set_in_an_order_of_its_own_and_three_epochs_later_comes_the_next_set():
    orders = set()
    for seed, sets_before in ((SEED, 0), (SEED, 5), (SEED + 1, 0)):
        seen = cases_seen(PAPERS_SETS, 18, seed, sets_before)
        epochs = [seen[start : start + 16] for start in range(0, len(seen), 16)]
        assert len(epochs) == 9
        for number, epoch in enumerate(epochs):
            assert sorted(epoch) == [(sets_before + number // 3, index) for index in range(16)]
            orders.add(tuple(index for _, index in epoch))
    assert len(orders) == 27
    assert tuple(range(16)) not in orders


def test_a_run_that_goes_on_after_other_sets_sees_what_a_single_run_would():
    assert cases_seen(PAPERS_SETS, 6, sets_before=1) == cases_seen(PAPERS_SETS, 12)[48:]


@pytest.mark.parametrize('sets_before', [0, 5])
def test_sets_used_once_are_seen_in_their_order_even_where_they_end_within_a_batch(sets_before):
    seen = cases_seen(dataclasses.replace(SETTINGS, set_size=12), 9, sets_before=sets_before)
    assert seen == [(sets_before + number // 12, number % 12) for number in range(72)]


def test_sets_are_counted_when_their_first_case_is_seen():
    for set_size, batch_size, epochs in ((16, 8, 3), (40, 8, 1), (12, 8, 1), (3, 8, 1), (8, 8, 2)):
        settings = dataclasses.replace(SETTINGS, set_size=set_size, batch_size=batch_size, epochs_per_set=epochs)
        for steps in range(20):
            sets = {number // (set_size * epochs) for number in range(steps * batch_size)}
            assert settings.sets_begun(steps) == len(sets)


def test_a_set_for_several_epochs_must_be_a_multiple_of_the_batch():
    assert dataclasses.replace(SETTINGS, set_size=36).set_size == 36
    with pytest.raises(InputError) as refusal:
        dataclasses.replace(SETTINGS, set_size=36, epochs_per_set=2)
    assert str(refusal.value) == (
        'set_size is 36; it must be a multiple of batch_size, 8, where epochs_per_set is more than 1'
    )


def test_learning_rate_warms_up_and_decays():
    cosine = learning_rate_schedule(dataclasses.replace(SETTINGS, schedule='cosine'))
    np.testing.assert_allclose([cosine(0), cosine(2), cosine(4), cosine(20)], [0, 5e-4, 1e-3, 1e-5], rtol=1e-5)
    trapezoid = learning_rate_schedule(dataclasses.replace(SETTINGS, schedule='trapezoid'))
    expected = [0, 5e-4, 1e-3, 1e-3, 5.05e-4, 1e-5]
    np.testing.assert_allclose([trapezoid(step) for step in (0, 2, 4, 14, 17, 20)], expected, rtol=1e-5)
    long_warmup = learning_rate_schedule(dataclasses.replace(SETTINGS, schedule='trapezoid', warmup_steps=16))
    np.testing.assert_allclose([long_warmup(step) for step in (8, 16, 20)], [5e-4, 1e-3, 1e-5], rtol=1e-5)
    constant = learning_rate_schedule(SETTINGS)
    np.testing.assert_allclose([constant(0), constant(4), constant(20)], [0, 1e-3, 1e-3], rtol=1e-5)


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
    assert all(0 < row['empty_loss'] < 1 for row in rows)
    assert len({row['validation_empty_loss'] for row in rows if 'validation_loss' in row}) == 1
    assert log_of(whole_run[1]) == without_timings(rows) != rows


def test_run_started_again_in_its_workdir_goes_on_and_ends_bit_for_bit_the_same(whole_run, tmp_path):
    """A run that stops after its checkpoint of step 8, with rows of steps that will be taken again in its log."""
    whole, whole_dir = whole_run
    assert saved_steps(whole_dir)[-1] == 20
    workdir = tmp_path / 'stopped'
    with pytest.raises(KeyboardInterrupt):
        _run_until(workdir, SETTINGS, step=14)
    rows = read_metrics(workdir / 'metrics.jsonl')
    assert rows[-1]['step'] == 12
    assert_same_trees(run(workdir), whole)
    assert_same_run(workdir, whole_dir)


@pytest.mark.parametrize('damaged', [[20], [16, 20]])
def test_run_goes_on_from_before_a_damaged_checkpoint_and_ends_bit_for_bit_the_same(
    whole_run, tmp_path, capsys, damaged
):
    """With rows in its log, too, of steps that will be taken again."""
    workdir, keeping_all = tmp_path / 'run', CheckpointSettings(every_steps=8, keep=9)
    run(workdir, checkpointing=keeping_all)
    for step in damaged:
        damage(workdir / 'checkpoints' / f'{step}' / 'params' / 'manifest.ocdbt')
    capsys.readouterr()
    assert_same_trees(run(workdir, checkpointing=keeping_all), whole_run[0])
    notes = [line for line in capsys.readouterr().err.splitlines() if not line.startswith('training: ')]
    assert notes == [
        f'note: {workdir / "checkpoints" / str(step)}: params/manifest.ocdbt is damaged; this checkpoint is not used'
        for step in damaged
    ]
    assert saved_steps(workdir) == [8, 16, 20]
    aside = (workdir / 'checkpoints').glob('*.damaged')
    assert sorted(path.name for path in aside) == [f'{step}.damaged' for step in damaged]
    assert log_of(workdir) == log_of(whole_run[1])


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


def test_diverging_run_stops_with_metric_and_step_and_keeps_its_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _run_until(tmp_path, SETTINGS, step=14)
    settings = dataclasses.replace(SETTINGS, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(NonFiniteError, match=r'(loss|correlation|gradient_norm) is (nan|inf) at step \d+'):
        run(tmp_path, settings)
    with Checkpoints(tmp_path / 'checkpoints', read_only=True) as checkpoints:
        assert checkpoints.latest_step == 8


def test_steps_take_the_memory_of_the_state_and_only_the_first_compiles(caplog):
    state = replicate(init_state(MapTask(NETWORK, PROBLEM, SETTINGS, SEED)))
    train_step = parallelize(make_train_step(MapTask(NETWORK, PROBLEM, SETTINGS, SEED)), donate=True)
    with jax.log_compiles():
        after, _ = jax.block_until_ready(train_step(state))
        assert any('ompil' in record.message for record in caplog.records)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
        caplog.clear()
        for _ in range(3):
            after, _ = train_step(after)
        assert int(after.step) == 4
    assert not caplog.records
