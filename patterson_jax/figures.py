"""Draws the paper's figures from our runs, and solved maps.

They are an example (Figure 3), ambiguity (4), losses (7), comparisons of runs (8, 9), maps (10), separation (11) and
positional accuracy (12).
"""

import itertools
from pathlib import Path
from typing import Literal

import jax
import matplotlib
import numpy as np
from matplotlib.colors import TwoSlopeNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon, Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter

from patterson_jax import pictures
from patterson_jax.evaluation import MATCH_DISTANCE, Evaluated
from patterson_jax.learning.metrics import LearningCurve
from patterson_jax.simulation.density import render
from patterson_jax.simulation.encoding import network_input
from patterson_jax.simulation.examples import Example
from patterson_jax.simulation.homometry import interatomic_vectors
from patterson_jax.simulation.patterson import patterson_map
from patterson_jax.simulation.problem import Problem

ORIGINAL, INVERSE, CLASH, UNEXPLAINED = '#c8322f', '#2f5fc8', '#2f9e44', '#8a8a8a'
COMPARED = ('#c8322f', '#e08a1e', '#2f5fc8', '#2f9e44', '#7b3fa0', '#1a9c9c')
LEAST_SHOWN = 0.1  # voxels with less density are left empty, as in the paper's Figure 10
LEAST_MISFIT = 1e-12  # lower misfits are drawn here, because their logarithm may be infinite
FURTHEST = 1000  # times the cases seen, up to which a learning curve is extrapolated

STAGES: dict[str, tuple[str, Literal['step', 'stepfilled'], str]] = {  # of an evaluation: colour, histogram and name
    'separated': (INVERSE, 'stepfilled', 'network, at the best translation'),
    'separated_in_place': (ORIGINAL, 'step', 'as the network placed them'),
    'refined': (CLASH, 'step', 'network, refined'),
    'least_squares': ('#e08a1e', 'step', 'least squares'),
    'phase_retrieval': ('#7b3fa0', 'step', 'phase retrieval'),
    'minimum_function': ('#1a9c9c', 'step', 'minimum function'),
    'auto': ('black', 'step', 'all methods in turn'),
}

_render = jax.jit(render, static_argnums=(1, 2))

