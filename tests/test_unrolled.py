"""The unrolled network: transforms against NumPy's, the constraint against true cases, symmetry, the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patterson_jax.errors import InputError
from patterson_jax.learning.unrolled import (
    ESTIMATES,
    UnrolledNet,
    centred_points,
    cosine_transform,
    from_blocks,
    inverse_cosine_transform,
    to_blocks,
)
from patterson_jax.simulation.examples import invert_map, make_batch, network_input, stream_key
from patterson_jax.simulation.problem import Problem

PROBLEM = Problem(grid_size=16, num_atoms=3, min_separation=2.4, box_edge=4.0)
NETWORK = UnrolledNet(features=4, kernel_size=3, stages=3, layers=1, input_size=12, output_size=8)


@pytest.fixture(scope='module')
def batch():
    return make_batch(stream_key(3, 'training'), 0, jnp.arange(3), PROBLEM)


@pytest.fixture(scope='module')
def weights(batch):
    return jax.jit(NETWORK.init)(jax.random.key(0), batch.patterson)


def centred_spectrum(maps):
    """NumPy's transform about the box centre, its frequencies in order and without |h| = grid / 2."""
    grid = maps.shape[-1]
    phases = np.exp(1j * np.pi * np.fft.fftfreq(grid) * (grid - 1))
    spectrum = np.fft.fftn(np.asarray(maps, np.float64), axes=(1, 2, 3))
    spectrum = spectrum * phases[:, None, None] * phases[:, None] * phases
    return np.moveaxis(np.fft.fftshift(spectrum, axes=(1, 2, 3))[:, 1:, 1:, 1:], 0, -1)


def inner(maps, size):
    margin = (maps.shape[-1] - size) // 2
    part = slice(margin, margin + size)
    return jnp.moveaxis(maps[:, part, part, part], 0, -1)


def test_the_cosine_transform_is_the_fourier_transform_about_the_box_centre(batch):
    expected = centred_spectrum(batch.target)
    spectrum = cosine_transform(inner(batch.target, 16), centred_points(16), 16)
    np.testing.assert_allclose(expected.imag, 0, atol=1e-5)
    np.testing.assert_allclose(spectrum, expected.real, atol=1e-5)
    narrow = cosine_transform(inner(batch.target, 12), centred_points(12), 16)  # where all the atoms are
    np.testing.assert_allclose(narrow, spectrum, atol=1e-5)


def test_the_inverse_gives_the_map_back_without_its_highest_frequency(batch):
    spectrum = cosine_transform(inner(batch.target, 16), centred_points(16), 16)
    back = inverse_cosine_transform(spectrum, centred_points(16), 16)
    np.testing.assert_allclose(cosine_transform(back, centred_points(16), 16), spectrum, atol=1e-5)
    np.testing.assert_allclose(inverse_cosine_transform(spectrum, centred_points(8), 16), back[4:12, 4:12, 4:12])


def test_a_true_target_is_within_the_amplitudes_and_a_wrong_one_is_not(batch):
    """So that clipping leaves the truth alone and changes what is wrong."""
    vectors = jnp.moveaxis(jnp.fft.fftshift(batch.patterson, axes=(1, 2, 3)), 0, -1)
    amplitudes = jnp.sqrt(jnp.maximum(cosine_transform(vectors, np.arange(16) - 8, 16), 0))
    spectrum = cosine_transform(inner(batch.target, 16), centred_points(16), 16)
    assert jnp.max(jnp.abs(spectrum) - amplitudes) < 0.005  # the root of rounding where |F| is zero
    assert jnp.max(jnp.abs(jnp.roll(spectrum, 1, axis=-1)) - amplitudes) > 1


def test_blocks_hold_their_eight_voxels_and_come_apart_again():
    maps = jnp.arange(4 * 4 * 4 * 2.0).reshape(4, 4, 4, 2)
    image = to_blocks(maps)
    assert image.shape == (2, 2, 2, 8, 2)
    np.testing.assert_array_equal(np.sort(image[1, 0, 1, :, 1]), np.sort(np.ravel(maps[2:, :2, 2:, 1])))
    np.testing.assert_array_equal(from_blocks(image), maps)


def test_the_map_equals_its_inversion_and_is_zero_where_no_atom_can_be(batch, weights):
    output = jax.jit(NETWORK.apply)(weights, network_input(batch.patterson, PROBLEM))
    assert output.shape == batch.target.shape
    np.testing.assert_array_equal(output, invert_map(output))
    assert jnp.std(inner(output, 8)) > 1e-3
    assert jnp.count_nonzero(output) == jnp.count_nonzero(inner(output, 8))


def test_later_stages_depend_on_what_the_amplitudes_allow(batch, weights):
    """A blind network, whose layers that take the constrained maps in are zero, gives another map."""
    blind = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if 'take' in jax.tree_util.keystr(path) else leaf, weights
    )
    inputs = network_input(batch.patterson, PROBLEM)
    assert not np.allclose(NETWORK.apply(weights, inputs), NETWORK.apply(blind, inputs), atol=1e-4)


def test_the_direct_convolution_gives_the_same_map(batch, weights):
    inputs = network_input(batch.patterson, PROBLEM)
    spectral, direct = (NETWORK.clone(convolution=method).apply(weights, inputs) for method in ('spectral', 'direct'))
    np.testing.assert_allclose(spectral, direct, atol=1e-5)


def test_training_lowers_the_errors_of_all_estimates(batch, weights):
    """The loss that is descended is the last estimate's error and `early_weight` times those before it."""
    inputs = network_input(batch.patterson, PROBLEM)

    def errors(weights):
        last, left = NETWORK.apply(weights, inputs, train=True, mutable=[ESTIMATES])
        estimates = [*left[ESTIMATES]['maps'], last]
        return jnp.stack([jnp.mean((estimate - batch.target) ** 2) for estimate in estimates])

    gradients = jax.grad(lambda weights: jnp.dot(errors(weights), jnp.array([0.3, 0.3, 1.0])))(weights)
    assert len(errors(weights)) == 3
    stepped = jax.tree.map(lambda leaf, gradient: leaf - gradient, weights, gradients)
    assert jnp.all(errors(stepped) < errors(weights))
    np.testing.assert_array_equal(NETWORK.apply(weights, inputs), NETWORK.apply(weights, inputs, train=True))


def test_one_stage_makes_one_estimate_and_transforms_nothing(batch):
    network = NETWORK.clone(stages=1)
    inputs = network_input(batch.patterson, PROBLEM)
    weights = network.init(jax.random.key(0), inputs)
    assert not [name for name in weights['params'] if name.startswith('take')]
    assert network.apply(weights, inputs, train=True, mutable=[ESTIMATES])[1] == {}


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('features', 0),
        ('kernel_size', 4),
        ('stages', 0),
        ('layers', -1),
        ('input_size', 10),
        ('output_size', 16),
        ('convolution', 'fft'),
        ('precision', 'float16'),
    ],
)
def test_a_size_that_is_none_is_named(field, value):
    with pytest.raises(InputError, match=f'^{field} is {value!r}; it must be'):
        UnrolledNet(**{'input_size': 12, 'output_size': 8, field: value})


def test_maps_smaller_than_what_is_seen_are_refused():
    with pytest.raises(InputError, match='input_size is 28; it must be at most the edge of the maps, 16'):
        UnrolledNet().init(jax.random.key(0), jnp.zeros((1, 16, 16, 16)))
