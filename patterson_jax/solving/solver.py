"""Patterson map to atoms, by any method, with a verdict.

Every method proposes sets of atoms in attempts: the network and the minimum function by their maps, peaks and
separation; phase retrieval by its density; least squares by random starts. From there one path serves them all: each
set is refined, repaired where the first attempt did not do, and the best set and its rival, the best that differs from
it, are finished with the exact renderer. Attempts go on until the verdict is `solved` or the budget is spent.

The answer is one of two enantiomorphs: a set of atoms and its inverse have the same Patterson map.
"""

import dataclasses
import functools
import itertools
import math
import operator
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from patterson_jax.errors import InputError, is_real, is_whole, require
from patterson_jax.precision import exact_products
from patterson_jax.simulation.examples import network_input
from patterson_jax.simulation.homometry import homometric_partners
from patterson_jax.simulation.patterson import measured_frequencies, patterson_intensities
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.interpretation import interpret_map
from patterson_jax.solving.least_squares import (
    Finished,
    Stage,
    compact,
    finish,
    random_positions,
    refine,
    repair,
    same_atoms,
    stages_from_map,
    stages_from_random,
)
from patterson_jax.solving.minimum_function import minimum_map
from patterson_jax.solving.orientations import ORIENTATIONS, averaged_over_orientations
from patterson_jax.solving.phase_retrieval import (
    PhaseRetrievalSettings,
    centred_atoms,
    retrieve_density,
    touched_voxels,
)
from patterson_jax.solving.reflections import (
    absolute_scale,
    highest_resolution,
    observed_amplitudes,
)
from patterson_jax.solving.separation import SeparationSettings
from patterson_jax.solving.verdict import EXACT, judge

CLASSICAL_METHODS = ('least_squares', 'phase_retrieval', 'minimum_function')
METHODS = ('network', *CLASSICAL_METHODS, 'auto')
RANDOM_STARTS = 16  # of an attempt by least squares
KEPT_STARTS = 4  # of these, which go on beyond the coarse stages
VECTORS = 4  # of an attempt by the minimum function
EQUAL = 1e-3  # voxels within which proposals are the same
SAME = 0.5  # voxels within which atoms of two sets are the same
CLEARLY, ROUNDING = 0.999, 1e-5  # of R1, factor and more: a set with less takes the place of the same one with more
AS_GOOD = 1.05  # a set whose R1 is at most so many times the best's is an alternative
REPAIRS_PER_ATOM = 0.5
KEPT_SETS = 8
STARTS = {'network': 1, 'least_squares': RANDOM_STARTS, 'phase_retrieval': 1, 'minimum_function': VECTORS}
STREAMS = {'network': 0, 'least_squares': 1, 'phase_retrieval': 2, 'minimum_function': 3}  # of random numbers
ON_ACCELERATOR = 64  # maps that a GPU or TPU has at once


@dataclasses.dataclass(frozen=True)
class Search:
    """By which method to search, and for how long. Raises InputError.

    Attributes:
        method: 'network', 'least_squares', 'phase_retrieval', 'minimum_function', or 'auto', all in turn.
        max_attempts: at a map, each begins differently; they end when the verdict is `solved`.
        max_seconds: for a map, compilation apart; no attempt begins that might end later. 0: no limit, and results do
            not vary.
        orientations: of the cell in which the network is shown a map; its maps are averaged; 24 is all.
    """

    method: str = 'auto'
    max_attempts: int = 12
    max_seconds: float = 0.0
    orientations: int = 1

    def __post_init__(self):
        require(self.method in METHODS, 'method', self.method, f'one of {", ".join(METHODS)}')
        several = is_whole(self.max_attempts) and self.max_attempts >= 1
        require(several, 'max_attempts', self.max_attempts, 'a whole number, 1 or more')
        limit = is_real(self.max_seconds) and self.max_seconds >= 0
        require(limit, 'max_seconds', self.max_seconds, 'a number of seconds, or 0 for no limit')
        most = len(ORIENTATIONS)
        fits = is_whole(self.orientations) and 1 <= self.orientations <= most
        require(fits, 'orientations', self.orientations, f'a whole number from 1 to {most}')


