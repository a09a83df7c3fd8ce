"""Solves crystals from files to files: `--mode=solve` with configs/crystal.py.

It prints three lines on the data as read, and a table of the symmetries of the intensities.
"""

import dataclasses
import hashlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import gemmi
import numpy as np

from patterson_jax.crystal.preparation import ClassScore, Prepared
from patterson_jax.crystal.structure import CrystalSolution
from patterson_jax.crystals import CrystalSettings, projection_of, read_and_prepare
from patterson_jax.errors import InputError
from patterson_jax.files.crystal_results import solution_content, write_crystal_cif, write_crystal_res, write_hkl
from patterson_jax.files.crystals import CrystalFile
from patterson_jax.files.maps import write_density
from patterson_jax.files.shelx import hklf_matrix
from patterson_jax.pictures import crystal_drawing, draw_structure
from patterson_jax.progress import ProgressReport
from patterson_jax.reports import crystal_report, write_report
from patterson_jax.solving import crystal_solver
from patterson_jax.solving.crystal_projection import has_light_elements_alone
from patterson_jax.solving.spacegroup import enantiomorph
from patterson_jax.writing import write_json, write_whole

BETWEEN_CENTRES = 0.85  # ⟨|E² − 1|⟩ is 0.97 with a centre of symmetry and 0.74 without
MOST_MISCOUNTED = 0.15  # relative difference from the claimed number of an element's atoms that is not reported
ENDINGS = ('.json', '.html', '.res', '.hkl', '.cif', '.png', '_density.ccp4')  # of the files of a solved crystal


def solve_crystal_file(settings: CrystalSettings, seed: int, output: Path, path: Path) -> None:
    """Reads, solves and writes a crystal; prints how its file was read, and a line on the solution.

    Args:
        settings: the section `crystal` of the config.
        seed: of the starts.
        output: directory.
        path: of the crystal's file.

    Raises:
        InputError: the file cannot be read or solved; the message names it.
    """
    crystal, prepared = read_and_prepare(path, settings)
    print('\n'.join(describe(crystal, prepared)), flush=True)
    refuse_to_overwrite(crystal, output)
    projection = projection_of(settings.network)
    if projection:
        ways = 'a' if has_light_elements_alone(prepared.data) else 'elimination or a'  # see `sharpeners`
        print(f'maps are finished by {ways} learned projection (crystal.network is {settings.network!r})')
    course: list[tuple[int, float, str]] = []
    began = time.perf_counter()

    def progress(ended: int, note: str) -> None:
        course.append((ended, time.perf_counter() - began, note))
        report.update(ended, note)

    try:
        with ProgressReport('starts', settings.max_starts, may_end_early=True) as report:
            solution = crystal_solver.solve_crystal(
                prepared.data,
                seed=seed,
                max_starts=settings.max_starts,
                max_seconds=settings.max_seconds,
                projection=projection,
                progress=progress,
            )
    except InputError as error:
        raise InputError(f'{path}: {error}') from error
    if contradictions := name_contradictions(crystal, solution):
        print('\n'.join(f'note: {each}' for each in contradictions))
    written = write_results(crystal, prepared, solution, output, seed, course)
    endings = ', '.join(each.name.removeprefix(crystal.path.stem) for each in written)
    print(f'{summary(crystal.path.stem, solution)}; {output / crystal.path.stem}{endings}')


def summary(name: str, solution: CrystalSolution) -> str:
    """A line on a solution."""
    group, counts = solution.space_group, Counter(atom.element for atom in solution.atoms)
    found = ' '.join(f'{element}{count if count > 1 else ""}' for element, count in counts.most_common())
    parts = [f'{name}: {solution.verdict}']
    if group is not None:
        parts.append(f'{group.hm} ({group.number}){"" if group.certain else ", not certain"}')
    if found:
        parts.append(f'{found} in the asymmetric unit, hand not determined')
    if solution.r_factor is not None:
        parts.append(f'R1 {solution.r_factor:.3f}')
    parts.append(f'{solution.starts} start{"" if solution.starts == 1 else "s"}, {solution.seconds:.1f} s')
    return ', '.join(parts) + (f' ({"; ".join(solution.reasons)})' if solution.reasons else '')


