"""Training with squared error and Adam, on batches that each device makes for itself (paper, 3.1).

The state is the step, the weights and the optimiser's moments. There is no iterator to save: the batch of a step is a
function of the seed and the step, so a run that is started again continues as if it had not stopped.

The cases come in sets. As in the paper, a set can serve for several epochs, each in a different order, before the next
set replaces it. No set is stored: its cases are made again.
"""

import dataclasses
import math
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from patterson_jax.errors import NonFiniteError, Unfinished, require
from patterson_jax.learning.checkpoints import Checkpoints, CheckpointSettings
from patterson_jax.learning.metrics import Clock, MetricsLog
from patterson_jax.learning.parallel import (
    is_first_process,
    mean_over_devices,
    parallelize,
    replicate,
    share_of_batch,
    sum_over_devices,
)
from patterson_jax.learning.stopping import StopRequest
from patterson_jax.networks.density_network import ESTIMATES
from patterson_jax.progress import ProgressReport
from patterson_jax.simulation.encoding import network_input
from patterson_jax.simulation.examples import Example, example_key, make_batch, stream_key
from patterson_jax.simulation.maps import map_correlation, middle, surround
from patterson_jax.simulation.problem import Problem

SCHEDULES = ('cosine', 'trapezoid', 'constant')
LAST_PART = 0.3  # of the steps, in which the trapezoid schedule falls


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How to train. configs/base.py explains the fields, section `train`. Raises InputError if one is invalid."""

    num_steps: int
    batch_size: int
    learning_rate: float
    adam_epsilon: float
    max_gradient_norm: float
    early_weight: float
    filled_weight: float
    crop: int
    warmup_steps: int
    schedule: str
    set_size: int
    epochs_per_set: int
    init_from: str
    max_minutes: float
    num_validation: int
    log_every: int
    validate_every: int

    def __post_init__(self):
        for name, kind in typing.get_type_hints(TrainingSettings).items():
            if kind is int and name not in ('warmup_steps', 'crop'):
                require(getattr(self, name) >= 1, name, getattr(self, name), '1 or more')
                require(getattr(self, name) < 2**31, name, getattr(self, name), f'at most {2**31 - 1}')
        most = (2**31 - 1) // self.batch_size  # the examples are counted in 32 bits
        require(self.num_steps <= most, 'num_steps', self.num_steps, f'at most {most} with {self.batch_size} a batch')
        rate = self.learning_rate
        require(math.isfinite(rate) and rate > 0, 'learning_rate', rate, 'a positive number')
        for name in ('max_gradient_norm', 'early_weight', 'filled_weight'):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, name, value, '0 or more')
        require(self.crop >= 0, 'crop', self.crop, 'a number of voxels, or 0 for the whole grid')
        epsilon = self.adam_epsilon
        require(math.isfinite(epsilon) and epsilon > 0, 'adam_epsilon', epsilon, 'a positive number')
        enough = 0 <= self.warmup_steps < self.num_steps
        require(enough, 'warmup_steps', self.warmup_steps, f'0 or more and less than num_steps, {self.num_steps}')
        require(self.schedule in SCHEDULES, 'schedule', self.schedule, f'one of {", ".join(SCHEDULES)}')
        whole = self.epochs_per_set == 1 or self.set_size % self.batch_size == 0
        allowed = f'a multiple of batch_size, {self.batch_size}, where epochs_per_set is more than 1'
        require(whole, 'set_size', self.set_size, allowed)
        limit = math.isfinite(self.max_minutes) and self.max_minutes >= 0
        require(limit, 'max_minutes', self.max_minutes, 'a number of minutes, or 0 for no limit')

    def seen(self, problem: Problem) -> int:
        """Edge in voxels of the middle of the maps that the network is given.

        Around it the output counts as zero, so that losses and gradients have the same scale as those of whole maps.
        """
        return self.crop or problem.grid_size

    def sets_begun(self, num_steps: int) -> int:
        """Number of sets of cases that a run has begun after `num_steps` steps."""
        return -(-num_steps * self.batch_size // (self.set_size * self.epochs_per_set))


@flax.struct.dataclass
class TrainState:
    """The values that a step changes.

    Attributes:
        step: number of steps taken.
        weights: those that the optimiser changes: `{'params': …}`.
        statistics: those of batch normalisation: `{'batch_stats': …}`, or empty.
        optimizer: the optimiser's state.
    """

    step: Array
    weights: Any
    statistics: Any
    optimizer: optax.OptState

    @property
    def params(self) -> Any:
        """The variables for the network's `apply`."""
        return {**self.weights, **self.statistics}


