"""The verdict on a set of atoms: solved, not solved, or uncertain. It never looks at the truth.

A right set leaves the R1 that the noise of the data explains. One wrong atom of N adds, in squares, about
`ONE_WRONG_ATOM`² / N to that, less where few reflections let the others hide it. A set is solved if its R1 is nearer
to the first than to the second, and that of the free reflections no higher than the second; and if it explains the
data exactly or several starts have come to it, both where reflections are few for the positions. The noise is what the
problem says that it is. The constants are from cases of the stream `calibration` (`benchmarks/verdicts.py`).
"""

import math

import numpy as np

from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.reflections import reflections

VERDICTS = ('solved', 'uncertain', 'not solved')
MEAN_DEVIATION = 0.8  # of a normal error, in standard deviations
ONE_WRONG_ATOM = 0.85
AMPLE, HIDING = 100, 0.3  # reflections for each coordinate, below which wrong atoms hide, with this power
ENOUGH, LEAST = 15, 3  # reflections for each coordinate
HIGHEST = 0.45  # R1 of no set that can be called solved; atoms at random have 0.59
EXACT = 0.002  # R1 of data that are explained exactly, but for rounding
AGREEING = 2  # starts
FREE_SPREAD = 3.0  # standard deviations, about, that R_free may lie above its limit


def judge(r_factor: float, r_free: float, agreeing: int, rivalled: bool, problem: Problem) -> str:
    """The verdict on the best set of atoms that was found.

    Args:
        r_factor: R1 over the reflections that the set was refined against.
        r_free: R1 over the free ones.
        agreeing: how many starts came to this set.
        rivalled: whether another set explains the data as well, or might, because not all were looked for.
        problem: what the map is of; its noise says what R1 a right set has.
    """
    right, one_wrong = expected_r_factors(problem)
    free_limit = math.hypot(right, one_wrong) * (1 + FREE_SPREAD / math.sqrt(max(_counts(problem)[1], 1)))
    if not r_factor <= math.hypot(right, one_wrong):
        return 'not solved'
    exact, ratio = r_factor <= EXACT, reflections_per_coordinate(problem)
    evidence = exact + (agreeing >= AGREEING)
    convincing = evidence >= 1 and ratio >= (ENOUGH if evidence == 1 else LEAST)
    if r_factor <= highest_solved(problem) and r_free <= free_limit and convincing and not rivalled:
        return 'solved'
    return 'uncertain'


def highest_solved(problem: Problem) -> float:
    """The highest R1 of a set that can be called solved: with a quarter of what one wrong atom adds, in squares."""
    right, one_wrong = expected_r_factors(problem)
    return min(math.hypot(right, one_wrong / 2), HIGHEST)


def expected_r_factors(problem: Problem) -> tuple[float, float]:
    """R1 of a right set, by noise alone; and what one wrong atom adds to it, in squares."""
    ratio = reflections_per_coordinate(problem)
    right = MEAN_DEVIATION * problem.measurement.noise * math.sqrt(max(1 - 1 / ratio, 0))
    one_wrong = ONE_WRONG_ATOM / math.sqrt(problem.num_atoms) * min(1, ratio / AMPLE) ** HIDING
    return right, one_wrong


def reflections_per_coordinate(problem: Problem) -> float:
    """How many reflections each coordinate is refined against."""
    return _counts(problem)[0] / (3 * problem.num_atoms)


def _counts(problem):
    """Numbers of reflections that are refined against, and of free ones."""
    held = reflections(problem)
    free = int(np.sum(held.free))
    return int(held.number) - free, free
