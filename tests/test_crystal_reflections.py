"""Merging and counting of equivalents, held against a loop over them and against gemmi."""

import gemmi
import numpy as np
import pytest

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.reflections import (
    Measurements,
    count_unique,
    equivalent_keys,
    index_keys,
    indices_of_keys,
    merge,
    sphere,
    stabilisers,
)
from patterson_jax.crystal.symmetry import laue_symbol, make_laue_class, with_inversion

MMM = with_inversion(np.array([np.diag(signs) for signs in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))]))


def rotations_of(symbol):
    operations = gemmi.SpaceGroup(symbol).operations().sym_ops
    return with_inversion(np.array([each.rot for each in operations]) // gemmi.Op.DEN)


def test_keys_stand_for_indices():
    hkl = np.random.default_rng(0).integers(-900, 900, (200, 3))
    np.testing.assert_array_equal(indices_of_keys(index_keys(hkl)), hkl)


def test_merging_is_the_weighted_mean_over_equivalents():
    random = np.random.default_rng(1)
    hkl = random.integers(-2, 3, (300, 3)).astype(np.int32)
    measured = Measurements(hkl, random.normal(10, 5, 300), random.uniform(0.5, 2, 300))
    merged = merge(measured, MMM)
    groups = {}
    for number, indices in enumerate(hkl):
        groups.setdefault(tuple(np.abs(indices)), []).append(number)
    assert sorted(groups) == sorted(tuple(np.abs(each)) for each in merged.reflections.hkl)
    spread = total = 0
    for indices, mean, sigma, count in zip(
        merged.reflections.hkl, merged.reflections.intensities, merged.reflections.sigmas, merged.counts, strict=True
    ):
        numbers = groups[tuple(np.abs(indices))]
        values, weights = measured.intensities[numbers], measured.sigmas[numbers] ** -2.0
        expected = np.average(values, weights=weights)
        scatter = np.sum(weights * (values - expected) ** 2) / max(len(numbers) - 1, 1) / np.sum(weights)
        assert count == len(numbers)
        np.testing.assert_allclose(mean, expected)
        np.testing.assert_allclose(sigma, np.sqrt(max(scatter, 1 / np.sum(weights))))
        if len(numbers) > 1:
            spread, total = spread + np.sum(np.abs(values - expected)), total + np.sum(np.abs(values))
    np.testing.assert_allclose(merged.r_int, spread / total)
    assert merged.compared == sum(len(numbers) for numbers in groups.values() if len(numbers) > 1)


def test_without_equivalents_there_is_no_merging_r():
    merged = merge(Measurements(np.array([[1, 2, 3], [1, 2, 4]]), np.ones(2), np.ones(2)), MMM)
    assert (merged.r_int, merged.compared) == (None, 0)


@pytest.mark.parametrize(
    ('symbol', 'parameters'),
    [
        ('P -1', (5, 6, 7, 80, 95, 105)),
        ('P 1 2/m 1', (5, 6, 7, 90, 110, 90)),
        ('P 4/m m m', (5, 5, 8, 90, 90, 90)),
        ('P -3 1 m', (6, 6, 9, 90, 90, 120)),
        ('P m -3', (7, 7, 7, 90, 90, 90)),
    ],
)
def test_unique_reflections_are_as_many_as_gemmi_counts(symbol, parameters):
    cell, group = UnitCell(*map(float, parameters)), gemmi.SpaceGroup(symbol)
    reflections = sphere(cell, 0.9)
    assert len(np.unique(index_keys(reflections))) == len(reflections)
    assert not set(index_keys(reflections)) & set(index_keys(-reflections))
    rotations = rotations_of(symbol)
    expected = gemmi.count_reflections(cell.gemmi, group, 0.9, 0.0, True)
    assert count_unique(reflections, rotations) == pytest.approx(expected)
    assert len(np.unique(equivalent_keys(reflections, rotations))) == expected


def test_stabilisers_are_the_rotations_that_keep_a_reflection():
    np.testing.assert_array_equal(stabilisers(np.array([[1, 2, 3], [0, 2, 3], [0, 0, 3]]), MMM), [1, 2, 4])


def test_laue_symbols_are_those_of_gemmi_for_all_space_groups():
    for group in gemmi.spacegroup_table():
        rotations = with_inversion(np.array([each.rot for each in group.operations().sym_ops]) // gemmi.Op.DEN)
        assert laue_symbol(rotations) == group.laue_str(), group


def test_a_laue_class_in_usual_axes_has_a_name():
    assert make_laue_class(rotations_of('P 1 2/m 1'), 'C').setting == 'C 1 2/m 1'
    assert make_laue_class(rotations_of('R -3 m:H'), 'R').setting == 'R -3 m:H'
