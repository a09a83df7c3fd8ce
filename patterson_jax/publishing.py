"""Publishes the best weights of a run in a directory to keep beside the code, with a model card of the measurements.

The directory has the layout of a run, so that `--checkpoint` and `train.init_from` accept it. A run that began with the
weights of such a directory, or of another run, is one more slice of their training: its log and its slice are appended
to theirs.
"""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from patterson_jax.config import Experiment, differences, network_of
from patterson_jax.errors import InputError, require
from patterson_jax.evaluation import MATCH_DISTANCE
from patterson_jax.figures import draw_learning_curve, draw_losses
from patterson_jax.inspection import count_weights, training_operations
from patterson_jax.learning.checkpoints import (
    CHECKSUMS,
    Checkpoints,
    copy_checkpoint,
    find_checkpoints,
    has_checkpoint,
)
from patterson_jax.learning.metrics import LearningCurve, fit_learning_curve, read_metrics
from patterson_jax.projection_comparison import Comparison, require_better
from patterson_jax.projection_training import LATER_PASSES, ProjectionExperiment
from patterson_jax.projection_weights import count_projection_weights, projection_fields
from patterson_jax.releases import update_manifest
from patterson_jax.runs import RECORD, check_record, evaluation_settings, read_record
from patterson_jax.shipped import find_network
from patterson_jax.simulation.encoding import Encoding
from patterson_jax.simulation.problem import Problem
from patterson_jax.weights import weight_fields
from patterson_jax.writing import markdown_table, write_json

LARGEST_CHECKPOINT = 16 * 2**20  # bytes without the state of the optimiser; more is too much for a repository
ROOT = Path(__file__).resolve().parents[1]  # of a clone
SLICES = 'slices.json'
LOG = 'metrics.jsonl'
ENDS_OF_ROWS = ('seed', 'hours', 'on', 'validation: correlation', 'loss')
FIGURES = ('maps.png', 'separation.png', 'errors.png')
PAPERS_ERROR, PAPERS_PAIRS, PAPERS_ATOMS = 0.283, 4994, 5000  # mean error in place, voxels (3.5)
# The paper names no loss. Our unrolled network has the paper's mean error with this one, on the paper's problem.
LOSS_OF_PAPERS_ERROR = 2.0e-5
MOST_CASES = 1e9  # a curve is not extrapolated further


def publish(experiment: Experiment, config: ConfigDict, workdir: Path, output: Path | None) -> None:
    """Writes a run's best checkpoint, its evaluation and log, and a card, `README.md`, to `output`.

    In `pretrained/` of a clone, the description of the networks' release file is updated too.

    Args:
        experiment: the validated config.
        config: of the run.
        workdir: of the run.
        output: directory to make or replace.

    Raises:
        InputError: `output` is missing, or has better weights or those of another problem or network; the run has
            another config, or was not evaluated with this config and its best weights; its checkpoint has no checksums
            or is larger than 16 MiB.
    """
    best = _best_of(workdir, config, output)
    report = _evaluation_of(workdir, config, best.step)
    slices, rows = _with_history(best, workdir, config.to_dict(), _map_details)
    if _has_weights(output, config.to_dict(), weight_fields):
        _require_lower_loss(output, slices[-1])
    curve = fit_learning_curve(rows)
    with _replacing(output) as part:
        seal = _write_weights(part, best, workdir, slices, rows)
        write_json(part / 'evaluation.json', report)
        goal = LOSS_OF_PAPERS_ERROR if _is_papers(experiment.problem) else None
        draw_learning_curve(part / 'figures' / 'learning.png', rows, curve, goal)
        for name in FIGURES:
            shutil.copyfile(workdir / 'figures' / name, part / 'figures' / name)
        card = model_card(experiment, slices, report, best.step, seal, curve)
        (part / 'README.md').write_text(card, encoding='utf-8')
    _tell(output, slices, best)


def publish_projection(
    experiment: ProjectionExperiment, config: ConfigDict, workdir: Path, output: Path | None
) -> None:
    """Writes the best checkpoint of a learned projection of crystals, its log, and a card, `README.md`, to `output`.

    Arguments and errors are those of `publish`, except that no evaluation is asked for. Whether published weights are
    better is not read from the logs: both are given the same crystals here (`projection_comparison`).
    """
    best = _best_of(workdir, config, output)
    slices, rows = _with_history(best, workdir, config.to_dict(), _projection_details)
    if output and _has_weights(output, config.to_dict(), projection_fields):
        compared = require_better(experiment, output, workdir)
        slices[-1] |= {'compared': compared._asdict()}
        print(compared)
    with _replacing(output) as part:
        seal = _write_weights(part, best, workdir, slices, rows)
        card = projection_card(experiment, slices, rows[-1], best.step, seal)
        (part / 'README.md').write_text(card, encoding='utf-8')
    _tell(output, slices, best)


