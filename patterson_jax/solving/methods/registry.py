"""The methods that there are, by their names, in the order in which `auto` takes them. A new one is a line here."""

import itertools
from collections.abc import Iterator

from patterson_jax.solving.methods.method import Method
from patterson_jax.solving.methods.minimum_function import MINIMUM_FUNCTION
from patterson_jax.solving.methods.network import NETWORK
from patterson_jax.solving.methods.phase_retrieval import PHASE_RETRIEVAL
from patterson_jax.solving.methods.random_starts import LEAST_SQUARES

AUTO = 'auto'
METHODS: dict[str, Method] = {
    method.name: method for method in (NETWORK, LEAST_SQUARES, PHASE_RETRIEVAL, MINIMUM_FUNCTION)
}


def method_names() -> tuple[str, ...]:
    """All that may be asked for: each method, and `auto`."""
    return (*METHODS, AUTO)


def classical_names() -> tuple[str, ...]:
    """The methods that need no network."""
    return tuple(name for name, method in METHODS.items() if not method.needs_network)


def attempts(name: str, has_network: bool) -> Iterator[tuple[Method, int]]:
    """Which method comes next, and how many attempts it has had; without an end.

    `auto` first asks the methods once whose further attempts would be the same, and then the others in turn.
    """
    if name != AUTO:
        return ((METHODS[name], number) for number in itertools.count())
    usable = [method for method in METHODS.values() if has_network or not method.needs_network]
    once = ((method, 0) for method in usable if not method.repeats)
    in_turn = ((method, number) for number in itertools.count() for method in usable if method.repeats)
    return itertools.chain(once, in_turn)
