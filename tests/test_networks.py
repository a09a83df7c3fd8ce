"""What every network must be to the rest of the program, and that a new one is a class and a line."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import base
from patterson_jax.config import validate
from patterson_jax.errors import InputError, require
from patterson_jax.learning.metrics import read_metrics
from patterson_jax.networks.density_network import DensityNetwork
from patterson_jax.networks.layers import Convolution
from patterson_jax.networks.registry import NETWORKS
from tests.tiny import run

pytestmark = pytest.mark.usefixtures('optax_promotes_types')


class OneLayer(DensityNetwork):
    """A convolution and a tanh."""

    kernel_size: int = 3
    width: int = 1

    @nn.compact
    def __call__(self, patterson, train=False):
        image = Convolution(1, self.kernel_size, 'direct')(jnp.moveaxis(patterson, 0, -1)[:, :, :, None])
        return jnp.tanh(jnp.moveaxis(image[:, :, :, 0], -1, 0))

    def check_problem(self, problem):
        require(problem.num_atoms <= 10, 'problem.num_atoms', problem.num_atoms, '10 or fewer with one layer')


@pytest.mark.parametrize('kind', NETWORKS.values())
def test_density_maps_have_the_shape_of_patterson_maps_and_no_weight_knows_the_grid(kind):
    network = kind()
    shapes = []
    for grid in (28, 32):
        maps = jax.ShapeDtypeStruct((2, grid, grid, grid), jnp.float32)
        weights = jax.eval_shape(network.init, jax.random.key(0), maps)
        output = jax.eval_shape(network.apply, weights, maps)
        assert (output.shape, output.dtype) == (maps.shape, maps.dtype)
        shapes.append(jax.tree.map(lambda leaf: leaf.shape, weights))
    assert shapes[0] == shapes[1]


def test_a_new_network_is_a_class_and_a_line_of_the_registry(monkeypatch, tmp_path):
    monkeypatch.setitem(NETWORKS, 'one_layer', OneLayer)
    config = base.get_config()
    config.model = ConfigDict({'network': 'one_layer', 'kernel_size': 3, 'width': 1})
    network = validate(config).model
    assert network == OneLayer()
    config.problem.num_atoms = 11
    with pytest.raises(InputError, match=r'^problem\.num_atoms is 11; it must be 10 or fewer with one layer$'):
        validate(config)
    config.model.network = 'two_layers'
    with pytest.raises(InputError, match='it must be one of paper, unrolled, one_layer'):
        validate(config)

    run(tmp_path / 'run', network=network)
    losses = [row['loss'] for row in read_metrics(tmp_path / 'run' / 'metrics.jsonl') if 'loss' in row]
    assert np.all(np.isfinite(losses)) and losses[-1] < losses[0]
