"""Programs: compiled ahead of their use, and unloaded before there are too many."""

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patterson_jax.solving import crystal_solver, map_solver, programs


def twice(values, times=2):
    return times * values


def test_what_was_begun_is_compiled_once_and_gives_the_same():
    programs._program.cache_clear()
    traced = []

    def noted(values):
        traced.append(values.shape)
        return twice(values)

    programs.begin(noted, jax.ShapeDtypeStruct((3,), np.float32))
    assert traced == [(3,)]
    np.testing.assert_array_equal(programs.call(noted, np.ones(3, np.float32)), [2, 2, 2])
    assert traced == [(3,)]
    programs.call(noted, np.ones(4, np.float32))
    assert traced == [(3,), (4,)]


def test_choices_make_other_programs():
    values = np.ones(2, np.float32)
    assert [float(programs.call(twice, values, times=times)[0]) for times in (2, 3, 2)] == [2, 3, 2]


def test_an_error_is_told_where_the_function_is_called_and_is_not_kept(monkeypatch):
    def impossible(values):
        raise ValueError('no such thing')

    with pytest.raises(ValueError, match='no such thing'):
        programs.call(impossible, np.ones(2, np.float32))

    def out_of_memory(compile_):
        failed = Future()
        failed.set_exception(MemoryError())
        return failed

    values = np.ones(6, np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(programs, '_compiler', SimpleNamespace(submit=out_of_memory))
        programs.begin(twice, values)
        with pytest.raises(MemoryError):
            programs.call(twice, values)
    assert programs.call(twice, values)[0] == 2


def test_programs_are_unloaded_when_there_are_many_and_not_before():
    doubled = jax.jit(twice)
    doubled(jnp.ones(3))
    assert not programs.unload_in_time() and doubled._cache_size() == 1
    unloaded = programs.unload_in_time(most=0)
    assert unloaded == Path('/proc/self/maps').exists()
    assert doubled._cache_size() == (0 if unloaded else 1)
    assert doubled(jnp.ones(3))[0] == 2


def test_every_solve_looks_whether_it_is_time(monkeypatch):
    class UnloadingError(Exception):
        pass

    def unload():
        raise UnloadingError

    monkeypatch.setattr(crystal_solver, 'unload_in_time', unload)
    monkeypatch.setattr(map_solver, 'unload_in_time', unload)
    with pytest.raises(UnloadingError):
        crystal_solver.solve_crystal(None)
    with pytest.raises(UnloadingError):
        map_solver.solve_map(None, None, None, None, seed=0)
