"""Checks a configuration: a ConfigDict goes in, small frozen dataclasses come out.

Each section of a config is one dataclass, which has the fields of the section and checks their values. Conditions that
involve several sections are checked here.
"""

import dataclasses
import difflib
import typing

import jax
from ml_collections import ConfigDict

from patterson_jax.crystals import CrystalSettings
from patterson_jax.errors import InputError, require
from patterson_jax.evaluation import EvaluationSettings
from patterson_jax.files.structures import FileSettings
from patterson_jax.learning.checkpoints import CheckpointSettings
from patterson_jax.learning.map_training import TrainingSettings
from patterson_jax.networks.density_network import DensityNetwork
from patterson_jax.networks.projection import ProjectionNet
from patterson_jax.networks.registry import NETWORKS
from patterson_jax.projection_training import ProjectionExperiment, ProjectionSettings
from patterson_jax.search_states import StateSettings
from patterson_jax.simulation.atoms import check_drawable
from patterson_jax.simulation.problem import Problem, problem_field_types
from patterson_jax.simulation.training_crystals import TrainingRecipe
from patterson_jax.solving.map_solver import SolveSettings
from patterson_jax.solving.reflections import check_enough
from patterson_jax.solving.separation import SeparationSettings

SECTIONS = {
    'problem': Problem,
    'model': NETWORKS,
    'train': TrainingSettings,
    'checkpoint': CheckpointSettings,
    'separate': SeparationSettings,
    'solve': SolveSettings,
    'evaluate': EvaluationSettings,
    'files': FileSettings,
}
PROJECTION_SECTIONS = {
    'crystals': TrainingRecipe,
    'states': StateSettings,
    'model': ProjectionNet,
    'train': ProjectionSettings,
    'checkpoint': CheckpointSettings,
}
LARGEST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A validated configuration: the seed, and a dataclass for each section."""

    seed: int
    problem: Problem
    model: DensityNetwork
    train: TrainingSettings
    checkpoint: CheckpointSettings
    separate: SeparationSettings
    solve: SolveSettings
    evaluate: EvaluationSettings
    files: FileSettings


def validate(config: ConfigDict) -> Experiment:
    """Checks a configuration and turns it into an Experiment.

    Raises:
        InputError: naming the field, the value received and what is allowed.
    """
    experiment = Experiment(**_seed_and_sections(config, SECTIONS))
    _check_together(experiment)
    return experiment


def validate_crystal(config: ConfigDict) -> tuple[int, CrystalSettings]:
    """The seed and the settings of a config for crystals, which has no other sections.

    Raises:
        InputError: naming the field, the value received and what is allowed.
    """
    _check_names('config', config, ('seed', 'crystal'))
    return _seed(config), _section('crystal', config.crystal, CrystalSettings)


def validate_projection(config: ConfigDict) -> ProjectionExperiment:
    """Checks a configuration that trains the learned projection of crystals.

    Raises:
        InputError: naming the field, the value received and what is allowed.
    """
    return ProjectionExperiment(**_seed_and_sections(config, PROJECTION_SECTIONS))


def validate_trained(config: ConfigDict) -> Experiment | ProjectionExperiment:
    """Checks a configuration that trains a network, of either kind.

    Raises:
        InputError: naming the field, the value received and what is allowed.
    """
    return validate_projection(config) if 'states' in config else validate(config)


def check_devices(experiment: Experiment | ProjectionExperiment) -> None:
    """Raises InputError if the devices of this machine cannot share a training batch equally."""
    batch_size, devices = experiment.train.batch_size, jax.device_count()
    require(batch_size % devices == 0, 'train.batch_size', batch_size, f'a multiple of the {devices} devices')


def differences(before: dict, now: dict, sections: tuple[str, ...], ignored: tuple[str, ...] = ()) -> list[str]:
    """Fields of two resolved configs that differ in some sections, and are not ignored, in words."""
    found = []
    for section in sections:
        first, second = before.get(section), now.get(section)
        if not (isinstance(first, dict) and isinstance(second, dict)):
            first, second = {'': first}, {'': second}
        for field in sorted(first.keys() | second.keys()):
            name = f'{section}.{field}' if field else section
            if _as_in_json(first.get(field)) != _as_in_json(second.get(field)) and name not in ignored:
                found.append(f'{name} was {first.get(field)!r} and is {second.get(field)!r}')
    return found


def _as_in_json(value):
    return list(value) if isinstance(value, tuple) else value


def _seed_and_sections(config, sections):
    """The fields of an experiment: its seed, and each section as the dataclass that checks it."""
    _check_names('config', config, ('seed', *sections))
    return {'seed': _seed(config)} | {name: _section(name, config[name], kind) for name, kind in sections.items()}


def _seed(config):
    seed = _typed('seed', config.seed, int)
    require(0 <= seed <= LARGEST_SEED, 'seed', seed, f'from 0 to {LARGEST_SEED}')
    return seed


def _section(name, section, kind):
    if not isinstance(section, ConfigDict):
        raise InputError(f'{name} is {section!r}; it must be a section of fields')
    if kind is NETWORKS:
        section, kind = _chosen_network(section)
    make, types = kind, {field: hint for field, hint in typing.get_type_hints(kind).items() if field in _fields(kind)}
    if kind is Problem:
        make, types = Problem.of, problem_field_types()
    _check_names(name, section, types)
    values = {field: _typed(f'{name}.{field}', section[field], hint) for field, hint in types.items()}
    try:
        return make(**values)
    except InputError as error:
        raise InputError(f'{name}.{error}') from error


def network_of(model: dict) -> DensityNetwork:
    """The network of a recorded config's section `model`. Raises InputError."""
    return _section('model', ConfigDict(with_later_fields(model)), NETWORKS)


