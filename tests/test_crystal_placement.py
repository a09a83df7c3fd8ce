"""Atoms placed in P1: derivatives and maps against brute force, lost atoms put back, and a crystal solved by them."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.crystal_verdicts import is_right
from patterson_jax.crystal.cell import UnitCell
from patterson_jax.simulation.invented_crystals import Recipe, invent
from patterson_jax.solving import crystal_placement as placement
from patterson_jax.solving import crystal_solver
from patterson_jax.solving.crystal_phasing import SAME_MAP, agreement, prepare_crystal
from patterson_jax.solving.crystal_solver import solve_crystal

CELL = UnitCell(7.1, 7.4, 7.7, 82, 97, 103)
LONG = UnitCell(11, 7.4, 7.7, 82, 97, 103)  # with room for a chain
ATOMS = 8


@pytest.fixture(scope='module')
def invented():
    """A molecule in P1 at 1.2 Å."""
    return invent(Recipe(group='P1', num_atoms=ATOMS, d_min=1.2), seed=1)


@pytest.fixture(scope='module')
def crystal(invented):
    return prepare_crystal(invented.data)


@pytest.fixture(scope='module')
def maps(crystal):
    return [*itertools.islice(placement.placed_maps(crystal, jax.random.key(0)), 4)]


def random_atoms(seed=0, number=6):
    return jnp.asarray(np.random.default_rng(seed).random((number, 3)), jnp.float32)


def some_reflections(cell=CELL):
    reach = np.arange(-9, 10)
    hkl = np.array([each for each in itertools.product(reach, reach, reach) if each > (0, 0, 0)])
    return hkl[cell.inverse_spacings(hkl) < 1 / 1.2]


def target_of(positions, cell=CELL):
    """E values of equal points."""
    hkl = some_reflections(cell)
    amplitudes = np.abs(np.exp(2j * np.pi * hkl @ np.asarray(positions).T).sum(axis=1)) / np.sqrt(len(positions))
    return hkl, placement.prepare_target(hkl, amplitudes, cell)


def zigzag(number=ATOMS):
    """Atoms of a zigzag chain, 1.45 Å apart, `(number, 3)` fractional: what no restraint objects to."""
    along = np.arange(number)
    places = np.stack([1.22 * along, 0.78 * (along % 2), 0.2 * along], axis=1)
    return np.asarray(places @ np.linalg.inv(LONG.orthogonalization).T % 1, np.float32)


def correlation_with_truth(crystal, invented, factors):
    """Mean cosine of phase errors, weighted by E², at the best origin and hand: by brute force over origins."""
    expanded = crystal.expanded
    hkl = expanded.in_given_cell(expanded.hkl)
    same = np.all(hkl == invented.data.hkl[expanded.source], axis=1)
    truth = invented.structure_factors[expanded.source]
    truth = np.where(same, truth, truth.conj())
    best = 0.0
    for hand in (factors, factors.conj()):
        box = np.zeros((64, 64, 64), complex)
        box[tuple(hkl.T)] = crystal.normalised**2 * np.exp(1j * (np.angle(truth) - np.angle(hand)))
        best = max(best, float(np.fft.fftn(box).real.max() / np.sum(crystal.normalised**2)))
    return best


def test_amplitudes_and_their_derivatives_are_those_of_points():
    positions, hkl = random_atoms(), some_reflections()
    waves = jnp.asarray(2 * np.pi * hkl, jnp.float32)
    amplitudes, slopes = placement.point_amplitudes(positions, waves)
    expected = np.abs(np.exp(2j * np.pi * hkl @ np.asarray(positions, float).T).sum(axis=1))
    np.testing.assert_allclose(amplitudes, expected, atol=2e-3)
    numerical = jax.jacfwd(lambda places: placement.point_amplitudes(places, waves)[0])(positions)
    clear = expected > 0.1  # the derivative of a length is not defined at 0
    np.testing.assert_allclose(slopes[clear], numerical[clear], rtol=1e-3, atol=1e-2)


def test_restraints_are_those_of_molecules():
    lengths = jnp.asarray([0.75, 1.0, 1.3, 1.45, 1.6, 1.92, 2.25, 2.5, 9.0])
    off, slopes = placement.restraint(lengths)
    np.testing.assert_allclose(off, [2, 1, 0, 0, 0, 1, 0, 0, 0], atol=1e-5)
    numerical = jax.vmap(jax.grad(lambda length: placement.restraint(length)[0]))(lengths + 0.01)
    np.testing.assert_allclose(placement.restraint(lengths + 0.01)[1], numerical, atol=1e-4)
    assert slopes[0] < 0  # pushed apart


def test_equations_of_restraints_are_those_of_all_pairs():
    positions = random_atoms(number=20)  # crowded
    edges = jnp.asarray(CELL.orthogonalization, jnp.float32)
    pairs = np.triu_indices(len(positions), 1)

    def off(flat):
        _, lengths = placement.distances_between(flat.reshape(-1, 3), flat.reshape(-1, 3), edges)
        return placement.restraint(lengths[pairs])[0]

    equations = placement.restraint_equations(positions, edges)
    values, slopes = off(positions.ravel()), jax.jacfwd(off)(positions.ravel())
    assert np.sum(values > 0) > 10
    np.testing.assert_allclose(equations.misfit, np.sum(values**2), rtol=1e-5)
    np.testing.assert_allclose(equations.gradient, values @ slopes, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(equations.normal, slopes.T @ slopes, rtol=1e-3, atol=1e-2)


def test_distances_are_the_shortest_to_any_image():
    positions, others = random_atoms(1), random_atoms(2)
    _, lengths = placement.distances_between(positions, others, jnp.asarray(CELL.orthogonalization, jnp.float32))
    steps = np.array([*itertools.product((-1, 0, 1), repeat=3)])
    images = np.asarray(positions)[:, None, None] - np.asarray(others)[None, :, None] + steps
    expected = np.linalg.norm(images @ CELL.orthogonalization.T, axis=-1).min(axis=-1)
    near = expected < 2.5  # beyond, no restraint acts
    assert near.sum() > 3
    np.testing.assert_allclose(np.asarray(lengths)[near], expected[near], atol=1e-4)


def test_a_map_is_the_sum_of_its_waves():
    hkl, target = target_of(random_atoms())
    shape = placement.placement_grid(hkl)
    rng = np.random.default_rng(0)
    factors = rng.normal(size=len(hkl)) + 1j * rng.normal(size=len(hkl))
    filled = jnp.asarray(np.pad(factors, (0, len(target.observed) - len(hkl))), jnp.complex64)
    density = placement.map_on_grid(filled, placement.half_places(target.waves, shape), shape)
    for place in ((0, 0, 0), (3, 1, 4), (5, 9, 2)):
        angles = 2 * np.pi * hkl @ (np.array(place) / shape)
        expected = 2 * np.sum((factors * np.exp(-1j * angles)).real) / np.prod(shape)
        assert density[place] == pytest.approx(expected, abs=1e-4)


def test_the_peak_that_is_taken_neither_clashes_nor_is_alone():
    edges = jnp.asarray(np.eye(3) * 10, jnp.float32)
    density = np.zeros((40, 40, 40), np.float32)
    clashing, alone, bonded = (4, 0, 0), (20, 20, 20), (0, 6, 0)  # 1.0, 8.7 and 1.5 Å from the atom
    density[clashing], density[alone], density[bonded] = 1.0, 0.95, 0.9
    atoms = jnp.zeros((2, 3)).at[1].set(0.5)
    present = jnp.asarray([True, False])
    place = placement.best_candidate(jnp.asarray(density), atoms, present, edges)
    np.testing.assert_allclose(place * 40, bonded, atol=1e-4)


def test_an_atom_that_is_taken_out_is_put_back_and_the_others_stay():
    positions = zigzag()
    hkl, target = target_of(positions, LONG)
    given = placement.Placed(jnp.asarray(positions), jnp.asarray([-0.5 * np.log(ATOMS), 0]), jnp.asarray(0.0))
    spoilt = given._replace(positions=given.positions.at[3].set(0.9))
    order = jnp.asarray([3, 0, 1, 2, 4, 5, 6, 7])
    found = placement.put_where_missed(spoilt, order, 1, target, placement.placement_grid(hkl))
    np.testing.assert_array_equal(found[order[1:]], positions[order[1:]])
    off = np.asarray(found[3]) - positions[3]
    assert np.linalg.norm((off - np.rint(off)) @ LONG.orthogonalization.T) < 0.1


def test_atoms_far_from_others_are_alone():
    edges = jnp.asarray(np.eye(3) * 10, jnp.float32)
    places = jnp.asarray([(0, 0, 0), (0.15, 0, 0), (0.5, 0.5, 0.5)])
    np.testing.assert_allclose(placement.loneliness(places, edges), [0, 0, 1], atol=1e-5)


@pytest.mark.parametrize('atoms', [1, 2, 3])
def test_few_atoms_and_small_cells_are_no_error(atoms):
    hkl = np.array([each for each in itertools.product((-1, 0, 1), repeat=3) if each > (0, 0, 0)])
    target = placement.prepare_target(hkl, np.linspace(0.5, 1.5, len(hkl)), UnitCell(3, 3, 3, 90, 90, 90))
    placed = placement.place_atoms(jax.random.key(0), target, atoms, placement.placement_grid(hkl))
    assert np.isfinite(placed.positions).all()
    assert np.isfinite(placed.misfit)


def test_the_formula_of_a_molecule_counts_as_often_as_the_cell_has_room(crystal):
    data, volume = crystal.data, crystal.expanded.cell.volume
    whole = placement.atoms_in_cell(data, volume)
    assert whole == ATOMS
    for factor in (0.5, 0.25, 2, 4):
        other = dataclasses.replace(data, formula={symbol: factor * count for symbol, count in data.formula.items()})
        assert placement.atoms_in_cell(other, volume) == ATOMS
    bare = dataclasses.replace(data, formula={'C': 1, 'O': 1})
    assert placement.atoms_in_cell(bare, 20 * placement.VOLUME_WITH_HYDROGEN) == 20
    for formula in (None, {}, {'C': 0}, {'H': 2}):
        assert placement.atoms_in_cell(dataclasses.replace(data, formula=formula), volume) == 0


def test_atoms_are_placed_where_there_are_few_and_light_ones_in_a_triclinic_cell(crystal, invented):
    assert placement.atoms_can_be_placed(crystal)
    for formula, small in (
        (None, False),
        ({}, False),
        ({'C': 7, 'S': 1}, False),
        ({'Li': 1, 'C': 7}, False),
        ({'C': 100}, True),
    ):
        other = dataclasses.replace(crystal, data=dataclasses.replace(crystal.data, formula=formula))
        assert placement.atoms_can_be_placed(other) == small
    fine, large, monoclinic = (
        Recipe(group='P1', num_atoms=ATOMS, d_min=0.8),
        Recipe(group='P-1', num_atoms=20, d_min=1.2),
        Recipe(group='P21', num_atoms=ATOMS, d_min=1.2),
    )
    for recipe in (fine, large, monoclinic):
        assert not placement.atoms_can_be_placed(prepare_crystal(invent(recipe, seed=1).data))


def test_starts_from_different_places_lead_to_the_true_map(crystal, invented, maps):
    explained = [each for each in maps if each.misfit < 0.1]
    assert len(explained) >= 2
    assert all(each.promising for each in explained)
    assert not dataclasses.replace(explained[0], misfit=0.2).promising
    assert agreement(crystal, *explained[:2]) > SAME_MAP
    assert min(correlation_with_truth(crystal, invented, each.own) for each in explained) > 0.8


def test_a_start_depends_on_the_key_and_its_number_alone(crystal, maps):
    again = [*itertools.islice(placement.placed_maps(crystal, jax.random.key(0)), 2)]
    for first, second in zip(maps, again, strict=False):
        np.testing.assert_array_equal(first.own, second.own)
    assert not np.array_equal(again[0].own, again[1].own)


@pytest.mark.parametrize('number', [1, 2, 3, 6])
def test_every_second_start_places_atoms(monkeypatch, number):
    """And none is placed that is not asked for."""
    monkeypatch.setattr(crystal_solver, 'atoms_can_be_placed', lambda crystal: True)
    monkeypatch.setattr(crystal_solver, 'sharpeners', lambda crystal, projection: ())
    monkeypatch.setattr(
        crystal_solver, 'phase', lambda crystal, key, starts, ways: (f'flip {i}' for i in range(starts))
    )
    monkeypatch.setattr(crystal_solver, 'placed_maps', lambda crystal, key: (f'place {i}' for i in range(number // 2)))
    order = [f'{kind} {i}' for i in range(number) for kind in ('flip', 'place')]
    assert [*crystal_solver._starts(None, jax.random.key(0), number, None)] == order[:number]


def test_a_light_crystal_without_a_centre_is_found_by_them(invented):
    """And permuted intensities are not called solved, in as many starts."""
    solution = solve_crystal(invented.data, max_starts=6)
    assert solution.space_group.hm == 'P 1'
    assert is_right(solution, invented)
    assert solution.finished_by == 'atoms that were placed'
    shuffled = np.random.default_rng(0).permutation(len(invented.data.hkl))
    intensities, sigmas = invented.data.intensities[shuffled], invented.data.sigmas[shuffled]
    permuted = dataclasses.replace(invented.data, intensities=intensities, sigmas=sigmas)
    assert solve_crystal(permuted, max_starts=6).verdict != 'solved'
