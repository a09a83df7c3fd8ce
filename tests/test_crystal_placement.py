"""Placed atoms: derivatives and maps against brute force, lost atoms put back, parts moved, crystals solved by them."""

import dataclasses
import itertools

import gemmi
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.crystal_verdicts import is_right
from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.structure import SpaceGroup
from patterson_jax.simulation.invented_crystals import Recipe, invent
from patterson_jax.solving import crystal_placement as placement
from patterson_jax.solving import crystal_solver
from patterson_jax.solving.absences import forbidden_by_each, groups_of_absences, kept_by_each, missing_reflections
from patterson_jax.solving.crystal_maps import allowed_reflections
from patterson_jax.solving.crystal_phasing import SAME_MAP, agreement, prepare_crystal
from patterson_jax.solving.crystal_solver import solve_crystal

CELL = UnitCell(7.1, 7.4, 7.7, 82, 97, 103)
LONG = UnitCell(11, 7.4, 7.7, 82, 97, 103)  # with room for a chain
ATOMS = 8
P1 = np.eye(3)[None], np.zeros((1, 3))
P21 = np.array([np.eye(3), np.diag([-1, 1, -1])]), np.array([[0, 0, 0], [0, 0.5, 0]])
MONOCLINIC = UnitCell(6.3, 7.4, 8.2, 90, 97, 90)


@pytest.fixture(scope='module')
def invented():
    """A molecule in P1 at 1.2 Å."""
    return invent(Recipe(group='P1', num_atoms=ATOMS, d_min=1.2), seed=1)


@pytest.fixture(scope='module')
def crystal(invented):
    return prepare_crystal(invented.data)


@pytest.fixture(scope='module')
def maps(crystal):
    groups = placement.placement_groups(crystal)
    return [*itertools.islice(placement.placed_maps(crystal, groups, jax.random.key(0)), 4)]


def random_atoms(seed=0, number=6):
    return jnp.asarray(np.random.default_rng(seed).random((number, 3)), jnp.float32)


def some_reflections(cell=CELL):
    reach = np.arange(-9, 10)
    hkl = np.array([each for each in itertools.product(reach, reach, reach) if each > (0, 0, 0)])
    return hkl[cell.inverse_spacings(hkl) < 1 / 1.2]


def images_of(positions, group):
    rotations, translations = group
    return (np.einsum('rij,nj->nri', rotations, np.asarray(positions, float)) + translations).reshape(-1, 3)


def target_of(positions, cell=CELL, group=P1):
    """E values of equal points and their images."""
    hkl, places = some_reflections(cell), images_of(positions, group)
    amplitudes = np.abs(np.exp(2j * np.pi * hkl @ places.T).sum(axis=1)) / np.sqrt(len(places))
    return hkl, placement.prepare_target(hkl, amplitudes, cell, *group)


def symmetry_of(cell, group=P1):
    return target_of(np.zeros((1, 3)), cell, group)[1].symmetry


LONG_MONOCLINIC = UnitCell(11, 7.4, 7.7, 90, 97, 90)


def zigzag(number=ATOMS):
    """Atoms of a zigzag chain, 1.45 Å apart, `(number, 3)` fractional: what no restraint objects to."""
    along = np.arange(number)
    places = np.stack([1.22 * along, 0.78 * (along % 2), 0.2 * along], axis=1)
    return np.asarray(places @ np.linalg.inv(LONG.orthogonalization).T % 1, np.float32)


def correlation_with_truth(crystal, invented, factors):
    """Mean cosine of phase errors, weighted by E², at the best origin and hand: by brute force over origins."""
    expanded = crystal.expanded
    hkl = expanded.in_given_cell(expanded.hkl)
    truth = np.zeros(len(hkl), complex)
    for rotation, translation in zip(*invented.space_group.operations, strict=True):
        first = invented.data.hkl[expanded.source]
        value = invented.structure_factors[expanded.source] * np.exp(-2j * np.pi * (first @ translation))
        truth = np.where(np.all(hkl == first @ rotation, axis=1), value, truth)
        truth = np.where(np.all(hkl == -first @ rotation, axis=1), value.conj(), truth)
    assert np.all(truth != 0)
    best = 0.0
    for hand in (factors, factors.conj()):
        box = np.zeros((64, 64, 64), complex)
        box[tuple(hkl.T)] = crystal.normalised**2 * np.exp(1j * (np.angle(truth) - np.angle(hand)))
        best = max(best, float(np.fft.fftn(box).real.max() / np.sum(crystal.normalised**2)))
    return best


