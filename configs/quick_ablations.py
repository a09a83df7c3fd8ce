"""The paper's claims on the problem of configs/quick.py, on a laptop: 100 epochs of 80 cases for each run.

    python run_experiment.py --config=configs/quick_ablations.py

configs/ablations.py explains the rest and has the variants.
"""

import ml_collections

from configs import ablations, quick


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The quick config in the paper's regime, with the runs to compare in section `ablation`."""
    config = ablations.add_runs(quick.get_config(), variant)
    config.train.set_size = 80
    return config


def sweep(variant: str = '') -> list[dict]:
    """Overrides for the jobs of an array; each job trains one run of the comparison."""
    return ablations.sweep(variant)
