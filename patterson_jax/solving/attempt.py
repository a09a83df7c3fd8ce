"""One attempt at some maps by one method: sets proposed, refined, and the best of them finished.

Each set is refined, and the best is rebuilt in part unless it explains the data. It and its rival, the best one that
differs from it, are finished with the exact renderer. Each of these steps is a program of its own, for several maps at
once, compiled when it is first needed. All methods and attempts share these programs.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from patterson_jax.precision import exact_products
from patterson_jax.simulation.encoding import Encoding, network_input
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.atom_sets import fill_places, same_atoms
from patterson_jax.solving.least_squares import Finished, Refined, Stages, finish, refine
from patterson_jax.solving.methods.method import Method, Prediction, Proposal, Request
from patterson_jax.solving.orientations import averaged_over_orientations
from patterson_jax.solving.programs import begin, call
from patterson_jax.solving.rebuilding import rebuild
from patterson_jax.solving.reflections import Measured, Reflections, measure, reflections
from patterson_jax.solving.separation import SeparationSettings

SAME = 0.5  # voxels within which atoms of two sets are the same
EXPLAINED = 0.1  # misfit times number of atoms, below which a set is not rebuilt
REBUILDING = 100  # stream of its random numbers, which no method has
AXES: Any = (0, 0, None, None)
SEVERAL: Any = Measured(*AXES)  # axes of what several maps have of their own, for vmap


class Network(NamedTuple):
    """A trained network of Patterson maps, as `load_network` gives it.

    Attributes:
        apply: `apply(params, inputs)` gives density maps `(batch, grid, grid, grid)`.
        params: its weights.
        trained_on: the problem of its training, with grid and input; None: the problem that is solved.
        check_problem: raises InputError if the network cannot solve a problem on another grid; None: it can solve none
            there.
    """

    apply: Callable[[Any, Array], Array]
    params: Any
    trained_on: Problem | None = None
    check_problem: Callable[[Problem], None] | None = None


class Attempt(NamedTuple):
    """What one attempt gives for one map, or, with a leading axis, for several.

    Attributes:
        finished: the best set and, if more than one was proposed, its rival.
        has_rival: whether the rival differs from the best set.
        agreeing: how many independent sets became the best one; at most 1 where rebuilding made that another set.
        prediction: what the network predicted, if it was asked.
    """

    finished: tuple[Finished, ...]
    has_rival: Array
    agreeing: Array
    prediction: Prediction | None


class Choice(NamedTuple):
    """Of the refined sets of a map the best and its rival, `(1 or 2, places, 3)`.

    Attributes:
        positions: of these.
        misfit: of the best.
        has_rival: as in `Attempt`.
        agreeing: as in `Attempt`, before the best is rebuilt.
    """

    positions: Array
    misfit: Array
    has_rival: Array
    agreeing: Array


def run_attempt(
    method: Method,
    number: int,
    problem: Problem,
    separation: SeparationSettings,
    network: Network | None,
    keys: Array,
    maps: np.ndarray | Array,
    orientations: int = 1,
    places: int | None = None,
) -> Attempt:
    """An attempt at several maps at once.

    Choices that make no difference to a program do not make another one necessary: see `solved_for`.

    Args:
        method: that proposes sets.
        number: how many attempts the method has had.
        problem: what the maps are of.
        separation: how sets are taken from maps.
        network: for a method that needs it.
        keys: `(at_once,)`, one for each map.
        maps: `(at_once, grid, grid, grid)` float32, of any scale, origin at voxel (0, 0, 0).
        orientations: of the cell in which the network is shown a map.
        places: atoms that the programs have room for; None: as many as the problem has.
    """
    solved, measured, turn = solved_for(problem, places), _measured(maps, problem), np.int32(number)
    densities = _predicted(network, problem, maps, orientations) if network and method.needs_network else None
    separation = separation if method.separates else SeparationSettings()
    choices = {'method': method, 'problem': solved, 'separation': separation}
    begin(finish_all, jax.ShapeDtypeStruct((len(maps), solved.num_atoms, 3), np.float32), measured, problem=solved)
    positions, stages, prediction = call(propose_all, keys, turn, measured, densities, **choices)
    refined = [call(refine_all, each, measured, stages) for each in _sets(positions)]
    choice = call(choose_all, refined, positions, turn, independent=method.independent)
    best, *rival = _sets(choice.positions)
    misfit, agreeing = np.asarray(choice.misfit), np.asarray(choice.agreeing)
    doubtful = (misfit >= EXPLAINED / problem.num_atoms) & np.isfinite(misfit)
    if np.any(doubtful):
        streams = np.array([REBUILDING, method.stream, number], np.int32)
        rebuilt, same = call(rebuild_all, keys, streams, best, measured, problem=solved)
        best = np.where(doubtful[:, None, None], rebuilt, best)
        # No other start came to a set that rebuilding made another one.
        agreeing = np.where(doubtful & ~np.asarray(same), np.minimum(agreeing, 1), agreeing)
    finished = [call(finish_all, best, measured, problem=solved)]
    if rival and np.any(np.asarray(choice.has_rival)):
        finished.append(call(finish_all, rival[0], measured, problem=solved))
    return Attempt(tuple(finished), choice.has_rival, jnp.asarray(agreeing), prediction)


def finish_set(positions: np.ndarray, patterson: np.ndarray, problem: Problem, places: int | None = None) -> Finished:
    """`finish` for positions `(num_atoms, 3)` and their map `(grid, grid, grid)`."""
    solved, measured = solved_for(problem, places), _measured(np.asarray(patterson, np.float32)[None], problem)
    filled = fill_places(positions, solved.num_atoms)[None]
    found = jax.device_get(call(finish_all, filled, measured, problem=solved))
    return Finished(found.positions[0, : problem.num_atoms], found.r_factor[0], found.r_free[0])


def _measured(maps, problem):
    return call(measure_all, maps, reflections(problem), np.int32(problem.num_atoms), atom_volume=problem.atom_volume)


def _predicted(network, problem, maps, orientations):
    """The network's maps. The program is the same for weights of the same shapes."""
    told = dataclasses.replace(problem.encoding, target=Encoding.target)  # the target is for training
    choices = {'apply': network.apply, 'encoding': told, 'orientations': orientations}
    return call(predict_all, network.params, maps, np.int32(problem.num_atoms), **choices)


