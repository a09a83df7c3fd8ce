"""Patterson maps against sums over pairs of voxels and of atoms; the bookkeeping of frequencies by enumeration."""

import functools
import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patterson_jax.simulation.density import render
from patterson_jax.simulation.maps import centre_origin
from patterson_jax.simulation.measurement import measured_map
from patterson_jax.simulation.patterson import (
    atom_factors,
    frequencies,
    friedel_representatives,
    intensities,
    low_frequencies,
    measured_frequencies,
    patterson_intensities,
    patterson_map,
    structure_factors,
)
from patterson_jax.simulation.problem import Problem

GRID = 8
NOISY = Problem.of(grid_size=16, num_atoms=4, box_edge=8.0, noise=0.1)
POSITIONS = np.array([(0.25, -1.5, 2.125), (3.0, 1.75, 0.5), (-2.5, -3.125, -0.75), (1.0, 2.5, -3.5)], np.float32)


@functools.partial(jax.jit, static_argnums=1)
def density_of(positions, grid_size=GRID):
    return render(positions, grid_size, 1.0)


def at_opposite_vectors(patterson):
    """The map with voxel u taken from voxel −u."""
    return np.roll(np.flip(patterson, (-3, -2, -1)), 1, (-3, -2, -1))


def test_the_map_is_the_sum_over_pairs_of_voxels():
    density = np.random.default_rng(0).normal(size=(2, GRID, GRID, GRID))
    expected = np.zeros_like(density)
    for shift in itertools.product(range(GRID), repeat=3):
        moved = np.roll(density, np.negative(shift), (1, 2, 3))
        expected[:, *shift] = np.sum(density * moved, axis=(1, 2, 3))
    patterson = patterson_map(density.astype(np.float32))
    np.testing.assert_allclose(patterson, expected, atol=1e-6 * expected.max())  # measured 2e-7


def test_translation_by_whole_voxels_and_inversion_leave_the_map_as_it_is():
    patterson = patterson_map(density_of(POSITIONS))
    moved = density_of(POSITIONS + np.array([[2, -5, 11]], np.float32))
    assert not np.allclose(moved, density_of(POSITIONS), atol=0.1)
    for density in (moved, density_of(-POSITIONS)):
        np.testing.assert_allclose(patterson_map(density), patterson, atol=1e-6 * patterson[0, 0, 0])


def test_the_map_is_symmetric_and_highest_at_the_origin():
    patterson = np.asarray(patterson_map(density_of(POSITIONS)))
    np.testing.assert_allclose(at_opposite_vectors(patterson), patterson, atol=1e-6 * patterson.max())
    assert np.argmax(patterson) == 0
    assert np.sort(patterson, axis=None)[-2] < 0.5 * patterson[0, 0, 0]


def test_atoms_of_one_voxel_show_each_vector_between_two_of_them_once():
    voxels = [(1, 2, 3), (4, 2, 9), (15, 0, 7), (6, 11, 8), (8, 5, 0), (0, 14, 13)]
    density = np.zeros((16, 16, 16), np.float32)
    density[tuple(np.transpose(voxels))] = 1
    pairs = itertools.product(voxels, repeat=2)
    vectors = Counter(tuple((int(b) - int(a)) % 16 for a, b in zip(*pair, strict=True)) for pair in pairs)
    assert len(vectors) == 6 * 5 + 1
    patterson = np.asarray(patterson_map(density))
    assert np.sum(patterson > 0.5) == 6 * 5 + 1
    for vector, count in vectors.items():
        assert patterson[vector] == pytest.approx(count, abs=1e-5)


def test_structure_factors_are_the_sums_that_their_frequencies_say():
    density = np.random.default_rng(1).normal(size=(6, 6, 6))
    voxels = np.stack(np.meshgrid(*3 * [np.arange(6)], indexing='ij'), axis=-1)
    waves = np.exp(-2j * np.pi / 6 * np.einsum('hkld,xyzd->hklxyz', frequencies(6), voxels))
    expected = np.einsum('hklxyz,xyz->hkl', waves, density)
    np.testing.assert_allclose(structure_factors(density.astype(np.float32)), expected, atol=1e-4)  # measured 1e-5


