"""Draws structures: balls, bonds and the cell, in orthographic projection.

Everything is cut into pieces so small that each has one depth (balls, parts of half bonds, parts of the cell's edges).
They are drawn from the farthest to the nearest, and fade into the background with their depth.
"""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import NamedTuple

import gemmi
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.structure import Site, SpaceGroup
from patterson_jax.writing import write_whole

COLOURS = {  # usual ones of non-metals; those of metals after their salts, flames or looks; 'X' is unknown
    'X': '#c8322f',
    **{'H': '#e8e8e8', 'B': '#f2a3a3', 'C': '#4d4d4d', 'N': '#3050f8', 'O': '#e0281c', 'F': '#6cc24a'},
    **{'Si': '#d9b38c', 'P': '#ff8c1a', 'S': '#e6c200', 'Cl': '#1fbf1f', 'Se': '#d08a00', 'Br': '#a6402b'},
    **{'I': '#7a1f9c', 'Li': '#a060d8', 'Na': '#8f7fd8', 'K': '#7a4fb8', 'Rb': '#66339a', 'Cs': '#54217f'},
    **{'Mg': '#5a9a30', 'Ca': '#3f8f5f', 'Sr': '#2f8f3f', 'Ba': '#1f7f2f', 'Al': '#a8a8b8', 'Ga': '#b88a8a'},
    **{'In': '#a0707a', 'Sn': '#5f8080', 'Pb': '#4f5560', 'Ti': '#b8bec8', 'V': '#8f8fa0', 'Cr': '#6f8fc0'},
    **{'Mn': '#a078c0', 'Fe': '#cc6a2c', 'Co': '#d87a8c', 'Ni': '#4fae62', 'Cu': '#b87333', 'Zn': '#7d80b0'},
    **{'Mo': '#4fa8a8', 'Ru': '#2a8a8a', 'Rh': '#107a86', 'Pd': '#0f6a85', 'Ag': '#a8a8b0', 'W': '#2f88c8'},
    **{'Pt': '#a0a0c8', 'Au': '#e0b020', 'Hg': '#a8a8c8'},
}
METAL_COLOUR, OTHER_COLOUR = '#8aa4c8', '#c060c0'
OUTER_ELEMENTS = ('H', 'O', 'F', 'Cl', 'Br', 'I')  # elements that surround others
BACKGROUND = '#ffffff'
CELL_COLOUR = '#7a8ca5'
OUTLINE = '#303030'
BALL, LARGEST_BALL = 0.22, 0.62  # radius of a ball: part of the van der Waals radius, and at most so many Å
BOND_RADIUS = 0.11  # Å
EDGE_RADIUS = 0.0017  # of the cell's longest edge
SLACK, SLACK_OF_METALS = 0.35, 0.4  # Å by which a bond may be longer than the sum of covalent radii
SHORTEST_BOND = 0.6  # Å
MOST_DRAWN = 500  # atoms
SHADES = 9  # discs that make a ball
ANGLES = np.linspace(0, 2 * np.pi, 48, endpoint=False)
ALONG = np.linspace(0.2, 0.8, 7)  # places along a bond where an edge of the cell may lie inside it
BOND_PIECES = 3  # of half a bond
AROUND = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
EDGE_PIECES = 24  # of an edge of the cell
DEEPEST_FADE = 0.45  # part of the background in a colour at the far end
LEAST_DEPTH = 1.0  # Å, added to the depth in front of the atoms and behind them
SAME_PLACE = 0.1  # Å
DOTS_PER_INCH = 150


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A structure to draw.

    Attributes:
        positions: `(n, 3)`, Å.
        elements: of the atoms; 'X' where unknown.
        bonds: `(m, 2)`, rows of positions.
        cell: `(3, 3)`, its edges as columns, Å; None: it is not drawn.
        origin: of the cell, Å.
        radii: `(n,)` of the balls, Å; None: parts of van der Waals radii.
        endless: whether bonds continue through all cells. Then the cell stands upright; else molecules lie flat.
        sites: `(n,)`, row of each atom in the asymmetric unit; None: there is no such unit.
    """

    positions: np.ndarray
    elements: tuple[str, ...]
    bonds: np.ndarray
    cell: np.ndarray | None = None
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    radii: np.ndarray | None = None
    endless: bool = False
    sites: np.ndarray | None = None


def colour_of(element: str) -> tuple[float, float, float]:
    """Red, green and blue of an element's balls."""
    if element in COLOURS:
        return to_rgb(COLOURS[element])
    return to_rgb(METAL_COLOUR if gemmi.Element(element).is_metal else OTHER_COLOUR)


