"""The paper's claims, each as a comparison of short trainings that differ in one thing (3.2 and others).

    python run_experiment.py --config=configs/ablations.py:figure8

trains the runs of the figure in runs/ablations, with a directory for each run, and continues runs that are there. Then
it draws the figure and writes its table in runs/ablations/figures. Runs that several figures need are trained once.
Without a variant all figures are made. Each run sees the paper's 100 epochs of 3000 cases, with 3 epochs for each set.
Flags give other lengths:

    --config.ablation.num_epochs=20 --config.train.set_size=800

It needs a GPU or TPU; configs/quick_ablations.py is the same for a laptop. On a cluster the jobs of an array can train
one run each, and the command above then draws the figures:

    sbatch --array=0-15 launch/slurm.sh --config=configs/ablations.py --sweep=TASK

Variants: the figures below.
"""

import ml_collections

from configs import base

FIGURES = {
    'figure8': ('baseline', 'baseline_again', 'one_set', 'one_set_twice_the_atoms', 'one_set_against_both'),
    'figure9': ('baseline', 'baseline_again', 'wide_box', 'wider_box', 'wider_box_larger_grid'),
    'centring': ('baseline', 'baseline_again', 'uncentred'),
    'origin': ('baseline', 'baseline_again', 'origin_in_corner'),
    'batch_norm': ('baseline', 'baseline_again', 'batch_norm_early', 'batch_norm_all'),
    'memory': ('baseline', 'empty_corner', 'baseline_on_filled_corner'),
    'atoms': ('baseline', 'baseline_again', 'twice_the_atoms', 'four_times_the_atoms'),
    'receptive_field': ('baseline', 'baseline_again', 'small_kernels'),
    'fresh_cases': ('baseline', 'baseline_again', 'fresh_cases'),
    'separation': ('baseline', 'greedy', 'one_chain', 'greedy_one_chain'),
}


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The base config in the paper's regime, with the runs to compare in section `ablation`."""
    return add_runs(base.get_config(), variant)


def sweep(variant: str = '') -> list[dict]:
    """Overrides for the jobs of an array; each job trains one run of the comparison."""
    return [{'ablation.only': name} for name, run in get_config(variant).ablation.runs.items() if not run.weights]


def add_runs(config: ml_collections.ConfigDict, variant: str) -> ml_collections.ConfigDict:
    """Adds the section `ablation` to a config, with the runs of one figure or, without a variant, of all figures."""
    if variant and variant not in FIGURES:
        raise ValueError(f'{variant!r} is not a variant of the ablations; they have {", ".join(FIGURES)}')
    config.ablation = ml_collections.ConfigDict()
    config.ablation.num_epochs = 100
    config.ablation.only = ''  # name of one run to train, without drawing; '': all
    config.train.epochs_per_set = 3
    config.evaluate.methods = ''  # compares the networks; nothing is refined
    set_size, batch_size = config.train.get_ref('set_size'), config.train.get_ref('batch_size')
    config.train.num_steps = config.ablation.get_ref('num_epochs') * set_size // batch_size
    config.train.log_every = set_size // batch_size
    config.train.validate_every = 2 * (set_size // batch_size)
    figures = {name: runs for name, runs in FIGURES.items() if variant in ('', name)}
    used = {run for runs in figures.values() for run in runs}
    config.ablation.figures = figures
    config.ablation.runs = {name: run for name, run in all_runs(config).items() if name in used}
    return config


def all_runs(config: ml_collections.ConfigDict) -> dict[str, dict]:
    """Every run: its `label`, its `changes` of the config, and the run whose `weights` it evaluates, '' if its own."""
    problem, separate = config.problem, config.separate
    grid, box = problem.grid_size, problem.box_edge
    wide, wider = 0.45 * grid, 0.6 * grid  # the paper's 18 and 24 in 40
    corner = box / 3

    def run(label, weights='', **changes):
        return {'label': label, 'weights': weights, 'changes': changes}

    def more_atoms(factor):
        """Several times as many atoms at the same density, on a larger grid if their vectors would wrap around."""
        edge = round(factor ** (1 / 3) * box, 2)
        size = max(grid, 2 * -(-int(100 * edge) // 100))
        return run(
            f'{factor * problem.num_atoms} atoms, box {edge:g}³ in {size}³',
            problem={'num_atoms': factor * problem.num_atoms, 'box_edge': edge, 'grid_size': size},
            separate={'num_peaks': factor * separate.num_peaks, 'num_swaps': factor * separate.num_swaps},
        )

    atoms = problem.num_atoms
    return {
        'baseline': run(f'baseline: A and B, {atoms} atoms, box {box:g}³ in {grid}³'),
        'baseline_again': run('baseline, another seed', seed=config.get_ref('seed') + 1),
        'one_set': run(f'A alone, {atoms} atoms', problem={'target': 'original'}),
        'one_set_twice_the_atoms': run(
            f'A alone, {2 * atoms} atoms',
            problem={'target': 'original', 'num_atoms': 2 * atoms},
            separate={'num_peaks': 2 * separate.num_peaks, 'num_swaps': 2 * separate.num_swaps},
        ),
        'one_set_against_both': run(
            'the network of A alone, compared with A and B', weights='one_set', problem={'target': 'both'}
        ),
        'wide_box': run(f'box {wide:g}³ in {grid}³', problem={'box_edge': wide}),
        'wider_box': run(f'box {wider:g}³ in {grid}³', problem={'box_edge': wider}),
        'wider_box_larger_grid': run(
            f'box {wider:g}³ in {5 * grid // 4}³', problem={'box_edge': wider, 'grid_size': 5 * grid // 4}
        ),
        'uncentred': run('atoms not centred', problem={'centred': False}),
        'origin_in_corner': run("input's origin in the corner", problem={'origin': 'corner'}),
        'batch_norm_early': run('batch normalisation before the pool', model={'batch_norm': 'early'}),
        'batch_norm_all': run('batch normalisation everywhere', model={'batch_norm': 'all'}),
        'empty_corner': run(
            f'corner {corner:.2f}³ empty in training, filled in validation', problem={'empty_corner': corner}
        ),
        'baseline_on_filled_corner': run(
            "baseline's network, same cases", weights='baseline', problem={'filled_corner': corner}
        ),
        'twice_the_atoms': more_atoms(2),
        'four_times_the_atoms': more_atoms(4),
        'small_kernels': run('inner kernels 3³', model={'inner_kernel_size': 3}),
        'fresh_cases': run('fresh cases in every epoch', train={'epochs_per_set': 1}),
        'greedy': run('no annealing', weights='baseline', separate={'method': 'greedy'}),
        'one_chain': run('one chain', weights='baseline', separate={'num_chains': 1}),
        'greedy_one_chain': run(
            'no annealing, one chain', weights='baseline', separate={'method': 'greedy', 'num_chains': 1}
        ),
    }
