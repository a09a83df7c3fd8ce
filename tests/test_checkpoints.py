"""Checkpoints: which are kept, what is the best one, and that a damaged one is named and passed over."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from patterson_jax.errors import InputError
from patterson_jax.learning.checkpoints import Checkpoints, find_checkpoints, has_checkpoint

LOSSES = {1: 0.5, 2: 0.1, 3: 0.4}


def params(value):
    return {'params': {'weight': jnp.full((2, 3), value)}}


def save(checkpoints, step, *loss, value=None):
    value = float(step) if value is None else value
    checkpoints.save(step, params(value), params(-value), {'seed': 7}, {'step': step, 'pending': []}, *loss)


def weight(checkpoints, step):
    """The single number that all weights of a checkpoint are; its other items are compared with it."""
    items = checkpoints.restore(step, params=params(0.0), optimizer=params(0.0), config=None, counters=None)
    assert items['config'] == {'seed': 7} and items['counters'] == {'step': step, 'pending': []}
    weights = np.asarray(items['params']['params']['weight'])
    np.testing.assert_array_equal(items['optimizer']['params']['weight'], -weights)
    assert weights.shape == (2, 3) and len(set(weights.ravel())) == 1
    return weights[0, 0]


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    directory = tmp_path_factory.mktemp('original') / 'checkpoints'
    with Checkpoints(directory, keep=3) as checkpoints:
        for step, loss in LOSSES.items():
            save(checkpoints, step, loss)
    return directory


@pytest.fixture
def directory(original, tmp_path):
    """A copy of three checkpoints, the best being the second, in which a test may break something."""
    return shutil.copytree(original, tmp_path / 'checkpoints')


def entries(directory):
    return sorted(path.name for path in directory.iterdir())


def contents(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob('*') if path.is_file()}


def files_of(step_directory):
    """All files of a checkpoint but its checksums, in words."""
    paths = sorted(path for path in step_directory.rglob('*') if path.is_file())
    return [str(path.relative_to(step_directory)) for path in paths if path.name != 'checksums.json']


def test_best_checkpoint_is_kept_beside_the_latest(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step, loss in (LOSSES | {4: 0.3}).items():
            save(checkpoints, step, loss)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert (checkpoints.best_step, checkpoints.latest_step) == (2, 4)
        assert (weight(checkpoints, 2), weight(checkpoints, 4)) == (2, 4)
    assert entries(tmp_path) == ['2', '4']


def test_of_equal_losses_the_latest_is_the_best(tmp_path):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in (1, 2, 3):
            save(checkpoints, step, 0.5 if step < 3 else 0.6)
        assert checkpoints.best_step == 2


def test_an_empty_directory_has_no_steps(tmp_path):
    with Checkpoints(tmp_path / 'new') as checkpoints:
        assert checkpoints.latest_step is None and checkpoints.best_step is None
    assert not has_checkpoint(tmp_path / 'new') and not has_checkpoint(tmp_path / 'none')


def test_a_checkpoint_without_loss_is_the_best_only_while_it_is_alone_and_makes_way_for_the_next(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save(checkpoints, 1)
        assert (checkpoints.best_step, checkpoints.latest_step) == (1, 1)
        save(checkpoints, 2, 0.5)
    assert entries(tmp_path) == ['2']
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save(checkpoints, 3)
    assert entries(tmp_path) == ['2', '3']
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert (checkpoints.best_step, checkpoints.latest_step) == (2, 3)
        assert weight(checkpoints, 3) == 3
        save(checkpoints, 4, 0.7)
    assert entries(tmp_path) == ['2', '4']
    with Checkpoints(tmp_path, keep=1, read_only=True) as checkpoints:
        assert (checkpoints.best_step, checkpoints.latest_step) == (2, 4)


def test_every_file_of_every_checkpoint_has_its_checksum(original):
    for step in LOSSES:
        place = original / str(step)
        names = files_of(place)
        assert len(names) > 10
        assert json.loads((place / 'checksums.json').read_text()) == {
            name: hashlib.sha256((place / name).read_bytes()).hexdigest() for name in names
        }


def test_a_checkpoint_has_its_checksums_when_the_next_is_begun(tmp_path):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        save(checkpoints, 1, 0.5)
        save(checkpoints, 2, 0.5)
        assert (tmp_path / '1' / 'checksums.json').exists()


def test_a_run_that_fails_seals_what_it_saved(tmp_path):
    with pytest.raises(KeyboardInterrupt), Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, 0.5)
        raise KeyboardInterrupt
    assert (tmp_path / '1' / 'checksums.json').exists()


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x20
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b'')


def assert_passed_over(directory, capsys, line, best=2):
    """The third checkpoint is not used, whoever asks, nor moved by one who only reads; a writer can save it again."""
    note = f'note: {directory / "3"}: {line}; this checkpoint is not used\n'
    before = contents(directory)
    with Checkpoints(directory, read_only=True) as checkpoints:
        assert (checkpoints.latest_step, checkpoints.best_step) == (2, best)
        assert weight(checkpoints, 2) == 2
    assert contents(directory) == before
    assert capsys.readouterr() == ('', note)
    with Checkpoints(directory, keep=3) as checkpoints:
        assert (checkpoints.latest_step, checkpoints.best_step) == (2, best)
        assert entries(directory) == ['1', '2', '3.damaged']
        save(checkpoints, 3, 0.05, value=9.0)
    assert capsys.readouterr() == ('', note)
    assert entries(directory) == ['1', '2', '3', '3.damaged']
    aside = {path: content for path, content in before.items() if path.parts[0] == '3'}
    assert contents(directory / '3.damaged') == {path.relative_to('3'): content for path, content in aside.items()}
    with Checkpoints(directory, keep=3) as checkpoints:
        assert (checkpoints.latest_step, checkpoints.best_step) == (3, 3)
        assert weight(checkpoints, 3) == 9
        save(checkpoints, 4, 0.5)
    assert entries(directory) == ['2', '3', '3.damaged', '4']
    assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize('damage', [flip, cut, empty])
def test_a_checkpoint_with_any_file_damaged_is_named_and_passed_over(original, directory, capsys, damage):
    names = files_of(original / '3')
    assert {name.partition('/')[0] for name in names} >= {'params', 'optimizer', 'config', 'counters', 'metrics'}
    for name in names:
        whole = (directory / '3' / name).read_bytes()
        damage(directory / '3' / name)
        if whole:
            with Checkpoints(directory, read_only=True) as checkpoints:
                assert (checkpoints.latest_step, checkpoints.best_step) == (2, 2)
            errors = capsys.readouterr().err
            assert errors == f'note: {directory / "3"}: {name} is damaged; this checkpoint is not used\n'
        (directory / '3' / name).write_bytes(whole)
    with Checkpoints(directory, read_only=True) as checkpoints:
        assert checkpoints.latest_step == 3
    damage(directory / '3' / 'metrics' / 'metrics')
    assert_passed_over(directory, capsys, 'metrics/metrics is damaged')


def test_a_checkpoint_that_lacks_a_file_is_named_and_passed_over(directory, capsys):
    (directory / '3' / 'params' / 'manifest.ocdbt').unlink()
    assert_passed_over(directory, capsys, 'params/manifest.ocdbt is missing')


@pytest.mark.parametrize('content', [b'', b'{"config/metadata": "3f', b'[1, 2]', b'7', b'{"\xff": "00"}'])
def test_a_checkpoint_whose_checksums_cannot_be_read_is_named_and_passed_over(directory, capsys, content):
    (directory / '3' / 'checksums.json').write_bytes(content)
    assert_passed_over(directory, capsys, 'checksums.json is damaged')


def test_a_byte_wrong_in_the_checksums_is_found_too(directory, capsys):
    flip(directory / '3' / 'checksums.json')
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest_step == 2
    assert f'note: {directory / "3"}: ' in capsys.readouterr().err


def test_the_best_checkpoint_that_is_whole_is_the_best(directory, capsys):
    flip(directory / '2' / 'params' / 'manifest.ocdbt')
    for read_only in (True, False):
        with Checkpoints(directory, keep=3, read_only=read_only) as checkpoints:
            assert (checkpoints.latest_step, checkpoints.best_step) == (3, 3)
            assert weight(checkpoints, 3) == 3
    assert entries(directory) == ['1', '2.damaged', '3']


def test_what_was_put_aside_earlier_makes_way(directory):
    for number in (1, 2):
        flip(directory / '3' / 'params' / 'manifest.ocdbt')
        (directory / '3' / 'mark').write_text(f'{number}')
        with Checkpoints(directory, keep=3) as checkpoints:
            save(checkpoints, 3, 0.4)
    assert entries(directory) == ['1', '2', '3', '3.damaged']
    assert (directory / '3.damaged' / 'mark').read_text() == '2'


@pytest.mark.parametrize(
    ('read_only', 'cure'),
    [(True, 'Copy it again, or name another run'), (False, 'Copy it again, or remove {} to start afresh')],
)
def test_if_all_are_damaged_that_is_a_mistake_and_nothing_is_moved(directory, read_only, cure):
    flip(directory / '1' / 'config' / 'metadata')
    (directory / '2' / 'params' / '_METADATA').unlink()
    empty(directory / '3' / 'checksums.json')
    before = contents(directory)
    with pytest.raises(InputError) as refusal:
        Checkpoints(directory, read_only=read_only)
    assert str(refusal.value) == (
        f'every checkpoint is damaged: {directory / "1"}: config/metadata is damaged; '
        f'{directory / "2"}: params/_METADATA is missing; {directory / "3"}: checksums.json is damaged. '
        f'{cure.format(directory)}'
    )
    assert contents(directory) == before
    flip(directory / '2' / 'params' / 'manifest.ocdbt')
    (directory / '2' / 'params' / '_METADATA').write_bytes(before[Path('1/params/_METADATA')])
    with pytest.raises(InputError, match=rf'manifest.ocdbt is damaged.*\. Remove {directory} to start afresh$'):
        Checkpoints(directory)


def test_a_checkpoint_that_was_killed_before_it_got_its_checksums_is_good(directory, capsys):
    (directory / '3' / 'checksums.json').unlink()
    for read_only in (True, False):
        with Checkpoints(directory, keep=3, read_only=read_only) as checkpoints:
            assert (checkpoints.latest_step, checkpoints.best_step) == (3, 2)
            assert weight(checkpoints, 3) == 3
    assert capsys.readouterr() == ('', '')


def test_a_checkpoint_that_is_nothing_but_a_directory_is_passed_over(directory, capsys):
    shutil.rmtree(directory / '3')
    (directory / '3').mkdir()
    assert_passed_over(directory, capsys, 'params, optimizer, config, counters, metrics is missing')


@pytest.mark.parametrize('item', ['params', 'optimizer', 'config', 'counters', 'metrics'])
def test_a_checkpoint_without_checksums_that_lacks_an_item_is_passed_over(directory, capsys, item):
    (directory / '3' / 'checksums.json').unlink()
    shutil.rmtree(directory / '3' / item)
    assert_passed_over(directory, capsys, f'{item} is missing')


def test_what_is_deleted_is_out_of_the_way_at_once_and_gone_in_the_end(directory):
    """What a killed run left of it is no checkpoint, and removed by the next one."""
    shutil.copytree(directory / '1', directory / 'deleted' / '1')
    with Checkpoints(directory, read_only=True) as checkpoints:
        assert checkpoints.steps == [1, 2, 3]
    assert 'deleted' in entries(directory)
    with Checkpoints(directory, keep=1) as checkpoints:
        save(checkpoints, 4, 0.3)
        checkpoints.manager.wait_until_finished()
        assert '1' not in entries(directory) and '3' not in entries(directory)
    assert entries(directory) == ['2', '4']


def test_half_written_checkpoints_are_no_checkpoints(directory):
    """As Orbax calls them while it writes; a reader leaves them, a writer removes what a killed run left."""
    shutil.copytree(directory / '3', directory / '4.orbax-checkpoint-tmp')
    with Checkpoints(directory, read_only=True) as checkpoints:
        assert checkpoints.latest_step == 3
    assert '4.orbax-checkpoint-tmp' in entries(directory)
    with Checkpoints(directory, keep=3) as checkpoints:
        assert checkpoints.latest_step == 3
        save(checkpoints, 4, 0.3)
    assert entries(directory) == ['2', '3', '4']


def refusal(directory, **templates):
    """In what words the third checkpoint is refused; it is left as it is."""
    before = contents(directory)
    with Checkpoints(directory, read_only=True) as checkpoints, pytest.raises(InputError) as caught:
        checkpoints.restore(3, **(templates or {'params': params(0.0)}))
    assert contents(directory) == before
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f'{directory / "3"}: ')
    return message.removeprefix(f'{directory / "3"}: ')


@pytest.mark.parametrize('sealed', [True, False])
def test_a_checkpoint_of_another_network_is_refused_with_what_differs(directory, sealed):
    if not sealed:
        (directory / '3' / 'checksums.json').unlink()
    for shapes, difference in (
        ({'other': jnp.zeros(5)}, 'params/other is not there, here of shape (5,)'),
        ({'weight': jnp.zeros((3, 2))}, 'params/weight is of shape (2, 3), here of shape (3, 2)'),
        ({'weight': jnp.zeros((2, 3)), 'zeta': jnp.zeros(1)}, 'params/zeta is not there, here of shape (1,)'),
    ):
        assert refusal(directory, params={'params': shapes}) == f'its params are of another network: {difference}'


def reseal(place):
    checksums = {name: hashlib.sha256((place / name).read_bytes()).hexdigest() for name in files_of(place)}
    (place / 'checksums.json').write_text(json.dumps(checksums))


def test_a_checkpoint_of_another_orbax_is_not_called_damaged(directory):
    """Its description of the arrays is another one."""
    (directory / '3' / 'params' / '_METADATA').write_text('{"version": 2, "arrays": []}')
    reseal(directory / '3')
    words = refusal(directory)
    assert words.startswith(f'the checkpoint is whole, but Orbax {ocp.__version__} cannot read it (')
    assert words.endswith('; was it written by another version?')
    assert 'remove' not in words


def test_weights_that_were_passed_on_without_their_optimizer_can_be_used_but_not_gone_on_from(directory, capsys):
    shutil.rmtree(directory / '3' / 'optimizer')
    with Checkpoints(directory, read_only=True) as checkpoints:
        assert checkpoints.latest_step == 3
        items = checkpoints.restore(3, params=params(0.0), config=None, counters=None)
    np.testing.assert_array_equal(items['params']['params']['weight'], np.full((2, 3), 3.0))
    assert refusal(directory, params=params(0.0), optimizer=params(0.0)) == 'the checkpoint has no optimizer'
    assert capsys.readouterr().err == ''
    flip(directory / '3' / 'params' / 'manifest.ocdbt')
    with Checkpoints(directory, read_only=True) as checkpoints:
        assert checkpoints.latest_step == 2
    with Checkpoints(directory, keep=3) as checkpoints:
        assert checkpoints.latest_step == 2
    assert entries(directory) == ['1', '2', '3.damaged']


def test_a_checkpoint_without_checksums_that_was_cut_off_may_be_removed(directory):
    (directory / '3' / 'checksums.json').unlink()
    cut(directory / '3' / 'params' / 'manifest.ocdbt')
    words = refusal(directory)
    assert words.startswith('the checkpoint has no checksums, and Orbax ')
    assert words.endswith(f'; if it was cut off, remove {directory / "3"} to use the checkpoint before it')


def test_what_is_damaged_while_it_is_in_use_is_to_be_removed(directory):
    with Checkpoints(directory, read_only=True) as checkpoints:
        flip(directory / '3' / 'params' / 'manifest.ocdbt')
        with pytest.raises(InputError) as caught:
            checkpoints.restore(3, params=params(0.0))
    assert str(caught.value) == (
        f'{directory / "3"}: params/manifest.ocdbt is damaged; remove {directory / "3"} to use the checkpoint before it'
    )


@contextlib.contextmanager
def without_privileges():
    """The superuser may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize('sealed', [True, False])
