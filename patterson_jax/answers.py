"""Patterson maps solved from Python, and the files of an answer.

import patterson_jax as pj

answer = pj.solve(patterson, num_atoms=10, voxel_size=0.5)
answer.verdict, answer.positions
answer.write('solved')
"""

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.typing import ArrayLike

from patterson_jax.compiler import avoid_wrong_fusion, require_right_results
from patterson_jax.errors import InputError, is_real, is_whole, real_array, require
from patterson_jax.files.common import make_directory
from patterson_jax.files.maps import Map, write_map
from patterson_jax.files.structures import file_positions, is_element, write_pdb, write_res, write_xyz
from patterson_jax.files.viewers import write_chimerax
from patterson_jax.simulation.density import render
from patterson_jax.simulation.measurement import Measurement
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.attempt import Network
from patterson_jax.solving.cases import Solution
from patterson_jax.solving.input_maps import checked_patterson
from patterson_jax.solving.interpretation import patterson_correlation
from patterson_jax.solving.map_solver import SolvedMap, SolveSettings, solve_map
from patterson_jax.solving.reflections import absolute_scale
from patterson_jax.solving.separation import SeparationSettings
from patterson_jax.solving.verdict import expected_r_factors, highest_solved
from patterson_jax.writing import write_json

ENDINGS = ('.json', '.html', '.xyz', '.pdb', '.res', '.cxc', '.png', '_density.ccp4')  # of the files of an answer
DRAWN_LEVEL = 0.4  # of the highest density, where viewers draw its surface


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was found in a Patterson map: one of two enantiomorphs.

    Attributes:
        solved: the solution, with its map and its problem.
        voxel_size: edge of a voxel, Å.
        seed: the one that fixed the random starts.
        element: chemical symbol that is written for the atoms; 'X': unknown.
        source: the file of the map, for the record.
    """

    solved: SolvedMap
    voxel_size: float
    seed: int
    element: str = 'X'
    source: str | None = None

    @property
    def solution(self) -> Solution:
        """All that the solver says: starts, rivals, alternatives."""
        return self.solved.solution

    @property
    def verdict(self) -> str:
        """'solved', 'uncertain' or 'not solved'."""
        return self.solution.verdict

    @property
    def positions(self) -> np.ndarray:
        """`(num_atoms, 3)` in Å from the origin of the cell, so that they lie on the density that is written."""
        return file_positions(self.positions_voxels, self.solved.problem.grid_size, self.voxel_size)

    @property
    def positions_voxels(self) -> np.ndarray:
        """`(num_atoms, 3)`, voxels from the centre of the cell."""
        return self.solution.positions

    @property
    def r_factor(self) -> float:
        """R1 over the reflections that were refined against."""
        return self.solution.r_factor

    @property
    def r_free(self) -> float:
        """R1 over the reflections that were kept out of refinement."""
        return self.solution.r_free

    @functools.cached_property
    def density(self) -> np.ndarray:
        """`(grid, grid, grid)`: the network's map if the atoms are from there, else that of the atoms."""
        predicted = self.solution.prediction
        return self._explained[0] if predicted is None else np.asarray(predicted.density)

    @property
    def patterson_correlation(self) -> float:
        """Correlation of the measured map with that of the atoms, origin peak left out."""
        return float(self._explained[1])

    @functools.cached_property
    def _explained(self):
        solved = self.solved
        return jax.device_get(_explain(solved.patterson, self.positions_voxels, solved.problem))

    @property
    def summary(self) -> str:
        """A line: verdict, method, figures of merit."""
        others = f', alternatives: {len(self.solution.alternatives)}' if self.solution.alternatives else ''
        return f'{self._title}{others}, {self._merit}'

    @property
    def _title(self):
        name = 'map' if self.source is None else Path(self.source).name
        found = f'{len(self.positions_voxels)} atoms by {self.solution.method.replace("_", " ")}'
        return f'{name}: {self.verdict}, {found}'

    @property
    def _merit(self):
        merit = f'R1 {self.r_factor:.3f}, R_free {self.r_free:.3f}'
        return f'{merit}, Patterson correlation {self.patterson_correlation:.3f}'

    def report(self) -> dict:
        """What is written as JSON."""
        solution, problem = self.solution, self.solved.problem
        predicted = solution.prediction
        report = {
            'input': self.source,
            'verdict': solution.verdict,
            'method': solution.method,
            'num_atoms': problem.num_atoms,
            'positions': _rounded(self.positions),
            'positions_voxels': _rounded(solution.positions),
            'voxel_size': self.voxel_size,
            'enantiomorph': 'one of two: the inverse of these positions has the same Patterson map',
            'r_factor': float(solution.r_factor),
            'r_free': float(solution.r_free) if math.isfinite(solution.r_free) else None,
            'r_factor_resolution': solution.resolution,
            'r_factor_expected': expected_r_factors(problem)[0],
            'r_factor_solved_below': highest_solved(problem),
            'noise': problem.measurement.noise,
            'resolution': problem.measurement.resolution,
            'density': 'calculated from the atoms' if predicted is None else 'predicted by the network',
            'patterson_correlation': self.patterson_correlation,
            'agreeing_starts': solution.agreeing,
            'starts': solution.starts,
            'next_r_factor': solution.rivals[0].r_factor if solution.rivals else None,
            'alternatives_voxels': [_rounded(each) for each in solution.alternatives],
            'alternatives_searched': solution.alternatives_searched,
            'seed': self.seed,
            'seconds': round(solution.seconds, 3),
        }
        if predicted is not None:
            report['candidates_voxels'] = _rounded(predicted.candidates)
            report['peak_heights'] = _rounded(predicted.heights)
        return report

    def write(self, directory: str | Path, name: str = 'solution') -> list[Path]:
        """Writes `NAME.html` to look at, `.json`, `.xyz`, `.pdb`, `.res`, `.cxc` (ChimeraX), `.png`, `_density.ccp4`.

        Args:
            directory: made if it does not exist.
            name: of the files; those of an earlier answer are replaced.

        Returns:
            The files.

        Raises:
            InputError: a file of such a name is there that is no earlier answer, or the directory cannot be made.
        """
        # They need matplotlib, which nothing else here does.
        from patterson_jax.figures import draw_solution
        from patterson_jax.pictures import map_drawing
        from patterson_jax.reports import map_report, write_report

        directory = Path(directory)
        require(is_element(self.element), 'element', self.element, "a chemical symbol, or 'X'")
        plain = isinstance(name, str) and Path(name).name == name and name not in ('', '.', '..') and '\\' not in name
        require(plain, 'name', name, 'a plain file name, without a directory')
        make_directory(directory, 'the directory')
        require_replaceable(directory, name)
        target = {ending: directory / f'{name}{ending}' for ending in ENDINGS}
        problem, text = self.solved.problem, f'{self._title}, {self._merit}'
        edge, radius = problem.grid_size * self.voxel_size, problem.atom_radius * self.voxel_size
        # The JSON is the first, because it tells that the others are results, which may be replaced.
        content, level = self.report(), DRAWN_LEVEL * float(np.max(self.density))
        write_json(target['.json'], content)
        write_map(target['_density.ccp4'], self.density, self.voxel_size)
        write_xyz(target['.xyz'], self.positions, self.element, text)
        write_pdb(target['.pdb'], self.positions, edge, self.element, text)
        write_res(target['.res'], self.positions, edge, self.element, text)
        write_chimerax(target['.cxc'], level, radius / 2)
        both = self.solution.prediction is not None and problem.encoding.target == 'both'
        title = f'{self._title}\n{self._merit}'
        atoms, style = self.positions_voxels, (both, self.voxel_size, self.element)
        draw_solution(target['.png'], self.density, atoms, problem, title, *style)
        drawing = map_drawing(self.positions, self.element, edge, radius)
        rivals = [each.r_factor for each in self.solution.rivals]
        cut = problem.measurement.resolution is not None
        write_report(target['.html'], map_report(content, self.density, level, drawing, rivals, name, cut))
        return list(target.values())