def name_contradictions(crystal: CrystalFile, solution: CrystalSolution) -> list[str]:
    """Lines on certain results that contradict the claims of the files; each names both."""
    claims, group = crystal.claims, solution.space_group
    lines = []
    if group is not None and group.certain and claims.symops:
        claimed = gemmi.find_spacegroup_by_ops(gemmi.GroupOps([gemmi.Op(each) for each in claims.symops]))
        numbers = (group.number, enantiomorph(group.number))
        if claimed and (claimed.number not in numbers or (claimed.hm != group.hm.partition(':')[0] and not numbers[1])):
            lines.append(f'the files claim the space group {claimed.hm}, but the phases show {group.hm}')
    if solution.verdict == 'solved' and claims.contents:
        found: Counter[str] = Counter()
        for atom in solution.atoms:
            found[atom.element] += atom.multiplicity
        claimed_atoms = {element: count for element, count in claims.contents.items() if element != 'H'}
        ratio = sum(found.values()) / max(sum(claimed_atoms.values()), 1e-9)
        if any(
            abs(found[each] - ratio * claimed_atoms.get(each, 0)) > max(MOST_MISCOUNTED * found[each], 1)
            for each in {*found, *claimed_atoms}
        ):
            words = (' '.join(f'{each}{count:g}' for each, count in both.items()) for both in (claimed_atoms, found))
            claimed_words, found_words = words
            lines.append(
                f'the files claim {claimed_words} in the cell, without hydrogen, but the atoms found are {found_words}'
            )
    return lines


def describe(crystal: CrystalFile, prepared: Prepared) -> list[str]:
    """Three lines on the file, the symmetry and the resolution of the reflections; then notes, then a table."""
    claims, data, chosen = crystal.claims, prepared.data, prepared.chosen
    kind = 'F and σ(F)' if crystal.of_amplitudes else 'F² and σ(F²)'
    cell = ' '.join(f'{value:.6g}' for value in crystal.cell.parameters)
    source = Path(claims.cell_source).name
    contents = ' '.join(f'{element}{count:g}' for element, count in (claims.contents or {}).items())
    wavelength = f'wavelength {claims.wavelength:g} Å' if claims.wavelength else 'wavelength unknown'
    dropped = ''.join(f', {note}' for note in crystal.notes)
    centre = 'as with' if prepared.e_statistic > BETWEEN_CENTRES else 'as without'
    r_int = 'nothing to compare' if chosen.r_int is None else f'R_int {chosen.r_int:.4f} of {chosen.compared}'
    absent = f', {prepared.absent} absent by it' if prepared.absent else ''
    return [
        f'{crystal.path.name}: {kind} of {crystal.records} reflections in {crystal.format}{dropped}; cell {cell} '
        f'({source}), {wavelength}, contents {contents or " ".join(claims.elements) or "unknown"}',
        f'symmetry: Laue class {data.laue_class}, {prepared.reason}; lattice {data.centring}{absent}; {r_int}; '
        f'{len(data.hkl)} unique of {prepared.measured}',
        f'resolution {prepared.d_max:.2f} to {prepared.d_min:.2f} Å, complete to {min(chosen.completeness, 1):.1%}; '
        f'⟨|E² − 1|⟩ {prepared.e_statistic:.2f}, {centre} a centre of symmetry',
        *(f'note: {note}' for note in (*claims.notes, *data.warnings)),
        *class_table(prepared),
    ]


def class_table(prepared: Prepared) -> list[str]:
    """A table of the Laue classes that the lattice allows, each in its best orientation, and of centrings."""
    shown: dict[str, ClassScore] = {}
    for score in prepared.classes:
        before = shown.get(score.laue.symbol)
        if before is None or _shown_before(score, prepared) > _shown_before(before, prepared):
            shown[score.laue.symbol] = score
    lines = ['  Laue class              compared   R_int  misfit  complete']
    for score in shown.values():
        mark = '*' if score is prepared.chosen else ' '
        r_int = '-' if score.r_int is None else f'{score.r_int:.3f}'
        misfit = '-' if score.misfit is None else f'{score.misfit:.2f}'
        name = f'{score.laue.symbol:6} {score.laue.setting:14}'
        lines.append(f'{mark} {name} {score.compared:10d} {r_int:>7} {misfit:>7} {min(score.completeness, 1):9.1%}')
    tests = ', '.join(
        f'{each.symbol} {each.mean_square:.3f} ({each.count}, {each.expected:.0f})' for each in prepared.centrings
    )
    return [
        *lines,
        f'  lattice: mean E² of reflections that a centring forbids (how many there are, and would be in P): {tests}',
    ]


def _shown_before(score, prepared):
    misfit = -1.0 if score.misfit is None else score.misfit
    return score is prepared.chosen, score.agrees, bool(score.laue.setting), -misfit


def write_results(
    crystal: CrystalFile,
    prepared: Prepared,
    solution: CrystalSolution,
    output: Path,
    seed: int,
    course: Sequence[tuple[int, float, str]] = (),
) -> list[Path]:
    """Writes all files of a solution and returns their paths. Without atoms there are fewer files.

    All files are made in a temporary directory first. The JSON is put in its place first, with checksums of the others:
    it marks them as results, which a later run may replace if they are unchanged.

    Args:
        crystal: as read.
        prepared: as merged.
        solution: of the crystal.
        output: directory.
        seed: of the starts.
        course: of the starts, for the report: number ended, seconds, and the best result so far in words.
    """
    files = _result_files(crystal.path, output)
    refuse_to_overwrite(crystal, output)
    with tempfile.TemporaryDirectory(prefix=f'.{crystal.path.stem}.', dir=output) as directory:
        made = _result_files(crystal.path, Path(directory))
        content = _report(crystal, prepared, solution, seed)
        _make_results(crystal, prepared, solution, made, content, course)
        made = {ending: file for ending, file in made.items() if file.exists()}
        for ending in ENDINGS[1:]:
            if files[ending].exists() and not _same_file(files[ending], crystal.path):
                files[ending].unlink()
        digests = {ending: _digest(file) for ending, file in made.items()}
        write_json(files['.json'], {**content, 'files': digests})
        for ending, file in made.items():
            if not _same_file(files[ending], crystal.path):
                file.replace(files[ending])
    return [files['.json'], *(files[ending] for ending in made)]


