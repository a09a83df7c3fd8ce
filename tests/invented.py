"""Crystals of random atoms, for the tests of what solves crystals."""

import dataclasses

import gemmi
import numpy as np

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.structure import CrystalData

ELEMENTS = ('C', 'N', 'O')


@dataclasses.dataclass(frozen=True)
class Invented:
    """A crystal with what is known of it: `positions` and `elements` of all atoms of the cell, in the given frame."""

    data: CrystalData
    setting: gemmi.SpaceGroup
    positions: np.ndarray
    elements: tuple[str, ...]

    def structure_factors(self, hkl):
        """F of indices `(n, 3)` in the cell as given."""
        spacings = self.data.cell.inverse_spacings(hkl)
        return structure_factors(hkl, spacings, self.positions, self.elements)


def invent(symbol, cell, num_atoms, resolution, seed=0, noise=0.0):
    """A crystal of `num_atoms` C, N and O in general positions of the asymmetric unit, 1.4 Å apart or more."""
    rng = np.random.default_rng(seed)
    setting = gemmi.find_spacegroup_by_name(symbol)
    cell = UnitCell(*cell)
    operators = list(setting.operations())
    positions, elements = np.zeros((0, 3)), []
    while len(elements) < num_atoms * len(operators):
        place = rng.random(3)
        orbit = np.array([operator.apply_to_xyz(place.tolist()) for operator in operators])
        everything = np.concatenate([positions, orbit])
        differences = everything[:, None] - orbit
        differences -= np.rint(differences)
        distances = np.linalg.norm(differences @ cell.orthogonalization.T, axis=-1)
        if np.sum(distances < 1.4) == len(orbit):
            positions = everything
            elements += [ELEMENTS[len(elements) % len(ELEMENTS)]] * len(orbit)
    unique = gemmi.make_miller_array(cell.gemmi, setting, resolution)
    spacings = cell.inverse_spacings(unique)
    intensities = np.abs(structure_factors(unique, spacings, positions, elements)) ** 2
    sigmas = np.maximum(noise * intensities, 1e-3 * intensities.mean())
    intensities = intensities + noise * sigmas * rng.standard_normal(len(unique))
    rotations = np.array([operator.rot for operator in operators]) // gemmi.Op.DEN
    rotations = np.unique(np.concatenate([rotations, -rotations]), axis=0)
    group = gemmi.find_spacegroup_by_ops(setting.operations())
    data = CrystalData(
        cell, np.array(unique, np.int32), intensities, sigmas, group.laue_str(), rotations, group.centring_type()
    )
    return Invented(data, setting, positions, tuple(elements))


def structure_factors(hkl, spacings, positions, elements, u_iso=0.03):
    """Σ f exp(−2π² U /d²) exp(2πi h·x) over all atoms of a cell."""
    waves = np.exp(2j * np.pi * hkl @ positions.T)
    scattering = np.zeros_like(waves, float)
    for index, element in enumerate(elements):
        coefficients = gemmi.Element(element).it92
        scattering[:, index] = [coefficients.calculate_sf(each) for each in spacings**2 / 4]
    return np.sum(waves * scattering, axis=1) * np.exp(-2 * np.pi**2 * u_iso * spacings**2)
