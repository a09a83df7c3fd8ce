"""Solves an invented crystal in each of the 230 space groups.

    python -m benchmarks.space_groups                       # one crystal in each of the 230
    python -m benchmarks.space_groups --groups=195-230      # of some of them

C, N and O are in random general positions, at least 1.4 Å apart, with 18 Å³ for each atom, in a cell of the group's
standard setting (origin choice 2, hexagonal axes). The data go to 0.8 Å, with an error of 3 %, and are merged in the
Laue class, which is claimed as an .ins would. Reflections that the group forbids are measured too, as noise. Scores are
those of `benchmarks.crystals`. A group or its mirror image is right, because the hand cannot be known.

The program prints counts and the misses, and writes everything to `space_groups.json` beside this file, or to `--json`.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import gemmi
import numpy as np

from benchmarks.crystals import Known, answer, known_structure_factors, occupied_sites
from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.preparation import prepare
from patterson_jax.crystal.reflections import Measurements, sphere
from patterson_jax.crystal.structure import CrystalData
from patterson_jax.solving.crystal_solver import solve_crystal

ELEMENTS = ('C', 'C', 'O', 'N')
SPACE = 18.0  # Å³ for each atom
ATOMS, FEWEST, MOST = 48, 3, 12  # about so many in the primitive cell; fewest and most in the asymmetric unit
APART = 1.4  # Å
U_ISO, ERROR, BACKGROUND = 0.03, 0.03, 0.005  # Å²; relative error of an intensity; error relative to their mean
RESOLUTION = 0.8  # Å


def invent(number: int, seed: int, count: int = 0) -> Known:
    """A crystal in the standard setting of a space group, with `count` atoms in the asymmetric unit; 0: as above."""
    generator = np.random.default_rng([seed, number])
    setting = gemmi.get_spacegroup_reference_setting(number)
    operations = setting.operations()
    order = len(list(operations))
    count = count or int(np.clip(ATOMS * len(operations.cen_ops) // order, FEWEST, MOST))
    while True:
        cell = random_cell(setting, SPACE * count * order, generator)
        places = random_places(list(operations), cell, count, generator)
        if places is not None:
            break
    elements = [ELEMENTS[index % len(ELEMENTS)] for index in range(count)]
    return measured_crystal(setting, cell, places, elements, generator)


def measured_crystal(
    setting: gemmi.SpaceGroup,
    cell: UnitCell,
    places: np.ndarray,
    elements: list[str],
    generator: np.random.Generator,
    name: str = '',
    claimed: bool = True,
) -> Known:
    """A crystal with its measured data.

    Args:
        setting: of its space group.
        cell: of the crystal.
        places: `(n, 3)`, fractional, of the atoms of the asymmetric unit.
        elements: of these atoms.
        generator: of the errors.
        name: of the crystal; by default the number of its group.
        claimed: whether the data are those of an asymmetric unit and the Laue class is claimed, as an .ins would. Else
            they are a half sphere, and the class is to be found.
    """
    operations = setting.operations()
    atoms = [
        {'el': element, 'xyz': place.tolist(), 'occ': 1.0, 'U': ['iso', [U_ISO]]}
        for element, place in zip(elements, places, strict=True)
    ]
    content = {
        'name': name or f'{setting.number}',
        'spacegroup': f'{setting.xhm()} (#{setting.number})',
        'symops': [each.triplet() for each in operations],
        'occ_includes_site_multiplicity': False,
        'atoms': atoms,
    }
    hkl = sphere(cell, RESOLUTION)
    if claimed:
        unique = gemmi.ReciprocalAsu(setting)
        hkl = np.array([each for each in np.concatenate([hkl, -hkl]).tolist() if unique.is_in(each)], np.int32)
    nothing = CrystalData(cell, hkl, np.ones(len(hkl)), np.ones(len(hkl)), '-1', np.eye(3)[None], 'P')
    true = Known(nothing, content)
    intensities = np.abs(known_structure_factors(true, hkl)) ** 2
    sigmas = np.hypot(ERROR * intensities, BACKGROUND * intensities.mean())
    formula: dict[str, float] = {}
    for atom in atoms:
        formula[atom['el']] = formula.get(atom['el'], 0.0) + occupied_sites(true, atom)
    rotations = np.unique([each.rot for each in operations], axis=0) // gemmi.Op.DEN
    prepared = prepare(
        Measurements(hkl, intensities + sigmas * generator.standard_normal(len(hkl)), sigmas),
        cell,
        formula=formula,
        claimed=rotations if claimed else None,
    )
    return Known(prepared.data, content)


def random_cell(setting: gemmi.SpaceGroup, volume: float, generator: np.random.Generator) -> UnitCell:
    """A cell of the group's crystal system with a volume in Å³; free edges and angles are random."""
    system = setting.crystal_system_str()
    ratios = generator.uniform(0.8, 1.3, 3)
    angles = np.full(3, 90.0)
    if system == 'triclinic':
        angles = generator.uniform(75, 105, 3)
    elif system == 'monoclinic':
        angles[1] = generator.uniform(95, 110)
    elif system in ('tetragonal', 'trigonal', 'hexagonal'):
        ratios[1] = ratios[0]
        angles[2] = 90.0 if system == 'tetragonal' else 120.0
    elif system == 'cubic':
        ratios[:] = 1
    unit = UnitCell(*ratios.tolist(), *angles.tolist())
    edges = ratios * (volume / unit.volume) ** (1 / 3)
    return UnitCell(*edges.tolist(), *angles.tolist())


