"""The precision of matrix products in simulation and solver: one policy for atoms, maps and amplitudes.

By default an accelerator rounds the factors of a product of float32 matrices to the 10 bits of TF32 or the 7 bits of
bfloat16. That is enough for networks, which have a setting of their own. It is too little here: ten atoms at their true
positions then have an R1 of 2.2e-4 or 2.1e-3 (factors rounded in this way on CPU; `tests/test_precision.py`). With
products in float32 it is 3e-7, and `verdict.EXACT` allows 2e-3. A CPU does not round factors, so that the policy
changes nothing there.
"""

import functools
from collections.abc import Callable

import jax

MATRIX_PRECISION = 'highest'  # a name for `jax.default_matmul_precision`; read whenever a function is traced


def exact_products(function: Callable) -> Callable:
    """Decorates a function that is traced: products in it, and in all that it calls, follow the policy."""

    @functools.wraps(function)
    def with_policy(*arguments, **named):
        with jax.default_matmul_precision(MATRIX_PRECISION):
            return function(*arguments, **named)

    return with_policy
