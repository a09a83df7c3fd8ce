"""Shows the progress of long work: a bar with the time left on a terminal, plain lines elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


class ProgressReport:
    """Reports how far a task of `total` units is, on stderr; a context manager.

    Args:
        task: its name, a word or two.
        total: units of work.
        done: units that an earlier run has completed.
        silent: whether to report nothing, because another process reports.
        may_end_early: whether the work may end before `total`; then the lines say "at most".
    """

    def __init__(self, task: str, total: int, done: int = 0, silent: bool = False, may_end_early: bool = False):
        self.silent, self.at_most = silent, 'at most ' if may_end_early else ''
        self.task, self.total, self.done = task, total, done
        self.last_line = time.perf_counter()
        self.restart(done)
        console = Console(stderr=True)
        self.bar = None
        if console.is_terminal and not silent:
            columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, TextColumn('{task.fields[note]}'), console=console)
            self.bar_task = self.bar.add_task(task, total=total, completed=done, note='')

    def __enter__(self):
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *error):
        if self.bar:
            self.bar.stop()

    def restart(self, done: int) -> None:
        """Measures the pace from now on, for example after compilation; `done` units are complete."""
        self.started, self.started_at = time.perf_counter(), done

    def update(self, done: int, note: str = '') -> None:
        """Reports that `done` units are complete, with a note such as the current loss."""
        self.done = done
        if self.bar:
            self.bar.update(self.bar_task, completed=done, note=note)
            return
        now = time.perf_counter()
        if self.silent:
            return
        if now - self.last_line >= SECONDS_BETWEEN_LINES or done == self.total:
            self.last_line = now
            line = f'{self.task}: {done} of {self.at_most}{self.total}, {self.at_most}{self._time_left(now)} left'
            print(f'{line}, {note}' if note else line, file=sys.stderr, flush=True)

    def _time_left(self, now):
        pace = (now - self.started) / max(self.done - self.started_at, 1)
        minutes, seconds = divmod(round(pace * (self.total - self.done)), 60)
        hours, minutes = divmod(minutes, 60)
        return f'{hours}:{minutes:02}:{seconds:02}'
