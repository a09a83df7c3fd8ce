import dataclasses
import itertools

import gemmi
import numpy as np
import pytest

from benchmarks import crystal_verdicts, hard_crystals
from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.preparation import prepare
from patterson_jax.crystal.reflections import Measurements
from patterson_jax.crystal.structure import CrystalData, SpaceGroup
from patterson_jax.simulation.invented_crystals import Recipe, anisotropic_structure_factors, invent
from patterson_jax.solving import crystal_model
from patterson_jax.solving.crystal_maps import nearest_images
from patterson_jax.solving.crystal_model import Model, anisotropic, in_group, refined
from patterson_jax.solving.crystal_molecule import bonds
from patterson_jax.solving.crystal_structure import interpret_phases, judge_atoms, refined_atoms
from patterson_jax.solving.crystal_verdict import Evidence


def phased(crystal, wrong=0.0, data=None):
    """Observed amplitudes with the true phases, a share of which is turned by a half."""
    data = data or crystal.data
    generator = np.random.default_rng(7)
    turned = np.where(generator.random(len(data.hkl)) < wrong, -1, 1)
    return np.sqrt(np.maximum(data.intensities, 0)) * np.exp(1j * np.angle(crystal.structure_factors)) * turned


@pytest.fixture(scope='module')
def organic():
    return invent(Recipe('P21/c', num_atoms=10, d_min=0.9), seed=2)


@pytest.fixture(scope='module')
def complex_on_a_centre():
    return invent(Recipe('P-1', num_atoms=9, heavy=('Cu',), special=True, d_min=0.9), seed=3)


def found_all(crystal, interpretation):
    sites = np.array([atom.fract for atom in interpretation.atoms])
    for element, position in zip(crystal.elements, crystal.positions, strict=True):
        if element == 'H':
            continue
        distances, _ = nearest_images(position, sites, crystal.data.cell, crystal.space_group.operations)
        atom = interpretation.atoms[int(np.argmin(distances))]
        if distances.min() > 0.15 or abs(gemmi.Element(atom.element).atomic_number - _number(element)) > 2:
            return False
    return len(sites) == sum(element != 'H' for element in crystal.elements)


def _number(element):
    return gemmi.Element(element).atomic_number


def test_spoilt_phases_become_a_solved_structure(organic):
    factors = phased(organic, wrong=0.08)
    order = np.random.default_rng(1).permutation(len(factors))[: int(0.95 * len(factors))]
    result = interpret_phases(
        organic.data, organic.space_group, -organic.data.hkl[order], factors[order].conj(), Evidence()
    )
    assert found_all(organic, result)
    assert result.verdict == 'solved', result.reasons
    assert result.r_factor < 0.15
    positions = np.array([atom.fract for atom in result.atoms])
    elements = tuple(atom.element for atom in result.atoms)
    cell = organic.data.cell
    reached, grown = {0}, True
    pairs = [
        (i, j)
        for i, j, _, image in bonds(positions, elements, cell, organic.space_group.operations)
        if np.abs(image - positions[j]).max() < 1e-3
    ]
    while grown:
        more = {j for i, j in pairs if i in reached} - reached
        reached, grown = reached | more, bool(more)
    assert reached == set(range(len(positions)))  # one molecule


def test_a_metal_stays_on_its_inversion_centre(complex_on_a_centre):
    crystal = complex_on_a_centre
    result = interpret_phases(crystal.data, crystal.space_group, crystal.data.hkl, phased(crystal, 0.05), Evidence())
    assert found_all(crystal, result)
    metal = result.atoms[0]
    assert (metal.element, metal.multiplicity, metal.occupancy) == ('Cu', 1, 1.0)
    np.testing.assert_allclose(2 * np.array(metal.fract), np.rint(2 * np.array(metal.fract)), atol=1e-6)
    assert metal.confidence > 0.9


