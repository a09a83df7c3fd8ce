"""Compares our least squares with Optimistix's Levenberg-Marquardt: speed, and how often it ends at the truth.

    pip install -e '.[bench]'
    python -m benchmarks.least_squares                    # minutes on two CPU cores
    python -m benchmarks.least_squares --cases=8 --starts=256 --repeats=9

All methods refine the same random starts against the same amplitudes of the paper's problem, all starts at once under
jit and vmap. The stages of `stages_from_random`, the model of isolated spheres, the weights and the largest number of
steps in a stage are the same. Optimistix may end a stage earlier, when all starts have converged. There are three
variants of it: automatic derivatives with a QR solver, automatic derivatives with Cholesky on the normal equations, and
our derivatives with Cholesky.

The methods take turns in one process. A time is that of one case with all its starts, device synchronised, after the
first call; compilation is timed separately. A start has ended at the truth if every atom is within 0.2 voxel of the
true one, or of its inverse. The table is printed as Markdown and written with the machine to
`least_squares-DEVICE.json` beside this file.
"""

import argparse
import functools
import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.machine import available_cores, processor, slug
from benchmarks.tables import aligned_table
from patterson_jax.errors import InputError, exit_on_errors, require
from patterson_jax.simulation.examples import make_batch, stream_key
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving import reflections as data_of
from patterson_jax.solving.atom_sets import compact, same_atoms
from patterson_jax.solving.least_squares import (
    ITERATIONS,
    Stages,
    random_positions,
    refine,
    refinement_weights,
    sphere_amplitudes,
    stages_from_random,
)
from patterson_jax.solving.reflections import Measured, reflections

LIBRARIES = ('jax', 'jaxlib', 'optimistix', 'lineax', 'numpy')
TOLERANCE = 1e-5  # of Optimistix, relative and absolute; ours has none
AT_TRUTH = 0.2  # voxels
TITLES = {
    'method': 'method',
    'seconds': 'best, s',
    'median': 'median, s',
    'compile': 'compile, s',
    'at_truth': 'starts at the truth',
    'seconds_per_truth': 's for each of these',
}


def with_optimistix(linear_solver: str, our_derivatives: bool, problem: Problem) -> Callable[[Array, Measured], Array]:
    """`refine` by Optimistix, from positions `(num_atoms, 3)` and data to positions.

    Args:
        linear_solver: 'qr', or 'cholesky' for the normal equations.
        our_derivatives: whether to use the derivatives of `sphere_amplitudes`.
        problem: what the atoms are.
    """
    import lineax
    import optimistix

    choices = {'qr': lineax.QR, 'cholesky': lambda: lineax.Normal(lineax.Cholesky())}
    solver = optimistix.LevenbergMarquardt(TOLERANCE, TOLERANCE, linear_solver=choices[linear_solver]())
    held = reflections(problem)

    def refine_all(positions, data):
        for count, iterations in zip(*stages(problem), strict=True):
            model = functools.partial(_spheres, held, int(count), problem)
            amplitudes_of = _with_derivatives(model) if our_derivatives else lambda each, model=model: model(each)[0]
            given = refinement_weights(data, int(count))[: int(count)], data.observed[: int(count)]

            def residuals(positions, given, amplitudes_of=amplitudes_of):
                weights, observed = given
                return weights * (amplitudes_of(positions) - observed)

            steps = int(iterations)
            result = optimistix.least_squares(residuals, solver, positions, given, max_steps=steps, throw=False)
            positions = result.value
        return compact(positions, problem.grid_size)

    return refine_all


def _spheres(held, count, problem, positions):
    return sphere_amplitudes(
        positions, held.hkl[:count], held.form_factors[:count], problem.num_atoms, problem.grid_size
    )


def _with_derivatives(model):
    @jax.custom_jvp
    def amplitudes(positions):
        return model(positions)[0]

    @amplitudes.defjvp
    def slope(positions, moves):
        values, slopes = model(*positions)
        return values, slopes.reshape(len(values), -1) @ moves[0].ravel()

    return amplitudes


def stages(problem: Problem) -> Stages:
    """Those from random positions, on the host."""
    nothing = np.zeros((1, 1, 1), np.float32)
    data = Measured(nothing, np.zeros(0, np.float32), reflections(problem), problem.num_atoms)
    return jax.device_get(stages_from_random(data, problem))


