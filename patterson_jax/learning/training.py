"""Training with Adam, on batches that each device makes for itself (paper, 3.1). What is learned is a `Task`.

The state is the step, the weights and the optimiser's moments. There is no iterator to save: the batch of a step is a
function of the seed and the step, so a run that is started again continues as if it had not stopped.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

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
from patterson_jax.progress import ProgressReport

SCHEDULES = ('cosine', 'trapezoid', 'constant')
LAST_PART = 0.3  # of the steps, in which the trapezoid schedule falls


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """How to train, whatever the task. configs/base.py explains the fields, section `train`. Raises InputError."""

    num_steps: int
    batch_size: int
    learning_rate: float
    adam_epsilon: float
    max_gradient_norm: float
    warmup_steps: int
    schedule: str
    init_from: str
    max_minutes: float
    num_validation: int
    log_every: int
    validate_every: int
    steps_per_call: int

    may_be_zero: ClassVar[tuple[str, ...]] = ('warmup_steps',)

    def __post_init__(self):
        for name, kind in typing.get_type_hints(type(self)).items():
            if kind is int and name not in self.may_be_zero:
                require(getattr(self, name) >= 1, name, getattr(self, name), '1 or more')
                require(getattr(self, name) < 2**31, name, getattr(self, name), f'at most {2**31 - 1}')
        most = (2**31 - 1) // self.batch_size  # the examples are counted in 32 bits
        require(self.num_steps <= most, 'num_steps', self.num_steps, f'at most {most} with {self.batch_size} a batch')
        rate = self.learning_rate
        require(math.isfinite(rate) and rate > 0, 'learning_rate', rate, 'a positive number')
        norm = self.max_gradient_norm
        require(math.isfinite(norm) and norm >= 0, 'max_gradient_norm', norm, '0 or more')
        epsilon = self.adam_epsilon
        require(math.isfinite(epsilon) and epsilon > 0, 'adam_epsilon', epsilon, 'a positive number')
        enough = 0 <= self.warmup_steps < self.num_steps
        require(enough, 'warmup_steps', self.warmup_steps, f'0 or more and less than num_steps, {self.num_steps}')
        require(self.schedule in SCHEDULES, 'schedule', self.schedule, f'one of {", ".join(SCHEDULES)}')
        limit = math.isfinite(self.max_minutes) and self.max_minutes >= 0
        require(limit, 'max_minutes', self.max_minutes, 'a number of minutes, or 0 for no limit')

    def sets_begun(self, num_steps: int) -> int:
        """Number of sets of cases that a run has begun after `num_steps` steps; here a run is one set."""
        return min(num_steps, 1)


class Task(Protocol):
    """What is learned: it makes the cases, the first weights, the loss and the figures of the validation.

    It is a value, a frozen dataclass: equal tasks share what is compiled for them. So do tasks that differ only in when
    the host acts, or in the number of steps if the rate is constant. Nothing but the rate may depend on these settings.

    `init`, `loss` and `validation_figures` are pure. The last two run inside a parallel function, where each device has
    its share of the cases (`learning.parallel`).
    """

    @property
    def settings(self) -> OptimizerSettings:
        """How to train."""

    @property
    def seed(self) -> int:
        """Fixes the first weights and all cases."""

    def __hash__(self) -> int:
        """Equal for equal tasks."""

    def init(self, key: Array) -> Any:
        """The variables for the network's `apply` before the first step."""

    def loss(self, weights: Any, statistics: Any, step: Array, sets_before: int) -> tuple[Array, tuple[Any, dict]]:
        """The loss on the cases of a step, which it makes; and the next statistics, and the metrics of the step.

        Args:
            weights: `{'params': …}`, with respect to which the loss is differentiated.
            statistics: the other variables.
            step: number of steps taken before, `()` int32.
            sets_before: number of sets of cases that earlier runs have begun.
        """

    def validation_figures(self, variables: Any, start: Array) -> dict[str, Array]:
        """Figures `(share,)` of this device's share of the validation cases `start` to `start + batch_size`."""


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


class Steps(NamedTuple):
    """The metrics of the steps of one call, perhaps still on the device.

    Attributes:
        metrics: of each step, `(steps_per_call,)`.
        taken: number of steps taken; what comes after them in `metrics` does not count.
    """

    metrics: dict[str, Any]
    taken: int


def make_optimizer(settings: OptimizerSettings) -> optax.GradientTransformation:
    """Adam with the settings' learning rate; gradients longer than `max_gradient_norm` are shortened first."""
    adam = optax.adam(learning_rate_schedule(settings), eps=settings.adam_epsilon)
    if not settings.max_gradient_norm:
        return adam
    return optax.chain(optax.clip_by_global_norm(settings.max_gradient_norm), adam)


