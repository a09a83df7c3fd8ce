import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patterson_jax.evaluation import match_atoms
from patterson_jax.simulation.density import render
from patterson_jax.simulation.examples import make_batch, stream_key
from patterson_jax.simulation.maps import invert_map
from patterson_jax.simulation.patterson import frequencies, patterson_intensities, patterson_map
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.interpretation import interpret_map
from patterson_jax.solving.methods.minimum_function import (
    form_factor,
    minimum_map,
    sharpened_factors,
    superposition_vector,
    vector_map,
)
from patterson_jax.solving.peaks import find_peaks
from patterson_jax.solving.separation import SeparationSettings

SIZE = 24
TWO = np.array([[-3.3, 1.2, 0.4], [3.7, -1.8, 3.4]])  # whose half vector ends in the middle of a voxel
FOUR = np.array([[-4.2, -1.1, 0.3], [3.6, -2.4, 1.8], [0.5, 4.3, -3.7], [1.7, 1.2, 4.4]])  # six lengths, well apart
PAPER = Problem()
SETTINGS = SeparationSettings(
    num_peaks=24,
    method='annealed',
    num_swaps=4000,
    num_chains=4,
    resolution=10.0,
    first_threshold=0.02,
    last_threshold=0.001,
)


def problem_of(positions):
    return Problem(grid_size=SIZE, num_atoms=len(positions), box_edge=10.0)


def sphere(grid_size, resolution):
    return jnp.asarray(np.sum(frequencies(grid_size) ** 2, axis=-1) <= resolution**2)


def whole_cube(grid_size):
    return sphere(grid_size, np.inf)


draw = jax.jit(lambda positions: render(positions, SIZE, 1.0))
peaks_of = jax.jit(lambda density: find_peaks(density, 10, problem_of(FOUR)))  # the highest first


@jax.jit
def _patterson_of(positions):
    return patterson_map(draw(positions))


def patterson_of(positions):
    return _patterson_of(np.asarray(positions, np.float32))


@functools.partial(jax.jit, static_argnames='problem')
def map_of(patterson, start, problem, measured):
    return minimum_map(patterson, start, problem, measured)


@functools.partial(jax.jit, static_argnames='problem')
def vectors_of(patterson, starts, problem, measured):
    factors = sharpened_factors(patterson, problem, measured)
    return jax.vmap(lambda start: superposition_vector(factors, start, problem))(starts)


def vectors(positions, starts):
    return np.asarray(vectors_of(patterson_of(positions), jnp.asarray(starts), problem_of(positions), whole_cube(SIZE)))


def pairs(positions):
    """Vectors between atoms, one of each pair, the longest first."""
    first, second = np.triu_indices(len(positions), 1)
    differences = positions[second] - positions[first]
    return differences[np.argsort(-np.linalg.norm(differences, axis=-1))]


def distances_up_to_sign(found, true):
    return np.minimum(np.linalg.norm(found - true, axis=-1), np.linalg.norm(found + true, axis=-1))


@pytest.fixture(scope='module')
def paper_cases():
    return jax.jit(lambda indices: make_batch(stream_key(0, 'evaluation'), 0, indices, PAPER))(jnp.arange(4))


def test_two_atoms_give_themselves_about_their_middle_at_half_density():
    density = map_of(patterson_of(TWO), 0, problem_of(TWO), whole_cube(SIZE))
    peaks, heights = peaks_of(density)
    half = (TWO[1] - TWO[0]) / 2
    peaks = np.asarray(peaks[:2]) * np.sign(peaks[:2, :1] * half[0])
    np.testing.assert_allclose(peaks, [half, half], atol=0.15)
    assert np.all(np.abs(heights[:2] - 0.5) < 0.12)
    assert heights[2] < 0.1


def test_single_atom_is_put_in_the_centre():
    density = map_of(patterson_of(TWO[:1]), 0, problem_of(TWO[:1]), whole_cube(SIZE))
    np.testing.assert_allclose(density, draw(jnp.zeros((1, 3))) / 2, atol=0.07)


def test_map_is_its_own_inverse_and_not_negative():
    density = map_of(patterson_of(FOUR), 1, problem_of(FOUR), whole_cube(SIZE))
    np.testing.assert_array_equal(density, invert_map(density))
    assert jnp.min(density) >= 0


def test_starts_are_the_vectors_by_length_and_come_again():
    found = vectors(FOUR, range(7))
    assert np.all(distances_up_to_sign(found[:6], pairs(FOUR)) < 0.15)
    np.testing.assert_array_equal(found[6], found[0])


def test_vector_that_occurs_twice_is_not_preferred_for_its_height():
    """A parallelogram: its diagonals occur once; its sides, one of them nearly as long, occur twice."""
    diagonals = np.array([[8.5, 4.5, 0.5], [8.5, -3.5, 0.5]])
    sides = np.array([[8.5, 0.5, 0.5], [0.0, 4.0, 0.0]])
    found = vectors(np.concatenate([diagonals, -diagonals]) / 2, range(4))
    found = np.concatenate([sorted(found[:2], key=lambda each: -np.linalg.norm(each)), found[2:]])
    assert np.all(distances_up_to_sign(found, np.concatenate([diagonals, sides])) < 0.15)