class Best(NamedTuple):
    """The best checkpoint of a run: its step, its directory, its counters, and the rows of the log up to it."""

    step: int
    source: Path
    counters: dict
    rows: list[dict]


def _best_of(workdir, config, output):
    """The best checkpoint of the run in a workdir, if it can be published at `output`. Raises InputError."""
    if output is None:
        raise InputError('--output is missing; it names the directory to publish in, as in --output=pretrained/NAME')
    require(output.resolve() != workdir.resolve(), '--output', str(output), 'another directory than the run')
    check_record(workdir, config.to_dict())
    with Checkpoints(find_checkpoints(workdir), read_only=True) as checkpoints:
        step = checkpoints.best_step
        source = checkpoints.directory / str(step)
        counters = checkpoints.restore(step, counters=None)['counters']
    _check_checkpoint(source)
    rows = [row for row in read_metrics(workdir / LOG) if row['step'] <= step]
    if not rows or rows[-1]['step'] != step or 'validation_loss' not in rows[-1]:
        raise InputError(f'{workdir}: step {step} was not validated; let the run reach its next validation')
    return Best(step, source, counters, rows)


def _with_history(best, workdir, config, details):
    """All slices that led to the best weights of a run, and the rows of their logs, with the number of the slice."""
    own = _slice_of(config, workdir, best.counters, best.rows[-1], details)
    slices, before = _history(config['train']['init_from'], own['begin'], details)
    slices = [*slices, own]
    return slices, [*before, *({'slice': len(slices)} | row for row in best.rows)]


@contextlib.contextmanager
def _replacing(output):
    """A directory to fill, which then takes the place of `output`; nothing changes if that fails."""
    part = output.with_name(f'.{output.name}.part')
    shutil.rmtree(part, ignore_errors=True)
    yield part
    _replace(part, output)
    if output.resolve().parent == ROOT / 'pretrained':
        update_manifest(ROOT)


def _write_weights(part, best, workdir, slices, rows):
    """Writes weights, record, slices, log and the figure of the losses; returns the SHA-256 of the checksums."""
    place = part / 'checkpoints' / str(best.step)
    copy_checkpoint(best.source, place, with_optimizer=False)
    shutil.copyfile(workdir / RECORD, part / RECORD)
    write_json(part / SLICES, slices)
    (part / LOG).write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    draw_losses(part / 'figures' / 'losses.png', rows)
    return hashlib.sha256((place / CHECKSUMS).read_bytes()).hexdigest()


def _tell(output, slices, best):
    print(f'{output}: slice {len(slices)}, step {best.step}, {best.counters["examples"]:,} examples')


def _check_checkpoint(source):
    if not (source / CHECKSUMS).exists():
        raise InputError(f'{source}: it has no {CHECKSUMS}, because the run was killed; let the run finish')
    files = (path for path in source.rglob('*') if path.is_file())
    size = sum(path.stat().st_size for path in files if 'optimizer' not in path.relative_to(source).parts)
    if size > LARGEST_CHECKPOINT:
        largest = f'at most {LARGEST_CHECKPOINT / 2**20:.3g} MiB to be published'
        raise InputError(f'{source} takes {size / 2**20:.3g} MiB; it must be {largest}')


def _evaluation_of(workdir, config, step):
    """The evaluation of the weights of a step with this config. Raises InputError without it."""
    path = workdir / 'evaluation.json'
    try:
        report = json.loads(path.read_text(encoding='utf-8'))
        current = report['weights']['step'] == step and report['settings'] == evaluation_settings(config.to_dict())
    except (OSError, ValueError, KeyError, TypeError):
        current = False
    if not current:
        raise InputError(f'{path}: it has no evaluation of step {step} with this config; run --mode=evaluate first')
    return report


def _slice_of(config, workdir, counters, validated, details):
    """The slice of one run, up to the weights with these counters; `validated` is the row of their validation."""
    training = config['train']
    begin = counters['examples'] - counters['step'] * training['batch_size']
    return {
        'begin': begin,
        'end': counters['examples'],
        'batch_size': training['batch_size'],
        'learning_rate': training['learning_rate'],
        **details(config),
        'seed': config['seed'],
        'seconds': counters['seconds'],
        'validation_loss': validated['validation_loss'],
        'validation_correlation': validated['validation_correlation'],
    } | read_record(workdir)['machine']


