"""How exactly matrix products are computed where atoms, maps and amplitudes are: one policy for simulation and solver.

An accelerator left to itself rounds the factors of a product of float32 matrices to the 10 bits of TF32 or the 7 of
bfloat16. That suits networks, which choose for themselves. Of ten atoms at their true positions it leaves an R1 of
2.2e-4 or 2.1e-3 (factors rounded so on CPU; `tests/test_precision.py`), where products in float32 leave 3e-7 and
`verdict.EXACT` allows 2e-3. On CPU, where nothing is rounded so, the policy changes nothing.
"""

import functools
from collections.abc import Callable

import jax

MATRIX_PRECISION = 'highest'  # a name that `jax.default_matmul_precision` knows; read whenever a function is traced


def exact_products(function: Callable) -> Callable:
    """Decorates what simulation and solver trace: products in it, and in all that it calls, follow the policy."""

    @functools.wraps(function)
    def with_policy(*arguments, **named):
        with jax.default_matmul_precision(MATRIX_PRECISION):
            return function(*arguments, **named)

    return with_policy