@pytest.mark.parametrize('start', range(6))
def test_every_atom_and_inverse_lies_about_the_middle_of_the_vector(start):
    vector = vectors(FOUR, [start])[0]
    ends = FOUR[:, None] + FOUR[None]
    differences = FOUR[:, None] - FOUR[None]
    nearest = np.unravel_index(np.argmin(np.linalg.norm(differences - vector, axis=-1)), (4, 4))
    true = FOUR - ends[nearest] / 2
    density = map_of(patterson_of(FOUR), start, problem_of(FOUR), whole_cube(SIZE))
    peaks = np.asarray(peaks_of(density)[0])
    distances = np.linalg.norm(np.concatenate([true, -true])[:, None] - peaks[None], axis=-1)
    assert np.max(np.min(distances, axis=1)) < 0.3


def test_origin_is_moved_by_whole_and_half_voxels():
    """Origin half a voxel from the box centre: in the middle of a voxel, where the map has its values already."""
    factors = jnp.where(
        jnp.all(jnp.abs(frequencies(SIZE)) < SIZE // 2, axis=-1), patterson_intensities(patterson_of(TWO)), 0
    )
    unmoved = jnp.fft.irfftn(factors, s=(SIZE,) * 3)
    moved = vector_map(factors, jnp.array([0.5, 3.5, -2.5]))
    expected = jnp.roll(unmoved, (SIZE // 2, SIZE // 2 + 3, SIZE // 2 - 3), axis=(0, 1, 2))
    np.testing.assert_allclose(moved, expected, atol=1e-5 * float(jnp.max(unmoved)))


def test_form_factor_moved_is_a_rendered_atom():
    position = jnp.array([0.3, -2.2, 4.9])
    atom = vector_map(jnp.asarray(form_factor(problem_of(TWO)), jnp.float32), position)
    np.testing.assert_allclose(atom, draw(position[None]), atol=0.15)
    np.testing.assert_allclose(jnp.sum(atom), 4 / 3 * np.pi, rtol=1e-5)


def test_sharpened_factors_are_those_of_an_atom_at_every_vector():
    problem = problem_of(FOUR)
    waves = frequencies(SIZE)
    points = np.abs(np.sum(np.exp(-2j * np.pi / SIZE * waves @ FOUR.T), axis=-1)) ** 2
    sharpened = sharpened_factors(patterson_of(FOUR), problem, whole_cube(SIZE))
    low = np.asarray(sphere(SIZE, 6.0))
    np.testing.assert_allclose(sharpened[low], (form_factor(problem) * points)[low], atol=0.05 * 16 * 4 / 3 * np.pi)


def test_extrapolation_keeps_what_was_measured_and_guesses_most_of_the_rest():
    problem, patterson, measured = problem_of(FOUR), patterson_of(FOUR), sphere(SIZE, 6.0)
    whole = np.asarray(sharpened_factors(patterson, problem, whole_cube(SIZE)))
    cut = jnp.fft.irfftn(jnp.where(measured, patterson_intensities(patterson), 0), s=(SIZE,) * 3)
    filled = np.asarray(jax.jit(sharpened_factors, static_argnums=1)(cut, problem, measured))
    known, near = np.asarray(measured), np.asarray(sphere(SIZE, 9.0) & ~measured)
    np.testing.assert_allclose(filled[known], whole[known], atol=1e-4 * np.max(whole))
    assert np.linalg.norm((filled - whole)[near]) < 0.5 * np.linalg.norm(whole[near])


def test_result_does_not_depend_on_the_batch():
    problem = problem_of(FOUR)
    pattersons = jnp.stack([patterson_of(FOUR), patterson_of(FOUR[::-1] * [1, -1, 1]), patterson_of(-FOUR + 0.3)])
    starts = jnp.array([0, 3, 1])
    together = jax.vmap(lambda *each: map_of(*each, problem, sphere(SIZE, 8.0)))(pattersons, starts)
    alone = map_of(pattersons[1], starts[1], problem, sphere(SIZE, 8.0))
    np.testing.assert_allclose(together[1], alone, atol=1e-4)


@pytest.mark.parametrize('resolution', [np.inf, 12.0])
def test_finds_every_atom_of_the_papers_problem(paper_cases, resolution):
    measured = sphere(PAPER.grid_size, resolution)

    @jax.jit
    def solve(key, patterson, positions):
        factors = jnp.where(measured, patterson_intensities(patterson), 0)
        cut = jnp.fft.irfftn(factors, s=patterson.shape)
        density = minimum_map(cut, 0, PAPER, measured)
        solution = interpret_map(key, cut, density, PAPER, SETTINGS)
        return match_atoms(solution.positions, positions)

    keys = jax.random.split(jax.random.key(0), 4)
    match = jax.vmap(solve)(keys, paper_cases.patterson, paper_cases.positions)
    assert np.all(match.within)
    assert np.mean(match.errors) < 0.25
