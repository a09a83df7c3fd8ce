"""Every config loads, and every field refuses what it cannot be, in words."""

import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs import ablations, base, quick, unrolled
from patterson_jax.ablations import comparison_runs
from patterson_jax.config import SECTIONS, differences, network_of, validate
from patterson_jax.errors import InputError
from patterson_jax.networks.registry import NETWORKS
from patterson_jax.networks.unrolled import UnrolledNet

CONFIGS = sorted(path.stem for path in (Path(__file__).parents[1] / 'configs').glob('*.py') if path.stem[0] != '_')
for other in ('crystal', 'projection'):  # with other sections; test_crystals.py, test_projection_training.py
    CONFIGS.remove(other)
COMPARISONS = [name for name in CONFIGS if 'ablation' in importlib.import_module(f'configs.{name}').get_config()]
SINGLE = [name for name in CONFIGS if name not in COMPARISONS]


def quick_with(changes, removed=()):
    """The quick config with some fields, named as on the command line, set to anything or removed."""
    config = quick.get_config()
    for field in (*changes, *removed):
        section, _, name = field.rpartition('.')
        owner = config[section] if section else config
        if name in owner:
            del owner[name]  # and with it the type that a ConfigDict would hold a new value to
        if field in changes:
            owner[name] = changes[field]
    return config


def refusal(config):
    """The one line with which a config is refused."""
    with pytest.raises(InputError) as caught:
        validate(config)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def assert_valid(config, experiment):
    """A config is what its experiment says, and what a run's record will say of it."""
    resolved = config.to_dict()
    assert experiment.seed == resolved['seed']
    assert NETWORKS[resolved['model'].pop('network')] is type(experiment.model)
    for section in SECTIONS:
        chosen = getattr(experiment, section)
        chosen = chosen.fields if section == 'problem' else vars(chosen)
        for field, value in resolved[section].items():
            assert chosen[field] == value
    assert differences(json.loads(json.dumps(resolved)), resolved, ('seed', *SECTIONS)) == []


def test_the_configs_are_single_runs_or_comparisons():
    assert {'base', 'quick'} <= set(SINGLE) and {'ablations', 'quick_ablations'} <= set(COMPARISONS)


def variants_of(module):
    return getattr(module, 'VARIANTS', base.VARIANTS)


@pytest.mark.parametrize('name', SINGLE)
def test_every_config_and_variant_is_valid_and_survives_json(name):
    module = importlib.import_module(f'configs.{name}')
    for variant in variants_of(module):
        config = module.get_config(variant)
        assert_valid(config, validate(config))


@pytest.mark.parametrize('name', COMPARISONS)
def test_every_run_of_every_comparison_is_valid_and_survives_json(name):
    module = importlib.import_module(f'configs.{name}')
    for variant in ('', *ablations.FIGURES):
        runs = comparison_runs(module.get_config(variant))
        assert len(runs) >= 3
        for run in runs:
            assert_valid(run.config, run.experiment)


@pytest.mark.parametrize('name', [name for name in SINGLE if name not in ('unrolled', 'paper')])
def test_the_variant_original_only_changes_the_target_alone(name):
    module = importlib.import_module(f'configs.{name}')
    plain, variant = (module.get_config(*argument).to_dict() for argument in ((), ('original_only',)))
    found = differences(plain, variant, ('seed', *SECTIONS))
    assert found == ["problem.target was 'both' and is 'original'"]


@pytest.mark.parametrize('name', CONFIGS)
def test_an_unknown_variant_is_refused_with_those_there_are(name):
    module = importlib.import_module(f'configs.{name}')
    variants = ', '.join(ablations.FIGURES if name in COMPARISONS else variants_of(module)[1:])
    with pytest.raises(ValueError, match=rf"'orignal_only' is not a variant .* (it has|they have) {variants}$"):
        module.get_config('orignal_only')


