"""How time and memory of the search grow with the atoms in the cell.

    python -m benchmarks.crystal_speed                       # 12 to 800 atoms
    python -m benchmarks.crystal_speed --atoms=48,200

Made-up crystals of P2₁/c as in `benchmarks.space_groups`, to 0.8 Å. Seconds are processor seconds without compilation,
of four starts to their end with all that finds their group, four being under way at once, over four. Memory is the
highest that the process has had so far, compilers included.

Printed as Markdown and written to `crystal-speed-DEVICE.json` beside this file, or to `--json`.
"""

import argparse
import resource
import time
from pathlib import Path

import jax

from benchmarks.space_groups import invent
from patterson_jax.crystal.cell import UnitCell
from patterson_jax.errors import exit_on_errors, require
from patterson_jax.solving.crystal_phasing import STARTS_AT_ONCE, phase, prepare_crystal
from patterson_jax.writing import markdown_table, write_json

GROUP, ORDER = 14, 4
ATOMS = (12, 48, 100, 200, 400, 800)


def measure(atoms: int, seed: int) -> dict:
    """The entry of the JSON file for a number of atoms in the cell."""
    data = invent(GROUP, seed, atoms // ORDER).data
    began = time.process_time()
    crystal = prepare_crystal(data)
    prepared = time.process_time() - began
    for _ in phase(crystal, jax.random.key(seed + 1), STARTS_AT_ONCE):  # compiles
        pass
    began = time.process_time()
    maps = list(phase(crystal, jax.random.key(seed), STARTS_AT_ONCE))
    seconds = time.process_time() - began
    return {
        'atoms': atoms,
        'cell': _parameters(data.cell),
        'reflections': len(data.hkl),
        'grid': list(crystal.grid.shape),
        'prepare_seconds': round(prepared, 3),
        'seconds_per_start': round(seconds / STARTS_AT_ONCE, 3),
        'cycles_per_start': sum(each.cycles for each in maps) // len(maps),
        'promising': sum(each.promising for each in maps),
        'peak_gigabytes': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def _parameters(cell: UnitCell) -> list[float]:
    return [round(each, 3) for each in cell.parameters]


def table(results: list[dict]) -> str:
    """The results as Markdown."""
    heads = ('atoms', 'reflections', 'grid', 'prepared, s', 'a start, s', 'cycles', 'promising of 4', 'peak, GB')
    rows = (
        (
            each['atoms'],
            each['reflections'],
            '×'.join(map(str, each['grid'])),
            each['prepare_seconds'],
            each['seconds_per_start'],
            each['cycles_per_start'],
            each['promising'],
            each['peak_gigabytes'],
        )
        for each in results
    )
    return markdown_table(heads, rows)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.crystal_speed', description=__doc__.partition('\n')[0])
    parser.add_argument('--atoms', default=','.join(map(str, ATOMS)), help='in the cell, ascending')
    parser.add_argument('--seed', type=int, default=0, help='of crystals and starts')
    parser.add_argument(
        '--json', type=Path, help='file to write; default crystal-speed-DEVICE.json beside this program'
    )
    options = parser.parse_args()
    with exit_on_errors():
        output = options.json or Path(__file__).with_name(f'crystal-speed-{jax.default_backend()}.json')
        words = options.atoms.split(',')
        fit = all(each.isdecimal() and int(each) >= ORDER for each in words)
        require(fit, '--atoms', options.atoms, f'whole numbers from {ORDER} on with commas between')
        results = []
        for atoms in map(int, words):
            results.append(measure(atoms, options.seed))
            write_json(output, {'device': jax.devices()[0].device_kind, 'seed': options.seed, 'crystals': results})
        print(table(results))
        print(f'\n{output}')


if __name__ == '__main__':
    main()
