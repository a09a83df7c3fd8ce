"""The modes of `run_experiment.py`: train, evaluate, simulate, solve, inspect, publish. Here wings meet files."""

import dataclasses
import functools
import json
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
from patterson_jax.files.common import make_directory, plain_name, write_json
from patterson_jax.files.maps import read_map, require_memory, write_map
from patterson_jax.files.structures import (
    file_positions,
    read_xyz,
    write_pdb,
    write_res,
    write_xyz,
)
from patterson_jax.files.viewers import write_chimerax
from patterson_jax.inspection import describe_example, describe_network
from patterson_jax.learning.checkpoints import has_checkpoint
from patterson_jax.learning.stopping import unfinished_on_sigterm
from patterson_jax.publishing import publish
from patterson_jax.runs import evaluate_experiment, train_experiment
from patterson_jax.simulation.density import render
from patterson_jax.simulation.examples import example_key, make_example, stream_key
from patterson_jax.simulation.molecules import place_atoms, simulate_problem
from patterson_jax.solving.input_maps import check_patterson, cut_map, fit_problem, restore_origin_term
from patterson_jax.solving.interpretation import patterson_correlation
from patterson_jax.solving.reflections import absolute_scale
from patterson_jax.solving.solver import Network, solve_maps, solve_unknown_number
from patterson_jax.solving.verdict import expected_r_factors, highest_solved
from patterson_jax.weights import load_weights

MODES = ('train', 'evaluate', 'simulate', 'solve', 'inspect', 'publish')
ENDINGS = ('.json', '.xyz', '.pdb', '.res', '.cxc', '.png', '_density.ccp4')  # of what a solved map gives
DRAWN_LEVEL = 0.4  # of the highest density, where viewers draw its surface


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
        output: directory for what these give, for the weights that are published, or for the figure of an inspection in
            place of `figures` in the workdir.
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
    elif mode == 'publish':
        publish(experiment, config, workdir, output)
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


def _simulate_file(experiment, output, path):
    problem, voxel_size = experiment.problem, experiment.files.voxel_size
    positions = read_xyz(path)
    if len(positions) != problem.num_atoms:
        cure = [f'--config.problem.num_atoms={len(positions)}']
        if len(positions) > experiment.separate.num_peaks:
            cure.append(f'--config.separate.num_peaks={2 * len(positions)}')
        raise InputError(
            f'{path}: {len(positions)} atoms; the problem has {problem.num_atoms} ({" ".join(cure)} changes it)'
        )
    try:
        placed = place_atoms(positions, problem, voxel_size, '--config.files.voxel_size')
    except InputError as error:
        raise InputError(f'{path}: {error}') from error
    for name, values in simulate_problem(placed, problem, experiment.seed)._asdict().items():
        target = output / f'{plain_name(path)}_{name}.ccp4'
        write_map(target, values, voxel_size)
        print(target)


def solve_files(
    experiment: Experiment,
    config: ConfigDict,
    workdir: Path,
    checkpoint: Path | None,
    inputs: tuple[Path, ...],
    output: Path | None,
) -> None:
    """Solves Patterson maps in CCP4 files: `NAME.json`, `.xyz`, `.pdb`, `.res`, `.cxc`, `.png`, `_density.ccp4`.

    The network needs the weights of a run and the grid that it was trained on. `auto` goes without it where there are
    no weights, none being asked for, or another grid.
    """
    output = _prepare_output(inputs, output)
    network = None
    method = experiment.solve.method
    if method == 'network' or (method == 'auto' and (checkpoint or has_checkpoint(workdir / 'checkpoints'))):
        weights = load_weights(experiment, config, checkpoint or workdir)
        network = Network(experiment.model.apply, weights.params)
    _for_each(inputs, functools.partial(_solve_file, experiment, network, output))


