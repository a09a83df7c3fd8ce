import gemmi
import numpy as np
import pytest
from invented import invent

from patterson_jax.crystal.expansion import expand
from patterson_jax.crystal.structure import SpaceGroup
from patterson_jax.solving.spacegroup import (
    averaged,
    derivation,
    enantiomorph,
    find_operations,
    find_space_group,
    halves,
    larger_groups,
    subgroups_without_centre,
    turned_factors,
)

CRYSTALS = (  # with more atoms than in these, chance brings no further symmetry
    ('P -1', (7, 8, 9, 80, 85, 95), 5),
    ('P 1 21 1', (7, 8, 9, 90, 104, 90), 8),
    ('P 1 21/n 1', (7, 8, 9, 90, 104, 90), 4),
    ('C 1 2/c 1', (13, 8, 9, 90, 104, 90), 4),
    ('P 21 21 21', (7, 8, 11, 90, 90, 90), 6),
    ('P b n m', (8, 9, 11, 90, 90, 90), 4),
    ('P 43', (9, 9, 12, 90, 90, 90), 6),
    ('I 41/a:2', (9, 9, 14, 90, 90, 90), 3),
    ('R -3 c:H', (12, 12, 12, 90, 90, 120), 3),
    ('F d d d:2', (9, 11, 14, 90, 90, 90), 2),
)


def shifted(crystal, seed=0):
    """The crystal's reflections in P1, and their structure factors with the origin anywhere."""
    expanded = expand(crystal.data)
    origin = np.random.default_rng(seed).random(3)
    factors = crystal.structure_factors(expanded.in_given_cell(expanded.hkl))
    return expanded, factors * np.exp(2j * np.pi * expanded.hkl @ origin)


def find(crystal, expanded, factors):
    return find_space_group(expanded, factors, crystal.data.rotations)


def primitive_rotations(crystal, expanded):
    rotations = np.linalg.inv(expanded.basis) @ crystal.data.rotations @ expanded.basis
    return np.rint(rotations).astype(int)


def perturbed(factors, spread, seed=1):
    rng = np.random.default_rng(seed)
    return factors * np.exp(1j * spread * rng.standard_normal(len(factors)))


@pytest.mark.parametrize(('symbol', 'cell', 'num_atoms'), CRYSTALS)
def test_the_group_is_found_from_phases_with_errors(symbol, cell, num_atoms):
    crystal = invent(symbol, cell, num_atoms, 1.0)
    expanded, factors = shifted(crystal)
    found = find(crystal, expanded, perturbed(factors, 0.5))
    assert found.space_group.hm == symbol
    assert set(found.space_group.symops) == {each.wrap().triplet() for each in crystal.setting.operations()}
    assert found.space_group.number == crystal.setting.number
    # Two phases with that error are compared; by an inversion, a phase with itself.
    error = 2 * 0.5 if crystal.setting.is_centrosymmetric() else np.sqrt(2) * 0.5
    assert found.frame.agreements.min() == pytest.approx(np.exp(-(error**2) / 2), abs=0.05)


@pytest.mark.parametrize(('symbol', 'cell', 'num_atoms'), [CRYSTALS[2], CRYSTALS[7]])
def test_phases_come_into_the_frame_of_the_group(symbol, cell, num_atoms):
    """Those of centrosymmetric groups are 0 or π, and the atoms are an image of the true ones."""
    crystal = invent(symbol, cell, num_atoms, 1.0)
    expanded, factors = shifted(crystal)
    frame = find(crystal, expanded, factors).frame
    hkl = expanded.in_given_cell(expanded.hkl)
    moved = factors * np.exp(-2j * np.pi * hkl @ frame.origin)
    mean, shift, agreements = averaged(expanded, factors, frame.group, frame.origin)
    np.testing.assert_allclose(factors * shift, moved)
    np.testing.assert_allclose(agreements, frame.agreements)
    np.testing.assert_allclose(mean, moved, atol=2e-3 * np.abs(moved).max())
    np.testing.assert_allclose(mean.imag, 0, atol=1e-9 * np.abs(moved).max())


def test_averaging_repairs_phases():
    crystal = invent('P 21 21 21', (7, 8, 11, 90, 90, 90), 6, 1.0)
    expanded, factors = shifted(crystal)
    spoilt = perturbed(factors, 0.7)
    frame = find(crystal, expanded, spoilt).frame
    mean, shift, _ = averaged(expanded, spoilt, frame.group, frame.origin)
    mean = mean / shift

    def error(values):
        return np.sum(np.abs(factors) * np.abs(np.angle(values / factors))) / np.sum(np.abs(factors))

    assert error(mean) < 0.65 * error(spoilt)


def test_an_operation_brings_the_structure_onto_itself():
    crystal = invent('P 1 21/c 1', (7, 9, 8, 90, 103, 90), 4, 1.0)
    expanded, factors = shifted(crystal)
    operations = find_operations(expanded.hkl, factors, primitive_rotations(crystal, expanded))
    assert len(operations) == 4
    for rotation, translations, agreement in operations:
        (images,) = turned_factors(expanded.hkl, factors, rotation[None])
        np.testing.assert_allclose(
            images * np.exp(2j * np.pi * expanded.hkl @ translations[0]), factors, atol=1e-3 * np.abs(factors).max()
        )
        assert agreement == pytest.approx(1, abs=1e-4)


