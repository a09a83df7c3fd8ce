"""The whole experiment: a short run of the quick config, from random atoms to a real molecule found in a file.

Training and evaluation are done as users do them, in processes with the compiler's own settings.
"""

import json
import shutil
import subprocess
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest
from tiny import as_flags, colours_of, command, users_environment

from configs import quick
from patterson_jax.errors import InputError
from patterson_jax.experiment import run
from patterson_jax.files.maps import read_map
from patterson_jax.files.structures import read_xyz
from patterson_jax.learning.metrics import read_metrics

ROOT = Path(__file__).parent.parent
OZONE = ROOT / 'docs' / 'ozone.xyz'


pytestmark = pytest.mark.usefixtures('optax_promotes_types')


def short_config():
    config = quick.get_config()
    config.train.update(num_steps=320, log_every=80, validate_every=160)
    config.checkpoint.update(every_steps=160, keep=2)
    config.solve.update(method='network', max_attempts=1)
    config.evaluate.update(num_cases=50, batch_size=25, methods='')  # the others take long to compile
    return config


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('runs') / 'short'
    as_user('train', short_config(), workdir)
    return workdir


def as_user(mode, config, workdir, *flags, status=0):
    """Runs a mode in a process of its own."""
    line = [*command(config, workdir, mode), *flags]
    done = subprocess.run(line, env=users_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == status, done
    return done


def report_of(workdir):
    report = json.loads((workdir / 'evaluation.json').read_text())
    report['separated'].pop('seconds_per_case')
    return report


def test_a_short_training_finds_most_atoms_of_unseen_cases(workdir):
    report = report_of(workdir)
    assert (report['cases'], report['atoms']) == (50, 150)
    assert report['map']['correlation'] > 0.7
    assert report['separated']['recall'] > 0.95
    assert report['separated']['mean_error'] < 0.45
    assert report['random']['recall'] < 0.7


def test_training_leaves_what_it_promises(workdir):
    record = json.loads((workdir / 'config.json').read_text())
    machine = record.pop('machine')
    assert machine == {'device': 'cpu', 'devices': jax.device_count(), 'jax': jax.__version__}
    flags = [f'--config.{name}={value}' for name, value in record.pop('overrides').items()]
    assert sorted(flags) == sorted(as_flags(short_config())) and '--config.train.num_steps=320' in flags
    assert record == {'config': short_config().to_dict()}
    assert [row['step'] for row in read_metrics(workdir / 'metrics.jsonl')] == list(range(80, 321, 80))
    for name in ('losses', 'maps', 'separation', 'errors'):
        picture = matplotlib.image.imread(workdir / 'figures' / f'{name}.png')
        assert min(picture.shape[:2]) > 500
        assert colours_of(picture[..., :3]) > 20


def test_finished_run_started_again_only_evaluates_and_gives_the_same(workdir):
    metrics, report = (workdir / 'metrics.jsonl').read_text(), report_of(workdir)
    as_user('train', short_config(), workdir)
    assert (workdir / 'metrics.jsonl').read_text() == metrics
    assert report_of(workdir) == report


def test_evaluation_of_another_runs_checkpoint_gives_the_same(workdir, tmp_path):
    as_user('evaluate', short_config(), tmp_path, f'--checkpoint={workdir}')
    assert report_of(tmp_path) == report_of(workdir)


def test_ozone_is_solved_from_its_patterson_map_in_a_file(workdir, tmp_path):
    run('simulate', short_config(), workdir, inputs=(OZONE,), output=tmp_path)
    patterson = tmp_path / 'ozone_patterson.ccp4'
    assert read_map(patterson).voxel_size == 0.5
    run('solve', short_config(), workdir, inputs=(patterson,), output=tmp_path / 'solved')
    solved = tmp_path / 'solved' / 'ozone_patterson'
    found = read_xyz(solved.with_suffix('.xyz'))
    # What the network finds to a part of a voxel is refined; Å, a hundredth of a voxel.
    np.testing.assert_allclose(_distances(found), _distances(read_xyz(OZONE)), atol=0.005)
    report = json.loads(solved.with_suffix('.json').read_text())
    np.testing.assert_allclose(report['positions'], found, atol=1e-3)
    assert (report['verdict'], report['method']) == ('solved', 'network')
    assert report['r_factor'] < 0.01
    assert read_map(tmp_path / 'solved' / 'ozone_patterson_density.ccp4').values.shape == (16, 16, 16)
    assert (tmp_path / 'solved' / 'ozone_patterson.png').stat().st_size > 10_000


def test_one_bad_map_does_not_stop_the_others(workdir, tmp_path):
    run('simulate', short_config(), workdir, inputs=(OZONE,), output=tmp_path)
    bad = tmp_path / 'bad.ccp4'
    bad.write_bytes(b'not a map' * 200)
    inputs = (bad, tmp_path / 'ozone_patterson.ccp4')
    with pytest.raises(InputError, match=r'bad\.ccp4'):
        run('solve', short_config(), workdir, inputs=inputs, output=tmp_path / 'solved')
    assert (tmp_path / 'solved' / 'ozone_patterson.json').exists()


def test_weights_of_another_network_are_refused(workdir, tmp_path):
    config = short_config()
    config.model.features = 8
    with pytest.raises(InputError, match=r'model\.features was 12 and is 8'):
        run('evaluate', config, tmp_path, checkpoint=workdir)


@pytest.mark.parametrize(('field', 'value'), [('origin', 'corner'), ('atom_radius', 0.9)])
def test_weights_for_other_maps_are_refused(workdir, tmp_path, field, value):
    config = short_config()
    config.problem[field] = value
    with pytest.raises(InputError, match=rf'problem\.{field} was'):
        run('evaluate', config, tmp_path, checkpoint=workdir)


def test_weights_may_meet_other_cases_and_the_report_says_so(workdir, tmp_path, capsys):
    config = short_config()
    config.problem.update(num_atoms=2, target='original')
    config.evaluate.update(num_cases=4, batch_size=4)
    run('evaluate', config, tmp_path, checkpoint=workdir)
    output = capsys.readouterr().out
    assert 'problem.num_atoms was 3 and is 2' in output and "problem.target was 'both' and is 'original'" in output
    report = report_of(tmp_path)
    assert report['weights']['trained_on'] == short_config().problem.to_dict()
    assert report['settings']['problem'] == config.problem.to_dict() and report['atoms'] == 8


def test_checkpoint_of_another_config_is_refused_without_its_record_too(workdir, tmp_path):
    copy = tmp_path / 'copy'
    shutil.copytree(workdir, copy)
    (copy / 'config.json').unlink()
    config = short_config()
    config.seed = 1
    with pytest.raises(InputError, match=r'seed was 0 and is 1'):
        run('train', config, copy)


def test_a_damaged_checkpoint_is_named_and_the_one_before_evaluated_and_nothing_else_is_said(workdir, tmp_path):
    """In processes of their own, whose stderr is all that a person sees; Orbax might complain there later."""
    checkpoints = shutil.copytree(workdir, tmp_path / 'copy') / 'checkpoints'
    config, faults = short_config(), {}
    config.evaluate.num_cases = 25
    for step, status in ((320, 0), (160, 2)):
        arrays = checkpoints / f'{step}' / 'params' / 'ocdbt.process_0' / 'd'
        for file in arrays.iterdir():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        faults[step] = f'{checkpoints}/{step}: {min(arrays.iterdir()).relative_to(checkpoints / str(step))} is damaged'
        result = as_user('evaluate', config, tmp_path / 'copy', status=status)
        lines = [line for line in result.stderr.splitlines() if not line.startswith('evaluating: ')]
        if status == 0:
            assert lines == [f'note: {faults[step]}; this checkpoint is not used']
            assert report_of(tmp_path / 'copy')['weights']['step'] == 160
    both = f'{faults[160]}; {faults[320]}'
    assert lines == [f'error: every checkpoint is damaged: {both}. Copy it again, or name another run']
    assert sorted(path.name for path in checkpoints.iterdir()) == ['160', '320']


def test_file_that_the_system_refuses_does_not_stop_the_others(workdir, tmp_path):
    unreadable = Path('x' * 300 + '.xyz')
    with pytest.raises(InputError, match=r'File name too long(.|\n)*none\.xyz: no such file'):
        run('simulate', short_config(), workdir, inputs=(unreadable, Path('none.xyz'), OZONE), output=tmp_path)
    assert (tmp_path / 'ozone_patterson.ccp4').exists()


def test_only_results_of_its_own_are_overwritten(workdir, tmp_path):
    run('simulate', short_config(), workdir, inputs=(OZONE,), output=tmp_path)
    patterson, mine = tmp_path / 'ozone_patterson.ccp4', tmp_path / 'ozone_patterson.xyz'
    mine.write_text('mine')
    with pytest.raises(InputError, match=r'ozone_patterson\.xyz exists and is no earlier result'):
        run('solve', short_config(), workdir, inputs=(patterson,), output=tmp_path)
    assert mine.read_text() == 'mine'
    mine.unlink()
    for _ in range(2):
        run('solve', short_config(), workdir, inputs=(patterson,), output=tmp_path)


def test_run_of_another_config_is_refused_and_left_alone(workdir):
    config = short_config()
    config.problem.box_edge = 5.0
    before = (workdir / 'config.json').read_text()
    with pytest.raises(InputError, match=r'problem\.box_edge was 5\.5 and is 5\.0'):
        run('train', config, workdir)
    assert (workdir / 'config.json').read_text() == before


def _distances(positions):
    first, second = np.triu_indices(len(positions), 1)
    return np.sort(np.linalg.norm(positions[first] - positions[second], axis=1))