@pytest.mark.parametrize(('cell', 'group'), [(CELL, P1), (MONOCLINIC, P21)])
def test_amplitudes_and_their_derivatives_are_those_of_points(cell, group):
    positions = random_atoms()
    hkl, target = target_of(positions, cell, group)
    amplitudes, slopes = placement.point_amplitudes(positions, target)
    expected = np.abs(np.exp(2j * np.pi * hkl @ images_of(positions, group).T).sum(axis=1))
    np.testing.assert_allclose(amplitudes[: len(hkl)], expected, atol=3e-3)
    numerical = jax.jacfwd(lambda places: placement.point_amplitudes(places, target)[0])(positions)
    clear = np.flatnonzero(expected > 0.1)  # the derivative of a length is not defined at 0
    np.testing.assert_allclose(slopes[clear], numerical[clear], rtol=1e-3, atol=2e-2)


def test_restraints_are_those_of_molecules():
    lengths = jnp.asarray([0.75, 1.0, 1.3, 1.45, 1.6, 1.92, 2.25, 2.5, 9.0])
    off, slopes = placement.restraint(lengths)
    np.testing.assert_allclose(off, [2, 1, 0, 0, 0, 1, 0, 0, 0], atol=1e-5)
    numerical = jax.vmap(jax.grad(lambda length: placement.restraint(length)[0]))(lengths + 0.01)
    np.testing.assert_allclose(placement.restraint(lengths + 0.01)[1], numerical, atol=1e-4)
    assert slopes[0] < 0  # pushed apart


