"""Runs the cells of all tasks within the time of the command, and keeps the report."""

import sys
import time
from collections.abc import Callable

from benchmarks.device.options import Options
from benchmarks.device.processes import Outcome, cell_command, cell_environment, run_process
from patterson_jax.writing import write_json

REPORT = 'device.json'
TRAINING_SECONDS, TRAINING_SHARE = 240, 4 / 9  # seconds kept for training, or this share of a shorter time
LEAST = 5  # seconds; with less time nothing is begun


class Bench:
    """The time of the command and its report.

    Attributes:
        options: of the command line.
        deadline: on the clock `time.monotonic`.
        kept: seconds before the deadline that are kept for training until it begins.
        report: the content of `device.json`.
        failed: whether anything failed for another reason than time or memory.
    """

    def __init__(self, options: Options, report: dict, deadline: float):
        self.options, self.report, self.deadline = options, report, deadline
        seconds = 60 * options.minutes
        self.kept = min(TRAINING_SECONDS, TRAINING_SHARE * seconds) if 'training' in options.tasks else 0.0
        self.failed = False

    @property
    def left(self) -> float:
        """Seconds left for the present task."""
        return self.deadline - time.monotonic() - self.kept

    def write(self) -> None:
        """Writes the report as it is now."""
        write_json(self.options.output / REPORT, self.report)

    def say(self, words: str) -> None:
        """Prints a note for the reader of the figures, and adds it to the report."""
        print(words, file=sys.stderr, flush=True)
        self.report['notes'].append(words)
        self.write()

    def run(
        self,
        label: str,
        cell: dict,
        limit: float,
        told: Callable[[dict], None] = lambda result: None,
        grace: float = 0.0,
        **environment: str,
    ) -> Outcome:
        """Runs a cell of `benchmarks/device/cells.py`, and notes any fault; arguments as in `run_process`."""
        limit = min(limit, self.left)
        if limit < LEAST:
            self.say(f'{label}: not begun, no time left')
            return Outcome([], 'no time left')
        print(f'{label} ...', file=sys.stderr, flush=True)
        began = time.monotonic()

        def keep(result):
            told(result)
            self.write()

        outcome = run_process(cell_command(cell), limit, cell_environment() | environment, keep, grace)
        if not outcome.fault:
            print(f'{label}: {time.monotonic() - began:.1f} s', file=sys.stderr, flush=True)
        elif not outcome.out_of_memory:
            self.say(f'{label}: {outcome.fault}')
            self.failed |= not outcome.fault.startswith('cut')
        return outcome
