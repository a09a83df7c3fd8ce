"""Examples: each belongs to its seed, stream, set and index alone, and its maps are what the paper says they are."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patterson_jax.simulation.density import render
from patterson_jax.simulation.encoding import Encoding, network_input, target_map
from patterson_jax.simulation.examples import STREAMS, example_key, make_batch, make_example, stream_key
from patterson_jax.simulation.maps import invert_map, middle, surround
from patterson_jax.simulation.patterson import frequencies, intensities, patterson_intensities, patterson_map
from patterson_jax.simulation.problem import Problem

PROBLEM = Problem(grid_size=16, num_atoms=4, box_edge=6.0)

NOISY = PROBLEM.changed(noise=0.2, resolution=6.0)

batch_of = jax.jit(functools.partial(make_batch, problem=PROBLEM))
noisy_batch_of = jax.jit(functools.partial(make_batch, problem=NOISY))


@jax.jit
def density_of(positions):
    return render(positions, PROBLEM.grid_size, PROBLEM.atom_radius)


@functools.cache
def one_batch():
    return jax.tree.map(np.asarray, batch_of(stream_key(0, 'training'), 3, jnp.array([5, 0, 9])))


def test_an_example_is_the_same_bit_for_bit_in_any_batch():
    batch = one_batch()
    stream = stream_key(0, 'training')
    for indices, here, there in (([9, 2, 5], [2, 0], [0, 2]), ([5, 5, 1], [0, 1], [0, 0]), ([7, 0, 8], [1], [1])):
        other = batch_of(stream, 3, jnp.array(indices))
        for name in batch._fields:
            np.testing.assert_array_equal(getattr(other, name)[np.array(here)], getattr(batch, name)[np.array(there)])
    alone = jax.jit(functools.partial(make_example, problem=PROBLEM))(example_key(stream, 3, 9))
    for name in batch._fields:
        np.testing.assert_array_equal(getattr(alone, name), getattr(batch, name)[2])


def test_the_noise_of_an_example_is_its_own_in_any_batch_and_its_atoms_are_those_without_noise():
    stream, clean = stream_key(0, 'training'), one_batch()
    batch = noisy_batch_of(stream, 3, jnp.array([5, 0, 9]))
    np.testing.assert_array_equal(batch.positions, clean.positions)
    np.testing.assert_array_equal(batch.target, clean.target)
    other = noisy_batch_of(stream, 3, jnp.array([9, 2, 5]))
    for here, there in ((0, 2), (2, 0)):
        for name in batch._fields:
            np.testing.assert_array_equal(getattr(other, name)[here], getattr(batch, name)[there])
    assert not np.allclose(batch.patterson, clean.patterson, atol=0.1)


def test_noise_has_the_problems_size_and_is_independent_from_case_to_case():
    batch = noisy_batch_of(stream_key(0, 'training'), 3, jnp.array([5, 0, 9]))
    lengths = np.linalg.norm(frequencies(16), axis=-1)
    inside, draws = (lengths > 0) & (lengths <= 6) & (frequencies(16)[..., 2] > 0), []
    for positions, patterson in zip(batch.positions, batch.patterson, strict=True):
        exact, measured = np.asarray(intensities(density_of(positions))), np.asarray(patterson_intensities(patterson))
        np.testing.assert_allclose(measured[lengths > 6], 0, atol=1e-4)
        assert measured[0, 0, 0] == pytest.approx(exact[0, 0, 0], rel=1e-5)
        draws.append(np.where(exact > 0.5, np.sqrt(np.maximum(measured, 0) / exact) - 1, 0)[inside])
        assert np.std(draws[-1][draws[-1] != 0]) == pytest.approx(0.2, rel=0.15)
    correlations = np.corrcoef(draws)
    assert np.all(np.abs(correlations[~np.eye(3, dtype=bool)]) < 0.2)


def test_seed_stream_set_and_index_each_make_another_example():
    cases = itertools.product((0, 1, 2**32 - 1), STREAMS, (0, 1, 2), [jnp.arange(3)])
    batches = [batch_of(stream_key(seed, stream), number, indices) for seed, stream, number, indices in cases]
    positions = np.concatenate([batch.positions for batch in batches])
    assert positions.shape == (3 * len(STREAMS) * 3 * 3, 4, 3)
    assert len(np.unique(positions, axis=0)) == len(positions)


def test_each_example_of_a_batch_may_be_of_a_set_of_its_own():
    sets, indices = [7, 0, 3], jnp.array([5, 5, 9])
    batch = batch_of(stream_key(0, 'training'), jnp.array(sets), indices)
    for number, set_number in enumerate(sets):
        whole = batch_of(stream_key(0, 'training'), set_number, indices)
        for name in batch._fields:
            np.testing.assert_array_equal(getattr(batch, name)[number], getattr(whole, name)[number])
    assert len(np.unique(batch.positions, axis=0)) == 3


def test_streams_are_told_apart_by_numbers_of_their_own():
    assert len(set(STREAMS.values())) == len(STREAMS)
    assert {'training', 'validation', 'calibration', 'evaluation'} <= STREAMS.keys()


def test_the_patterson_map_is_that_of_the_atoms_alone():
    batch = one_batch()
    for positions, patterson in zip(batch.positions, batch.patterson, strict=True):
        expected = patterson_map(density_of(positions))
        np.testing.assert_allclose(patterson, expected, atol=1e-5)


def test_the_target_is_the_mean_of_the_structure_and_its_inverse():
    batch = one_batch()
    np.testing.assert_array_equal(invert_map(batch.target), batch.target)
    for positions, target in zip(batch.positions, batch.target, strict=True):
        first, second = density_of(positions), density_of(-positions)
        np.testing.assert_allclose(target, (first + second) / 2, atol=1e-5)  # measured 1e-6
        assert target.min() >= 0
        assert target.max() <= 1
        assert target.sum() == pytest.approx(PROBLEM.num_atoms * PROBLEM.atom_volume, rel=1e-5)


def test_the_original_target_is_half_the_structure():
    problem = PROBLEM.changed(target='original')
    batch = one_batch()
    key = example_key(stream_key(0, 'training'), 3, 5)
    other = jax.jit(functools.partial(make_example, problem=problem))(key)
    np.testing.assert_array_equal(other.positions, batch.positions[0])
    np.testing.assert_allclose(other.target, density_of(other.positions) / 2, atol=1e-6)
    np.testing.assert_allclose(other.target + invert_map(other.target), batch.target[0], atol=1e-6)
    assert not np.allclose(other.target, invert_map(other.target), atol=0.1)


def test_inversion_takes_each_voxel_to_its_mirror_image_and_back():
    density = np.arange(2 * 8**3, dtype=np.float32).reshape(2, 8, 8, 8)
    inverted = invert_map(jnp.asarray(density))
    np.testing.assert_array_equal(inverted[:, 0, 2, 7], density[:, 7, 5, 0])
    np.testing.assert_array_equal(invert_map(inverted), density)
    np.testing.assert_array_equal(
        target_map(jnp.asarray(density), PROBLEM.encoding)[0], np.full((8, 8, 8), (8**3 - 1) / 2)
    )


def test_the_networks_input_has_the_origin_where_the_problem_says():
    patterson = one_batch().patterson
    height = PROBLEM.encoding.input_scale * PROBLEM.num_atoms
    scaled = patterson * (height / patterson[:, 0, 0, 0])[:, None, None, None]
    corner, centred = (
        np.asarray(network_input(patterson, PROBLEM.num_atoms, Encoding(origin=origin)))
        for origin in ('corner', 'centre')
    )
    np.testing.assert_allclose(corner, scaled, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(centred, np.fft.fftshift(corner, axes=(1, 2, 3)))
    assert not np.allclose(centred, corner, atol=0.1)
    np.testing.assert_array_equal(np.argmax(corner.reshape(3, -1), axis=1), 0)


@pytest.mark.parametrize('input_scale', [0.7, 2.0])
def test_the_networks_input_does_not_depend_on_the_scale_of_the_map(input_scale):
    problem = PROBLEM.changed(input_scale=input_scale)
    patterson = one_batch().patterson
    given = network_input(patterson, problem.num_atoms, problem.encoding)
    np.testing.assert_allclose(given[:, 8, 8, 8], input_scale * problem.num_atoms, rtol=1e-6)
    assert set(np.argmax(np.asarray(given).reshape(3, -1), axis=1)) == {8 * 16**2 + 8 * 16 + 8}
    back = np.fft.ifftshift(given, (1, 2, 3))
    np.testing.assert_allclose(back / back[:, :1, :1, :1], patterson / patterson[:, :1, :1, :1], atol=1e-6)
    for scale in (1e-3, 37.0):
        np.testing.assert_allclose(
            network_input(scale * patterson, problem.num_atoms, problem.encoding), given, rtol=1e-5, atol=1e-6
        )
    np.testing.assert_allclose(
        network_input(patterson[0], problem.num_atoms, problem.encoding), given[0], rtol=1e-6, atol=1e-6
    )


def test_the_middle_of_an_example_is_its_voxels_there_and_keeps_origin_and_centre():
    """Of voxels 2 to 13 of 16 the origin of the Patterson map is voxel 6, half of 12, and inversion is theirs."""
    batch = one_batch()
    inputs, targets = network_input(batch.patterson, PROBLEM.num_atoms, PROBLEM.encoding), jnp.asarray(batch.target)
    inner, target = np.asarray(middle(inputs, 12)), np.asarray(middle(targets, 12))
    np.testing.assert_array_equal(inner, np.asarray(inputs)[:, 2:14, 2:14, 2:14])
    np.testing.assert_array_equal(target, batch.target[:, 2:14, 2:14, 2:14])
    for each in inner:
        assert np.unravel_index(np.argmax(each), each.shape) == (6, 6, 6)
    np.testing.assert_array_equal(invert_map(target), target)
    np.testing.assert_array_equal(np.asarray(surround(jnp.asarray(target), 16)), batch.target)  # nothing lay outside
