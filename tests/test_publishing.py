"""Publishing: what is copied and counted over slices, that it can be used again, and what is refused."""

import dataclasses
import hashlib
import json
import shutil

import pytest
from tiny import NETWORK, SETTINGS, assert_same_trees, saved_steps, tiny_config

from patterson_jax import publishing
from patterson_jax.config import validate
from patterson_jax.errors import InputError
from patterson_jax.experiment import run
from patterson_jax.inspection import layer_table
from patterson_jax.learning.metrics import read_metrics
from patterson_jax.runs import load_network, load_weights

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
    output = workdir.parent / 'published'
    run('publish', config, workdir, output=output)
    return output


def card_of(directory):
    return (directory / 'README.md').read_text(encoding='utf-8')


def test_the_best_weights_alone_are_published_and_can_be_used_as_a_run(workdir, published, config):
    assert saved_steps(published) == [load_weights(validate(config), config, workdir).step]
    ours, theirs = (load_weights(validate(config), config, each) for each in (published, workdir))
    assert_same_trees(ours.params, theirs.params)
    assert_same_trees(load_network(published).params, theirs.params)
    run('evaluate', config, published.parent / 'again', checkpoint=published)
    places = published.parent / 'again', published
    again, before = (json.loads((place / 'evaluation.json').read_text()) for place in places)
    assert again['separated']['histogram'] == before['separated']['histogram']
    for name in ('losses', 'maps', 'separation', 'errors'):
        assert (published / 'figures' / f'{name}.png').stat().st_size > 10_000


def test_the_card_has_what_was_measured(published, config):
    card, (step,) = card_of(published), saved_steps(published)
    evaluation = json.loads((published / 'evaluation.json').read_text())
    examples = step * SETTINGS.batch_size
    operations = 3 * sum(layer.operations for layer in layer_table(NETWORK, config.problem.grid_size))
    assert f'| {examples} cases of the training stream of seed {config.seed},' in card
    assert f'{operations * examples / 1e15:.3g} PFLOP in all' in card
    assert f'{evaluation["separated"]["matched"]} | {evaluation["separated"]["recall"]:.2%}' in card
    seal = published / 'checkpoints' / f'{step}' / 'checksums.json'
    assert hashlib.sha256(seal.read_bytes()).hexdigest() in card


def test_a_run_that_begins_with_published_weights_is_their_next_slice(published, config):
    """Twice the same slice is published: it counts once."""
    first, (step,) = read_metrics(published / 'metrics.jsonl'), saved_steps(published)
    later = tiny_config(settings=dataclasses.replace(SETTINGS, init_from=str(published), num_steps=8))
    workdir = published.parent / 'second'
    run('train', later, workdir)
    for _ in range(2):
        run('publish', later, workdir, output=published)
        rows = read_metrics(published / 'metrics.jsonl')
        assert rows[: len(first)] == first
        assert [row['slice'] for row in rows] == len(first) * [1] + (len(rows) - len(first)) * [2]
        examples = (step + saved_steps(published)[0]) * SETTINGS.batch_size
        assert rows[-1]['examples'] == examples
        assert f'| {examples} cases' in card_of(published) and '| 2 slices' in card_of(published)


def test_damaged_weights_are_refused(published, config, tmp_path):
    copy = tmp_path / 'copy'
    shutil.copytree(published, copy)
    largest = max((copy / 'checkpoints').rglob('*'), key=lambda path: path.stat().st_size if path.is_file() else 0)
    largest.write_bytes(largest.read_bytes()[:-1] + b'?')
    with pytest.raises(InputError, match='is damaged'):
        load_network(copy)


def test_what_cannot_be_published_is_named(workdir, config, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r'^--output is missing'):
        run('publish', config, workdir)
    other = config.copy_and_resolve_references()
    other.evaluate.num_cases += 1
    with pytest.raises(InputError, match=r'evaluation\.json: no evaluation of step \d+ with this config'):
        run('publish', other, workdir, output=tmp_path / 'published')
    other.train.learning_rate *= 2
    with pytest.raises(InputError, match=r'train\.learning_rate was'):
        run('publish', other, workdir, output=tmp_path / 'published')
    monkeypatch.setattr(publishing, 'LARGEST_CHECKPOINT', 1000)
    with pytest.raises(InputError, match='must be at most 16 MiB to be published'):
        run('publish', config, workdir, output=tmp_path / 'published')
    assert not (tmp_path / 'published').exists()
