"""The modes of `run_experiment.py`: train, evaluate, simulate, solve. Here the wings meet the files."""

import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from patterson_jax.config import Experiment, check_devices, differences, validate
from patterson_jax.errors import InputError
from patterson_jax.evaluation import evaluate
from patterson_jax.figures import draw_errors, draw_losses, draw_maps, draw_solution
from patterson_jax.files import (
    file_positions,
    read_map,
    read_xyz,
    voxel_positions,
    write_json,
    write_map,
    write_xyz,
)
from patterson_jax.learning.checkpoints import Checkpoints, find_checkpoints, has_checkpoint
from patterson_jax.learning.training import init_state, read_metrics, train
from patterson_jax.simulation.density import render
from patterson_jax.simulation.examples import example_key, stream_key
from patterson_jax.simulation.patterson import patterson_map
from patterson_jax.solving.solver import check_patterson, solve_batch

TRAINING_SECTIONS = ('seed', 'problem', 'model', 'train')
WEIGHT_FIELDS = ('grid_size', 'atom_radius', 'input_scale', 'target')
MODES = ('train', 'evaluate', 'simulate', 'solve')


def run(
    mode: str,
    config: ConfigDict,
    workdir: Path,
    checkpoint: Path | None = None,
    inputs: tuple[Path, ...] = (),
    output: Path | None = None,
    overrides: dict[str, Any] | None = None,
) -> None:
    """Runs one mode of the experiment.

    Args:
        mode: one of MODES.
        config: not yet validated.
        workdir: directory of the training run.
        checkpoint: another run's directory whose weights to use in place of the workdir's.
        inputs: files to simulate or solve.
        output: directory for what these give.
        overrides: what the user changed of the config, for the record.

    Raises:
        InputError: for any mistake of the user's; for several inputs, after all that could be done is done.
    """
    if mode not in MODES:
        raise InputError(f'--mode is {mode!r}; it must be one of {", ".join(MODES)}')
    experiment = validate(config)
    if mode == 'train':
        train_experiment(experiment, config, workdir, overrides or {})
    elif mode == 'evaluate':
        evaluate_experiment(experiment, config, workdir, checkpoint)
    elif mode == 'simulate':
        simulate_files(experiment, inputs, output)
    else:
        solve_files(experiment, config, workdir, checkpoint, inputs, output)


def train_experiment(experiment: Experiment, config: ConfigDict, workdir: Path, overrides: dict[str, Any]) -> None:
    """Trains in the workdir, going on from what it holds; then evaluates the best weights and draws the figures."""
    check_devices(experiment)
    _make_directory(workdir, '--workdir')
    resolved = config.to_dict()
    record = workdir / 'config.json'
    for before in _earlier_configs(workdir, record):
        differing = differences(before, resolved, TRAINING_SECTIONS)
        if differing:
            raise InputError(
                f'{workdir} holds a run of another config: {"; ".join(differing)}. Name another --workdir, or remove it'
            )
    write_json(record, {'overrides': overrides, 'config': resolved})
    train(
        experiment.model,
        experiment.problem,
        experiment.train,
        experiment.checkpoint,
        experiment.seed,
        workdir,
        resolved,
    )
    evaluate_experiment(experiment, config, workdir)
    draw_losses(workdir / 'figures' / 'losses.png', read_metrics(workdir / 'metrics.jsonl'))


def _earlier_configs(workdir, record):
    """The configs of the run that a workdir holds: in its record, and in its latest checkpoint."""
    if record.exists():
        try:
            yield dict(json.loads(record.read_text(encoding='utf-8'))['config'])
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f'{record}: not the record of a run; name another --workdir') from error
    if has_checkpoint(workdir / 'checkpoints'):
        with Checkpoints(workdir / 'checkpoints', read_only=True) as checkpoints:
            yield checkpoints.restore(checkpoints.latest_step, config=None)['config']


