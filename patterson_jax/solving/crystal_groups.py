"""Interprets a phased map of a crystal in its space group, and in others that may be right.

A structure may come near to the symmetry of a larger group, and phases with errors may obey false operations or miss
true ones. So other groups are tried where the first is not certain, and atoms are tried with an inversion centre and
without one: of two groups that one is right whose atoms explain the data clearly better.
"""

import dataclasses

import numpy as np

from patterson_jax.solving.crystal_findings import weakest
from patterson_jax.solving.crystal_phasing import Crystal, PhasedMap, phased_by_atoms
from patterson_jax.solving.crystal_structure import Interpretation, interpret_phases, refined_atoms
from patterson_jax.solving.crystal_verdict import ENOUGH_AGREEING, LEAST_DATA, Evidence, explains
from patterson_jax.solving.spacegroup import (
    averaged,
    find_space_group,
    half_frames,
    larger_groups,
    subgroups_without_centre,
)

MOST_ALTERNATIVES = 3  # groups that are tried beside the one that was found
ABSENT = 1e-6  # part of the largest structure factor below which a reflection counts as absent
WELL_OBEYED = 0.85  # no subgroup is tried if the phases agree with a certain group by more than this
CENTRE_REFUTED = 0.5  # there is no centre if R1 without it is below this part of that of the same atoms with it
DOUBTED = 0.85  # a group is not certain if R1 with less symmetry is below this part
WEAK_DOUBTED = 0.88  # nor is it if weak reflections deviate by less than this part with less symmetry
LESS_SYMMETRY = 'the data are clearly better explained with less symmetry'
CLEARLY_BETTER = 0.8  # a model is clearly better if its R1 is below this part of the other R1
FAR_BETTER = 0.6  # a model with few data for its atoms must have less than this part of R1 with more symmetry


def interpreted(crystal: Crystal, reached: PhasedMap, agreeing: int) -> list[Interpretation]:
    """Interprets a map in its group, in others that may be right, and in those of the atoms.

    Args:
        crystal: from `prepare_crystal`.
        reached: the best of the maps that agree.
        agreeing: number of these.
    """
    answers, centre_doubted = _answers_in_groups(crystal, reached, agreeing)
    if crystal.data.laue_class == '-1' or reached.explained is not None:
        answers = [each for answer in answers for each in with_and_without_centre(crystal, answer, agreeing)]
    if centre_doubted:
        answers = [_not_certain(answer) if answer.space_group.has_centre else answer for answer in answers]
    return answers


def _answers_in_groups(crystal, reached, agreeing):
    """Interprets a map in the group that was found and, if that does not solve it as it is, in others.

    The others are groups that fit the phases nearly as well, or else subgroups, because a structure may come near to
    the symmetry of a larger group. A group with less symmetry has more parameters, so it must explain the data clearly
    better; then the first is not certain. If none does, the first group is called certain, provided that several
    starts led to it and that the phases obey its operations and no others. Atoms that have more symmetry than their
    group are interpreted again with it.

    Returns the answers, and whether the map speaks against a centre with which the first one would be solved.
    """
    found, evidence = reached.found, _evidence(reached.found.frame, agreeing, reached.obeyed)
    first = _interpretation(crystal, found.space_group, reached.factors, evidence)
    doubted = _is_better_without_centre(crystal, reached, first)
    first = _not_certain(first) if doubted else first
    obeyed = found.space_group.certain and found.kept > WELL_OBEYED and not doubted
    settled = first.verdict == 'solved' and first.findings.anisotropic is None  # U may have made up for symmetry
    if settled or obeyed or agreeing < ENOUGH_AGREEING or first.r_factor is None:
        return [first], doubted
    others = _better_answers_in_other_groups(crystal, reached, agreeing, first)
    if others:
        first = _not_certain(first)
    elif first.verdict != 'solved' and not doubted and reached.obeys_its_group_alone:
        certain = first.with_findings(group_certain=True)
        doubted = _is_better_without_centre(crystal, reached, certain)
        first = first if doubted else certain
    return [first, *others, *_answers_with_symmetry_of_atoms(crystal, [first, *others])], doubted


def _better_answers_in_other_groups(crystal, reached, agreeing, first):
    """The interpretations of a map in other groups that explain the data clearly better than the first."""
    found, answers = reached.found, []
    operations = found.operations[: found.number_kept]
    frames = (found.alternatives or half_frames(crystal.expanded, reached.own, operations))[:MOST_ALTERNATIVES]
    symbols = (found.space_group.hm, *(frame.group.hm for frame in frames))
    for frame in frames:
        candidates = tuple(symbol for symbol in symbols if symbol != frame.group.hm)
        group = dataclasses.replace(frame.group, candidates=candidates)
        factors, _, _ = averaged(crystal.expanded, reached.own, group, frame.origin)
        other = _interpretation(crystal, group, factors, _evidence(frame, agreeing))
        if corrected_r_factor(other) < CLEARLY_BETTER * corrected_r_factor(first):
            answers.append(other)
    return answers


