"""Orientations of the cell: atoms, Patterson maps and density maps turn together; what the mean of all of them is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patterson_jax.simulation.density import render
from patterson_jax.simulation.maps import centre_origin
from patterson_jax.simulation.patterson import patterson_map
from patterson_jax.solving.orientations import ORIENTATIONS, averaged_over_orientations, turn_back, turn_patterson

GRID = 12
POSITIONS = np.random.default_rng(0).uniform(-3, 3, (3, 3)).astype(np.float32)
DENSITY = render(POSITIONS, GRID, 1.0)[None]
PATTERSON = patterson_map(DENSITY)


def turned_positions(reflected, order):
    signs = np.where(np.arange(3) == reflected, -1, 1).astype(np.float32)
    return (POSITIONS * signs)[:, order]


def uneven(pattersons):
    """Stands for a network: a map that depends on every voxel's place, as a network's does a little."""
    weights = jax.random.normal(jax.random.key(1), (1, *pattersons.shape[1:]))
    return weights * jnp.tanh(pattersons + jnp.roll(pattersons, 1, 1))


@pytest.mark.parametrize('orientation', ORIENTATIONS)
@pytest.mark.parametrize('centred', [False, True])
def test_maps_turn_as_the_atoms_do(orientation, centred):
    density = render(turned_positions(*orientation), GRID, 1.0)[None]
    origin = centre_origin if centred else lambda patterson: patterson
    expected = origin(patterson_map(density))
    np.testing.assert_allclose(turn_patterson(origin(PATTERSON), *orientation), expected, atol=1e-5)
    np.testing.assert_allclose(turn_back(density, *orientation), DENSITY, atol=1e-6)


def test_all_orientations_show_another_map():
    maps = np.stack([turn_patterson(PATTERSON, *orientation) for orientation in ORIENTATIONS])
    differences = np.max(np.abs(maps[:, None] - maps[None]), axis=(2, 3, 4, 5))
    assert len(maps) == 24 and np.min(differences + np.eye(24)) > 0.1


def knowing_network():
    """A network that knows the atoms in each orientation, and is off by a number of its own in each."""
    positions = np.stack([turned_positions(*each) for each in ORIENTATIONS])
    densities = jax.jit(jax.vmap(lambda each: render(each, GRID, 1.0)))(positions)
    errors = 1e-3 * jnp.arange(len(ORIENTATIONS), dtype=jnp.float32) ** 2
    maps = patterson_map(densities)

    def predict(pattersons):
        scales = pattersons[:, :1, :1, :1] / PATTERSON[:, :1, :1, :1]
        distances = jnp.sum((pattersons[:, None] / scales[:, None] - maps[None]) ** 2, axis=(2, 3, 4))
        which = jnp.argmin(distances, axis=1)
        return scales * densities[which] + errors[which][:, None, None, None]

    return jax.jit(predict), np.asarray(errors)


@pytest.mark.parametrize('count', [1, 2, 6, 24])
def test_the_network_is_shown_the_first_orientations_and_its_maps_turned_back_are_averaged(count):
    predict, errors = knowing_network()
    found = averaged_over_orientations(predict, count)(jnp.concatenate([PATTERSON, 3 * PATTERSON]))
    expected = np.concatenate([DENSITY, 3 * DENSITY]) + np.mean(errors[:count])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_mean_of_all_does_not_depend_on_how_the_map_is_turned_up_to_inversion():
    """The 24 are a group only together with the inversion, so the maps here are made equal to their own."""

    def symmetric(pattersons):
        return uneven(pattersons) + jnp.flip(uneven(pattersons), (1, 2, 3))

    average = averaged_over_orientations(symmetric, len(ORIENTATIONS))
    for orientation in ORIENTATIONS[1::5]:
        turned = average(turn_patterson(PATTERSON, *orientation))
        np.testing.assert_allclose(turn_back(turned, *orientation), average(PATTERSON), atol=1e-5)
