"""The learned projection on a crystal: passes through a trained network, in place of elimination or beside it.

Where data reach 1.1 Å, elimination sharpens a map to atoms. At lower resolution there is less than a σ between an atom
and the ripples of its neighbours, and elimination keeps both. A network that knows bonds and rings tells them apart.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import gemmi
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from patterson_jax.crystal.grid import Grid
from patterson_jax.crystal.reflections import sphere
from patterson_jax.crystal.structure import CrystalData
from patterson_jax.precision import exact_products
from patterson_jax.solving.crystal_phasing import Crystal, Sharpen, eliminated
from patterson_jax.solving.learned_projection import Projected, project

PASSES = 16  # in place of an elimination
LAST_LIGHT = 10  # atomic number up to which elements are light, so that the network may work alone
VOXEL = 0.48  # Å, in the middle of what the network has learned from
EVEN_SIZES = tuple(size for size in range(8, 321, 2) if 60**8 % size == 0)  # with no other factors than 2, 3 and 5
MEAN_OF_NORMAL = math.sqrt(2 / math.pi)  # of the size of a number of standard deviation 1


class Told(NamedTuple):
    """The inputs of a network for a crystal, beside the map.

    Attributes:
        axes: `(3, 3)`, edges of the cell along the axes of the grid, Å; a row each.
        d_min: resolution of the data, Å, `()`.
        noise: relative error of the amplitudes, `()`.
        completeness: share of the reflections to `d_min` that are measured, `()`.
    """

    axes: Array
    d_min: Array
    noise: Array
    completeness: Array


@dataclasses.dataclass(frozen=True)
class Projection:
    """A trained network.

    Attributes:
        predict: from weights, a map `shape` of standard deviation 1 and what is told of the crystal, to a map of atoms;
            programs are compiled once for functions that are equal.
        weights: of the network.
    """

    predict: Callable[[Any, Array, Told], Array]
    weights: Any


@dataclasses.dataclass(frozen=True)
class CrystalProjection:
    """A trained network on a crystal.

    Attributes:
        projection: the network.
        told: of the crystal.
        hkl: `(n, 3)`, of the crystal in P1, one of each Friedel pair.
        grid: for the network's maps.
        amplitudes: E values on its half grid.
    """

    projection: Projection
    told: Told
    hkl: np.ndarray
    grid: Grid
    amplitudes: np.ndarray

    def passed(self, factors: np.ndarray, passes: int) -> tuple[np.ndarray, Projected]:
        """Factors `(n,)` of the reflections after passes through the network, and what is told of the last of them."""
        placed = self.grid.place(self.hkl, factors.astype(np.complex64))
        predict, weights = self.projection.predict, self.projection.weights
        projected = _project(predict, weights, self.told, placed, self.amplitudes, self.grid.shape, np.int32(passes))
        return self.grid.take(np.asarray(projected.factors), self.hkl), projected


@functools.partial(jax.jit, static_argnums=(0, 5))
@exact_products
def _project(predict, weights, told, factors, amplitudes, shape, passes):
    return project(lambda density: predict(weights, density, told), factors, amplitudes, shape, passes)


def projection_on(crystal: Crystal, projection: Projection) -> CrystalProjection:
    """The network on a crystal from `prepare_crystal`."""
    expanded, axes = crystal.expanded, crystal.grid.axes
    edges = expanded.cell.orthogonalization
    grid = network_grid(expanded.hkl, np.linalg.norm(edges, axis=0), axes)
    d_min = 1 / expanded.inverse_spacings.max()
    errors = expanded.sigmas / (2 * np.maximum(expanded.intensities, expanded.sigmas))  # relative, of amplitudes
    noise = MEAN_OF_NORMAL * np.sum(errors * crystal.normalised) / np.sum(crystal.normalised)
    completeness = min(1.0, len(expanded.hkl) / len(sphere(expanded.cell, d_min)))
    words = (edges.T[list(axes)], d_min, noise, completeness)
    told = Told(*(jnp.asarray(each, jnp.float32) for each in words))
    placed = grid.place(expanded.hkl, crystal.normalised.astype(np.float32))
    return CrystalProjection(projection, told, expanded.hkl, grid, placed)


def sharpeners(crystal: Crystal, projection: Projection | None) -> tuple[Sharpen, ...]:
    """What finishes the maps of a crystal: elimination, passes through the network if there is one, or both.

    The network spoils some maps with heavy atoms. If the formula has none, it works alone.
    """
    if not projection:
        return (eliminated,)
    learned = sharpened_by(projection_on(crystal, projection))
    return (learned,) if has_light_elements_alone(crystal.data) else (eliminated, learned)


def has_light_elements_alone(data: CrystalData) -> bool:
    """Whether a formula is known, and has no elements beyond neon."""
    formula = data.formula or {}
    return bool(formula) and all(gemmi.Element(each).atomic_number <= LAST_LIGHT for each in formula)


def sharpened_by(learned: CrystalProjection, passes: int = PASSES, judged: bool = True) -> Sharpen:
    """Passes through the network on the crystal, in the form of low-density elimination.

    Args:
        learned: the network on the crystal.
        passes: how many.
        judged: whether skewness and disagreement of amplitudes are those after a further elimination, so that they
            compare with those of maps that were finished without the network; else they are those of the network's
            map. The phases are the network's in either case.
    """

    def sharpen(factors, crystal):
        hkl = crystal.expanded.hkl
        taken, projected = learned.passed(crystal.grid.take(np.asarray(factors), hkl), passes)
        placed = crystal.grid.place(hkl, taken)
        if not judged:
            return placed, projected.skewness, projected.disagreement
        _, skewness, disagreement = eliminated(placed, crystal)
        return placed, skewness, disagreement

    return sharpen


def network_grid(hkl: np.ndarray, edges: np.ndarray, axes: tuple[int, int, int]) -> Grid:
    """A grid of even sizes whose voxels are nearest to `VOXEL`, on which no reflection reaches the border.

    Args:
        hkl: `(n, 3)`.
        edges: `(3,)` of the cell, Å.
        axes: edges of the cell along the axes of the grid.
    """
    needed = 2 * np.abs(hkl).max(axis=0) + 2
    sizes = []
    for axis in axes:
        possible = [size for size in EVEN_SIZES if size >= needed[axis]] or [2 * -(-int(needed[axis]) // 2)]
        sizes.append(min(possible, key=lambda size: abs(np.log(edges[axis] / size / VOXEL))))
    return Grid((sizes[0], sizes[1], sizes[2]), axes)
