"""The whole way on small invented crystals, whose grids have the shape of those in test_crystal_phasing.py."""

import dataclasses

import gemmi
import numpy as np
import pytest
from invented import invent
from test_crystal_verdict import GOOD

from benchmarks import gaussian_atoms, hard_crystals
from patterson_jax.crystal.structure import SpaceGroup
from patterson_jax.errors import InputError
from patterson_jax.solving import crystal_findings, crystal_groups
from patterson_jax.solving.crystal_groups import with_and_without_centre, with_symmetry_of_its_atoms
from patterson_jax.solving.crystal_phasing import prepare_crystal
from patterson_jax.solving.crystal_solver import (
    ENOUGH_TO_END,
    Cluster,
    best_answer,
    ends_search,
    solve_crystal,
)
from patterson_jax.solving.crystal_structure import Interpretation, interpret_phases
from patterson_jax.solving.crystal_verdict import Evidence
from patterson_jax.solving.spacegroup import averaged, find_operations, half_frames, place_group

CRYSTAL = ('P 1 21/c 1', (7.5, 7.7, 6.9, 90, 104, 90), 5)


def test_an_invented_crystal_is_solved_in_its_group():
    invented = invent(*CRYSTAL, 0.8, noise=0.03)
    notes = []
    solution = solve_crystal(invented.data, progress=lambda done, note: notes.append((done, note)))
    assert solution.space_group.hm == 'P 1 21/c 1'
    assert solution.space_group.certain
    assert solution.resolution == pytest.approx(0.8, abs=0.01)
    assert [done for done, _ in notes] == list(range(1, solution.starts + 1))
    assert 'P 1 21/c 1' in notes[-1][1]
    assert len(solution.atoms) == 5
    assert solution.r_factor < 0.05
    operators = [gemmi.Op(each) for each in solution.space_group.symops]
    places = np.array([op.apply_to_xyz(list(site.fract)) for site in solution.atoms for op in operators])
    # Origins of P 21/c are a half of the edges apart; one of these eight brings the answer onto the truth.
    halves = np.array(np.meshgrid(*[[0, 0.5]] * 3)).reshape(3, -1).T
    farthest = []
    for shift in halves:
        differences = (places + shift)[:, None] - invented.positions
        differences -= np.rint(differences)
        distances = np.linalg.norm(differences @ invented.data.cell.orthogonalization.T, axis=-1)
        farthest.append(distances.min(axis=0).max())
    assert min(farthest) < 0.03


def test_a_structure_that_nearly_has_a_centre_is_not_called_solved_with_it(monkeypatch):
    """Atoms of one half of the cell are up to 0.1 Å along each axis from the centre's images of the others."""
    monkeypatch.setattr(hard_crystals, 'NEARLY', 0.1)
    monkeypatch.setattr(crystal_findings, '_odd_bonds', lambda found: ())  # the atoms are no molecules
    known = hard_crystals.invent('pseudo-inversion', 'P 1', 0)
    solution = solve_crystal(known.data, max_starts=4)
    assert solution.space_group.hm == 'P 1'
    assert solution.r_factor < 0.03
    monkeypatch.setattr(crystal_groups, 'subgroups_without_centre', lambda group: [])
    misled = solve_crystal(known.data, max_starts=4)
    assert (misled.verdict, misled.space_group.hm) == ('solved', 'P -1')


def test_intensities_without_a_structure_are_not_called_solved():
    data = invent(*CRYSTAL, 0.8).data
    shuffled = np.random.default_rng(0).permutation(len(data.hkl))
    data = dataclasses.replace(data, intensities=data.intensities[shuffled], sigmas=data.sigmas[shuffled])
    solution = solve_crystal(data, max_starts=1)
    assert solution.verdict != 'solved'
    assert solution.reasons
    assert solution.starts == 1


def answer(maps, verdict, r_factor, ratio=20.0, doubts=0, symbol='P -1'):
    """A cluster of so many maps, and an interpretation with R1 and so many reflections for each parameter."""
    cluster = Cluster([None] * maps, 1)
    findings = dataclasses.replace(GOOD, r_factor=r_factor, reflections_per_parameter=ratio) if r_factor else None
    symops = tuple(each.triplet() for each in gemmi.SpaceGroup(symbol).operations())
    group, reasons = SpaceGroup(1, symbol, symops, certain=False), ('a doubt',) * doubts
    return cluster, Interpretation(group, (), r_factor, verdict, reasons, np.zeros((1, 1, 1)), findings)