@pytest.mark.parametrize('name', CONFIGS)
def test_what_a_sweep_changes_are_fields_of_its_config(name):
    """And each job of it is valid, and another one."""
    module = importlib.import_module(f'configs.{name}')
    resolved = []
    for changes in getattr(module, 'sweep', list)():
        config = module.get_config()
        before = config.to_dict()
        config.lock()  # as the command line leaves it
        config.update_from_flattened_dict(changes)
        if name in COMPARISONS:
            assert len(comparison_runs(config)) == 1
        else:
            validate(config)
        resolved.append(json.dumps(config.to_dict()))
        assert config.to_dict().keys() == before.keys()
    assert len(set(resolved)) == len(resolved)


def test_the_base_config_is_the_papers_experiment():
    experiment = validate(base.get_config())
    assert experiment.problem.fields == {
        'grid_size': 40,
        'num_atoms': 10,
        'atom_radius': 1.0,
        'min_separation': 3.0,
        'box_edge': 12.25,
        'centred': True,
        'target': 'both',
        'input_scale': 0.7,
        'origin': 'centre',
        'empty_corner': 0.0,
        'filled_corner': 0.0,
        'noise': 0.0,
        'resolution': None,
    }
    maps = jax.ShapeDtypeStruct((1, 40, 40, 40), jnp.float32)
    weights = jax.tree.leaves(jax.eval_shape(experiment.model.init, jax.random.key(0), maps))
    kernels = [leaf.shape for leaf in weights if leaf.ndim == 5]
    assert len(kernels) == 12
    assert sorted(set(kernels)) == [(5, 5, 5, 1, 20), (5, 5, 5, 20, 1), (5, 5, 5, 20, 20), (7, 7, 7, 20, 20)]
    assert sum(leaf.size for leaf in weights) == 1_202_821
    assert experiment.train.num_steps * experiment.train.batch_size == 12_800_000


def test_a_whole_number_will_do_for_a_number():
    rate = validate(quick_with({'train.learning_rate': 1, 'train.warmup_steps': 0})).train.learning_rate
    assert isinstance(rate, float)
    assert rate == 1


@pytest.mark.parametrize('field', ['problem.resolution', 'solve.resolution'])
def test_a_resolution_is_a_number_or_none(field):
    section, _, name = field.partition('.')
    for value, expected in ((8, 8.0), (4.5, 4.5), (None, None)):
        chosen = getattr(validate(quick_with({field: value})), section)
        resolution = (chosen.fields if section == 'problem' else vars(chosen))[name]
        assert resolution == expected
        assert type(resolution) is type(expected)


@pytest.mark.parametrize(
    ('methods', 'chosen', 'need_network'),
    [
        ('', (), True),  # the paper's procedure alone
        ('network', ('network',), True),
        ('least_squares', ('least_squares',), False),
        ('minimum_function, network,phase_retrieval', ('minimum_function', 'network', 'phase_retrieval'), True),
        ('auto,auto , least_squares,auto', ('auto', 'least_squares'), False),
    ],
)
def test_methods_to_evaluate_are_taken_once_each_in_the_order_in_which_they_are_named(methods, chosen, need_network):
    settings = validate(quick_with({'evaluate.methods': methods})).evaluate
    assert (settings.chosen_methods, settings.need_network) == (chosen, need_network)


