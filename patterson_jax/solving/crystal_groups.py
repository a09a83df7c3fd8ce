"""Interprets a phased map of a crystal in its space group, and in others that may be right.

A structure may come near to the symmetry of a larger group, and phases with errors may obey false operations or miss
true ones. So other groups are tried where the first is not certain, and atoms are tried with an inversion centre and
without one: of two groups that one is right whose atoms explain the data clearly better.
"""

import dataclasses

import numpy as np

from patterson_jax.solving.crystal_model import corrected
from patterson_jax.solving.crystal_phasing import Crystal, PhasedMap, phased_by_atoms
from patterson_jax.solving.crystal_structure import Interpretation, interpret_phases, r_factor_from_map
from patterson_jax.solving.crystal_verdict import ENOUGH_AGREEING, Evidence, explains
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
CENTRE_REFUTED = 0.5  # there is no centre if R1 in P1 is below this part of that of the same atoms with a centre
CLEARLY_BETTER = 0.8  # a model is clearly better if its R1 is below this part of the other R1


def interpreted(crystal: Crystal, reached: PhasedMap, agreeing: int) -> list[Interpretation]:
    """Interprets a map in its group, in others that may be right, and in those of the atoms.

    Args:
        crystal: from `prepare_crystal`.
        reached: the best of the maps that agree.
        agreeing: number of these.
    """
    answers = _answers_in_groups(crystal, reached, agreeing)
    if crystal.data.laue_class == '-1' or reached.explained is not None:
        answers = [each for answer in answers for each in with_and_without_centre(crystal, answer, agreeing)]
    return answers


def _answers_in_groups(crystal, reached, agreeing):
    """Interprets a map in the group that was found and, if that does not solve it, in others.

    The others are groups that fit the phases nearly as well, or else subgroups, because a structure may come near to
    the symmetry of a larger group. A group with less symmetry has more parameters, so it must explain the data clearly
    better. If none does, the first group is called certain, provided that several starts led to it and that the phases
    obey its operations and no others. Atoms that have more symmetry than their group are interpreted again with it.
    """
    found, evidence = reached.found, _evidence(reached.found.frame, agreeing, reached.obeyed)
    whole = _interpretation(crystal, found.space_group, reached.factors, evidence)
    first = _in_its_frame(crystal, reached, found.frame, whole, evidence)
    obeyed = found.space_group.certain and found.kept > WELL_OBEYED and first is whole
    if first.verdict == 'solved' or obeyed or agreeing < ENOUGH_AGREEING or first.r_factor is None:
        return [first]
    operations = found.operations[: found.number_kept]
    frames = (found.alternatives or half_frames(crystal.expanded, reached.own, operations))[:MOST_ALTERNATIVES]
    symbols = (found.space_group.hm, *(frame.group.hm for frame in frames))
    answers = [first]
    for frame in frames:
        others = tuple(symbol for symbol in symbols if symbol != frame.group.hm)
        group = dataclasses.replace(frame.group, candidates=others)
        factors, _, _ = averaged(crystal.expanded, reached.own, group, frame.origin)
        its_evidence = _evidence(frame, agreeing)
        other = _interpretation(crystal, group, factors, its_evidence)
        other = _in_its_frame(crystal, reached, frame, other, its_evidence)
        if other.verdict == 'solved' or corrected_r_factor(other) < CLEARLY_BETTER * corrected_r_factor(first):
            answers.append(other)
        if other.verdict == 'solved':
            return answers
    if len(answers) == 1 and reached.obeys_its_group_alone:
        answers = [first.with_findings(evidence, group_certain=True)]
    return answers + [
        with_symmetry_of_its_atoms(crystal, other, evidence)
        for other in answers
        if other.space_group.number > 1 and other.findings.further_symmetry and _explains(other)
    ]


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
    ratio = corrected_r_factor(answer) / corrected_r_factor(centred) if centred else np.inf
    refuted = bool(0 < ratio < CENTRE_REFUTED)  # it is 0 if there are no atoms with a centre, which tells nothing
    without = answer.with_findings(evidence, group_certain=refuted)
    if refuted or not centred:
        return [without]
    doubted = 0 < ratio < CLEARLY_BETTER
    return [without, centred.with_findings(evidence, group_certain=False) if doubted else centred]


def _in_its_frame(crystal, reached, frame, answer, evidence):
    """An answer in the group of a frame; if it is solved with a centre, but far better without, that is not certain.

    Of a structure that nearly has a centre, charge flipping in P1 shows the true atoms, if they are apart enough. So
    each atom and its image by the centre are refined from the nearest maxima of the map before it was averaged.
    """
    if answer.verdict != 'solved' or not answer.space_group.has_centre:
        return answer
    centre, own = np.array(answer.space_group.centre), reached.own
    atoms = [(atom, np.array(atom.fract)) for atom in answer.atoms]
    freed = [dataclasses.replace(atom, fract=tuple(at)) for atom, one in atoms for at in (one, centre - one)]
    for group in subgroups_without_centre(answer.space_group):
        factors, _, _ = averaged(crystal.expanded, own, group, frame.origin)
        hkl, phased = _phases(crystal, factors)
        if r_factor_from_map(crystal.data, group, freed, hkl, phased) < CLEARLY_BETTER * corrected_r_factor(answer):
            return answer.with_findings(evidence, group_certain=False)
    return answer


def _explains(answer):
    """Whether R1 is as low as that of a right model."""
    return answer.r_factor is not None and explains(answer.findings)


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
    """R1 of an answer, corrected for the number of parameters; infinite without atoms."""
    found = answer.findings
    return np.inf if found is None else corrected(found.r_factor, found.reflections_per_parameter)
