"""What attempts have found for one map: sets of atoms merged and ordered, alternatives, the verdict, the answer."""

import dataclasses
import functools
import math

import jax
import numpy as np

from patterson_jax.errors import InputError
from patterson_jax.simulation.homometry import homometric_partners
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.atom_sets import same_atoms
from patterson_jax.solving.attempt import SAME, Attempt, finish_set
from patterson_jax.solving.methods.method import Prediction
from patterson_jax.solving.programs import clock
from patterson_jax.solving.reflections import highest_resolution
from patterson_jax.solving.verdict import EXACT, judge

CLEARLY, ROUNDING = 0.999, 1e-5  # of R1, factor and more: a set with less takes the place of the same one with more
AS_GOOD = 1.05  # a set whose R1 is at most so many times the best's is an alternative
KEPT_SETS = 8


@dataclasses.dataclass(frozen=True)
class Found:
    """A set of atoms that attempts have found, one of two enantiomorphs.

    Attributes:
        positions: `(num_atoms, 3)`, voxels from the box centre.
        r_factor: R1 over the reflections that were refined against.
        r_free: R1 over the free ones.
        agreeing: how many starts came to these positions or their inverses.
        method: that found them.
        prediction: what the network predicted, if the set is from there.
    """

    positions: np.ndarray
    r_factor: float
    r_free: float
    agreeing: int
    method: str
    prediction: Prediction | None


@dataclasses.dataclass(frozen=True)
class Solution(Found):
    """The answer to one Patterson map: the best set of atoms that was found, and what is known of it.

    Attributes, beside those of `Found`:
        resolution: |h| up to which the reflections go.
        verdict: 'solved', 'uncertain' or 'not solved'.
        alternatives: other sets, `(num_atoms, 3)` each, that explain the data as well; none is another's inverse.
        alternatives_searched: whether all sets homometric to the best were looked for; atoms as regular as a lattice
            have too many.
        rivals: the best sets that differ, alternatives among them.
        starts: how many were tried.
        seconds: of the search, without compilation; if several maps are solved at once, the map's share.
    """

    resolution: float
    verdict: str
    alternatives: tuple[np.ndarray, ...]
    alternatives_searched: bool
    rivals: tuple[Found, ...]
    starts: int
    seconds: float


class Case:
    """The sets that have been found for one map so far.

    Args:
        problem: of the map.
        places: number of atoms for which the programs have room; None: that of the problem.
    """

    def __init__(self, problem: Problem, places: int | None = None):
        self.problem, self.places = problem, places
        self.found: list[Found] = []
        self.partners: list[np.ndarray] = []
        self.complete = True
        self.starts, self.seconds, self.last_seconds = 0, 0.0, 0.0

    def add(self, attempt: Attempt, method: str, starts: int, seconds: float) -> None:
        """Takes in the sets of an attempt that are numbers; sets that were found before gain in agreement.

        Args:
            attempt: for this map alone.
            method: its name.
            starts: sets that the attempt began with.
            seconds: that it took.
        """
        self.seconds, self.last_seconds = self.seconds + seconds, seconds
        self.starts += starts
        finished = attempt.finished[: 1 + bool(attempt.has_rival)]
        for (places, r_factor, r_free), agreeing in zip(finished, (int(attempt.agreeing), 1), strict=False):
            positions = np.asarray(places)[: self.problem.num_atoms]
            if np.all(np.isfinite(positions)) and math.isfinite(r_factor):
                merits = float(r_factor), float(r_free), agreeing
                self._merge(Found(positions, *merits, method, attempt.prediction))
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
        began = clock()
        partners = homometric_partners(self.found[0].positions, SAME)
        self.complete = partners.complete
        for partner in partners.sets:
            centred = np.asarray(partner - np.mean(partner, axis=0), np.float32)
            finished = finish_set(centred, patterson, self.problem, self.places)
            if finished.r_factor <= self._as_good():
                self.partners.append(np.asarray(finished.positions))
        self.seconds += clock() - began

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

    def is_done(self, max_seconds: float) -> bool:
        """Whether the map is solved, perhaps ambiguously, or another attempt as long as the last might end too late.

        No limit is a `max_seconds` of 0.
        """
        spent = max_seconds and self.seconds + self.last_seconds > max_seconds
        return bool(spent) or self.verdict(searched=True) == 'solved'

    def solution(self) -> Solution:
        """What was found. Raises InputError if no start gave numbers."""
        if not self.found:
            raise InputError(f'none of {self.starts} starts gave positions that are numbers')
        return Solution(
            **vars(self.found[0]),
            resolution=highest_resolution(self.problem),
            verdict=self.verdict(),
            alternatives=self.alternatives(),
            alternatives_searched=self.complete,
            rivals=tuple(self.found[1:]),
            starts=self.starts,
            seconds=self.seconds,
        )


_same_atoms = jax.jit(functools.partial(same_atoms, tolerance=SAME))


def _same(first, second):
    return bool(_same_atoms(first - np.mean(first, axis=0), second - np.mean(second, axis=0)))