def _make_results(crystal, prepared, solution, files, content, course):
    """Makes all files other than the JSON, which has `content`."""
    name, data, group, drawing = crystal.path.stem, prepared.data, solution.space_group, None
    r_factor = '' if solution.r_factor is None else f', R1 {solution.r_factor:.3f}'
    if group is not None and solution.atoms:
        hklf, factor = _write_reflections(crystal, prepared.change, files['.hkl'])
        write_crystal_res(files['.res'], data, solution, crystal.claims, f'{name} in {group.hm}', hklf, factor)
        write_crystal_cif(files['.cif'], data, solution, crystal.claims, name)
        hydrogen = ', without hydrogen' if data.formula is None or 'H' in data.formula else ''
        heading = f'{name}: {solution.verdict}\n{group.hm}{r_factor}{hydrogen}'
        drawing = crystal_drawing(data.cell, group, solution.atoms)
        draw_structure(files['.png'], drawing, heading)
    if solution.density is not None:
        write_density(files['_density.ccp4'], solution.density, data.cell)
    printed = describe(crystal, prepared)
    write_report(files['.html'], crystal_report(content, data.cell, solution.density, drawing, course, printed, name))


def _report(crystal, prepared, solution, seed):
    """The content of the JSON file."""
    data, claims, chosen = prepared.data, crystal.claims, prepared.chosen
    return {
        'input': str(crystal.path),
        'title': claims.title,
        **solution_content(data, solution),
        'seed': seed,
        'wavelength': data.wavelength,
        'contents': data.formula,
        'laue_class': data.laue_class,
        'lattice': data.centring,
        'reflections': {
            'read': crystal.records,
            'merged': prepared.measured,
            'unique': len(data.hkl),
            'r_int': None if chosen.r_int is None else round(chosen.r_int, 5),
            'completeness': round(chosen.completeness, 4),
            'e_statistic': round(prepared.e_statistic, 3),
            'format': crystal.format,
        },
        'warnings': [*crystal.notes, *claims.notes, *data.warnings, *name_contradictions(crystal, solution)],
    }


def _write_reflections(crystal, change, path):
    """Writes the .hkl file, as a copy if SHELXL can read it; returns its HKLF instruction and its scale."""
    if crystal.hkl_bytes is None:
        measured = crystal.measurements
        return 'HKLF 4', write_hkl(path, dataclasses.replace(measured, hkl=measured.hkl @ change.T))
    write_whole(path, lambda part: part.write_bytes(crystal.hkl_bytes))
    hklf = crystal.claims.hklf
    if np.array_equal(change, np.eye(3)):
        return hklf, 1.0
    number, matrix = hklf_matrix(hklf, str(crystal.path))
    scale, rest = [*hklf.split(), '1', '1'][2], hklf.split()[12:]
    turned = (f'{value:g}' for value in (change @ matrix).ravel())
    return ' '.join(['HKLF', str(number), scale, *turned, *rest]), 1.0


def refuse_to_overwrite(crystal: CrystalFile, output: Path) -> None:
    """Raises InputError if a result would overwrite a file that is not an earlier result, or was changed since.

    So a .res that was refined in place is not lost. A result may replace the input only if it is the same .hkl file,
    byte for byte.
    """
    files = _result_files(crystal.path, output)
    digests = _earlier_digests(files['.json'])
    for ending, file in files.items():
        if _same_file(file, crystal.path):
            if ending != '.hkl' or crystal.hkl_bytes != crystal.path.read_bytes():
                raise InputError(f'{file} is the input, which a result would overwrite; name another --output')
        elif file.exists() and digests is None:
            raise InputError(f'{file} exists and is not an earlier result; name another --output')
        elif file.exists() and ending != '.json' and _digest(file) != digests.get(ending):
            raise InputError(
                f'{file} was refined or edited after it was written; move it away or name another --output'
            )


def _result_files(source, output):
    return {ending: output / f'{source.stem}{ending}' for ending in ENDINGS}


def _earlier_digests(path):
    """Checksums of the other files of an earlier result, from its JSON file; None if that is not a result."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        is_result = {'input', 'verdict', 'space_group'} <= content.keys()
        return dict(content.get('files', {})) if is_result else None
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _same_file(first, second):
    return first.exists() and second.exists() and first.samefile(second)