def evaluate_experiment(
    experiment: Experiment, config: ConfigDict, workdir: Path, checkpoint: Path | None = None
) -> None:
    """Scores a run's best weights on unseen cases; writes `evaluation.json` and figures in the workdir."""
    weights = load_weights(experiment, config, checkpoint or workdir)
    _make_directory(workdir, '--workdir')
    report, shown = evaluate(
        experiment.model, weights.params, experiment.problem, experiment.separate, experiment.evaluate, experiment.seed
    )
    report |= {'weights': {'step': weights.step, 'trained_on': weights.config['problem']}}
    write_json(workdir / 'evaluation.json', report)
    figures, scores = workdir / 'figures', report['separated']
    draw_maps(figures / 'maps.png', shown, experiment.problem)
    draw_errors(figures / 'errors.png', report)
    for difference in differences(weights.config, config.to_dict(), ('problem',)):
        print(f'note: in the training of these weights {difference}')
    print(
        f'{report["cases"]} unseen cases: {scores["recall"]:.1%} of {report["atoms"]} atoms within 1 voxel, '
        f'{scores["solved"]} cases with every atom; mean error {scores["mean_error"]:.3f} voxel; '
        f'map correlation {report["map"]["correlation"]:.3f}; '
        f'atoms at random would score {report["random"]["recall"]:.1%}\n'
        f'{workdir / "evaluation.json"}, {figures}'
    )


def simulate_files(experiment: Experiment, inputs: tuple[Path, ...], output: Path | None) -> None:
    """Turns molecules in .xyz files into `NAME_patterson.ccp4` and `NAME_density.ccp4`."""
    output = _prepare_output(inputs, output)
    _for_each(inputs, functools.partial(_simulate_file, experiment, output))


@functools.partial(jax.jit, static_argnums=1)
def _simulated_maps(positions, problem):
    density = render(positions, problem.grid_size, problem.atom_radius)
    return patterson_map(density), density


def _simulate_file(experiment, output, path):
    problem, voxel_size = experiment.problem, experiment.files.voxel_size
    positions = voxel_positions(read_xyz(path), voxel_size)
    if len(positions) != problem.num_atoms:
        cure = [f'--config.problem.num_atoms={len(positions)}']
        if len(positions) > experiment.separate.num_peaks:
            cure.append(f'--config.separate.num_peaks={2 * len(positions)}')
        raise InputError(
            f'{path}: {len(positions)} atoms; the problem has {problem.num_atoms} ({" ".join(cure)} changes it)'
        )
    extent, room = np.max(np.ptp(positions, axis=0)), problem.grid_size / 2 - 2 * problem.atom_radius
    if extent > room:
        enough = math.ceil(100 * voxel_size * extent / room) / 100
        raise InputError(
            f'{path}: {extent * voxel_size:.2f} Å across; its vectors overlap in the cell beyond '
            f'{room * voxel_size:.2f} Å (--config.files.voxel_size={enough:.2f} makes room)'
        )
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1) + np.diag(np.full(len(positions), np.inf))
    nearest = np.min(distances)
    if nearest < 2 * problem.atom_radius:
        first, second = np.argwhere(distances == nearest)[0] + 1
        raise InputError(
            f'{path}: atoms {first} and {second} are {nearest * voxel_size:.3f} Å apart; their spheres overlap below '
            f'{2 * problem.atom_radius * voxel_size:.3f} Å'
        )
    maps = _simulated_maps(positions.astype(np.float32), problem)
    for name, values in zip(('patterson', 'density'), maps, strict=True):
        target = output / f'{path.stem}_{name}.ccp4'
        write_map(target, np.asarray(values), voxel_size)
        print(target)


def solve_files(
    experiment: Experiment,
    config: ConfigDict,
    workdir: Path,
    checkpoint: Path | None,
    inputs: tuple[Path, ...],
    output: Path | None,
) -> None:
    """Solves Patterson maps in CCP4 files with a run's best weights: `NAME.json`, `.xyz`, `.png`, `_density.ccp4`."""
    output = _prepare_output(inputs, output)
    params = load_weights(experiment, config, checkpoint or workdir).params

    solver = functools.cache(lambda: _compiled_solver(experiment, params))  # compiled for the first good map
    _for_each(inputs, functools.partial(_solve_file, experiment, solver, output))


def _compiled_solver(experiment, params):
    """A function from a Patterson map to its solution, compiled, so that its first use takes no longer than others."""
    problem = experiment.problem
    key = example_key(stream_key(experiment.seed, 'separation'), 0, 0)

    def solve(params, patterson):
        predict = functools.partial(experiment.model.apply, params)
        solutions = solve_batch(key[None], patterson[None], predict, problem, experiment.separate)
        return jax.tree.map(lambda each: each[0], solutions)

    shape = jax.ShapeDtypeStruct((problem.grid_size,) * 3, np.float32)
    return functools.partial(jax.jit(solve).lower(params, shape).compile(), params)