def find_bonds(positions: np.ndarray, elements: tuple[str, ...]) -> np.ndarray:
    """Pairs of atoms `(m, 2)` near enough to be bonded. Two metals never are; 'X' counts as carbon.

    Args:
        positions: `(n, 3)`, Å.
        elements: of the atoms.
    """
    first, second = np.triu_indices(len(positions), 1)
    distances = np.linalg.norm(positions[first] - positions[second], axis=1)
    limits = _bond_limits(elements)[first, second]
    near = (distances < limits) & (distances > SHORTEST_BOND)
    return np.stack([first[near], second[near]], axis=1)


def _bond_limits(elements):
    """The longest bonds between elements, `(n, n)` in Å; 0 where there are none."""
    known = [gemmi.Element('C' if each == 'X' else each) for each in elements]
    radii, metals = np.array([each.covalent_r for each in known]), np.array([each.is_metal for each in known], bool)
    slack = np.where(metals[:, None] | metals, SLACK_OF_METALS, SLACK)
    return np.where(metals[:, None] & metals, 0.0, radii[:, None] + radii + slack)


def crystal_drawing(cell: UnitCell, group: SpaceGroup | None, atoms: tuple[Site, ...]) -> Drawing:
    """Molecules of an asymmetric unit, completed by symmetry; a filled cell if they are endless or there are none."""
    operations = [gemmi.Op(each) for each in (group.symops if group else ('x,y,z',))]
    rotations = np.array([each.rot for each in operations]) / gemmi.Op.DEN
    shifts = np.array([each.tran for each in operations]) / gemmi.Op.DEN
    unit = np.array([atom.fract for atom in atoms]).reshape(-1, 3)
    images = (np.einsum('mij,nj->nmi', rotations, unit) + shifts).reshape(-1, 3)
    sites = np.repeat(np.arange(len(atoms)), len(operations))
    fractions, sites = _distinct(images - np.floor(images + 1e-4), sites, cell)
    molecule = _molecules(unit, fractions, sites, atoms, cell)
    fractions, sites = molecule or _filled_cell(fractions, sites, atoms, cell)
    positions = fractions @ cell.orthogonalization.T
    elements = tuple(atoms[site].element for site in sites)
    bonds = find_bonds(positions, elements)
    return Drawing(
        positions, elements, bonds, cell.orthogonalization, endless=molecule is None, sites=np.asarray(sites)
    )