@pytest.mark.parametrize(('cell', 'group'), [(CELL, P1), (MONOCLINIC, P21)])
def test_equations_of_restraints_are_those_of_all_pairs(cell, group):
    """By automatic derivatives of all that is off, of each atom of the set and any image, half of it."""
    positions, symmetry = random_atoms(number=20), symmetry_of(cell, group)  # crowded
    pairs = np.isfinite(placement.distances_between_atoms(positions, symmetry)[1])

    def off(flat):
        _, lengths = placement.distances_to_images(flat.reshape(-1, 3), flat.reshape(-1, 3), symmetry)
        return placement.restraint(lengths[pairs])[0] / np.float32(np.sqrt(2))

    equations = placement.restraint_equations(positions, symmetry)
    values, slopes = off(positions.ravel()), jax.jacfwd(off)(positions.ravel())
    assert np.sum(values > 0) > 20
    np.testing.assert_allclose(equations.misfit, np.sum(values**2), rtol=1e-5)
    np.testing.assert_allclose(equations.gradient, values @ slopes, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(equations.normal, slopes.T @ slopes, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(('cell', 'group'), [(CELL, P1), (MONOCLINIC, P21)])
def test_distances_are_the_shortest_to_any_image(cell, group):
    positions, others = random_atoms(1), random_atoms(2)
    _, lengths = placement.distances_to_images(positions, others, symmetry_of(cell, group))
    steps = np.array([*itertools.product((-2, -1, 0, 1, 2), repeat=3)])
    images = images_of(others, group).reshape(len(others), -1, 3)
    apart = np.asarray(positions)[:, None, None, None] - images[None, :, :, None] + steps
    expected = np.linalg.norm(apart @ cell.orthogonalization.T, axis=-1).min(axis=-1)
    near = expected < 2.5  # beyond, no restraint acts
    assert near.sum() > 3
    np.testing.assert_allclose(np.asarray(lengths)[near], expected[near], atol=1e-4)
    _, own = placement.distances_between_atoms(positions, symmetry_of(cell, group))
    assert np.isinf(own[np.arange(6), np.arange(6), 0]).all() and np.isinf(own).sum() == 6


@pytest.mark.parametrize(('cell', 'group'), [(CELL, P1), (MONOCLINIC, P21)])
def test_a_map_has_its_peaks_at_the_atoms_and_their_images(cell, group):
    """It is the sum of all waves and their Friedel mates: unique reflections and their equivalents."""
    positions = random_atoms()
    hkl, target = target_of(positions, cell, group)
    shape, places = placement.placement_grid(hkl), images_of(positions, group)
    unique = hkl[:, 1] >= 0  # in P21
    factors = np.exp(2j * np.pi * hkl @ places.T).sum(axis=1)
    filled = np.zeros(target.waves.shape[1], complex)
    filled[: len(hkl)] = np.where(unique | (len(group[0]) == 1), factors, 0)
    turned = jnp.asarray(filled, jnp.complex64)[None] * placement.unit_waves(-target.offsets)
    used = jnp.where((jnp.asarray(filled) != 0)[None, :, None], target.waves, 1e6)
    half = placement.half_places(used, shape)
    density = placement.map_on_grid(turned, half, shape)
    for place in ((0, 0, 0), (3, 1, 4), (5, 9, 2)):
        angles = 2 * np.pi * hkl @ (np.array(place) / shape)
        expected = 2 * np.sum((factors * np.exp(-1j * angles)).real) / np.prod(shape)
        assert density[place] == pytest.approx(expected, abs=1e-3)


def test_the_peak_that_is_taken_neither_clashes_nor_is_alone():
    symmetry = symmetry_of(UnitCell(10, 10, 10, 90, 90, 90))
    density = np.zeros((40, 40, 40), np.float32)
    clashing, alone, bonded = (4, 0, 0), (20, 20, 20), (0, 6, 0)  # 1.0, 8.7 and 1.5 Å from the atom
    density[clashing], density[alone], density[bonded] = 1.0, 0.95, 0.9
    atoms = jnp.zeros((2, 3)).at[1].set(0.5)
    present = jnp.asarray([True, False])
    place = placement.best_candidate(jnp.asarray(density), atoms, present, symmetry)
    np.testing.assert_allclose(place * 40, bonded, atol=1e-4)


def test_a_peak_that_clashes_with_its_own_image_is_not_taken():
    symmetry = symmetry_of(UnitCell(10, 10, 10, 90, 90, 90), (P21[0], np.zeros((2, 3))))  # P 1 2 1
    density = np.zeros((40, 40, 40), np.float32)
    near_axis, apart = (2, 10, 0), (10, 10, 10)  # 1.0 and 7.1 Å from their images
    density[near_axis], density[apart] = 1.0, 0.9
    place = placement.best_candidate(jnp.asarray(density), jnp.zeros((1, 3)), jnp.asarray([False]), symmetry)
    np.testing.assert_allclose(place * 40, apart, atol=1e-4)


def test_a_part_that_is_moved_fits_best_at_its_true_distance_from_an_axis():
    """By brute force over the strongest E values: Σ E A / √ΣA²."""
    atoms = zigzag()
    hkl, target = target_of(atoms, LONG_MONOCLINIC, P21)
    shifts = np.array([(0, 0, 0), (0.2, 0.3, 0.1), (-0.2, 0.4, -0.1), (0.5, 0.1, 0)], np.float32)
    moved = np.arange(ATOMS) != 2
    displaced = jnp.asarray(atoms + shifts[1])
    fits = placement.fit_of_shifts(jnp.asarray(shifts), displaced, jnp.asarray(moved), target)
    strongest = np.argsort(-np.asarray(target.observed[: len(hkl)]), kind='stable')[: placement.STRONGEST]
    for shift, fit in zip(shifts, fits, strict=True):
        places = images_of(np.asarray(displaced)[moved] + shift, P21)
        amplitudes = np.abs(np.exp(2j * np.pi * hkl[strongest] @ places.T).sum(axis=1))
        expected = amplitudes @ np.asarray(target.observed)[strongest] / np.linalg.norm(amplitudes)
        assert fit == pytest.approx(expected, rel=1e-3)
    assert np.argmax(fits) == 2


def test_a_part_is_moved_as_a_whole_with_every_atom_at_its_nearest_image():
    atoms = zigzag()
    _, target = target_of(atoms, LONG_MONOCLINIC, P21)
    images = images_of(atoms, P21).reshape(ATOMS, 2, 3)
    scattered = jnp.asarray(images[np.arange(ATOMS), np.arange(ATOMS) % 2], jnp.float32)
    sizes = set()
    for seed in range(8):
        positions, order, size = placement.moved_part(jax.random.key(seed), scattered, target)
        middle, part = int(order[-1]), np.asarray(order[size:])
        apart = np.asarray(positions)[part] - np.asarray(positions)[middle]
        found = np.linalg.norm((apart - np.rint(apart)) @ LONG_MONOCLINIC.orthogonalization.T, axis=-1)
        true = np.linalg.norm((atoms[part] - atoms[middle]) @ LONG_MONOCLINIC.orthogonalization.T, axis=-1)
        np.testing.assert_allclose(found[true < 2.6], true[true < 2.6], atol=0.02)  # no other image is as near
        assert sorted(np.asarray(order)) == [*range(ATOMS)]
        sizes.add(int(size))
    assert len(sizes) > 2 and max(sizes) < ATOMS


def test_reflections_that_fill_up_do_not_count_for_a_shift():
    """There are fewer unique reflections than are asked for."""
    atoms = zigzag()
    hkl = some_reflections(LONG_MONOCLINIC)[:70]
    amplitudes = np.linspace(0.5, 1.5, 70)
    target = placement.prepare_target(hkl, amplitudes, LONG_MONOCLINIC, *P21)
    assert len(target.observed) > 70
    fit = placement.fit_of_shifts(jnp.zeros((1, 3)), jnp.asarray(atoms), jnp.ones(ATOMS, bool), target)
    calculated = np.abs(np.exp(2j * np.pi * hkl @ images_of(atoms, P21).T).sum(axis=1))
    assert fit[0] == pytest.approx(calculated @ amplitudes / np.linalg.norm(calculated), rel=1e-3)


@pytest.mark.parametrize('name', ['P21', 'C2/c'])
def test_a_group_is_the_same_in_the_primitive_cell(name):
    """Of a cell whose reduced one has other edges: equivalents have one amplitude, absences none."""
    invented = in_group(name)
    cell = invented.data.cell
    turn = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 1]])  # edges a, b, a + c
    edges = cell.orthogonalization @ turn
    lengths = np.linalg.norm(edges, axis=0)
    beta = np.degrees(np.arccos(edges[:, 0] @ edges[:, 2] / (lengths[0] * lengths[2])))
    data = dataclasses.replace(
        invented.data, cell=UnitCell(*lengths, 90, beta, 90), hkl=(invented.data.hkl @ turn).astype(np.int32)
    )
    crystal = prepare_crystal(data)
    assert not np.allclose(np.abs(crystal.expanded.basis), np.eye(3))
    for group in placement.placement_groups(crystal):
        check_in_primitive_cell(data, crystal, group)


