"""Runs: a directory in which one config is trained and evaluated."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from patterson_jax.config import Experiment, check_devices, differences
from patterson_jax.errors import InputError, Unfinished, require
from patterson_jax.evaluation import describe_scores, evaluate
from patterson_jax.figures import draw_errors, draw_losses, draw_maps, draw_separation
from patterson_jax.files.common import make_directory
from patterson_jax.learning.checkpoints import Checkpoints, has_checkpoint
from patterson_jax.learning.metrics import read_metrics
from patterson_jax.learning.parallel import is_first_process, on_any_process, wait_for_all
from patterson_jax.learning.training import Start, train
from patterson_jax.reports import evaluation_report, write_report
from patterson_jax.shipped import find_network
from patterson_jax.weights import load_weights, network_with
from patterson_jax.writing import write_json

RECORD = 'config.json'
UNKNOWN_MACHINE = {'device': 'unknown', 'devices': 1, 'jax': 'unknown'}  # of a run that did not record it
TRAINING_SECTIONS = ('seed', 'problem', 'model', 'train')
MAY_CHANGE = ('train.max_minutes',)  # when a run is started again
EVALUATION_SECTIONS = ('seed', 'problem', 'separate', 'solve', 'evaluate')


def train_experiment(experiment: Experiment, config: ConfigDict, workdir: Path, overrides: dict[str, Any]) -> None:
    """Trains in the workdir, going on from what it holds; then evaluates the best weights and draws the figures."""
    check_devices(experiment)
    make_directory(workdir, '--workdir')
    resolved = config.to_dict()
    check_record(workdir, resolved)
    start = _start_of_run(experiment, config, workdir)
    wait_for_all('workdir checked')
    if is_first_process():
        machine = {'device': jax.devices()[0].device_kind, 'devices': jax.device_count(), 'jax': jax.__version__}
        write_json(workdir / RECORD, {'overrides': overrides, 'config': resolved, 'machine': machine})
    try:
        train(
            experiment.model,
            experiment.problem,
            experiment.train,
            experiment.checkpoint,
            experiment.seed,
            workdir,
            resolved,
            start,
        )
    finally:  # of a run that goes on later too
        rows = read_metrics(workdir / 'metrics.jsonl')
        if rows and is_first_process():
            draw_losses(workdir / 'figures' / 'losses.png', rows)
    if experiment.evaluate.num_cases:
        evaluate_experiment(experiment, config, workdir)


def check_record(workdir: Path, config: dict) -> None:
    """Raises InputError if a workdir holds a run of another resolved config, with the fields that differ."""
    for before in _earlier_configs(workdir, workdir / RECORD):
        differing = differences(before, config, TRAINING_SECTIONS, MAY_CHANGE)
        if differing:
            raise InputError(
                f'{workdir} holds a run of another config: {"; ".join(differing)}. Name another --workdir, or remove it'
            )


def _earlier_configs(workdir, record):
    """The configs of the run that a workdir holds: in its record, and in its latest checkpoint."""
    if record.exists():
        yield read_record(workdir)['config']
    if has_checkpoint(workdir / 'checkpoints'):
        with Checkpoints(workdir / 'checkpoints', read_only=True) as checkpoints:
            yield checkpoints.restore(checkpoints.latest_step, config=None)['config']


def read_record(workdir: Path) -> dict:
    """What a run's directory says of it: `config`, resolved, `overrides` and `machine`. Raises InputError."""
    path = workdir / RECORD
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
        return {'machine': UNKNOWN_MACHINE} | record | {'config': dict(record['config'])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f'{path}: not the record of a run; name another directory') from error


def _start_of_run(experiment, config, workdir):
    """The weights to begin with, if the config names those of another run and this one has none of its own yet."""
    if not experiment.train.init_from or has_checkpoint(workdir / 'checkpoints'):
        return None
    try:
        weights = load_weights(experiment, config, find_network(experiment.train.init_from))
    except InputError as error:
        raise InputError(f'train.init_from: {error}') from error
    return Start(weights.params, weights.counters['examples'], weights.counters['sets'])


def evaluate_experiment(
    experiment: Experiment, config: ConfigDict, workdir: Path, checkpoint: Path | None = None
) -> None:
    """Scores a run's best weights, or methods that need none, on unseen cases; writes `evaluation.json` and figures."""
    require(experiment.evaluate.num_cases >= 1, 'evaluate.num_cases', 0, '1 or more to evaluate')
    needed = experiment.evaluate.need_network
    if 'auto' in experiment.evaluate.chosen_methods and (checkpoint or has_checkpoint(workdir / 'checkpoints')):
        needed = True
    weights = load_weights(experiment, config, checkpoint or workdir) if needed else None
    make_directory(workdir, '--workdir')
    stopped = None
    if is_first_process():
        try:
            _score(weights, experiment, config.to_dict(), workdir)
        except Unfinished as unfinished:
            stopped = unfinished
    if on_any_process(stopped is not None):  # here the other processes wait
        raise stopped or Unfinished('stopped with the first process')


def _score(weights, experiment, config, workdir):
    network = weights and network_with(experiment.model, weights.params, experiment.problem)
    report, shown = evaluate(
        experiment.problem, experiment.separate, experiment.solve, experiment.evaluate, experiment.seed, network
    )
    report['settings'] = evaluation_settings(config)
    figures = workdir / 'figures'
    if weights and shown:
        report['weights'] = {'step': weights.step, 'trained_on': weights.config['problem']}
        draw_maps(figures / 'maps.png', shown, experiment.problem)
        draw_separation(figures / 'separation.png', np.asarray(shown.solutions.misfit))
        for difference in differences(weights.config, config, ('problem',)):
            print(f'note: in the training of these weights {difference}')
    draw_errors(figures / 'errors.png', report)
    names = ('losses', 'maps', 'separation', 'errors') if weights and shown else ('errors',)
    pictures = [figures / f'{name}.png' for name in names]
    write_report(workdir / 'report.html', evaluation_report(report, config, pictures, workdir))
    write_json(workdir / 'evaluation.json', report)  # last: where it is, all is
    print(f'{describe_scores(report)}\n{workdir / "report.html"}, evaluation.json, figures')


def evaluation_settings(config: dict) -> dict:
    """The part of a resolved config on which an evaluation depends, the weights apart."""
    return {section: config[section] for section in EVALUATION_SECTIONS}