def test_light_atoms_are_found_beside_many_heavy_ones():
    """Hexatungstate, W₆O₁₉²⁻: at first the map shows tungsten alone."""
    group = SpaceGroup(2, 'P -1', ('x,y,z', '-x,-y,-z'), certain=True)
    cell = UnitCell(10.1, 10.9, 11.7, 84, 97, 103)
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    between = np.array([one + other for one, other in itertools.combinations(axes, 2) if one @ other == 0])
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    places = np.concatenate([2.3 * axes, np.zeros((1, 3)), 4.0 * axes, 1.85 * between]) @ turn
    positions = places @ np.linalg.inv(cell.orthogonalization).T + [0.27, 0.24, 0.29]
    elements = ('W',) * 6 + ('O',) * 19
    atoms = elements, positions, np.tile(0.015 * np.eye(3), (25, 1, 1)), np.ones(25)
    hkl = np.array([each for each in itertools.product(range(-14, 15), repeat=3) if each > (0, 0, 0)], np.int32)
    hkl = hkl[cell.inverse_spacings(hkl) < 1 / 0.8]
    factors = anisotropic_structure_factors(hkl, cell, group, *atoms)
    intensities = np.abs(factors) ** 2
    sigmas = 0.02 * intensities + 0.002 * intensities.mean()
    measured = intensities + sigmas * np.random.default_rng(1).standard_normal(len(hkl))
    rotations = np.stack([np.eye(3, dtype=int), -np.eye(3, dtype=int)])
    data = CrystalData(cell, hkl, measured, sigmas, '-1', rotations, 'P', 0.71073, {'W': 12.0, 'O': 38.0}, ())
    phased = np.sqrt(np.maximum(measured, 0)) * np.exp(1j * np.angle(factors))
    result = interpret_phases(data, group, hkl, phased, Evidence(agreeing=2))
    found = np.array([atom.fract for atom in result.atoms])
    for element, position in zip(elements, positions, strict=True):
        distances, _ = nearest_images(position, found, cell, group.operations)
        assert distances.min() < 0.1
        assert result.atoms[int(np.argmin(distances))].element == element
    assert len(found) == len(elements)


def test_elements_that_cannot_explain_the_densities_are_doubted(organic):
    kept = [index for index, element in enumerate(organic.elements) if element != 'H']
    positions, elements = organic.positions[kept], tuple(organic.elements[index] for index in kept)
    heavier = {'C': 'Si', 'N': 'P', 'O': 'S', 'F': 'Cl'}
    wrong = tuple(heavier.get(element, element) for element in elements)
    for given, doubted in ((elements, False), (wrong, True)):
        data = dataclasses.replace(organic.data, formula={each: 4.0 * given.count(each) for each in set(given)})
        result = judge_atoms(data, organic.space_group, positions, given, Evidence(agreeing=2))
        assert ('but the elements are doubtful' in result.reasons[-1]) == doubted, result.reasons
        confidences = [atom.confidence for atom in result.atoms]
        assert (max(confidences) < 0.1) if doubted else (np.median(confidences) > 0.8)


def test_elements_that_u_hides_at_low_resolution_are_exchanged_back():
    """At 1.2 Å, carbon and nitrogen in each other's place differ from the truth in U more than in R1."""
    crystal = invent(Recipe('P21/c', num_atoms=10, d_min=1.2, background=0.003, error=0.02), seed=27)
    kept = [index for index, element in enumerate(crystal.elements) if element != 'H']
    elements = [crystal.elements[index] for index in kept]
    nitrogen, carbon = elements.index('N'), elements.index('C')
    elements[nitrogen], elements[carbon] = 'C', 'N'
    result = judge_atoms(
        crystal.data, crystal.space_group, crystal.positions[kept], tuple(elements), Evidence(agreeing=2)
    )
    found = np.array([atom.fract for atom in result.atoms])
    for index in (kept[nitrogen], kept[carbon]):
        distances, _ = nearest_images(
            crystal.positions[index], found, crystal.data.cell, crystal.space_group.operations
        )
        assert result.atoms[int(np.argmin(distances))].element == crystal.elements[index]
    assert min(atom.u_iso for atom in result.atoms) > 0.005
    assert result.verdict == 'solved', result.reasons


def test_a_group_with_too_few_operations_is_noticed(complex_on_a_centre):
    crystal = complex_on_a_centre
    group = SpaceGroup(1, 'P 1', ('x,y,z',), certain=True)
    result = interpret_phases(crystal.data, group, crystal.data.hkl, phased(crystal), Evidence(agreeing=3))
    assert result.findings.further_symmetry
    assert result.verdict == 'uncertain'