def check_in_primitive_cell(data, crystal, group):
    target = placement.target_of_crystal(crystal, group)
    positions = random_atoms()
    amplitudes, _ = placement.point_amplitudes(positions, target)
    rotations, translations, _ = map(np.asarray, target.symmetry)
    images = np.einsum('rij,nj->nri', rotations, positions) + translations
    expected = np.abs(np.exp(2j * np.pi * crystal.expanded.hkl @ images.reshape(-1, 3).T).sum(axis=1))
    rows = np.sort(np.unique(crystal.expanded.source, return_index=True)[1])
    np.testing.assert_allclose(amplitudes[: len(rows)], expected[rows], atol=5e-3)
    for row in range(len(data.hkl)):  # equivalents
        np.testing.assert_allclose(np.ptp(expected[crystal.expanded.source == row]), 0, atol=5e-3)


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
    places = jnp.asarray([(0, 0, 0), (0.15, 0, 0), (0.5, 0.5, 0.5)])
    symmetry = symmetry_of(UnitCell(10, 10, 10, 90, 90, 90))
    np.testing.assert_allclose(placement.loneliness(places, symmetry), [0, 0, 1], atol=1e-5)


@pytest.mark.parametrize(('atoms', 'group'), [(1, P1), (2, P1), (3, P1), (1, P21), (2, P21)])
def test_few_atoms_and_small_cells_are_no_error(atoms, group):
    hkl = np.array([each for each in itertools.product((-1, 0, 1), repeat=3) if each > (0, 0, 0)])
    amplitudes = np.linspace(0.5, 1.5, len(hkl))
    target = placement.prepare_target(hkl, amplitudes, UnitCell(3, 3, 3, 90, 90, 90), *group)
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