def map_drawing(
    positions: np.ndarray,
    element: str,
    edge: float,
    radius: float,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Drawing:
    """Equal atoms in a cubic cell; all lengths in Å. If some atoms seem bonded, balls have half the radius."""
    elements = (element,) * len(positions)
    bonds = find_bonds(positions, elements)
    radii = np.full(len(positions), radius / 2 if len(bonds) else radius)
    return Drawing(positions, elements, bonds, edge * np.eye(3), origin, radii)


def _distinct(fractions, sites, cell):
    """Removes repeated places in the cell."""
    kept: list[int] = []
    for number, place in enumerate(fractions):
        steps = fractions[kept] - place
        steps -= np.rint(steps)
        if not kept or np.min(np.linalg.norm(steps @ cell.orthogonalization.T, axis=1)) > SAME_PLACE:
            kept.append(number)
    return fractions[kept], sites[kept]


def _molecules(unit, fractions, sites, atoms, cell):
    """Places and sites of the molecules to which the atoms of the asymmetric unit belong.

    None if a molecule is endless, or if nothing is bonded.
    """
    limits = _bond_limits([atoms[site].element for site in sites])
    drawn: list[tuple[int, tuple[int, ...]]] = []
    alone = True
    for start in range(len(unit)):
        of_site = np.flatnonzero(sites == start)
        if not len(of_site) or any(sites[number] == start for number, _ in drawn):
            continue  # another atom has the same place, or it belongs to a molecule that is drawn already
        steps = unit[start] - fractions[of_site]
        nearest = np.argmin(np.linalg.norm((steps - np.rint(steps)) @ cell.orthogonalization.T, axis=1))
        molecule = [(int(of_site[nearest]), tuple(np.rint(steps[nearest]).astype(int)))]
        shifts = dict(molecule)
        for number, shift in molecule:  # the list grows in the loop
            for other, step in _bonded(fractions[number], fractions, limits[number], cell):
                moved = tuple(np.array(shift) + step)
                if shifts.setdefault(other, moved) != moved or len(molecule) > MOST_DRAWN:
                    return None
                if (other, moved) not in molecule:
                    molecule.append((other, moved))
        alone &= len(molecule) == 1
        drawn += molecule
    if alone:
        return None
    numbers = np.array([number for number, _ in drawn])
    return fractions[numbers] + np.array([shift for _, shift in drawn]), sites[numbers]


def _bonded(place, fractions, limits, cell):
    """Numbers of the atoms bonded to a place, each with the lattice vector that brings it there."""
    steps = fractions - place
    cells = AROUND - np.rint(steps)[:, None]
    distances = np.linalg.norm((steps[:, None] + cells) @ cell.orthogonalization.T, axis=2)
    near = (distances < limits[:, None]) & (distances > SHORTEST_BOND)
    return [(int(other), cells[other, which].astype(int)) for other, which in np.argwhere(near)]


def _filled_cell(fractions, sites, atoms, cell):
    """Atoms in the cell, with copies of those on its faces, and bonded non-metals outside of it."""
    elements = [gemmi.Element(atoms[site].element) for site in sites]
    limits = _bond_limits([each.name for each in elements])
    metals = np.array([each.is_metal for each in elements], bool)
    outer = np.array([each.name in OUTER_ELEMENTS for each in elements], bool)
    limits = np.where((metals | outer)[:, None] | metals, 0.0, limits)
    shifts = np.array(list(itertools.product((0, 1), repeat=3)))
    places = (fractions[:, None] + shifts).reshape(-1, 3)
    inside = np.all(places < 1 + 1e-3, axis=1)
    places, all_sites = places[inside], np.repeat(sites, len(shifts))[inside]
    bonded = [
        (fractions[other] + step, sites[other])
        for number in range(len(fractions))
        for other, step in _bonded(fractions[number], fractions, limits[number], cell)
    ]
    for place, site in bonded:
        if np.min(np.linalg.norm((places - place) @ cell.orthogonalization.T, axis=1)) > SAME_PLACE:
            places, all_sites = np.vstack([places, place]), np.append(all_sites, site)
    return places[:MOST_DRAWN], all_sites[:MOST_DRAWN]


def best_view(positions: np.ndarray) -> np.ndarray:
    """A rotation `(3, 3)` that spreads the atoms as widely as possible, tilted a little so that few are hidden."""
    axes = np.linalg.svd(positions - positions.mean(axis=0), full_matrices=True)[2]
    axes[2] *= np.sign(np.linalg.det(axes))
    return _tilt(10, 14) @ axes


def cell_view(cell: np.ndarray) -> np.ndarray:
    """A rotation `(3, 3)` after which c of a cell `(3, 3)` points up and a to the right, seen a little from above."""
    up = cell[:, 2] / np.linalg.norm(cell[:, 2])
    right = cell[:, 0] - up * (up @ cell[:, 0])
    right /= np.linalg.norm(right)
    return _tilt(14, -24) @ np.stack([right, up, np.cross(right, up)])


def _tilt(up, aside):
    """A rotation by degrees about the vertical axis of the picture, then about the horizontal one."""
    a, b = np.radians([up, aside])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    return about_x @ about_y


def draw_structure(path: Path, drawing: Drawing, title: str) -> None:
    """Draws a structure as a PNG, with a title above and the colours of its elements below."""
    figure = Figure(figsize=(7, 7.4), facecolor=BACKGROUND)
    draw_on(figure.add_axes((0.02, 0.06, 0.96, 0.85)), drawing)
    figure.suptitle(title, fontsize=10, y=0.98, va='top')
    elements = sorted(set(drawing.elements), key=lambda element: (element != 'C', element))
    circle = functools.partial(Line2D, [], [], marker='o', linestyle='', markersize=9, markeredgecolor=OUTLINE)
    handles = [circle(color=colour_of(each), label=each) for each in elements if each != 'X']
    if handles:
        figure.legend(handles=handles, loc='lower center', ncols=min(len(handles), 10), frameon=False, fontsize=10)
    save_figure(path, figure)


def save_figure(path: Path, figure: Figure) -> None:
    """Writes a figure as a PNG; makes its directory if needed."""
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda part: figure.savefig(part, dpi=DOTS_PER_INCH, format='png'))


