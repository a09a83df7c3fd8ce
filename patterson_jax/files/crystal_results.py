"""Writes a solved crystal: a SHELX .res to refine at once, its .hkl, a CIF, and the content of a JSON file."""

import itertools
import re
from pathlib import Path

import gemmi
import numpy as np
from gemmi import cif

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.reflections import Measurements
from patterson_jax.crystal.scatterers import form_factors
from patterson_jax.crystal.structure import CrystalData, CrystalSolution, Site, SpaceGroup
from patterson_jax.errors import InputError
from patterson_jax.files.claims import Claims
from patterson_jax.files.shelx import LATTICES, hklf_matrix
from patterson_jax.writing import write_whole

MO_K_ALPHA = 0.71073  # Å, where a crystal's wavelength is not known
LONGEST_LINE = 79  # characters that SHELX reads
LONGEST_NAME = 4  # characters
FIELD = 8  # columns of a value in an .hkl file
LEAST_SIGMA, LARGEST_VALUE = 0.05, 999_999.0  # in an .hkl file
CELL_TAGS = ('length_a', 'length_b', 'length_c', 'angle_alpha', 'angle_beta', 'angle_gamma')
ENOUGH_FOR_SCALE = 1500  # reflections
SAME_PROPORTIONS = 0.15  # relative difference in numbers of atoms up to which a formula fits the atoms found


def write_crystal_res(
    path: Path,
    data: CrystalData,
    solution: CrystalSolution,
    claims: Claims,
    title: str,
    hklf: str,
    factor: float = 1.0,
) -> None:
    """Writes a solution as a .res file that SHELXL refines unchanged: isotropic, in its space group.

    The inversion of a centrosymmetric group must be at the origin, as LATT requires; in a `SpaceGroup` it is.

    Args:
        path: of the file.
        data: of the crystal.
        solution: with a space group and atoms.
        claims: of the crystal's file, for the uncertainties of the cell.
        title: for TITL.
        hklf: the HKLF instruction for the .hkl file beside it.
        factor: the F² of that file divided by those of the data.

    Raises:
        InputError: SHELX cannot express the symmetry of the group in this setting.
    """
    group, atoms = _group_of(solution), solution.atoms
    elements = _elements(atoms, data.formula)
    contents = _contents(atoms, data.formula)
    sigmas = claims.cell_sigmas or (0.0,) * 6
    units = _formula_units(contents, claims)
    reasons = '; '.join(solution.reasons)
    lines = [
        f'TITL {title}'[:LONGEST_LINE],
        f'CELL {data.wavelength or MO_K_ALPHA:.5f} {_cell_words(data.cell)}',
        f'ZERR {units:.2f} {" ".join(f"{sigma:.5f}" for sigma in sigmas[:3])} '
        f'{" ".join(f"{sigma:.4f}" for sigma in sigmas[3:])}',
        *_symmetry_lines(group),
        f'SFAC {" ".join(elements)}',
        f'UNIT {" ".join(f"{contents.get(element, 0):g}" for element in elements)}',
        *_remarks(f'{group.hm}, {solution.verdict}{f": {reasons}" if reasons else ""}'),
        *([] if data.wavelength else _remarks('The wavelength is not known; that of Mo K alpha is written.')),
        'L.S. 10',
        'BOND',
        'FMAP 2',
        'PLAN 20',
        'WGHT 0.1',
        f'FVAR {np.sqrt(factor) * _hklf_scale(hklf) * overall_scale(data, group, atoms):.5f}',
    ]
    for name, atom in zip(atom_names(atoms), atoms, strict=True):
        x, y, z = atom.fract
        part = atom.occupancy * atom.multiplicity / len(group.symops)
        lines.append(
            f'{name:<4} {elements.index(atom.element) + 1:<2d} {x:10.6f} {y:10.6f} {z:10.6f} {10 + part:9.5f} '
            f'{atom.u_iso:8.5f}'
        )
    text = '\n'.join([*lines, hklf, 'END']) + '\n'
    text = text.encode('ascii', 'replace').decode()
    write_whole(path, lambda part: part.write_text(text, encoding='ascii'))


