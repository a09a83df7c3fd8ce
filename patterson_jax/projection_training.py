"""Training of the learned projection: invented crystals, maps as the search leaves them, and what they should become.

A case is a crystal with some starts of charge flipping. A start goes through the network a few times, each time with
the measured amplitudes restored, as it will in use; the gradient is that of the last pass alone. The loss is the mean
squared error of the network's map. The target is the true map at the origin and hand that are nearest to the start,
with a standard deviation of 1.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from patterson_jax.errors import require
from patterson_jax.learning.checkpoints import CheckpointSettings
from patterson_jax.learning.parallel import share_of_batch
from patterson_jax.learning.training import OptimizerSettings
from patterson_jax.networks.projection import NUM_CONDITIONS, ProjectionNet, conditions
from patterson_jax.search_states import StateSettings, draw_chunks, draw_states, nearest_truth
from patterson_jax.simulation.examples import example_key, stream_key
from patterson_jax.simulation.training_crystals import TrainingCrystal, TrainingRecipe, draw_crystal
from patterson_jax.solving.charge_flipping import friedel_counts
from patterson_jax.solving.learned_projection import phase_agreement, project, standard_map

LATER_PASSES = 8  # after which the validation measures again
STATES, CYCLES, PASSES = range(3)  # folded into keys


@dataclasses.dataclass(frozen=True)
class ProjectionSettings(OptimizerSettings):
    """How to train. configs/projection.py explains the fields, section `train`. Raises InputError if one is invalid."""

    most_passes: int

    may_be_zero = ('warmup_steps', 'most_passes')

    def __post_init__(self):
        super().__post_init__()
        require(self.most_passes >= 0, 'most_passes', self.most_passes, '0 or more')


class Cases(NamedTuple):
    """Starts on crystals, all along one axis.

    Attributes:
        crystals: each as often as it has starts.
        factors: `(n, *half_shape)`, of the maps.
        told: `(n, NUM_CONDITIONS)`, of the crystals.
    """

    crystals: TrainingCrystal
    factors: Array
    told: Array


@dataclasses.dataclass(frozen=True)
class ProjectionTask:
    """Maps of atoms from maps that the search leaves; a `learning.training.Task`.

    Attributes:
        network: to train.
        recipe: of the crystals.
        states: how maps are made.
        settings: how to train.
        seed: fixes weights and cases.
    """

    network: ProjectionNet
    recipe: TrainingRecipe
    states: StateSettings
    settings: ProjectionSettings
    seed: int

    def init(self, key: Array) -> Any:
        """The variables for the network's `apply` before the first step."""
        return self.network.init(key, jnp.zeros((1, *self.recipe.shape)), jnp.zeros((1, NUM_CONDITIONS)))

    def loss(self, weights: Any, statistics: Any, step: Array, sets_before: int) -> tuple[Array, tuple[Any, dict]]:
        """The mean squared error on the starts of a step; see `Task`."""
        stream = stream_key(self.seed, 'training')
        indices = step * self.settings.batch_size + share_of_batch(self.settings.batch_size)
        step_key = example_key(stream_key(self.seed, 'order'), sets_before, step)
        chunks = draw_chunks(jax.random.fold_in(step_key, CYCLES), self.states)
        cases = self.cases(stream, sets_before, indices, chunks)
        passes = jax.random.randint(jax.random.fold_in(step_key, PASSES), (), 0, self.settings.most_passes + 1)
        figures = self.figures(weights, self.passed(jax.lax.stop_gradient(weights), cases, passes))
        metrics = {name: jnp.mean(each) for name, each in figures.items()}
        return metrics['loss'], (statistics, metrics)

    def validation_figures(self, variables: Any, start: Array) -> dict[str, Array]:
        """Figures of this device's share of some validation crystals, means over their starts; see `Task`.

        They are those of the first pass, and how far the phases are right after `LATER_PASSES`.
        """
        cases = self.validation_cases(start + share_of_batch(self.settings.batch_size))
        return self.validated(variables, cases)

    def validation_cases(self, indices: Array) -> Cases:
        """The cases of some validation crystals, `(crystals,)`: the same in batches of any size."""
        stream = stream_key(self.seed, 'validation')
        chunks = jax.vmap(lambda index: draw_chunks(example_key(stream, 1, index), self.states))(indices)
        return self.cases(stream, 0, indices, chunks)

    def validated(self, variables: Any, cases: Cases) -> dict[str, Array]:
        """The figures of `validation_figures` on some cases, `(crystals,)`."""
        figures = self.figures(variables, cases)
        figures['correlation_later'] = self._agreement(self.passed(variables, cases, LATER_PASSES))
        return {name: jnp.mean(each.reshape(-1, self.states.starts), axis=1) for name, each in figures.items()}

    def cases(self, stream: Array, set_number: Array | int, indices: Array, chunks: Array) -> Cases:
        """Cases of one set.

        Args:
            stream: a key from `stream_key`.
            set_number: of the set.
            indices: `(crystals,)` within it.
            chunks: from `draw_chunks`, `()` for all of them, which costs less, or `(crystals,)`.
        """

        def one(index, chunks):
            key = example_key(stream, set_number, index)
            crystal = draw_crystal(key, self.recipe)
            states = draw_states(
                jax.random.fold_in(key, STATES), crystal.amplitudes, crystal.factors, chunks, self.states
            )
            return crystal, states, told(crystal)

        crystals, factors, words = jax.vmap(one, (0, 0 if chunks.ndim else None))(indices, chunks)
        repeated = jax.tree.map(lambda each: jnp.repeat(each, self.states.starts, axis=0), (crystals, words))
        return Cases(repeated[0], factors.reshape(-1, *factors.shape[2:]), repeated[1])

    def passed(self, variables: Any, cases: Cases, passes: Array | int) -> Cases:
        """The cases after passes through the network; without one, as they are."""

        def one(case):
            crystal, factors, words = case

            def once(_, factors):
                return project(self._apply(variables, words), factors, crystal.amplitudes, self.recipe.shape, 1).factors

            return jax.lax.fori_loop(0, passes, once, factors)

        return cases._replace(factors=_each(one, cases))

    def figures(self, variables: Any, cases: Cases) -> dict[str, Array]:
        """Squared errors of one pass, and how far phases are right before and after; each `(n,)`."""

        def one(case):
            crystal, factors, words = case
            nearest = nearest_truth(factors, crystal.amplitudes, crystal.factors, crystal.target)
            target = nearest.density / jnp.std(nearest.density)
            target = target - jnp.mean(target)  # what is at h = 0 has no say
            predicted = self._apply(variables, words)(standard_map(factors, crystal.amplitudes, self.recipe.shape))
            error, empty = jnp.mean((predicted - target) ** 2), jnp.mean(target**2)
            after = phase_agreement(jnp.fft.rfftn(predicted), nearest.factors, crystal.amplitudes)
            return {'loss': error, 'empty_loss': empty, 'correlation_before': nearest.correlation, 'correlation': after}

        return _each(one, cases)

    def _agreement(self, cases):
        def one(case):
            crystal, factors, _ = case
            return nearest_truth(factors, crystal.amplitudes, crystal.factors, crystal.target).correlation

        return jax.vmap(one)(cases)

    def _apply(self, variables, words):
        return lambda density: self.network.apply(variables, density[None], words[None])[0]


