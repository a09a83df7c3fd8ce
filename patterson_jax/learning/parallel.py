"""Work on several devices. No other module uses pmap, its axis or replication.

A step is a pure function of replicated values that runs on every device. `share_of_batch` tells it the examples of its
device, and `mean_over_devices` averages its results. To move to `jit` with `shard_map`, only the body of `parallelize`
must change.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from patterson_jax.errors import InputError
from patterson_jax.networks.layers import AXIS


def start_distributed() -> None:
    """Joins the processes of a cluster. Call it before any other use of JAX.

    On SLURM, Open MPI, Kubernetes and Cloud TPU, JAX finds out by itself what it needs. Elsewhere the environment
    variables JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID must be set.

    Raises:
        InputError: JAX cannot find the other processes.
    """
    number, process = os.environ.get('JAX_NUM_PROCESSES'), os.environ.get('JAX_PROCESS_ID')
    jax.config.update('jax_enable_preemption_service', False)  # it would take SIGTERM from us
    try:
        jax.distributed.initialize(
            num_processes=int(number) if number else None, process_id=int(process) if process else None
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f'--distributed: {reason}; outside of SLURM, Open MPI, Kubernetes and Cloud TPU, set '
            'JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID'
        ) from error


def replicated() -> NamedSharding:
    """The sharding of a value of which every device of every host holds a copy."""
    return NamedSharding(Mesh(np.array(jax.devices()), (AXIS,)), PartitionSpec())


def replicate(tree: Any) -> Any:
    """Copies a tree of arrays to every device; needed before its first use as a donated argument."""
    return jax.device_put(tree, replicated())


def to_global(tree: Any) -> Any:
    """Turns arrays that are equal on all devices of this host, from `parallelize`, into arrays of all hosts."""
    if jax.process_count() == 1:
        return tree
    sharding = replicated()

    def one(array):
        shards = [shard.data for shard in array.addressable_shards]
        return jax.make_array_from_single_device_arrays(array.shape, sharding, shards)

    return jax.tree.map(one, tree)


def on_any_process(flag: bool) -> bool:
    """Whether the flag is set on any process. All processes must call this; each waits for the others."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def is_first_process() -> bool:
    """Whether this is the process that writes for all."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Waits until every process has called this with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def parallelize(function: Callable, donate: bool = False) -> Callable:
    """Runs `function(first, *others)` on all devices at once.

    Args:
        function: pure, from replicated arguments to values that are equal on all devices. Only those of the first
            device are kept, without a check: average or sum everything that it returns.
        donate: whether to give the first argument's memory to the results; that argument is then lost.
    """
    mapped = jax.pmap(
        lambda first, others, _: function(first, *others),
        axis_name=AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        donate_argnums=(0,) if donate else (),
    )
    each_device = jax.pmap(lambda number: number)(np.arange(jax.local_device_count()))  # kept there for all calls
    return lambda first, *others: mapped(first, others, each_device)


def share_of_batch(batch_size: int) -> Array:
    """Inside a parallel function: the numbers, of 0 … batch_size − 1, of the examples that this device makes.

    The number of devices must divide batch_size.
    """
    share = batch_size // jax.device_count()
    return jax.lax.axis_index(AXIS) * share + jnp.arange(share)


def mean_over_devices(tree: Any) -> Any:
    """Inside a parallel function: the mean over all devices."""
    return jax.lax.pmean(tree, AXIS)


def sum_over_devices(tree: Any) -> Any:
    """Inside a parallel function: the sum over all devices."""
    return jax.lax.psum(tree, AXIS)
