"""Maps a second: ours, and those of a plain NumPy program."""

import itertools
import math

import jax
import numpy as np

from benchmarks.speed.cells import Cells, Settings
from benchmarks.speed.experiments import base_sections
from benchmarks.timing import measure
from patterson_jax.simulation.examples import make_batch, stream_key
from patterson_jax.simulation.problem import Problem

SUB_GRID = 20  # points along each edge of a voxel in the NumPy program
BATCHES = (1, 8, 64, 256)
COLUMNS = {
    'implementation': 'implementation',
    'batch': 'batch',
    'maps_per_second': 'maps/s',
    'speed_over_numpy': 'speed / NumPy',
}


def data_cell(cell: dict) -> list[dict]:
    """Times how we make batches, with new cases at every call, for each batch size."""
    problem, _, _ = base_sections({'grid': cell['grid']})
    stream = stream_key(0, 'training')
    make = jax.jit(lambda indices: make_batch(stream, 0, indices, problem))

    def time_of(batch):
        numbers = itertools.count()
        return measure(
            lambda: make(next(numbers) * batch + np.arange(batch, dtype=np.int32)),
            jax.block_until_ready,
            cell['repeats'],
            cell['seconds'] / len(cell['batches']),
        )

    return [time_of(batch) for batch in cell['batches']]


def numpy_data_cell(cell: dict) -> dict:
    """Times how the plain NumPy program makes one case, a new one at every call."""
    problem, _, _ = base_sections(cell)
    generator = np.random.default_rng(0)
    return measure(lambda: case_with_numpy(generator, problem), lambda result: None, cell['repeats'], cell['seconds'])


def case_with_numpy(generator: np.random.Generator, problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, Patterson map and target of one case, made one atom after the other; corners are not supported."""
    positions = positions_with_numpy(generator, problem)
    density = render_with_numpy(positions, problem.grid_size, problem.atom_radius)
    target = density / 2 if problem.encoding.target == 'original' else (density + density[::-1, ::-1, ::-1]) / 2
    return positions, patterson_with_numpy(density), target


def positions_with_numpy(generator: np.random.Generator, problem: Problem) -> np.ndarray:
    """Positions `(num_atoms, 3)`, voxels from the box centre; an atom too near to another is drawn again."""
    positions = np.zeros((0, 3))
    while len(positions) < problem.num_atoms:
        drawn = generator.uniform(-problem.box_edge / 2, problem.box_edge / 2, 3)
        if np.all(np.sum((positions - drawn) ** 2, axis=1) >= problem.min_separation**2):
            positions = np.concatenate([positions, drawn[None]])
    return positions - positions.mean(axis=0) if problem.centred else positions


def render_with_numpy(positions: np.ndarray, grid_size: int, atom_radius: float) -> np.ndarray:
    """Density of equal spheres `(grid, grid, grid)`: the mean over a sub-grid in each voxel that a sphere can touch.

    Args:
        positions: `(num_atoms, 3)`, voxels from the box centre.
        grid_size: voxels along each edge.
        atom_radius: voxels.
    """
    density = np.zeros((grid_size,) * 3, np.float32)
    block = math.ceil(2 * atom_radius) + 1
    points = (np.arange(block * SUB_GRID) + 0.5) / SUB_GRID
    for position in positions + grid_size / 2:
        start = np.floor(position - atom_radius).astype(int)
        x, y, z = (start[:, None] + points - position[:, None]) ** 2
        inside = x[:, None, None] + y[:, None] + z < atom_radius**2
        fractions = inside.reshape((block, SUB_GRID) * 3).mean(axis=(1, 3, 5))
        voxels = (start[:, None] + np.arange(block)) % grid_size
        density[np.ix_(*voxels)] += fractions
    return density


def patterson_with_numpy(density: np.ndarray) -> np.ndarray:
    """The Patterson map of a density map, both `(grid, grid, grid)`, origin at voxel (0, 0, 0)."""
    return np.fft.irfftn(np.abs(np.fft.rfftn(density)) ** 2, s=density.shape, axes=(0, 1, 2))


def data_table(cells: Cells, settings: Settings, machine: dict) -> dict:
    """Maps a second: ours, and those of the NumPy program."""
    plain = cells.run('data, NumPy', 'numpy_data')
    rows = [{'implementation': 'NumPy', 'batch': 1, 'maps_per_second': plain and 1 / plain['best']}]
    timings = cells.run('data, ours', 'data', batches=BATCHES) or [None] * len(BATCHES)
    for batch, found in zip(BATCHES, timings, strict=True):
        rate = found and batch / found['best']
        rows.append({'implementation': 'ours', 'batch': batch, 'maps_per_second': rate})
        rows[-1]['speed_over_numpy'] = rate * plain['best'] if found and plain else None
    return {'rows': rows, 'notes': [f'NumPy averages over {SUB_GRID}³ points in each voxel that an atom can touch.']}