class Network(NamedTuple):
    """A trained network: `apply(params, inputs)` gives density maps `(batch, grid, grid, grid)`.

    `trained_on` tells the grid and the input that it knows; None: those of the problem that is solved.
    """

    apply: Callable[[Any, Array], Array]
    params: Any
    trained_on: Problem | None = None


class Prediction(NamedTuple):
    """What the network made of a Patterson map.

    Attributes:
        density: `(grid, grid, grid)`, its map of both enantiomorphs.
        candidates: `(2 · num_peaks, 3)`, the peaks of the map, then their inverses, voxels from the box centre.
        heights: `(num_peaks,)`, density at the peaks.
    """

    density: Array
    candidates: Array
    heights: Array


class Proposal(NamedTuple):
    """Sets of atoms that a method proposes for one map: `positions` `(num_sets, num_atoms, 3)`, from a `prediction`."""

    positions: Array
    prediction: Prediction | None = None


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


@dataclasses.dataclass
class Found:
    """A set of atoms that attempts have found: positions `(num_atoms, 3)` and what tells how good they are."""

    positions: np.ndarray
    r_factor: float
    r_free: float
    agreeing: int
    method: str
    prediction: Prediction | None = None


@dataclasses.dataclass(frozen=True)
class Solution:
    """The answer to one Patterson map: one of two enantiomorphs.

    Attributes:
        positions: `(num_atoms, 3)`, voxels from the box centre.
        r_factor: R1 over the reflections that were refined against, up to `resolution`.
        r_free: R1 over the free ones.
        resolution: |h| up to which they go.
        verdict: 'solved', 'uncertain' or 'not solved'.
        alternatives: other sets, `(num_atoms, 3)` each, that explain the data as well; none is another's inverse.
        alternatives_searched: whether all sets homometric to the best were looked for; atoms as regular as a lattice
            have too many.
        rivals: the best sets that differ, alternatives among them.
        agreeing: how many starts came to these positions or their inverses.
        starts: how many were tried.
        method: that found them.
        prediction: what the network predicted, if the set is from there.
        seconds: that it took, the map's share where several are solved at once; compilation apart.
    """

    positions: np.ndarray
    r_factor: float
    r_free: float
    resolution: float
    verdict: str
    alternatives: tuple[np.ndarray, ...]
    alternatives_searched: bool
    rivals: tuple[Found, ...]
    agreeing: int
    starts: int
    method: str
    prediction: Prediction | None
    seconds: float


def solve_maps(
    keys: Array,
    pattersons: np.ndarray,
    problem: Problem,
    search: Search,
    separation: SeparationSettings,
    network: Network | None = None,
    progress: Callable[[int], None] = lambda done: None,
    at_once: int | None = None,
) -> list[Solution]:
    """Solves Patterson maps `(count, grid, grid, grid)`, origin at voxel (0, 0, 0), of any scale.

    Args:
        keys: `(count,)`, one key for each map; a map's solution depends on its own key alone.
        pattersons: the maps, on the host.
        problem: what they are of; its noise and resolution are those of the maps.
        search: method and budget.
        separation: how sets are taken from the maps of the network and of the minimum function.
        network: for the methods `network` and `auto`; without it `auto` has the classical methods.
        progress: is told how many maps are done.
        at_once: how many maps the device has at once, at most; None: one on CPU, where more are no faster.

    Raises:
        InputError: no attempt at a map gave positions that are numbers.
    """
    cases = [Case(problem) for _ in range(len(pattersons))]
    active, at_once = list(range(len(cases))), at_once or cases_at_once()
    for method, number in attempts(search, network is not None):
        predictor = network if method == 'network' else None
        for start in range(0, len(active), at_once):
            chunk = active[start : start + at_once]
            size = _program_size(len(chunk), at_once)
            run = compiled_attempt(
                method, number > 0, _noiseless(problem), separation, predictor, size, search.orientations
            )
            index = np.array(chunk + chunk[-1:] * (size - len(chunk)))
            chunk_keys = keys[index]
            began = time.perf_counter()
            result = jax.device_get(run(chunk_keys, np.int32(number), np.asarray(pattersons[index], np.float32)))
            seconds = (time.perf_counter() - began) / len(chunk)
            for place, each in enumerate(chunk):
                cases[each].add(jax.tree.map(operator.itemgetter(place), result), method, seconds)
        for each in active:
            cases[each].add_partners(pattersons[each])
        active = [each for each in active if not cases[each].is_done(search)]
        progress(len(cases) - len(active))
        if not active:
            break
    return [case.solution() for case in cases]


