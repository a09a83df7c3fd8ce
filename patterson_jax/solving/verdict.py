"""The verdict on a set of atoms: solved, not solved, or uncertain. It never uses the truth.

A right set has the R1 that the noise of the data explains. One wrong atom of N adds about `ONE_WRONG_ATOM`² / N to the
square of that, and less if there are few reflections, because the other atoms can then hide it. A solved set must meet
three conditions. Its R1 is nearer to that of a right set than to that of a set with one wrong atom. R1 of the free
reflections is not above the latter. It explains the data exactly, or several starts have led to it; both are required
if there are few reflections for each coordinate. The problem tells the noise. The constants are from cases of the
stream `calibration` (`benchmarks/verdicts.py`).
"""

import math

import numpy as np

from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.reflections import reflections

VERDICTS = ('solved', 'uncertain', 'not solved')
MEAN_DEVIATION = 0.8  # of a normal error, in standard deviations
ONE_WRONG_ATOM = 0.85
AMPLE, HIDING = 100, 0.3  # wrong atoms are hidden below so many reflections for each coordinate; exponent of that
ENOUGH, LEAST = 15, 3  # reflections for each coordinate, with one kind of evidence and with both
HIGHEST = 0.45  # R1 above which no set is called solved; random atoms have 0.59
EXACT = 0.002  # R1 up to which data are explained exactly, apart from rounding
ENOUGH_AGREEING = 2  # starts with the same result
FREE_SPREAD = 3.0  # about so many standard deviations R_free may be above its limit


def judge(r_factor: float, r_free: float, agreeing: int, rivalled: bool, problem: Problem) -> str:
    """The verdict on the best set of atoms that was found.

    Args:
        r_factor: R1 over the reflections that were used in refinement.
        r_free: R1 over the free reflections.
        agreeing: number of starts that led to this set.
        rivalled: whether another set explains the data as well, or may do so because not all sets were searched for.
        problem: of the map; its noise tells the R1 of a right set.
    """
    right, one_wrong = expected_r_factors(problem)
    free_limit = math.hypot(right, one_wrong) * (1 + FREE_SPREAD / math.sqrt(max(_counts(problem)[1], 1)))
    if not r_factor <= math.hypot(right, one_wrong):
        return 'not solved'
    exact, ratio = r_factor <= EXACT, reflections_per_coordinate(problem)
    evidence = exact + (agreeing >= ENOUGH_AGREEING)
    convincing = evidence >= 1 and ratio >= (ENOUGH if evidence == 1 else LEAST)
    if r_factor <= highest_solved(problem) and r_free <= free_limit and convincing and not rivalled:
        return 'solved'
    return 'uncertain'


def highest_solved(problem: Problem) -> float:
    """The highest R1 of a solved set: its square exceeds that of a right set by a quarter of what a wrong atom adds."""
    right, one_wrong = expected_r_factors(problem)
    return min(math.hypot(right, one_wrong / 2), HIGHEST)


def expected_r_factors(problem: Problem) -> tuple[float, float]:
    """R1 of a right set, from noise alone, and the R1 whose square one wrong atom adds to the square of that."""
    ratio = reflections_per_coordinate(problem)
    right = MEAN_DEVIATION * problem.measurement.noise * math.sqrt(max(1 - 1 / ratio, 0))
    one_wrong = ONE_WRONG_ATOM / math.sqrt(problem.num_atoms) * min(1, ratio / AMPLE) ** HIDING
    return right, one_wrong


def reflections_per_coordinate(problem: Problem) -> float:
    """The number of reflections used in refinement for each coordinate."""
    return _counts(problem)[0] / (3 * problem.num_atoms)


def _counts(problem):
    """Number of reflections used in refinement, and of free ones."""
    held = reflections(problem)
    free = int(np.sum(held.free))
    return int(held.number) - free, free
