"""Equal atoms at random in an oblique cell, solved from their reflections by the solver for crystals.

    python -m benchmarks.gaussian_atoms

This is the paper's problem without its cube and its empty box: 20 Gaussian atoms fill a cell of 364 Å³, at least 1.2 Å
apart, with amplitudes to 0.8 Å and 5 % noise. The atoms have no chemistry. The verdict tests the chemistry, so that it
stays `uncertain`.
"""

import argparse
import itertools
import time
from pathlib import Path

import numpy as np

import patterson_jax as pj
from patterson_jax.crystal.reflections import Measurements
from patterson_jax.crystal.structure import CrystalSolution
from patterson_jax.writing import write_json

CELL = pj.UnitCell(6.3, 7.3, 8.2, 85.0, 97.0, 103.0)
NUM_ATOMS, APART = 20, 1.2  # Å
RESOLUTION = 0.8  # Å
NOISE = 0.05  # of |F|
WIDTH = 4.0  # B of the atoms, Å²
ELECTRONS = 6.0
RIGHT = 0.05  # Å
IMAGES = np.array(list(itertools.product((-1, 0, 1), repeat=3)))


def draw_atoms(generator: np.random.Generator) -> np.ndarray:
    """Draws fractional coordinates `(NUM_ATOMS, 3)` one by one."""
    atoms = np.zeros((0, 3))
    while len(atoms) < NUM_ATOMS:
        atom = generator.random(3)
        if not len(atoms) or np.min(distances(atom[None], atoms)) >= APART:
            atoms = np.concatenate([atoms, atom[None]])
    return atoms


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Distances `(n, m)` in Å between the nearest images of fractional coordinates `(n, 3)` and `(m, 3)`."""
    vectors = first[:, None] - second[None]
    vectors = (vectors - np.round(vectors))[:, :, None] + IMAGES
    return np.min(np.linalg.norm(vectors @ CELL.orthogonalization.T, axis=-1), axis=-1)


def measure(atoms: np.ndarray, generator: np.random.Generator) -> Measurements:
    """F² with noise of all reflections to the resolution, one of each Friedel pair."""
    limits = [int(edge / RESOLUTION) + 1 for edge in CELL.parameters[:3]]
    every = itertools.product(*(range(-limit, limit + 1) for limit in limits))
    hkl = np.array([each for each in every if each > (0, 0, 0)])
    spacings = CELL.inverse_spacings(hkl)
    hkl, spacings = hkl[spacings <= 1 / RESOLUTION], spacings[spacings <= 1 / RESOLUTION]
    factors = np.sum(np.exp(2j * np.pi * (hkl @ atoms.T)), axis=1)
    amplitudes = ELECTRONS * np.exp(-WIDTH / 4 * spacings**2) * np.abs(factors)
    amplitudes *= 1 + NOISE * generator.standard_normal(len(hkl))
    intensities = amplitudes**2
    return Measurements(hkl, intensities, 2 * NOISE * intensities + 1e-3 * np.mean(intensities))


def largest_error(found: np.ndarray, true: np.ndarray) -> float:
    """The largest distance in Å between paired atoms of two sets `(n, 3)`, at the best origin and hand.

    It is infinite if the numbers of atoms differ, or if two atoms are nearest to the same one.
    """
    if len(found) != len(true):
        return float('inf')
    best = float('inf')
    for hand in (1, -1):
        for origin in true - hand * found[:1]:
            matched = distances(hand * found + origin, true)
            pairs = np.argmin(matched, axis=1)
            if len(set(pairs)) == len(true):
                shifts = true[pairs] - (hand * found + origin)
                mean = np.mean(shifts - np.round(shifts), axis=0)
                matched = distances(hand * found + origin + mean, true)
                best = min(best, float(np.max(matched[np.arange(len(true)), pairs])))
    return best


def solve(seed: int) -> tuple[CrystalSolution, float]:
    """Solves a case; returns the solution and the largest error of its atoms in Å."""
    generator = np.random.default_rng(seed)
    atoms = draw_atoms(generator)
    data = measure(atoms, generator)
    solution = pj.solve_crystal(
        data.hkl, data.intensities, data.sigmas, CELL, wavelength=0.71073, formula=f'C{NUM_ATOMS}', seed=seed
    )
    found = np.array([atom.fract for atom in solution.atoms]).reshape(-1, 3)
    return solution, largest_error(found, atoms)


def main() -> None:
    """Solves cases, prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cases', type=int, default=20)
    parser.add_argument('--json', type=Path, default=Path('benchmarks/gaussian-atoms-cpu.json'))
    options = parser.parse_args()
    rows = []
    for seed in range(options.cases):
        began = time.perf_counter()
        solution, error = solve(seed)
        rows.append(
            {
                'case': seed,
                'right': error <= RIGHT,
                'largest_error': round(error, 4) if np.isfinite(error) else None,
                'verdict': solution.verdict,
                'r_factor': solution.r_factor,
                'seconds': round(time.perf_counter() - began, 2),
            }
        )
        print(rows[-1], flush=True)
    right = sum(row['right'] for row in rows)
    print(f'{right} of {len(rows)} right: every atom within {RIGHT:g} Å')
    write_json(options.json, {'right': right, 'cases': rows})


if __name__ == '__main__':
    main()
