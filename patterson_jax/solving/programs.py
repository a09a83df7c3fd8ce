"""Programs: functions that are compiled when they are first needed, once for each set of choices and shapes."""

import functools
import time
from collections.abc import Callable, Hashable
from typing import Any

import jax

_compilations: list[float] = []  # seconds of each in this process


def call(function: Callable, *arguments: Any, **choices: Hashable) -> Any:
    """What a function gives; it is compiled first if it has not been for these choices and arguments of these shapes.

    Args:
        function: a pure function of a module, so that it is the same object in every call.
        arguments: arrays, on the host or a device, in any structure.
        choices: further arguments, by name; the program depends on their values.
    """
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    return _program(function, structure, shapes, tuple(sorted(choices.items())))(*arguments)


def clock() -> float:
    """A time in seconds that stands still while `call` compiles, so that a budget does not pay for it."""
    return time.perf_counter() - sum(_compilations)


@functools.lru_cache(maxsize=64)
def _program(function, structure, shapes, choices):
    began = time.perf_counter()
    program = _compile(function, structure, shapes, choices)
    _compilations.append(time.perf_counter() - began)
    return program


def _compile(function, structure, shapes, choices):
    return jax.jit(functools.partial(function, **dict(choices))).lower(*jax.tree.unflatten(structure, shapes)).compile()
