"""The command line: a person's mistake is one line on stderr and exit status 2, and costs nothing already written.

Most commands run in this process, for speed, and a few in one of their own, as a person runs them: with the compiler as
it is, which the other tests change, and with nothing to see but stderr.
"""

import functools
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import gemmi
import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from tiny import users_environment

from configs import crystal, quick
from patterson_jax import command_line
from patterson_jax.compiler import FUSION_OFF
from patterson_jax.config import validate
from patterson_jax.experiment import MODES
from patterson_jax.files.maps import read_map, write_map
from patterson_jax.files.structures import read_xyz, write_xyz
from patterson_jax.learning.checkpoints import Checkpoints
from patterson_jax.learning.map_training import MapTask
from patterson_jax.learning.training import init_state
from patterson_jax.simulation.density import render
from patterson_jax.simulation.patterson import measured_frequencies, patterson_map

# config_flags loads a config by an old way of importlib's.
pytestmark = pytest.mark.filterwarnings('ignore:.*load_module:DeprecationWarning')

REPOSITORY = Path(__file__).parents[1]
QUICK, CLUSTER, ABLATIONS = (
    f'--config={REPOSITORY / "configs" / name}.py' for name in ('quick', 'cluster', 'quick_ablations')
)
# Solving with weights that were never trained, by as little work as there can be.
TINY_NETWORK = (
    '--config.model.features=2',
    '--config.model.inner_kernel_size=3',
    '--config.model.inner_depth=1',
)
TINY = (
    *TINY_NETWORK,
    '--config.separate.num_swaps=5',
    '--config.separate.num_chains=1',
    '--config.solve.method=network',
    '--config.solve.max_attempts=1',
)
# Solving without weights; in a box so small that vectors leave some of the map empty. Compiled once for all tests.
SMALL_BOX = '--config.problem.box_edge=4.5'
LEAST_SQUARES = (QUICK, SMALL_BOX, '--config.solve.method=least_squares', '--config.solve.max_attempts=1')
AUTO = (QUICK, SMALL_BOX, '--config.solve.max_attempts=1')
TRIANGLE = np.array([[0.0, 0, 0], [1.5, 0, 0], [0, 1.5, 0.4]])
CUT = '--config.problem.resolution=4'
ENDINGS = ('.json', '.html', '.xyz', '.pdb', '.res', '.cxc', '.png', '_density.ccp4')


class Result(NamedTuple):
    """What a command leaves behind: exit status, stdout and stderr."""

    status: int
    output: str
    errors: str

    def error(self):
        """The one line that tells a mistake."""
        assert self.status == 2, self
        assert self.output == ''
        return self.lines()[0]

    def lines(self):
        """The lines on stderr, of which there are only those of mistakes."""
        lines = self.errors.splitlines()
        assert lines
        assert all(re.match(r'error: \S', line) for line in lines), self.errors
        assert 'Traceback' not in self.errors
        return [line.removeprefix('error: ') for line in lines]


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs the program in this process, in an empty directory; an error that it does not catch fails the test."""

    def run(*arguments):
        arguments = ['run_experiment.py', *map(str, arguments)]
        monkeypatch.setattr(sys, 'argv', arguments)  # where config_flags looks for --config.section.field
        capsys.readouterr()
        status = 0
        with flagsaver.flagsaver():
            try:
                command_line.run(command_line.parse_flags(arguments))
            except SystemExit as stop:
                status = stop.code
        return Result(status, *capsys.readouterr())

    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture
def process(tmp_path):
    """Runs the program in a process of its own, in an empty directory, in a person's environment."""

    def run(*arguments, **environment):
        line = [sys.executable, REPOSITORY / 'run_experiment.py', *map(str, arguments)]
        environment = users_environment() | environment
        done = subprocess.run(
            line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


def save_untrained(directory, grid_size=16):
    """Makes a run's directory with a checkpoint of weights as they are before training, for QUICK and TINY_NETWORK."""
    config = quick.get_config()
    config.problem.grid_size = grid_size
    for override in TINY_NETWORK:
        field, value = override.removeprefix('--config.').split('=')
        config.update_from_flattened_dict({field: int(value)})
    experiment = validate(config)
    state = init_state(MapTask(experiment.model, experiment.problem, experiment.train, experiment.seed))
    with Checkpoints(directory / 'checkpoints') as checkpoints:
        checkpoints.save(1, state.params, state.optimizer, config.to_dict(), {'step': 1, 'seconds': 0.0}, 1.0)
    return directory


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp('run'))


@functools.cache
def patterson_of_triangle(grid_size=16):
    positions = ((TRIANGLE - TRIANGLE.mean(axis=0)) / 0.5).astype(np.float32)
    return np.asarray(jax.jit(lambda: patterson_map(render(positions, grid_size, 1.0)))())


def files_in(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob('*') if path.is_file()}


def write_molecule(path, positions=TRIANGLE):
    write_xyz(path, positions, 'O', '')