def view_of(drawing: Drawing) -> np.ndarray:
    """The rotation `(3, 3)` in which a structure is shown."""
    if drawing.cell is not None and drawing.endless:
        return cell_view(drawing.cell)
    return best_view(drawing.positions)


def draw_on(axes: Axes, drawing: Drawing) -> None:
    """Draws a structure on axes; the frame of the axes is hidden."""
    view = view_of(drawing)
    places = drawing.positions @ view.T
    radii = drawing.radii if drawing.radii is not None else usual_radii(drawing.elements)
    edges = _cell_edges(drawing) @ view.T
    pieces = [*_edge_pieces(edges, places, radii, drawing.bonds)]
    for bond in drawing.bonds:
        for this, other in (bond, bond[::-1]):
            pieces += _half_bond(places[this], places[other], radii[this], colour_of(drawing.elements[this]))
    for place, radius, element in zip(places, radii, drawing.elements, strict=True):
        pieces += _ball(place, radius, colour_of(element))
    pieces.sort(key=lambda piece: piece.depth)
    far, near = np.min(places[:, 2]) - LEAST_DEPTH, np.max(places[:, 2]) + LEAST_DEPTH
    fading = [DEEPEST_FADE * np.clip((near - piece.depth) / (near - far), 0, 1) for piece in pieces]
    colours = [_mixed(piece.colour, BACKGROUND, part) for piece, part in zip(pieces, fading, strict=True)]
    lines = [
        _mixed(OUTLINE, BACKGROUND, part) if piece.outlined else colour
        for piece, part, colour in zip(pieces, fading, colours, strict=True)
    ]
    widths = [0.6 if piece.outlined else 0.15 for piece in pieces]
    outlines = [piece.outline for piece in pieces]
    axes.add_collection(PolyCollection(outlines, facecolors=colours, edgecolors=lines, linewidths=widths))
    low = np.min(np.concatenate([places[:, :2] - radii[:, None], edges.reshape(-1, 3)[:, :2]]), axis=0)
    high = np.max(np.concatenate([places[:, :2] + radii[:, None], edges.reshape(-1, 3)[:, :2]]), axis=0)
    middle, half = (low + high) / 2, np.max(high - low) / 2 * 1.08 + 0.1
    if drawing.cell is not None:
        _name_edges(axes, drawing, view, 0.05 * half + np.max(radii, initial=0) * drawing.endless)
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half), aspect='equal')
    axes.set_axis_off()


def usual_radii(elements: tuple[str, ...]) -> np.ndarray:
    """The usual radii `(n,)` of the balls of elements, Å."""
    radii = np.array([gemmi.Element('C' if each == 'X' else each).vdw_r for each in elements])
    return np.minimum(BALL * radii, LARGEST_BALL)


class _Piece(NamedTuple):
    """A part of the picture at one depth: its outline `(n, 2)`, its colour, and whether the outline is drawn."""

    depth: float
    outline: np.ndarray
    colour: tuple[float, float, float]
    outlined: bool = False


