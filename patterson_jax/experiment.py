"""The modes of `run_experiment.py`: train, evaluate, simulate, solve, inspect, publish.

A mode imports what it alone needs when it begins, so that a mistake is told at once and a small file takes little time.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from patterson_jax.answers import ENDINGS, Answer, require_replaceable
from patterson_jax.config import Experiment, validate, validate_crystal, validate_projection
from patterson_jax.errors import InputError, require
from patterson_jax.files.common import make_directory, plain_name
from patterson_jax.files.maps import read_map, require_memory, write_map
from patterson_jax.files.structures import read_xyz
from patterson_jax.learning.checkpoints import has_checkpoint
from patterson_jax.learning.stopping import unfinished_on_sigterm
from patterson_jax.simulation.examples import example_key, make_example, stream_key
from patterson_jax.simulation.molecules import place_atoms, simulate_problem
from patterson_jax.solving.map_solver import solve_map
from patterson_jax.weights import load_weights, network_with

MODES = ('train', 'evaluate', 'simulate', 'solve', 'inspect', 'publish')
REFLECTION_ENDINGS = ('.hkl', '.ins', '.res', '.cif', '.fcf', '.mtz')


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
        checkpoint: directory of another run whose weights to use instead of the workdir's.
        inputs: files to simulate or solve.
        output: directory for their results, for published weights, or for the figure of an inspection (default:
            `figures` in the workdir).
        overrides: fields of the config that the user changed, for the record.

    Raises:
        InputError: the user made a mistake. With several inputs it is raised after all the others are done.
    """
    if mode not in MODES:
        raise InputError(f'--mode is {mode!r}; it must be one of {", ".join(MODES)}')
    alone = mode in ('train', 'evaluate') or jax.process_count() == 1
    require(alone, '--mode', mode, 'train or evaluate with --distributed')
    known = checkpoint is None or 'crystal' not in config
    require(known, '--checkpoint', str(checkpoint), 'left out for crystals, whose network is --config.crystal.network')
    known = checkpoint is None or mode in ('evaluate', 'solve')
    require(known, '--checkpoint', str(checkpoint), f'left out for --mode={mode}; evaluate and solve have it')
    if 'ablation' in config:
        require(mode == 'train', '--mode', mode, 'train for a comparison of runs')
        from patterson_jax.ablations import compare

        with unfinished_on_sigterm():
            compare(config, workdir, overrides or {})
        return
    if 'crystal' in config:
        require(mode == 'solve', '--mode', mode, 'solve for crystals')
        solve_crystals(config, inputs, output)
        return
    if 'states' in config:
        require(mode in ('train', 'publish'), '--mode', mode, 'train or publish for a learned projection')
        projection = validate_projection(config)
        if mode == 'publish':
            from patterson_jax.publishing import publish_projection

            publish_projection(projection, config, workdir, output)
            return
        from patterson_jax.runs import train_projection

        with unfinished_on_sigterm():
            train_projection(projection, config, workdir, overrides or {})
        return
    experiment = validate(config)
    if mode == 'train':
        from patterson_jax.runs import train_experiment

        with unfinished_on_sigterm():
            train_experiment(experiment, config, workdir, overrides or {})
    elif mode == 'evaluate':
        from patterson_jax.runs import evaluate_experiment

        evaluate_experiment(experiment, config, workdir, checkpoint)
    elif mode == 'simulate':
        simulate_files(experiment, inputs, output)
    elif mode == 'inspect':
        inspect_experiment(experiment, output or workdir / 'figures')
    elif mode == 'publish':
        from patterson_jax.publishing import publish

        publish(experiment, config, workdir, output)
    else:
        solve_files(experiment, config, workdir, checkpoint, inputs, output)


def inspect_experiment(experiment: Experiment, output: Path) -> None:
    """Describes the network and the first training example, and draws the example as `example.png`."""
    from patterson_jax.figures import draw_example
    from patterson_jax.inspection import describe_example, describe_network

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
            f'{path}: it has {len(positions)} atoms; the problem has {problem.num_atoms} ({" ".join(cure)} changes it)'
        )
    try:
        placed = place_atoms(positions, problem, voxel_size, '--config.files.voxel_size')
    except InputError as error:
        raise InputError(f'{path}: {error}') from error
    for name, values in simulate_problem(placed, problem, experiment.seed)._asdict().items():
        target = output / f'{plain_name(path)}_{name}.ccp4'
        write_map(target, values, voxel_size)
        print(target)


def solve_crystals(config: ConfigDict, inputs: tuple[Path, ...], output: Path | None) -> None:
    """Solves crystals from their reflections: `NAME.html`, `.json`, `.res`, `.hkl`, `.cif`, `.png`, `_density.ccp4`."""
    from patterson_jax.crystal_runs import solve_crystal_file

    seed, settings = validate_crystal(config)
    output = _prepare_output(inputs, output)
    _for_each(inputs, functools.partial(solve_crystal_file, settings, seed, output))


def solve_files(
    experiment: Experiment,
    config: ConfigDict,
    workdir: Path,
    checkpoint: Path | None,
    inputs: tuple[Path, ...],
    output: Path | None,
) -> None:
    """Solves Patterson maps in files: `NAME.html`, `.json`, `.xyz`, `.pdb`, `.res`, `.cxc`, `.png`, `_density.ccp4`.

    The network needs the weights of a run and, unless it suits any grid, maps on the grid that it was trained on.
    `auto` works without the network on a grid that it does not suit, or without weights unless a checkpoint was named.
    """
    output = _prepare_output(inputs, output)
    network = None
    method = experiment.solve.method
    if method == 'network' or (method == 'auto' and (checkpoint or has_checkpoint(workdir / 'checkpoints'))):
        weights = load_weights(experiment, config, checkpoint or workdir)
        network = network_with(experiment.model, weights.params, experiment.problem)
    _for_each(inputs, functools.partial(_solve_file, experiment, network, output))


def _solve_file(experiment, network, output, path):
    if path.suffix.lower() in REFLECTION_ENDINGS:
        raise InputError(f'{path}: these are reflections of a crystal; solve them with --config=crystal')
    require_memory(path)
    values, voxel_size = read_map(path)
    require_replaceable(output, plain_name(path))
    try:
        solved = solve_map(values, experiment.problem, experiment.solve, experiment.separate, experiment.seed, network)
    except InputError as error:
        raise InputError(f'{path}: {error}') from error
    answer = Answer(solved, voxel_size, experiment.seed, experiment.files.element, str(path))
    answer.write(output, plain_name(path))
    print(f'{answer.summary}; {output / plain_name(path)}{", ".join(ENDINGS)}')


def _prepare_output(inputs, output):
    if not inputs:
        raise InputError('--input is missing; it names the file to read and may be repeated')
    if output is None:
        raise InputError('--output is missing; it names the directory for the results')
    names = [plain_name(path) for path in inputs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f'--input has the name {repeated[0]} more than once; the results would overwrite each other')
    make_directory(output, '--output')
    return output


def _for_each(inputs: tuple[Path, ...], work: Callable[[Path], None]) -> None:
    """Does the work for every input; a bad one does not stop the others. Raises InputError with all errors."""
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
