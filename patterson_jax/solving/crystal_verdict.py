"""The verdict on a crystal: solved, not solved, or uncertain. It never uses the truth.

R1 alone cannot decide: a right isotropic model without hydrogen may have a higher R1 than another model that lacks an
atom. So a crystal is solved only if there is no evidence against it. R1 must be as predicted from its elements and σ,
the difference map must be flat (with anisotropic displacements, where isotropic ones leave more than that), and U,
distances and volume must be sensible. The data must agree with the space group,
and the atoms must have no further symmetry. And either the reflections that are weak in the model are weak, or another
start has led to the same map. `solved` claims sites and group; each element has its own confidence.

The constants are from invented crystals that the model does not describe fully (`benchmarks/crystal_verdicts.py`,
stream `calibration`), and were tested on others.
"""

import dataclasses
import math
from typing import NamedTuple

HOPELESS_R = 0.35  # R1 above which a model does not explain the data
U_RANGE, ANISOTROPIC_U_RANGE = (0.003, 0.15), (0.002, 0.4)  # Å²; of all directions
SHORTEST_CONTACT = 1.1  # Å
ORGANIC_VOLUME, ANY_VOLUME = (12.0, 30.0), (7.0, 45.0)  # Å³ for each atom, hydrogen not counted
MOST_ABSENT = 0.02  # mean intensity of reflections that the group forbids, relative to that of all
MOST_WEAK = 0.45  # mean intensity of reflections that are weak in the model, relative to the mean
MOST_MISSING = 0.1  # share of the formula's atoms
AMPLE_DATA, FINE = 10.0, 1.1  # reflections for each parameter; d_min in Å
LEAST_DATA = 5.0  # reflections for each parameter, fewer than which no chemistry makes up for
ENOUGH_AGREEING = 2  # starts with the same result; then a map is interpreted, too
LEAST_AGREEMENT = 0.5  # of the phases with an operation of the group
OF_ATOMS = 'of the lightest atom, or of a heavier one that is near'
MOST_TOLD = 10.0  # times the height of the lightest atom; reasons name no higher peak


class Limits(NamedTuple):
    """To what a right model leaves unexplained.

    Attributes:
        heavy_r: R1 without noise, of heavy atoms.
        light_r: is added to that if all atoms are light.
        residue: of peaks and holes of the difference map, relative to the lightest atom.
    """

    heavy_r: float
    light_r: float
    residue: float


ISOTROPIC, ANISOTROPIC = Limits(0.095, 0.07, 0.16), Limits(0.06, 0.07, 0.16)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """How phases were found.

    Attributes:
        agreeing: number of starts, with the chosen one, that led to the same map up to origin and hand.
        operations: the lowest agreement of the phases with an operation of the group, 0 to 1; None: only the identity.
    """

    agreeing: int = 1
    operations: float | None = None


@dataclasses.dataclass(frozen=True)
class Residues:
    """What a refined model leaves unexplained.

    Attributes:
        r_factor: R1 over reflections with F > 4σ(F).
        highest_peak: of the difference map, relative to the height of the lightest atoms or, near a heavier atom, of
            that atom; a peak counts half where hydrogen could be.
        deepest_hole: likewise.
        lowest_u: Å², along any direction.
        highest_u: Å², likewise.
        reflections_per_parameter: number of unique reflections for each parameter.
    """

    r_factor: float
    highest_peak: float
    deepest_hole: float
    lowest_u: float
    highest_u: float
    reflections_per_parameter: float


