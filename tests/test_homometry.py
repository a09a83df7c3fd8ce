"""Homometric sets of atoms: by their vectors, by their maps, by enumeration; and the picture of them."""

import itertools
import runpy
from collections import Counter
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest

from patterson_jax import figures
from patterson_jax.errors import InputError
from patterson_jax.figures import draw_ambiguity
from patterson_jax.simulation import homometry
from patterson_jax.simulation.density import render
from patterson_jax.simulation.homometry import (
    are_congruent,
    are_homometric,
    example_pair,
    homometric_pair,
    homometric_partners,
    interatomic_vectors,
    periodic_pair,
)
from patterson_jax.simulation.patterson import patterson_map
from patterson_jax.simulation.problem import Problem

DOCS = Path(__file__).parents[1] / 'docs'
PROBLEM = Problem()
draw = jax.jit(render, static_argnums=(1, 2))
patterson = jax.jit(patterson_map)


def density(positions, grid_size):
    return np.asarray(draw(positions.astype(np.float32), grid_size, 1.0))


def map_difference(pair, grid_size):
    """Largest difference of the Patterson maps of two sets, in heights of a single vector's peak."""
    first, second = (np.asarray(patterson(density(positions, grid_size))) for positions in pair)
    return np.max(np.abs(first - second)) / (first[0, 0, 0] / len(pair[0]))


def best_overlap(first, second):
    """Highest value of the correlation of two maps over all translations, 1 if one is the other translated."""
    spectrum = np.fft.rfftn(first) * np.conj(np.fft.rfftn(second))
    return np.max(np.fft.irfftn(spectrum, first.shape, (0, 1, 2))) / np.sum(first**2)


def on_axis(*places):
    return np.array([(place, 0, 0) for place in places], float)


def test_a_pair_is_made_of_all_sums_and_all_differences_in_order():
    first, second = on_axis(0, 1, 5), np.array([[0, 0, 0], [0, 2, 7]])
    plus, minus = homometric_pair(first, second)
    np.testing.assert_array_equal(plus, [[x, *rest] for x in (0, 1, 5) for rest in ((0, 0), (2, 7))])
    np.testing.assert_array_equal(minus, [[x, *rest] for x in (0, 1, 5) for rest in ((0, 0), (-2, -7))])


def test_vectors_go_from_each_atom_to_each_other_one():
    vectors = interatomic_vectors(on_axis(0, 1, 5))
    assert vectors.shape == (6, 3)
    assert sorted(vectors[:, 0]) == [-5, -4, -1, 1, 4, 5]
    assert not vectors[:, 1:].any()


@pytest.mark.parametrize('sizes', [(3, 3), (3, 5), (4, 4)])
def test_sums_and_differences_are_homometric_and_congruent_only_if_a_set_is_its_own_inverse(sizes):
    rng = np.random.default_rng(0)
    first, second = (rng.uniform(-5, 5, (size, 3)) for size in sizes)
    pair = homometric_pair(first, second)
    assert are_homometric(*pair)
    assert not are_congruent(*pair)
    symmetric = np.concatenate([second, 1 - second])
    assert are_congruent(*homometric_pair(first, symmetric))
    assert are_congruent(*homometric_pair(symmetric, first))
    assert are_congruent(*homometric_pair(first, second[:2]))


def test_congruent_sets_are_translated_inverted_and_reordered_ones_and_no_others():
    rng = np.random.default_rng(0)
    positions = rng.uniform(-5, 5, (6, 3))
    for sign in (1, -1):
        moved = rng.permutation(sign * positions + rng.normal(size=3) + rng.uniform(-4e-4, 4e-4, positions.shape))
        assert are_congruent(positions, moved)
        assert are_homometric(positions, moved)
    one_moved = positions + np.eye(6)[:, :1] * 0.01
    others = {'one atom moved': one_moved, 'rotated': positions[:, [1, 2, 0]], 'mirrored': positions * [1, 1, -1]}
    for name, other in others.items():
        assert not are_congruent(positions, other), name
        assert not are_homometric(positions, other), name
    assert are_homometric(positions, one_moved, tolerance=0.021)
    assert not are_homometric(positions, positions[:5])
    assert not are_congruent(positions, positions[:5])


def test_how_often_a_vector_occurs_counts():
    first, second = on_axis(0, 1, 2, 4), on_axis(0, 1, 3, 4)
    assert {*interatomic_vectors(first)[:, 0]} == {*interatomic_vectors(second)[:, 0]}
    assert not are_homometric(first, second)


def test_in_a_cell_an_atom_is_also_in_the_next_one():
    positions = np.random.default_rng(0).uniform(-5, 5, (5, 3))
    wrapped = positions + 12.0 * np.array([[1, 0, -2], [0, 0, 0], [0, 1, 0], [0, 0, 0], [-1, 1, 3]])
    for same in (are_homometric, are_congruent):
        assert same(positions, -wrapped, cell_edge=12.0)
        assert not same(positions, wrapped)
        assert not same(positions, wrapped, cell_edge=11.0)


