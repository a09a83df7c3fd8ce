"""From the phased map of a crystal to its atoms, elements and a verdict.

Peaks of the map in its space group are the first atoms. Then these steps are repeated: the atoms are refined; the
scattering power of each, refined as an occupancy, decides its element; atoms that turn out weak or have a high U are
dropped; peaks of the difference map are added. Atoms stay exactly on special positions. Hydrogen is not searched for,
twins are not refined, and the hand is not determined.
"""

import collections
import dataclasses
import itertools
from typing import Any, NamedTuple

import numpy as np

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.scatterers import AsymmetricUnit, form_factors, group_operations
from patterson_jax.crystal.structure import CrystalData, Site, SpaceGroup
from patterson_jax.solving import crystal_maps as maps
from patterson_jax.solving.crystal_elements import (
    anchors,
    assign_elements,
    atomic_number,
    confidences,
    missing_share,
    possible_elements,
    power,
    without_hydrogen,
)
from patterson_jax.solving.crystal_molecule import assemble, bonds, within_valence
from patterson_jax.solving.crystal_refinement import Fit, observations, refine, up_to
from patterson_jax.solving.crystal_verdict import (
    MOST_WEAK,
    U_RANGE,
    Evidence,
    Findings,
    expected_r_factor,
    judge_crystal,
    poor_data,
)

ROUNDS = 6
SPACE_OF_AN_ATOM = 11.0  # Å³, the least volume of an atom other than hydrogen
SAME_ATOM = 0.6  # Å; a nearer image of a site is the site itself
CLOSEST = 0.95  # Å, the least distance of two sites
FIRST_U = 0.04  # Å²
HIGHEST_U = 0.2  # Å²; an atom with a higher U is dropped
WEAKEST = 0.45  # an atom is dropped if its power is below this part of the lightest possible element's
NEW_PEAK = 0.35  # a difference peak is tried as an atom above this part of the lightest element's height
NEW_PEAK_IF_WANTING = 0.2  # the same while there are fewer atoms than the formula says
LEAST_DATA = 2.0  # reflections for each parameter; a model with fewer explains any data
GIVEN_UP_R = 0.45  # above this R1 after a round of revision, or of elements, no more rounds are made
MUCH_BETTER = 0.75  # other elements than the formula's are preferred if their R1 is below this part of R1
ELEMENT_ROUNDS, TRIAL_CYCLES = 3, 6
UNCOUNTED = 1.06  # factor by which elements with other numbers than the formula's must have a lower R1
OTHER_ANCHOR = 1.18  # the same for another element of the lightest sites than the likeliest
MOST_EXCHANGES, EXCHANGES_TRIED, EXCHANGED_U = 8, 4, 3.0  # of elements of two atoms; least ratio of their U
UNLIKELY_U = 1.1  # factor by which elements that leave an atom without vibration must have a lower R1
AS_GOOD = 1.05  # ratio of R1 up to which other elements explain the data as well
UNFORESEEN = 0.93  # ratio of R1 below which elements outside of the formula make its elements doubtful
UNFORESEEN_ANCHORS = ('C', 'O', 'Na', 'Si', 'Ca', 'Fe')  # elements of the lightest sites that are tried for that
FIRST_RATIO = 6  # reflections for each parameter in the first rounds
FINAL_CYCLES = 15
MOST_PEAKS = 200  # in the cell
NEAR_ATOM = 1.0  # Å; a difference peak or hole so near belongs to the atom
HYDROGEN = (0.7, 1.25)  # Å from a light atom
MOST_BONDS = {'C': 4, 'N': 4, 'O': 3}  # to C, N and O
LONGEST_LIGHT = 1.75  # Å, of a bond between those
SAME_TRANSLATION, SAME_PLACE = 0.5, 0.4  # Å
OBEYING = 0.85  # part of the atoms that must obey a further operation
ALIKE = 2  # difference of atomic numbers up to which elements can be confused
TELLING_PARITY, LEAST_OF_PARITY = 2.0, 20  # ratio of R1 of a class to that of the others; reflections of each
PROBES = 12  # atoms on which an operation is tested first
STRONG = 4.0  # F/σ(F) above which reflections count in R1


