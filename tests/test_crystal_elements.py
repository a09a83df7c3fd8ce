import numpy as np
import pytest

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.structure import CrystalData
from patterson_jax.solving.crystal_elements import (
    anchors,
    assign_elements,
    confidences,
    contents,
    follow_formula,
    missing_share,
    possible_elements,
    power,
    without_hydrogen,
)

FOUND = np.array([power(each) for each in ('C', 'Cl', 'O', 'C', 'N', 'C')])
ONCE = np.full(6, 4)


def known(formula=None, volume=432.0, elements=()):
    """Data of a crystal with one reflection."""
    cell = UnitCell(volume ** (1 / 3), volume ** (1 / 3), volume ** (1 / 3), 90, 90, 90)
    one = np.ones(1)
    return CrystalData(cell, np.ones((1, 3), int), one, one, '-1', np.eye(3)[None], 'P', None, formula, elements)


def test_counts_decide_whatever_the_scale():
    formula = {'C': 12, 'H': 20, 'Cl': 4, 'N': 4, 'O': 4}
    noisy = 7 * FOUND * np.array([1.05, 0.9, 0.93, 0.97, 1.08, 1])
    elements = assign_elements(noisy, ONCE, known(formula))
    assert elements == ('C', 'Cl', 'O', 'C', 'N', 'C')


def test_only_proportions_of_a_formula_count():
    assert contents({'C': 3, 'Cl': 1, 'N': 1, 'O': 1}, 24, 432) == {'C': 12, 'Cl': 4, 'N': 4, 'O': 4}
    assert contents({'Cs': 1.0, 'Sn': 0.9, 'Cl': 3.0}, 5, 170) == {'Cs': 1.0, 'Sn': 0.9, 'Cl': 3.0}


def test_a_formula_that_fits_the_volume_counts_where_only_heavy_atoms_have_sites():
    formula = {'W': 12, 'O': 38}
    assert contents(formula, 12, 50 * 24.0) == formula
    assert assign_elements(np.full(6, 7.0), np.full(6, 2), known(formula, 50 * 24.0)) == ('W',) * 6
    assert contents(formula, 12, 50 * 60.0) != formula


def test_special_positions_take_their_share():
    found = np.array([power('Cu'), power('O'), power('C'), power('O'), power('C')])
    elements = assign_elements(found, np.array([2, 4, 4, 4, 4]), known({'Cu': 2, 'C': 8, 'O': 8, 'H': 20}, 300.0))
    assert elements == ('Cu', 'O', 'C', 'O', 'C')


def test_a_formula_that_does_not_fit_gives_its_elements_only():
    elements = assign_elements(FOUND, ONCE, known({'C': 26, 'Cl': 26, 'N': 26, 'O': 26}))
    assert elements == ('C', 'Cl', 'O', 'C', 'N', 'C')


def test_without_a_formula_the_lightest_sites_are_carbon():
    elements = assign_elements(3 * FOUND, ONCE, known())
    assert elements == ('C', 'Cl', 'O', 'C', 'N', 'C')


def test_only_elements_that_may_occur_are_taken():
    elements = assign_elements(FOUND, ONCE, known(elements=('H', 'C', 'O', 'Br')))
    assert set(elements) <= {'C', 'O', 'Br'}


def test_the_lightest_sites_may_be_another_element():
    found = np.array([power(each) for each in ('Na', 'O', 'O', 'O', 'S', 'O')])
    elements = assign_elements(found, ONCE, known(volume=200.0), anchor='O')
    assert elements == ('Na', 'O', 'O', 'O', 'S', 'O')
    assert anchors(known(elements=('Cs', 'Cl'))) == ('Cl', 'Cs')
    assert anchors(known()) == ('C', 'N', 'O', 'F')
    assert anchors(known({'C': 2, 'H': 4})) == ('',)


def test_elements_are_kept_until_others_are_clearly_better():
    data, sites = known({'C': 1, 'N': 1}, 150.0), np.array([4, 4])
    nearly = np.array([power('C') * 1.13, power('C') * 1.12])
    assert assign_elements(nearly, sites, data) == ('N', 'C')
    assert assign_elements(nearly, sites, data, current=('C', 'N')) == ('C', 'N')
    clearly = np.array([power('N'), power('C')])
    assert assign_elements(clearly, sites, data, current=('C', 'N')) == ('N', 'C')


def test_missing_atoms_are_counted():
    data = known({'C': 20, 'H': 10, 'O': 4})
    assert without_hydrogen(data.formula) == {'O': 4, 'C': 20}
    assert missing_share(24, data) == 0
    np.testing.assert_allclose(missing_share(20, data), 3.5 / 24)
    assert missing_share(20, known()) == 0


def test_atoms_follow_a_formula_by_their_proportions():
    sites, data = np.array([4, 4, 2]), known({'C': 40, 'H': 99, 'Cu': 10})
    assert follow_formula(('C', 'C', 'Cu'), sites, data) is True
    assert follow_formula(('C', 'C', 'C'), sites, data) is False
    assert follow_formula(('C', 'N', 'Cu'), sites, data) is False
    assert follow_formula(('C', 'C', 'Cu'), sites, known()) is None


def test_elements_are_those_of_the_formula_or_allowed_or_likely():
    assert possible_elements(known({'O': 4, 'H': 10, 'C': 20}, elements=('Fe',))) == ('C', 'O')
    assert possible_elements(known(elements=('Fe', 'H', 'C'))) == ('C', 'Fe')
    likely = possible_elements(known())
    assert likely[:2] == ('B', 'C') and likely[-1] == 'U' and 'Xe' not in likely


@pytest.mark.parametrize(('found', 'least', 'most'), [('C', 0.95, 1), ('N', 0, 0.1), ('Cl', 0, 0.01)])
def test_confidence_is_that_of_the_nearest(found, least, most):
    """Of a site that is called carbon."""
    powers, uncertainties = np.array([power(found)]), np.array([0.02])
    assert least <= confidences(powers, uncertainties, ('C',), ('C', 'N', 'Cl'))[0] <= most
