"""Training crystals against direct sums, gemmi and the host's normalisation, and whether they are like real ones."""

import functools

import gemmi
import jax
import numpy as np
import pytest

from patterson_jax.crystal.normalisation import expected_amplitudes, mean_intensities, normalised_amplitudes
from patterson_jax.crystal.reflections import stabilisers
from patterson_jax.crystal.symmetry import with_inversion
from patterson_jax.errors import InputError
from patterson_jax.simulation import training_crystals
from patterson_jax.simulation.grown_molecules import ELEMENTS, FIRST_METAL, LIGANDS
from patterson_jax.simulation.training_crystals import GROUPS, TARGET_WIDTH, TrainingRecipe

CASES = 48
# All groups, and metals, are frequent enough to be met in few crystals.
RECIPE = TrainingRecipe(shape=(16, 18, 18), groups=(2, 4, 2, 4, 2, 2, 1, 1), metals=0.5)
SETTINGS = training_crystals.group_settings(RECIPE)


def everything(key):
    structure = training_crystals.draw_structure(key, RECIPE)
    frequencies = training_crystals.half_grid_frequencies(RECIPE.shape)
    squared = training_crystals.squared_spacings(structure[0].axes, frequencies)
    factors, _ = training_crystals.structure_factors(structure[2], frequencies, squared)
    return training_crystals.measured_crystal(key, structure, RECIPE), structure, factors


KEYS = jax.random.split(jax.random.key(7), CASES)


@functools.cache
def drawn():
    """All crystals with their structures and their structure factors before normalisation."""
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(everything))(KEYS))


def case(index):
    return jax.tree.map(lambda each: each[index], drawn())


def first_of(group):
    return next(index for index in range(CASES) if drawn()[0].group[index] == list(GROUPS).index(group))


def metals(index):
    """Which atoms of a cell are metals."""
    atoms = case(index)[1][2]
    return (atoms.elements >= FIRST_METAL) & (atoms.occupancies > 0)


def light():
    """The crystals without metals and iodine."""
    return [index for index in range(CASES) if np.all(case(index)[1][2].elements < ELEMENTS.index('I'))]


def on_centres():
    """The crystals whose metal lies on an inversion centre."""
    return [index for index in range(CASES) if np.any(case(index)[1][2].occupancies[metals(index)] < 1)]


def indices():
    return np.stack(np.meshgrid(*training_crystals.half_grid_frequencies(RECIPE.shape), indexing='ij'), axis=-1)


def inverse_squares(crystal):
    return np.sum((indices() @ np.linalg.inv(crystal.axes.astype(float)).T) ** 2, axis=-1)


def one_of_each_pair(crystal):
    """Where the half grid has reflections up to d_min, one of each Friedel pair."""
    h, k, l = np.moveaxis(indices(), -1, 0)
    half = (l > 0) | ((l == 0) & ((k > 0) | ((k == 0) & (h > 0))))
    return half & (inverse_squares(crystal) <= (1 - 1e-5) / crystal.d_min**2)


def operations_of(structure):
    number = int(structure[0].operations)
    return structure[0].rotations[:number].astype(int), structure[0].translations[:number].astype(float)


def summed(atoms, hkl, axes):
    """Σ f exp(−2πi h·r) in double precision, with gemmi's form factors."""
    squares = np.sum((hkl @ np.linalg.inv(axes.astype(float)).T) ** 2, axis=1) / 4
    elements = [ELEMENTS[each] for each in atoms.elements] + ['H'] * len(atoms.hydrogens)
    positions = np.concatenate([atoms.positions, atoms.hydrogens]).astype(float)
    occupancies = np.concatenate([atoms.occupancies, atoms.hydrogen_occupancies])
    falloffs = np.concatenate([atoms.displacements, np.full(len(atoms.hydrogens), atoms.hydrogen_displacement)])
    total = np.zeros(len(hkl), complex)
    for element, position, occupancy, falloff in zip(elements, positions, occupancies, falloffs, strict=True):
        table = gemmi.Element(element).it92
        factor = np.exp(-np.outer(squares, table.b)) @ np.array(table.a) + table.c
        total += occupancy * factor * np.exp(-falloff * squares - 2j * np.pi * hkl @ position)
    return total