@dataclasses.dataclass(frozen=True)
class Findings(Residues):
    """The properties of a refined isotropic model on which the verdict is based, beside what it leaves unexplained.

    Attributes:
        noise_r_factor: the R1 that the σ alone would cause.
        light_share: share of elements up to neon in ΣZ².
        closest: the shortest distance of two atoms up to 1.6 Å, Å.
        odd_bonds: of C, N and O, in words.
        volume_per_atom: Å³, hydrogen not counted.
        organic: whether there is carbon among mostly light atoms.
        absent_intensity: mean intensity of the reflections that the group forbids, less its error, relative to that of
            all.
        further_symmetry: whether the atoms obey an operation that the group lacks.
        parity: a class of reflections, such as 'h + k is odd', with at least twice the R1 of the others; '' if none.
        parity_r_factor: R1 of that class.
        parity_noise: the R1 that the σ alone would cause in it.
        weak_intensity: mean measured intensity of the third of the reflections that are weakest in the model, each
            relative to the mean of its shell.
        group_certain: whether phases and data left no other group.
        d_min: Å.
        follows_formula: whether the atoms have the proportions of the formula; None without a formula.
        missing_share: share of the formula's atoms that are missing.
        anisotropic: what the same atoms leave unexplained with anisotropic displacements; None where that was not asked
            or data are too few.
    """

    noise_r_factor: float
    light_share: float
    closest: float
    odd_bonds: tuple[str, ...]
    volume_per_atom: float
    organic: bool
    absent_intensity: float
    further_symmetry: bool
    parity: str
    parity_r_factor: float
    parity_noise: float
    weak_intensity: float
    group_certain: bool
    d_min: float
    follows_formula: bool | None
    missing_share: float
    anisotropic: Residues | None = None


def expected_r_factor(findings: Findings, limits: Limits = ISOTROPIC) -> float:
    """The highest expected R1 of a right model without hydrogen, for this crystal's elements and σ."""
    return math.hypot(findings.noise_r_factor, limits.heavy_r + limits.light_r * findings.light_share)


def explains(findings: Findings) -> bool:
    """Whether R1 is as low as that of a right model, or nothing is left with anisotropic displacements."""
    freer = findings.anisotropic
    return findings.r_factor < expected_r_factor(findings) or (freer is not None and _is_sensible(findings, freer))


def poor_data(reflections_per_parameter: float, d_min: float) -> bool:
    """Whether the data are too few to tell elements from U."""
    return reflections_per_parameter < AMPLE_DATA or d_min > FINE


def judge_crystal(findings: Findings, evidence: Evidence) -> tuple[str, tuple[str, ...]]:
    """The verdict on a model, and its reasons in words: the evidence against the model, or else for it.

    What the atoms leave unexplained is no evidence against them if it goes with sensible anisotropic displacements.
    """
    if not findings.r_factor <= HOPELESS_R:
        return 'not solved', (f'R1 is {findings.r_factor:.3f}: the model does not explain the data',)
    unexplained, anisotropic = _unexplained(findings, findings, ISOTROPIC), findings.anisotropic
    explained = anisotropic is not None and _is_sensible(findings, anisotropic)
    doubts = (*([] if explained else unexplained), *_other_doubts(findings, evidence))
    if doubts:
        return 'uncertain', doubts
    r_factor, limits, peak = f'R1 is {findings.r_factor:.3f}', ISOTROPIC, findings.highest_peak
    if unexplained and anisotropic:
        r_factor = f'{r_factor}, and {anisotropic.r_factor:.3f} with anisotropic displacements'
        limits, peak = ANISOTROPIC, anisotropic.highest_peak
    support = [f'{r_factor}, where up to {expected_r_factor(findings, limits):.3f} is to be expected']
    support.append(f'no difference peak is above {peak:.0%} {OF_ATOMS}')
    if findings.weak_intensity < MOST_WEAK:
        support.append(_weak_reflections(findings))
    if evidence.agreeing >= ENOUGH_AGREEING:
        support.append(f'{evidence.agreeing} starts came to the same map')
    if findings.follows_formula is False:
        support.append('but the elements do not have the proportions of the formula')
    return 'solved', tuple(support)


def is_for_anisotropy(findings: Findings, evidence: Evidence) -> bool:
    """Whether only what a model leaves unexplained speaks against it, and maybe that its group may be another."""
    others = _other_doubts(dataclasses.replace(findings, group_certain=True, further_symmetry=False), evidence)
    hopeless = not findings.r_factor <= HOPELESS_R
    return bool(_unexplained(findings, findings, ISOTROPIC)) and not others and not hopeless