@dataclasses.dataclass(frozen=True)
class Interpretation:
    """The atoms of a phased map and the verdict on them.

    Attributes:
        space_group: of the atoms.
        atoms: the asymmetric unit.
        r_factor: R1 of the isotropic model over reflections with F > 4σ(F); None without atoms.
        verdict: 'solved', 'uncertain' or 'not solved'.
        reasons: for the verdict, in words.
        density: over the given cell, roughly in electrons/Å³, with the phases of the model.
        findings: the grounds of the verdict; None without atoms.
    """

    space_group: SpaceGroup
    atoms: tuple[Site, ...]
    r_factor: float | None
    verdict: str
    reasons: tuple[str, ...]
    density: np.ndarray
    findings: Findings | None = None

    def with_findings(self, evidence: Evidence, **changed: Any) -> 'Interpretation':
        """The same atoms with findings of which some are changed, judged again."""
        assert self.findings is not None  # because it has atoms
        findings = dataclasses.replace(self.findings, **changed)
        verdict, reasons = judge_crystal(findings, evidence)
        group = dataclasses.replace(self.space_group, certain=findings.group_certain)
        return dataclasses.replace(self, space_group=group, findings=findings, verdict=verdict, reasons=reasons)


@dataclasses.dataclass(frozen=True)
class _Crystal:
    """The data, which do not change: allowed reflections in order of 1/d, with intensities scaled to a mean of 1."""

    data: CrystalData
    space_group: SpaceGroup
    hkl: np.ndarray
    spacings: np.ndarray
    intensities: np.ndarray
    sigmas: np.ndarray

    @property
    def amplitudes(self):
        return np.sqrt(np.maximum(self.intensities, 0))

    @property
    def operations(self):
        return self.space_group.operations

    @property
    def symmetry(self) -> tuple[UnitCell, maps.Seitz]:
        """The cell and its operations, as the functions of `crystal_maps` take them."""
        return self.data.cell, self.operations

    @property
    def shape(self):
        return maps.grid_shape(self.data.cell, 1 / self.spacings[-1])

    def map(self, structure_factors):
        return maps.symmetric_map(self.hkl, structure_factors, self.operations, self.shape, self.data.cell.volume)


@dataclasses.dataclass(frozen=True)
class _Model:
    """Atoms of the asymmetric unit, on full sites."""

    positions: np.ndarray
    u_iso: np.ndarray
    elements: tuple[str, ...]
    scale: float = 0.0

    def kept(self, which):
        """The atoms that a mask selects."""
        elements = tuple(itertools.compress(self.elements, which))
        return _Model(self.positions[which], self.u_iso[which], elements, self.scale)

    def after(self, fit):
        """The atoms after a fit."""
        return _Model(np.asarray(fit.unit.positions, float), fit.unit.u_iso, self.elements, float(fit.scale))

    @property
    def numbers(self):
        return np.array([atomic_number(each) for each in self.elements])

    @property
    def powers(self):
        return np.array([power(each) for each in self.elements])


class _Trial(NamedTuple):
    """Elements that were tried.

    Attributes:
        model: with these, refined.
        fit: of the model.
        r_factor: R1.
        handicap: factor by which other elements may have a higher R1.
    """

    model: _Model
    fit: Fit
    r_factor: float
    handicap: float = 1.0

    @property
    def elements(self):
        return self.model.elements

    @property
    def rank(self):
        """R1, higher if the elements are unlikely."""
        unlikely = UNLIKELY_U if self.model.u_iso.min() < U_RANGE[0] else 1.0
        return self.handicap * unlikely * self.r_factor


def interpret_phases(
    data: CrystalData,
    space_group: SpaceGroup,
    hkl: np.ndarray,
    structure_factors: np.ndarray,
    evidence: Evidence,
) -> Interpretation:
    """Finds atoms, elements and a verdict from phases.

    No atoms are the answer if the group has less than half of the operations of the Laue class, because no structure
    of such a group has these intensities, or if the map has so many atoms that they would explain any data.

    Args:
        data: of the crystal.
        space_group: of the crystal.
        hkl: `(n, 3)` int, reflections with phases; those without an equivalent in the data are not used.
        structure_factors: `(n,)` complex, observed amplitude times phase, in the given cell and with the origin of the
            space group.
        evidence: how the phases were found.
    """
    crystal = _prepare(data, space_group)
    phased = _phased(crystal, np.asarray(hkl), structure_factors)
    operations, of_the_class = len(np.unique(crystal.operations[0], axis=0)), len(data.rotations)

    def without_atoms(reason):
        return Interpretation(space_group, (), None, 'not solved', (reason,), crystal.map(phased))

    if 2 * operations < of_the_class:
        return without_atoms(
            f'the phases show only {operations} of the {of_the_class} operations of the Laue class {data.laue_class}, '
            'and any structure has at least half of them: the map is wrong, or the class'
        )
    model = _built(crystal, _first_model(crystal, phased))
    if not len(model.positions):
        return without_atoms('no atom of the map holds in refinement')
    if _explains_anything(crystal, model):
        return without_atoms(
            f'the map needs {len(model.positions)} atoms, for which {len(crystal.hkl)} reflections are too few: '
            'so many atoms explain any data'
        )
    found = _finished(crystal, model, evidence)
    unexplained = found.findings.r_factor > expected_r_factor(found.findings)
    if data.formula and unexplained and found.findings.weak_intensity < MOST_WEAK:
        free = dataclasses.replace(crystal, data=dataclasses.replace(data, formula=None))
        model = _built(free, model)
        if len(model.positions) and not _explains_anything(free, model):
            other = _finished(free, model, evidence)
            if other.findings.r_factor < MUCH_BETTER * found.findings.r_factor:
                other = other.with_findings(evidence, follows_formula=False)
                reason = 'the elements of the formula do not explain the data; these do'
                return dataclasses.replace(other, reasons=(*other.reasons, reason))
    return found


