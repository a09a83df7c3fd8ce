"""The set of atoms in a trained network's map, by the paper's procedure (2.4.4)."""

import jax
import jax.numpy as jnp
from jax import Array

from patterson_jax.solving.atom_sets import compact
from patterson_jax.solving.interpretation import atoms_of_map
from patterson_jax.solving.least_squares import Stages, stages_from_map, stages_from_random
from patterson_jax.solving.methods.method import Method, Prediction, Proposal, Request


def propose(request: Request) -> Proposal:
    """The set in the network's map."""
    measured, predicted, problem = request.measured, request.predicted, request.problem
    assert predicted is not None  # because it is given to methods that need the network
    found = atoms_of_map(request.key, predicted, measured, problem, request.separation)
    # The map may have wrong atoms, which coarse stages can mend; later attempts, with the same map, begin finely.
    every, late = stages_from_random(measured, problem), stages_from_map(measured, problem)
    first = Stages(*(each[1:] for each in every))
    stages = jax.tree.map(lambda first, late: jnp.where(request.number == 0, first, late), first, late)
    positions = compact(found.positions, problem.grid_size, measured.num_atoms)
    return Proposal(positions[None], stages, Prediction(predicted, found.candidates, found.heights))


def first_attempt(positions: Array, number: Array) -> Array:
    """The map is always the same one, so that only the first attempt is evidence."""
    return jnp.broadcast_to(number == 0, len(positions))


NETWORK = Method(
    'network',
    stream=0,
    starts=1,
    propose=propose,
    independent=first_attempt,
    separates=True,
    needs_network=True,
    repeats=False,
)
