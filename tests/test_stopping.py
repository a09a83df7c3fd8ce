"""Stopping and going on: wherever a training stops, it ends as one that did not, bit for bit."""

import contextlib
import dataclasses
import functools
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
from tiny import (
    SETTINGS,
    as_flags,
    assert_same_run,
    assert_same_trees,
    last_checkpoint,
    log_of,
    run,
    saved_steps,
    tiny_config,
)

from patterson_jax.errors import Unfinished
from patterson_jax.learning import stopping, training
from patterson_jax.learning.checkpoints import CheckpointSettings
from patterson_jax.learning.metrics import read_metrics
from patterson_jax.learning.stopping import StopRequest, unfinished_on_sigterm

ROOT = Path(__file__).parents[1]


pytestmark = pytest.mark.usefixtures('optax_promotes_types')


@pytest.fixture
def minutes(monkeypatch):
    """A clock that goes on by a minute each time it is asked, as a training does after each step but the last.

    The process began two minutes before the training.
    """
    clock = types.SimpleNamespace(asked=0)

    def monotonic():
        clock.asked += 1
        return 60.0 * clock.asked

    monkeypatch.setattr(stopping, 'time', types.SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr(stopping, 'STARTED', -120.0)
    return clock


@pytest.fixture(scope='module')
def whole_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('whole')
    return run(workdir), workdir


# Steps 8, 16 and 20 are saved anyway, 4 and 12 validated, the other even ones logged.
@pytest.mark.parametrize(('limit', 'stops'), [(5, [3, 6, 9, 12, 15, 18]), (10, [8, 16])])
def test_run_stopped_by_its_time_limit_ends_bit_for_bit_as_one_that_was_not(whole_run, tmp_path, minutes, limit, stops):
    whole, whole_dir = whole_run
    for stop in stops:
        minutes.asked = 0
        with pytest.raises(Unfinished) as unfinished:
            run(tmp_path / 'run', limited(SETTINGS, limit))
        measured = '' if stop % 8 == 0 else r', validation correlation -?0\.\d{4}'  # else the log tells it
        told = f'stopped by the time limit, {limit} minutes after step {stop} of 20, which is saved{measured}; '
        assert re.fullmatch(told + 'the same command continues from there', str(unfinished.value))
        assert saved_steps(tmp_path / 'run')[-1] == stop
        assert log_of(tmp_path / 'run') == [row for row in log_of(whole_dir) if row['step'] <= stop]
        pending = last_checkpoint(tmp_path / 'run')[1]['pending']
        assert len(pending) == stop % 2  # steps since the last row
    minutes.asked = 0
    assert_same_trees(run(tmp_path / 'run', limited(SETTINGS, limit)), whole)
    assert_same_run(tmp_path / 'run', whole_dir)


def test_several_steps_a_call_are_the_same_run_and_can_be_stopped_between_calls(tmp_path, minutes):
    """Calls end with steps 1, 5, 6, 8, 12, 16, 18 and 20; the host is asked whether to stop after each but the last."""
    one_by_one = dataclasses.replace(SETTINGS, log_every=6, validate_every=12)
    at_once = dataclasses.replace(one_by_one, steps_per_call=4)
    run(tmp_path / 'one by one', one_by_one)
    minutes.asked = 0
    whole = run(tmp_path / 'whole', at_once)
    assert minutes.asked == 7
    rows = log_of(tmp_path / 'whole')
    assert [row['step'] for row in rows] == [6, 8, 12, 16, 18, 20]
    for ours, theirs in zip(rows, log_of(tmp_path / 'one by one'), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for limit, stop, pending in (
        (4, 5, 5),
        (6, 16, 0),
    ):  # the second run begins with step 6, and goes on to 8, 12 and 16
        minutes.asked = 0
        with pytest.raises(Unfinished, match=f'after step {stop} of 20'):
            run(tmp_path / 'run', limited(at_once, limit))
        assert len(last_checkpoint(tmp_path / 'run')[1]['pending']) == pending
    minutes.asked = 0
    assert_same_trees(run(tmp_path / 'run', at_once), whole)
    assert_same_run(tmp_path / 'run', tmp_path / 'whole')


def limited(settings, minutes):
    return dataclasses.replace(settings, max_minutes=float(minutes))


def test_a_limit_that_is_reached_at_the_last_step_is_none(whole_run, tmp_path, minutes):
    run(tmp_path / 'run', limited(SETTINGS, 22))
    assert minutes.asked == 19
    assert_same_run(tmp_path / 'run', whole_run[1])


def test_the_shortest_limit_still_lets_every_command_take_a_step(tmp_path):
    for stop in (1, 2):
        with pytest.raises(Unfinished, match=rf'^stopped by the time limit, 1e-09 minutes after step {stop} of 20'):
            run(tmp_path / 'run', limited(SETTINGS, 1e-9))


@pytest.fixture
def handler():
    """What SIGTERM did before the test, which it must do again afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    yield before
    after = signal.signal(signal.SIGTERM, before)
    assert after == before


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_asks_for_a_stop_after_a_step(handler):
    with unfinished_on_sigterm(), pytest.raises(Unfinished, match='the training'), StopRequest(0.0) as stop:
        assert not stop.requested()
        terminate()
        assert stop.requested()
        assert stop.reason == 'SIGTERM'
        raise Unfinished('the training')  # not the one that a SIGTERM elsewhere raises


def test_sigterm_outside_of_training_ends_what_is_done(handler):
    with pytest.raises(Unfinished) as unfinished, unfinished_on_sigterm():
        with StopRequest(0.0):
            pass
        terminate()
        pytest.fail('SIGTERM was not heard')
    assert str(unfinished.value) == 'stopped by SIGTERM; the same command continues from what is saved'


def test_sigterm_during_the_last_step_ends_what_comes_after_training(whole_run, tmp_path, monkeypatch, handler):
    class Terminated(training.MetricsLog):
        def write(self, row):
            if row['step'] == 20:
                terminate()
            super().write(row)

    with monkeypatch.context() as patch, pytest.raises(Unfinished) as unfinished:
        patch.setattr(training, 'MetricsLog', Terminated)
        run(tmp_path / 'run')
    assert str(unfinished.value) == 'stopped by SIGTERM after the training; the same command continues from there'
    assert_same_run(tmp_path / 'run', whole_run[1])
    assert_same_trees(run(tmp_path / 'run'), whole_run[0])


def test_no_handling_of_errors_stops_what_sigterm_has_begun(handler):
    with pytest.raises(Unfinished), unfinished_on_sigterm(), contextlib.suppress(Exception):
        terminate()


def test_an_error_in_training_is_not_hidden_by_an_earlier_sigterm(handler):
    with pytest.raises(ZeroDivisionError), unfinished_on_sigterm(), StopRequest(0.0):
        terminate()
        raise ZeroDivisionError


def test_elsewhere_than_in_the_main_thread_signals_are_left_alone(handler):
    seen = []

    def work():
        with unfinished_on_sigterm(), StopRequest(0.0) as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.requested()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(handler, False)]


LONG = dataclasses.replace(SETTINGS, num_steps=80, log_every=10, validate_every=30)


def test_a_command_stopped_by_sigterm_exits_75_and_started_again_ends_as_one_that_was_not(tmp_path):
    """The same command without a stop is run in this process."""
    config = tiny_config(settings=LONG)
    config.checkpoint.every_steps = 32
    run(tmp_path / 'whole', LONG, checkpointing=CheckpointSettings(every_steps=32, keep=1))
    workdir = tmp_path / 'run'
    command = [sys.executable, ROOT / 'run_experiment.py', f'--config={ROOT / "configs" / "quick.py"}']
    command += [*as_flags(config), f'--workdir={workdir}']
    pipe = subprocess.PIPE
    start = functools.partial(subprocess.Popen, command, stdout=pipe, stderr=pipe, text=True)
    with start() as process:
        while process.poll() is None and not read_metrics(workdir / 'metrics.jsonl'):
            time.sleep(0.005)
        process.terminate()
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 75, errors
    step = saved_steps(workdir)[-1]
    assert 10 <= step < 80
    lines = [line for line in errors.splitlines() if not line.startswith('training: ')]  # every ten seconds
    told = f'stopped by SIGTERM after step {step} of 80, which is saved; the same command continues from there'
    assert lines == [told]
    assert output == ''
    assert log_of(workdir) == [row for row in log_of(tmp_path / 'whole') if row['step'] <= step]
    assert not (workdir / 'evaluation.json').exists()

    with start() as process:
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert '4 unseen cases' in output
    assert_same_run(workdir, tmp_path / 'whole')