def _map_details(config):
    """What a slice tells beside what all tasks have in common."""
    seen = network_of(config['model']).seen(config['problem']['grid_size'])
    return {'filled_weight': config['train']['filled_weight'], 'seen': seen}


def _projection_details(config):
    return {name: config['train'][name] for name in ('most_passes', 'num_validation')}


def _history(name, begin, details):
    """Slices and log that led to the weights with which a run began, at example `begin`, as far as they exist."""
    if not name:
        return [], []
    if place := find_published(name):
        slices = [each for each in json.loads((place / SLICES).read_text()) if each['end'] <= begin]
        return slices, [row for row in read_metrics(place / LOG) if row['examples'] <= begin]
    try:
        checkpoints = find_checkpoints(find_network(name))
        workdir = checkpoints.parent
        config = read_record(workdir)['config']
        with Checkpoints(checkpoints, read_only=True) as saved:  # a run counts from the latest, whichever it takes
            counters = saved.restore(saved.latest_step, counters=None)['counters']
    except InputError:  # the run was removed
        return [], []
    rows = [row for row in read_metrics(workdir / LOG) if row['examples'] <= begin]
    validated = [row for row in rows if 'validation_loss' in row]
    if not validated or counters['examples'] != begin:  # the run was continued since
        return [], []
    own = _slice_of(config, workdir, counters, validated[-1], details)
    slices, before = _history(config['train']['init_from'], own['begin'], details)
    slices = [*slices, own]
    return slices, [*before, *({'slice': len(slices)} | row for row in rows)]


def find_published(name: str) -> Path | None:
    """The directory of published weights with a path or a name; None if it is not one, or ''."""
    if not name:
        return None
    try:
        directory = find_network(name)
    except InputError:
        return None
    if not (has_checkpoint(directory) or has_checkpoint(directory / 'checkpoints')):
        return None
    place = find_checkpoints(directory).parent
    return place if (place / SLICES).exists() else None


def _has_weights(output, config, fields_of):
    """Whether `output` has weights to replace. Raises InputError if they are of another kind, or it has other files."""
    if not output.exists() or not any(output.iterdir()):
        return False
    if not (output / SLICES).exists():
        raise InputError(f'{output} has files that are not published weights; name another --output')
    published = read_record(output)['config']
    if ('problem' in published) != ('problem' in config):
        raise InputError(f'{output} has weights of another kind of network; name another --output')
    theirs, ours = (fields_of(each) for each in (published, config))
    differing = differences(theirs, ours, ('model', 'problem'))
    if differing:
        raise InputError(f'{output} has weights of another config: {"; ".join(differing)}. Name another --output')
    return True


def _require_lower_loss(output, own):
    before, now = json.loads((output / SLICES).read_text())[-1]['validation_loss'], own['validation_loss']
    if now > before:
        raise InputError(f'{output} has better weights: validation loss {before:.4g}, and these have {now:.4g}')


def _replace(part, output):
    """Replaces a directory by another; at every moment one of the two exists whole, under some name."""
    old = output.with_name(f'.{output.name}.old')
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    part.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def _is_papers(problem):
    """Whether the cases are the paper's; the scale of the network's input does not matter."""
    return problem.changed(input_scale=Encoding.input_scale) == Problem()


