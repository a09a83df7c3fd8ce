"""Random atoms: never too close, never outside the box, and the same for a key wherever it is drawn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patterson_jax.errors import InputError
from patterson_jax.simulation.atoms import centre, check_drawable, draw_positions, in_corner, insert_atoms
from patterson_jax.simulation.problem import Problem

# Seven of ten trials to place five atoms in so small a box jam.
CROWDED = Problem(grid_size=16, num_atoms=5, box_edge=4.0, min_separation=3.0, centred=False)
KEYS = jax.random.split(jax.random.key(1), 2000)


@functools.partial(jax.jit, static_argnums=1)
def draw(keys, problem):
    return jax.vmap(functools.partial(draw_positions, problem=problem))(keys)


@functools.cache
def crowded_positions():
    return np.asarray(draw(KEYS, CROWDED))


def kolmogorov_smirnov(samples, low, high):
    """Largest distance between the samples' distribution function and that of a uniform one."""
    fractions = (np.sort(samples) - low) / (high - low)
    steps = np.arange(len(samples) + 1) / len(samples)
    return max(np.max(steps[1:] - fractions), np.max(fractions - steps[:-1]))


def test_draws_that_jam_are_common_in_the_crowded_box():
    _, placed = jax.jit(jax.vmap(functools.partial(insert_atoms, problem=CROWDED)))(KEYS)
    assert 0.2 < jnp.mean(placed) < 0.4


def test_atoms_are_never_closer_than_the_least_separation():
    positions = crowded_positions().astype(np.float64)
    first, second = np.triu_indices(CROWDED.num_atoms, 1)
    distances = np.linalg.norm(positions[:, first] - positions[:, second], axis=-1)
    assert distances.shape == (2000, 10)
    assert distances.min() >= CROWDED.min_separation * (1 - 1e-6)  # float32 compares the squares
    assert distances.min() < CROWDED.min_separation * 1.001


def test_atoms_lie_in_the_inner_box_and_use_all_of_it():
    positions = crowded_positions()
    half = CROWDED.box_edge / 2
    assert np.abs(positions).max() <= half
    np.testing.assert_allclose(positions.max(axis=(0, 1)), half, atol=0.01)
    np.testing.assert_allclose(positions.min(axis=(0, 1)), -half, atol=0.01)


def test_a_key_gives_the_same_positions_in_any_batch():
    everything = crowded_positions()
    assert len(np.unique(everything, axis=0)) == len(KEYS)
    order = np.random.default_rng(0).permutation(len(KEYS))
    order[:500] = order[500]  # other neighbours, and one of them many times
    np.testing.assert_array_equal(draw(KEYS[order], CROWDED), everything[order])


def test_centring_takes_away_the_mean_and_nothing_else():
    uncentred = crowded_positions()[:20]
    expected = uncentred - uncentred.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(centre(jnp.asarray(uncentred)), expected, atol=1e-6)
    centred = jax.jit(functools.partial(draw_positions, problem=dataclasses.replace(CROWDED, centred=True)))
    for key, positions in zip(KEYS[:20], expected, strict=True):
        np.testing.assert_allclose(centred(key), positions, atol=1e-6)
        np.testing.assert_allclose(np.mean(centred(key), axis=0), 0, atol=1e-6)


@functools.cache
def pairs():
    """The two atoms of many cases in a box that leaves the second little room."""
    return np.asarray(draw(KEYS, Problem(grid_size=16, num_atoms=2, box_edge=6.0, min_separation=4.0, centred=False)))


def assert_uniform(positions, edge):
    limit = 1.63 / np.sqrt(len(positions))  # exceeded by chance once in a hundred
    assert max(kolmogorov_smirnov(axis, -edge / 2, edge / 2) for axis in positions.T) < limit
    # Variance edge² / 12, its standard error 0.02 of it; the covariances' the same.
    np.testing.assert_allclose(np.cov(positions.T), edge**2 / 12 * np.eye(3), atol=edge**2 / 12 * 0.08)


def test_a_single_atom_is_uniform_over_the_box():
    problem = Problem(grid_size=16, num_atoms=1, box_edge=6.0, centred=False)
    positions, placed = jax.jit(jax.vmap(functools.partial(insert_atoms, problem=problem)))(KEYS)
    assert np.all(placed)
    assert_uniform(np.asarray(positions)[:, 0], 6.0)


def test_the_first_atom_is_uniform_over_the_box_wherever_the_second_has_to_go():
    assert_uniform(pairs()[:, 0], 6.0)


