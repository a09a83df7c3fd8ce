"""The interface between the solver and its methods, which propose sets of atoms for a map."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.least_squares import Stages
from patterson_jax.solving.reflections import Measured
from patterson_jax.solving.separation import SeparationSettings


class Prediction(NamedTuple):
    """The network's result for a Patterson map.

    Attributes:
        density: `(grid, grid, grid)`, its map of both enantiomorphs.
        candidates: `(2 · num_peaks, 3)`, the peaks of the map, then their inverses, voxels from the box centre.
        heights: `(num_peaks,)`, density at the peaks.
    """

    density: Array
    candidates: Array
    heights: Array


class Request(NamedTuple):
    """The input of a method, which is asked for sets of atoms for one map.

    Attributes:
        key: of the random numbers of this attempt.
        number: how many attempts the method has had.
        measured: the data.
        predicted: the network's map `(grid, grid, grid)`; None for a method that needs none.
        problem: what the map is of; a set has a place for each of its atoms.
        separation: how sets are taken from maps of both enantiomorphs.
    """

    key: Array
    number: Array
    measured: Measured
    predicted: Array | None
    problem: Problem
    separation: SeparationSettings


class Proposal(NamedTuple):
    """Sets of atoms that a method proposes for one map.

    Attributes:
        positions: `(num_sets, places, 3)`.
        stages: of the refinement of each set. Methods with the same number of stages share a program.
        prediction: of the network, if the sets are from its map.
    """

    positions: Array
    stages: Stages
    prediction: Prediction | None = None


def every_set(positions: Array, number: Array) -> Array:
    """Each of the sets `(num_sets, num_atoms, 3)` of any attempt is evidence of its own: `(num_sets,)`."""
    return jnp.ones(len(positions), bool)


@dataclasses.dataclass(frozen=True)
class Method:
    """A way of proposing sets of atoms for a map. JAX must be able to trace its functions.

    Attributes:
        name: by which it is asked for.
        stream: of its random numbers; no other method has the same, and it never changes.
        starts: sets that an attempt begins with.
        propose: gives the sets of an attempt, no more than `starts`.
        independent: which of the sets `(num_sets, num_atoms, 3)` of an attempt, the second argument its number, are
            evidence of their own: `(num_sets,)`.
        separates: whether it takes sets from maps of both enantiomorphs; only then it depends on how that is done.
        needs_network: whether it is given the network's map.
        repeats: whether further attempts begin elsewhere; if not, `auto` asks it once, before the others.
    """

    name: str
    stream: int
    starts: int
    propose: Callable[[Request], Proposal]
    independent: Callable[[Array, Array], Array] = every_set
    separates: bool = False
    needs_network: bool = False
    repeats: bool = True
