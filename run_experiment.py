"""Patterson maps to atoms, from the command line. README.md shows how each mode is used.

python run_experiment.py --config=configs/quick.py
python run_experiment.py --config=configs/quick.py --mode=evaluate --config.evaluate.num_cases=1000
python run_experiment.py --config=configs/quick.py --mode=simulate --input=molecule.xyz --output=maps
python run_experiment.py --config=configs/quick.py --mode=solve --input=maps/molecule_patterson.ccp4 --output=solved
python run_experiment.py --config=configs/quick.py --mode=inspect
python run_experiment.py --config=configs/unrolled.py --mode=publish --output=pretrained/unrolled
"""

import itertools
import runpy
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from patterson_jax import experiment
from patterson_jax.errors import InputError, exit_on_errors
from patterson_jax.learning.parallel import start_distributed

CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file, with an optional :variant.')
MODE = flags.DEFINE_string('mode', 'train', f'What to do: {", ".join(experiment.MODES)}.')
WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run; default runs/CONFIG.')
CHECKPOINT = flags.DEFINE_string('checkpoint', None, "Directory of a run whose weights to use; default the workdir's.")
INPUT = flags.DEFINE_multi_string('input', [], 'File to simulate (.xyz) or solve (.ccp4); may be repeated.')
SWEEP = flags.DEFINE_integer('sweep', None, "Which of the changes that the config file's sweep() lists to make.")
DISTRIBUTED = flags.DEFINE_boolean('distributed', False, 'Work with other processes: one a host, or one a GPU.')
OUTPUT = flags.DEFINE_string(
    'output',
    None,
    'Directory for what simulate, solve, inspect and publish write; for inspect, default WORKDIR/figures.',
)


def parse_flags(arguments: list[str]) -> list[str]:
    """Reads the flags and through them the config; ends the program with one line if one is wrong."""
    with exit_on_errors():
        file = _config_argument(arguments)
        if file is not None and not Path(file.partition(':')[0]).is_file():
            raise InputError(f'--config is {file!r}; there is no such file')
        try:
            rest = flags.FLAGS(arguments)[1:]
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError) as error:
            raise InputError(_reason(error, file)) from error
        if rest:
            raise InputError(f'{rest[0]!r} is no flag; flags begin with --, as in --config={rest[0]}')
        if CONFIG.value is None:
            raise InputError('--config is missing; it names a config file, as in --config=configs/quick.py')
    return rest


def main(_: list[str]) -> None:
    """Runs the mode that the flags ask for."""
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.ERROR)  # Orbax tells at length what it does
    with exit_on_errors(at_once=DISTRIBUTED.value):
        if DISTRIBUTED.value:
            start_distributed()
        overrides = config_flags.get_override_values(flags.FLAGS['config']) | _apply_sweep()
        experiment.run(
            MODE.value,
            CONFIG.value,
            _workdir(),
            CHECKPOINT.value and Path(CHECKPOINT.value),
            tuple(map(Path, INPUT.value)),
            OUTPUT.value and Path(OUTPUT.value),
            overrides,
        )


def _config_argument(arguments):
    """What follows --config, known before the flags are parsed, because their parsing loads the file."""
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        if argument in ('--config', '-config'):
            return following
        if argument.startswith(('--config=', '-config=')):
            return argument.partition('=')[2]
    return None


def _config_name():
    """(file, ':', variant) of the --config flag."""
    return (config_flags.get_config_filename(flags.FLAGS['config']) or '').partition(':')


def _workdir():
    """The run's directory; that of comparisons is one for all figures, as these share runs."""
    file, _, variant = _config_name()
    compares = 'ablation' in CONFIG.value
    name = Path(file).stem if compares or not variant else f'{Path(file).stem}-{variant}'
    workdir = Path(WORKDIR.value or Path('runs') / name)
    return workdir if compares or SWEEP.value is None else workdir / f'sweep-{SWEEP.value}'


def _apply_sweep():
    """Makes the changes that --sweep asks for, and returns them."""
    if SWEEP.value is None:
        return {}
    file, _, variant = _config_name()
    sweep = runpy.run_path(file).get('sweep')
    if sweep is None:
        raise InputError(f'--sweep is {SWEEP.value}; {file} has no sweep()')
    choices = sweep(variant) if variant else sweep()
    if not 0 <= SWEEP.value < len(choices):
        raise InputError(
            f'--sweep is {SWEEP.value}; it must be from 0 to {len(choices) - 1}, {file} has {len(choices)}'
        )
    CONFIG.value.update_from_flattened_dict(choices[SWEEP.value])
    return choices[SWEEP.value]


def _reason(error, file):
    if isinstance(error, SyntaxError):
        return f'--config is {file!r}; it must be a config file in Python: {error}'
    if 'Traceback' in str(error):  # of what the config's own function raised
        while error.__context__ is not None:
            error = error.__context__
    return ' '.join(str(error.args[0] if isinstance(error, KeyError | AttributeError) else error).split())


if __name__ == '__main__':
    app.run(main, flags_parser=parse_flags)
