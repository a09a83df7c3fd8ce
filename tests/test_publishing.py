"""Publishing: what is copied and counted over slices, that it can be used again, and what is refused."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from tiny import NETWORK, PROBLEM, SEED, SETTINGS, assert_same_trees, damage, saved_steps, tiny_config

from configs import base
from patterson_jax import publishing
from patterson_jax.config import validate
from patterson_jax.errors import InputError
from patterson_jax.experiment import run
from patterson_jax.inspection import training_operations
from patterson_jax.learning.metrics import LearningCurve, read_metrics
from patterson_jax.publishing import model_card
from patterson_jax.releases import describe, make_archive, read_release
from patterson_jax.weights import load_network, load_weights

pytestmark = pytest.mark.usefixtures('optax_promotes_types')


@pytest.fixture(scope='module')
def config():
    return tiny_config()


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, config):
    workdir = tmp_path_factory.mktemp('slices') / 'first'
    run('train', config, workdir)
    return workdir


@pytest.fixture(scope='module')
def published(workdir, config):
    """In `pretrained/` of what publishing takes for a clone."""
    root = workdir.parent
    (root / 'patterson_jax').mkdir()
    shutil.copy(Path(__file__).parents[1] / 'setup.cfg', root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing, 'ROOT', root)
        run('publish', config, workdir, output=root / 'pretrained' / 'published')
    return root / 'pretrained' / 'published'


def test_the_release_file_of_a_clone_is_described_anew(published):
    root = published.parents[1]
    release = read_release(root / 'patterson_jax')
    assert release == describe(make_archive(root)) and release.networks == ('published',)


def card_of(directory):
    return (directory / 'README.md').read_text(encoding='utf-8')


def test_the_best_weights_alone_are_published_and_can_be_used_as_a_run(workdir, published, config):
    assert saved_steps(published) == [load_weights(validate(config), config, workdir).step]
    ours, theirs = (load_weights(validate(config), config, each) for each in (published, workdir))
    assert_same_trees(ours.params, theirs.params)
    assert_same_trees(load_network(published, PROBLEM).params, theirs.params)
    run('evaluate', config, workdir.parent / 'again', checkpoint=published)
    places = workdir.parent / 'again', published
    again, before = (json.loads((place / 'evaluation.json').read_text()) for place in places)
    assert again['separated']['histogram'] == before['separated']['histogram']
    assert not [path for path in published.rglob('*') if path.name == 'optimizer']
    for name in ('losses', 'learning', 'maps', 'separation', 'errors'):
        assert (published / 'figures' / f'{name}.png').stat().st_size > 10_000


def test_the_card_has_what_was_measured(published, config):
    card, (step,) = card_of(published), saved_steps(published)
    evaluation = json.loads((published / 'evaluation.json').read_text())
    examples = step * SETTINGS.batch_size
    operations = training_operations(NETWORK, config.problem.grid_size) * examples
    assert f'| {examples} cases of the training stream,' in card
    assert f'{operations / 1e15:.3g} PFLOP in all' in card
    assert f'{evaluation["separated"]["matched"]} | {evaluation["separated"]["recall"]:.2%}' in card
    assert '| maps | from one orientation of the cell |' in card
    seal = published / 'checkpoints' / f'{step}' / 'checksums.json'
    assert hashlib.sha256(seal.read_bytes()).hexdigest() in card
    (row,) = json.loads((published / 'slices.json').read_text())
    logged = next(each for each in read_metrics(published / 'metrics.jsonl') if each['step'] == step)
    assert (row['begin'], row['end'], row['seed'], row['device']) == (0, examples, SEED, 'cpu')
    assert row['validation_loss'] == logged['validation_loss']
    assert f'| 0 to {examples} | 12³ | 8 | 0.001 | 0 | {SEED} |' in card


@pytest.fixture
def copy(published, tmp_path):
    """Of the published weights, to be replaced."""
    return Path(shutil.copytree(published, tmp_path / 'published'))


def test_nothing_tells_where_the_run_was(published, workdir):
    for path in published.rglob('*'):
        assert path.is_dir() or str(workdir).encode() not in path.read_bytes(), path


def train_slice(copy, workdir, **changes):
    settings = dataclasses.replace(SETTINGS, init_from=str(copy), num_steps=8, **changes)
    later = tiny_config(settings=settings)
    run('train', later, workdir)
    return later


def allow_any(copy):
    """Lets weights with any validation loss take the place of these."""
    slices = json.loads((copy / 'slices.json').read_text())
    slices[-1]['validation_loss'] = 1.0
    (copy / 'slices.json').write_text(json.dumps(slices))


def test_a_run_that_begins_with_published_weights_is_their_next_slice(copy, tmp_path):
    """Published twice, it counts once; one in other batches that begins with the same weights replaces it."""
    first, (step,) = read_metrics(copy / 'metrics.jsonl'), saved_steps(copy)
    begin = step * SETTINGS.batch_size
    sibling = Path(shutil.copytree(copy, tmp_path / 'sibling'))
    for name, batch_size in (('second', 8), ('second', 8), ('larger', 16)):
        allow_any(copy)
        later = train_slice(copy if name == 'second' else sibling, tmp_path / name, batch_size=batch_size)
        run('publish', later, tmp_path / name, output=copy)
        end = begin + batch_size * saved_steps(copy)[0]
        slices = json.loads((copy / 'slices.json').read_text())
        found = [(each['begin'], each['end'], each['batch_size']) for each in slices]
        assert found == [(0, begin, 8), (begin, end, batch_size)]
        rows = read_metrics(copy / 'metrics.jsonl')
        assert rows[: len(first)] == first
        assert [row['slice'] for row in rows] == len(first) * [1] + (len(rows) - len(first)) * [2]
        assert rows[-1]['examples'] == end
        assert f'| {end} cases' in card_of(copy) and f'| {begin} to {end} | 12³ | {batch_size} |' in card_of(copy)


def test_slices_on_whole_maps_and_on_their_middle_are_both_counted(published, config):
    """`crop` is how earlier slices told what the network saw."""
    experiment = validate(config)
    experiment = dataclasses.replace(experiment, model=NETWORK.clone(input_size=8))
    (own,), report = (json.loads((published / f'{name}.json').read_text()) for name in ('slices', 'evaluation'))
    assert own['seen'] == 12
    del own['seen']
    told = ({'crop': 8}, {'crop': 0}, {'seen': 8}, {})
    slices = [own | {'begin': 10 * i, 'end': 10 * (i + 1)} | each for i, each in enumerate(told)]
    card = model_card(experiment, slices, report, 8, 'seal')
    for i, edge in enumerate((8, 12, 8, 8)):
        assert f'| {10 * i} to {10 * (i + 1)} | {edge}³ | 8 |' in card
    operations = 30 * training_operations(NETWORK, 8) + 10 * training_operations(NETWORK, 12)
    assert f'{operations / 1e15:.3g} PFLOP in all' in card
    assert training_operations(experiment.model, 12) == training_operations(NETWORK, 8)


def test_a_card_tells_when_the_papers_accuracy_would_be_reached(published, config):
    """For the paper's problem alone; a curve that falls as 1 / cases needs twice the cases for half the loss."""
    experiment = validate(base.get_config())
    slices, report = (json.loads((published / f'{name}.json').read_text()) for name in ('slices', 'evaluation'))
    slices[-1]['validation_loss'] = 4e-5
    curve = LearningCurve(4e-5 * 50_000, 1.0)
    card = model_card(experiment, slices, report, 1, '', curve)
    assert 'fell as cases^-1.00.' in card and 'they would reach it after about 1e+05 cases.' in card
    card = model_card(experiment, slices, report, 1, '', curve._replace(exponent=-0.1))
    assert 'they would reach it not before 1e+09 cases.' in card
    slices[-1]['validation_loss'] = 1e-5
    assert 'It has reached 2e-05' in model_card(experiment, slices, report, 1, '', curve)
    assert 'mean error, 0.283' not in model_card(validate(config), slices, report, 1, '', curve)
    assert 'It is not known yet' in model_card(experiment, slices, report, 1, '')


