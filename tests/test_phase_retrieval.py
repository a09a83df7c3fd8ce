import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import patterson_jax as pj
from patterson_jax.errors import InputError
from patterson_jax.evaluation import match_atoms
from patterson_jax.simulation.density import render
from patterson_jax.simulation.examples import make_batch, stream_key
from patterson_jax.simulation.patterson import frequencies, patterson_intensities, structure_factors
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.methods.phase_retrieval import (
    PhaseRetrievalSettings,
    centre_density,
    centred_atoms,
    project_amplitudes,
    project_support,
    retrieve_density,
    touched_voxels,
)

PROBLEM = Problem(grid_size=20, num_atoms=4, box_edge=7.0)
NUM_VOXELS = touched_voxels(PROBLEM.num_atoms, PROBLEM.atom_radius)
SETTINGS = PhaseRetrievalSettings()
EVERYTHING = np.ones((20, 20, 11), bool)
LOW = np.sum(frequencies(20) ** 2, axis=-1) <= 6**2


@pytest.fixture(scope='module')
def cases():
    """Eight cases and their amplitudes."""
    examples = jax.jit(lambda: make_batch(stream_key(0, 'evaluation'), 0, jnp.arange(8), PROBLEM))()
    return examples, jnp.sqrt(jnp.maximum(patterson_intensities(examples.patterson), 0))


@jax.jit
def amplitudes_of(density):
    return jnp.abs(structure_factors(density))


@jax.jit
def density_of(positions):
    return render(positions, 20, 1.0)


@functools.partial(jax.jit, static_argnames='settings')
def retrieve(key, amplitudes, measured, settings=SETTINGS):
    return retrieve_density(key, amplitudes, measured, NUM_VOXELS, settings)


@functools.partial(jax.jit, static_argnames='settings')
def retrieve_several(keys, amplitudes, measured, settings=SETTINGS):
    return jax.vmap(lambda key, each: retrieve(key, each, measured, settings))(keys, amplitudes)


def normal_map(seed, size=20):
    return jax.random.normal(jax.random.key(seed), (size,) * 3)


@pytest.mark.parametrize('count', [1, 2, 83, 500, 3999])
@pytest.mark.parametrize('seed', range(3))
def test_support_keeps_exactly_the_largest_voxels(seed, count):
    density = np.asarray(normal_map(seed))
    kept = np.asarray(project_support(jnp.asarray(density), count))
    smallest = np.sort(density.ravel())[-count]
    np.testing.assert_array_equal(kept, np.where((density >= smallest) & (density > 0), density, 0))
    assert np.count_nonzero(kept) == min(count, np.count_nonzero(density > 0))


def test_support_separates_neighbouring_floats_and_wide_ranges():
    """Neighbours in the order of floats, beside a value so much greater that plain halving starts far off."""
    low = np.float32(0.01)
    high = np.nextafter(low, np.float32(1))
    density = np.zeros(1000, np.float32)
    density[:6] = [1.0, high, low, high, low, -5.0]
    kept = np.asarray(project_support(jnp.asarray(density.reshape(10, 10, 10)), 3)).ravel()
    np.testing.assert_array_equal(kept[:6], [1.0, high, 0, high, 0, 0])


def test_support_keeps_ties_and_survives_maps_with_little_or_nothing_positive():
    tied = jnp.zeros((10, 10, 10)).at[0, 0, :4].set(0.5).at[1, 1, 1].set(1.0)
    np.testing.assert_array_equal(project_support(tied, 3), tied)
    np.testing.assert_array_equal(project_support(tied, 10), tied)
    np.testing.assert_array_equal(project_support(-tied, 3), jnp.zeros_like(tied))


