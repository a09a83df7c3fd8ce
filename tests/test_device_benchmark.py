"""The command for a GPU, on CPU at its smallest: end to end, cut short, out of memory; what comes back is of use."""

import json
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny import SETTINGS, assert_same_run, saved_steps, tiny_config

from benchmarks.device import cells, collecting, options, packing, processes, speed_task, training_task
from benchmarks.speed.experiments import sections
from benchmarks.speed.networks import gradient_of_first_step
from configs import projection, unrolled
from patterson_jax.config import validate, validate_trained
from patterson_jax.errors import InputError
from patterson_jax.experiment import run as run_experiment
from patterson_jax.learning.checkpoints import Checkpoints
from patterson_jax.learning.training import make_optimizer, state_with
from patterson_jax.runs import read_record

pytestmark = pytest.mark.usefixtures('optax_promotes_types')
REPOSITORY = Path(__file__).parents[1]
SMALLEST = (
    '--tiny', '--minutes=10', '--batch=8', '--networks=unrolled', '--settings=spectral TF32', '--products=highest',
    '--methods=separation', '--at-once=4', '--set=train.num_steps=12', '--set=checkpoint.every_steps=4',
)  # fmt: skip


def command(*flags):
    line = [sys.executable, '-m', 'benchmarks.device', *map(str, flags)]
    return subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True)


@pytest.fixture(scope='module')
def output(tmp_path_factory):
    output = tmp_path_factory.mktemp('device') / 'output'
    done = command(*SMALLEST, '--allow-cpu', f'--output={output}')
    assert done.returncode == 0, done.stderr[-3000:]
    assert '### probe' in done.stdout
    return output


@pytest.fixture(scope='module')
def report(output):
    return json.loads((output / 'device.json').read_text())


def test_all_tasks_come_to_their_end(report):
    assert report['notes'] == [] and report['tiny'] and report['machine']['backend'] == 'cpu'
    assert len(report['probe']) >= 7 and all(check['right'] for check in report['probe'])
    (truth,) = report['truth']
    assert truth['highest_r_factor'] < 1e-4
    assert truth['verdicts']['solved, wrong'] == 0 and sum(truth['verdicts'].values()) == truth['cases'] == 4
    (row,) = report['speed']
    assert (row['network'], row['batch'], row['right']) == ('unrolled', 8, True)
    assert row['gradient_error'] < speed_task.RIGHT['float32']  # nothing is rounded on CPU
    assert row['step_examples_per_second'] > 0 and row['forward_examples_per_second'] > 0
    (solved,) = report['solving']
    assert solved['same'] and solved['cases_per_second'] > 0 and 0 <= solved['right'] <= 4


def test_the_training_is_by_the_fastest_setting_and_little_comes_back(report, output):
    training = report['training']
    assert (training['steps'], training['examples'], training['measured']) == (12, 96, True)
    assert training['changes']['model.precision'] == 'tf32' and training['changes']['train.batch_size'] == 8
    assert [step for step, *_ in training['validation']] == [4, 8, 12]
    files = sorted(path.name for path in output.rglob('*'))
    assert files == sorted(['device.json', *training['files']]) and 'latest.tar' in files
    assert all(path.stat().st_size < 16 * 2**20 for path in output.iterdir())


def test_a_training_goes_on_from_what_came_back(output, tmp_path):
    assert packing.unpack(output / 'latest.tar', tmp_path / 'run') == 12
    config = ConfigDict(read_record(tmp_path / 'run')['config'])
    config.train.update(init_from=str(tmp_path / 'run'), num_steps=4, max_minutes=0.0)
    config.evaluate.num_cases = 0
    run_experiment('train', config, tmp_path / 'next')
    with Checkpoints(tmp_path / 'next' / 'checkpoints', read_only=True) as checkpoints:
        assert checkpoints.restore(4, counters=None)['counters']['examples'] == 96 + 32


def test_better_weights_alone_are_published_and_the_page_has_the_tables(output, tmp_path, capsys):
    page, target = tmp_path / 'speed.md', tmp_path / 'published'
    shutil.copyfile(collecting.PAGE, page)
    for again in (False, True):
        collecting.collect(output, target, tmp_path, page)
        assert ('not published: validation loss' in capsys.readouterr().out) == again
        text = page.read_text()
        assert text.count('### truth') == text.count('## cpu') == 1
        assert text.partition(collecting.BEGIN)[0] == collecting.PAGE.read_text().partition(collecting.BEGIN)[0]
    losses = [loss for _, loss, _ in json.loads((tmp_path / 'device-cpu.json').read_text())['training']['validation']]
    assert json.loads((target / 'slices.json').read_text())[-1]['validation_loss'] == min(losses)
    assert 'UnrolledNet' in (target / 'README.md').read_text()


def test_without_a_gpu_one_line_is_said_and_nothing_made(tmp_path):
    done = command(*SMALLEST, f'--output={tmp_path / "output"}')
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr == 'error: no GPU: JAX sees only the CPU; --allow-cpu runs on it nevertheless\n'
    assert not (tmp_path / 'output').exists()


