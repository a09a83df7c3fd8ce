"""The convolution against sliding windows in float64 and against XLA's own operator, value and gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patterson_jax.learning.convolution import convolve, fast_size

SHAPES = [  # kernel, channels in, channels out, grid, batch
    (1, 3, 5, (4, 4, 4), 3),
    (3, 1, 4, (6, 6, 6), 1),
    (3, 4, 1, (5, 7, 4), 3),
    (3, 3, 5, (1, 1, 2), 1),
    (5, 1, 4, (5, 3, 8), 3),
    (5, 3, 5, (6, 6, 6), 1),
    (5, 4, 1, (2, 3, 9), 1),
    (7, 1, 4, (8, 8, 8), 1),
    (7, 3, 5, (2, 4, 9), 1),
    (7, 4, 1, (9, 3, 5), 3),
]


def draw(kernel_size, channels_in, channels_out, grid, batch):
    """An image, a kernel and weights for a sum over the result."""
    rng = np.random.default_rng(kernel_size)
    shapes = (
        (batch, channels_in, *grid),
        (kernel_size,) * 3 + (channels_in, channels_out),
        (batch, channels_out, *grid),
    )
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def by_windows(image, kernel):
    """The convolution by its definition, in float64."""
    size = kernel.shape[0]
    padded = np.pad(image.astype(np.float64), [(0, 0)] * 2 + [(size // 2,) * 2] * 3)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size,) * 3, (2, 3, 4))
    return np.einsum('bixyzuvw,uvwio->boxyz', windows, kernel, optimize=True)


def relative_error(found, expected):
    assert found.shape == expected.shape
    return np.max(np.abs(found - expected)) / np.max(np.abs(expected))


@functools.partial(jax.jit, static_argnames='method')
def value_and_gradients(image, kernel, weights, method):
    value, pull = jax.vjp(functools.partial(convolve, method=method), image, kernel)
    return value, *pull(weights)


@pytest.mark.parametrize('shape', SHAPES)
def test_spectral_and_direct_agree_with_the_definition_and_in_both_gradients(shape):
    image, kernel, weights = draw(*shape)
    spectral = value_and_gradients(image, kernel, weights, method='spectral')
    direct = value_and_gradients(image, kernel, weights, method='direct')
    assert relative_error(spectral[0], by_windows(image, kernel)) < 1e-5
    assert relative_error(direct[0], by_windows(image, kernel)) < 1e-5
    for found, expected in zip(spectral[1:], direct[1:], strict=True):
        assert relative_error(found, expected) < 1e-5  # measured 1e-6


@pytest.mark.parametrize('method', ['spectral', 'direct'])
def test_the_convolution_is_linear_in_image_and_in_kernel(method):
    shape = (3, 3, 5, (4, 5, 6), 3)
    image, kernel, _ = draw(*shape)
    other_image, other_kernel = image[::-1], kernel[::-1]
    apply = jax.jit(functools.partial(convolve, method=method))
    plain = apply(image, kernel)
    assert relative_error(apply(2 * image - other_image, kernel), 2 * plain - apply(other_image, kernel)) < 1e-5
    assert relative_error(apply(image, kernel + 3 * other_kernel), plain + 3 * apply(image, other_kernel)) < 1e-5


@pytest.mark.parametrize('method', ['spectral', 'direct', 'auto'])
def test_vmap_over_images_and_kernels_gives_what_a_loop_gives(method):
    image, kernel, _ = draw(5, 2, 3, (4, 5, 6), 2)
    images, kernels = np.stack([image, 2 - image]), np.stack([kernel, 1 + kernel])
    apply = functools.partial(convolve, method=method)
    mapped = jax.jit(jax.vmap(apply))(images, kernels)
    for one, each, weights in zip(mapped, images, kernels, strict=True):
        assert relative_error(one, by_windows(each, weights)) < 1e-5


def test_vmap_of_the_spectral_gradient_gives_what_a_loop_gives():
    image, kernel, weights = draw(3, 2, 3, (4, 2, 3), 4)

    def gradients(image, weights, method):
        return value_and_gradients(image[None], kernel, weights[None], method=method)[1:]

    found = jax.vmap(functools.partial(gradients, method='spectral'))(image, weights)
    expected = [gradients(*pair, method='direct') for pair in zip(image, weights, strict=True)]
    for mine, theirs in zip(found, zip(*expected, strict=True), strict=True):
        assert relative_error(mine, np.stack(theirs)) < 1e-5


@pytest.mark.parametrize(
    ('image_shape', 'kernel_shape', 'method', 'complaint'),
    [
        ((1, 2, 4, 4, 4), (4, 4, 4, 2, 3), 'auto', r'kernel has shape \(4, 4, 4, 2, 3\)'),
        ((1, 2, 4, 4, 4), (3, 3, 5, 2, 3), 'auto', r'kernel has shape \(3, 3, 5, 2, 3\)'),
        ((1, 2, 4, 4, 4), (3, 3, 3, 2), 'auto', r'kernel has shape \(3, 3, 3, 2\)'),
        ((1, 3, 4, 4, 4), (3, 3, 3, 2, 3), 'auto', r'image has shape \(1, 3, 4, 4, 4\).*\(batch, 2, x, y, z\)'),
        ((2, 4, 4, 4), (3, 3, 3, 2, 3), 'auto', r'image has shape \(2, 4, 4, 4\)'),
        ((1, 2, 4, 4, 4), (3, 3, 3, 2, 3), 'fft', r"method is 'fft'.*auto, spectral, direct"),
    ],
)
def test_shapes_and_methods_that_make_no_sense_are_refused(image_shape, kernel_shape, method, complaint):
    with pytest.raises(ValueError, match=complaint):
        convolve(jnp.zeros(image_shape), jnp.zeros(kernel_shape), method)


def test_fast_sizes_are_the_next_products_of_two_three_and_five():
    powers = itertools.product(range(11), range(8), range(6))
    products = np.array(sorted(2**a * 3**b * 5**c for a, b, c in powers))
    for least in range(1, 600):
        assert fast_size(least) == products[products >= least][0]
