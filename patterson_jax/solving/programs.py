"""Programs: functions compiled ahead, so that no use of one takes longer, once for each set of choices and shapes."""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function of arrays; `shapes` are those of what it gives."""

    run: Callable
    shapes: Any

    def __call__(self, *arguments: Any) -> Any:
        """What the function gives for arguments of the shapes that it was compiled for."""
        return self.run(*arguments)


def program(function: Callable, *arguments: Any, **choices: Hashable) -> Program:
    """A function compiled for arguments of these shapes; with the same choices and shapes it is the same program.

    Args:
        function: of a module, and so the same one every time; pure.
        arguments: arrays, or what has their `shape` and `dtype`, in any structure.
        choices: further arguments, by name: values on which the program depends.
    """
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    return _compile(function, structure, shapes, tuple(sorted(choices.items())))


@functools.lru_cache(maxsize=64)
def _compile(function, structure, shapes, choices):
    lowered = jax.jit(functools.partial(function, **dict(choices))).lower(*jax.tree.unflatten(structure, shapes))
    return Program(lowered.compile(), lowered.out_info)
