"""The renderer against an independent package for the volumes that spheres share with boxes, value and gradient."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import overlap
import pytest

from patterson_jax.simulation.density import render
from patterson_jax.simulation.maps import map_correlation

GRID = 8
RADII = [0.6, 1.0, 1.7]
CORNERS = np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1)], float)
VOXELS = {voxel: overlap.Hexahedron(CORNERS + voxel) for voxel in itertools.product(range(GRID), repeat=3)}


def true_volumes(position, radius):
    """Volume that the sphere shares with each voxel, float64; position relative to the box centre, sphere inside."""
    centre = position + GRID / 2
    sphere = overlap.Sphere(centre, radius)
    volumes = np.zeros((GRID,) * 3)
    for voxel, box in VOXELS.items():
        if np.linalg.norm(np.clip(centre, voxel, np.add(voxel, 1)) - centre) < radius:
            volumes[voxel] = overlap.overlap_volume(sphere, box)
    return volumes


def true_gradients(position, radius, step=1e-6):
    """Derivatives of the volumes, `(grid, grid, grid, 3)`, by central differences; to about radius · π / 2 · step."""
    moves = step * np.eye(3)
    pairs = ((true_volumes(position + move, radius), true_volumes(position - move, radius)) for move in moves)
    return np.stack([(ahead - behind) / (2 * step) for ahead, behind in pairs], axis=-1)


def positions_to_check(radius):
    """Random positions, then those where a case distinction of the closed form could go wrong; float32."""
    to_face, to_edge, to_corner = radius, radius / math.sqrt(2), radius / math.sqrt(3)
    special = [
        (0.5, 0.5, 0.5),  # centre on a voxel's centre
        (0.0, 0.5, 0.5),  # on its face
        (0.0, 0.0, 0.5),  # on its edge
        (0.0, 0.0, 0.0),  # on its corner
        (to_face % 1, 0.3, 0.2),  # touches a face from outside
        (to_face % 1, to_face % 1, to_face % 1),  # three faces
        (-to_face % 1, 0.5, 0.0),
        (to_edge % 1, to_edge % 1, 0.2),  # an edge
        (0.2, -to_edge % 1, to_edge % 1),
        (to_corner % 1, to_corner % 1, to_corner % 1),  # a corner
        (-to_corner % 1, to_corner % 1, -to_corner % 1),
        (0.25324756, -0.00015804362, -0.5859029),  # at radius 1 a cap of 8e-8 voxels, which float32 rounds away
    ]
    return np.concatenate([np.random.default_rng(0).uniform(-1, 1, (12, 3)), special]).astype(np.float32)


@functools.partial(jax.jit, static_argnums=1)
def render_each(positions, radius):
    return jax.vmap(lambda position: render(position[None], GRID, radius))(positions)


@jax.jit
def render_together(positions):
    return render(positions, GRID, 1.0)


@functools.partial(jax.jit, static_argnums=1)
def gradients_each(positions, radius):
    return jax.vmap(jax.jacfwd(lambda position: render(position[None], GRID, radius)))(positions)


@pytest.mark.parametrize('radius', RADII)
def test_voxels_hold_the_volume_that_an_independent_package_finds(radius):
    positions = positions_to_check(radius)
    expected = [true_volumes(position.astype(float), radius) for position in positions]
    rendered = np.asarray(render_each(positions, radius))
    assert rendered.min() >= 0
    np.testing.assert_allclose(rendered, expected, rtol=0, atol=1e-5)  # measured 3e-6 at radius 1.7


@pytest.mark.parametrize('radius', RADII)
def test_the_gradient_is_right_also_where_a_sphere_touches_a_face_an_edge_or_a_corner(radius):
    positions = positions_to_check(radius)
    expected = [true_gradients(position.astype(float), radius) for position in positions]
    gradients = np.asarray(gradients_each(positions, radius))
    np.testing.assert_allclose(gradients, expected, rtol=0, atol=1e-5)  # measured 3e-6


def test_the_gradient_of_a_weighted_sum_over_several_atoms_is_the_sum_of_their_voxels_gradients():
    positions = positions_to_check(1.0)[8:20]
    weights = np.random.default_rng(1).normal(size=(GRID,) * 3)
    expected = [np.einsum('xyz,xyzd->d', weights, true_gradients(each.astype(float), 1.0)) for each in positions]
    loss = jax.jit(jax.grad(lambda atoms: jnp.sum(weights.astype(np.float32) * render(atoms, GRID, 1.0))))
    np.testing.assert_allclose(loss(positions), expected, rtol=0, atol=2e-5)  # measured 2e-6, some 20 voxels an atom


@pytest.mark.parametrize('radius', [*RADII, 3.9])
def test_the_total_density_is_the_volume_of_the_sphere_wherever_it_lies(radius):
    positions = 40 * positions_to_check(radius)
    totals = np.sum(render_each(positions, radius), axis=(1, 2, 3))
    np.testing.assert_allclose(totals, 4 / 3 * math.pi * radius**3, rtol=1e-5)


def test_the_total_density_does_not_change_with_the_position():
    gradients = jax.jit(jax.grad(lambda atoms: jnp.sum(render(atoms, GRID, 1.0))))(positions_to_check(1.0))
    np.testing.assert_allclose(gradients, 0, atol=1e-5)  # measured 1e-6


def test_the_voxels_touched_are_those_nearer_than_the_radius_and_as_many_as_steiner_says():
    points = np.arange(1, 4001)[:, None] * [0.8191725134, 0.6710436067, 0.5497004779] % 1  # even over a voxel
    rendered = np.asarray(render_each(points.astype(np.float32), 1.0))
    centres = points[:, :, None] + GRID / 2
    lowest = np.arange(GRID)
    x, y, z = np.moveaxis(np.clip(centres, lowest, lowest + 1) - centres, 1, 0) ** 2
    distances = np.sqrt(x[:, :, None, None] + y[:, None, :, None] + z[:, None, None, :])
    assert rendered[distances > 1 + 1e-6].max() < 1e-6
    assert rendered[distances < 0.98].min() > 1e-6
    steiner = 1 + 6 + 3 * math.pi + 4 / 3 * math.pi  # the volume of a voxel thickened by the radius: 20.61
    assert np.mean(np.sum(distances < 1, axis=(1, 2, 3))) == pytest.approx(steiner, abs=0.01)
    # The threshold misses what reaches less than 0.0006 (through a face) to 0.02 (past a corner) into a voxel.
    assert np.mean(np.sum(rendered > 1e-6, axis=(1, 2, 3))) == pytest.approx(steiner - 0.15, abs=0.03)


def test_the_box_repeats():
    positions = np.array(
        [(0.25, -3.5, 2.125), (3.875, -3.75, 0.0), (0.5, 0.5, 0.5)], np.float32
    )  # the sums below are exact
    expected = render_together(positions)
    shifts = np.array([(GRID, -GRID, 3 * GRID), (-GRID, 0, -2 * GRID), (0, 5 * GRID, 0)], np.float32)
    np.testing.assert_array_equal(render_together(positions + shifts), expected)
    moved = render_together(positions + np.array([[1, -2, 5]], np.float32))
    np.testing.assert_array_equal(moved, np.roll(expected, (1, -2, 5), (0, 1, 2)))


def test_inversion_is_a_change_of_sign():
    positions = positions_to_check(1.7)
    inverted = np.flip(render_each(positions, 1.7), axis=(1, 2, 3))
    np.testing.assert_allclose(render_each(-positions, 1.7), inverted, atol=1e-5)


def test_overlapping_atoms_add_up():
    positions = np.array([(0.2, 0.1, -0.3), (0.9, 0.1, 0.2), (-3.8, 3.7, 0.0)], np.float32)
    together = render_together(positions)
    assert jnp.max(together) > 1
    np.testing.assert_allclose(together, np.sum(render_each(positions, 1.0), axis=0), atol=1e-6)


def test_correlation_is_that_of_the_voxels_whatever_scale_and_level():
    first, second = np.random.default_rng(2).normal(size=(2, 3, 6, 6, 6)).astype(np.float32)
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(first, second, strict=True)]
    for scale in (1e-12, 3.0, 1e10):
        np.testing.assert_allclose(
            map_correlation(scale * first, scale * (1 - 2 * second)), np.negative(expected), atol=1e-6
        )
    np.testing.assert_allclose(map_correlation(first, first), 1, rtol=1e-6)
    np.testing.assert_allclose(map_correlation(first, 5 - first), -1, rtol=1e-6)


@pytest.mark.parametrize('level', [0.0, 0.1, 123.456])
def test_correlation_with_a_constant_map_is_zero(level):
    constant = np.full((10, 10, 10), level, np.float32)
    other = np.random.default_rng(3).normal(size=(10, 10, 10)).astype(np.float32)
    for pair in ((constant, other), (other, constant), (constant, constant)):
        assert map_correlation(*pair) == pytest.approx(0, abs=1e-6)
