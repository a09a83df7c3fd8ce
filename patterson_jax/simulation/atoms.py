"""Random atoms: drawn one by one in a box, at least a given distance apart, and centred (paper, 2.1, 2.4.1, 2.4.3)."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from patterson_jax.errors import require
from patterson_jax.simulation.problem import Problem

PROPOSALS_PER_ATOM = 64


def insert_atoms(key: Array, problem: Problem) -> tuple[Array, Array]:
    """Tries once to place all atoms one by one, each uniform over what the earlier ones leave free of the inner box.

    Returns:
        positions: `(num_atoms, 3)`, voxels from the box centre, not yet centred.
        placed: whether every atom found room within its share of proposals; if not, the positions are of no use.
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


def draw_positions(key: Array, problem: Problem) -> Array:
    """Positions of one case, `(num_atoms, 3)`, voxels from the box centre; a jammed draw starts afresh.

    Never returns overlapping atoms. The problem must be one that `check_drawable` accepts, or the draw does not end.
    """

    def attempt(number):
        return insert_atoms(jax.random.fold_in(key, number), problem)

    def again(state):
        number, _, _ = state
        return number + 1, *attempt(number + 1)

    _, positions, _ = jax.lax.while_loop(lambda state: ~state[2], again, (0, *attempt(0)))
    return centre(positions) if problem.centred else positions


def centre(positions: Array) -> Array:
    """Moves the mean of the positions `(..., num_atoms, 3)` to the origin (paper, 2.4.1)."""
    return positions - jnp.mean(positions, axis=-2, keepdims=True)


@functools.lru_cache
def check_drawable(problem: Problem, attempts: int = 256) -> None:
    """Raises InputError if none of `attempts` seeded draws can place the problem's atoms."""
    keys = jax.random.split(jax.random.key(0), attempts)
    _, placed = jax.jit(jax.vmap(functools.partial(insert_atoms, problem=problem)))(keys)
    require(
        bool(jnp.any(placed)),
        'num_atoms',
        problem.num_atoms,
        f'smaller: in none of {attempts} trials did so many atoms find room at random in a box of edge '
        f'{problem.box_edge:g} at least {problem.min_separation:g} voxels apart',
    )
