"""What a GPU makes of this program, in the minutes that one is at hand: is it right, how fast is it, some training.

    python -m benchmarks.device --minutes=9 --output=DIR
    python -m benchmarks.device --collect=DIR                                    # afterwards, on any machine
    python -m benchmarks.device --tiny --allow-cpu --output=DIR                  # to see that all of it runs

For machines at hand for minutes, without a network, and from which little can be brought back. Tasks, in order:

    probe     operations that some release of JAX got wrong on some device, derivatives, against float64 on the host
    truth     R1 at the true positions of the paper's problem and verdicts of least squares, by precision of products
    speed     training step and forward pass of both networks by each setting, and PyTorch's with cuDNN
    training  the network of --train, from the published weights, by the fastest setting that is right
    solving   least squares, phase retrieval and separation, many cases at once, each twice and compared

Each measurement is a process with a limit of its own. What it finds is in `DIR/device.json` at once, so that a cut
leaves what was measured; training packs a checkpoint each minute into `DIR/latest.tar` (and `best.tar`, where that is
another one). Four minutes of nine are kept for the training, and solving begins only if training leaves it time. What
does not fit in the device's memory is tried with half as many cases, and said.

`--collect` writes the tables of docs/speed.md, and publishes the weights if their validation loss is lower than that of
those that are there; this evaluates them first, some minutes on a CPU.
"""

import argparse
import contextlib
import datetime
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import speed
from benchmarks.device_cells import BEST, LATEST, finite, relative_error, unpack
from patterson_jax.compiler import avoid_wrong_fusion
from patterson_jax.config import differences, validate
from patterson_jax.errors import InputError, exit_on_errors, require
from patterson_jax.files.common import make_directory
from patterson_jax.learning.checkpoints import has_checkpoint
from patterson_jax.learning.metrics import read_metrics
from patterson_jax.publishing import LARGEST_CHECKPOINT, LOG, SLICES, publish
from patterson_jax.runs import evaluate_experiment, read_record
from patterson_jax.shipped import find_config, find_network, make_configs_importable
from patterson_jax.weights import weight_fields
from patterson_jax.writing import write_json

ROOT = speed.ROOT
REPORT = 'device.json'
PAGE = ROOT / 'docs' / 'speed.md'
BEGIN, END = '<!-- begin: tables of benchmarks/device.py -->', '<!-- end -->'

TASKS = ('probe', 'truth', 'speed', 'training', 'solving')
SECONDS = {'machine': 60, 'probe': 70, 'truth': 80, 'gradient': 300, 'timed': 75, 'solving': 60}  # of a process
SPEED_SECONDS = 150  # of all that is timed of networks
TRAINING_SECONDS, TRAINING_SHARE = 240, 4 / 9  # at least so many are kept, or this share of a shorter time
SOLVING_SECONDS = 120  # left by training, where it keeps the seconds above
ENDING = 15  # seconds before the end, at which a training stops by itself and saves
GRACE = 5  # seconds in which it may save when it is asked to stop
LEAST = 5  # seconds with which it makes sense to begin anything
STARTING = 60  # seconds that training takes before its first step, at most, and beside its steps
USED = 0.85  # of its seconds that a training is planned to fill, so that its schedule comes to an end

PRODUCTS = ('default', 'highest')
SETTINGS = {  # of a network: convolution, precision
    'direct TF32': ('direct', 'tf32'),
    'direct bfloat16': ('direct', 'bfloat16'),
    'spectral TF32': ('spectral', 'tf32'),
    'direct float32': ('direct', 'float32'),
}
TORCH = {  # of the paper's network in PyTorch, which rounds to TF32 what is of float32: layout, precision
    'PyTorch TF32': ('contiguous_format', 'float32'),
    'PyTorch TF32 channels last': ('channels_last_3d', 'float32'),
    'PyTorch bfloat16 channels last': ('channels_last_3d', 'bfloat16'),
}
ORDER = (  # in which they are timed, as long as there is time
    *('direct TF32', 'PyTorch TF32', 'direct bfloat16', 'PyTorch TF32 channels last', 'PyTorch bfloat16 channels last'),
    *('spectral TF32', 'direct float32'),
)
# Relative error of the gradient up to which it is right. With bfloat16 between layers it is 0.05 for the unrolled
# network and 0.09 for the paper's, on CPU at batch 4; TF32 rounds an eighth of that. Any rounding can change which of
# two voxels is the larger one in a pool: 9e-4 for the paper's between direct and spectral convolution in float32.
RIGHT = {'float32': 0.01, 'tf32': 0.05, 'bfloat16': 0.25}
TIMING = {'repeats': 3, 'seconds': 5.0}  # of a setting, compilation apart
METHODS = ('least_squares', 'phase_retrieval', 'separation')
CONFIGS = {'paper': 'base', 'unrolled': 'unrolled'}  # of each network
OUT_OF_MEMORY = ('RESOURCE_EXHAUSTED', 'out of memory', 'OutOfMemory')

