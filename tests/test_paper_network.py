"""The network: the paper's count of weights, its initialisation, its reach, and the same numbers by either method."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patterson_jax.errors import InputError
from patterson_jax.learning.parallel import parallelize
from patterson_jax.networks.convolution import convolve
from patterson_jax.networks.layers import Convolution, max_pool, upsample
from patterson_jax.networks.paper import PattersonNet

SMALL = {'features': 3, 'encoder_depth': 1, 'inner_depth': 1}


def small_parameters():
    """Parameters of a small network, its biases other than zero, and an input for it."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 12, 12, 12)).astype(np.float32)
    shapes = jax.eval_shape(PattersonNet(**SMALL).init, jax.random.key(0), image)
    deviations = jax.tree.map(lambda leaf: 0.1 if leaf.ndim == 1 else np.sqrt(2 / np.prod(leaf.shape[:-1])), shapes)

    def draw(leaf, deviation):
        return rng.normal(0, deviation, leaf.shape).astype(np.float32)

    return jax.tree.map(draw, shapes, deviations), image


def test_the_default_network_has_the_papers_layers_and_weights():
    image = jax.ShapeDtypeStruct((1, 40, 40, 40), jnp.float32)
    parameters = jax.eval_shape(PattersonNet().init, jax.random.key(0), image)['params']
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters)) == 1_202_821
    kernels = [layer['kernel'].shape for layer in parameters.values()]
    assert len(kernels) == 12
    assert sorted(kernel[0] for kernel in kernels) == 4 * [5] + 8 * [7]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(parameters))
    output = jax.eval_shape(PattersonNet().apply, {'params': parameters}, image)
    assert output.shape == image.shape


def test_weights_start_he_normal_and_biases_at_zero():
    layer = Convolution(features=20, kernel_size=7, method='direct')
    parameters = jax.jit(layer.init)(jax.random.key(1), jnp.zeros((2, 2, 2, 20, 1)))['params']
    kernel = np.asarray(parameters['kernel'])
    assert kernel.shape == (7, 7, 7, 20, 20)
    assert kernel.std() == pytest.approx(np.sqrt(2 / (7**3 * 20)), rel=0.01)  # one sigma is 0.002
    assert abs(kernel.mean()) < 4 * kernel.std() / np.sqrt(kernel.size)
    np.testing.assert_array_equal(parameters['bias'], np.zeros(20))


def test_spectral_and_direct_networks_give_the_same_map_from_the_same_weights():
    parameters, image = small_parameters()
    spectral, direct = (
        jax.jit(PattersonNet(**SMALL, convolution=method).apply)(parameters, image) for method in ('spectral', 'direct')
    )
    assert direct.shape == image.shape
    assert np.abs(direct).max() < 1
    assert np.std(direct) > 0.1
    np.testing.assert_allclose(spectral, direct, atol=1e-5)  # measured 1e-6


def test_half_precision_between_layers_leaves_weights_and_map_in_single_precision():
    parameters, image = small_parameters()
    network = PattersonNet(**SMALL, precision='bfloat16')
    kinds = jax.eval_shape(network.init, jax.random.key(0), image)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(kinds)} == {'float32'}

    def apply(network):
        return jax.jit(
            lambda parameters: network.apply(parameters, image, mutable=['intermediates'], capture_intermediates=True)
        )(parameters)

    (half, state), (single, _) = apply(network), apply(PattersonNet(**SMALL))
    between = [value for name, value in state['intermediates'].items() if name != '__call__']
    assert {leaf.dtype.name for leaf in jax.tree.leaves(between)} == {'bfloat16'}
    assert half.dtype == single.dtype == jnp.float32
    error = np.linalg.norm(half - single) / np.linalg.norm(single)
    assert 1e-5 < error < 0.05  # rounded to eight binary places layer after layer, not to fewer


def test_pooling_takes_the_largest_of_each_block_of_eight():
    image = np.random.default_rng(2).normal(size=(4, 6, 8, 2, 3)).astype(np.float32)
    expected = image.reshape(2, 2, 3, 2, 4, 2, 2, 3).max(axis=(1, 3, 5))
    pooled, gradient = jax.jit(lambda each: (max_pool(each), jax.grad(lambda x: jnp.sum(max_pool(x)))(each)))(image)
    np.testing.assert_array_equal(pooled, expected)
    largest = image == np.kron(expected, np.ones((2, 2, 2, 1, 1), np.float32))
    np.testing.assert_array_equal(gradient, largest)


