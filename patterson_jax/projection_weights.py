"""The trained weights of the learned projection of crystals, as the solver takes them."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array

from patterson_jax.errors import InputError
from patterson_jax.learning.checkpoints import Checkpoints, Weights, find_checkpoints
from patterson_jax.networks.projection import NUM_CONDITIONS, ProjectionNet, conditions
from patterson_jax.shipped import find_network
from patterson_jax.solving.crystal_projection import Projection, Told

PROJECTION_FIELDS = ('features', 'num_blocks')  # of the network, on which weights depend


def load_projection(name: str | Path) -> Projection:
    """Loads a trained learned projection of crystals.

    Args:
        name: directory of a run, or of a published network, or the name of one that comes with the code.

    Raises:
        InputError: no checkpoint there, only damaged ones, or one of another network.
    """
    directory = find_network(name)
    with Checkpoints(find_checkpoints(directory), read_only=True) as checkpoints:
        model = checkpoints.restore(checkpoints.best_step, config=None)['config']['model']
        if any(field not in model for field in PROJECTION_FIELDS):
            raise InputError(f'{directory}: these weights are not those of a learned projection of crystals')
        network = ProjectionNet(**{field: model[field] for field in PROJECTION_FIELDS})
        return Projection(_Predict(network), _params(checkpoints, network))


def load_projection_weights(directory: Path, network: ProjectionNet) -> Weights:
    """The weights of a run with the lowest validation loss.

    Raises:
        InputError: no checkpoint there, only damaged ones, or one of another network.
    """
    with Checkpoints(find_checkpoints(directory), read_only=True) as checkpoints:
        trained = checkpoints.restore(checkpoints.best_step, config=None)['config']
        for field in PROJECTION_FIELDS:
            before, now = trained['model'].get(field), getattr(network, field)
            if before != now:
                words = f'model.{field} was {before!r} and is {now!r}'
                raise InputError(f'{directory}: these weights are for another config: {words}')
        counters = checkpoints.restore(checkpoints.latest_step, counters=None)['counters']
        return Weights(_params(checkpoints, network), checkpoints.best_step, trained, counters)


def _params(checkpoints, network):
    return jax.device_get(checkpoints.restore(checkpoints.best_step, params=_shapes(network))['params'])


def projection_fields(config: dict) -> dict:
    """The part of a resolved config on which the weights of a learned projection depend."""
    return {'model': {field: config['model'].get(field) for field in PROJECTION_FIELDS}}


def count_projection_weights(network: ProjectionNet) -> int:
    """The number of a network's weights."""
    return sum(leaf.size for leaf in jax.tree.leaves(_shapes(network)))


def _shapes(network):
    maps, told = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 4, 4, 4), (1, NUM_CONDITIONS)))
    return jax.eval_shape(network.init, jax.random.key(0), maps, told)


@dataclasses.dataclass(frozen=True)
class _Predict:
    """A network's `apply` to one map, equal to that of an equal network: so what is compiled for one serves both."""

    network: ProjectionNet

    def __call__(self, weights: Any, density: Array, told: Told) -> Array:
        size = density.shape
        words = conditions(told.axes, (size[0], size[1], size[2]), told.d_min, told.noise, told.completeness)
        return cast(Array, self.network.apply(weights, density[None], words[None])[0])
