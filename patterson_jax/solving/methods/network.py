"""The set of atoms in a trained network's map, by the paper's procedure (2.4.4)."""

import jax.numpy as jnp
from jax import Array

from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.atom_sets import compact
from patterson_jax.solving.interpretation import interpret_map
from patterson_jax.solving.least_squares import Stage, stages_from_map, stages_from_random
from patterson_jax.solving.methods.method import Measured, Method, Prediction, Proposal
from patterson_jax.solving.separation import SeparationSettings


def propose(
    key: Array, number: Array, measured: Measured, problem: Problem, separation: SeparationSettings
) -> Proposal:
    """The set in the network's map."""
    density = measured.predicted
    assert density is not None  # because it is given to methods that need the network
    found = interpret_map(key, measured.patterson, density, problem, separation)
    prediction = Prediction(density, found.candidates, found.heights)
    return Proposal(compact(found.positions, problem.grid_size)[None], prediction)


def stages(repairs: bool, problem: Problem) -> list[Stage]:
    """The map may have wrong atoms, which coarse stages can mend; later attempts, with the same map, begin finely."""
    if repairs:
        return stages_from_map(problem)
    every = stages_from_random(problem)
    return every[1:] or every


def first_attempt(positions: Array, number: Array) -> Array:
    """The map is always the same one, so that only the first attempt is evidence."""
    return jnp.broadcast_to(number == 0, len(positions))


NETWORK = Method(
    'network',
    stream=0,
    starts=1,
    propose=propose,
    stages=stages,
    independent=first_attempt,
    separates=True,
    needs_network=True,
    repeats=False,
)
