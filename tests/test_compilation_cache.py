"""The persistent compilation cache: a second process reuses it, and where it cannot be kept nothing is lost."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from patterson_jax import compilation_cache
from patterson_jax.compilation_cache import enable_compilation_cache

ROOT = Path(__file__).parents[1]
OPTIONS = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs', 'jax_enable_compilation_cache')
PROGRAM = """
import jax
import patterson_jax as pj

events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
place = pj.enable_compilation_cache()
total = float(pj.simulate([[0, 0, 0], [2.2, 0, 0]], grid_size=8, atom_radius=0.8, noise=0.1).density.sum())
print(place, events.count('/jax/compilation_cache/cache_hits'), f'{total:.4f}')
"""
TWO_ATOMS = '4.2893'  # 2 · 4π/3 · 0.8³


@pytest.fixture
def told(monkeypatch):
    """Tells JAX nothing of a cache, until the test is over."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    jax.config.update('jax_compilation_cache_dir', None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def process(**environment):
    """What a program in a process of its own prints; and nothing else than that.

    It compiles as users do, which takes long enough to be kept.
    """
    dropped = ('JAX_COMPILATION_CACHE_DIR', 'XLA_FLAGS')
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    kept |= {'PYTHONPATH': str(ROOT), 'TF_CPP_MIN_LOG_LEVEL': '3'} | environment
    done = subprocess.run([sys.executable, '-c', PROGRAM], env=kept, capture_output=True, text=True, check=True)
    assert done.stderr == ''
    return done.stdout.split()


def test_a_second_process_takes_from_the_users_cache_what_the_first_has_compiled(tmp_path):
    first, second = (process(XDG_CACHE_HOME=str(tmp_path)) for _ in range(2))
    assert Path(first[0]).parent == tmp_path / 'patterson_jax'
    assert second[0] == first[0]
    assert first[1] == '0' and int(second[1]) > 0
    assert first[2] == second[2] == TWO_ATOMS
    assert any(Path(first[0]).iterdir())


def test_a_home_that_cannot_be_written_to_does_no_harm():
    assert process(XDG_CACHE_HOME='', HOME='/proc/self') == ['None', '0', TWO_ATOMS]


def test_a_cache_that_jax_was_told_stays_unless_another_is_named(tmp_path, told):
    jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'theirs'))
    assert enable_compilation_cache() == tmp_path / 'theirs'
    assert not (tmp_path / 'theirs').exists()
    mine = enable_compilation_cache(tmp_path / 'mine')
    assert mine.parent == tmp_path / 'mine'
    assert jax.config.jax_compilation_cache_dir == str(mine)


def test_where_jax_keeps_nothing_nothing_is_made(tmp_path, told):
    jax.config.update('jax_enable_compilation_cache', False)
    assert enable_compilation_cache(tmp_path / 'mine') is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('caches', 'home'), [('relative', 'home/.cache'), ('', 'home/.cache'), (None, 'home/.cache')])
def test_the_users_cache_directory_is_as_the_specification_has_it(tmp_path, told, monkeypatch, caches, home):
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    if caches is not None:
        monkeypatch.setenv('XDG_CACHE_HOME', caches)
    assert enable_compilation_cache().parent == tmp_path / home / 'patterson_jax'


def test_the_oldest_entries_make_way(tmp_path, told, monkeypatch):
    place = enable_compilation_cache(tmp_path)
    for age, name in enumerate(('newest', 'middle', 'oldest')):
        (place / name).write_bytes(bytes(100))
        os.utime(place / name, (10**9 - age, 10**9 - age))
    monkeypatch.setattr(compilation_cache, 'LARGEST', 250)
    enable_compilation_cache(tmp_path)
    assert {path.name for path in place.iterdir()} == {'newest', 'middle'}


def test_other_processors_have_another_directory(tmp_path, told, monkeypatch):
    ours = enable_compilation_cache(tmp_path)
    monkeypatch.setattr(compilation_cache.platform, 'machine', lambda: 'another')
    assert enable_compilation_cache(tmp_path) != ours
