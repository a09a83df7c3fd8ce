"""The paper's experiment on many devices: batches of 256 cases, shared by all devices of all processes.

    python run_experiment.py --config=configs/cluster.py --distributed

must be started in every process of the cluster; launch/slurm.sh does that on SLURM. 256 must be a multiple of the
number of devices. The learning rate is that of base times the square root of the ratio of the batch sizes, as usual
with Adam. It has not been tuned; sweep() lists rates to try, one for each job of an array:

    sbatch --array=0-3 launch/slurm.sh --config=configs/cluster.py --sweep=TASK

Variants are those of configs/base.py.
"""

import ml_collections

from configs import base


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The configuration: base with larger batches, as many examples."""
    config = base.get_config(variant)
    config.train.update(num_steps=50_000, batch_size=256, learning_rate=1.7e-3, warmup_steps=1000)
    config.train.update(set_size=3072, num_validation=256, log_every=50, validate_every=250)
    config.checkpoint.update(every_steps=500)
    return config


def sweep(variant: str = '') -> list[dict]:
    """Overrides for the jobs of an array: the learning rate."""
    return [{'train.learning_rate': rate} for rate in (3e-4, 8e-4, 1.7e-3, 3e-3)]
