"""Maps that a person hands over: refused, or told how far they are measured, or given back what is missing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patterson_jax.errors import InputError
from patterson_jax.simulation.density import render
from patterson_jax.simulation.measurement import measured_map
from patterson_jax.simulation.patterson import frequencies, measured_frequencies, patterson_map
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.input_maps import checked_patterson, fit_problem, inferred_resolution, restore_origin_term

GRID = 24
PROBLEM = Problem(grid_size=GRID, num_atoms=5, box_edge=7.0)
CROWDED = Problem(grid_size=GRID, num_atoms=5, box_edge=12.0)  # vectors reach every part of the cell
POSITIONS = np.random.default_rng(0).uniform(-3.5, 3.5, (5, 3)).astype(np.float32)


@functools.cache
def density():
    return np.asarray(jax.jit(render, static_argnums=(1, 2))(POSITIONS, GRID, 1.0))


@functools.cache
def clean():
    return np.asarray(patterson_map(density()))


@functools.cache
def measured(noise=0.0, resolution=None):
    problem = PROBLEM.changed(noise=noise, resolution=resolution)
    return np.asarray(measured_map(jax.random.key(0), jnp.asarray(density()), problem.measurement))


def cut(patterson, resolution):
    kept = measured_frequencies(len(patterson), resolution)
    return np.fft.irfftn(np.where(kept, np.fft.rfftn(patterson), 0), patterson.shape, (0, 1, 2)).astype(np.float32)


def with_spectrum(change):
    spectrum = np.fft.rfftn(clean()).real
    change(spectrum)
    return np.fft.irfftn(spectrum, clean().shape, (0, 1, 2)).astype(np.float32)


def one_negative(spectrum):
    spectrum[1, 2, 3] = -0.05 * np.max(spectrum.ravel()[1:])


def slightly_negative(spectrum):
    spectrum[1, 2, 3] = -5e-4 * np.max(spectrum.ravel()[1:])


def refusal(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert '\n' not in message
    return message


NO_PATTERSONS = {
    'constant': (lambda: np.ones((GRID,) * 3, np.float32), 'the same everywhere'),
    'odd': (lambda: clean()[:23, :23, :23], '23 voxels along each edge', 'even'),
    'tiny': (lambda: clean()[:6, :6, :6], '6 voxels along each edge', '8 or more'),
    'origin in the centre': (lambda: np.fft.fftshift(clean()), 'shift it by half a cell along each axis'),
    'origin elsewhere': (lambda: np.roll(clean(), (3, 1, 0), (0, 1, 2)), 'not its own inverse'),
    'a density': (density, 'not its own inverse'),
    'without its origin peak': (lambda: np.where(clean() > 0.7 * clean().max(), 0, clean()), 'origin', 'It is needed'),
    'negative coefficient': (lambda: with_spectrum(one_negative), '|F|²', '-0.05 of the highest'),
}


@pytest.mark.parametrize(
    ('make', 'fragments'), [(case[0], case[1:]) for case in NO_PATTERSONS.values()], ids=NO_PATTERSONS
)
def test_what_is_no_patterson_map_is_refused_with_its_fault(make, fragments):
    for scale in (1, 1e-6, 1e-200, 1e300):
        message = refusal(checked_patterson, make() * np.float64(scale))
        assert message.startswith('no Patterson map that can be solved: ')
        for fragment in fragments:
            assert fragment in message


def test_maps_of_any_scale_cut_or_noisy_or_without_their_mean_are_taken():
    good = [clean(), cut(clean(), 5), measured(0.3), measured(0.3, 5.0)]
    good += [with_spectrum(slightly_negative), clean() - np.mean(clean())]
    for patterson in good:
        for scale in (1e-9, 1, 1e9):
            checked_patterson(patterson * np.float32(scale))


@pytest.mark.parametrize('scale', [1e-300, 1e-42, 1.0, 1e38, 1e300])
def test_a_map_of_any_scale_comes_back_as_it_is_but_for_a_power_of_two(scale):
    """Single precision has neither so small nor so large numbers."""
    patterson = clean().astype(np.float64) * scale
    checked = checked_patterson(patterson)
    mantissas, exponents = np.frexp(checked)
    expected, powers = np.frexp(patterson)
    np.testing.assert_array_equal(mantissas, expected)
    assert len(set((exponents - powers)[patterson != 0])) == 1
    assert 0.25 <= np.ptp(checked) <= 2


def test_the_smallest_and_the_largest_numbers_of_single_precision_are_a_map_too():
    for scale in (1e-40, 3e38 / np.max(clean())):
        checked = checked_patterson(clean() * np.float32(scale))
        np.testing.assert_allclose(checked / checked[0, 0, 0], clean() / clean()[0, 0, 0], atol=1e-3, strict=False)


def test_the_problem_takes_the_grid_of_the_map_and_the_resolution_given_or_found():
    problem = Problem(num_atoms=5, box_edge=7.0)
    assert fit_problem(clean(), problem, None) == PROBLEM
    assert fit_problem(clean(), problem, 6.5) == PROBLEM.changed(resolution=6.5)
    assert fit_problem(cut(clean(), 5), problem, 4.0).measurement.resolution == 4
    assert fit_problem(cut(clean(), 5), problem, None).measurement.resolution == pytest.approx(5)
    assert fit_problem(clean(), problem.changed(resolution=3.0), None).measurement.resolution is None


def test_a_map_too_small_for_the_problem_is_refused_with_its_size():
    assert '12 voxels along each edge' in refusal(fit_problem, np.ones((12, 12, 12), np.float32), Problem(), 4.0)


def test_a_map_with_too_few_reflections_for_the_atoms_is_refused_with_their_number():
    message = refusal(fit_problem, clean(), PROBLEM, 1.5)
    assert 'leaves 9 reflections' in message
    assert fit_problem(clean(), PROBLEM, 2.3).measurement.resolution == 2.3
    assert 'resolution' in refusal(fit_problem, clean(), dataclasses.replace(PROBLEM, num_atoms=10), 2.3)


def highest_length(resolution):
    """The highest |h| of the grid that is at most the resolution."""
    lengths = np.sqrt(np.sum(frequencies(GRID) ** 2, axis=-1))
    return np.max(lengths[lengths <= resolution])


@pytest.mark.parametrize('scale', [1e-6, 1, 1e6])
def test_the_resolution_is_the_highest_length_that_is_measured(scale):
    for noise in (0.0, 0.3):
        whole = measured(noise) * np.float32(scale)
        assert inferred_resolution(whole) is None
        assert inferred_resolution(whole - np.mean(whole)) is None
        for resolution in (2.5, 5.0, 8.7, 11.0):
            cut_off = measured(noise, resolution) * np.float32(scale)
            found = inferred_resolution(cut_off)
            assert found == pytest.approx(highest_length(resolution))
            assert inferred_resolution(cut_off - np.mean(cut_off)) == pytest.approx(found)


def test_the_rounding_of_a_map_to_float32_is_not_taken_for_data():
    spectrum = np.where(measured_frequencies(GRID, 5), np.fft.rfftn(clean().astype(np.float64)), 0)
    exact = np.fft.irfftn(spectrum, clean().shape, (0, 1, 2))
    rounded = exact.astype(np.float32)
    assert np.any(rounded != exact)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, exact.shape) * np.spacing(np.max(rounded))  # as a transform's
    for patterson in (rounded, rounded + noise):
        assert inferred_resolution(patterson) == pytest.approx(5)


def test_a_resolution_that_is_found_leaves_out_no_reflection_that_is_measured():
    squares = np.sum(frequencies(GRID) ** 2, axis=-1)
    for squared in np.unique(squares[(squares > 4) & (squares < 60)]):
        patterson = np.fft.irfftn((squares <= squared).astype(float), (GRID,) * 3, axes=(0, 1, 2))
        found = fit_problem(patterson, PROBLEM, None)
        assert found.measurement.resolution == pytest.approx(np.sqrt(squared))
        kept = measured_frequencies(GRID, found.measurement.resolution)
        np.testing.assert_array_equal(kept, squares <= squared, err_msg=f'|h|² up to {squared}')


@pytest.mark.parametrize(('resolution', 'tolerance'), [(None, 1e-4), (8.0, 0.01), (5.0, 0.05)])
def test_a_map_less_its_mean_gets_it_back(resolution, tolerance):
    whole = measured(resolution=resolution)
    restored = restore_origin_term(whole - np.mean(whole), PROBLEM)
    assert restored.dtype == np.float32
    assert np.ptp(restored - whole) < 1e-5 * whole.max()
    assert np.sum(restored) == pytest.approx(np.sum(whole), rel=tolerance)


def test_a_map_that_has_its_mean_stays_as_it_is():
    for patterson in (clean(), cut(clean(), 5), measured(0.3, 5.0)):
        for problem in (PROBLEM, CROWDED):
            assert restore_origin_term(patterson, problem) is patterson


def test_a_mean_cannot_be_restored_where_vectors_fill_the_cell():
    message = refusal(restore_origin_term, clean() - np.mean(clean()), CROWDED)
    assert 'F(000)² is missing' in message
    assert 'add the constant' in message