@pytest.mark.parametrize('kind', ['P212121', 'C2/c', 'metal on a centre'])
def test_factors_and_target_are_those_of_the_atoms(kind):
    crystal, (_, _, atoms, _), factors = case(first_of(kind) if kind in GROUPS else on_centres()[0])
    inside = one_of_each_pair(crystal)
    expected = summed(atoms, indices()[inside], crystal.axes)
    assert np.abs(factors[inside] - expected).max() < 4e-3 * np.sqrt(np.mean(np.abs(expected) ** 2))
    ratios = crystal.factors[inside] / factors[inside]
    np.testing.assert_allclose(ratios.imag, 0, atol=1e-4)  # the same phases
    assert ratios.real.min() > 0
    assert np.mean(np.abs(crystal.factors[inside]) ** 2) == pytest.approx(1, abs=0.1)
    assert crystal.factors[0, 0, 0] == 0
    assert np.all(crystal.factors[inverse_squares(crystal) > (1 + 1e-5) / crystal.d_min**2] == 0)

    points = np.stack(np.meshgrid(*(np.arange(size) / size for size in RECIPE.shape), indexing='ij'), axis=-1)
    total = np.zeros(RECIPE.shape)
    for element, position, occupancy in zip(atoms.elements, atoms.positions, atoms.occupancies, strict=True):
        steps = points - position
        distances = np.linalg.norm((steps - np.round(steps)) @ crystal.axes, axis=-1)
        weight = occupancy * gemmi.Element(ELEMENTS[element]).atomic_number / 6
        total += weight * np.exp(-((distances / TARGET_WIDTH) ** 2) / 2)
    assert np.abs(crystal.target - total).max() < 0.06 * total.max()  # the grid has no finer frequencies
    assert np.corrcoef(crystal.target.ravel(), total.ravel())[0, 1] > 0.995


def test_amplitudes_have_the_symmetry_of_the_group_and_the_true_size():
    for index in range(CASES):
        crystal, structure, _ = case(index)
        inside = one_of_each_pair(crystal)
        measured = inside & (crystal.amplitudes > 0)
        assert measured.sum() > (1 - RECIPE.lost[1]) * inside.sum() - 5 * np.sqrt(inside.sum())
        assert np.mean(crystal.amplitudes[measured] ** 2) == pytest.approx(1, abs=5e-3)
        true = np.abs(crystal.factors[measured])
        assert np.corrcoef(crystal.amplitudes[measured], true)[0, 1] > 0.9
        assert crystal.amplitudes[0, 0, 0] == 0
        hkl = indices()[inside].astype(int)
        for rotation in operations_of(structure)[0]:
            images = hkl @ rotation
            images = np.where(images[:, 2:] < 0, -images, images)
            same = crystal.amplitudes[tuple(images.T)]
            np.testing.assert_allclose(same, crystal.amplitudes[inside], atol=3e-3)


def test_cells_have_the_metric_of_the_group_and_voxels_of_the_wanted_size():
    for index in range(CASES):
        crystal, structure, _ = case(index)
        metric = crystal.axes @ crystal.axes.T
        for rotation in operations_of(structure)[0]:
            np.testing.assert_allclose(rotation.T @ metric @ rotation, metric, atol=1e-3)
        spacings = np.linalg.norm(crystal.axes, axis=1) / RECIPE.shape
        assert np.all((spacings > RECIPE.spacing[0] - 1e-4) & (spacings < RECIPE.spacing[1] + 1e-4))
        highest = np.abs(indices()[one_of_each_pair(crystal)]).max(axis=0)
        assert np.all(highest < np.array(RECIPE.shape) / 2)
        assert RECIPE.d_min[0] <= crystal.d_min <= RECIPE.d_min[1]


def test_settings_are_those_of_the_groups():
    met = {list(GROUPS)[each] for each in SETTINGS.group}
    assert met == set(GROUPS)
    for name, (hall, _) in GROUPS.items():
        number = gemmi.find_spacegroup_by_ops(gemmi.symops_from_hall(hall)).number
        numbers = set()
        for index in np.flatnonzero(SETTINGS.group == list(GROUPS).index(name)):
            count = SETTINGS.operations[index]
            operations = []
            for rotation, shift in zip(SETTINGS.rotations[index], SETTINGS.translations[index], strict=True):
                operation = gemmi.Op()
                operation.rot = np.rint(rotation * gemmi.Op.DEN).astype(int).tolist()
                operation.tran = np.rint(shift * gemmi.Op.DEN).astype(int).tolist()
                operations.append(operation)
            assert operations[0] == gemmi.Op()
            assert SETTINGS.centrosymmetric[index] == gemmi.SpaceGroup(number).is_centrosymmetric()
            members = {each.wrap().triplet() for each in operations[:count]}
            assert {(a * b).wrap().triplet() for a in operations[:count] for b in operations[:count]} == members
            known = gemmi.find_spacegroup_by_ops(gemmi.GroupOps(operations[:count]))
            numbers.add(known.number if known else None)  # gemmi knows only the usual origins, and no primitive C2/c
        assert numbers - {None} == ({number} if name != 'C2/c' else set())