def random_places(
    operations: list[gemmi.Op], cell: UnitCell, count: int, generator: np.random.Generator
) -> np.ndarray | None:
    """General positions `(count, 3)` with all images apart; None if too few fit."""
    images = np.zeros((0, 3))
    chosen: list[np.ndarray] = []
    for _ in range(4000):
        place = generator.random(3)
        orbit = np.array([each.apply_to_xyz(place.tolist()) for each in operations])
        differences = np.concatenate([images, orbit])[:, None] - orbit[:1]
        differences -= np.rint(differences)
        distances = np.linalg.norm(differences @ cell.orthogonalization.T, axis=-1)
        if np.sum(distances < APART) == 1:
            images = np.concatenate([images, orbit])
            chosen.append(place)
            if len(chosen) == count:
                return np.array(chosen)
    return None


def scored(known: Known, seed: int, options: argparse.Namespace) -> dict:
    """Solves a crystal that is known, within the starts and seconds of the options, and tells how right that is."""
    began = time.process_time()
    solution = solve_crystal(known.data, seed=seed, max_starts=options.starts, max_seconds=options.seconds)
    told = answer(known, solution)
    return {
        'cell': [round(each, 4) for each in known.data.cell.parameters],
        'atoms': len(known.atoms),
        'laue_class': known.data.laue_class,
        'cpu_seconds': round(time.process_time() - began, 1),
        **told,
    }


def measure(number: int, options: argparse.Namespace) -> dict:
    """Solves and scores the crystal of one group; the entry of the JSON file."""
    return {'number': number, **scored(invent(number, options.seed), options.seed, options)}


def summary(results: list[dict]) -> str:
    """Counts, and a line for each miss."""
    solved = [each for each in results if each['verdict'] == 'solved']
    wrong = [each for each in solved if not each['right']]
    lines = [
        f'{len(results)} groups: {sum(each["right"] for each in results)} right, '
        f'{sum(each["group_right"] for each in results)} with the right group, '
        f'{sum((each.get("map") or 0) > 0.8 for each in results)} with a right map; '
        f'{len(solved)} called solved, {len(wrong)} of these wrong'
    ]
    for each in results:
        if not each['right'] or each['verdict'] != 'solved':
            found = f'{each["group"]}{"" if each["group_right"] else " (wrong)"}'
            shares = ', '.join(
                f'{key} {each[key]:.2f}' for key in ('map', 'sites', 'extra') if each.get(key) is not None
            )
            lines.append(
                f'- {each["known_group"]}, Laue class {each["laue_class"]}: {found}, {shares}, {each["verdict"]} '
                f'({"; ".join(each["reasons"])}), {each["starts"]} starts'
            )
    return '\n'.join(lines)


def parse_groups(text: str) -> list[int]:
    """Numbers of space groups from a text like '1-15,62'."""
    numbers = []
    for part in text.split(','):
        first, _, last = part.partition('-')
        numbers += range(int(first), int(last or first) + 1)
    return [number for number in numbers if 1 <= number <= 230]


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.space_groups', description=__doc__.partition('\n')[0])
    parser.add_argument('--groups', type=parse_groups, default='1-230', help="as '1-15,62'")
    parser.add_argument('--seed', type=int, default=0, help='of the crystals and the starts')
    parser.add_argument('--starts', type=int, default=6, help='for a crystal, at most')
    parser.add_argument('--seconds', type=float, default=30.0, help='for a crystal, at most; 0: no limit')
    parser.add_argument('--json', type=Path, default=Path(__file__).with_name('space_groups.json'), help='to write')
    options = parser.parse_args()
    results = []
    for number in options.groups:
        results.append(measure(number, options))
        print(summary(results[-1:]).splitlines()[-1], results[-1]['cpu_seconds'], file=sys.stderr, flush=True)
        content = {'seed': options.seed, 'starts': options.starts, 'seconds': options.seconds, 'groups': results}
        options.json.write_text(json.dumps(content, indent=1), encoding='utf-8')
    print(summary(results))


if __name__ == '__main__':
    main()