def test_amplitude_projection_gives_the_measured_ones_and_leaves_the_others():
    density, other = normal_map(0), normal_map(1)
    projected = project_amplitudes(density, amplitudes_of(other), LOW)
    before, after = structure_factors(density), structure_factors(projected)
    np.testing.assert_allclose(jnp.abs(after)[LOW], amplitudes_of(other)[LOW], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(after[~LOW], before[~LOW], rtol=1e-3, atol=1e-3)
    turned = np.angle(np.asarray(after / before))
    np.testing.assert_allclose(turned, 0, atol=1e-3)
    np.testing.assert_allclose(project_amplitudes(projected, amplitudes_of(other), LOW), projected, atol=1e-4)


def test_amplitude_projection_is_the_nearest_map():
    """No other map with these amplitudes is nearer: those with other phases are all further away."""
    density, amplitudes = normal_map(0), amplitudes_of(normal_map(1))
    nearest = jnp.linalg.norm((project_amplitudes(density, amplitudes, EVERYTHING) - density).ravel())
    for seed in range(2, 6):
        mixed = density + 0.3 * normal_map(seed)
        further = project_amplitudes(mixed, amplitudes, EVERYTHING)
        assert jnp.linalg.norm((further - density).ravel()) > 1.01 * nearest


def test_the_mean_is_kept_free_or_measured():
    density, mask = 1 + normal_map(0), EVERYTHING.copy()
    mask[0, 0, 0] = False
    amplitudes = 2 * amplitudes_of(density)
    np.testing.assert_allclose(jnp.sum(project_amplitudes(density, amplitudes, mask)), jnp.sum(density), rtol=1e-4)
    full = project_amplitudes(density, amplitudes, EVERYTHING)
    np.testing.assert_allclose(jnp.sum(full), 2 * jnp.sum(density), rtol=1e-4)


def test_amplitudes_of_nothing_stay_finite():
    """A map of zeros has no phases, and an amplitude of zero no direction."""
    amplitudes = amplitudes_of(normal_map(1)).at[1, 2, 3].set(0)
    assert np.all(np.isfinite(project_amplitudes(jnp.zeros((20, 20, 20)), amplitudes, EVERYTHING)))
    assert abs(structure_factors(project_amplitudes(normal_map(0), amplitudes, EVERYTHING))[1, 2, 3]) < 1e-3


def test_the_true_density_is_in_both_sets(cases):
    examples, amplitudes = cases
    density = density_of(examples.positions[0])
    touched = int(jnp.sum(density > 0))
    with_amplitudes = project_amplitudes(density, amplitudes[0], EVERYTHING)
    np.testing.assert_allclose(with_amplitudes, density, atol=2e-4)
    np.testing.assert_array_equal(project_support(density, touched), density)
    on_support = project_support(2 * with_amplitudes - density, touched)
    np.testing.assert_allclose(on_support, density, atol=1e-3)
    assert jnp.linalg.norm((on_support - with_amplitudes).ravel()) < 1e-3 * jnp.linalg.norm(density.ravel())


def test_there_is_nothing_outside_the_box(cases):
    _, amplitudes = cases
    settings = PhaseRetrievalSettings(num_iterations=20, tolerance=0.0)
    boxed = jax.jit(functools.partial(retrieve_density, num_voxels=NUM_VOXELS, settings=settings, box_edge=12.0))
    density = np.asarray(boxed(jax.random.key(0), amplitudes[0], EVERYTHING).density)
    inside = np.abs(np.argwhere(density > 0) + 0.5 - 10) <= 6
    assert np.all(inside)
    assert np.count_nonzero(density) == NUM_VOXELS


def test_a_molecule_that_does_not_fit_in_the_box_is_solved_too():
    """Three atoms in a row of 12 voxels, where the box has 10 for their centres: by an attempt without the box."""
    patterson, _ = pj.simulate([[-6, 0.3, 0], [0.7, -0.4, 0.2], [6, 0, -0.3]], voxel_size=1.0, grid_size=30)
    answer = pj.solve(patterson, num_atoms=3, voxel_size=1.0, method='phase_retrieval', box_edge=6.0)
    assert answer.verdict == 'solved'


def test_touched_voxels_is_the_mean_of_rendered_atoms():
    positions = jax.random.uniform(jax.random.key(0), (2000, 1, 3), minval=-4, maxval=4)
    counts = jnp.sum(jax.vmap(density_of)(positions) > 1e-5, axis=(1, 2, 3))  # what rounding leaves is not counted
    assert touched_voxels(1000, 1.0) == round(1000 * (7 + 3 * math.pi + 4 / 3 * math.pi))
    np.testing.assert_allclose(touched_voxels(1000, 1.0) / 1000, np.mean(counts), rtol=0.02)


@pytest.mark.parametrize('shift', [(0, 0, 0), (7, 3, -9), (10, 10, 10)])
def test_density_is_centred_by_whole_voxels(shift, cases):
    examples, amplitudes = cases
    density = density_of(examples.positions[0])
    rolled = centre_density(jnp.roll(density, shift, axis=(0, 1, 2)))
    np.testing.assert_array_equal(np.sort(rolled.ravel()), np.sort(density.ravel()))
    np.testing.assert_allclose(amplitudes_of(rolled), amplitudes[0], atol=2e-2)
    np.testing.assert_array_equal(rolled, centre_density(density))
    angles = 2 * np.pi / 20 * (np.arange(20) - 9.5)  # from the box centre
    profiles = [np.asarray(rolled).sum(axes) for axes in ((1, 2), (0, 2), (0, 1))]
    offsets = np.angle([np.sum(profile * np.exp(1j * angles)) for profile in profiles]) * 20 / (2 * np.pi)
    assert np.all(np.abs(offsets) <= 0.5 + 1e-4)


def test_atoms_across_the_faces_of_the_box_come_back_together(cases):
    """True positions have their mean at the box centre, so what is found lies where they do, but for whole voxels."""
    positions = cases[0].positions[1]
    rolled = jnp.roll(density_of(positions), (11, 9, 10), axis=(0, 1, 2))
    found = np.asarray(centred_atoms(rolled, 4, PROBLEM))
    assert np.all(np.abs(found) <= 10)
    offsets = found[:, None] - np.asarray(positions)[None]
    offsets = offsets[np.arange(4), np.argmin(np.linalg.norm(offsets, axis=-1), axis=1)]
    np.testing.assert_allclose(offsets, np.round(np.mean(offsets, axis=0))[None].repeat(4, 0), atol=0.1)
    assert np.all(np.abs(np.mean(offsets, axis=0)) < 1.6)


def matched(retrieval, examples):
    match = compare(retrieval.density, examples.positions)
    return np.asarray(match.within), np.asarray(match.errors)


@jax.jit
@jax.vmap
def compare(density, positions):
    return match_atoms(centred_atoms(density, 4, PROBLEM), positions)


def test_every_atom_is_found_from_one_start(cases):
    examples, amplitudes = cases
    retrieval = retrieve_several(jax.random.split(jax.random.key(1), 8), amplitudes, EVERYTHING)
    within, errors = matched(retrieval, examples)
    assert np.all(within)
    assert np.mean(errors) < 0.06
    assert np.all(retrieval.gap < SETTINGS.tolerance)
    assert np.all(retrieval.iterations < SETTINGS.num_iterations)
    assert len(set(np.asarray(retrieval.iterations).tolist())) > 1  # each case stops by itself


def test_every_atom_is_found_at_low_resolution(cases):
    """With what is not measured wrong in the data, and free."""
    examples, amplitudes = cases
    amplitudes = jnp.where(LOW[None], amplitudes, 100.0)
    within, errors = matched(retrieve_several(jax.random.split(jax.random.key(1), 8), amplitudes, LOW), examples)
    assert np.mean(within) > 0.9
    assert np.mean(errors[within]) < 0.3


def test_the_best_map_met_is_kept_under_noise(cases):
    """The iteration leaves the solution again: an iteration that does not lower the gap changes nothing."""
    examples, amplitudes = cases
    noise = jax.random.normal(jax.random.key(3), amplitudes.shape)
    amplitudes = amplitudes * jnp.abs(1 + 0.2 * noise)
    keys = jax.random.split(jax.random.key(1), 8)
    before, after = (
        retrieve_several(keys, amplitudes, EVERYTHING, PhaseRetrievalSettings(iterations)) for iterations in (100, 101)
    )
    np.testing.assert_array_equal(after.iterations, 101)
    same = np.asarray(after.gap == before.gap)
    assert np.any(same)
    assert np.all(after.gap <= before.gap)
    np.testing.assert_array_equal(after.density[same], before.density[same])
    within, errors = matched(after, examples)
    assert np.mean(within) > 0.9
    assert np.mean(errors[within]) < 0.2


def test_density_has_the_support_and_the_gap_that_are_reported(cases):
    _, amplitudes = cases
    retrieval = retrieve(jax.random.key(1), amplitudes[0], EVERYTHING)
    density = retrieval.density
    assert np.min(density) == 0
    assert np.count_nonzero(density) == NUM_VOXELS
    # The gap is the distance to a map with the amplitudes, of which the nearest is the projection.
    distance = jnp.linalg.norm((project_amplitudes(density, amplitudes[0], EVERYTHING) - density).ravel())
    assert 0 < distance / jnp.linalg.norm(density.ravel()) <= 1.05 * retrieval.gap


def test_the_gap_tells_a_solution_from_a_failure(cases):
    """The amplitudes of normal noise belong to no small support."""
    _, amplitudes = cases
    noise = amplitudes_of(normal_map(5))
    assert retrieve(jax.random.key(1), noise, EVERYTHING).gap > 0.3
    assert retrieve(jax.random.key(1), amplitudes[0], EVERYTHING).gap < 0.1


def test_same_key_same_result_and_another_key_another_start(cases):
    _, amplitudes = cases
    first, again, other = (retrieve(jax.random.key(seed), amplitudes[0], EVERYTHING) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.density, again.density)
    assert np.max(np.abs(first.density - other.density)) > 0.1


def test_result_does_not_depend_on_the_batch(cases):
    _, amplitudes = cases
    keys = jax.random.split(jax.random.key(1), 8)
    together = retrieve_several(keys, amplitudes, EVERYTHING)
    for index in (int(jnp.argmin(together.iterations)), int(jnp.argmax(together.iterations))):
        alone = retrieve(keys[index], amplitudes[index], EVERYTHING)
        assert together.iterations[index] == alone.iterations
        np.testing.assert_allclose(together.density[index], alone.density, atol=1e-3)
        np.testing.assert_allclose(together.gap[index], alone.gap, rtol=1e-3)


def test_starts_of_one_map(cases):
    """Vmapped over keys alone, and over a mask that is traced."""
    _, amplitudes = cases
    keys = jax.random.split(jax.random.key(1), 3)
    starts = jax.jit(jax.vmap(retrieve, in_axes=(0, None, None)))(keys, amplitudes[0], jnp.asarray(EVERYTHING))
    assert np.all(starts.gap < SETTINGS.tolerance)
    alone = retrieve(keys[2], amplitudes[0], EVERYTHING)
    np.testing.assert_allclose(starts.density[2], alone.density, atol=1e-3)


@pytest.mark.parametrize(
    'field, value',
    [
        ('num_iterations', 0),
        ('step', 0.0),
        ('step', 2.0),
        ('step', math.nan),
        ('tolerance', -0.1),
        ('tolerance', math.inf),
    ],
)
def test_settings_check_themselves(field, value):
    with pytest.raises(InputError, match=field):
        PhaseRetrievalSettings(**{field: value})
