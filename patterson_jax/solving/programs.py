"""Programs: functions that are compiled before their first use, once for each set of choices and shapes."""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function of arrays; `shapes` are the shapes of its results."""

    run: Callable
    shapes: Any

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function with arguments of the shapes for which it was compiled."""
        return self.run(*arguments)


def program(function: Callable, *arguments: Any, **choices: Hashable) -> Program:
    """Compiles a function for arguments of these shapes; the same choices and shapes give the same program.

    Args:
        function: a pure function of a module, so that it is the same object in every call.
        arguments: arrays, or other objects with their `shape` and `dtype`, in any structure.
        choices: further arguments, by name; the program depends on their values.
    """
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    return _compile(function, structure, shapes, tuple(sorted(choices.items())))


@functools.lru_cache(maxsize=64)
def _compile(function, structure, shapes, choices):
    lowered = jax.jit(functools.partial(function, **dict(choices))).lower(*jax.tree.unflatten(structure, shapes))
    return Program(lowered.compile(), lowered.out_info)