def learning_rate_schedule(settings: OptimizerSettings) -> optax.Schedule:
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


def init_state(task: Task) -> TrainState:
    """The state before the first step; the seed alone determines the weights."""
    return state_with(_init_of(_as_compiled(task))(jax.random.key(task.seed)), task.settings)


@functools.lru_cache(maxsize=4)
def _init_of(task):
    # On CPU compilation takes most of the time. A lower level compiles faster and gives the same weights, bit for bit.
    options = {'xla_backend_optimization_level': 1} if jax.default_backend() == 'cpu' else None
    return jax.jit(task.init, compiler_options=options)


def state_with(params: Any, settings: OptimizerSettings) -> TrainState:
    """The state before the first step of a run that begins with the given `params`."""
    weights = {'params': params['params']}
    statistics = {name: value for name, value in params.items() if name != 'params'}
    return TrainState(jnp.zeros((), jnp.int32), weights, statistics, make_optimizer(settings).init(weights))


def make_train_step(task: Task, sets_before: int = 0) -> Callable[[TrainState], tuple[TrainState, dict[str, Array]]]:
    """Makes the training step: a pure function of the state that makes its own batch; run it with `parallelize`.

    Args:
        task: what is learned.
        sets_before: number of sets that earlier runs have begun.

    Returns:
        A function from the state to the next state and the metrics of the step.
    """
    optimizer, schedule = make_optimizer(task.settings), learning_rate_schedule(task.settings)

    def train_step(state):
        gradients, (statistics, metrics) = mean_over_devices(
            jax.grad(task.loss, has_aux=True)(state.weights, state.statistics, state.step, sets_before)
        )
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.weights)
        metrics |= {'gradient_norm': optax.tree.norm(gradients), 'learning_rate': schedule(state.step)}
        weights = optax.apply_updates(state.weights, updates)
        return TrainState(state.step + 1, weights, statistics, optimizer_state), metrics

    return train_step


def make_train_call(task: Task, sets_before: int = 0) -> Callable[[TrainState, Array], tuple[TrainState, dict]]:
    """Makes a function that takes several steps on the device; run it with `parallelize`.

    Args:
        task: what is learned; its settings' `steps_per_call` is the most steps of one call.
        sets_before: number of sets that earlier runs have begun.

    Returns:
        A function from the state and a number of steps, 1 to `steps_per_call`, to the state after them and the metrics
        of each, `(steps_per_call,)`. Rows of steps that were not taken are 0.
    """
    train_step, most = make_train_step(task, sets_before), task.settings.steps_per_call

    def train_call(state, num_steps):
        if most == 1:  # without a loop there is less to compile
            state, metrics = train_step(state)
            return state, jax.tree.map(jnp.atleast_1d, metrics)

        def one(index, carry):
            state, rows = carry
            state, metrics = train_step(state)
            return state, jax.tree.map(lambda column, value: column.at[index].set(value), rows, metrics)

        _, shapes = jax.eval_shape(train_step, state)
        rows = jax.tree.map(lambda shape: jnp.zeros(most, shape.dtype), shapes)
        return jax.lax.fori_loop(0, num_steps, one, (state, rows))

    return train_call


def make_validation(task: Task) -> Callable[[Any], dict[str, float]]:
    """Makes a function from `params` to the task's figures on the fixed validation cases, on all devices."""
    settings = task.settings

    def chunk_sums(params, start):
        counted = start + share_of_batch(settings.batch_size) < settings.num_validation
        figures = task.validation_figures(params, start)
        return sum_over_devices({name: jnp.sum(jnp.where(counted, each, 0)) for name, each in figures.items()})

    parallel_sums = parallelize(chunk_sums)

    def validate(params):
        starts = range(0, settings.num_validation, settings.batch_size)
        sums = [jax.device_get(parallel_sums(params, np.int32(start))) for start in starts]
        return {
            f'validation_{name}': float(np.sum([each[name] for each in sums]) / settings.num_validation)
            for name in sums[0]
        }

    return validate


