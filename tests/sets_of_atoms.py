"""Sets of atoms for tests of least squares and of rebuilding, and data that isolated spheres explain exactly."""

import itertools

import jax
import numpy as np

from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.least_squares import sphere_amplitudes
from patterson_jax.solving.reflections import Measured, reflections

PROBLEM = Problem(grid_size=16, num_atoms=3, box_edge=6.0)
LARGER = Problem(grid_size=24, num_atoms=5, box_edge=8.0)


def true_sets(problem, count, seed=0):
    """Atoms at least three voxels apart with mean zero, `(count, num_atoms, 3)`."""
    rng, half = np.random.default_rng(seed), problem.box_edge / 2

    def draw_one():
        while True:
            atoms = rng.uniform(-half, half, (problem.num_atoms, 3))
            pairs = itertools.combinations(atoms, 2)
            if all(np.linalg.norm(one - other) >= 3 for one, other in pairs):
                return atoms - np.mean(atoms, axis=0)

    return np.array([draw_one() for _ in range(count)], np.float32)


def displaced(atoms, distance, seed=0):
    """Each atom moved by that distance in a direction of its own."""
    moves = np.random.default_rng(seed).normal(size=atoms.shape)
    return (atoms + distance * moves / np.linalg.norm(moves, axis=-1, keepdims=True)).astype(np.float32)


def largest_error(found, true):
    """Largest distance of an atom from its true place, of the better of the two enantiomorphs, both about zero."""
    found = np.asarray(found)
    found = found - np.mean(found, axis=0)
    distances = [np.linalg.norm(true[:, None] - sign * found[None], axis=-1) for sign in (1, -1)]
    return min(max(each.min(axis=0).max(), each.min(axis=1).max()) for each in distances)


def used(problem):
    """Which places of an array of reflections have one."""
    held = reflections(problem)
    return np.arange(len(held.hkl)) < held.number


def count_within(problem, resolution):
    return int(np.sum(np.sum(reflections(problem).hkl ** 2, axis=-1)[used(problem)] <= resolution**2))


def sphere_model(positions, problem):
    held = reflections(problem)
    return sphere_amplitudes(positions, held.hkl, held.form_factors, problem.num_atoms, problem.grid_size)


amplitudes_of_spheres = jax.jit(lambda positions, problem: sphere_model(positions, problem)[0], static_argnums=1)


def spheres(atoms, problem):
    """The amplitudes of isolated spheres, `(length,)`: data that the model of the stages explains exactly."""
    return np.where(used(problem), amplitudes_of_spheres(atoms, problem), 0)


def with_amplitudes(observed, problem):
    """Data of these amplitudes `(…, length)`; least squares looks at nothing else."""
    observed = np.asarray(observed, np.float32)
    return Measured(np.zeros(observed.shape[:-1] + (1,) * 3), observed, reflections(problem), problem.num_atoms)
