"""Solves real crystals with known structures, and scores the atoms found and the verdicts.

    python -m benchmarks.crystals DIRECTORY…                      # one folder for each crystal
    python -m benchmarks.crystals DIRECTORY… --resolution=1.0     # without reflections finer than 1 Å
    python -m benchmarks.crystals DIRECTORY… --truth              # what remains of the known structures

A folder has two files. `norm.json` has `name`, `cell`, `wavelength`, `symops`, `spacegroup` and the known `atoms`, each
with `el`, `xyz` and `occ`; without atoms only the group is compared. `merged.hkl` has h k l F² σ with blanks between,
merged in the Laue class of the operators. Without it, or with `--raw`, the reflections are those of the first file in
the folder that has some, in the order of the endings .hkl, .cif, .fcf and others. The Laue class of the operators is
claimed, as an .ins would. Otherwise the truth is used only for the scores:

- map: the F²-weighted mean cosine of the phase errors of the answer's density, at the best origin and hand; random
  phases give 0.1 to 0.3.
- sites: share of the known atoms with an atom of the answer within 0.5 Å; hydrogen and atoms less than half occupied do
  not count.
- extra: atoms of the answer farther than 0.5 Å from every known atom, hydrogen included, as a share of the sites.
- elements: share of right elements among the sites found; and share of elements at most two in Z from the right one.
- right: map above 0.8, at least nine of ten sites, at most a tenth extra, and the known group or its mirror image.

`--peer=PYTHON` names a Python that has cctbx. Its charge flipping is run on the same data with the true space group for
at most `--peer-seconds`. Its map is right if the map correlation is above 0.8; else accepting it is wrong.

`--truth` makes no search. It shows the most that a better search could bring: what is refined, found and judged like
any other answer where the phases, or the atoms, of the known structure are its start. Crystals without known atoms have
no part in that. Two starts are counted as agreed. The three starts are

- atoms: the known atoms in the known group; none is dropped or added.
- group: the map of the known phases in the known group.
- map: the map of the known phases in P1, finished like that of any start; its space group is found as usual.

Printed as Markdown and written to `crystals-DEVICE.json` beside this file, or to `--json`.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import gemmi
import jax
import numpy as np
import scipy.fft

from patterson_jax.compilation_cache import enable_compilation_cache
from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.preparation import prepare
from patterson_jax.crystal.reflections import Measurements
from patterson_jax.crystal.structure import CrystalData, CrystalSolution, SpaceGroup
from patterson_jax.crystals import NO_NETWORK, projection_of
from patterson_jax.errors import InputError, exit_on_errors
from patterson_jax.files.crystals import read_crystal
from patterson_jax.solving.crystal_phasing import Slot, finish, prepare_crystal
from patterson_jax.solving.crystal_projection import sharpeners
from patterson_jax.solving.crystal_solver import MAX_STARTS, answer_of_maps, solve_crystal
from patterson_jax.solving.crystal_structure import interpret_phases, judge_atoms
from patterson_jax.solving.crystal_verdict import ENOUGH_AGREEING, Evidence
from patterson_jax.solving.spacegroup import enantiomorph, fine_shape
from patterson_jax.writing import markdown_table, write_json

RIGHT_MAP, RIGHT_SITES, MOST_EXTRA = 0.8, 0.9, 0.1
FIRST_ENDINGS = ('.hkl', '.cif', '.fcf')  # of published files, tried before others
NEAR = 0.5  # Å
SAME_SITE = 0.1  # Å within which images of a known atom are the same
FULL = 0.5  # occupancy from which a known atom must be found
TELLING = 2  # difference in atomic number above which elements should be distinguished
PEER_PATIENCE = 10  # wall seconds for each second of processor time
KNOWN_U = 0.04  # Å², for known atoms without U
COLUMNS = (
    'crystal',
    'known group',
    'd, Å',
    'group',
    'map',
    'sites',
    'extra',
    'elements',
    'Z > 2',
    'R1',
    'verdict',
    'starts',
    's',
)
PEER_COLUMNS = ('cctbx: map', 'accepted', 's')
TRUTHS = ('atoms', 'group', 'map')
TRUTH_SHARES = (('map', '.2f'), ('sites', '.0%'), ('extra', '.0%'))
TRUTH_COLUMNS = ('crystal', 'known group', *TRUTHS)


@dataclasses.dataclass(frozen=True)
class Known:
    """A known crystal: its data, and the content of `norm.json`."""

    data: CrystalData
    content: dict

    @property
    def number(self) -> int:
        """Number of the space group."""
        return int(self.content['spacegroup'].split('#')[1].rstrip(')'))

    @property
    def operators(self) -> list[gemmi.Op]:
        """Operators of the space group, with the centring."""
        return [gemmi.Op(each) for each in self.content['symops']]

    @property
    def atoms(self) -> list[dict]:
        """All known atoms, hydrogen included."""
        return self.content['atoms']


def read_folder(folder: Path, resolution: float = 0.0, raw: bool = False) -> Known:
    """Reads the folder of a crystal.

    Args:
        folder: with `norm.json` and `merged.hkl` or files as they were published.
        resolution: Å; finer reflections are left out.
        raw: whether to read the published files even if there is a `merged.hkl`.

    Raises:
        InputError: the folder lacks a file, or a file cannot be read.
    """
    merged = folder / 'merged.hkl'
    try:
        content = json.loads((folder / 'norm.json').read_text(encoding='utf-8'))
        cell = UnitCell(*content['cell'])
        measured = _published(folder, content) if raw or not merged.is_file() else _merged(merged)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f'{folder}: not the folder of a crystal: {error}') from error
    kept = cell.inverse_spacings(measured.hkl) * resolution <= 1
    contents: dict[str, float] = {}
    for atom in content['atoms']:
        contents[atom['el']] = contents.get(atom['el'], 0) + float(_occupied(content, cell, atom)[1].sum())
    rotations = np.array([gemmi.Op(each).rot for each in content['symops']]) // gemmi.Op.DEN
    prepared = prepare(
        Measurements(measured.hkl[kept], measured.intensities[kept], measured.sigmas[kept]),
        cell,
        wavelength=content.get('wavelength'),
        formula=contents or None,
        claimed=rotations,
    )
    return Known(prepared.data, content)


def _merged(path):
    """The reflections of a `merged.hkl`."""
    rows = [line.split()[:5] for line in path.read_text(encoding='utf-8').splitlines()]
    values = np.array([row for row in rows if len(row) == 5], float)
    values = values[np.any(values[:, :3] != 0, axis=1)]
    return Measurements(np.rint(values[:, :3]).astype(np.int32), values[:, 3], values[:, 4])


def _published(folder, content):
    """The reflections of the first file that has some. Raises InputError if no file has."""
    files = [each for each in folder.iterdir() if each.is_file() and each.name not in ('merged.hkl', 'norm.json')]
    order = {ending: number for number, ending in enumerate(FIRST_ENDINGS)}
    cell, refusals = ' '.join(map(str, content['cell'])), []
    for file in sorted(files, key=lambda each: (order.get(each.suffix.lower(), len(order)), each.name)):
        try:
            return read_crystal(file, cell=cell, wavelength=content.get('wavelength')).measurements
        except InputError as error:
            refusals.append(str(error))
    raise InputError(f'{folder}: no merged.hkl and no other reflections: {"; ".join(refusals) or "no other files"}')


def known_structure_factors(known: Known, hkl: np.ndarray) -> np.ndarray:
    """F `(n,)` of the known atoms without hydrogen at indices `(n, 3)` of the given cell; isotropic, without f′."""
    cell = known.data.cell
    squared = cell.inverse_spacings(hkl) ** 2
    total = np.zeros(len(hkl), complex)
    elements = {atom['el'] for atom in known.atoms} - {'H', 'D'}
    coefficients = {each: gemmi.Element(each).it92 for each in elements}
    table = {each: np.array([of.calculate_sf(one) for one in squared / 4]) for each, of in coefficients.items()}
    for atom in known.atoms:
        if atom['el'] not in elements:
            continue
        images, occupancies = _occupied(known.content, cell, atom)
        tensor = atom['U'][1] if atom['U'] else [KNOWN_U]
        u_iso = float(np.mean(tensor[:3]))
        waves = np.exp(2j * np.pi * (hkl @ images.T)) @ occupancies
        total += table[atom['el']] * np.exp(-2 * np.pi**2 * max(u_iso, 0.005) * squared) * waves
    return total


def _occupied(content, cell, atom):
    """Images of an atom under all operators, `(n, 3)`, and the occupancy of each, `(n,)`."""
    images = np.array([gemmi.Op(each).apply_to_xyz(atom['xyz']) for each in content['symops']])
    occupancy = float(atom['occ'])
    if not content['occ_includes_site_multiplicity']:
        occupancy /= np.sum(_distances(cell, images, images[:1])[:, 0] < SAME_SITE)
    return images, np.full(len(images), occupancy)


def occupied_sites(known: Known, atom: dict) -> float:
    """How many atoms of the cell an atom of the asymmetric unit stands for."""
    return float(_occupied(known.content, known.data.cell, atom)[1].sum())


def fullness(known: Known, atom: dict) -> float:
    """The occupancy of an atom's site, 1 for a full one, on special positions too."""
    images, occupancies = _occupied(known.content, known.data.cell, atom)
    same = _distances(known.data.cell, images, images[:1])[:, 0] < SAME_SITE
    return float(occupancies[same].sum())


