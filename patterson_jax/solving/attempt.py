"""One attempt at a map by one method: sets proposed, refined, and the best of them finished. Compiled as one program.

Each set is refined, and repaired where the first attempt did not do; the best one and its rival, the best that differs
from it, are finished with the exact renderer.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from patterson_jax.precision import exact_products
from patterson_jax.simulation.encoding import network_input
from patterson_jax.simulation.patterson import longest_within
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.atom_sets import same_atoms
from patterson_jax.solving.least_squares import Finished, finish, refine, repair
from patterson_jax.solving.methods.method import Measured, Method, Prediction
from patterson_jax.solving.orientations import averaged_over_orientations
from patterson_jax.solving.reflections import absolute_scale, observed_amplitudes
from patterson_jax.solving.separation import SeparationSettings

SAME = 0.5  # voxels within which atoms of two sets are the same
REPAIRS_PER_ATOM = 0.5


class Network(NamedTuple):
    """A trained network: `apply(params, inputs)` gives density maps `(batch, grid, grid, grid)`.

    `trained_on` tells the grid and the input that it knows; None: those of the problem that is solved.
    """

    apply: Callable[[Any, Array], Array]
    params: Any
    trained_on: Problem | None = None


class Attempt(NamedTuple):
    """What one attempt gives for one map.

    Attributes:
        finished: of the best set and, if more than one was proposed, of its rival, along a leading axis.
        has_rival: whether the rival differs from the best set.
        agreeing: how many independent sets became the best one.
        prediction: what the network predicted, if it was asked.
    """

    finished: Finished
    has_rival: Array
    agreeing: Array
    prediction: Prediction | None


def compiled_attempt(
    method: Method,
    repairs: bool,
    problem: Problem,
    separation: SeparationSettings,
    network: Network | None,
    at_once: int,
    orientations: int,
) -> Callable[[Array, np.int32, np.ndarray], Attempt]:
    """`attempt` for several maps at once, compiled, so that its first use takes no longer than others.

    What makes no difference to the program makes no other program either: see `solved_for`.
    """
    problem = solved_for(problem, with_network=method.needs_network)
    separation = separation if method.separates else SeparationSettings()
    apply, params = (network.apply, network.params) if network else (None, {})
    leaves, structure = jax.tree.flatten(params)
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    run = _compile_attempt(method, repairs, problem, separation, apply, structure, shapes, at_once, orientations)
    return functools.partial(run, params)


@functools.lru_cache(maxsize=16)
def _compile_attempt(method, repairs, problem, separation, apply, structure, shapes, at_once, orientations):
    """Compiled for weights of these shapes, whatever they are."""

    def run(params, keys, number, pattersons):
        densities = None
        if apply:  # all maps at once: the network takes many times as long map by map
            predict = averaged_over_orientations(functools.partial(apply, params), orientations)
            densities = predict(network_input(pattersons, problem))

        def attempt_one(key, patterson, density):
            return attempt(key, number, patterson, method, repairs, problem, separation, density)

        return jax.vmap(attempt_one)(keys, pattersons, densities)

    params = jax.tree.unflatten(structure, shapes)
    keys = jax.random.split(jax.random.key(0), at_once)
    maps = jax.ShapeDtypeStruct((at_once,) + (problem.grid_size,) * 3, np.float32)
    return jax.jit(run).lower(params, keys, np.int32(0), maps).compile()


@exact_products
def attempt(
    key: Array,
    number: Array | int,
    patterson: Array,
    method: Method,
    repairs: bool,
    problem: Problem,
    separation: SeparationSettings,
    density: Array | None = None,
) -> Attempt:
    """One attempt at one map.

    Args:
        key: of the map.
        number: of attempts that the method has had; each begins differently.
        patterson: `(grid, grid, grid)`, origin at voxel (0, 0, 0), of any scale.
        method: that proposes sets.
        repairs: whether to move atoms that explain nothing.
        problem: what the map is of.
        separation: how sets are taken from maps.
        density: the network's map, `(grid, grid, grid)`, for a method that needs it.
    """
    key, number = jax.random.fold_in(jax.random.fold_in(key, method.stream), number), jnp.asarray(number)
    patterson = absolute_scale(patterson, problem)
    measured = Measured(patterson, observed_amplitudes(patterson, problem), density)
    proposal = method.propose(key, number, measured, problem, separation)
    stages = method.stages(repairs, problem)

    def improve(positions):
        refined = refine(positions, measured.observed, problem, stages)
        if repairs:
            rounds = math.ceil(REPAIRS_PER_ATOM * problem.num_atoms)
            refined = repair(refined.positions, measured.observed, problem, rounds, stages[-1].resolution)
        return refined

    refined = jax.vmap(improve)(proposal.positions)
    misfits = jnp.where(jnp.isfinite(refined.misfit), refined.misfit, jnp.inf)
    best = refined.positions[jnp.argmin(misfits)]
    same = jax.vmap(lambda positions: same_atoms(positions, best, SAME))(refined.positions)
    chosen, has_rival = best[None], jnp.array(False)
    if len(misfits) > 1:
        rival = refined.positions[jnp.argmin(jnp.where(same, jnp.inf, misfits))]
        chosen, has_rival = jnp.stack([best, rival]), ~jnp.all(same)
    finished = jax.vmap(lambda positions: finish(positions, measured.observed, problem))(chosen)
    agreeing = jnp.sum(same & method.independent(proposal.positions, number))
    return Attempt(finished, has_rival, agreeing, proposal.prediction)


def compiled_finish(problem: Problem) -> Callable[[np.ndarray, np.ndarray], Finished]:
    """`finish` for positions `(num_atoms, 3)` and their map, compiled, for no use to take longer."""
    return _compile_finish(solved_for(problem, with_network=False))


@functools.lru_cache(maxsize=16)
def _compile_finish(problem):
    def run(positions, patterson):
        return finish(positions, observed_amplitudes(absolute_scale(patterson, problem), problem), problem)

    positions = jax.ShapeDtypeStruct((problem.num_atoms, 3), np.float32)
    patterson = jax.ShapeDtypeStruct((problem.grid_size,) * 3, np.float32)
    return jax.jit(run).lower(positions, patterson).compile()


def solved_for(problem: Problem, with_network: bool) -> Problem:
    """The problem without what makes no difference to a program that solves it, so that fewer are compiled.

    That is how cases are drawn, their noise, what only a network is told, and a resolution between two lengths |h|.
    """
    resolution = problem.resolution
    if resolution is not None:
        resolution = math.sqrt(longest_within(resolution))
    needed = Problem(
        grid_size=problem.grid_size,
        num_atoms=problem.num_atoms,
        atom_radius=problem.atom_radius,
        min_separation=0.0,
        box_edge=problem.box_edge,
        resolution=resolution,
    )
    if with_network:
        needed = dataclasses.replace(needed, input_scale=problem.input_scale, origin=problem.origin)
    return needed