NAN, INFINITE = float('nan'), float('inf')
METHODS_THERE_ARE = 'network, least_squares, phase_retrieval, minimum_function, auto'
WRONG_VALUES = [
    ('train.num_steps', '4000', 'a whole number'),
    ('train.num_steps', 4000.0, 'a whole number'),
    ('seed', True, 'a whole number'),
    ('problem.num_atoms', None, 'a whole number'),
    ('train.learning_rate', '1e-3', 'a number'),
    ('train.learning_rate', True, 'a number'),
    ('problem.centred', 1, 'True or False'),
    ('problem.target', 0, 'a word'),
    ('seed', -1, 'from 0 to 4294967295'),
    ('seed', 2**32, 'from 0 to 4294967295'),
    ('problem.grid_size', 15, 'an even number, 8 or more'),
    ('problem.grid_size', 6, 'an even number, 8 or more'),
    ('problem.num_atoms', 0, 'a whole number, 1 or more'),
    ('problem.atom_radius', 0.0, 'more than 0 and less than half of grid_size, 8 voxels'),
    ('problem.atom_radius', 8.0, 'more than 0 and less than half of grid_size, 8 voxels'),
    ('problem.min_separation', NAN, 'a number of voxels, 0 or more'),
    ('problem.box_edge', 14.5, 'more than 0 and at most grid_size - 2 * atom_radius = 14 voxels'),
    ('problem.target', 'inverse', 'one of both, original'),
    ('problem.input_scale', INFINITE, 'a positive number'),
    ('problem.origin', 'edge', 'one of centre, corner'),
    ('problem.empty_corner', -1.0, 'from 0, for none, to half of box_edge, 2.75 voxels'),
    ('problem.filled_corner', 2.76, 'from 0, for none, to half of box_edge, 2.75 voxels'),
    ('problem.noise', -0.1, 'from 0 to 1'),
    ('problem.noise', 1.1, 'from 0 to 1'),
    ('problem.noise', NAN, 'from 0 to 1'),
    ('problem.noise', None, 'a number'),
    ('problem.resolution', 0.5, 'a number, 1 or more, or None where every amplitude is measured'),
    ('problem.resolution', NAN, 'a number, 1 or more, or None where every amplitude is measured'),
    ('problem.resolution', INFINITE, 'a number, 1 or more, or None where every amplitude is measured'),
    ('problem.resolution', 'high', 'a number or None'),
    ('problem.resolution', True, 'a number or None'),
    ('model.features', 0, '1 or more'),
    ('model.outer_kernel_size', 4, 'an odd number, 1 or more'),
    ('model.inner_kernel_size', -3, 'an odd number, 1 or more'),
    ('model.inner_depth', -1, '0 or more'),
    ('model.convolution', 'fft', 'one of auto, spectral, direct'),
    ('model.batch_norm', 'late', 'one of none, early, all'),
    ('model.input_size', 7, 'an even number, or 0 for whole maps'),
    ('model.input_size', -4, 'an even number, or 0 for whole maps'),
    ('train.num_steps', -1, '1 or more'),
    ('train.batch_size', 0, '1 or more'),
    ('train.learning_rate', NAN, 'a positive number'),
    ('train.learning_rate', INFINITE, 'a positive number'),
    ('train.learning_rate', 0.0, 'a positive number'),
    ('train.adam_epsilon', 0.0, 'a positive number'),
    ('train.max_gradient_norm', -1.0, '0 or more'),
    ('train.early_weight', NAN, '0 or more'),
    ('train.filled_weight', -1.0, '0 or more'),
    ('train.warmup_steps', 4000, '0 or more and less than num_steps, 4000'),
    ('train.schedule', 'linear', 'one of cosine, trapezoid, constant'),
    ('train.set_size', 0, '1 or more'),
    ('train.set_size', 2**31, 'at most 2147483647'),
    ('train.epochs_per_set', 0, '1 or more'),
    ('train.init_from', None, 'a word'),
    ('train.max_minutes', -1.0, 'a number of minutes, or 0 for no limit'),
    ('train.max_minutes', NAN, 'a number of minutes, or 0 for no limit'),
    ('train.max_minutes', INFINITE, 'a number of minutes, or 0 for no limit'),
    ('train.num_steps', 2**29, 'at most 536870911 with 4 a batch'),
    ('train.num_validation', 0, '1 or more'),
    ('checkpoint.every_steps', 0, '1 or more'),
    ('checkpoint.keep', 0, '1 or more'),
    ('separate.method', 'random', 'one of annealed, greedy'),
    ('separate.num_swaps', 0, '1 or more'),
    ('separate.num_peaks', 2, 'problem.num_atoms, 3, or more'),
    ('separate.num_peaks', 4097, 'at most 4096, a voxel each'),
    ('separate.resolution', 0.5, 'a number, 1 or more'),
    ('separate.resolution', 8.5, 'at most half the grid, 8'),
    ('separate.last_threshold', -0.1, 'a number, 0 or more'),
    ('solve.method', 'neural', f'one of {METHODS_THERE_ARE}'),
    ('solve.method', '', f'one of {METHODS_THERE_ARE}'),
    ('solve.method', 'network,auto', f'one of {METHODS_THERE_ARE}'),
    ('solve.max_attempts', 0, 'a whole number, 1 or more'),
    ('solve.max_attempts', 2.0, 'a whole number'),
    ('solve.max_seconds', -1.0, 'a number of seconds, or 0 for no limit'),
    ('solve.max_seconds', NAN, 'a number of seconds, or 0 for no limit'),
    ('solve.max_seconds', INFINITE, 'a number of seconds, or 0 for no limit'),
    ('solve.resolution', 0.5, 'a number, 1 or more, or None to find it in the map'),
    ('solve.resolution', NAN, 'a number, 1 or more, or None to find it in the map'),
    ('solve.resolution', 'high', 'a number or None'),
    ('solve.orientations', 0, 'a whole number from 1 to 24'),
    ('solve.orientations', 25, 'a whole number from 1 to 24'),
    ('solve.num_atoms_known', 'no', 'True or False'),
    ('solve.num_atoms_known', None, 'True or False'),
    ('problem.resolution', 1.0, 'larger: it leaves 3 reflections, and 3 atoms need 20 or more'),
    ('evaluate.methods', 'neural', f'some of {METHODS_THERE_ARE}, truth, with commas between'),
    ('evaluate.methods', 'network,neural', f'some of {METHODS_THERE_ARE}, truth, with commas between'),
    ('evaluate.methods', 'network,', f'some of {METHODS_THERE_ARE}, truth, with commas between'),
    ('evaluate.methods', 'network least_squares', f'some of {METHODS_THERE_ARE}, truth, with commas between'),
    ('evaluate.methods', None, 'a word'),
    ('evaluate.num_cases', -1, '0 or more'),
    ('evaluate.more_orientations', 25, 'a whole number from 1 to 24, or 0 for none'),
    ('evaluate.num_cases', 2**31, 'at most 2147483647'),
    ('files.voxel_size', NAN, 'a positive number of Å'),
    ('files.element', 'Qq', "a chemical symbol, or 'X'"),
    ('files.element', 'Carbon', "a chemical symbol, or 'X'"),
]