def told(crystal: TrainingCrystal) -> Array:
    """The network's conditions of a crystal, `(NUM_CONDITIONS,)`."""
    size = crystal.target.shape
    amplitudes, counts = crystal.amplitudes, friedel_counts(crystal.amplitudes)
    sizes = jnp.abs(crystal.factors)
    noise = jnp.sum(counts * jnp.abs(amplitudes - sizes)) / jnp.sum(counts * amplitudes)
    completeness = jnp.sum(counts) / jnp.sum(friedel_counts(sizes))
    return conditions(crystal.axes, (size[0], size[1], size[2]), crystal.d_min, noise, completeness)


def _each(function, cases):
    """Applies a function to every case; one after the other on CPU, where maps then stay in the cache."""
    if jax.default_backend() == 'cpu':
        return jax.lax.map(function, cases)
    return jax.vmap(function)(cases)


@dataclasses.dataclass(frozen=True)
class ProjectionExperiment:
    """A validated configuration of such a training: the seed, and a dataclass for each section."""

    seed: int
    crystals: TrainingRecipe
    states: StateSettings
    model: ProjectionNet
    train: ProjectionSettings
    checkpoint: CheckpointSettings

    @property
    def task(self) -> ProjectionTask:
        """What is learned."""
        return ProjectionTask(self.model, self.crystals, self.states, self.train, self.seed)