class Start(NamedTuple):
    """The start of a run that continues from the weights of another run.

    Attributes:
        params: the variables for the network's `apply`.
        examples: number of examples that all earlier runs have seen.
        sets: number of sets of cases that they have begun.
    """

    params: Any
    examples: int
    sets: int


def make_optimizer(settings: TrainingSettings) -> optax.GradientTransformation:
    """Adam with the settings' learning rate; gradients longer than `max_gradient_norm` are shortened first."""
    adam = optax.adam(learning_rate_schedule(settings), eps=settings.adam_epsilon)
    if not settings.max_gradient_norm:
        return adam
    return optax.chain(optax.clip_by_global_norm(settings.max_gradient_norm), adam)


def learning_rate_schedule(settings: TrainingSettings) -> optax.Schedule:
    """Linear warm-up, then a constant rate, a cosine to 1 % at the end, or a linear fall to 1 % over the last 30 %."""
    rate, warmup, steps = settings.learning_rate, settings.warmup_steps, settings.num_steps
    if settings.schedule == 'cosine':
        return optax.warmup_cosine_decay_schedule(0, rate, warmup, steps, rate / 100)
    parts, boundaries = [optax.linear_schedule(0, rate, warmup), optax.constant_schedule(rate)], [warmup]
    if settings.schedule == 'trapezoid':
        fall = max(warmup, round((1 - LAST_PART) * steps))
        parts.append(optax.linear_schedule(rate, rate / 100, steps - fall))
        boundaries.append(fall)
    return optax.join_schedules(parts, boundaries)


def init_state(network: nn.Module, problem: Problem, settings: TrainingSettings, seed: int) -> TrainState:
    """The state before the first step; the seed alone determines the weights."""
    # On CPU compilation takes most of the time. A lower level compiles faster and gives the same weights, bit for bit.
    options = {'xla_backend_optimization_level': 1} if jax.default_backend() == 'cpu' else None
    init = jax.jit(network.init, compiler_options=options)
    return state_with(init(jax.random.key(seed), _empty_map(problem)), settings)


def _empty_map(problem):
    return jnp.zeros((1,) + (problem.grid_size,) * 3)


def state_with(params: Any, settings: TrainingSettings) -> TrainState:
    """The state before the first step of a run that begins with the given `params`."""
    weights = {'params': params['params']}
    statistics = {name: value for name, value in params.items() if name != 'params'}
    return TrainState(jnp.zeros((), jnp.int32), weights, statistics, make_optimizer(settings).init(weights))


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


