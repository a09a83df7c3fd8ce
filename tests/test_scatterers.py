import dataclasses

import gemmi
import numpy as np
import pytest

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.scatterers import (
    AsymmetricUnit,
    form_factors,
    group_operations,
    structure_factors,
)
from patterson_jax.crystal.structure import SpaceGroup
from patterson_jax.errors import InputError
from patterson_jax.solving.crystal_maps import allowed_reflections

WAVELENGTH = 1.54184


def space_group(name):
    group = gemmi.SpaceGroup(name)
    return SpaceGroup(group.number, group.hm, tuple(op.triplet() for op in group.operations()), certain=True)


def by_gemmi(cell, name, sites, hkl):
    """F of sites (element, position, U, occupancy, sites that one operation maps onto another)."""
    structure = gemmi.SmallStructure()
    structure.cell, structure.spacegroup = cell.gemmi, gemmi.SpaceGroup(name)
    structure.setup_cell_images()
    for element, position, u_iso, occupancy, order in sites:
        site = gemmi.SmallStructure.Site()
        site.element, site.fract = gemmi.Element(element), gemmi.Fractional(*position)
        site.u_iso, site.occ = u_iso, occupancy / order
        structure.add_site(site)
    calculator = gemmi.StructureFactorCalculatorX(structure.cell)
    for element in {site[0] for site in sites}:
        number = gemmi.Element(element).atomic_number
        calculator.addends.set(gemmi.Element(element), gemmi.cromer_liberman(number, 12398.42 / WAVELENGTH)[0])
    return np.array([calculator.calculate_sf_from_small_structure(structure, each) for each in hkl.tolist()])


@pytest.mark.parametrize(
    ('name', 'cell', 'sites'),
    [
        ('P 1', (5, 6, 7, 80, 95, 105), [('C', (0.1, 0.2, 0.3), 0.03, 1, 1), ('S', (0.4, 0.15, 0.7), 0.05, 0.7, 1)]),
        ('P 1 21/c 1', (6, 7, 8, 90, 100, 90), [('O', (0.1, 0.2, 0.3), 0.04, 1, 1), ('Fe', (0, 0, 0), 0.02, 1, 2)]),
        ('C 1 2/c 1', (9, 7, 8, 90, 110, 90), [('N', (0.1, 0.2, 0.3), 0.04, 1, 1), ('Cu', (0, 0.1, 0.25), 0.02, 1, 2)]),
        ('P 41', (6, 6, 9, 90, 90, 90), [('O', (0.1, 0.2, 0.3), 0.04, 1, 1), ('C', (0.3, 0.35, 0.1), 0.03, 1, 1)]),
        ('F m -3 m', (5.6, 5.6, 5.6, 90, 90, 90), [('Na', (0, 0, 0), 0.02, 1, 48), ('Cl', (0.5, 0, 0), 0.03, 1, 48)]),
        ('R -3 c:H', (8, 8, 11, 90, 90, 120), [('O', (0.2, 0.1, 0.05), 0.03, 1, 1), ('Fe', (0, 0, 0), 0.02, 1, 6)]),
    ],
)
def test_structure_factors_are_gemmis_special_positions_too(name, cell, sites):
    cell, group = UnitCell(*cell), space_group(name)
    hkl = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3), -1).reshape(-1, 3)[::5].astype(np.int32)
    hkl = hkl[allowed_reflections(hkl, group.symops)]
    spacings = cell.inverse_spacings(hkl).astype(np.float32)
    elements = sorted({site[0] for site in sites})
    unit = AsymmetricUnit(
        np.array([site[1] for site in sites], np.float32),
        np.array([site[2] for site in sites], np.float32),
        np.array([site[3] / site[4] for site in sites], np.float32),
        np.array([elements.index(site[0]) for site in sites], np.int32),
    )
    table = form_factors(elements, spacings, WAVELENGTH)
    found = structure_factors(unit, group_operations(group), hkl.astype(np.float32), table, spacings)
    expected = by_gemmi(cell, name, sites, hkl)
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_a_positive_lattice_needs_half_of_the_operations():
    operations = group_operations(space_group('C 1 2/c 1'))
    assert (operations.number, operations.factor, operations.phased) == (2, 4, 0)
    assert group_operations(space_group('F -4 3 m')).phased == 1


def test_an_element_without_form_factor_is_named():
    with pytest.raises(InputError, match="'X'"):
        form_factors(['X'], np.array([0.1]))


def test_f_prime_is_left_out_without_a_wavelength():
    spacings = np.linspace(0, 1, 5)
    difference = form_factors(['Fe'], spacings, WAVELENGTH) - form_factors(['Fe'], spacings)
    np.testing.assert_allclose(difference, gemmi.cromer_liberman(26, 12398.42 / WAVELENGTH)[0], rtol=1e-5)


def test_a_group_knows_its_operations():
    group = space_group('P 1 21 1')
    rotations, translations = group.operations
    assert [gemmi.Op(each).triplet() for each in group.symops] == list(group.symops)
    np.testing.assert_array_equal(rotations[1], np.diag([-1, 1, -1]))
    np.testing.assert_allclose(translations[1], [0, 0.5, 0])
    assert dataclasses.replace(group, certain=False).operations[0].shape == (2, 3, 3)