@pytest.mark.parametrize(('sizes', 'seed'), [((3, 3), 0), ((3, 3), 1), ((3, 3), 564), ((3, 4), 0)])
def test_an_example_suits_the_problem_and_has_one_patterson_map_for_two_densities(sizes, seed):
    pair = example_pair(PROBLEM, sizes, seed)
    for positions in pair:
        assert positions.shape == (sizes[0] * sizes[1], 3)
        np.testing.assert_array_equal(positions, np.round(positions))
        np.testing.assert_array_equal(positions.sum(axis=0), 0)
        assert np.abs(positions).max() <= PROBLEM.box_edge / 2
        first, second = np.triu_indices(len(positions), 1)
        assert np.linalg.norm(positions[first] - positions[second], axis=1).min() >= PROBLEM.min_separation
        assert np.ptp(positions, axis=0).max() + 2 * PROBLEM.atom_radius <= PROBLEM.grid_size / 2
    assert are_homometric(*pair)
    assert not are_congruent(*pair)
    assert map_difference(pair, PROBLEM.grid_size) < 5e-6

    maps = [density(positions, PROBLEM.grid_size) for positions in pair]
    assert best_overlap(maps[0], np.roll(maps[0], (3, 1, 7), (0, 1, 2))) == pytest.approx(1, rel=1e-5)
    for other in (maps[1], np.flip(maps[1])):
        assert best_overlap(maps[0], other) < 0.9


def test_an_example_is_decided_by_its_seed_and_fits_a_small_grid():
    np.testing.assert_array_equal(example_pair(PROBLEM, seed=3), example_pair(PROBLEM, seed=3))
    assert not np.array_equal(example_pair(PROBLEM, seed=3), example_pair(PROBLEM, seed=4))
    small = Problem(grid_size=24, num_atoms=3, box_edge=20.0, min_separation=2.0)
    assert np.abs(example_pair(small)).max() <= (small.grid_size / 2 - 2) / 2


def test_a_congruent_pair_is_no_example(monkeypatch):
    first = example_pair(PROBLEM)
    judged = []
    monkeypatch.setattr(homometry, 'are_congruent', lambda *pair: judged.append(pair) or len(judged) == 1)
    assert not np.array_equal(example_pair(PROBLEM), first)
    np.testing.assert_array_equal(judged[0], first)


@pytest.mark.parametrize(
    ('make', 'fragments'),
    [
        (lambda: example_pair(PROBLEM, (2, 5)), ('sizes is (2, 5)', '3 or more each')),
        (lambda: example_pair(Problem(num_atoms=3, box_edge=5.5)), ('box_edge is 5.5', '9 homometric atoms')),
        (lambda: periodic_pair(20), ('cell_edge is 20', 'a multiple of 8')),
        (lambda: periodic_pair(0), ('cell_edge is 0', 'a multiple of 8')),
    ],
)
def test_what_is_impossible_is_refused_in_one_line(make, fragments):
    with pytest.raises(InputError) as caught:
        make()
    assert len(str(caught.value).splitlines()) == 1
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize('edge', [16, 24])
def test_the_periodic_pair_is_told_apart_only_by_the_map_of_a_larger_cell(edge):
    pair = periodic_pair(edge)
    for positions in pair:
        assert positions.shape == (4, 3)
        np.testing.assert_array_equal(positions, np.round(positions))
        assert np.abs(positions).max() <= edge / 2
        assert np.linalg.norm(interatomic_vectors(positions), axis=1).min() == edge / 4
    assert are_homometric(*pair, cell_edge=edge)
    assert not are_congruent(*pair, cell_edge=edge)
    assert map_difference(pair, edge) < 5e-6

    assert not are_homometric(*pair)
    assert not are_homometric(*pair, cell_edge=2 * edge)
    assert map_difference(pair, 2 * edge) == pytest.approx(1, abs=0.01)
    own, other = (Counter(map(tuple, interatomic_vectors(each) * 4 / edge)) for each in pair)
    assert {*(own - other)} == {(1, -1, 0), (-1, 1, 0)}
    assert {*(other - own)} == {(1, 3, 0), (-1, -3, 0)}


def sets_by_vectors(edge, num_atoms):
    """All sets of so many points of a flat square cell, one at the corner, by their vectors in the cell."""
    groups = {}
    places = [(x, y, 0) for x, y in itertools.product(range(edge), repeat=2)]
    for others in itertools.combinations(places[1:], num_atoms - 1):
        positions = np.array([places[0], *others], float)
        vectors = sorted(map(tuple, interatomic_vectors(positions) % edge))
        groups.setdefault(tuple(vectors), []).append(positions)
    return groups.values()


