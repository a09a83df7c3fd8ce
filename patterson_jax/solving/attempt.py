"""One attempt at some maps by one method: sets proposed, refined, and the best of them finished.

Each set is refined, and repaired from the second attempt on, unless another map is the better cure. In the best set, if
it is from a map, atoms that explain nothing are moved. It and its rival, the best one that differs from it, are
finished with the exact renderer. Each of these steps is a program of its own, for several maps at once. All methods and
attempts share these programs.
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
from patterson_jax.simulation.encoding import Encoding, network_input
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.atom_sets import fill_places, same_atoms
from patterson_jax.solving.least_squares import Finished, Refined, Stages, finish, move_atoms, refine, repair
from patterson_jax.solving.methods.method import Method, Prediction, Proposal, Request
from patterson_jax.solving.orientations import averaged_over_orientations
from patterson_jax.solving.programs import program
from patterson_jax.solving.reflections import Measured, Reflections, measure, reflections
from patterson_jax.solving.separation import SeparationSettings

SAME = 0.5  # voxels within which atoms of two sets are the same
REPAIRS_PER_ATOM = 0.5
EXPLAINED = 0.1  # misfit times number of atoms, below which no atom is moved
MOVED_ITERATIONS = 10
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
        agreeing: how many independent sets became the best one.
        prediction: what the network predicted, if it was asked.
    """

    finished: tuple[Finished, ...]
    has_rival: Array
    agreeing: Array
    prediction: Prediction | None


class Choice(NamedTuple):
    """Of the refined sets of a map the best and its rival, `(1 or 2, places, 3)`, and the counts of `Attempt`."""

    positions: Array
    has_rival: Array
    agreeing: Array


def compiled_attempt(
    method: Method,
    repairs: bool,
    problem: Problem,
    separation: SeparationSettings,
    network: Network | None,
    at_once: int,
    orientations: int = 1,
    places: int | None = None,
) -> Callable[[Array, np.int32, np.ndarray], Attempt]:
    """An attempt at several maps at once, its programs compiled, so that its first use takes no longer than others.

    Choices that make no difference to a program do not make another one necessary: see `solved_for`.

    Args:
        method: that proposes sets.
        repairs: whether every set is repaired.
        problem: what the maps are of.
        separation: how sets are taken from maps.
        network: for a method that needs it.
        at_once: how many maps.
        orientations: of the cell in which the network is shown a map.
        places: atoms that the programs have room for; None: as many as the problem has.

    Returns:
        From keys `(at_once,)`, how many attempts the method has had, and maps `(at_once, grid, grid, grid)` of any
        scale, origin at voxel (0, 0, 0), to what the attempt gives.
    """
    data, solved = (reflections(problem), np.int32(problem.num_atoms)), solved_for(problem, places)
    maps = jax.ShapeDtypeStruct((at_once,) + (problem.grid_size,) * 3, np.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), at_once))
    rounds = np.int32(math.ceil(REPAIRS_PER_ATOM * problem.num_atoms))
    separation = separation if method.separates else SeparationSettings()

    prepare = program(measure_all, maps, *data, atom_volume=problem.atom_volume)
    params = network.params if network else None
    predict = prediction_program(network, problem, maps, orientations) if network else None
    given = keys, np.int32(0), prepare.out_info, predict and predict.out_info
    propose = program(propose_all, *given, method=method, problem=solved, separation=separation)
    positions, stages, _ = propose.out_info
    one_set = jax.ShapeDtypeStruct((at_once, solved.num_atoms, 3), np.float32)
    improve = program(refine_all, one_set, prepare.out_info, stages)
    mend = program(repair_all, one_set, prepare.out_info, rounds, stages.counts, problem=solved) if repairs else None
    each = [improve.out_info] * positions.shape[1]
    choose = program(choose_all, each, positions, np.int32(0), independent=method.independent)
    moves = (one_set, prepare.out_info, stages.counts)
    move = program(move_all, *moves, problem=solved) if method.from_map else None
    finish = program(finish_all, one_set, prepare.out_info, problem=solved)

    def improved(positions, measured, stages):
        refined = improve(positions, measured, stages)
        return mend(refined.positions, measured, rounds, stages.counts) if mend else refined

    def with_atoms_moved(positions, measured, stages):
        if not move:
            return positions
        as_they_are = improve(positions, measured, last_stage(stages, 0)).misfit
        doubtful = np.asarray(as_they_are) >= EXPLAINED / problem.num_atoms
        if not np.any(doubtful):
            return positions
        moved = move(positions, measured, stages.counts)
        moved = improve(moved, measured, last_stage(stages, MOVED_ITERATIONS))
        better = doubtful & np.asarray(moved.misfit < as_they_are)
        return np.where(better[:, None, None], moved.positions, positions)

    def run(keys, number, maps):
        measured = prepare(maps, *data)
        proposal = propose(keys, number, measured, predict and predict(params, maps, data[1]))
        refined = [improved(each, measured, proposal.stages) for each in _sets(proposal.positions)]
        choice = choose(refined, proposal.positions, number)
        (best, *rival), agreeing = _sets(choice.positions), np.asarray(choice.agreeing)
        moved = with_atoms_moved(best, measured, proposal.stages)
        # No other start came to a place that an atom was moved to.
        farthest = np.max(np.linalg.norm(moved - best, axis=-1), axis=-1)
        agreeing = np.where(farthest < SAME, agreeing, np.minimum(agreeing, 1))
        finished = [finish(moved, measured)]
        if rival and np.any(np.asarray(choice.has_rival)):
            finished.append(finish(rival[0], measured))
        return Attempt(tuple(finished), choice.has_rival, jnp.asarray(agreeing), proposal.prediction)

    return run


