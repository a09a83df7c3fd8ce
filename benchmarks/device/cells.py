"""The processes that the command starts. Their results are lines of JSON on the standard output.

    python -m benchmarks.device.cells '{"kind": "probe", "config": …}'

A cell is a function of its options and of `tell`. It calls `tell` with each result at once, so that nothing is lost
when the process is ended.
"""

import contextlib
import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from benchmarks import verdicts
from benchmarks.device.options import config_from_json
from benchmarks.device.projection_cells import projection_cell, projection_gradient_cell
from benchmarks.machine import describe_machine
from benchmarks.speed.experiments import machine_cell
from benchmarks.speed.in_pytorch import torch_cell
from benchmarks.speed.networks import gradient_cell, network_cell
from benchmarks.timing import measure
from patterson_jax import precision
from patterson_jax.compiler import compiled, known_programs
from patterson_jax.config import validate, validate_trained
from patterson_jax.errors import exit_on_errors
from patterson_jax.evaluation import match_atoms
from patterson_jax.learning.stopping import unfinished_on_sigterm
from patterson_jax.networks.convolution import convolve
from patterson_jax.networks.layers import max_pool
from patterson_jax.networks.projection import periodic_convolution
from patterson_jax.precision import exact_products
from patterson_jax.projection_training import ProjectionExperiment
from patterson_jax.simulation.density import render
from patterson_jax.simulation.patterson import patterson_map
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving import reflections as data
from patterson_jax.solving.attempt import run_attempt
from patterson_jax.solving.interpretation import interpret_map
from patterson_jax.solving.least_squares import voxel_amplitudes
from patterson_jax.solving.methods.registry import METHODS
from patterson_jax.solving.reflections import r_factor, reflections

Tell = Callable[[dict], None]

ROUNDING = 1e-4  # relative error of a result of thousands of operations in float32
AT_RANDOM = 7  # a seed of test data
TIMED = {
    'network': network_cell,
    'gradient': gradient_cell,
    'projection': projection_cell,
    'projection gradient': projection_gradient_cell,
    'torch': torch_cell,
}


# ---- Does the device compute correctly? ----


def probe(cell: dict, tell: Tell) -> None:
    """Tests operations that some release of JAX computed wrongly, and derivatives, against float64 on the host."""
    for name, found, expected in checks(validate(ConfigDict(cell['config'])).problem):
        error = relative_error(found, expected)
        tell({'check': name, 'error': error, 'right': error < ROUNDING})


def relative_error(found: Any, expected: Any) -> float:
    """Length of the difference divided by that of the expected array; infinite if a value found is not finite."""
    found, expected = (np.asarray(each, np.float64).ravel() for each in (found, expected))
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    return float(error) if np.isfinite(error) else math.inf


def finite(value: Any) -> Any:
    """None in place of a float that is not finite, because JSON has none."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def checks(problem: Problem) -> Iterator[tuple[str, Any, Any]]:
    """Name of each check, the result of the device, and the expected result from float64 on the host."""
    generator = np.random.default_rng(AT_RANDOM)

    def draw(*shape):
        return generator.standard_normal(shape).astype(np.float32)

    # Wrong outside of compiled programs in JAX 0.11 on some GPUs (jax issue 40633).
    yield 'single operations', [float(jnp.sqrt(512.0)), *(jnp.ones(4) + 1)], [math.sqrt(512), 2, 2, 2, 2]
    for program in known_programs():
        yield program.name, compiled(program), program.expected
    # In JAX up to 0.11.1 on GPU, fusion could lose a branch of a maximum's derivative (jax issue 40564).
    image, kernel = draw(8, 8, 8, 2, 3), draw(3, 3, 3, 2, 4)
    for method in ('direct', 'spectral'):
        found = jax.jit(jax.grad(functools.partial(pooled_squares, method=method), (0, 1)))(image, kernel)
        expected = in_float64(jax.grad(functools.partial(pooled_squares, method='direct'), (0, 1)), image, kernel)
        yield f'gradient of a {method} convolution, pooled', flat(found), flat(expected)
    image, kernel = draw(2, 6, 6, 6, 3), draw(3, 3, 3, 3, 4)
    for method in ('direct', 'products'):
        found = jax.jit(jax.grad(functools.partial(periodic_squares, method=method), (0, 1)))(image, kernel)
        expected = in_float64(jax.grad(functools.partial(periodic_squares, method='direct'), (0, 1)), image, kernel)
        yield f'gradient of a periodic convolution, {method}', flat(found), flat(expected)
    positions = generator.uniform(-problem.box_edge / 2, problem.box_edge / 2, (problem.num_atoms, 3)).astype('f')
    of_positions = jax.grad(functools.partial(squared_vectors, problem=problem))
    yield 'gradient of a Patterson map', jax.jit(of_positions)(positions), in_float64(of_positions, positions)
    # The last check, because it can end the process in JAX 0.10.2 and 0.11.0 on CPU (jax issues 39257, 40412).
    for shape, axis in (((3, 1, 2, 2, 8, 8, 8), 3), ((2, 3, 1, 2, 2, 4, 4, 4), 4)):
        first, second = draw(*shape), draw(*shape)
        found = jax.jit(lambda first, second, axis=axis: jnp.sum(first * second, axis=axis))(first, second)
        yield f'sum over one of {len(shape)} axes', found, np.sum(first.astype(np.float64) * second, axis=axis)


def flat(arrays: tuple[Array, ...]) -> np.ndarray:
    """All numbers of some arrays, one after the other."""
    return np.concatenate([np.ravel(each) for each in arrays])


def in_float64(function: Callable, *arguments: np.ndarray) -> Any:
    """The result of a function on the host in float64."""
    with jax.enable_x64(True), jax.default_device(jax.devices('cpu')[0]):
        doubles = [jnp.asarray(each, jnp.float64) for each in arguments]
        return jax.tree.map(np.asarray, jax.jit(function)(*doubles))


def pooled_squares(image: Array, kernel: Array, method: str) -> Array:
    """The sum of squares of a convolutional layer like those of the networks, after pooling."""
    return jnp.sum(max_pool(jax.nn.relu(convolve(image, kernel, method))) ** 2)


@exact_products
def periodic_squares(image: Array, kernel: Array, method: str) -> Array:
    """The sum of squares of a layer like those of the learned projection."""
    return jnp.sum(jax.nn.relu(periodic_convolution(image, kernel, method)) ** 2)


def squared_vectors(positions: Array, problem: Problem) -> Array:
    """The sum of squares of a Patterson map; it depends on the overlap of its vectors and on their places in voxels."""
    return jnp.sum(patterson_map(render(positions, problem.grid_size, problem.atom_radius)) ** 2)


def truth(cell: dict, tell: Tell) -> None:
    """R1 at the true positions, and verdicts on the answers of least squares, with one precision of products."""
    precision.MATRIX_PRECISION = cell['products']  # before anything is traced
    experiment = validate(ConfigDict(cell['config']))
    problem, seed = experiment.problem, experiment.seed
    keys, examples = verdicts.cases_of('evaluation', cell['cases'], seed, problem)

    held = reflections(problem)

    def at_truth(example):
        known = data.measure(example.patterson, held, problem.num_atoms, problem.atom_volume)
        calculated, _ = voxel_amplitudes(example.positions, held, problem.num_atoms, problem.atom_radius)
        return r_factor(known.observed, calculated, where=jnp.arange(len(calculated)) < held.number)

    r_factors = jax.jit(lambda examples: jax.lax.map(at_truth, examples))(examples)
    tell({'r_factor': float(np.mean(r_factors)), 'highest_r_factor': float(np.max(r_factors))})
    solving = dataclasses.replace(experiment.solve, method='least_squares', max_attempts=cell['attempts'])
    began = time.perf_counter()
    judged = verdicts.judge_cases(keys, examples, problem, solving, experiment.separate, at_once=cell['cases'])
    seconds = time.perf_counter() - began
    counts = {f'{verdict}, {("wrong", "right")[right]}': count for (verdict, right), count in judged.verdicts.items()}
    tell({'verdicts': counts, 'highest_right_r_factor': max(judged.right, default=None), 'seconds': seconds})


# ---- How fast is it? ----


def machine(cell: dict, tell: Tell) -> None:
    """The device and the versions."""
    found = machine_cell({})
    tell(describe_machine(found['device'], found['backend']))


def timed(cell: dict, tell: Tell) -> None:
    """Training step and forward pass, ours or PyTorch's; or a gradient to compare with."""
    tell(TIMED[cell['measures']](cell))


