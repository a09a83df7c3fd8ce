import jax
import numpy as np
import pytest

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.scatterers import AsymmetricUnit, form_factors, group_operations, structure_factors
from patterson_jax.crystal.structure import SpaceGroup
from patterson_jax.solving import crystal_refinement
from patterson_jax.solving.crystal_elements import power
from patterson_jax.solving.crystal_maps import allowed_reflections
from patterson_jax.solving.crystal_refinement import bucket, observations, refine, up_to

CELL = UnitCell(6.1, 7.3, 8.2, 90, 101, 90)
GROUP = SpaceGroup(14, 'P 1 21/c 1', ('x,y,z', '-x,y+1/2,-z+1/2', '-x,-y,-z', 'x,-y+1/2,z+1/2'), certain=True)
TRUE = AsymmetricUnit(
    np.array([(0, 0, 0), (0.21, 0.13, 0.08), (0.38, 0.3, 0.11), (0.15, 0.33, 0.29)], np.float32),
    np.array([0.02, 0.03, 0.05, 0.04], np.float32),
    np.array([0.5, 1, 1, 1], np.float32),
    np.array([1, 0, 2, 0], np.int32),
)
ELEMENTS = ['C', 'Fe', 'O']
PROJECTORS = np.stack([np.zeros((3, 3)), *[np.eye(3)] * 3])  # iron lies on an inversion centre
SCALE = 0.7


@pytest.fixture(scope='module')
def reflections():
    hkl = np.stack(np.meshgrid(np.arange(-5, 6), np.arange(6), np.arange(7), indexing='ij'), -1).reshape(-1, 3)
    hkl = hkl[allowed_reflections(hkl, GROUP.symops)]
    spacings = CELL.inverse_spacings(hkl)
    hkl, spacings = hkl[np.argsort(spacings)][1:].astype(np.float32), np.sort(spacings)[1:].astype(np.float32)
    table = form_factors(ELEMENTS, spacings)
    true = structure_factors(TRUE, group_operations(GROUP), hkl, table, spacings)
    intensities = (SCALE * np.abs(true)) ** 2 / 100
    return observations(hkl, spacings, table, intensities, 0.01 * intensities + 0.01 * intensities.mean())


def refined(unit, reflections, cycles, scale=0.0, occupancies=False):
    return refine(unit, scale, PROJECTORS, group_operations(GROUP), reflections, cycles, occupancies)


def test_displaced_atoms_come_back_and_a_special_one_stays(reflections):
    shifts = np.array([(0, 0, 0), (0.01, -0.02, 0.01), (-0.015, 0.01, 0.01), (0.01, 0.01, -0.015)], np.float32)
    start = TRUE._replace(positions=TRUE.positions + shifts, u_iso=np.full(4, 0.03, np.float32))
    fit = refined(start, reflections, cycles=20)
    np.testing.assert_allclose(fit.unit.positions, TRUE.positions, atol=1e-4)
    np.testing.assert_allclose(fit.unit.u_iso, TRUE.u_iso, atol=2e-4)
    np.testing.assert_allclose(fit.scale, SCALE / 10, rtol=1e-3)
    np.testing.assert_array_equal(fit.unit.positions[0], 0)
    np.testing.assert_array_equal(fit.unit.occupancies, TRUE.occupancies)


def test_occupancies_tell_an_element_that_is_wrong(reflections):
    wrong = TRUE._replace(elements=np.array([1, 0, 0, 0], np.int32))  # oxygen as carbon
    fit = refined(wrong, reflections, scale=SCALE / 10, occupancies=True, cycles=12)
    powers = fit.unit.occupancies / TRUE.occupancies * [power(each) for each in ('Fe', 'C', 'C', 'C')]
    np.testing.assert_allclose(powers, [power(each) for each in ('Fe', 'C', 'O', 'C')], rtol=0.06)


def test_without_cycles_a_model_is_calculated_only(reflections):
    fit = refined(TRUE, reflections, cycles=0)
    number = int(np.isfinite(reflections.sigmas).sum())
    hkl, spacings = reflections.hkl.reshape(-1, 3)[:number], reflections.spacings.ravel()[:number]
    expected = structure_factors(TRUE, group_operations(GROUP), hkl, form_factors(ELEMENTS, spacings), spacings)
    found = fit.structure_factors.ravel()
    np.testing.assert_allclose(found[:number], expected, atol=1e-3)
    np.testing.assert_array_equal(fit.unit.positions, TRUE.positions)
    np.testing.assert_array_equal(found[number:], 0)


def test_the_gradient_is_that_of_the_misfit(reflections):
    """Minus half of its derivative along some directions, forward through the sums."""
    operations = group_operations(GROUP)
    weights = np.where(np.isfinite(reflections.sigmas), 1 / reflections.sigmas**2, 0).astype(np.float32)
    shifted = TRUE.positions + np.float32(0.01)
    parameters = np.concatenate([shifted.ravel(), TRUE.u_iso, TRUE.occupancies, [SCALE / 10]]).astype(np.float32)
    free = np.ones(len(parameters), np.float32)

    @jax.jit
    def sums(parameters, *given):
        return crystal_refinement._normal_equations(parameters, *given)

    given = TRUE, free, operations, reflections, weights
    _, gradient, _ = sums(parameters, *given)
    for seed in range(4):
        direction = np.random.default_rng(seed).standard_normal(len(parameters)).astype(np.float32)
        _, slopes = jax.jvp(lambda each: sums(each, *given), (parameters,), (direction,))
        np.testing.assert_allclose(gradient @ direction, slopes[2] / -2, rtol=2e-3)


def test_only_the_first_reflections_are_used_if_so_wished(reflections):
    assert up_to(reflections, 10).used == 1
    assert up_to(reflections, 10**6).used == reflections.used


def test_buckets():
    assert [bucket(size, 16) for size in (0, 1, 16, 17, 33, 60, 70, 100, 130)] == [16, 16, 16, 32, 48, 64, 96, 128, 192]
