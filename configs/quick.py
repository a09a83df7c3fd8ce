"""The paper's experiment made small: three atoms on a grid of 16³, about three minutes on a laptop.

    python run_experiment.py --config=configs/quick.py

Variants are those of configs/base.py.
"""

import ml_collections

from configs import base


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The configuration: base with a smaller problem, network and run."""
    config = base.get_config(variant)
    config.problem.update(grid_size=16, num_atoms=3, min_separation=2.4, box_edge=5.5)
    config.model.update(features=12, encoder_depth=1, inner_depth=4)
    config.train.update(num_steps=4000, batch_size=4, learning_rate=1e-3, warmup_steps=100)
    config.train.update(num_validation=64, log_every=50, validate_every=200)
    config.checkpoint.update(every_steps=1000, keep=2)
    config.separate.update(num_peaks=8, num_swaps=400, resolution=5.0)
    config.evaluate.update(num_cases=200, batch_size=50, methods='network,least_squares')
    config.files.update(voxel_size=0.5, element='O')
    return config
