import jax
import jax.numpy as jnp
import numpy as np
import pytest
from invented import invent

from patterson_jax.crystal.expansion import expand
from patterson_jax.crystal.grid import grid_for
from patterson_jax.solving.charge_flipping import eliminate, flip, prepare_search, random_density, superposed_density

AXES = (0, 1, 2)


@pytest.fixture(scope='module')
def crystal():
    """Reflections of a crystal in P1 with their amplitudes, its grid and the search; E values are those of noise."""
    expanded = expand(invent('P 1', (5, 6, 7, 80, 85, 95), 4, 1.1).data)
    grid = grid_for(expanded.hkl)
    amplitudes = np.sqrt(expanded.intensities)
    normalised = amplitudes * (1 + expanded.inverse_spacings) / 10
    return expanded.hkl, normalised, amplitudes, grid, prepare_search(expanded.hkl, normalised, amplitudes, grid)


def whole_sphere(crystal, kind):
    """Indices of the whole sphere on the full grid, amplitudes, and which are weak."""
    hkl, normalised, amplitudes, grid, _ = crystal
    values = normalised if kind == 0 else amplitudes / np.sqrt(np.mean(amplitudes**2))
    weak = values <= np.quantile(values, 0.2)
    both = np.concatenate([hkl, -hkl])[:, grid.axes]
    signs = np.concatenate([np.ones(len(hkl)), -np.ones(len(hkl))])
    return tuple(both.T), np.tile(values, 2), np.tile(weak, 2), signs


@pytest.mark.parametrize(('kind', 'threshold', 'free'), [(0, 1.1, False), (1, 1.4, False), (0, 1.1, True)])
def test_flipping_is_what_it_says(crystal, kind, threshold, free):
    """Against loops of NumPy over the whole sphere with complex transforms."""
    grid, search = crystal[3], crystal[4]._replace(mean_is_free=jnp.asarray(free))
    places, values, weak, signs = whole_sphere(crystal, kind)
    density = np.asarray(random_density(jax.random.key(0), search, kind, grid.shape), np.float64)
    start = jnp.asarray(density, jnp.float32)
    expected = []
    for _ in range(4):
        density = np.where(density < threshold * density.std(), -density, density)
        transform = np.fft.fftn(density)
        factors = transform[places]
        scale = values[~weak].mean() / np.abs(factors[~weak]).mean()
        turned = 1j * signs * factors * np.minimum(scale, 1 / np.abs(factors))
        kept = np.zeros_like(transform)
        kept[places] = np.where(weak, turned, values * factors / np.abs(factors))
        kept[0, 0, 0] = transform[0, 0, 0] * (1 if free else scale)
        density = np.fft.ifftn(kept)
        np.testing.assert_allclose(density.imag, 0, atol=1e-12)
        density = density.real
        centred = density - density.mean()
        expected.append(np.mean(centred**3) / density.std() ** 3)
    kinds, thresholds = np.full(1, kind), np.full(1, threshold, np.float32)
    received, skewness = jax.jit(flip, static_argnames='cycles')(start[None], kinds, thresholds, search, 4)
    np.testing.assert_allclose(received[0], density, atol=1e-3 * np.abs(density).max())
    np.testing.assert_allclose(skewness[0], expected, rtol=1e-3)


def test_elimination_is_what_it_says(crystal):
    grid, search = crystal[3:]
    places, values, _, _ = whole_sphere(crystal, 0)
    density = np.asarray(random_density(jax.random.key(1), search, 0, grid.shape), np.float64)
    start = np.fft.rfftn(density).astype(np.complex64)
    for _ in range(3):
        transform = np.fft.fftn(np.where(density < density.std(), 0, density))
        calculated = np.abs(transform[places])
        kept = np.zeros_like(transform)
        kept[places] = values * transform[places] / calculated
        density = np.fft.ifftn(kept).real
    factors, skewness, disagreement = jax.jit(eliminate, static_argnums=(2, 3))(start, search, grid.shape, 3)
    received = np.fft.irfftn(factors, grid.shape, axes=AXES)
    np.testing.assert_allclose(received, density, atol=2e-3 * np.abs(density).max())
    assert float(skewness) == pytest.approx(np.mean(density**3) / np.mean(density**2) ** 1.5, rel=2e-3)
    expected = np.abs(calculated / calculated.mean() - values / values.mean()).mean()
    assert float(disagreement) == pytest.approx(expected, rel=2e-3)


def test_random_starts_have_the_strong_amplitudes_and_differ(crystal):
    grid, search = crystal[3:]
    first, second = (random_density(jax.random.key(seed), search, 0, grid.shape) for seed in (0, 1))
    for density in (first, second):
        transform = np.abs(np.fft.rfftn(density))
        np.testing.assert_allclose(transform, search.strong[0], atol=1e-3 * search.strong[0].max())
    correlation = np.corrcoef(np.ravel(first), np.ravel(second))[0, 1]
    assert abs(correlation) < 0.2


def test_superposed_starts_show_the_structure_and_its_image(crystal):
    """Two atoms of different weight give three peaks in the Patterson map, of which two are left."""
    hkl, _, _, grid, search = crystal
    vector = np.array([4 / grid.shape[0], 5 / grid.shape[1], 6 / grid.shape[2]])
    positions = np.stack([np.zeros(3), vector])
    factors = np.array([3.0, 1.0]) @ np.exp(2j * np.pi * positions @ hkl[:, grid.axes].T)
    patterson = grid.place(hkl, np.abs(factors) ** 2).astype(np.float32)
    known = search._replace(patterson=patterson)
    density = superposed_density(np.float32(vector), known, 0, grid.shape)
    map_itself, moved = (
        np.fft.irfftn(grid.place(hkl, np.abs(factors) ** 2 * phase), grid.shape, axes=AXES)
        for phase in (1, np.exp(-2j * np.pi * hkl[:, grid.axes] @ vector))
    )
    np.testing.assert_allclose(np.roll(map_itself, (4, 5, 6), AXES), moved, atol=1e-9 * moved.max())
    least = np.minimum(map_itself, moved)
    expected = np.fft.rfftn(least)
    received = np.fft.rfftn(density)
    strong = (search.strong[0] > 0) & (np.abs(expected) > 0.05 * np.abs(expected).max())
    np.testing.assert_allclose(np.angle(received[strong] / expected[strong]), 0, atol=0.01)