def _sets(positions):
    """Sets `(maps, sets, places, 3)`, one after the other, on the host: each for all maps."""
    return list(np.moveaxis(np.asarray(positions), 1, 0))


def last_stage(stages: Stages, iterations: int) -> Stages:
    """Stages of the same shape, of which the first has the reflections of the last, and the others do nothing."""
    counts, steps = np.asarray(stages.counts), np.asarray(stages.iterations)
    # On the host, because each operation on the device would be compiled.
    return Stages(jnp.asarray(np.full_like(counts, counts[-1])), jnp.asarray(np.full_like(steps, iterations)))


def prediction_program(
    network: Network, problem: Problem, maps: jax.ShapeDtypeStruct, orientations: int
) -> jax.stages.Compiled:
    """`predict_all` for weights of these shapes, whatever they are."""
    told = dataclasses.replace(problem.encoding, target=Encoding.target)  # the target is for training
    choices = {'apply': network.apply, 'encoding': told, 'orientations': orientations}
    return program(predict_all, network.params, maps, np.int32(0), **choices)


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


def repair_all(positions: Array, measured: Measured, rounds: Array, counts: Array, problem: Problem) -> Refined:
    """`repair` for a set of each map, at the resolution of the last stage."""
    return jax.vmap(lambda each, data: repair(each, data, rounds, counts[-1], problem), (0, SEVERAL))(
        positions, measured
    )


def move_all(positions: Array, measured: Measured, counts: Array, problem: Problem) -> Array:
    """`move_atoms` for a set of each map, at the resolution of the last stage."""
    return jax.vmap(lambda each, data: move_atoms(each, data, counts[-1], problem), (0, SEVERAL))(positions, measured)


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
            return Choice(best[None], jnp.array(False), agreeing)
        rival = positions[jnp.argmin(jnp.where(same, jnp.inf, misfits))]
        return Choice(jnp.stack([best, rival]), ~jnp.all(same), agreeing)

    return jax.vmap(choose)(positions, misfits, proposed)


def compiled_finish(problem: Problem, places: int | None = None) -> Callable[[np.ndarray, np.ndarray], Finished]:
    """`finish` for positions `(num_atoms, 3)` and their map `(grid, grid, grid)`, compiled."""
    data, solved = (reflections(problem), np.int32(problem.num_atoms)), solved_for(problem, places)
    maps = jax.ShapeDtypeStruct((1,) + (problem.grid_size,) * 3, np.float32)
    prepare = program(measure_all, maps, *data, atom_volume=problem.atom_volume)
    one_set = jax.ShapeDtypeStruct((1, solved.num_atoms, 3), np.float32)
    finish = program(finish_all, one_set, prepare.out_info, problem=solved)

    def run(positions, patterson):
        measured = prepare(np.asarray(patterson, np.float32)[None], *data)
        found = jax.device_get(finish(fill_places(positions, solved.num_atoms)[None], measured))
        return Finished(found.positions[0, : problem.num_atoms], found.r_factor[0], found.r_free[0])

    return run


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
