"""The release file of the networks: the same bytes every time, fetched once, and refused unless it is the right one."""

import dataclasses
import functools
import hashlib
import http.server
import io
import os
import shutil
import threading
import zipfile
from pathlib import Path

import pytest
from tiny import assert_same_trees

from patterson_jax import shipped
from patterson_jax.errors import InputError
from patterson_jax.releases import ADDRESS, describe, fetched_network, make_archive, read_release, update_manifest
from patterson_jax.shipped import find_network
from patterson_jax.weights import load_network

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with the release file of this version."""
    folder, archive = tmp_path_factory.mktemp('released'), make_archive(ROOT)
    (folder / describe(archive).file).write_bytes(archive)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache directory, and a package without networks whose manifest tells no address."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.delenv(ADDRESS, raising=False)
    monkeypatch.setattr(shipped, 'PACKAGE', tmp_path / 'patterson_jax')
    return tmp_path / 'cache' / 'patterson_jax' / 'networks'


@pytest.fixture
def server(folder, monkeypatch):
    """The address of a web server for the folder, and the paths that were asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv('no_proxy', '127.0.0.1')
        yield f'http://127.0.0.1:{server.server_port}', asked
        server.shutdown()
        thread.join()


def test_the_manifest_describes_the_networks_of_this_version():
    """If not, launch/release_networks.sh writes it anew."""
    release = read_release()
    assert describe(make_archive(ROOT), release.address) == release
    assert set(release.networks) == {path.name for path in (ROOT / 'pretrained').iterdir() if path.is_dir()}


def test_the_archive_depends_on_nothing_but_the_files(tmp_path):
    """Neither on times, modes or the order of a directory, nor on files that are not needed to use a network."""
    network = tmp_path / 'pretrained' / 'unrolled'
    shutil.copytree(ROOT / 'pretrained' / 'unrolled', network, ignore=shutil.ignore_patterns('figures'))
    shutil.copy(ROOT / 'setup.cfg', tmp_path)
    first = make_archive(tmp_path)
    for path in sorted(network.rglob('*'), reverse=True):
        if path.is_file():
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
            path.chmod(0o700)
            os.utime(path, (1e9, 1e9))
    (network / 'figures').mkdir()
    (network / 'figures' / 'losses.png').touch()
    assert make_archive(tmp_path) == first
    (network / 'config.json').write_text('{}')
    assert make_archive(tmp_path) != first


def test_a_missing_network_is_fetched_once_and_is_the_shipped_one(cache, server, monkeypatch, capsys):
    address, asked = server
    monkeypatch.setenv(ADDRESS, address + '/')
    fetched, release = load_network('unrolled'), read_release()
    assert find_network('paper') == cache / release.sha256[:12] / 'paper'
    assert_same_trees(fetched.params, load_network(ROOT / 'pretrained' / 'unrolled').params)
    assert asked == [f'/{release.file}']
    size = f'{release.size / 1e6:.1f} MB'
    assert capsys.readouterr().err == f'note: fetching trained networks, {size}, from {address}/{release.file}\n'
    assert [path.name for path in cache.iterdir()] == [release.sha256[:12]]


def test_a_package_can_tell_the_address(cache, folder):
    release = dataclasses.replace(read_release(), address=folder.as_uri())
    assert (fetched_network('unrolled', release) / 'config.json').is_file()


def test_what_cannot_be_fetched_is_refused_in_one_line(cache, folder, server, monkeypatch, tmp_path):
    release, (address, _) = read_release(), server

    def refusal(folder):
        monkeypatch.setenv(ADDRESS, folder)
        with pytest.raises(InputError) as error:
            find_network('unrolled')
        assert '\n' not in str(error.value) and not cache.exists()
        return str(error.value)

    assert refusal('').startswith('unrolled is not installed, and no address is known to fetch it from; set PATTERSON_')
    assert refusal('ftp://there').endswith('it must be an address that begins with https://, http:// or file://')
    assert refusal(tmp_path.as_uri()).endswith(
        'cannot be fetched: [Errno 2] No such file or directory: ' + repr(str(tmp_path / release.file))
    )
    assert refusal(address + '/none').endswith(
        f'/none/{release.file} cannot be fetched: HTTP Error 404: File not found'
    )
    assert refusal('https://').endswith('cannot be fetched: no host given')

    right = (folder / release.file).read_bytes()
    wrong = bytearray(right)
    wrong[len(wrong) // 2] ^= 1
    (tmp_path / release.file).write_bytes(wrong)
    found = refusal(tmp_path.as_uri())
    assert hashlib.sha256(wrong).hexdigest() in found and release.sha256 in found
    (tmp_path / release.file).write_bytes(right[:-1])
    assert f'its {release.size - 1} bytes have the SHA-256 ' in refusal(tmp_path.as_uri())
    (tmp_path / release.file).write_bytes(right + b'0')
    assert f'has more than {release.size} bytes' in refusal(tmp_path.as_uri())


def test_a_cache_that_cannot_hold_them_is_named(cache, folder, monkeypatch, tmp_path):
    (tmp_path / 'cache').touch()
    monkeypatch.setenv(ADDRESS, folder.as_uri())
    with pytest.raises(InputError, match=r'networks: unrolled cannot be kept there: Not a directory$'):
        find_network('unrolled')


@pytest.mark.parametrize('name', ('/tmp/there', '../there', 'a/../../there', 'C:there', 'a\\..\\there'))
def test_nothing_is_unpacked_outside_of_the_cache(cache, tmp_path, name):
    content = io.BytesIO()
    with zipfile.ZipFile(content, 'w') as archive:
        archive.writestr('mine/config.json', '{}')
        archive.writestr(name, 'outside')
    release = describe(content.getvalue(), tmp_path.as_uri())
    (tmp_path / release.file).write_bytes(content.getvalue())
    with pytest.raises(InputError, match='has a file that would be outside of it'):
        fetched_network('mine', release)
    assert not list(cache.iterdir())


def test_a_new_manifest_keeps_the_address(tmp_path):
    (tmp_path / 'patterson_jax').mkdir()
    shutil.copy(ROOT / 'setup.cfg', tmp_path)
    (tmp_path / 'pretrained' / 'mine').mkdir(parents=True)
    (tmp_path / 'pretrained' / 'mine' / 'config.json').write_text('{}')
    archive = update_manifest(tmp_path)
    manifest = tmp_path / 'patterson_jax' / 'networks.json'
    manifest.write_text(manifest.read_text().replace('"address": ""', '"address": "https://here.test"'))
    (tmp_path / 'pretrained' / 'mine' / 'config.json').write_text('[]')
    again = update_manifest(tmp_path)
    assert read_release(tmp_path / 'patterson_jax') == describe(again, 'https://here.test')
    assert again != archive and describe(again).networks == ('mine',)