def with_later_fields(model: dict) -> dict:
    """A recorded config's section `model`, with the fields that the paper's network did not have when it was made."""
    model = {'network': 'paper'} | model
    return {'input_size': 0} | model if model['network'] == 'paper' else model


def _chosen_network(section):
    """The fields of the section `model`, and the network that it names."""
    if 'network' not in section:
        raise InputError(f'model lacks the field network; it must be one of {", ".join(NETWORKS)}')
    require(section.network in NETWORKS, 'model.network', section.network, f'one of {", ".join(NETWORKS)}')
    fields = {name: value for name, value in section.items() if name != 'network'}
    kind = NETWORKS[section.network]
    if not fields.keys() & (_fields(kind) - set.intersection(*map(_fields, NETWORKS.values()))):
        raise InputError(
            f'model.network is {section.network!r}, and the fields of the section are those of another network; take '
            'a config file that has this one'
        )
    return ConfigDict(fields), kind


def _fields(kind):
    """Names of a dataclass's fields, without those that Flax adds to a module."""
    return {field.name for field in dataclasses.fields(kind)} - {'parent', 'name'}


def _check_names(owner, section, allowed):
    for name in section:
        if name not in allowed:
            close = difflib.get_close_matches(name, allowed, n=1)
            hint = f'did you mean {close[0]}?' if close else f'its fields are {", ".join(allowed)}'
            raise InputError(f'{owner} has no field {name}; {hint}')
    for name in allowed:
        if name not in section:
            raise InputError(f'{owner} lacks the field {name}')


def _typed(name, value, kind):
    optional = type(None) in typing.get_args(kind)
    if optional:
        if value is None:
            return None
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is tuple:
        return _typed_tuple(name, value, typing.get_args(kind))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        words = {int: 'a whole number', float: 'a number', bool: 'True or False', str: 'a word'}
        allowed = f'{words[kind]} or None' if optional else words[kind]
        raise InputError(f'{name} is {value!r}; it must be {allowed}')
    return value


def _typed_tuple(name, value, kinds):
    """A tuple of so many values of some kinds; of any number of one kind, where the kinds end with an ellipsis."""
    if kinds[-1] is ...:
        kinds = kinds[:1] * (len(value) if isinstance(value, tuple) else 1)
    if not isinstance(value, tuple) or len(value) != len(kinds):
        raise InputError(f'{name} is {value!r}; it must be {len(kinds)} values in brackets')
    return tuple(_typed(f'{name}[{index}]', *each) for index, each in enumerate(zip(value, kinds, strict=True)))


def _check_together(experiment):
    problem, separate = experiment.problem, experiment.separate
    try:
        check_drawable(problem)
        check_enough(problem)
    except InputError as error:
        raise InputError(f'problem.{error}') from error
    experiment.model.check_problem(problem)
    half = problem.grid_size // 2
    require(separate.resolution <= half, 'separate.resolution', separate.resolution, f'at most half the grid, {half}')
    enough = separate.num_peaks >= problem.num_atoms
    require(enough, 'separate.num_peaks', separate.num_peaks, f'problem.num_atoms, {problem.num_atoms}, or more')
    most = problem.grid_size**3
    require(separate.num_peaks <= most, 'separate.num_peaks', separate.num_peaks, f'at most {most}, a voxel each')
