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
from benchmarks.device.options import PROJECTION, PROJECTION_SETTINGS, SETTINGS, TORCH, network_name
from benchmarks.device.processes import cell_command, cell_environment, with_less_and_less
from benchmarks.speed.in_pytorch import has_torch

SECONDS = {'gradient': 300, 'timed': 75}  # of a process
SPEED_SECONDS = 150  # of all timings of networks with one batch size
# Relative error up to which a gradient is right. With bfloat16 between layers the error is 0.05 for the unrolled
# network and 0.09 for the paper's, on CPU at batch 4. Rounding by TF32 is an eighth of that. Any rounding can change
# which of two voxels in a pool is larger. This makes 9e-4 between direct and spectral convolution in the paper's
# network in float32.
RIGHT = {'float32': 0.01, 'tf32': 0.05, 'bfloat16': 0.25}
TIMING = {'repeats': 3, 'seconds': 5.0}  # of a setting, without compilation


@contextlib.contextmanager
def gradients_on_the_host(
    configs: dict[str, ConfigDict], batch: int, scratch: Path
) -> Iterator[dict[str, subprocess.Popen]]:
    """Computes on the host, in the background, the gradient of the first step of each network: `NETWORK.npy`."""
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
    """A cell that writes the gradient of a network's first step in float32 to a file."""
    setting = {'convolution': 'auto', 'precision': 'float32', 'gradient': str(file)}
    measures = 'projection gradient' if network_name(config) == PROJECTION else 'gradient'
    return {'kind': 'timed', 'measures': measures, 'config': config.to_dict(), 'batch': batch} | setting


def settings_of(network: str) -> dict[str, tuple[str, str]]:
    """Convolution and precision of a network's settings."""
    return PROJECTION_SETTINGS if network == PROJECTION else SETTINGS


def measure_speed(
    bench: Bench, configs: dict[str, ConfigDict], hosts: dict[str, subprocess.Popen], scratch: Path
) -> None:
    """Times step and forward pass of each network by each setting and by PyTorch; compares gradients to the host's."""
    options, rows = bench.options, bench.report.setdefault('speed', [])
    known = [(network, setting) for setting in options.settings for network in configs]
    in_torch = TORCH if has_torch() else {}
    known = [each for each in known if each[1] in (settings_of(each[0]) | (in_torch if each[0] == 'paper' else {}))]
    for batch in (options.batch, *options.more_batches):
        until = time.monotonic() + min(SPEED_SECONDS, bench.left)
        for network, setting in known:
            row = measure_setting(bench, network, setting, configs[network], batch, until, scratch / 'gradient.npy')
            if row and setting not in TORCH and batch == options.batch:
                error = gradient_error(bench, row, configs[network], hosts[network], until, scratch)
                _, precision = settings_of(network)[setting]
                row |= {'gradient_error': error, 'right': error is not None and error <= RIGHT[precision]}
            rows += [row] if row else []
            bench.write()


def measure_setting(
    bench: Bench, network: str, setting: str, config: ConfigDict, batch: int, until: float, gradient: Path
) -> dict | None:
    """A row of the table, with this batch or a smaller one that fits in memory; None if there was no time."""
    label = f'speed, {network}, {setting}'
    cell = {'kind': 'timed', 'config': config.to_dict(), 'gradient': str(gradient)} | TIMING
    if setting in TORCH:
        layout, precision = TORCH[setting]
        backend = bench.report['machine']['backend']
        cell |= {'measures': 'torch', 'format': layout, 'precision': precision, 'backend': backend}
    else:
        convolution, precision = settings_of(network)[setting]
        measures = PROJECTION if network == PROJECTION else 'network'
        cell |= {'measures': measures, 'convolution': convolution, 'precision': precision}

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
    """Relative error of the gradient of a setting, compared with the host's; None without the host's."""
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
    """The row with the fastest step of a network, of those with a right gradient; None without one."""
    right = [row for row in rows if row['network'] == network and row.get('right')]
    return min(right, key=lambda row: row['step_seconds_per_example'], default=None)
