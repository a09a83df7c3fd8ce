"""Solves invented molecular crystals that nearly have an inversion centre, and counts which are called solved with it.

    python -m benchmarks.near_centres
    python -m benchmarks.near_centres --without-check    # as if weak reflections were not looked at; another file

A crystal of `invented_crystals` in a group with a centre loses it: of each molecule and its image by the centre, which
become independent, the second is turned about its middle, by so much that its atoms move by some distance (root mean
square, without hydrogen). With 0 Å the crystal has its centre, and the group with it is right. Data have the errors of
`benchmarks.crystal_verdicts` at 0.75 to 1.0 Å. All work is from intensities and formula alone; a group is right if its
number is.

Printed as Markdown and written beside this file, to `near_centres.json` or `near_centres_without_check.json`, or to
`--json`.
"""

import argparse
import collections
import dataclasses
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
from scipy.spatial.transform import Rotation

from benchmarks.crystal_verdicts import random_recipe
from patterson_jax.compilation_cache import enable_compilation_cache
from patterson_jax.errors import exit_on_errors
from patterson_jax.simulation.invented_crystals import InventedCrystal, Recipe, anisotropic_structure_factors, invent
from patterson_jax.solving import crystal_groups
from patterson_jax.solving.crystal_solver import solve_crystal
from patterson_jax.solving.spacegroup import subgroups_without_centre
from patterson_jax.writing import markdown_table, write_json

DISTANCES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)  # Å
NUMBERS = {'P-1': (2, (1,)), 'P21/c': (14, (4, 7))}  # of a group, and of its subgroups without a centre
ATOMS = 14  # of a molecule, at most
SEED = 200_000  # of the first crystal; the streams of crystal_verdicts are below


def without_centre(
    crystal: InventedCrystal, recipe: Recipe, distance: float, generator: np.random.Generator
) -> InventedCrystal:
    """A crystal whose second molecules are turned, in a group without a centre.

    Args:
        crystal: with a centre.
        recipe: of the crystal; the errors of its data are the same.
        distance: Å, by which atoms move.
        generator: of the subgroup, the axis of the turn, and errors.
    """
    data, group = crystal.data, crystal.space_group
    groups = subgroups_without_centre(group)
    lower = groups[generator.integers(len(groups))]
    second = _turned(crystal, np.array(group.centre) - crystal.positions, distance, generator)
    positions = np.concatenate([crystal.positions, second])
    displacements, occupancies = np.tile(crystal.displacements, (2, 1, 1)), np.tile(crystal.occupancies, 2)
    factors = anisotropic_structure_factors(
        data.hkl, data.cell, lower, crystal.elements * 2, positions, displacements, occupancies
    )
    intensities = np.abs(factors) ** 2
    sigmas = np.hypot(recipe.error * intensities, recipe.background * intensities.mean())
    measured = intensities + sigmas * generator.standard_normal(len(sigmas))
    data = dataclasses.replace(data, intensities=measured, sigmas=sigmas)
    return InventedCrystal(data, lower, crystal.elements * 2, positions, displacements, occupancies, factors)


def _turned(crystal, positions, distance, generator):
    """A molecule turned about its middle, so that its atoms without hydrogen move by a distance."""
    edges = crystal.data.cell.orthogonalization
    places = positions @ edges.T
    heavy = np.array([element != 'H' for element in crystal.elements])
    middle = places[heavy].mean(axis=0)
    axis = generator.standard_normal(3)
    axis /= np.linalg.norm(axis)
    arms = np.linalg.norm(np.cross(axis, places[heavy] - middle), axis=1)
    angle = distance / np.sqrt(np.mean(arms**2))
    turned = middle + Rotation.from_rotvec(angle * axis).apply(places - middle)
    return turned @ np.linalg.inv(edges).T


def measure(index: int, distance: float, starts: int) -> dict:
    """Solves one crystal; the entry of the JSON file."""
    name = tuple(NUMBERS)[index % len(NUMBERS)]
    recipe = random_recipe(np.random.default_rng([SEED + index, 1]), index)
    recipe = dataclasses.replace(recipe, group=name, num_atoms=min(recipe.num_atoms, ATOMS), special=False)
    crystal = invent(recipe, SEED + index)
    crystal = without_centre(crystal, recipe, distance, np.random.default_rng([SEED + index, 2]))
    whole, parts = NUMBERS[name]
    known = parts[int(np.any(np.linalg.det(crystal.space_group.operations[0]) < 0))] if distance else whole
    began = time.process_time()
    solution = solve_crystal(crystal.data, seed=index, max_starts=starts)
    found = solution.space_group
    return {
        'index': index,
        'distance': distance,
        'known_number': known,
        'd_min': recipe.d_min,
        'disorder': recipe.disorder,
        'found': found and found.hm,
        'group_right': bool(found and found.number == known),
        'centre': bool(found and found.has_centre),
        'verdict': solution.verdict,
        'r_factor': solution.r_factor,
        'reasons': solution.reasons,
        'cpu_seconds': round(time.process_time() - began, 2),
    }


def table(results: list[dict]) -> str:
    """Counts by distance, as Markdown."""
    counts = collections.Counter((each['distance'], each['verdict'], each['group_right']) for each in results)
    kinds = [(verdict, right) for verdict in ('solved', 'uncertain', 'not solved') for right in (True, False)]
    rows = [
        (f'{distance:.2f}', *(counts[distance, *kind] for kind in kinds))
        for distance in dict.fromkeys(each['distance'] for each in results)
    ]
    heads = [f'{verdict}, group {"right" if right else "wrong"}' for verdict, right in kinds]
    return markdown_table(('moved by, Å', *heads), rows)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.near_centres', description=__doc__.partition('\n')[0])
    parser.add_argument('--crystals', type=int, default=16, help='for each distance')
    parser.add_argument('--starts', type=int, default=8, help='for a crystal, at most')
    parser.add_argument('--without-check', action='store_true', help='as if weak reflections were not looked at')
    parser.add_argument('--json', type=Path, help='to write')
    options = parser.parse_args()
    checked = not options.without_check
    name = 'near_centres.json' if checked else 'near_centres_without_check.json'
    path = options.json or Path(__file__).with_name(name)
    with exit_on_errors():
        enable_compilation_cache()
        results: list[dict] = []
        limit = crystal_groups.WEAK_DOUBTED if checked else 0.0
        with mock.patch.object(crystal_groups, 'WEAK_DOUBTED', limit):
            for distance in DISTANCES:
                for index in range(options.crystals):
                    results.append(measure(index, distance, options.starts))
                    print(results[-1], file=sys.stderr, flush=True)
                    write_json(path, {'checked': checked, 'starts': options.starts, 'crystals': results})
        print(table(results))


if __name__ == '__main__':
    main()