@pytest.mark.parametrize(
    ('field', 'value', 'allowed'), WRONG_VALUES, ids=[f'{each[0]}={each[1]}' for each in WRONG_VALUES]
)
def test_a_wrong_value_is_refused_with_field_value_and_what_is_allowed(field, value, allowed):
    assert refusal(quick_with({field: value})) == f'{field} is {value!r}; it must be {allowed}'


@pytest.mark.parametrize(
    ('num_atoms', 'reason'),
    [
        (27, 'spheres 2.4 voxels wide .* in a box of edge 5.5 jam .* take a larger box_edge'),
        (26, 'in none of 256 trials'),
    ],
)
def test_more_atoms_than_find_room_are_refused(num_atoms, reason):
    config = quick_with({'problem.num_atoms': num_atoms, 'separate.num_peaks': 30})
    with pytest.raises(InputError, match=rf'^problem\.num_atoms is {num_atoms}; it must be smaller: .*{reason}'):
        validate(config)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'problem.num_atms': 3}, 'problem has no field num_atms; did you mean num_atoms?'),
        ({'separate.swaps': 3}, 'separate has no field swaps; did you mean num_swaps?'),
        ({'files.unit': 'nm'}, 'files has no field unit; its fields are voxel_size, element'),
        ({'sed': 3}, 'config has no field sed; did you mean seed?'),
        ({'training': ConfigDict()}, 'config has no field training; did you mean train?'),
        ({'problem': 3}, 'problem is 3; it must be a section of fields'),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(changes, message):
    assert refusal(quick_with(changes)) == message


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'problem.empty_corner': 2.0, 'problem.filled_corner': 2.0},
            'problem.filled_corner is 2.0; it must be 0 where there is an empty_corner',
        ),
        (
            {'train.epochs_per_set': 3, 'train.set_size': 42},
            'train.set_size is 42; it must be a multiple of batch_size, 4, where epochs_per_set is more than 1',
        ),
        (
            {'problem.empty_corner': 0.01},
            'problem.empty_corner is 0.01; it must be larger: in none of 256 trials was the corner filled',
        ),
    ],
)
def test_fields_that_do_not_go_together_are_refused(changes, message):
    assert refusal(quick_with(changes)) == message


def test_sets_used_once_need_not_be_a_multiple_of_the_batch():
    assert validate(quick_with({'train.set_size': 42})).train.set_size == 42


