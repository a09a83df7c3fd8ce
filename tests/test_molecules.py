"""Maps of given atoms, against sums over their vectors, and what cannot be mapped."""

import itertools
import re

import jax
import numpy as np
import pytest

import patterson_jax as pj
from patterson_jax.simulation.density import render

OZONE = np.array([[0.0, 0.0, 0.0], [1.0853, 0.6638, 0.0], [-1.0853, 0.6638, 0.0]])  # Å
GRID = 16


def test_atoms_in_angstroms_are_those_in_voxels_wherever_they_lie():
    in_voxels = pj.simulate(OZONE / 0.5, grid_size=GRID)
    elsewhere = pj.simulate((OZONE + np.array([100, -3, 0.1])).tolist(), 0.5, grid_size=GRID)
    for first, second in zip(in_voxels, elsewhere, strict=True):
        assert type(first) is np.ndarray
        assert (first.shape, first.dtype) == ((GRID,) * 3, np.float32)
        np.testing.assert_allclose(first, second, atol=2e-5 * np.max(first))


def test_the_density_is_that_of_the_centred_atoms_and_the_patterson_map_its_autocorrelation():
    patterson, density = pj.simulate(OZONE, 0.5, grid_size=GRID)
    centred = ((OZONE - OZONE.mean(axis=0)) / 0.5).astype(np.float32)
    expected = jax.jit(render, static_argnums=(1, 2))(centred, GRID, 1.0)
    np.testing.assert_allclose(density, expected, atol=1e-6)
    for shift in itertools.product((0, 1, 5, 15), repeat=3):
        moved = np.roll(density, shift, axis=(0, 1, 2))
        assert patterson[shift] == pytest.approx(np.sum(moved * density), abs=1e-4)


def test_noise_and_resolution_change_the_patterson_map_alone_and_by_the_seed():
    clean = pj.simulate(OZONE, 0.5, grid_size=GRID)
    noisy, again, other = (pj.simulate(OZONE, 0.5, grid_size=GRID, noise=0.2, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(noisy.patterson, again.patterson)
    np.testing.assert_array_equal(noisy.density, clean.density)
    assert np.any(noisy.patterson != other.patterson) and np.any(noisy.patterson != clean.patterson)
    cut = np.fft.rfftn(pj.simulate(OZONE, 0.5, grid_size=GRID, resolution=4.0).patterson).real
    whole = np.fft.rfftn(clean.patterson).real
    assert cut[4, 0, 0] == pytest.approx(whole[4, 0, 0], rel=1e-4)
    assert abs(cut[4, 1, 0]) < 1e-5 * whole[0, 0, 0] < whole[4, 1, 0]


NO_MOLECULES = {
    'one list': ([0.0, 0, 0], {}, 'positions.shape is (3,); it must be (num_atoms, 3)'),
    'two coordinates': ([[0.0, 0]], {}, 'positions.shape is (1, 2); it must be (num_atoms, 3)'),
    'none': (np.zeros((0, 3)), {}, 'num_atoms is 0; it must be a whole number, 1 or more'),
    'not a number': ([[0.0, 0, np.nan]], {}, 'positions is [[0.0, 0.0, nan]]; it must be finite'),
    'no voxels': (OZONE, {'voxel_size': 0.0}, 'voxel_size is 0.0; it must be a positive number of Å'),
    'odd grid': (OZONE, {'grid_size': 15}, 'grid_size is 15; it must be an even number, 8 or more'),
    'no radius': (OZONE, {'atom_radius': 0.0}, 'atom_radius is 0.0; it must be more than 0 and less'),
    'radius of half the grid': (OZONE, {'atom_radius': 8.0, 'grid_size': 16}, 'atom_radius is 8.0; it must be'),
    'text': ('ozone.xyz', {}, "positions is str 'ozone.xyz'; it must be finite numbers, (num_atoms, 3), Å"),
    'nothing': (None, {}, 'positions is NoneType None; it must be finite numbers'),
    'ragged': ([[0.0, 0, 0], [1.0]], {}, 'positions has parts of different lengths; it must be'),
    'complex': (OZONE + 1j, {}, 'positions is an array of complex128; it must be'),
    'a grid in text': (OZONE, {'grid_size': '40'}, "grid_size is '40'; it must be an even number, 8 or more"),
    'a radius in text': (OZONE, {'atom_radius': '1'}, "atom_radius is '1'; it must be a number of voxels"),
    'a noise in text': (OZONE, {'noise': '0.1'}, "noise is '0.1'; it must be from 0 to 1"),
    'a voxel of no size': (OZONE, {'voxel_size': None}, 'voxel_size is None; it must be a positive number of Å'),
    'half a seed': (OZONE, {'seed': 1.5}, 'seed is 1.5; it must be a whole number from 0 to 4294967295'),
    'too noisy': (OZONE, {'noise': 2.0}, 'noise is 2.0; it must be from 0 to 1'),
    'no resolution': (OZONE, {'resolution': 0.0}, 'resolution is 0.0; it must be a number, 1 or more'),
    'overlap': (OZONE, {'voxel_size': 0.7}, 'atoms 1 and 2 are 1.272 Å apart; their spheres overlap below 1.400 Å'),
    'too large': (10 * OZONE, {'voxel_size': 0.5}, '21.71 Å across; its vectors overlap in this cell above 9.00 Å'),
    'no room at all': (OZONE, {'atom_radius': 7.0, 'grid_size': 16}, 'in this cell above 0.00 Å'),
}


@pytest.mark.parametrize(('positions', 'settings', 'words'), NO_MOLECULES.values(), ids=NO_MOLECULES)
def test_what_cannot_be_simulated_is_refused_by_name(positions, settings, words):
    with pytest.raises(pj.InputError) as refusal:
        pj.simulate(positions, **settings)
    assert words in str(refusal.value)


def test_the_voxel_size_that_is_said_to_make_room_does():
    with pytest.raises(pj.InputError) as refusal:
        pj.simulate(3 * OZONE, 0.5, grid_size=GRID)
    (size,) = re.findall(r'\(voxel_size=([0-9.]+) makes room\)', str(refusal.value))
    pj.simulate(3 * OZONE, float(size), grid_size=GRID)
