import gemmi
import numpy as np
import pytest

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.structure import SpaceGroup
from patterson_jax.solving.crystal_maps import (
    allowed_reflections,
    contacts,
    grid_shape,
    integrate,
    nearest_images,
    settle,
    sharp_peaks,
    stabiliser,
    symmetric_map,
    values_at,
)
from patterson_jax.solving.crystal_molecule import assemble, bonds, within_valence

TRICLINIC = UnitCell(5.0, 6.5, 7.0, 78, 97, 104)


def operations_of(name):
    group = gemmi.SpaceGroup(name)
    symops = tuple(op.triplet() for op in group.operations())
    return SpaceGroup(group.number, group.hm, symops, certain=True).operations


def unique_reflections(cell, name, d_min):
    hkl = gemmi.make_miller_array(cell.gemmi, gemmi.SpaceGroup(name), d_min)
    return hkl[(hkl != 0).any(axis=1)]


@pytest.mark.parametrize(
    ('name', 'cell'),
    [
        ('P -1', TRICLINIC),
        ('P 41', UnitCell(6, 6, 9, 90, 90, 90)),
        ('R 3:H', UnitCell(8, 8, 7, 90, 90, 120)),
        ('C 1 2/c 1', UnitCell(8, 6, 7, 90, 105, 90)),
    ],
)
def test_a_map_is_the_sum_over_all_equivalents_and_shows_its_atoms(name, cell):
    operations, position = operations_of(name), np.array([0.13, 0.21, 0.34])
    hkl = unique_reflections(cell, name, 0.9)
    turns, shifts = operations
    falloff = np.exp(-2 * np.pi**2 * 0.04 * cell.inverse_spacings(hkl) ** 2)
    factors = falloff * np.exp(2j * np.pi * np.einsum('hi,mi->hm', hkl, turns @ position + shifts)).sum(axis=1)
    density = symmetric_map(hkl, factors, operations, grid_shape(cell, 0.9), cell.volume)
    everything = np.concatenate([hkl @ turn for turn in turns])
    everything = np.unique(np.concatenate([everything, -everything]), axis=0)
    spread = np.exp(-2 * np.pi**2 * 0.04 * cell.inverse_spacings(everything) ** 2)
    images = turns @ position + shifts
    sums = spread * np.exp(2j * np.pi * everything @ images.T).sum(axis=1)
    points = np.array([(0, 0, 0), (3, 5, 2), (1, 7, 4)])
    direct = (sums[None] * np.exp(-2j * np.pi * (points / density.shape) @ everything.T)).sum(axis=1).real / cell.volume
    np.testing.assert_allclose(density[tuple(points.T)], direct, atol=1e-4 * np.abs(density).max())
    peaks = sharp_peaks(density, cell, operations, 0.5 * density.max(), 100)
    assert len(peaks.heights) == 1
    distances, _ = nearest_images(position, peaks.positions, cell, operations)
    assert distances[0] < 0.05
    np.testing.assert_allclose(values_at(density, peaks.positions), peaks.heights, rtol=0.1)
    np.testing.assert_allclose(peaks.integrals, integrate(density, position[None], cell), rtol=0.03)


def test_grids_suit_the_transform():
    assert grid_shape(UnitCell(10.1, 14, 3, 90, 90, 90), 0.8) == (54, 72, 16)


@pytest.mark.parametrize(
    ('name', 'near', 'exact', 'order'),
    [
        ('P -1', (0.52, 0.49, 0.01), (0.5, 0.5, 0), 2),
        ('F m -3 m', (0.02, -0.01, 0.015), (0, 0, 0), 48),
        ('F m -3 m', (0.27, 0.26, 0.24), (0.25, 0.25, 0.25), 24),
        ('P -1', (0.3, 0.2, 0.1), (0.3, 0.2, 0.1), 1),
        ('P 1 2/m 1', (0.51, 0.2, 0.02), (0.5, 0.2, 0), 2),
    ],
)
def test_sites_settle_on_special_positions(name, near, exact, order):
    cell, operations = UnitCell(8, 8, 8, 90, 90, 90), operations_of(name)
    position, projector = settle(np.array(near), cell, operations, 0.6)
    np.testing.assert_allclose(position, exact, atol=1e-12)
    assert len(stabiliser(position, cell, operations)) == order
    np.testing.assert_allclose(projector @ projector, projector, atol=1e-12)
    np.testing.assert_allclose(settle(position + 0.01 * projector @ [1, 2, 3], cell, operations, 0.3)[1], projector)


