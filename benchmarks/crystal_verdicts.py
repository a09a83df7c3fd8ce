"""Counts verdicts on invented crystals against the truth.

    python -m benchmarks.crystal_verdicts --stream=calibration    # crystals for the constants of crystal_verdict.py
    python -m benchmarks.crystal_verdicts --stream=evaluation     # the test, on other crystals

Most cases are judged from phases: the true phases with errors, or wrong ones. Wrong phases are those of a molecule that
is displaced, half wrong, or reduced to its heavy atom; those of the right structure in a group with too few or too many
operations; or the intensities are permuted within shells or are another crystal's. A model is right if its group is
right, if nine of ten true atoms (at least half full) are within 0.5 Å, and if at most a tenth of the atoms is extra.
Other cases are judged from the true atoms with one atom missing, displaced or added; then every atom must be right. A
line for each case goes to stderr, the counts to stdout, and everything to the JSON of --output.
"""

import argparse
import collections
import dataclasses
import json
import sys
import time
from pathlib import Path

import gemmi
import numpy as np

from patterson_jax.crystal.structure import SpaceGroup
from patterson_jax.simulation.invented_crystals import (
    GROUPS,
    InventedCrystal,
    Recipe,
    anisotropic_structure_factors,
    invent,
)
from patterson_jax.solving.crystal_maps import nearest_images
from patterson_jax.solving.crystal_structure import Interpretation, interpret_phases, judge_atoms
from patterson_jax.solving.crystal_verdict import Evidence, expected_r_factor
from patterson_jax.writing import markdown_table

STREAMS = {'calibration': 0, 'evaluation': 100_000}
HEAVY = ((), (), (), ('S',), ('Cl',), ('Br',), ('Cu',), ('P', 'F'))
CASES = (
    'right',
    'right',
    'right',
    'wrong formula',
    'displaced',
    'half wrong',
    'heavy alone',
    'subgroup',
    'supergroup',
    'permuted',
    'another crystal',
    'atom missing',
    'atom displaced',
    'atom added',
)

VERDICTS = ('solved', 'uncertain', 'not solved')
NEAR = 0.5  # Å
ROOM = 1.3  # Å around an added atom
HALF = 0.45  # least occupancy of an atom that counts as a site


def random_recipe(generator: np.random.Generator, index: int) -> Recipe:
    """Draws a recipe."""
    group = tuple(GROUPS)[index % len(GROUPS)]
    heavy = HEAVY[generator.integers(len(HEAVY))]
    return Recipe(
        group=group,
        num_atoms=int(generator.integers(8, 26)),
        heavy=heavy,
        special=heavy == ('Cu',) and group in ('P-1', 'P21/c') and generator.random() < 0.6,
        d_min=float(generator.choice((0.75, 0.8, 0.9, 1.0))),
        disorder=float(generator.choice((0.0, 0.0, 0.0, 0.1, 0.2))),
        error=float(generator.uniform(0.01, 0.05)),
        background=float(generator.choice((0.003, 0.01, 0.03, 0.08))),
    )


def spoilt(structure_factors: np.ndarray, wanted: float, generator: np.random.Generator) -> np.ndarray:
    """Phases `(n,)` in radians with such errors that the map correlation with the truth is `wanted`."""
    phases, weights = np.angle(structure_factors), np.abs(structure_factors) ** 2
    if np.abs(np.sin(phases)).max() < 1e-3:
        return phases + np.pi * (generator.random(len(phases)) < (1 - wanted) / 2)
    errors = generator.standard_normal(len(phases))
    low, high = 0.0, 4.0
    for _ in range(30):
        middle = (low + high) / 2
        left = np.sum(weights * np.cos(middle * errors)) / weights.sum()
        low, high = (middle, high) if left > wanted else (low, middle)
    return phases + low * errors


def make_case(kind: str, crystal: InventedCrystal, other: InventedCrystal, generator: np.random.Generator):
    """Data, group and phases of a case, and whether the group can be right; None if there is no such case."""
    data, group = crystal.data, crystal.space_group
    correlation = float(generator.choice((0.8, 0.85, 0.95)))
    factors = crystal.structure_factors
    if kind == 'wrong formula':
        formulas = ({'C': 20, 'H': 30, 'O': 10, 'N': 2}, {'C': 6, 'H': 6}, {'C': 12, 'O': 6, 'S': 1, 'Cl': 1}, None)
        data = dataclasses.replace(data, formula=formulas[generator.integers(len(formulas))])
    elif kind in ('displaced', 'half wrong', 'heavy alone'):
        factors = _model_factors(kind, crystal, generator)
    elif kind in ('subgroup', 'supergroup'):
        group, factors = _other_group(kind, crystal)
        if group is None:
            return None
    elif kind == 'permuted':
        data = _with_permuted_intensities(data, generator)
    elif kind == 'another crystal':
        data = _with_intensities_of(data, other.data)
    return (
        data,
        group,
        spoilt(factors, correlation, generator),
        kind not in ('subgroup', 'supergroup', 'permuted', 'another crystal'),
    )