def test_atoms_have_the_distances_and_the_density_of_molecular_crystals():
    distances, neighbours, next_neighbours, volumes = [], [], [], []
    for index in range(CASES):
        crystal, (surroundings, _, atoms, _), _ = case(index)
        usual = (atoms.occupancies > 0) & (atoms.elements <= ELEMENTS.index('Cl'))  # the others have longer bonds
        positions = atoms.positions[usual].astype(float)
        steps = positions[:, None] - positions[None]
        between = np.linalg.norm((steps - np.round(steps)) @ crystal.axes, axis=-1)
        assert np.all(np.diag(between) == 0)
        distances.append(between[np.triu_indices(len(positions), 1)])
        if index not in light():
            continue
        volumes.append(np.linalg.det(crystal.axes) / len(positions))
        if surroundings.wanted < 12:  # no room for usual molecules
            continue
        neighbours.append(np.sum((between > 0) & (between < 1.95)) / len(positions))
        next_neighbours.append(np.sum((between > 2.1) & (between < 2.62)) / len(positions))
    every = np.concatenate(distances)
    assert every.min() > 1.1
    bonds = every[every < 1.95]
    assert np.quantile(bonds, 0.01) > 1.19
    assert np.mean((bonds > 1.34) & (bonds < 1.56)) > 0.85
    assert np.sum((every > 1.95) & (every < 2.15)) < 0.002 * len(bonds)
    assert np.sum((every > 2.15) & (every < 2.7)) < 1.5 * len(bonds)  # hardly more than angles make
    assert np.mean(every[every < 4] > 3.1) > 0.5
    assert len(neighbours) > CASES / 16
    assert np.mean(neighbours) == pytest.approx(2.0, abs=0.2)
    assert np.mean(next_neighbours) == pytest.approx(2.5, abs=0.5)
    assert np.median(volumes) == pytest.approx(np.mean(RECIPE.volume_per_atom), abs=1.5)
    assert np.mean(np.array(volumes) > 25) < 0.1


def test_metals_have_their_ligands():
    bonds, numbers = [], []
    found = [index for index in range(CASES) if metals(index).any()]
    assert len(found) > CASES / 5
    for index in found:
        crystal, structure, _ = case(index)
        atoms, rotations = structure[2], operations_of(structure)[0]
        present, which = atoms.occupancies > 0, np.flatnonzero(metals(index))
        assert len(which) == len(rotations)  # one in the asymmetric unit
        steps = atoms.positions[which, None].astype(float) - atoms.positions[None, present]
        lengths = np.linalg.norm((steps - np.round(steps)) @ crystal.axes, axis=-1)
        coincide = lengths < 0.3
        expected = 2 if index in on_centres() else 1
        assert np.all(np.sum(coincide, axis=1) == expected)
        np.testing.assert_allclose(atoms.occupancies[which], 1 / expected)
        np.testing.assert_allclose(lengths[coincide], 0, atol=1e-3)
        near = ~coincide & (lengths < 2.5)
        assert set(np.broadcast_to(atoms.elements[present], near.shape)[near]) <= set(LIGANDS)
        bonds.append(lengths[near])
        numbers.append(near.sum(axis=1))
    bonds, numbers = np.concatenate(bonds), np.concatenate(numbers)
    assert bonds.min() > 1.75
    assert np.quantile(bonds, 0.05) > 1.85 and np.quantile(bonds, 0.95) < 2.4
    assert np.mean((numbers >= 2) & (numbers <= 6)) > 0.97
    assert len(on_centres()) > 3


def test_hydrogen_is_near_one_atom_each():
    hydrogens, others, alone = 0, 0, 0
    for index in range(CASES):
        crystal, (_, _, atoms, _), _ = case(index)
        places = atoms.hydrogens[atoms.hydrogen_occupancies > 0].astype(float)
        steps = places[:, None] - atoms.positions[atoms.occupancies > 0][None]
        distances = np.linalg.norm((steps - np.round(steps)) @ crystal.axes, axis=-1)
        np.testing.assert_allclose(np.sort(distances, axis=1)[:, 0], 0.96, atol=0.2)
        alone += np.sum(np.sum(distances < 1.5, axis=1) == 1)
        hydrogens, others = hydrogens + len(places), others + np.sum(atoms.occupancies > 0)
    assert alone / hydrogens > 0.99
    assert hydrogens / others == pytest.approx(0.95, abs=0.2)