def judge_atoms(
    data: CrystalData,
    space_group: SpaceGroup,
    positions: np.ndarray,
    elements: tuple[str, ...],
    evidence: Evidence,
) -> Interpretation:
    """Refines given atoms and judges them. No atom is dropped or added.

    Args:
        data: of the crystal.
        space_group: of the crystal.
        positions: `(n, 3)`, fractional, of the asymmetric unit; atoms near special positions are put onto them.
        elements: of the atoms; others of the same formula are tried too.
        evidence: how the atoms were found.
    """
    crystal = _prepare(data, space_group)
    settled, _ = _settled(crystal, np.asarray(positions, float), SAME_ATOM)
    model = _Model(settled, np.full(len(settled), FIRST_U), elements)
    return _finished(crystal, model, evidence)


def _built(crystal, model):
    """A model after rounds of revision; it has no atoms if none holds."""
    rejected = np.zeros((0, 3))
    for turn in range(ROUNDS):
        if not len(model.positions):
            break
        model, dropped, changed, r_factor = _revised(crystal, model, rejected, last=turn == ROUNDS - 1)
        if turn:
            rejected = np.concatenate([rejected, dropped])
        if not changed or (turn and r_factor > GIVEN_UP_R):
            break
    return model


def _prepare(data, space_group):
    """The allowed reflections in order of 1/d."""
    allowed = maps.allowed_reflections(data.hkl, space_group.symops)
    spacings = data.cell.inverse_spacings(data.hkl)
    order = np.argsort(spacings, kind='stable')
    order = order[allowed[order]]
    mean = np.mean(np.maximum(data.intensities[order], 0))
    intensities, sigmas = data.intensities[order] / mean, data.sigmas[order] / mean
    return _Crystal(data, space_group, data.hkl[order], spacings[order], intensities, sigmas)


def _phased(crystal, hkl, structure_factors):
    """The crystal's amplitudes with the phases of structure factors of equivalents; 0 where there is no equivalent."""
    values = maps.spectrum(hkl, structure_factors, crystal.operations, crystal.shape)[tuple(crystal.hkl.T)]
    return crystal.amplitudes * np.exp(1j * np.angle(values)) * (values != 0)


def _first_model(crystal: _Crystal, structure_factors: np.ndarray) -> _Model:
    """Peaks of the phased map as atoms."""
    density = crystal.map(structure_factors)
    data = crystal.data
    number = int(np.ceil(data.cell.volume / SPACE_OF_AN_ATOM))
    level = 2.5 * density.std()
    peaks = maps.sharp_peaks(density, *crystal.symmetry, least=level, number=2 * number)
    sites, strengths = _distinct(crystal, peaks.positions, peaks.integrals, np.zeros((0, 3)))
    if not len(sites):
        return _Model(sites, np.zeros(0), ())
    multiplicities = _multiplicities(crystal, sites)
    within = np.cumsum(multiplicities) <= max(number, multiplicities[:1].sum())
    sites, strengths, multiplicities = sites[within], strengths[within], multiplicities[within]
    return _Model(sites, np.full(len(sites), FIRST_U), _assigned(crystal, strengths, multiplicities))


def _assigned(crystal, powers, multiplicities, **choices):
    """Elements of sites (see `assign_elements`) from what is known of the crystal's contents."""
    data = crystal.data
    return assign_elements(powers, multiplicities, data.formula, data.cell.volume, data.elements, **choices)