@pytest.fixture(scope='module')
def config():
    config = tiny_config()
    config.checkpoint.keep = 3
    config.evaluate.num_cases = 0
    return config


@pytest.fixture(scope='module')
def trained(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('trained') / 'run'
    run_experiment('train', config, workdir)
    return workdir


def test_a_packed_checkpoint_goes_on_bit_for_bit(config, trained, tmp_path):
    shutil.copytree(trained, tmp_path / 'whole')
    assert saved_steps(tmp_path / 'whole') == [8, 16, 20]
    packing.pack(tmp_path / 'whole', 16, tmp_path / 'checkpoint.tar')
    assert packing.packed_step(tmp_path / 'checkpoint.tar') == 16
    assert packing.unpack(tmp_path / 'checkpoint.tar', tmp_path / 'copy') == 16
    run_experiment('train', config, tmp_path / 'copy')
    for each in ('whole', 'copy'):  # the copy lacks the checkpoint of step 8
        shutil.rmtree(tmp_path / each / 'checkpoints' / '8', ignore_errors=True)
    assert_same_run(tmp_path / 'copy', tmp_path / 'whole')


def test_the_latest_checkpoint_is_packed_and_the_best_where_it_is_another(trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    for best, files in ((8, {'latest.tar': 20, 'best.tar': 8}), (20, {'latest.tar': 20})):
        for row in rows:
            row |= {'validation_loss': 0.1 if row['step'] == best else 1.0} if 'validation_loss' in row else {}
        (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
        packing.pack_checkpoints(tmp_path, tmp_path)
        assert {path.name: packing.packed_step(path) for path in tmp_path.glob('*.tar')} == files


def python(program):
    return [sys.executable, '-c', program]


def test_a_process_is_cut_at_its_limit_and_what_it_told_is_kept():
    told = []
    began = time.monotonic()
    program = 'import time\nprint(\'{"first": 1}\', flush=True)\ntime.sleep(60)'
    outcome = processes.run_process(python(program), 1.0, told=told.append)
    assert outcome.results == told == [{'first': 1}]
    assert outcome.fault == 'cut after 1 s' and not outcome.out_of_memory
    assert time.monotonic() - began < 10


def test_a_process_may_save_before_it_is_ended():
    program = (
        'import signal, sys, time\n'
        'signal.signal(signal.SIGTERM, lambda *_: (print(\'{"saved": 1}\', flush=True), sys.exit(75)))\n'
        'time.sleep(60)'
    )
    outcome = processes.run_process(python(program), 4.0, grace=2.0)
    assert outcome.results == [{'saved': 1}]


def test_the_last_line_of_what_went_wrong_is_the_fault():
    outcome = processes.run_process(python('print("{", flush=True)\nraise KeyError("here")'), 30.0)
    assert outcome == ([], "exit status 1: KeyError: 'here'", False)


def test_what_does_not_fit_in_memory_is_tried_with_half_as_many():
    """JAX's own refusal, in a process that asks for more and more terabytes."""
    program = 'import jax.numpy as jnp\nprint(len(jnp.zeros(({}, 2**36), jnp.uint8)))'
    said, tried = [], []

    def run(number):
        tried.append(number)
        return processes.run_process(python(program.format(2**12 * (number > 2) or 0)), 60.0)

    number, outcome = processes.with_less_and_less(run, 8, said.append)
    assert (number, tried, outcome.fault, outcome.results) == (2, [8, 4, 2], '', [0])
    assert said == ['8 do not fit in memory; 4 are tried', '4 do not fit in memory; 2 are tried']
    said.clear()
    processes.with_less_and_less(lambda number: processes.Outcome([], 'out of memory', True), 1, said.append)
    assert said == ['not even one fits in memory']


ROW = {'setting': 'direct bfloat16', 'batch': 32, 'step_seconds_per_example': 0.001}


def test_a_training_is_planned_for_its_seconds():
    config = unrolled.get_config('slice')
    changes = training_task.changes_for(config, ROW, 260.0, 'gpu')
    assert (changes['model.convolution'], changes['model.precision']) == ('direct', 'bfloat16')
    assert changes['train.num_steps'] == round(0.85 * 200 / 0.032)
    assert changes['checkpoint.every_steps'] == changes['train.validate_every'] == round(60 / 0.032)
    assert changes['train.init_from'] == 'unrolled'
    config.update_from_flattened_dict(changes)
    validate(config)
    spectral = ROW | {'setting': 'spectral TF32'}
    assert training_task.changes_for(config, spectral, 260.0, 'gpu')['model.convolution'] == 'auto'
    assert training_task.changes_for(config, ROW, 260.0, 'tpu')['model.convolution'] == 'auto'
    assert training_task.changes_for(config, None, 260.0, 'gpu') == {'train.init_from': 'unrolled'}


def test_a_training_of_the_projection_is_planned_by_its_own_recipe_and_from_published_weights():
    chosen = options.options_of(options.parse_arguments(['--output=DIR', '--train=projection:gpu']))
    config = options.configs_of(chosen)['projection']
    assert (chosen.networks, chosen.batch) == (('projection',), config.train.batch_size)
    row = ROW | {'setting': 'periodic direct', 'batch': 128}
    changes = training_task.changes_for(config, row, 260.0, 'gpu')
    assert changes['model.convolution'] == 'auto' and 'model.precision' not in changes
    assert changes['train.num_steps'] == round(0.85 * 200 / 0.128)
    recipe = config.train.to_dict()
    config.update_from_flattened_dict(changes)
    validate_trained(config)
    kept = ('init_from', 'learning_rate', 'schedule', 'steps_per_call', 'num_validation', 'most_passes')
    assert {name: config.train[name] for name in kept} == {name: recipe[name] for name in kept}
    assert training_task.begin_weights(projection.get_config()) == 'pretrained/projection'
    products = row | {'setting': 'periodic products'}
    assert training_task.changes_for(config, products, 260.0, 'gpu')['model.convolution'] == 'products'
    assert training_task.changes_for(config, products, 260.0, 'cpu')['model.convolution'] == 'auto'


@pytest.mark.parametrize('network', ['paper', 'projection'])
def test_a_network_is_timed_by_settings_of_its_own(network):
    """The gradient that the host computes is of the same kind as that of the device."""
    config = options.load_config(options.CONFIGS[network])
    kind = speed_task.gradient_of(config, 8, Path('gradient.npy'))['measures']
    assert kind == ('projection gradient' if network == 'projection' else 'gradient')
    assert set(speed_task.settings_of(network)) <= set(options.ORDER)


def test_only_a_setting_with_the_right_gradient_is_trained_by():
    rows = [
        {'network': 'unrolled', 'setting': name, 'right': right, 'step_seconds_per_example': seconds}
        for name, right, seconds in (('a', True, 3.0), ('b', False, 1.0), ('c', True, 2.0), ('d', None, 0.5))
    ]
    assert speed_task.fastest_right(rows, 'unrolled')['setting'] == 'c'
    assert speed_task.fastest_right(rows, 'paper') is None


def test_weights_begin_where_such_a_network_is_published():
    config = unrolled.get_config()
    assert training_task.begin_weights(config) == 'pretrained/unrolled'
    config.model.features = 8
    assert training_task.begin_weights(config) == ''


def test_a_config_is_measured_with_the_sizes_that_it_has():
    config = tiny_config().to_dict()
    problem, network, settings = sections({'config': config, 'batch': 2})
    assert (problem.grid_size, network.features, settings.batch_size) == (12, 4, 2)
    _, network, _ = sections({'config': config, 'batch': 2, 'convolution': 'direct', 'precision': 'tf32'})
    assert (network.convolution, network.precision) == ('direct', 'tf32')


def test_the_first_moment_is_the_gradient():
    gradients = {'params': {'a': jnp.arange(3.0), 'b': jnp.ones((2, 2))}}
    state = state_with(gradients, SETTINGS)
    _, optimizer = make_optimizer(SETTINGS).update(gradients, state.optimizer)
    found = gradient_of_first_step(state.replace(optimizer=optimizer))
    np.testing.assert_allclose(found, 0.1 * np.array([0, 1, 2, 1, 1, 1, 1]), rtol=1e-6)


def test_gradients_that_are_no_numbers_are_never_right():
    assert cells.relative_error([1.0, np.nan], [1.0, 1.0]) == np.inf
    assert cells.finite(np.inf) is None and cells.finite(2.0) == 2.0


def test_a_tar_file_has_no_path_of_this_machine(output):
    with tarfile.open(output / 'latest.tar') as tar:
        assert all(not name.startswith(('/', '..')) for name in tar.getnames())


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ((), '--output is missing; it names the directory for the results'),
        (('--minutes=0',), '--minutes is 0.0; it must be a number of minutes, more than 0'),
        (
            ('--train=configs/none.py',),
            "--train is 'configs/none.py': there is no such file, nor a config of that name",
        ),
        (('--train=configs/crystal.py',), "--train is 'configs/crystal.py', a config without a network to train"),
        (('--set=train.steps=1',), 'train has no field steps; did you mean num_steps'),
        (('--set=seed',), "--set is 'seed'; it must be a field and its value"),
        (('--train=projection:cpu',), "--train is 'projection:cpu': 'cpu' is not a variant of configs/projection.py"),
        (('--set=train.init_from=runs/none',), 'train.init_from: runs/none: no such directory'),
    ],
)
def test_mistakes_are_named(flags, message, tmp_path):
    flags = [f'--output={tmp_path / "output"}', *flags] if flags else []
    with pytest.raises(InputError, match=f'^{message.replace(".", "[.]")}'):
        options.configs_of(options.options_of(options.parse_arguments(flags)))


def test_what_is_no_report_is_not_collected(tmp_path):
    (tmp_path / 'device.json').write_text('{"machine": 1}')
    with pytest.raises(InputError, match=r'device\.json: not a report of this program'):
        collecting.collect(tmp_path, None, tmp_path, collecting.PAGE)