def solving(cell: dict, tell: Tell) -> None:
    """First attempts at many cases at once, by one method; two runs with the same keys must give the same."""
    experiment = validate(ConfigDict(cell['config']))
    problem, separation, method = experiment.problem, experiment.separate, cell['method']
    keys, examples = verdicts.cases_of('evaluation', cell['at_once'], experiment.seed, problem)

    keys, maps, targets = jax.device_put((keys, examples.patterson, examples.target))
    if method == 'separation':  # of the true map
        separate = jax.jit(jax.vmap(lambda *case: interpret_map(*case, problem, separation).positions))
        run = functools.partial(separate, keys, maps, targets)
    else:

        def run():
            return run_attempt(METHODS[method], 0, problem, separation, None, keys, maps).finished[0].positions

    first = jax.device_get(run())
    timing = measure(run, jax.block_until_ready, cell['repeats'], cell['seconds'])
    second = jax.device_get(run())
    within = jax.device_get(jax.jit(jax.vmap(match_atoms))(first, examples.positions).within)
    tell(
        {
            'cases_per_second': cell['at_once'] / timing['best'],
            'right': int(np.sum(np.all(within, axis=-1))),
            'same': bool(np.array_equal(first, second, equal_nan=True)),
            'farthest': float(np.max(np.abs(first - second))),
        }
    )


# ---- Training ----


def training(cell: dict, tell: Tell) -> None:
    """Trains in `workdir` for some minutes, and packs new checkpoints into files in `output`."""
    # They need matplotlib, which no other cell does.
    from benchmarks.device.packing import packing
    from patterson_jax.runs import train_experiment, train_projection

    config, workdir = config_from_json(cell['config']), Path(cell['workdir'])
    config.train.max_minutes = cell['minutes']
    experiment = validate_trained(config)
    with packing(workdir, Path(cell['output'])), unfinished_on_sigterm():
        if isinstance(experiment, ProjectionExperiment):
            train_projection(experiment, config, workdir, cell['changes'])
        else:
            later = dataclasses.replace(experiment, evaluate=dataclasses.replace(experiment.evaluate, num_cases=0))
            train_experiment(later, config, workdir, cell['changes'])


CELLS = {
    'machine': machine,
    'probe': probe,
    'truth': truth,
    'timed': timed,
    'training': training,
    'solving': solving,
}


def main() -> None:
    """Runs the cell that the command line names; other output goes to the standard error."""
    cell, results = json.loads(sys.argv[1]), sys.stdout

    def tell(result):
        finite_result = {name: finite(value) for name, value in result.items()}
        print(json.dumps(finite_result, allow_nan=False), file=results, flush=True)

    with contextlib.redirect_stdout(sys.stderr), exit_on_errors():
        CELLS[cell['kind']](cell, tell)


if __name__ == '__main__':
    main()
