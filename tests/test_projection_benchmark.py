"""The paired test of the learned projection: its statistics against SciPy, and one small crystal all the way."""

import jax
import numpy as np
import pytest
import scipy.stats

from benchmarks import projection
from patterson_jax.simulation.invented_crystals import Recipe, anisotropic_structure_factors, invent
from patterson_jax.solving.crystal_phasing import prepare_crystal
from patterson_jax.solving.crystal_projection import Projection


@pytest.mark.parametrize(('better', 'worse'), [(0, 0), (5, 0), (7, 3), (3, 7), (12, 12)])
def test_the_sign_test_is_that_of_scipy(better, worse):
    expected = scipy.stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    np.testing.assert_allclose(projection.sign_test(better, worse), expected, rtol=1e-9)


def test_the_area_is_that_of_the_ranks():
    generator = np.random.default_rng(0)
    right, wrong = generator.integers(0, 6, 20).tolist(), generator.integers(-2, 4, 30).tolist()
    expected = scipy.stats.mannwhitneyu(right, wrong).statistic / (20 * 30)
    np.testing.assert_allclose(projection.area(right, wrong), expected)
    assert np.isnan(projection.area(right, []))


@pytest.fixture(scope='module')
def case():
    made = invent(Recipe('P-1', 6, ('Cl',), d_min=1.1, lost=0.1), 3)
    crystal = prepare_crystal(made.data)
    hkl = crystal.expanded.in_given_cell(crystal.expanded.hkl)
    truth = anisotropic_structure_factors(
        hkl, made.data.cell, made.space_group, made.elements, made.positions, made.displacements, made.occupancies
    )
    return projection.Case('small', crystal, truth, centrosymmetric=True)


def test_one_crystal_is_finished_in_all_ways_and_tabulated(case):
    untrained = Projection(lambda weights, density, told: weights * jax.nn.relu(density), 1.0)
    entry = projection.measure(case, untrained, seed=0, starts=3)
    assert [row['start'] for row in entry['starts']] == [0, 1, 2]
    best = max(row['classical']['map'] for row in entry['starts'])
    assert best > projection.RIGHT_MAP
    for row in entry['starts']:
        assert set(projection.METHODS) <= row.keys()
        assert all(-1 <= row[method]['map'] <= 1.001 and row[method]['seconds'] > 0 for method in projection.METHODS)
        assert -1 <= row['judged']['kept'] <= 1 and row['judged']['disagreement'] >= 0
    right = sum(row['classical']['map'] > projection.RIGHT_MAP for row in entry['starts'])
    table = projection.tables([{'cut': 1.2, **entry}], [1.2, 1.4])
    assert f'| 1.2 | yes | 1 | classical | {right} of 3 | 1 |' in table
    assert '| 1.4 |' not in table