def in_group(name, **changed):
    recipe = {'num_atoms': ATOMS, 'd_min': 1.2} | changed
    return invent(Recipe(group=name, **recipe), seed=1)


def groups_for_placement(invented):
    return [group.hm for group in placement.placement_groups(prepare_crystal(invented.data))]


def test_atoms_are_placed_where_there_are_few_and_light_ones(crystal):
    assert [group.hm for group in placement.placement_groups(crystal)] == ['P 1']
    for formula, small in (
        (None, False),
        ({}, False),
        ({'C': 7, 'S': 1}, False),
        ({'Li': 1, 'C': 7}, False),
        ({'C': 100}, True),
    ):
        other = dataclasses.replace(crystal, data=dataclasses.replace(crystal.data, formula=formula))
        assert bool(placement.placement_groups(other)) == small
    assert not groups_for_placement(in_group('P1', d_min=0.8))
    assert not groups_for_placement(in_group('P-1', num_atoms=20))
    assert not groups_for_placement(in_group('P21', num_atoms=20))


@pytest.mark.parametrize(
    ('name', 'groups'),
    [
        ('P-1', ['P 1']),
        ('P21', ['P 1 21 1']),
        ('Pc', ['P 1 c 1']),  # P 1 2/c 1 has too few atoms
        ('P212121', ['P 21 21 21']),
        ('P21/c', ['P 1 21/c 1']),
        ('C2/c', ['C 1 c 1', 'C 1 2/c 1']),
        ('Pbca', ['P b c a']),
    ],
)
def test_atoms_are_placed_in_groups_that_have_the_absences(name, groups):
    """Not in P2₁/m, whose absences are those of P2₁: it has a mirror plane."""
    assert groups_for_placement(in_group(name)) == groups


@pytest.mark.parametrize('name', ['P21', 'P21/c', 'Pc', 'P212121', 'Pbca', 'C2/c'])
def test_the_true_group_is_among_those_of_the_absences(name):
    """A group that forbids a strong reflection is not, and without such reflections nothing is known."""
    invented = in_group(name)
    symbol, data = invented.space_group.hm, invented.data
    assert symbol in [group.hm for group in groups_of_absences(data)]
    absent = forbidden_by_each(data.hkl, invented.space_group).any(axis=0)
    np.testing.assert_array_equal(absent, ~allowed_reflections(data.hkl, invented.space_group.symops))
    for row in np.flatnonzero(absent)[:3]:
        intensities = data.intensities.copy()
        intensities[row] = 30 * data.intensities.mean()
        strong = dataclasses.replace(data, intensities=intensities)
        assert symbol not in [group.hm for group in groups_of_absences(strong)]
    assert symbol in [group.hm for group in groups_of_absences(without(data, absent))]  # as many files are
    turns = [not np.array_equal(each, np.eye(3)) for each in invented.space_group.operations[0]]
    special = kept_by_each(data.hkl, invented.space_group)[turns].any(axis=0)
    assert symbol not in [group.hm for group in groups_of_absences(without(data, special))]


def without(data, left_out):
    columns = {each: getattr(data, each)[~left_out] for each in ('hkl', 'intensities', 'sigmas')}
    return dataclasses.replace(data, **columns)


def test_missing_reflections_are_those_that_are_left_out():
    data = in_group('P21').data
    some = np.arange(len(data.hkl)) % 7 == 3
    before, after = (missing_reflections(each) for each in (data, without(data, some)))
    assert len(after) == len(before) + some.sum()
    images = np.concatenate([data.hkl[some] @ rotation for rotation in data.rotations])
    added = {*map(tuple, after.tolist())} - {*map(tuple, before.tolist())}
    assert added <= {*map(tuple, images.tolist())}


