import numpy as np
import pytest

from patterson_jax.solving.crystal_elements import (
    anchors,
    assign_elements,
    confidences,
    contents,
    missing_share,
    power,
    without_hydrogen,
)

FOUND = np.array([power(each) for each in ('C', 'Cl', 'O', 'C', 'N', 'C')])
ONCE = np.full(6, 4)


def test_counts_decide_whatever_the_scale():
    formula = {'C': 12, 'H': 20, 'Cl': 4, 'N': 4, 'O': 4}
    noisy = 7 * FOUND * np.array([1.05, 0.9, 0.93, 0.97, 1.08, 1])
    elements = assign_elements(noisy, ONCE, formula, 432)
    assert elements == ('C', 'Cl', 'O', 'C', 'N', 'C')


def test_only_proportions_of_a_formula_count():
    assert contents({'C': 3, 'Cl': 1, 'N': 1, 'O': 1}, 24, 432) == {'C': 12, 'Cl': 4, 'N': 4, 'O': 4}
    assert contents({'Cs': 1.0, 'Sn': 0.9, 'Cl': 3.0}, 5, 170) == {'Cs': 1.0, 'Sn': 0.9, 'Cl': 3.0}


def test_special_positions_take_their_share():
    found = np.array([power('Cu'), power('O'), power('C'), power('O'), power('C')])
    elements = assign_elements(found, np.array([2, 4, 4, 4, 4]), {'Cu': 2, 'C': 8, 'O': 8, 'H': 20}, 300)
    assert elements == ('Cu', 'O', 'C', 'O', 'C')


def test_a_formula_that_does_not_fit_gives_its_elements_only():
    elements = assign_elements(FOUND, ONCE, {'C': 26, 'Cl': 26, 'N': 26, 'O': 26}, 432)
    assert elements == ('C', 'Cl', 'O', 'C', 'N', 'C')


def test_without_a_formula_the_lightest_sites_are_carbon():
    elements = assign_elements(3 * FOUND, ONCE, None, 432)
    assert elements == ('C', 'Cl', 'O', 'C', 'N', 'C')


def test_only_elements_that_may_occur_are_taken():
    elements = assign_elements(FOUND, ONCE, None, 432, allowed=('H', 'C', 'O', 'Br'))
    assert set(elements) <= {'C', 'O', 'Br'}


def test_the_lightest_sites_may_be_another_element():
    found = np.array([power(each) for each in ('Na', 'O', 'O', 'O', 'S', 'O')])
    elements = assign_elements(found, ONCE, None, 200, anchor='O')
    assert elements == ('Na', 'O', 'O', 'O', 'S', 'O')
    assert anchors(None, ('Cs', 'Cl')) == ('Cl', 'Cs')
    assert anchors(None, ()) == ('C', 'N', 'O', 'F')
    assert anchors({'C': 2, 'H': 4}, ()) == (None,)


def test_elements_are_kept_until_others_are_clearly_better():
    formula, sites = {'C': 1, 'N': 1}, np.array([4, 4])
    nearly = np.array([power('C') * 1.13, power('C') * 1.12])
    assert assign_elements(nearly, sites, formula, 150) == ('N', 'C')
    assert assign_elements(nearly, sites, formula, 150, current=('C', 'N')) == ('C', 'N')
    clearly = np.array([power('N'), power('C')])
    assert assign_elements(clearly, sites, formula, 150, current=('C', 'N')) == ('N', 'C')


def test_missing_atoms_are_counted():
    formula = {'C': 20, 'H': 10, 'O': 4}
    assert without_hydrogen(formula) == {'O': 4, 'C': 20}
    assert missing_share(24, formula, 430) == 0
    np.testing.assert_allclose(missing_share(20, formula, 430), 3.5 / 24)
    assert missing_share(20, None, 430) == 0


@pytest.mark.parametrize(('found', 'least', 'most'), [('C', 0.95, 1), ('N', 0, 0.1), ('Cl', 0, 0.01)])
def test_confidence_is_that_of_the_nearest(found, least, most):
    """Of a site that is called carbon."""
    powers, uncertainties = np.array([power(found)]), np.array([0.02])
    assert least <= confidences(powers, uncertainties, ('C',), ('C', 'N', 'Cl'))[0] <= most
