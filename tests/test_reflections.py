"""Reflections by enumeration, free ones by their count and spread, amplitudes from the transform of the density."""

import itertools

import jax
import numpy as np
import pytest

from patterson_jax.simulation.density import render
from patterson_jax.simulation.patterson import patterson_map
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving import reflections as module
from patterson_jax.solving.reflections import (
    CHUNK,
    absolute_scale,
    highest_resolution,
    observed_amplitudes,
    r_factor,
    reflections,
)

SMALL = Problem(grid_size=16, num_atoms=3, box_edge=6.0)
CUT = Problem.of(grid_size=16, num_atoms=3, box_edge=6.0, resolution=5.0)
BEYOND = Problem.of(grid_size=16, num_atoms=3, box_edge=6.0, resolution=11.0)
PROBLEMS = pytest.mark.parametrize('problem', [SMALL, CUT, BEYOND, Problem(grid_size=8, num_atoms=1, box_edge=3.0)])

draw = jax.jit(render, static_argnums=(1, 2))


def indices(problem):
    held = reflections(problem)
    return held.hkl[: held.number]


def lengths(problem):
    return np.sqrt(np.sum(indices(problem) ** 2, axis=-1))


def pairs_of_opposites(grid_size, resolution):
    """Each {h, −h} of the whole cube of frequencies with 0 < |h| ≤ resolution; h and h + grid are the same."""

    def pair(h):
        return frozenset((tuple(np.asarray(h) % grid_size), tuple(-np.asarray(h) % grid_size)))

    whole = itertools.product(range(-grid_size // 2, grid_size // 2), repeat=3)
    return {pair(h) for h in whole if 0 < np.dot(h, h) <= resolution**2}


@PROBLEMS
def test_each_pair_of_opposites_in_the_sphere_is_there_once_in_the_order_of_its_length(problem):
    expected = pairs_of_opposites(
        problem.grid_size, min(problem.measurement.resolution or np.inf, problem.grid_size / 2)
    )
    hkl = indices(problem)
    held = {frozenset((tuple(h % problem.grid_size), tuple(-h % problem.grid_size))) for h in hkl}
    assert len(hkl) == len(expected)
    assert held == expected
    assert np.all(np.diff(lengths(problem)) >= 0)


@PROBLEMS
def test_those_up_to_a_resolution_come_first_and_are_counted(problem):
    for resolution in (0.5, 1, 2, 2.5, 3, 4.3, 5, 8, 20):
        count = int(reflections(problem).count_within(resolution**2))
        assert count == len(pairs_of_opposites(problem.grid_size, min(resolution, highest_resolution(problem))))
        assert np.all(lengths(problem)[:count] <= resolution)
        assert np.all(lengths(problem)[count:] > resolution)


@PROBLEMS
def test_those_up_to_a_whole_number_are_cut_out_with_no_more_than_a_chunk(problem):
    for limit in (1, 3, 5, 8, 30):
        count = int(reflections(problem).count_within(limit**2))
        cut = reflections(problem).within(limit)
        assert count <= len(cut) <= len(reflections(problem).hkl) and len(cut) % CHUNK == 0
        np.testing.assert_array_equal(cut, reflections(problem).hkl[: len(cut)])
        assert limit > 5 or len(cut) < count + CHUNK


def test_data_that_end_a_little_earlier_have_the_same_shapes_and_others_not():
    def shapes(resolution):
        held = reflections(SMALL.changed(resolution=resolution))
        return held.hkl.shape, held.limit

    assert shapes(4.2) == shapes(4.6) == shapes(5.0) == ((CHUNK * 3, 3), 5)  # 257 of them up to |h| = 5
    assert shapes(5.1) != shapes(5.0)
    assert shapes(8.0) == shapes(11.0) == shapes(None)


@pytest.mark.parametrize('resolution', [1.0, 2.0**0.5, 3.0**0.5, 5.0, 5.05, 5.1, 41**0.5, 7.9999999])
def test_a_resolution_between_two_lengths_leaves_the_reflections_of_the_shorter(resolution):
    """Square roots are rounded, and yet those at the resolution are in."""
    problem = SMALL.changed(num_atoms=1, resolution=resolution)
    assert lengths(problem)[-1] <= resolution + 1e-9
    longest = max(n for n in range(65) if n <= resolution**2 + 1e-9 and n % 8 != 7 and n not in (28, 60))
    assert round(lengths(problem)[-1] ** 2) == longest  # no square is a sum of three others by Legendre's theorem


def test_r1_looks_at_those_that_it_is_told_to():
    observed, calculated = np.array([1.0, 2, 3, 50], np.float32), np.array([2.0, 3, 7, 1], np.float32)
    some = np.array([True, True, True, False])
    k = (2 + 6 + 21) / (4 + 9 + 49)
    expected = np.sum(np.abs(observed - k * calculated)[:3]) / 6
    np.testing.assert_allclose(r_factor(observed, calculated, where=some), expected, rtol=1e-6)
    np.testing.assert_allclose(r_factor(observed[:3], calculated[:3]), expected, rtol=1e-6)


def test_atoms_are_compared_up_to_the_problems_resolution_and_half_the_grid_at_most():
    assert [highest_resolution(problem) for problem in (SMALL, CUT, BEYOND)] == [8, 5, 8]


def test_one_reflection_in_twenty_is_free_the_same_ones_for_every_map_at_every_length():
    for problem in (SMALL, Problem(), Problem.of(resolution=8.0)):
        free, number = reflections(problem).free, reflections(problem).number
        assert np.mean(free[:number]) == pytest.approx(0.05, rel=0.05)
        assert not np.any(free[number:])
        module._reflections.cache_clear()
        np.testing.assert_array_equal(reflections(problem).free, free)
    for part in np.array_split(reflections(Problem()).free, 20):  # 838 reflections each, about 42 of them free
        assert 20 <= np.sum(part) <= 70


def test_amplitudes_are_those_of_the_density_behind_the_map():
    positions = np.random.default_rng(0).uniform(-3, 3, (3, 3)).astype(np.float32)
    density = np.asarray(draw(positions, 16, 1.0))
    spectrum = np.abs(np.fft.fftn(density.astype(np.float64)))
    for problem in (SMALL, CUT):
        held = reflections(problem)
        observed = observed_amplitudes(patterson_map(density), held)
        assert not np.any(observed[held.number :])
        observed, expected = observed[: held.number], spectrum[tuple(indices(problem).T)]
        np.testing.assert_allclose(observed, expected, atol=2e-3 * spectrum.max())  # of a square root near 0
        np.testing.assert_allclose(observed**2, expected**2, atol=1e-6 * spectrum.max() ** 2)


def test_where_noise_made_the_square_negative_the_amplitude_is_zero():
    patterson = np.zeros((16, 16, 16), np.float32)
    patterson[0, 0, 0] = -1
    np.testing.assert_array_equal(observed_amplitudes(patterson, reflections(SMALL)), 0)


def test_a_map_of_any_scale_is_brought_to_that_of_the_problems_atoms():
    positions = np.random.default_rng(1).uniform(-3, 3, (3, 3)).astype(np.float32)
    patterson = np.asarray(patterson_map(draw(positions, 16, 1.0)))
    for scale in (1e-3, 1, 50):
        scaled = absolute_scale(patterson * np.float32(scale), 3, SMALL.atom_volume)
        np.testing.assert_allclose(scaled, patterson, atol=1e-5 * patterson[0, 0, 0])
