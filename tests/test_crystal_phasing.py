"""Small crystals whose grids all have one shape, so that little is compiled."""

import dataclasses
import itertools

import gemmi
import jax
import numpy as np
import pytest
from invented import invent

from patterson_jax.solving import crystal_phasing as phasing
from patterson_jax.solving.spacegroup import enantiomorph

CRYSTALS = (
    ('P 1', (7.1, 7.4, 7.7, 82, 97, 103), 18),
    ('P -1', (7.1, 7.4, 7.7, 82, 97, 103), 9),
    ('P 1 21/c 1', (7.5, 7.7, 6.9, 90, 104, 90), 5),
    ('P 21 21 21', (6.9, 7.3, 7.6, 90, 90, 90), 5),
)
SHAPE = (20, 20, 20)
RECTANGULAR, SQUARE, HEXAGONAL = (6.9, 7.3, 7.6, 90, 90, 90), (7.5, 7.5, 7.1, 90, 90, 90), (7.5, 7.5, 7.1, 90, 90, 120)
GROUPS = (  # all that fit into grids of that shape
    ('P 1 c 1', RECTANGULAR),
    ('P 1 2/c 1', RECTANGULAR),
    ('P 21 21 2', RECTANGULAR),
    ('P n a 21', RECTANGULAR),
    ('P n n m', RECTANGULAR),
    ('P b c a', RECTANGULAR),
    ('P 41', SQUARE),
    ('P 4/n:2', SQUARE),
    ('P 3', HEXAGONAL),
    ('P 61', HEXAGONAL),
)


def correlation(crystal, invented, reached):
    """Of the map with the truth, for the best origin and hand: by brute force over a fine grid of origins."""
    hkl = crystal.expanded.in_given_cell(crystal.expanded.hkl)
    truth = invented.structure_factors(hkl)
    best = 0.0
    for factors in (reached.factors, np.conj(reached.factors)):
        box = np.zeros((64, 64, 64), complex)
        box[tuple(hkl.T)] = np.abs(truth) ** 2 * np.exp(1j * (np.angle(truth) - np.angle(factors)))
        best = max(best, float(np.fft.fftn(box).real.max() / np.sum(np.abs(truth) ** 2)))
    return best