def test_the_spectrum_of_a_patterson_map_is_the_intensities_of_its_density():
    density = density_of(POSITIONS)
    expected = np.abs(np.fft.rfftn(np.asarray(density, np.float64))) ** 2
    np.testing.assert_allclose(intensities(density), expected, atol=1e-5 * expected.max())
    np.testing.assert_allclose(patterson_intensities(patterson_map(density)), expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize('grid_size', [8, 10])
@pytest.mark.parametrize('resolution', [1, 2.5, 4, 5, 20])  # half the grid and beyond, where h and −h may be the same
def test_low_frequencies_hold_each_pair_of_opposites_in_the_sphere_once(grid_size, resolution):
    def pair(h):
        return frozenset((tuple(np.asarray(h) % grid_size), tuple(-np.asarray(h) % grid_size)))

    whole = itertools.product(range(-grid_size // 2, grid_size // 2), repeat=3)
    expected = {pair(h) for h in whole if 0 < np.dot(h, h) <= resolution**2}
    chosen = low_frequencies(grid_size, resolution)
    held = [pair(h) for h in chosen]
    assert len(held) == len(set(held))
    assert set(held) == expected
    assert chosen[:, 2].min() >= 0
    assert np.sum(chosen**2, axis=-1).max() <= resolution**2


@pytest.mark.parametrize('radius', [1.0, 1.7])
def test_the_factors_of_an_atom_are_those_of_its_rendered_map(radius):
    grid_size = 12
    chosen = frequencies(grid_size).reshape(-1, 3)
    positions = np.random.default_rng(3).uniform(-9, 9, (6, 3)).astype(np.float32)  # some in the next box

    @jax.jit
    def both(position):
        factors = structure_factors(render(position[None], grid_size, radius))
        return factors.ravel(), atom_factors(position, chosen, grid_size, radius)

    rendered, direct = jax.vmap(both)(positions)
    tolerance = 1e-5 * 4 / 3 * np.pi * radius**3
    np.testing.assert_allclose(direct, rendered, atol=tolerance)
    together = jax.jit(lambda atoms: structure_factors(render(atoms, grid_size, radius)).ravel())(positions)
    np.testing.assert_allclose(np.sum(direct, axis=0), together, atol=len(positions) * tolerance)


def test_the_factors_of_an_atom_come_in_the_order_asked_for():
    chosen = low_frequencies(GRID, 2.5)
    order = np.random.default_rng(4).permutation(len(chosen))

    @jax.jit
    def both(position):
        return atom_factors(position, chosen, GRID, 1.0), atom_factors(position, chosen[order], GRID, 1.0)

    factors, shuffled = both(POSITIONS[0])
    np.testing.assert_array_equal(shuffled, factors[order])


def test_centring_takes_the_origin_to_half_the_grid_and_twice_brings_it_back():
    patterson = np.random.default_rng(5).normal(size=(2, GRID, GRID, GRID)).astype(np.float32)
    centred = centre_origin(patterson)
    np.testing.assert_array_equal(centred[:, 4, 4, 4], patterson[:, 0, 0, 0])
    np.testing.assert_array_equal(centred[:, 5, 3, 0], patterson[:, 1, 7, 4])
    np.testing.assert_array_equal(centre_origin(centred), patterson)


def noisy_amplitudes(key, density, problem):
    """|F| over the half space behind a measured map, as parts of those of the density."""
    exact = np.sqrt(np.asarray(intensities(density), np.float64))
    squares = np.asarray(patterson_intensities(measured_map(key, density, problem.measurement)), np.float64)
    return np.sqrt(np.maximum(squares, 0)) / exact


def white_density(grid_size):
    """A map whose amplitudes are all far from zero, so that each can be told to a few millionths."""
    density = 0.03 * np.random.default_rng(6).normal(size=(grid_size,) * 3)
    density[0, 0, 0] += 10
    return jnp.asarray(density, jnp.float32)


def test_a_clean_and_complete_measurement_is_the_patterson_map_bit_for_bit():
    density = density_of(POSITIONS, 16)
    problem = NOISY.changed(noise=0.0)
    np.testing.assert_array_equal(measured_map(jax.random.key(0), density, problem.measurement), patterson_map(density))


@pytest.mark.parametrize('noise', [0.03, 0.3])
def test_noise_is_in_proportion_to_the_amplitude_and_leaves_the_total_density_alone(noise):
    density = white_density(16)
    problem = NOISY.changed(noise=noise)
    parts = np.stack([noisy_amplitudes(jax.random.key(seed), density, problem) for seed in range(40)])
    np.testing.assert_allclose(parts[:, 0, 0, 0], 1, atol=1e-4)
    away = parts.reshape(40, -1)[:, 1:]
    assert np.mean(away) == pytest.approx(1, abs=0.02 * noise + 0.001)  # a few of |1 + 0.3 g| come from below zero
    assert np.std(away) == pytest.approx(noise, rel=0.02)
    deviations = np.std(away, axis=0)  # of each frequency by itself
    assert deviations.min() > 0.5 * noise
    assert deviations.max() < 1.7 * noise


def test_noise_is_the_same_for_opposite_frequencies_and_of_its_own_for_others():
    patterson = np.asarray(measured_map(jax.random.key(3), white_density(16), NOISY.measurement))
    np.testing.assert_allclose(at_opposite_vectors(patterson), patterson, atol=1e-6 * patterson.max())
    parts = noisy_amplitudes(jax.random.key(3), white_density(16), NOISY) - 1
    values = np.round(parts / 1e-4).ravel()
    values = np.unique(values)
    pairs = len(np.unique(friedel_representatives(16)))
    assert 0.6 * pairs < len(values) <= pairs  # some are as near to one another by chance
    draws = parts[:, :, 1:8].ravel()
    for shift in (1, 7, 16, 7 * 16):
        assert abs(np.corrcoef(draws[:-shift], draws[shift:])[0, 1]) < 0.1


def test_noise_differs_from_key_to_key_without_correlation():
    density = white_density(16)
    draws = [noisy_amplitudes(jax.random.key(seed), density, NOISY)[:, :, 1:8].ravel() - 1 for seed in range(4)]
    np.testing.assert_array_equal(noisy_amplitudes(jax.random.key(2), density, NOISY)[:, :, 1:8].ravel() - 1, draws[2])
    correlations = np.corrcoef(draws)
    assert np.all(np.abs(correlations[~np.eye(4, dtype=bool)]) < 0.1)


@pytest.mark.parametrize('noise', [0.0, 0.2])
@pytest.mark.parametrize('resolution', [1.0, 3.0, 5.5, 8.0, 11.0])
def test_amplitudes_beyond_the_resolution_are_zero_and_the_others_as_without_it(resolution, noise):
    density = white_density(16)
    whole = NOISY.changed(noise=noise)
    cut = whole.changed(resolution=resolution)
    before, after = (
        np.asarray(patterson_intensities(measured_map(jax.random.key(1), density, each.measurement)))
        for each in (whole, cut)
    )
    lengths = np.linalg.norm(frequencies(16), axis=-1)
    inside = lengths <= resolution + 1e-9
    np.testing.assert_allclose(after[~inside], 0, atol=1e-3)
    np.testing.assert_allclose(after[inside], before[inside], atol=1e-3)
    assert before[~inside].min(initial=np.inf) > 1
    np.testing.assert_array_equal(measured_frequencies(16, resolution), inside)
    assert np.all(measured_frequencies(16, None))


@pytest.mark.parametrize('grid_size', [8, 10])
def test_representatives_are_the_same_for_opposite_frequencies_alone(grid_size):
    def pair(h):
        return frozenset((tuple(h % grid_size), tuple(-h % grid_size)))

    members = {}
    flat = frequencies(grid_size).reshape(-1, 3)
    for h, representative in zip(flat, friedel_representatives(grid_size).ravel(), strict=True):
        assert pair(flat[representative]) == pair(h)
        members.setdefault(representative, set()).add(pair(h))
    assert all(len(pairs) == 1 for pairs in members.values())
    assert len(members) == len({pair(h) for h in flat})
