"""The symmetry of measured intensities: made-up ones that have a known class and centring, merged or not."""

import dataclasses
import re

import gemmi
import numpy as np
import pytest

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.preparation import prepare
from patterson_jax.crystal.reflections import Measurements, equivalent_keys, index_keys, sphere
from patterson_jax.crystal.symmetry import (
    CENTRINGS,
    REVERSE,
    absent_by_centring,
    laue_classes,
    rotation_set,
    with_inversion,
)
from patterson_jax.errors import InputError

TETRAGONAL = UnitCell(7.0, 7.02, 9.0, 90.0, 90.05, 90.0)  # as measured, not quite what it should be
HEXAGONAL = UnitCell(8.0, 8.0, 10.0, 90.0, 90.0, 120.0)
CUBIC = UnitCell(8.0, 8.0, 8.0, 90.0, 90.0, 90.0)
MONOCLINIC = UnitCell(7.0, 8.0, 9.0, 90.0, 100.0, 90.0)
TRICLINIC = UnitCell(7.0, 8.0, 9.0, 80.0, 100.0, 95.0)
D_MIN = 1.0


def rotations_of(symbol):
    operations = gemmi.SpaceGroup(symbol).operations().sym_ops
    return np.array([each.rot for each in operations]) // gemmi.Op.DEN


def measured(cell, rotations, vectors=(), *, noise=0.02, part=1.0, merged=False, likeness=0.0, pseudo=None):
    """Intensities of the acentric distribution that are the same for equivalents, with noise.

    `pseudo` are rotations that they have but for a part 1 − `likeness`; `part` is how many of all were measured.
    """
    random = np.random.default_rng(0)
    half = sphere(cell, D_MIN)
    hkl = np.concatenate([half, -half])
    if vectors:
        hkl = hkl[~absent_by_centring(hkl, vectors)]
    values = {}

    def drawn(some):
        keys = equivalent_keys(hkl, with_inversion(some))
        unique, where = np.unique(keys, return_inverse=True)
        return np.random.default_rng(len(unique)).exponential(100.0, len(unique))[where]

    values = drawn(rotations)
    if pseudo is not None:
        values = (1 - likeness) * values + likeness * drawn(pseudo)
    if merged:
        kept = index_keys(hkl) == equivalent_keys(hkl, with_inversion(rotations))
    else:
        kept = random.random(len(hkl)) < part
    hkl, values = hkl[kept], values[kept]
    sigmas = noise * (values + 20)
    return Measurements(hkl.astype(np.int32), values + sigmas * random.normal(size=len(values)), sigmas)


CLASSES = [
    ('P -1', TRICLINIC, '-1'),
    ('P 1 2/m 1', MONOCLINIC, '2/m'),
    ('P m m m', TETRAGONAL, 'mmm'),
    ('P 4/m', TETRAGONAL, '4/m'),
    ('P 4/m m m', TETRAGONAL, '4/mmm'),
    ('P -3', HEXAGONAL, '-3'),
    ('P -3 1 m', HEXAGONAL, '-3m'),
    ('P -3 m 1', HEXAGONAL, '-3m'),
    ('P 6/m', HEXAGONAL, '6/m'),
    ('P 6/m m m', HEXAGONAL, '6/mmm'),
    ('P m -3', CUBIC, 'm-3'),
    ('P m -3 m', CUBIC, 'm-3m'),
    ('P 1 2/m 1', CUBIC, '2/m'),
]


@pytest.mark.parametrize('merged', [False, True])
@pytest.mark.parametrize(('symbol', 'cell', 'laue'), CLASSES)
def test_the_class_of_the_intensities_is_found_without_a_claim(symbol, cell, laue, merged):
    rotations = rotations_of(symbol)
    prepared = prepare(measured(cell, rotations, merged=merged, part=0.7), cell)
    data = prepared.data
    assert (data.laue_class, data.centring, data.warnings) == (laue, 'P', ())
    if cell is not CUBIC or symbol != 'P 1 2/m 1' or not merged:  # whose axis no merged set tells
        keys = set(map(bytes, np.ascontiguousarray(with_inversion(rotations), np.int64).reshape(-1, 9)))
        assert set(map(bytes, np.ascontiguousarray(data.rotations, np.int64).reshape(-1, 9))) == keys
    assert prepared.chosen.agrees == (not merged and laue != '-1')
    assert prepared.chosen.completeness > 0.8
    assert prepared.d_min == pytest.approx(D_MIN, abs=0.01)
    if len(data.hkl) > 200:
        assert prepared.e_statistic == pytest.approx(0.736, abs=0.06)
    assert len(np.unique(equivalent_keys(data.hkl, data.rotations))) == len(data.hkl)


def test_noise_does_not_hide_the_class_nor_make_one():
    for symbol, laue in (('P m m m', 'mmm'), ('P 1 2/m 1', '2/m')):
        cell = UnitCell(7.0, 8.0, 9.0, 90.0, 90.0, 90.0)
        prepared = prepare(measured(cell, rotations_of(symbol), noise=0.5), cell)
        assert prepared.data.laue_class == laue


