"""Solves one Patterson map of a user: checks it, restores F(000)², finds the number of atoms if it is not known."""

import contextlib
import dataclasses

import numpy as np

from patterson_jax.errors import InputError, is_real, require
from patterson_jax.simulation.examples import example_key, stream_key
from patterson_jax.simulation.patterson import frequencies, measured_frequencies, sphere_factor
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.attempt import Network
from patterson_jax.solving.cases import Solution
from patterson_jax.solving.input_maps import checked_patterson, cut_map, fit_problem, restore_origin_term
from patterson_jax.solving.programs import unload_in_time
from patterson_jax.solving.reflections import check_enough
from patterson_jax.solving.separation import SeparationSettings
from patterson_jax.solving.solver import Search, solve_maps
from patterson_jax.solving.verdict import EXACT

NUMBER_UNCERTAINTY, MOST_NEIGHBOURS = 0.2, 3  # of the first estimate of the number of atoms, in parts and in atoms


@dataclasses.dataclass(frozen=True)
class SolveSettings(Search):
    """How to solve a map: a search, and what is known of the map. Raises InputError.

    Attributes:
        resolution: highest measured |h|; None: it is found from the map.
        num_atoms_known: whether the map has the problem's number of atoms; if not, likely numbers are tried.
    """

    resolution: float | None = None
    num_atoms_known: bool = True

    def __post_init__(self):
        super().__post_init__()
        measured = self.resolution is None or (is_real(self.resolution) and self.resolution >= 1)
        require(measured, 'resolution', self.resolution, 'a number, 1 or more, or None to find it in the map')


@dataclasses.dataclass(frozen=True)
class SolvedMap:
    """A solution with its map and problem.

    Attributes:
        solution: of the map.
        patterson: `(grid, grid, grid)`, the map as it was solved: rescaled, and with F(000)².
        problem: fitted to the map.
    """

    solution: Solution
    patterson: np.ndarray
    problem: Problem


def solve_map(
    patterson: np.ndarray,
    problem: Problem,
    settings: SolveSettings,
    separation: SeparationSettings,
    seed: int,
    network: Network | None = None,
) -> SolvedMap:
    """Solves a map `(grid, grid, grid)` of any scale, from a file or another program.

    Args:
        patterson: origin at voxel (0, 0, 0).
        problem: number and size of the atoms, inner box, noise; grid and resolution are taken from the map.
        settings: method, budget, and what is known.
        separation: how sets are taken from maps.
        seed: fixes the starts.
        network: for the methods `network` and `auto`; `auto` does not use it for a grid or atoms that it does not suit.

    Raises:
        InputError: the map is no Patterson map, or the method cannot solve it; the message says what to correct.
    """
    unload_in_time()
    patterson = checked_patterson(patterson)
    expected = problem if settings.num_atoms_known else dataclasses.replace(problem, num_atoms=1)
    fitted = fit_problem(patterson, expected, settings.resolution)
    values = restore_origin_term(cut_map(patterson, fitted), fitted).astype(np.float32)
    if network is not None:
        try:
            _check_network(network, fitted)
        except InputError:
            if settings.method == 'network':
                raise
            network = None
    key = example_key(stream_key(seed, 'separation'), 0, 0)
    if settings.num_atoms_known:
        solution = solve_maps(key[None], values[None], fitted, settings, separation, network)[0]
    else:
        solution = _solve_unknown_number(key, values, fitted, settings, separation, network)
    return SolvedMap(solution, values, dataclasses.replace(fitted, num_atoms=len(solution.positions)))


def _check_network(network, problem):
    """Raises InputError if the problem differs too much from the one that the network was trained on."""
    trained = network.trained_on or problem
    if trained.grid_size != problem.grid_size:
        if network.check_problem is None:
            sizes = f'{problem.grid_size} voxels along each edge, and the network was trained on {trained.grid_size}'
            raise InputError(sizes)
        network.check_problem(problem)
    if trained.atom_radius != problem.atom_radius:
        radii = f'{problem.atom_radius:g} voxels, and the network was trained on {trained.atom_radius:g}'
        raise InputError(f'atom_radius is {radii}')