def cases_at_once() -> int:
    """How many maps to solve at once: a CPU has enough to do with one."""
    return 1 if jax.default_backend() == 'cpu' else ON_ACCELERATOR


def _program_size(count, at_once):
    """Maps of the program that takes so many: a power of two, so that the last survivors have a small one."""
    return min(at_once, 1 << (count - 1).bit_length())


def attempts(search: Search, has_network: bool) -> Iterator[tuple[str, int]]:
    """Which method comes next, and how many attempts it has had.

    `auto` asks the network once, because its map does not change, and then the classical methods in turn.
    """
    if search.method == 'auto':
        first = (('network', 0),) if has_network else ()
        turns = ((method, number) for number in itertools.count() for method in CLASSICAL_METHODS)
        return itertools.islice(itertools.chain(first, turns), search.max_attempts)
    return ((search.method, number) for number in range(search.max_attempts))


def compiled_attempt(
    method: str,
    repairs: bool,
    problem: Problem,
    separation: SeparationSettings,
    network: Network | None,
    at_once: int,
    orientations: int,
) -> Callable[[Array, np.int32, np.ndarray], Attempt]:
    """`attempt` for several maps at once, compiled, so that its first use takes no longer than others."""
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
    method: str,
    repairs: bool,
    problem: Problem,
    separation: SeparationSettings,
    density: Array | None = None,
) -> Attempt:
    """One attempt at one map by one method: sets proposed, refined, and the best of them finished.

    Args:
        key: of the map.
        number: of attempts that the method has had; each begins differently.
        patterson: `(grid, grid, grid)`, origin at voxel (0, 0, 0), of any scale.
        method: not `auto`.
        repairs: whether to move atoms that explain nothing.
        problem: what the map is of.
        separation: how sets are taken from maps.
        density: the network's map, `(grid, grid, grid)`, for the method `network`.
    """
    key = jax.random.fold_in(jax.random.fold_in(key, STREAMS[method]), number)
    patterson = absolute_scale(patterson, problem)
    observed = observed_amplitudes(patterson, problem)
    if method == 'least_squares':
        proposal = from_random_starts(key, observed, problem)
    elif method == 'phase_retrieval':
        proposal = from_phase_retrieval(key, patterson, problem)
    elif method == 'minimum_function':
        proposal = from_minimum_function(key, number, patterson, problem, separation)
    else:
        proposal = from_network(key, patterson, density, problem, separation)

    stages = later_stages(method, repairs, problem)

    def improve(positions):
        refined = refine(positions, observed, problem, stages)
        if repairs:
            rounds = math.ceil(REPAIRS_PER_ATOM * problem.num_atoms)
            refined = repair(refined.positions, observed, problem, rounds, stages[-1].resolution)
        return refined

    refined = jax.vmap(improve)(proposal.positions)
    misfits = jnp.where(jnp.isfinite(refined.misfit), refined.misfit, jnp.inf)
    best = refined.positions[jnp.argmin(misfits)]
    same = jax.vmap(lambda positions: same_atoms(positions, best, SAME))(refined.positions)
    chosen, has_rival = best[None], jnp.array(False)
    if len(misfits) > 1:
        rival = refined.positions[jnp.argmin(jnp.where(same, jnp.inf, misfits))]
        chosen, has_rival = jnp.stack([best, rival]), ~jnp.all(same)
    finished = jax.vmap(lambda positions: finish(positions, observed, problem))(chosen)
    agreeing = jnp.sum(same & independent(proposal.positions, method, number))
    return Attempt(finished, has_rival, agreeing, proposal.prediction)


