"""Runs a process with a time limit; its results are the lines of JSON that it prints."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import NamedTuple

from benchmarks import ROOT
from benchmarks.speed import cells

OUT_OF_MEMORY = ('RESOURCE_EXHAUSTED', 'out of memory', 'OutOfMemory')


class Outcome(NamedTuple):
    """How a process ended.

    Attributes:
        results: in order; those until then, if it was stopped.
        fault: why it did not finish, in words; '' if it did.
        out_of_memory: whether lack of memory is the fault.
    """

    results: list[dict]
    fault: str = ''
    out_of_memory: bool = False


def run_process(
    command: list[str],
    limit: float,
    environment: dict[str, str] | None = None,
    told: Callable[[dict], None] = lambda result: None,
    grace: float = 0.0,
) -> Outcome:
    """Runs a command for at most `limit` seconds; each line of JSON that it prints is a result.

    Args:
        command: program and arguments.
        limit: seconds after which it and its children are killed.
        environment: of the process; None: that of this one.
        told: called with each result.
        grace: seconds before the limit at which it gets SIGTERM.
    """
    results, cut = [], threading.Event()
    with tempfile.TemporaryFile('w+', errors='replace') as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )

        def stop(how):
            cut.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, how)

        timers = [
            threading.Timer(seconds, stop, [how])
            for seconds, how in ((limit - grace, signal.SIGTERM), (limit, signal.SIGKILL))
        ]
        try:
            for timer in timers:
                timer.daemon = True
                timer.start()
            for line in process.stdout:
                with contextlib.suppress(ValueError):  # a line that was cut short
                    results.append(json.loads(line))
                    told(results[-1])
            status = process.wait()
        finally:
            for timer in timers:
                timer.cancel()
            if process.poll() is None:
                stop(signal.SIGKILL)
                process.wait()
            process.stdout.close()
        errors.seek(0)
        said = errors.read()
    if status == 0:
        return Outcome(results)
    if cut.is_set():
        return Outcome(results, f'cut after {limit:.0f} s')
    if status == 75:  # a training that reached its own time limit
        return Outcome(results)
    memory = any(words in said for words in OUT_OF_MEMORY) or status == -signal.SIGKILL
    reason = 'out of memory' if memory else (said.strip().splitlines() or ['no message'])[-1]
    return Outcome(results, f'exit status {status}: {reason}', memory)


def with_less_and_less(run: Callable[[int], Outcome], number: int, say: Callable[[str], None]) -> tuple[int, Outcome]:
    """Runs something with `number` cases, then with half as many again and again while they do not fit in memory.

    Returns the number of cases at the end, and the outcome.
    """
    outcome = run(number)
    while outcome.out_of_memory and number > 1:
        say(f'{number} do not fit in memory; {number // 2} are tried')
        number //= 2
        outcome = run(number)
    if outcome.out_of_memory:
        say('not even one fits in memory')
    return number, outcome


def cell_command(cell: dict) -> list[str]:
    """The command that runs a cell."""
    return [sys.executable, '-m', 'benchmarks.device.cells', json.dumps(cell)]


def cell_environment() -> dict[str, str]:
    """As for the cells of `benchmarks.speed`, but compiled code may be kept, and the host can always be used."""
    environment = cells.cell_environment()
    del environment['JAX_ENABLE_COMPILATION_CACHE']
    if platforms := environment.get('JAX_PLATFORMS'):
        environment['JAX_PLATFORMS'] = ','.join(dict.fromkeys([*platforms.split(','), 'cpu']))
    return environment
