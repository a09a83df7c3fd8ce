"""Programs: functions that are compiled before their first use, once for each set of choices and shapes."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax


def program(function: Callable, *arguments: Any, **choices: Hashable) -> jax.stages.Compiled:
    """Compiles a function for arguments of these shapes; the same choices and shapes give the same program.

    Args:
        function: a pure function of a module, so that it is the same object in every call.
        arguments: arrays, or other objects with their `shape` and `dtype`, in any structure.
        choices: further arguments, by name; the program depends on their values.

    Returns:
        A function of arrays of these shapes; its `out_info` has the shapes of its results.
    """
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    return _compile(function, structure, shapes, tuple(sorted(choices.items())))


@functools.lru_cache(maxsize=64)
def _compile(function, structure, shapes, choices):
    return jax.jit(functools.partial(function, **dict(choices))).lower(*jax.tree.unflatten(structure, shapes)).compile()
