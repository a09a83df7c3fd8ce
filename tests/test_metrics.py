"""What a run tells of itself: a log that survives being cut short, and a clock that counts training alone."""

import json
import types

import numpy as np
import pytest

from patterson_jax.learning import metrics
from patterson_jax.learning.metrics import Clock, MetricsLog, fit_learning_curve, read_metrics


@pytest.fixture
def time(monkeypatch):
    """Seconds that a test sets."""
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(metrics, 'time', types.SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def test_the_clock_goes_on_from_earlier_runs_and_its_pace_leaves_out_what_is_skipped(time):
    clock = Clock(50.0)
    assert clock.seconds == 50
    time.seconds += 30  # compilation
    clock.skip(8)
    time.seconds += 2
    assert clock.lap(24) == {'seconds': 82.0, 'examples_per_second': 8.0}
    time.seconds += 4
    assert clock.lap(32) == {'seconds': 86.0, 'examples_per_second': 2.0}
    time.seconds += 10  # validation
    clock.skip(32)
    time.seconds += 1.0004
    assert clock.lap(36) == {'seconds': 97.0, 'examples_per_second': 4.0}


def test_cut_last_line_of_the_log_is_left_out(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    for damage in ('{"st', '{"loss": 1}\n{"step": 3}\n', '[3]\n', '\x00\x00'):
        path.write_text('{"step": 1}\n{"step": 2}\n' + damage)
        assert read_metrics(path) == [{'step': 1}, {'step': 2}]


def test_there_are_no_rows_where_there_is_no_log(tmp_path):
    assert read_metrics(tmp_path / 'metrics.jsonl') == []


@pytest.mark.parametrize(('step', 'kept'), [(0, 0), (4, 2), (5, 2), (6, 3), (9, 3)])
def test_a_log_gone_on_with_drops_what_comes_again_and_a_line_cut_short(tmp_path, step, kept):
    path, rows = tmp_path / 'metrics.jsonl', [{'step': step, 'loss': 0.1 * step} for step in (2, 4, 6)]
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows) + '{"step": 8, "lo')
    log = MetricsLog(path, step)
    assert read_metrics(path) == rows[:kept]
    log.write({'step': 10, 'loss': 0.5})
    assert path.read_text() == ''.join(json.dumps(row) + '\n' for row in [*rows[:kept], {'step': 10, 'loss': 0.5}])
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ['metrics.jsonl']


def test_a_power_law_is_found_in_the_end_of_a_log_and_leads_on():
    """The first quarter of the cases, and rows without validation, do not count."""
    cases = np.arange(100, 2001, 100)
    rows = [
        {
            'examples': int(each),
            'validation_loss': 9.0 if each < 500 else 3.0 * each**-0.5,
            'validation_empty_loss': 1.0,
        }
        for each in cases
    ]
    curve = fit_learning_curve([{'examples': 50, 'loss': 1.0}, *rows])
    np.testing.assert_allclose(curve, (3.0, 0.5), rtol=1e-9)
    assert curve.loss_at(900) == pytest.approx(0.1)
    assert curve.cases_at(0.01) == pytest.approx(90_000)
    assert curve._replace(exponent=-0.1).cases_at(0.01) == curve._replace(exponent=1e-3).cases_at(0.01) == np.inf
    assert fit_learning_curve(rows[4:6]) is None is fit_learning_curve([])
    low = [row | {'validation_empty_loss': 0.1} for row in rows]  # of which the losses are more than half
    assert fit_learning_curve(low) is None
