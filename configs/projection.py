r"""A learned projection for crystals: a small periodic network that makes maps of atoms out of maps with wrong phases.

    python run_experiment.py --config=configs/projection.py --config.train.max_minutes=60

trains on invented molecular crystals cut at 1.1 to 1.5 Å, up to a quarter with a metal, in maps as charge flipping and
the network itself leave them. A step of two crystals, eight maps, takes about 0.3 s on one CPU core, so that the run
takes two days; the same command continues it. These commands train the published weights further, and replace them if
the new ones are better on further crystals:

    python run_experiment.py --config=configs/projection.py --workdir=runs/slice --config.train.init_from=projection \
        --config.train.num_steps=2000 --config.train.learning_rate=1e-3 --config.train.num_validation=64
    python run_experiment.py --config=configs/projection.py --workdir=runs/slice --config.train.init_from=projection \
        --config.train.num_steps=2000 --config.train.learning_rate=1e-3 --config.train.num_validation=64 \
        --mode=publish --output=pretrained/projection

Variant:
    gpu     trains the published weights further in large batches: 7.5 minutes of an H200 (docs/learned_projection.md);
            `python -m benchmarks.device --train=projection:gpu` fits it to the time that there is
"""

import ml_collections

from patterson_jax.networks.projection import ProjectionNet
from patterson_jax.search_states import StateSettings
from patterson_jax.simulation.training_crystals import TrainingRecipe

VARIANTS = ('', 'gpu')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The configuration; 'gpu' trains the published weights further in large batches."""
    if variant not in VARIANTS:
        raise ValueError(f'{variant!r} is not a variant of configs/projection.py; it has {", ".join(VARIANTS[1:])}')
    config = ml_collections.ConfigDict()

    # Fixes the first weights and every case.
    config.seed = 0

    # The crystals. The fields are those of `simulation.training_crystals.TrainingRecipe`, which explains them.
    recipe = TrainingRecipe()
    config.crystals = ml_collections.ConfigDict({**vars(recipe)})
    config.crystals.shape = (16, 20, 24)  # voxels along the edges of all cells; even
    config.crystals.d_min = (1.1, 1.5)  # Å

    # Maps as the search leaves them.
    states = StateSettings()
    config.states = ml_collections.ConfigDict()
    config.states.starts = states.starts  # of charge flipping, on each crystal
    config.states.near = states.near  # share of those that begin near the truth; the others have random phases
    config.states.least_part = states.least_part  # of the truth where they begin near it; the most is 1
    config.states.most_cycles = states.most_cycles  # of charge flipping; their mean number is a third of this

    network = ProjectionNet()
    config.model = ml_collections.ConfigDict()
    config.model.features = network.features  # channels of a layer
    config.model.num_blocks = network.num_blocks  # residual layers between the first and the last
    config.model.convolution = network.convolution  # 'products', 'direct', or by platform

    config.train = ml_collections.ConfigDict()
    config.train.num_steps = 500_000
    config.train.batch_size = 2  # crystals, over all devices together; each with `states.starts` maps
    config.train.learning_rate = 2e-3  # the highest in the schedule
    config.train.adam_epsilon = 1e-8  # of Adam; it should be small compared with gradients
    config.train.max_gradient_norm = 1.0  # longer gradients are shortened to this; 0: no limit
    config.train.warmup_steps = 200  # from 0 to learning_rate
    config.train.schedule = 'cosine'  # to 1 % at the last step; 'trapezoid': a line to 1 % in the last 30 %; 'constant'
    config.train.most_passes = 6  # through the network before the one with the gradient; their number is drawn
    config.train.init_from = ''  # begins with the weights of this run; '': new ones
    config.train.max_minutes = 0.0  # of the process; then training saves and stops with exit status 75; 0: no limit
    config.train.num_validation = 32  # crystals, always the same
    config.train.log_every = 50  # steps
    config.train.validate_every = 500  # steps
    config.train.steps_per_call = 1  # taken on the device between two visits of the host; more is for GPU and TPU

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_steps = 500
    config.checkpoint.keep = 2  # keeps so many of the latest, and the best by validation loss

    if variant == 'gpu':
        config.train.update(init_from='projection', num_steps=8000, batch_size=128, steps_per_call=20)
        config.train.update(num_validation=256, log_every=100, validate_every=400)
        config.checkpoint.update(every_steps=400, keep=1)
    return config