def test_contacts_are_those_of_a_large_crystal():
    """Against all pairs among the atoms of 5³ cells."""
    operations = operations_of('P -1')
    positions = np.random.default_rng(0).random((4, 3))
    reach = 3.0
    found = contacts(positions, TRICLINIC, operations, reach)
    turns, shifts = operations
    steps = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3), -1).reshape(-1, 3)
    crystal = (np.einsum('mij,nj->mni', turns, positions) + shifts[:, None]).reshape(-1, 3)
    crystal = (crystal[:, None] + steps).reshape(-1, 3)
    lengths = np.linalg.norm((crystal - positions[:, None]) @ TRICLINIC.orthogonalization.T, axis=-1)
    expected = np.sort(lengths[(lengths < reach) & (lengths > 0.01)])
    np.testing.assert_allclose(np.sort([each[2] for each in found]), expected, atol=1e-9)
    for first, _, distance, image in found:
        vector = TRICLINIC.orthogonalization @ (image - positions[first])
        np.testing.assert_allclose(np.linalg.norm(vector), distance)


def test_scattered_atoms_become_one_molecule_near_the_middle():
    cell, operations = UnitCell(8, 9, 10, 90, 100, 90), operations_of('P 1 21/c 1')
    chain = np.cumsum(
        np.array([(0.4, 0, 0), (1.4, 0.3, 0), (0.3, 1.3, 0.4), (1.3, 0.2, -0.5), (0.2, 1.2, 0.7)]), axis=0
    )
    chain = chain @ np.linalg.inv(cell.orthogonalization).T + [0.05, 0.6, 0.1]
    turns, shifts = operations
    generator = np.random.default_rng(1)
    scattered = np.array(
        [turns[m] @ x + shifts[m] + generator.integers(-2, 3, 3) for m, x in zip((0, 3, 1, 2, 0), chain, strict=True)]
    )
    elements = ('C',) * 5
    together = assemble(scattered, elements, cell, operations)

    def lengths(positions):
        vectors = (positions[:, None] - positions[None]) @ cell.orthogonalization.T
        return np.linalg.norm(vectors, axis=-1)

    np.testing.assert_allclose(lengths(together), lengths(chain), atol=1e-6)
    assert np.all(np.abs(together.mean(axis=0) - 0.5) <= 0.5)
    for before, after in zip(scattered, together, strict=True):
        assert nearest_images(before, after[None], cell, operations)[0][0] < 1e-6
    assert len(bonds(together, elements, cell, operations)) == 8  # four, from both sides


def test_forbidden_reflections_are_known():
    hkl = np.array([(0, 1, 0), (0, 2, 0), (1, 0, 1), (1, 0, 2), (1, 1, 1)])
    symops = ('x,y,z', '-x,y+1/2,-z+1/2', '-x,-y,-z', 'x,-y+1/2,z+1/2')
    np.testing.assert_array_equal(allowed_reflections(hkl, symops), [False, True, False, True, True])


def test_atoms_with_too_many_bonds_become_lighter():
    """A star of an atom with three neighbours."""
    bonded = [(0, 1, 1.4, None), (0, 2, 1.4, None), (0, 3, 1.4, None), (1, 0, 1.4, None)]
    assert within_valence(('O', 'O', 'C', 'F'), bonded, ('C', 'N', 'O', 'F')) == ('N', 'O', 'C', 'F')
    assert within_valence(('F', 'O', 'C', 'F'), bonded, ('C', 'O', 'F')) == ('C', 'O', 'C', 'F')
    assert within_valence(('S', 'O', 'C', 'F'), bonded, ('C', 'O', 'F', 'S')) == ('S', 'O', 'C', 'F')
