"""The limit of any method: the true atoms, refined, finished and judged like those of a method, but not rebuilt.

If the data do not keep the true atoms, no method can find them. If they do and no method finds them, a better search is
what is missing.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.atom_sets import compact
from patterson_jax.solving.attempt import Attempt, solved_for
from patterson_jax.solving.cases import Case, Solution
from patterson_jax.solving.least_squares import Finished, finish, refine, stages_from_map
from patterson_jax.solving.programs import call, clock
from patterson_jax.solving.reflections import Reflections, measure, reflections

TRUTH = 'truth'  # as the name of a method


def solutions_from_truth(pattersons: np.ndarray, positions: np.ndarray, problem: Problem) -> list[Solution]:
    """Solutions that begin at the true atoms.

    Args:
        pattersons: `(count, grid, grid, grid)`, origin at voxel (0, 0, 0), of any scale.
        positions: `(count, num_atoms, 3)`, the atoms of these maps, voxels from the box centre.
        problem: of the maps.
    """
    held, solutions = reflections(problem), []
    for patterson, true in zip(pattersons, positions, strict=True):
        case, began = Case(problem), clock()
        finished = jax.device_get(call(kept_of_truth, true, patterson, held, problem=solved_for(problem)))
        found = Attempt((finished,), jnp.array(False), jnp.array(1), None)
        case.add(found, TRUTH, 1, clock() - began)
        solutions.append(case.solution())
    return solutions


def kept_of_truth(true: Array, patterson: Array, held: Reflections, problem: Problem) -> Finished:
    """The true atoms of one map, refined and finished."""
    measured = measure(patterson, held, problem.num_atoms, problem.atom_volume)
    refined = refine(compact(true, problem.grid_size), measured, stages_from_map(measured, problem))
    return finish(refined.positions, measured, problem)
