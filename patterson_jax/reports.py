"""Writes a report on a solution or a run as one HTML file, which a browser can open offline.

3Dmol.js (N. Rego and D. Koes, Bioinformatics 31, 1322, 2015) draws the structure; the file contains it. Its licence is
beside it in `page/`. The file's content security policy forbids the browser to fetch anything. Texts from a user's
files, such as titles and paths, are escaped, so that they are never code.
"""

import base64
import dataclasses
import html
import importlib.metadata
import json
import math
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_hex
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.pictures import BOND_RADIUS, EDGE_RADIUS, Drawing, colour_of, usual_radii, view_of
from patterson_jax.version import __version__
from patterson_jax.writing import write_whole

PAGE = Path(__file__).parent / 'page'
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
LIBRARIES = ('jax', 'jaxlib', 'numpy', 'gemmi', 'moyopy')  # on which a result may depend
PICTURES = {  # captions of a run's pictures, by the names of their files
    'losses': 'Training and validation loss, and map correlation',
    'maps': 'Unseen cases: true maps and predicted ones',
    'separation': 'Separation: misfit after each swap',
    'errors': 'Distances between found and true atoms',
}
STAGES = {  # what was scored, by its name in evaluation.json
    'separated': "the network and the paper's separation",
    'separated_in_place': 'the same, where the network put them',
    'random': 'random positions',
    'refined': 'the network, refined by the solver',
}
MOST_VOXELS = 400_000  # of the density in a report
AROUND_ATOMS = 1.5  # Å around drawn atoms in which density is shown
SHOWN_LEVEL = 0.2  # first level of the surface, relative to the density at the median atom of a crystal
SHOWN_BALL = 0.6  # size of balls relative to those of pictures, so that the density around them can be seen
UNCERTAIN_ELEMENT = 0.9  # confidence below which the user should check an element
MOST_LISTED = 12  # atoms in a sentence
POOR_D_MIN = 1.2  # Å; from data that end before, few structures of light atoms without a centre are solved
HIGH_R_INT = 0.2  # equivalent reflections of a right class and a usual crystal agree better
FEW_MEASURED = 0.8  # completeness below which the search suffers
TINY = 1e-6  # highest value up to which a density counts as empty

ADVICE = (  # words in a reason of a verdict, and advice for it
    ('space group is not certain', 'Refine in each of the candidate groups, and compare R1 and the geometry.'),
    ('symmetry that the space group lacks', 'Look for a group of higher symmetry, for example with ADDSYM of PLATON.'),
    ('space group forbids', 'Try a lower symmetry: another Laue class with --config.crystal.laue, or a subgroup.'),
    ('phases agree with an operation', 'Try a lower symmetry: another Laue class with --config.crystal.laue.'),
    ('R1 is', 'Refine and look at the difference map: disorder, a twin, solvent or poor data cause such an R1.'),
    ('difference peak', 'An atom may be missing or too light: refine, and look at the highest peaks of the map.'),
    ('hole of the difference map', 'An atom may be too heavy or may not exist: refine, and look at its U.'),
    ('has U =', 'An element may be wrong: with a low U too light, with a high U too heavy. Or the atom is disordered.'),
    ('Å apart', 'Two atoms are too near: one is false, or the two are parts of a disorder.'),
    ('odd bonds', 'Look at the geometry of the named atoms: elements may be exchanged.'),
    ('an atom takes', 'The atoms have too much or too little room: some may be missing or false. Check the formula.'),
    ('formula are missing', 'Give the formula without solvent, or find the missing atoms in the difference map.'),
    ('are few', 'There are few data for the model: measure to higher resolution, or refine with restraints.'),
)


