"""Separation: chooses, from candidates, the set of atoms whose Patterson map is the measured one (paper, 2.4.4).

The structure factors of a set are the sum over its atoms, so a swap of two atoms costs one subtraction and one
addition. By Parseval's theorem the squared difference of two Patterson maps is that of their intensities |F|², so no
map is computed. Only low frequencies are compared: they cost less, and peaks of a map are too imprecise for high ones.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from patterson_jax.errors import require

WAYS = ('annealed', 'greedy')


@dataclasses.dataclass(frozen=True)
class SeparationSettings:
    """How to separate. Raises InputError.

    Attributes:
        num_peaks: number of peaks taken from a map ("20 or so" in the paper); with their inverses they are candidates.
        method: 'annealed' or 'greedy'.
        num_swaps: number of swaps tried in each chain.
        num_chains: number of chains, from different random sets; the best is kept.
        resolution: highest |h| of the frequencies that are compared.
        first_threshold: the annealed method keeps a swap that raises the relative misfit by less than a threshold; this
            is the threshold of the first swap.
        last_threshold: of the last swap; it changes linearly between the two.
    """

    num_peaks: int = 24
    method: str = 'annealed'
    num_swaps: int = 4000
    num_chains: int = 4
    resolution: float = 10.0
    first_threshold: float = 0.02
    last_threshold: float = 0.001

    def __post_init__(self):
        for field in ('num_peaks', 'num_swaps', 'num_chains'):
            require(getattr(self, field) >= 1, field, getattr(self, field), '1 or more')
        require(self.method in WAYS, 'method', self.method, f'one of {", ".join(WAYS)}')
        finite = math.isfinite(self.resolution) and self.resolution >= 1
        require(finite, 'resolution', self.resolution, 'a number, 1 or more')
        for field in ('first_threshold', 'last_threshold'):
            value = getattr(self, field)
            require(math.isfinite(value) and value >= 0, field, value, 'a number, 0 or more')


class Separation(NamedTuple):
    """The result of a separation.

    Attributes:
        order: `(num_candidates,)`, the candidates' indices; the first `num_atoms` are the best set that was found.
        misfit: of that set, Σ(|F|² − measured)² / Σ(measured)².
        history: `(num_swaps,)`, the best chain's misfit after each swap tried.
    """

    order: Array
    misfit: Array
    history: Array


def separate(
    key: Array, factors: Array, intensities: Array, num_atoms: ArrayLike, settings: SeparationSettings
) -> Separation:
    """Chooses `num_atoms` of the candidates by swaps from random sets, the best of several chains.

    A swap is kept if the misfit falls; the annealed method also keeps one that raises it by less than a threshold,
    which goes linearly from `first_threshold` to `last_threshold`.

    Args:
        key: fixes the starts and the swaps.
        factors: complex `(num_candidates, num_frequencies)`, each candidate's structure factors; more candidates than
            `num_atoms`.
        intensities: `(num_frequencies,)`, measured |F|² at these frequencies, on the scale of `factors`.
        num_atoms: size of the set.
        settings: number of swaps and chains, method.
    """
    if settings.method == 'greedy':
        thresholds = jnp.zeros(settings.num_swaps)
    else:
        thresholds = jnp.linspace(settings.first_threshold, settings.last_threshold, settings.num_swaps)

    def draw(chain_key):
        return _draw_chain(chain_key, factors.shape[0], num_atoms, settings.num_swaps)

    def chain(order, members, others):
        return _swap_chain(order, members, others, thresholds, factors, intensities, num_atoms)

    # One chain after the other, because that compiles faster, and the draws take no time.
    draws = jax.lax.map(draw, jax.random.split(key, settings.num_chains))
    chains = jax.vmap(chain)(*draws)
    best = jnp.argmin(chains.misfit)
    return jax.tree.map(lambda each: each[best], chains)


def _draw_chain(key, num_candidates, num_atoms, num_swaps):
    """A random order of the candidates, and of each swap the places of the member and of the other, `(num_swaps,)`."""
    order_key, member_key, other_key = jax.random.split(key, 3)
    order = jax.random.permutation(order_key, num_candidates)
    members = jax.random.randint(member_key, (num_swaps,), 0, num_atoms)
    others = jax.random.randint(other_key, (num_swaps,), num_atoms, num_candidates)
    return order, members, others


def _swap_chain(order, members, others, thresholds, factors, intensities, num_atoms):
    """Runs one chain. Its state is the order of the candidates, of which the first `num_atoms` are the set."""
    places, norm = jnp.arange(len(order)), jnp.sum(intensities**2)

    def misfit_of(total):
        return jnp.sum((total.real**2 + total.imag**2 - intensities) ** 2) / norm

    def swap(state, step):
        order, total, misfit, best_order, best_misfit = state
        member, other, threshold = step
        leaving, entering = order[member], order[other]
        new_total = total - factors[leaving] + factors[entering]
        new_misfit = misfit_of(new_total)
        keep = new_misfit < misfit + threshold
        new_order = jnp.where(places == member, entering, jnp.where(places == other, leaving, order))
        order = jnp.where(keep, new_order, order)
        total = jnp.where(keep, new_total, total)
        misfit = jnp.where(keep, new_misfit, misfit)
        best_order = jnp.where(misfit < best_misfit, order, best_order)
        return (order, total, misfit, best_order, jnp.minimum(misfit, best_misfit)), misfit

    total = jnp.sum(jnp.where((places < num_atoms)[:, None], factors[order], 0), axis=0)
    misfit = misfit_of(total)
    start = (order, total, misfit, order, misfit)
    (_, _, _, order, misfit), history = jax.lax.scan(swap, start, (members, others, thresholds))
    return Separation(order, misfit, history)
