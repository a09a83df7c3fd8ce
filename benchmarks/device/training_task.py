"""The task training: a slice of training in the time that is left."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from benchmarks import ROOT
from benchmarks.device.bench import Bench
from benchmarks.device.options import PROJECTION, network_name
from benchmarks.device.packing import BEST, LATEST
from benchmarks.device.speed_task import fastest_right, settings_of
from patterson_jax.config import differences, validate_trained
from patterson_jax.learning.checkpoints import has_checkpoint
from patterson_jax.learning.metrics import read_metrics
from patterson_jax.projection_weights import projection_fields
from patterson_jax.publishing import LARGEST_CHECKPOINT, LOG
from patterson_jax.runs import read_record
from patterson_jax.weights import weight_fields

SOLVING_SECONDS = 120  # that training leaves for solving, if enough remain for itself
ENDING = 15  # seconds before the end at which a training stops by itself and saves
GRACE = 5  # seconds in which it may save after it is told to stop
STARTING = 60  # seconds that training needs at most before its first step and between steps
USED = 0.85  # part of its seconds for which a training is planned, so that its schedule reaches the end


def train(bench: Bench, config: ConfigDict, scratch: Path) -> None:
    """Trains a slice in the time that is left, except for that of solving."""
    options, report = bench.options, bench.report
    least, bench.kept = bench.kept, 0.0
    seconds = bench.left - ENDING
    if 'solving' in options.tasks and seconds - SOLVING_SECONDS >= least:
        seconds -= SOLVING_SECONDS
    row = fastest_right(report.get('speed', []), network_name(config))
    changes = changes_for(config, row, seconds, report['machine']['backend']) | options.changes
    config.update_from_flattened_dict(changes)
    validate_trained(config)
    setting = ' '.join(config.model[name] for name in ('convolution', 'precision') if name in config.model)
    setting += f', batch {config.train.batch_size}'
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
    """Changes of a training's config: the fastest setting, and as many steps as there is time for."""
    changes = {'train.init_from': begin_weights(config)}
    if row is None:
        return changes
    convolution, precision = settings_of(network_name(config))[row['setting']]
    second = 1 / (row['step_seconds_per_example'] * row['batch'])  # steps in one
    steps = max(round(USED * max(seconds - STARTING, seconds / 4) * second), 2)
    minute = max(min(round(60 * second), steps), 1)
    if 'precision' in config.model:
        changes['model.precision'] = precision
    return changes | {
        'model.convolution': 'auto' if convolution == usual_convolution(config, backend) else convolution,
        'train.batch_size': row['batch'],
        'train.num_steps': steps,
        'train.warmup_steps': min(config.train.warmup_steps, steps // 10),
        'train.log_every': max(minute // 10, 1),
        'train.validate_every': minute,
        'checkpoint.every_steps': minute,
    }


def usual_convolution(config: ConfigDict, backend: str) -> str:
    """The convolution that 'auto' chooses, so that it is written as 'auto' and other machines choose theirs."""
    if network_name(config) == PROJECTION:
        return 'products' if backend == 'cpu' else 'direct'
    return 'spectral' if backend in ('cpu', 'gpu') else 'direct'


def begin_weights(config: ConfigDict) -> str:
    """Where a training begins: `init_from` of its config, else the published weights of such a network; '': afresh."""
    name = network_name(config)
    place = Path('pretrained') / name
    if config.train.init_from or not has_checkpoint(ROOT / place / 'checkpoints'):
        return config.train.init_from
    fields_of = projection_fields if name == PROJECTION else weight_fields
    kinds = (fields_of(each) for each in (read_record(ROOT / place)['config'], config.to_dict()))
    return '' if differences(*kinds, ('model', 'problem')) else str(place)


def what_training_did(workdir: Path, output: Path) -> dict:
    """Steps, losses and pace from the log, and the files with checkpoints."""
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
    """The command that continues the training in `latest.tar`."""
    flags = ' '.join(f'--config.{name}={value}' for name, value in changes.items() if value != '')
    unpacked = f'mkdir -p runs/device && tar -xf DIR/{LATEST} -C runs/device'
    return f'{unpacked} && python run_experiment.py --config={train} --workdir=runs/device {flags}'
