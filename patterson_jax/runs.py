"""Runs: trains and evaluates one config in a directory."""

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
from patterson_jax.learning.map_training import MapTask
from patterson_jax.learning.metrics import read_metrics
from patterson_jax.learning.parallel import is_first_process, on_any_process, wait_for_all
from patterson_jax.learning.training import Start, train
from patterson_jax.projection_training import ProjectionExperiment
from patterson_jax.projection_weights import load_projection_weights
from patterson_jax.reports import evaluation_report, write_report
from patterson_jax.shipped import find_network
from patterson_jax.weights import load_weights, network_with
from patterson_jax.writing import write_json

RECORD = 'config.json'
UNKNOWN_MACHINE = {'device': 'unknown', 'devices': 1, 'jax': 'unknown'}  # of a run that did not record it
TRAINING_SECTIONS = ('seed', 'problem', 'crystals', 'states', 'model', 'train')
MAY_CHANGE = ('train.max_minutes', 'train.steps_per_call')  # fields that may change when a run is continued
EVALUATION_SECTIONS = ('seed', 'problem', 'separate', 'solve', 'evaluate')


def train_experiment(experiment: Experiment, config: ConfigDict, workdir: Path, overrides: dict[str, Any]) -> None:
    """Trains in the workdir, or continues a run there; then evaluates the best weights and draws the figures.

    Args:
        experiment: the validated config.
        config: resolved.
        workdir: of the run; it is made if needed.
        overrides: fields of the config that the user changed, for the record.

    Raises:
        InputError: the config does not fit the devices, the workdir or the weights to begin with.
        NonFiniteError, Unfinished: as in `learning.training.train`.
    """
    check_devices(experiment)
    task = MapTask(experiment.model, experiment.problem, experiment.train, experiment.seed)

    def weights_of(directory):
        return load_weights(experiment, config, directory)

    _train_task(task, experiment.checkpoint, weights_of, config, workdir, overrides)
    if experiment.evaluate.num_cases:
        evaluate_experiment(experiment, config, workdir)


def train_projection(
    experiment: ProjectionExperiment, config: ConfigDict, workdir: Path, overrides: dict[str, Any]
) -> None:
    """Trains the learned projection of crystals in the workdir, or continues a run there.

    Arguments and errors are those of `train_experiment`.
    """
    check_devices(experiment)

    def weights_of(directory):
        return load_projection_weights(directory, experiment.model)

    _train_task(experiment.task, experiment.checkpoint, weights_of, config, workdir, overrides)


def _train_task(task, checkpointing, weights_of, config, workdir, overrides):
    """Trains a task in the workdir; keeps the record of the run and draws its learning curve."""
    make_directory(workdir, '--workdir')
    resolved = config.to_dict()
    check_record(workdir, resolved)
    start = _start_of_run(task.settings.init_from, weights_of, workdir)
    wait_for_all('workdir checked')
    if is_first_process():
        machine = {'device': jax.devices()[0].device_kind, 'devices': jax.device_count(), 'jax': jax.__version__}
        write_json(workdir / RECORD, {'overrides': overrides, 'config': resolved, 'machine': machine})
    try:
        train(task, checkpointing, workdir, resolved, start)
    finally:  # also for a run that will be continued later
        rows = read_metrics(workdir / 'metrics.jsonl')
        if rows and is_first_process():
            draw_losses(workdir / 'figures' / 'losses.png', rows)


def check_record(workdir: Path, config: dict) -> None:
    """Raises InputError if a workdir has a run of another resolved config; the message names the fields that differ."""
    for before in _earlier_configs(workdir, workdir / RECORD):
        differing = differences(before, config, TRAINING_SECTIONS, MAY_CHANGE)
        if differing:
            raise InputError(
                f'{workdir} has a run of another config: {"; ".join(differing)}. Name another --workdir, or remove it'
            )


def _earlier_configs(workdir, record):
    """The configs of the run in a workdir: from its record and from its latest checkpoint."""
    if record.exists():
        yield read_record(workdir)['config']
    if has_checkpoint(workdir / 'checkpoints'):
        with Checkpoints(workdir / 'checkpoints', read_only=True) as checkpoints:
            yield checkpoints.restore(checkpoints.latest_step, config=None)['config']


def read_record(workdir: Path) -> dict:
    """The record of a run: its resolved `config`, `overrides` and `machine`. Raises InputError if it cannot be read."""
    path = workdir / RECORD
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
        return {'machine': UNKNOWN_MACHINE} | record | {'config': dict(record['config'])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f'{path}: not the record of a run; name another directory') from error


def _start_of_run(init_from, weights_of, workdir):
    """The weights of another run to begin with, if the config names one and this run has no checkpoint; else None."""
    if not init_from or has_checkpoint(workdir / 'checkpoints'):
        return None
    try:
        weights = weights_of(find_network(init_from))
    except InputError as error:
        raise InputError(f'train.init_from: {error}') from error
    return Start(weights.params, weights.counters['examples'], weights.counters['sets'])


def evaluate_experiment(
    experiment: Experiment, config: ConfigDict, workdir: Path, checkpoint: Path | None = None
) -> None:
    """Scores a run's best weights, or methods without a network, on unseen cases; writes a report and figures.

    Args:
        experiment: the validated config.
        config: resolved.
        workdir: gets `evaluation.json`, `report.html` and `figures`.
        checkpoint: directory of the run whose weights to use; None: the workdir.

    Raises:
        InputError: there are no cases, or the weights are missing or of another network.
    """
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
    write_json(workdir / 'evaluation.json', report)  # the last file, so that it marks a complete evaluation
    print(f'{describe_scores(report)}\n{workdir / "report.html"}, evaluation.json, figures')


def evaluation_settings(config: dict) -> dict:
    """The part of a resolved config on which an evaluation depends, beside the weights."""
    return {section: config[section] for section in EVALUATION_SECTIONS}
