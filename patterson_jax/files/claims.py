"""The content of files before it is tested: columns of numbers, and claims about a crystal."""

import dataclasses
import re

import gemmi
import numpy as np

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.reflections import HIGHEST_INDEX, Measurements
from patterson_jax.errors import InputError

LARGEST = 1e30  # a larger value is no intensity and no σ
SIGMA_OF_INTENSITY, SIGMA_OF_MEAN = 0.03, 0.01  # σ where a file has none: these parts of an intensity and of the mean
LEAST_EQUAL = 3  # equal numbers of so many elements, with hydrogen, are a placeholder
CUBIC_ANGSTROM_PER_ATOM = (5.0, 120.0)  # in any crystal, hydrogen not counted


@dataclasses.dataclass(frozen=True)
class Columns:
    """Reflections as they stand in a file.

    Attributes:
        hkl: `(n, 3)` int.
        values: `(n,)`, F² or F; NaN where the number did not fit its field.
        sigmas: `(n,)`; NaN where there is none.
        format: how they were read, in words.
        of_amplitudes: whether the values are F, not F².
        notes: a line for each kind of reflection that was not used.
    """

    hkl: np.ndarray
    values: np.ndarray
    sigmas: np.ndarray
    format: str
    of_amplitudes: bool = False
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Claims:
    """What a file says about its crystal; None or empty where it says nothing.

    Attributes:
        title: of the crystal.
        cell: its cell.
        cell_source: where the cell is from, in words.
        cell_sigmas: standard uncertainties of the six parameters of the cell.
        wavelength: Å.
        probe: 'x-ray', 'neutron', 'electron', or any other word of the file.
        contents: element → number of atoms in the cell.
        elements: chemical symbols, also where the numbers of atoms are not credible.
        formula_units: number in the cell.
        symops: operations of the space group, with the centring, written like 'x,y,z'.
        hklf: the HKLF instruction of SHELX for the reflections, in one line.
        notes: a line for each oddity of the file.
    """

    title: str = ''
    cell: UnitCell | None = None
    cell_source: str = ''
    cell_sigmas: tuple[float, ...] | None = None
    wavelength: float | None = None
    probe: str = ''
    contents: dict[str, float] | None = None
    elements: tuple[str, ...] = ()
    formula_units: float | None = None
    symops: tuple[str, ...] = ()
    hklf: str = ''
    notes: tuple[str, ...] = ()

    @property
    def rotations(self) -> np.ndarray | None:
        """Rotations of the operations, `(m, 3, 3)`, each once; None without operations."""
        if not self.symops:
            return None
        return np.unique([gemmi.Op(each).rot for each in self.symops], axis=0) // gemmi.Op.DEN

    @property
    def centring(self) -> str | None:
        """The letter of the centring, or None without operations."""
        return gemmi.GroupOps([gemmi.Op(each) for each in self.symops]).find_centering() if self.symops else None

    def completed_by(self, other: 'Claims') -> 'Claims':
        """These claims, with gaps filled from another file. The σ of a cell stay with that cell."""
        missing = {
            field.name: getattr(other, field.name)
            for field in dataclasses.fields(self)
            if not getattr(self, field.name)
            and field.name != 'notes'
            and not (field.name == 'cell_sigmas' and self.cell)
        }
        return dataclasses.replace(self, **missing, notes=tuple(dict.fromkeys(self.notes + other.notes)))


