"""Publishing: a run's best weights in a directory to keep beside the code, with a model card of what was measured.

The directory is laid out as a run's, so that `--checkpoint` and `train.init_from` take it. A run that began with the
weights of that directory is one more slice of their training: the log there goes on.
"""

import hashlib
import json
import shutil
from pathlib import Path

import jax
from ml_collections import ConfigDict

from patterson_jax.config import Experiment
from patterson_jax.errors import InputError, require
from patterson_jax.evaluation import MATCH_DISTANCE
from patterson_jax.figures import draw_losses
from patterson_jax.files import make_directory, write_json
from patterson_jax.inspection import count_weights, layer_table
from patterson_jax.learning.checkpoints import CHECKSUMS, Checkpoints, find_checkpoints
from patterson_jax.learning.metrics import read_metrics
from patterson_jax.runs import RECORD, check_record, evaluation_settings

LARGEST_CHECKPOINT = 16 * 2**20  # bytes; what a repository bears
PASSES_OF_A_STEP = 3  # forward, and backward to images and to kernels
FIGURES = ('maps.png', 'separation.png', 'errors.png')


def publish(experiment: Experiment, config: ConfigDict, workdir: Path, output: Path | None) -> None:
    """Copies a run's best checkpoint, evaluation and log to `output`, with a card, `README.md`, that tells of them.

    Raises:
        InputError: `output` is missing, the run is another config's, has not been evaluated with its best weights and
            this config, or its checkpoint is larger than 16 MiB.
    """
    if output is None:
        raise InputError('--output is missing; it names the directory to publish in, as in --output=pretrained/NAME')
    check_record(workdir, config.to_dict())
    with Checkpoints(find_checkpoints(workdir), read_only=True) as checkpoints:
        step = checkpoints.best_step
        source = checkpoints.directory / str(step)
        counters = checkpoints.restore(step, counters=None)['counters']
    report = _evaluation_of(workdir, config, step)
    size = sum(path.stat().st_size for path in source.rglob('*') if path.is_file())
    require(size <= LARGEST_CHECKPOINT, str(source), f'{size / 2**20:.1f} MiB', 'at most 16 MiB to be published')
    rows = _whole_log(experiment, workdir, output, counters['examples'])
    make_directory(output, '--output')
    _replace_directory(source, output / 'checkpoints', str(step))
    (output / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    shutil.copyfile(workdir / RECORD, output / RECORD)
    write_json(output / 'evaluation.json', report)
    draw_losses(output / 'figures' / 'losses.png', rows)
    for name in FIGURES:
        shutil.copyfile(workdir / 'figures' / name, output / 'figures' / name)
    card = model_card(experiment, rows, report, output / 'checkpoints' / str(step))
    (output / 'README.md').write_text(card, encoding='utf-8')
    print(f'{output}: step {step}, {counters["examples"]} examples, {size / 2**20:.1f} MiB')


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


def _whole_log(experiment, workdir, output, examples):
    """The log up to the published weights, each row with the number of its slice."""
    rows = [row for row in read_metrics(workdir / 'metrics.jsonl') if row['examples'] <= examples]
    earlier, begins = [], experiment.train.init_from
    if begins and Path(begins).absolute() == output.absolute():
        earlier = [row for row in read_metrics(output / 'metrics.jsonl') if row['examples'] < rows[0]['examples']]
    number = 1 + max((row['slice'] for row in earlier), default=0)
    return earlier + [{'slice': number} | row for row in rows]


def _replace_directory(source, parent, name):
    """Makes a copy of `source` the only thing in `parent`."""
    part = parent.with_name(f'.{parent.name}.part')
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part / name)
    shutil.rmtree(parent, ignore_errors=True)
    part.rename(parent)


