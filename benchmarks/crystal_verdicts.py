"""Counts verdicts on invented crystals against the truth.

    python -m benchmarks.crystal_verdicts --stream=calibration    # what the constants of crystal_verdict.py are from
    python -m benchmarks.crystal_verdicts --stream=evaluation     # the test, on crystals that those have not seen
    python -m benchmarks.crystal_verdicts --stream=evaluation --cases=500 --output=FILE     # goes on with what FILE has
    python -m benchmarks.crystal_verdicts --stream=evaluation --whole-way --cases=500 --output=FILE   # intensities only
    python -m benchmarks.crystal_verdicts --stream=evaluation --light --cases=240 --output=FILE   # at low resolution
    python -m benchmarks.crystal_verdicts --stream=evaluation --light-truth --cases=240 --output=FILE   # the true atoms

Phases are those of the truth, spoilt, or wrong ones: of a molecule that is displaced, half wrong, or has its heavy atom
alone; of the right structure in a group with too few or too many operations; with intensities permuted within shells,
or another crystal's. A model is right if its group is, nine in ten true atoms (half full, at least) are within 0.5 Å
and a tenth at most too many. Or the true atoms are judged as they are, but for one that is missing, displaced or too
many; then every atom must be right. Or the whole way is gone from the intensities alone, at the crystal's resolution
or at 1.2 Å, or with intensities permuted within shells; with --whole-way the whole way is gone at 1.4 Å too, from
fewer atoms, without permutations; with --light at 1.2, 1.3 and 1.4 Å, by crystals of C, N and O, and with
--light-controls from permuted intensities of these, absent ones kept. --kinds leaves out other kinds; --network and
--starts change how.
--light-truth makes no search: the true atoms of the same crystals in their group are refined and judged, as if two
starts had led to them. One line a case on stderr with all that the verdict is from, counts on stdout, and the cases
without these findings in the JSON of --output.
"""

import argparse
import collections
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import gemmi
import numpy as np

from benchmarks.projection import sign_test
from patterson_jax.compilation_cache import enable_compilation_cache
from patterson_jax.crystal.structure import SpaceGroup
from patterson_jax.crystals import NO_NETWORK, projection_of
from patterson_jax.errors import exit_on_errors, require
from patterson_jax.simulation.invented_crystals import (
    GROUPS,
    InventedCrystal,
    Recipe,
    anisotropic_structure_factors,
    invent,
)
from patterson_jax.solving.crystal_maps import allowed_reflections, nearest_images
from patterson_jax.solving.crystal_projection import Projection
from patterson_jax.solving.crystal_solver import solve_crystal
from patterson_jax.solving.crystal_structure import Interpretation, interpret_phases, judge_atoms
from patterson_jax.solving.crystal_verdict import ENOUGH_AGREEING, Evidence, expected_r_factor
from patterson_jax.solving.spacegroup import enantiomorph
from patterson_jax.solving.verdict import VERDICTS
from patterson_jax.writing import markdown_table, write_whole

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
    'whole way',
    'whole way, 1.2 Å',
    'whole way, permuted',
)
WHOLE_WAYS = (  # as many as have no factor in common with the number of groups, so that each kind has every group
    'whole way',
    'whole way, 1.2 Å',
    'whole way, 1.4 Å',
    'whole way, 1.2 Å',
    'whole way, 1.4 Å',
)
NEAR = 0.5  # Å
ROOM = 1.3  # Å around an added atom
HALF = 0.45  # least occupancy of an atom that counts as a site
LIGHT_WAYS = ('whole way, 1.2 Å', 'whole way, 1.3 Å', 'whole way, 1.4 Å')
LIGHT_CONTROLS = tuple(f'{kind}, permuted' for kind in LIGHT_WAYS)
LIGHT_TRUTHS = tuple(kind.replace('whole way', 'true atoms') for kind in LIGHT_WAYS)
LOW_RESOLUTIONS = {'1.2 Å': 1.2, '1.3 Å': 1.3, '1.4 Å': 1.4}
STARTS = 16  # of a whole way, unless --starts says otherwise
MOST_IN_CELL = 64  # atoms of the primitive cell, where only whole ways are gone: wrong maps in P1 take long
CENTRED = ('P-1', 'P21/c', 'C2/c', 'Pbca')
GROUP_ORDERS = {'P1': 1, 'P-1': 2, 'P21': 2, 'P21/c': 4, 'C2/c': 4, 'Pc': 2, 'P212121': 4, 'Pbca': 8}
KEPT = (
    *('kind', 'index', 'group', 'd_min', 'right', 'verdict', 'r_factor', 'expected_r_factor', 'reasons', 'cpu_seconds'),
)