MISTAKES = {
    'no config': ([], '--config is missing', '--config=quick'),
    'empty config': (['--config='], '--config is '),
    'no such config': (['--config=configs/quik.py'], "--config is 'configs/quik.py'", 'no such file'),
    'no such config, in two words': (['--config', 'quik.py'], "--config is 'quik.py'", 'no such file'),
    'field of no config': (['--config=quik.py', '--config.seed=3'], "--config is 'quik.py'", 'no such file'),
    'path of no config, but its name': (['--config=my/quick.py'], 'no such file', "is called 'quick'"),
    'name of no config': (['--config=quik'], "--config is 'quik'", 'there are ablations, base, cluster, crystal, '),
    'config without its name': (['--config'], "--config is ''"),
    'directory for a config': (['--config=.'], "--config is '.'"),
    'map for a config': (['--config=map.ccp4'], "'map.ccp4'"),
    'unknown variant': ([f'{QUICK}:orignal_only'], "'orignal_only' is not a variant", 'it has original_only'),
    'unknown field': (
        [QUICK, '--config.problem.num_atms=3'],
        '--config.problem.num_atms: config.problem has no num_atms (did you mean num_atoms?); it has ',
    ),
    'unknown section': (
        [QUICK, '--config.problems.num_atoms=3'],
        'configs/quick.py has no problems (did you mean problem?); it has ',
    ),
    'section of another config': (
        ['--config=base', "--config.crystal.cell='5 5 5 90 90 90'"],
        '--config.crystal.cell: --config=base has no crystal; it has checkpoint, ',
    ),
    'field of the top': (
        ['--config=crystal', '--config.crystal.seed=3'],
        'config.crystal has no seed; it has block, cell, ',
    ),
    'field without its config': ([QUICK, '--train.num_steps=3'], "'train.num_steps'", 'begin with --config.'),
    'field of a field': ([QUICK, '--config.seed.number=3'], 'seed.number'),
    'field before the config': (['--config.seed=3', QUICK], '--config.seed', 'before'),
    'no value': ([QUICK, '--config.seed'], 'config.seed', 'Missing value'),
    'word for a number': ([QUICK, '--config.train.num_steps=many'], 'config.train.num_steps', "'many'"),
    'number for a section': ([QUICK, '--config.train=3'], 'config.train', "'3'"),
    'not a boolean': ([QUICK, '--config.problem.centred=maybe'], 'config.problem.centred', 'maybe'),
    'word for a resolution': ([QUICK, '--config.problem.resolution=high'], 'config.problem.resolution', "'high'"),
    'word for the resolution of a file': (
        [QUICK, '--config.solve.resolution=high'],
        'config.solve.resolution',
        "'high'",
    ),
    'no such resolution': (
        [QUICK, '--config.problem.resolution=0.5'],
        'problem.resolution is 0.5; it must be a number',
    ),
    'no such noise': ([QUICK, '--config.problem.noise=1.5'], 'problem.noise is 1.5; it must be from 0 to 1'),
    'no such method': (
        [QUICK, '--config.solve.method=neural'],
        "solve.method is 'neural'; it must be one of network, least_squares, phase_retrieval, minimum_function, auto",
    ),
    'no such method to evaluate': (
        [QUICK, '--config.evaluate.methods=network,neural'],
        "evaluate.methods is 'network,neural'",
        'least_squares',
    ),
    'no atoms': (
        [QUICK, '--mode=solve', '--input=map.ccp4', '--output=new', '--config.problem.num_atoms=0'],
        'problem.num_atoms is 0; it must be a whole number, 1 or more',
    ),
    'out of range': ([QUICK, '--config.train.batch_size=0'], 'train.batch_size is 0; it must be 1 or more'),
    'not a number': ([QUICK, '--config.train.learning_rate=nan'], 'train.learning_rate is nan', 'positive number'),
    'unknown mode': ([QUICK, '--mode=slove'], "--mode is 'slove'", 'train, evaluate, simulate, solve'),
    'stray argument': ([QUICK, 'map.ccp4'], "'map.ccp4' is not a flag", 'as in --input=map.ccp4'),
    'checkpoint to publish': (
        [QUICK, '--mode=publish', '--output=new', '--checkpoint=unrolled'],
        '--checkpoint is ',
        'it must be left out for --mode=publish',
    ),
    'checkpoint for a crystal': (
        ['--config=crystal', '--mode=solve', '--output=new', '--input=a.hkl', '--checkpoint=unrolled'],
        'it must be left out for crystals, whose network is --config.crystal.network',
    ),
    'name of a config without flag': (['quick'], "'quick' is not a flag", '--config=quick'),
    'weights of another network': (
        ['--config=base', '--mode=evaluate', '--checkpoint=unrolled'],
        "these weights are of a network 'unrolled', the config has 'paper'",
    ),
    'config without flag': (['configs/quick.py'], "'configs/quick.py' is not a flag", '--config=configs/quick.py'),
    'unknown flag': ([QUICK, '--inputs=map.ccp4'], "'inputs'", 'Did you mean: input'),
    'workdir a file': ([QUICK, '--workdir=map.ccp4'], '--workdir is map.ccp4', 'must be a directory'),
    'workdir below a file': ([QUICK, '--workdir=map.ccp4/run'], '--workdir is map.ccp4/run', 'must be a directory'),
    'nothing to evaluate': ([QUICK, '--mode=evaluate'], 'runs/quick: it has no checkpoint', 'name a run'),
    'nothing to evaluate of a variant': (
        [f'{QUICK}:original_only', '--mode=evaluate'],
        'runs/quick-original_only: it has no checkpoint',
    ),
    'no checkpoint in what is named': (
        [QUICK, '--mode=evaluate', '--checkpoint=numbers'],
        'numbers: it has no checkpoint',
    ),
    'solve nothing': ([QUICK, '--mode=solve', '--output=new'], '--input is missing'),
    'solve to nowhere': ([QUICK, '--mode=solve', '--input=map.ccp4'], '--output is missing'),
    'solve without weights': (
        [QUICK, '--mode=solve', '--input=map.ccp4', '--output=new', '--workdir=none', '--config.solve.method=network'],
        'none: it has no checkpoint',
    ),
    'solve with weights that are not there': (
        [QUICK, '--mode=solve', '--input=map.ccp4', '--output=new', '--checkpoint=numbers'],
        'numbers: it has no checkpoint',
    ),
    'simulate nothing': ([QUICK, '--mode=simulate', '--output=new'], '--input is missing'),
    'simulate to nowhere': ([QUICK, '--mode=simulate', '--input=map.ccp4'], '--output is missing'),
    'simulate what is missing': ([QUICK, '--mode=simulate', '--input=a.xyz', '--output=new'], 'a.xyz: no such file'),
    'simulate a map': ([QUICK, '--mode=simulate', '--input=map.ccp4', '--output=new'], 'map.ccp4: not a text file'),
    'output a file': (
        [QUICK, '--mode=simulate', '--input=map.ccp4', '--output=map.ccp4'],
        '--output is map.ccp4',
        'must be a directory',
    ),
    'inspect into a file': (
        [QUICK, '--mode=inspect', '--output=map.ccp4'],
        '--output is map.ccp4',
        'must be a directory',
    ),
    'sweep of a config that has none': ([QUICK, '--sweep=0'], '--sweep is 0', 'configs/quick.py has no sweep()'),
    'sweep beyond its end': ([CLUSTER, '--sweep=4'], '--sweep is 4; it must be from 0 to 3', 'cluster.py has 4'),
    'sweep before its start': ([CLUSTER, '--sweep=-1'], '--sweep is -1; it must be from 0 to 3'),
    'no number for a sweep': ([CLUSTER, '--sweep=TASK'], '--sweep', "'TASK'"),
    'sweep of a variant beyond its end': ([f'{ABLATIONS}:figure9', '--sweep=5'], 'it must be from 0 to 4'),
    'comparison that is not trained': ([ABLATIONS, '--mode=evaluate'], "--mode is 'evaluate'; it must be train"),
    'run of no comparison': (
        [f'{ABLATIONS}:figure8', '--config.ablation.only=uncentred'],
        "ablation.only is 'uncentred'; it must be one of baseline, baseline_again, one_set",
    ),
    'no batch in a comparison': ([ABLATIONS, '--config.train.batch_size=0'], 'train.batch_size is 0; it must be 1 or'),
    'wrong value in a comparison': (
        [f'{ABLATIONS}:figure8', '--config.train.set_size=2'],
        'ablation run baseline: train.log_every is 0; it must be 1 or more',
    ),
    'other problem in a comparison': (
        [ABLATIONS, '--config.problem.num_atoms=4'],
        'problem.num_atoms cannot be changed here, because the runs of a comparison are made from it',
    ),
    'weights of no run to begin with': (
        [QUICK, '--config.train.init_from=none'],
        'train.init_from: none: no such directory, nor a network that comes with the code: ',
    ),
    'two inputs of one name': (
        [QUICK, '--mode=simulate', '--input=a/water.xyz', '--input=b/water.xyz', '--output=new'],
        '--input has the name water more than once',
    ),
}


