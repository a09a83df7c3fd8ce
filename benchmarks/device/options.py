"""The options of the command line, and the configs that follow from them."""

import argparse
import json
import runpy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from benchmarks import device
from patterson_jax.config import validate_trained
from patterson_jax.errors import InputError, require
from patterson_jax.shipped import find_config, find_network, make_configs_importable

TASKS = ('probe', 'truth', 'speed', 'training', 'solving')
PRODUCTS = ('default', 'highest')
SETTINGS = {  # of a network for maps: convolution, precision
    'direct TF32': ('direct', 'tf32'),
    'direct bfloat16': ('direct', 'bfloat16'),
    'spectral TF32': ('spectral', 'tf32'),
    'direct float32': ('direct', 'float32'),
}
PROJECTION = 'projection'  # the network without a name in its config
PROJECTION_SETTINGS = {  # of that network, whose products are those of the device by default: TF32 on a GPU
    'periodic direct': ('direct', 'tf32'),
    'periodic products': ('products', 'tf32'),
}
TORCH = {  # of the paper's network in PyTorch, which rounds float32 to TF32: layout, precision
    'PyTorch TF32': ('contiguous_format', 'float32'),
    'PyTorch TF32 channels last': ('channels_last_3d', 'float32'),
    'PyTorch bfloat16 channels last': ('channels_last_3d', 'bfloat16'),
}
ORDER = (  # of the timings, as long as there is time
    *('direct TF32', 'PyTorch TF32', 'direct bfloat16', 'PyTorch TF32 channels last', 'PyTorch bfloat16 channels last'),
    *('spectral TF32', 'direct float32', *PROJECTION_SETTINGS),
)
METHODS = ('least_squares', 'phase_retrieval', 'separation')
CONFIGS = {'paper': 'base', 'unrolled': 'unrolled', PROJECTION: 'projection:gpu'}  # of each network
BATCH = 64  # of the networks for maps
TINY = {
    'problem': {'grid_size': 12, 'num_atoms': 2, 'min_separation': 2.4, 'box_edge': 4.0},
    'separate': {'num_peaks': 4, 'num_swaps': 20, 'num_chains': 1, 'resolution': 4.0},
    'evaluate': {'num_cases': 4, 'batch_size': 4, 'methods': ''},
    'solve': {'orientations': 1},
    'train': {'init_from': '', 'num_validation': 8, 'warmup_steps': 2},
}
TINY_MODEL = {
    'paper': {
        'features': 4,
        'outer_kernel_size': 3,
        'inner_kernel_size': 3,
        'encoder_depth': 1,
        'inner_depth': 1,
        'input_size': 0,
    },
    'unrolled': {'features': 4, 'kernel_size': 3, 'stages': 2, 'input_size': 12, 'output_size': 8},
}
TINY_PROJECTION = {
    'crystals': {'shape': (12, 12, 12), 'molecule': (5, 8)},
    'states': {'starts': 2, 'near': 1.0, 'most_cycles': 20},
    'model': {'features': 4, 'num_blocks': 1},
    'train': {
        'init_from': '',
        'batch_size': 2,
        'num_validation': 3,
        'warmup_steps': 2,
        'most_passes': 1,
        'steps_per_call': 2,
    },
}


class Options(NamedTuple):
    """The options of the command line; `parse_arguments` explains them."""

    minutes: float
    output: Path
    tasks: tuple[str, ...]
    train: str
    changes: dict[str, Any]
    batch: int
    more_batches: tuple[int, ...]
    products: tuple[str, ...]
    networks: tuple[str, ...]
    settings: tuple[str, ...]
    methods: tuple[str, ...]
    at_once: tuple[int, ...]
    tiny: bool
    allow_cpu: bool


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; a mistake ends the program with one line and status 2."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.device', description=device.__doc__.partition('\n')[0])
    parser.add_argument('--minutes', type=float, default=9.0, help='of the whole command')
    parser.add_argument('--output', type=Path, help='directory for the results: a few small files')
    parser.add_argument('--collect', type=Path, help='directory of results to take into this repository')
    parser.add_argument(
        '--publish', type=Path, help='with --collect: where to publish weights; default: where the training began'
    )
    parser.add_argument('--tasks', type=_some(TASKS), default=TASKS, help='with commas between')
    parser.add_argument('--train', default='configs/unrolled.py:slice', help='config file of the training')
    parser.add_argument('--set', action='append', default=[], help='changes a field of that config: --set=train.seed=1')
    parser.add_argument('--batch', type=int, help=f'of the networks; default: {BATCH}, or as the projection is trained')
    parser.add_argument('--more-batches', type=_numbers, default=(), help='further batch sizes to time')
    parser.add_argument(
        '--networks',
        type=_some(tuple(CONFIGS)),
        help='to time; the one to train comes first. Default: the projection if it is trained, else the two for maps',
    )
    parser.add_argument('--settings', type=_some(ORDER), default=ORDER, help='to time, in this order')
    parser.add_argument('--products', type=_some(PRODUCTS), default=PRODUCTS, help='precision, in the task truth')
    parser.add_argument('--methods', type=_some(METHODS), default=METHODS, help='of solving')
    parser.add_argument('--at-once', type=_numbers, default=(256, 16, 1024), help='cases, in solving')
    parser.add_argument('--tiny', action='store_true', help='a small problem and small networks, to test the program')
    parser.add_argument('--allow-cpu', action='store_true', help='where there is no GPU')
    return parser.parse_args(arguments)


