"""The modes of `run_experiment.py`: train, evaluate, simulate, solve, inspect. Here the wings meet the files."""

import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from patterson_jax.ablations import compare
from patterson_jax.config import Experiment, validate
from patterson_jax.errors import InputError, require
from patterson_jax.figures import draw_example, draw_solution
from patterson_jax.files import (
    file_positions,
    make_directory,
    read_map,
    read_xyz,
    voxel_positions,
    write_json,
    write_map,
    write_xyz,
)
from patterson_jax.inspection import describe_example, describe_network
from patterson_jax.learning.stopping import unfinished_on_sigterm
from patterson_jax.runs import evaluate_experiment, load_weights, train_experiment
from patterson_jax.simulation.density import render
from patterson_jax.simulation.examples import example_key, make_example, stream_key
from patterson_jax.simulation.patterson import patterson_map
from patterson_jax.solving.solver import check_patterson, solve_batch

MODES = ('train', 'evaluate', 'simulate', 'solve', 'inspect')


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
        output: directory for what these give, or for the figure of an inspection in place of `figures` in the workdir.
        overrides: what the user changed of the config, for the record.

    Raises:
        InputError: for any mistake of the user's; for several inputs, after all that could be done is done.
    """
    if mode not in MODES:
        raise InputError(f'--mode is {mode!r}; it must be one of {", ".join(MODES)}')
    alone = mode in ('train', 'evaluate') or jax.process_count() == 1
    require(alone, '--mode', mode, 'train or evaluate with --distributed')
    if 'ablation' in config:
        require(mode == 'train', '--mode', mode, 'train for a comparison of runs')
        with unfinished_on_sigterm():
            compare(config, workdir, overrides or {})
        return
    experiment = validate(config)
    if mode == 'train':
        with unfinished_on_sigterm():
            train_experiment(experiment, config, workdir, overrides or {})
    elif mode == 'evaluate':
        evaluate_experiment(experiment, config, workdir, checkpoint)
    elif mode == 'simulate':
        simulate_files(experiment, inputs, output)
    elif mode == 'inspect':
        inspect_experiment(experiment, output or workdir / 'figures')
    else:
        solve_files(experiment, config, workdir, checkpoint, inputs, output)


def inspect_experiment(experiment: Experiment, output: Path) -> None:
    """Prints what the network and the first training example are like; draws the latter as `example.png`."""
    make_directory(output, '--output')
    problem, figure = experiment.problem, output / 'example.png'
    key = example_key(stream_key(experiment.seed, 'training'), 0, 0)
    example = jax.jit(make_example, static_argnums=1)(key, problem)
    print(describe_network(experiment.model, problem.grid_size))
    print(f'\nThe first training example:\n{describe_example(example, problem)}')
    draw_example(figure, example, problem)
    print(f'\n{figure}')


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


def _prepare_output(inputs, output):
    if not inputs:
        raise InputError('--input is missing; it names the file to read and may be repeated')
    if output is None:
        raise InputError('--output is missing; it names the directory for the results')
    names = [path.stem for path in inputs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f'--input has {repeated[0]} more than once; the results would overwrite each other')
    make_directory(output, '--output')
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
