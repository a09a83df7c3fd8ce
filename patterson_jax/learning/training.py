"""Training: mean squared error, Adam, batches made on the devices that use them (paper, 3.1).

The state is the step, the weights and the optimiser's moments. There is no iterator to save: the batch of a step is a
function of the seed and the step, so a run that is started again goes on as if it had not stopped.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from patterson_jax.errors import NonFiniteError, require
from patterson_jax.learning.checkpoints import Checkpoints, CheckpointSettings
from patterson_jax.learning.parallel import (
    mean_over_devices,
    parallelize,
    replicate,
    share_of_batch,
    sum_over_devices,
)
from patterson_jax.progress import ProgressReport
from patterson_jax.simulation.density import map_correlation
from patterson_jax.simulation.examples import Example, make_batch, network_input, stream_key
from patterson_jax.simulation.problem import Problem

SCHEDULES = ('cosine', 'constant')


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How to train; the fields are explained in configs/base.py, section `train`. Raises InputError."""

    num_steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    schedule: str
    num_validation: int
    log_every: int
    validate_every: int

    def __post_init__(self):
        for field in ('num_steps', 'batch_size', 'num_validation', 'log_every', 'validate_every'):
            require(getattr(self, field) >= 1, field, getattr(self, field), '1 or more')
        most = (2**31 - 1) // self.batch_size  # the examples are counted in 32 bits
        require(self.num_steps <= most, 'num_steps', self.num_steps, f'at most {most} with {self.batch_size} a batch')
        rate = self.learning_rate
        require(math.isfinite(rate) and rate > 0, 'learning_rate', rate, 'a positive number')
        enough = 0 <= self.warmup_steps < self.num_steps
        require(enough, 'warmup_steps', self.warmup_steps, f'0 or more and less than num_steps, {self.num_steps}')
        require(self.schedule in SCHEDULES, 'schedule', self.schedule, f'one of {", ".join(SCHEDULES)}')


@flax.struct.dataclass
class TrainState:
    """All that a step changes: the number of steps taken, the weights, the optimiser's state."""

    step: Array
    params: Any
    optimizer: optax.OptState


def make_optimizer(settings: TrainingSettings) -> optax.GradientTransformation:
    """Adam with the settings' learning rate."""
    return optax.adam(learning_rate_schedule(settings))


def learning_rate_schedule(settings: TrainingSettings) -> optax.Schedule:
    """Linear warm-up, then constant or a cosine down to 1 % at the last step."""
    if settings.schedule == 'constant':
        warmup = optax.linear_schedule(0, settings.learning_rate, settings.warmup_steps)
        return optax.join_schedules([warmup, optax.constant_schedule(settings.learning_rate)], [settings.warmup_steps])
    return optax.warmup_cosine_decay_schedule(
        0, settings.learning_rate, settings.warmup_steps, settings.num_steps, settings.learning_rate / 100
    )


def init_state(network: nn.Module, problem: Problem, settings: TrainingSettings, seed: int) -> TrainState:
    """The state before the first step; weights from the seed alone."""
    maps = jnp.zeros((1,) + (problem.grid_size,) * 3)
    params = jax.jit(network.init)(jax.random.key(seed), maps)
    return TrainState(jnp.zeros((), jnp.int32), params, make_optimizer(settings).init(params))


def squared_errors(network: nn.Module, params: Any, batch: Example, problem: Problem) -> tuple[Array, Array]:
    """Mean squared error of each case's map and its correlation with the target, both `(batch,)`."""
    predicted = network.apply(params, network_input(batch.patterson, problem))
    errors = jnp.mean((predicted - batch.target) ** 2, axis=(-3, -2, -1))
    return errors, map_correlation(predicted, batch.target)


def make_train_step(
    network: nn.Module, problem: Problem, settings: TrainingSettings, seed: int
) -> Callable[[TrainState], tuple[TrainState, dict[str, Array]]]:
    """The step: a pure function of the state, to be run by `parallelize`, which makes its own batch.

    Step s learns from cases s · batch_size … (s + 1) · batch_size − 1 of the training stream.
    """
    optimizer, schedule = make_optimizer(settings), learning_rate_schedule(settings)

    def loss(params, batch):
        errors, correlations = squared_errors(network, params, batch, problem)
        return jnp.mean(errors), jnp.mean(correlations)

    def train_step(state):
        indices = state.step * settings.batch_size + share_of_batch(settings.batch_size)
        batch = make_batch(stream_key(seed, 'training'), 0, indices, problem)
        results = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
        (error, correlation), gradients = mean_over_devices(results)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        metrics = {
            'loss': error,
            'correlation': correlation,
            'gradient_norm': optax.tree.norm(gradients),
            'learning_rate': schedule(state.step),
        }
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), optimizer_state), metrics

    return train_step


def make_validation(
    network: nn.Module, problem: Problem, settings: TrainingSettings, seed: int
) -> Callable[[Any], dict[str, float]]:
    """A function from weights to loss and map correlation on the fixed validation cases, run on all devices."""

    def chunk_sums(params, start):
        indices = start + share_of_batch(settings.batch_size)
        batch = make_batch(stream_key(seed, 'validation'), 0, indices, problem)
        counted = indices < settings.num_validation
        sums = [jnp.sum(jnp.where(counted, each, 0)) for each in squared_errors(network, params, batch, problem)]
        return sum_over_devices(sums)

    parallel_sums = parallelize(chunk_sums)

    def validate(params):
        starts = range(0, settings.num_validation, settings.batch_size)
        sums = np.sum([jax.device_get(parallel_sums(params, np.int32(start))) for start in starts], axis=0)
        loss, correlation = sums / settings.num_validation
        return {'validation_loss': float(loss), 'validation_correlation': float(correlation)}

    return validate