def _solve_file(experiment, solver, output, path):
    problem = experiment.problem
    values, voxel_size = read_map(path)
    try:
        check_patterson(values, problem)
    except InputError as error:
        raise InputError(f'{path}: {error}') from error
    _refuse_to_overwrite(output, path.stem)
    solve = solver()
    began = time.perf_counter()
    solution = jax.tree.map(np.asarray, solve(values))
    seconds = time.perf_counter() - began
    positions = file_positions(solution.positions, problem.grid_size, voxel_size)
    report = {
        'input': str(path),
        'method': 'network',
        'positions': _rounded(positions),
        'positions_voxels': _rounded(solution.positions),
        'voxel_size': voxel_size,
        'enantiomorph': 'one of two: the inverse of these positions has the same Patterson map',
        'r_factor': float(solution.r_factor),
        'r_factor_resolution': experiment.separate.resolution,
        'patterson_correlation': float(solution.patterson_correlation),
        'candidates_voxels': _rounded(solution.candidates),
        'peak_heights': _rounded(solution.heights),
        'seed': experiment.seed,
        'seconds': round(seconds, 3),
    }
    name = path.stem
    merit = f'R1 {report["r_factor"]:.3f}, Patterson correlation {report["patterson_correlation"]:.3f}'
    write_map(output / f'{name}_density.ccp4', solution.density, voxel_size)
    write_xyz(output / f'{name}.xyz', positions, experiment.files.element, f'{path.name}: {merit}')
    title = f'{path.name}: predicted map and {problem.num_atoms} atoms\n{merit}'
    draw_solution(output / f'{name}.png', solution.density, solution.positions, problem, title)
    write_json(output / f'{name}.json', report)
    print(f'{path}: {problem.num_atoms} atoms, {merit}; {output / name}.json, .xyz, .png, _density.ccp4')


def _rounded(values):
    return np.round(np.asarray(values, np.float64), 4).tolist()


def _refuse_to_overwrite(output, name):
    """Results of an earlier solution may be replaced, nothing else; they have its JSON file beside them."""
    for ending in ('.json', '.xyz', '.png', '_density.ccp4'):
        if (output / f'{name}{ending}').exists() and not _is_solution(output / f'{name}.json'):
            raise InputError(f'{output / name}{ending} exists and is no earlier result; name another --output')


def _is_solution(path):
    try:
        return {'input', 'method', 'r_factor'} <= json.loads(path.read_text(encoding='utf-8')).keys()
    except (OSError, ValueError, AttributeError):
        return False


class Weights(NamedTuple):
    """Trained weights, the step at which they were saved, and the config of their training."""

    params: Any
    step: int
    config: dict


def load_weights(experiment: Experiment, config: ConfigDict, directory: Path) -> Weights:
    """The weights of a run with the lowest validation loss.

    Raises:
        InputError: no checkpoint there, a damaged one, or one of another network, grid, atom, input or target than the
            config's. The number of atoms and where they are may differ.
    """
    template = jax.eval_shape(
        functools.partial(init_state, experiment.model, experiment.problem, experiment.train, experiment.seed)
    ).params
    with Checkpoints(find_checkpoints(directory), read_only=True) as checkpoints:
        step = checkpoints.best_step
        trained = checkpoints.restore(step, config=None)['config']
        differing = _weight_differences(trained, config.to_dict())
        if differing:
            raise InputError(f'{directory}: these weights are for another config: {"; ".join(differing)}')
        return Weights(checkpoints.restore(step, params=template)['params'], step, trained)


def _weight_differences(trained, now):
    """Differences in what weights depend on: the network, but not how it convolves, its input and its target."""

    def relevant(config):
        model = {field: value for field, value in config['model'].items() if field != 'convolution'}
        return {'model': model, 'problem': {field: config['problem'][field] for field in WEIGHT_FIELDS}}

    return differences(relevant(trained), relevant(now), ('model', 'problem'))


def _prepare_output(inputs, output):
    if not inputs:
        raise InputError('--input is missing; it names the file to read and may be repeated')
    if output is None:
        raise InputError('--output is missing; it names the directory for the results')
    names = [path.stem for path in inputs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f'--input has {repeated[0]} more than once; the results would overwrite each other')
    _make_directory(output, '--output')
    return output


def _for_each(inputs: tuple[Path, ...], work: Callable[[Path], None]) -> None:
    """Does the work for every input; a bad one does not stop the others. Raises InputError with all that went wrong."""
    failures = []
    for path in inputs:
        try:
            work(path)
        except InputError as error:
            failures.append(str(error))
        except OSError as error:
            failures.append(f'{error.filename or path}: {error.strerror or error}')
    if failures:
        raise InputError('\n'.join(failures))


def _make_directory(path, flag):
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f'{flag} is {path}; it must be a directory that can be made or written: {error.strerror}'
        ) from error