@dataclasses.dataclass(frozen=True)
class Placement:
    """How an answer fits the truth: map correlation, hand (1 or −1), and shift, with x_known = hand · x + shift."""

    correlation: float
    hand: int
    shift: np.ndarray


def place(hkl: np.ndarray, truth: np.ndarray, answer: np.ndarray) -> Placement:
    """Finds the origin and the hand for which two sets of structure factors agree best.

    Args:
        hkl: `(n, 3)`, one of each Friedel pair.
        truth: `(n,)` complex.
        answer: `(n,)` complex.
    """
    shape = fine_shape(hkl)
    weights = np.abs(truth) ** 2
    best = Placement(0.0, 1, np.zeros(3))
    for hand in (1, -1):
        phases = np.angle(answer) if hand == 1 else -np.angle(answer)
        products = weights * np.exp(1j * (np.angle(truth) - phases))
        box = np.zeros(shape, complex)
        for sign, values in ((1, products), (-1, np.conj(products))):
            np.add.at(box, tuple((sign * hkl).T), values)
        values = scipy.fft.fftn(box).real / (2 * weights.sum())
        highest = np.unravel_index(values.argmax(), shape)
        if values[highest] > best.correlation:
            best = Placement(float(values[highest]), hand, np.array(highest) / shape)
    return best