def train(
    network: nn.Module,
    problem: Problem,
    settings: TrainingSettings,
    checkpointing: CheckpointSettings,
    seed: int,
    workdir: Path,
    config: dict,
) -> TrainState:
    """Trains to `settings.num_steps`, going on from the workdir's latest checkpoint if it has one.

    Writes `metrics.jsonl` and `checkpoints/` in the workdir.

    Args:
        network: from `network_input` maps to density maps.
        problem: what the cases are.
        settings: how to train.
        checkpointing: when to save.
        seed: fixes weights and cases.
        workdir: an existing directory.
        config: the resolved configuration, kept in every checkpoint.

    Raises:
        NonFiniteError: a metric is not a number; the last checkpoint stays.
    """
    state = init_state(network, problem, settings, seed)
    trained_before = 0.0
    with Checkpoints(workdir / 'checkpoints', checkpointing.keep) as checkpoints:
        if checkpoints.latest_step is not None:
            items = checkpoints.restore(
                checkpoints.latest_step, params=state.params, optimizer=state.optimizer, counters=None
            )
            step = jnp.asarray(checkpoints.latest_step, jnp.int32)
            state = TrainState(step, items['params'], items['optimizer'])
            trained_before = items['counters']['seconds']
        first_step = int(state.step)
        log = MetricsLog(workdir / 'metrics.jsonl', first_step)
        state = replicate(state)
        train_step = parallelize(make_train_step(network, problem, settings, seed), donate=True)
        validate = make_validation(network, problem, settings, seed)
        clock = Clock(trained_before)
        recent = []
        with ProgressReport('training', settings.num_steps, first_step) as progress:
            for step in range(first_step + 1, settings.num_steps + 1):
                state, metrics = train_step(state)
                recent.append(metrics)
                examples = step * settings.batch_size
                if step == first_step + 1:  # the step that was compiled
                    jax.block_until_ready(metrics)
                    clock.skip(examples)
                    progress.restart(step)
                last = step == settings.num_steps
                save = last or step % checkpointing.every_steps == 0
                measure = save or step % settings.validate_every == 0
                if not (measure or step % settings.log_every == 0):
                    continue
                row = _mean_of(recent)
                pace = clock.lap(examples)
                recent = []
                if measure:
                    row |= validate(state.params)
                    clock.skip(examples)
                _require_finite(row, step)
                log.write({'step': step, 'examples': examples} | row | pace)
                progress.update(step, f'loss {row["loss"]:.3g}, {pace["examples_per_second"]:.0f} examples/s')
                if save:
                    counters = {'step': step, 'seconds': pace['seconds']}
                    checkpoints.save(step, state.params, state.optimizer, config, counters, row['validation_loss'])
    return state


class Clock:
    """Seconds of training, those of earlier runs included, and its pace without compilation and validation."""

    def __init__(self, seconds_before: float):
        self.seconds_before = seconds_before
        self.started = time.perf_counter()
        self.skip(0)

    def skip(self, examples: int) -> None:
        """Measures the pace from here on, where `examples` have been used in all."""
        self.last, self.examples = time.perf_counter(), examples

    def lap(self, examples: int) -> dict[str, float]:
        """Seconds in all, and examples per second since the last lap or skip."""
        now = time.perf_counter()
        pace = (examples - self.examples) / (now - self.last)
        self.skip(examples)
        return {
            'seconds': round(self.seconds_before + now - self.started, 3),
            'examples_per_second': round(pace, 2),
        }


class MetricsLog:
    """metrics.jsonl: one JSON object a line, and TensorBoard events beside it where tensorboardX is installed.

    Lines of steps after `step`, which will be taken again, are dropped. The first host writes for all.
    """

    def __init__(self, path: Path, step: int):
        self.path = path
        kept = ''.join(json.dumps(row) + '\n' for row in read_metrics(path) if row['step'] <= step)
        self.is_writer = jax.process_index() == 0
        self.events = None
        if self.is_writer:
            part = path.with_name(f'.{path.name}.part')
            part.write_text(kept)
            part.replace(path)
            self.events = _event_writer(path.parent / 'tensorboard', step)

    def write(self, row: dict) -> None:
        """Appends one row."""
        if self.is_writer:
            with self.path.open('a') as file:
                file.write(json.dumps(row) + '\n')
        if self.events:
            for name, value in row.items():
                self.events.add_scalar(name, value, row['step'])
            self.events.flush()


def _event_writer(directory, step):
    """A writer of TensorBoard events, if the extra is installed; events of later steps than `step` are dropped."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory), purge_step=step + 1)


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl up to the first that is none, such as a last line cut short; no file, no rows."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(errors='replace').splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if not (isinstance(row, dict) and isinstance(row.get('step'), int)):
            break
        rows.append(row)
    return rows


def _mean_of(metrics):
    """Means over steps of a list of metrics still on the device; the learning rate is the last one."""
    host = jax.device_get(metrics)
    means = {name: float(np.mean([each[name] for each in host])) for name in host[0]}
    return means | {'learning_rate': float(host[-1]['learning_rate'])}


def _require_finite(row, step):
    for name, value in row.items():
        if not np.isfinite(value):
            raise NonFiniteError(
                f'{name} is {value} at step {step}; training stops, the last checkpoint stays as it is. '
                'A smaller train.learning_rate or a longer train.warmup_steps may cure it'
            )
