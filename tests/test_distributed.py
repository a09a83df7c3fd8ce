"""Two processes, each with its own device, train as one does, write one log and one checkpoint, and stop together."""

import functools
import os
import signal
import socket
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
NUM_STEPS = 120
TINY = [
    f'--config={ROOT / "configs" / "quick.py"}',
    '--config.problem.grid_size=12',
    '--config.problem.num_atoms=2',
    '--config.problem.box_edge=4',
    '--config.model.features=2',
    '--config.model.inner_kernel_size=3',
    '--config.model.inner_depth=1',
    '--config.model.batch_norm=early',
    f'--config.train.num_steps={NUM_STEPS}',
    '--config.train.learning_rate=1e-4',
    '--config.train.warmup_steps=20',
    '--config.train.set_size=40',
    '--config.train.epochs_per_set=3',
    '--config.train.num_validation=6',
    '--config.train.log_every=10',
    '--config.train.validate_every=30',
    '--config.checkpoint.every_steps=80',
    '--config.evaluate.num_cases=0',
]
EVALUATE = [
    '--config.evaluate.num_cases=4',
    '--config.evaluate.batch_size=4',
    '--config.evaluate.methods=',  # the paper's procedure alone, for the others take long to compile
    '--config.separate.num_swaps=20',
]


def start(workdir, log, *flags, **environment):
    command = [sys.executable, ROOT / 'run_experiment.py', *TINY, f'--workdir={workdir}', *flags]
    with log.open('w') as file:
        # With the compiler's settings of the tests: a program for two processes is compiled by both at the same time.
        return subprocess.Popen(command, env=os.environ | environment, stdout=file, stderr=subprocess.STDOUT)


def start_two(workdir, *flags):
    """Both processes, which take two steps a call, and what they say."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{probe.getsockname()[1]}'
    logs = [workdir.with_suffix(f'.{number}.log') for number in range(2)]
    processes = []
    for number, log in enumerate(logs):
        place = {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': str(number)}
        more = ('--distributed', '--config.train.steps_per_call=2', *flags)
        processes.append(start(workdir, log, *more, **place))
    return processes, logs


def statuses(processes):
    return [process.wait(timeout=300) for process in processes]


def metrics(workdir):
    rows = read_metrics(workdir / 'metrics.jsonl')
    return {name: [row[name] for row in rows if name in row] for name in rows[-1]}


@pytest.fixture(scope='module')
def one(tmp_path_factory):
    """The workdir of a run by one process."""
    workdir = tmp_path_factory.mktemp('one') / 'run'
    log = workdir.with_suffix('.log')
    assert start(workdir, log).wait(timeout=300) == 0, log.read_text()
    return workdir


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    """The workdir of a run by two processes, which were told to stop and then started again; and what they said."""
    workdir = tmp_path_factory.mktemp('two') / 'run'
    processes, logs = start_two(workdir)
    deadline = time.monotonic() + 200
    while len(read_metrics(workdir / 'metrics.jsonl')) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    for process in processes:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)  # so that they do not hear of it between the same two steps
    assert statuses(processes) == [75, 75], [log.read_text() for log in logs]
    stopped = [log.read_text() for log in logs]
    with Checkpoints(workdir / 'checkpoints', read_only=True) as checkpoints:
        assert 0 < checkpoints.latest_step < NUM_STEPS
    processes, logs = start_two(workdir, *EVALUATE)
    assert statuses(processes) == [0, 0], [log.read_text() for log in logs]
    return workdir, stopped, [log.read_text() for log in logs]


def test_two_processes_see_the_same_cases_and_losses_as_one(one, two):
    ours, theirs = metrics(two[0]), metrics(one)
    assert ours['step'] == theirs['step'] and ours['examples'] == theirs['examples']
    for name in ('loss', 'empty_loss', 'validation_loss', 'validation_empty_loss'):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-4, err_msg=name)


def test_two_processes_write_one_checkpoint_that_one_process_reads(one, two):
    with Checkpoints(one / 'checkpoints', read_only=True) as checkpoints:
        theirs = checkpoints.manager.restore(NUM_STEPS)['params']
    with Checkpoints(two[0] / 'checkpoints', read_only=True) as checkpoints:
        assert checkpoints.latest_step == NUM_STEPS
        ours = checkpoints.restore(NUM_STEPS, params=theirs)['params']
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-3), ours, theirs)
    assert (two[0] / 'evaluation.json').exists()


def test_processes_stop_at_the_same_step_and_the_first_speaks_for_all(two):
    _, stopped, finished = two
    lines = [
        [line for line in text.splitlines() if line.startswith('stopped by SIGTERM after step')] for text in stopped
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 1
    assert 'unseen cases' in finished[0]
    assert 'training' not in finished[1] and 'unseen cases' not in finished[1]


def test_a_cluster_that_cannot_be_found_is_a_users_mistake(tmp_path):
    log = tmp_path / 'log'
    assert start(tmp_path / 'run', log, '--distributed', JAX_NUM_PROCESSES='2').wait(timeout=100) == 2
    lines = log.read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith('error: --distributed: ') and 'JAX_COORDINATOR_ADDRESS' in lines[0]


@pytest.mark.parametrize(('status', 'queued'), [(0, ''), (75, 'requeue 7\n'), (2, '')])
def test_slurm_script_runs_each_process_and_queues_unfinished_jobs_again(tmp_path, status, queued):
    """With SLURM's two commands replaced by some that write down how they are called."""
    for name, body in {'srun': f'exit {status}', 'scontrol': 'exit 0'}.items():
        command = tmp_path / name
        command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/{name}.log\n{body}\n')
        command.chmod(0o755)
    environment = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '7', 'SLURM_ARRAY_TASK_ID': '3'}
    script = [ROOT / 'launch' / 'slurm.sh', '--config=configs/cluster.py', '--sweep=TASK']
    done = subprocess.run(script, env=os.environ | environment, cwd=tmp_path, check=False)
    assert done.returncode == status
    called = (tmp_path / 'srun.log').read_text()
    assert called.endswith(' python run_experiment.py --distributed --config=configs/cluster.py --sweep=3\n')
    log = tmp_path / 'scontrol.log'
    assert (log.read_text() if log.exists() else '') == queued
