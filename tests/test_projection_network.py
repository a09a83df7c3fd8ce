"""The learned projection's network: periodic, of one set of weights for every grid, and small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patterson_jax.errors import InputError
from patterson_jax.networks.projection import (
    NUM_CONDITIONS,
    ProjectionNet,
    conditions,
    into_blocks,
    out_of_blocks,
    periodic_convolution,
)

SMALL = ProjectionNet(features=4, num_blocks=1)
SHAPE = (6, 8, 10)


def initial(network, spread=0.0):
    """First weights; with a spread, none of them is zero."""
    weights = network.init(jax.random.key(0), jnp.zeros((1, *SHAPE)), jnp.zeros((1, NUM_CONDITIONS)))
    return jax.tree.map(lambda each: each + spread * jax.random.normal(jax.random.key(1), each.shape), weights)


def test_products_are_the_convolution_that_wraps_around_in_value_and_gradients():
    """Against a sum over the 27 taps, and the gradients of XLA's own operator."""
    image = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 3, 2))
    weights = jax.random.normal(jax.random.key(2), (2, 3, 4, 5, 2))

    def value(image, kernel, method):
        return jnp.sum(weights * periodic_convolution(image, kernel, method) ** 2)

    expected = sum(
        np.roll(np.asarray(image, float), (1 - i, 1 - j, 1 - k), (1, 2, 3)) @ np.asarray(kernel[i, j, k], float)
        for i, j, k in np.ndindex(3, 3, 3)
    )
    np.testing.assert_allclose(periodic_convolution(image, kernel, 'products'), expected, rtol=1e-4, atol=1e-4)
    ours, theirs = (jax.grad(value, (0, 1))(image, kernel, method) for method in ('products', 'direct'))
    for each, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(each, other, rtol=1e-4, atol=1e-3)


def test_what_moves_by_blocks_moves_in_the_output_too_across_the_border():
    weights = initial(SMALL, 0.1)
    density = jax.random.normal(jax.random.key(2), (1, *SHAPE))
    told = jax.random.normal(jax.random.key(3), (1, NUM_CONDITIONS))
    steps = {'shift': (4, -2, 6), 'axis': (1, 2, 3)}
    moved = SMALL.apply(weights, jnp.roll(density, **steps), told)
    np.testing.assert_allclose(moved, jnp.roll(SMALL.apply(weights, density, told), **steps), rtol=1e-3, atol=1e-5)
    assert not np.allclose(moved, SMALL.apply(weights, density, told), atol=1e-2)


def test_one_set_of_weights_serves_every_grid_and_is_small():
    network = ProjectionNet()
    weights = jax.eval_shape(lambda: initial(network))
    count = sum(leaf.size for leaf in jax.tree.leaves(weights))
    assert 50_000 < count < 100_000
    for shape in (SHAPE, (12, 8, 20)):
        maps, told = (
            jax.ShapeDtypeStruct((2, *shape), jnp.float32),
            jax.ShapeDtypeStruct((2, NUM_CONDITIONS), jnp.float32),
        )
        output = jax.eval_shape(network.apply, weights, maps, told)
        assert (output.shape, output.dtype) == (maps.shape, maps.dtype)


def test_blocks_are_the_voxels_of_a_map():
    density = jnp.arange(2 * 4 * 6 * 8.0).reshape(2, 4, 6, 8)
    blocks = into_blocks(density)
    assert blocks.shape == (2, 2, 3, 4, 8)
    np.testing.assert_array_equal(blocks[1, 1, 2, 0], density[1, 2:4, 4:6, :2].ravel())
    np.testing.assert_array_equal(out_of_blocks(blocks), density)


def test_conditions_tell_resolution_noise_completeness_and_the_voxel():
    """A voxel of 0.5 Å with right angles, data to 1.3 Å without errors or gaps: all are 0."""
    cell = np.diag([5.0, 6.0, 7.0]).astype(np.float32)
    usual = conditions(cell, (10, 12, 14), *np.float32([1.3, 0, 1]))
    np.testing.assert_allclose(usual, np.zeros(NUM_CONDITIONS), atol=1e-5)
    cell[2, 0] = 7.0  # c and a make 45°
    other = conditions(cell, (10, 12, 14), *np.float32([1.1, 0.1, 0.9]))
    np.testing.assert_allclose(other, [-1, 1, 1, 0, 0, 5 * (2**0.5 - 1), 0, 3 * 0.5**0.5, 0], atol=1e-4)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'features': 0}, 'features is 0; it must be 1 or more'),
        ({'num_blocks': -1}, 'num_blocks is -1; it must be 0 or more'),
        ({'convolution': 'fast'}, "convolution is 'fast'; it must be one of auto, products, direct"),
    ],
)
def test_an_impossible_network_is_refused_in_words(fields, message):
    with pytest.raises(InputError, match=message):
        ProjectionNet(**fields)