def test_three_atoms_in_a_cell_are_never_ambiguous_and_four_can_be():
    def ambiguous(groups, edge):
        return [group for group in groups if not all(are_congruent(group[0], each, cell_edge=edge) for each in group)]

    assert not ambiguous(sets_by_vectors(6, 3), 6)
    found = ambiguous(sets_by_vectors(4, 4), 4)
    pair = periodic_pair(16)
    assert any(all(any(are_congruent(each / 4, one, cell_edge=4) for one in group) for each in pair) for group in found)


def test_the_picture_shows_what_is_equal_and_rings_what_is_not(monkeypatch):
    made = []
    monkeypatch.setattr('patterson_jax.pictures.save_figure', lambda path, figure: made.append(figure))
    draw_ambiguity(None, example_pair(PROBLEM), periodic_pair(16), PROBLEM, 16)
    rows = [[axes for axes in row.axes if axes.get_title()] for row in made[0].subfigs]
    assert [len(row) for row in rows] == [4, 4, 4]
    maps = [[np.asarray(axes.images[0].get_array()) for axes in row[2:]] for row in rows]
    differences = [np.max(np.abs(first - second)) for first, second in maps]
    assert max(differences[:2]) < 1e-5
    assert differences[2] == pytest.approx(1, abs=0.01)
    for first, _ in maps:
        middle = len(first) // 2
        assert np.unravel_index(np.argmax(first), first.shape) in {(middle, middle), (0, 0)}  # the latter repeats it
        np.testing.assert_allclose(first, first[::-1, ::-1], atol=1e-5)  # about the origin, where the frame has it
    rings = [[sorted(map(tuple, line.get_xydata())) for line in axes.lines] for row in rows[1:] for axes in row[2:]]
    red, blue = [(-4, 4), (4, -4)], [(-4, -12), (4, 12)]
    assert rings == [[red, blue], [red, blue], [red], [blue]]
    for row, each in zip((0, 0, 2, 2), rows[0][:2] + rows[2][:2], strict=True):
        circles = [patch for patch in each.patches if isinstance(patch, matplotlib.patches.Circle)]
        assert sum(patch.get_alpha() == 1 for patch in circles) == (9 if row == 0 else 4)


def test_the_picture_in_the_docs_is_drawn_by_its_script(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, 'draw_ambiguity', lambda *arguments: drawn.append(arguments))
    runpy.run_path(str(DOCS / 'draw_ambiguity.py'), run_name='__main__')
    ((path, true_pair, *_),) = drawn
    assert path == DOCS / 'ambiguity.png'
    assert are_homometric(*true_pair)
    assert min(matplotlib.image.imread(path).shape[:2]) > 1000


@pytest.mark.parametrize('sizes', [(3, 3), (3, 4)])
def test_the_partner_of_a_sum_is_the_difference_whatever_the_order_of_atoms(sizes):
    plus, minus = example_pair(Problem(), sizes=sizes)
    rng = np.random.default_rng(0)
    for true, other in ((plus, minus), (minus, plus)):
        noisy = rng.permutation(true) + rng.normal(0, 0.02, true.shape) + [3.0, -2.0, 0.5]
        partners, complete = homometric_partners(noisy, tolerance=0.3)
        assert len(partners) == 1 and complete
        assert are_congruent(partners[0], other, tolerance=0.3) and not are_congruent(partners[0], true, tolerance=0.3)


def test_atoms_at_random_and_sets_that_are_their_own_inverse_have_no_partner():
    rng = np.random.default_rng(0)
    assert homometric_partners(rng.uniform(-9, 9, (12, 3)), tolerance=0.3) == ([], True)
    lattice = np.stack(np.meshgrid([0, 3, 6], [0, 3, 6], [0], indexing='ij'), axis=-1).reshape(-1, 3)
    assert homometric_partners(lattice) == ([], True)
    assert homometric_partners(np.zeros((1, 3))) == ([], True)


def test_the_search_for_partners_of_a_large_lattice_is_given_up_and_says_so(monkeypatch):
    lattice = np.stack(np.meshgrid(np.arange(6), np.arange(6), [0], indexing='ij'), axis=-1).reshape(-1, 3)
    monkeypatch.setattr(homometry, 'MOST_STEPS', 2000)
    partners, complete = homometric_partners(3 * lattice)
    assert partners == [] and not complete


def test_a_pair_among_many_atoms_is_found_within_the_bound():
    rng = np.random.default_rng(0)
    plus, minus = homometric_pair(rng.uniform(-9, 9, (5, 3)), rng.uniform(-9, 9, (6, 3)))
    (partner,), complete = homometric_partners(plus)
    assert are_congruent(partner, minus) and complete