def test_damaged_weights_are_refused(copy):
    largest = max((copy / 'checkpoints').rglob('*'), key=lambda path: path.stat().st_size if path.is_file() else 0)
    damage(largest)
    with pytest.raises(InputError, match='is damaged'):
        load_network(copy, PROBLEM)


def test_weights_of_another_grid_are_refused(published):
    with pytest.raises(InputError, match=r'weights are for another config: problem\.grid_size was 12 and is 16'):
        load_network(published, dataclasses.replace(PROBLEM, grid_size=16))


def test_better_or_other_weights_are_not_replaced(workdir, copy, config, tmp_path):
    before = json.loads((copy / 'slices.json').read_text())
    better = [before[0] | {'validation_loss': before[0]['validation_loss'] / 2}]
    (copy / 'slices.json').write_text(json.dumps(better))
    with pytest.raises(
        InputError, match=r'published has better weights: validation loss 0\.\d+, and these have 0\.\d+$'
    ):
        run('publish', config, workdir, output=copy)
    record = json.loads((copy / 'config.json').read_text())
    record['config']['model']['features'] = 99
    (copy / 'config.json').write_text(json.dumps(record))
    with pytest.raises(InputError, match=r'has weights of another config: model\.features was 99 and is 4'):
        run('publish', config, workdir, output=copy)
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'notes.txt').touch()
    with pytest.raises(InputError, match='has files that are not published weights'):
        run('publish', config, workdir, output=tmp_path / 'mine')
    assert json.loads((copy / 'slices.json').read_text()) == better and saved_steps(workdir)
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == '.'] == []


def test_what_cannot_be_published_is_named(workdir, config, tmp_path, monkeypatch):
    output = tmp_path / 'published'
    with pytest.raises(InputError, match=r'^--output is missing'):
        run('publish', config, workdir)
    with pytest.raises(InputError, match=r'^--output is .*; it must be another directory than the run'):
        run('publish', config, workdir, output=workdir)
    other = config.copy_and_resolve_references()
    other.evaluate.num_cases += 1
    with pytest.raises(InputError, match=r'evaluation\.json: it has no evaluation of step \d+ with this config'):
        run('publish', other, workdir, output=output)
    other.train.learning_rate *= 2
    with pytest.raises(InputError, match=r'train\.learning_rate was'):
        run('publish', other, workdir, output=output)
    monkeypatch.setattr(publishing, 'LARGEST_CHECKPOINT', 2**10)
    with pytest.raises(InputError, match=r'takes .* MiB; it must be at most 0\.000977 MiB to be published'):
        run('publish', config, workdir, output=output)
    unsealed = Path(shutil.copytree(workdir, tmp_path / 'killed'))
    for seal in unsealed.rglob('checksums.json'):
        seal.unlink()
    with pytest.raises(InputError, match=r'no checksums\.json, because the run was killed'):
        run('publish', config, unsealed, output=output)
    assert not output.exists()
