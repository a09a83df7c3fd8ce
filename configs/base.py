"""The paper's experiment: ten atoms on a grid of 40³, the paper's network, one Adam run.

    python run_experiment.py --config=configs/base.py

It needs a GPU or TPU: the paper trained for 300 hours on a GTX 1080 Ti. On two CPU cores a training step takes 0.16 s
for each example, so that the run would take 24 days. configs/quick.py is the same experiment made small for a laptop.

Variants, after a colon (`--config=configs/base.py:original_only`):
    original_only   the target is A alone, not A + B (the paper's section 3.2.1)
"""

import ml_collections
from ml_collections import config_dict

from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.map_solver import SolveSettings
from patterson_jax.solving.separation import SeparationSettings

VARIANTS = ('', 'original_only')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The configuration; a variant changes one thing."""
    if variant not in VARIANTS:
        raise ValueError(f'{variant!r} is not a variant of configs/base.py; it has {", ".join(VARIANTS[1:])}')
    config = ml_collections.ConfigDict()

    # Fixes the first weights and every case of every stream.
    config.seed = 0

    # What the cases are. Lengths are in voxels. The values are the library's defaults, as in `separate` and `solve`.
    problem = Problem()
    config.problem = ml_collections.ConfigDict()
    config.problem.grid_size = problem.grid_size  # 40 voxels along each edge of the maps; even
    config.problem.num_atoms = problem.num_atoms  # 10
    config.problem.atom_radius = problem.atom_radius  # 1
    config.problem.min_separation = problem.min_separation  # 3, the least distance between two centres
    config.problem.box_edge = problem.box_edge  # 12.25, edge of the inner box for the centres, before centring
    config.problem.centred = problem.centred  # True: the mean of the positions moves to the box centre (2.4.1)
    config.problem.target = problem.encoding.target  # 'both': (A + B) / 2; 'original': A / 2 (2.4.2)
    config.problem.input_scale = problem.encoding.input_scale  # 0.7, height of one atom's self-vector peak in the input
    config.problem.origin = problem.encoding.origin  # of the Patterson map in the input: 'centre', or 'corner'
    # Edge of a corner that is empty in training and filled in validation; 0: none.
    config.problem.empty_corner = problem.empty_corner
    config.problem.filled_corner = problem.filled_corner  # edge of a corner in which every case has an atom; 0: none
    config.problem.noise = problem.measurement.noise  # relative standard deviation of the measured amplitudes |F|; 0
    config.problem.resolution = config_dict.placeholder(float)  # |h| up to which |F| is measured; None: all

    # The network: the paper's twelve layers and 1,202,821 weights (2.3).
    config.model = ml_collections.ConfigDict()
    config.model.network = 'paper'  # or 'unrolled', with fields of its own: configs/unrolled.py
    config.model.features = 20  # channels of every hidden layer
    config.model.outer_kernel_size = 5  # on the full grid; odd
    config.model.inner_kernel_size = 7  # on the half grid; odd
    config.model.encoder_depth = 2  # hidden layers on the full grid before the max-pool
    config.model.inner_depth = 8  # hidden layers on the half grid
    config.model.decoder_depth = 1  # hidden layers on the full grid after the up-sampling
    config.model.convolution = 'auto'  # 'spectral', 'direct', or by platform
    config.model.precision = 'float32'  # of products; 'tf32' and 'bfloat16' are for GPU and TPU
    config.model.batch_norm = 'none'  # 'early': layers before the max-pool; 'all': every hidden layer
    config.model.input_size = 0  # edge of the middle of the maps that the network sees, even; 0: whole maps

    # Training by Adam (3.1).
    config.train = ml_collections.ConfigDict()
    config.train.num_steps = 1_600_000  # of 8 cases: the paper's 13 million examples
    config.train.batch_size = 8  # over all devices together; small batches learn more from each example
    config.train.learning_rate = 3e-4  # the highest in the schedule
    config.train.adam_epsilon = 1e-8  # of Adam; it should be small compared with gradients
    config.train.max_gradient_norm = 0.0  # longer gradients are shortened to this; 0: no limit
    config.train.early_weight = 0.3  # weight in the loss of each estimate of an unrolled network before its last one
    config.train.filled_weight = 0.0  # weight of an error: 1 + this · target; in the log and in validation 1
    config.train.warmup_steps = 1000  # from 0 to learning_rate
    config.train.schedule = 'cosine'  # to 1 % at the last step; 'trapezoid': a line to 1 % in the last 30 %; 'constant'
    config.train.set_size = 3000  # cases in a training set, which is one epoch
    config.train.epochs_per_set = 1  # epochs before the next set; 1: always fresh cases; the paper's 3 saved data
    config.train.init_from = ''  # directory of a run, or name of a network, whose weights to begin with; '': new ones
    config.train.max_minutes = 0.0  # of the process; then training saves and stops with exit status 75; 0: no limit
    config.train.num_validation = 96  # cases, always the same
    config.train.log_every = 100  # steps
    config.train.validate_every = 1000  # steps
    # Steps taken on the device between two visits of the host, at most; more than 1 is for GPU and TPU.
    config.train.steps_per_call = 1

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_steps = 5000
    config.checkpoint.keep = 2  # keeps so many of the latest, and the best by validation loss

    # From a predicted map to one set of atoms (2.4.4).
    separate = SeparationSettings()
    config.separate = ml_collections.ConfigDict()
    config.separate.num_peaks = separate.num_peaks  # 24, "20 or so"; their inverses double them
    config.separate.method = separate.method  # 'annealed', or 'greedy'
    config.separate.num_swaps = separate.num_swaps  # in each chain
    config.separate.num_chains = separate.num_chains  # from different random sets; the best is kept
    config.separate.resolution = separate.resolution  # compares frequencies |h| up to this
    # A swap may raise the relative misfit by less than a threshold, which falls from the first to the last swap.
    config.separate.first_threshold = separate.first_threshold
    config.separate.last_threshold = separate.last_threshold

    # From a Patterson map to atoms, by any method.
    solve = SolveSettings()
    config.solve = ml_collections.ConfigDict()
    config.solve.method = solve.method  # 'network', 'least_squares', 'phase_retrieval', 'minimum_function' or 'auto'
    config.solve.max_attempts = solve.max_attempts  # for each map, until it is `solved`; each begins differently
    # For each map, without compilation; an attempt that might end later does not begin. 0: no limit.
    config.solve.max_seconds = solve.max_seconds
    config.solve.resolution = config_dict.placeholder(float)  # highest |h| of a file's map; None: found from the map
    config.solve.orientations = solve.orientations  # of a map for the network, whose results are averaged; 24: all
    config.solve.num_atoms_known = solve.num_atoms_known  # False: other numbers are tried on a file's map

    config.evaluate = ml_collections.ConfigDict()
    config.evaluate.num_cases = 500  # 0: train only
    config.evaluate.batch_size = 20  # cases that the network is given at once; it does not change the scores
    # Those of `solve`, or 'truth' (refines the true atoms), with commas between; '': the paper's procedure only.
    config.evaluate.methods = 'network'
    config.evaluate.more_orientations = 0  # scores the paper's procedure again with so many orientations; 24: all

    # Units in files; everywhere else the program uses voxels.
    config.files = ml_collections.ConfigDict()
    config.files.voxel_size = 1.0  # Å, of simulated maps; a map from a file has its own
    config.files.element = 'X'  # chemical symbol to write for the atoms found; X: unknown

    if variant == 'original_only':
        config.problem.target = 'original'
    return config
