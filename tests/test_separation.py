import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patterson_jax.simulation.density import render
from patterson_jax.simulation.patterson import atom_factors, intensities, low_frequencies
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.separation import WAYS, SeparationSettings, _draw_chain, _swap_chain, separate

PROBLEM = Problem(grid_size=24, num_atoms=5, box_edge=8.0)
SETTINGS = SeparationSettings(
    num_peaks=6,
    method='annealed',
    num_swaps=500,
    num_chains=4,
    resolution=6.0,
    first_threshold=0.02,
    last_threshold=0.001,
)


def case(seed, noise):
    """Candidates, two sets of five and four wrong ones, in random order, with their factors and the intensities."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(-4, 4, (5, 3))
    candidates = np.concatenate([true, -true, rng.uniform(-4, 4, (4, 3))])[rng.permutation(14)]
    candidates = candidates + rng.normal(0, noise, candidates.shape)
    return transforms(jnp.asarray(true, jnp.float32), jnp.asarray(candidates, jnp.float32))


@jax.jit
def transforms(true, candidates):
    hkl = low_frequencies(24, SETTINGS.resolution)
    factors = jax.vmap(lambda position: atom_factors(position, hkl, 24, 1.0))(candidates)
    return factors, intensities(render(true, 24, 1.0))[tuple(hkl.T)]


@functools.partial(jax.jit, static_argnames='settings')
def choose(key, factors, measured, settings):
    return separate(key, factors, measured, 5, settings)


def brute_force(factors, measured):
    """The lowest misfit of all sets of five."""
    factors, measured = np.asarray(factors), np.asarray(measured)
    sets = np.array(list(itertools.combinations(range(len(factors)), 5)))
    misfits = [np.sum((np.abs(factors[each].sum(0)) ** 2 - measured) ** 2) for each in sets]
    return min(misfits) / np.sum(measured**2)


@pytest.mark.parametrize('method', WAYS)
@pytest.mark.parametrize('seed', range(3))
def test_finds_the_best_of_all_sets(seed, method):
    factors, measured = case(seed, noise=0.2)
    settings = dataclasses.replace(SETTINGS, method=method)
    result = choose(jax.random.key(seed), factors, measured, settings)
    np.testing.assert_allclose(result.misfit, brute_force(factors, measured), rtol=1e-3)


def test_chosen_candidates_are_distinct_and_have_the_misfit_that_is_reported():
    factors, measured = case(3, noise=0.2)
    result = choose(jax.random.key(0), factors, measured, SETTINGS)
    assert sorted(np.asarray(result.order)) == list(range(len(factors)))
    total = np.asarray(factors)[np.asarray(result.order)[:5]].sum(0)
    misfit = np.sum((np.abs(total) ** 2 - np.asarray(measured)) ** 2) / np.sum(np.asarray(measured) ** 2)
    np.testing.assert_allclose(result.misfit, misfit, rtol=1e-3)
    np.testing.assert_allclose(np.min(result.history), misfit, rtol=1e-3)


def test_greedy_history_never_rises_and_annealed_history_does():
    factors, measured = case(4, noise=0.2)
    settings = dataclasses.replace(SETTINGS, num_chains=1, first_threshold=0.3)
    greedy = choose(jax.random.key(1), factors, measured, dataclasses.replace(settings, method='greedy'))
    annealed = choose(jax.random.key(1), factors, measured, settings)
    assert np.all(np.diff(greedy.history) <= 0)
    assert np.any(np.diff(annealed.history) > 0)


def test_the_best_chain_is_kept():
    """A chain's key is the split of the whole key, so single chains can be run alone."""
    factors, measured = case(5, noise=0.3)
    settings = dataclasses.replace(SETTINGS, num_swaps=20, num_chains=4, method='greedy')
    result = choose(jax.random.key(0), factors, measured, settings)

    @jax.jit
    def chain(key):
        draws = _draw_chain(key, len(factors), 5, 20)
        return _swap_chain(*draws, jnp.zeros(20), factors, measured, 5)

    chains = [chain(key) for key in jax.random.split(jax.random.key(0), 4)]
    misfits = [float(chain.misfit) for chain in chains]
    assert max(misfits) > 1.1 * min(misfits)
    np.testing.assert_allclose(result.misfit, min(misfits), rtol=1e-3)


def test_the_best_set_met_is_kept_however_the_chain_ends():
    factors, measured = case(6, noise=0.3)
    settings = dataclasses.replace(SETTINGS, num_chains=1, first_threshold=10.0, last_threshold=10.0)
    result = choose(jax.random.key(2), factors, measured, settings)  # which wanders at random
    assert result.history[-1] > 1.5 * result.misfit
    np.testing.assert_allclose(result.misfit, np.min(result.history), rtol=1e-6)


def test_result_does_not_depend_on_the_batch():
    cases = [case(seed, noise=0.2) for seed in range(4)]
    factors, measured = (jnp.stack(each) for each in zip(*cases, strict=True))
    keys = jax.random.split(jax.random.key(7), 4)
    together = jax.vmap(lambda *each: choose(*each, SETTINGS))(keys, factors, measured)
    alone = choose(keys[2], factors[2], measured[2], SETTINGS)
    np.testing.assert_array_equal(together.order[2], alone.order)
