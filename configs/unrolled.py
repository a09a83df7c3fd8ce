"""The paper's problem with the unrolled network, which learns it in an hour or two on two CPU cores.

    python run_experiment.py --config=configs/unrolled.py
    python run_experiment.py --config=configs/unrolled.py --mode=evaluate --checkpoint=pretrained/unrolled

These commands train the published weights further and replace them (docs/training.md):

    python run_experiment.py --config=configs/unrolled.py:slice
    python run_experiment.py --config=configs/unrolled.py:slice --mode=publish --output=pretrained/unrolled

Variants:
    slice       begins with the published weights, in larger batches
    compact     a plain network of the same convolutions, which does not use the amplitudes
    small       five atoms on a grid of 24³, on which these choices were tried
"""

import ml_collections

from configs import base

VARIANTS = ('', 'slice', 'compact', 'small')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The configuration: base with another network and a shorter run."""
    if variant not in VARIANTS:
        raise ValueError(f'{variant!r} is not a variant of configs/unrolled.py; it has {", ".join(VARIANTS[1:])}')
    config = base.get_config()

    config.model = ml_collections.ConfigDict()
    config.model.network = 'unrolled'
    config.model.features = 48  # channels of the image that goes from stage to stage
    config.model.kernel_size = 5  # at half resolution; odd
    config.model.stages = 6  # estimates; all but the last are clipped to the amplitudes; 1: a plain network
    config.model.layers = 0  # residual convolutions in a stage, beside those for its input and its output
    config.model.input_size = 28  # edge of the part of the Patterson map that the network sees; a multiple of 4
    config.model.output_size = 20  # edge of the part of the output that is not zero; a multiple of 4
    config.model.convolution = 'auto'  # 'spectral', 'direct', or by platform
    config.model.precision = 'float32'  # of products; 'tf32' and 'bfloat16' are for GPU and TPU

    config.train.update(num_steps=16_000, batch_size=8, learning_rate=2e-3, warmup_steps=300)
    config.train.update(adam_epsilon=1e-12, max_gradient_norm=3e-4)  # most voxels are empty: gradients are small
    config.train.update(filled_weight=3.0, schedule='trapezoid')
    config.train.update(log_every=100, validate_every=500, num_validation=96)
    config.checkpoint.update(every_steps=500, keep=1)
    config.solve.orientations = 6

    if variant == 'slice':
        config.train.update(init_from='unrolled', num_steps=7_000, batch_size=16, learning_rate=1.5e-3)
    elif variant == 'compact':
        config.model.update(stages=1, layers=6)
    elif variant == 'small':
        config.problem.update(grid_size=24, num_atoms=5, box_edge=7.34)
        config.model.update(input_size=20, output_size=12)
        config.train.update(num_steps=1500)
        config.separate.update(num_peaks=12, resolution=8.0)
        config.evaluate.update(num_cases=100)
    return config
