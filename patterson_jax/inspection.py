"""Describes the network and the examples of a config before training (paper, 2.3 and 2.4).

Sizes come from an abstract evaluation, and receptive fields from following lit voxels through the layers. Layers are
the project's `Convolution` and Flax's `nn.Conv` with cubic kernels. A network with transforms between its layers, such
as the unrolled one, has no receptive field. That of a network in which other layers have weights is not measured.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ScopeCollectionNotFound

from patterson_jax.networks.layers import Convolution
from patterson_jax.simulation.examples import Example
from patterson_jax.simulation.maps import origin_distances
from patterson_jax.simulation.problem import Problem

THICKNESS = 2  # voxels; thickness of the rods on which receptive fields are measured, as the pool needs it
LONGEST_ROD = 2  # times that a rod is made four times longer, starting with the grid
MARGIN = 8  # voxels by which a rod must be longer than a receptive field, because voxels at its ends see less


class Layer(NamedTuple):
    """One convolution.

    Attributes:
        name: its path in the network's parameters.
        shape: of its output for one example, `(channels, grid, grid, grid)`.
        kernel_size: voxels along each edge of the kernel.
        weights: number of its parameters, with biases.
        operations: floating point operations of one example: 2 for each multiplication and addition of a direct
            convolution, including those with the zeros beyond the edges.
        receptive_field: largest width in voxels of the part of the network's input on which a voxel of the output
            depends. The paper's 56 (2.3) is the reach to one side; to the other side the pool makes it 57. None where
            every voxel depends on the whole input, because of a transform or a mean over the map, and where it is not
            measured.
    """

    name: str
    shape: tuple[int, int, int, int]
    kernel_size: int
    weights: int
    operations: int
    receptive_field: int | None


def layer_table(network: nn.Module, grid_size: int) -> list[Layer]:
    """The network's convolutions for maps `(grid, grid, grid)`, in the order of execution."""
    calls, params = _abstract_calls(network, grid_size)
    layers = []
    measured = network.is_local and _is_followed(network)
    fields = _receptive_fields(network.on_whole_maps(), grid_size) if measured else [None] * len(calls)
    for (path, shape), field in zip(calls, fields, strict=True):
        own = params
        for name in path:
            own = own[name]
        operations = 2 * own['kernel'].size * math.prod(shape[1:])
        layers.append(Layer('/'.join(path), shape, own['kernel'].shape[0], _count(own), operations, field))
    return layers


def count_weights(network: nn.Module, grid_size: int) -> int:
    """Number of all parameters of the network, in convolutions and elsewhere."""
    return _count(_abstract_calls(network, grid_size)[1])


def training_operations(network: nn.Module, grid_size: int) -> int:
    """Floating point operations of a training step for one example: forward, and backward to images and kernels."""
    return 3 * sum(layer.operations for layer in layer_table(network, grid_size))


def describe_network(network: nn.Module, grid_size: int) -> str:
    """The table of a network's layers with their totals, as aligned lines."""
    layers, weights = layer_table(network, grid_size), count_weights(network, grid_size)
    unlimited = 'all' if not network.is_local or _is_followed(network) else '-'
    rows = [('layer', 'channels', 'grid', 'kernel', 'weights', 'GFLOP', 'receptive field')]
    for layer in layers:
        sizes = (f'{layer.shape[0]}', f'{layer.shape[1]}³', f'{layer.kernel_size}³', f'{layer.weights:,}')
        rows.append((layer.name, *sizes, f'{layer.operations / 1e9:.3f}', f'{layer.receptive_field or unlimited}'))
    operations = sum(layer.operations for layer in layers) / 1e9
    field = layers[-1].receptive_field if layers else None
    rows.append(('total', '', '', '', f'{weights:,}', f'{operations:.3f}', f'{field or unlimited}'))
    return '\n'.join(
        (
            *_aligned(rows),
            f'GFLOP: of one example forward, by direct convolution; a training step takes about three times as many, '
            f'{training_operations(network, grid_size) / 1e9:.3g} an example.',
            _about_reach(network, grid_size),
        )
    )


def _about_reach(network, grid_size):
    if not network.is_local:
        return 'Receptive field: all that the network sees, as its input and estimates are transformed.'
    if not _is_followed(network):
        return 'Receptive field: not measured, because other layers than plain cubic convolutions have weights.'
    seen = network.seen(grid_size)
    whole = 'every' if np.all(_felt(network.on_whole_maps(), seen)[-1]) else 'not every'
    part = f', of which the network sees {seen}' if seen < grid_size else ''
    return (
        f'Receptive field: voxels of the input along an axis, which has {grid_size}{part}; {whole} voxel of the output '
        f'depends on {"all of these" if part else "the whole input"}.'
    )


