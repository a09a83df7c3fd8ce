"""The unrolled network: transforms against NumPy's, the constraint against true cases, symmetry, the loss."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array
from tiny import CHECKPOINTING, SEED, SETTINGS, assert_same_run, log_of

from patterson_jax.errors import InputError
from patterson_jax.learning.map_training import MapTask
from patterson_jax.learning.parallel import parallelize, replicate
from patterson_jax.learning.training import make_train_step, state_with, train
from patterson_jax.networks.unrolled import (
    ESTIMATES,
    UnrolledNet,
    centred_points,
    constrain,
    cosine_transform,
    from_blocks,
    inverse_cosine_transform,
    measured_maps,
    to_blocks,
)
from patterson_jax.simulation.density import render
from patterson_jax.simulation.encoding import network_input
from patterson_jax.simulation.examples import make_batch, stream_key
from patterson_jax.simulation.maps import invert_map
from patterson_jax.simulation.problem import Problem

PROBLEM = Problem(grid_size=16, num_atoms=3, min_separation=2.4, box_edge=4.0)
NETWORK = UnrolledNet(features=4, kernel_size=3, stages=3, layers=1, input_size=12, output_size=8)


class Case(NamedTuple):
    patterson: Array
    target: Array
    density: Array


@pytest.fixture(scope='module')
def batch():
    @jax.jit
    def make():
        examples = make_batch(stream_key(3, 'training'), 0, jnp.arange(3), PROBLEM)
        density = jax.vmap(lambda each: render(each, PROBLEM.grid_size, PROBLEM.atom_radius))(examples.positions)
        return Case(examples.patterson, examples.target, density)

    return make()


pytestmark = pytest.mark.usefixtures('optax_promotes_types')

apply = jax.jit(NETWORK.apply)


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


def test_the_measured_maps_are_those_of_the_vectors_about_the_box_centre(batch):
    """The amplitudes are those of the true map; the vectors' square root has its highest point at the origin."""
    amplitudes, maps = measured_maps(jnp.fft.fftshift(batch.patterson, axes=(1, 2, 3)), 12)
    true = np.abs(np.fft.fftshift(np.fft.fftn(np.asarray(batch.density), axes=(1, 2, 3)), axes=(1, 2, 3)))
    np.testing.assert_allclose(amplitudes, np.moveaxis(true[:, 1:, 1:, 1:], 0, -1), atol=0.01)  # root of rounding
    root, sharp = from_blocks(maps[:, :, :, :8]), from_blocks(maps[:, :, :, 8:])
    for each in (root, sharp):
        np.testing.assert_allclose(each, jnp.flip(each, (0, 1, 2)), atol=1e-3)
        assert jnp.max(each) == pytest.approx(float(jnp.min(jnp.max(each[5:7, 5:7, 5:7], (0, 1, 2)))), rel=0.2)
    between = np.fft.fftn(np.asarray(batch.patterson), axes=(1, 2, 3))
    shift = np.fft.fftfreq(16)
    shift = np.exp(1j * np.pi * (shift[:, None, None] + shift[:, None] + shift)) * (np.abs(shift) < 0.5)
    shift = shift * (np.abs(np.fft.fftfreq(16)) < 0.5)[:, None] * (np.abs(np.fft.fftfreq(16)) < 0.5)[:, None, None]
    moved = np.fft.fftshift(np.fft.ifftn(between * shift, axes=(1, 2, 3)).real, axes=(1, 2, 3))
    expected = np.moveaxis(moved[:, 2:14, 2:14, 2:14], 0, -1)
    np.testing.assert_allclose(np.sign(root) * np.asarray(root) ** 2, expected, atol=2e-3)


def test_the_constraint_keeps_the_truth_and_cuts_off_what_the_amplitudes_forbid(batch):
    amplitudes, _ = measured_maps(jnp.fft.fftshift(batch.patterson, axes=(1, 2, 3)), 12)
    truth = inner(batch.target, 8)
    kept, cut_off = constrain(truth, amplitudes, 12)
    np.testing.assert_allclose(kept, inner(without_highest(batch.target), 12), atol=1e-4)
    wrong = jnp.roll(truth, 1, axis=-1)  # of other cases
    kept, cut_off = constrain(wrong, amplitudes, 16)
    np.testing.assert_allclose(kept + cut_off, jnp.pad(wrong, [(4, 4)] * 3 + [(0, 0)]), atol=1e-5)
    excess = jnp.abs(cosine_transform(kept, centred_points(16), 16)) - amplitudes
    assert jnp.max(excess) < 1e-3 and jnp.max(jnp.abs(cut_off)) > 0.05


def without_highest(maps):
    """The maps without the frequencies |h| = grid / 2, which a shift by half a voxel leaves undefined."""
    low = np.abs(np.fft.fftfreq(16)) < 0.5
    spectrum = np.fft.fftn(np.asarray(maps, np.float64), axes=(1, 2, 3))
    return jnp.asarray(
        np.fft.ifftn(spectrum * low * low[:, None] * low[:, None, None], axes=(1, 2, 3)).real, jnp.float32
    )


