"""What files hold of a crystal before anything of it is tested: columns of numbers, and claims."""

import dataclasses
import re

import gemmi
import numpy as np

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.reflections import HIGHEST_INDEX, Measurements
from patterson_jax.errors import InputError

LARGEST = 1e30  # intensity or σ that can be one
SIGMA_OF_INTENSITY, SIGMA_OF_MEAN = 0.03, 0.01  # where a file has no σ: of each intensity and of their mean
LEAST_EQUAL = 3  # elements, hydrogen among them, whose numbers all are the same: a placeholder
CUBIC_ANGSTROM_PER_ATOM = (5.0, 120.0)  # hydrogen apart, in any crystal


@dataclasses.dataclass(frozen=True)
class Columns:
    """Reflections as a file has them.

    Attributes:
        hkl: `(n, 3)` int.
        values: `(n,)`, F² or F; NaN where the number did not fit its field.
        sigmas: `(n,)`; NaN where there is none.
        format: how they were read, in words.
        of_amplitudes: whether they are F, not F².
        notes: what was passed over, a line each.
    """

    hkl: np.ndarray
    values: np.ndarray
    sigmas: np.ndarray
    format: str
    of_amplitudes: bool = False
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Claims:
    """What a file says of its crystal; None or empty where it says nothing.

    Attributes:
        title: of the crystal.
        cell: its cell.
        cell_source: what gave it, in words.
        cell_sigmas: standard uncertainties of its six parameters.
        wavelength: Å.
        probe: 'x-ray', 'neutron', 'electron', or whatever is said of it.
        contents: element → number of atoms in the cell.
        elements: chemical symbols, also where their numbers are not to be believed.
        formula_units: in the cell.
        symops: operations of the group, centring included, as 'x,y,z'.
        hklf: the SHELX instruction by which the reflections are to be read, in one line.
        notes: what is odd in it, a line each.
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
        """Those of the operations, `(m, 3, 3)`, each once; None without operations."""
        if not self.symops:
            return None
        return np.unique([gemmi.Op(each).rot for each in self.symops], axis=0) // gemmi.Op.DEN

    @property
    def centring(self) -> str | None:
        """The letter of the centring, or None without operations."""
        return gemmi.GroupOps([gemmi.Op(each) for each in self.symops]).find_centering() if self.symops else None

    def completed_by(self, other: 'Claims') -> 'Claims':
        """These claims, and where they say nothing, those of another file. A cell keeps its own σ's."""
        missing = {
            field.name: getattr(other, field.name)
            for field in dataclasses.fields(self)
            if not getattr(self, field.name)
            and field.name != 'notes'
            and not (field.name == 'cell_sigmas' and self.cell)
        }
        return dataclasses.replace(self, **missing, notes=tuple(dict.fromkeys(self.notes + other.notes)))


def measurements_of(columns: Columns, matrix: np.ndarray, name: str) -> tuple[Measurements, tuple[str, ...]]:
    """Measured F² and their σ, without placeholders; and what was dropped or made up, in words.

    An F of a file becomes F|F|, so that it keeps its sign.

    Args:
        columns: of a file.
        matrix: `(3, 3)`, which turns its indices into those of the cell.
        name: of the file, for messages.

    Raises:
        InputError: nothing is left.
    """
    hkl, notes = columns.hkl @ matrix.T, list(columns.notes)
    whole = np.rint(hkl)
    values, sigmas = columns.values, columns.sigmas
    if np.all(np.isnan(sigmas)):
        mean = np.nanmean(np.abs(values)) if np.any(np.isfinite(values)) else 1.0
        sigmas = SIGMA_OF_INTENSITY * np.abs(values) + SIGMA_OF_MEAN * mean
        notes.append('there are no σ; 3 % and a hundredth of the mean are taken')
    reasons = {
        'are no numbers or did not fit their columns': ~(np.abs(values) < LARGEST) | ~(np.abs(sigmas) < LARGEST),
        'have σ ≤ 0, placeholders': sigmas < 1 / LARGEST,
        'have indices that the matrix makes fractional': np.any(np.abs(hkl - whole) > 0.01, axis=1),
        'are F(000)': ~np.any(whole, axis=1),
        'have impossible indices': np.any(np.abs(whole) > HIGHEST_INDEX / 4, axis=1),
    }
    kept = np.ones(len(values), bool)
    for reason, dropped in reasons.items():
        count = int(np.sum(kept & dropped))
        kept &= ~dropped
        if count:
            notes.append(f'{count} dropped that {reason}')
    if not np.any(kept):
        raise InputError(f'{name}: no reflections; of {len(values)} all are left out: {"; ".join(notes)}')
    hkl, values, sigmas = whole[kept].astype(np.int32), values[kept], sigmas[kept]
    if columns.of_amplitudes:
        values, sigmas = values * np.abs(values), np.maximum(2 * np.abs(values) * sigmas, sigmas**2)
    return Measurements(hkl, values, sigmas), tuple(notes)


def chemical_symbol(label: str) -> str | None:
    """The element that a label as 'CU2+' or 'Sn' means, deuterium being hydrogen; None if none."""
    match = re.match(r'\$?([A-Za-z]{1,2})(?![A-Za-z])', label.strip())
    letters = match[1] if match else ''
    element = gemmi.Element(letters)
    if element.atomic_number == 0 or element.name.upper() != letters.upper():
        return None
    return 'H' if element.name == 'D' else element.name


def parse_formula(text: str, name: str) -> dict[str, float]:
    """Element → number of a formula as 'C10H10F2N4' or 'C10 H10 F2 N4'.

    Raises:
        InputError: it is none; `name` says what it is the value of.
    """
    parts = re.findall(r'([A-Z][a-z]?)\s*(\d*\.?\d*)', text)
    rest = re.sub(r'([A-Z][a-z]?)\s*(\d*\.?\d*)|[\s,()]', '', text)
    symbols = [known for symbol, _ in parts if (known := chemical_symbol(symbol))]
    if rest or not parts or len(symbols) < len(parts):
        raise InputError(f'{name} is {text!r}; it must be a formula as C10H10F2N4')
    formula: dict[str, float] = {}
    for symbol, (_, number) in zip(symbols, parts, strict=True):
        formula[symbol] = formula.get(symbol, 0) + (float(number) if number.strip('.') else 1.0)
    return formula


def is_placeholder(contents: dict[str, float]) -> bool:
    """Whether numbers of atoms are the same for all of several elements, hydrogen among them."""
    return len(contents) >= LEAST_EQUAL and 'H' in contents and len(set(contents.values())) == 1


def volume_per_atom(contents: dict[str, float], cell: UnitCell) -> float:
    """Å³ for each atom but hydrogen."""
    return cell.volume / max(sum(count for element, count in contents.items() if element != 'H'), 1e-9)


def group_of(generators: list[str], centring: str, centrosymmetric: bool) -> tuple[str, ...]:
    """All operations that generators, a centring and perhaps an inversion at the origin give, as 'x,y,z'.

    Raises:
        ValueError: they are no operations, or no group.
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
            raise ValueError(f'{operation.triplet()!r} is no rotation')
    return tuple(operation.wrap().triplet() for operation in group)
