"""The one place that knows pmap, its axis and replication.

A step is a pure function of replicated values. It runs on every device, asks `share_of_batch` which examples are its
device's, and averages what leaves it with `mean_over_devices`. Moving to `jit` with `shard_map` means a new body for
`parallelize`, nothing else.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = 'devices'


def replicated() -> NamedSharding:
    """The sharding of a value that every device of every host holds whole."""
    return NamedSharding(Mesh(np.array(jax.devices()), (AXIS,)), PartitionSpec())


def replicate(tree: Any) -> Any:
    """Places a tree of arrays whole on every device; needed before its first use as a donated argument."""
    return jax.device_put(tree, replicated())


def parallelize(function: Callable, donate: bool = False) -> Callable:
    """Runs `function(*arguments)` on all devices at once.

    Args:
        function: pure; takes replicated arguments, returns values equal on all devices (only the first one's are
            kept, unchecked: average or sum whatever leaves it).
        donate: give the arguments' memory to the results; the arguments are then gone.
    """
    mapped = jax.pmap(
        lambda arguments, _: function(*arguments),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        donate_argnums=(0,) if donate else (),
    )
    local_devices = np.arange(jax.local_device_count())
    return lambda *arguments: mapped(arguments, local_devices)


def share_of_batch(batch_size: int) -> Array:
    """Inside a parallel function: which of 0 … batch_size − 1 this device makes; the number of devices divides it."""
    share = batch_size // jax.device_count()
    return jax.lax.axis_index(AXIS) * share + jnp.arange(share)


def mean_over_devices(tree: Any) -> Any:
    """Inside a parallel function: the mean over all devices."""
    return jax.lax.pmean(tree, AXIS)


def sum_over_devices(tree: Any) -> Any:
    """Inside a parallel function: the sum over all devices."""
    return jax.lax.psum(tree, AXIS)
