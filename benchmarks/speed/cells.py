"""Runs cells: measurements, each in a process of its own."""

import json
import os
import subprocess
import sys
import time
from typing import Any, NamedTuple

from benchmarks import ROOT


class Settings(NamedTuple):
    """What the command line asks for; where grid and features are None, configs/base.py has them.

    Attributes:
        tables: names of the tables to measure.
        batches: batch sizes of the table network.
        direct_batches: those at which XLA's direct convolution is measured too.
        repeats: timings of each thing, at most.
        seconds: of a cell; no timing begins after these.
        grid: grid size.
        features: channels of the network.
    """

    tables: tuple[str, ...]
    batches: tuple[int, ...]
    direct_batches: tuple[int, ...]
    repeats: int
    seconds: float
    grid: int | None
    features: int | None


class Cells:
    """Runs cells one after another and reports each on stderr.

    Attributes:
        common: what every cell is given: repeats, seconds, grid, features.
        failures: labels of the cells that failed.
    """

    def __init__(self, settings: Settings):
        self.common = {name: getattr(settings, name) for name in ('repeats', 'seconds', 'grid', 'features')}
        self.failures: list[str] = []

    def run(self, label: str, kind: str, **given: Any) -> Any:
        """What the cell returned, or None if it failed, for example for lack of memory."""
        print(f'{label} ...', file=sys.stderr, flush=True)
        started = time.perf_counter()
        cell = self.common | {'kind': kind} | given
        command = [sys.executable, '-m', 'benchmarks.speed', f'--cell={json.dumps(cell)}']
        process = subprocess.run(command, env=cell_environment(), capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if process.returncode == 0:
            print(f'{label}: {seconds:.1f} s', file=sys.stderr, flush=True)
            return json.loads(process.stdout.splitlines()[-1])
        reason = (process.stderr.strip().splitlines() or ['no message'])[-1]
        print(f'{label}: failed, exit status {process.returncode}: {reason}', file=sys.stderr, flush=True)
        self.failures.append(label)
        return None


def cell_environment() -> dict[str, str]:
    """One GPU, because more of them would need larger batches; no compiled code of earlier runs."""
    return os.environ | {
        'TF_CPP_MIN_LOG_LEVEL': '3',
        'JAX_ENABLE_COMPILATION_CACHE': 'false',
        'CUDA_VISIBLE_DEVICES': os.environ.get('CUDA_VISIBLE_DEVICES', '0').split(',')[0],
        'PYTHONPATH': os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH')))),
    }
