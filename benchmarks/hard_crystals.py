"""Solves invented crystals of kinds that mislead: special positions, near symmetry, long axes, and rich lattices.

    python -m benchmarks.hard_crystals                    # all kinds
    python -m benchmarks.hard_crystals --kinds='long axis,pseudo-inversion'

Atoms are C, N and O as in `benchmarks.space_groups`, and so are the data and the scores. The kinds are

- special positions: each atom lies on one, so that few parameters are left and false symmetry is near.
- pseudo-translation: for each atom there is another, half an edge away up to 0.2 Å along each axis, and in one pair the
  elements differ. Half of the reflections are weak.
- pseudo-inversion: the group has no inversion, but each atom has another opposite to it, up to as much; one pair
  differs.
- long axis: one edge of 51 Å.
- square lattice, hexagonal lattice: the edges and angles are those of a tetragonal or hexagonal lattice within errors,
  and the crystal has less symmetry. The data are a half sphere, and no Laue class is claimed.

Printed as Markdown and written to `hard_crystals.json` beside this file, or to `--json`.
"""

import argparse
import sys
from pathlib import Path

import gemmi
import numpy as np

from benchmarks.crystals import Known
from benchmarks.space_groups import APART, ELEMENTS, SPACE, measured_crystal, random_cell, random_places, scored
from patterson_jax.compilation_cache import enable_compilation_cache
from patterson_jax.crystal.cell import UnitCell
from patterson_jax.errors import exit_on_errors, require
from patterson_jax.solving.crystal_maps import settle, stabiliser
from patterson_jax.writing import markdown_table, write_json

ATOMS = 48  # in the primitive cell, about
NEARLY = 0.2  # Å, by which pairs differ from exact symmetry
REACH = 0.9  # Å, from which atoms are moved onto special positions
LONG = 51.0  # Å
TRIALS = 20_000
SHIFTED = {'pseudo-translation': 0.5, 'pseudo-inversion': 0.0}
KINDS: dict[str, tuple[str, ...]] = {
    'special positions': (
        'C 1 2/m 1',
        'P n m a',
        'C m c m',
        'P 4/m m m',
        'I 4/m m m',
        'P -3 m 1',
        'P 63/m m c',
    ),
    'pseudo-translation': ('P -1', 'P 1 21 1', 'P 1 21/c 1', 'P 21 21 21', 'P n a 21'),
    'pseudo-inversion': ('P 1', 'P 1 21 1', 'P 1 c 1', 'P 21 21 21', 'P n a 21', 'P 41'),
    'long axis': ('P -1', 'P 1 21 1', 'P 1 21/c 1', 'P 21 21 21', 'P b c a'),
    'square lattice': ('P -1', 'P 1 21 1', 'P 1 21/c 1', 'P 21 21 21', 'P n a 21', 'P 41', 'P -4', 'I 41/a:2'),
    'hexagonal lattice': ('P -1', 'P 1 21/c 1', 'C 2 2 21', 'P 31', 'R -3:H', 'P 3 2 1', 'P 3 1 m', 'P 61', 'P 63/m'),
}
COLUMNS = ('kind', 'known group', 'Laue class', 'group', 'map', 'sites', 'extra', 'R1', 'verdict', 'starts', 's')