def describe_example(example: Example, problem: Problem) -> str:
    """Describes one case in a few lines: distances, whether vectors wrap around, heights of the network's input."""
    positions, half = np.asarray(example.positions), problem.grid_size / 2
    first, second = np.triu_indices(len(positions), 1)
    vectors = np.abs(positions[first] - positions[second])
    lines = [f'{len(positions)} atom{"s" if len(vectors) else ""} of radius {problem.atom_radius:g}']
    if len(vectors):
        distances, wrapped = np.linalg.norm(vectors, axis=1), np.sum(np.any(vectors > half, axis=1))
        lines[0] += f', {np.min(distances):.2f} to {np.max(distances):.2f} voxels apart'
        lines.append(
            f'vectors between them: up to {np.max(vectors):.2f} voxels along an axis, half the grid being {half:g}; '
            f'{wrapped or "none"} of {len(vectors)} wrapped around'
        )
    patterson = np.asarray(example.patterson)
    scale = problem.encoding.input_scale * problem.num_atoms / patterson[0, 0, 0]
    elsewhere = scale * np.max(patterson[origin_distances(problem.grid_size) > 2 * problem.atom_radius])
    lines.append(
        f'Patterson map as the network takes it: origin peak {scale * patterson[0, 0, 0]:.3g}, '
        f'elsewhere at most {elsewhere:.3g}'
    )
    filled = np.mean(np.asarray(example.target) > 0)
    lines.append(f'target, {problem.encoding.target}: {filled:.2%} of the voxels are not empty')
    return '\n'.join(lines)


def _abstract_calls(network, grid_size):
    """(path, output shape) of every convolution as it is executed, and the shapes of all parameters."""
    calls = []

    def record(call, arguments, keywords, context):
        output = call(*arguments, **keywords)
        if _is_layer(context):
            image = output[..., 0] if isinstance(context.module, Convolution) else output[0]  # (x, y, z, channel)
            calls.append((context.module.path, (image.shape[3], *image.shape[:3])))
        return output

    def init(key, image):  # a new function each time, because JAX does not trace the same one again
        with nn.intercept_methods(record):
            return network.init(key, image)

    image = jax.ShapeDtypeStruct((1,) + (grid_size,) * 3, jnp.float32)
    return calls, jax.eval_shape(init, jax.random.key(0), image)['params']


def _is_layer(context):
    """Whether a call is that of a convolution with a cubic kernel, ours or Flax's."""
    module = context.module
    if context.method_name != '__call__':
        return False
    if isinstance(module, nn.Conv):
        edges = np.ravel(module.kernel_size)
        return len(edges) == 3 and bool(np.all(edges == edges[0]))
    return isinstance(module, Convolution)


def _is_plain(module):
    """Whether a convolution of Flax moves by one voxel, with zeros beyond the edges, so that light can follow it."""
    strides, dilations = (np.ravel(1 if each is None else each) for each in (module.strides, module.kernel_dilation))
    return bool(np.all(strides == 1) and np.all(dilations == 1) and module.padding == 'SAME' and module.mask is None)


def _is_followed(network):
    """Whether all layers with weights are ones through which light is followed."""
    try:
        jax.eval_shape(_light_through(network.on_whole_maps()), jnp.zeros((1,) + (THICKNESS,) * 3))
    except ScopeCollectionNotFound:  # another layer asked for its weights
        return False
    return True


def _receptive_fields(network, grid_size):
    """Width of each layer's receptive field along an axis, None where it is unlimited.

    The fields are measured on longer and longer rods, until none reaches both ends of the rod. A field that still does
    on the longest rod counts as unlimited; a mean over the whole map or a transform makes it so.
    """
    for length in grid_size * 4 ** np.arange(LONGEST_ROD + 1):
        widths = [int(np.max(np.sum(each, axis=0))) for each in _felt(network, int(length))]
        if max(widths) <= length - MARGIN:
            break
    return [width if width <= length - MARGIN else None for width in widths]


def _felt(network, length):
    """For each layer, whether output voxel j of an axis depends on input voxel i: `(length, output length)`, 0 or 1.

    Each input voxel is lit alone, and its light is followed through the network.
    """
    lit = jnp.broadcast_to(jnp.eye(length)[:, :, None, None], (length, length, THICKNESS, THICKNESS))
    return jax.tree.map(np.asarray, jax.jit(_light_through(network))(lit))


def _light_through(network):
    """A function from rods `(batch, x, y, z)` with lit voxels to the light after each layer, `(batch, x)`, 0 or 1.

    Every convolution is replaced by the maximum over its window, so that no light is lost or cancelled. Normalisation
    with known moments is skipped, because it makes no voxel depend on another.
    """

    def send(images):
        felt = []

        def follow(call, arguments, keywords, context):
            module = context.module
            if isinstance(module, nn.BatchNorm):
                return arguments[0]
            if not _is_layer(context) or (isinstance(module, nn.Conv) and not _is_plain(module)):
                return call(*arguments, **keywords)
            if isinstance(module, nn.Conv):  # images (batch, x, y, z, channel)
                lit = jnp.any(arguments[0] != 0, axis=4, keepdims=True).astype(jnp.float32)
                light = _spread(lit, int(np.ravel(module.kernel_size)[0]), axis=1)
                felt.append(light[:, :, 0, 0, 0])
                return jnp.repeat(light, module.features, axis=4)
            lit = jnp.any(arguments[0] != 0, axis=3, keepdims=True).astype(jnp.float32)
            light = _spread(lit, module.kernel_size, axis=0)
            felt.append(light[:, 0, 0, 0].T)
            return jnp.repeat(light, module.features, axis=3)

        with nn.intercept_methods(follow):
            network.apply({}, images)
        return felt

    return send


def _spread(light, kernel_size, axis):
    """Maximum over a window along one axis of images with five axes."""
    window = tuple(kernel_size if each == axis else 1 for each in range(5))
    return jax.lax.reduce_window(light, -jnp.inf, jax.lax.max, window, (1,) * 5, 'SAME')


def _count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _aligned(rows):
    """Aligns rows of words as lines: the first column on the left, the others on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *values in rows:
        yield '  '.join((name.ljust(widths[0]), *map(str.rjust, values, widths[1:])))
