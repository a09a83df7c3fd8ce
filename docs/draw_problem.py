"""Draws docs/problem/: the paper's Figures 1, 5 and 6, and the frames of docs/units.md. `python docs/draw_problem.py`.

Figure 3 is docs/base_example.png (`--mode=inspect`), Figure 4 is docs/ambiguity.png (draw_ambiguity.py).
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from patterson_jax.simulation.homometry import interatomic_vectors
from patterson_jax.simulation.problem import Problem

FOLDER = Path(__file__).parent / 'problem'
ATOM, EMPTY, LINE, ACCENT = '#303030', '#eef1f5', '#7a8ca5', '#c8322f'
DISCS = np.array([[2.3, 2.0], [5.8, 2.6], [3.4, 5.1], [7.0, 6.2], [5.2, 8.1]])  # pixels, of Figure 1
PIXELS = 10
STRIPES = 2000  # of a pixel along x, over which the area of a disc is summed
SPREAD = np.random.default_rng(3)
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def covered(disc, pixels):
    """The area `(pixels, pixels)` of each pixel, indexed x, y, that a disc of radius 1 covers."""
    x = (np.arange(pixels * STRIPES) + 0.5) / STRIPES
    half = np.sqrt(np.maximum(1 - (x - disc[0]) ** 2, 0))
    low, high = disc[1] - half, disc[1] + half
    edges = np.arange(pixels)
    inside = np.clip(np.minimum(high[:, None], edges + 1) - np.maximum(low[:, None], edges), 0, None)
    return inside.reshape(pixels, STRIPES, pixels).mean(axis=1)


def draw_discs(path):
    """Figure 1: the value of a pixel is the part of its area that is inside an atom."""
    figure = Figure(figsize=(8, 4.5), layout='constrained')
    left, right = figure.subplots(1, 2)
    areas = sum(covered(disc, PIXELS) for disc in DISCS)
    right.imshow(areas.T, cmap='Greys', vmin=0, vmax=1, origin='lower', extent=(0, PIXELS, 0, PIXELS))
    for x, y in np.argwhere(areas > 0.005):
        colour = 'white' if areas[x, y] > 0.5 else ATOM
        right.text(
            x + 0.5, y + 0.5, f'{areas[x, y]:.2f}'.lstrip('0'), ha='center', va='center', fontsize=6, color=colour
        )
    for axes, title in ((left, 'atoms: discs of radius 1'), (right, 'part of each pixel that they fill')):
        axes.set(xlim=(0, PIXELS), ylim=(0, PIXELS), aspect='equal', xticks=range(PIXELS + 1), yticks=range(PIXELS + 1))
        axes.tick_params(labelsize=7)
        axes.set_axisbelow(axes is left)
        axes.grid(color=LINE, linewidth=0.5)
        axes.set_title(title, fontsize=10)
    for disc in DISCS:
        left.add_patch(Circle(disc, 1, color=ATOM, linewidth=0))
        right.add_patch(Circle(disc, 1, fill=False, edgecolor=ACCENT, linewidth=1))
    save(figure, path)


def drawn_atoms(problem):
    """Draws ten atoms `(10, 2)` that do not overlap in the inner box; voxels from the box centre."""
    kept = []
    while len(kept) < problem.num_atoms:
        place = SPREAD.uniform(-problem.box_edge / 2, problem.box_edge / 2, 2)
        if all(np.linalg.norm(place - other) >= problem.min_separation for other in kept):
            kept.append(place)
    return np.array(kept)


def draw_box(path, atoms, problem):
    """Figure 5: the inner box in the cell; its diagonal is about half of the cell's edge."""
    figure = Figure(figsize=(5, 4.8), layout='constrained')
    axes = figure.add_subplot()
    grid, edge = problem.grid_size, problem.box_edge
    axes.add_patch(Rectangle((-grid / 2, -grid / 2), grid, grid, facecolor=EMPTY, edgecolor=LINE))
    axes.add_patch(Rectangle((-edge / 2, -edge / 2), edge, edge, fill=False, edgecolor=ACCENT, linestyle='--'))
    for atom in atoms:
        axes.add_patch(Circle(atom, problem.atom_radius, color=ATOM, linewidth=0))
    half = edge / 2
    axes.annotate('', (half, half), (-half, -half), arrowprops={'arrowstyle': '<->', 'color': ACCENT, 'linewidth': 1.2})
    diagonal = 3**0.5 * edge
    words = f'inner box, edge {edge:g}; in space its diagonal is {diagonal:.1f}'
    axes.text(0, half + 1.5, words, fontsize=8, color=ACCENT, ha='center')
    axes.text(-grid / 2 + 1, -grid / 2 + 1, f'cell, edge {grid}; half of it {grid / 2:g}', fontsize=8, color=LINE)
    set_square(axes, grid)
    save(figure, path)