def test_intensities_have_the_distribution_of_crystals_with_and_without_a_centre():
    found = {True: [], False: []}
    for index in light():
        crystal, structure, factors = case(index)
        inside = one_of_each_pair(crystal)
        hkl, intensities = indices()[inside].astype(int), np.abs(factors[inside]) ** 2
        squares = intensities / mean_intensities(intensities, np.sqrt(inverse_squares(crystal)[inside]))
        rotations, _ = operations_of(structure)
        general = squares[stabilisers(hkl, with_inversion(rotations)) == 1]
        found[bool(crystal.centrosymmetric)].append(np.mean(np.abs(general / general.mean() - 1)))
    assert np.mean(found[True]) == pytest.approx(0.968, abs=0.03)
    assert np.mean(found[False]) == pytest.approx(0.736, abs=0.03)


@pytest.mark.parametrize('background', [0.01, 0.5])
def test_e_values_are_those_of_the_host(background):
    crystal, _, factors = case(first_of('P1'))
    squares, inside = inverse_squares(crystal), one_of_each_pair(crystal)
    measured = (squares > 0) & (squares <= (1 - 1e-5) / crystal.d_min**2)
    true = np.abs(factors) ** 2
    sigmas = np.hypot(0.03 * true, background * true[inside].mean())
    noise = np.random.default_rng(0).standard_normal(true.shape)
    intensities = true + sigmas * noise
    arguments = (each.astype(np.float32) for each in (intensities, sigmas, squares))
    got = np.asarray(training_crystals.normalised_amplitudes(*arguments, measured))
    spacings = np.sqrt(squares[inside])
    means = mean_intensities(intensities[inside], spacings)
    expected = normalised_amplitudes(expected_amplitudes(intensities[inside], sigmas[inside], means), means)
    assert np.all(got[~measured] == 0)
    assert np.abs(got[inside] - expected).mean() < 0.03
    assert np.corrcoef(got[inside], expected)[0, 1] > 0.997


def test_expected_amplitudes_are_those_of_the_host():
    generator = np.random.default_rng(1)
    means = generator.uniform(0.5, 2, 500)
    sigmas = 10 ** generator.uniform(-2, 1, 500)
    intensities = generator.exponential(means) + sigmas * generator.standard_normal(500)
    arguments = (each.astype(np.float32) for each in (intensities, sigmas, means))
    got = training_crystals.expected_amplitudes(*arguments)
    np.testing.assert_allclose(got, expected_amplitudes(intensities, sigmas, means), rtol=2e-3, atol=1e-3)


def test_a_key_gives_the_same_crystal_alone_and_among_others():
    alone = jax.jit(lambda key: training_crystals.draw_crystal(key, RECIPE))(KEYS[3])
    for one, many in zip(alone, case(3)[0], strict=True):
        np.testing.assert_allclose(one, many, atol=2e-3)
    assert len({float(each) for each in drawn()[0].d_min}) == CASES


def test_all_resolutions_are_met():
    thirds = np.histogram(drawn()[0].d_min, 3, RECIPE.d_min)[0]
    assert thirds.sum() == CASES and thirds.min() > CASES / 6


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('shape', (15, 16, 16)),
        ('d_min', (0.8, 1.2)),
        ('spacing', (0.5, 0.4)),
        ('lost', (0.0, 0.95)),
        ('mobile', 1.5),
        ('metals', -0.1),
        ('groups', (1.0, 2.0)),
        ('groups', (0.0,) * 8),
    ],
)
def test_a_recipe_is_checked(field, value):
    with pytest.raises(InputError, match=field):
        TrainingRecipe(**{field: value})


def test_groups_that_do_not_fit_the_grid_are_left_out():
    recipe = TrainingRecipe(shape=(12, 24, 48))
    assert 'C2/c' not in {list(GROUPS)[each] for each in training_crystals.group_settings(recipe).group}
    with pytest.raises(InputError, match='shape'):
        training_crystals.group_settings(TrainingRecipe(shape=(12, 24, 48), groups=(0, 0, 0, 0, 1, 0, 0, 0)))


def test_form_factors_are_fitted_closely():
    weights, hydrogen = training_crystals.scattering_weights()
    squares = np.linspace(0, 1 / 4, 57)
    basis = np.exp(-np.outer(squares, training_crystals.EXPONENTS))

    def curve(symbol):
        table = gemmi.Element(symbol).it92
        return np.exp(-np.outer(squares, table.b)) @ np.array(table.a) + table.c

    for element, fitted in zip(ELEMENTS, weights, strict=True):
        for displacement, each in zip(training_crystals.DISPLACEMENTS, fitted, strict=True):
            true = curve(element) * np.exp(-displacement * squares)
            assert np.abs(basis @ each - true).max() < 3e-3 * true[0]
    assert np.abs(basis @ hydrogen - curve('H')).max() < 0.01
