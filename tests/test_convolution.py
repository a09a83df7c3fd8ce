"""The convolution against sliding windows in float64 and against XLA's own operator, value and gradients."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patterson_jax.networks.convolution import convolve, fastest_method
from patterson_jax.networks.spectra import plan

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
    (3, 2, 5, (16, 3, 11), 2),  # many tiles along x, a last one that is not full along z
    (5, 2, 3, (40, 13, 26), 1),
    (5, 1, 2, (33, 2, 40), 2),
    (7, 3, 1, (20, 27, 8), 2),
]


def draw(kernel_size, channels_in, channels_out, grid, batch):
    """An image, a kernel and weights for a sum over the result."""
    rng = np.random.default_rng(kernel_size)
    shapes = (
        (*grid, channels_in, batch),
        (kernel_size,) * 3 + (channels_in, channels_out),
        (*grid, channels_out, batch),
    )
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def by_windows(image, kernel):
    """The convolution by its definition, in float64."""
    size = kernel.shape[0]
    padded = np.pad(image.astype(np.float64), [(size // 2,) * 2] * 3 + [(0, 0)] * 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size,) * 3, (0, 1, 2))
    return np.einsum('xyzibuvw,uvwio->xyzob', windows, kernel, optimize=True)


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
        return value_and_gradients(image[..., None], kernel, weights[..., None], method=method)[1:]

    image, weights = np.moveaxis(image, -1, 0), np.moveaxis(weights, -1, 0)
    found = jax.vmap(functools.partial(gradients, method='spectral'))(image, weights)
    expected = [gradients(*pair, method='direct') for pair in zip(image, weights, strict=True)]
    for mine, theirs in zip(found, zip(*expected, strict=True), strict=True):
        assert relative_error(mine, np.stack(theirs)) < 1e-5


@pytest.mark.parametrize(
    ('image_shape', 'kernel_shape', 'method', 'complaint'),
    [
        ((4, 4, 4, 2, 1), (4, 4, 4, 2, 3), 'auto', r'kernel has shape \(4, 4, 4, 2, 3\)'),
        ((4, 4, 4, 2, 1), (3, 3, 5, 2, 3), 'auto', r'kernel has shape \(3, 3, 5, 2, 3\)'),
        ((4, 4, 4, 2, 1), (3, 3, 3, 2), 'auto', r'kernel has shape \(3, 3, 3, 2\)'),
        ((4, 4, 4, 3, 1), (3, 3, 3, 2, 3), 'auto', r'image has shape \(4, 4, 4, 3, 1\).*\(x, y, z, 2, batch\)'),
        ((4, 4, 4, 2), (3, 3, 3, 2, 3), 'auto', r'image has shape \(4, 4, 4, 2\)'),
        ((4, 4, 4, 2, 1), (3, 3, 3, 2, 3), 'fft', r"method is 'fft'.*auto, spectral, direct"),
    ],
)
def test_shapes_and_methods_that_make_no_sense_are_refused(image_shape, kernel_shape, method, complaint):
    with pytest.raises(ValueError, match=complaint):
        convolve(jnp.zeros(image_shape), jnp.zeros(kernel_shape), method)


@pytest.mark.parametrize('shape', [*SHAPES, (5, 20, 20, (40, 40, 40), 8), (7, 20, 20, (64, 21, 20), 1)])
def test_tiles_cover_each_axis_and_nothing_that_wraps_around_reaches_the_output(shape):
    kernel_size, channels_in, channels_out, grid, batch = shape
    half = kernel_size // 2
    axes = plan((*grid, channels_in, batch), (kernel_size,) * 3 + (channels_in, channels_out))
    for axis, size in zip(axes, grid, strict=True):
        assert (axis.size, axis.points % 2) == (size, 0)
        assert axis.tiles * axis.tile >= size > (axis.tiles - 1) * axis.tile
        assert axis.margin == (half if axis.tiles > 1 else 0)
        assert axis.points >= axis.tile + (2 * half if axis.tiles > 1 else half)
    assert shape != SHAPES[-4] or axes[0].tiles > 1  # or the tests above would see no tiles


def test_the_spectral_method_serves_images_and_kernels_of_half_precision_in_single_precision():
    image, kernel, weights = (jnp.asarray(each, jnp.bfloat16) for each in draw(5, 3, 4, (6, 7, 4), 2))
    found = value_and_gradients(image, kernel, weights, method='spectral')
    single = [each.astype(jnp.float32) for each in (image, kernel, weights)]
    expected = value_and_gradients(*single, method='direct')
    for half, full in zip(found, expected, strict=True):
        assert half.dtype == jnp.bfloat16
        assert relative_error(half.astype(jnp.float32), full) < 2**-8  # half a unit in the last of eight places


@pytest.mark.parametrize(
    ('kernel_size', 'method', 'on_gpu'),
    [(1, 'direct', 'direct'), (3, 'spectral', 'direct'), (5, 'spectral', 'spectral'), (7, 'spectral', 'spectral')],
)
def test_auto_is_spectral_on_a_cpu_unless_the_kernel_is_a_point(kernel_size, method, on_gpu, monkeypatch):
    shapes = (6, 6, 6, 2, 1), (kernel_size,) * 3 + (2, 3)
    assert fastest_method(*shapes) == method
    image, kernel = (jnp.ones(shape) for shape in shapes)
    assert str(jax.make_jaxpr(convolve)(image, kernel)).count('conv_general_dilated') == (method == 'direct')
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    assert fastest_method(*shapes) == on_gpu
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    assert fastest_method(*shapes) == 'direct'


def test_the_equality_holds_with_the_compilers_own_settings():
    """The other tests switch a fusion of matrix products off that users have."""
    tests = Path(__file__).parent
    program = """
import test_convolution as tests
for shape in tests.SHAPES[-4:]:
    arrays = tests.draw(*shape)
    spectral, direct = (tests.value_and_gradients(*arrays, method=method) for method in ('spectral', 'direct'))
    for found, expected in zip(spectral, direct, strict=True):
        assert tests.relative_error(found, expected) < 1e-5, shape
"""
    environment = os.environ | {'XLA_FLAGS': '', 'PYTHONPATH': os.pathsep.join([str(tests), str(tests.parent)])}
    done = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
