"""Publishing: a run's best weights in a directory to keep beside the code, with a model card of what was measured.

The directory is laid out as a run's, so that `--checkpoint` and `train.init_from` take it. A run that began with the
weights of such a directory is one more slice of their training: log and list of slices go on from those there.
"""

import hashlib
import json
import shutil
from pathlib import Path

from ml_collections import ConfigDict

from patterson_jax.config import Experiment, differences
from patterson_jax.errors import InputError, require
from patterson_jax.evaluation import MATCH_DISTANCE
from patterson_jax.figures import draw_losses
from patterson_jax.files.common import write_json
from patterson_jax.inspection import count_weights, training_operations
from patterson_jax.learning.checkpoints import (
    CHECKSUMS,
    Checkpoints,
    copy_checkpoint,
    find_checkpoints,
    has_checkpoint,
)
from patterson_jax.learning.metrics import read_metrics
from patterson_jax.runs import RECORD, check_record, evaluation_settings, read_record
from patterson_jax.shipped import find_network
from patterson_jax.weights import weight_fields

LARGEST_CHECKPOINT = 16 * 2**20  # bytes; what a repository bears
SLICES = 'slices.json'
LOG = 'metrics.jsonl'
FIGURES = ('maps.png', 'separation.png', 'errors.png')


def publish(experiment: Experiment, config: ConfigDict, workdir: Path, output: Path | None) -> None:
    """Makes `output` hold a run's best checkpoint, its evaluation and log, and a card, `README.md`, that tells of them.

    Raises:
        InputError: `output` is missing, or holds better weights or those of another problem or network; the run is
            another config's or not evaluated with this config and its best weights; its checkpoint is unsealed or
            larger than 16 MiB.
    """
    if output is None:
        raise InputError('--output is missing; it names the directory to publish in, as in --output=pretrained/NAME')
    require(output.resolve() != workdir.resolve(), '--output', str(output), 'another directory than the run')
    check_record(workdir, config.to_dict())
    with Checkpoints(find_checkpoints(workdir), read_only=True) as checkpoints:
        step = checkpoints.best_step
        source = checkpoints.directory / str(step)
        counters = checkpoints.restore(step, counters=None)['counters']
    _check_checkpoint(source)
    report = _evaluation_of(workdir, config, step)
    rows = [row for row in read_metrics(workdir / LOG) if row['step'] <= step]
    slices, rows = _with_earlier(experiment, _slice_of(experiment, workdir, counters, rows), rows)
    _check_replaced(output, config, slices[-1])

    part = output.with_name(f'.{output.name}.part')
    shutil.rmtree(part, ignore_errors=True)
    copy_checkpoint(source, part / 'checkpoints' / str(step))
    shutil.copyfile(workdir / RECORD, part / RECORD)
    write_json(part / 'evaluation.json', report)
    write_json(part / SLICES, slices)
    (part / LOG).write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    draw_losses(part / 'figures' / 'losses.png', rows)
    for name in FIGURES:
        shutil.copyfile(workdir / 'figures' / name, part / 'figures' / name)
    seal = hashlib.sha256((part / 'checkpoints' / str(step) / CHECKSUMS).read_bytes()).hexdigest()
    (part / 'README.md').write_text(model_card(experiment, slices, report, step, seal), encoding='utf-8')
    _replace(part, output)
    print(f'{output}: slice {len(slices)}, step {step}, {counters["examples"]:,} examples')


def _check_checkpoint(source):
    if not (source / CHECKSUMS).exists():
        raise InputError(f'{source}: no {CHECKSUMS}, as the run was killed; let it come to an end')
    size = sum(path.stat().st_size for path in source.rglob('*') if path.is_file())
    if size > LARGEST_CHECKPOINT:
        largest = f'at most {LARGEST_CHECKPOINT / 2**20:.3g} MiB to be published'
        raise InputError(f'{source} takes {size / 2**20:.3g} MiB; it must be {largest}')


def _evaluation_of(workdir, config, step):
    """The evaluation of these weights with this config."""
    path = workdir / 'evaluation.json'
    try:
        report = json.loads(path.read_text(encoding='utf-8'))
        current = report['weights']['step'] == step and report['settings'] == evaluation_settings(config.to_dict())
    except (OSError, ValueError, KeyError, TypeError):
        current = False
    if not current:
        raise InputError(f'{path}: no evaluation of step {step} with this config; run --mode=evaluate first')
    return report


def _slice_of(experiment, workdir, counters, rows):
    """What one run did up to its best weights."""
    if not rows or rows[-1]['step'] != counters['step'] or 'validation_loss' not in rows[-1]:
        raise InputError(
            f'{workdir}: step {counters["step"]} was not validated; let the run come to its next validation'
        )
    begin = counters['examples'] - counters['step'] * experiment.train.batch_size
    return {
        'begin': begin,
        'end': counters['examples'],
        'batch_size': experiment.train.batch_size,
        'learning_rate': experiment.train.learning_rate,
        'filled_weight': experiment.train.filled_weight,
        'seed': experiment.seed,
        'seconds': counters['seconds'],
        'validation_loss': rows[-1]['validation_loss'],
        'validation_correlation': rows[-1]['validation_correlation'],
    } | read_record(workdir)['machine']


def _with_earlier(experiment, own, rows):
    """All slices and the whole log: those of the weights with which the run began, as far as they led to it, before."""
    slices, log = [], []
    if experiment.train.init_from and (place := _published(experiment.train.init_from)):
        slices = [each for each in json.loads((place / SLICES).read_text()) if each['end'] <= own['begin']]
        log = [row for row in read_metrics(place / LOG) if row['examples'] <= own['begin']]
    return [*slices, own], [*log, *({'slice': len(slices) + 1} | row for row in rows)]