def _group_of(solution: CrystalSolution) -> SpaceGroup:
    if solution.space_group is None:
        raise ValueError('a solution without a space group has no atoms to write')
    return solution.space_group


def _cell_words(cell):
    return ' '.join(f'{edge:.5f}' for edge in cell.parameters[:3]) + ''.join(
        f' {angle:.4f}' for angle in cell.parameters[3:]
    )


def _remarks(text):
    """Breaks a text into REM lines."""
    words, line = text.split(), 'REM'
    for word in words:
        if len(line) + 1 + len(word) > LONGEST_LINE:
            yield line
            line = 'REM'
        line += f' {word}'
    yield line


def _symmetry_lines(group):
    """LATT and SYMM lines; SYMM leaves out the identity, and the centring and inversion that LATT tells.

    Raises InputError if an inversion is not at the origin, or if SHELX does not have the centring.
    """
    operations = [gemmi.Op(each) for each in group.symops]
    every = gemmi.GroupOps(operations)
    letters = {letter: number for number, letter in LATTICES.items()}
    letter = every.find_centering()
    centred = '-x,-y,-z' in {each.triplet() for each in every}
    if letter not in letters or centred != every.is_centrosymmetric():
        raise InputError(f'space group {group.hm}: SHELX has no LATT for its centring {letter!r} or its centre')
    proper = [each for each in every.sym_ops if not centred or np.linalg.det(each.rot) > 0]
    symm = [each.triplet().upper() for each in proper if each.triplet() != 'x,y,z']
    return [f'LATT {letters[letter] if centred else -letters[letter]}', *(f'SYMM {each}' for each in symm)]


def _elements(atoms, formula):
    """Elements of the atoms, with hydrogen if the formula fits; carbon and hydrogen first."""
    found = {atom.element for atom in atoms} | set(_contents(atoms, formula))
    return sorted(found, key=lambda element: (element != 'C', element != 'H', element))


def _contents(atoms, formula):
    """Numbers of atoms in the cell; with the hydrogen of the formula, if the formula has the same proportions."""
    contents: dict[str, float] = {}
    for atom in atoms:
        contents[atom.element] = contents.get(atom.element, 0) + atom.occupancy * atom.multiplicity
    contents = {element: round(count, 3) for element, count in contents.items()}
    heavy = {element: count for element, count in (formula or {}).items() if element != 'H'}
    if heavy.keys() == contents.keys() and 'H' in formula:
        units = sum(contents.values()) / sum(heavy.values())
        if all(abs(contents[each] / (units * heavy[each]) - 1) < SAME_PROPORTIONS for each in heavy):
            contents['H'] = round(units * formula['H'], 3)
    return contents


def _formula_units(contents, claims):
    """Formula units in the cell: the claimed number if it fits, else the largest divisor of all numbers of atoms."""
    claimed, units = _count_heavy(claims.contents or {}), claims.formula_units
    if units and claimed and abs(_count_heavy(contents) / claimed - 1) < SAME_PROPORTIONS:
        return units
    counts = [round(count) for count in contents.values()]
    whole = all(abs(count - number) < 0.01 for count, number in zip(contents.values(), counts, strict=True))
    return int(np.gcd.reduce(counts)) if whole and min(counts) > 0 else 1


def _count_heavy(contents):
    return sum(count for element, count in contents.items() if element != 'H')


def atom_names(atoms: tuple[Site, ...]) -> list[str]:
    """A name for each atom: of its element, unique, at most four characters; its label where that is such a name."""
    names: list[str] = []
    for atom in atoms:
        label, symbol = atom.label, atom.element
        taken = {name.upper() for name in names}
        good = re.fullmatch(rf'{symbol}([0-9][A-Za-z0-9]*)?', label, re.I)
        if not good or len(label) > LONGEST_NAME or label.upper() in taken:
            free = (f'{symbol}{tail}' for tail in _tails(LONGEST_NAME - len(symbol)))
            label = next(name for name in free if name.upper() not in taken)
        names.append(label)
    return names


