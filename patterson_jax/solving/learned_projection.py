"""A network in place of low-density elimination: it changes a map, and then the measured amplitudes are restored.

Transforms are those of NumPy on the half grid, as in `charge_flipping.py`. The network is a function from a map
`shape` of standard deviation 1 to one of sharp atoms.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from patterson_jax.solving.charge_flipping import TINY, amplitude_disagreement, friedel_counts, phased


class Projected(NamedTuple):
    """The result of passes through a network, and how much the last of them changed.

    Attributes:
        factors: `half_shape`, measured amplitudes with the phases of the network's map.
        skewness: of their map.
        disagreement: mean difference between measured amplitudes and those of the network's map, relative to their
            mean.
        kept: mean cosine of the angles by which the last pass has turned phases, weighted by E².
    """

    factors: Array
    skewness: Array
    disagreement: Array
    kept: Array


def standard_map(factors: Array, amplitudes: Array, shape: tuple[int, int, int]) -> Array:
    """The map `shape` of phases with amplitudes, both `half_shape`, divided by its standard deviation."""
    density = jnp.fft.irfftn(phased(factors, amplitudes), s=shape)
    return density * jax.lax.rsqrt(jnp.maximum(jnp.mean(density**2), TINY))  # its mean is zero


def phase_agreement(first: Array, second: Array, amplitudes: Array) -> Array:
    """Mean cosine of the differences of phases of two sets of factors `half_shape`, weighted by E²."""
    weights = friedel_counts(amplitudes) * amplitudes**2
    ones = jnp.ones_like(amplitudes)
    cosines = (phased(first, ones) * jnp.conj(phased(second, ones))).real
    return jnp.sum(weights * cosines) / jnp.sum(weights)


def project(
    network: Callable[[Array], Array],
    factors: Array,
    amplitudes: Array,
    shape: tuple[int, int, int],
    passes: Array | int,
) -> Projected:
    """Passes a map through a network, several times; at least once.

    Args:
        network: from a map `shape` of standard deviation 1 to a map of atoms.
        factors: `half_shape`; their phases count.
        amplitudes: `half_shape`, measured E values; zero where nothing was measured.
        shape: of the grid.
        passes: how many.
    """

    def once(_, state):
        before, _ = state
        return jnp.fft.rfftn(network(standard_map(before, amplitudes, shape))), before

    calculated, before = jax.lax.fori_loop(0, passes, once, (factors, factors))
    return Projected(
        phased(calculated, amplitudes),
        jnp.mean(standard_map(calculated, amplitudes, shape) ** 3),
        amplitude_disagreement(calculated, amplitudes),
        phase_agreement(calculated, before, amplitudes),
    )