def _published(name):
    """The published directory that is meant, None if it is another run's, or gone."""
    try:
        directory = find_network(name)
    except InputError:
        return None
    if not (has_checkpoint(directory) or has_checkpoint(directory / 'checkpoints')):
        return None
    place = find_checkpoints(directory).parent
    return place if (place / SLICES).exists() else None


def _check_replaced(output, config, own):
    """Raises InputError if `output` holds anything but weights of this kind, none of them better."""
    if not output.exists() or not any(output.iterdir()):
        return
    if not (output / SLICES).exists():
        raise InputError(f'{output} holds something else than published weights; name another --output')
    theirs, ours = (weight_fields(each) for each in (read_record(output)['config'], config.to_dict()))
    differing = differences(theirs, ours, ('model', 'problem'))
    if differing:
        raise InputError(f'{output} holds weights of another config: {"; ".join(differing)}. Name another --output')
    before, now = json.loads((output / SLICES).read_text())[-1]['validation_loss'], own['validation_loss']
    if now > before:
        raise InputError(f'{output} holds better weights: validation loss {before:.4g}, and these have {now:.4g}')


def _replace(part, output):
    """Puts a directory in the place of another; at every moment one of the two is whole under some name."""
    old = output.with_name(f'.{output.name}.old')
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    part.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def model_card(experiment: Experiment, slices: list[dict], report: dict, step: int, seal: str) -> str:
    """What published weights are, how they were made and how good they are, as Markdown.

    Args:
        experiment: of the last slice.
        slices: what `slices.json` holds: from which example to which each slice went, in what time, on what.
        report: what `evaluation.json` holds.
        step: of the checkpoint.
        seal: SHA-256 of the checkpoint's checksums.
    """
    problem, network = experiment.problem, experiment.model
    operations = training_operations(network, problem.grid_size)
    orientations = report['settings']['solve']['orientations']
    examples = slices[-1]['end'] - slices[0]['begin']
    data = 'complete' if problem.resolution is None else f'up to |h| = {problem.resolution:g}'
    facts = {
        'problem': f'{problem.num_atoms} atoms of radius {problem.atom_radius:g} in an inner box of edge '
        f'{problem.box_edge:g}, target {problem.target}; data {data}, noise {problem.noise:.0%}',
        'network': f'{count_weights(network, problem.grid_size):,} weights; `{RECORD}` has every field',
        'data': f'{examples:,} cases of the training stream, made as they were needed',
        'arithmetic': f'{operations / 1e9:.3g} GFLOP a case, forward and backward, {operations * examples / 1e15:.3g} '
        'PFLOP in all, counted as direct convolutions, other transforms left out',
        'maps': f'in validation of one orientation of the cell, in the evaluation the mean of {orientations}',
        'training': f'{sum(each["seconds"] for each in slices) / 3600:.2f} hours',
        'checksums': f'in `checkpoints/{step}/{CHECKSUMS}`, verified whenever the weights are loaded; SHA-256 of that '
        f'file: `{seal}`',
        'licence': 'Apache 2.0, as the code',
    }
    if slices[0]['begin']:
        facts['before'] = f'{slices[0]["begin"]:,} cases in other runs, which are not counted here'
    title = f'# {type(network).__name__}, {problem.num_atoms} atoms in {problem.grid_size}³ voxels'
    words = (
        'Weights that turn a Patterson map into a density map, for maps of this grid and atoms of this size. They, the '
        'log, the figures and this card were put here by `run_experiment.py --mode=publish`.'
    )
    pictures = '![Losses](figures/losses.png)\n\n![Errors](figures/errors.png)'
    tables = (_table(('', ''), facts.items()), _slice_table(slices), _score_table(report))
    return '\n\n'.join((title, words, *tables, pictures)) + '\n'


def _slice_table(slices):
    head = (
        *('cases', 'batch', 'learning rate', 'weight of filled voxels', 'seed'),
        *('hours', 'on', 'validation: correlation', 'loss'),
    )
    return _table(
        head,
        (
            (
                f'{each["begin"]:,} to {each["end"]:,}',
                each['batch_size'],
                f'{each["learning_rate"]:g}',
                f'{each["filled_weight"]:g}',
                each['seed'],
                f'{each["seconds"] / 3600:.2f}',
                f'{each["devices"]} × {each["device"]}, JAX {each["jax"]}',
                f'{each["validation_correlation"]:.4f}',
                f'{each["validation_loss"]:.4g}',
            )
            for each in slices
        ),
    )


def _score_table(report):
    shown = {
        'separated': "the paper's procedure, at the best translation",
        'separated_in_place': "the paper's procedure, as the paper compares",
        'refined': 'refined by the solver',
        'random': 'positions at random',
    }
    cases = f'{report["cases"]} unseen cases, {report["atoms"]} atoms'
    head = cases, 'paired', f'within {MATCH_DISTANCE:g} voxel', 'cases with every atom', 'mean error, voxels'
    rows = (
        (
            words,
            report[name]['matched'],
            f'{report[name]["recall"]:.2%}',
            report[name]['solved'],
            f'{report[name]["mean_error"]:.3g}',
            f'{report[name]["seconds_per_case"]:.3f}' if 'seconds_per_case' in report[name] else '',
        )
        for name, words in shown.items()
        if name in report
    )
    return _table((*head, 'seconds a case'), rows) + f'\n\nMap correlation {report["map"]["correlation"]:.4f}.'


def _table(head, rows):
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)