def score(known: Known, solution: CrystalSolution) -> dict:
    """Scores an answer against the known structure."""
    group = solution.space_group
    number = None if group is None else group.number
    group_right = number is not None and known.number in (number, enantiomorph(number))
    result = {'group': None if group is None else group.hm, 'group_right': group_right}
    if not known.atoms:
        return result
    result |= dict.fromkeys(('map', 'sites', 'extra', 'elements', 'telling_elements'))
    if solution.density is None:
        return result | {'right': False}
    data = known.data
    hkl = half_sphere(data)
    transform = scipy.fft.fftn(solution.density)
    answer = np.conj(transform[tuple((hkl % solution.density.shape).T)])
    placement = place(hkl, known_structure_factors(known, hkl), answer)
    result['map'] = placement.correlation
    result |= _compare_atoms(known, solution, placement)
    sites_right = result['sites'] >= RIGHT_SITES and result['extra'] <= MOST_EXTRA
    return result | {'right': bool(group_right and placement.correlation > RIGHT_MAP and sites_right)}


def _compare_atoms(known, solution, placement):
    cell = known.data.cell
    operators = [gemmi.Op(each) for each in solution.space_group.symops]
    places = np.array([op.apply_to_xyz(list(site.fract)) for site in solution.atoms for op in operators])
    found = placement.hand * places.reshape(-1, 3) + placement.shift
    owners = np.repeat(np.arange(len(solution.atoms)), len(operators))
    images = np.array([op.apply_to_xyz(atom['xyz']) for atom in known.atoms for op in known.operators])
    known_owners = np.repeat(np.arange(len(known.atoms)), len(known.operators))
    near = _distances(cell, images, found) < NEAR if len(found) else np.zeros((len(images), 0), bool)
    matched = np.zeros((len(known.atoms), len(solution.atoms)), bool)
    np.logical_or.at(matched, (known_owners[:, None], owners[None, :]), near)
    wanted = np.array([_counts(known, atom) for atom in known.atoms])
    compared, right, telling = 0, 0, 0
    for index in np.flatnonzero(wanted & matched.any(axis=1)):
        site = solution.atoms[int(np.argmax(matched[index]))]
        numbers = [gemmi.Element(symbol).atomic_number for symbol in (known.atoms[index]['el'], site.element)]
        compared += 1
        right += numbers[0] == numbers[1]
        telling += abs(numbers[0] - numbers[1]) <= TELLING
    return {
        'sites': float(matched[wanted].any(axis=1).mean()),
        'extra': float((~matched.any(axis=0)).sum() / wanted.sum()),
        'elements': right / max(compared, 1),
        'telling_elements': telling / max(compared, 1),
    }


