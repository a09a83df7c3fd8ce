import gemmi
import numpy as np
import pytest

from patterson_jax.crystal.scatterers import AsymmetricUnit, form_factors, group_operations, structure_factors
from patterson_jax.simulation.invented_crystals import CONTACT, Recipe, anisotropic_structure_factors, invent
from patterson_jax.solving.crystal_maps import contacts
from patterson_jax.solving.crystal_molecule import bond_limit

RECIPES = (
    Recipe('P21/c', num_atoms=9, d_min=1.0),
    Recipe('P-1', num_atoms=8, heavy=('Cu',), special=True, d_min=1.0),
    Recipe('Pbca', num_atoms=8, heavy=('S',), d_min=1.2, disorder=0.2),
)


@pytest.fixture(scope='module', params=RECIPES, ids=lambda recipe: recipe.group)
def crystal(request):
    return invent(request.param, seed=3)


def test_the_same_seed_gives_the_same_crystal():
    first, second = (invent(RECIPES[0], seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.data.intensities, second.data.intensities)


def test_molecules_touch_only_where_they_are_bonded(crystal):
    heavy = [index for index, each in enumerate(crystal.elements) if each != 'H' and crystal.occupancies[index] != 0.35]
    positions = crystal.positions[heavy]
    elements = [crystal.elements[index] for index in heavy]
    cell, operations = crystal.data.cell, crystal.space_group.operations
    for first, second, distance, _ in contacts(positions, cell, operations, CONTACT - 1e-6):
        assert distance > 0.8 * (bond_limit(elements[first], elements[second]) - 0.35)
    bonded = {first for first, second, distance, _ in contacts(positions, cell, operations, 2.3)}
    assert bonded == set(range(len(heavy)))


def test_intensities_are_those_of_the_true_structure(crystal):
    errors = (crystal.data.intensities - np.abs(crystal.structure_factors) ** 2) / crystal.data.sigmas
    assert abs(errors.mean()) < 5 / np.sqrt(len(errors))
    np.testing.assert_allclose(errors.std(), 1, atol=0.15)


def test_the_formula_is_what_the_cell_holds(crystal):
    number = len(crystal.space_group.symops)
    carbon = sum(o for each, o in zip(crystal.elements, crystal.occupancies, strict=True) if each == 'C')
    np.testing.assert_allclose(crystal.data.formula['C'], carbon * number, atol=0.01)
    assert crystal.data.formula['H'] > 0


def test_isotropic_structure_factors_are_those_of_the_other_sum(crystal):
    """Two sums, written apart."""
    data, elements = crystal.data, sorted(set(crystal.elements))
    u_iso = np.full(len(crystal.elements), 0.04)
    found = anisotropic_structure_factors(
        data.hkl,
        data.cell,
        crystal.space_group,
        crystal.elements,
        crystal.positions,
        u_iso[:, None, None] * np.eye(3),
        crystal.occupancies,
    )
    spacings = data.cell.inverse_spacings(data.hkl)
    unit = AsymmetricUnit(
        *(np.float32(each) for each in (crystal.positions, u_iso, crystal.occupancies)),
        np.array([elements.index(each) for each in crystal.elements], np.int32),
    )
    table = form_factors(elements, spacings)
    operations = group_operations(crystal.space_group)
    expected = structure_factors(unit, operations, np.float32(data.hkl), table, np.float32(spacings))
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(found).max())


def test_groups_are_what_they_are_called(crystal):
    assert gemmi.SpaceGroup(crystal.space_group.hm).number == crystal.space_group.number
