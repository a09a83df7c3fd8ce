"""How time and memory of the search grow with the atoms in the cell, beside NumPy and cctbx.

    python -m benchmarks.crystal_speed                       # 12 to 800 atoms
    python -m benchmarks.crystal_speed --atoms=48,200
    python -m benchmarks.crystal_speed --peer=PYTHON         # and cctbx, which that Python has

Made-up crystals of P2₁/c as in `benchmarks.space_groups`, to 0.8 Å, one for each number of atoms. All programs are
bound to one core, if the system can do that. Seconds are processor seconds without compilation and without imports.

- ours: a round of the search's recipes, to the end of each start with all that finds its group; four starts are under
  way at once. Nothing is known of the group but its Laue class.
- NumPy: starts of `crystal_reference` in P1, on the same E values and the same grid; it does not look for the group.
- cctbx: runs on the same reflections, each until cctbx accepts a map; an attempt is a start, also one that fails. It
  gets the true space group, computes in P1 with double precision, and chooses its own E values and grid.

NumPy and cctbx begin as many starts and runs as ours, but none after `--seconds`, when cctbx is stopped; NumPy ends its
start. A cycle is one of charge flipping with the skewness of its map. A start is right if the map correlation of its
phases, as in `benchmarks.crystals`, is above 0.8. Memory is the highest of the process while it prepared and solved a
crystal, compilers included.

Printed as Markdown and written to `crystal-speed-DEVICE.json` beside this file, or to `--json`.
"""

import argparse
import itertools
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from benchmarks.crystal_reference import flip_charges
from benchmarks.crystals import RIGHT_MAP, Known, ask_peer, half_sphere, known_structure_factors, map_correlation
from benchmarks.machine import describe_machine
from benchmarks.space_groups import invent
from benchmarks.timing import peak_resident_memory, reset_peak_memory
from patterson_jax.crystal.cell import UnitCell
from patterson_jax.errors import InputError, exit_on_errors, require
from patterson_jax.solving.charge_flipping import RECIPES, flip
from patterson_jax.solving.crystal_phasing import CYCLES_AT_ONCE, STARTS_AT_ONCE, Crystal, phase, prepare_crystal
from patterson_jax.writing import markdown_table, write_json

GROUP, ORDER = 14, 4
ATOMS = (12, 48, 100, 200, 400, 800)
STARTS = len(RECIPES)
PROGRAMS = {'ours': 'ours', 'numpy': 'NumPy', 'cctbx': 'cctbx'}

Score = Callable[[np.ndarray, np.ndarray], float | None]


