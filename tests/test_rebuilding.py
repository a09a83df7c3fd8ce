"""Sets rebuilt in part: lost atoms come back, right ones stay, and random atoms become the true ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.least_squares import minimise_spheres, random_positions
from patterson_jax.solving.rebuilding import difference_limit, highest_point, put_where_missed, rebuild
from patterson_jax.solving.reflections import Measured, reflections
from tests.sets_of_atoms import LARGER, count_within, displaced, largest_error, spheres, true_sets, with_amplitudes

NUM_SETS = 6  # always so many at once, so that little is compiled
MAPS = Measured(patterson=0, observed=0, reflections=None, num_atoms=None)
KEYS = jax.random.split(jax.random.key(0), NUM_SETS)
rebuild_many = jax.jit(jax.vmap(rebuild, in_axes=(0, 0, MAPS, None)), static_argnums=3)


def lost_one(sets, seed=0):
    """Each set with one atom put at a random place, at least 2 voxels off."""
    rng, spoilt = np.random.default_rng(seed), sets.copy()
    lost = rng.integers(sets.shape[1], size=len(sets))
    for atoms, which in zip(spoilt, lost, strict=True):
        place = atoms[which]
        while np.linalg.norm(place - atoms[which]) < 2:
            place = rng.uniform(-4, 4, 3)
        atoms[which] = place
    return spoilt


def of_sets(sets):
    return with_amplitudes([spheres(atoms, LARGER) for atoms in sets], LARGER)


def test_an_atom_that_is_taken_out_is_put_where_it_is_missed_and_the_others_stay():
    sets = true_sets(LARGER, NUM_SETS)
    order, count = np.array([3, 1, 4, 0, 2]), count_within(LARGER, difference_limit(LARGER))
    spoilt = sets.copy()
    spoilt[:, order[0]] += np.float32(2.5)
    put = jax.vmap(lambda *given: put_where_missed(*given, count, LARGER), (0, None, None, MAPS))
    found = jax.jit(put)(spoilt, order, 1, of_sets(sets))
    np.testing.assert_array_equal(found[:, order[1:]], sets[:, order[1:]])
    assert np.sum(np.linalg.norm(found - sets, axis=-1)[:, order[0]] < 0.05) >= NUM_SETS - 1


def test_lost_atoms_come_back_and_right_sets_stay():
    sets = true_sets(LARGER, NUM_SETS)
    data = of_sets(sets)
    for given in (lost_one(sets, seed=1), sets, displaced(sets, 0.02)):
        found = rebuild_many(KEYS, given, data, LARGER)
        errors = [largest_error(*pair) for pair in zip(found, sets, strict=True)]
        assert max(errors) < 0.01
        np.testing.assert_allclose(np.mean(found, axis=1), 0, atol=1e-5)


def test_random_atoms_become_the_true_ones_and_no_misfit_rises():
    sets = true_sets(LARGER, NUM_SETS)
    data, start = of_sets(sets), jax.vmap(lambda key: random_positions(key, LARGER))(KEYS)
    found = rebuild_many(KEYS, start, data, LARGER)
    errors = [largest_error(*pair) for pair in zip(found, sets, strict=True)]
    assert sum(error < 0.01 for error in errors) >= NUM_SETS - 1
    count = count_within(LARGER, difference_limit(LARGER))
    misfit = jax.jit(jax.vmap(lambda each, data: minimise_spheres(each, data, count, 0).misfit, (0, MAPS)))
    assert np.all(misfit(found, data) <= misfit(start, data))


def test_one_set_does_not_depend_on_those_beside_it_nor_on_places_that_are_not_taken():
    sets = true_sets(LARGER, NUM_SETS)
    spoilt = lost_one(sets, seed=1)
    found = rebuild_many(KEYS, spoilt, of_sets(sets), LARGER)
    backwards = rebuild_many(KEYS[::-1], spoilt[::-1], of_sets(sets[::-1]), LARGER)
    np.testing.assert_allclose(backwards[::-1], found, atol=1e-3)
    anything = np.random.default_rng(0).uniform(-4, 4, (NUM_SETS, 2, 3)).astype(np.float32)
    more = np.asarray(rebuild_many(KEYS, np.concatenate([spoilt, anything], axis=1), of_sets(sets), LARGER))
    np.testing.assert_array_equal(more[:, 5:], np.repeat(more[:, :1], 2, axis=1))
    assert max(largest_error(*pair) for pair in zip(more[:, :5], sets, strict=True)) < 0.01


def test_atoms_on_top_of_each_other_give_numbers_and_come_apart():
    true = np.repeat(true_sets(LARGER, 1), NUM_SETS, axis=0)
    start = true.copy()
    start[1:, 1] = start[1:, 0]
    start[0] = 0
    found = rebuild_many(KEYS, start, of_sets(true), LARGER)
    assert np.all(np.isfinite(found))
    assert max(largest_error(*pair) for pair in zip(found[1:], true[1:], strict=True)) < 0.01


def test_next_to_no_data_gives_numbers():
    problem = Problem.of(grid_size=8, num_atoms=1, box_edge=3.0, resolution=1.0)
    data = with_amplitudes(np.ones(len(reflections(problem).hkl)), problem)
    found = jax.jit(rebuild, static_argnums=3)(KEYS[0], jnp.ones((1, 3)), data, problem)
    assert np.all(np.isfinite(found))


@pytest.mark.parametrize('place', [(0, 0, 0), (3.1, -1.7, 2.4), (-4, 4, 4)])
def test_a_map_is_highest_where_its_only_atom_is(place):
    hkl = np.asarray(reflections(LARGER).within(7))
    known = (np.sum(hkl**2, axis=-1) <= 49) & np.any(hkl != 0, axis=-1)
    coefficients = (known * np.exp(-2j * np.pi / 24 * (hkl @ np.array(place)))).astype(np.complex64)
    found = jax.jit(lambda given: highest_point(given, hkl, 7, LARGER))(coefficients)
    np.testing.assert_allclose(found, place, atol=24 / 21 / 2 + 0.01)
