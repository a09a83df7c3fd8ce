"""The problem's own checks: which values it refuses, and in what words."""

import dataclasses
import math

import pytest

from patterson_jax.errors import InputError
from patterson_jax.simulation.problem import JAMMING_FRACTION, Problem, problem_field_types

CORNERS = ('empty_corner', 'filled_corner')


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('grid_size', 6),
        ('grid_size', 39),
        ('grid_size', -40),
        ('num_atoms', 0),
        ('num_atoms', -3),
        ('atom_radius', 0.0),
        ('atom_radius', -1.0),
        ('atom_radius', math.nan),
        ('atom_radius', math.inf),
        ('min_separation', -0.5),
        ('min_separation', math.nan),
        ('min_separation', math.inf),
        ('box_edge', 0.0),
        ('box_edge', -12.25),
        ('box_edge', 38.5),
        ('box_edge', math.nan),
        ('box_edge', math.inf),
        ('target', 'inverse'),
        ('target', ''),
        ('input_scale', 0.0),
        ('input_scale', -0.7),
        ('input_scale', math.nan),
        ('input_scale', math.inf),
        ('origin', 'center'),
        ('origin', ''),
        *((field, value) for field in CORNERS for value in (-0.5, 6.13, math.nan, math.inf)),
        ('noise', -0.1),
        ('noise', 1.01),
        ('noise', math.nan),
        ('noise', math.inf),
        ('resolution', 0.0),
        ('resolution', 0.99),
        ('resolution', -8.0),
        ('resolution', math.nan),
        ('resolution', math.inf),
    ],
)
def test_a_refusal_names_the_field_and_the_received_value(field, value):
    with pytest.raises(InputError) as refusal:
        Problem.of(**{field: value})
    assert isinstance(refusal.value, ValueError)
    assert str(refusal.value).startswith(f'{field} is {value!r}; it must be ')


def test_the_widest_box_lets_a_sphere_touch_the_edge_of_the_grid_and_no_more():
    assert Problem(grid_size=20, atom_radius=1.5, box_edge=17.0).box_edge == 17
    with pytest.raises(InputError, match=r'^box_edge is 17\.01.* = 17 voxels$'):
        Problem(grid_size=20, atom_radius=1.5, box_edge=17.01)


@pytest.mark.parametrize('field', CORNERS)
def test_a_corner_is_at_most_an_octant_of_the_box(field):
    assert getattr(Problem.of(box_edge=9.0, **{field: 4.5}), field) == 4.5
    with pytest.raises(InputError) as refusal:
        Problem.of(box_edge=9.0, **{field: 4.51})
    assert str(refusal.value) == f'{field} is 4.51; it must be from 0, for none, to half of box_edge, 4.5 voxels'


def test_a_corner_cannot_be_empty_while_one_is_filled():
    with pytest.raises(InputError) as refusal:
        Problem(empty_corner=3.0, filled_corner=2.0)
    assert str(refusal.value) == 'filled_corner is 2.0; it must be 0 where there is an empty_corner'


@pytest.mark.parametrize('limits', [{'noise': 1.0}, {'resolution': 1.0}, {'resolution': 1000.0}, {'resolution': None}])
def test_noise_and_resolution_may_go_to_their_limits(limits):
    ((field, value),) = limits.items()
    assert getattr(Problem.of(**limits).measurement, field) == value


def test_fields_of_its_parts_are_named_as_its_own():
    problem = Problem.of(num_atoms=3, noise=0.2, target='original')
    assert (problem.num_atoms, problem.measurement.noise, problem.encoding.target) == (3, 0.2, 'original')
    changed = problem.changed(resolution=7.0, box_edge=9.0, origin='corner')
    expected = {'num_atoms': 3, 'noise': 0.2, 'target': 'original', 'resolution': 7.0, 'box_edge': 9.0}
    assert changed.fields == Problem().fields | expected | {'origin': 'corner'}
    assert Problem.of(**changed.fields) == changed
    assert set(problem_field_types()) == set(changed.fields)
    with pytest.raises(TypeError, match='colour'):
        problem.changed(colour=1)


def test_the_corner_that_training_leaves_empty_is_the_one_that_testing_fills():
    training = Problem.of(box_edge=9.0, origin='corner', empty_corner=2.5)
    assert training.testing == dataclasses.replace(training, empty_corner=0.0, filled_corner=2.5)
    for problem in (Problem(), Problem(filled_corner=2.5), training.testing):
        assert problem.testing == problem


def test_too_dense_a_packing_is_refused_with_its_causes_and_its_cures():
    with pytest.raises(InputError, match=r'^num_atoms is 200; ') as refusal:
        Problem(num_atoms=200)
    # 200 spheres of diameter 3 in a cube of edge 15.25: 200 π/6 27 / 3546.6
    for word in ('3 voxels', '12.25', '38.4%', '79.7%', 'box_edge', 'min_separation'):
        assert word in str(refusal.value)


def test_the_number_of_atoms_is_refused_just_above_the_jamming_fraction():
    most = int(JAMMING_FRACTION * 15.25**3 / (math.pi / 6 * 27))
    assert Problem(num_atoms=most).filled_fraction <= JAMMING_FRACTION
    with pytest.raises(InputError, match='num_atoms'):
        Problem(num_atoms=most + 1)


def test_a_single_atom_is_never_too_dense():
    assert Problem(num_atoms=1, min_separation=50.0, box_edge=1.0).filled_fraction > JAMMING_FRACTION


@pytest.mark.parametrize(('num_atoms', 'min_separation', 'box_edge'), [(10, 3.0, 12.25), (4, 0.0, 6.0), (3, 2.5, 4.5)])
def test_the_filled_fraction_is_the_volume_of_the_exclusion_spheres_over_that_of_the_box_they_reach(
    num_atoms, min_separation, box_edge
):
    problem = Problem(num_atoms=num_atoms, min_separation=min_separation, box_edge=box_edge)
    radius = min_separation / 2
    spheres = num_atoms * 4 / 3 * math.pi * radius**3
    assert problem.filled_fraction == pytest.approx(spheres / (box_edge + 2 * radius) ** 3, rel=1e-12)


def test_the_volume_of_an_atom_is_that_of_its_sphere():
    assert Problem(atom_radius=1.7).atom_volume == pytest.approx(20.579526, rel=1e-7)