def test_a_missing_field_or_section_is_refused():
    assert refusal(quick_with({}, removed=['train.batch_size'])) == 'train lacks the field batch_size'
    assert refusal(quick_with({}, removed=['train'])) == 'config lacks the field train'
    assert refusal(quick_with({}, removed=['seed'])) == 'config lacks the field seed'


def test_differences_in_fields_that_may_change_are_not_told():
    before = {'seed': 0, 'train': {'num_steps': 10, 'max_minutes': 0.0}}
    now = {'seed': 1, 'train': {'num_steps': 20, 'max_minutes': 3.0}}
    assert differences(before, now, ('seed', 'train'), ('train.max_minutes', 'seed')) == [
        'train.num_steps was 10 and is 20'
    ]


def test_differences_name_each_field_with_both_values():
    before = {'seed': 0, 'train': {'num_steps': 10, 'batch_size': 4}, 'files': {'element': 'X'}}
    now = {'seed': 1, 'train': {'num_steps': 20, 'schedule': 'cosine'}, 'files': {'element': 'C'}}
    assert differences(before, now, ('seed', 'train')) == [
        'seed was 0 and is 1',
        'train.batch_size was 4 and is None',
        'train.num_steps was 10 and is 20',
        "train.schedule was None and is 'cosine'",
    ]
    assert differences(before, now, ('model',)) == []
    assert differences({}, now, ('files',)) == ["files was None and is {'element': 'C'}"]
    assert differences(before, before, ('seed', 'train', 'files')) == []


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        ({'network': 'deep'}, "model.network is 'deep'; it must be one of paper, unrolled"),
        ({'network': 'paper'}, "model.network is 'paper', and the fields of the section are those of another network"),
        ({'stages': 0}, 'model.stages is 0; it must be 1 or more'),
        ({'input_size': 44}, 'model.input_size is 44; it must be at most problem.grid_size, 40'),
        ({'output_size': 32}, 'model.output_size is 32; it must be at most input_size, 28'),
        ({'output_size': 12}, 'model.output_size is 12; it must be problem.box_edge and an atom, 14.25, or more'),
    ],
)
def test_the_network_is_chosen_by_name_and_has_its_own_fields(changes, told):
    config = unrolled.get_config()
    assert validate(config).model == UnrolledNet()
    config.model.update(changes)
    assert refusal(config).startswith(told)


@pytest.mark.parametrize(('field', 'value', 'needed'), [('origin', 'corner', 'centre'), ('target', 'original', 'both')])
def test_the_unrolled_network_needs_a_symmetric_problem(field, value, needed):
    config = unrolled.get_config()
    config.problem[field] = value
    assert refusal(config) == f'problem.{field} is {value!r}; it must be {needed!r} with the unrolled network'


@pytest.mark.parametrize('size', [2, 26, 42])
def test_the_middle_that_the_papers_network_sees_holds_every_vector(size):
    """Vectors reach 12.25 voxels and a radius of 1 to either side of a voxel, which has 13 voxels of 28 on one side."""
    config = base.get_config()
    for allowed in (0, 28, 30, 40):
        config.model.input_size = allowed
        assert validate(config).model.input_size == allowed
    config.model.input_size = size
    assert refusal(config) == f'model.input_size is {size}; it must be 0 or 28 to 40'
    config.problem.update(grid_size=42, box_edge=25.0)
    assert refusal(config) == f'model.input_size is {size}; it must be 0, as the vectors fill the grid'


def test_the_middle_is_refused_where_the_origin_is_in_the_corner():
    config = base.get_config()
    config.model.input_size = 28
    config.problem.origin = 'corner'
    assert (
        refusal(config)
        == "model.input_size is 28; it must be 0 with problem.origin 'corner', where vectors lie outside"
    )


def test_a_recorded_network_that_knows_no_input_size_sees_whole_maps():
    recorded = base.get_config().model.to_dict()
    del recorded['network'], recorded['input_size']
    assert network_of(recorded) == validate(base.get_config()).model


def test_a_model_without_a_network_is_refused():
    assert (
        refusal(quick_with({}, ['model.network'])) == 'model lacks the field network; it must be one of paper, unrolled'
    )
