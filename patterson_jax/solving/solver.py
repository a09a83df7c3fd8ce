"""Solves Patterson maps: atoms by any method, with a verdict.

In each attempt a method (`methods`) proposes sets of atoms; what follows is the same for all methods (`attempt`).
Attempts go on until the verdict (`cases`) is `solved` or the budget is spent.

The answer is one of two enantiomorphs: a set of atoms and its inverse have the same Patterson map.
"""

import dataclasses
import itertools
import operator
from collections.abc import Callable

import jax
import numpy as np
from jax import Array

from patterson_jax.errors import is_real, is_whole, require
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.attempt import Network, run_attempt
from patterson_jax.solving.cases import Case, Solution
from patterson_jax.solving.methods.registry import AUTO, attempts, method_names
from patterson_jax.solving.orientations import ORIENTATIONS
from patterson_jax.solving.programs import clock
from patterson_jax.solving.separation import SeparationSettings

ON_ACCELERATOR = 64  # maps that a GPU or TPU has at once


@dataclasses.dataclass(frozen=True)
class Search:
    """By which method to search, and for how long. Raises InputError.

    Attributes:
        method: 'network', 'least_squares', 'phase_retrieval', 'minimum_function', or 'auto', which uses all in turn.
        max_attempts: highest number of attempts for each map; each begins differently.
        max_seconds: for each map, without compilation; no attempt begins that is expected to end later. 0: no limit,
            and results do not depend on the machine's speed.
        orientations: number of orientations of the cell in which the network sees a map; its results are averaged. At
            most 24.
    """

    method: str = AUTO
    max_attempts: int = 12
    max_seconds: float = 0.0
    orientations: int = 1

    def __post_init__(self):
        names = method_names()
        require(self.method in names, 'method', self.method, f'one of {", ".join(names)}')
        several = is_whole(self.max_attempts) and self.max_attempts >= 1
        require(several, 'max_attempts', self.max_attempts, 'a whole number, 1 or more')
        limit = is_real(self.max_seconds) and self.max_seconds >= 0
        require(limit, 'max_seconds', self.max_seconds, 'a number of seconds, or 0 for no limit')
        most = len(ORIENTATIONS)
        fits = is_whole(self.orientations) and 1 <= self.orientations <= most
        require(fits, 'orientations', self.orientations, f'a whole number from 1 to {most}')


def solve_maps(
    keys: Array,
    pattersons: np.ndarray,
    problem: Problem,
    search: Search,
    separation: SeparationSettings,
    network: Network | None = None,
    progress: Callable[[int], None] = lambda done: None,
    at_once: int | None = None,
    places: int | None = None,
) -> list[Solution]:
    """Solves Patterson maps `(count, grid, grid, grid)`, origin at voxel (0, 0, 0), of any scale.

    Args:
        keys: `(count,)`, one key for each map; a map's solution depends on its own key alone.
        pattersons: the maps, on the host.
        problem: number and size of the atoms, inner box; noise and resolution of the maps.
        search: method and budget.
        separation: how sets are taken from the maps of the network and of the minimum function.
        network: for the methods `network` and `auto`; without it `auto` uses the classical methods.
        progress: is called with the number of maps that are done.
        at_once: highest number of maps that are solved together; None: one on a CPU, where more are no faster.
        places: highest number of atoms for which the programs are compiled, so that they serve smaller numbers too;
            None: the problem's number.

    Raises:
        InputError: no attempt at a map gave positions that are numbers.
    """
    cases = [Case(problem, places) for _ in range(len(pattersons))]
    active, at_once = list(range(len(cases))), at_once or cases_at_once()
    for method, number in itertools.islice(attempts(search.method, network is not None), search.max_attempts):
        for start in range(0, len(active), at_once):
            chunk = active[start : start + at_once]
            index = np.array(chunk + chunk[-1:] * (_program_size(len(chunk), at_once) - len(chunk)))
            given = keys[index], np.asarray(pattersons[index], np.float32)
            began = clock()
            found = run_attempt(method, number, problem, separation, network, *given, search.orientations, places)
            found = jax.device_get(found)
            seconds = (clock() - began) / len(chunk)
            for place, each in enumerate(chunk):
                cases[each].add(jax.tree.map(operator.itemgetter(place), found), method.name, method.starts, seconds)
        for each in active:
            cases[each].add_partners(pattersons[each])
        active = [each for each in active if not cases[each].is_done(search.max_seconds)]
        progress(len(cases) - len(active))
        if not active:
            break
    return [case.solution() for case in cases]


def cases_at_once() -> int:
    """How many maps to solve at once: a CPU has enough to do with one."""
    return 1 if jax.default_backend() == 'cpu' else ON_ACCELERATOR


def _program_size(count, at_once):
    """Number of maps of the program for `count` maps: a power of two, so that few maps use a small program."""
    return min(at_once, 1 << (count - 1).bit_length())
