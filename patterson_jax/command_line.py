"""The command line: flags → config → one call of `experiment.run`.

An installed package has it as the command `patterson-jax`, a clone as `run_experiment.py`. `--mode=MODE --help`
explains a mode.
"""

import difflib
import gc
import os
import re
import runpy
import sys
from pathlib import Path

# Else JAX prints long, wrong messages about programs from the cache (jax issue 38445).
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from patterson_jax import experiment
from patterson_jax.compilation_cache import enable_compilation_cache
from patterson_jax.compiler import avoid_wrong_fusion, require_right_results
from patterson_jax.errors import InputError, exit_on_errors
from patterson_jax.learning.parallel import start_distributed
from patterson_jax.mode_help import HELP
from patterson_jax.shipped import find_config, find_network, make_configs_importable

EXAMPLES = """Patterson maps and measured intensities of crystals to atoms.

patterson-jax --config=crystal --mode=solve --input=crystal.hkl --output=solved
patterson-jax --config=quick
patterson-jax --config=quick --mode=simulate --input=molecule.xyz --output=maps
patterson-jax --config=quick --mode=solve --input=maps/molecule_patterson.ccp4 --output=solved
patterson-jax --config=unrolled --mode=solve --checkpoint=unrolled --input=map.ccp4 --output=solved
"""

CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file, or the name of a config that comes with the code, with an optional :variant.'
)
MODE = flags.DEFINE_string('mode', 'train', f'What to do: {", ".join(experiment.MODES)}; --help explains a mode.')
WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run; default runs/CONFIG.')
CHECKPOINT = flags.DEFINE_string(
    'checkpoint',
    None,
    "Directory of a run, or name of a network that comes with the code, whose weights to use; default the workdir's.",
)
INPUT = flags.DEFINE_multi_string(
    'input', [], 'File to simulate (.xyz) or solve (.ccp4, or .hkl and .cif of crystals); may be repeated.'
)
SWEEP = flags.DEFINE_integer(
    'sweep', None, "Number of the change to make, of those that the config file's sweep() lists."
)
DISTRIBUTED = flags.DEFINE_boolean('distributed', False, 'Work with other processes, one for each host or GPU.')
COMPILATION_CACHE = flags.DEFINE_boolean(
    'compilation_cache', True, "Keep compiled programs in the user's cache directory for the next command."
)
OUTPUT = flags.DEFINE_string(
    'output',
    None,
    'Directory for the files that simulate, solve, inspect and publish write; for inspect, default WORKDIR/figures.',
)


def parse_flags(arguments: list[str]) -> list[str]:
    """Reads the flags and the config that they name; ends the program with one line if a flag is invalid."""
    _explain_mode(arguments)
    with exit_on_errors():
        arguments, file = _with_config_found(arguments)
        try:
            rest = flags.FLAGS(arguments)[1:]
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError) as error:
            raise InputError(_unknown_field(arguments, file) or _reason(error, file)) from error
        if rest:
            cure = f'--{"config" if _is_config(rest[0]) else "input"}={rest[0]}'
            raise InputError(
                f'{rest[0]!r} is not a flag; flags begin with --, as in {cure}, and values with blanks need quotes'
            )
        if CONFIG.value is None:
            raise InputError('--config is missing; it names a config, as in --config=quick')
    return rest


def main() -> None:
    """The program: reads the flags of the command line and runs the mode that they name."""
    # JAX makes so many objects while it traces that Python would look for garbage a tenth of the time.
    gc.set_threshold(50_000, 20)
    program = sys.modules['__main__']
    if not program.__doc__:  # an installed command has none; --help shows it
        program.__doc__ = EXAMPLES
    for flag in flags.FLAGS.get_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)  # --help shows only the flags of the program
    app.run(run, flags_parser=parse_flags)


def run(_: list[str]) -> None:
    """Runs the mode that the flags name."""
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.ERROR)  # Orbax logs a lot
    avoid_wrong_fusion()
    with exit_on_errors(at_once=DISTRIBUTED.value):
        if COMPILATION_CACHE.value:
            enable_compilation_cache()
        else:
            jax.config.update('jax_enable_compilation_cache', False)
        if DISTRIBUTED.value:
            start_distributed()
        require_right_results()
        overrides = config_flags.get_override_values(flags.FLAGS['config']) | _apply_sweep()
        experiment.run(
            MODE.value,
            CONFIG.value,
            _workdir(),
            find_network(CHECKPOINT.value) if CHECKPOINT.value else None,
            tuple(map(Path, INPUT.value)),
            Path(OUTPUT.value) if OUTPUT.value else None,
            overrides,
        )