def test_a_claim_that_the_data_contradict_is_named_with_what_is_taken():
    data = measured(TETRAGONAL, rotations_of('P 1 2/m 1'))
    prepared = prepare(data, TETRAGONAL, claimed=rotations_of('P 4/m'), claimed_centring='P')
    assert prepared.data.laue_class == '2/m'
    (warning,) = prepared.data.warnings
    assert 'claims the Laue class 4/m' in warning
    assert '2/m is taken' in warning


def test_more_symmetry_than_claimed_is_taken_where_equivalents_show_it():
    data = measured(TETRAGONAL, rotations_of('P 4/m'))
    prepared = prepare(data, TETRAGONAL, claimed=rotations_of('P -1'))
    assert prepared.data.laue_class == '4/m'
    assert 'claims the Laue class -1' in prepared.data.warnings[0]


def test_the_claim_decides_for_merged_data():
    data = measured(TETRAGONAL, rotations_of('P m m m'), merged=True)
    prepared = prepare(data, TETRAGONAL, claimed=rotations_of('P 1 2/m 1'))
    assert prepared.data.laue_class == '2/m'
    assert 'claims' in prepared.reason
    (warning,) = prepared.data.warnings
    assert re.fullmatch(
        r'the file claims the Laue class 2/m, in which only 5\d% of the reflections are there; '
        r'they look merged in mmm, in which (100|9\d)% are',
        warning,
    )
    assert not prepare(data, TETRAGONAL, claimed=rotations_of('P m m m')).data.warnings
    assert 'merged' in prepare(data, TETRAGONAL).reason


@pytest.mark.parametrize(('likeness', 'laue'), [(0.3, '2/m'), (0.6, '2/m'), (0.97, 'mmm')])
def test_a_symmetry_that_is_only_come_near_to_is_not_taken(likeness, laue):
    cell = UnitCell(7.0, 8.0, 9.0, 90.0, 90.0, 90.0)
    data = measured(cell, rotations_of('P 1 2/m 1'), pseudo=rotations_of('P m m m'), likeness=likeness)
    assert prepare(data, cell, claimed=rotations_of('P 1 2/m 1')).data.laue_class == laue


def test_a_class_that_is_asked_for_is_taken_and_one_that_cannot_be_is_refused():
    data = measured(TETRAGONAL, rotations_of('P 4/m'))
    prepared = prepare(data, TETRAGONAL, laue='2/m')
    assert prepared.data.laue_class == '2/m'
    np.testing.assert_array_equal(np.sort(prepared.data.rotations[:, 2, 2]), [-1, -1, 1, 1])  # about c, which fits
    (warning,) = prepared.data.warnings
    assert warning.startswith('the Laue class 2/m was asked for; the data show 4/m (R_int 0.0')
    assert rotation_set(prepared.data.possible) == rotation_set(rotations_of('P 4/m'))
    shown = prepare(data, TETRAGONAL, laue='4/m').data
    assert not shown.warnings
    assert rotation_set(shown.possible) == rotation_set(shown.rotations)
    assert 'contradict' in prepare(data, TETRAGONAL, laue='4/mmm').data.warnings[0]
    with pytest.raises(InputError, match=r"laue is 'm-3'; it must be one that the lattice allows: -1, 2/m, mmm"):
        prepare(data, TETRAGONAL, laue='m-3')
    with pytest.raises(InputError, match=r"laue is 'P21'; it must be one of -1"):
        prepare(data, TETRAGONAL, laue='P21')


CENTRED = [
    ('A', MONOCLINIC, 'P 1 2/m 1'),
    ('C', MONOCLINIC, 'P 1 2/m 1'),
    ('I', TETRAGONAL, 'P 4/m'),
    ('F', CUBIC, 'P m -3 m'),
    ('R', HEXAGONAL, 'P -3 m 1'),
]


@pytest.mark.parametrize(('centring', 'cell', 'symbol'), CENTRED)
def test_a_centring_is_found_where_reflections_are_missing(centring, cell, symbol):
    prepared = prepare(measured(cell, rotations_of(symbol), CENTRINGS[centring]), cell)
    assert prepared.data.centring == centring
    assert prepared.chosen.completeness == pytest.approx(1, abs=0.02)
    assert not prepared.data.warnings


def forbidden_added(centring, cell, symbol, intensity, sigma):
    present = measured(cell, rotations_of(symbol), CENTRINGS[centring])
    hkl = sphere(cell, D_MIN)
    hkl = hkl[absent_by_centring(hkl, CENTRINGS[centring])]
    values = intensity + sigma * np.random.default_rng(1).normal(size=len(hkl))
    parts = zip(
        (present.hkl, present.intensities, present.sigmas), (hkl, values, np.full(len(hkl), sigma)), strict=True
    )
    return Measurements(*(np.concatenate(each) for each in parts)), len(hkl)


