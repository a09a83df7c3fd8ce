"""Reads, merges and solves crystals that a user gives as files or arrays."""

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np

from patterson_jax.compiler import avoid_wrong_fusion, require_right_results
from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.preparation import Prepared, prepare
from patterson_jax.crystal.structure import CrystalSolution
from patterson_jax.errors import InputError, is_real, is_whole, real_array, require
from patterson_jax.files.claims import Columns, measurements_of, parse_formula
from patterson_jax.files.crystals import CrystalFile, parse_cell, read_crystal
from patterson_jax.solving import crystal_solver
from patterson_jax.solving.crystal_projection import Projection

NO_NETWORK = 'none'
CHOICES = "'none', or the name or directory of a learned projection, like 'projection'"


@dataclasses.dataclass(frozen=True)
class CrystalSettings:
    """Section `crystal` of a config. configs/crystal.py explains the fields. Raises InputError if one is invalid."""

    cell: str
    formula: str
    laue: str
    wavelength: float | None
    block: str
    max_starts: int
    max_seconds: float
    network: str

    def __post_init__(self):
        require(self.max_starts >= 1, 'max_starts', self.max_starts, '1 or more')
        within = math.isfinite(self.max_seconds) and self.max_seconds >= 0
        require(within, 'max_seconds', self.max_seconds, 'a number of seconds, or 0 for no limit')


def read_and_prepare(path: Path, settings: CrystalSettings) -> tuple[CrystalFile, Prepared]:
    """Reads a crystal and merges equivalents by the symmetry of its intensities.

    Raises:
        InputError: the file cannot be read or merged; the message names it.
    """
    crystal = read_crystal(
        path, cell=settings.cell, formula=settings.formula, wavelength=settings.wavelength, block=settings.block
    )
    claims = crystal.claims
    try:
        prepared = prepare(
            crystal.measurements,
            crystal.cell,
            wavelength=claims.wavelength,
            formula=claims.contents,
            elements=claims.elements,
            laue=settings.laue or None,
            claimed=claims.rotations,
            claimed_centring=claims.centring,
        )
    except InputError as error:
        raise InputError(f'{path}: {error}') from error
    return crystal, prepared


def projection_of(network: str | Path) -> Projection | None:
    """The learned projection that finishes the maps of crystals; None: elimination alone.

    Args:
        network: 'none', or the name or directory of one; 'projection' comes with the code.

    Raises:
        InputError: there is no such network, or it is not one of crystals.
    """
    require(isinstance(network, (str, Path)) and network != '', 'network', network, CHOICES)
    if network == NO_NETWORK:
        return None
    from patterson_jax.projection_weights import load_projection  # half a second, which not every crystal need wait

    return load_projection(network)


def solve_crystal(
    hkl: np.ndarray,
    intensities: np.ndarray,
    sigmas: np.ndarray,
    cell: UnitCell | tuple[float, float, float, float, float, float],
    *,
    wavelength: float | None = None,
    formula: str | None = None,
    laue: str | None = None,
    network: str | Path = NO_NETWORK,
    seed: int = 0,
) -> CrystalSolution:
    """Solves a crystal from measured intensities and the cell alone.

    Args:
        hkl: `(n, 3)` whole numbers; equivalents may be merged or not.
        intensities: `(n,)`, F² on any scale; may be negative.
        sigmas: `(n,)`, their standard uncertainties; reflections without a positive one are left out. If all are NaN,
            3 % of each intensity and 1 % of the mean are taken.
        cell: a, b, c in Å and α, β, γ in degrees.
        wavelength: in Å; f′ of the form factors depends on it. None: f′ is left out.
        formula: for example 'C10H10F2N4'; any part of the cell will do, the whole cell is best. None: any elements.
        laue: symbol of the Laue class, for example '2/m'. None: it is found from the data.
        network: that finishes maps: 'none', or the name or directory of a learned projection; 'projection' comes with
            the code.
        seed: fixes the starts.

    Returns:
        The best solution found, whatever its verdict; it may be without atoms. Its indices are those given, but for a
        reverse rhombohedral lattice, where they are turned by 180° about c. Notes on stderr say so, and what was left
        out.

    Raises:
        InputError: the arrays have other shapes, there are no reflections, the cell or the class is impossible, or
            there is no such network.
    """
    avoid_wrong_fusion()
    require_right_results()
    hkl = real_array(hkl, 'hkl', 'whole numbers, (n, 3)')
    intensities = real_array(intensities, 'intensities', 'real numbers, (n,)').astype(float)
    sigmas = real_array(sigmas, 'sigmas', 'real numbers, (n,)').astype(float)
    shapes = (hkl.shape, intensities.shape, sigmas.shape)
    fitting = len(hkl.shape) == 2 and shapes == ((len(hkl), 3), (len(hkl),), (len(hkl),))
    require(fitting, 'shapes of hkl, intensities and sigmas', shapes, '(n, 3), (n,) and (n,)')
    six = 'six numbers, a b c in Å and α β γ in degrees'
    require(isinstance(cell, UnitCell) or np.iterable(cell), 'cell', cell, six)
    require(wavelength is None or is_real(wavelength), 'wavelength', wavelength, 'a number of Å, or None')
    require(formula is None or isinstance(formula, str), 'formula', formula, "text like 'C10H10F2N4', or None")
    require(is_whole(seed) and 0 <= seed < 2**32, 'seed', seed, f'a whole number from 0 to {2**32 - 1}')
    parameters = cell.parameters if isinstance(cell, UnitCell) else cell
    contents = parse_formula(formula, 'formula') if formula else None
    measurements, notes = measurements_of(Columns(hkl, intensities, sigmas, 'arrays'), np.eye(3), 'hkl')
    prepared = prepare(
        measurements,
        parse_cell(' '.join(map(str, parameters)), 'cell'),
        wavelength=wavelength,
        formula=contents,
        elements=tuple(contents or ()),
        laue=laue,
    )
    for note in (*notes, *prepared.data.warnings):
        print(f'note: {note}', file=sys.stderr)
    projection = projection_of(network)
    return crystal_solver.solve_crystal(prepared.data, seed=seed, projection=projection)
