"""Maps as the search leaves them, the truth where it is nearest to them, and passes through a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from invented import invent

from patterson_jax.crystal.expansion import expand
from patterson_jax.crystal.grid import Grid, grid_for
from patterson_jax.search_states import StateSettings, draw_chunks, draw_states, nearest_truth, search_with
from patterson_jax.solving.charge_flipping import prepare_search
from patterson_jax.solving.crystal_projection import CrystalProjection, Projection, network_grid
from patterson_jax.solving.learned_projection import phase_agreement, project, standard_map


@pytest.fixture(scope='module')
def crystal():
    """A crystal in P1: indices, E values, true factors as NumPy's transforms have them, and its grid."""
    invented = invent('P 1', (5, 6, 7, 80, 85, 95), 4, 1.1)
    expanded = expand(invented.data)
    grid = grid_for(expanded.hkl)
    truth = np.conj(invented.structure_factors(expanded.in_given_cell(expanded.hkl)))
    normalised = np.abs(truth) / np.sqrt(np.mean(np.abs(truth) ** 2))
    return expanded.hkl, normalised, truth / np.abs(truth) * normalised, grid


def on_half_grid(crystal):
    hkl, normalised, truth, grid = crystal
    return tuple(
        jnp.asarray(grid.place(hkl, values).astype(kind))
        for values, kind in ((normalised, np.float32), (truth, np.complex64))
    )


def test_the_search_in_training_is_the_search_of_a_crystal(crystal):
    hkl, normalised, _, grid = crystal
    expected = prepare_search(hkl, normalised, normalised, grid)
    made = search_with(on_half_grid(crystal)[0])
    for name in ('strong', 'amplitudes', 'patterson'):
        np.testing.assert_allclose(getattr(made, name)[:1], getattr(expected, name)[:1], atol=1e-4)
    # Of two Friedel mates either may be the one that is turned forward; they must be turned differently.
    np.testing.assert_array_equal(np.abs(made.turns[0]), np.abs(expected.turns[0]))
    plane = np.asarray(made.turns[0][:, :, 0])
    np.testing.assert_array_equal(plane, -np.roll(plane[::-1, ::-1], (1, 1), (0, 1)))


@pytest.mark.parametrize('hand', [1, -1])
def test_the_truth_is_moved_and_inverted_to_where_it_is_nearest(crystal, hand):
    """A map of the structure elsewhere, not by whole voxels, and of the other hand."""
    amplitudes, truth = on_half_grid(crystal)
    grid = crystal[3]
    density = jnp.fft.irfftn(truth, s=grid.shape)
    shift = np.array([0.213, 0.48, 0.871])
    indices = [np.fft.fftfreq(n, 1 / n) for n in grid.shape[:2]] + [np.arange(grid.half_shape[2])]
    phases = sum(each * part for each, part in zip(np.meshgrid(*indices, indexing='ij'), shift, strict=True))
    moved = (truth if hand == 1 else jnp.conj(truth)) * np.exp(-2j * np.pi * phases).astype(np.complex64)
    found = jax.jit(nearest_truth)(moved, amplitudes, truth, density)
    assert found.correlation > 0.98  # the peak is found between the voxels of a coarse grid
    target = np.asarray(jnp.fft.irfftn(moved, s=grid.shape))
    assert np.corrcoef(target.ravel(), np.asarray(found.density).ravel())[0, 1] > 0.98
    assert phase_agreement(found.factors, moved, amplitudes) == found.correlation


def test_states_begin_near_the_truth_or_at_random_and_keep_their_key(crystal):
    amplitudes, truth = on_half_grid(crystal)
    settings = StateSettings(starts=4, near=0.5, least_part=0.9)
    draw = jax.jit(draw_states, static_argnums=4)
    begun = draw(jax.random.key(0), amplitudes, truth, np.int32(0), settings)
    density = jnp.fft.irfftn(truth, s=crystal[3].shape)
    nearness = [float(nearest_truth(each, amplitudes, truth, density).correlation) for each in begun]
    assert min(nearness[:2]) > 0.75 and max(nearness[2:]) < 0.6
    flipped = draw(jax.random.key(0), amplitudes, truth, np.int32(2), settings)
    np.testing.assert_array_equal(flipped, draw(jax.random.key(0), amplitudes, truth, np.int32(2), settings))
    assert np.all(np.mean(np.abs(flipped - begun), axis=(1, 2, 3)) > 0.01)


def test_numbers_of_cycles_reach_from_none_to_the_most():
    settings = StateSettings(most_cycles=60)
    chunks = [int(draw_chunks(jax.random.key(seed), settings)) for seed in range(60)]
    assert set(chunks) == {0, 1, 2, 3} and np.mean(chunks) < 1.5
    assert int(draw_chunks(jax.random.key(0), StateSettings(most_cycles=0))) == 0


def test_passes_restore_the_amplitudes_and_tell_what_they_changed(crystal):
    """Through a network that changes nothing, and through one that inverts the structure about the origin."""
    amplitudes, truth = on_half_grid(crystal)
    shape = crystal[3].shape
    same = project(lambda density: 3 * density, truth, amplitudes, shape, 2)
    np.testing.assert_allclose(same.factors, truth, atol=1e-4)
    np.testing.assert_allclose([same.kept, same.disagreement], [1, 0], atol=1e-4)
    density = np.asarray(standard_map(truth, amplitudes, shape))
    np.testing.assert_allclose([density.std(), np.mean(density**3)], [1, same.skewness], rtol=1e-3)

    def inverted(density):
        return jnp.roll(density[::-1, ::-1, ::-1], (1, 1, 1), (0, 1, 2))

    turned = project(inverted, truth, amplitudes, shape, 1)
    np.testing.assert_allclose(turned.factors, jnp.conj(truth), atol=1e-4)
    phases = np.angle(crystal[2])
    weights = crystal[1] ** 2
    np.testing.assert_allclose(turned.kept, np.sum(weights * np.cos(2 * phases)) / weights.sum(), atol=1e-3)


def test_a_network_works_on_a_grid_of_its_own(crystal):
    hkl, normalised, truth, _ = crystal
    grid = network_grid(hkl, np.array([5.0, 6.0, 7.0]), (2, 0, 1))
    assert grid == Grid((16, 10, 12), (2, 0, 1))
    placed = grid.place(hkl, normalised.astype(np.float32))
    learned = CrystalProjection(
        Projection(lambda weights, density, told: weights * density + told, 2.0), 0.0, hkl, grid, placed
    )
    factors, projected = learned.passed(truth, 3)
    np.testing.assert_allclose(factors, truth, atol=1e-3)
    assert projected.kept > 0.999
