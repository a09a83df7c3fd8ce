"""Tries elements for the atoms of a model, and keeps those that explain the data best.

Elements are tried that follow from the scattering powers of the sites, by the formula or on other scales; lighter ones
where an atom has more bonds than it can form; and those of two atoms in each other's place.
"""

import dataclasses

import numpy as np

from patterson_jax.solving.crystal_elements import anchors, assign_elements, confidences, possible_elements, powers_of
from patterson_jax.solving.crystal_model import ALIKE, GIVEN_UP_R, Model, Refined, refined
from patterson_jax.solving.crystal_molecule import bonds, within_valence
from patterson_jax.solving.crystal_verdict import poor_data

ROUNDS, TRIAL_CYCLES, FINAL_CYCLES = 3, 6, 15
UNCOUNTED = 1.06  # factor by which elements with other numbers than the formula's must have a lower R1
OTHER_ANCHOR = 1.18  # the same for another element of the lightest sites than the likeliest
UNLIKELY_U, NO_VIBRATION = 1.1, 0.005  # the same for elements that leave an atom with a lower U, Å²
MOST_EXCHANGES, EXCHANGES_TRIED, EXCHANGED_U = 8, 4, 3.0  # of elements of two atoms; least ratio of their U
AS_GOOD = 1.05  # ratio of R1 up to which other elements explain the data as well
UNFORESEEN_ANCHORS = ('C', 'O', 'Na', 'Si', 'Ca', 'Fe')  # elements of the lightest sites, if any may occur


class _Search:
    """The elements of a model, and others that are tried for its atoms.

    Attributes:
        data: of the crystal.
        multiplicities: of the atoms.
        tried: elements → the model with these, refined.
        handicaps: elements → factor by which others may have a higher R1.
    """

    def __init__(self, model):
        self.data, self.multiplicities = model.crystal.data, model.multiplicities
        self.tried, self.handicaps = {}, {}
        self.add(model, 1.0, FINAL_CYCLES)

    def add(self, model, handicap, cycles=TRIAL_CYCLES):
        """Refines a model, unless its elements were tried."""
        if model.elements not in self.tried:
            self.tried[model.elements] = refined(model, cycles)
            self.handicaps[model.elements] = handicap

    def rank(self, found):
        """R1 of what was tried, higher if the elements are unlikely."""
        unlikely = UNLIKELY_U if found.u_iso.min() < NO_VIBRATION else 1.0
        return self.handicaps[found.elements] * unlikely * found.r_factor

    @property
    def best(self):
        return min(self.tried.values(), key=self.rank)

    @property
    def hopeless(self):
        return self.best.r_factor > GIVEN_UP_R


def with_best_elements(model: Model) -> tuple[Refined, np.ndarray]:
    """The refined model with the elements that explain the data best, and the confidence in each, `(n,)`."""
    search = _Search(model)
    _try_powers(search, poor_data(model.reflections_per_parameter, model.crystal.d_min))
    hopeless = search.hopeless
    if not search.data.formula:
        before = search.best
        bonded = bonds(model.positions, before.elements, *model.crystal.symmetry)
        lighter = within_valence(before.elements, bonded, possible_elements(search.data))
        search.add(before.with_elements(lighter), search.handicaps[before.elements])
    if not hopeless:
        _try_exchanges(search)
    return search.best, _confidences(search)


def _try_powers(search, poor):
    """Tries elements that the scattering powers of the sites give, with those that are best so far."""
    data = search.data
    ways = [(data, anchor, OTHER_ANCHOR if order else 1.0) for order, anchor in enumerate(anchors(data))]
    if data.formula and not poor:
        ways.append((dataclasses.replace(data, formula=None, elements=tuple(data.formula)), '', UNCOUNTED))
    for _ in range(ROUNDS):
        before = search.best
        for known, anchor, handicap in ways:
            elements = assign_elements(before.with_occupancies.powers, search.multiplicities, known, anchor=anchor)
            search.add(search.best.with_elements(elements), handicap)
        if search.best is before or search.hopeless:
            break


def _try_exchanges(search):
    """Exchanges the elements of two atoms as long as that is better."""
    for _ in range(MOST_EXCHANGES):
        before = search.best
        for light, heavy in _exchanges(before, search.multiplicities):
            elements, u_iso = [*before.elements], before.u_iso.copy()
            elements[light], elements[heavy] = elements[heavy], elements[light]
            u_iso[[light, heavy]] = np.median(u_iso)
            exchanged = Model(before.crystal, before.positions, u_iso, tuple(elements))
            search.add(exchanged, search.handicaps[before.elements], FINAL_CYCLES)
            if search.best is not before:
                break
        else:
            break


def _exchanges(model, multiplicities):
    """Pairs of a lighter atom and one of a heavier element with a much higher U, the widest apart first.

    Where data are poor, U makes up for an element that is wrong by one or two: of nitrogen and carbon that are taken
    for one another the first has U near zero and the second twice what others have.
    """
    heavier = model.numbers[None] - model.numbers[:, None]
    possible = (heavier > 0) & (heavier <= ALIKE) & (multiplicities[:, None] == multiplicities[None])
    ratios = np.where(possible, model.u_iso[None] / model.u_iso[:, None], 0)
    order = np.argsort(-ratios, axis=None, kind='stable')[:EXCHANGES_TRIED]
    return [divmod(int(each), len(heavier)) for each in order if ratios.flat[each] > EXCHANGED_U]


def _confidences(search):
    """The confidence in each of the best elements, from the powers of the sites and from other elements as good."""
    best = search.best
    rivals = [each.elements for each in search.tried.values() if each.r_factor < AS_GOOD * best.r_factor]
    agreeing = np.mean([np.array(each) == np.array(best.elements) for each in rivals], axis=0)
    powers, uncertainties = best.with_occupancies.powers, _uncertainties(best.with_occupancies)
    return confidences(powers, uncertainties, best.elements, possible_elements(search.data)) * agreeing


def _uncertainties(found):
    """The standard uncertainties of scattering powers, `(n,)`."""
    number, fit = len(found.positions), found.fit
    normal = fit.normal + np.diag(np.where(np.diag(fit.normal) > 0, 0, 1))
    widths = np.sqrt(np.diag(normal))
    covariance = np.linalg.pinv(normal / widths[:, None] / widths, hermitian=True) / widths[:, None] / widths
    degrees = max(len(found.crystal.hkl) - 5 * number, 1)
    variances = np.diag(covariance)[4 * number : 5 * number] * float(fit.misfit) / degrees
    return np.sqrt(np.maximum(variances, 0)) * powers_of(found.elements)


def unforeseen_elements(found: Refined) -> Refined:
    """The elements, of all that may occur in any crystal, that explain the data best at these sites.

    U and the scale can make up for wrong atomic numbers, but not for wrong ratios and shapes of form factors. For
    measured crystals with the right formula R1 is at most 3 % above this R1. With elements of the next period it is at
    least 17 % above, with slightly lighter ones 2 to 150 %. The error is missed only where most atoms stay right.
    """
    powers = found.with_occupancies.powers
    data = dataclasses.replace(found.crystal.data, formula=None, elements=())

    def with_anchor(anchor):
        elements = assign_elements(powers, found.multiplicities, data, anchor=anchor)
        return refined(found.with_elements(elements), TRIAL_CYCLES)

    return min(map(with_anchor, UNFORESEEN_ANCHORS), key=lambda each: each.r_factor)