TINY = {
    'problem': {'grid_size': 12, 'num_atoms': 2, 'min_separation': 2.4, 'box_edge': 4.0},
    'separate': {'num_peaks': 4, 'num_swaps': 20, 'num_chains': 1, 'resolution': 4.0},
    'evaluate': {'num_cases': 4, 'batch_size': 4, 'methods': ''},
    'solve': {'orientations': 1},
    'train': {'init_from': '', 'num_validation': 8, 'warmup_steps': 2},
}
TINY_MODEL = {
    'paper': {'features': 4, 'outer_kernel_size': 3, 'inner_kernel_size': 3, 'encoder_depth': 1, 'inner_depth': 1},
    'unrolled': {'features': 4, 'kernel_size': 3, 'stages': 2, 'input_size': 12, 'output_size': 8},
}
TINY_CASES = 4


class Options(NamedTuple):
    """What the command line asks for."""

    minutes: float
    output: Path
    tasks: tuple[str, ...]
    train: str
    changes: dict[str, Any]
    batch: int
    more_batches: tuple[int, ...]
    products: tuple[str, ...]
    networks: tuple[str, ...]
    settings: tuple[str, ...]
    methods: tuple[str, ...]
    at_once: tuple[int, ...]
    tiny: bool
    allow_cpu: bool


# ---- A process with a limit ----