def _counts(known, atom):
    """Whether an atom must be found."""
    return atom['el'] not in ('H', 'D') and fullness(known, atom) >= FULL


def half_sphere(data: CrystalData) -> np.ndarray:
    """The reflections of the data with their equivalents, one of each Friedel pair, `(n, 3)`."""
    every = np.unique(np.concatenate([data.hkl @ rotation for rotation in data.rotations]), axis=0)
    h, k, l = every.T
    return every[(l > 0) | (l == 0) & ((k > 0) | (k == 0) & (h > 0))]


def _distances(cell, first, second):
    """Shortest distances `(n, m)` in Å between fractional coordinates; right up to half an edge."""
    differences = first[:, None] - second[None]
    differences -= np.rint(differences)
    return np.linalg.norm(differences @ cell.orthogonalization.T, axis=-1)


def answer(known: Known, solution: CrystalSolution) -> dict:
    """The answer of the solver on a crystal, and its scores."""
    group = solution.space_group
    return {
        'known_group': known.content['spacegroup'],
        'reflections': len(known.data.hkl),
        'verdict': solution.verdict,
        'reasons': list(solution.reasons),
        'certain': None if group is None else group.certain,
        'candidates': [] if group is None else list(group.candidates),
        'r_factor': solution.r_factor,
        'starts': solution.starts,
        **score(known, solution),
    }


def measure(folder: Path, options: argparse.Namespace) -> dict:
    """Solves and scores one crystal; the entry of the JSON file."""
    known = read_folder(folder, options.resolution, options.raw)
    began = time.perf_counter()
    projection = projection_of(options.network)
    limits = {'max_starts': options.starts, 'max_seconds': options.seconds}
    solution = solve_crystal(known.data, seed=options.seed, projection=projection, **limits)
    wall = time.perf_counter() - began
    return {
        'name': known.content['name'],
        **answer(known, solution),
        'resolution': solution.resolution,
        'seconds': solution.seconds,
        'seconds_with_compilation': wall,
        **({'peer': _peer_result(known, options)} if options.peer else {}),
    }


def measure_truth(folder: Path, options: argparse.Namespace) -> dict | None:
    """What remains of a known structure; the entry of the JSON file. None without known atoms."""
    known = read_folder(folder, options.resolution, options.raw)
    if not known.atoms:
        return None
    data, hkl = known.data, half_sphere(known.data)
    phases = np.angle(known_structure_factors(known, hkl))
    setting = gemmi.find_spacegroup_by_ops(gemmi.GroupOps(known.operators))
    symops = tuple(each.triplet() for each in known.operators)
    group = SpaceGroup(known.number, setting.xhm() if setting else known.content['spacegroup'], symops, certain=True)
    crystal = prepare_crystal(data)
    began = time.process_time()

    def interpreted(found):
        solution = CrystalSolution(
            found.verdict, found.reasons, group, found.atoms, found.r_factor, options.resolution, 0, 0.0, found.density
        )
        return answer(known, solution)

    sites = [each for each in known.atoms if _counts(known, each)]
    places, elements = np.array([each['xyz'] for each in sites]), tuple(each['el'] for each in sites)
    evidence = Evidence(agreeing=ENOUGH_AGREEING)
    known_factors = known_structure_factors(known, crystal.expanded.in_given_cell(crystal.expanded.hkl))
    factors = crystal.normalised * np.exp(-1j * np.angle(known_factors))
    density = scipy.fft.irfftn(crystal.grid.place(crystal.expanded.hkl, factors), crystal.grid.shape)
    projection = projection_of(options.network)
    finished = (finish(crystal, density, Slot(0), 1.0, sharpen) for sharpen in sharpeners(crystal, projection))
    reached = max(finished, key=lambda each: each.rank)
    return {
        'name': known.content['name'],
        'known_group': known.content['spacegroup'],
        'atoms': interpreted(judge_atoms(data, group, places, elements, evidence)),
        'group': interpreted(interpret_phases(data, group, hkl, np.exp(1j * phases), evidence)),
        'map': answer(known, answer_of_maps(crystal, [reached] * ENOUGH_AGREEING)),
        'cpu_seconds': round(time.process_time() - began, 2),
    }