def test_blocks_hold_their_eight_voxels_and_come_apart_again():
    maps = jnp.arange(4 * 4 * 4 * 2.0).reshape(4, 4, 4, 2)
    image = to_blocks(maps)
    assert image.shape == (2, 2, 2, 8, 2)
    np.testing.assert_array_equal(np.sort(image[1, 0, 1, :, 1]), np.sort(np.ravel(maps[2:, :2, 2:, 1])))
    np.testing.assert_array_equal(from_blocks(image), maps)


def test_the_map_equals_its_inversion_and_is_zero_where_no_atom_can_be(batch, weights):
    output = apply(weights, network_input(batch.patterson, PROBLEM.num_atoms, PROBLEM.encoding))
    assert output.shape == batch.target.shape
    np.testing.assert_array_equal(output, invert_map(output))
    assert jnp.std(inner(output, 8)) > 1e-3
    assert jnp.count_nonzero(output) == jnp.count_nonzero(inner(output, 8))


def test_later_stages_depend_on_what_the_amplitudes_allow(batch, weights):
    """A blind network, whose layers that take the constrained maps in are zero, gives another map."""
    blind = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if 'take' in jax.tree_util.keystr(path) else leaf, weights
    )
    inputs = network_input(batch.patterson, PROBLEM.num_atoms, PROBLEM.encoding)
    assert not np.allclose(apply(weights, inputs), apply(blind, inputs), atol=1e-4)


def test_the_direct_convolution_gives_the_same_map(batch, weights):
    inputs = network_input(batch.patterson, PROBLEM.num_atoms, PROBLEM.encoding)
    spectral, direct = apply(weights, inputs), jax.jit(NETWORK.clone(convolution='direct').apply)(weights, inputs)
    np.testing.assert_allclose(spectral, direct, atol=1e-5)


def test_a_step_descends_the_errors_with_the_weights_of_stages_and_filled_voxels(batch, weights):
    """One step of plain descent in place of Adam would be along this gradient, whose norm the step reports."""

    @jax.jit
    @jax.grad
    def gradient(weights, early_weight, filled_weight):
        first = make_batch(stream_key(SEED, 'training'), 0, jnp.arange(SETTINGS.batch_size), PROBLEM)
        inputs = network_input(first.patterson, PROBLEM.num_atoms, PROBLEM.encoding)
        last, left = NETWORK.apply(weights, inputs, train=True, mutable=[ESTIMATES])
        early = left[ESTIMATES]['maps']
        assert len(early) == 2
        errors = [
            jnp.mean((each - first.target) ** 2) + filled_weight * jnp.mean(first.target * (each - first.target) ** 2)
            for each in (*early, last)
        ]
        return early_weight * (errors[0] + errors[1]) + errors[2]

    pairs = ((0.0, 0.0), (0.3, 0.0), (0.3, 10.0))
    norms = [float(optax.tree.norm(gradient(weights, *pair))) for pair in pairs]
    assert abs(norms[1] / norms[0] - 1) > 0.01 and abs(norms[2] / norms[1] - 1) > 0.1
    weights_of_errors = dict(zip(('early_weight', 'filled_weight'), pairs[-1], strict=True))
    settings = dataclasses.replace(SETTINGS, max_gradient_norm=1e-3, adam_epsilon=1e-12, **weights_of_errors)
    state = replicate(state_with(weights, settings))
    _, metrics = parallelize(make_train_step(MapTask(NETWORK, PROBLEM, settings, SEED)))(state)
    assert float(metrics['gradient_norm']) == pytest.approx(norms[-1], rel=1e-3)


def test_training_learns_and_goes_on_from_its_checkpoint(tmp_path):
    """With shortened gradients, whose optimiser has a state of another shape."""
    settings = dataclasses.replace(SETTINGS, learning_rate=5e-3, max_gradient_norm=1e-3, adam_epsilon=1e-12)
    for directory, lengths in (('whole', (20,)), ('parts', (8, 20))):
        for num_steps in lengths:
            part = dataclasses.replace(settings, num_steps=num_steps)
            (tmp_path / directory).mkdir(exist_ok=True)
            train(MapTask(NETWORK, PROBLEM, part, SEED), CHECKPOINTING, tmp_path / directory, {})
    assert_same_run(tmp_path / 'parts', tmp_path / 'whole')
    losses = [row['validation_loss'] for row in log_of(tmp_path / 'whole') if 'validation_loss' in row]
    assert losses[-1] < 0.9 * losses[0]


def test_one_stage_makes_one_estimate_and_has_no_constraint(batch):
    network = NETWORK.clone(stages=1)
    inputs = network_input(batch.patterson, PROBLEM.num_atoms, PROBLEM.encoding)
    weights = jax.jit(network.init)(jax.random.key(0), inputs)
    assert set(weights['params']) == {'first', 'layer_0_0', 'output_0'}
    estimates = jax.eval_shape(lambda given: network.apply(given, inputs, train=True, mutable=[ESTIMATES])[1], weights)
    assert estimates == {}


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
