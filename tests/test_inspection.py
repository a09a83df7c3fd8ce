"""Inspection: counts known by hand, receptive fields against gradients of the real network, the mode and its figure."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from tiny import colours_of

from configs import base, quick
from patterson_jax.config import validate
from patterson_jax.experiment import run
from patterson_jax.figures import draw_example
from patterson_jax.inspection import count_weights, describe_example, describe_network, layer_table, training_operations
from patterson_jax.networks.density_network import DensityNetwork
from patterson_jax.networks.layers import Convolution
from patterson_jax.networks.paper import PattersonNet
from patterson_jax.networks.unrolled import UnrolledNet
from patterson_jax.simulation.density import render
from patterson_jax.simulation.encoding import target_map
from patterson_jax.simulation.examples import Example
from patterson_jax.simulation.patterson import patterson_map
from patterson_jax.simulation.problem import Problem

PROBLEM = Problem(grid_size=16, num_atoms=2, min_separation=2.4, box_edge=10.0)


class Normalised(DensityNetwork):
    """A network with batch normalisation."""

    @nn.compact
    def __call__(self, patterson):
        image = Convolution(2, 3, name='first')(jnp.moveaxis(patterson, 0, -1)[:, :, :, None])
        image = nn.BatchNorm(use_running_average=True, axis=3)(image)
        return Convolution(1, 3, name='last')(jax.nn.relu(image))[:, :, :, 0]


@pytest.fixture(scope='module')
def paper():
    experiment = validate(base.get_config())
    return experiment.model, experiment.problem.grid_size


def test_the_papers_network_has_its_layers_weights_and_receptive_field(paper):
    layers = layer_table(*paper)
    inner = [f'inner_{number}' for number in range(8)]
    assert [layer.name for layer in layers] == ['encoder_0', 'encoder_1', *inner, 'decoder_0', 'output']
    assert [layer.kernel_size for layer in layers] == [5, 5, *8 * [7], 5, 5]
    assert [layer.shape for layer in layers] == [
        *2 * [(20, 40, 40, 40)],
        *8 * [(20, 20, 20, 20)],
        (20, 40, 40, 40),
        (1, 40, 40, 40),
    ]
    assert [layer.weights for layer in layers] == [2520, 50020, *8 * [137220], 50020, 2501]
    assert sum(layer.weights for layer in layers) == count_weights(*paper) == 1_202_821
    # Of 5 and 9 voxels, then pools of two; at the end 9 voxels of the full grid are at most 5 of the half grid.
    assert [layer.receptive_field for layer in layers] == [5, 9, *range(22, 107, 12), 110, 114]
    assert layers[0].operations == 2 * 5**3 * 20 * 40**3 == 320_000_000
    assert layers[1].operations == 6_400_000_000
    assert layers[2].operations == 2 * 7**3 * 20 * 20 * 20**3 == 2_195_200_000
    assert layers == layer_table(*paper)


def test_the_table_has_the_totals_and_the_reach(paper):
    table = describe_network(*paper).splitlines()
    assert table[0].split() == ['layer', 'channels', 'grid', 'kernel', 'weights', 'GFLOP', 'receptive', 'field']
    assert table[2].split() == ['encoder_1', '20', '40³', '5³', '50,020', '6.400', '9']
    assert table[13].split() == ['total', '1,202,821', '31.002', '114']
    assert len({len(line) for line in table[:14]}) == 1
    assert 'which has 40; every voxel of the output depends on the whole input' in table[-1]
    narrow = PattersonNet(features=1, encoder_depth=1, inner_depth=1)
    assert 'not every voxel of the output depends on the whole input' in describe_network(narrow, 16)


def test_a_network_of_the_middle_has_the_receptive_fields_of_its_layers_and_less_to_do():
    whole = PattersonNet(features=1, encoder_depth=1, inner_depth=1)
    middle = whole.clone(input_size=12)
    assert layer_table(middle, 16) == layer_table(whole, 12)
    assert 'which has 16, of which the network sees 12; every voxel of the output depends on all of these' in (
        describe_network(middle, 16)
    )


def test_a_network_with_transforms_between_its_layers_sees_everything():
    network = UnrolledNet(features=2, kernel_size=3, stages=2, input_size=12, output_size=8)
    layers = layer_table(network, 16)
    assert [layer.name for layer in layers] == ['first', 'output_0', 'take_1', 'output_1']
    assert [layer.receptive_field for layer in layers] == 4 * [None]
    assert [layer.shape for layer in layers] == [(2, 6, 6, 6), (8, 6, 6, 6), (2, 6, 6, 6), (8, 6, 6, 6)]
    assert count_weights(network, 16) == sum(layer.weights for layer in layers) + 1  # the scale of the amplitudes
    assert training_operations(network, 16) == 3 * 2 * 27 * 6**3 * (2 * 16 * 2 + 2 * 2 * 8)
    told = describe_network(network, 16).splitlines()
    assert told[5].split()[-1] == 'all' and told[-1].startswith('Receptive field: all that the network sees')


class Global(DensityNetwork):
    """A network in which something of the whole map, not a transform, goes to every voxel between two layers."""

    of_the_whole: Callable

    @nn.compact
    def __call__(self, patterson):
        image = Convolution(2, 3, name='first')(jnp.moveaxis(patterson, 0, -1)[:, :, :, None])
        image = image + self.of_the_whole(image, axis=(0, 1, 2), keepdims=True)
        return Convolution(1, 3, name='last')(jax.nn.relu(image))[:, :, :, 0]


@pytest.mark.parametrize('of_the_whole', [jnp.max, jnp.mean])
def test_inspection_ends_where_a_receptive_field_has_none(of_the_whole):
    layers = layer_table(Global(of_the_whole), 8)
    assert [layer.receptive_field for layer in layers] == [3, None]
    table = describe_network(Global(of_the_whole), 8).splitlines()
    assert [line.split()[-1] for line in table[1:4]] == ['3', 'all', 'all']
    assert 'every voxel of the output depends on the whole input' in table[-1] and 'not every' not in table[-1]


def test_a_field_much_wider_than_the_grid_has_an_end():
    deep = PattersonNet(features=1, outer_kernel_size=1, inner_kernel_size=7, inner_depth=8)
    assert layer_table(deep, 8)[-1].receptive_field == 2 * (1 + 8 * 6) == 98


def test_layers_come_in_the_order_of_execution():
    deep = PattersonNet(features=1, outer_kernel_size=1, inner_kernel_size=1, inner_depth=11)
    names = [layer.name for layer in layer_table(deep, 8)]
    assert names[2:13] == [f'inner_{number}' for number in range(11)]


def test_weights_of_a_normalisation_count_in_the_total_alone():
    layers = layer_table(Normalised(), 8)
    assert [layer.weights for layer in layers] == [27 * 2 + 2, 27 * 2 + 1]
    assert [layer.receptive_field for layer in layers] == [3, 5]
    assert count_weights(Normalised(), 8) == sum(layer.weights for layer in layers) + 4


class OfFlax(DensityNetwork):
    """A network of Flax's own convolutions, with images `(batch, x, y, z, channel)`."""

    strides: int = 1

    @nn.compact
    def __call__(self, patterson):
        image = nn.relu(nn.Conv(4, (5, 5, 5), strides=self.strides, name='first')(patterson[..., None]))
        return nn.Conv(1, (3, 3, 3), name='last')(image)[..., 0]