class Outcome(NamedTuple):
    """How a process ended.

    Attributes:
        results: what it told, in order; all that it had told by then if it was ended.
        fault: why there is not more, in words; '' if it came to its end.
        out_of_memory: whether that is the fault.
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

    At the limit it is ended with all that it has started; `grace` seconds before it is asked to stop, by SIGTERM.
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
    if status == 75:  # as a training ends at its own limit
        return Outcome(results)
    memory = any(words in said for words in OUT_OF_MEMORY) or status == -signal.SIGKILL
    reason = 'out of memory' if memory else (said.strip().splitlines() or ['nothing was said'])[-1]
    return Outcome(results, f'exit status {status}: {reason}', memory)


def with_less_and_less(run: Callable[[int], Outcome], number: int, say: Callable[[str], None]) -> tuple[int, Outcome]:
    """Runs something with `number` cases, and with half as many as long as they do not fit in memory."""
    outcome = run(number)
    while outcome.out_of_memory and number > 1:
        say(f'{number} do not fit in memory; {number // 2} are tried')
        number //= 2
        outcome = run(number)
    if outcome.out_of_memory:
        say('not even one fits in memory')
    return number, outcome


class Bench:
    """The minutes that there are, and what was found in them.

    Attributes:
        deadline: on the clock `time.monotonic`.
        kept: seconds before the deadline that are kept for training as long as it has not begun.
        report: what `device.json` holds.
        failed: whether anything failed, other than for lack of time or memory.
    """

    def __init__(self, options: Options, report: dict, deadline: float):
        self.options, self.report, self.deadline = options, report, deadline
        seconds = 60 * options.minutes
        self.kept = min(TRAINING_SECONDS, TRAINING_SHARE * seconds) if 'training' in options.tasks else 0.0
        self.failed = False

    @property
    def left(self) -> float:
        """Seconds that are left for what is at hand."""
        return self.deadline - time.monotonic() - self.kept

    def write(self) -> None:
        """Writes the report as it is now."""
        write_json(self.options.output / REPORT, self.report)

    def say(self, words: str) -> None:
        """Tells of something that the reader of the figures must know, and keeps it with them."""
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
        """Runs a cell of `benchmarks/device_cells.py`, and says what is wrong with it if anything is."""
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


def cell_command(cell: dict) -> list[str]:
    """The command that runs a cell."""
    return [sys.executable, '-m', 'benchmarks.device_cells', json.dumps(cell)]


def cell_environment() -> dict[str, str]:
    """That of the cells of `benchmarks/speed.py`, but what is compiled may be kept, and the host is always there."""
    environment = speed.cell_environment()
    del environment['JAX_ENABLE_COMPILATION_CACHE']
    if platforms := environment.get('JAX_PLATFORMS'):
        environment['JAX_PLATFORMS'] = ','.join(dict.fromkeys([*platforms.split(','), 'cpu']))
    return environment


# ---- The tasks ----


def load_config(name: str) -> ConfigDict:
    """The config of `FILE[:variant]`, or of that name. Raises InputError."""
    file, _, variant = name.partition(':')
    try:
        path = find_config(file)
        make_configs_importable(path)
        get_config = runpy.run_path(str(path))['get_config']
        config = get_config(variant) if variant else get_config()
    except (OSError, KeyError, ValueError, SyntaxError) as error:
        raise InputError(f'--train is {name!r}: {error}') from error
    if 'model' not in config:
        raise InputError(f'--train is {name!r}, a config without a network to train')
    return config


def prepared(config: ConfigDict, options: Options) -> ConfigDict:
    """A config as this command uses it: tiny, if it is to be, and with the changes that --set asks for."""
    if options.tiny:
        for section, values in (TINY | {'model': TINY_MODEL[config.model.network]}).items():
            config[section].update(values)
    try:
        config.update_from_flattened_dict(options.changes)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f'--set: {" ".join(str(error.args[0]).split())}') from error
    validate(config)
    return config


def configs_of(options: Options) -> dict[str, ConfigDict]:
    """The config of each network; that of --train in the place of the usual one."""
    training = load_config(options.train)
    found = {name: load_config(file) for name, file in CONFIGS.items()}
    found[training.model.network] = training
    return {
        name: prepared(config, options if config is training else options._replace(changes={}))
        for name, config in found.items()
    }


def begin_weights(config: ConfigDict) -> str:
    """Where a training begins: what its config says, else the published weights of such a network, if there are any."""
    place = Path('pretrained') / config.model.network
    if config.train.init_from or not has_checkpoint(ROOT / place / 'checkpoints'):
        return config.train.init_from
    kinds = (weight_fields(each) for each in (read_record(ROOT / place)['config'], config.to_dict()))
    return '' if differences(*kinds, ('model', 'problem')) else str(place)


def probe(bench: Bench, configs: dict[str, ConfigDict]) -> None:
    """Is what the device computes right?"""
    found = bench.report.setdefault('probe', [])
    bench.run('probe', {'kind': 'probe', 'config': configs['paper'].to_dict()}, SECONDS['probe'], found.append)


def truth(bench: Bench, configs: dict[str, ConfigDict]) -> None:
    """R1 at the truth and verdicts, for each precision of products."""
    rows = bench.report.setdefault('truth', [])
    cases = TINY_CASES if bench.options.tiny else 100
    for products in bench.options.products:
        row = {'products': products, 'cases': cases}
        rows.append(row)
        cell = row | {'kind': 'truth', 'config': configs['paper'].to_dict(), 'attempts': 4}
        bench.run(f'truth, products {products}', cell, SECONDS['truth'], row.update)


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
    known = [each for each in known if each[1] in SETTINGS or (each[0] == 'paper' and speed.has_torch())]
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


def train(bench: Bench, config: ConfigDict, scratch: Path) -> None:
    """A slice of training that fills the minutes left, or all of them but those for solving."""
    options, report = bench.options, bench.report
    least, bench.kept = bench.kept, 0.0
    seconds = bench.left - ENDING
    if 'solving' in options.tasks and seconds - SOLVING_SECONDS >= least:
        seconds -= SOLVING_SECONDS
    row = fastest_right(report.get('speed', []), config.model.network)
    changes = changes_for(config, row, seconds, report['machine']['backend']) | options.changes
    config.update_from_flattened_dict(changes)
    validate(config)
    setting = f'{config.model.convolution} {config.model.precision}, batch {config.train.batch_size}'
    report['training'] = training = {'config': options.train, 'setting': setting, 'changes': changes}
    training['measured'] = row is not None
    cell = {'kind': 'training', 'config': config.to_dict(), 'changes': changes, 'minutes': seconds / 60}
    cell |= {'workdir': str(scratch / 'run'), 'output': str(options.output.resolve())}
    bench.run(f'training, {setting}, {config.train.num_steps} steps', cell, seconds + ENDING, grace=GRACE)
    training |= what_training_did(scratch / 'run', options.output)
    for file in training['files']:
        size = (options.output / file).stat().st_size
        if size > LARGEST_CHECKPOINT:
            bench.say(f'{file} takes {size / 2**20:.3g} MiB, more than {LARGEST_CHECKPOINT / 2**20:.3g}')
    if training['files'] and not options.tiny:
        training['to_go_on'] = command_to_go_on(options.train, changes)
    bench.write()


def changes_for(config: ConfigDict, row: dict | None, seconds: float, backend: str) -> dict[str, Any]:
    """What to change of a training's config: the fastest setting, and as many steps as there is time for."""
    changes = {'train.init_from': begin_weights(config)}
    if row is None:
        return changes
    convolution, precision = SETTINGS[row['setting']]
    usual = 'spectral' if backend == 'cpu' else 'direct'  # so that the weights are used by the best method elsewhere
    second = 1 / (row['step_seconds_per_example'] * row['batch'])  # steps in one
    steps = max(round(USED * max(seconds - STARTING, seconds / 4) * second), 2)
    minute = max(min(round(60 * second), steps), 1)
    return changes | {
        'model.convolution': 'auto' if convolution == usual else convolution,
        'model.precision': precision,
        'train.batch_size': row['batch'],
        'train.num_steps': steps,
        'train.warmup_steps': min(config.train.warmup_steps, steps // 10),
        'train.log_every': max(minute // 10, 1),
        'train.validate_every': minute,
        'checkpoint.every_steps': minute,
    }


def what_training_did(workdir: Path, output: Path) -> dict:
    """Steps, losses and pace as the log has them, and the files that hold checkpoints."""
    rows = read_metrics(workdir / LOG)
    files = [name for name in (LATEST, BEST) if (output / name).exists()]
    validated = [row for row in rows if 'validation_loss' in row]
    if not rows:
        return {'files': files, 'steps': 0}
    found = {
        'files': files,
        'steps': rows[-1]['step'],
        'examples': rows[-1]['examples'],
        'seconds': rows[-1]['seconds'],
    }
    found['examples_per_second'] = max(row['examples_per_second'] for row in rows)
    found['losses'] = [(row['step'], row['loss']) for row in rows]
    found['validation'] = [(row['step'], row['validation_loss'], row['validation_correlation']) for row in validated]
    return found


def command_to_go_on(train: str, changes: dict[str, Any]) -> str:
    """What to type to go on with the training in `latest.tar`."""
    flags = ' '.join(f'--config.{name}={value}' for name, value in changes.items() if value != '')
    unpacked = f'mkdir -p runs/device && tar -xf DIR/{LATEST} -C runs/device'
    return f'{unpacked} && python run_experiment.py --config={train} --workdir=runs/device {flags}'


def solve(bench: Bench, configs: dict[str, ConfigDict]) -> None:
    """Cases a second by each method, more and more at once."""
    options, rows = bench.options, bench.report.setdefault('solving', [])
    for wanted in options.at_once:
        for method in options.methods:
            label = f'solving, {method.replace("_", " ")}'
            cell = {'kind': 'solving', 'config': configs['paper'].to_dict(), 'method': method}
            cell |= {'repeats': 3, 'seconds': 5.0}

            def run(number, label=label, cell=cell):
                return bench.run(f'{label}, {number} at once', cell | {'at_once': number}, SECONDS['solving'])

            at_once, outcome = with_less_and_less(
                run, wanted, lambda words, label=label: bench.say(f'{label}: {words}')
            )
            rows += [{'method': method.replace('_', ' '), 'at_once': at_once} | each for each in outcome.results]
            bench.write()


# ---- The tables ----


COLUMNS = {
    'probe': {'check': 'check', 'error': 'relative error', 'right': 'right'},
    'truth': {
        'products': 'products',
        'cases': 'cases',
        'r_factor': 'R1 at the truth',
        'highest_r_factor': 'highest',
        'solved': 'solved: right, wrong',
        'uncertain': 'uncertain',
        'not solved': 'not solved',
    },
    'speed': {
        'network': 'network',
        'setting': 'setting',
        'batch': 'batch',
        'step_examples_per_second': 'step, examples/s',
        'forward_examples_per_second': 'forward, examples/s',
        'memory_mb': 'memory, MB',
        'gradient_error': "gradient's error",
        'right': 'right',
    },
    'training': {'step': 'step', 'loss': 'validation loss', 'correlation': 'map correlation'},
    'solving': {
        'method': 'method',
        'at_once': 'at once',
        'cases_per_second': 'cases/s',
        'right': 'right at the first attempt',
        'same': 'two runs the same',
        'farthest': 'farthest, voxels',
    },
}
WORDS = {
    'probe': 'Operations that some release of JAX got wrong, and derivatives, against float64 on the host.',
    'truth': "The paper's problem, clean: R1 of the true positions; verdicts of least squares, at most four attempts a "
    'case. Products of matrices as the device has them by default, and as simulation and solver do.',
    'speed': 'Training step and forward pass, best timing. PyTorch has one fixed batch, ours makes its cases. The '
    "gradient's error is that of the first step, relative to the host's in float32.",
    'training': 'Validation, as the training went on.',
    'solving': "First attempts at cases of the paper's problem, compilation apart; the separation has the true map.",
}


def tables(report: dict) -> str:
    """All that was measured, as Markdown."""
    machine = report['machine']
    versions = ', '.join(f'{library} {version}' for library, version in machine['versions'].items())
    lines = [
        f'## {machine["device"]}',
        '',
        f'{report["date"]}; {machine["cores"]} cores of {machine["processor"]}; {versions}.',
    ]
    if report['tiny']:
        lines += ['', '**A tiny problem and networks: that all of it runs, and nothing else.**']
    for task in TASKS:
        rows = table_rows(task, report.get(task))
        if rows:
            lines += ['', f'### {task}', '', WORDS[task], '', *speed.aligned(COLUMNS[task], rows)]
        if task == 'training' and task in report:
            lines += ['', describe_training(report[task])]
    lines += ['', *(f'- {note}' for note in report['notes'])] if report['notes'] else []
    return '\n'.join(lines) + '\n'


def table_rows(task: str, found: Any) -> list[dict]:
    """What was found in a task, as rows of its table."""
    if task == 'training':
        return [
            {'step': step, 'loss': loss, 'correlation': correlation}
            for step, loss, correlation in (found or {}).get('validation', ())
        ]
    rows = [dict(row) for row in found or ()]
    for row in rows:
        for verdict in ('solved', 'uncertain', 'not solved') if 'verdicts' in row else ():
            row[verdict] = ', '.join(str(row['verdicts'][f'{verdict}, {kind}']) for kind in ('right', 'wrong'))
        row |= {name: 'yes' if row[name] else 'NO' for name in ('right', 'same') if isinstance(row.get(name), bool)}
    return rows


def describe_training(found: dict) -> str:
    """A training in a sentence."""
    words = f'`--train={found["config"]}`, {found["setting"]}'
    words += ' (the fastest that is right)' if found['measured'] else ' (no setting was measured)'
    if not found.get('steps'):
        return f'{words}: no step was logged.'
    rate = speed.number(float(found['examples_per_second']))
    return f'{words}: {found["steps"]:,} steps in {found["seconds"]:.0f} s, at most {rate} examples a second.'


# ---- The command ----


def run(options: Options) -> int:
    """Measures what there is time for; returns the exit status."""
    began = time.monotonic()
    configs = configs_of(options)
    outcome = run_process(cell_command({'kind': 'machine'}), SECONDS['machine'], cell_environment())
    if not outcome.results:
        raise InputError(f'JAX does not run here: {outcome.fault}')
    machine = outcome.results[0]
    if machine['backend'] == 'cpu' and not options.allow_cpu:
        raise InputError('no GPU: JAX sees only the CPU; --allow-cpu runs on that all the same')
    make_directory(options.output, '--output')
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    report = {'date': now, 'machine': machine, 'minutes': options.minutes, 'tiny': options.tiny, 'notes': []}
    bench = Bench(options, report, began + 60 * options.minutes)
    bench.write()
    print(f'{machine["device"]}, {options.minutes:g} minutes', file=sys.stderr, flush=True)
    measured = {name: configs[name] for name in options.networks}
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        with contextlib.ExitStack() as stack:
            hosts = {}
            if 'speed' in options.tasks:
                hosts = stack.enter_context(gradients_on_the_host(measured, options.batch, scratch))
            if 'probe' in options.tasks:
                probe(bench, configs)
            if 'truth' in options.tasks:
                truth(bench, configs)
            if 'speed' in options.tasks:
                measure_speed(bench, measured, hosts, scratch)
        if 'training' in options.tasks:
            train(bench, configs[load_config(options.train).model.network], scratch)
        if 'solving' in options.tasks:
            solve(bench, configs)
    print(tables(report))
    if 'to_go_on' in report.get('training', {}):
        print(f'The training goes on with\n    {report["training"]["to_go_on"]}\n')
    print(f'{options.output / REPORT}, {time.monotonic() - began:.0f} s')
    return 1 if bench.failed else 0


def collect(directory: Path, target: Path | None, results: Path, page: Path) -> None:
    """Takes over what came back from a device: tables into the page, weights into the published ones if better.

    Args:
        directory: what came back.
        target: where to publish weights; None: where the training began, or `pretrained/NETWORK`.
        results: directory in which a report of each device is kept.
        page: whose part between two marks is made of these reports.

    Raises:
        InputError: nothing of this program is there, or the page lacks the marks.
    """
    report = read_report(directory)
    device = speed.slug(report['machine']['device'])
    write_json(results / f'device-{device}.json', report)
    write_page(page, results)
    print(f'{results / f"device-{device}.json"}, {page}')
    file = next((directory / name for name in (BEST, LATEST) if (directory / name).exists()), None)
    if file is None:
        print('no weights came back')
        return
    with tempfile.TemporaryDirectory() as place:
        workdir = Path(place) / 'run'
        step = unpack(file, workdir)
        publish_if_better(workdir, step, target)


def read_report(directory: Path) -> dict:
    """What `device.json` in a directory holds. Raises InputError."""
    try:
        report = json.loads((directory / REPORT).read_text(encoding='utf-8'))
        tables(report)
        return report
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f'{directory / REPORT}: not what this program writes; name another --collect') from error


def write_page(page: Path, results: Path) -> None:
    """Makes the part of the page between its marks anew, from all reports."""
    before, begin, rest = page.read_text(encoding='utf-8').partition(BEGIN)
    _, end, after = rest.partition(END)
    require(begin and end, str(page), 'without marks', f'a page with the lines {BEGIN} and {END}')
    reports = [json.loads(path.read_text(encoding='utf-8')) for path in sorted(results.glob('device-*.json'))]
    part = page.with_name(f'.{page.name}.part')
    part.write_text('\n'.join([f'{before}{BEGIN}', '', *map(tables, reports), f'{END}{after}']), encoding='utf-8')
    part.replace(page)


def publish_if_better(workdir: Path, step: int, target: Path | None) -> None:
    """Evaluates and publishes a run's weights, if their validation loss is lower than that of those that are there."""
    config = ConfigDict(read_record(workdir)['config'])
    experiment = validate(config)
    begun_with = find_network(config.train.init_from) if config.train.init_from else None
    target = target or begun_with or Path('pretrained') / config.model.network
    rows = [row for row in read_metrics(workdir / LOG) if row['step'] == step and 'validation_loss' in row]
    if not rows:
        print(f'not published: step {step} was not validated')
        return
    found, before = rows[0]['validation_loss'], np.inf
    if (target / SLICES).exists():
        before = json.loads((target / SLICES).read_text(encoding='utf-8'))[-1]['validation_loss']
    if not found < before:
        print(f'not published: validation loss {found:.4g}, and {target} has {before:.4g}')
        return
    print(f'validation loss {found:.4g}, {target} has {before:.4g}')
    evaluate_experiment(experiment, config, workdir)
    publish(experiment, config, workdir, target)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; a mistake ends the program with one line and status 2."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.device', description=__doc__.partition('\n')[0])
    parser.add_argument('--minutes', type=float, default=9.0, help='of the whole command')
    parser.add_argument('--output', type=Path, help='directory for what is found: a few files, none of them large')
    parser.add_argument('--collect', type=Path, help='directory that came back, to be taken into this repository')
    parser.add_argument('--publish', type=Path, help='with --collect: where, if not where the training began')
    parser.add_argument('--tasks', type=_some(TASKS), default=TASKS, help='with commas between')
    parser.add_argument('--train', default='configs/unrolled.py:slice', help='config file of the training')
    parser.add_argument('--set', action='append', default=[], help='changes a field of it: --set=train.seed=1')
    parser.add_argument('--batch', type=int, default=64, help='of the networks')
    parser.add_argument('--more-batches', type=_numbers, default=(), help='to time too, after that')
    parser.add_argument('--networks', type=_some(tuple(CONFIGS)), help='to time; the one to train comes first')
    parser.add_argument('--settings', type=_some(ORDER), default=ORDER, help='to time, in this order')
    parser.add_argument('--products', type=_some(PRODUCTS), default=PRODUCTS, help='precision, in the task truth')
    parser.add_argument('--methods', type=_some(METHODS), default=METHODS, help='of solving')
    parser.add_argument('--at-once', type=_numbers, default=(256, 16, 1024), help='cases, in solving')
    parser.add_argument('--tiny', action='store_true', help='small problem and networks, to see that all of it runs')
    parser.add_argument('--allow-cpu', action='store_true', help='where there is no GPU')
    return parser.parse_args(arguments)


def _some(known):
    def some(text):
        words = tuple(dict.fromkeys(text.split(',')))
        for word in words:
            if word not in known:
                raise argparse.ArgumentTypeError(f'{word!r} is none of {", ".join(known)}')
        return words

    return some


def _numbers(text):
    if not all(word.isdecimal() and int(word) for word in text.split(',')):
        raise argparse.ArgumentTypeError(f'{text!r} is no list of whole numbers from 1, with commas between')
    return tuple(map(int, text.split(',')))


def options_of(given: argparse.Namespace) -> Options:
    """The flags, checked. Raises InputError."""
    if given.output is None:
        raise InputError('--output is missing; it names the directory for what is found')
    require(0 < given.minutes < np.inf, '--minutes', given.minutes, 'a number of minutes, more than 0')
    require(given.batch >= 1, '--batch', given.batch, '1 or more')
    changes = {}
    for change in given.set:
        name, equals, value = change.partition('=')
        require(equals and '.' in name, '--set', change, 'a field and its value, as in train.learning_rate=1e-3')
        changes[name] = _value(value)
    trained = load_config(given.train).model.network
    networks = sorted(given.networks or CONFIGS, key=lambda name: name != trained)
    return Options(
        given.minutes,
        given.output,
        given.tasks,
        given.train,
        changes,
        given.batch,
        given.more_batches,
        given.products,
        tuple(networks),
        given.settings,
        given.methods,
        given.at_once,
        given.tiny,
        given.allow_cpu,
    )


def _value(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_tiny(directory):
    return bool(read_report(directory)['tiny'])


def main() -> None:
    """Measures, or collects what was measured."""
    given = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that what runs is ended too
    with exit_on_errors():
        if given.collect:
            avoid_wrong_fusion()
            require(not _is_tiny(given.collect), '--collect', str(given.collect), 'what came back without --tiny')
            collect(given.collect, given.publish, ROOT / 'benchmarks', PAGE)
            return
        avoid_wrong_fusion()
        jax.config.update('jax_platforms', 'cpu')  # the device is for the processes that measure
        sys.exit(run(options_of(given)))


if __name__ == '__main__':
    main()
