"""Comparisons of training runs that differ in one thing: which to run, and tables of their results (paper, 3.2).

The section `ablation` of a config has runs and figures. A run has a label and changes of the config; a run that trains
nothing names another run whose weights it evaluates. A figure is a list of runs.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from patterson_jax.config import Experiment, check_devices, validate
from patterson_jax.errors import InputError, require
from patterson_jax.figures import draw_comparison
from patterson_jax.learning.map_training import TrainingSettings
from patterson_jax.learning.metrics import read_metrics
from patterson_jax.learning.parallel import is_first_process
from patterson_jax.runs import check_record, evaluate_experiment, evaluation_settings, train_experiment
from patterson_jax.writing import markdown_table, write_json, write_whole

FIXED = ('problem.', 'model.', 'separate.')  # sections that a user cannot change, because runs are made from them
COLUMNS = {
    'validation_error': 'last validation error',
    'error': 'error',
    'correlation': 'map correlation',
    'recall': 'recall',
    'recall_in_place': 'recall in place',
    'mean_error_in_place': 'mean error in place, voxels',
    'random_recall': 'recall at random',
    'recall_in_corner': 'recall in place in the corner',
    'recall_elsewhere': 'recall in place elsewhere',
}


class Run(NamedTuple):
    """One run of a comparison.

    Attributes:
        name: of the run and its directory.
        label: in figures and tables.
        config: of this run alone, not validated.
        experiment: the validated config.
        changes: fields that differ from the config that all runs share.
        weights: name of the run whose weights it evaluates; '' if it trains its own.
    """

    name: str
    label: str
    config: ConfigDict
    experiment: Experiment
    changes: dict
    weights: str


def compare(config: ConfigDict, workdir: Path, overrides: dict[str, Any]) -> None:
    """Trains and evaluates the incomplete runs of a comparison, then draws its figures and writes its tables.

    Args:
        config: with a section `ablation`, not validated.
        workdir: gets a directory for each run and `figures/`.
        overrides: fields that the user changed.

    Raises:
        InputError: the config of a run is invalid, or its directory holds another run; before any training begins.
    """
    for field in overrides:
        if field.startswith(FIXED):
            raise InputError(
                f'{field} cannot be changed here, because the runs of a comparison are made from it; change it in the '
                'config file'
            )
    runs = comparison_runs(config)
    for run in runs:
        require(run.experiment.evaluate.num_cases >= 1, 'evaluate.num_cases', 0, '1 or more to compare runs')
        if not run.weights:
            check_devices(run.experiment)
            check_record(workdir / run.name, run.config.to_dict())
    before = None
    for number, run in enumerate(runs, start=1):
        if is_first_process():
            print(f'run {number} of {len(runs)}, {run.name}: {run.label}', file=sys.stderr, flush=True)
        if _is_complete(run, workdir):
            continue
        shapes = run.experiment.problem, run.experiment.model
        if before not in (None, shapes):
            jax.clear_caches()  # what is compiled for other shapes is not needed again
        before = shapes
        directory = workdir / run.name
        if run.weights:
            evaluate_experiment(run.experiment, run.config, directory, workdir / run.weights)
        else:
            train_experiment(run.experiment, run.config, directory, overrides | run.changes)
    if config.ablation.only or not is_first_process():
        return
    by_name = {run.name: run for run in runs}
    for figure, names in config.ablation.figures.items():
        _show([by_name[name] for name in names], workdir, workdir / 'figures' / figure)


def _is_complete(run, workdir):
    """Whether a run with exactly this config has been trained and evaluated."""
    directory, source = workdir / run.name, workdir / (run.weights or run.name)
    evaluation, log = directory / 'evaluation.json', source / 'metrics.jsonl'
    resolved = run.config.to_dict()
    try:
        evaluated = json.loads(evaluation.read_text(encoding='utf-8'))['settings'] == evaluation_settings(resolved)
        trained = read_metrics(log)[-1]['step'] == run.experiment.train.num_steps
        current = evaluation.stat().st_mtime >= log.stat().st_mtime
        if not run.weights:
            check_record(directory, resolved)
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return False
    return evaluated and trained and current


def _show(runs, workdir, path):
    """Draws one figure and writes its table."""
    write_table(path, runs, workdir)
    curves = {
        run.label: (
            metric_curve(workdir / run.name, run.experiment.train, ''),
            metric_curve(workdir / run.name, run.experiment.train, 'validation_'),
        )
        for run in runs
        if not run.weights
    }
    if len(curves) > 1:
        draw_comparison(path.with_suffix('.png'), curves)
    print(f'{path}.md, .json' + (', .png' if len(curves) > 1 else ''))


def comparison_runs(config: ConfigDict) -> list[Run]:
    """The runs of a config with a section `ablation`; runs that are trained come first.

    Raises:
        InputError: the config of a run is invalid, or `ablation.only` names no run.
    """
    ablation = config.ablation
    if ablation.only and ablation.only not in ablation.runs:
        raise InputError(f'ablation.only is {ablation.only!r}; it must be one of {", ".join(ablation.runs)}')
    batch_size = config.train.batch_size  # checked here, because references of the config divide by it
    require(batch_size >= 1, 'train.batch_size', batch_size, '1 or more')
    wanted = [name for runs in ablation.figures.values() for name in runs]
    runs = [_run(config, name) for name in ([ablation.only] if ablation.only else dict.fromkeys(wanted))]
    return sorted(runs, key=lambda run: bool(run.weights))


def _run(config, name):
    spec = config.ablation.runs[name]
    own = config.copy_and_resolve_references()
    changes = spec.changes.copy_and_resolve_references()
    try:
        with own.unlocked():
            del own['ablation']
            own.update(changes)
        return Run(name, spec.label, own, validate(own), changes.to_dict(), spec.weights)
    except (InputError, AttributeError, TypeError) as error:  # the last two if a change has another type
        raise InputError(f'ablation run {name}: {error}') from error


def write_table(path: Path, runs: list[Run], workdir: Path) -> None:
    """Writes the results of the runs of one figure as `path`.json and as a table, `path`.md."""
    rows = [comparison_row(run, workdir) for run in runs]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.with_suffix('.json'), {'runs': rows})
    columns = {key: words for key, words in COLUMNS.items() if any(row[key] is not None for row in rows)}
    lines = [[row['label'], *('' if row[key] is None else f'{row[key]:.3f}' for key in columns)] for row in rows]
    table = markdown_table(['run', *columns.values()], lines) + '\n'
    write_whole(path.with_suffix('.md'), lambda part: part.write_text(table, encoding='utf-8'))


def comparison_row(run: Run, workdir: Path) -> dict:
    """The results of one run. Errors of maps are relative to that of an empty map, so that targets can be compared.

    So the loss of a target with half as many atoms counts twice, as in the paper's Figure 8.
    """
    report = json.loads((workdir / run.name / 'evaluation.json').read_text(encoding='utf-8'))
    measured = [] if run.weights else metric_curve(workdir / run.name, run.experiment.train, 'validation_')
    corner = report.get('corner')
    return {
        'run': run.name,
        'label': run.label,
        'validation_error': measured[-1]['error'] if measured else None,
        'error': report['map']['mse'] / report['map']['mse_of_empty_map'],
        'correlation': report['map']['correlation'],
        'recall': report['separated']['recall'],
        'recall_in_place': report['separated_in_place']['recall'],
        'mean_error': report['separated']['mean_error'],
        'mean_error_in_place': report['separated_in_place']['mean_error'],
        'random_recall': report['random']['recall'],
        'recall_in_corner': corner['inside']['recall'] if corner else None,
        'recall_elsewhere': corner['elsewhere']['recall'] if corner else None,
        'cases': report['cases'],
        'examples_seen': report['weights']['step'] * run.experiment.train.batch_size,
    }


def metric_curve(directory: Path, settings: TrainingSettings, prefix: str) -> list[dict]:
    """Epochs, relative errors and correlations of training or, with prefix `validation_`, of validation, from a log."""
    return [
        {
            'epoch': row['step'] * settings.batch_size / settings.set_size,
            'error': row[f'{prefix}loss'] / row[f'{prefix}empty_loss'],
            'correlation': row[f'{prefix}correlation'],
        }
        for row in read_metrics(directory / 'metrics.jsonl')
        if f'{prefix}loss' in row
    ]
