"""A training that is killed at any moment and started again ends as one that never was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from patterson_jax.learning.checkpoints import Checkpoints
from patterson_jax.learning.metrics import read_metrics

ROOT = Path(__file__).parent.parent
NUM_STEPS, STEPS_BETWEEN_CHECKPOINTS = 60, 3
TINY = [
    f'--config={ROOT / "configs" / "quick.py"}',
    '--config.problem.grid_size=12',
    '--config.problem.num_atoms=2',
    '--config.problem.box_edge=4',
    '--config.model.features=2',
    '--config.model.inner_kernel_size=3',
    '--config.model.inner_depth=1',
    f'--config.train.num_steps={NUM_STEPS}',
    '--config.train.warmup_steps=10',
    '--config.train.set_size=20',
    '--config.train.epochs_per_set=3',
    '--config.train.num_validation=4',
    '--config.train.log_every=2',
    '--config.train.validate_every=5',
    f'--config.checkpoint.every_steps={STEPS_BETWEEN_CHECKPOINTS}',
    '--config.evaluate.num_cases=0',
]
KILLS, SEED = 3, 20


@pytest.fixture(scope='module')
def environment():
    """What is compiled is kept: the first, undisturbed run compiles for the others."""
    return os.environ | {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}


def start(workdir, environment):
    command = [sys.executable, ROOT / 'run_experiment.py', *TINY, f'--workdir={workdir}']
    with workdir.with_suffix('.log').open('w') as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def output_of(workdir):
    return workdir.with_suffix('.log').read_text()


def finish(workdir, environment):
    assert start(workdir, environment).wait(timeout=300) == 0, output_of(workdir)


@pytest.fixture(scope='module')
def whole_run(tmp_path_factory, environment):
    workdir = tmp_path_factory.mktemp('whole') / 'run'
    finish(workdir, environment)
    return workdir


def last_step(workdir):
    return max((row['step'] for row in read_metrics(workdir / 'metrics.jsonl')), default=0)


def is_saving(workdir):
    return any(workdir.glob('checkpoints/*tmp*'))


def kill(workdir, environment, step, while_saving, delay):
    """Starts the run and kills it some time after a step is logged, or after a checkpoint then begins to be written."""
    process = start(workdir, environment)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if last_step(workdir) >= step and (not while_saving or is_saving(workdir)):
            break
        time.sleep(0.001)
    time.sleep(delay)
    assert process.poll() is None, output_of(workdir)
    assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def saved(workdir):
    """The last checkpoint, as plain arrays, and the steps that are kept."""
    with Checkpoints(workdir / 'checkpoints', read_only=True) as checkpoints:
        items = checkpoints.manager.restore(checkpoints.latest_step)
        arrays = {item: jax.tree.map(np.asarray, items[item]) for item in ('params', 'optimizer')}
        return arrays, (checkpoints.latest_step, checkpoints.best_step)


def without_timings(rows):
    return [{key: row[key] for key in row if key not in ('seconds', 'examples_per_second')} for row in rows]


def test_run_killed_three_times_ends_bit_for_bit_as_one_never_killed(whole_run, environment, tmp_path):
    random = np.random.default_rng(SEED)
    workdir = tmp_path / 'run'
    saw_saving = 0
    for number in range(KILLS):
        step = (number * NUM_STEPS) // (KILLS + 1) + int(random.integers(1, NUM_STEPS // (KILLS + 1)))
        while_saving = number % 2 == 0
        kill(workdir, environment, step, while_saving, delay=random.uniform(0, 0.02))
        saw_saving += is_saving(workdir)
        assert last_step(workdir) < NUM_STEPS
    assert saw_saving > 0  # at least once a checkpoint was left half written
    finish(workdir, environment)
    assert not is_saving(workdir)
    assert without_timings(read_metrics(workdir / 'metrics.jsonl')) == without_timings(
        read_metrics(whole_run / 'metrics.jsonl')
    )
    (ours, our_steps), (theirs, their_steps) = saved(workdir), saved(whole_run)
    assert our_steps == their_steps
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