class Search(NamedTuple):
    """How a whole way is gone.

    Attributes:
        starts: at most.
        projection: that finishes maps too; None: elimination alone.
        light: whether all crystals are of C, N and O.
        network: name or directory of the projection, for the record.
        groups: of the crystals; others are left out.
    """

    starts: int = STARTS
    projection: Projection | None = None
    light: bool = False
    network: str = NO_NETWORK
    groups: tuple[str, ...] = tuple(GROUPS)

    @property
    def described(self) -> dict:
        """What the results depend on, for the file."""
        groups = sorted(self.groups)
        return {'starts': self.starts, 'light': self.light, 'network': self.network, 'groups': groups}


USUAL = Search()


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


def _true_atoms(crystal):
    """Positions and elements of the true atoms, without hydrogen and minor sites."""
    kept = [index for index, each in enumerate(crystal.elements) if each != 'H' and crystal.occupancies[index] >= HALF]
    return crystal.positions[kept], tuple(crystal.elements[each] for each in kept)


def _with_one_wrong_atom(kind, crystal, generator):
    """Positions and elements of the true atoms, without hydrogen and minor sites, with one error."""
    positions, elements = _true_atoms(crystal)
    wrong = int(generator.integers(1, len(positions)))
    fractionalization = np.linalg.inv(crystal.data.cell.orthogonalization)
    if kind == 'atom missing':
        return np.delete(positions, wrong, axis=0), elements[:wrong] + elements[wrong + 1 :]
    if kind == 'atom displaced':
        vector = generator.standard_normal(3)
        positions[wrong] += fractionalization @ (generator.uniform(0.6, 1.5) * vector / np.linalg.norm(vector))
        return positions, elements
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


def _with_permuted_intensities(data, generator, group=None):
    """Permutes intensities and their σ within shells of 1/d: of all reflections, or of those that a group allows."""
    order = np.argsort(data.cell.inverse_spacings(data.hkl))
    if group is not None:
        order = order[allowed_reflections(data.hkl[order], group.symops)]
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
    rotations, translations = crystal.space_group.operations
    for hand in (1, -1):
        true = hand * crystal.positions
        # An atom that is disordered or far from its site would hide that the others agree, so each is tried.
        for anchor in np.flatnonzero(full):
            images = rotations @ true[anchor] + translations
            for shift in (np.zeros(3), *(sites[:, None] - images[None]).reshape(-1, 3)):
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


def _whole_way(kind, crystal, seed, generator, search):
    """The answer to a crystal's intensities, in the form of one to its phases; its group, and whether that is right."""
    permuted = kind.endswith('permuted')
    absences_of = crystal.space_group if search.light else None  # they choose the groups in which atoms are placed
    data = _with_permuted_intensities(crystal.data, generator, absences_of) if permuted else crystal.data
    solution = solve_crystal(data, seed=seed, max_starts=search.starts, projection=search.projection)
    group = solution.space_group
    found = Interpretation(
        group, solution.atoms, solution.r_factor, solution.verdict, solution.reasons, solution.density, findings=None
    )
    known = gemmi.find_spacegroup_by_name(crystal.space_group.hm).number
    same = group is not None and known in (group.number, enantiomorph(group.number))
    return found, group, same and not permuted