def test_starts_from_different_places_lead_to_the_true_map(crystal, invented, maps):
    explained = [each for each in maps if each.explained]
    assert len(explained) >= 2
    assert all(each.promising for each in explained)
    assert not dataclasses.replace(explained[0], explained=False).promising
    assert agreement(crystal, *explained[:2]) > SAME_MAP
    assert min(correlation_with_truth(crystal, invented, each.own) for each in explained) > 0.8


def test_a_centre_that_was_put_in_is_certain_only_if_the_absences_tell_it():
    """Phases of placed atoms obey C2/c, but Cc has the same absences; only P2₁/c has its own."""
    for name, certain in (('C2/c', False), ('P21/c', True)):
        invented = in_group(name)
        crystal = prepare_crystal(invented.data)
        [group] = [each for each in placement.placement_groups(crystal) if each.has_centre]
        assert group.certain == certain
        operations = zip(*invented.space_group.operations, strict=True)
        heavier = [element != 'H' for element in invented.elements]
        given = [invented.positions[heavier] @ rotation.T + translation for rotation, translation in operations]
        positions = np.concatenate(given) @ np.linalg.inv(crystal.expanded.basis).T
        found = placement.map_of_atoms(crystal, positions, group, True, 0)
        assert found.found.space_group.hm == invented.space_group.hm
        assert found.found.space_group.certain == found.obeys_its_group_alone == certain


def test_mirror_planes_are_told_from_glide_planes():
    for name, mirror in (('P 1 21/m 1', True), ('C 1 2/m 1', True), ('C 1 2/c 1', False), ('P n m a', True)):
        operations = tuple(each.triplet() for each in gemmi.SpaceGroup(name).operations())
        assert placement.has_mirror(SpaceGroup(1, name, operations, False)) == mirror


@pytest.mark.parametrize('packing', [0.9, 1.0, 1.1])
@pytest.mark.parametrize('points', [1, 2, 3, 4])
def test_a_primitive_cell_has_its_part_of_the_formula_of_the_whole(crystal, points, packing):
    data = dataclasses.replace(crystal.data, formula={'C': 12.0 * points, 'H': 12.0 * points})
    filled = 12 * (placement.VOLUMES['C'] + placement.VOLUMES['H'])
    assert placement.atoms_in_cell(data, packing * filled) == 12


def test_a_start_depends_on_the_key_and_its_number_alone(crystal, maps):
    groups = placement.placement_groups(crystal)
    again = [*itertools.islice(placement.placed_maps(crystal, groups, jax.random.key(0)), 2)]
    for first, second in zip(maps, again, strict=False):
        np.testing.assert_array_equal(first.own, second.own)
    assert not np.array_equal(again[0].own, again[1].own)


@pytest.mark.parametrize('number', [1, 2, 3, 6])
def test_every_second_start_places_atoms(monkeypatch, number):
    """And none is placed that is not asked for."""
    monkeypatch.setattr(crystal_solver, 'placement_groups', lambda crystal: ['P 1'])
    monkeypatch.setattr(crystal_solver, 'sharpeners', lambda crystal, projection: ())
    monkeypatch.setattr(
        crystal_solver, 'phase', lambda crystal, key, starts, ways: (f'flip {i}' for i in range(starts))
    )
    monkeypatch.setattr(
        crystal_solver, 'placed_maps', lambda crystal, groups, key: (f'place {i}' for i in range(number // 2))
    )
    order = [f'{kind} {i}' for i in range(number) for kind in ('flip', 'place')]
    assert [*crystal_solver._starts(None, jax.random.key(0), number, None)] == order[:number]


@pytest.mark.parametrize('name', ['P21', 'P212121', 'C2/c'])
def test_starts_in_a_group_with_axes_lead_to_the_true_map(name):
    invented = in_group(name)
    crystal = prepare_crystal(invented.data)
    placed = placement.placed_maps(crystal, placement.placement_groups(crystal), jax.random.key(0))
    maps = [*itertools.islice(placed, 8)]
    right = [each for each in maps if each.explained]
    assert len(right) >= 2
    assert {each.found.space_group.hm for each in right} == {invented.space_group.hm}  # found from their phases
    assert min(correlation_with_truth(crystal, invented, each.own) for each in right) > 0.7


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