def make_train_step(
    network: nn.Module, problem: Problem, settings: TrainingSettings, seed: int, sets_before: int = 0
) -> Callable[[TrainState], tuple[TrainState, dict[str, Array]]]:
    """Makes the training step: a pure function of the state that makes its own batch; run it with `parallelize`.

    Args:
        network: to train.
        problem: what the cases are.
        settings: how to train.
        seed: of the cases.
        sets_before: number of sets that earlier runs have begun.

    Returns:
        A function from the state to the next state and the metrics of the step.
    """
    optimizer, schedule = make_optimizer(settings), learning_rate_schedule(settings)

    def loss(weights, statistics, batch):
        inputs = middle(network_input(batch.patterson, problem.num_atoms, problem.encoding), settings.seen(problem))
        predicted, left = network.apply({**weights, **statistics}, inputs, train=True, mutable=[*statistics, ESTIMATES])
        early = jax.tree.leaves(left.get(ESTIMATES, ()))
        statistics = {name: each for name, each in left.items() if name != ESTIMATES}
        predicted = surround(predicted, problem.grid_size)
        error, empty, correlation = map(jnp.mean, squared_errors(predicted, batch.target))
        early_error = sum(weighted_error(each, batch.target) for each in early)
        metrics = {'loss': error, 'empty_loss': empty, 'correlation': correlation}
        return weighted_error(predicted, batch.target) + settings.early_weight * early_error, (statistics, metrics)

    def weighted_error(estimate, target):
        return jnp.mean((1 + settings.filled_weight * target) * (estimate - target) ** 2)

    def train_step(state):
        batch = training_batch(state.step, problem, settings, seed, sets_before)
        gradients, (statistics, metrics) = mean_over_devices(
            jax.grad(loss, has_aux=True)(state.weights, state.statistics, batch)
        )
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.weights)
        metrics |= {'gradient_norm': optax.tree.norm(gradients), 'learning_rate': schedule(state.step)}
        weights = optax.apply_updates(state.weights, updates)
        return TrainState(state.step + 1, weights, statistics, optimizer_state), metrics

    return train_step


def make_validation(
    network: nn.Module, problem: Problem, settings: TrainingSettings, seed: int
) -> Callable[[Any], dict[str, float]]:
    """Makes a function from `params` to losses and map correlation on the fixed validation cases, on all devices.

    The network is given the same part of the maps as in training. A network that has learned from cropped maps at first
    produces density in the zeros around them.
    """
    problem = problem.testing

    def chunk_sums(params, start):
        indices = start + share_of_batch(settings.batch_size)
        batch = make_batch(stream_key(seed, 'validation'), 0, indices, problem)
        inputs = middle(network_input(batch.patterson, problem.num_atoms, problem.encoding), settings.seen(problem))
        predicted = surround(cast(Array, network.apply(params, inputs)), problem.grid_size)
        counted = indices < settings.num_validation
        return sum_over_devices(
            [jnp.sum(jnp.where(counted, each, 0)) for each in squared_errors(predicted, batch.target)]
        )

    parallel_sums = parallelize(chunk_sums)

    def validate(params):
        starts = range(0, settings.num_validation, settings.batch_size)
        sums = np.sum([jax.device_get(parallel_sums(params, np.int32(start))) for start in starts], axis=0)
        names = ('validation_loss', 'validation_empty_loss', 'validation_correlation')
        return {name: float(each) for name, each in zip(names, sums / settings.num_validation, strict=True)}

    return validate


