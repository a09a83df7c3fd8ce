"""Solving as a call: the answer, its files, and what is refused before anything is computed."""

import json

import gemmi
import numpy as np
import pytest

import patterson_jax as pj
from patterson_jax.files.structures import read_xyz

ATOMS = np.array([[0.0, 0.9, 0.3], [2.1, -0.4, 0.2], [-2.1, -0.5, -0.5]])  # Å
VOXEL_SIZE, GRID = 0.8, 16


@pytest.fixture(scope='module')
def patterson():
    return pj.simulate(ATOMS, VOXEL_SIZE, grid_size=GRID).patterson


@pytest.fixture(scope='module')
def answer(patterson):
    return pj.solve(patterson, num_atoms=3, voxel_size=VOXEL_SIZE, method='phase_retrieval')


def distances(positions):
    """Between all atoms, in the order of length: the same for a set and its inverse, wherever they lie."""
    positions = np.asarray(positions)
    return np.sort(np.linalg.norm(positions[:, None] - positions[None], axis=-1).ravel())


def test_an_array_is_solved_and_the_answer_is_in_angstrom_and_in_voxels(answer):
    assert answer.verdict == 'solved' and answer.r_factor < 1e-3 and answer.r_free < 1e-3
    np.testing.assert_allclose(distances(answer.positions), distances(ATOMS), atol=1e-3)
    np.testing.assert_allclose(distances(answer.positions_voxels) * VOXEL_SIZE, distances(ATOMS), atol=1e-3)
    np.testing.assert_allclose(
        answer.positions, (answer.positions_voxels + GRID / 2 - 0.5) * VOXEL_SIZE, atol=1e-5
    )  # on the grid points of the density that is written


def test_scale_and_integers_and_lists_change_nothing(patterson, answer):
    given = np.rint(patterson / np.max(patterson) * 2**30).astype(np.int64).tolist()
    again = pj.solve(given, num_atoms=3, method='phase_retrieval')
    np.testing.assert_allclose(distances(again.positions), distances(answer.positions_voxels), atol=1e-3)


def test_an_answer_writes_files_that_other_programs_read(answer, tmp_path):
    files = answer.write(tmp_path / 'results', 'three')
    assert sorted(files) == sorted((tmp_path / 'results').iterdir()) and len(files) == 8
    report = json.loads((tmp_path / 'results' / 'three.json').read_text())
    assert report['verdict'] == 'solved' and report['alternatives_searched'] and report['input'] is None
    np.testing.assert_allclose(report['positions'], answer.positions, atol=1e-4)
    np.testing.assert_allclose(read_xyz(tmp_path / 'results' / 'three.xyz'), answer.positions, atol=1e-4)
    density = gemmi.read_ccp4_map(str(tmp_path / 'results' / 'three_density.ccp4')).grid
    at_atoms = [density.interpolate_value(gemmi.Position(*each)) for each in answer.positions]
    assert min(at_atoms) > 0.4 * np.max(density)
    answer.write(tmp_path / 'results', 'three')  # an earlier answer may be replaced
    (tmp_path / 'results' / 'other.png').write_bytes(b'a photograph')
    with pytest.raises(pj.InputError, match=r'other\.png exists and is no earlier result'):
        answer.write(tmp_path / 'results', 'other')


@pytest.mark.parametrize('name', ['x/y', '../esc', '', '..'])
def test_the_name_of_files_is_a_plain_one(answer, tmp_path, name):
    with pytest.raises(pj.InputError, match='a plain file name'):
        answer.write(tmp_path, name)


def test_the_number_of_atoms_need_not_be_known(patterson):
    found = pj.solve(patterson, method='phase_retrieval', max_attempts=2)
    assert len(found.positions) == 3 and found.verdict == 'solved'


@pytest.mark.parametrize(
    ('change', 'fault'),
    [
        (lambda values: values[0], 'three axes of the same length'),
        (lambda values: values[:, :, :-2], 'three axes of the same length'),
        (lambda values: np.fft.fftshift(values), 'its origin is in the centre of the cell'),
        (lambda values: values - np.mean(values) - 1, 'F\\(000\\)² is missing, and the map has no empty'),
        (lambda values: np.where(values == np.max(values), np.nan, values), '1 of its values are NaN or infinite'),
        (lambda values: values.astype(complex), 'is an array of complex128; it must be an array of real numbers'),
        (lambda values: values + np.arange(GRID), 'not its own inverse'),
        (lambda values: np.zeros_like(values), 'the same everywhere'),
        (lambda values: np.full_like(values, np.nan), 'NaN'),
        (lambda values: np.array([[['a']]]), 'real numbers'),
        (lambda values: np.zeros((0, 0, 0)), 'it is empty'),
        (lambda values: [[[1.0, 2.0], [3.0]]], 'patterson has parts of different lengths'),
        (lambda values: 'map.ccp4', "patterson is str 'map.ccp4'"),
        (lambda values: pj.Map(values, 0.8), r'its \.values'),
    ],
)
def test_what_is_no_patterson_map_is_refused_in_words(patterson, change, fault):
    with pytest.raises(pj.InputError, match=fault):
        pj.solve(change(patterson), num_atoms=3, box_edge=9.0)


def test_a_map_whose_mean_was_taken_out_gets_it_back(patterson, answer):
    found = pj.solve(patterson - np.mean(patterson), 3, box_edge=4.0, method='phase_retrieval')
    np.testing.assert_allclose(distances(found.positions), distances(answer.positions_voxels), atol=0.02)


@pytest.mark.parametrize(
    ('settings', 'fault'),
    [
        ({'num_atoms': 0}, 'num_atoms is 0'),
        ({'num_atoms': -3}, 'num_atoms is -3'),
        ({'voxel_size': 0.0}, 'voxel_size is 0.0'),
        ({'voxel_size': float('nan')}, 'voxel_size is nan'),
        ({'method': 'magic'}, "method is 'magic'"),
        ({'method': 'network'}, 'network is None'),
        ({'max_attempts': 0}, 'max_attempts is 0'),
        ({'atom_radius': 8.5}, 'atom_radius is 8.5'),
        ({'box_edge': 99.0}, 'box_edge is 99.0'),
        ({'resolution': 0.5}, 'resolution is 0.5'),
        ({'noise': 2.0}, 'noise is 2.0'),
        ({'orientations': 25}, 'orientations is 25'),
        ({'orientations': 2.5}, 'orientations is 2.5'),
        ({'num_atoms': 3.0}, 'num_atoms is 3.0'),
        ({'num_atoms': '3'}, "num_atoms is '3'"),
        ({'seed': 1.5}, 'seed is 1.5'),
        ({'seed': 2**32}, 'seed is 4294967296'),
        ({'max_attempts': None}, 'max_attempts is None'),
        ({'max_attempts': 2.5}, 'max_attempts is 2.5'),
        ({'max_seconds': None}, 'max_seconds is None'),
        ({'voxel_size': None}, 'voxel_size is None'),
        ({'atom_radius': '1'}, "atom_radius is '1'"),
        ({'box_edge': 'x'}, "box_edge is 'x'"),
        ({'network': 'unrolled'}, r"network is 'unrolled'.*load_network\('unrolled'\)"),
    ],
)
def test_arguments_are_checked(patterson, settings, fault):
    with pytest.raises(pj.InputError, match=fault):
        pj.solve(patterson, **({'num_atoms': 3} | settings))


@pytest.mark.parametrize('name', [None, 3, 'none such'])
def test_what_is_no_network_is_refused_by_name(name):
    with pytest.raises(pj.InputError, match=f'{name}'):
        pj.load_network(name)
