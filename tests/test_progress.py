"""Progress of long work, where there is no terminal."""

from patterson_jax import progress
from patterson_jax.progress import ProgressReport


def test_a_line_tells_how_much_is_done_and_what_is_left(monkeypatch, capsys):
    now = iter([0.0, 0.0, 15.0, 20.0, 30.0])
    monkeypatch.setattr(progress.time, 'perf_counter', lambda: next(now))
    with ProgressReport('cases', 4) as report:
        report.update(1, 'a note')
        report.update(2)  # too soon after the last line
        report.update(4)
    assert capsys.readouterr().err == 'cases: 1 of 4, 0:00:45 left, a note\ncases: 4 of 4, 0:00:00 left\n'


def test_what_may_end_early_is_told_as_the_most(monkeypatch, capsys):
    now = iter([0.0, 0.0, 60.0])
    monkeypatch.setattr(progress.time, 'perf_counter', lambda: next(now))
    with ProgressReport('starts', 48, may_end_early=True) as report:
        report.update(3)
    assert capsys.readouterr().err == 'starts: 3 of at most 48, at most 0:15:00 left\n'