def draw_corners(path, atoms, problem):
    """Figure 6: every peak of the Patterson map is nearest to the corner at which its vector begins."""
    figure = Figure(figsize=(5.6, 5), layout='constrained')
    axes = figure.add_subplot()
    grid = problem.grid_size
    vectors = interatomic_vectors(np.pad(atoms, ((0, 0), (0, 1))))[:, :2]
    reach = np.max(np.linalg.norm(vectors, axis=1))
    colours = ('#c8322f', '#e08a1e', '#2f5fc8', '#2f9e44')
    axes.add_patch(Rectangle((0, 0), grid, grid, facecolor=EMPTY, edgecolor=LINE))
    ends = vectors % grid
    for corner, colour in zip(CORNERS * grid, colours, strict=True):
        axes.plot(*corner, 's', color=colour, markersize=9, clip_on=False, zorder=3)
        axes.add_patch(Circle(corner, reach, fill=False, edgecolor=colour, linestyle=':', clip_on=True))
        own = vectors[np.all(np.abs(ends - vectors - corner) < 1e-6, axis=1)] + corner
        axes.plot(*own.T, 'o', color=colour, markersize=4)
        longest = own[np.argmax(np.linalg.norm(own - corner, axis=1))]
        axes.annotate('', longest, corner, arrowprops={'arrowstyle': '->', 'color': colour, 'linewidth': 1.2})
    axes.set(xlim=(-1, grid + 1), ylim=(-1, grid + 1), aspect='equal', xlabel='u, voxels', ylabel='v, voxels')
    axes.set_title(f'the longest vector, {reach:.1f}, is shorter than half of the cell, {grid / 2:g}', fontsize=9)
    save(figure, path)


def set_square(axes, grid):
    """The frame of a cell around the box centre."""
    axes.set(xlim=(-grid / 2 - 1, grid / 2 + 1), ylim=(-grid / 2 - 1, grid / 2 + 1), aspect='equal')
    axes.set(xlabel='x, voxels from the box centre', ylabel='y, voxels from the box centre')


def draw_frames(path):
    """One axis of eight voxels in all frames: indices, centres, the box centre, grid points of a file, Å, fractions."""
    size, voxel_size = 8, 0.5
    figure = Figure(figsize=(9, 3.6), layout='constrained')
    axes = figure.add_subplot()
    for i in range(size):
        axes.add_patch(Rectangle((i, 0), 1, 1, facecolor=EMPTY, edgecolor=LINE))
        axes.text(i + 0.5, 0.5, f'voxel {i}', ha='center', va='center', fontsize=8)
        axes.plot(i + 0.5, 0.2, '.', color=ATOM)
    axes.plot([size / 2] * 2, [-0.1, 1.7], color=ACCENT, linewidth=1.5)
    axes.text(size / 2, 1.78, 'box centre', color=ACCENT, ha='center', fontsize=9)
    atom = 1.25
    axes.plot(size / 2 + atom, 0.8, 'o', color=ACCENT, markersize=8)
    axes.annotate('', (size / 2 + atom, 1.3), (size / 2, 1.3), arrowprops={'arrowstyle': '->', 'color': ACCENT})
    axes.text(size / 2 + atom / 2, 1.38, f'r = {atom:g}', ha='center', fontsize=9, color=ACCENT)
    written = (atom + size / 2 - 0.5) * voxel_size
    rows = (
        ('voxels from the box centre: r', -0.55, [(i, f'{i - size / 2:+g}') for i in range(size + 1)]),
        ('grid points of a file: i', -1.15, [(i + 0.5, f'{i}') for i in range(size)]),
        (f'Å in a file, {voxel_size:g} Å a voxel', -1.75, [(i + 0.5, f'{i * voxel_size:g}') for i in range(size)]),
        ('fraction of the cell', -2.35, [(i + 0.5, f'{i / size:.3g}') for i in range(size)]),
    )
    for name, height, marks in rows:
        axes.text(-0.3, height, name, ha='right', va='center', fontsize=9)
        axes.plot([0, size], [height + 0.25] * 2, color=LINE, linewidth=0.8)
        for place, text in marks:
            axes.plot([place] * 2, [height + 0.18, height + 0.32], color=LINE, linewidth=0.8)
            axes.text(place, height, text, ha='center', va='center', fontsize=8)
    axes.plot([size / 2 + atom] * 2, [-2.2, 0.7], color=ACCENT, linewidth=0.8, linestyle=':')
    axes.text(
        size + 0.2,
        0.8,
        f'written at (r + {size}/2 − ½) · {voxel_size:g} = {written:g} Å',
        fontsize=9,
        color=ACCENT,
        va='center',
    )
    axes.set(xlim=(-3.6, size + 4), ylim=(-2.7, 2.1))
    axes.set_axis_off()
    save(figure, path)


def save(figure, path):
    """Writes a picture whose bytes do not depend on the version of the software."""
    path.parent.mkdir(exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=130, metadata={'Software': None})


if __name__ == '__main__':
    matplotlib.rc('font', size=10)
    paper = Problem()
    atoms = drawn_atoms(paper)
    draw_discs(FOLDER / 'figure1.png')
    draw_box(FOLDER / 'figure5.png', atoms, paper)
    draw_corners(FOLDER / 'figure6.png', atoms, paper)
    draw_frames(FOLDER / 'frames.png')
