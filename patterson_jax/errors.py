"""Exceptions for mistakes of the user, which the command line shows as one line without a traceback."""

import contextlib
import numbers
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np


class InputError(ValueError):
    """An input of the user is wrong. The message names it, the value received and what is allowed."""


def require(condition: bool, name: str, received: object, allowed: str) -> None:
    """Raises InputError unless a condition holds.

    Args:
        condition: what must be true.
        name: of the input, as the user knows it.
        received: its value.
        allowed: completes the sentence "it must be …".
    """
    if not condition:
        raise InputError(f'{name} is {received!r}; it must be {allowed}')


def is_whole(value: object) -> bool:
    """Whether a value has the type of a whole number: 3, not 3.0."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """Whether a value is a finite real number."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    largest: Any = abs(value)  # comparisons with NaN are false
    return bool(largest <= sys.float_info.max)


def real_array(values: Any, name: str, allowed: str) -> np.ndarray:
    """Converts an input of the user to an array of real numbers.

    Args:
        values: an array, or nested lists.
        name: of the input, as the user knows it.
        allowed: completes the sentence "it must be …".

    Raises:
        InputError: the values are anything else, for example lists of different lengths, text or complex numbers.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InputError(f'{name} has parts of different lengths; it must be {allowed}') from error
    if array.dtype.kind not in 'fiu':
        kind = f'{type(values).__name__} {values!r}' if array.ndim == 0 else f'an array of {array.dtype}'
        raise InputError(f'{name} is {kind}; it must be {allowed}')
    return array


class NonFiniteError(ArithmeticError):
    """Training has diverged: a metric is NaN or infinite. The message names the metric and the step."""


class Unfinished(BaseException):
    """A run was stopped before its end and has saved all that it needs to continue. The message says where and why.

    It can come from a signal handler. Like KeyboardInterrupt, it must pass every `except Exception`.
    """


@contextlib.contextmanager
def exit_on_errors(at_once: bool = False) -> Iterator[None]:
    """Turns errors that a user can correct into one line each on stderr and an exit status.

    The status is 2 for a wrong input; 1 for a training that diverged, or a file that the system does not let us read or
    write; 75 for a run that was stopped and can continue; 130 for an interrupt from the keyboard.

    Args:
        at_once: whether to end the process on an error without waiting for other processes, which may have none.
    """

    def stop(message, status):
        for line in str(message).splitlines():
            print(f'error: {line}', file=sys.stderr)
        if at_once:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        sys.exit(status)

    try:
        yield
    except InputError as error:
        stop(error, 2)
    except NonFiniteError as error:
        stop(error, 1)
    except OSError as error:
        stop(f'{error.filename or ""}: {error.strerror or error}'.removeprefix(': '), 1)
    except Unfinished as unfinished:
        print(unfinished, file=sys.stderr)
        sys.exit(75)
    except KeyboardInterrupt:
        stop('interrupted', 130)