def test_turned_factors_are_those_at_turned_indices_and_0_where_there_are_none():
    """Under the threefold axis (5, 0, 0) goes farther along an edge than any reflection."""
    hkl, factors = np.array([(5, 0, 0), (0, 1, 0), (1, 0, 2)]), np.array([1 + 2j, 3j, 4 - 1j])
    rotations = np.array([np.eye(3), -np.eye(3), [(0, 1, 0), (0, 0, 1), (1, 0, 0)]]).astype(int)
    known = {tuple(each): value for each, value in zip(hkl.tolist(), factors, strict=True)}
    known |= {tuple(each): np.conj(value) for each, value in zip((-hkl).tolist(), factors, strict=True)}
    expected = [[known.get(tuple((each @ rotation).tolist()), 0) for each in hkl] for rotation in rotations]
    np.testing.assert_array_equal(turned_factors(hkl, factors, rotations), expected)


def test_no_operation_is_found_where_there_is_none():
    crystal = invent('P 1', (7, 8, 9, 80, 85, 95), 12, 1.0)
    found = find(crystal, *shifted(crystal))
    assert (found.space_group.hm, found.space_group.certain) == ('P 1', True)
    assert found.rejected < 0.35


def test_pseudosymmetry_is_not_certain():
    """A second half of the atoms that nearly, not quite, is the inverse of the first."""
    crystal = invent('P -1', (7, 8, 9, 80, 85, 95), 6, 1.0)
    moved = crystal.positions + 0.04 * np.random.default_rng(0).standard_normal((12, 3))
    expanded = expand(crystal.data)
    hkl = expanded.hkl
    factors = np.exp(2j * np.pi * hkl @ moved.T).sum(axis=1)
    found = find(crystal, expanded, factors)
    assert not found.space_group.certain
    assert 'P 1' in (found.space_group.hm, *found.space_group.candidates)


def test_a_group_that_poor_phases_barely_obey_is_among_the_larger_ones():
    """Of the inversion two errors of one phase are seen together: it is obeyed by 0.32, and the widest gap is above."""
    crystal = invent('P 1 21/n 1', (7, 8, 9, 90, 104, 90), 4, 1.0)
    expanded, factors = shifted(crystal)
    spoilt = perturbed(factors, 0.75)
    found = find(crystal, expanded, spoilt)
    assert found.number_kept < 4 and found.operations[3].agreement == pytest.approx(np.exp(-2 * 0.75**2), abs=0.1)
    larger = larger_groups(found, expanded, spoilt)
    assert 'P 1 21/n 1' in [each.space_group.hm for each in larger]
    for each in larger:
        assert not each.space_group.certain and found.space_group.hm in each.space_group.candidates
        assert each.number_kept > found.number_kept
    right = find(crystal, expanded, factors)
    assert larger_groups(right, expanded, factors) == []


def test_enantiomorphic_groups_are_both_named():
    crystal = invent('P 43', (9, 9, 12, 90, 90, 90), 6, 1.0)
    assert find(crystal, *shifted(crystal)).space_group.candidates == ('P 41',)
    pairs = [number for number in range(1, 231) if enantiomorph(number)]
    assert len(pairs) == 22
    assert all(enantiomorph(enantiomorph(number)) == number for number in pairs)


@pytest.mark.parametrize(('symbol', 'number'), [('P -1', 1), ('P m m m', 7), ('P m -3 m', 3), ('P 4', 1), ('P 3', 0)])
def test_halves_are_all_subgroups_of_index_two(symbol, number):
    rotations = np.array([each.rot for each in gemmi.SpaceGroup(symbol).operations()]) // gemmi.Op.DEN
    operations = find_operations(np.eye(3, dtype=int), np.ones(3), rotations)
    found = halves(operations)
    assert len(found) == number
    for part in found:
        assert len(part) == len(operations) / 2
        members = {tuple(each.rotation.ravel()) for each in part}
        assert {tuple((a.rotation @ b.rotation).ravel()) for a in part for b in part} == members


@pytest.mark.parametrize(
    ('symbol', 'number'), [('P -1', 1), ('P 1 21/c 1', 2), ('C 1 2/c 1', 2), ('P n m a', 4), ('F m -3 m', 2)]
)
def test_subgroups_without_a_centre_are_groups_and_give_the_whole_with_it(symbol, number):
    symops = {each.wrap().triplet() for each in gemmi.SpaceGroup(symbol).operations()}
    whole = SpaceGroup(gemmi.SpaceGroup(symbol).number, symbol, tuple(symops), certain=True)
    inversion = next(op for op in map(gemmi.Op, symops) if op.rot == gemmi.Op('-x,-y,-z').rot)
    found = subgroups_without_centre(whole)
    assert len({each.symops for each in found}) == len(found) == number
    for group in found:
        assert not group.has_centre
        operations = [gemmi.Op(each) for each in group.symops]
        assert {(one * other).wrap().triplet() for one in operations for other in operations} == set(group.symops)
        assert set(group.symops) | {(op * inversion).wrap().triplet() for op in operations} == symops


def test_generators_give_back_the_group():
    rotations = np.array([each.rot for each in gemmi.SpaceGroup('P m -3 m').operations()]) // gemmi.Op.DEN
    numbers = {tuple(each.ravel()): number for number, each in enumerate(rotations)}
    products = np.array([[numbers[tuple((a @ b).ravel())] for b in rotations] for a in rotations])
    generators, steps = derivation(products)
    assert len(generators) <= 4 and set(steps) == set(range(1, 48))
    known = {0}
    for operation, (place, earlier) in steps.items():
        assert earlier in known
        np.testing.assert_array_equal(rotations[operation], rotations[generators[place]] @ rotations[earlier])
        known.add(operation)