def model_card(experiment: Experiment, rows: list[dict], report: dict, checkpoint: Path) -> str:
    """What the published weights are, how they were made and how good they are, as Markdown.

    Args:
        experiment: of the last slice.
        rows: the log of all slices, each row with its `slice`.
        report: contents of `evaluation.json`.
        checkpoint: directory of the published checkpoint.
    """
    problem, network, train = experiment.problem, experiment.model, experiment.train
    slices = [[row for row in rows if row['slice'] == number] for number in sorted({row['slice'] for row in rows})]
    hours = sum(each[-1]['seconds'] for each in slices) / 3600
    examples = rows[-1]['examples']
    operations = PASSES_OF_A_STEP * sum(layer.operations for layer in layer_table(network, problem.grid_size))
    validation = [row for row in rows if 'validation_correlation' in row][-1]
    checksum = hashlib.sha256((checkpoint / CHECKSUMS).read_bytes()).hexdigest()
    resolution = 'complete' if problem.resolution is None else f'up to |h| = {problem.resolution:g}'
    lines = [
        f'# {type(network).__name__}, {problem.num_atoms} atoms in {problem.grid_size}³ voxels',
        '',
        'Weights that turn a Patterson map into a density map, for maps of this grid and atoms of this size. They,',
        'the log, the figures and this card were put here by `run_experiment.py --mode=publish`.',
        '',
        '| | |',
        '|---|---|',
        f'| problem | {problem.num_atoms} atoms of radius {problem.atom_radius:g} in an inner box of edge '
        f'{problem.box_edge:g}, target {problem.target}; data {resolution}, noise {problem.noise:.0%} |',
        f'| network | {count_weights(network, problem.grid_size):,} weights; `config.json` has every field |',
        f'| data | {examples:,} cases of the training stream of seed {experiment.seed}, made during training, '
        f'{train.epochs_per_set} epoch{"s" if train.epochs_per_set > 1 else ""} a set |',
        f'| arithmetic | {operations / 1e9:.2f} GFLOP a case, forward and backward, {operations * examples / 1e15:.3g} '
        'PFLOP in all, counted as direct convolutions, transforms between stages left out |',
        f'| training | {len(slices)} slice{"s" if len(slices) > 1 else ""}, {hours:.2f} hours on '
        f'{report["device"]} ({jax.local_device_count()} device{"s" if jax.local_device_count() > 1 else ""}), '
        f'batches of {train.batch_size} |',
        f'| validation | map correlation {validation["validation_correlation"]:.4f}, loss '
        f'{validation["validation_loss"]:.3g}, {train.num_validation} cases |',
        f'| software | JAX {jax.__version__} |',
        f'| checksums | in `checkpoints/{checkpoint.name}/{CHECKSUMS}`, verified whenever the weights are loaded; '
        f'SHA-256 of that file: `{checksum}` |',
        '| licence | Apache 2.0, as the code |',
        '',
        f'Scores on {report["cases"]} unseen cases, {report["atoms"]} atoms (`evaluation.json` has more):',
        '',
        f'| | paired | within {MATCH_DISTANCE:g} voxel | cases with every atom | mean error, voxels | seconds a case |',
        '|---|---|---|---|---|---|',
    ]
    shown = {
        'separated': "the paper's procedure, at the best translation",
        'separated_in_place': "the paper's procedure, as the paper compares",
        'refined': 'refined by the solver',
        'random': 'positions at random',
    }
    for name, words in shown.items():
        if name in report:
            scores = report[name]
            seconds = f'{scores["seconds_per_case"]:.3f}' if 'seconds_per_case' in scores else ''
            lines.append(
                f'| {words} | {scores["matched"]} | {scores["recall"]:.2%} | {scores["solved"]} '
                f'| {scores["mean_error"]:.3g} | {seconds} |'
            )
    lines += [
        '',
        f'Map correlation {report["map"]["correlation"]:.4f}. Figures of these cases are in `figures/`.',
        '',
        '![Losses](figures/losses.png)',
        '',
        '![Errors](figures/errors.png)',
    ]
    return '\n'.join(lines) + '\n'