def _tails(length):
    """1, 2, … as long as they fit; then numbers that a letter follows."""
    yield from map(str, range(1, 10**length))
    for head, letter in itertools.product(range(10 ** (length - 1)), 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'):
        yield f'{head}{letter}'


def _hklf_scale(hklf):
    """The factor by which an HKLF instruction multiplies F. Its S is a factor of F for HKLF 3, of F² for HKLF 4."""
    number, _ = hklf_matrix(hklf, 'HKLF')
    scale = float([*hklf.split(), '1', '1'][2])
    return scale if number == 3 else float(np.sqrt(scale))


def overall_scale(data: CrystalData, group: SpaceGroup, atoms: tuple[Site, ...]) -> float:
    """Measured amplitudes divided by calculated ones in electrons: SHELXL's first free variable."""
    sample = slice(None, None, len(data.hkl) // ENOUGH_FOR_SCALE + 1)
    measured = np.sqrt(np.maximum(data.intensities[sample], 0))
    calculated = np.abs(calculated_structure_factors(data.hkl[sample], data.cell, group, atoms, data.wavelength))
    return float(max(np.sum(measured * calculated) / max(np.sum(calculated**2), 1e-30), 1e-6))


def calculated_structure_factors(
    hkl: np.ndarray, cell: UnitCell, group: SpaceGroup, atoms: tuple[Site, ...], wavelength: float | None = None
) -> np.ndarray:
    """F(h) `(n,)` of isotropic atoms, in electrons per cell, with the form factors that the refinement uses.

    Args:
        hkl: `(n, 3)`.
        cell: of the indices.
        group: of the atoms.
        atoms: the asymmetric unit.
        wavelength: Å; without one f′ is left out.
    """
    operations = [gemmi.Op(each) for each in group.symops]
    rotations = np.array([each.rot for each in operations]) / gemmi.Op.DEN
    shifts = np.array([each.tran for each in operations]) / gemmi.Op.DEN
    spacings = cell.inverse_spacings(hkl)
    quarter = spacings**2 / 4
    elements = sorted({atom.element for atom in atoms})
    factors = dict(zip(elements, form_factors(elements, spacings, wavelength), strict=True)) if elements else {}
    total = np.zeros(len(hkl), complex)
    for atom in atoms:
        factor = factors[atom.element]
        images = rotations @ np.array(atom.fract) + shifts
        part = atom.occupancy * atom.multiplicity / len(operations)
        falloff = np.exp(-8 * np.pi**2 * atom.u_iso * quarter)
        total += part * factor * falloff * np.exp(2j * np.pi * (hkl @ images.T)).sum(axis=1)
    return total


def write_hkl(path: Path, measurements: Measurements) -> float:
    """Writes F² and their σ as HKLF 4 in fixed columns, 3I4,2F8, on a scale on which they fit the columns.

    Returns:
        The factor by which the values were multiplied.
    """
    highest = float(np.max(np.abs([measurements.intensities, measurements.sigmas])))
    scale = min(max(1.0, LEAST_SIGMA / float(np.min(measurements.sigmas))), LARGEST_VALUE / highest)
    intensities, sigmas = measurements.intensities * scale, np.maximum(measurements.sigmas * scale, 0.01)
    rows = zip(measurements.hkl.tolist(), intensities.tolist(), sigmas.tolist(), strict=True)
    lines = [f'{h:4d}{k:4d}{l:4d}{_in_field(value)}{_in_field(sigma)}' for (h, k, l), value, sigma in rows]
    text = '\n'.join([*lines, f'{0:4d}{0:4d}{0:4d}{0:8.2f}{0:8.2f}']) + '\n'
    write_whole(path, lambda part: part.write_text(text, encoding='ascii'))
    return scale


def _in_field(value):
    """A number in eight columns, with two decimals or as many as fit."""
    return next(text for decimals in (2, 1, 0) if len(text := f'{value:#{FIELD}.{decimals}f}') <= FIELD)


def write_crystal_cif(path: Path, data: CrystalData, solution: CrystalSolution, claims: Claims, name: str) -> None:
    """Writes a solution with a space group and atoms as CIF.

    Args:
        path: of the file.
        data: of the crystal.
        solution: with a space group and atoms.
        claims: of the crystal's file, for the formula units.
        name: of the data block.
    """
    group, atoms, r_factor = _group_of(solution), solution.atoms, solution.r_factor
    document = cif.Document()
    block = document.add_new_block(re.sub(r'\W+', '_', name))
    contents = _contents(atoms, data.formula)
    units = _formula_units(contents, claims)
    symbols = sorted(contents, key=lambda element: (element != 'C', element != 'H', element))
    found = gemmi.find_spacegroup_by_ops(gemmi.GroupOps([gemmi.Op(each) for each in group.symops]))
    pairs = {
        '_audit_creation_method': 'patterson_jax',
        '_chemical_formula_sum': ' '.join(f'{each}{contents[each] / units:.4g}' for each in symbols),
        '_cell_formula_units_Z': f'{units:g}',
        **{f'_cell_{tag}': f'{value:.7g}' for tag, value in zip(CELL_TAGS, data.cell.parameters, strict=True)},
        '_cell_volume': f'{data.cell.volume:.7g}',
        '_space_group_IT_number': f'{group.number}',
        '_space_group_name_H-M_alt': group.hm if found else '?',  # of another setting it would be a false name
        **({'_space_group_name_Hall': found.hall} if found else {}),
        **({'_diffrn_radiation_wavelength': f'{data.wavelength:g}'} if data.wavelength else {}),
        '_refine_ls_R_factor_gt': '?' if r_factor is None else f'{r_factor:.4f}',
    }
    for tag, value in pairs.items():
        block.set_pair(tag, value if value == '?' else cif.quote(value))
    operations = block.init_loop('_space_group_symop_', ['id', 'operation_xyz'])
    for number, operation in enumerate(group.symops, start=1):
        operations.add_row([f'{number}', cif.quote(operation)])
    columns = ('label', 'type_symbol', 'fract_x', 'fract_y', 'fract_z', 'U_iso_or_equiv', 'adp_type', 'occupancy')
    sites = block.init_loop('_atom_site_', [*columns, 'site_symmetry_multiplicity'])
    for label, atom in zip(atom_names(atoms), atoms, strict=True):
        place = [f'{value:.6f}' for value in atom.fract]
        kind = [f'{atom.u_iso:.5f}', 'Uiso', f'{atom.occupancy:.4g}', f'{atom.multiplicity}']
        sites.add_row([label, atom.element, *place, *kind])
    text = document.as_string()
    write_whole(path, lambda part: part.write_text(text, encoding='utf-8'))


def solution_content(data: CrystalData, solution: CrystalSolution) -> dict:
    """The fields that the JSON file of every crystal has; None where something is not known."""
    group = solution.space_group
    return {
        'verdict': solution.verdict,
        'reasons': list(solution.reasons),
        'space_group': group
        and {
            'number': group.number,
            'hm': group.hm,
            'standard_hm': gemmi.get_spacegroup_reference_setting(group.number).xhm(),
            'symops': list(group.symops),
            'certain': group.certain,
            'candidates': list(group.candidates),
        },
        'cell': list(data.cell.parameters),
        'atoms': [
            {
                'label': label,
                'element': atom.element,
                'fract': [round(value, 6) for value in atom.fract],
                'u_iso': round(atom.u_iso, 5),
                'occupancy': round(atom.occupancy, 4),
                'multiplicity': atom.multiplicity,
                'element_confidence': round(atom.confidence, 3),
            }
            for label, atom in zip(atom_names(solution.atoms), solution.atoms, strict=True)
        ],
        'hand': 'not determined',
        'r_factor': None if solution.r_factor is None else round(solution.r_factor, 5),
        'resolution': round(solution.resolution, 4),
        'starts': solution.starts,
        'map_finished_by': solution.finished_by,
        'seconds': round(solution.seconds, 3),
    }