def solve(
    patterson: ArrayLike,
    num_atoms: int | None = None,
    *,
    voxel_size: float = 1.0,
    atom_radius: float = 1.0,
    box_edge: float | None = None,
    noise: float = 0.0,
    resolution: float | None = None,
    method: str = 'auto',
    network: Network | None = None,
    max_attempts: int = SolveSettings.max_attempts,
    max_seconds: float = SolveSettings.max_seconds,
    orientations: int = SolveSettings.orientations,
    seed: int = 0,
) -> Answer:
    """Finds the equal atoms behind a Patterson map of a cubic cell, P1, that is mostly empty.

    Args:
        patterson: `(grid, grid, grid)`, real, on any scale; the origin, with its peak, is at voxel (0, 0, 0).
        num_atoms: number of atoms in the cell; None: it is found too, which takes longer.
        voxel_size: Å; it scales results in Å. All other lengths are in voxels.
        atom_radius: radius of an atom's sphere, voxels.
        box_edge: edge of a cube that holds the molecule, voxels; None: one as full as the paper's, or, if the number of
            atoms is not known, as large as the cell allows.
        noise: relative standard deviation of the measured amplitudes |F|; the verdict needs it.
        resolution: |h| up to which amplitudes were measured; None: it is found in the map.
        method: 'auto', 'network', 'least_squares', 'phase_retrieval' or 'minimum_function'.
        network: from `load_network`, for the methods 'network' and 'auto'; it must suit the grid and the atoms.
        max_attempts: most attempts; they end when the verdict is 'solved'.
        max_seconds: most seconds, without compilation; an attempt that might end later does not begin. 0: no limit, so
            that the answer does not depend on the speed of the machine.
        orientations: number of orientations of the cell over which the network's maps are averaged.
        seed: fixes the starts.

    Returns:
        The answer, whatever its verdict.

    Raises:
        InputError: an argument is invalid, or the map is not a Patterson map that can be solved.
    """
    avoid_wrong_fusion()
    require_right_results()
    if isinstance(patterson, Map):
        raise InputError('patterson is a Map; it must be an array: its .values')
    patterson = real_array(patterson, 'patterson', 'an array of real numbers, (grid, grid, grid)')
    require(is_real(voxel_size) and voxel_size > 0, 'voxel_size', voxel_size, 'a positive number of Å')
    whole = num_atoms is None or (is_whole(num_atoms) and num_atoms >= 1)
    require(whole, 'num_atoms', num_atoms, 'a whole number, 1 or more, or None to find it')
    require(is_whole(seed) and 0 <= seed < 2**32, 'seed', seed, f'a whole number from 0 to {2**32 - 1}')
    known = network is None or isinstance(network, Network)
    require(known, 'network', network, "what load_network gives, as load_network('unrolled')")
    require(box_edge is None or is_real(box_edge), 'box_edge', box_edge, 'a number of voxels, or None')
    require(is_real(noise), 'noise', noise, 'a number from 0 to 1')
    require(method != 'network' or network is not None, 'network', network, "a network for the method 'network'")
    patterson = checked_patterson(patterson)
    size = len(patterson)
    fits = is_real(atom_radius) and 0 < atom_radius < size / 4
    require(fits, 'atom_radius', atom_radius, f'more than 0 and less than a quarter of the cell, {size / 4:g} voxels')
    settings = SolveSettings(method, max_attempts, max_seconds, orientations, resolution, num_atoms is not None)
    trained = Problem() if network is None or network.trained_on is None else network.trained_on
    problem = Problem(
        grid_size=size,
        num_atoms=num_atoms or 1,
        atom_radius=atom_radius,
        box_edge=_box_edge(num_atoms, size, atom_radius) if box_edge is None else box_edge,
        measurement=Measurement(noise),
        encoding=trained.encoding,
    )
    default = SeparationSettings()
    separation = dataclasses.replace(default, num_peaks=max(default.num_peaks, 2 * (num_atoms or 0)))
    return Answer(solve_map(patterson, problem, settings, separation, seed, network), float(voxel_size), seed)