def invent(kind: str, symbol: str, seed: int) -> Known:
    """A crystal of a kind in a space group. Raises RuntimeError where its atoms do not fit into the cell."""
    setting = gemmi.find_spacegroup_by_name(symbol)
    operations = list(setting.operations())
    generator = np.random.default_rng([seed, setting.number, list(KINDS).index(kind)])
    primitive = len(operations) // len(setting.operations().cen_ops)
    count = max(ATOMS // primitive, 3)
    for _ in range(20):
        cell, places = _cell_and_places(kind, setting, count, generator)
        if places is not None:
            break
    else:
        raise RuntimeError(f'{kind}, {symbol}: the atoms do not fit')
    elements = [ELEMENTS[index % len(ELEMENTS)] for index in range(len(places))]
    if kind in SHIFTED:
        half = len(places) // 2
        elements[half:] = elements[:half]
        elements[0], elements[half] = 'C', 'O'
    return measured_crystal(setting, cell, places, elements, generator, kind, claimed='lattice' not in kind)


def _cell_and_places(kind, setting, count, generator):
    operations = list(setting.operations())
    volume = SPACE * count * len(operations)
    if kind == 'special positions':
        cell = random_cell(setting, volume / 4, generator)  # the sites are a quarter of general ones, or fewer
        return cell, _special_places(setting, cell, generator)
    if kind in SHIFTED:
        cell = random_cell(setting, volume, generator)
        return cell, _pairs(kind, operations, cell, count // 2, generator)
    cell = _long_cell(setting, generator) if kind == 'long axis' else _rich_cell(kind, setting, volume, generator)
    count = round(cell.volume / SPACE / len(operations))
    return cell, random_places(operations, cell, count, generator)


def _special_places(setting, cell, generator):
    """Special positions with all images apart, as many as there is room for; None if fewer than three are found."""
    operations = _as_arrays(setting)
    chosen = np.zeros((0, 3))
    images = np.zeros((0, 3))
    most = cell.volume / SPACE
    for _ in range(TRIALS):
        place, _ = settle(generator.random(3), cell, operations, REACH)
        if len(stabiliser(place, cell, operations)) == 1:
            continue
        orbit = np.unique(np.round((operations[0] @ place + operations[1]) % 1 % (1 - 1e-6), 5), axis=0)
        everything = np.concatenate([images, orbit])
        if np.sum(_lengths(everything - orbit[0], cell) < APART) == 1:
            chosen, images = np.concatenate([chosen, place[None]]), everything
            if len(images) >= most:
                break
    return chosen if len(chosen) >= 3 else None


def _pairs(kind, operations, cell, count, generator):
    """Places with partners that a translation by half of the longest edge or an inversion nearly gives."""
    sign = -1 if kind == 'pseudo-inversion' else 1
    edges = (cell.a, cell.b, cell.c)
    shift = SHIFTED[kind] * (np.arange(3) == int(np.argmax(edges)))
    middle = np.array([0.13, 0.21, 0.17]) if kind == 'pseudo-inversion' else np.zeros(3)
    near = [gemmi.Op(each.triplet()) for each in operations]
    images, first, second = np.zeros((0, 3)), [], []
    for _ in range(TRIALS):
        place = generator.random(3)
        moved = _moved(place, cell, generator)
        partner = 2 * middle - moved if sign < 0 else moved + shift
        orbit = np.array([op.apply_to_xyz(each.tolist()) for each in (place, partner) for op in near])
        everything = np.concatenate([images, orbit])
        if all(np.sum(_lengths(everything - each, cell) < APART) == 1 for each in (orbit[0], orbit[len(near)])):
            images = everything
            first.append(place)
            second.append(partner)
            if len(first) == count:
                return np.array(first + second)
    return None


def _moved(place, cell, generator):
    return place + np.linalg.inv(cell.orthogonalization) @ generator.uniform(-NEARLY, NEARLY, 3)


def _long_cell(setting, generator):
    """A cell with 51 Å along the last axis that is not unique, and 5 to 6 Å along the others."""
    unit = random_cell(setting, 1.0, generator)
    a, b = generator.uniform(5.0, 6.2, 2)
    return UnitCell(float(a), float(b), LONG, unit.alpha, unit.beta, unit.gamma)


def _rich_cell(kind, setting, volume, generator):
    """A cell with the edges and angles of a lattice that has more symmetry than the group."""
    third = float(generator.uniform(0.8, 1.3))
    system = setting.crystal_system_str()
    unit = UnitCell(1.0, 1.0, third, 90.0, 90.0, 90.0)
    if kind == 'hexagonal lattice':
        unit = UnitCell(1.0, 1.0, third, 90.0, 90.0, 120.0)
        if system == 'monoclinic':
            unit = UnitCell(1.0, third, 1.0, 90.0, 120.0, 90.0)
        elif system == 'orthorhombic':
            unit = UnitCell(1.0, float(np.sqrt(3)), third, 90.0, 90.0, 90.0)
    scale = (volume / unit.volume) ** (1 / 3)
    a, b, c, *angles = unit.parameters
    return UnitCell(a * scale, b * scale, c * scale, *angles)


def _as_arrays(setting):
    operations = list(setting.operations())
    rotations = np.array([each.rot for each in operations]) // gemmi.Op.DEN
    return rotations, np.array([each.tran for each in operations]) / gemmi.Op.DEN


def _lengths(differences, cell):
    differences = differences - np.rint(differences)
    return np.linalg.norm(differences @ cell.orthogonalization.T, axis=-1)


def measure(kind: str, symbol: str, seed: int, options: argparse.Namespace) -> dict:
    """Solves and scores one crystal, the starts with its own seed; the entry of the JSON file."""
    return {'kind': kind, 'seed': seed, **scored(invent(kind, symbol, seed), seed, options)}


def table(results: list[dict]) -> str:
    """The results as Markdown, and counts."""
    rows = []
    for each in results:
        shares = [each.get(key) for key in ('map', 'sites', 'extra')]
        map_, sites, extra = ('–' if share is None else f'{share:.2f}' for share in shares)
        group = f'{each["group"]}{"" if each["group_right"] else " ✗"}'
        r_factor = '–' if each['r_factor'] is None else f'{each["r_factor"]:.3f}'
        rows.append(
            (
                each['kind'],
                each['known_group'],
                each['laue_class'],
                group,
                map_,
                sites,
                extra,
                r_factor,
                each['verdict'],
                each['starts'],
                f'{each["cpu_seconds"]:.1f}',
            )
        )
    solved = [each for each in results if each['verdict'] == 'solved']
    return (
        f'{markdown_table(COLUMNS, rows)}\n\n{sum(each["right"] for each in results)} of {len(results)} right, '
        f'{sum(each["group_right"] for each in results)} groups, {len(solved)} called solved, '
        f'{sum(not each["right"] for each in solved)} of these wrong'
    )


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.hard_crystals', description=__doc__.partition('\n')[0])
    parser.add_argument('--kinds', default=','.join(KINDS), help='with commas between')
    parser.add_argument('--seeds', type=int, default=3, help='crystals of each kind and group')
    parser.add_argument('--starts', type=int, default=8, help='for a crystal, at most')
    parser.add_argument('--seconds', type=float, default=60.0, help='for a crystal, at most; 0: no limit')
    parser.add_argument('--json', type=Path, default=Path(__file__).with_name('hard_crystals.json'), help='to write')
    options = parser.parse_args()
    with exit_on_errors():
        kinds = [each.strip() for each in options.kinds.split(',')]
        for kind in kinds:
            require(kind in KINDS, '--kinds', kind, ', '.join(KINDS))
        enable_compilation_cache()
        results = []
        cases = [(each, group, seed) for seed in range(options.seeds) for each in kinds for group in KINDS[each]]
        for kind, symbol, seed in cases:
            results.append(measure(kind, symbol, seed, options))
            print(table(results[-1:]).splitlines()[2], file=sys.stderr, flush=True)
            write_json(options.json, {'starts': options.starts, 'seconds': options.seconds, 'crystals': results})
        print(table(results))


if __name__ == '__main__':
    main()
