"""Crystals as a person gives them: files or arrays with what is known, read and merged."""

import dataclasses
import math
from pathlib import Path

from patterson_jax.crystal.preparation import Prepared, prepare
from patterson_jax.errors import InputError, require
from patterson_jax.files.crystals import CrystalFile, read_crystal


@dataclasses.dataclass(frozen=True)
class CrystalSettings:
    """Section `crystal` of a config; the fields are explained in configs/crystal.py. Raises InputError."""

    cell: str
    formula: str
    laue: str
    wavelength: float | None
    block: str
    max_starts: int
    max_seconds: float

    def __post_init__(self):
        require(self.max_starts >= 1, 'max_starts', self.max_starts, '1 or more')
        within = math.isfinite(self.max_seconds) and self.max_seconds >= 0
        require(within, 'max_seconds', self.max_seconds, 'a number of seconds, or 0 for no limit')


def read_and_prepare(path: Path, settings: CrystalSettings) -> tuple[CrystalFile, Prepared]:
    """Reads a crystal and merges it in the symmetry of its intensities. Raises InputError, which names the file."""
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