def measurements_of(columns: Columns, matrix: np.ndarray, name: str) -> tuple[Measurements, tuple[str, ...]]:
    """Measured F² and their σ without placeholders, and notes on what was left out or made up.

    An F of a file becomes F|F|, so that it keeps its sign.

    Args:
        columns: of a file.
        matrix: `(3, 3)`, from the indices of the file to those of the cell, both column vectors.
        name: of the file, for messages.

    Raises:
        InputError: no reflection is left.
    """
    hkl, notes = columns.hkl @ matrix.T, list(columns.notes)
    whole = np.rint(hkl)
    values, sigmas = columns.values, columns.sigmas
    if np.all(np.isnan(sigmas)):
        mean = np.nanmean(np.abs(values)) if np.any(np.isfinite(values)) else 1.0
        sigmas = SIGMA_OF_INTENSITY * np.abs(values) + SIGMA_OF_MEAN * mean
        notes.append('there are no σ; 3 % of each intensity and 1 % of the mean are taken')
    reasons = {
        'no number, or too wide for its column': ~(np.abs(values) < LARGEST) | ~(np.abs(sigmas) < LARGEST),
        'σ ≤ 0, as of a placeholder': sigmas < 1 / LARGEST,
        'indices that are not numbers': ~np.all(np.isfinite(hkl), axis=1),
        'fractional indices after the matrix': np.any(np.abs(hkl - whole) > 0.01, axis=1),
        'F(000)': ~np.any(whole, axis=1),
        'impossible indices': np.any(np.abs(whole) > HIGHEST_INDEX / 4, axis=1),
    }
    kept = np.ones(len(values), bool)
    for reason, dropped in reasons.items():
        count = int(np.sum(kept & dropped))
        kept &= ~dropped
        if count:
            notes.append(f'{count} left out: {reason}')
    if not np.any(kept):
        raise InputError(f'{name}: no reflections are left of {len(values)}; {"; ".join(notes)}')
    hkl, values, sigmas = whole[kept].astype(np.int32), values[kept], sigmas[kept]
    if columns.of_amplitudes:
        values, sigmas = values * np.abs(values), np.maximum(2 * np.abs(values) * sigmas, sigmas**2)
    return Measurements(hkl, values, sigmas), tuple(notes)


def chemical_symbol(label: str) -> str | None:
    """The element of a label like 'CU2+' or 'Sn', with hydrogen for deuterium; None if it names no element."""
    match = re.match(r'\$?([A-Za-z]{1,2})(?![A-Za-z])', label.strip())
    letters = match[1] if match else ''
    element = gemmi.Element(letters)
    if element.atomic_number == 0 or element.name.upper() != letters.upper():
        return None
    return 'H' if element.name == 'D' else element.name


def parse_formula(text: str, name: str) -> dict[str, float]:
    """Reads a formula like 'C10H10F2N4' or 'C10 H10 F2 N4' as element → number.

    Args:
        text: the formula.
        name: of the text, for messages.

    Raises:
        InputError: the text is not a formula.
    """
    parts = re.findall(r'([A-Z][a-z]?)\s*(\d*\.?\d*)', text)
    rest = re.sub(r'([A-Z][a-z]?)\s*(\d*\.?\d*)|[\s,()]', '', text)
    symbols = [known for symbol, _ in parts if (known := chemical_symbol(symbol))]
    if rest or not parts or len(symbols) < len(parts):
        raise InputError(f'{name} is {text!r}; it must be a formula like C10H10F2N4')
    formula: dict[str, float] = {}
    for symbol, (_, number) in zip(symbols, parts, strict=True):
        formula[symbol] = formula.get(symbol, 0) + (float(number) if number.strip('.') else 1.0)
    return formula


def is_placeholder(contents: dict[str, float]) -> bool:
    """Whether there are several elements, hydrogen among them, and all have the same number of atoms."""
    return len(contents) >= LEAST_EQUAL and 'H' in contents and len(set(contents.values())) == 1


def volume_per_atom(contents: dict[str, float], cell: UnitCell) -> float:
    """Volume in Å³ for each atom other than hydrogen."""
    return cell.volume / max(sum(count for element, count in contents.items() if element != 'H'), 1e-9)


def group_of(generators: list[str], centring: str, centrosymmetric: bool) -> tuple[str, ...]:
    """All operations of a space group, written like 'x,y,z'.

    Args:
        generators: operations that generate the group together with the others.
        centring: its letter.
        centrosymmetric: whether there is an inversion at the origin.

    Raises:
        ValueError: a generator is not an operation, or they do not generate a group.
    """
    try:
        operations = [*gemmi.symops_from_hall(f'{centring} 1'), *map(gemmi.Op, generators)]
        if centrosymmetric:
            operations.append(gemmi.Op('-x,-y,-z'))
        group = gemmi.GroupOps([gemmi.Op(each) for each in dict.fromkeys(each.wrap().triplet() for each in operations)])
        group.add_missing_elements()
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    for operation in group.sym_ops:
        rotation = np.array(operation.rot) / gemmi.Op.DEN
        if not np.array_equal(rotation, np.rint(rotation)) or abs(np.linalg.det(rotation)) != 1:
            raise ValueError(f'{operation.triplet()!r} is not a rotation')
    return tuple(operation.wrap().triplet() for operation in group)