def test_a_group_with_less_than_half_of_the_laue_class_has_no_atoms(organic):
    group = SpaceGroup(1, 'P 1', ('x,y,z',), certain=True)
    result = interpret_phases(organic.data, group, organic.data.hkl, phased(organic), Evidence(agreeing=3))
    assert (result.atoms, result.r_factor, result.verdict) == ((), None, 'not solved')
    assert '1 of the 4 operations of the Laue class 2/m' in result.reasons[0]


def test_so_many_atoms_that_they_explain_any_data_are_no_answer(complex_on_a_centre):
    """At 1.8 Å there are less than two reflections for each parameter of the atoms of P 1."""
    true = complex_on_a_centre
    within = true.data.cell.inverse_spacings(true.data.hkl) < 1 / 1.8
    of_all = (true.data.hkl, true.data.intensities, true.data.sigmas, phased(true))
    hkl, intensities, sigmas, factors = (each[within] for each in of_all)
    data = dataclasses.replace(true.data, hkl=hkl, intensities=intensities, sigmas=sigmas)
    group = SpaceGroup(1, 'P 1', ('x,y,z',), certain=True)
    result = interpret_phases(data, group, hkl, factors, Evidence(agreeing=3))
    assert (result.atoms, result.r_factor, result.verdict) == ((), None, 'not solved')
    assert f'{len(hkl)} reflections are too few' in result.reasons[0]


def test_a_laue_class_that_is_too_low_is_noticed(organic):
    """P 21/c taken for P -1, because the class -1 was asked for; its atoms are all those of half of the operations."""
    true, data = organic.space_group, organic.data
    turns, shifts = true.operations
    hkl, first = np.unique(np.concatenate([data.hkl @ turn for turn in turns]), axis=0, return_index=True)
    measured = Measurements(hkl, np.tile(data.intensities, 4)[first], np.tile(data.sigmas, 4)[first])
    low = prepare(measured, data.cell, formula=data.formula, wavelength=data.wavelength, laue='-1').data
    assert low.laue_class == '-1'
    group = SpaceGroup(2, 'P -1', ('x,y,z', '-x,-y,-z'), certain=True)
    axis = next(index for index, turn in enumerate(turns) if np.array_equal(turn, np.diag([-1, 1, -1])))
    heavy = np.array([element != 'H' for element in organic.elements])
    positions = np.concatenate([organic.positions, organic.positions @ turns[axis].T + shifts[axis]])[np.tile(heavy, 2)]
    elements = tuple(np.array(organic.elements)[heavy]) * 2
    result = judge_atoms(low, group, positions, elements, Evidence(agreeing=3))
    assert result.findings.further_symmetry
    assert (result.verdict, result.reasons) == ('uncertain', ('the atoms have symmetry that the space group lacks',))
    blind = dataclasses.replace(low, possible=None)
    assert judge_atoms(blind, group, positions, elements, Evidence(agreeing=3)).verdict == 'solved'


def test_permuted_intensities_are_never_solved(complex_on_a_centre):
    data = complex_on_a_centre.data
    order = np.random.default_rng(0).permutation(len(data.hkl))
    data = dataclasses.replace(data, intensities=data.intensities[order], sigmas=data.sigmas[order])
    factors = phased(complex_on_a_centre, data=data)
    result = interpret_phases(data, complex_on_a_centre.space_group, data.hkl, factors, Evidence(agreeing=3))
    assert result.verdict == 'not solved'


def test_atoms_drawn_to_positions_of_more_symmetry_are_noticed():
    """In this crystal half of an edge is nearly a translation, and atoms at 0.1 Å from the truth obey it exactly."""
    known = hard_crystals.invent('special positions', 'C m c m', 0)
    symops = tuple(each.wrap().triplet() for each in gemmi.SpaceGroup('C m c m').operations())
    group = SpaceGroup(63, 'C m c m', symops, certain=True)
    true = np.array([atom['xyz'] for atom in known.atoms])
    elements = tuple(atom['el'] for atom in known.atoms)
    assert judge_atoms(known.data, group, true, elements, Evidence(agreeing=2)).findings.parity == ''
    drawn = np.array([[0.626, 0.0, 0.5], [0.5, 0.302, 0.25], [0.5, 0.25, 0.5], [0.5, 0.196, 0.75]])
    result = judge_atoms(known.data, group, drawn, ('O', 'C', 'C', 'C'), Evidence(agreeing=2))
    assert result.r_factor < 0.11
    assert (result.verdict, len(result.reasons)) == ('uncertain', 1)
    assert result.reasons[0].endswith('where k is odd, and less than half of that elsewhere')


