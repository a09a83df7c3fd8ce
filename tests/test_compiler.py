"""The compiler is caught when it computes wrongly. test_command_line.py has one that really does."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jaxlib
import numpy as np
import pytest

from patterson_jax import compiler
from patterson_jax.compiler import FUSION_OFF, avoid_wrong_fusion, compiled, known_programs, require_right_results
from patterson_jax.errors import InputError

PROGRAMS = [pytest.param(program, id=program.name) for program in known_programs()]


@pytest.mark.parametrize('program', PROGRAMS)
def test_the_programs_are_right_here_and_exact_in_float32(program):
    np.testing.assert_array_equal(compiled(program), program.expected)
    assert program.expected.dtype == np.float64 and np.max(program.expected) < 2**24
    require_right_results()


def spoiled(wrong, value):
    """One value of one program is wrong; the others are the compiler's own."""

    def compute(program):
        found = compiled(program).copy()
        if program is wrong:
            found[-1] = value
        return found

    return compute


@pytest.mark.parametrize('program', PROGRAMS)
@pytest.mark.parametrize('value', [np.nan, -np.inf, 0.0, 1e30])
def test_one_wrong_value_is_named_with_the_version_and_the_cure(program, value, monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', '')
    with pytest.raises(InputError) as refusal:
        require_right_results(spoiled(program, value))
    size, expected = program.expected.size, program.expected[-1]
    message = str(refusal.value)
    assert message.startswith(f'JAX {jax.__version__} with jaxlib {jaxlib.__version__} computes wrongly on ')
    assert f'{program.name}: value {size} of {size} is {value:g} and should be {expected:g};' in message
    assert len(message.splitlines()) == 1
    if jax.default_backend() == 'cpu':
        assert f'set XLA_FLAGS={FUSION_OFF} in the environment, or install another version' in message


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='the flag is of CPU')
def test_a_flag_that_did_not_help_is_no_cure(monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', FUSION_OFF)
    with pytest.raises(InputError) as refusal:
        require_right_results(spoiled(known_programs()[0], 0.0))
    assert 'XLA_FLAGS' not in str(refusal.value) and 'install another version' in str(refusal.value)


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='they crash on CPU')
@pytest.mark.parametrize('version', compiler.CRASHING)
def test_a_version_that_would_crash_is_refused_unless_the_fusion_is_off(version, monkeypatch):
    monkeypatch.setattr(jaxlib.version, '__version__', version)
    monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=false')
    with pytest.raises(InputError, match=rf'jaxlib {version} computes wrongly on cpu: .* end the process; set XLA_'):
        require_right_results()
    monkeypatch.setenv('XLA_FLAGS', f'--xla_cpu_enable_fast_math=false {FUSION_OFF}')
    require_right_results()


@pytest.mark.parametrize(
    ('version', 'flags', 'expected'),
    [
        ((0, 10, 1), '', ''),  # is right, and an older one may not know the flag
        ((0, 10, 2), '', FUSION_OFF),
        ((0, 12, 0, 1), '--xla_cpu_enable_fast_math=false', f'--xla_cpu_enable_fast_math=false {FUSION_OFF}'),
        ((0, 11, 2), FUSION_OFF, FUSION_OFF),
        ((0, 11, 2), f'{FUSION_OFF}dot', f'{FUSION_OFF}dot'),  # the user's own choice
        ((0, 12, 1), '', ''),
    ],
)
def test_the_fusion_is_turned_off_where_it_is_known_to_err(version, flags, expected, monkeypatch):
    monkeypatch.setattr(jaxlib.version, '__version_info__', version)
    monkeypatch.setenv('XLA_FLAGS', flags)
    monkeypatch.setattr(compiler, '_turned_off', [])
    avoid_wrong_fusion()
    assert compiler.os.environ['XLA_FLAGS'] == expected


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='the flag is of CPU')
def test_a_flag_that_came_too_late_is_told_to_come_in_time(monkeypatch):
    monkeypatch.setattr(jaxlib.version, '__version_info__', (0, 11, 2))
    monkeypatch.setattr(compiler, '_turned_off', [])
    monkeypatch.setenv('XLA_FLAGS', '')
    avoid_wrong_fusion()
    with pytest.raises(InputError, match=rf'; set XLA_FLAGS={FUSION_OFF} in the environment, or install another'):
        require_right_results(spoiled(known_programs()[0], 0.0))


def test_the_library_avoids_what_goes_wrong_before_it_computes():
    """As on a release where it does: the flag is there when a public name has been used, and is not before."""
    program = """
import os
import jaxlib.version
import patterson_jax as pj

jaxlib.version.__version_info__ = (0, 12, 0)
print(repr(os.environ['XLA_FLAGS']))
pj.read_xyz
print(repr(os.environ['XLA_FLAGS']))
"""
    environment = os.environ | {'XLA_FLAGS': '', 'PYTHONPATH': str(Path(__file__).parents[1])}
    line = [sys.executable, '-c', program]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["''", repr(FUSION_OFF)]