def test_a_centring_is_found_where_reflections_are_noise():
    data, count = forbidden_added('C', MONOCLINIC, 'P 1 2/m 1', 0.3, 1.0)
    prepared = prepare(data, MONOCLINIC)
    assert (prepared.data.centring, prepared.absent) == ('C', count)
    assert not np.any(absent_by_centring(prepared.data.hkl, CENTRINGS['C']))


def test_weak_but_certain_reflections_of_a_superstructure_are_no_centring():
    data, _ = forbidden_added('C', MONOCLINIC, 'P 1 2/m 1', 2.0, 0.1)
    prepared = prepare(data, MONOCLINIC, claimed=rotations_of('P 1 2/m 1'), claimed_centring='C')
    assert prepared.data.centring == 'P'
    assert prepared.data.warnings == ('the file claims a lattice C, but reflections that it forbids are there',)


def test_a_claimed_centring_that_few_reflections_cannot_show_is_not_called_false():
    present = measured(MONOCLINIC, rotations_of('P 1 2/m 1'), CENTRINGS['C'])
    few = Measurements(present.hkl[:11], present.intensities[:11], present.sigmas[:11])
    prepared = prepare(few, MONOCLINIC, claimed=rotations_of('P 1 2/m 1'), claimed_centring='C')
    expected = 'the file claims a lattice C, but the reflections are too few to show it; P is taken'
    assert prepared.data.centring == 'P' and prepared.data.warnings[0] == expected


def test_a_claimed_centring_that_the_cell_cannot_have_is_called_so():
    data = measured(MONOCLINIC, rotations_of('P 1 2/m 1'))
    prepared = prepare(data, MONOCLINIC, claimed=rotations_of('P 1 2/m 1'), claimed_centring='R')
    expected = 'the file claims a lattice R, which a lattice of this cell cannot be; P is taken'
    assert prepared.data.centring == 'P' and prepared.data.warnings == (expected,)


def test_a_reverse_rhombohedral_lattice_is_turned():
    obverse = measured(HEXAGONAL, rotations_of('P -3 m 1'), CENTRINGS['R'])
    reverse = dataclasses.replace(obverse, hkl=obverse.hkl * np.array([-1, -1, 1], np.int32))
    assert not np.any(absent_by_centring(reverse.hkl, REVERSE))
    first, second = prepare(obverse, HEXAGONAL), prepare(reverse, HEXAGONAL)
    assert (second.data.centring, 'reverse' in second.data.warnings[0]) == ('R', True)
    np.testing.assert_array_equal(second.change, np.diag([-1, -1, 1]))
    np.testing.assert_array_equal(first.data.hkl, second.data.hkl)
    np.testing.assert_allclose(first.data.intensities, second.data.intensities)


def test_a_perfect_merohedral_twin_is_noticed():
    single = measured(TETRAGONAL, rotations_of('P 4/m'))
    keys, partners = index_keys(single.hkl), index_keys(single.hkl[:, [1, 0, 2]] * np.array([1, 1, -1]))
    order = np.argsort(keys)
    place = order[np.clip(np.searchsorted(keys[order], partners), 0, len(keys) - 1)]
    both = keys[place] == partners
    twin = dataclasses.replace(single, intensities=(single.intensities + single.intensities[place]) / 2).select(both)
    assert 'twinned' in prepare(twin, TETRAGONAL).data.warnings[-1]


def test_what_cannot_be_is_refused_in_a_line():
    good = Measurements(np.array([[1, 0, 0], [0, 1, 0]], np.int32), np.array([1.0, 2.0]), np.ones(2))
    for changes, message in (
        ({'hkl': good.hkl[:0], 'intensities': good.intensities[:0], 'sigmas': good.sigmas[:0]}, 'no reflections'),
        ({'intensities': np.zeros(2)}, 'all of 2 intensities are zero'),
        ({'intensities': -np.ones(2)}, 'none of 2 intensities is positive'),
        ({}, '2 different reflections; it takes at least 10'),
    ):
        with pytest.raises(InputError, match=message):
            prepare(dataclasses.replace(good, **changes), CUBIC)
    with pytest.raises(InputError, match=r'cell or indices are wrong: up to 900 0 0 with d = 0.009 Å'):
        prepare(dataclasses.replace(good, hkl=np.array([[900, 0, 0], [1, 0, 0]], np.int32)), CUBIC)
    with pytest.raises(InputError, match=r'1 of 2 reflections, as 30 0 0 with d = 0.267 Å, cannot be measured'):
        prepare(dataclasses.replace(good, hkl=np.array([[30, 0, 0], [1, 0, 0]], np.int32)), CUBIC, wavelength=1.5418)


def test_every_subgroup_of_a_cubic_lattice_is_there():
    classes = laue_classes(CUBIC, 'P')
    assert len(classes) == 30  # subgroups of 432
    assert len({each.members for each in classes}) == 30
    assert [each.symbol for each in classes if each.setting in ('P m -3 m', 'P -1')] == ['-1', 'm-3m']