def _explain_mode(arguments):
    """Prints the help of a mode, or of all flags, and ends the program, if the arguments have `--help`."""
    given = ' '.join(arguments[1:]).replace('--mode ', '--mode=').split()  # in one word or in two
    words = [word.lstrip('-') for word in given if word.startswith('-')]
    modes = [word.removeprefix('mode=') for word in words if word.startswith('mode=')]
    if 'help' in words and modes and modes[-1] in HELP:
        print(f'--mode={modes[-1]}: {HELP[modes[-1]]}')
        sys.exit(0)
    if 'help' in words and not modes:
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)


def _with_config_found(arguments):
    """The arguments with the path of the config in place of its name, and the name as given.

    This comes before the flags are parsed, because parsing loads the file.
    """
    for number, argument in enumerate(arguments):
        flag, equals, given = argument.partition('=')
        if flag not in ('--config', '-config'):
            continue
        rest = arguments[number + 1 :]
        if not equals:  # in two words
            given, rest = (rest[0], rest[1:]) if rest else ('', [])
        name, colon, variant = given.partition(':')
        try:
            file = find_config(name)
        except InputError as error:
            raise InputError(f'--config is {given!r}; {error}') from error
        make_configs_importable(file)
        return [*arguments[:number], f'{flag}={file}{colon}{variant}', *rest], given
    return arguments, None


def _is_config(word):
    """Whether a word is a config file or the name of a config that comes with the code."""
    try:
        return word.endswith('.py') or find_config(word.partition(':')[0]).suffix == '.py'
    except InputError:
        return False


def _config_name():
    """The --config flag as (file, ':', variant)."""
    return (config_flags.get_config_filename(flags.FLAGS['config']) or '').partition(':')


def _workdir():
    """The directory of the run. All variants of a comparison have the same, because their figures share runs."""
    file, _, variant = _config_name()
    compares = 'ablation' in CONFIG.value
    name = Path(file).stem if compares or not variant else f'{Path(file).stem}-{variant}'
    workdir = Path(WORKDIR.value or Path('runs') / name)
    return workdir if compares or SWEEP.value is None else workdir / f'sweep-{SWEEP.value}'


def _apply_sweep():
    """Makes the changes of --sweep and returns them."""
    if SWEEP.value is None:
        return {}
    file, _, variant = _config_name()
    sweep = runpy.run_path(file).get('sweep')
    if sweep is None:
        raise InputError(f'--sweep is {SWEEP.value}; {file} has no sweep()')
    choices = sweep(variant) if variant else sweep()
    if not 0 <= SWEEP.value < len(choices):
        raise InputError(
            f'--sweep is {SWEEP.value}; it must be from 0 to {len(choices) - 1}: {file} has {len(choices)}'
        )
    CONFIG.value.update_from_flattened_dict(choices[SWEEP.value])
    return choices[SWEEP.value]


def _unknown_field(arguments, file):
    """What is wrong with the first flag that sets a field that the config lacks, in words; '' if all have theirs."""
    given = [each.partition('=')[2] for each in arguments if each.lstrip('-').startswith('config=')]
    path, _, variant = given[0].partition(':') if given else ('', '', '')
    try:
        get_config = runpy.run_path(path)['get_config']
        config = get_config(variant) if variant else get_config()
    except Exception:  # of any kind, as the file is the user's; `_reason` tells it
        return ''
    for argument in (each for each in arguments[1:] if each.startswith('-')):
        name = re.sub(r'\[\d+\]', '', argument.partition('=')[0].lstrip('-'))
        path, section = name.split('.'), config
        for depth in range(1, len(path) if path[0] == 'config' else 0):
            field, within = path[depth], f'--config={file}' if depth == 1 else '.'.join(path[:depth])
            if not isinstance(section, ConfigDict):
                break  # a number has no fields; `_reason` tells it
            if field not in section:
                near = difflib.get_close_matches(field, section, n=1)
                meant = f' (did you mean {near[0]}?)' if near else ''
                return f'--{name}: {within} has no {field}{meant}; it has {", ".join(section)}'
            section = section[field]
    return ''


def _reason(error, file):
    if isinstance(error, SyntaxError):
        return f'--config is {file!r}; it must be a config file in Python: {error}'
    if 'Traceback' in str(error):  # of an exception that the config's own function raised
        while error.__context__ is not None:
            error = error.__context__
    reason = ' '.join(str(error.args[0] if isinstance(error, KeyError | AttributeError) else error).split())
    of_config = isinstance(error, flags.UnrecognizedFlagError) and '.' in error.flagname
    return f'{reason}; fields of the config begin with --config.' if of_config else reason
