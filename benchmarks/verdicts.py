"""Calibrates and tests the verdict: R1 of right and wrong sets of atoms, and verdicts against the truth.

    python -m benchmarks.verdicts --stream=calibration    # cases for the constants of solving/verdict.py
    python -m benchmarks.verdicts --stream=evaluation     # the test, on other cases

Cells are problems of benchmarks/solvers.py. Each case is attempted a few times, and all finished sets of atoms are
compared with the truth. The table has the expected R1 of a right set, the highest R1 of a set that can be called
solved, R1 of right and of wrong sets, and the verdicts. The last column is the least that wrong sets add to the
expected R1, in squares, for one of N atoms. With complete data it is 0.79 to 0.87 in several runs; `ONE_WRONG_ATOM` is
set from this. With fewer reflections it is lower.
"""

import argparse
import dataclasses
import math
import sys
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from benchmarks.solvers import cell_experiment
from patterson_jax.evaluation import match_atoms
from patterson_jax.simulation.examples import Example, example_key, make_batch, stream_key
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.methods.registry import classical_names
from patterson_jax.solving.separation import SeparationSettings
from patterson_jax.solving.solver import Search, solve_maps
from patterson_jax.solving.verdict import VERDICTS, expected_r_factors, highest_solved
from patterson_jax.writing import markdown_table

CELLS = (  # atoms, resolution, noise
    (10, None, 0.0),
    (10, None, 0.3),
    (10, 8, 0.0),
    (10, 8, 0.3),
    (10, 5, 0.1),
    (20, None, 0.3),
    (20, 8, 0.1),
    (20, 5, 0.0),
)

COLUMNS = (
    'atoms',
    'data',
    'noise',
    'expected R1',
    'solved below',
    'R1, right sets',
    'R1, wrong sets',
    'verdicts',
    'added',
)

_match = jax.jit(match_atoms)


class Judged(NamedTuple):
    """The verdicts on the cases of a cell.

    Attributes:
        verdicts: number of cases with each (verdict, whether their best set is right).
        right: R1 of right sets, with those of rivals.
        wrong: R1 of wrong sets, with those of rivals.
    """

    verdicts: dict[tuple[str, bool], int]
    right: list[float]
    wrong: list[float]


def cases_of(stream: str, number: int, seed: int, problem: Problem) -> tuple[Array, Example]:
    """Keys to solve the first `number` cases of a stream, and these cases, on the host."""
    indices = np.arange(number)
    examples = jax.jit(make_batch, static_argnums=3)(stream_key(seed, stream), 0, indices, problem)
    keys = jax.vmap(lambda index: example_key(stream_key(seed, 'separation'), 0, index))(indices)
    return keys, jax.device_get(examples)


def judge_cases(
    keys: Array,
    examples: Example,
    problem: Problem,
    solving: Search,
    separation: SeparationSettings,
    at_once: int | None = None,
) -> Judged:
    """Solves cases, `at_once` as in `solve_maps`, and compares all finished sets with the truth."""
    solutions = solve_maps(keys, examples.patterson, problem, solving, separation, at_once=at_once)
    right, wrong = [], []
    verdicts = {(verdict, is_right): 0 for verdict in VERDICTS for is_right in (True, False)}
    for solution, positions in zip(solutions, examples.positions, strict=True):
        for place, found in enumerate((solution, *solution.rivals)):
            is_right = bool(np.all(_match(found.positions, positions).within))
            (right if is_right else wrong).append(float(found.r_factor))
            if place == 0:
                verdicts[solution.verdict, is_right] += 1
    return Judged(verdicts, right, wrong)


def measure_cell(options: argparse.Namespace, atoms: int, resolution: float | None, noise: float) -> tuple:
    """The row of one cell in the table."""
    problem, experiment = cell_experiment(atoms, resolution, noise)
    solving = dataclasses.replace(experiment.solve, method=options.method, max_attempts=options.attempts)
    keys, examples = cases_of(options.stream, options.cases, experiment.seed, problem)
    verdicts, right, wrong = judge_cases(keys, examples, problem, solving, experiment.separate)
    expected, _ = expected_r_factors(problem)
    added = [math.sqrt(max(each**2 - expected**2, 0) * atoms) for each in wrong]
    words = ', '.join(
        f'{verdict} {verdicts[verdict, True]} right {verdicts[verdict, False]} wrong' for verdict in VERDICTS
    )
    limits = f'{expected:.3f}', f'{highest_solved(problem):.3f}'
    lowest_added = f'{min(added, default=math.nan):.2f}'
    return atoms, resolution or 'all', f'{noise:.0%}', *limits, _range(right), _range(wrong), words, lowest_added


def _range(values):
    return f'{min(values):.4f} to {max(values):.4f} ({len(values)})' if values else '–'


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.verdicts', description=__doc__.partition('\n')[0])
    parser.add_argument('--stream', choices=('calibration', 'evaluation'), default='calibration', help='of the cases')
    parser.add_argument('--cases', type=int, default=30, help='of a cell')
    parser.add_argument('--attempts', type=int, default=4, help='at a case, at most')
    parser.add_argument('--method', choices=classical_names(), default='least_squares')
    options = parser.parse_args()
    rows = []
    for cell in CELLS:
        rows.append(measure_cell(options, *cell))
        print(*rows[-1], sep=' | ', file=sys.stderr, flush=True)
    print(markdown_table(COLUMNS, rows))


if __name__ == '__main__':
    main()