def test_a_formula_without_the_metal_is_not_believed(complex_on_a_centre):
    crystal = complex_on_a_centre
    data = dataclasses.replace(crystal.data, formula={'C': 12, 'H': 12, 'N': 4, 'O': 2})
    result = interpret_phases(data, crystal.space_group, data.hkl, phased(crystal, 0.05, data), Evidence())
    assert any('elements of the formula do not explain' in each for each in result.reasons)
    assert _number(result.atoms[0].element) > 24
    assert all(atom.confidence <= 1 for atom in result.atoms)


def test_symbols_without_numbers_are_enough(complex_on_a_centre):
    crystal = complex_on_a_centre
    data = dataclasses.replace(crystal.data, formula=None, elements=tuple(crystal.data.formula))
    result = interpret_phases(data, crystal.space_group, data.hkl, phased(crystal, 0.05, data), Evidence())
    assert found_all(crystal, result)
    assert {atom.element for atom in result.atoms} <= set(data.elements)


def test_anisotropic_displacements_are_those_of_the_crystal(complex_on_a_centre):
    known = complex_on_a_centre
    atoms = np.array([element != 'H' for element in known.elements])
    elements = tuple(itertools.compress(known.elements, atoms))
    crystal = in_group(known.data, known.space_group)
    found = anisotropic(refined(Model(crystal, known.positions[atoms], np.full(len(elements), 0.03), elements), 10))
    true = known.displacements[atoms]
    np.testing.assert_allclose(found.tensors[0], true[0], atol=1e-3)  # of copper
    np.testing.assert_allclose(found.tensors, true, atol=0.01)  # hydrogen is not among the atoms
    assert np.abs(true[0] - np.trace(true[0]) / 3 * np.eye(3)).max() > 0.008


def test_what_only_anisotropic_displacements_explain_is_solved(monkeypatch):
    known = invent(crystal_verdicts.random_recipe(np.random.default_rng([1, 1]), 1), seed=1)
    factors = phased(known)
    result = interpret_phases(known.data, known.space_group, known.data.hkl, factors, Evidence())
    assert crystal_verdicts.is_right(result, known)
    assert result.verdict == 'solved'
    assert 'with anisotropic displacements' in result.reasons[0]
    assert result.findings.anisotropic.r_factor < result.r_factor / 2
    sites = np.array([atom.fract for atom in result.atoms])
    elements = tuple(atom.element for atom in result.atoms)
    for missing in (0, -1):  # the heaviest atom, and one of the lightest
        left = np.delete(sites, missing, axis=0), tuple(np.delete(elements, missing))
        assert judge_atoms(known.data, known.space_group, *left, Evidence()).verdict != 'solved'
    monkeypatch.setattr(crystal_model, 'LEAST_FOR_ANISOTROPY', np.inf)
    isotropic = interpret_phases(known.data, known.space_group, known.data.hkl, factors, Evidence())
    assert isotropic.verdict == 'uncertain'
    assert isotropic.findings.anisotropic is None


def test_atoms_are_refined_from_a_map_and_equivalent_ones_count_once(complex_on_a_centre):
    known = complex_on_a_centre
    result = interpret_phases(known.data, known.space_group, known.data.hkl, phased(known), Evidence())
    moved = [dataclasses.replace(atom, fract=tuple(np.array(atom.fract) + 0.02)) for atom in result.atoms[1:]]
    twice = [*moved, *moved, result.atoms[0]]
    found = refined_atoms(known.data, known.space_group, twice, (known.data.hkl, phased(known)))
    assert len(found.positions) == len(result.atoms)
    assert found.r_factor == pytest.approx(result.r_factor, abs=2e-3)
    metal = int(np.argmax(found.numbers))
    np.testing.assert_array_equal(found.positions[metal] % 0.5, 0)  # it stays on its centre
    assert found.multiplicities[metal] == 1