def test_the_second_atom_is_uniform_over_what_the_first_leaves_free():
    candidates = np.random.default_rng(0).uniform(-3, 3, (20000, 3))
    ranks = []
    for first, second in pairs()[:500].astype(np.float64):
        free = candidates[np.sum((candidates - first) ** 2, axis=-1) >= 16]
        ranks.append(np.mean(free < second, axis=0))  # uniform from 0 to 1 if the second atom is like the candidates
    assert max(kolmogorov_smirnov(axis, 0, 1) for axis in np.transpose(ranks)) < 1.63 / np.sqrt(500)


def test_a_problem_that_never_finds_room_is_refused_in_words():
    # Two atoms ten voxels apart do not fit a cube of edge 5, whose diagonal is 8.7, yet would fill only 31 % of it.
    problem = Problem(num_atoms=2, min_separation=10.0, box_edge=5.0)
    with pytest.raises(InputError, match=r'^num_atoms is 2; .*edge 5 at least 10 voxels apart'):
        check_drawable(problem)


CORNER = 1.5
ROOMY = Problem(grid_size=16, num_atoms=3, min_separation=2.0, box_edge=6.0, centred=False)


def lies_in_corner(position, edge, box_edge):
    """By counting the faces of the box, three on either side of it, from which a position is less than `edge` away."""
    depths = [[side * coordinate - (box_edge / 2 - edge) for coordinate in position] for side in (1, -1)]
    return any(sum(depth > 0 for depth in side) == 3 for side in depths)


def test_what_lies_in_the_corner_is_what_lies_near_three_faces_that_meet_there_or_opposite():
    positions = np.random.default_rng(0).uniform(-3.5, 3.5, (40, 50, 3)).astype(np.float32)
    expected = [[lies_in_corner(atom, CORNER, ROOMY.box_edge) for atom in case] for case in positions]
    found = np.asarray(in_corner(jnp.asarray(positions), CORNER, ROOMY))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, in_corner(jnp.asarray(-positions), CORNER, ROOMY))
    # Two corners of 2 voxels, from 1.5 to 3.5, of a cube of 7.
    assert found.mean() == pytest.approx(2 * 2**3 / 7**3, abs=4 * np.sqrt(0.047 / 2000))


def test_an_empty_corner_holds_neither_atom_nor_inverse_and_a_filled_one_always_does():
    plain, edge = dataclasses.replace(ROOMY, centred=True), 2.0
    drawn = {
        name: np.asarray(draw(KEYS[:600], dataclasses.replace(plain, **changes)))
        for name, changes in (('plain', {}), ('empty', {'empty_corner': edge}), ('filled', {'filled_corner': edge}))
    }
    held = {
        name: np.array([any(lies_in_corner(atom, edge, 6.0) for atom in case) for case in positions])
        for name, positions in drawn.items()
    }
    assert 0.05 < held['plain'].mean() < 0.5  # both kinds come by themselves
    assert not held['empty'].any()
    assert held['filled'].all()
    # A case that is right from the start is not drawn again.
    np.testing.assert_array_equal(drawn['empty'][~held['plain']], drawn['plain'][~held['plain']])
    np.testing.assert_array_equal(drawn['filled'][held['plain']], drawn['plain'][held['plain']])
    assert len(np.unique(drawn['filled'], axis=0)) == 600


@pytest.mark.parametrize(
    ('corner', 'size', 'problem'),
    [
        # All of thirty atoms outside of two of the eight octants: 0.75³⁰.
        ('empty', 'smaller', {'num_atoms': 30, 'min_separation': 0.0, 'empty_corner': 3.0}),
        ('filled', 'larger', {'filled_corner': 1e-3}),
        ('filled', 'larger', {'empty_corner': 1e-3}),
    ],
)
def test_a_corner_that_never_is_as_it_should_be_is_refused_by_the_name_that_it_was_given(corner, size, problem):
    problem = dataclasses.replace(ROOMY, **problem)
    field = 'empty_corner' if problem.empty_corner else 'filled_corner'
    with pytest.raises(InputError) as refusal:
        check_drawable(problem)
    given = getattr(problem, field)
    assert str(refusal.value) == (
        f'{field} is {given!r}; it must be {size}: in none of 256 trials was the corner {corner}'
    )


def test_a_corner_that_is_sometimes_empty_and_sometimes_filled_is_accepted():
    check_drawable(dataclasses.replace(ROOMY, empty_corner=CORNER))


def test_the_papers_problem_is_accepted():
    check_drawable(Problem())