def _box_edge(num_atoms, grid_size, atom_radius):
    """The edge of a box as full as the paper's, where the cell allows it."""
    paper = Problem()
    widest = grid_size / 2 - 2 * atom_radius
    if num_atoms is None:
        return widest
    return min(paper.box_edge * (num_atoms / paper.num_atoms) ** (1 / 3), widest)


@functools.partial(jax.jit, static_argnums=2)
def _explain(patterson, positions, problem):
    """The density of atoms found, and the correlation of their Patterson map with the given one."""
    density = render(positions, problem.grid_size, problem.atom_radius)
    scaled = absolute_scale(patterson, problem.num_atoms, problem.atom_volume)
    return density, patterson_correlation(scaled, positions, problem)


def _rounded(values: ArrayLike) -> Sequence:
    return np.round(np.asarray(values, np.float64), 4).tolist()


def require_replaceable(directory: Path, name: str) -> None:
    """Raises InputError unless files of that name are those of an earlier answer; they have its JSON beside them."""
    for ending in ENDINGS:
        if (directory / f'{name}{ending}').exists() and not _is_answer(directory / f'{name}.json'):
            raise InputError(f'{directory / name}{ending} exists and is no earlier result; name another directory')


def _is_answer(path):
    try:
        return {'input', 'method', 'r_factor'} <= json.loads(path.read_text(encoding='utf-8')).keys()
    except (OSError, ValueError, AttributeError):
        return False
