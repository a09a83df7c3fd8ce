"""Loads trained weights from a run or a published network, and checks that they suit their use."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from patterson_jax.config import Experiment, differences, network_of, with_later_fields
from patterson_jax.errors import InputError
from patterson_jax.learning.checkpoints import Checkpoints, Weights, find_checkpoints
from patterson_jax.networks.density_network import DensityNetwork
from patterson_jax.shipped import find_network
from patterson_jax.simulation.problem import Problem, problem_field_types
from patterson_jax.solving.attempt import Network

WEIGHT_FIELDS = ('grid_size', 'atom_radius', 'input_scale', 'origin')
COMPUTING_FIELDS = ('convolution', 'precision')  # of the network: how it computes, not what


def load_network(name: str | Path, problem: Problem | None = None) -> Network:
    """Loads a trained network of Patterson maps.

    Args:
        name: directory of a run or of a published network, or the name of one that comes with the code: 'unrolled',
            'paper'. A named network that is not installed is fetched once, if an address is known.
        problem: that the network must fit; None: any.

    Raises:
        InputError: there is no checkpoint, or all are damaged; or it is for another atom or input than the problem's,
            or for a grid that the network does not suit; or the network cannot solve the problem, or is of crystals.
    """
    directory = find_network(name)
    with Checkpoints(find_checkpoints(directory), read_only=True) as checkpoints:
        step = checkpoints.best_step
        trained = checkpoints.restore(step, config=None)['config']
        _require_maps(directory, trained)
        network = network_of(trained['model'])
        if problem is not None:
            now = {'model': trained['model'], 'problem': problem.fields}
            _require_same_weights(directory, trained, now, network)
            network.check_problem(problem)
        template = _shapes(network, trained['problem']['grid_size'])
        params = jax.device_get(checkpoints.restore(step, params=template)['params'])
        known = problem_field_types()
        fields = {name: value for name, value in trained['problem'].items() if name in known}
        return network_with(network, params, Problem.of(**fields))


def network_with(model: DensityNetwork, params: Any, trained_on: Problem) -> Network:
    """A model with weights, as the solver takes it."""
    return Network(_Apply(model), params, trained_on, model.check_problem if model.any_grid else None)


@dataclasses.dataclass(frozen=True)
class _Apply:
    """A model's `apply`, equal to that of an equal model: so what is compiled for one serves the other."""

    model: nn.Module

    def __call__(self, params: Any, inputs: Array) -> Array:
        return cast(Array, self.model.apply(params, inputs))


def load_weights(experiment: Experiment, config: ConfigDict, directory: Path) -> Weights:
    """The weights of a run with the lowest validation loss.

    Raises:
        InputError: there is no checkpoint, or all are damaged; or it is of another network, atom or input than the
            config's, or of another grid, unless the network suits any. The number of atoms, their places and the
            target may differ.
    """
    with Checkpoints(find_checkpoints(directory), read_only=True) as checkpoints:
        step = checkpoints.best_step
        trained = checkpoints.restore(step, config=None)['config']
        _require_maps(directory, trained)
        _require_same_weights(directory, trained, config.to_dict(), experiment.model)
        template = _shapes(experiment.model, experiment.problem.grid_size)
        counters = checkpoints.restore(checkpoints.latest_step, counters=None)['counters']
        params = jax.device_get(checkpoints.restore(step, params=template)['params'])
        return Weights(params, step, trained, counters)


def _shapes(network, grid_size):
    maps = jax.ShapeDtypeStruct((1,) + (grid_size,) * 3, np.float32)
    return jax.eval_shape(network.init, jax.random.key(0), maps)


def _require_maps(directory, trained):
    if 'problem' not in trained:
        raise InputError(f'{directory}: these weights are of a network for crystals, not for Patterson maps')


def _require_same_weights(directory, trained, now, network):
    before, after = weight_fields(trained), weight_fields(now)
    kinds = before['model'].get('network'), after['model'].get('network')
    if kinds[0] != kinds[1]:
        raise InputError(
            f'{directory}: these weights are of a network {kinds[0]!r}, the config has {kinds[1]!r}; '
            f'--config must be that of their training'
        )
    if network.any_grid:
        before['problem']['grid_size'] = after['problem']['grid_size']
    differing = differences(before, after, ('model', 'problem'))
    if differing:
        raise InputError(f'{directory}: these weights are for another config: {"; ".join(differing)}')


def weight_fields(config: dict) -> dict:
    """The part of a resolved config on which weights depend: the network, but not how it computes, and its input."""
    recorded = with_later_fields(config['model'])
    model = {field: value for field, value in recorded.items() if field not in COMPUTING_FIELDS}
    problem = {field: config['problem'].get(field) for field in WEIGHT_FIELDS}
    return {'model': model, 'problem': problem}
