"""Maps as the search leaves them, of crystals whose structure is known, and what should have been found in their place.

A search has no origin and no hand. So the truth is moved to where it is nearest to the map, and inverted if that is
nearer.

A start from random phases needs hundreds of cycles. Part of the starts therefore have the true phases with errors, and
come to maps of all qualities in few cycles, with the errors that flipping makes.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from patterson_jax.crystal.grid import half_grid_frequencies
from patterson_jax.errors import require
from patterson_jax.precision import exact_products
from patterson_jax.solving.charge_flipping import (
    WEAK_PART,
    Search,
    flip,
    phased,
    random_density,
    shifting_wave,
)
from patterson_jax.solving.learned_projection import phase_agreement
from patterson_jax.solving.peaks import summit

CYCLES_AT_ONCE = 20
THRESHOLDS = (1.1, 1.4)  # σ, those of the search


@dataclasses.dataclass(frozen=True)
class StateSettings:
    """How maps are made. configs/projection.py explains the fields, section `states`. Raises InputError.

    Attributes:
        starts: for each crystal.
        near: share of the starts that begin near the truth: from a mean of the true and random phases.
        least_part: of the truth in that mean; the most is 1.
        most_cycles: of charge flipping; their number is drawn from 0 to this, small ones more often.
    """

    starts: int = 4
    near: float = 0.75
    least_part: float = 0.3
    most_cycles: int = 200

    def __post_init__(self):
        require(self.starts >= 1, 'starts', self.starts, '1 or more')
        for name in ('near', 'least_part'):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), 'from 0 to 1')
        require(self.most_cycles >= 0, 'most_cycles', self.most_cycles, '0 or more')


class Nearest(NamedTuple):
    """The truth where it is nearest to a map.

    Attributes:
        factors: `half_shape`, the true structure factors there.
        density: `shape`, the target there.
        correlation: mean cosine of the phase errors of the map, weighted by E².
    """

    factors: Array
    density: Array
    correlation: Array


def search_with(amplitudes: Array) -> Search:
    """The data for charge flipping, from E values on the half grid alone, which also take the place of F."""
    measured = amplitudes > 0
    limit = jnp.nanquantile(jnp.where(measured, amplitudes, jnp.nan), WEAK_PART)
    weak = measured & (amplitudes <= limit)
    strong = jnp.where(weak, 0, amplitudes)
    first, second, third = np.meshgrid(*half_grid_frequencies(_whole(amplitudes.shape)), indexing='ij', sparse=True)
    # Of the two Friedel mates on the plane with third index 0, one is turned the other way.
    positive = (third > 0) | (first > 0) | ((first == 0) & (second > 0))
    turns = jnp.where(weak, jnp.where(positive, 1, -1), 0).astype(amplitudes.dtype)
    patterson = jnp.where(measured, amplitudes**2 - 1, 0)
    return Search(jnp.stack([strong, strong]), jnp.stack([turns, turns]), amplitudes, patterson)


@exact_products
def draw_states(key: Array, amplitudes: Array, factors: Array, chunks: Array, settings: StateSettings) -> Array:
    """Starts of charge flipping on a crystal, `(starts, *half_shape)` complex.

    Args:
        key: of the starts.
        amplitudes: `half_shape`, measured E values.
        factors: `half_shape`, true structure factors.
        chunks: how often `CYCLES_AT_ONCE` cycles are run, `()` int32.
        settings: how many starts, and of what kind.
    """
    shape = _whole(amplitudes.shape)
    search = search_with(amplitudes)
    kinds = jnp.zeros(settings.starts, jnp.int32)
    thresholds = jnp.asarray(THRESHOLDS, jnp.float32)[jnp.arange(settings.starts) % len(THRESHOLDS)]
    near = jnp.arange(settings.starts) < round(settings.near * settings.starts)

    def begin(key, near):
        phase_key, part_key = jax.random.split(key)
        wrong = jnp.fft.rfftn(random_density(phase_key, search, jnp.int32(0), shape))
        part = jnp.where(near, jax.random.uniform(part_key, minval=settings.least_part), 0)
        mixed = phased(factors, part * amplitudes) + phased(wrong, (1 - part) * amplitudes)
        return jnp.fft.irfftn(phased(mixed, search.strong[0]), s=shape)

    densities = jax.vmap(begin)(jax.random.split(key, settings.starts), near)

    def advance(_, densities):
        return flip(densities, kinds, thresholds, search, CYCLES_AT_ONCE)[0]

    return jax.vmap(jnp.fft.rfftn)(jax.lax.fori_loop(0, chunks, advance, densities))


def draw_chunks(key: Array, settings: StateSettings) -> Array:
    """How often to run `CYCLES_AT_ONCE` cycles, `()` int32; the mean is a third of the most."""
    most = settings.most_cycles // CYCLES_AT_ONCE
    return jnp.floor(jax.random.uniform(key) ** 2 * (most + 1)).astype(jnp.int32)


@exact_products
def nearest_truth(factors: Array, amplitudes: Array, true_factors: Array, density: Array) -> Nearest:
    """Moves a structure to where it is nearest to a map, and inverts it if that is nearer still.

    Args:
        factors: `half_shape`, of the map.
        amplitudes: `half_shape`, measured E values.
        true_factors: `half_shape`, of the structure.
        density: `shape`, a map of the structure with the same origin.
    """
    shape = _whole(amplitudes.shape)
    spectrum = jnp.fft.rfftn(density)
    weighted = phased(factors, amplitudes**2)
    unit = phased(true_factors, jnp.ones_like(amplitudes))
    found = [_best_shift(weighted * each, shape) for each in (jnp.conj(unit), unit)]
    inverted = found[1][0] > found[0][0]
    shift = jnp.where(inverted, found[1][1], found[0][1])
    wave = shifting_wave(shift, shape)
    moved = jnp.where(inverted, jnp.conj(true_factors), true_factors) * wave
    target = jnp.fft.irfftn(jnp.where(inverted, jnp.conj(spectrum), spectrum) * wave, s=shape)
    return Nearest(moved, target, phase_agreement(factors, moved, amplitudes))


def _best_shift(products, shape):
    """Height of the highest peak of a correlation, and its place in fractions of the edges, between the voxels too."""
    values = jnp.fft.irfftn(products, s=shape)
    highest = jnp.stack(jnp.unravel_index(jnp.argmax(values), shape))
    return jnp.max(values), summit(values, highest) / jnp.asarray(shape, values.dtype)


def _whole(half_shape):
    """The shape of a map, of an even size along its last axis, whose transform has this one."""
    return half_shape[0], half_shape[1], 2 * (half_shape[2] - 1)
