import dataclasses

import numpy as np
import pytest

from patterson_jax.crystal.structure import SpaceGroup
from patterson_jax.simulation.invented_crystals import Recipe, invent
from patterson_jax.solving.crystal_elements import atomic_number
from patterson_jax.solving.crystal_findings import examine, further_symmetry
from patterson_jax.solving.crystal_maps import allowed_reflections
from patterson_jax.solving.crystal_model import Model, in_group, refined


@pytest.fixture(scope='module')
def organic():
    return invent(Recipe('P21/c', num_atoms=10, d_min=0.9), seed=2)


def examined(crystal, data, without=0):
    """Findings on the true atoms, without hydrogen and without some of the last others, refined."""
    kept = [index for index, element in enumerate(crystal.elements) if element != 'H']
    kept = kept[: len(kept) - without]
    elements = tuple(crystal.elements[index] for index in kept)
    model = Model(in_group(data, crystal.space_group), crystal.positions[kept], np.full(len(kept), 0.04), elements)
    return examine(refined(model, cycles=10))


def test_of_the_true_atoms_nothing_is_odd_and_where_one_is_missing_there_is_a_peak(organic):
    found = examined(organic, organic.data)
    assert found.r_factor < 0.15 and found.weak_intensity < 0.2
    assert found.highest_peak < 0.2 and found.deepest_hole < 0.2
    assert (found.odd_bonds, found.parity, found.further_symmetry) == ((), '', False)
    assert found.organic and found.follows_formula and found.missing_share == 0
    assert found.light_share == 1 and 1.2 < found.closest < 1.6
    fewer = examined(organic, organic.data, without=1)
    assert fewer.highest_peak > 0.5 and fewer.r_factor > found.r_factor
    assert fewer.volume_per_atom > found.volume_per_atom and fewer.missing_share > 0


@pytest.mark.parametrize('part', [0.0, 0.5])
def test_intensity_that_the_group_forbids_is_told_relative_to_the_mean(organic, part):
    data = organic.data
    absent = ~allowed_reflections(data.hkl, organic.space_group.symops)
    assert absent.sum() > 5
    mean = np.maximum(data.intensities, 0).mean()
    intensities = np.where(absent, part * mean, data.intensities)
    found = examined(organic, dataclasses.replace(data, intensities=intensities))
    assert abs(found.absent_intensity - part) < 0.05


def test_a_true_group_has_no_further_symmetry(organic):
    heavy = np.array([element != 'H' for element in organic.elements])
    numbers = np.array([atomic_number(each) for each in organic.elements])[heavy]
    assert not further_symmetry(organic.positions[heavy], numbers, organic.space_group, organic.data)


def test_further_symmetry_is_seen_though_elements_are_mistaken(organic):
    """All atoms of half of the operations, so that the inversion is lost; each called carbon, nitrogen or oxygen."""
    heavy = np.array([element != 'H' for element in organic.elements])
    turns, shifts = organic.space_group.operations
    proper = [index for index, turn in enumerate(turns) if np.linalg.det(turn) > 0]
    group = SpaceGroup(4, 'P 1 21 1', tuple(organic.space_group.symops[each] for each in proper), certain=True)
    inversion = next(index for index, turn in enumerate(turns) if np.array_equal(turn, -np.eye(3)))
    halves = [organic.positions[heavy], organic.positions[heavy] @ turns[inversion].T + shifts[inversion]]
    positions = np.concatenate(halves)
    numbers = np.random.default_rng(0).integers(6, 9, len(positions))
    assert further_symmetry(positions, numbers, group, organic.data)
    assert not further_symmetry(halves[0], numbers[: len(halves[0])], organic.space_group, organic.data)