def later_stages(method: str, repairs: bool, problem: Problem) -> list[Stage]:
    """In which stages the sets that a method proposes are refined.

    Phase retrieval and the minimum function put atoms where they are, so that coarse stages would only lead astray
    (of 20 atoms with noise of 30 % such refinement left 2 of 10 cases whole, the late stage all). A network's map may
    have wrong atoms, which coarse stages can mend; its later attempts, which begin with the same map, go the other way.
    """
    if method == 'least_squares' or (method == 'network' and not repairs):
        stages = stages_from_random(problem)
        return stages[1:] or stages  # random starts have been through the first
    return stages_from_map(problem)


def independent(positions: Array, method: str, number: Array | int) -> Array:
    """Which of the sets `(num_sets, num_atoms, 3)` that a method proposes are evidence of their own: `(num_sets,)`.

    The network's map is always the same one, so its later attempts are not; nor are sets of the minimum function that
    are equal, because where there are few vectors they come from the same one.
    """
    first = jnp.broadcast_to(jnp.asarray(number) == 0, len(positions))
    if method == 'network':
        return first
    if method == 'minimum_function':
        equal = jax.vmap(lambda one: jax.vmap(lambda other: same_atoms(one, other, EQUAL))(positions))(positions)
        return ~jnp.any(equal & np.tri(len(positions), k=-1, dtype=bool), axis=1)
    return jnp.ones_like(first)


def from_random_starts(key: Array, observed: Array, problem: Problem) -> Proposal:
    """Random positions, refined at low resolution; the best few of them."""

    def start(key):
        return refine(random_positions(key, problem), observed, problem, stages_from_random(problem)[:2])

    refined = jax.vmap(start)(jax.random.split(key, RANDOM_STARTS))
    misfits = jnp.where(jnp.isfinite(refined.misfit), refined.misfit, jnp.inf)
    return Proposal(refined.positions[jax.lax.top_k(-misfits, KEPT_STARTS)[1]])


def from_phase_retrieval(key: Array, patterson: Array, problem: Problem) -> Proposal:
    """The peaks of a density retrieved from random phases."""
    amplitudes = jnp.sqrt(jnp.maximum(patterson_intensities(patterson), 0))
    measured = measured_frequencies(problem.grid_size, problem.resolution)
    num_voxels = touched_voxels(problem.num_atoms, problem.atom_radius)
    density = retrieve_density(key, amplitudes, measured, num_voxels, PhaseRetrievalSettings()).density
    atoms = centred_atoms(density, problem.num_atoms, problem)
    return Proposal(compact(atoms, problem.grid_size)[None])


def from_minimum_function(
    key: Array, number: Array | int, patterson: Array, problem: Problem, separation: SeparationSettings
) -> Proposal:
    """Sets from the minimum functions over several vectors."""
    measured = jnp.asarray(measured_frequencies(problem.grid_size, problem.resolution))

    def over_vector(start):
        density = minimum_map(patterson, start, problem, measured)
        found = interpret_map(jax.random.fold_in(key, start), patterson, density, problem, separation)
        return compact(found.positions, problem.grid_size)

    return Proposal(jax.vmap(over_vector)(number * VECTORS + jnp.arange(VECTORS)))


def from_network(
    key: Array, patterson: Array, density: Array, problem: Problem, separation: SeparationSettings
) -> Proposal:
    """The set in the network's map."""
    found = interpret_map(key, patterson, density, problem, separation)
    prediction = Prediction(density, found.candidates, found.heights)
    return Proposal(compact(found.positions, problem.grid_size)[None], prediction)