def _sets(positions):
    """Sets `(maps, sets, places, 3)`, one after the other, on the host: each for all maps."""
    return list(np.moveaxis(np.asarray(positions), 1, 0))


# What a program does for all maps at once; arguments that the maps share have no axis of maps.


def predict_all(
    params: Any, maps: Array, num_atoms: Array, apply: Callable, encoding: Encoding, orientations: int
) -> Array:
    """The network's maps. All at once: the network takes many times as long map by map."""
    predict = averaged_over_orientations(functools.partial(apply, params), orientations)
    return predict(network_input(maps, num_atoms, encoding))


def measure_all(maps: Array, held: Reflections, num_atoms: Array, atom_volume: float) -> Measured:
    """`measure` for each map."""
    return jax.vmap(lambda each: measure(each, held, num_atoms, atom_volume), out_axes=SEVERAL)(maps)


def propose_all(
    keys: Array,
    number: Array,
    measured: Measured,
    densities: Array | None,
    method: Method,
    problem: Problem,
    separation: SeparationSettings,
) -> Proposal:
    """The sets of a method for each map."""

    def propose_one(key, measured, density):
        key = jax.random.fold_in(jax.random.fold_in(key, method.stream), number)
        return method.propose(Request(key, number, measured, density, problem, separation))

    axes: Any = (0, None, 0)
    return exact_products(jax.vmap(propose_one, (0, SEVERAL, 0), Proposal(*axes)))(keys, measured, densities)


def refine_all(positions: Array, measured: Measured, stages: Stages) -> Refined:
    """`refine` for a set of each map."""
    return jax.vmap(refine, (0, SEVERAL, None))(positions, measured, stages)


def rebuild_all(
    keys: Array, streams: Array, positions: Array, measured: Measured, problem: Problem
) -> tuple[Array, Array]:
    """`rebuild` for a set of each map, with keys of these streams; and whether these are the same sets as before."""

    def rebuild_one(key, positions, measured):
        for stream in streams:
            key = jax.random.fold_in(key, stream)
        rebuilt = rebuild(key, positions, measured, problem)
        return rebuilt, same_atoms(rebuilt, positions, SAME)

    return jax.vmap(rebuild_one, (0, 0, SEVERAL))(keys, positions, measured)


def finish_all(positions: Array, measured: Measured, problem: Problem) -> Finished:
    """`finish` for a set of each map."""
    return jax.vmap(lambda each, data: finish(each, data, problem), (0, SEVERAL))(positions, measured)


def choose_all(refined: list[Refined], proposed: Array, number: Array, independent: Callable) -> Choice:
    """The best of the sets of each map, and its rival."""
    positions, misfits = (jnp.stack(each, axis=1) for each in zip(*refined, strict=True))

    def choose(positions, misfits, proposed):
        misfits = jnp.where(jnp.isfinite(misfits), misfits, jnp.inf)
        best = positions[jnp.argmin(misfits)]
        same = jax.vmap(lambda each: same_atoms(each, best, SAME))(positions)
        agreeing = jnp.sum(same & independent(proposed, number), dtype=jnp.int32)
        if len(misfits) == 1:
            return Choice(best[None], misfits[0], jnp.array(False), agreeing)
        rival = positions[jnp.argmin(jnp.where(same, jnp.inf, misfits))]
        return Choice(jnp.stack([best, rival]), jnp.min(misfits), ~jnp.all(same), agreeing)

    return jax.vmap(choose)(positions, misfits, proposed)


def solved_for(problem: Problem, places: int | None = None) -> Problem:
    """The part of a problem on which programs depend, so that few are compiled.

    It leaves out how cases are drawn and measured, and the input of networks. Its number of atoms is that for which a
    program has places.
    """
    return Problem(
        grid_size=problem.grid_size,
        num_atoms=places or problem.num_atoms,
        atom_radius=problem.atom_radius,
        min_separation=0.0,
        box_edge=problem.box_edge,
    )
