"""Draws random atoms one by one in a box, at least a given distance apart, and centres them (paper, 2.1, 2.4.1, 2.4.3).

Cases can be drawn again until a corner of the box is empty, or until it is not empty (paper, Discussion).
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from patterson_jax.errors import require
from patterson_jax.simulation.problem import Problem

PROPOSALS_PER_ATOM = 64


def insert_atoms(key: Array, problem: Problem) -> tuple[Array, Array]:
    """Tries once to place all atoms, one by one, each uniform over the part of the inner box that is still free.

    Returns:
        positions: `(num_atoms, 3)`, voxels from the box centre, not yet centred.
        placed: whether every atom found room within its share of proposals; if not, the positions are not valid.
    """
    shape = (problem.num_atoms, PROPOSALS_PER_ATOM, 3)
    proposals = jax.random.uniform(key, shape, jnp.float32, -problem.box_edge / 2, problem.box_edge / 2)

    def insert(positions, step):
        number, choices = step
        squared_distances = jnp.sum((choices[:, None] - positions[None]) ** 2, axis=-1)
        others = jnp.arange(problem.num_atoms)[None] < number
        free = jnp.all(~others | (squared_distances >= problem.min_separation**2), axis=-1)
        return positions.at[number].set(choices[jnp.argmax(free)]), jnp.any(free)

    start = jnp.zeros((problem.num_atoms, 3), jnp.float32)
    positions, placed = jax.lax.scan(insert, start, (jnp.arange(problem.num_atoms), proposals))
    return positions, jnp.all(placed)


def attempt_case(key: Array, problem: Problem) -> tuple[Array, Array]:
    """Tries once to draw a case.

    Returns:
        positions: `(num_atoms, 3)`, voxels from the box centre, centred if the problem says so.
        accepted: whether every atom found room and the corner is empty or filled as the problem says.
    """
    positions, accepted = insert_atoms(key, problem)
    if problem.centred:
        positions = centre(positions)
    if problem.empty_corner:
        accepted &= ~jnp.any(in_corner(positions, problem.empty_corner, problem))
    if problem.filled_corner:
        accepted &= jnp.any(in_corner(positions, problem.filled_corner, problem))
    return positions, accepted


def in_corner(positions: Array, edge: float, problem: Problem) -> Array:
    """Whether atoms `(..., num_atoms, 3)` or their inverses lie within `edge` of three faces of the inner box.

    An atom that centring moves out of the box there still counts. Inverses count because the network's target does not
    distinguish an atom from its inverse.
    """
    nearest = problem.box_edge / 2 - edge
    return jnp.all(positions > nearest, axis=-1) | jnp.all(positions < -nearest, axis=-1)


def draw_positions(key: Array, problem: Problem) -> Array:
    """Draws the positions of one case, `(num_atoms, 3)`, voxels from the box centre, until an attempt succeeds.

    Atoms never overlap. `check_drawable` must accept the problem, or the draw does not end.
    """

    def attempt(number):
        return attempt_case(jax.random.fold_in(key, number), problem)

    def again(state):
        number, _, _ = state
        return number + 1, *attempt(number + 1)

    _, positions, _ = jax.lax.while_loop(lambda state: ~state[2], again, (0, *attempt(0)))
    return positions


def centre(positions: Array) -> Array:
    """Moves the mean of the positions `(..., num_atoms, 3)` to the origin (paper, 2.4.1)."""
    return positions - jnp.mean(positions, axis=-2, keepdims=True)


@functools.lru_cache
def check_drawable(problem: Problem, attempts: int = 256) -> None:
    """Raises InputError if none of `attempts` seeded draws succeeds, for the problem or for its test cases."""

    # Every command waits for this. On CPU nearly all of the time goes into optimising what then runs once.
    options = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None

    def any_of(one, problem):
        keys = jax.random.split(jax.random.key(0), attempts)
        succeeded = jax.jit(jax.vmap(lambda key: one(key, problem)[1]), compiler_options=options)
        return bool(jnp.any(succeeded(keys)))

    require(
        any_of(insert_atoms, problem),
        'num_atoms',
        problem.num_atoms,
        f'smaller: in none of {attempts} trials did so many atoms find room at random in a box of edge '
        f'{problem.box_edge:g} at least {problem.min_separation:g} voxels apart',
    )
    if problem.empty_corner:
        possible = any_of(attempt_case, problem)
        allowed = f'smaller: in none of {attempts} trials was the corner empty'
        require(possible, 'empty_corner', problem.empty_corner, allowed)
    if problem.testing.filled_corner:
        possible = any_of(attempt_case, problem.testing)
        field = 'empty_corner' if problem.empty_corner else 'filled_corner'
        allowed = f'larger: in none of {attempts} trials was the corner filled'
        require(possible, field, getattr(problem, field), allowed)