def test_up_sampling_repeats_each_value_over_a_block_of_eight():
    image = np.random.default_rng(3).normal(size=(2, 3, 4, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(upsample)(image), np.kron(image, np.ones((2, 2, 2, 1, 1), np.float32)))


def test_a_network_of_the_middle_is_the_network_on_the_cut_out_middle_with_zeros_around():
    """And so are its gradients, by the weights and by the map, of which the rest of the voxels counts for nothing."""
    parameters, image = small_parameters()
    inside = (slice(None), *(slice(2, 10),) * 3)

    def of_the_middle(parameters, image):
        return PattersonNet(**SMALL, input_size=8).apply(parameters, image)

    def cut_out(parameters, image):
        return jnp.zeros_like(image).at[inside].set(PattersonNet(**SMALL).apply(parameters, image[inside]))

    def with_gradients(apply):
        target = np.random.default_rng(4).uniform(size=image.shape).astype(np.float32)

        def loss(parameters, image):
            density = apply(parameters, image)
            return jnp.mean((density - target) ** 2), density

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(parameters, image)

    ours, theirs = with_gradients(of_the_middle), with_gradients(cut_out)
    jax.tree.map(lambda first, second: np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-8), ours, theirs)
    (_, density), (_, by_map) = ours
    assert np.std(density[inside]) > 0.1
    for each in (density, by_map):
        assert np.count_nonzero(each) == np.count_nonzero(each[inside]) > 0.9 * 2 * 8**3


def test_maps_smaller_than_the_middle_are_refused():
    parameters, image = small_parameters()
    with pytest.raises(InputError, match=r'^input_size is 14; it must be at most the edge of the maps, 12'):
        PattersonNet(**SMALL, input_size=14).apply(parameters, image)


@pytest.mark.parametrize(('outer', 'inner', 'depths', 'voxel'), [(3, 3, (1, 1, 0), 7), (5, 3, (1, 2, 1), 12)])
def test_an_output_voxel_sees_just_as_far_as_the_layers_reach(outer, inner, depths, voxel):
    grid = 24
    low = high = voxel
    for _ in range(1 + depths[2]):  # output layer and decoder
        low, high = low - outer // 2, high + outer // 2
    low, high = low // 2, high // 2  # up-sampling
    low, high = low - depths[1] * (inner // 2), high + depths[1] * (inner // 2)
    low, high = 2 * low, 2 * high + 1  # pool
    low, high = low - depths[0] * (outer // 2), high + depths[0] * (outer // 2)
    assert low >= 0 and high < grid

    net = PattersonNet(1, outer, inner, *depths, convolution='direct')
    # Positive weights keep every unit alive. The pool passes one voxel of eight, another one for each of the images.
    images = np.ones((2, 2, 2, grid, grid, grid), np.float32)
    for x, y, z in np.ndindex(2, 2, 2):
        images[x, y, z, x::2, y::2, z::2] = 2
    images = images.reshape(8, grid, grid, grid)
    shapes = jax.eval_shape(net.init, jax.random.key(0), images[:1])
    parameters = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1 / max(leaf.size, 2)), shapes)
    gradient = jax.jit(jax.grad(lambda image: jnp.sum(net.apply(parameters, image)[:, voxel, voxel, voxel])))(images)
    seen = np.any(np.asarray(gradient) != 0, axis=0)
    expected = np.zeros((grid,) * 3, bool)
    expected[low : high + 1, low : high + 1, low : high + 1] = True
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('features', 0),
        ('outer_kernel_size', 4),
        ('outer_kernel_size', -1),
        ('inner_kernel_size', 0),
        ('inner_kernel_size', 6),
        ('encoder_depth', -1),
        ('inner_depth', -2),
        ('decoder_depth', -1),
        ('convolution', 'fft'),
        ('precision', 'float16'),
        ('batch_norm', 'late'),
        ('input_size', -2),
        ('input_size', 9),
    ],
)
def test_a_bad_size_is_refused_by_name_and_value(field, value):
    with pytest.raises(InputError) as refusal:
        PattersonNet(**{field: value})
    assert str(refusal.value).startswith(f'{field} is {value!r}; it must be ')


def hidden_layers(network):
    parts = (('encoder', network.encoder_depth), ('inner', network.inner_depth), ('decoder', network.decoder_depth))
    return [f'{part}_{number}' for part, depth in parts for number in range(depth)]


@pytest.mark.parametrize(
    ('batch_norm', 'normalised'),
    [('none', []), ('early', ['encoder_0', 'encoder_1']), ('all', hidden_layers(PattersonNet()))],
)
def test_normalised_layers_have_a_scale_a_bias_and_running_averages_of_each_channel(batch_norm, normalised):
    image = jax.ShapeDtypeStruct((1, 40, 40, 40), jnp.float32)
    network = PattersonNet(batch_norm=batch_norm)
    variables = jax.eval_shape(network.init, jax.random.key(0), image)
    shapes = jax.tree.map(lambda leaf: leaf.shape, variables)
    norms = {f'{name}_norm' for name in normalised}
    assert shapes.get('batch_stats', {}) == {name: {'mean': (20,), 'var': (20,)} for name in norms}
    assert set(shapes) == ({'params', 'batch_stats'} if norms else {'params'})
    expected = jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(PattersonNet().init, jax.random.key(0), image))
    for name in normalised:  # which takes the convolution's bias out again
        del expected['params'][name]['bias']
        expected['params'][f'{name}_norm'] = {'bias': (20,), 'scale': (20,)}
    assert shapes['params'] == expected['params']
    weights = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
    assert weights == 1_202_821 + 20 * len(normalised)


