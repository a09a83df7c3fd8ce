import dataclasses

import pytest

from patterson_jax.solving.crystal_verdict import (
    ANISOTROPIC,
    Evidence,
    Findings,
    Residues,
    expected_r_factor,
    explains,
    is_for_anisotropy,
    judge_crystal,
)

GOOD = Findings(
    r_factor=0.09,
    noise_r_factor=0.02,
    light_share=0.9,
    highest_peak=0.08,
    deepest_hole=0.07,
    lowest_u=0.02,
    highest_u=0.06,
    closest=1.2,
    odd_bonds=(),
    volume_per_atom=18.0,
    organic=True,
    absent_intensity=0.0,
    further_symmetry=False,
    parity='h + k is odd',
    parity_r_factor=0.12,
    parity_noise=0.02,
    weak_intensity=0.12,
    group_certain=True,
    reflections_per_parameter=20.0,
    d_min=0.8,
    follows_formula=True,
    missing_share=0.0,
)


def test_nothing_against_it_is_solved():
    verdict, reasons = judge_crystal(GOOD, Evidence())
    assert verdict == 'solved'
    assert reasons[0] == f'R1 is 0.090, where up to {expected_r_factor(GOOD):.3f} is to be expected'


@pytest.mark.parametrize(
    ('field', 'value', 'words'),
    [
        ('r_factor', 0.2, 'R1 is 0.200'),
        ('highest_peak', 0.3, 'difference peak has 30%'),
        ('highest_peak', 4e6, 'difference peak has more than 1000%'),
        ('highest_peak', 9.9, 'difference peak has 990%'),
        ('deepest_hole', 0.3, 'hole'),
        ('deepest_hole', 40.0, 'hole of the difference map has more than 1000%'),
        ('lowest_u', 0.002, 'U = 0.0020'),
        ('highest_u', 0.2, 'U = 0.200'),
        ('closest', 0.9, '0.90 Å apart'),
        ('odd_bonds', ('C without a bond',), 'C without a bond'),
        ('volume_per_atom', 33.0, '33.0 Å³'),
        ('absent_intensity', 0.3, 'forbids have 30%'),
        ('further_symmetry', True, 'symmetry that the space group lacks'),
        ('weak_intensity', 0.6, 'no other start'),
        ('parity_r_factor', 0.2, 'R1 is 0.200 where h + k is odd'),
        ('group_certain', False, 'not certain'),
        ('reflections_per_parameter', 6.0, 'are few'),
        ('d_min', 1.2, 'are few'),
        ('missing_share', 0.2, '20% of the atoms'),
    ],
)
def test_anything_against_it_is_said_and_makes_it_uncertain(field, value, words):
    verdict, reasons = judge_crystal(dataclasses.replace(GOOD, **{field: value}), Evidence())
    assert verdict == 'uncertain'
    assert len(reasons) == 1
    assert words in reasons[0]


def test_a_model_that_explains_nothing_is_not_solved():
    verdict, reasons = judge_crystal(dataclasses.replace(GOOD, r_factor=0.5), Evidence(agreeing=5))
    assert verdict == 'not solved'
    assert 'R1 is 0.500' in reasons[0]


def test_two_starts_make_up_for_few_data_if_the_chemistry_is_right():
    few = dataclasses.replace(GOOD, reflections_per_parameter=6.0, weak_intensity=0.6)
    assert judge_crystal(few, Evidence(agreeing=2))[0] == 'solved'
    fewer = dataclasses.replace(few, reflections_per_parameter=4.9)
    assert judge_crystal(fewer, Evidence(agreeing=2))[0] == 'uncertain'
    inorganic = dataclasses.replace(few, organic=False)
    assert judge_crystal(inorganic, Evidence(agreeing=2))[0] == 'uncertain'


def test_phases_that_disobey_the_group_leave_it_uncertain():
    assert judge_crystal(GOOD, Evidence(operations=0.3))[0] == 'uncertain'


def test_noise_and_light_atoms_raise_the_expected_r_factor():
    noisy = dataclasses.replace(GOOD, noise_r_factor=0.1)
    heavy = dataclasses.replace(GOOD, light_share=0.1)
    assert expected_r_factor(heavy) < expected_r_factor(GOOD) < expected_r_factor(noisy)


def test_what_anisotropic_displacements_explain_is_no_doubt():
    rough = dataclasses.replace(GOOD, r_factor=0.2, highest_peak=0.3, deepest_hole=0.3)
    assert is_for_anisotropy(rough, Evidence())
    assert not is_for_anisotropy(GOOD, Evidence())
    freer = Residues(
        r_factor=0.07, highest_peak=0.1, deepest_hole=0.05, lowest_u=0.01, highest_u=0.2, reflections_per_parameter=8.0
    )
    found = dataclasses.replace(rough, anisotropic=freer)
    verdict, reasons = judge_crystal(found, Evidence())
    limit = expected_r_factor(GOOD, ANISOTROPIC)
    assert verdict == 'solved'
    assert reasons[0] == (
        f'R1 is 0.200, and 0.070 with anisotropic displacements, where up to {limit:.3f} is to be expected'
    )
    assert '10%' in reasons[1]
    assert explains(found)
    assert not explains(rough)


@pytest.mark.parametrize(
    ('field', 'value'),
    [('r_factor', 0.15), ('highest_peak', 0.2), ('deepest_hole', 0.2), ('lowest_u', -0.001), ('highest_u', 0.5)],
)
def test_anisotropic_displacements_must_leave_nothing_and_be_sensible(field, value):
    freer = Residues(
        r_factor=0.07, highest_peak=0.1, deepest_hole=0.05, lowest_u=0.01, highest_u=0.2, reflections_per_parameter=8.0
    )
    found = dataclasses.replace(GOOD, r_factor=0.2, anisotropic=dataclasses.replace(freer, **{field: value}))
    verdict, reasons = judge_crystal(found, Evidence())
    assert (verdict, len(reasons)) == ('uncertain', 1)
    assert 'R1 is 0.200' in reasons[0]


@pytest.mark.parametrize(('field', 'value'), [('highest_u', 0.2), ('closest', 0.9), ('missing_share', 0.2)])
def test_anisotropic_displacements_make_up_for_nothing_else(field, value):
    rough = dataclasses.replace(GOOD, r_factor=0.2, **{field: value})
    assert not is_for_anisotropy(rough, Evidence())
    freer = Residues(
        r_factor=0.07, highest_peak=0.1, deepest_hole=0.05, lowest_u=0.01, highest_u=0.2, reflections_per_parameter=8.0
    )
    verdict, reasons = judge_crystal(dataclasses.replace(rough, anisotropic=freer), Evidence())
    assert (verdict, len(reasons)) == ('uncertain', 1)
