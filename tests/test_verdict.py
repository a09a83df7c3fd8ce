import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.reflections import r_factor
from patterson_jax.solving.verdict import (
    ENOUGH_AGREEING,
    EXACT,
    LEAST,
    expected_r_factors,
    highest_solved,
    judge,
    reflections_per_coordinate,
)

PROBLEM = Problem()
NOISY = PROBLEM.changed(noise=0.3)
POOR = PROBLEM.changed(num_atoms=20, box_edge=15.4, resolution=5.0, noise=0.1)


def test_an_exact_set_is_solved_by_one_start():
    assert judge(EXACT / 2, EXACT, 1, 0, PROBLEM) == 'solved'


def test_what_noise_explains_is_solved_if_starts_agree():
    right, _ = expected_r_factors(NOISY)
    assert judge(right, right, ENOUGH_AGREEING, 0, NOISY) == 'solved'
    assert judge(right, right, ENOUGH_AGREEING - 1, 0, NOISY) == 'uncertain'


def test_the_same_r_factor_is_not_solved_where_the_data_have_no_noise():
    right, one_wrong = expected_r_factors(NOISY)
    assert one_wrong > right > one_wrong / 2
    assert judge(right, right, 99, 0, PROBLEM) == 'uncertain'
    assert judge(one_wrong * 1.01, 0, 99, 0, PROBLEM) == 'not solved'


def test_other_sets_that_explain_the_data_make_it_uncertain():
    assert judge(0, 0, 99, 1, PROBLEM) == 'uncertain'


def test_free_reflections_that_are_not_explained_make_it_uncertain():
    right, _ = expected_r_factors(NOISY)
    assert judge(right, 0.6, 99, 0, NOISY) == 'uncertain'


def test_with_few_reflections_only_an_exact_set_on_which_starts_agree_is_solved():
    right, _ = expected_r_factors(POOR)
    assert judge(right, right, 99, 0, POOR) == 'uncertain'
    assert judge(EXACT / 2, EXACT, ENOUGH_AGREEING, 0, POOR) == 'solved'
    assert judge(EXACT / 2, EXACT, ENOUGH_AGREEING - 1, 0, POOR) == 'uncertain'
    poorest = POOR.changed(resolution=4.0)
    assert reflections_per_coordinate(poorest) < LEAST
    assert judge(0, 0, 99, 0, poorest) == 'uncertain'


def test_what_is_no_number_is_not_solved():
    assert judge(math.nan, math.nan, 99, 0, PROBLEM) == 'not solved'


def test_no_noise_is_so_high_that_atoms_at_random_are_solved():
    hopeless = PROBLEM.changed(noise=1.0)
    assert judge(0.59, 0.59, 99, 0, hopeless) != 'solved'


def test_reflections_and_coordinates_are_counted():
    pairs = sum(0 < x * x + y * y + z * z <= 25 for x, y, z in itertools.product(range(-5, 6), repeat=3)) / 2
    assert reflections_per_coordinate(POOR) == pytest.approx(0.95 * pairs / 60, rel=0.02)  # one in twenty is free


@pytest.mark.parametrize('noise', [0.1, 0.3])
def test_the_expected_r_factor_is_that_of_amplitudes_with_the_noise(noise):
    rng = np.random.default_rng(0)
    amplitudes = rng.rayleigh(1, 16000).astype(np.float32)
    measured = np.abs(amplitudes * (1 + noise * rng.normal(size=16000))).astype(np.float32)
    expected, _ = expected_r_factors(PROBLEM.changed(noise=noise))
    assert jax.jit(r_factor)(measured, amplitudes) == pytest.approx(expected, rel=0.05)


def test_a_wrong_atom_counts_less_among_many():
    """Held against sums over atoms of which one has other phases."""
    rng = np.random.default_rng(0)
    for number in (10, 20):
        waves = np.exp(2j * np.pi * rng.uniform(size=(number + 1, 16000)))
        true, wrong = (np.abs(np.sum(each, axis=0)).astype(np.float32) for each in (waves[1:], waves[:-1]))
        problem = dataclasses.replace(PROBLEM, num_atoms=number)
        assert jax.jit(r_factor)(true, wrong) == pytest.approx(expected_r_factors(problem)[1], rel=0.1)
        assert 0 < highest_solved(problem) < expected_r_factors(problem)[1]
