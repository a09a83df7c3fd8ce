"""Builds the atoms of a crystal from a phased map.

Peaks of the map in its space group are the first atoms. Then these steps are repeated: the atoms are refined; the
scattering power of each, refined as an occupancy, decides its element; atoms that turn out weak or have a high U are
dropped; peaks of the difference map are added. Atoms stay exactly on special positions. Hydrogen is not searched for.
"""

import itertools
import math

import numpy as np

from patterson_jax.solving import crystal_maps as maps
from patterson_jax.solving.crystal_elements import (
    assign_elements,
    has_contrast,
    lightest_power,
    missing_share,
    powers_of,
    without_hydrogen,
)
from patterson_jax.solving.crystal_model import FIRST_U, GIVEN_UP_R, MOST_PEAKS, CrystalInGroup, Model, Refined, refined

ROUNDS, MOST_ROUNDS = 6, 10  # of revision, and while many atoms are missing
MANY = 0.03  # share of the formula's atoms
SPACE_OF_AN_ATOM = 11.0  # Å³, the least volume of an atom other than hydrogen
LEAST_PEAK = 2.5  # standard deviations of the map above its mean, of a first atom
SAME_ATOM = 0.6  # Å; a nearer image of a site is the site itself
CLOSEST = 0.95  # Å, the least distance of two sites
HIGHEST_U = 0.2  # Å²; an atom with a higher U is dropped
WEAKEST = 0.45  # an atom is dropped if its power is below this part of the lightest possible element's
NEW_PEAK = 0.35  # a difference peak is tried as an atom above this part of the lightest element's height
NEW_PEAK_IF_WANTING = 0.2  # the same while there are fewer atoms than the formula says
FIRST_RATIO = 6  # reflections for each parameter in the rounds
CYCLES, POWER_CYCLES = 5, 3  # of refinement in a round, without and with occupancies


def first_model(crystal: CrystalInGroup, density: np.ndarray) -> Model:
    """Peaks of a phased map over the given cell, as atoms; there are none if no peak is high enough."""
    number = int(np.ceil(crystal.data.cell.volume / SPACE_OF_AN_ATOM))
    peaks = maps.sharp_peaks(density, *crystal.symmetry, least=LEAST_PEAK * density.std(), number=2 * number)
    sites, strengths = _distinct(crystal, peaks.positions, peaks.integrals, np.zeros((0, 3)))
    multiplicities = crystal.multiplicities(sites)
    within = np.cumsum(multiplicities) <= max(number, multiplicities[:1].sum())
    elements = assign_elements(strengths[within], multiplicities[within], crystal.data)
    return Model(crystal, sites[within], np.full(len(elements), FIRST_U), elements)


def built(model: Model) -> Model:
    """A model after rounds of revision; it has no atoms if none holds.

    While many atoms are missing beside heavy ones, dropped ones are tried again, as they may have seemed too weak.
    """
    rejected = nowhere = np.zeros((0, 3))
    for turn in range(MOST_ROUNDS):
        if not model.elements:
            break
        hidden = has_contrast(without_hydrogen(model.crystal.data.formula))
        many_missing = hidden and _missing(model.crystal, model.positions) > MANY
        last = turn + 1 >= (MOST_ROUNDS if many_missing else ROUNDS)
        model, dropped, changed, r_factor = _revised(model, nowhere if many_missing else rejected, last)
        if turn:
            rejected = np.concatenate([rejected, dropped])
        if last or not changed or (turn and r_factor > GIVEN_UP_R):
            break
    return model


def _revised(model, rejected, last):
    """One round of revision: refines, drops atoms, adds peaks, assigns elements.

    Returns the model, positions of dropped atoms, whether anything changed, and R1.
    """
    crystal = model.crystal
    most = FIRST_RATIO * (5 * len(model.positions) + 1)
    model = refined(model, CYCLES, most=most)
    reached = refined(model, POWER_CYCLES, occupancies=True, most=most)
    weakest = WEAKEST * min(lightest_power(crystal.data), powers_of(model.elements).min())
    holding = (reached.u_iso < HIGHEST_U) & (reached.powers > weakest) & ~_crowded(model, reached.powers)
    positions, u_iso, powers = (each[holding] for each in (reached.positions, reached.u_iso, reached.powers))
    elements = tuple(itertools.compress(model.elements, holding))
    dropped = reached.positions[~holding]
    if elements and not last:
        added, new_powers = _new_sites(reached, positions, powers, rejected)
        positions, powers = np.concatenate([positions, added]), np.concatenate([powers, new_powers])
        u_iso = np.append(u_iso, np.full(len(added), FIRST_U))
    current = () if len(dropped) else elements
    new = assign_elements(powers, crystal.multiplicities(positions), crystal.data, current)
    changed = len(dropped) > 0 or new != elements
    return Model(crystal, positions, u_iso, new), dropped, changed, reached.r_factor


def _crowded(model: Model, powers: np.ndarray) -> np.ndarray:
    """Whether each site is too near to a stronger one."""
    crowded = np.zeros(len(powers), bool)
    for first, second, _, _ in maps.contacts(model.positions, *model.crystal.symmetry, reach=CLOSEST):
        crowded[first] |= powers[first] < powers[second]
    return crowded


def _new_sites(
    reached: Refined, positions: np.ndarray, powers: np.ndarray, rejected: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Difference peaks that may be atoms beside those that hold, and their powers; not at rejected positions."""
    crystal = reached.crystal
    heights = np.maximum(maps.values_at(reached.density, positions), 1e-6)
    light = powers <= np.quantile(powers, 0.5)
    per_power = float(np.median(heights[light] / powers[light]))
    missing = _missing(crystal, positions)
    level = (NEW_PEAK_IF_WANTING if missing > 0 else NEW_PEAK) * lightest_power(crystal.data) * per_power
    peaks = maps.sharp_peaks(reached.difference, *crystal.symmetry, least=level, number=MOST_PEAKS)
    sites, new_heights = _distinct(crystal, peaks.positions, peaks.heights, np.concatenate([positions, rejected]))
    most = max(len(positions) // 3, math.ceil(len(positions) * missing / (1 - missing) / 2), 3)
    return sites[:most], new_heights[:most] / per_power


def _missing(crystal: CrystalInGroup, positions: np.ndarray) -> float:
    """Share of the formula's atoms for which there is no site yet."""
    return missing_share(float(crystal.multiplicities(positions).sum()), crystal.data)


def _distinct(
    crystal: CrystalInGroup, positions: np.ndarray, strengths: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sites, strongest first, settled on special positions, without those too near to a stronger one or to `others`."""
    order = np.argsort(-strengths, kind='stable')
    sites, _ = crystal.settled(positions[order], SAME_ATOM)
    kept = maps.apart(sites, others, *crystal.symmetry, least=CLOSEST)
    return sites[kept], strengths[order[kept]]