def _with_one_wrong_atom(kind, crystal, generator):
    """Positions and elements of the true atoms, without hydrogen and minor sites, with one error."""
    kept = [index for index, each in enumerate(crystal.elements) if each != 'H' and crystal.occupancies[index] >= HALF]
    positions, elements = crystal.positions[kept], [crystal.elements[each] for each in kept]
    wrong = int(generator.integers(1, len(kept)))
    fractionalization = np.linalg.inv(crystal.data.cell.orthogonalization)
    if kind == 'atom missing':
        return np.delete(positions, wrong, axis=0), tuple(each for i, each in enumerate(elements) if i != wrong)
    if kind == 'atom displaced':
        vector = generator.standard_normal(3)
        positions[wrong] += fractionalization @ (generator.uniform(0.6, 1.5) * vector / np.linalg.norm(vector))
        return positions, tuple(elements)
    while True:
        place = generator.random(3)
        distances, _ = nearest_images(place, positions, crystal.data.cell, crystal.space_group.operations)
        if distances.min() > ROOM:
            return np.concatenate([positions, place[None]]), (*elements, 'C')


def _model_factors(kind, crystal, generator):
    """Structure factors of a wrong model."""
    positions, occupancies = crystal.positions.copy(), crystal.occupancies.copy()
    numbers = np.array([gemmi.Element(each).atomic_number for each in crystal.elements])
    fractionalization = np.linalg.inv(crystal.data.cell.orthogonalization)
    if kind == 'displaced':
        vector = generator.standard_normal(3)
        positions += fractionalization @ (generator.uniform(0.4, 2.0) * vector / np.linalg.norm(vector))
    elif kind == 'half wrong':
        wrong = generator.random(len(positions)) < 0.5
        positions[wrong] += generator.standard_normal((wrong.sum(), 3)) @ fractionalization.T
    else:
        occupancies[numbers < max(numbers.max(), 9)] = 0
        if not occupancies.any():
            occupancies[np.argsort(-numbers, kind='stable')[:2]] = 1
    return anisotropic_structure_factors(
        crystal.data.hkl,
        crystal.data.cell,
        crystal.space_group,
        crystal.elements,
        positions,
        crystal.displacements,
        occupancies,
    )


def _other_group(kind, crystal):
    """A group with the inversion removed or added, and structure factors for it; None, None if that is impossible."""
    rotations, _ = crystal.space_group.operations
    centred = any(np.array_equal(each, -np.eye(3)) for each in rotations)
    factors = crystal.structure_factors
    operations = [gemmi.Op(each) for each in crystal.space_group.symops]
    if kind == 'subgroup':
        if not centred:
            return None, None
        operations = [op for op, turn in zip(operations, rotations, strict=True) if np.linalg.det(turn) > 0]
    else:
        if centred:
            return None, None
        middle = crystal.positions.mean(axis=0) if len(rotations) == 1 else np.zeros(3)
        factors = (factors * np.exp(-2j * np.pi * crystal.data.hkl @ middle)).real.astype(complex)
        operations += [op * gemmi.Op('-x,-y,-z') for op in operations]
    symops = tuple(op.triplet() for op in operations)
    return SpaceGroup(0, f'{kind} of {crystal.space_group.hm}', symops, certain=True), factors


def _with_permuted_intensities(data, generator):
    """Permutes intensities and their σ within shells of 1/d."""
    order = np.argsort(data.cell.inverse_spacings(data.hkl))
    shuffled = order.copy()
    for shell in np.array_split(np.arange(len(order)), 20):
        shuffled[shell] = order[generator.permutation(shell)]
    intensities, sigmas = data.intensities.copy(), data.sigmas.copy()
    intensities[order], sigmas[order] = data.intensities[shuffled], data.sigmas[shuffled]
    return dataclasses.replace(data, intensities=intensities, sigmas=sigmas)