def methods(problem: Problem) -> dict[str, Callable[[Array, Measured], Array]]:
    """What is compared, by name: each from positions and data to positions."""
    return {
        'ours': lambda positions, data: refine(positions, data, stages_from_random(data, problem)).positions,
        'Optimistix, QR': with_optimistix('qr', False, problem),
        'Optimistix, Cholesky': with_optimistix('cholesky', False, problem),
        'Optimistix, Cholesky, our derivatives': with_optimistix('cholesky', True, problem),
    }


def measure(problem: Problem, num_cases: int, num_starts: int, repeats: int) -> list[dict]:
    """Measures all methods; returns a row for each."""
    examples = jax.jit(functools.partial(make_batch, problem=problem))(
        stream_key(0, 'evaluation'), 0, jnp.arange(num_cases)
    )
    prepare = jax.jit(functools.partial(data_of.measure, num_atoms=problem.num_atoms, atom_volume=problem.atom_volume))
    data = [prepare(patterson, reflections(problem)) for patterson in examples.patterson]
    keys = jax.random.split(jax.random.key(0), num_cases * num_starts)
    starts = jax.vmap(lambda key: random_positions(key, problem))(keys)
    starts = starts.reshape(num_cases, num_starts, problem.num_atoms, 3)
    compiled, rows = {}, {}
    for name, method in methods(problem).items():
        began = time.perf_counter()
        compiled[name] = jax.jit(jax.vmap(method, in_axes=(0, None))).lower(starts[0], data[0]).compile()
        rows[name] = {'method': name, 'compile': time.perf_counter() - began, 'times': [], 'right': 0}
    right = jax.jit(jax.vmap(functools.partial(same_atoms, tolerance=AT_TRUTH), in_axes=(0, None)))
    for case in range(num_cases):
        true = examples.positions[case] - jnp.mean(examples.positions[case], axis=0, keepdims=True)
        for repeat in range(-1, repeats):  # the first call is a warm-up
            for name, run in compiled.items():
                began = time.perf_counter()
                positions = jax.block_until_ready(run(starts[case], data[case]))
                if repeat < 0:
                    rows[name]['right'] += int(jnp.sum(right(positions, true)))
                else:
                    rows[name]['times'].append(time.perf_counter() - began)
    for row in rows.values():
        times, found = row.pop('times'), row.pop('right')
        row |= {'seconds': min(times), 'median': statistics.median(times), 'at_truth': found / (num_cases * num_starts)}
        row['seconds_per_truth'] = row['median'] * num_cases / found if found else None
    return list(rows.values())


def positive(word: str) -> int:
    """A whole number from 1."""
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{number} is not 1 or more')
    return number


def main() -> None:
    """Measures, prints the table and writes it."""
    device = jax.devices()[0].device_kind
    default = Path(__file__).with_name(f'least_squares-{slug(device)}.json')
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.least_squares',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--cases', type=positive, default=4, help='cases of the evaluation stream')
    parser.add_argument('--starts', type=positive, default=64, help='random starts for each case')
    parser.add_argument('--repeats', type=positive, default=3, help='timings of each method and case')
    parser.add_argument('--json', type=Path, default=default, help='file to write')
    options = parser.parse_args()
    with exit_on_errors():
        require(options.json.parent.is_dir(), '--json', str(options.json), 'a file in a directory that exists')
        try:
            versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
        except importlib.metadata.PackageNotFoundError as error:
            raise InputError(f"{error.name} is not installed: pip install -e '.[bench]'") from error
        problem = Problem()
        rows = measure(problem, options.cases, options.starts, options.repeats)
        about = {'device': device, 'processor': processor(), 'cores': available_cores()}
        settings = {'cases': options.cases, 'starts': options.starts, 'repeats': options.repeats}
        settings |= {'reflections': stages(problem).counts.tolist(), 'steps': ITERATIONS}
        report = about | {'versions': versions, 'settings': settings, 'rows': rows}
        options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + '\n')
        print(aligned_table(TITLES, rows))
        print(f'\nWritten to {options.json}')


if __name__ == '__main__':
    main()
