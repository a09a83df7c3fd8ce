"""Assigns an element to each site, from its scattering power and from the formula.

The *power* of a site is its form factor at sin θ/λ = 0.3 Å⁻¹, in electrons. If an occupancy is refined with a wrong
element, it makes up for the ratio of the form factors there, not for the ratio of the atomic numbers.

With a formula the counts decide: sites in the order of their powers take elements in the order of atomic numbers. This
needs no scale. The number of formula units in the cell follows from the number of sites, or, beside heavy atoms, from
the room in the cell. Without a formula, or if the sites do not fit it, each site takes the nearest of the elements
that may occur. The scale is then such that the lightest sites are carbon or another *anchor*.
"""

import functools
import math
from collections.abc import Iterable

import gemmi
import numpy as np

from patterson_jax.crystal.scatterers import form_factors
from patterson_jax.crystal.structure import CrystalData

POWER_AT = 0.6  # 1/d in 1/Å
FITTING = 0.22  # rms of ln(power of the site / power of the element) above which a formula does not fit the sites
BETTER = 1.15  # ratio of the misfits of two assignments up to which the older one is kept
SPREAD = 0.08  # relative error of the power of a site, beside its standard uncertainty
LIGHTEST_QUANTILE = 0.3  # without a formula the site at this quantile of the powers is the anchor
ANCHORS = ('C', 'N', 'O', 'F')
UNLIKELY = {'He', 'Ne', 'Ar', 'Kr', 'Xe', 'Rn', 'H', 'Li', 'Be', 'Tc', 'Pm', 'Po', 'At', 'Fr', 'Ra', 'Ac', 'Pa'}
# Where nothing is known, any others up to uranium may occur.
LIKELY = tuple(each for each in (gemmi.Element(number).name for number in range(1, 93)) if each not in UNLIKELY)
LEAST_SPACE, ROOM, MOST_SPACE = 8.0, 10.0, 40.0  # Å³ for an atom other than hydrogen: the least, usual and most
CONTRAST = 4.0  # ratio of the powers of elements above which light ones are hard to see
MISCOUNTED = 0.5  # atoms by which the number from a formula may be wrong
AS_GIVEN = 0.3  # |ln(atoms in the formula / sites)| up to which the formula counts as the contents of the cell
PROPORTIONAL = 0.15  # part of its atoms, two at least, by which the number of an element may be wrong


def atomic_number(symbol: str) -> int:
    """The atomic number of a chemical symbol."""
    return gemmi.Element(symbol).atomic_number


@functools.lru_cache
def power(symbol: str) -> float:
    """The form factor of an element at sin θ/λ = 0.3 Å⁻¹, in electrons."""
    return float(form_factors([symbol], np.array([POWER_AT]))[0, 0])


def powers_of(elements: Iterable[str]) -> np.ndarray:
    """The power of each of some elements, `(n,)`."""
    return np.array([power(each) for each in elements])


def without_hydrogen(formula: dict[str, float] | None) -> dict[str, float]:
    """The elements of a formula without hydrogen, heaviest first; empty without a formula."""
    kept = {symbol: count for symbol, count in (formula or {}).items() if count > 0 and atomic_number(symbol) > 1}
    return dict(sorted(kept.items(), key=lambda item: -atomic_number(item[0])))


def possible_elements(data: CrystalData) -> tuple[str, ...]:
    """The elements that may occur in a crystal, without hydrogen, lightest first."""
    given = without_hydrogen(data.formula) or {each for each in data.elements if atomic_number(each) > 1}
    return tuple(sorted(given, key=atomic_number)) or LIKELY


def lightest_power(data: CrystalData) -> float:
    """The power of the lightest element that may occur in a crystal; that of carbon if nothing is known."""
    return power(possible_elements(data)[0] if data.formula or data.elements else 'C')


def anchors(data: CrystalData) -> tuple[str, ...]:
    """Possible elements of the lightest sites, where there is no formula; with one they do not matter."""
    if without_hydrogen(data.formula):
        return ('',)
    possible = possible_elements(data)
    return tuple(each for each in ANCHORS if each in possible) or possible[:2]


def has_contrast(elements: Iterable[str]) -> bool:
    """Whether there are heavy elements beside light ones, without hydrogen, so that those may be hard to see."""
    powers = powers_of(elements)
    return bool(len(powers) and powers.max() > CONTRAST * powers.min())


def contents(counts: dict[str, float], sites: float, volume: float) -> dict[str, float]:
    """Atoms of each element in the cell: the formula if it fits the number of sites, else its nearest multiple.

    Beside heavy atoms the light ones may have no site yet. There a formula with more atoms than sites is taken as it
    is, if the cell has room for them.
    """
    whole = [round(each) for each in counts.values()]
    exact = all(abs(each - count) < 0.02 for each, count in zip(whole, counts.values(), strict=True))
    smallest = 1 / math.gcd(*whole) if exact else 1.0
    total = sum(counts.values())
    wanted = float(np.clip(sites, volume / MOST_SPACE, volume / LEAST_SPACE))
    fits = abs(np.log(total / wanted)) < AS_GIVEN or (has_contrast(counts) and wanted < total <= volume / ROOM)
    multiple = 1.0 if fits else max(round(wanted / total / smallest), 1) * smallest
    return {symbol: count * multiple for symbol, count in counts.items()}


