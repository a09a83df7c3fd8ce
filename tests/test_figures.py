"""Figures that need no trained network: figure 11."""

import runpy

import matplotlib.image
import numpy as np
import pytest
from tiny import colours_of

from patterson_jax import figures, pictures
from patterson_jax.figures import draw_separation


@pytest.fixture
def made(monkeypatch):
    """The figures that are made, in place of their files."""
    made = []
    monkeypatch.setattr(pictures, 'save_figure', lambda path, figure: made.append(figure))
    return made


def test_every_figure_is_drawn_in_our_style_and_leaves_the_users_settings(made):
    drawing = [function for name, function in vars(figures).items() if name.startswith('draw_')]
    assert len(drawing) > 5
    assert all(hasattr(function, '__wrapped__') for function in drawing)
    with matplotlib.rc_context({'font.size': 21, 'axes.spines.top': True}):
        before = dict(matplotlib.rcParams)
        runpy.run_path(figures.__file__)  # imports it again
        draw_separation(None, falling_misfits(2, 20))
        assert dict(matplotlib.rcParams) == before
    (axes,) = made[0].axes
    assert not axes.spines['top'].get_visible()
    assert axes.xaxis.label.get_fontsize() == 10


def falling_misfits(cases, num_swaps):
    steps = np.random.default_rng(0).uniform(0, 0.1, (cases, num_swaps))
    return np.exp(-np.cumsum(steps, axis=1)).astype(np.float32)


def test_every_case_has_a_curve_on_logarithmic_axes(made):
    misfits = falling_misfits(7, 200)
    draw_separation(None, misfits)
    (axes,) = made[0].axes
    assert (axes.get_xscale(), axes.get_yscale()) == ('log', 'log')
    for line, misfit in zip(axes.lines, misfits, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 201))
        np.testing.assert_array_equal(line.get_ydata(), misfit)
    assert len({line.get_color() for line in axes.lines}) == 7


@pytest.mark.parametrize('misfits', [falling_misfits(7, 200), np.zeros((2, 10)), np.ones((1, 1))])
def test_separation_is_drawn_even_where_there_is_little_to_show(tmp_path, misfits):
    draw_separation(tmp_path / 'new' / 'separation.png', misfits)
    picture = matplotlib.image.imread(tmp_path / 'new' / 'separation.png')
    assert min(picture.shape[:2]) > 500
    assert colours_of(picture[..., :3]) > 20