def train(
    task: Task,
    checkpointing: CheckpointSettings,
    workdir: Path,
    config: dict,
    start: Start | None = None,
) -> TrainState:
    """Trains to the task's `num_steps` and continues from the workdir's latest checkpoint if there is one.

    Writes `metrics.jsonl` and `checkpoints/` in the workdir.

    Args:
        task: what is learned.
        checkpointing: when to save.
        workdir: an existing directory.
        config: the resolved configuration, kept in every checkpoint.
        start: the end of another run; training begins with its weights and continues with the next cases.

    Raises:
        NonFiniteError: a metric is NaN or infinite; the last checkpoint stays.
        Unfinished: SIGTERM was received or the time limit is reached. A checkpoint was saved; calling this again
            continues from it to the same end: bit for bit with the same `steps_per_call`, otherwise up to rounding.
    """
    settings = task.settings
    with (
        Checkpoints(workdir / 'checkpoints', checkpointing.keep) as checkpoints,
        StopRequest(settings.max_minutes, settings.steps_per_call) as stop,
    ):
        state, counters = _restore_or_begin(task, checkpoints, start)
        first_step = int(state.step)
        sets_before = counters['sets'] - settings.sets_begun(first_step)
        examples_before = counters['examples'] - first_step * settings.batch_size
        log = MetricsLog(workdir / 'metrics.jsonl', first_step)
        state = replicate(state)
        train_call, validate = _programs(_as_compiled(task), sets_before)
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
            step = first_step
            while step < settings.num_steps:
                num_steps = 1 if step == first_step else _steps_until_the_host_acts(step, settings, checkpointing)
                state, metrics = train_call(state, np.int32(num_steps))
                pending.append(Steps(metrics, num_steps))
                step += num_steps
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
                if not last and stop.requested():
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


def _as_compiled(task):
    """The task with the same settings wherever no program depends on them: when the host acts, how long a run is."""
    settings = dataclasses.replace(task.settings, max_minutes=0.0, log_every=1, validate_every=1, init_from='')
    if settings.schedule == 'constant':
        settings = dataclasses.replace(settings, num_steps=settings.warmup_steps + 1)
    return dataclasses.replace(task, settings=settings)


@functools.lru_cache(maxsize=4)
def _programs(task, sets_before):
    """The step and the validation. A run that goes on in the same process need not have them traced again."""
    return parallelize(make_train_call(task, sets_before), donate=True), make_validation(task)


def _steps_until_the_host_acts(step, settings, checkpointing):
    """The steps of the next call: not beyond the next row of the log, validation, checkpoint or the end."""
    every = (settings.log_every, settings.validate_every, checkpointing.every_steps)
    return min(settings.steps_per_call, settings.num_steps - step, *(each - step % each for each in every))


def _restore_or_begin(task, checkpoints, start):
    """The state and the counters of the latest checkpoint, or of a new run without one."""
    if checkpoints.latest_step is not None:
        params = _init_of(_as_compiled(task)).eval_shape(jax.random.key(task.seed))
        shapes = jax.eval_shape(lambda params: state_with(params, task.settings), params)
        items = checkpoints.restore(
            checkpoints.latest_step, params=shapes.params, optimizer=shapes.optimizer, counters=None
        )
        restored = state_with(items['params'], task.settings)
        step = jnp.asarray(checkpoints.latest_step, jnp.int32)
        return dataclasses.replace(restored, step=step, optimizer=items['optimizer']), items['counters']
    counters = {'examples': 0, 'sets': 0, 'seconds': 0.0, 'pending': []}
    if start is None:
        return init_state(task), counters
    return state_with(start.params, task.settings), counters | {'examples': start.examples, 'sets': start.sets}


def _to_json(pending):
    """Converts metrics of steps, perhaps on the device, to plain numbers; float32 survives JSON unchanged."""
    columns = _columns(pending)
    return [
        {name: float(value) for name, value in zip(columns, row, strict=True)}
        for row in zip(*columns.values(), strict=True)
    ]


def _from_json(rows):
    return [Steps({name: np.array([value], np.float32) for name, value in row.items()}, 1) for row in rows]


def _columns(pending):
    """Each metric of all steps, in their order."""
    metrics = jax.device_get([each.metrics for each in pending])
    return {
        name: np.concatenate([each[name][: steps.taken] for each, steps in zip(metrics, pending, strict=True)])
        for name in (metrics[0] if metrics else ())
    }


def _mean_of(pending):
    """Means of metrics over steps; of the learning rate the last value."""
    columns = _columns(pending)
    means = {name: float(np.mean(column)) for name, column in columns.items()}
    return means | {'learning_rate': float(columns['learning_rate'][-1])}


def _require_finite(row, step):
    for name, value in row.items():
        if not np.isfinite(value):
            raise NonFiniteError(
                f'{name} is {value} at step {step}; training stops, and the last checkpoint stays as it is. '
                'Try a smaller train.learning_rate or a longer train.warmup_steps'
            )
