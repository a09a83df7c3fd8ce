import numpy as np
import pytest
from invented import invent
from scipy.integrate import quad

from patterson_jax.crystal.expansion import expand, first_of_friedel_pair, reduced_primitive_cell
from patterson_jax.crystal.grid import Grid, grid_for
from patterson_jax.crystal.normalisation import expected_amplitudes, mean_intensities, normalised_amplitudes

CELLS = {
    'P 1 21/c 1': (7, 9, 8, 90, 103, 90),
    'C 1 2/c 1': (13, 8, 9, 90, 110, 90),
    'I 41': (8, 8, 13, 90, 90, 90),
    'R -3:H': (11, 11, 9, 90, 90, 120),
    'F d d 2': (11, 13, 9, 90, 90, 90),
}


@pytest.mark.parametrize('symbol', CELLS)
def test_expanded_intensities_are_those_of_all_atoms(symbol):
    crystal = invent(symbol, CELLS[symbol], 2, 1.0)
    expanded = expand(crystal.data)
    factors = crystal.structure_factors(expanded.in_given_cell(expanded.hkl))
    np.testing.assert_allclose(expanded.intensities, np.abs(factors) ** 2, atol=1e-6 * expanded.intensities.max())


@pytest.mark.parametrize('symbol', CELLS)
def test_the_whole_half_sphere_of_the_primitive_cell_is_there_once(symbol):
    crystal = invent(symbol, CELLS[symbol], 1, 1.1)
    expanded = expand(crystal.data, 1.2)
    box = np.stack(np.meshgrid(*[np.arange(-20, 21)] * 3, indexing='ij'), axis=-1).reshape(-1, 3)
    spacings = expanded.cell.inverse_spacings(box)
    given = expanded.in_given_cell(box)  # of glide planes and screw axes no reflections are in the data
    absent = np.array([crystal.setting.operations().is_systematically_absent(each) for each in given.tolist()])
    expected = box[first_of_friedel_pair(box) & (spacings > 0) & (spacings <= 1 / 1.2) & ~absent]
    assert {tuple(each) for each in expected.tolist()} == {tuple(each) for each in expanded.hkl.tolist()}
    assert len(expected) == len(expanded.hkl)


def test_the_primitive_cell_is_made_of_vectors_of_the_lattice():
    crystal = invent('F d d 2', CELLS['F d d 2'], 1, 1.5)
    cell, basis = reduced_primitive_cell(crystal.data.cell, 'F')
    assert cell.volume == pytest.approx(crystal.data.cell.volume / 4)
    edges = crystal.data.cell.orthogonalization @ basis
    np.testing.assert_allclose(edges.T @ edges, cell.metric, atol=1e-9)
    assert np.linalg.det(basis) > 0


def test_grid_holds_reflections_as_a_real_transform_does():
    hkl = np.array([[3, 0, 5], [0, -7, 0], [2, 6, -1], [-3, 4, 9], [1, 0, 0]])
    grid = grid_for(hkl)
    assert grid.shape == (12, 16, 20)
    values = np.array([1 + 2j, -3j, 2.0, 1 - 1j, 0.5 + 0.25j])
    density = np.fft.irfftn(grid.place(hkl, values), grid.shape, axes=(0, 1, 2))
    in_order = grid.in_cell_order(density)
    transform = np.fft.fftn(in_order)
    np.testing.assert_allclose(transform[tuple(hkl.T)], values, atol=1e-12)
    np.testing.assert_allclose(np.sum(np.abs(transform) > 1e-9), 2 * len(hkl))
    np.testing.assert_allclose(grid.take(np.fft.rfftn(density), -hkl), values.conj(), atol=1e-12)


def test_axes_are_sorted_so_that_shapes_recur():
    hkl = np.diag([9, 4, 6])
    shapes = {grid_for(hkl[:, list(axes)]).shape for axes in ((0, 1, 2), (2, 0, 1), (1, 0, 2))}
    assert shapes == {(12, 16, 20)}
    assert grid_for(hkl) == Grid((12, 16, 20), (1, 2, 0))


@pytest.mark.parametrize(
    ('intensity', 'sigma', 'mean'), [(4, 1, 10), (-3, 1, 5), (0.2, 1, 0.3), (50, 1, 10), (-9, 2, 8)]
)
def test_expected_amplitude_is_the_mean_over_what_may_be_true(intensity, sigma, mean):
    def density(amplitude):
        """Of |F|, up to a factor: Wilson's acentric distribution times the error's."""
        squared = amplitude**2
        return amplitude * np.exp(-squared / mean - (squared - intensity) ** 2 / (2 * sigma**2) + 40)

    highest = np.sqrt(max(intensity, 0) + 12 * sigma)
    points = [np.sqrt(max(intensity, 0))]
    norm = quad(density, 0, highest, points=points)[0]
    expected = quad(lambda amplitude: amplitude * density(amplitude), 0, highest, points=points)[0] / norm
    received = expected_amplitudes(np.array([intensity]), np.array([sigma]), np.array([mean]))[0]
    assert received == pytest.approx(expected, rel=1e-4)


def test_amplitudes_far_above_their_errors_are_roots():
    intensities = np.array([100.0, 2500.0, 1e6])
    amplitudes = expected_amplitudes(intensities, 1e-4 * intensities, np.full(3, 1e3))
    np.testing.assert_allclose(amplitudes, np.sqrt(intensities), rtol=1e-5)


def test_normalised_amplitudes_have_the_distribution_of_wilson():
    crystal = invent('P 1', (9, 10, 12, 80, 95, 100), 60, 0.9)
    spacings = crystal.data.cell.inverse_spacings(crystal.data.hkl)
    means = mean_intensities(crystal.data.intensities, spacings)
    amplitudes = expected_amplitudes(crystal.data.intensities, crystal.data.sigmas, means)
    values = normalised_amplitudes(amplitudes, means)
    for low, high in ((0, 0.6), (0.6, 0.9), (0.9, 1.1)):
        shell = values[(spacings > low) & (spacings <= high)]
        assert np.mean(shell**2) == pytest.approx(1, abs=0.1)
    assert np.mean(np.abs(values**2 - 1)) == pytest.approx(0.736, abs=0.04)  # without a centre of symmetry