@pytest.mark.parametrize(('arguments', 'fragments'), [(case[0], case[1:]) for case in MISTAKES.values()], ids=MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(command, tmp_path, arguments, fragments):
    write_map(tmp_path / 'map.ccp4', np.ones((16, 16, 16)), 0.5)
    (tmp_path / 'numbers' / '2024').mkdir(parents=True)
    (tmp_path / 'numbers' / '2024' / 'notes.txt').write_text('no checkpoint')
    before = files_in(tmp_path)
    result = command(*arguments)
    for fragment in fragments:
        assert fragment in result.error()
    assert len(result.lines()) == 1
    assert files_in(tmp_path) == before


@pytest.fixture
def asked(monkeypatch):
    """What the program is asked to run, though it does not: (mode, config, workdir, overrides) of each command."""
    calls = []

    def run(mode, config, workdir, checkpoint, inputs, output, overrides):
        calls.append((mode, config, workdir, overrides))

    monkeypatch.setattr(command_line.experiment, 'run', run)
    return calls


@pytest.mark.parametrize(
    ('arguments', 'workdir'),
    [
        ([QUICK], 'runs/quick'),
        ([f'{QUICK}:original_only'], 'runs/quick-original_only'),
        ([CLUSTER, '--sweep=2'], 'runs/cluster/sweep-2'),
        ([f'{CLUSTER}:original_only', '--sweep=0'], 'runs/cluster-original_only/sweep-0'),
        ([ABLATIONS], 'runs/quick_ablations'),  # comparisons share the runs that they have in common
        ([f'{ABLATIONS}:figure8'], 'runs/quick_ablations'),
        ([f'{ABLATIONS}:figure8', '--sweep=1'], 'runs/quick_ablations'),
        ([QUICK, '--workdir=mine'], 'mine'),
        ([CLUSTER, '--sweep=2', '--workdir=mine'], 'mine/sweep-2'),
        ([f'{ABLATIONS}:figure8', '--sweep=1', '--workdir=mine'], 'mine'),
    ],
)
def test_a_run_has_a_directory_named_after_config_variant_and_job(command, asked, arguments, workdir):
    assert command(*arguments) == (0, '', '')
    ((mode, _, given, _),) = asked
    assert (mode, given) == ('train', Path(workdir))


@pytest.mark.parametrize(
    ('arguments', 'workdir', 'changed'),
    [
        (['--config=quick'], 'runs/quick', {}),
        (['--config', 'quick', '--config.seed=7'], 'runs/quick', {'seed': 7}),
        (['--config=quick:original_only'], 'runs/quick-original_only', {'problem.target': 'original'}),
        (['--config=cluster', '--sweep=2'], 'runs/cluster/sweep-2', {'train.learning_rate': 1.7e-3}),
        (['--config=quick_ablations:figure9'], 'runs/quick_ablations', {}),
    ],
)
def test_a_config_that_comes_with_the_code_is_found_by_its_name(command, asked, arguments, workdir, changed):
    assert command(*arguments) == (0, '', '')
    ((_, config, given, _),) = asked
    assert given == Path(workdir)
    path = Path(REPOSITORY / 'configs' / f'{Path(workdir).parts[1].partition("-")[0]}.py')
    expected = runpy.run_path(str(path))['get_config'](*(['figure9'] if 'figure9' in arguments[0] else []))
    expected.update_from_flattened_dict(changed)
    assert config.to_dict() == expected.to_dict()


def test_a_file_of_the_users_goes_before_a_config_of_that_name(command, asked, tmp_path):
    text = 'from configs import quick\ndef get_config():\n    return quick.get_config("original_only")\n'
    (tmp_path / 'base').write_text(text)
    assert command('--config=base').status == 0
    ((_, config, _, _),) = asked
    assert (config.problem.grid_size, config.problem.target) == (16, 'original')


def test_a_checkpoint_may_be_a_network_that_comes_with_the_code(command, monkeypatch):
    given = []
    monkeypatch.setattr(command_line.experiment, 'run', lambda *arguments: given.append(arguments[3]))
    assert command('--config=unrolled', '--mode=evaluate', '--checkpoint=unrolled').status == 0
    assert given == [REPOSITORY / 'pretrained' / 'unrolled']
    result = command('--config=unrolled', '--mode=evaluate', '--checkpoint=rolled')
    expected = 'rolled: no such directory, nor a network that comes with the code: paper, projection, unrolled'
    assert result.lines() == [result.error()] == [expected]


def test_what_one_command_compiles_the_next_takes_from_the_users_cache_without_a_word(process, tmp_path, monkeypatch):
    for name in ('JAX_COMPILATION_CACHE_DIR', 'TF_CPP_MIN_LOG_LEVEL'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    write_molecule(tmp_path / 'good.xyz')
    arguments = (QUICK, '--mode=simulate', '--input=good.xyz', '--output=maps')

    def kept():
        return files_in(tmp_path / 'cache' / 'patterson_jax')

    assert process(*arguments).errors == ''
    before = kept()
    assert any('_maps' in path.name for path in before)
    assert process(*arguments).errors == ''
    assert kept().items() >= before.items()


def test_the_cache_is_on_unless_it_is_switched_off(command, asked, monkeypatch):
    enabled, options = [], {}
    monkeypatch.setattr(command_line, 'enable_compilation_cache', lambda: enabled.append(True))
    monkeypatch.setattr(jax.config, 'update', options.__setitem__)
    assert command(QUICK).status == 0
    assert (enabled, options) == ([True], {})
    assert command(QUICK, '--nocompilation_cache').status == 0
    assert (enabled, options) == ([True], {'jax_enable_compilation_cache': False})


def test_help_tells_the_flags_and_how_they_are_used(process):
    result = process('--help')
    assert result.status == 0
    assert '--config=configs/quick.py --mode=solve' in result.output
    for flag in ('--config:', '--mode:', '--input:', '--checkpoint:', '--[no]compilation_cache:'):
        assert flag in result.output


@pytest.mark.parametrize('mode', MODES)
def test_each_mode_tells_what_it_takes_and_leaves(command, mode):
    result = command(f'--mode={mode}', '--help')
    assert result.status == 0 and result.output == command('--mode', mode, '--help').output
    for word in ('takes', 'leaves', f'--mode={mode}'):
        assert word in result.output
    named = set(re.findall(r'--([a-z_]+)', result.output))
    assert named <= set(flags.FLAGS) | {'help'}
    fields = set(re.findall(r'--config\.([a-z_.]+)', result.output)) - {'section.field'}
    configs = [config.get_config() for config in (quick, crystal)]
    for section, _, field in (each.partition('.') for each in fields):
        assert any(section in config and field in config[section] for config in configs), (section, field)


def test_each_job_of_a_sweep_makes_its_change_and_no_other(command, asked):
    config_of = runpy.run_path(str(REPOSITORY / 'configs' / 'cluster.py'))['get_config']
    for index, rate in enumerate((3e-4, 8e-4, 1.7e-3, 3e-3)):
        assert command(CLUSTER, f'--sweep={index}', '--config.train.log_every=7').status == 0
        _, config, _, overrides = asked.pop()
        expected = config_of()
        expected.train.update(learning_rate=rate, log_every=7)
        assert config.to_dict() == expected.to_dict()
        assert overrides == {'train.log_every': 7, 'train.learning_rate': rate}


def test_each_job_of_a_comparison_trains_another_run(command, asked):
    runs = []
    for index in range(5):
        assert command(f'{ABLATIONS}:figure9', f'--sweep={index}', '--config.ablation.num_epochs=7').status == 0
        _, config, _, overrides = asked.pop()
        assert (config.ablation.num_epochs, config.train.num_steps) == (7, 7 * config.train.set_size // 4)
        assert overrides == {'ablation.num_epochs': 7, 'ablation.only': config.ablation.only}
        runs.append(config.ablation.only)
    assert set(runs) == {'baseline', 'baseline_again', 'wide_box', 'wider_box', 'wider_box_larger_grid'}


def test_a_process_with_a_mistake_prints_one_line_and_nothing_else(process, workdir, tmp_path):
    variant = process(f'{QUICK}:orignal_only')
    assert variant.lines() == [variant.error()]
    assert "'orignal_only' is not a variant of configs/base.py; it has original_only" in variant.error()

    batch = process(QUICK, '--config.train.batch_size=3', JAX_PLATFORMS='cpu', JAX_NUM_CPU_DEVICES='2')
    assert batch.lines() == [batch.error()] == ['train.batch_size is 3; it must be a multiple of the 2 devices']

    missing = process(QUICK, *TINY, '--mode=solve', '--input=map.ccp4', '--output=new', f'--workdir={workdir}')
    assert missing.lines() == [missing.error()] == ['map.ccp4: no such file']
    assert files_in(tmp_path) == {}


def test_simulate_writes_what_it_can_names_what_it_cannot_and_what_it_wrote_is_solved(process, tmp_path):
    write_molecule(tmp_path / 'good.xyz')
    (tmp_path / 'bad.xyz').write_text('3\n\nO 0 0 0\nO 1 nan 0\nO 0 1 0\n')
    result = process(
        QUICK, '--mode=simulate', '--input=bad.xyz', '--input=good.xyz', '--input=none.xyz', '--output=maps/new'
    )
    assert result.status == 2
    assert [line.partition(';')[0] for line in result.lines()] == [
        "bad.xyz, line 4: 'O 1 nan 0'",
        'none.xyz: no such file',
    ]
    written = ['maps/new/good_patterson.ccp4', 'maps/new/good_density.ccp4']
    assert result.output.split() == written
    assert {str(path) for path in files_in(tmp_path)} == {'good.xyz', 'bad.xyz', *written}
    patterson, density = (read_map(tmp_path / name) for name in written)
    assert patterson.voxel_size == density.voxel_size == 0.5
    assert np.sum(density.values) == pytest.approx(3 * 4 / 3 * np.pi, rel=1e-5)
    assert np.sum(patterson.values) == pytest.approx(np.sum(density.values) ** 2, rel=1e-5)

    solved = process(*LEAST_SQUARES, '--mode=solve', f'--input={written[0]}', '--output=solved')
    assert (solved.status, solved.errors) == (0, '')
    assert_solved(tmp_path / 'solved', 'good_patterson')


def test_a_jax_that_computes_wrongly_is_refused_in_one_line(process, tmp_path):
    """With this fusion every JAX that was tried does, 0.10.1 too, which does not choose it by itself."""
    wrong = process(QUICK, '--mode=inspect', JAX_PLATFORMS='cpu', XLA_FLAGS=f'{FUSION_OFF}dot')
    assert wrong.lines() == [wrong.error()]
    assert re.match(rf'JAX {jax.__version__} .* computes wrongly on cpu: .* is .* and should be \d', wrong.error())
    assert f'set XLA_FLAGS={FUSION_OFF} in the environment' in wrong.error()
    assert files_in(tmp_path) == {}


LATTICE = 1.5 * np.argwhere(np.ones((2, 2, 3)))  # twelve atoms, 3 Å across
MISFITS = {
    '5 atoms': (LATTICE[:5], '5 atoms', 'the problem has 3'),
    '12 atoms': (LATTICE, '12 atoms', 'the problem has 3'),
    '3.62 Å': (TRIANGLE * [3.62 / 1.5, 1, 1], '3.62 Å across', '3.00 Å'),  # needs a voxel_size of 0.6033…
    '9 Å': (TRIANGLE * 6, '9.00 Å across', '3.00 Å'),
}


@pytest.mark.parametrize(('positions', 'fragments'), [(case[0], case[1:]) for case in MISFITS.values()], ids=MISFITS)
def test_a_molecule_that_does_not_fit_is_refused_with_a_cure_that_works(command, tmp_path, positions, fragments):
    write_molecule(tmp_path / 'large.xyz', positions)
    arguments = (QUICK, '--mode=simulate', '--input=large.xyz', '--output=new')
    result = command(*arguments)
    assert result.lines() == [result.error()]
    for fragment in ('large.xyz: ', *fragments):
        assert fragment in result.error()
    assert set(files_in(tmp_path)) == {Path('large.xyz')}

    cure = re.findall(r'--config\.[a-z_.]+=[0-9.]+', result.error())
    assert cure
    cured = command(*arguments, *cure)
    assert (cured.status, cured.errors) == (0, '')
    assert cured.output.split() == ['new/large_patterson.ccp4', 'new/large_density.ccp4']


def test_solve_solves_what_it_can_and_names_what_it_cannot(command, workdir, tmp_path):
    write_molecule(tmp_path / 'good.xyz')
    assert command(QUICK, '--mode=simulate', '--input=good.xyz', '--output=maps').status == 0
    good = read_map(tmp_path / 'maps' / 'good_patterson.ccp4').values
    write_map(tmp_path / 'centred.ccp4', np.fft.fftshift(good), 0.5)
    write_map(tmp_path / 'small.ccp4', patterson_of_triangle(12), 0.5)
    bad = {
        'none.ccp4': 'no such file',
        'centred.ccp4': 'shift it by half a cell',
        'small.ccp4': 'trained on 16',
        'good.xyz': 'not a CCP4 map',
    }
    inputs = [f'--input={each}' for each in (*bad, 'maps/good_patterson.ccp4')]
    result = command(QUICK, *TINY, '--mode=solve', *inputs, '--output=solved', f'--workdir={workdir}')
    assert result.status == 2
    for line, (name, reason) in zip(result.lines(), bad.items(), strict=True):
        assert line.startswith(f'{name}: ')
        assert reason in line
    names = {path.name for path in (tmp_path / 'solved').iterdir()}
    assert names == {f'good_patterson{end}' for end in ENDINGS}
    report = json.loads((tmp_path / 'solved' / 'good_patterson.json').read_text())
    assert report['method'] == 'network'
    assert np.shape(report['candidates_voxels']) == (16, 3) and np.shape(report['peak_heights']) == (8,)


def distances(positions):
    first, second = np.triu_indices(len(positions), 1)
    return np.sort(np.linalg.norm(positions[first] - positions[second], axis=1))


def assert_solved(directory, name, method='least_squares'):
    """All files are there, and agree on the molecule that was simulated."""
    assert {path.name for path in directory.iterdir() if path.name.startswith(name)} == {f'{name}{e}' for e in ENDINGS}
    report = json.loads((directory / f'{name}.json').read_text())
    assert (report['verdict'], report['method'], report['num_atoms']) == ('solved', method, 3)
    found = read_xyz(directory / f'{name}.xyz')
    np.testing.assert_allclose(distances(found), distances(TRIANGLE), atol=0.005)  # Å; a hundredth of a voxel
    np.testing.assert_allclose(report['positions'], found, atol=1e-3)
    return report, found


def test_a_map_is_solved_without_any_weights_and_every_file_has_the_molecule(command, tmp_path):
    write_molecule(tmp_path / 'good.xyz')
    assert command(*LEAST_SQUARES, '--mode=simulate', '--input=good.xyz', '--output=maps').status == 0
    result = command(*LEAST_SQUARES, '--mode=solve', '--input=maps/good_patterson.ccp4', '--output=solved')
    assert (result.status, result.errors) == (0, '')
    (line,) = result.output.splitlines()
    assert line.startswith('good_patterson.ccp4: solved, 3 atoms by least squares')
    assert {path.name for path in (tmp_path / 'solved').iterdir()} == {f'good_patterson{e}' for e in ENDINGS}
    report, found = assert_solved(tmp_path / 'solved', 'good_patterson')
    assert max(report['r_factor'], report['r_free']) < 0.01
    assert report['input'] == 'maps/good_patterson.ccp4' and 'candidates_voxels' not in report

    solved = tmp_path / 'solved' / 'good_patterson'
    structure = gemmi.read_pdb(str(solved.with_suffix('.pdb')))
    assert structure.cell.a == pytest.approx(8)
    np.testing.assert_allclose([each.atom.pos.tolist() for each in structure[0].all()], found, atol=1e-3)
    lines = [line.split() for line in solved.with_suffix('.res').read_text().splitlines()]
    atoms = np.array([line[2:5] for line in lines if re.fullmatch(r'O\d', line[0])], float)
    np.testing.assert_allclose(8 * atoms, found, atol=1e-3)
    density = read_map(tmp_path / 'solved' / 'good_patterson_density.ccp4')
    assert density.voxel_size == 0.5
    given = read_map(tmp_path / 'maps' / 'good_density.ccp4').values
    assert np.sum(density.values) == pytest.approx(np.sum(given), rel=1e-5)
    scene = solved.with_suffix('.cxc').read_text()
    assert '"good_patterson.pdb"' in scene and '"good_patterson_density.ccp4"' in scene


def test_good_maps_are_solved_beside_a_bad_one_and_the_bad_one_is_named(command, tmp_path):
    broken = patterson_of_triangle().copy()
    broken[1, 2, 3] = np.nan
    for name, values in (('a', 3 * patterson_of_triangle()), ('bad', broken), ('b', 1e-3 * patterson_of_triangle())):
        write_map(tmp_path / f'{name}.ccp4', values, 0.5)
    inputs = [f'--input={name}.ccp4' for name in ('a', 'bad', 'b')]
    result = command(*LEAST_SQUARES, '--mode=solve', *inputs, '--output=solved')
    assert result.status == 2
    assert result.lines() == ['bad.ccp4: 1 of its values are NaN or infinite']
    assert [line.partition(':')[0] for line in result.output.splitlines()] == ['a.ccp4', 'b.ccp4']
    for name in ('a', 'b'):  # of any scale
        assert_solved(tmp_path / 'solved', name)
    assert not list((tmp_path / 'solved').glob('bad*'))


def with_nan(path):
    values = patterson_of_triangle().copy()
    values[0, 0, 0] = np.nan
    write_map(path, values, 0.5)


def not_cubic(path):
    ccp4 = gemmi.Ccp4Map()
    ccp4.grid = gemmi.FloatGrid(patterson_of_triangle()[:, :, :12].copy(), gemmi.UnitCell(8, 8, 6, 90, 90, 90))
    ccp4.grid.spacegroup = gemmi.SpaceGroup('P 1')
    ccp4.update_ccp4_header(2, True)
    ccp4.write_ccp4_map(str(path))


def flat(path):
    write_map(path, np.ones((16, 16, 16)), 0.5)


def too_small_a_grid(path):
    squares = np.abs(np.fft.rfftn(np.random.default_rng(0).uniform(size=(6, 6, 6)))) ** 2
    write_map(path, np.fft.irfftn(squares, (6, 6, 6), (0, 1, 2)), 0.5)


BAD_MAPS = {
    'NaN': (with_nan, '1 of its values are NaN or infinite'),
    'not cubic': (not_cubic, '16 x 16 x 12 voxels', 'only cubic grids in cubic cells can be solved'),
    'flat': (flat, 'the same everywhere'),
    'too small': (too_small_a_grid, '6 voxels along each edge', 'an even number, 8 or more'),
}


@pytest.mark.parametrize(('write', 'fragments'), [(case[0], case[1:]) for case in BAD_MAPS.values()], ids=BAD_MAPS)
def test_a_map_that_cannot_be_solved_is_one_line(command, tmp_path, write, fragments):
    write(tmp_path / 'bad.ccp4')
    result = command(*LEAST_SQUARES, '--mode=solve', '--input=bad.ccp4', '--output=solved')
    assert result.lines() == [result.error()]
    assert result.error().startswith('bad.ccp4: ')
    for fragment in fragments:
        assert fragment in result.error()
    assert set(files_in(tmp_path)) == {Path('bad.ccp4')}


def test_a_map_too_large_for_the_memory_is_one_line_before_it_is_read(command, tmp_path, monkeypatch):
    write_map(tmp_path / 'large.ccp4', patterson_of_triangle(), 0.5)
    monkeypatch.setattr('patterson_jax.files.maps.MEMORY_OF_SOLVING', 10**12)
    monkeypatch.setattr('patterson_jax.experiment.read_map', lambda path: pytest.fail('it was read'))
    result = command(*LEAST_SQUARES, '--mode=solve', '--input=large.ccp4', '--output=solved')
    assert result.lines() == [result.error()]
    assert result.error().startswith('large.ccp4: ') and 'sample the map more coarsely' in result.error()
    assert set(files_in(tmp_path)) == {Path('large.ccp4')}


def test_a_map_of_another_grid_than_the_networks_is_solved_without_it_unless_it_is_asked_for(command, tmp_path):
    run = save_untrained(tmp_path / 'run', grid_size=20)
    write_map(tmp_path / 'other.ccp4', patterson_of_triangle(), 0.5)
    arguments = (*AUTO, *TINY_NETWORK, '--config.problem.grid_size=20', '--mode=solve', '--input=other.ccp4')
    result = command(*arguments, '--output=solved', f'--workdir={run}', '--config.solve.method=network')
    assert result.lines() == [result.error()]
    assert result.error() == 'other.ccp4: 16 voxels along each edge, and the network was trained on 20'
    assert not list((tmp_path / 'solved').iterdir())
    for place in (f'--workdir={run}', f'--checkpoint={run}', '--workdir=none'):
        assert command(*arguments, '--output=solved', place)[::2] == (0, '')
        assert_solved(tmp_path / 'solved', 'other')
        for path in (tmp_path / 'solved').iterdir():
            path.unlink()


def test_a_map_whose_origin_term_was_taken_out_is_solved(command, tmp_path):
    patterson = patterson_of_triangle()
    write_map(tmp_path / 'mean_zero.ccp4', patterson - np.mean(patterson), 0.5)
    result = command(*LEAST_SQUARES, '--mode=solve', '--input=mean_zero.ccp4', '--output=solved')
    assert (result.status, result.errors) == (0, '')
    report, _ = assert_solved(tmp_path / 'solved', 'mean_zero')
    assert report['patterson_correlation'] > 0.999


def test_the_number_of_atoms_is_found_where_it_is_not_known(command, tmp_path):
    write_map(tmp_path / 'map.ccp4', patterson_of_triangle(), 0.5)
    other = '--config.problem.num_atoms=5'
    arguments = (*LEAST_SQUARES, other, '--mode=solve', '--input=map.ccp4', '--output=solved')
    result = command(*arguments, '--config.solve.num_atoms_known=false')
    assert (result.status, result.errors) == (0, '')
    assert ', 3 atoms by least squares' in result.output
    assert_solved(tmp_path / 'solved', 'map')


def simulated(command, tmp_path, *flags):
    write_molecule(tmp_path / 'good.xyz')
    assert command(QUICK, '--mode=simulate', '--input=good.xyz', '--output=maps', *flags).status == 0
    return read_map(tmp_path / 'maps' / 'good_patterson.ccp4').values


def test_a_simulated_map_has_the_noise_and_the_symmetry_of_a_measured_one(command, tmp_path):
    clean, exact = simulated(command, tmp_path), patterson_of_triangle()
    np.testing.assert_allclose(clean, exact, atol=1e-5 * np.max(exact))
    noisy = simulated(command, tmp_path, '--config.problem.noise=0.1')
    np.testing.assert_allclose(noisy, np.roll(np.flip(noisy), 1, axis=(0, 1, 2)), atol=1e-5 * np.max(noisy))
    before, now = (np.fft.rfftn(each).real for each in (clean, noisy))
    assert now[0, 0, 0] == pytest.approx(before[0, 0, 0], rel=1e-5)
    strong = (before > 1e-2 * before[0, 0, 0]) & (np.arange(before.size).reshape(before.shape) > 0)
    relative = np.sqrt(now[strong] / before[strong]) - 1
    assert np.std(relative) == pytest.approx(0.1, rel=0.15) and abs(np.mean(relative)) < 0.02
    np.testing.assert_array_equal(simulated(command, tmp_path, '--config.problem.noise=0.1'), noisy)
    other = simulated(command, tmp_path, '--config.problem.noise=0.1', '--config.seed=1')
    assert np.max(np.abs(other - noisy)) > 1e-3 * np.max(noisy)


def test_a_simulated_map_ends_at_its_resolution(command, tmp_path):
    clean, cut = (np.fft.rfftn(simulated(command, tmp_path, *flags)).real for flags in ((), (CUT,)))
    inside = measured_frequencies(16, 4)
    allowed = 1e-6 * clean[0, 0, 0]
    np.testing.assert_allclose(cut, np.where(inside, clean, 0), atol=allowed)
    assert np.max(clean[~inside]) > 100 * allowed


def test_resolutions_are_flags_with_numbers(command, asked):
    flags = ('--config.problem.resolution=8', '--config.solve.resolution=6.5')
    assert command(QUICK, *flags).status == 0
    _, config, _, overrides = asked.pop()
    assert (config.problem.resolution, config.solve.resolution) == (8, 6.5)
    assert overrides == {'problem.resolution': 8, 'solve.resolution': 6.5}
    experiment = validate(config)
    assert (experiment.problem.measurement.resolution, experiment.solve.resolution) == (8.0, 6.5)


def test_weights_of_another_network_are_refused(command, workdir, tmp_path):
    arguments = (QUICK, '--mode=evaluate', f'--checkpoint={workdir}', '--workdir=new')
    result = command(*arguments, *TINY[1:])
    assert result.lines() == [result.error()]
    assert result.error() == f'{workdir}: these weights are for another config: model.features was 2 and is 12'
    assert files_in(tmp_path) == {}


def test_train_leaves_the_workdir_of_another_config_as_it_is(command, tmp_path):
    config = quick.get_config()
    config.seed = 7
    config.train.learning_rate = 0.5
    config.evaluate.num_cases = 1  # which a run may change
    run = tmp_path / 'run'
    run.mkdir()
    (run / 'config.json').write_text(json.dumps({'overrides': {}, 'config': config.to_dict()}))
    (run / 'metrics.jsonl').write_text('{"step": 1}\n')
    before = files_in(tmp_path)
    result = command(QUICK, '--workdir=run')
    assert result.lines() == [result.error()]
    assert result.error() == (
        'run has a run of another config: seed was 7 and is 0; train.learning_rate was 0.5 and is 0.001. '
        'Name another --workdir, or remove it'
    )
    assert files_in(tmp_path) == before


@pytest.mark.parametrize('content', ['', '{"config": {"se', '[]', '{"overrides": {}}', '{"config": 3}', '\udcff'])
def test_train_leaves_a_workdir_with_a_damaged_record_as_it_is(command, tmp_path, content):
    run = tmp_path / 'run'
    run.mkdir()
    (run / 'config.json').write_text(content, encoding='utf-8', errors='surrogateescape')
    before = files_in(tmp_path)
    result = command(QUICK, '--workdir=run')
    assert result.lines() == [result.error()]
    assert 'run/config.json' in result.error()
    assert files_in(tmp_path) == before
