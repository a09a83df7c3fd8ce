"""Charge flipping in NumPy is what it says, and the comparison of speed has a figure of each program."""

import argparse

import numpy as np
import pytest

from benchmarks import crystal_reference, crystal_speed
from benchmarks.crystal_reference import flip_charges
from benchmarks.crystals import RIGHT_MAP, known_structure_factors, peer_map
from benchmarks.space_groups import invent
from patterson_jax.solving.crystal_phasing import prepare_crystal


@pytest.fixture(scope='module')
def known():
    return invent(14, 0, 12)


@pytest.fixture(scope='module')
def crystal(known):
    return prepare_crystal(known.data)


def test_the_reference_solves_a_crystal_and_keeps_its_amplitudes(known, crystal):
    hkl = crystal.expanded.hkl
    end = flip_charges(hkl, crystal.normalised, crystal.grid, np.random.default_rng(0))
    assert end.jumped and len(end.skewness) < crystal_reference.MOST_CYCLES
    np.testing.assert_allclose(np.abs(end.factors), crystal.normalised, rtol=1e-4, atol=1e-4)
    given = crystal.expanded.in_given_cell(hkl)
    assert peer_map(known, given, np.angle(end.factors)) > 0.9
    first = flip_charges(hkl, crystal.normalised, crystal.grid, np.random.default_rng(0), most_cycles=1)
    assert not first.jumped
    assert peer_map(known, given, np.angle(first.factors)) < 0.3


def test_a_cycle_is_that_of_the_papers_on_the_whole_sphere(crystal, monkeypatch):
    monkeypatch.setattr(crystal_reference, 'POLISHING', 0)
    amplitudes, grid = crystal.normalised, crystal.grid
    end = flip_charges(crystal.expanded.hkl, amplitudes, grid, np.random.default_rng(3), most_cycles=1)
    # The same start in double precision, with both of each Friedel pair on a complex grid.
    places = tuple(crystal.expanded.hkl[:, grid.axes].T), tuple(-crystal.expanded.hkl[:, grid.axes].T)
    sphere = np.zeros(grid.shape, complex)
    waves = np.exp(2j * np.pi * np.random.default_rng(3).random(len(amplitudes)))
    sphere[places[0]], sphere[places[1]] = amplitudes * waves, amplitudes * np.conj(waves)
    density = np.fft.ifftn(sphere).real
    flipped = np.fft.fftn(np.where(density < 1.1 * density.std(), -density, density))[places[0]]
    weak = amplitudes <= np.sort(amplitudes)[len(amplitudes) // 5 - 1]  # equivalents are equal
    expected = amplitudes * flipped / np.abs(flipped)
    expected[weak] = 1j * flipped[weak]
    np.testing.assert_allclose(np.conj(end.factors), expected, atol=1e-3 * np.abs(expected).max())
    assert end.skewness.shape == (1,)


def test_a_crystal_has_figures_of_our_search_and_of_numpy():
    result = crystal_speed.measure(12, argparse.Namespace(seed=0, seconds=0.01, peer=''))
    ours, numpy = result['ours'], result['numpy']
    assert (ours['starts'], ours['promising'], numpy['starts']) == (crystal_speed.STARTS, crystal_speed.STARTS, 1)
    assert 'cctbx' not in result
    for told in (ours, numpy):
        assert told['grid'] == [16, 16, 20]
        assert told['right'] == told['starts'] == sum(each > RIGHT_MAP for each in told['maps'])
        assert told['seconds_per_right_map'] == told['seconds_per_start'] > 0
        assert told['milliseconds_per_cycle'] > 0 and told['cycles_per_start'] > 100
    lines = crystal_speed.growth_table([result]).splitlines()
    assert lines[2].startswith('| 12 | 496 | 16×16×20 | ') and '| 8 of 8 |' in lines[2]
    lines = crystal_speed.start_table([result]).splitlines()
    assert lines[0].startswith('| atoms | right: ours | right: NumPy | s a start: ours | s a start: NumPy |')
    assert lines[2].startswith('| 12 | 8 of 8 | 1 of 1 | ')


def test_attempts_of_the_peer_that_fail_are_starts_too(known):
    hkl = known.data.hkl
    true = np.angle(known_structure_factors(known, hkl))
    said = {'seconds': 1.0, 'cycle_seconds': 0.5, 'cycles': 250, 'grid': [24, 25, 27], 'remark': '', 'accepted': True}
    right = {**said, 'attempts': 3, 'hkl': hkl, 'phases': true}
    wrong = {**said, 'attempts': 1, 'hkl': hkl, 'phases': np.random.default_rng(0).permutation(true)}
    none = {**said, 'attempts': 1, 'hkl': hkl[:0], 'phases': true[:0], 'accepted': False, 'remark': 'an error'}
    told = crystal_speed.summarise_peer([right, wrong, none], lambda hkl, phases: peer_map(known, hkl, phases))
    assert (told['starts'], told['right'], told['runs'], told['accepted']) == (5, 1, 3, 2)
    assert told['maps'][0] == 1 and told['maps'][1] < RIGHT_MAP and told['maps'][2] is None
    assert (told['seconds_per_start'], told['seconds_per_right_map'], told['milliseconds_per_cycle']) == (0.6, 3.0, 2.0)
    assert (told['cycles_per_start'], told['remarks']) == (150, ['an error'])
    silent = crystal_speed.measure_peer(known, argparse.Namespace(peer='/no/python', seconds=1, seed=0), None)
    assert (silent['starts'], silent['right'], silent['seconds_per_start']) == (0, 0, None)
    assert silent['remarks'] == ['no answer of cctbx: FileNotFoundError']
    entry = {'atoms': 48, 'ours': told, 'numpy': told, 'cctbx': silent}
    assert crystal_speed.cycle_table([entry]).splitlines()[2] == (
        '| 48 | 24×25×27 | – | 2.0 | 2.0 | – | 150 | 150 | – |'
    )