class Case:
    """What has been found for one map so far."""

    def __init__(self, problem):
        self.problem = problem
        self.found: list[Found] = []
        self.partners: list[np.ndarray] = []
        self.complete = True
        self.starts, self.seconds, self.last_seconds = 0, 0.0, 0.0

    def add(self, attempt: Attempt, method: str, seconds: float) -> None:
        """Takes in the sets of an attempt that are numbers; sets that were found before gain in agreement."""
        self.seconds, self.last_seconds = self.seconds + seconds, seconds
        self.starts += STARTS[method]
        finished = [[part[place] for part in attempt.finished] for place in range(1 + bool(attempt.has_rival))]
        for (positions, r_factor, r_free), agreeing in zip(finished, (int(attempt.agreeing), 1), strict=False):
            if np.all(np.isfinite(positions)) and math.isfinite(r_factor):
                self._merge(Found(positions, float(r_factor), float(r_free), agreeing, method, attempt.prediction))
        self.found.sort(key=lambda each: each.r_factor)
        del self.found[KEPT_SETS:]

    def _merge(self, new):
        for place, old in enumerate(self.found):
            if _same(old.positions, new.positions):
                # Whose atoms are shown is not to depend on rounding.
                kept = new if new.r_factor < CLEARLY * old.r_factor - ROUNDING else old
                self.found[place] = dataclasses.replace(kept, agreeing=old.agreeing + new.agreeing)
                return
        self.found.append(new)

    def add_partners(self, patterson: np.ndarray) -> None:
        """Notes sets that are homometric to a set that seems to solve the map, if they explain the map as well."""
        if self.verdict(searched=True) != 'solved':
            return
        began = time.perf_counter()
        partners = homometric_partners(self.found[0].positions, SAME)
        self.seconds += time.perf_counter() - began
        self.complete = partners.complete
        if not partners.sets:
            return
        run = compiled_finish(_noiseless(self.problem))
        began = time.perf_counter()
        for partner in partners.sets:
            centred = np.asarray(partner - np.mean(partner, axis=0), np.float32)
            finished = jax.device_get(run(centred, np.asarray(patterson, np.float32)))
            if finished.r_factor <= self._as_good():
                self.partners.append(finished.positions)
        self.seconds += time.perf_counter() - began

    def _as_good(self):
        return max(AS_GOOD * self.found[0].r_factor, EXACT)

    def alternatives(self) -> tuple[np.ndarray, ...]:
        """Sets that explain the data as well as the best."""
        others = [each.positions for each in self.found[1:] if each.r_factor <= self._as_good()]
        for partner in self.partners:
            if not any(_same(partner, each) for each in others):
                others.append(partner)
        return tuple(others)

    def verdict(self, searched: bool = False) -> str:
        """The verdict; `searched`, as if alternatives had been looked for and none found."""
        if not self.found:
            return 'not solved'
        best, rivalled = self.found[0], not searched and bool(self.alternatives() or not self.complete)
        return judge(best.r_factor, best.r_free, best.agreeing, rivalled, self.problem)

    def is_done(self, search: Search) -> bool:
        """Whether the map is solved, if ambiguously, or another attempt as long as the last might end too late."""
        spent = search.max_seconds and self.seconds + self.last_seconds > search.max_seconds
        return bool(spent) or self.verdict(searched=True) == 'solved'

    def solution(self) -> Solution:
        """What was found. Raises InputError if no start gave numbers."""
        if not self.found:
            raise InputError(f'none of {self.starts} starts gave positions that are numbers')
        best = self.found[0]
        return Solution(
            positions=best.positions,
            r_factor=best.r_factor,
            r_free=best.r_free,
            resolution=highest_resolution(self.problem),
            verdict=self.verdict(),
            alternatives=self.alternatives(),
            alternatives_searched=self.complete,
            rivals=tuple(self.found[1:]),
            agreeing=best.agreeing,
            starts=self.starts,
            method=best.method,
            prediction=best.prediction,
            seconds=self.seconds,
        )


@functools.lru_cache(maxsize=16)
def compiled_finish(problem: Problem) -> Callable[[np.ndarray, np.ndarray], Finished]:
    """`finish` for positions `(num_atoms, 3)` and their map, compiled, for no use to take longer."""

    def run(positions, patterson):
        return finish(positions, observed_amplitudes(absolute_scale(patterson, problem), problem), problem)

    positions = jax.ShapeDtypeStruct((problem.num_atoms, 3), np.float32)
    patterson = jax.ShapeDtypeStruct((problem.grid_size,) * 3, np.float32)
    return jax.jit(run).lower(positions, patterson).compile()


def _noiseless(problem):
    """The same problem for all that noise does not change, so that it is compiled once."""
    return dataclasses.replace(problem, noise=0.0)


_same_atoms = jax.jit(functools.partial(same_atoms, tolerance=SAME))


def _same(first, second):
    return bool(_same_atoms(first - np.mean(first, axis=0), second - np.mean(second, axis=0)))