@dataclasses.dataclass(frozen=True)
class Density:
    """A density to draw.

    Attributes:
        values: `(u, v, w)`; negative ones are drawn as zero.
        matrix: `(3, 4)`, from indices to Å.
        level: first level of the surface.
        unit: of the values, in words.
    """

    values: np.ndarray
    matrix: np.ndarray
    level: float
    unit: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text; `head` may be empty."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Report:
    """The content of a report, as text that the page escapes.

    Attributes:
        name: of the result.
        source: of the data.
        state: 'solved', 'uncertain', 'not solved' or another word.
        claim: the meaning of the state, in a sentence.
        reasons: for the state.
        merits: figures of merit: name, value, explanation.
        warnings: about the data.
        steps: advice for the next steps; words between backquotes are commands.
        drawing: the structure; None: there is none.
        names: of the drawing's atoms, shown when the user points at them.
        density: drawn with the structure.
        atoms: a table of the atoms, or of scores.
        title: above that table.
        course: a sentence and a table on how the result was found.
        sections: further sections: title and lines.
        pictures: title and PNG.
    """

    name: str
    source: str
    state: str
    claim: str
    reasons: tuple[str, ...] = ()
    merits: tuple[tuple[str, str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    drawing: Drawing | None = None
    names: tuple[str, ...] = ()
    density: Density | None = None
    atoms: Table | None = None
    title: str = 'Atoms'
    course: tuple[str, Table] | None = None
    sections: tuple[tuple[str, tuple[str, ...]], ...] = ()
    pictures: tuple[tuple[str, bytes], ...] = ()


def write_report(path: Path, report: Report) -> None:
    """Writes a report as one HTML file, whole or not at all."""
    text = page(report)
    write_whole(path, lambda part: part.write_text(text, encoding='utf-8'))


def page(report: Report) -> str:
    """The text of the HTML file."""
    name, state = html.escape(report.name), html.escape(report.state)
    body = [
        f'<h1>{name}</h1>',
        f'<p class="subtitle">{html.escape(report.source)}</p>',
        f'<div class="verdict {state.replace(" ", "-")}"><strong>{state}</strong>',
        f'<p>{html.escape(report.claim)}</p>{_list(report.reasons)}</div>',
        *(f'<p class="warning"><b>About the data:</b> {html.escape(words)}</p>' for words in report.warnings),
        '<div class="columns">',
        f'<section>{_structure(report)}</section>' if report.drawing is not None else '',
        f'<section><h2>Figures of merit</h2>{_merits(report.merits)}</section>' if report.merits else '',
        '</div>',
        f'<h2>What to do next</h2>{_list(report.steps, "ol", _with_code)}' if report.steps else '',
        f'<h2>{html.escape(report.title)}</h2>{_table(report.atoms)}' if report.atoms is not None else '',
        *(_picture(title, content) for title, content in report.pictures),
    ]
    if report.course is not None:
        words, table = report.course
        body.append(f'<h2>How it was found</h2><p>{html.escape(words)}</p>{_table(table)}')
    for title, lines in report.sections:
        body.append(f'<h2>{html.escape(title)}</h2><pre>{html.escape(chr(10).join(lines))}</pre>')
    body.append(
        f'<h2>How it was made</h2><pre>{html.escape(_command())}</pre><p class="hint">{html.escape(versions())}</p>'
    )
    if report.drawing is not None:
        licence = html.escape(_part('3Dmol-LICENSE.txt'))
        summary = 'The structure is drawn by 3Dmol.js, which is in this file; its licence'
        body.append(f'<footer><details><summary>{summary}</summary><pre>{licence}</pre></details></footer>')
    return '\n'.join(
        [
            '<!DOCTYPE html>',
            '<html lang="en">',
            '<head>',
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<title>{name}: {state}</title>',
            f'<style>\n{_part("report.css")}</style>',
            '</head>',
            '<body>',
            '<main>',
            *(line for line in body if line),
            '</main>',
            *_scripts(report),
            '</body>',
            '</html>\n',
        ]
    )


def versions() -> str:
    """Versions of this program, of Python and of the libraries on which a result may depend."""
    libraries = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in LIBRARIES)
    return f'patterson_jax {__version__}, Python {platform.python_version()} on {platform.machine()}, {libraries}'


def embedded(content: object) -> str:
    """JSON for a script element: characters that could end the element are written as escapes."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=True, separators=(',', ':'))
    return text.replace('&', r'\u0026').replace('<', r'\u003c').replace('>', r'\u003e')


def crystal_report(
    content: dict,
    cell: UnitCell,
    density: np.ndarray | None,
    drawing: Drawing | None,
    course: Sequence[tuple[int, float, str]],
    printed: Sequence[str],
    name: str,
) -> Report:
    """The report on a crystal.

    Args:
        content: of the JSON file.
        cell: as given.
        density: `(nu, nv, nw)`, roughly in electrons/Å³, or None.
        drawing: of the atoms, or None.
        course: of the starts: number ended, seconds, and the best result so far in words.
        printed: lines that were printed on the data.
        name: of the files.
    """
    group, atoms, data = content['space_group'], content['atoms'], content['reflections']
    names = () if drawing is None or drawing.sites is None else tuple(_told(atoms[site]) for site in drawing.sites)
    drawn = None
    if density is not None and drawing is not None:
        drawn = _density_around(density, cell, drawing.positions)
    return Report(
        name=name,
        source=', '.join(filter(None, [content['title'], content['input']])),
        state=content['verdict'],
        claim=_crystal_claim(content),
        reasons=tuple(content['reasons']),
        merits=tuple(_crystal_merits(content, group, data, cell)),
        warnings=tuple(content['warnings']),
        steps=tuple(_crystal_steps(content, name)),
        drawing=drawing,
        names=names,
        density=drawn,
        atoms=_crystal_atoms(atoms) if atoms else None,
        course=(_course_words(content), _course_table(course)) if course else None,
        sections=(('What the data are', tuple(printed)),) if printed else (),
    )


def map_report(
    content: dict,
    density: np.ndarray,
    level: float,
    drawing: Drawing,
    rivals: Sequence[float],
    name: str,
    cut: bool,
) -> Report:
    """The report on a Patterson map.

    Args:
        content: of the JSON file.
        density: `(grid, grid, grid)`.
        level: of the surface in viewers.
        drawing: of the atoms, Å.
        rivals: R1 of the other sets of atoms that were kept, the best first.
        name: of the files.
        cut: whether the map lacks reflections.
    """
    step, steps = content['voxel_size'], max(1, math.ceil((density.size / MOST_VOXELS) ** (1 / 3)))
    matrix = np.hstack([steps * step * np.eye(3), np.zeros((3, 1))])
    values = np.asarray(density, float)[::steps, ::steps, ::steps]
    sets = [('the answer', content['r_factor']), *((f'rival {n}', value) for n, value in enumerate(rivals, 1))]
    places = tuple(
        (f'{number}', *(f'{value:.4f}' for value in position))
        for number, position in enumerate(content['positions'], 1)
    )
    found = f'{content["starts"]} starts by {content["method"].replace("_", " ")}; {content["agreeing_starts"]} of them'
    words = f'{found} led to the answer. These are the best different sets of atoms.'
    return Report(
        name=name,
        source=content['input'] or 'an array',
        state=content['verdict'],
        claim=_map_claim(content),
        reasons=tuple(_map_reasons(content)),
        merits=tuple(_map_merits(content)),
        warnings=(f'Only amplitudes up to |h| = {content["resolution"]:g} are measured.',) if cut else (),
        steps=tuple(_map_steps(content, name)),
        drawing=drawing,
        names=tuple(f'{number}: {", ".join(row[1:])} Å' for number, row in enumerate(places, 1)),
        density=Density(values, matrix, level, 'of a full voxel' if 'atoms' in content['density'] else 'as predicted'),
        atoms=Table(('atom', 'x, Å', 'y, Å', 'z, Å'), places),
        course=(words, Table(('set of atoms', 'R1'), tuple((who, f'{value:.4f}') for who, value in sets))),
    )


def evaluation_report(content: dict, config: dict, pictures: Sequence[Path], workdir: Path) -> Report:
    """The report on a run, or on methods without a network: scores on unseen cases, pictures, settings.

    Args:
        content: of `evaluation.json`.
        config: resolved.
        pictures: PNG files for the report; missing files are left out.
        workdir: of the run.
    """
    stages = {name: scores for name, scores in content.items() if isinstance(scores, dict) and 'recall' in scores}
    rows = tuple(
        (
            STAGES.get(name, name.replace('_', ' ')),
            f'{scores["recall"]:.2%}',
            f'{scores["matched"]} of {content["atoms"]}',
            '–' if scores['mean_error'] is None else f'{scores["mean_error"]:.3g}',
            f'{scores["solved"]} of {content["cases"]}',
            f'{scores["seconds_per_case"]:.3g}' if scores.get('seconds_per_case') is not None else '',
        )
        for name, scores in stages.items()
    )
    head = (
        *('what', 'atoms found within 1 voxel', 'atoms matched, as the paper counts'),
        *('mean error, voxels', 'cases with every atom', 'seconds a case'),
    )
    merits = [
        ('cases', f'{content["cases"]}', f'{content["atoms"]} atoms, seed {content["seed"]}, on {content["device"]}')
    ]
    if content.get('map'):
        merits.append(('map correlation', f'{content["map"]["correlation"]:.4f}', 'of predicted and true maps'))
    if content.get('weights'):
        merits.append(('step', f'{content["weights"]["step"]}', 'of the weights that were scored'))
    steps = ['`evaluation.json` has every figure of this page.']
    if any(each.stem == 'losses' for each in pictures):
        steps.append('The log of the training is `metrics.jsonl`. The same command continues a run that was stopped.')
    if 'least_squares' not in stages:
        compare = '--mode=evaluate --config.evaluate.methods=network,least_squares'
        steps.insert(0, f'Compare with the classical methods on the same cases: `{compare}`.')
    return Report(
        name=workdir.name,
        source=str(workdir),
        state='evaluated',
        claim='Scores on cases that were not in any training. Random positions show what chance gives.',
        merits=tuple(merits),
        steps=tuple(steps),
        atoms=Table(head, rows),
        title='Scores',
        sections=(('Settings', tuple(json.dumps(config, indent=2, ensure_ascii=False).splitlines())),),
        pictures=tuple((PICTURES.get(each.stem, each.stem), each.read_bytes()) for each in pictures if each.is_file()),
    )


def _crystal_claim(content):
    return {
        'solved': 'The claim is that the sites of the atoms and the space group are right. Each element has its own '
        'confidence. Hydrogen is not searched for, and the hand is not determined.',
        'uncertain': 'The model explains much of the data, but not as much as a right one would. The reasons:',
        'not solved': 'No model explains the data. The best one is below; none of it need be right.',
    }[content['verdict']]


def _map_claim(content):
    return {
        'solved': 'The claim is that the atoms are right, or all of them inverted: the map is the same for both.',
        'uncertain': 'The atoms explain much of the map, but it is not known whether all of them are right.',
        'not solved': 'No set of atoms explains the map. The best one is below; none of its atoms need be right.',
    }[content['verdict']]


def _map_reasons(content):
    """R1 and the starts in words; the documentation has the rule of the verdict."""
    r_factor, limit = content['r_factor'], content['r_factor_solved_below']
    compared = 'no more' if r_factor <= limit else 'more'
    yield f'R1 is {r_factor:.4f}, {compared} than the {limit:.4f} up to which a set can be called solved'
    agreeing = content['agreeing_starts']
    yield f'{agreeing} of {content["starts"]} starts led to these atoms'
    alternatives = len(content['alternatives_voxels'])
    if alternatives:
        sets = '1 other set of atoms explains' if alternatives == 1 else f'{alternatives} other sets of atoms explain'
        yield f'{sets} the map as well'
    if not content['alternatives_searched']:
        yield 'the atoms are so regular that not all sets with the same vectors were searched for'


def _crystal_merits(content, group, data, cell):
    if group is not None:
        certain = (
            'certain' if group['certain'] else f'not certain; others: {", ".join(group["candidates"]) or "none found"}'
        )
        certain = 'of the best map' if content['verdict'] == 'not solved' else certain
        standard = '' if group['standard_hm'] == group['hm'] else f', standard {group["standard_hm"]}'
        yield 'space group', f'{group["hm"]} ({group["number"]}){standard}', certain
    if content['r_factor'] is not None:
        yield 'R1', f'{content["r_factor"]:.4f}', 'of the isotropic model, reflections with F > 4σ(F)'
    counts: dict[str, float] = {}
    for atom in content['atoms']:
        counts[atom['element']] = counts.get(atom['element'], 0) + atom['occupancy'] * atom['multiplicity']
    if counts:
        formula = ' '.join(
            f'{element}{count:g}' for element, count in sorted(counts.items(), key=lambda each: -each[1])
        )
        yield 'cell contents', formula, 'as found, without hydrogen'
    lengths, angles = (
        '\u00a0'.join(f'{value:.5g}' for value in cell.parameters[part]) for part in (slice(3), slice(3, 6))
    )
    yield 'cell', f'{lengths} {angles}', f'Å and degrees; {cell.volume:.1f} Å³'
    yield 'resolution', f'{content["resolution"]:.2f} Å', f'complete to {data["completeness"]:.1%}'
    yield 'reflections', f'{data["unique"]}', f'unique of {data["merged"]} measured'
    if data['r_int'] is not None:
        yield 'R_int', f'{data["r_int"]:.4f}', f'in Laue class {content["laue_class"]}'
    yield '⟨|E² − 1|⟩', f'{data["e_statistic"]:.2f}', '0.97 with a centre of symmetry, 0.74 without'
    yield 'starts', f'{content["starts"]}', f'{content["seconds"]:.1f} s without compilation'


def _map_merits(content):
    yield 'R1', f'{content["r_factor"]:.4f}', f'over |h| up to {content["r_factor_resolution"]:g}'
    yield 'R1 expected', f'{content["r_factor_expected"]:.4f}', f'of a right set, with noise of {content["noise"]:.0%}'
    if content['r_free'] is not None:
        yield 'R_free', f'{content["r_free"]:.4f}', 'of reflections that were kept out of refinement'
    yield (
        'Patterson correlation',
        f'{content["patterson_correlation"]:.4f}',
        'of the measured map with that of the atoms',
    )
    yield 'atoms', f'{content["num_atoms"]}', ''
    yield 'method', content['method'].replace('_', ' '), f'density {content["density"]}'
    yield 'starts', f'{content["starts"]}', f'{content["agreeing_starts"]} agree; {content["seconds"]:.2f} s'


def _crystal_steps(content, name):
    verdict, group = content['verdict'], content['space_group']
    if content['atoms'] and group is not None and verdict != 'not solved':
        files = f'{name}.ins'
        yield (
            f'Refine in SHELXL: `cp {shlex.quote(name + ".res")} {shlex.quote(files)} && shelxl {shlex.quote(name)}`, '
            f'or open {name}.res in Olex2. {name}.hkl goes with it.'
        )
    for reason in content['reasons'] if verdict == 'uncertain' else ():
        yield from (advice for words, advice in ADVICE if words in reason)
    if content['atoms'] and group is not None and verdict != 'not solved':
        doubtful = [each for each in content['atoms'] if each['element_confidence'] < UNCERTAIN_ELEMENT]
        if doubtful:
            listed = ', '.join(f'{each["label"]} ({each["element_confidence"]:.0%})' for each in doubtful[:MOST_LISTED])
            others = f', and {len(doubtful) - MOST_LISTED} others in the table' if len(doubtful) > MOST_LISTED else ''
            yield f'Check the elements with a low confidence: {listed}{others}.'
        if any(reason.startswith('but the elements') for reason in content['reasons']):
            yield 'Check the formula: the sites explain the data, but not with these elements.'
        hydrogen = content['contents'] is None or 'H' in content['contents']
        yield f'Then refine anisotropically (ANIS){", and add hydrogen (HFIX)" if hydrogen else ""}.'
        if not _has_inversion(group['symops']):
            yield 'The group has no inversion: determine the hand with the Flack parameter of the refined structure.'
    if verdict == 'not solved':
        yield from _doubts_about_data(content)
    if verdict != 'solved':
        yield (
            'Give more starts (`--config.crystal.max_starts=200`), another seed (`--config.seed=1`), or, if the table '
            'below leaves a choice, another Laue class (`--config.crystal.laue=…`).'
        )
        yield 'Check cell and formula. With `--config.crystal.formula=any` the formula of the files is not used.'


def _doubts_about_data(content):
    """What may be wrong with the data of a crystal that is not solved."""
    data, d_min = content['reflections'], content['resolution']
    if data['r_int'] is not None and data['r_int'] > HIGH_R_INT:
        yield (
            f'Equivalent reflections disagree: R_int is {data["r_int"]:.2f} in Laue class {content["laue_class"]}. '
            'Check the cell, the class and how the file was read.'
        )
    if d_min > POOR_D_MIN:
        yield (
            f'The data end at {d_min:.2f} Å. Light atoms without an inversion centre need 1.2 Å or better: measure '
            'further if possible.'
        )
    if data['completeness'] < FEW_MEASURED:
        yield f'Only {data["completeness"]:.0%} of the reflections are measured. Check the Laue class, or measure more.'


def _has_inversion(symops):
    return any(sorted(each.replace(' ', '')) == sorted('-x,-y,-z') and each.count('-') == 3 for each in symops)


def _map_steps(content, name):
    verdict = content['verdict']
    yield f'Look at atoms and density in ChimeraX: `chimerax {shlex.quote(name + ".cxc")}`.'
    if verdict == 'solved':
        yield 'The inverse of these atoms explains the map as well: choose the hand from what you know of the molecule.'
        return
    if not content['noise']:
        yield 'If the amplitudes have errors, give them: `--config.problem.noise=0.1` for 10 %. The verdict needs them.'
    yield 'Check the number of atoms, or let the program find it: `--config.solve.num_atoms_known=false`.'
    yield 'Give more attempts, `--config.solve.max_attempts=40`, or another method, `--config.solve.method=…`.'


def _told(atom):
    place = ', '.join(f'{value:.4f}' for value in atom['fract'])
    return f'{atom["label"]}: {place}; U {atom["u_iso"]:.4f} Å²; element {atom["element_confidence"]:.0%} certain'


def _crystal_atoms(atoms):
    head = ('atom', 'element', 'x', 'y', 'z', 'U, Å²', 'occupancy', 'sites in the cell', 'confidence of the element')
    rows = tuple(
        (
            each['label'],
            each['element'],
            *(f'{value:.5f}' for value in each['fract']),
            f'{each["u_iso"]:.4f}',
            f'{each["occupancy"]:g}',
            f'{each["multiplicity"]}',
            f'{each["element_confidence"]:.0%}',
        )
        for each in atoms
    )
    return Table(head, rows)


def _course_words(content):
    count = f'{content["starts"]} start{"" if content["starts"] == 1 else "s"}'
    return f'{count} from random phases or superposed Patterson maps, with the best result so far:'


def _course_table(course):
    """A table of the starts; consecutive starts with the same words share a row."""
    rows: list[tuple[int, int, float, str]] = []
    for ended, seconds, words in course:
        if rows and rows[-1][3] == words:
            rows[-1] = (rows[-1][0], ended, seconds, words)
        else:
            rows.append((ended, ended, seconds, words))
    texts = tuple(
        (f'{first}' if first == last else f'{first} to {last}', f'{seconds:.1f}', words)
        for first, last, seconds, words in rows
    )
    return Table(('starts', 'after seconds, with compilation', 'the best so far'), texts)


def _density_around(density, cell, positions):
    """A box of a periodic density `(nu, nv, nw)` around positions `(n, 3)` in Å; zero far from all positions."""
    shape = np.array(density.shape)
    fractions = positions @ np.linalg.inv(cell.orthogonalization).T
    margin = AROUND_ATOMS * np.linalg.norm(np.linalg.inv(cell.orthogonalization), axis=1)
    low = np.floor((fractions.min(axis=0) - margin) * shape).astype(int)
    high = np.ceil((fractions.max(axis=0) + margin) * shape).astype(int)
    step = max(1, math.ceil((np.prod(high - low + 1.0) / MOST_VOXELS) ** (1 / 3)))
    axes = [np.arange(first, last + step, step) for first, last in zip(low, high, strict=True)]
    values = np.asarray(density, float)[np.ix_(*(axis % size for axis, size in zip(axes, shape, strict=True)))]
    scaled = cell.orthogonalization / shape
    at_atoms = np.rint(fractions * shape).astype(int) % shape
    level = SHOWN_LEVEL * float(np.median(density[tuple(at_atoms.T)]))
    places = np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1) @ scaled.T
    near, _ = KDTree(positions).query(places, distance_upper_bound=AROUND_ATOMS)
    values = np.where(np.isfinite(near), values, 0.0)
    return Density(values, np.hstack([step * scaled, (scaled @ low)[:, None]]), level, 'electrons/Å³')


def _scripts(report):
    if report.drawing is None:
        return []
    return [
        f'<script type="application/json" id="structure">{embedded(_drawn(report))}</script>',
        f'<script>{_part("3Dmol-min.js")}</script>',
        f'<script>\n{_part("report.js")}</script>',
    ]


def _drawn(report):
    """The data that the program of the page draws."""
    drawing, density = report.drawing, report.density
    radii = drawing.radii if drawing.radii is not None else usual_radii(drawing.elements)
    names = report.names or drawing.elements
    return {
        'atoms': [
            {
                'element': 'C' if element == 'X' else element,
                'position': np.round(place, 4).tolist(),
                'radius': round(SHOWN_BALL * float(radius), 3),
                'colour': to_hex(colour_of(element)),
                'text': text,
            }
            for element, place, radius, text in zip(drawing.elements, drawing.positions, radii, names, strict=True)
        ],
        'bonds': np.asarray(drawing.bonds).tolist(),
        'bondRadius': SHOWN_BALL * BOND_RADIUS,
        'cell': None
        if drawing.cell is None
        else {
            'edges': np.round(drawing.cell.T, 5).tolist(),
            'origin': list(drawing.origin),
            'radius': EDGE_RADIUS * float(np.max(np.linalg.norm(drawing.cell, axis=0))),
        },
        'view': Rotation.from_matrix(view_of(drawing)).as_quat().tolist(),
        'density': None if density is None else _packed(density),
    }


def _packed(density):
    """A density as bytes of its square roots, which gives low values finer steps; None if it is empty."""
    highest = float(np.max(density.values))
    if not highest > TINY:
        return None
    roots = np.rint(255 * np.sqrt(np.clip(density.values / highest, 0, 1))).astype(np.uint8)
    return {
        'size': list(roots.shape),
        'matrix': np.vstack([density.matrix, [0, 0, 0, 1]]).ravel().tolist(),
        'highest': highest,
        'level': min(max(density.level, 0.02 * highest), 0.9 * highest),
        'unit': density.unit,
        'values': base64.b64encode(np.ascontiguousarray(roots).tobytes()).decode('ascii'),
    }


def _structure(report):
    cell, density = report.drawing.cell is not None, report.density is not None
    shown = []
    if cell:
        shown.append('<label><input type="checkbox" id="show-cell" checked> cell</label>')
    if density:
        shown.append('<label><input type="checkbox" id="show-density" checked> density</label>')
        slider = '<input type="range" id="level" min="50" max="950" value="400">'
        shown.append(f'<label>at {slider} <span id="level-value"></span></label>')
    return (
        f'<h2>Structure</h2><div id="view"></div><div class="controls">{"".join(shown)}</div>'
        '<p class="hint">Drag to turn, scroll to zoom, drag with Ctrl to move; point at an atom to see its data.</p>'
    )


def _merits(merits):
    rows = ''.join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td>'
        f'<td class="note">{html.escape(note)}</td></tr>'
        for name, value, note in merits
    )
    return f'<table class="merits">{rows}</table>'


def _table(table):
    head = ''.join(f'<th scope="col">{html.escape(each)}</th>' for each in table.head)
    rows = ''.join(f'<tr>{"".join(f"<td>{html.escape(cell)}</td>" for cell in row)}</tr>' for row in table.rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _picture(title, content):
    source = base64.b64encode(content).decode('ascii')
    caption = html.escape(title)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{source}"><figcaption>{caption}</figcaption></figure>'
    )


def _list(items, kind='ul', shown=html.escape):
    lines = ''.join(f'<li>{shown(each)}</li>' for each in dict.fromkeys(items))
    return f'<{kind}>{lines}</{kind}>' if lines else ''


def _with_code(text):
    """Escaped text; words between backquotes become code."""
    parts = html.escape(text).split('`')
    return ''.join(f'<code>{part}</code>' if number % 2 else part for number, part in enumerate(parts))


def _command():
    """The command line of this process."""
    words = [Path(sys.argv[0]).name or 'python', *sys.argv[1:]] if sys.argv else ['python']
    return shlex.join(words)


def _part(name):
    return (PAGE / name).read_text(encoding='utf-8')
