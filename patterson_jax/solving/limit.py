"""What the data keep of the truth: the true atoms, refined, finished and judged as an answer of any method.

No method can be asked to find more. Where this keeps the truth and no method finds it, search is what is missing.
"""

import functools
import time

import jax
import numpy as np

from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.atom_sets import compact
from patterson_jax.solving.attempt import attempt, solved_for
from patterson_jax.solving.cases import Case, Solution
from patterson_jax.solving.methods.method import Method, Proposal
from patterson_jax.solving.separation import SeparationSettings

TRUTH = 'truth'  # as the name of a method


def solutions_from_truth(pattersons: np.ndarray, positions: np.ndarray, problem: Problem) -> list[Solution]:
    """What least squares makes of the true atoms.

    Args:
        pattersons: `(count, grid, grid, grid)`, origin at voxel (0, 0, 0), of any scale.
        positions: `(count, num_atoms, 3)`, the atoms behind them, voxels from the box centre.
        problem: what they are.
    """
    program = _compile_refinement(solved_for(problem, with_network=False))
    solutions = []
    for patterson, true in zip(pattersons, positions, strict=True):
        case, began = Case(problem), time.perf_counter()
        found = jax.device_get(program(patterson, true))
        case.add(found, _truth_of(true), time.perf_counter() - began)
        solutions.append(case.solution())
    return solutions


@functools.lru_cache(maxsize=16)
def _compile_refinement(problem):
    def run(patterson, true):
        key = jax.random.key(0)  # nothing is drawn
        return attempt(key, 0, patterson, _truth_of(true), False, problem, SeparationSettings())

    patterson = jax.ShapeDtypeStruct((problem.grid_size,) * 3, np.float32)
    positions = jax.ShapeDtypeStruct((problem.num_atoms, 3), np.float32)
    return jax.jit(run).lower(patterson, positions).compile()


def _truth_of(true):
    def propose(key, number, measured, problem, separation):
        return Proposal(compact(true, problem.grid_size)[None])

    return Method(TRUTH, stream=2**31 - 1, starts=1, propose=propose)