NORMALISED = PattersonNet(
    features=3, outer_kernel_size=3, inner_kernel_size=3, encoder_depth=1, inner_depth=1, batch_norm='all'
)


@pytest.fixture(scope='module')
def normalisation():
    """Variables far from where they start, and what goes into and out of each normalisation, in training and without.

    Returns (variables, {mode: {layer: (before, after)}}, statistics that training updated).
    """
    rng = np.random.default_rng(1)
    images = rng.normal(size=(4, 8, 8, 8)).astype(np.float32)
    shapes = jax.eval_shape(NORMALISED.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.1, 0.4, leaf.shape).astype(np.float32), shapes)

    def apply(variables, images, train):
        _, state = NORMALISED.apply(
            variables, images, train, mutable=['intermediates', 'batch_stats'], capture_intermediates=True
        )
        outputs = {name: each['__call__'][0] for name, each in state['intermediates'].items() if name != '__call__'}
        return outputs, state['batch_stats']

    outputs, statistics = {}, {}
    for mode in ('training', 'inference'):
        run = parallelize(functools.partial(apply, train=mode == 'training'))
        outputs[mode], statistics[mode] = jax.device_get(run(variables, images))
    for name, kept in statistics['inference'].items():
        for moment, values in kept.items():
            np.testing.assert_array_equal(values, variables['batch_stats'][name][moment])
    pairs = {
        mode: {name: (each[name], each[f'{name}_norm']) for name in hidden_layers(NORMALISED)}
        for mode, each in outputs.items()
    }
    return variables, pairs, statistics['training']


def moments(image):
    axes = (0, 1, 2, 4)
    return np.mean(image, axes, dtype=np.float64), np.var(image, axes, dtype=np.float64)


def of_channels(values):
    return np.asarray(values)[:, None]


def test_in_training_layers_are_normalised_by_the_moments_of_batch_and_voxels(normalisation):
    variables, pairs, _ = normalisation
    assert list(pairs['training']) == ['encoder_0', 'inner_0', 'decoder_0']
    for name, (before, after) in pairs['training'].items():
        mean, variance = moments(before)
        assert np.all(variance > 1e-3)  # far above the 1e-5 that is added to it
        own = variables['params'][f'{name}_norm']
        unscaled_mean, unscaled_variance = moments((after - of_channels(own['bias'])) / of_channels(own['scale']))
        np.testing.assert_allclose(unscaled_mean, 0, atol=1e-4)
        np.testing.assert_allclose(unscaled_variance, variance / (variance + 1e-5), rtol=1e-3)
        expected = (before - of_channels(mean)) / np.sqrt(of_channels(variance) + 1e-5)
        expected = expected * of_channels(own['scale']) + of_channels(own['bias'])
        np.testing.assert_allclose(after, expected, atol=1e-3)


def test_training_moves_the_running_averages_a_hundredth_of_the_way(normalisation):
    variables, pairs, updated = normalisation
    for name, (before, _) in pairs['training'].items():
        old, new = variables['batch_stats'][f'{name}_norm'], updated[f'{name}_norm']
        for moment, value in zip(('mean', 'var'), moments(before), strict=True):
            assert np.all(np.abs(value - old[moment]) > 1e-3)
            np.testing.assert_allclose(new[moment] - old[moment], 0.01 * (value - old[moment]), rtol=1e-3, atol=1e-6)


def test_without_training_layers_are_normalised_by_the_running_averages(normalisation):
    variables, pairs, _ = normalisation
    for name, (before, after) in pairs['inference'].items():
        own, kept = variables['params'][f'{name}_norm'], variables['batch_stats'][f'{name}_norm']
        expected = (before - of_channels(kept['mean'])) / np.sqrt(of_channels(kept['var']) + 1e-5)
        expected = expected * of_channels(own['scale']) + of_channels(own['bias'])
        np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('train', [False, True])
def test_normalisation_comes_before_the_relu(normalisation, train):
    """The layer after the encoder sees the maxima of what the encoder's normalisation gives, cut off at zero."""
    variables, pairs, _ = normalisation
    both = pairs['training' if train else 'inference']
    pooled = jax.nn.relu(max_pool(jnp.asarray(both['encoder_0'][1])))
    after = convolve(pooled, variables['params']['inner_0']['kernel'], 'direct')
    np.testing.assert_allclose(both['inner_0'][0], after, rtol=1e-4, atol=1e-4)