def model_card(
    experiment: Experiment,
    slices: list[dict],
    report: dict,
    step: int,
    seal: str,
    curve: LearningCurve | None = None,
) -> str:
    """The card of published weights, as Markdown: what they are, how they were made and how good they are.

    Args:
        experiment: of the last slice.
        slices: the content of `slices.json`: the examples, time and device of each slice.
        report: the content of `evaluation.json`.
        step: of the checkpoint.
        seal: SHA-256 of the checkpoint's checksums.
        curve: fitted to the log; None: the log is too short.
    """
    problem, network = experiment.problem, experiment.model
    cases: dict[int, int] = {}  # by the edge of the maps that the network saw
    for each in slices:
        seen = _seen(each, experiment)
        cases[seen] = cases.get(seen, 0) + each['end'] - each['begin']
    operations = {seen: training_operations(network.on_whole_maps(), seen) for seen in cases}
    in_words = ', '.join(f'{operations[seen] / 1e9:.3g} GFLOP a case of {seen}³ voxels' for seen in sorted(cases))
    in_all = sum(operations[seen] * number for seen, number in cases.items())
    orientations = report['settings']['solve']['orientations']
    examples = slices[-1]['end'] - slices[0]['begin']
    data = 'complete' if problem.measurement.resolution is None else f'up to |h| = {problem.measurement.resolution:g}'
    facts = {
        'problem': f'{problem.num_atoms} atoms of radius {problem.atom_radius:g} in an inner box of edge '
        f'{problem.box_edge:g}, target {problem.encoding.target}; data {data}, noise {problem.measurement.noise:.0%}',
        'network': f'{count_weights(network, problem.grid_size):,} weights; `{RECORD}` has every field',
        'data': f'{examples:,} cases of the training stream, made when they were needed',
        'arithmetic': f'{in_words}, forward and backward, {in_all / 1e15:.3g} PFLOP in all, counted as direct '
        'convolutions, without other transforms',
        'maps': f'in validation from one orientation of the cell, in the evaluation the mean of {orientations}'
        if orientations > 1
        else 'from one orientation of the cell',
        **_beginning(slices, 'cases'),
        'training': f'{sum(each["seconds"] for each in slices) / 3600:.2f} hours',
        'checksums': f'in `checkpoints/{step}/{CHECKSUMS}`, verified whenever the weights are loaded; SHA-256 of that '
        f'file: `{seal}`',
        'licence': 'Apache 2.0, as the code',
    }
    if slices[0]['begin']:
        facts['before'] = f'{slices[0]["begin"]:,} cases in other runs, which are not counted here'
    title = f'# {type(network).__name__}, {problem.num_atoms} atoms in {problem.grid_size}³ voxels'
    words = (
        'These weights turn a Patterson map into a density map, for maps of this grid and atoms of this size. '
        '`run_experiment.py --mode=publish` wrote them, the log, the figures and this card.'
    )
    pictures = '\n\n'.join(
        f'![{name.capitalize()}](figures/{name}.png)' for name in ('losses', 'learning', 'errors', 'maps')
    )
    tables = (markdown_table(('', ''), facts.items()), _slice_table(slices, experiment), _score_table(report, problem))
    return '\n\n'.join((title, words, *tables, _outlook(problem, slices[-1], curve), pictures)) + '\n'


def _outlook(problem, last, curve):
    """How the loss falls with cases and, for the paper's problem, when it would give the paper's accuracy."""
    if curve is None:
        return (
            'It is not known yet how the loss falls with the number of cases: the log is too short, or the loss is '
            'still more than half of that of empty maps.'
        )
    law = f'Over the last three quarters of the cases the validation loss fell as cases^{-curve.exponent:.2f}.'
    if not _is_papers(problem):
        return law
    goal, now = LOSS_OF_PAPERS_ERROR, last['validation_loss']
    if now <= goal:
        return f"{law} It has reached {goal:.3g}, with which our networks have the paper's mean error."
    there = curve.cases_at(goal)
    when = f'after about {there:.1g} cases' if there < MOST_CASES else f'not before {MOST_CASES:.0g} cases'
    return (
        f"{law} With {goal:.3g} our networks have the paper's mean error, {PAPERS_ERROR} voxel in place. At that pace "
        f'they would reach it {when}. The paper took some 1.3e+07 cases. Such curves are not straight, least of all at '
        'the beginning.'
    )


def projection_card(experiment: ProjectionExperiment, slices: list[dict], validated: dict, step: int, seal: str) -> str:
    """The card of a published learned projection, as Markdown.

    Args:
        experiment: of the last slice.
        slices: the content of `slices.json`.
        validated: the row of the log with the last validation.
        step: of the checkpoint.
        seal: SHA-256 of the checkpoint's checksums.
    """
    network, crystals = experiment.model, experiment.crystals
    shape, (finest, coarsest) = ' × '.join(map(str, crystals.shape)), crystals.d_min
    facts = {
        'use': 'finishes the maps of crystals in place of low-density elimination or beside it, in any cell and group',
        'network': f'{count_projection_weights(network):,} weights; `{RECORD}` has every field',
        'data': f'{slices[-1]["end"] - slices[0]["begin"]:,} invented crystals of {shape} voxels, cut at {finest:g} to '
        f'{coarsest:g} Å, {experiment.states.starts} maps of each, made when they were needed',
        **_beginning(slices, 'crystals'),
        'training': f'{sum(each["seconds"] for each in slices) / 3600:.2f} hours',
        'validation': f'{experiment.train.num_validation} crystals, squared error {validated["validation_loss"]:.3f}; '
        f'mean cosine of phase errors, weighted by E², {_cosines(validated)}',
        **({'against the weights before': _compared(slices[-1])} if 'compared' in slices[-1] else {}),
        'what it brings': '[docs/learned_projection.md](../../docs/learned_projection.md)',
        'checksums': f'in `checkpoints/{step}/{CHECKSUMS}`, verified whenever the weights are loaded; SHA-256 of that '
        f'file: `{seal}`',
        'licence': 'Apache 2.0, as the code',
    }
    runs = markdown_table(
        ('crystals', 'batch', 'most passes', 'learning rate', *ENDS_OF_ROWS),
        (
            (
                f'{each["begin"]:,} to {each["end"]:,}',
                each['batch_size'],
                each['most_passes'],
                f'{each["learning_rate"]:g}',
                *_end_of_row(each),
            )
            for each in slices
        ),
    )
    title = f'# {type(network).__name__}, for crystals at {finest:g} to {coarsest:g} Å'
    words = (
        'These weights turn a map of E values with wrong phases into a map of sharp atoms. '
        '`run_experiment.py --mode=publish` wrote them, the log, the figure and this card.'
    )
    reading = (
        'The correlation in table and figure is the mean cosine of phase errors after one pass. Validations can '
        'only be compared on the same crystals; the page above tells which those are.'
    )
    figure = '![Losses](figures/losses.png)'
    return '\n\n'.join((title, words, markdown_table(('', ''), facts.items()), runs, reading, figure)) + '\n'