def measure(kind: str, index: int, stream: str, few: bool = False, search: Search = USUAL) -> dict | None:
    """Measures one case, of a crystal with few atoms if wanted; None if there is no such case."""
    seed = STREAMS[stream] + index
    generator = np.random.default_rng([seed, 1])
    recipe = random_recipe(generator, index)
    if recipe.group not in search.groups:
        return None
    for words, d_min in LOW_RESOLUTIONS.items():
        if words in kind:
            recipe = dataclasses.replace(recipe, d_min=d_min)
    if search.light:
        recipe = dataclasses.replace(recipe, heavy=(), special=False)
    if few:
        recipe = dataclasses.replace(
            recipe, num_atoms=min(recipe.num_atoms, MOST_IN_CELL // GROUP_ORDERS[recipe.group])
        )
    crystal = invent(recipe, seed)
    other = invent(random_recipe(generator, index + 1), seed + 50_000) if kind == 'another crystal' else crystal
    began = time.process_time()
    share = 0.9
    if kind in LIGHT_TRUTHS:
        group, may_be_right = crystal.space_group, True
        evidence = Evidence(agreeing=ENOUGH_AGREEING)
        found = judge_atoms(crystal.data, group, *_true_atoms(crystal), evidence)
    elif kind.startswith('atom'):
        group, may_be_right, share = crystal.space_group, True, 1.0
        found = judge_atoms(crystal.data, group, *_with_one_wrong_atom(kind, crystal, generator), Evidence())
    elif kind.startswith('whole way'):
        found, group, may_be_right = _whole_way(kind, crystal, seed, generator, search)
    else:
        made = make_case(kind, crystal, other, generator)
        if made is None:
            return None
        data, group, phases, may_be_right = made
        amplitudes = np.sqrt(np.maximum(data.intensities, 0))
        found = interpret_phases(data, group, data.hkl, amplitudes * np.exp(1j * phases), Evidence())
    seconds = time.process_time() - began
    findings = dataclasses.asdict(found.findings) if found.findings else {'r_factor': found.r_factor}
    return {
        'kind': kind,
        'index': index,
        'group': group.hm if group else None,
        'right': bool(may_be_right and is_right(found, crystal, share)),
        'verdict': found.verdict,
        'reasons': found.reasons,
        'expected_r_factor': expected_r_factor(found.findings) if found.findings else None,
        'cpu_seconds': round(seconds, 2),
        'd_min': recipe.d_min,
        **findings,
    }


def table(cases: list[dict], kinds: tuple[str, ...] = CASES) -> str:
    """Counts of verdicts against the truth as Markdown, and what is to be read from them."""
    counts = collections.Counter((case['kind'], case['verdict'], case['right']) for case in cases)
    pairs = [(verdict, right) for verdict in VERDICTS for right in (True, False)]
    heads = [f'{verdict}, {"right" if right else "wrong"}' for verdict, right in pairs]
    rows = [(kind, *(counts[kind, verdict, right] for verdict, right in pairs)) for kind in dict.fromkeys(kinds)]
    right = [case for case in cases if case['right']]
    solved = [case for case in cases if case['verdict'] == 'solved']
    wrong = [f'{case["kind"]} {case["index"]}' for case in solved if not case['right']]
    return (
        f'{markdown_table(("phases", *heads), rows)}\n\n{len(cases)} cases; {len(right)} came to a right model, '
        f'{len(solved) - len(wrong)} of these are called solved; {len(wrong)} wrong ones are'
        f'{": " + ", ".join(wrong) if wrong else ""}.'
    )


def compare(cases: list[dict], others: list[dict]) -> str:
    """What two searches made of the same crystals, as Markdown, by kind and whether there is an inversion centre.

    Gained and lost are crystals that one of them alone has; p is that of a sign test.

    Args:
        cases: of the one search.
        others: of the other; crystals that only one of them has are left out.
    """
    theirs = {(case['kind'], case['index']): case for case in others}
    pairs = [(theirs[known], case) for case in cases if (known := (case['kind'], case['index'])) in theirs]
    rows = []
    for kind in dict.fromkeys(case['kind'] for _, case in pairs):
        for centre in (True, False):
            chosen = [pair for pair in pairs if pair[1]['kind'] == kind and has_centre(pair[1]) == centre]
            rows += [(kind, 'yes' if centre else 'no', *_comparison(chosen))] if chosen else []
    rows.append(('all', '', *_comparison(pairs)))
    changes = (cell for head in ('right', 'solved, right') for cell in (head, 'gained, lost', 'p'))
    heads = (*changes, 'solved, wrong', 'processor seconds a crystal')
    return markdown_table(('phases', 'inversion', 'crystals', *heads), rows)


def has_centre(case: dict) -> bool:
    """Whether the true group of a case has an inversion centre."""
    return tuple(GROUPS)[case['index'] % len(GROUPS)] in CENTRED


def _comparison(pairs):
    seconds = [sum(pair[side]['cpu_seconds'] for pair in pairs) / len(pairs) for side in (0, 1)]
    tests = (
        lambda case: case['right'],
        lambda case: case['right'] and case['verdict'] == 'solved',
        lambda case: not case['right'] and case['verdict'] == 'solved',
    )
    right, solved, wrong = ([[test(each) for each in pair] for pair in pairs] for test in tests)
    changes = (cell for counts in (right, solved) for cell in (_from_to(counts), *_sign_test(counts)))
    return (len(pairs), *changes, _from_to(wrong), f'{seconds[0]:.1f} → {seconds[1]:.1f}')


def _from_to(counts):
    return f'{sum(before for before, _ in counts)} → {sum(now for _, now in counts)}'


def _sign_test(counts):
    gained, lost = (sum(now > before for before, now in each) for each in (counts, [pair[::-1] for pair in counts]))
    return f'+{gained} −{lost}', f'{sign_test(gained, lost):.2g}'


def run(
    stream: str,
    number: int,
    output: Path | None,
    kinds: tuple[str, ...] = CASES,
    search: Search = USUAL,
    first: int = 0,
    only: tuple[str, ...] = (),
) -> list[dict]:
    """Cases of some kinds in turn from one number up to another; tells each, and writes after each.

    `only` leaves out all other kinds, and changes no case.

    Those that the file has are not measured again; if there is a file, it goes on where that ends.
    """
    known = output and output.exists()
    done = json.loads(output.read_text(encoding='utf-8')) if known else {'cases': first, 'results': []}
    wanted = set(only or kinds)
    require(wanted <= set(kinds), 'kinds', sorted(wanted), f'some of {", ".join(dict.fromkeys(kinds))}')
    asked = search.described | {'stream': stream, 'kinds': sorted(wanted)}
    if known:
        done.setdefault('groups', sorted(GROUPS))
    for name, value in asked.items():
        require(done.get(name, value) == value, name, value, f'that of {output}, {done.get(name)}')
    results = done['results']
    for index in range(done['cases'], number):
        kind = kinds[index % len(kinds)]
        case = measure(kind, index, stream, few=kinds is not CASES, search=search) if kind in wanted else None
        if case:
            print(json.dumps(case, default=str), file=sys.stderr, flush=True)
            results.append({key: _rounded(case.get(key)) for key in KEPT})
        if output:
            _write(output, asked, index + 1, results)
    return results


def _write(output, asked, number, results):
    """JSON with one line for each case."""
    lines = ',\n'.join(json.dumps(each, ensure_ascii=False, default=str) for each in results)
    head = json.dumps(asked | {'cases': number}, ensure_ascii=False)
    text = f'{head[:-1]}, "results": [\n{lines}\n]}}\n'
    write_whole(output, lambda part: part.write_text(text, encoding='utf-8'))


def _rounded(value):
    return round(float(value), 4) if isinstance(value, (float, np.floating)) else value


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.crystal_verdicts', description=__doc__.partition('\n')[0]
    )
    parser.add_argument('--stream', choices=tuple(STREAMS), default='calibration', help='of the crystals')
    one = parser.add_mutually_exclusive_group()
    one.add_argument('--whole-way', action='store_true', help='only from intensities, without permuted ones')
    one.add_argument('--light', action='store_true', help='only from intensities, of C, N and O, at low resolution')
    one.add_argument('--light-controls', action='store_true', help='the same with permuted intensities')
    one.add_argument('--light-truth', action='store_true', help='the true atoms of these crystals, without a search')
    parser.add_argument('--cases', type=int, default=119, help='of all kinds together')
    parser.add_argument('--first', type=int, default=0, help='number of the first case, for a new file')
    parser.add_argument('--network', default=NO_NETWORK, help="finishes maps too; 'none': elimination alone")
    parser.add_argument('--starts', type=int, default=STARTS, help='most starts of a whole way')
    parser.add_argument('--groups', nargs='+', choices=tuple(GROUPS), default=tuple(GROUPS), help='of the crystals')
    parser.add_argument('--kinds', nargs='+', default=(), help="only some, for example 'whole way, 1.3 Å'")
    parser.add_argument('--output', type=Path, help='JSON to write, or to go on with')
    parser.add_argument('--against', type=Path, help='JSON of another search, which is compared with this one')
    options = parser.parse_args()
    with exit_on_errors():
        enable_compilation_cache()  # most of the time would go there: the refinement alone has some hundred shapes
        asked = {
            LIGHT_WAYS: options.light,
            LIGHT_CONTROLS: options.light_controls,
            LIGHT_TRUTHS: options.light_truth,
            WHOLE_WAYS: options.whole_way,
        }
        kinds = next((kinds for kinds, wanted in asked.items() if wanted), CASES)
        network = NO_NETWORK if options.light_truth else options.network  # which makes no search
        projection = projection_of(network)
        light = kinds in (LIGHT_WAYS, LIGHT_CONTROLS, LIGHT_TRUTHS)
        search = Search(options.starts, projection, light, network, tuple(options.groups))
        only = tuple(options.kinds)
        cases = run(options.stream, options.cases, options.output, kinds, search, options.first, only)
        print(table(cases, kinds))
        if options.against:
            print(f'\n{compare(cases, json.loads(options.against.read_text(encoding="utf-8"))["results"])}')


if __name__ == '__main__':
    main()