def _cell_edges(drawing):
    """The ends `(12, 2, 3)` of the cell's edges, Å; `(0, 2, 3)` without a cell."""
    if drawing.cell is None:
        return np.zeros((0, 2, 3))
    ends = []
    for along in range(3):
        for low in itertools.product((0, 1), repeat=2):
            start = np.insert(np.array(low, float), along, 0.0)
            ends.append([start, start + np.eye(3)[along]])
    return np.array(ends) @ drawing.cell.T + drawing.origin


def _edge_pieces(edges, places, radii, bonds):
    """Parts of the cell's edges, without those inside balls and bonds."""
    centres = np.concatenate(
        [places, *(places[bonds[:, 0]] * part + places[bonds[:, 1]] * (1 - part) for part in ALONG)]
    )
    reaches = np.concatenate([radii, np.full(len(ALONG) * len(bonds), 2 * BOND_RADIUS)])
    radius = EDGE_RADIUS * np.max(np.linalg.norm(edges[:, 1] - edges[:, 0], axis=1), initial=0)
    for start, end in edges:
        points = start + np.linspace(0, 1, EDGE_PIECES + 1)[:, None] * (end - start)
        for first, second in itertools.pairwise(points):
            middle = (first + second) / 2
            if np.all(np.linalg.norm(centres - middle, axis=1) > reaches):
                yield _Piece(middle[2], _strip(first, second, radius), to_rgb(CELL_COLOUR))


def _name_edges(axes, drawing, view, distance):
    """Writes the letters of the cell's edges beyond their ends, and 0 at the origin."""
    middle = view @ (drawing.cell @ np.full(3, 0.5) + drawing.origin)
    for name, fraction in zip('0abc', np.vstack([np.zeros(3), np.eye(3)]), strict=True):
        corner = view @ (drawing.cell @ fraction + drawing.origin)
        away = corner[:2] - middle[:2]
        place = corner[:2] + distance * away / max(np.linalg.norm(away), 1e-6)
        axes.text(*place, name, color=CELL_COLOUR, fontsize=10, ha='center', va='center', style='italic')


def _half_bond(start, end, radius, colour):
    """The half of a bond next to an atom: a stick, lit from above, that begins at the ball's surface."""
    middle, length = (start + end) / 2, np.linalg.norm(end - start)
    begin = start + (end - start) * min(0.9 * radius / length, 0.5)
    points = begin + np.linspace(0, 1, BOND_PIECES + 1)[:, None] * (middle - begin)
    upwards = np.array([0.0, 0.3 * BOND_RADIUS, 0.0])
    for first, second in itertools.pairwise(points):
        depth = (first[2] + second[2]) / 2
        yield _Piece(depth, _strip(first, second, BOND_RADIUS), _lit(colour, -0.35))
        yield _Piece(depth, _strip(first, second, 0.78 * BOND_RADIUS), colour)
        yield _Piece(depth, _strip(first + upwards, second + upwards, 0.3 * BOND_RADIUS), _lit(colour, 0.35))


def _strip(first, second, radius):
    """The outline `(4, 2)` of a thick line from one point to another."""
    along = (second - first)[:2]
    across = radius * np.array([-along[1], along[0]]) / max(np.linalg.norm(along), 1e-9)
    return np.array([first[:2] + across, second[:2] + across, second[:2] - across, first[:2] - across])


def _ball(place, radius, colour):
    """A ball, lit from the upper left, made of nested discs."""
    circle = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
    yield _Piece(place[2], place[:2] + radius * circle, colour, outlined=True)
    for step in np.linspace(0, 1, SHADES)[1:]:
        centre = place[:2] + radius * step * np.array([-0.32, 0.36])
        yield _Piece(place[2], centre + radius * (0.94 - 0.84 * step) * circle, _lit(colour, 0.75 * step**2))


def _lit(colour, amount):
    """A colour moved towards white or, if the amount is negative, towards black."""
    return _mixed(colour, 'white' if amount > 0 else 'black', abs(amount))


def _mixed(colour, other, part):
    return tuple((1 - part) * np.array(to_rgb(colour)) + part * np.array(to_rgb(other)))
