import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patterson_jax.evaluation import match_atoms
from patterson_jax.simulation.density import render
from patterson_jax.simulation.examples import example_key, make_batch, stream_key
from patterson_jax.simulation.maps import origin_distances
from patterson_jax.simulation.patterson import intensities, patterson_map
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.interpretation import interpret_batch, interpret_map, patterson_correlation
from patterson_jax.solving.reflections import absolute_scale, r_factor
from patterson_jax.solving.separation import SeparationSettings

PROBLEM = Problem(grid_size=16, num_atoms=3, min_separation=2.4, box_edge=5.5)
SETTINGS = SeparationSettings(
    num_peaks=8,
    method='annealed',
    num_swaps=300,
    num_chains=2,
    resolution=5.0,
    first_threshold=0.02,
    last_threshold=0.001,
)


@pytest.fixture(scope='module')
def examples():
    return jax.jit(lambda: make_batch(stream_key(0, 'evaluation'), 0, jnp.arange(20), PROBLEM))()


@pytest.fixture(scope='module')
def interpret():
    return jax.jit(jax.vmap(lambda *each: interpret_map(*each, PROBLEM, SETTINGS)))


match_all = jax.jit(jax.vmap(match_atoms))


def keys(count):
    return jax.vmap(lambda index: example_key(stream_key(0, 'separation'), 0, index))(jnp.arange(count))


def test_true_maps_give_the_true_atoms(examples, interpret):
    solutions = interpret(keys(20), examples.patterson, examples.target)
    match = match_all(solutions.positions, examples.positions)
    assert np.mean(match.within) >= 0.98
    assert np.mean(match.errors) < 0.3
    assert np.mean(solutions.patterson_correlation) > 0.8


def test_scale_of_the_patterson_map_does_not_matter(examples, interpret):
    solutions = interpret(keys(20), examples.patterson, examples.target)
    scaled = interpret(keys(20), examples.patterson * 37, examples.target)
    match = match_all(scaled.positions, solutions.positions)  # the chains may end on either enantiomorph
    np.testing.assert_allclose(match.errors, 0, atol=1e-3)
    np.testing.assert_allclose(scaled.r_factor, solutions.r_factor, atol=1e-4)


def test_result_of_a_map_does_not_depend_on_its_batch(examples):
    def predict(maps):
        return maps / 2

    solve = jax.jit(lambda *each: interpret_batch(*each, predict, PROBLEM, SETTINGS))
    together = solve(keys(4), examples.patterson[:4])
    alone = solve(keys(4)[2:3], examples.patterson[2:3])
    np.testing.assert_allclose(together.positions[2], alone.positions[0], atol=1e-5)


def test_absolute_scale_makes_the_sum_the_square_of_the_total_density(examples):
    patterson = examples.patterson[0]
    np.testing.assert_allclose(
        absolute_scale(patterson * 0.01, PROBLEM.num_atoms, PROBLEM.atom_volume), patterson, rtol=1e-3, atol=1e-4
    )


def test_r_factor_of_exact_and_of_scaled_amplitudes_is_zero_and_else_by_hand():
    observed = jnp.array([1.0, 2.0, 3.0])
    assert r_factor(observed, observed) == 0
    np.testing.assert_allclose(r_factor(observed, 5 * observed), 0, atol=1e-6)
    calculated = jnp.array([1.0, 1.0, 1.0])  # k = 6 / 3
    np.testing.assert_allclose(r_factor(observed, calculated), (1 + 0 + 1) / 6, rtol=1e-6)


def test_true_positions_have_full_patterson_correlation_and_random_ones_have_not():
    positions = jnp.array([[2.1, 0.3, -1.2], [-1.8, 1.6, 0.4], [-0.3, -1.9, 0.8]])
    correlation = jax.jit(lambda patterson, positions: patterson_correlation(patterson, positions, PROBLEM))
    patterson = jax.jit(lambda positions: patterson_map(render(positions, 16, 1.0)))(positions)
    np.testing.assert_allclose(correlation(patterson, positions), 1, atol=1e-5)
    np.testing.assert_allclose(correlation(patterson, -positions), 1, atol=1e-5)
    assert correlation(patterson, positions * jnp.array([[1.0, -1.0, 1.0]])) < 0.9


def test_origin_distances_wrap_around():
    distances = origin_distances(8)
    assert distances[0, 0, 0] == 0 and distances[7, 0, 0] == 1 and distances[4, 4, 4] == np.sqrt(48)


def test_intensities_of_the_patterson_map_are_those_of_the_density(examples):
    density = jax.jit(lambda positions: render(positions, 16, 1.0))(examples.positions[0])
    spectrum = np.fft.rfftn(np.asarray(examples.patterson[0], np.float64)).real
    np.testing.assert_allclose(spectrum, intensities(density), atol=1e-4)