def _answers_with_symmetry_of_atoms(crystal, answers):
    """Answers whose atoms have more symmetry than their group, again with it; not certain where that is worse."""
    more = []
    for answer in answers:
        if answer.space_group.number > 1 and answer.findings.further_symmetry and _explains(answer):
            whole = with_symmetry_of_its_atoms(crystal, answer, answer.evidence)
            more.append(_not_certain(whole) if _is_doubted(crystal, whole, answer) else whole)
    return more


def with_and_without_centre(crystal: Crystal, answer: Interpretation, agreeing: int) -> list[Interpretation]:
    """An answer without a centre, certain if its atoms with one explain the data far worse; otherwise both of these.

    The group with a centre is not certain either where the data are clearly better explained without one. Other
    answers, and those that do not explain the data, stay as they are. In many small structures the phases agree with a
    false centre by more than chance, and phases with errors may agree with a true one by little. So their agreement
    alone does not tell; and that of placed atoms with the group in which they were placed tells nothing.

    Args:
        crystal: from `prepare_crystal`.
        answer: one of its interpretations.
        agreeing: number of starts that led to it.
    """
    if answer.space_group.has_centre or not _explains(answer):
        return [answer]
    evidence = Evidence(agreeing)
    centred = _with_centre(crystal, answer, evidence)
    if centred is None:
        return [answer.with_findings(evidence, group_certain=False)]
    ratio = corrected_r_factor(answer) / corrected_r_factor(centred)
    if 0 < ratio < CENTRE_REFUTED:  # it is 0 if there are no atoms with a centre, which tells nothing
        return [answer.with_findings(evidence, group_certain=True)]
    centred = _not_certain(centred) if _is_doubted(crystal, centred, answer) else centred
    return [answer.with_findings(evidence, group_certain=False), centred]


def _is_better_without_centre(crystal, reached, answer):
    """Whether the atoms of an answer that is solved with a centre explain weak reflections clearly better without it.

    Of a structure that nearly has a centre, charge flipping in P1 shows the true atoms, if they are apart enough. So
    each atom and its image by the centre are refined from the nearest maxima of the map before it was averaged. Of
    atoms that were placed with a centre, that map tells nothing.
    """
    centre = answer.space_group.centre
    if answer.verdict != 'solved' or centre is None or reached.explained is not None:
        return False
    atoms = [(atom, np.array(atom.fract)) for atom in answer.atoms]
    freed = [dataclasses.replace(atom, fract=tuple(at)) for atom, one in atoms for at in (one, centre - one)]
    whole = refined_atoms(crystal.data, answer.space_group, answer.atoms)
    for group in subgroups_without_centre(answer.space_group):
        factors, _, _ = averaged(crystal.expanded, reached.own, group, reached.found.frame.origin)
        if _explains_weak(refined_atoms(crystal.data, group, freed, _phases(crystal, factors)), whole):
            return True
    return False


def _is_doubted(crystal, whole, answer):
    """Whether an answer with less symmetry explains the data so much better than one with more that it is doubtful."""
    if whole.findings is None:
        return False
    freer, model = (refined_atoms(crystal.data, each.space_group, each.atoms) for each in (answer, whole))
    ratio = corrected_r_factor(answer) / corrected_r_factor(whole)
    return _explains_weak(freer, model) or (_has_enough_data(freer) and not ratio >= DOUBTED)


def _explains_weak(freer, whole):
    """Whether a model with less symmetry explains reflections that are weak with more of it clearly better.

    What symmetry lacks is seen in these; R1 becomes lower in disordered crystals too.
    """
    return _has_enough_data(freer) and not _weak_misfit(freer, whole) >= WEAK_DOUBTED


def _has_enough_data(model):
    """Whether there are data enough for the atoms of a model with less symmetry to tell anything."""
    return model.reflections_per_parameter >= LEAST_DATA


def _weak_misfit(freer, whole):
    """Mean |Fo² − k² Fc²| of the reflections that are weak in one model, by another, relative to that by the one.

    Both are corrected for the number of parameters. Reflections that one of the groups forbids are left out.
    """
    rows = {tuple(hkl): row for row, hkl in enumerate(freer.crystal.hkl.tolist())}
    weak = [row for row in weakest(whole) if tuple(whole.crystal.hkl[row].tolist()) in rows]
    same = [rows[tuple(whole.crystal.hkl[row].tolist())] for row in weak]
    return _misfit(freer, same) / _misfit(whole, weak)