def test_flaxs_own_convolutions_are_layers_too():
    layers = layer_table(OfFlax(), 8)
    assert [(layer.name, layer.shape, layer.kernel_size) for layer in layers] == [
        ('first', (4, 8, 8, 8), 5),
        ('last', (1, 8, 8, 8), 3),
    ]
    assert [layer.weights for layer in layers] == [125 * 4 + 4, 27 * 4 + 1]
    assert [layer.operations for layer in layers] == [2 * 125 * 4 * 8**3, 2 * 27 * 4 * 8**3]
    assert [layer.receptive_field for layer in layers] == [5, 7]
    assert 'not every voxel of the output depends on the whole input' in describe_network(OfFlax(), 8)


class Dense(DensityNetwork):
    """A network without convolutions."""

    @nn.compact
    def __call__(self, patterson):
        return nn.Dense(1)(patterson[..., None])[..., 0]


@pytest.mark.parametrize('network', [OfFlax(strides=2), Dense()])
def test_what_cannot_be_followed_is_described_without_a_receptive_field(network):
    layers = layer_table(network, 8)
    assert [layer.receptive_field for layer in layers] == [None] * len(layers)
    table = describe_network(network, 8).splitlines()
    assert table[len(layers) + 1].split()[-1] == '-' and table[-1].startswith('Receptive field: not measured')
    assert f'{count_weights(network, 8):,}' in table[len(layers) + 1]