@pytest.mark.parametrize('name', ['params/manifest.ocdbt', 'params', 'config/metadata'])
def test_a_checkpoint_that_may_not_be_read_is_left_alone_and_the_file_is_named(original, name, sealed):
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        directory = shutil.copytree(original, Path(place) / 'checkpoints')
        if not sealed:
            (directory / '3' / 'checksums.json').unlink()
        closed = directory / '3' / name
        mode = closed.stat().st_mode
        closed.chmod(0)
        with (
            without_privileges(),
            pytest.raises(PermissionError) as caught,
            Checkpoints(directory, read_only=True) as checkpoints,
        ):
            checkpoints.restore(3, params=params(0.0), config=None)
        closed.chmod(mode)
        assert str(directory / '3' / name) in caught.value.filename
        assert caught.value.strerror == 'Permission denied'


@pytest.mark.parametrize('content', [b'', b'{"validation_loss": 0.', b'7'])
def test_a_checkpoint_without_checksums_whose_loss_cannot_be_read_is_passed_over(directory, capsys, content):
    (directory / '3' / 'checksums.json').unlink()
    (directory / '3' / 'metrics' / 'metrics').write_bytes(content)
    assert_passed_over(directory, capsys, 'metrics/metrics is damaged')


@pytest.mark.parametrize('value', [math.nan, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    bad = params(1.0)
    bad['params']['weight'] = bad['params']['weight'].at[1, 2].set(value)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, bad, params(0.0), {}, {}, 0.1)
    words = refusal(tmp_path)
    assert words == '1 of the 6 numbers of params/weight are NaN or infinite'


def test_checkpoints_are_found_in_a_run_or_given_themselves(directory):
    assert find_checkpoints(directory.parent) == find_checkpoints(directory) == directory


@pytest.mark.parametrize('name', ['2024', '7'])
def test_directories_that_are_only_numbered_hold_no_checkpoints(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'notes.txt').write_text('mine')
    with pytest.raises(InputError) as refusal:
        find_checkpoints(tmp_path)
    assert str(refusal.value).startswith(f'{tmp_path}: it has no checkpoint; train first')


def test_a_loss_that_is_not_known_is_infinite_and_nothing_else(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 1)
        save(checkpoints, 2, 1e30)
        assert checkpoints.best_step == 2
        assert checkpoints.manager.metrics(1) == {'validation_loss': math.inf}


def test_arrays_may_be_given_away_as_soon_as_saving_has_begun(tmp_path):
    @jax.jit
    def double(tree):
        return jax.tree.map(lambda leaf: 2 * leaf, tree)

    given = params(3.0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, given, params(0.0), {}, {}, 0.1)
        donated = jax.jit(double, donate_argnums=0)(given)
        jax.block_until_ready(donated)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        restored = checkpoints.restore(1, params=params(0.0))['params']
    np.testing.assert_array_equal(restored['params']['weight'], np.full((2, 3), 3.0))