def _peer_result(known, options):
    """The result of cctbx's charge flipping on a crystal, and its score."""
    try:
        (told,) = ask_peer(known, options.peer, options.peer_seconds, options.seed)
    except InputError as error:
        return {'accepted': False, 'map': None, 'seconds': None, 'remark': str(error)}
    scored = peer_map(known, told['hkl'], told['phases'])
    return {'map': scored, **{key: told[key] for key in ('accepted', 'attempts', 'seconds', 'remark')}}


def ask_peer(known: Known, python: str, seconds: float, seed: int, runs: int = 1) -> list[dict]:
    """What cctbx's charge flipping says of a crystal, an entry for each run: see `crystal_peer`.

    Args:
        known: the crystal.
        python: one that has cctbx.
        seconds: of processor time for all runs.
        seed: of its random phases.
        runs: at most so many, each until it accepts a map.

    Raises:
        InputError: there is no answer.
    """
    data = known.data
    problem = {
        'cell': list(data.cell.parameters),
        'symops': known.content['symops'],
        'hkl': data.hkl.tolist(),
        'amplitudes': np.sqrt(np.maximum(data.intensities, 0)).tolist(),
        'runs': runs,
        'seconds': seconds,
        'seed': seed,
    }
    command = [python, str(Path(__file__).with_name('crystal_peer.py'))]
    limit = PEER_PATIENCE * seconds + 60
    try:
        done = subprocess.run(command, input=json.dumps(problem), capture_output=True, text=True, timeout=limit)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f'no answer of cctbx: {type(error).__name__}') from error
    if done.returncode:
        reason = (done.stderr.strip() or f'exit status {done.returncode}').splitlines()[-1]
        raise InputError(f'no answer of cctbx: {reason}')
    told = json.loads(done.stdout)
    for each in told:
        each['hkl'] = np.reshape(each['hkl'], (-1, 3)).astype(int)
        each['phases'] = np.array(each['phases'])
    return told


def peer_map(known: Known, hkl: np.ndarray, phases: np.ndarray) -> float | None:
    """The map correlation of phases `(n,)` at indices `(n, 3)`; None without phases or known atoms."""
    if not known.atoms:
        return None
    wanted = half_sphere(known.data)
    return map_correlation(wanted, known_structure_factors(known, wanted), hkl, phases)


def map_correlation(
    known_hkl: np.ndarray, known_factors: np.ndarray, hkl: np.ndarray, phases: np.ndarray
) -> float | None:
    """The map correlation of phases `(n,)` at `hkl` `(n, 3)` with known structure factors; None without phases."""
    if not len(hkl):
        return None
    found = {tuple(each): phase for each, phase in zip(hkl.tolist(), phases.tolist(), strict=True)}
    found |= {tuple(-index for index in each): -phase for each, phase in found.items()}
    kept = np.array([tuple(each) in found for each in known_hkl.tolist()])
    answer = np.exp(1j * np.array([found[tuple(each)] for each in known_hkl[kept].tolist()]))
    return place(known_hkl[kept], known_factors[kept], answer).correlation


def table(results: list[dict]) -> str:
    """The results as Markdown."""
    with_peer = any('peer' in each for each in results)
    head = COLUMNS + PEER_COLUMNS if with_peer else COLUMNS
    lines = [markdown_table(head, [_row(each) + (_peer_cells(each['peer']) if with_peer else ()) for each in results])]
    scored = [each for each in results if 'right' in each]
    solved = [each for each in results if each['verdict'] == 'solved']
    wrong = [each['name'] for each in solved if not each.get('right', each['group_right'])]
    lines.append(
        f'\n{sum(each["right"] for each in scored)} of {len(scored)} right, '
        f'{sum(each["group_right"] for each in results)} of {len(results)} groups, {len(solved)} called solved, '
        f'{len(wrong)} of these wrong{": " + ", ".join(wrong) if wrong else ""}'
    )
    if with_peer:
        peers = [each['peer'] for each in results if 'right' in each]
        right = sum((each['map'] or 0) > RIGHT_MAP for each in peers)
        taken = [each for each in peers if each['accepted']]
        lines.append(
            f'\ncctbx: {right} of {len(peers)} maps right, {len(taken)} accepted, '
            f'{sum((each["map"] or 0) <= RIGHT_MAP for each in taken)} of these wrong'
        )
    return '\n'.join(lines)