def _solve_file(experiment, network, output, path):
    require_memory(path)
    values, voxel_size = read_map(path)
    solving = experiment.solve
    try:
        check_patterson(values)
        expected = experiment.problem
        if not solving.num_atoms_known:
            expected = dataclasses.replace(expected, num_atoms=1)
        problem = fit_problem(values, expected, solving.resolution)
        values = restore_origin_term(cut_map(values, problem), problem)
        if problem.grid_size != experiment.problem.grid_size:
            if solving.method == 'network':
                trained = experiment.problem.grid_size
                raise InputError(f'{len(values)} voxels along each edge, and the network was trained on {trained}')
            network = None
    except InputError as error:
        raise InputError(f'{path}: {error}') from error
    _refuse_to_overwrite(output, plain_name(path))
    key = example_key(stream_key(experiment.seed, 'separation'), 0, 0)
    if solving.num_atoms_known:
        solution = solve_maps(key[None], values[None], problem, solving, experiment.separate, network)[0]
    else:
        try:
            solution = solve_unknown_number(key, values, problem, solving, experiment.separate, network)
        except InputError as error:
            raise InputError(f'{path}: {error}') from error
        problem = dataclasses.replace(problem, num_atoms=len(solution.positions))
    _write_solution(experiment, solution, values, problem, voxel_size, output / plain_name(path), path)


def _write_solution(experiment, solution, patterson, problem, voxel_size, target, path):
    """Writes all files of a solution and says in a line what it is.

    The JSON is the first, because it tells that the others are results, which may be replaced.
    """
    density, correlation = jax.device_get(_explain(patterson, solution.positions, problem))
    predicted = solution.prediction
    density = density if predicted is None else predicted.density
    positions = file_positions(solution.positions, problem.grid_size, voxel_size)
    report = {
        'input': str(path),
        'verdict': solution.verdict,
        'method': solution.method,
        'num_atoms': problem.num_atoms,
        'positions': _rounded(positions),
        'positions_voxels': _rounded(solution.positions),
        'voxel_size': voxel_size,
        'enantiomorph': 'one of two: the inverse of these positions has the same Patterson map',
        'r_factor': float(solution.r_factor),
        'r_free': float(solution.r_free),
        'r_factor_resolution': solution.resolution,
        'r_factor_expected': expected_r_factors(problem)[0],
        'r_factor_solved_below': highest_solved(problem),
        'noise': problem.noise,
        'resolution': problem.resolution,
        'density': 'calculated from the atoms' if predicted is None else 'predicted by the network',
        'patterson_correlation': float(correlation),
        'agreeing_starts': solution.agreeing,
        'starts': solution.starts,
        'next_r_factor': solution.rivals[0].r_factor if solution.rivals else None,
        'alternatives_voxels': [_rounded(each) for each in solution.alternatives],
        'seed': experiment.seed,
        'seconds': round(solution.seconds, 3),
    }
    if predicted is not None:
        report['candidates_voxels'] = _rounded(predicted.candidates)
        report['peak_heights'] = _rounded(predicted.heights)
    merit = f'R1 {solution.r_factor:.3f}, R_free {solution.r_free:.3f}, Patterson correlation {correlation:.3f}'
    title = f'{path.name}: {solution.verdict}, {problem.num_atoms} atoms by {solution.method.replace("_", " ")}'
    edge, element = problem.grid_size * voxel_size, experiment.files.element
    write_json(_beside(target, '.json'), report)
    write_map(_beside(target, '_density.ccp4'), density, voxel_size)
    write_xyz(_beside(target, '.xyz'), positions, element, f'{title}, {merit}')
    write_pdb(_beside(target, '.pdb'), positions, edge, element, f'{title}, {merit}')
    write_res(_beside(target, '.res'), positions, edge, element, f'{title}, {merit}')
    radius = problem.atom_radius * voxel_size
    write_chimerax(_beside(target, '.cxc'), DRAWN_LEVEL * float(np.max(density)), radius / 2)
    both = predicted is not None and problem.target == 'both'
    draw_solution(_beside(target, '.png'), density, solution.positions, problem, f'{title}\n{merit}', both)
    others = f', alternatives: {len(solution.alternatives)}' if solution.alternatives else ''
    print(f'{title}{others}, {merit}; {target}{", ".join(ENDINGS)}')


@functools.partial(jax.jit, static_argnums=2)
def _explain(patterson, positions, problem):
    """The density of atoms found, and the correlation of their Patterson map with the given one."""
    density = render(positions, problem.grid_size, problem.atom_radius)
    return density, patterson_correlation(absolute_scale(patterson, problem), positions, problem)


def _beside(target, ending):
    return target.with_name(f'{target.name}{ending}')


def _rounded(values):
    return np.round(np.asarray(values, np.float64), 4).tolist()


def _refuse_to_overwrite(output, name):
    """Results of an earlier solution may be replaced, nothing else; they have its JSON file beside them."""
    for ending in ENDINGS:
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
    names = [plain_name(path) for path in inputs]
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