def _solve_unknown_number(key, patterson, problem, search, separation, network):
    """Solves a map `(grid, grid, grid)` whose number of atoms is not known: tries numbers and chooses one.

    The first number follows from the ratio of the map's sum to its origin peak. If it explains the map exactly, it is
    taken; otherwise its neighbours are tried too, and the number with the lowest R1 is chosen. Each number has all the
    attempts of the search, and an equal part of the seconds that are left. One set of programs serves all numbers. The
    number in `problem` is not used.

    Raises:
        InputError: no likely number of atoms fits in the inner box, or no attempt gave finite positions.
    """
    trials = _likely_problems(patterson, problem)
    places = max(trial.num_atoms for trial in trials)
    enough = dataclasses.replace(separation, num_peaks=max(separation.num_peaks, 2 * places))
    solutions, failures, seconds = [], [], 0.0
    for place, trial in enumerate(trials):
        share = (search.max_seconds - seconds) / (len(trials) - place)
        if search.max_seconds and share <= 0:
            break
        budget = dataclasses.replace(search, max_seconds=max(share, 0.0))
        try:
            solutions += solve_maps(key[None], patterson[None], trial, budget, enough, network, places=places)
        except InputError as error:  # no attempt gave finite positions; with another number of atoms one may
            failures.append(error)
            continue
        seconds += solutions[-1].seconds
        if _is_exact(solutions[-1]):
            break
    if not solutions:
        raise failures[0]
    best = min(solutions, key=lambda each: (not _is_exact(each), each.r_factor))
    return dataclasses.replace(best, seconds=seconds)


def _is_exact(solution):
    return solution.verdict == 'solved' and solution.r_factor <= EXACT


def _likely_problems(patterson, problem):
    """The problem with each likely number of atoms that fits in the box and has enough reflections."""
    numbers = likely_numbers(patterson, problem)
    trials = []
    for number in numbers:
        with contextlib.suppress(InputError):  # so many do not fit, or there are too few reflections for them
            trial = dataclasses.replace(problem, num_atoms=number)
            check_enough(trial)
            trials.append(trial)
    if not trials:
        raise InputError(
            f'its sum and its origin peak are those of about {numbers[0]} atoms, which do not fit in a box of edge '
            f'{problem.box_edge:g}; has a constant been added to the map?'
        )
    return trials


def likely_numbers(patterson: np.ndarray, problem: Problem) -> list[int]:
    """Numbers of atoms that a map may have, the likeliest first.

    F(000)² is the square of the total density. The origin peak, limited to the measured frequencies, is the sum of the
    squared density, which is proportional to the number of atoms.

    Raises:
        InputError: one of the two is not positive.
    """
    hkl = frequencies(problem.grid_size).reshape(-1, 3)
    measured = measured_frequencies(problem.grid_size, problem.measurement.resolution).ravel()
    weights = np.where((hkl[:, 2] == 0) | (hkl[:, 2] == problem.grid_size // 2), 1, 2)
    away = measured & np.any(hkl != 0, axis=-1)
    self_vector = np.sum((weights * sphere_factor(hkl, problem.grid_size, problem.atom_radius) ** 2)[away])
    origin_term = float(np.sum(patterson, dtype=np.float64))
    origin_peak = float(patterson[0, 0, 0]) * patterson.size - origin_term
    if not (origin_term > 0 and origin_peak > 0):
        raise InputError(
            'the number of atoms cannot be told from a map whose sum, or whose origin peak above its mean, is not '
            'positive; has a constant been added to the map?'
        )
    estimate = origin_term / origin_peak * self_vector / problem.atom_volume**2 * (1 + problem.measurement.noise**2)
    first = max(round(estimate), 1)
    reach = min(max(2, round(NUMBER_UNCERTAINTY * first)), MOST_NEIGHBOURS)
    return sorted(range(max(first - reach, 1), first + reach + 1), key=lambda number: abs(number - estimate))