# Decorates each function that draws; matplotlib's settings are the user's.
_in_our_style = matplotlib.rc_context({'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False})


@_in_our_style
def draw_example(path: Path, example: Example, problem: Problem) -> None:
    """Figure 3: the atoms A, their inverses B, the target made of them, and the network's input.

    Of the input, a Patterson map, the maximum along z is shown. Half of the colour scale is for values up to a single
    vector's peak, so that the vectors between atoms can be seen beside the origin peak.
    """
    figure = Figure(figsize=(9, 9), layout='constrained')
    original, inverse = (_density(sign * example.positions, problem) / 2 for sign in (1, -1))
    target, both = np.asarray(example.target), problem.encoding.target == 'both'
    panels = (
        ('the atoms, A', original, (1,)),
        ('their inverses, B', inverse, (-1,)),
        (f'target, {"(A + B) / 2" if both else "A / 2"}', target, (1, -1) if both else (1,)),
    )
    box = _occupied_box(np.stack([original, inverse]))
    for number, (title, density, signs) in enumerate(panels, 1):
        axes = figure.add_subplot(2, 2, number, projection='3d')
        _draw_voxels(axes, density, example.positions, problem, box, signs)
        axes.set_title(title, fontsize=10)
    patterson = np.asarray(network_input(example.patterson, problem.num_atoms, problem.encoding))
    _draw_patterson(figure.add_subplot(2, 2, 4), patterson, problem.encoding.input_scale)
    _legend(figure, ('original', 'inverse', 'both') if both else ('original', 'inverse'))
    pictures.save_figure(path, figure)


def _draw_patterson(axes, patterson, vector_peak):
    """The maximum along z of a Patterson map; half of the colours go up to `vector_peak`."""
    highest, grid_size = np.max(patterson, axis=2), len(patterson)
    scale = TwoSlopeNorm(vector_peak, 0, max(np.max(highest), 2 * vector_peak))
    extent = (0, grid_size, 0, grid_size)
    image = axes.imshow(highest.T, norm=scale, cmap='magma', origin='lower', extent=extent)
    axes.set_title('Patterson map as the network takes it', fontsize=10)
    axes.set_xlabel('x, voxels')
    axes.set_ylabel('y, voxels')
    axes.figure.colorbar(image, ax=axes, shrink=0.75, label='maximum along z')


@_in_our_style
def draw_losses(path: Path, rows: list[dict]) -> None:
    """Figure 7: training loss (red) and validation loss (blue), with the map correlation, against examples seen."""
    figure = Figure(figsize=(8, 4), layout='constrained')
    loss_axes, correlation_axes = figure.subplots(1, 2)
    for axes, name in ((loss_axes, 'loss'), (correlation_axes, 'correlation')):
        for key, colour, label in ((name, ORIGINAL, 'training'), (f'validation_{name}', INVERSE, 'validation')):
            points = [(row['examples'], row[key]) for row in rows if key in row]
            axes.plot(*np.reshape(points, (-1, 2)).T, color=colour, label=label, linewidth=1.2, alpha=0.9)
        axes.set_xlabel('examples seen')
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter('{x:,.0f}')
        axes.grid(alpha=0.25)
        axes.set_xlim(left=0)
    loss_axes.set_yscale('log')
    loss_axes.set_ylabel('mean squared error of the map')
    correlation_axes.set_ylabel('correlation with the true map')
    correlation_axes.set_ylim(top=1)
    loss_axes.legend(frameon=False)
    pictures.save_figure(path, figure)


@_in_our_style
def draw_learning_curve(path: Path, rows: list[dict], curve: LearningCurve | None, goal: float | None) -> None:
    """Figure 7 on logarithmic axes, with a power law fitted to its end and extrapolated to a goal.

    Args:
        path: of the picture.
        rows: of the log.
        curve: fitted to the log; None: it is too short.
        goal: a loss to mark; None: no goal.
    """
    figure = Figure(figsize=(6.5, 4.2), layout='constrained')
    axes = figure.add_subplot()
    for key, colour, label in (('loss', ORIGINAL, 'training'), ('validation_loss', INVERSE, 'validation')):
        points = [(row['examples'], row[key]) for row in rows if key in row]
        axes.plot(*np.reshape(points, (-1, 2)).T, color=colour, label=label, linewidth=1.2, alpha=0.9)
    last = rows[-1]['examples']
    if curve is not None:
        reach = np.clip(curve.cases_at(goal) if goal else last, last, FURTHEST * last)
        cases = np.geomspace(last / 4, reach, 50)
        label = f'cases$^{{{-curve.exponent:.2f}}}$'
        axes.plot(cases, [curve.loss_at(each) for each in cases], color='black', linestyle=':', label=label)
    if goal:
        axes.axhline(goal, color=CLASH, linewidth=1, label="loss with the paper's accuracy")
    axes.set_xscale('log')
    axes.set_yscale('log')
    axes.xaxis.set_minor_formatter(NullFormatter())  # over less than a decade the labels would touch
    axes.set_xlabel('cases seen')
    axes.set_ylabel('mean squared error of the map')
    axes.grid(alpha=0.25, which='both')
    axes.legend(frameon=False, fontsize=9)
    pictures.save_figure(path, figure)


@_in_our_style
def draw_comparison(path: Path, curves: dict[str, tuple[list[dict], list[dict]]]) -> None:
    """Figures 8 and 9: curves of runs against epochs, training solid, validation dashed, one colour for each run.

    Args:
        path: of the picture.
        curves: training and validation curve by the label of the run. Their rows have `epoch`, `error` (relative to
            that of an empty map) and `correlation`.
    """
    figure = Figure(figsize=(9, 4.6), layout='constrained')
    error_axes, correlation_axes = figure.subplots(1, 2)
    for axes, name in ((error_axes, 'error'), (correlation_axes, 'correlation')):
        for colour, (label, (training, validation)) in zip(COMPARED, curves.items(), strict=False):
            for rows, line, width in ((training, '-', 0.8), (validation, '--', 1.6)):
                points = np.reshape([(row['epoch'], row[name]) for row in rows], (-1, 2)).T
                name_shown = label if line == '--' else None
                axes.plot(*points, line, color=colour, linewidth=width, label=name_shown)
        axes.set_xlabel('epoch')
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
    error_axes.set_yscale('log')
    error_axes.set_ylim(top=2)  # the first epochs go far above
    error_axes.set_ylabel('mean squared error / that of an empty map')
    correlation_axes.set_ylabel('correlation with the true map')
    correlation_axes.set_ylim(top=1)
    figure.suptitle('training solid, validation dashed', fontsize=10)
    handles, labels = error_axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=2, frameon=False, fontsize=9)
    pictures.save_figure(path, figure)


@_in_our_style
def draw_maps(path: Path, cases: Evaluated, problem: Problem, num_shown: int = 3) -> None:
    """Figure 10: true maps on the left, predicted maps on the right, a row for each of the first `num_shown` cases.

    The atoms in a voxel give its colour: red for atoms, blue for their inverses, green for both. True atoms count on
    the left, found atoms on the right. Grey is density that no found atom explains.
    """
    cases = jax.tree.map(lambda each: each[:num_shown], cases)
    count = len(cases.correlation)
    figure = Figure(figsize=(8, 3.9 * count), layout='constrained')
    box = _occupied_box(np.maximum(cases.examples.target, cases.solutions.density))
    for row in range(count):
        found = int(np.sum(cases.match.within[row]))
        titles = (
            f'case {row + 1}: true map',
            f'predicted map, correlation {cases.correlation[row]:.2f}; {found} of {problem.num_atoms} atoms found',
        )
        maps = (cases.examples.target[row], cases.solutions.density[row])
        atoms = (cases.examples.positions[row], cases.match_in_place.aligned[row])
        for column in range(2):
            axes = figure.add_subplot(count, 2, 2 * row + column + 1, projection='3d')
            _draw_voxels(axes, maps[column], atoms[column], problem, box)
            axes.set_title(titles[column], fontsize=9)
    _legend(figure)
    pictures.save_figure(path, figure)


@_in_our_style
def draw_separation(path: Path, misfits: np.ndarray) -> None:
    """Figure 11: the misfit during the separation of the two sets of atoms, in several cases.

    Args:
        path: of the figure.
        misfits: `(cases, num_swaps)`, the misfit that the separation minimises, after each swap (`Solution.misfit`).
    """
    figure = Figure(figsize=(8, 4.5), layout='constrained')
    axes = figure.subplots()
    misfits = np.maximum(misfits, LEAST_MISFIT)
    for number, misfit in enumerate(misfits):
        label = f'case {number + 1}: {np.min(misfit):.2g}'
        axes.step(np.arange(1, len(misfit) + 1), misfit, where='post', linewidth=1.2, alpha=0.85, label=label)
    axes.set_xscale('log')
    axes.set_yscale('log')
    axes.set_xlim(1, max(misfits.shape[1], 2))
    axes.set_xlabel('swaps tried')
    axes.set_ylabel('misfit, Σ(|Fc|² − |Fo|²)² / Σ|Fo|⁴')
    axes.grid(alpha=0.25)
    figure.legend(loc='outside right upper', title='lowest misfit', frameon=False, fontsize=9)
    pictures.save_figure(path, figure)


@_in_our_style
def draw_errors(path: Path, report: dict) -> None:
    """Figure 12: histograms of the distances between found and true atoms, over mutually nearest pairs.

    There is one of the network's atoms at the best translation (filled), one of them where the network put them, as in
    the paper (outlined), and one of each other method.

    Args:
        path: of the figure.
        report: the content of `evaluation.json`.
    """
    figure = Figure(figsize=(6.5, 4.2), layout='constrained')
    axes = figure.subplots()
    histogram = next(report[stage]['histogram'] for stage in STAGES if stage in report)
    width = histogram['bin_width']
    bins = width * np.arange(len(histogram['counts']) + 1)
    for stage, (colour, kind, label) in STAGES.items():
        if stage not in report:
            continue
        scores = report[stage]
        label = (
            f'{label}: {scores["matched"]} of {report["atoms"]} paired,\n'
            f'mean {scores["mean_error"]:.3g} voxel, {scores["recall"]:.1%} of all within {MATCH_DISTANCE:g}'
        )
        counts = scores['histogram']['counts']
        axes.hist(bins[:-1], bins, weights=counts, histtype=kind, color=colour, label=label, linewidth=1.5)
    axes.axvline(MATCH_DISTANCE, color=UNEXPLAINED, linestyle='--', linewidth=1)
    ticks = np.arange(0, bins[-1], 0.5)[:-1]
    axes.set_xticks([*ticks, bins[-1] - width / 2], [*(f'{value:g}' for value in ticks), f'≥ {bins[-2]:g}'])
    axes.set_xlabel('distance between found and true atom, voxels')
    axes.set_ylabel('atoms')
    # Above the axes, where it hides no bar.
    figure.legend(fontsize=8, loc='outside upper right', frameon=False)
    pictures.save_figure(path, figure)


@_in_our_style
def draw_solution(
    path: Path,
    density: np.ndarray,
    positions: np.ndarray,
    problem: Problem,
    title: str,
    both: bool,
    voxel_size: float = 1.0,
    element: str = 'X',
) -> None:
    """One solved Patterson map: the density, coloured as in `draw_maps`, and beside it the atoms as balls.

    Balls have the radius of the problem's atoms, or half of it if some atoms are near enough to be bonded.

    Args:
        path: of the picture.
        density: `(grid, grid, grid)`.
        positions: `(num_atoms, 3)`, voxels from the centre.
        problem: gives the radius of the atoms.
        title: above the picture.
        both: whether the map shows the inverses of the atoms too.
        voxel_size: Å.
        element: chemical symbol, or 'X'.
    """
    figure = Figure(figsize=(11, 5.5))
    axes = figure.add_axes((0.0, 0.08, 0.5, 0.8), projection='3d')
    _draw_voxels(axes, density, positions, problem, _occupied_box(density[None]), (1, -1) if both else (1,))
    edge, places = problem.grid_size * voxel_size, np.asarray(positions, float) * voxel_size
    drawing = pictures.map_drawing(places, element, edge, problem.atom_radius * voxel_size, (-edge / 2,) * 3)
    pictures.draw_on(figure.add_axes((0.5, 0.05, 0.5, 0.85)), drawing)
    figure.suptitle(title, fontsize=9)
    if both:
        _legend(figure)
    pictures.save_figure(path, figure)


@_in_our_style
def draw_ambiguity(
    path: Path,
    true_pair: tuple[np.ndarray, np.ndarray],
    periodic_pair: tuple[np.ndarray, np.ndarray],
    problem: Problem,
    cell_edge: int,
) -> None:
    """Figure 4 and more: different atoms with the same Patterson map, in any cell or only in a small one.

    Each of three rows shows two sets of atoms and their maps, seen along z. The first pair is homometric in any cell.
    The second is homometric in a small cell. The third is the second in a cell twice as large, where the maps differ.

    Args:
        path: of the picture.
        true_pair: U + V and U − V, two arrays `(num_u · 3, 3)` in voxels from the centre, where V has three points, in
            the order of `simulation.homometry.homometric_pair`.
        periodic_pair: two arrays `(num_atoms, 3)` that are homometric in the small cell.
        problem: gives the grid of the first row and the radius of all atoms.
        cell_edge: of the small cell, voxels.
    """
    figure = Figure(figsize=(13, 11.4), layout='constrained')
    copies = ('U + V: U (red) at the corners of V (blue)', 'U − V: U at those of −V; the numbers are z')
    sets = ('set 1', 'set 2: no translation or inverse of set 1')
    rows = [
        ('True ambiguity, which no empty space removes.', copies, true_pair, problem.grid_size),
        ('Ambiguity of a small cell: the arrows differ by one of its edges.', sets, periodic_pair, cell_edge),
        ('The same atoms in a cell twice as large.', ('set 1', 'set 2'), periodic_pair, 2 * cell_edge),
    ]
    panels = []
    for row, (title, names, pair, grid_size) in zip(
        np.ravel(figure.subfigures(3, 1, squeeze=False)), rows, strict=True
    ):
        true = pair is true_pair
        reach, farthest = (_reach(each) if true else cell_edge for each in (pair, interatomic_vectors(pair[0])))
        maps = [_patterson(positions, grid_size, problem) for positions in pair]
        difference = np.max(np.abs(maps[0] - maps[1])) / maps[0][0, 0, 0] * len(pair[0])
        row.suptitle(f'{title} Largest difference of the Patterson maps: {difference:.1g} of one vector’s peak.')
        axes = row.subplots(1, 4)
        for column, (name, positions) in enumerate(zip(names, pair, strict=True)):
            _draw_projection(axes[column], positions, grid_size, reach, problem)
            axes[column].set_title(name, fontsize=9)
            image = _draw_vectors(axes[column + 2], maps[column], len(positions), farthest)
            axes[column + 2].set_title(f'Patterson map of {name.split(":")[0]}', fontsize=9)
        row.colorbar(image, ax=axes[3], shrink=0.85, label='maximum along w, peaks of one vector', extend='max')
        panels.append(axes)
    for axes, positions in zip(panels[0], true_pair, strict=False):
        _draw_triangles(axes, positions)
    _mark_own_vectors(panels[1:], periodic_pair)
    pictures.save_figure(path, figure)


def _reach(points):
    """A whole number of voxels, slightly beyond the outermost of the points."""
    return int(np.ceil(np.max(np.abs(points)))) + 2


def _patterson(positions, grid_size, problem):
    return np.asarray(patterson_map(_render(positions.astype(np.float32), grid_size, problem.atom_radius)))


def _draw_projection(axes, positions, grid_size, reach, problem):
    """Draws atoms as circles with their heights, the cell and the atoms of the cells around it."""
    for x, y in itertools.product((-1, 0, 1), repeat=2):
        for position in positions + grid_size * np.array([x, y, 0]):
            strength = 1 if (x, y) == (0, 0) else 0.3
            circle = Circle(position[:2], problem.atom_radius, facecolor='#303030', alpha=strength, linewidth=0)
            axes.add_patch(circle)
            if strength == 1 and np.any(positions[:, 2]):
                height = f'{position[2]:.0f}'.replace('-', '−')
                axes.text(*position[:2], height, color='white', fontsize=8, ha='center', va='center')
    _draw_cell(axes, grid_size)
    _set_frame(axes, reach, 'xy')


def _draw_vectors(axes, patterson, num_atoms, reach):
    """Draws the maximum along w of a Patterson map, origin at voxel 0, up to `reach`; the map is repeated if needed."""
    shown = np.arange(-reach, reach + 1) % len(patterson)
    vector_peak = patterson[0, 0, 0] / num_atoms  # every atom adds the same to the origin peak
    highest = np.max(patterson, axis=2)[np.ix_(shown, shown)] / vector_peak
    extent = (-reach - 0.5, reach + 0.5) * 2
    image = axes.imshow(highest.T, cmap='Greys', vmin=0, vmax=2, origin='lower', extent=extent)
    _draw_cell(axes, len(patterson))
    _set_frame(axes, reach, 'uv')
    return image


def _draw_cell(axes, edge):
    axes.add_patch(Rectangle((-edge / 2, -edge / 2), edge, edge, fill=False, linestyle='--', edgecolor=UNEXPLAINED))


def _set_frame(axes, reach, names):
    axes.set(xlim=(-reach - 0.5, reach + 0.5), ylim=(-reach - 0.5, reach + 0.5), aspect='equal')
    axes.set_xlabel(f'{names[0]}, voxels', fontsize=8, labelpad=1)
    axes.set_ylabel(f'{names[1]}, voxels', fontsize=8, labelpad=-4)
    axes.tick_params(labelsize=7)


def _draw_triangles(axes, positions):
    """Draws the copies of U, one at each point of V or −V, and the triangle through their centres."""
    copies = np.reshape(positions, (-1, 3, 3))[..., :2]
    for copy in np.moveaxis(copies, 1, 0):
        axes.add_patch(Polygon(copy, facecolor=ORIGINAL, edgecolor=ORIGINAL, alpha=0.35, zorder=0))
    axes.add_patch(Polygon(np.mean(copies, axis=0), fill=False, edgecolor=INVERSE, linewidth=1.5, zorder=0))


def _mark_own_vectors(panels, pair):
    """Draws an arrow for a vector that only one of two sets has, and rings around its end in the maps."""
    for number, colour in enumerate((ORIGINAL, INVERSE)):
        positions, others = pair[number], interatomic_vectors(pair[1 - number])
        vectors = interatomic_vectors(positions)
        own = vectors[np.all(np.max(np.abs(vectors[:, None] - others[None]), axis=-1) > 0.1, axis=1)]
        starts = [each for each in positions if np.any(np.all(np.abs(each + own[0] - positions) < 0.1, axis=1))]
        for small, axes in zip((True, False), panels, strict=True):
            arrow = {'arrowstyle': '-|>', 'color': colour, 'linewidth': 1.8, 'shrinkA': 0, 'shrinkB': 0}
            axes[number].annotate('', (starts[0] + own[0])[:2], starts[0][:2], arrowprops=arrow, zorder=4)
            for each in axes[2:] if small else axes[[2 + number]]:
                each.plot(*own[:, :2].T, 'o', markersize=14, fillstyle='none', color=colour, markeredgewidth=1.6)


def _draw_voxels(axes, density, positions, problem, box, signs=(1, -1)):
    """Draws the voxels of a map, shaded by density, on a scale on which a voxel inside of one atom has 1/2.

    The colours are those of the atoms at the positions, if 1 is in `signs`, and of their inverses, if −1 is.
    """
    values = density[box]
    original, inverse = (
        (_density(sign * positions, problem)[box] >= LEAST_SHOWN / 2) & (sign in signs) for sign in (1, -1)
    )
    colours = np.empty((*values.shape, 4))
    colours[..., :3] = to_rgb(UNEXPLAINED)
    for mask, colour in ((original, ORIGINAL), (inverse, INVERSE), (original & inverse, CLASH)):
        colours[mask, :3] = to_rgb(colour)
    colours[..., 3] = np.clip(0.25 + 1.3 * values, 0, 1)
    # A single atom has at most 1/2 here, so a tenth of a voxel is 0.05.
    axes.voxels(values >= LEAST_SHOWN / 2, facecolors=colours, edgecolor=(1, 1, 1, 0.15), linewidth=0.2)
    first = np.array([side.start for side in box])
    for axis, start, size in zip('xyz', first, values.shape, strict=True):
        ticks = np.arange(0, size, 4)  # none at the end, where two axes meet
        getattr(axes, f'set_{axis}ticks')(ticks, ticks + start, fontsize=7)
        getattr(axes, f'set_{axis}lim')(0, size)
        getattr(axes, f'set_{axis}label')(axis, fontsize=8, labelpad=-8)
    axes.tick_params(pad=-3)
    axes.set_box_aspect((1, 1, 1))


def _density(positions, problem):
    return np.asarray(_render(positions, problem.grid_size, problem.atom_radius))


def _occupied_box(maps):
    """The smallest cube about the centre of maps `(count, grid, grid, grid)` that holds all shown voxels."""
    grid_size = maps.shape[-1]
    shown = np.argwhere(np.any(maps >= LEAST_SHOWN / 2, axis=0))
    reach = np.max(np.abs(shown + 0.5 - grid_size / 2), initial=1.5) + 0.5
    half = min(int(np.ceil(reach)), grid_size // 2)
    return (slice(grid_size // 2 - half, grid_size // 2 + half),) * 3


def _legend(figure, labels=('original', 'inverse', 'both', 'neither')):
    colours = {'original': ORIGINAL, 'inverse': INVERSE, 'both': CLASH, 'neither': UNEXPLAINED}
    handles = [matplotlib.patches.Patch(color=colours[label], label=label) for label in labels]
    figure.legend(handles=handles, loc='outside lower center', ncols=4, frameon=False)