def _unexplained(findings, residues, limits):
    """What a model leaves unexplained beyond limits, in words."""
    r, limit, most = residues, expected_r_factor(findings, limits), limits.residue
    return _words(
        (not r.r_factor <= limit, f'R1 is {r.r_factor:.3f}, where at most {limit:.3f} is to be expected'),
        (not r.highest_peak <= most, f'a difference peak has {_share(r.highest_peak)} {OF_ATOMS}'),
        (not r.deepest_hole <= most, f'a hole of the difference map has {_share(r.deepest_hole)} {OF_ATOMS}'),
    )


def _share(height):
    """A height in words; where the map shows no atom at the place of the lightest, the figure would say nothing."""
    return f'more than {MOST_TOLD:.0%}' if height > MOST_TOLD else f'{height:.0%}'


def _is_sensible(findings, anisotropic):
    """Whether anisotropic displacements leave nothing unexplained, and are as atoms have them."""
    lowest, highest = ANISOTROPIC_U_RANGE
    sensible = anisotropic.lowest_u > lowest and anisotropic.highest_u < highest
    return sensible and not _unexplained(findings, anisotropic, ANISOTROPIC)


def _words(*conditions):
    """Of conditions with words the words of those that hold."""
    return [words for holds, words in conditions if holds]


def _other_doubts(findings, evidence):
    """What there is against a model beside what it leaves unexplained, in words."""
    f, agreed = findings, evidence.agreeing >= ENOUGH_AGREEING
    lowest, highest = ORGANIC_VOLUME if f.organic else ANY_VOLUME
    poor, too_poor = poor_data(f.reflections_per_parameter, f.d_min), f.reflections_per_parameter < LEAST_DATA
    chemistry = f.organic and not f.odd_bonds and f.follows_formula is not False
    light_r = ISOTROPIC.heavy_r + ISOTROPIC.light_r
    return _words(
        (f.lowest_u < U_RANGE[0], f'an atom has U = {f.lowest_u:.4f} Å², less than atoms have'),
        (f.highest_u > U_RANGE[1], f'an atom has U = {f.highest_u:.3f} Å², more than atoms have'),
        (f.closest < SHORTEST_CONTACT, f'two atoms are {f.closest:.2f} Å apart'),
        (bool(f.odd_bonds), 'odd bonds: ' + ', '.join(f.odd_bonds)),
        (not lowest <= f.volume_per_atom <= highest, f'an atom takes {f.volume_per_atom:.1f} Å³'),
        (
            f.absent_intensity > MOST_ABSENT,
            f'reflections that the space group forbids have {f.absent_intensity:.0%} of the mean intensity',
        ),
        (
            bool(f.parity) and f.parity_r_factor > math.hypot(f.parity_noise, light_r),
            f'R1 is {f.parity_r_factor:.3f} where {f.parity}, and less than half of that elsewhere',
        ),
        (f.further_symmetry, 'the atoms have symmetry that the space group lacks'),
        (not f.group_certain, 'the space group is not certain'),
        (
            evidence.operations is not None and evidence.operations < LEAST_AGREEMENT,
            f'the phases agree with an operation of the space group by {evidence.operations or 0:.2f} only',
        ),
        (f.weak_intensity > MOST_WEAK and not agreed, f'{_weak_reflections(f)}, and no other start came to this map'),
        (f.missing_share > MOST_MISSING, f'{f.missing_share:.0%} of the atoms of the formula are missing'),
        (
            too_poor or (poor and not (agreed and chemistry)),
            f'{f.reflections_per_parameter:.1f} reflections a parameter to {f.d_min:.2f} Å are few',
        ),
    )


def _weak_reflections(findings):
    return f'reflections that the model calls weak have {findings.weak_intensity:.0%} of the mean intensity'
