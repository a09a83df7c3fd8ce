"""Training on Patterson maps: squared errors of the density maps that a network predicts (paper, 3.1).

The cases come in sets. As in the paper, a set can serve for several epochs, each in a different order, before the next
set replaces it. No set is stored: its cases are made again.
"""

import dataclasses
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array

from patterson_jax.errors import require
from patterson_jax.learning.parallel import share_of_batch
from patterson_jax.learning.training import OptimizerSettings
from patterson_jax.networks.density_network import ESTIMATES, DensityNetwork
from patterson_jax.simulation.encoding import network_input
from patterson_jax.simulation.examples import Example, example_key, make_batch, stream_key
from patterson_jax.simulation.maps import map_correlation
from patterson_jax.simulation.problem import Problem


@dataclasses.dataclass(frozen=True)
class TrainingSettings(OptimizerSettings):
    """How to train. configs/base.py explains the fields, section `train`. Raises InputError if one is invalid."""

    early_weight: float
    filled_weight: float
    set_size: int
    epochs_per_set: int

    def __post_init__(self):
        super().__post_init__()
        for name in ('early_weight', 'filled_weight'):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, name, value, '0 or more')
        whole = self.epochs_per_set == 1 or self.set_size % self.batch_size == 0
        allowed = f'a multiple of batch_size, {self.batch_size}, where epochs_per_set is more than 1'
        require(whole, 'set_size', self.set_size, allowed)

    def sets_begun(self, num_steps: int) -> int:
        """Number of sets of cases that a run has begun after `num_steps` steps."""
        return -(-num_steps * self.batch_size // (self.set_size * self.epochs_per_set))


@dataclasses.dataclass(frozen=True)
class MapTask:
    """Density maps from Patterson maps.

    Attributes:
        network: from `network_input` maps to density maps.
        problem: what the cases are.
        settings: how to train.
        seed: fixes weights and cases.
    """

    network: DensityNetwork
    problem: Problem
    settings: TrainingSettings
    seed: int

    def init(self, key: Array) -> Any:
        """The variables for the network's `apply` before the first step."""
        return self.network.init(key, jnp.zeros((1,) + (self.problem.grid_size,) * 3))

    def loss(self, weights: Any, statistics: Any, step: Array, sets_before: int) -> tuple[Array, tuple[Any, dict]]:
        """The mean squared error on the cases of a step, with the weights of the settings; see `Task`."""
        settings, problem = self.settings, self.problem
        batch = training_batch(step, problem, settings, self.seed, sets_before)
        inputs = network_input(batch.patterson, problem.num_atoms, problem.encoding)
        predicted, left = self.network.apply(
            {**weights, **statistics}, inputs, train=True, mutable=[*statistics, ESTIMATES]
        )
        early = jax.tree.leaves(left.get(ESTIMATES, ()))
        statistics = {name: each for name, each in left.items() if name != ESTIMATES}
        error, empty, correlation = map(jnp.mean, squared_errors(predicted, batch.target))
        early_error = sum(self._weighted_error(each, batch.target) for each in early)
        metrics = {'loss': error, 'empty_loss': empty, 'correlation': correlation}
        total = self._weighted_error(predicted, batch.target) + settings.early_weight * early_error
        return total, (statistics, metrics)

    def _weighted_error(self, estimate, target):
        return jnp.mean((1 + self.settings.filled_weight * target) * (estimate - target) ** 2)

    def validation_figures(self, variables: Any, start: Array) -> dict[str, Array]:
        """Losses and map correlation of this device's share of some validation cases; see `Task`."""
        problem = self.problem.testing
        indices = start + share_of_batch(self.settings.batch_size)
        batch = make_batch(stream_key(self.seed, 'validation'), 0, indices, problem)
        inputs = network_input(batch.patterson, problem.num_atoms, problem.encoding)
        predicted = cast(Array, self.network.apply(variables, inputs))
        return dict(zip(('loss', 'empty_loss', 'correlation'), squared_errors(predicted, batch.target), strict=True))


def squared_errors(predicted: Array, target: Array) -> tuple[Array, Array, Array]:
    """Mean squared error of maps `(batch, grid, grid, grid)`, that of empty maps, map correlation; each `(batch,)`."""

    def mean_square(each):
        return jnp.mean(each**2, axis=(-3, -2, -1))

    return mean_square(predicted - target), mean_square(target), map_correlation(predicted, target)


def training_batch(step: Array, problem: Problem, settings: TrainingSettings, seed: int, sets_before: int) -> Example:
    """Inside a parallel function: this device's share of the cases of a step.

    With one epoch a set, the cases come in their order: those of the first set, then those of the next. With several
    epochs, (seed, epoch) determines the order of the set in each of them.

    Args:
        step: number of steps taken before, `()` int32.
        problem: what the cases are.
        settings: how to train.
        seed: of the cases.
        sets_before: number of sets that earlier runs have begun.
    """
    share = share_of_batch(settings.batch_size)
    stream = stream_key(seed, 'training')
    if settings.epochs_per_set == 1:
        examples = step * settings.batch_size + share
        return make_batch(stream, sets_before + examples // settings.set_size, examples % settings.set_size, problem)
    steps_per_epoch = settings.set_size // settings.batch_size
    epoch = step // steps_per_epoch
    set_number = sets_before + epoch // settings.epochs_per_set
    order_key = example_key(stream_key(seed, 'order'), set_number, epoch % settings.epochs_per_set)
    order = jax.random.permutation(order_key, settings.set_size)
    return make_batch(stream, set_number, order[step % steps_per_epoch * settings.batch_size + share], problem)