def measure(atoms: int, options: argparse.Namespace) -> dict:
    """The entry of the JSON file for a number of atoms in the cell."""
    known = invent(GROUP, options.seed, atoms // ORDER)
    wanted = half_sphere(known.data)
    factors = known_structure_factors(known, wanted)

    def score(hkl, phases):
        return map_correlation(wanted, factors, hkl, phases)

    counted = reset_peak_memory() is not None
    began = time.process_time()
    crystal = prepare_crystal(known.data)
    prepared = time.process_time() - began
    programs = {'ours': measure_ours(crystal, options.seed, score)}
    peak = round(peak_resident_memory() / 1e3, 2) if counted else None
    programs['numpy'] = measure_numpy(crystal, options.seed, options.seconds, score)
    if options.peer:
        programs['cctbx'] = measure_peer(known, options, score)
    return {
        'atoms': atoms,
        'cell': _parameters(known.data.cell),
        'reflections': len(known.data.hkl),
        'prepare_seconds': round(prepared, 3),
        'peak_gigabytes': peak,
        **programs,
    }


def measure_ours(crystal: Crystal, seed: int, score: Score) -> dict:
    """A start by each of the recipes that the search uses in turn."""
    for _ in itertools.islice(phase(crystal, jax.random.key(seed + 1), STARTS_AT_ONCE), 1):  # compiles
        pass
    began = time.process_time()
    maps = list(phase(crystal, jax.random.key(seed), STARTS))
    seconds = time.process_time() - began
    maps.sort(key=lambda each: each.start)  # so that it is seen which recipe fails
    hkl = crystal.expanded.in_given_cell(crystal.expanded.hkl)
    result = summary(
        crystal.grid.shape,
        len(maps),
        seconds,
        sum(each.cycles for each in maps),
        seconds_of_cycle(crystal),
        [score(hkl, np.angle(each.factors)) for each in maps],
    )
    return {**result, 'promising': sum(each.promising for each in maps)}


def seconds_of_cycle(crystal: Crystal) -> float:
    """Seconds of a cycle of the search, of one of the starts that are under way at once."""
    generator = np.random.default_rng(0)
    densities = generator.standard_normal((STARTS_AT_ONCE, *crystal.grid.shape)).astype(np.float32)
    settings = (np.zeros(STARTS_AT_ONCE, np.int32), np.full(STARTS_AT_ONCE, RECIPES[0].threshold, np.float32))
    cycles = jax.jit(flip, static_argnames='cycles')
    densities, _ = jax.block_until_ready(cycles(densities, *settings, crystal.search, CYCLES_AT_ONCE))  # compiles
    began = time.process_time()
    jax.block_until_ready(cycles(densities, *settings, crystal.search, CYCLES_AT_ONCE))
    return (time.process_time() - began) / (CYCLES_AT_ONCE * STARTS_AT_ONCE)


def measure_numpy(crystal: Crystal, seed: int, limit: float, score: Score) -> dict:
    """As many starts by `crystal_reference`, but none that begins after so many seconds."""
    hkl = crystal.expanded.hkl
    generator = np.random.default_rng(seed)
    ends, began = [], time.process_time()
    while len(ends) < STARTS and time.process_time() - began < limit:
        ends.append(flip_charges(hkl, crystal.normalised, crystal.grid, generator))
    seconds = time.process_time() - began
    cycles = sum(len(each.skewness) for each in ends)
    given = crystal.expanded.in_given_cell(hkl)
    maps = [score(given, np.angle(each.factors)) for each in ends]
    result = summary(crystal.grid.shape, len(ends), seconds, cycles, seconds / cycles, maps)
    return {**result, 'jumped': sum(each.jumped for each in ends)}


def measure_peer(known: Known, options: argparse.Namespace, score: Score) -> dict:
    """As many runs of cctbx, within the seconds of the options; no figures and a remark if it does not answer."""
    try:
        return summarise_peer(ask_peer(known, options.peer, options.seconds, options.seed, STARTS), score)
    except InputError as error:
        return {**summarise_peer([], score), 'remarks': [str(error)]}


def summarise_peer(runs: list[dict], score: Score) -> dict:
    """The runs of cctbx."""
    seconds, cycle_seconds = (sum(each[key] for each in runs) for key in ('seconds', 'cycle_seconds'))
    starts, cycles = (sum(each[key] for each in runs) for key in ('attempts', 'cycles'))
    maps = [score(each['hkl'], each['phases']) for each in runs]
    grid = runs[0]['grid'] if runs else ()
    result = summary(grid, starts, seconds, cycles, cycle_seconds / cycles if cycles else None, maps)
    remarks = sorted({each['remark'] for each in runs} - {''})
    return {**result, 'runs': len(runs), 'accepted': sum(each['accepted'] for each in runs), 'remarks': remarks}


def summary(
    grid: tuple[int, ...] | list[int],
    starts: int,
    seconds: float,
    cycles: int,
    cycle_seconds: float | None,
    maps: list[float | None],
) -> dict:
    """What is told of every program: `seconds` and `cycles` are those of all `starts`, `maps` their correlations."""
    right = sum((each or 0) > RIGHT_MAP for each in maps)
    return {
        'grid': list(grid),
        'starts': starts,
        'right': right,
        'maps': [None if each is None else round(each, 3) for each in maps],
        'cycles_per_start': cycles // starts if starts else None,
        'milliseconds_per_cycle': None if cycle_seconds is None else round(1000 * cycle_seconds, 3),
        'seconds_per_start': round(seconds / starts, 3) if starts else None,
        'seconds_per_right_map': round(seconds / right, 3) if right else None,
    }


def _parameters(cell: UnitCell) -> list[float]:
    return [round(each, 3) for each in cell.parameters]


def growth_table(results: list[dict]) -> str:
    """How our search grows, as Markdown."""
    heads = ('atoms', 'reflections', 'grid', 'prepared, s', 'a start, s', 'cycles', 'promising', 'peak, GB')
    rows = (
        (
            each['atoms'],
            each['reflections'],
            _grid(each['ours']),
            f'{each["prepare_seconds"]:.2f}',
            _figure(each['ours']['seconds_per_start']),
            each['ours']['cycles_per_start'],
            f'{each["ours"]["promising"]} of {each["ours"]["starts"]}',
            _figure(each['peak_gigabytes']),
        )
        for each in results
    )
    return markdown_table(heads, rows)


def cycle_table(results: list[dict]) -> str:
    """The cycles of all programs side by side, as Markdown; NumPy has our grid."""
    columns = {'ms a cycle': 'milliseconds_per_cycle', 'cycles a start': 'cycles_per_start'}
    grids = {f'grid: {PROGRAMS[key]}': [_grid(each[key]) for each in results] for key in ('ours', *_peers(results))}
    return _by_atoms(results, grids | _side_by_side(results, columns))


def start_table(results: list[dict]) -> str:
    """The starts of all programs side by side, as Markdown."""
    asked = ('ours', 'numpy', *_peers(results))
    right = {
        f'right: {PROGRAMS[key]}': [f'{each[key]["right"]} of {each[key]["starts"]}' for each in results]
        for key in asked
    }
    columns = {'s a start': 'seconds_per_start', 's a right map': 'seconds_per_right_map'}
    return _by_atoms(results, right | _side_by_side(results, columns))


def _peers(results):
    return ('cctbx',) if all('cctbx' in each for each in results) else ()


def _side_by_side(results, columns):
    """The figures of each program, by heading."""
    asked = ('ours', 'numpy', *_peers(results))
    return {
        f'{name}: {PROGRAMS[key]}': [_figure(each[key][figure]) for each in results]
        for name, figure in columns.items()
        for key in asked
    }


def _by_atoms(results, columns):
    return markdown_table(('atoms', *columns), zip((each['atoms'] for each in results), *columns.values(), strict=True))


def _grid(told):
    return '×'.join(map(str, told['grid'])) or '–'


def _figure(value):
    """Two digits of a float, or one after the point, and a dash for None."""
    if value is None or isinstance(value, int):
        return '–' if value is None else str(value)
    return f'{value:.1f}' if value >= 10 else f'{value:#.2g}'


def bind_to_one_core() -> None:
    """Binds this process and those that it starts to one core, before XLA counts them; nothing where that cannot be."""
    if hasattr(os, 'sched_setaffinity'):
        core = {max(os.sched_getaffinity(0))}
        for thread in Path('/proc/self/task').iterdir():  # libraries have made some
            os.sched_setaffinity(int(thread.name), core)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.crystal_speed', description=__doc__.partition('\n')[0])
    parser.add_argument('--atoms', default=','.join(map(str, ATOMS)), help='in the cell, ascending')
    parser.add_argument('--seed', type=int, default=0, help='of crystals and starts')
    parser.add_argument('--peer', default='', metavar='PYTHON', help='a Python that has cctbx, to compare with')
    parser.add_argument('--seconds', type=float, default=20.0, help='for NumPy and for cctbx on a crystal')
    parser.add_argument(
        '--json', type=Path, help='file to write; default crystal-speed-DEVICE.json beside this program'
    )
    options = parser.parse_args()
    with exit_on_errors():
        load = round(os.getloadavg()[0], 1)
        bind_to_one_core()
        output = options.json or Path(__file__).with_name(f'crystal-speed-{jax.default_backend()}.json')
        words = options.atoms.split(',')
        fit = all(each.isdecimal() and int(each) >= ORDER for each in words)
        require(fit, '--atoms', options.atoms, f'whole numbers from {ORDER} on with commas between')
        require(not options.peer or shutil.which(options.peer), '--peer', options.peer, 'a Python that has cctbx')
        require(options.seconds > 0, '--seconds', options.seconds, 'more than 0')
        conditions = {
            'machine': describe_machine(jax.devices()[0].device_kind, jax.default_backend()),
            'load_average_before': load,
            'seed': options.seed,
            'seconds': options.seconds,
        }
        results = []
        for atoms in map(int, words):
            results.append(measure(atoms, options))
            write_json(output, {**conditions, 'crystals': results})
        print(growth_table(results), cycle_table(results), start_table(results), output, sep='\n\n')


if __name__ == '__main__':
    main()