def test_a_map_found_once_must_explain_the_data_clearly_better_than_one_found_often():
    often, once, better = (
        answer(*each) for each in ((5, 'uncertain', 0.151), (1, 'uncertain', 0.149), (1, 'uncertain', 0.1))
    )
    assert best_answer([once, often]) is often
    assert best_answer([often, better]) is better
    assert best_answer([often, better, answer(1, 'solved', 0.16)])[1].verdict == 'solved'
    assert best_answer([answer(9, 'not solved', None), answer(1, 'not solved', 0.5)])[1].r_factor == 0.5
    nothing = answer(1, 'not solved', None)
    assert best_answer([nothing]) is nothing
    # More parameters than reflections explain anything, and half as many have only half of the errors left over.
    assert best_answer([once, answer(1, 'uncertain', 0.01, ratio=0.8)]) is once
    assert best_answer([once, answer(1, 'uncertain', 0.11, ratio=2.0)]) is once
    assert best_answer([once, answer(1, 'uncertain', 0.14, doubts=3)]) is once


def test_an_answer_with_few_data_must_be_far_better_than_one_with_more_symmetry():
    """At 1.4 Å atoms of a true structure and of its image, and false ones, have a lower R1 than the true ones alone."""
    whole = answer(1, 'uncertain', 0.15, ratio=8.0)
    half, far = (answer(5, 'uncertain', r, ratio=3.5, symbol='P 1') for r in (0.09, 0.05))
    assert best_answer([half, whole]) is whole
    assert best_answer([far, whole]) is far
    ample = answer(5, 'uncertain', 0.09, ratio=6.0, symbol='P 1')
    assert best_answer([ample, whole]) is ample
    assert best_answer([half]) is half
    # The first is not compared with the second, which the third leaves out.
    first, second, third = (
        answer(1, 'uncertain', r, ratio, symbol=symbol)
        for r, ratio, symbol in ((0.066, 3.5, 'P 1'), (0.09, 4.5, 'P 1 21 1'), (0.15, 9.0, 'P 1 21/c 1'))
    )
    assert best_answer([first, second, third]) is first
    assert best_answer([second, third]) is third
    assert best_answer([half, answer(1, 'not solved', 0.4, ratio=8.0)]) is half


def test_the_search_ends_with_a_solved_answer_or_with_many_starts_that_agree():
    def cluster(maps, *verdicts):
        answers = [Interpretation(None, (), 0.1, verdict, (), np.zeros((1, 1, 1)), GOOD) for verdict in verdicts]
        return Cluster([None] * maps, 1, answers)

    assert ends_search(cluster(1, 'uncertain', 'solved'), 40)
    assert not ends_search(cluster(1, 'uncertain'), 1)
    assert ends_search(cluster(ENOUGH_TO_END, 'uncertain'), 2 * ENOUGH_TO_END)
    assert not ends_search(cluster(ENOUGH_TO_END, 'uncertain'), 2 * ENOUGH_TO_END + 1)
    assert not ends_search(cluster(ENOUGH_TO_END - 1, 'uncertain'), ENOUGH_TO_END)
    assert not ends_search(cluster(ENOUGH_TO_END), ENOUGH_TO_END)  # not interpreted yet
    assert ends_search(cluster(ENOUGH_TO_END, 'not solved', 'uncertain'), ENOUGH_TO_END)
    assert not ends_search(cluster(ENOUGH_TO_END, 'not solved'), ENOUGH_TO_END)  # a false map that many starts come to


@pytest.mark.parametrize('half', [0, 1])  # P -1 and P 21
def test_atoms_with_more_symmetry_than_their_group_get_it(half):
    """The right structure in a subgroup of its group explains the data, with twice the atoms."""
    crystal = prepare_crystal(invent(*CRYSTAL, 0.8, noise=0.03).data)
    expanded = crystal.expanded
    own = invent(*CRYSTAL, 0.8).structure_factors(expanded.in_given_cell(expanded.hkl))
    primitive = np.rint(np.linalg.inv(expanded.basis) @ crystal.data.rotations @ expanded.basis).astype(int)
    frame = half_frames(expanded, own, find_operations(expanded.hkl, own, primitive))[half]
    group = frame.group
    factors, _, _ = averaged(expanded, own, group, frame.origin)
    hkl = expanded.in_given_cell(expanded.hkl)
    answer = interpret_phases(crystal.data, group, hkl, factors, Evidence())
    assert len(answer.atoms) == 10 and answer.findings.further_symmetry
    mended = with_symmetry_of_its_atoms(crystal, answer, Evidence(agreeing=2))
    assert (mended.space_group.hm, mended.space_group.certain, len(mended.atoms)) == ('P 1 21/c 1', True, 5)
    assert not mended.findings.further_symmetry and mended.r_factor < 1.1 * answer.r_factor


