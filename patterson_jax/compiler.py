"""Tests whether the installed JAX computes correctly. On CPU several releases do not, unless a fusion is switched off.

The compiler of these releases passes products and sums to a library, with errors and without a warning.
`known_programs` are the smallest programs that gave wrong results. A release that computes all of them correctly may
still have other errors.
"""

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from patterson_jax.errors import InputError

FUSION_OFF = '--xla_cpu_experimental_ynn_fusion_type='
# The fusion was wrong, and the flag helped, in jaxlib 0.10.2, 0.11.0, 0.11.1, 0.11.2 and 0.12.0. An older jaxlib may
# not know the flag, which would end the program. Newer ones were not tried.
FUSION_ERRS = (0, 10, 2), (0, 12, 1)
# In these, sums of products of rank seven and more end the process (jax issues 39257, 40412), so they cannot be tested.
CRASHING = ('0.10.2', '0.11.0')
_turned_off: list[str] = []  # by a flag that was added in this process
TOLERANCE = 1e-3  # of the largest value; the numbers are small integers, which any float type holds exactly


class Program(NamedTuple):
    """A program that some release of JAX computed wrongly, with the right result.

    Attributes:
        name: of the computation, for error messages.
        function: from the arguments to a vector.
        arguments: float32 arrays.
        expected: the result by NumPy in float64.
    """

    name: str
    function: Callable[..., jax.Array]
    arguments: tuple[np.ndarray, ...]
    expected: np.ndarray


@functools.cache
def known_programs() -> tuple[Program, ...]:
    """Programs that some release of JAX computed wrongly, with the shapes in which it did."""
    # Only the last element was wrong, in jax 0.10.2 (jax issue 39103).
    rows = np.random.default_rng(0).integers(1, 8, (32769, 3)).astype(np.float32)
    turned = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]], np.float32)
    squares = Program(
        'squared lengths of rotated vectors',
        jax.vmap(lambda rotation, row: jnp.sum((rotation @ row) ** 2), (None, 0)),
        (turned, rows),
        np.sum(np.square(rows, dtype=np.float64), axis=1),
    )
    # The form of a gradient of a sum of products: one factor is constant. Wrong from jax 0.10.2 on.
    matrices = np.random.default_rng(1).integers(0, 3, (8, 32, 32)).astype(np.float32)
    doubled = Program(
        'sums of products with a constant matrix',
        lambda matrix, value: jnp.sum((matrix @ jnp.broadcast_to(value, matrix.shape)) * matrix, axis=(1, 2)),
        (matrices, np.array(2, np.float32)),
        2 * np.sum(np.sum(matrices, axis=2, dtype=np.float64) ** 2, axis=1),
    )
    return squares, doubled


def compiled(program: Program) -> np.ndarray:
    """The result of a program by this JAX on its first device."""
    return np.asarray(jax.jit(program.function)(*program.arguments))


def wrong_value(program: Program, found: np.ndarray) -> str | None:
    """The value with the largest error, in words; None if all are right."""
    errors = np.abs(np.asarray(found, np.float64) - program.expected)
    errors[np.isnan(errors)] = np.inf
    worst = np.argmax(errors)
    if errors[worst] <= TOLERANCE * np.max(np.abs(program.expected)):
        return None
    value = f'value {worst + 1} of {errors.size} is {found[worst]:g} and should be {program.expected[worst]:g}'
    return f'{program.name}: {value}'


def avoid_wrong_fusion() -> None:
    """Switches the fusion off for this process where it is known to be wrong, unless XLA_FLAGS sets it already.

    Call it before JAX's first computation, because XLA reads its flags only once.
    """
    first, end = FUSION_ERRS
    if first <= jaxlib.version.__version_info__ < end and FUSION_OFF not in _flags():
        os.environ['XLA_FLAGS'] = f'{_flags()} {FUSION_OFF}'.strip()
        _turned_off.append(FUSION_OFF)


def require_right_results(compute: Callable[[Program], np.ndarray] = compiled) -> None:
    """Raises InputError if JAX computes wrongly. The first call takes a tenth of a second.

    Args:
        compute: gives the result of a program.

    Raises:
        InputError: in one line, with the version, the wrong result and the cure.
    """
    device = jax.default_backend()
    fused = device == 'cpu' and FUSION_OFF not in _flags().split()
    wrong = next(filter(None, (wrong_value(each, compute(each)) for each in known_programs())), None)
    if not wrong and fused and jaxlib.version.__version__ in CRASHING:
        wrong = 'sums of products of seven dimensions end the process'
    if wrong:
        late = bool(_turned_off)  # our flag did not help: it came after JAX's first computation
        cure = 'install'
        if fused or late:
            cure = f'set XLA_FLAGS={FUSION_OFF} in the environment, or install'
        raise InputError(
            f'JAX {jax.__version__} with jaxlib {jaxlib.version.__version__} computes wrongly on {device}: {wrong}; '
            f'{cure} another version, as with pip install jax==0.10.1 jaxlib==0.10.1'
        )


def _flags():
    return os.environ.get('XLA_FLAGS', '')
