"""The task speed: step and forward pass of each network by each setting, and whether its gradient is right."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from benchmarks import ROOT
from benchmarks.device.bench import LEAST, Bench
from benchmarks.device.cells import finite, relative_error
from benchmarks.device.options import SETTINGS, TORCH
from benchmarks.device.processes import cell_command, cell_environment, with_less_and_less
from benchmarks.speed.in_pytorch import has_torch

SECONDS = {'gradient': 300, 'timed': 75}  # of a process
SPEED_SECONDS = 150  # of all that is timed of networks
# Relative error of the gradient up to which it is right. With bfloat16 between layers it is 0.05 for the unrolled
# network and 0.09 for the paper's, on CPU at batch 4; TF32 rounds an eighth of that. Any rounding can change which of
# two voxels is the larger one in a pool: 9e-4 for the paper's between direct and spectral convolution in float32.
RIGHT = {'float32': 0.01, 'tf32': 0.05, 'bfloat16': 0.25}
TIMING = {'repeats': 3, 'seconds': 5.0}  # of a setting, compilation apart


@contextlib.contextmanager
def gradients_on_the_host(
    configs: dict[str, ConfigDict], batch: int, scratch: Path
) -> Iterator[dict[str, subprocess.Popen]]:
    """Meanwhile computes, on the host, what gradient the first step of each network should have: `NETWORK.npy`."""
    processes = {}
    try:
        for network, config in configs.items():
            processes[network] = subprocess.Popen(
                cell_command(gradient_of(config, batch, scratch / f'{network}.npy')),
                cwd=ROOT,
                env=cell_environment() | {'JAX_PLATFORMS': 'cpu'},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        yield processes
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def gradient_of(config: ConfigDict, batch: int, file: Path) -> dict:
    """A cell that writes the gradient of a network's first step, as it is in float32, to a file."""
    setting = {'convolution': 'auto', 'precision': 'float32', 'gradient': str(file)}
    return {'kind': 'timed', 'measures': 'gradient', 'config': config.to_dict(), 'batch': batch} | setting


def measure_speed(
    bench: Bench, configs: dict[str, ConfigDict], hosts: dict[str, subprocess.Popen], scratch: Path
) -> None:
    """Step and forward pass of each network by each setting, its gradient compared with the host's; PyTorch's."""
    options, rows = bench.options, bench.report.setdefault('speed', [])
    known = [(network, setting) for setting in options.settings for network in configs]
    known = [each for each in known if each[1] in SETTINGS or (each[0] == 'paper' and has_torch())]
    for batch in (options.batch, *options.more_batches):
        until = time.monotonic() + min(SPEED_SECONDS, bench.left)
        for network, setting in known:
            row = measure_setting(bench, network, setting, configs[network], batch, until, scratch / 'gradient.npy')
            if row and setting in SETTINGS and batch == options.batch:
                error = gradient_error(bench, row, configs[network], hosts[network], until, scratch)
                row |= {'gradient_error': error, 'right': error is not None and error <= RIGHT[SETTINGS[setting][1]]}
            rows += [row] if row else []
            bench.write()


def measure_setting(
    bench: Bench, network: str, setting: str, config: ConfigDict, batch: int, until: float, gradient: Path
) -> dict | None:
    """A row of the table of speed, of this batch or a smaller one that fits; None if nothing was measured in time."""
    label = f'speed, {network}, {setting}'
    cell = {'kind': 'timed', 'config': config.to_dict(), 'gradient': str(gradient)} | TIMING
    if setting in TORCH:
        layout, precision = TORCH[setting]
        backend = bench.report['machine']['backend']
        cell |= {'measures': 'torch', 'format': layout, 'precision': precision, 'backend': backend}
    else:
        convolution, precision = SETTINGS[setting]
        cell |= {'measures': 'network', 'convolution': convolution, 'precision': precision}

    def run(batch):
        limit = min(SECONDS['timed'], until - time.monotonic())
        return bench.run(f'{label}, batch {batch}', cell | {'batch': batch}, limit)

    batch, outcome = with_less_and_less(run, batch, lambda words: bench.say(f'{label}: {words}'))
    if not outcome.results:
        return None
    found = outcome.results[-1]
    row = {'network': network, 'setting': setting, 'batch': batch}
    for part in ('step', 'forward'):
        row[f'{part}_seconds_per_example'] = found[part]['best'] / batch
        row[f'{part}_examples_per_second'] = batch / found[part]['best']
    return row | {'memory_mb': found['step'].get('memory'), 'compile_seconds': found['step']['compile']}


def gradient_error(
    bench: Bench, row: dict, config: ConfigDict, host: subprocess.Popen, until: float, scratch: Path
) -> float | None:
    """How far the gradient of a setting is from that of the host, relative to it; None if there is no such."""
    expected = scratch / f'{row["network"]}.npy'
    if row['batch'] == bench.options.batch:
        with contextlib.suppress(subprocess.TimeoutExpired):
            host.wait(max(until - time.monotonic(), LEAST))
    else:
        expected = scratch / f'{row["network"]}-{row["batch"]}.npy'
        if not expected.exists():
            cell = gradient_of(config, row['batch'], expected)
            bench.run(f'gradient on the host, batch {row["batch"]}', cell, SECONDS['gradient'], JAX_PLATFORMS='cpu')
    if not expected.exists():
        bench.say(f'{row["network"]}: no gradient of the host to compare with')
        return None
    return finite(relative_error(np.load(scratch / 'gradient.npy'), np.load(expected)))


def fastest_right(rows: list[dict], network: str) -> dict | None:
    """The row of the fastest step of a network whose gradient is right."""
    right = [row for row in rows if row['network'] == network and row.get('right')]
    return min(right, key=lambda row: row['step_seconds_per_example'], default=None)
