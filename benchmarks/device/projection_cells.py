"""The learned projection on a device: its training step, a pass through the network, and the gradient of a pass.

An example is a crystal with all its starts. The gradient is not that of a training step, as for the other networks:
charge flipping magnifies rounding, so that no two devices have the same maps. It is that of a pass on fixed maps.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.device.options import config_from_json
from benchmarks.speed.in_pytorch import STEP_SHARE
from benchmarks.speed.networks import memory_of
from benchmarks.timing import measure, reset_peak_memory
from patterson_jax.config import validate_projection
from patterson_jax.learning.parallel import parallelize, replicate
from patterson_jax.learning.training import init_state, make_train_call
from patterson_jax.networks.projection import NUM_CONDITIONS
from patterson_jax.projection_training import ProjectionTask

AT_RANDOM = 5  # a seed of test data
SPREAD = 0.05  # added to the first weights, some of which are zero


def projection_cell(cell: dict) -> dict:
    """Training steps, which make their crystals, and a pass; the cell may name a file for the gradient of a pass.

    The cycles and passes of a step are drawn, and so its time. What is timed is a call of `steps_per_call` steps.
    """
    task = _task_of(cell)
    settings, starts = task.settings, task.states.starts
    if 'gradient' in cell:
        projection_gradient_cell(cell)
    state, train_call = replicate(init_state(task)), parallelize(make_train_call(task), donate=True)

    def steps():
        nonlocal state
        state, metrics = train_call(state, np.int32(settings.steps_per_call))
        return metrics

    timing = measure(
        steps, jax.block_until_ready, cell['repeats'], STEP_SHARE * cell['seconds'], after_first=reset_peak_memory
    )
    found = {'step': timing | memory_of(timing) | {'best': timing['median'] / settings.steps_per_call}}
    params = jax.device_put(jax.device_get(state.params))
    maps, told, _ = jax.device_put(_random_maps(cell['batch'] * starts, task.recipe.shape))
    apply = jax.jit(task.network.apply)
    seconds = (1 - STEP_SHARE) * cell['seconds']
    return found | {
        'forward': measure(lambda: apply(params, maps, told), jax.block_until_ready, cell['repeats'], seconds)
    }


def projection_gradient_cell(cell: dict) -> dict:
    """The squared error of a pass on fixed maps, one a crystal; writes its gradient to the file that the cell names."""
    task = _task_of(cell)
    generator = np.random.default_rng(AT_RANDOM)

    def moved(leaf):
        return leaf + SPREAD * generator.standard_normal(leaf.shape).astype(np.float32)

    def error(params, maps, told, targets):
        return jnp.mean((task.network.apply(params, maps, told) - targets) ** 2)

    params = jax.tree.map(moved, jax.device_get(jax.jit(task.init)(jax.random.key(0))))
    value, gradient = jax.jit(jax.value_and_grad(error))(params, *_random_maps(cell['batch'], task.recipe.shape))
    np.save(cell['gradient'], _flat(gradient))
    return {'loss': float(value)}


def _task_of(cell: dict) -> ProjectionTask:
    """What a cell's config trains, with the cell's batch and convolution."""
    config = config_from_json(cell['config'])
    config.model.convolution, config.train.batch_size = cell['convolution'], cell['batch']
    return validate_projection(config).task


def _random_maps(number: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maps and targets `(number, *shape)` of standard deviation 1, and conditions between; the same on any device."""
    generator = np.random.default_rng(AT_RANDOM)
    return tuple(
        generator.standard_normal((number, *size), dtype=np.float32) for size in (shape, (NUM_CONDITIONS,), shape)
    )


def _flat(tree: Any) -> np.ndarray | Array:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(tree))])