def _some(known):
    def some(text):
        words = tuple(dict.fromkeys(text.split(',')))
        for word in words:
            if word not in known:
                raise argparse.ArgumentTypeError(f'{word!r} is not one of {", ".join(known)}')
        return words

    return some


def _numbers(text):
    if not all(word.isdecimal() and int(word) for word in text.split(',')):
        raise argparse.ArgumentTypeError(f'{text!r} is not a list of whole numbers from 1, with commas between')
    return tuple(map(int, text.split(',')))


def options_of(given: argparse.Namespace) -> Options:
    """Checks the flags. Raises InputError if one is invalid."""
    if given.output is None:
        raise InputError('--output is missing; it names the directory for the results')
    require(0 < given.minutes < np.inf, '--minutes', given.minutes, 'a number of minutes, more than 0')
    require(given.batch is None or given.batch >= 1, '--batch', given.batch, '1 or more')
    changes = {}
    for change in given.set:
        name, equals, value = change.partition('=')
        require(equals and '.' in name, '--set', change, 'a field and its value, as in train.learning_rate=1e-3')
        changes[name] = _value(value)
    training = load_config(given.train)
    trained = network_name(training)
    usual = [name for name in CONFIGS if (name == PROJECTION) == (trained == PROJECTION)]
    networks = sorted(given.networks or usual, key=lambda name: name != trained)
    return Options(
        given.minutes,
        given.output,
        given.tasks,
        given.train,
        changes,
        given.batch or _usual_batch(training, changes, given.tiny),
        given.more_batches,
        given.products,
        tuple(networks),
        given.settings,
        given.methods,
        given.at_once,
        given.tiny,
        given.allow_cpu,
    )


def _usual_batch(training, changes, tiny):
    """The batch of the training; that of the unrolled network if it trains one from Patterson maps."""
    if network_name(training) != PROJECTION:
        return BATCH
    usual = TINY_PROJECTION['train']['batch_size'] if tiny else training.train.batch_size
    return changes.get('train.batch_size', usual)


def _value(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def load_config(name: str) -> ConfigDict:
    """The config of a file or a name, with an optional `:variant`. Raises InputError."""
    file, _, variant = name.partition(':')
    try:
        path = find_config(file)
        make_configs_importable(path)
        get_config = runpy.run_path(str(path))['get_config']
        config = get_config(variant) if variant else get_config()
    except (OSError, KeyError, ValueError, SyntaxError) as error:
        raise InputError(f'--train is {name!r}: {error}') from error
    if 'model' not in config:
        raise InputError(f'--train is {name!r}, a config without a network to train')
    return config


def network_name(config: ConfigDict) -> str:
    """The name of the network that a config trains, as in `pretrained/`."""
    return PROJECTION if 'states' in config else config.model.network


def config_from_json(values: dict) -> ConfigDict:
    """A config from its JSON, in which tuples have become lists."""
    return ConfigDict(
        {
            section: {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
            if isinstance(fields, dict)
            else fields
            for section, fields in values.items()
        }
    )


def prepared(config: ConfigDict, options: Options) -> ConfigDict:
    """A config with the changes of --tiny and --set. Raises InputError."""
    if options.tiny:
        name = network_name(config)
        tiny = TINY_PROJECTION if name == PROJECTION else TINY | {'model': TINY_MODEL[name]}
        for section, values in tiny.items():
            config[section].update(values)
    try:
        config.update_from_flattened_dict(options.changes)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f'--set: {" ".join(str(error.args[0]).split())}') from error
    validate_trained(config)
    if config.train.init_from:  # else a training would fail minutes later
        try:
            find_network(config.train.init_from)
        except InputError as error:
            raise InputError(f'train.init_from: {error}') from error
    return config


def configs_of(options: Options) -> dict[str, ConfigDict]:
    """The config of each network; --train replaces the usual one of its network."""
    training = load_config(options.train)
    found = {name: load_config(file) for name, file in CONFIGS.items()}
    found[network_name(training)] = training
    return {
        name: prepared(config, options if config is training else options._replace(changes={}))
        for name, config in found.items()
    }
