"""Programs: functions that are compiled when they are first needed or before, once for all choices and shapes alike."""

import functools
import gc
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

MOST_MAPPINGS = 40_000  # of memory; Linux allows a process 65,530, and LLVM crashes where it gets no more
_compilations: list[float] = []  # seconds that this process traced, and waited for programs
_compiler = ThreadPoolExecutor(2, 'compiler')  # one program that is needed now, one that will be


def call(function: Callable, *arguments: Any, **choices: Hashable) -> Any:
    """What a function gives; it is compiled first if it has not been for these choices and arguments of these shapes.

    Args:
        function: a pure function of a module, so that it is the same object in every call.
        arguments: arrays, on the host or a device, in any structure.
        choices: further arguments, by name; the program depends on their values.
    """
    program = _program(*_key(function, arguments, choices))
    try:
        compiled = program.result() if program.done() else _timed(program.result)
    except Exception:
        _program.cache_clear()  # what failed may succeed the next time
        raise
    return compiled(*arguments)


def begin(function: Callable, *arguments: Any, **choices: Hashable) -> None:
    """Begins to compile what `call` will need, beside whatever follows.

    Args:
        function: as in `call`.
        arguments: what has the shapes and types of its arguments, such as `jax.ShapeDtypeStruct`.
        choices: as in `call`.
    """
    _program(*_key(function, arguments, choices))


def clock() -> float:
    """A time in seconds that stands still while a function is traced and `call` waits for its program.

    So a budget does not pay for compilation; but what is compiled beside other work slows that.
    """
    return time.perf_counter() - sum(_compilations)


def unload_in_time(most: int = MOST_MAPPINGS) -> bool:
    """Unloads all compiled programs of this process, JAX's too, if it has more than `most` mappings of memory.

    A program takes hundreds, and each new shape of data needs new ones: so a process that solves crystal after crystal
    would crash after some hundreds. What is needed again is compiled again, or read from the persistent cache.

    Returns:
        Whether they were unloaded. On systems other than Linux they never are.
    """
    mappings = Path('/proc/self/maps')
    if not mappings.exists() or mappings.read_bytes().count(b'\n') <= most:
        return False
    _program.cache_clear()
    jax.clear_caches()
    gc.collect()  # else most of them stay
    return True


def _key(function, arguments, choices):
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    return function, structure, shapes, tuple(sorted(choices.items()))


@functools.lru_cache(maxsize=64)
def _program(function: Callable, structure: Any, shapes: tuple, choices: tuple) -> Future:
    """A program, perhaps a future one. It is traced here, as JAX's settings may differ in another thread."""
    traced = jax.jit(functools.partial(function, **dict(choices))).lower
    return _compiler.submit(_timed(lambda: traced(*jax.tree.unflatten(structure, shapes))).compile)


def _timed(function):
    began = time.perf_counter()
    try:
        return function()
    finally:
        _compilations.append(time.perf_counter() - began)