@pytest.mark.parametrize(
    ('outer', 'inner', 'depths', 'field'),
    [(3, 3, (1, 1, 1), 12), (3, 5, (0, 1, 0), 12), (5, 3, (1, 0, 0), 10)],
)
def test_receptive_fields_are_the_support_of_the_real_networks_gradients(outer, inner, depths, field):
    grid = 24
    network = PattersonNet(2, outer, inner, *depths, convolution='direct')
    layers = layer_table(network, grid)
    # Positive weights keep every unit alive. The pool passes one voxel of eight, another one for each of the images.
    images = np.ones((2, 2, 2, grid, grid, grid), np.float32)
    for x, y, z in np.ndindex(2, 2, 2):
        images[x, y, z, x::2, y::2, z::2] = 2
    images = images.reshape(8, grid, grid, grid)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1 / max(leaf.size, 2)), shapes)

    def output(images, name, voxel):
        _, state = network.apply(
            params, images, capture_intermediates=lambda module, _: isinstance(module, Convolution)
        )
        return jnp.sum(state['intermediates'][name]['__call__'][0][voxel, voxel, voxel])

    @jax.jit
    def gradients(images):
        voxels = [[layer.shape[1] // 2 + phase for phase in range(2)] for layer in layers]
        pairs = zip(layers, voxels, strict=True)
        return [[jax.grad(output)(images, layer.name, voxel) for voxel in both] for layer, both in pairs]

    for layer, both in zip(layers, gradients(images), strict=True):
        supports = np.any(np.asarray(both) != 0, axis=1)
        widths = [[np.sum(np.any(each, axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))] for each in supports]
        assert np.max(widths, axis=0).tolist() == 3 * [layer.receptive_field]
    assert layers[-1].receptive_field == field


def example_of(positions, problem):
    @jax.jit
    def example(positions):
        density = render(positions, problem.grid_size, problem.atom_radius)
        return Example(positions, patterson_map(density), target_map(density, problem.encoding))

    return example(np.asarray(positions, np.float32))


def test_a_vector_longer_than_half_the_grid_is_told():
    near = describe_example(example_of([[-3, 0, 0], [2, 0, 0]], PROBLEM), PROBLEM)
    assert '2 atoms of radius 1, 5.00 to 5.00 voxels apart' in near
    assert 'up to 5.00 voxels along an axis, half the grid being 8; none of 1 wrapped around' in near
    assert 'origin peak 1.4, elsewhere at most 0.7' in near
    # Each atom or inverse, its centre on a corner of voxels, is in 8 of them, of which two share 4 on either side.
    assert f'{24 / 16**3:.2%} of the voxels' in near
    far = describe_example(example_of([[-4, 0, 0], [5, 0, 0]], PROBLEM), PROBLEM)
    assert 'up to 9.00 voxels along an axis, half the grid being 8; 1 of 1 wrapped around' in far


def test_a_single_atom_has_no_vectors():
    problem = Problem(grid_size=16, num_atoms=1, box_edge=5.0)
    lines = describe_example(example_of([[0.3, 0, 0]], problem), problem).splitlines()
    assert lines[0] == '1 atom of radius 1'
    assert not any('vectors' in line for line in lines)


@pytest.mark.parametrize('target', ['both', 'original'])
def test_the_figure_shows_both_sets_and_the_target(tmp_path, target):
    problem = Problem.of(grid_size=16, num_atoms=2, min_separation=2.4, box_edge=10.0, target=target)
    draw_example(tmp_path / 'new' / 'example.png', example_of([[-2, 0, 0.5], [2.5, 0, 0.5]], problem), problem)
    picture = matplotlib.image.imread(tmp_path / 'new' / 'example.png')[..., :3]
    middle = [size // 2 for size in picture.shape[:2]]
    atoms, inverses, shown = picture[: middle[0], : middle[1]], picture[: middle[0], middle[1] :], picture[middle[0] :]
    shown = shown[: int(0.9 * len(shown)), : int(0.8 * middle[1])]  # without the legend and the Patterson map
    assert colours_in(atoms) == {'red'}
    assert colours_in(inverses) == {'blue'}
    assert colours_in(shown) == ({'red', 'blue', 'green'} if target == 'both' else {'red'})


def colours_in(picture):
    """Which of the three colours is the strongest by far in more than a few pixels."""
    strongest = [picture[..., each] - np.max(np.delete(picture, each, axis=-1), axis=-1) for each in range(3)]
    found = zip(('red', 'green', 'blue'), strongest, strict=True)
    return {name for name, lead in found if np.sum(lead > 0.12) > 100}


@pytest.mark.parametrize('variant', ['', 'original_only'])
def test_the_mode_prints_and_draws_and_writes_nothing_else(tmp_path, capsys, variant):
    output = tmp_path / 'drawn' if variant else None
    run('inspect', quick.get_config(variant), tmp_path / 'run', output=output)
    figure = (output or tmp_path / 'run' / 'figures') / 'example.png'
    printed = capsys.readouterr().out
    assert '218,641' in printed
    assert '3 atoms of radius 1' in printed
    assert f'target, {"original" if variant else "both"}' in printed
    assert printed.splitlines()[-1] == str(figure)
    assert [path for path in tmp_path.rglob('*') if path.is_file()] == [figure]
    assert colours_of(matplotlib.image.imread(figure)) > 100