def _misfit(model, rows):
    """Mean |Fo² − k² Fc²| of some reflections, on the scale of the intensities as given."""
    calculated = (model.scale * np.abs(model.calculated)) ** 2
    return np.mean(np.abs(model.crystal.intensities - calculated)[rows]) * model.crystal.unit * _correction(model)


def _explains(answer):
    """Whether an answer explains the data as a right one does."""
    return answer.findings is not None and explains(answer.findings)


def _not_certain(answer):
    """An answer whose group is not certain, because one with less symmetry explains the data better; it says so."""
    if answer.findings is None or LESS_SYMMETRY in answer.remarks:
        return answer
    return dataclasses.replace(answer, remarks=(*answer.remarks, LESS_SYMMETRY)).with_findings(group_certain=False)


def _evidence(frame, agreeing, obeyed=0.0):
    """How phases were found, and how well they obey a group: as in its frame, or as `obeyed` says."""
    lowest = max(float(frame.agreements.min()), obeyed)
    return Evidence(agreeing, lowest if len(frame.agreements) > 1 else None)


def with_symmetry_of_its_atoms(crystal: Crystal, answer: Interpretation, evidence: Evidence) -> Interpretation:
    """Interprets an answer again, in the group that the phases of its atoms show.

    Args:
        crystal: from `prepare_crystal`.
        answer: its atoms have more symmetry than its group.
        evidence: how the answer was found.
    """
    found, own = _group_of_its_atoms(crystal, answer)
    return _interpretation_in_group(crystal, found, own, evidence)


def _with_centre(crystal, answer, evidence):
    """Interprets an answer again in the group with all operations of the Laue class; None if there is no such group.

    The centre is the one that the phases of its atoms obey best.
    """
    found, own = _group_of_its_atoms(crystal, answer)
    groups = [found, *larger_groups(found, crystal.expanded, own, barely=-1.0)]
    whole = [group for group in groups if group.number_kept == len(found.operations)]
    return _interpretation_in_group(crystal, whole[0], own, evidence) if whole else None


def _group_of_its_atoms(crystal, answer):
    """The space group that the phases of an answer's atoms show, and these phases, as E values `(n,)` complex."""
    own = phased_by_atoms(crystal, answer.atoms, answer.space_group)
    return find_space_group(crystal.expanded, own, crystal.data.rotations), own


def _interpretation_in_group(crystal, found, own, evidence):
    """Interprets phases `own` in the group that was found from them, and judges how well they obey it."""
    factors, _, _ = averaged(crystal.expanded, own, found.space_group, found.frame.origin)
    return _interpretation(crystal, found.space_group, factors, dataclasses.replace(evidence, operations=found.kept))


def _interpretation(crystal, group, factors, evidence):
    """Atoms from E values with phases, `(n,)` complex, of all reflections in P1."""
    hkl, phased = _phases(crystal, factors)
    return interpret_phases(crystal.data, group, hkl, phased, evidence)


def _phases(crystal, factors):
    """Reflections and their observed amplitudes with phases: of E values in P1 one of each row of the data."""
    _, rows = np.unique(crystal.expanded.source, return_index=True)
    rows = rows[np.abs(factors[rows]) > ABSENT * np.abs(factors).max()]
    hkl = crystal.expanded.in_given_cell(crystal.expanded.hkl[rows])
    return hkl, crystal.amplitudes[rows] * np.exp(1j * np.angle(factors[rows]))


def corrected_r_factor(answer: Interpretation) -> float:
    """R1 of an answer, corrected so that models of different size can be compared; infinite without atoms."""
    return np.inf if answer.findings is None else answer.findings.r_factor * _correction(answer.findings)


def overfits(answer: Interpretation, other: Interpretation) -> bool:
    """Whether an answer has few data for its atoms, and one with more symmetry explains the data nearly as well.

    With fewer than five reflections for each parameter R1 is low in any case, and atoms are taken that make it so. Both
    may be from different maps.
    """
    if answer.findings is None or other.findings is None or _has_enough_data(answer.findings):
        return False
    more = len(other.space_group.symops) > len(answer.space_group.symops)
    return more and corrected_r_factor(answer) > FAR_BETTER * corrected_r_factor(other)


def _correction(model):
    """The factor by which residuals of a model would be larger if it had no parameters.

    With n reflections and p parameters the mean square of the residuals is that of the errors times (n − p) / n.
    """
    ratio = model.reflections_per_parameter
    return float(np.sqrt(ratio / (ratio - 1))) if ratio > 1 else np.inf