def _with_intensities_of(data, other):
    """Replaces intensities by those of another crystal, in the order of 1/d."""
    order = np.argsort(data.cell.inverse_spacings(data.hkl))
    others = np.argsort(other.cell.inverse_spacings(other.hkl))
    taken = others[np.linspace(0, len(others) - 1, len(order)).astype(int)]
    intensities, sigmas = data.intensities.copy(), data.sigmas.copy()
    intensities[order], sigmas[order] = other.intensities[taken], other.sigmas[taken]
    return dataclasses.replace(data, intensities=intensities, sigmas=sigmas)


def is_right(found: Interpretation, crystal: InventedCrystal, share: float = 0.9) -> bool:
    """Whether the sites are those of the crystal in its group, for any origin and hand of the group."""
    if not found.atoms:
        return False
    numbers = np.array([gemmi.Element(each).atomic_number for each in crystal.elements])
    full = (numbers > 1) & (crystal.occupancies >= HALF)
    sites = np.array([atom.fract for atom in found.atoms])
    strongest = np.argsort([-gemmi.Element(atom.element).atomic_number for atom in found.atoms], kind='stable')[:3]
    rotations, translations = crystal.space_group.operations
    for hand in (1, -1):
        true = hand * crystal.positions
        heaviest = int(np.argmax(np.where(full, numbers, 0)))
        images = rotations @ true[heaviest] + translations
        for shift in (np.zeros(3), *(sites[strongest][:, None] - images[None]).reshape(-1, 3)):
            moves = (rotations - np.eye(3)) @ shift
            off = np.linalg.norm((moves - np.rint(moves)) @ crystal.data.cell.orthogonalization.T, axis=1)
            if off.max() < NEAR and _agree(sites, true + shift, numbers > 1, full, crystal, share):
                return True
    return False


def _agree(sites, true, heavy, full, crystal, share):
    """Whether a share of the full sites is found, and at most 1 − share is extra."""
    cell, operations = crystal.data.cell, crystal.space_group.operations
    near = sum(nearest_images(each, sites, cell, operations)[0].min() < NEAR for each in true[full])
    if near < share * full.sum():
        return False
    claimed = sum(nearest_images(each, true[heavy], cell, operations)[0].min() >= NEAR for each in sites)
    return bool(claimed <= (1 - share) * full.sum())


def measure(kind: str, index: int, stream: str) -> dict | None:
    """Measures one case; None if there is no such case."""
    seed = STREAMS[stream] + index
    generator = np.random.default_rng([seed, 1])
    crystal = invent(random_recipe(generator, index), seed)
    other = invent(random_recipe(generator, index + 1), seed + 50_000) if kind == 'another crystal' else crystal
    began = time.process_time()
    if kind.startswith('atom'):
        group, may_be_right, share = crystal.space_group, True, 1.0
        found = judge_atoms(crystal.data, group, *_with_one_wrong_atom(kind, crystal, generator), Evidence())
    else:
        made = make_case(kind, crystal, other, generator)
        if made is None:
            return None
        data, group, phases, may_be_right = made
        amplitudes, share = np.sqrt(np.maximum(data.intensities, 0)), 0.9
        found = interpret_phases(data, group, data.hkl, amplitudes * np.exp(1j * phases), Evidence())
    findings = dataclasses.asdict(found.findings) if found.findings else {}
    return {
        'kind': kind,
        'index': index,
        'group': group.hm,
        'right': may_be_right and is_right(found, crystal, share),
        'verdict': found.verdict,
        'reasons': found.reasons,
        'expected_r_factor': expected_r_factor(found.findings) if found.findings else None,
        'cpu_seconds': round(time.process_time() - began, 2),
        **findings,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.crystal_verdicts', description=__doc__.partition('\n')[0]
    )
    parser.add_argument('--stream', choices=tuple(STREAMS), default='calibration', help='of the crystals')
    parser.add_argument('--cases', type=int, default=110, help='of all kinds together')
    parser.add_argument('--output', type=Path, help='JSON to write')
    options = parser.parse_args()
    cases = []
    for index in range(options.cases):
        case = measure(CASES[index % len(CASES)], index, options.stream)
        if case:
            cases.append(case)
            print(json.dumps(case, default=str), file=sys.stderr, flush=True)
    counts = collections.Counter((case['kind'], case['verdict'], case['right']) for case in cases)
    head = [f'{verdict}, {truth}' for verdict in VERDICTS for truth in ('right', 'wrong')]
    rows = [
        [kind, *(counts[kind, verdict, right] for verdict in VERDICTS for right in (True, False))]
        for kind in dict.fromkeys(CASES)
    ]
    print(markdown_table(['phases', *head], rows))
    if options.output:
        options.output.write_text(json.dumps(cases, default=str, indent=1), encoding='utf-8')


if __name__ == '__main__':
    main()