@pytest.mark.parametrize(('symbol', 'cell', 'num_atoms'), CRYSTALS)
def test_a_crystal_is_phased_and_its_group_found(symbol, cell, num_atoms):
    invented = invent(symbol, cell, num_atoms, 0.8, noise=0.03)
    crystal = phasing.prepare_crystal(invented.data)
    assert crystal.grid.shape == SHAPE
    maps = []
    for reached in phasing.phase(crystal, jax.random.key(0), 12):
        if reached.promising:
            maps.append(reached)
        if len(maps) == 2:
            break
    for reached in maps:
        assert correlation(crystal, invented, reached) > 0.93
        assert reached.found.space_group.hm == symbol
    assert phasing.agreement(crystal, *maps) > 0.9
    assert phasing.agreement(crystal, maps[0], maps[0]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(('symbol', 'cell'), GROUPS)
def test_groups_are_found_in_lattices_that_have_more_symmetry(symbol, cell):
    """Monoclinic ones in a rectangular cell, 4/m in a square one, -3 and 6/m in a hexagonal one."""
    order = len(list(gemmi.SpaceGroup(symbol).operations()))
    invented = invent(symbol, cell, max(24 // order, 3), 0.8, noise=0.03)
    crystal = phasing.prepare_crystal(invented.data)
    assert crystal.grid.shape == SHAPE
    reached = next(each for each in phasing.phase(crystal, jax.random.key(0), 8) if each.promising)
    number = invented.setting.number
    assert reached.found.space_group.number in (number, enantiomorph(number))
    assert correlation(crystal, invented, reached) > 0.93


def test_starts_are_a_function_of_key_and_number():
    crystal = phasing.prepare_crystal(invent(*CRYSTALS[1], 0.8).data)
    first, second = (
        [
            (each.start, each.cycles, each.jump)
            for each in itertools.islice(phasing.phase(crystal, jax.random.key(5), 4), 2)
        ]
        for _ in range(2)
    )
    assert first == second
    assert len({start for start, _, _ in first}) == 2


def test_no_more_starts_are_made_than_asked_for():
    crystal = phasing.prepare_crystal(invent(*CRYSTALS[1], 0.8).data)
    assert sorted(each.start for each in phasing.phase(crystal, jax.random.key(1), 3)) == [0, 1, 2]


def test_wrong_maps_neither_promise_nor_agree():
    """Intensities at random have no structure: what flipping finds in them is not believed."""
    invented = invent(*CRYSTALS[2], 0.8)
    data = invented.data
    shuffled = np.random.default_rng(0).permutation(data.intensities)
    crystal = phasing.prepare_crystal(dataclasses.replace(data, intensities=shuffled))
    maps = list(phasing.phase(crystal, jax.random.key(0), 3))
    assert not any(each.promising for each in maps)
    assert max(phasing.agreement(crystal, *pair) for pair in itertools.combinations(maps, 2)) < phasing.SAME_MAP


def test_a_poor_map_is_mended_in_the_group_that_it_barely_obeys():
    """At 1.2 Å, with phases that obey the inversion by 0.4: so are those that flipping comes to there."""
    invented = invent('P 1 21/c 1', (8.8, 9.6, 8.1, 90, 104, 90), 6, 1.2, noise=0.03)
    crystal = phasing.prepare_crystal(invented.data)
    hkl = crystal.expanded.in_given_cell(crystal.expanded.hkl)
    errors = 0.67 * np.random.default_rng(0).standard_normal(len(hkl))
    spoilt = crystal.normalised * np.exp(1j * (np.angle(invented.structure_factors(hkl)) + errors))
    half_grid = crystal.grid.place(crystal.expanded.hkl, np.conj(spoilt))
    density = np.fft.irfftn(half_grid, crystal.grid.shape, axes=(0, 1, 2))
    reached = phasing.finish(crystal, density, phasing.Slot(0, [2.0] * 100), noise=1.0)
    assert reached.found.space_group.hm == 'P 1 21/c 1'
    assert reached.promising and reached.obeys_its_group_alone
    before = dataclasses.replace(reached, factors=spoilt)
    assert correlation(crystal, invented, before) < 0.85
    assert correlation(crystal, invented, reached) > 0.95
    # A wrong map ranks below it by its amplitudes, even if its skewness is higher and it seems to obey a group.
    noise = np.random.default_rng(1).standard_normal(crystal.grid.shape)
    wrong = phasing.finish(crystal, noise, phasing.Slot(1, [2.0] * 100), noise=1.0)
    assert correlation(crystal, invented, wrong) < 0.6
    promising = dataclasses.replace(wrong, found=reached.found, obeyed=reached.obeyed, jump=2 * reached.jump)
    assert promising.promising and promising.rank < reached.rank


def test_vectors_are_those_between_heavy_atoms():
    """Of a crystal whose first two atoms outweigh the others by far."""
    invented = invent(*CRYSTALS[0], 0.8)
    expanded = phasing.expand(invented.data)
    grid = phasing.grid_for(expanded.hkl)
    weights = np.ones(len(invented.positions))
    weights[:2] = 12
    hkl = expanded.in_given_cell(expanded.hkl)
    factors = np.exp(2j * np.pi * hkl @ invented.positions.T) @ weights
    patterson = grid.place(expanded.hkl, np.abs(factors) ** 2).astype(np.float32)
    vectors = phasing.interatomic_vectors(patterson, grid, expanded, invented.data.rotations)
    assert len(vectors) == phasing.MOST_VECTORS
    true = np.linalg.inv(expanded.basis) @ (invented.positions[0] - invented.positions[1])
    differences = np.array([1, -1])[:, None] * true[list(grid.axes)] - vectors[0]
    np.testing.assert_allclose(np.abs(differences - np.rint(differences)).max(axis=1).min(), 0, atol=0.03)


@pytest.mark.parametrize(('resolution', 'free'), [(0.8, True), (1.0, True), (1.2, False)])
def test_the_mean_of_the_density_is_free_where_data_are_fine(resolution, free):
    crystal = phasing.prepare_crystal(invent('P -1', (7.1, 7.4, 7.7, 82, 97, 103), 9, resolution).data)
    assert bool(crystal.search.mean_is_free) == free


def test_the_level_of_noise_is_not_that_of_a_quick_start_that_has_jumped():
    early = [1.0] * 10 + [3.0] * 40
    assert phasing.Slot(0, early).first_skewness == 3.0
    assert phasing.Slot(0, early, quick=True).first_skewness == pytest.approx(phasing.MOST_GROWTH)
    slow = [1.0] * 10 + [1.2] * 40
    assert phasing.Slot(0, slow, quick=True).first_skewness == phasing.Slot(0, slow).first_skewness == 1.2