def _beginning(slices, examples):
    """Which weights the last slice began with, for a card: the record may name the place where they were replaced."""
    if not slices[-1]['begin']:
        return {}
    words = f'the weights after {slices[-1]["begin"]:,} {examples}; `train.init_from` in `{RECORD}` means them, even '
    return {'the last slice began with': f'{words}where it names this directory'}


def _compared(own):
    return str(Comparison(**own['compared']))


def _cosines(validated):
    before, after, later = (validated[f'validation_correlation{each}'] for each in ('_before', '', '_later'))
    return f'{before:.3f} before, {after:.3f} after a pass, {later:.3f} after {LATER_PASSES}'


def _seen(own, experiment):
    """Edge of the middle of the maps that went through the network in a slice.

    Earlier slices of the paper's network have `crop`, which is 0 for whole maps; those of other networks have nothing.
    """
    grid = experiment.problem.grid_size
    return own['seen'] if 'seen' in own else own.get('crop', experiment.model.seen(grid)) or grid


def _slice_table(slices, experiment):
    return markdown_table(
        ('cases', 'voxels seen', 'batch', 'learning rate', 'weight of filled voxels', *ENDS_OF_ROWS),
        (
            (
                f'{each["begin"]:,} to {each["end"]:,}',
                f'{_seen(each, experiment)}³',
                each['batch_size'],
                f'{each["learning_rate"]:g}',
                f'{each["filled_weight"]:g}',
                *_end_of_row(each),
            )
            for each in slices
        ),
    )


def _end_of_row(own):
    """What the tables of all tasks tell of a slice at the end, as `ENDS_OF_ROWS` names it."""
    return (
        own['seed'],
        f'{own["seconds"] / 3600:.2f}',
        f'{own["devices"]} × {own["device"]}, JAX {own["jax"]}',
        f'{own["validation_correlation"]:.4f}',
        f'{own["validation_loss"]:.4g}',
    )


def _score_table(report, problem):
    shown = {
        'separated': "the paper's procedure, at the best translation",
        'separated_in_place': "the paper's procedure, as the paper compares",
        'refined': 'refined by the solver',
        'random': 'positions at random',
    }
    cases = f'{report["cases"]} unseen cases, {report["atoms"]} atoms'
    head = cases, 'paired', f'within {MATCH_DISTANCE:g} voxel', 'cases with every atom', 'mean error, voxels'
    rows = [_score_row(words, report[name]) for name, words in shown.items() if name in report]
    correlation = f'Map correlation {report["map"]["correlation"]:.4f}'
    if more := report.get('in_more_orientations'):
        mean = f', mean map of {more["orientations"]} orientations'
        names = ('separated', 'separated_in_place')
        rows[2:2] = [_score_row(shown[name] + mean, more[name]) for name in names]
        correlation += f', of the mean map of {more["orientations"]} orientations {more["map"]["correlation"]:.4f}'
    if _is_papers(problem) and report['atoms'] == PAPERS_ATOMS:
        rows.append(("the paper's own figures, on cases of its own", PAPERS_PAIRS, '', '', f'{PAPERS_ERROR:.3g}', ''))
    return markdown_table((*head, 'seconds a case'), rows) + f'\n\n{correlation}.'


def _score_row(words, scores):
    return (
        words,
        scores['matched'],
        f'{scores["recall"]:.2%}',
        scores['solved'],
        f'{scores["mean_error"]:.3g}',
        f'{scores["seconds_per_case"]:.3f}' if 'seconds_per_case' in scores else '',
    )
