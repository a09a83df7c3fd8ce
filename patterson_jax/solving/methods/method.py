"""What a way of proposing sets of atoms is to the solver, whichever it is."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.least_squares import Stage, stages_from_map
from patterson_jax.solving.separation import SeparationSettings


class Measured(NamedTuple):
    """What a method is given of one map.

    Attributes:
        patterson: `(grid, grid, grid)`, origin at voxel (0, 0, 0), on the absolute scale: its sum is F(000)².
        observed: |F| of its reflections, `(num_reflections,)`, as `solving.reflections` orders them.
        predicted: the network's map, `(grid, grid, grid)`, for a method that needs the network.
    """

    patterson: Array
    observed: Array
    predicted: Array | None = None


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


def every_set(positions: Array, number: Array) -> Array:
    """Each of the sets `(num_sets, num_atoms, 3)` of any attempt is evidence of its own: `(num_sets,)`."""
    return jnp.ones(len(positions), bool)


def late_stages(repairs: bool, problem: Problem) -> list[Stage]:
    """Stages for sets that have their atoms where they are: coarse ones would only lead astray.

    Of 20 atoms with noise of 30 % coarse refinement left 2 of 10 cases whole, the late stage all.
    """
    return stages_from_map(problem)


@dataclasses.dataclass(frozen=True)
class Method:
    """A way of proposing sets of atoms for a map. What it consists of are functions that JAX can trace.

    Attributes:
        name: by which it is asked for.
        stream: of its random numbers; no other method has the same, and it never changes.
        starts: sets that an attempt begins with.
        propose: from a key, how many attempts the method has had, what is measured, the problem, and how sets are
            taken from maps of both enantiomorphs, to the sets of an attempt, no more than `starts`.
        stages: in which the sets are refined, from whether atoms that explain nothing are moved, and the problem.
        independent: which of the sets `(num_sets, num_atoms, 3)` of an attempt, the second argument its number, are
            evidence of their own: `(num_sets,)`.
        separates: whether it takes sets from maps of both enantiomorphs; only then it depends on how that is done.
        needs_network: whether it is given the network's map.
        repeats: whether further attempts begin elsewhere; if not, `auto` asks it once, before the others.
    """

    name: str
    stream: int
    starts: int
    propose: Callable[[Array, Array, Measured, Problem, SeparationSettings], Proposal]
    stages: Callable[[bool, Problem], list[Stage]] = late_stages
    independent: Callable[[Array, Array], Array] = every_set
    separates: bool = False
    needs_network: bool = False
    repeats: bool = True
