"""Training crystals against direct summation, gemmi, the host's normalisation, and what molecular crystals are like."""

import functools

import gemmi
import jax
import numpy as np
import pytest

from patterson_jax.errors import InputError
from patterson_jax.simulation import training_crystals
from patterson_jax.simulation.grown_molecules import ELEMENTS
from patterson_jax.simulation.training_crystals import GROUPS, TARGET_WIDTH, TrainingRecipe

RECIPE = TrainingRecipe(shape=(16, 16, 18), d_min=(1.1, 1.6))
CASES = 48


@functools.cache
def draw(count):
    """Crystals, their structures and structure factors, of `count` keys at once."""

    def everything(key):
        structure = training_crystals.draw_structure(key, RECIPE)
        frequencies = training_crystals.half_grid_frequencies(RECIPE.shape)
        squared = training_crystals.squared_spacings(structure[0].axes, frequencies)
        factors, _ = training_crystals.structure_factors(structure[2], frequencies, squared)
        return training_crystals.draw_crystal(key, RECIPE), structure, factors

    keys = jax.random.split(jax.random.key(7), CASES)[:count]
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(everything))(keys))


def case(index):
    return jax.tree.map(lambda each: each[index], draw(CASES))


def first_of(group):
    return next(index for index in range(CASES) if list(GROUPS)[draw(CASES)[0].group[index]] == group)


def all_indices():
    sizes = RECIPE.shape
    axes = [np.fft.fftfreq(size, 1 / size) for size in sizes[:2]] + [np.arange(sizes[2] // 2 + 1.0)]
    return np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1)


def summed(atoms, hkl, axes):
    """Σ f exp(−2πi h·r) by direct summation in double precision, with gemmi's form factors."""
    squares = np.sum((hkl @ np.linalg.inv(axes).T) ** 2, axis=1) / 4
    total = np.zeros(len(hkl), complex)
    lists = [(ELEMENTS[e], p, b) for e, p, b, o in zip(*atoms[1:2], *atoms[:1], *atoms[2:4], strict=True) if o]
    lists += [('H', p, atoms.hydrogen_displacement) for p, o in zip(*atoms[4:6], strict=True) if o]
    for symbol, position, displacement in lists:
        c = gemmi.Element(symbol).it92
        factor = np.exp(-np.outer(squares, c.b)) @ np.array(c.a) + c.c
        total += factor * np.exp(-displacement * squares - 2j * np.pi * hkl @ position.astype(float))
    return total


@pytest.mark.parametrize('group', ['P21/c', 'P-1'])
def test_factors_and_target_are_those_of_the_atoms(group):
    crystal, (_, _, atoms, _), raw = case(first_of(group))
    hkl = all_indices()
    squares = np.sum((hkl @ np.linalg.inv(crystal.axes).T) ** 2, axis=-1)
    inside = (squares > 0) & (squares <= 1 / crystal.d_min**2 * (1 - 1e-5))
    expected = summed(atoms, hkl[inside], crystal.axes)
    got = crystal.factors[inside]
    np.testing.assert_allclose(raw[inside], expected, atol=0.01 * np.sqrt(np.mean(np.abs(expected) ** 2)))
    scales = np.abs(got) / np.abs(raw)[inside]
    np.testing.assert_allclose(got, raw[inside] * scales, rtol=1e-4, atol=1e-4)  # the same phases
    assert np.all(crystal.factors[~inside & (squares > 1 / crystal.d_min**2 * (1 + 1e-5))] == 0)
    points = np.stack(np.meshgrid(*(np.arange(n) / n for n in RECIPE.shape), indexing='ij'), axis=-1)
    total = np.zeros(RECIPE.shape)
    present = atoms.occupancies > 0
    for position, element in zip(atoms.positions[present], atoms.elements[present], strict=True):
        steps = points - position
        distances = np.linalg.norm((steps - np.round(steps)) @ crystal.axes, axis=-1)
        weight = np.sqrt(gemmi.Element(ELEMENTS[element]).atomic_number / 6)
        total += weight * np.exp(-((distances / TARGET_WIDTH) ** 2) / 2)
    assert np.abs(crystal.target - total).max() < 0.12  # the grid cuts the Gaussians' finest frequencies
    assert np.corrcoef(crystal.target.ravel(), total.ravel())[0, 1] > 0.995


def test_the_same_key_gives_the_same_crystal_alone_and_among_others():
    many, one = draw(CASES)[0], draw(1)[0]
    np.testing.assert_array_equal(many.group[0], one.group[0])
    np.testing.assert_allclose(many.amplitudes[0], one.amplitudes[0], atol=1e-3)
    np.testing.assert_allclose(many.target[0], one.target[0], atol=1e-3)


def test_a_recipe_is_checked():
    with pytest.raises(InputError, match='shape'):
        TrainingRecipe(shape=(15, 16, 16))
