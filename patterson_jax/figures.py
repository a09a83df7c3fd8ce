"""The paper's figures from a run of ours: losses (7), maps (10), positional accuracy (12); and a solved map."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from patterson_jax.evaluation import MATCH_DISTANCE, Evaluated
from patterson_jax.simulation.density import render
from patterson_jax.simulation.problem import Problem

ORIGINAL, INVERSE, CLASH, UNEXPLAINED = '#c8322f', '#2f5fc8', '#2f9e44', '#8a8a8a'
LEAST_SHOWN = 0.1  # voxels with less density are left empty, as in the paper's Figure 10
DOTS_PER_INCH = 150

matplotlib.rcParams.update({'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False})


def draw_losses(path: Path, rows: list[dict]) -> None:
    """Figure 7: training loss (red) and validation loss (blue), with the map correlation, against examples seen."""
    figure = Figure(figsize=(8, 4), layout='constrained')
    loss_axes, correlation_axes = figure.subplots(1, 2)
    for axes, name in ((loss_axes, 'loss'), (correlation_axes, 'correlation')):
        for key, colour, label in ((name, ORIGINAL, 'training'), (f'validation_{name}', INVERSE, 'validation')):
            points = [(row['examples'], row[key]) for row in rows if key in row]
            axes.plot(*np.transpose(points), color=colour, label=label, linewidth=1.2, alpha=0.9)
        axes.set_xlabel('examples seen')
        axes.grid(alpha=0.25)
        axes.set_xlim(left=0)
    loss_axes.set_yscale('log')
    loss_axes.set_ylabel('mean squared error of the map')
    correlation_axes.set_ylabel('correlation with the true map')
    correlation_axes.set_ylim(top=1)
    loss_axes.legend(frameon=False)
    _save(figure, path)


def draw_maps(path: Path, cases: Evaluated, problem: Problem) -> None:
    """Figure 10: true maps on the left, predicted maps on the right, one case a row.

    Voxels are coloured by the atoms that fill them, true ones on the left, found ones on the right: original red,
    inverse blue, both green; grey on the right is density that no found atom explains.
    """
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
    _save(figure, path)


def draw_errors(path: Path, report: dict) -> None:
    """Figure 12: histogram of the distance between found and true atoms, over mutually nearest pairs.

    Filled, at the best translation; outlined, where the network put them, as in the paper. `report` is the content of
    `evaluation.json`.
    """
    figure = Figure(figsize=(6.5, 4.2), layout='constrained')
    axes = figure.subplots()
    width = report['separated']['histogram']['bin_width']
    bins = width * np.arange(len(report['separated']['histogram']['counts']) + 1)
    styles = {
        'separated': (INVERSE, 'stepfilled', 'at the best translation'),
        'separated_in_place': (ORIGINAL, 'step', 'as the network placed them'),
    }
    for stage, (colour, kind, label) in styles.items():
        scores = report[stage]
        label = (
            f'{label}: {scores["matched"]} of {report["atoms"]} paired,\n'
            f'mean {scores["mean_error"]:.3f} voxel, {scores["recall"]:.1%} of all within {MATCH_DISTANCE:g}'
        )
        axes.hist(bins[:-1], bins, weights=scores['histogram']['counts'], histtype=kind, color=colour, label=label)
    axes.axvline(MATCH_DISTANCE, color=UNEXPLAINED, linestyle='--', linewidth=1)
    ticks = np.arange(0, bins[-1], 0.5)[:-1]
    axes.set_xticks([*ticks, bins[-1] - width / 2], [*(f'{value:g}' for value in ticks), f'≥ {bins[-2]:g}'])
    axes.set_xlabel('distance between found and true atom, voxels')
    axes.set_ylabel('atoms')
    axes.legend(frameon=False, fontsize=8, loc='upper right')
    _save(figure, path)


def draw_solution(path: Path, density: np.ndarray, positions: np.ndarray, problem: Problem, title: str) -> None:
    """The predicted map of one solved Patterson map, coloured by the atoms found, as in `draw_maps`."""
    figure = Figure(figsize=(5.5, 5.5), layout='constrained')
    axes = figure.add_subplot(projection='3d')
    _draw_voxels(axes, density, positions, problem, _occupied_box(density[None]))
    axes.set_title(title, fontsize=9)
    _legend(figure)
    _save(figure, path)


def _draw_voxels(axes, density, positions, problem, box):
    """Voxels of a map, on a scale where a single atom fills 1/2, shaded by density."""
    original = np.asarray(render(positions, problem.grid_size, problem.atom_radius))[box] >= LEAST_SHOWN / 2
    inverse = np.asarray(render(-positions, problem.grid_size, problem.atom_radius))[box] >= LEAST_SHOWN / 2
    values = density[box]
    colours = np.empty((*values.shape, 4))
    colours[..., :3] = to_rgb(UNEXPLAINED)
    for mask, colour in ((original, ORIGINAL), (inverse, INVERSE), (original & inverse, CLASH)):
        colours[mask, :3] = to_rgb(colour)
    colours[..., 3] = np.clip(0.25 + 1.3 * values, 0, 1)
    # A single atom's map is at most 1/2, so a tenth of a voxel filled is 0.05 here.
    axes.voxels(values >= LEAST_SHOWN / 2, facecolors=colours, edgecolor=(1, 1, 1, 0.15), linewidth=0.2)
    first = np.array([side.start for side in box])
    for axis, start, size in zip('xyz', first, values.shape, strict=True):
        ticks = np.arange(0, size + 1, 4)
        getattr(axes, f'set_{axis}ticks')(ticks, ticks + start, fontsize=7)
        getattr(axes, f'set_{axis}lim')(0, size)
        getattr(axes, f'set_{axis}label')(axis, fontsize=8, labelpad=-8)
    axes.tick_params(pad=-3)
    axes.set_box_aspect((1, 1, 1))


def _occupied_box(maps):
    """The smallest cube about the centre of maps `(count, grid, grid, grid)` that holds all that is shown."""
    grid_size = maps.shape[-1]
    shown = np.argwhere(np.any(maps >= LEAST_SHOWN / 2, axis=0))
    reach = np.max(np.abs(shown + 0.5 - grid_size / 2), initial=1.5) + 0.5
    half = min(int(np.ceil(reach)), grid_size // 2)
    return (slice(grid_size // 2 - half, grid_size // 2 + half),) * 3


def _legend(figure):
    labels = ((ORIGINAL, 'original'), (INVERSE, 'inverse'), (CLASH, 'both'), (UNEXPLAINED, 'neither'))
    handles = [matplotlib.patches.Patch(color=colour, label=label) for colour, label in labels]
    figure.legend(handles=handles, loc='outside lower center', ncols=4, frameon=False)


def _save(figure, path):
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DOTS_PER_INCH)