def missing_share(sites: float, data: CrystalData) -> float:
    """Share of the formula's atoms, without hydrogen, for which there are no sites in the cell; 0 without a formula."""
    counts = without_hydrogen(data.formula)
    if not counts:
        return 0.0
    return max(1 - (sites + MISCOUNTED) / sum(contents(counts, sites, data.cell.volume).values()), 0.0)


def follow_formula(elements: tuple[str, ...], multiplicities: np.ndarray, data: CrystalData) -> bool | None:
    """Whether atoms of some elements and multiplicities `(n,)` have the formula's proportions; None without one."""
    counts = without_hydrogen(data.formula)
    if not counts:
        return None
    found = {each: float(multiplicities @ (np.array(elements) == each)) for each in {*counts, *elements}}
    ratio = sum(found.values()) / sum(counts.values())
    errors = {each: abs(number - ratio * counts.get(each, 0)) for each, number in found.items()}
    return all(errors[each] <= PROPORTIONAL * max(found[each], 2) for each in found)


def assign_elements(
    powers: np.ndarray, multiplicities: np.ndarray, data: CrystalData, current: tuple[str, ...] = (), anchor: str = ''
) -> tuple[str, ...]:
    """Assigns elements to sites; their chemical symbols.

    Args:
        powers: `(n,)`, of the sites, on any scale.
        multiplicities: `(n,)`, of the sites in the cell.
        data: of the crystal; its formula, elements and cell are used.
        current: elements that are kept unless others fit clearly better; those of other sites do not count.
        anchor: element of the lightest sites where there is no formula; '': carbon, if it is allowed.
    """
    if not len(powers):
        return ()
    powers = np.maximum(powers, 1e-3)
    new = _nearest(powers, possible_elements(data), anchor)
    if counts := without_hydrogen(data.formula):
        counted = _by_counts(powers, multiplicities, counts, data.cell.volume)
        if _misfit(powers, counted) <= max(FITTING, 1.5 * _misfit(powers, new)):
            new = counted
    if sorted(current) == sorted(new) and _misfit(powers, current) < BETTER * _misfit(powers, new):
        return current
    return new


def _by_counts(powers, multiplicities, counts, volume):
    """Gives elements in the order of atomic numbers to sites in the order of powers."""
    left = contents(counts, float(np.sum(multiplicities)), volume)
    lightest = list(left)[-1]
    elements = [lightest] * len(powers)
    for site in np.argsort(-powers, kind='stable'):
        symbol = next((each for each in left if left[each] >= multiplicities[site] / 2), lightest)
        elements[site] = symbol
        left[symbol] -= multiplicities[site]
    return tuple(elements)


def _nearest(powers, allowed, anchor):
    """Gives each site the nearest allowed element, on a scale on which the lightest sites are the anchor."""
    theirs = powers_of(allowed)
    anchor = anchor or ('C' if 'C' in allowed else allowed[0])
    scale = power(anchor) / np.quantile(powers, LIGHTEST_QUANTILE)
    for _ in range(4):
        nearest = np.argmin(np.abs(np.log(scale * powers[:, None] / theirs)), axis=1)
        elements = tuple(allowed[each] for each in nearest)
        scale = _fitting_scale(powers, elements)
    return elements


def _fitting_scale(powers, elements):
    """The factor from the powers of sites to those of elements that fits the median site."""
    return float(np.exp(np.median(np.log(powers_of(elements) / powers))))


def _misfit(powers, elements):
    scale = _fitting_scale(powers, elements)
    return float(np.sqrt(np.mean(np.log(scale * powers / powers_of(elements)) ** 2)))


def confidences(
    powers: np.ndarray, uncertainties: np.ndarray, elements: tuple[str, ...], possible: tuple[str, ...]
) -> np.ndarray:
    """The probability of each site's element among the possible ones, `(n,)`.

    Args:
        powers: `(n,)`, of the sites, in electrons.
        uncertainties: `(n,)`, of the powers.
        elements: of the sites.
        possible: elements that may occur.
    """
    possible = tuple(dict.fromkeys([*possible, *elements]))
    theirs = powers_of(possible)
    widths = np.hypot(uncertainties, SPREAD * powers)[:, None]
    odds = np.exp(-(((powers[:, None] - theirs) / widths) ** 2) / 2) + 1e-9
    columns = np.array([possible.index(each) for each in elements])
    return odds[np.arange(len(elements)), columns] / odds.sum(axis=1)