def train(
    network: nn.Module,
    problem: Problem,
    settings: TrainingSettings,
    checkpointing: CheckpointSettings,
    seed: int,
    workdir: Path,
    config: dict,
    start: Start | None = None,
) -> TrainState:
    """Trains to `settings.num_steps` and continues from the workdir's latest checkpoint if there is one.

    Writes `metrics.jsonl` and `checkpoints/` in the workdir.

    Args:
        network: from `network_input` maps to density maps.
        problem: what the cases are.
        settings: how to train.
        checkpointing: when to save.
        seed: fixes weights and cases.
        workdir: an existing directory.
        config: the resolved configuration, kept in every checkpoint.
        start: the end of another run; training begins with its weights and continues with the next cases.

    Raises:
        NonFiniteError: a metric is NaN or infinite; the last checkpoint stays.
        Unfinished: SIGTERM was received or the time limit is reached. A checkpoint was saved; calling this again
            continues from it to the same end, bit for bit.
    """
    with (
        Checkpoints(workdir / 'checkpoints', checkpointing.keep) as checkpoints,
        StopRequest(settings.max_minutes) as stop,
    ):
        state, counters = _restore_or_begin(network, problem, settings, seed, checkpoints, start)
        first_step = int(state.step)
        sets_before = counters['sets'] - settings.sets_begun(first_step)
        examples_before = counters['examples'] - first_step * settings.batch_size
        log = MetricsLog(workdir / 'metrics.jsonl', first_step)
        state = replicate(state)
        train_step = parallelize(make_train_step(network, problem, settings, seed, sets_before), donate=True)
        validate = make_validation(network, problem, settings, seed)
        clock = Clock(counters['seconds'])
        pending = _from_json(counters['pending'])  # metrics of steps that are not in the log yet

        def save(step, validation_loss=math.inf):
            counters = {
                'step': step,
                'examples': examples_before + step * settings.batch_size,
                'sets': sets_before + settings.sets_begun(step),
                'seconds': clock.seconds,
                'pending': _to_json(pending),
            }
            checkpoints.save(step, state.params, state.optimizer, config, counters, validation_loss)

        with ProgressReport('training', settings.num_steps, first_step, silent=not is_first_process()) as progress:
            for step in range(first_step + 1, settings.num_steps + 1):
                state, metrics = train_step(state)
                pending.append(metrics)
                examples = examples_before + step * settings.batch_size
                if step == first_step + 1:  # this step includes compilation
                    jax.block_until_ready(metrics)
                    clock.skip(examples)
                    progress.restart(step)
                last = step == settings.num_steps
                saving = last or step % checkpointing.every_steps == 0
                measuring = saving or step % settings.validate_every == 0
                if measuring or step % settings.log_every == 0:
                    row = _mean_of(pending)
                    pace = clock.lap(examples)
                    pending.clear()
                    if measuring:
                        row |= validate(state.params)
                        clock.skip(examples)
                    _require_finite(row, step)
                    log.write({'step': step, 'examples': examples} | row | pace)
                    progress.update(step, f'loss {row["loss"]:.3g}, {pace["examples_per_second"]:.0f} examples/s')
                if saving:
                    save(step, row['validation_loss'])
                    clock.skip(examples)
                if not last and stop.requested(step):
                    if not saving:
                        if pending:
                            _require_finite(_mean_of(pending), step)
                        save(step)
                    measured = ''
                    if not (saving or stop.too_late()):  # a scheduler does not wait
                        correlation = validate(state.params)['validation_correlation']
                        measured = f', validation correlation {correlation:.4f}'
                    raise Unfinished(
                        f'stopped by {stop.reason} after step {step} of {settings.num_steps}, which is saved{measured}'
                        '; the same command continues from there'
                    )
        if stop.too_late():
            raise Unfinished('stopped by SIGTERM after the training; the same command continues from there')
    return state


def _restore_or_begin(network, problem, settings, seed, checkpoints, start):
    """The state and the counters of the latest checkpoint, or of a new run without one."""
    if checkpoints.latest_step is not None:
        shapes = jax.eval_shape(lambda: state_with(network.init(jax.random.key(seed), _empty_map(problem)), settings))
        items = checkpoints.restore(
            checkpoints.latest_step, params=shapes.params, optimizer=shapes.optimizer, counters=None
        )
        restored = state_with(items['params'], settings)
        step = jnp.asarray(checkpoints.latest_step, jnp.int32)
        return dataclasses.replace(restored, step=step, optimizer=items['optimizer']), items['counters']
    counters = {'examples': 0, 'sets': 0, 'seconds': 0.0, 'pending': []}
    if start is None:
        return init_state(network, problem, settings, seed), counters
    return state_with(start.params, settings), counters | {'examples': start.examples, 'sets': start.sets}


def _to_json(metrics):
    """Converts metrics of steps, perhaps on the device, to plain numbers; float32 survives JSON unchanged."""
    return [{name: float(value) for name, value in each.items()} for each in jax.device_get(metrics)]


def _from_json(metrics):
    return [{name: np.float32(value) for name, value in each.items()} for each in metrics]


def _mean_of(metrics):
    """Means of metrics over steps; of the learning rate the last value."""
    host = jax.device_get(metrics)
    means = {name: float(np.mean([each[name] for each in host])) for name in host[0]}
    return means | {'learning_rate': float(host[-1]['learning_rate'])}


def _require_finite(row, step):
    for name, value in row.items():
        if not np.isfinite(value):
            raise NonFiniteError(
                f'{name} is {value} at step {step}; training stops, and the last checkpoint stays as it is. '
                'Try a smaller train.learning_rate or a longer train.warmup_steps'
            )