def _distinct(
    crystal: _Crystal, positions: np.ndarray, strengths: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sites, strongest first, settled on special positions, without those too near to a stronger one or to `others`."""
    order = np.argsort(-strengths, kind='stable')
    sites, _ = _settled(crystal, positions[order], SAME_ATOM)
    kept = maps.apart(sites, others, *crystal.symmetry, least=CLOSEST)
    return sites[kept], strengths[order[kept]]


def _multiplicities(crystal, positions):
    """Multiplicities of positions: the numbers of their sites in the cell."""
    number = len(crystal.operations[0])
    return np.array([number // maps.stabiliser_order(each, *crystal.symmetry) for each in positions], int)


def _settled(crystal: _Crystal, positions: np.ndarray, tolerance: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Positions on the special positions that they are near to, in Å, and what keeps them there (see `settle`)."""
    settled = [maps.settle(each, *crystal.symmetry, tolerance=tolerance) for each in positions]
    return np.reshape([each for each, _ in settled], (-1, 3)), np.reshape([each for _, each in settled], (-1, 3, 3))


def _refined(crystal: _Crystal, model: _Model, cycles: int, occupancies: bool = False, most: int | None = None) -> Fit:
    """Refines a model against all reflections, or against the first ones, up to `most` and somewhat more.

    Occupancies of the fit are 1 on full sites.
    """
    positions, projectors = _settled(crystal, model.positions)
    orders = np.array([maps.stabiliser_order(each, *crystal.symmetry) for each in positions])
    palette = sorted(set(model.elements))
    rows = np.array([palette.index(each) for each in model.elements])
    unit = AsymmetricUnit(positions, model.u_iso, 1 / orders, rows)
    table = form_factors(palette, crystal.spacings, crystal.data.wavelength)
    reflections = observations(crystal.hkl, crystal.spacings, table, crystal.intensities, crystal.sigmas)
    reflections = reflections if most is None else up_to(reflections, most)
    operations = group_operations(crystal.space_group)
    fit = refine(unit, model.scale, projectors, operations, reflections, cycles, occupancies)
    return fit._replace(unit=fit.unit._replace(occupancies=fit.unit.occupancies * orders))


def _calculated(crystal, fit):
    """Fc in the order of the crystal's reflections."""
    return fit.structure_factors.ravel()[: len(crystal.hkl)]


def _revised(crystal, model, rejected, last):
    """One round of revision: refines, drops atoms, adds peaks, assigns elements.

    Returns the model, positions of dropped atoms, whether anything changed, and R1.
    """
    most = FIRST_RATIO * (5 * len(model.positions) + 1)
    model = model.after(_refined(crystal, model, 5, most=most))
    fit = _refined(crystal, model, 3, occupancies=True, most=most)
    powers = fit.unit.occupancies * model.powers
    lightest = _lightest(crystal)
    holding = (fit.unit.u_iso < HIGHEST_U) & (powers > WEAKEST * min(lightest, model.powers.min()))
    holding &= ~_crowded(crystal, model.positions, powers)
    model = model.after(fit)
    dropped = model.positions[~holding]
    model, powers = model.kept(holding), powers[holding]
    if not len(model.positions):
        return model, dropped, True, 1.0
    added = np.zeros((0, 3))
    if not last:
        added, new_powers = _new_sites(crystal, model, powers, fit, rejected)
        powers = np.concatenate([powers, new_powers])
    positions = np.concatenate([model.positions, added])
    current = None if len(added) or len(dropped) else model.elements
    elements = _assigned(crystal, powers, _multiplicities(crystal, positions), current=current)
    changed = bool(len(dropped) or len(added) or elements != model.elements)
    model = _Model(positions, np.append(model.u_iso, np.full(len(added), FIRST_U)), elements)
    return model, dropped, changed, _fitted_r_factor(crystal, fit)


def _lightest(crystal):
    """The power of the lightest element that may occur."""
    data = crystal.data
    given = data.formula or data.elements
    return power(possible_elements(data.formula, data.elements)[0]) if given else power('C')


def _crowded(crystal: _Crystal, positions: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """Whether each site is too near to a stronger one."""
    crowded = np.zeros(len(positions), bool)
    for first, second, _, _ in maps.contacts(positions, *crystal.symmetry, reach=CLOSEST):
        crowded[first] |= powers[first] < powers[second]
    return crowded


def _observed(crystal, fit):
    """Fo/k with the phases of the model."""
    return crystal.amplitudes / float(fit.scale) * np.exp(1j * np.angle(_calculated(crystal, fit)))


def _difference(crystal, fit):
    """(Fo/k − Fc) with the phases of the model."""
    return _observed(crystal, fit) - _calculated(crystal, fit)


def _new_sites(
    crystal: _Crystal, model: _Model, powers: np.ndarray, fit: Fit, rejected: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Difference peaks that may be atoms, with their powers."""
    density, difference = crystal.map(_observed(crystal, fit)), crystal.map(_difference(crystal, fit))
    heights = np.maximum(maps.values_at(density, model.positions), 1e-6)
    light = powers <= np.quantile(powers, 0.5)
    per_power = float(np.median(heights[light] / powers[light]))
    in_cell = float(_multiplicities(crystal, model.positions).sum())
    wanting = missing_share(in_cell, crystal.data.formula, crystal.data.cell.volume) > 0
    level = (NEW_PEAK_IF_WANTING if wanting else NEW_PEAK) * _lightest(crystal) * per_power
    peaks = maps.sharp_peaks(difference, *crystal.symmetry, least=level, number=MOST_PEAKS)
    sites, new_heights = _distinct(crystal, peaks.positions, peaks.heights, np.concatenate([model.positions, rejected]))
    most = max(len(model.positions) // 3, 3)
    return sites[:most], new_heights[:most] / per_power


def _finished(crystal, model, evidence):
    """The last refinement, the verdict and the atoms."""
    model, fit, sureness = _with_best_elements(crystal, model)
    density = crystal.map(_observed(crystal, fit))
    multiplicities = _multiplicities(crystal, model.positions)
    findings = _examined(crystal, model, fit, density, multiplicities)
    verdict, reasons = judge_crystal(findings, evidence)
    if crystal.data.formula and verdict != 'not solved':
        other = _unforeseen_elements(crystal, model, multiplicities)
        if other.r_factor < UNFORESEEN * findings.r_factor:
            sureness = np.where([a == b for a, b in zip(other.elements, model.elements, strict=True)], sureness, 0.0)
            reasons = (
                *reasons,
                f'but the elements are doubtful: with {", ".join(dict.fromkeys(other.elements))} in place of '
                f'{", ".join(dict.fromkeys(model.elements))} R1 would be {other.r_factor:.3f}',
            )
    atoms = _sites(crystal, model, multiplicities, sureness)
    return Interpretation(crystal.space_group, atoms, findings.r_factor, verdict, reasons, density, findings)


def _with_best_elements(crystal, model):
    """The refined model with the elements that explain the data best, its fit, and the confidence in each element."""
    data = crystal.data
    multiplicities = _multiplicities(crystal, model.positions)
    trials = {model.elements: _tried(crystal, model, FINAL_CYCLES)}
    poor = poor_data(len(crystal.hkl) / _number_of_parameters(crystal, model), 1 / crystal.spacings[-1])

    def best():
        return min(trials.values(), key=lambda each: each.rank)

    def try_elements(elements, handicap, u_iso=None, cycles=TRIAL_CYCLES):
        if elements not in trials:
            before = best().model
            other = _Model(before.positions, before.u_iso if u_iso is None else u_iso, elements, scale=0.0)
            trials[elements] = _tried(crystal, other, cycles, handicap)

    for _ in range(ELEMENT_ROUNDS):
        before = best()
        powers, _ = _powers(crystal, before.model)
        for order, anchor in enumerate(anchors(data.formula, data.elements)):
            elements = _assigned(crystal, powers, multiplicities, anchor=anchor)
            try_elements(elements, OTHER_ANCHOR if order else 1.0)
        if data.formula and not poor:
            uncounted = assign_elements(powers, multiplicities, None, data.cell.volume, tuple(data.formula))
            try_elements(uncounted, UNCOUNTED)
        hopeless = best().r_factor > GIVEN_UP_R
        if best() is before or hopeless:
            break
    if not data.formula:
        before = best()
        bonded = bonds(model.positions, before.elements, *crystal.symmetry)
        lighter = within_valence(before.elements, bonded, possible_elements(None, data.elements))
        try_elements(lighter, before.handicap)
    for _ in range(0 if hopeless else MOST_EXCHANGES):
        before = best()
        for light, heavy in _exchanges(before.model, multiplicities):
            exchanged, u_iso = [*before.elements], before.model.u_iso.copy()
            exchanged[light], exchanged[heavy] = exchanged[heavy], exchanged[light]
            u_iso[[light, heavy]] = np.median(u_iso)
            try_elements(tuple(exchanged), before.handicap, u_iso, FINAL_CYCLES)
            if best() is not before:
                break
        else:
            break
    chosen = best()
    rivals = [each.elements for each in trials.values() if each.r_factor < AS_GOOD * chosen.r_factor]
    agreeing = np.mean([[a == b for a, b in zip(each, chosen.elements, strict=True)] for each in rivals], axis=0)
    powers, uncertainties = _powers(crystal, chosen.model)
    possible = possible_elements(data.formula, data.elements)
    sureness = confidences(powers, uncertainties, chosen.elements, possible) * agreeing
    return chosen.model, chosen.fit, sureness


def _tried(crystal, model, cycles, handicap=1.0):
    """The refined model, as a `_Trial`."""
    fit = _refined(crystal, model, cycles)
    return _Trial(model.after(fit), fit, _fitted_r_factor(crystal, fit), handicap)


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


def _unforeseen_elements(crystal, model, multiplicities):
    """The elements, of all that may occur in any crystal, that explain the data best at these sites, as a `_Trial`.

    U and the scale can make up for wrong atomic numbers, but not for wrong ratios and shapes of form factors. For
    measured crystals with the right formula R1 is at most 3 % above this R1. With elements of the next period it is at
    least 17 % above, with slightly lighter ones 2 to 150 %. The error is missed only where most atoms stay right.
    """
    powers, _ = _powers(crystal, model)

    def with_anchor(anchor):
        elements = assign_elements(powers, multiplicities, None, crystal.data.cell.volume, anchor=anchor)
        return _tried(crystal, _Model(model.positions, model.u_iso, elements, scale=0.0), TRIAL_CYCLES)

    return min(map(with_anchor, UNFORESEEN_ANCHORS), key=lambda each: each.r_factor)


def _sites(crystal, model, multiplicities, sureness):
    """The atoms, heaviest first, as one connected molecule where possible."""
    places = assemble(model.positions, model.elements, *crystal.symmetry)
    counts: collections.Counter[str] = collections.Counter()
    atoms = []
    for index in np.lexsort((np.arange(len(places)), -model.numbers)):
        element = model.elements[index]
        counts[element] += 1
        label, place, u_iso = f'{element}{counts[element]}', tuple(places[index].tolist()), float(model.u_iso[index])
        atoms.append(Site(label, element, place, u_iso, 1.0, int(multiplicities[index]), float(sureness[index])))
    return tuple(atoms)


def _powers(crystal, model):
    """The scattering power of each site (see `crystal_elements`) and its standard uncertainty."""
    fit = _refined(crystal, model, 4, occupancies=True)
    number = len(model.positions)
    normal = fit.normal + np.diag(np.where(np.diag(fit.normal) > 0, 0, 1))
    widths = np.sqrt(np.diag(normal))
    covariance = np.linalg.pinv(normal / widths[:, None] / widths, hermitian=True) / widths[:, None] / widths
    degrees = max(len(crystal.hkl) - 5 * number, 1)
    variances = np.diag(covariance)[4 * number : 5 * number] * float(fit.misfit) / degrees
    return fit.unit.occupancies * model.powers, np.sqrt(np.maximum(variances, 0)) * model.powers


def _examined(crystal: _Crystal, model: _Model, fit: Fit, density: np.ndarray, multiplicities: np.ndarray) -> Findings:
    """The grounds of the verdict. Of poor data, elements do not tell sites apart."""
    data = crystal.data
    calculated = np.abs(_calculated(crystal, fit))
    peak, hole = _residues(crystal, model, density, crystal.map(_difference(crystal, fit)))
    near = maps.contacts(model.positions, *crystal.symmetry, reach=1.6)
    shares = multiplicities * model.numbers**2
    ratio, d_min = len(crystal.hkl) / _number_of_parameters(crystal, model), float(1 / crystal.spacings[-1])
    numbers = np.zeros_like(model.numbers) if poor_data(ratio, d_min) else model.numbers
    hkl, observed, deviations, noise = _deviations(crystal, calculated)
    parity, parity_r_factor, parity_noise = _worst_parity(hkl, observed, deviations, noise)
    return Findings(
        r_factor=_ratio(deviations, observed),
        noise_r_factor=_ratio(noise, observed),
        light_share=float(shares[model.numbers <= 10].sum() / shares.sum()),
        highest_peak=peak,
        deepest_hole=hole,
        lowest_u=float(model.u_iso.min()),
        highest_u=float(model.u_iso.max()),
        closest=min((each[2] for each in near), default=np.inf),
        odd_bonds=_odd_bonds(crystal, model),
        volume_per_atom=float(data.cell.volume / multiplicities.sum()),
        organic='C' in model.elements and bool(np.mean(model.numbers <= 10) > 0.6),
        absent_intensity=_absent_intensity(crystal),
        further_symmetry=further_symmetry(model.positions, numbers, crystal.space_group, data),
        parity=parity,
        parity_r_factor=parity_r_factor,
        parity_noise=parity_noise,
        weak_intensity=_weak_intensity(crystal, calculated),
        group_certain=crystal.space_group.certain,
        reflections_per_parameter=ratio,
        d_min=d_min,
        follows_formula=_follows(model.elements, multiplicities, data.formula),
        missing_share=missing_share(float(multiplicities.sum()), data.formula, data.cell.volume),
    )


def _number_of_parameters(crystal, model):
    """Of free coordinates, a U for each atom, and the scale."""
    _, projectors = _settled(crystal, model.positions)
    return int(np.sum(np.linalg.matrix_rank(projectors))) + len(projectors) + 1


def _explains_anything(crystal, model):
    return len(crystal.hkl) < LEAST_DATA * _number_of_parameters(crystal, model)


def _deviations(crystal, calculated):
    """Of reflections with F > 4σ(F): hkl, |Fo|, |Fo − k|Fc|| with the best k, and its mean if the model were right."""
    strong = crystal.intensities > STRONG / 2 * crystal.sigmas
    observed, calculated = crystal.amplitudes[strong], calculated[strong]
    scale = observed @ calculated / max(calculated @ calculated, 1e-12)
    noise = np.sqrt(2 / np.pi) * crystal.sigmas[strong] / (2 * observed)
    return crystal.hkl[strong], observed, np.abs(observed - scale * calculated), noise


def _ratio(deviations, observed):
    """R1; 1 without reflections."""
    return float(deviations.sum() / observed.sum()) if len(observed) else 1.0


def _fitted_r_factor(crystal, fit):
    """R1 over strong reflections, with the scale that fits them best."""
    _, observed, deviations, _ = _deviations(crystal, np.abs(_calculated(crystal, fit)))
    return _ratio(deviations, observed)


def _residues(crystal: _Crystal, model: _Model, density: np.ndarray, difference: np.ndarray) -> tuple[float, ...]:
    """The highest peak and the deepest hole of the difference map, relative to the height of the lightest atoms.

    Near a heavier atom they are relative to the height of that atom, because residues of its anisotropy are
    proportional to it. Peaks at the distance of a hydrogen from a light atom count half.
    """
    heights = np.maximum(maps.values_at(density, model.positions), 1e-6)
    lightest = float(np.median(heights[model.numbers == model.numbers.min()]))
    extremes = []
    for sign in (1, -1):
        peaks = maps.sharp_peaks(sign * difference, *crystal.symmetry, least=0.05 * lightest, number=MOST_PEAKS)
        worst = 0.0
        for position, height in zip(peaks.positions, peaks.heights, strict=True):
            distances, _ = maps.nearest_images(position, model.positions, *crystal.symmetry)
            nearest = int(np.argmin(distances))
            measure = max(lightest, heights[nearest]) if distances[nearest] < NEAR_ATOM else lightest
            hydrogen = sign > 0 and HYDROGEN[0] < distances[nearest] < HYDROGEN[1] and model.numbers[nearest] <= 10
            worst = max(worst, float(height / measure) / (2 if hydrogen else 1))
        extremes.append(worst)
    return tuple(extremes)


def _odd_bonds(crystal, model):
    """Implausible bonds of carbon, nitrogen and oxygen, in words."""
    bonded = bonds(model.positions, model.elements, *crystal.symmetry)
    odd = []
    for index, element in enumerate(model.elements):
        if element not in MOST_BONDS:
            continue
        lengths = [(other, length) for first, other, length, _ in bonded if first == index]
        light = [length for other, length in lengths if model.elements[other] in MOST_BONDS]
        if len(light) > MOST_BONDS[element]:
            odd.append(f'{element} with {len(light)} bonds to C, N or O')
        if element == 'C' and not lengths:
            odd.append('C without a bond')
        if any(each > LONGEST_LIGHT for each in light):
            odd.append(f'a bond of {max(light):.2f} Å between light atoms')
    return tuple(sorted(set(odd)))


def _absent_intensity(crystal):
    """Mean intensity of the reflections that the group forbids, less four standard errors, over that of all."""
    data = crystal.data
    absent = ~maps.allowed_reflections(data.hkl, crystal.space_group.symops)
    if not absent.any():
        return 0.0
    mean = float(np.mean(np.maximum(data.intensities, 0)))
    error = float(np.sqrt(np.sum(data.sigmas[absent] ** 2)) / absent.sum())
    return float((np.mean(data.intensities[absent]) - 4 * error) / mean)


def _worst_parity(hkl, observed, deviations, noise):
    """The class of parity in which R1 is highest compared with the others; its R1, and that which σ alone would cause.

    Atoms that have been drawn to positions of more symmetry than is true leave one class unexplained: where half of a
    translation nearly holds, the reflections that it would extinguish. '' where no class has twice the R1 of the rest.
    """
    worst = TELLING_PARITY, '', 0.0, 0.0
    for signs in itertools.product((0, 1), repeat=3):
        odd = hkl @ np.array(signs) % 2 == 1
        if min(odd.sum(), (~odd).sum()) < LEAST_OF_PARITY:
            continue
        name = ' + '.join(axis for axis, sign in zip('hkl', signs, strict=True) if sign)
        for which, words in ((odd, 'odd'), (~odd, 'even')):
            r_factor, rest = (_ratio(deviations[some], observed[some]) for some in (which, ~which))
            expected = _ratio(noise[which], observed[which])
            worst = max(worst, (r_factor / max(rest, 1e-6), f'{name} is {words}', r_factor, expected))
    return worst[1:]


def _weak_intensity(crystal, calculated):
    """Mean measured intensity of the weakest third of the reflections by the model, relative to their shells' means.

    It is 1 for a model unrelated to the crystal, and up to 0.2 for the right model.
    """
    shells = np.array_split(np.arange(len(calculated)), max(len(calculated) // 150, 1))
    total, count = 0.0, 0
    for shell in shells:
        weakest = shell[np.argsort(calculated[shell])[: max(len(shell) // 3, 1)]]
        total += crystal.intensities[weakest].sum() / max(crystal.intensities[shell].mean(), 1e-9)
        count += len(weakest)
    return float(total / count)


def _follows(elements, multiplicities, formula):
    """Whether the atoms have the proportions of the formula; None without one."""
    counts = without_hydrogen(formula)
    if not counts:
        return None
    found: dict[str, float] = collections.defaultdict(float, dict.fromkeys(counts, 0.0))
    for element, multiplicity in zip(elements, multiplicities, strict=True):
        found[element] += float(multiplicity)
    ratio = sum(found.values()) / sum(counts.values())
    return all(abs(found[symbol] - ratio * counts.get(symbol, 0)) <= 0.15 * max(found[symbol], 2) for symbol in found)


def further_symmetry(positions: np.ndarray, numbers: np.ndarray, space_group: SpaceGroup, data: CrystalData) -> bool:
    """Whether the atoms obey an operation that the group lacks.

    Operations with rotations that the intensities may have are tested, and the inversion and translations.

    Args:
        positions: `(n, 3)`, fractional, of the asymmetric unit.
        numbers: `(n,)`, their atomic numbers.
        space_group: of the crystal.
        data: of the crystal; its rotations and cell are used.
    """
    operations = space_group.operations
    images = maps.images_of(positions, operations) % 1.0
    cell_numbers = np.repeat(numbers, images.shape[1])
    sites = images.reshape(-1, 3)
    coinciding = maps.shortest(sites[:, None] - sites[None], data.cell) < 1e-2
    each_once = ~np.tril(coinciding, -1).any(axis=1)
    sites, cell_numbers = sites[each_once], cell_numbers[each_once]
    alike = np.abs(cell_numbers[:, None] - cell_numbers[None]) <= ALIKE
    first = int(np.lexsort((-cell_numbers, alike.sum(axis=1)))[0])
    anchors = sites[alike[first]]
    rotations = data.rotations if data.possible is None else data.possible
    candidates = np.unique(np.concatenate([rotations, np.stack([np.eye(3), -np.eye(3)])]).astype(int), axis=0)
    probes = np.linspace(0, len(sites) - 1, min(len(sites), PROBES)).astype(int)
    for rotation in candidates:
        known = operations[1][(operations[0] == rotation).all(axis=(1, 2))]
        for anchor in anchors:
            translation = anchor - rotation @ sites[first]
            if len(known) and maps.shortest(known - translation, data.cell).min() < SAME_TRANSLATION:
                continue
            if all(
                _obeying(sites[some] @ rotation.T + translation, cell_numbers[some], sites, cell_numbers, data.cell)
                for some in (probes, slice(None))
            ):
                return True
    return False


def _obeying(moved, moved_numbers, sites, numbers, cell):
    """Whether nearly all moved atoms lie on atoms of similar atomic number."""
    matched = maps.shortest(moved[:, None] - sites[None], cell) < SAME_PLACE
    matched &= np.abs(moved_numbers[:, None] - numbers[None]) <= ALIKE
    return matched.any(axis=1).mean() > OBEYING
