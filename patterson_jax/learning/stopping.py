"""Stops work on SIGTERM, which schedulers send, or at a time limit; training stops between two steps."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

import jax

from patterson_jax.errors import Unfinished
from patterson_jax.learning.parallel import on_any_process

STARTED = time.monotonic()  # about the start of the process
STEPS_BETWEEN_AGREEMENTS = 10  # about so many, with several processes, which must stop at the same step


@contextlib.contextmanager
def unfinished_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM raise Unfinished, except within a StopRequest; for work that has always saved its state."""

    def stop(*_):
        raise Unfinished('stopped by SIGTERM; the same command continues from what is saved')

    if threading.current_thread() is not threading.main_thread():  # the only one that gets signals
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class StopRequest:
    """A context manager in which SIGTERM does not end the process but requests a stop.

    Args:
        max_minutes: the time limit, from the start of the process; 0: none.
        steps_per_call: steps between two questions.
    """

    def __init__(self, max_minutes: float, steps_per_call: int = 1):
        self.max_minutes = max_minutes
        self.questions_between = max(1, STEPS_BETWEEN_AGREEMENTS // steps_per_call)
        self.deadline = STARTED + 60 * max_minutes if max_minutes else float('inf')
        self.terminated = False
        self.questions = 0

    def __enter__(self):
        self.in_charge = threading.current_thread() is threading.main_thread()
        if self.in_charge:
            self.previous = signal.signal(signal.SIGTERM, self._terminate)
        return self

    def __exit__(self, *error):
        if self.in_charge:
            signal.signal(signal.SIGTERM, self.previous)

    def too_late(self) -> bool:
        """Whether any process received SIGTERM after the last step, so that only later work can be stopped."""
        return on_any_process(self.terminated)

    def _terminate(self, *_):
        self.terminated = True

    @property
    def reason(self) -> str:
        """Why to stop, in words."""
        if self.terminated:
            return 'SIGTERM'
        return f'the time limit, {self.max_minutes:g} minutes' if self._late() else 'another process'

    def _late(self):
        return time.monotonic() >= self.deadline

    def requested(self) -> bool:
        """Whether to stop now. All processes must ask equally often, and all get the same answer."""
        wanted = self.terminated or self._late()
        if jax.process_count() == 1:
            return wanted
        self.questions += 1
        return self.questions % self.questions_between == 0 and on_any_process(wanted)