@pytest.mark.parametrize(
    ('symbol', 'atoms', 'found'),
    [('P 1', 10, 'P 1'), ('P -1', 5, 'P 1'), ('P 1 21 1', 8, 'P 1 21 1'), ('P 1 21/c 1', 4, 'P 1 21 1')],
)
def test_a_group_without_a_centre_is_certain_only_if_no_centre_explains_the_data(symbol, atoms, found):
    """From phases with errors, which agree with a centre by chance only, whether there is one or not."""
    cell = (6.3, 7.3, 8.2, 85, 97, 103) if found == 'P 1' else CRYSTAL[1]
    crystal = invent(symbol, cell, atoms, 1.0, noise=0.03)
    prepared = prepare_crystal(crystal.data)
    expanded, number = prepared.expanded, len(crystal.positions)
    hkl = expanded.in_given_cell(expanded.hkl)
    errors = 0.7 * np.random.default_rng(0).standard_normal(len(hkl))
    own = crystal.structure_factors(hkl) * np.exp(1j * errors)
    primitive = np.rint(np.linalg.inv(expanded.basis) @ crystal.data.rotations @ expanded.basis).astype(int)
    operations = find_operations(expanded.hkl, own, primitive)
    assert [each.agreement < 0.5 for each in operations if np.array_equal(each.rotation, -np.eye(3))] == [True]
    frame = place_group(expanded, own, [each for each in operations if np.linalg.det(each.rotation) > 0])
    factors, _, _ = averaged(expanded, own, frame.group, frame.origin)
    answer = interpret_phases(crystal.data, frame.group, hkl, factors, Evidence())
    assert (answer.space_group.hm, len(answer.atoms)) == (found, number // len(frame.group.symops))
    without, *centred = with_and_without_centre(prepared, answer, agreeing=2)
    assert without.space_group.certain == (symbol == found)
    whole = [] if symbol == found else [(symbol, atoms)]
    assert [(each.space_group.hm, len(each.atoms)) for each in centred] == whole
    assert all(each.r_factor < 1.1 * without.r_factor for each in centred)


@pytest.mark.parametrize(('name', 'value'), [('max_starts', 0), ('max_seconds', -1)])
def test_a_wrong_budget_is_named(name, value):
    with pytest.raises(InputError, match=f'{name} is {value}'):
        solve_crystal(invent(*CRYSTAL, 1.5).data, **{name: value})


def test_equal_atoms_without_chemistry_are_found_in_an_oblique_cell():
    """The paper's problem without its cube and its empty box; the verdict misses the chemistry, and says so."""
    solution, error = gaussian_atoms.solve(0)
    assert error < gaussian_atoms.RIGHT and solution.space_group.number == 1
    assert solution.verdict == 'uncertain' and any('bond' in reason for reason in solution.reasons)


def test_the_largest_error_is_at_the_best_origin_and_hand():
    generator = np.random.default_rng(0)
    atoms = gaussian_atoms.draw_atoms(generator)
    apart = gaussian_atoms.distances(atoms, atoms)
    assert np.min(apart[np.triu_indices(len(atoms), 1)]) >= gaussian_atoms.APART
    moved = (0.3 - generator.permutation(atoms)) % 1
    assert gaussian_atoms.largest_error(moved, atoms) < 1e-9
    moved[4] += [0.01, 0, 0]
    np.testing.assert_allclose(gaussian_atoms.largest_error(moved, atoms), 0.063 * 0.95, rtol=1e-6)
    assert gaussian_atoms.largest_error(moved[1:], atoms) == np.inf
    moved[4] = moved[5]
    assert gaussian_atoms.largest_error(moved, atoms) == np.inf


def test_an_answer_that_less_symmetry_explains_better_says_so_once():
    group = SpaceGroup(2, 'P -1', ('x,y,z', '-x,-y,-z'), certain=True)
    answer = Interpretation(
        group, (), 0.1, 'solved', (), np.zeros((1, 1, 1)), GOOD, ('a remark',), Evidence(agreeing=2)
    )
    doubted = crystal_groups._not_certain(answer)
    assert doubted.verdict == 'uncertain'
    assert not doubted.space_group.certain
    assert doubted.evidence == answer.evidence
    assert doubted.reasons == ('the space group is not certain', 'a remark', crystal_groups.LESS_SYMMETRY)
    assert crystal_groups._not_certain(doubted) is doubted