def truth_table(results: list[dict]) -> str:
    """What remains of the known structures as Markdown."""
    counts = []
    for kind in TRUTHS:
        right = [each[kind] for each in results if each[kind]['right']]
        solved = [each['name'] for each in results if each[kind]['verdict'] == 'solved' and not each[kind]['right']]
        counts.append(
            f'{kind}: {len(right)} of {len(results)} right, {sum(each["verdict"] == "solved" for each in right)} of '
            f'these called solved; {len(solved)} wrong ones are{": " + ", ".join(solved) if solved else ""}'
        )
    rows = [(each['name'], each['known_group'], *(_truth_cell(each[kind]) for kind in TRUTHS)) for each in results]
    return '\n\n'.join((markdown_table(TRUTH_COLUMNS, rows), *counts))


def _truth_cell(result):
    """The verdict on an answer, and what is wrong with it."""
    if result['right']:
        return result['verdict']
    group = '' if result['group_right'] else f'{result["group"]}, '
    shares = ', '.join(f'{key} {_figure(result[key], form)}' for key, form in TRUTH_SHARES)
    return f'✗ {group}{shares}: {result["verdict"]}'


def _row(result):
    """What the table shows of a crystal, apart from cctbx's part."""
    group = f'{result["group"]}{"" if result["group_right"] else " ✗"}'
    shares = [result.get(key) for key in ('sites', 'extra', 'elements', 'telling_elements')]
    wrong = ' (wrong)' if result['verdict'] == 'solved' and not result.get('right', result['group_right']) else ''
    return (
        result['name'],
        result['known_group'],
        f'{result["resolution"]:.2f}',
        group,
        _figure(result.get('map'), '.2f'),
        *(_figure(share, '.0%') for share in shares),
        _figure(result['r_factor'], '.3f'),
        f'{result["verdict"]}{wrong}',
        result['starts'],
        f'{result["seconds"]:.1f}',
    )


def _peer_cells(peer):
    accepted = 'yes' if peer['accepted'] else 'no'
    if accepted == 'yes' and peer['map'] is not None and peer['map'] <= RIGHT_MAP:
        accepted = 'yes (wrong)'
    return _figure(peer['map'], '.2f'), accepted, _figure(peer['seconds'], '.1f')


def _figure(value, form):
    return '–' if value is None else format(value, form)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.crystals', description=__doc__.partition('\n')[0])
    parser.add_argument('folders', type=Path, nargs='+', help='one for each crystal')
    parser.add_argument('--resolution', type=float, default=0.0, help='Å; finer reflections are left out')
    parser.add_argument('--raw', action='store_true', help='read the published files, not merged.hkl')
    parser.add_argument('--truth', action='store_true', help='start at the known structures, and make no search')
    parser.add_argument('--seed', type=int, default=0, help='of the starts')
    parser.add_argument('--starts', type=int, default=MAX_STARTS, help='for a crystal, at most')
    parser.add_argument('--seconds', type=float, default=0.0, help='for a crystal, at most; 0: no limit')
    parser.add_argument('--network', default=NO_NETWORK, help="finishes maps too; 'none': elimination alone")
    parser.add_argument('--peer', default='', metavar='PYTHON', help='a Python that has cctbx, to compare with')
    parser.add_argument('--peer-seconds', type=float, default=60.0, help='of processor time for cctbx, at most')
    parser.add_argument('--json', type=Path, help='file to write; default crystals-DEVICE.json beside this program')
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, output: Path) -> list[dict]:
    """Measures every folder and writes after each; names on stderr the folders that cannot be read."""
    results = []
    one, show = (measure_truth, truth_table) if options.truth else (measure, table)
    for folder in options.folders:
        try:
            result = one(folder, options)
        except InputError as error:
            print(f'error: {error}', file=sys.stderr)
            continue
        if result is None:
            continue
        results.append(result)
        print(show([result]).splitlines()[2], file=sys.stderr, flush=True)
        write_json(output, {**_conditions(options), 'crystals': results})
    return results


def _conditions(options):
    data = 'as published' if options.raw else 'merged, or as published where there is no merged.hkl'
    return {
        'device': jax.devices()[0].device_kind,
        'seed': options.seed,
        'resolution': options.resolution,
        'data': data,
        'network': options.network,
    }


def main() -> None:
    """Measures, prints and writes."""
    options = parse_arguments()
    with exit_on_errors():
        output = options.json or Path(__file__).with_name(f'crystals-{jax.default_backend()}.json')
        enable_compilation_cache()
        results = run(options, output)
        print(truth_table(results) if options.truth else table(results))
        print(f'\n{output}')


if __name__ == '__main__':
    main()
