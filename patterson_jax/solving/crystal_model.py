"""Atoms of a crystal in its space group, and their refinement: what building, elements and findings share."""

import dataclasses
import functools

import numpy as np

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.scatterers import AsymmetricUnit, form_factors, group_operations
from patterson_jax.crystal.structure import CrystalData, SpaceGroup
from patterson_jax.solving import crystal_maps as maps
from patterson_jax.solving.crystal_anisotropy import allowed_shifts, refine_anisotropic
from patterson_jax.solving.crystal_elements import atomic_number, powers_of
from patterson_jax.solving.crystal_refinement import Fit, observations, refine, up_to

FIRST_U = 0.04  # Å², of an atom that is not refined yet
ON_SPECIAL = 0.05  # Å; an atom so near to a special position stays on it
STRONG = 4.0  # F/σ(F) above which reflections count in R1
ANISOTROPIC_CYCLES = 20
OCCUPANCY_CYCLES = 4  # to tell scattering powers
MOST_PEAKS = 200  # in the cell, of a difference map
ALIKE = 2  # difference of atomic numbers up to which elements can be confused
LEAST_FOR_ANISOTROPY = 5.0  # reflections for each parameter of atoms with anisotropic displacements
GIVEN_UP_R = 0.45  # above this R1 no more rounds are made, of revision or of elements


@dataclasses.dataclass(frozen=True)
class CrystalInGroup:
    """The data of a crystal in a space group; they do not change.

    Attributes:
        data: as given.
        space_group: of the crystal.
        hkl: `(n, 3)`, the reflections that the group allows, in order of 1/d.
        spacings: `(n,)`, 1/d in 1/Å.
        intensities: `(n,)`, scaled to a mean of 1.
        sigmas: `(n,)`, on the same scale.
        unit: the mean of these intensities as given.
    """

    data: CrystalData
    space_group: SpaceGroup
    hkl: np.ndarray
    spacings: np.ndarray
    intensities: np.ndarray
    sigmas: np.ndarray
    unit: float

    @property
    def amplitudes(self) -> np.ndarray:
        """|Fo|, `(n,)`."""
        return np.sqrt(np.maximum(self.intensities, 0))

    @property
    def strong(self) -> np.ndarray:
        """Whether F > 4σ(F), `(n,)`."""
        return self.intensities > STRONG / 2 * self.sigmas

    @property
    def d_min(self) -> float:
        """The resolution, Å."""
        return float(1 / self.spacings[-1])

    @property
    def symmetry(self) -> tuple[UnitCell, maps.Seitz]:
        """The cell and its operations, as the functions of `crystal_maps` take them."""
        return self.data.cell, self.space_group.operations

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of maps."""
        return maps.grid_shape(self.data.cell, self.d_min)

    def map(self, structure_factors: np.ndarray) -> np.ndarray:
        """The map of structure factors `(n,)`, in the order of the reflections."""
        operations, volume = self.space_group.operations, self.data.cell.volume
        return maps.symmetric_map(self.hkl, structure_factors, operations, self.shape, volume)

    def stabilisers(self, positions: np.ndarray) -> list[np.ndarray]:
        """The rotations `(k, 3, 3)` of the operations that keep each of positions `(m, 3)` in place."""
        return [maps.stabiliser(each, *self.symmetry) for each in positions]

    def multiplicities(self, positions: np.ndarray) -> np.ndarray:
        """Numbers `(m,)` of sites in the cell, of positions `(m, 3)`."""
        return len(self.space_group.symops) // self._orders(positions)

    def occupancies(self, positions: np.ndarray) -> np.ndarray:
        """Occupancies `(m,)` of full sites at positions `(m, 3)`, relative to the general position."""
        return 1 / self._orders(positions)

    def _orders(self, positions):
        return np.array([len(each) for each in self.stabilisers(positions)], int)

    def settled(self, positions: np.ndarray, tolerance: float = ON_SPECIAL) -> tuple[np.ndarray, np.ndarray]:
        """Positions `(m, 3)` on the special positions that they are near to, in Å, and their projectors (`settle`)."""
        settled = [maps.settle(each, *self.symmetry, tolerance=tolerance) for each in positions]
        return np.reshape([each for each, _ in settled], (-1, 3)), np.reshape([each for _, each in settled], (-1, 3, 3))


@dataclasses.dataclass(frozen=True)
class Model:
    """Atoms of the asymmetric unit of a crystal, on full sites.

    Attributes:
        crystal: of the atoms.
        positions: `(n, 3)`, fractional.
        u_iso: `(n,)`, Å².
        elements: chemical symbols.
        scale: k of Fo = k Fc; 0: the one that fits the atoms.
    """

    crystal: CrystalInGroup
    positions: np.ndarray
    u_iso: np.ndarray
    elements: tuple[str, ...]
    scale: float = 0.0

    def with_elements(self, elements: tuple[str, ...]) -> 'Model':
        """Other elements at the same sites; the scale is open."""
        return Model(self.crystal, self.positions, self.u_iso, elements)

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """Atomic numbers, `(n,)`."""
        return np.array([atomic_number(each) for each in self.elements])

    @functools.cached_property
    def multiplicities(self) -> np.ndarray:
        """Numbers of sites in the cell, `(n,)`."""
        return self.crystal.multiplicities(self.positions)

    @property
    def reflections_per_parameter(self) -> float:
        """Reflections for each free coordinate, U of an atom, and the scale."""
        _, projectors = self.crystal.settled(self.positions)
        return float(len(self.crystal.hkl) / (np.linalg.matrix_rank(projectors).sum() + len(projectors) + 1))


@dataclasses.dataclass(frozen=True)
class Fitted(Model):
    """A model that was fitted to the data.

    Attributes:
        calculated: `(reflections,)` complex, Fc, in the order of the crystal's reflections.
    """

    calculated: np.ndarray = dataclasses.field(kw_only=True)

    @property
    def principal_u(self) -> np.ndarray:
        """U of each atom along its axes, Å²: `(n, 1)` where it is the same along all."""
        return self.u_iso[:, None]

    @property
    def observed(self) -> np.ndarray:
        """Fo/k with the phases of the model."""
        return self.crystal.amplitudes / self.scale * np.exp(1j * np.angle(self.calculated))

    @functools.cached_property
    def density(self) -> np.ndarray:
        """The map of the observed structure factors."""
        return self.crystal.map(self.observed)

    @property
    def difference(self) -> np.ndarray:
        """The difference map, Fo/k − Fc."""
        return self.crystal.map(self.observed - self.calculated)

    @property
    def deviations(self) -> np.ndarray:
        """|Fo − k|Fc|| of the strong reflections, with the k that fits them best."""
        strong = self.crystal.strong
        observed, calculated = self.crystal.amplitudes[strong], np.abs(self.calculated)[strong]
        scale = observed @ calculated / max(calculated @ calculated, 1e-12)
        return np.abs(observed - scale * calculated)

    @functools.cached_property
    def r_factor(self) -> float:
        """R1 over strong reflections."""
        return r1(self.deviations, self.crystal.amplitudes[self.crystal.strong])


@dataclasses.dataclass(frozen=True)
class Refined(Fitted):
    """A model after isotropic refinement.

    Attributes:
        fit: of the model; its occupancies are 1 on full sites.
    """

    fit: Fit = dataclasses.field(kw_only=True)

    @property
    def powers(self) -> np.ndarray:
        """The scattering power of each site, `(n,)`, if occupancies were refined (see `crystal_elements`)."""
        return np.asarray(self.fit.unit.occupancies) * powers_of(self.elements)

    @functools.cached_property
    def with_occupancies(self) -> 'Refined':
        """The same after some cycles in which occupancies are refined in place of the scale."""
        return refined(self, OCCUPANCY_CYCLES, occupancies=True)


@dataclasses.dataclass(frozen=True)
class Anisotropic(Fitted):
    """A model after refinement with anisotropic displacements; `u_iso` is their mean.

    Attributes:
        tensors: `(n, 3, 3)`, U along rectangular axes, Å².
    """

    tensors: np.ndarray = dataclasses.field(kw_only=True)

    @property
    def principal_u(self) -> np.ndarray:
        """U of each atom along its three axes, `(n, 3)`, Å²."""
        return np.linalg.eigvalsh(self.tensors)

    @property
    def reflections_per_parameter(self) -> float:
        """Reflections for each free coordinate and component of U of an atom, and the scale."""
        return _for_anisotropy(self)


def in_group(data: CrystalData, space_group: SpaceGroup) -> CrystalInGroup:
    """Takes the reflections that a group allows, in order of 1/d, and scales their intensities to a mean of 1."""
    allowed = maps.allowed_reflections(data.hkl, space_group.symops)
    spacings = data.cell.inverse_spacings(data.hkl)
    order = np.argsort(spacings, kind='stable')
    order = order[allowed[order]]
    unit = float(np.mean(np.maximum(data.intensities[order], 0)))
    intensities, sigmas = data.intensities[order] / unit, data.sigmas[order] / unit
    return CrystalInGroup(data, space_group, data.hkl[order], spacings[order], intensities, sigmas, unit)


def refined(model: Model, cycles: int, occupancies: bool = False, most: int | None = None) -> Refined:
    """Refines a model.

    Args:
        model: to start from.
        cycles: the highest number of cycles.
        occupancies: whether these are refined, and the scale is fixed.
        most: number of reflections, the first ones, that are used, and somewhat more; None: all.
    """
    crystal = model.crystal
    positions, projectors = crystal.settled(model.positions)
    unit, reflections = _asymmetric_unit(model, positions), _observations(model)
    reflections = reflections if most is None else up_to(reflections, most)
    operations = group_operations(crystal.space_group)
    fit = refine(unit, model.scale, projectors, operations, reflections, cycles, occupancies)
    fit = fit._replace(unit=fit.unit._replace(occupancies=fit.unit.occupancies / unit.occupancies))
    positions, u_iso = np.asarray(fit.unit.positions, float), np.asarray(fit.unit.u_iso)
    calculated = np.asarray(fit.structure_factors).ravel()[: len(crystal.hkl)]
    return Refined(crystal, positions, u_iso, model.elements, float(fit.scale), calculated=calculated, fit=fit)


def enough_for_anisotropy(model: Model) -> bool:
    """Whether there are reflections enough for anisotropic displacements."""
    return _for_anisotropy(model) >= LEAST_FOR_ANISOTROPY


def _for_anisotropy(model):
    """Reflections for each parameter of a model with anisotropic displacements."""
    free = sum(np.trace(allowed_shifts(each)) for each in model.crystal.stabilisers(model.positions))
    return float(len(model.crystal.hkl) / (free + 1))


def _asymmetric_unit(model, positions):
    """The atoms of a model at positions on which they have been settled; their elements are rows of the table."""
    _, rows = np.unique(model.elements, return_inverse=True)
    return AsymmetricUnit(positions, model.u_iso, model.crystal.occupancies(positions), rows)


def _observations(model):
    """The reflections of a crystal, with the form factors of a model's elements."""
    crystal, palette = model.crystal, np.unique(model.elements)
    table = form_factors(palette.tolist(), crystal.spacings, crystal.data.wavelength)
    return observations(crystal.hkl, crystal.spacings, table, crystal.intensities, crystal.sigmas)


def anisotropic(model: Refined) -> Anisotropic:
    """Refines a model further, with anisotropic displacements."""
    crystal, edges = model.crystal, model.crystal.data.cell.orthogonalization
    rotations = crystal.stabilisers(model.positions)
    fractions = np.linalg.inv(edges)
    tensors = model.u_iso[:, None, None] * (fractions @ fractions.T)
    unit, reflections = _asymmetric_unit(model, model.positions), _observations(model)
    operations = group_operations(crystal.space_group)
    fit = refine_anisotropic(unit, tensors, model.scale, rotations, operations, reflections, ANISOTROPIC_CYCLES)
    tensors = edges @ fit.tensors @ edges.T
    u_iso, positions = np.trace(tensors, axis1=1, axis2=2) / 3, np.asarray(fit.positions, float)
    calculated = np.asarray(fit.structure_factors).ravel()[: len(crystal.hkl)]
    return Anisotropic(
        crystal, positions, u_iso, model.elements, float(fit.scale), calculated=calculated, tensors=tensors
    )


def r1(deviations: np.ndarray, observed: np.ndarray) -> float:
    """R1 from |Fo − k|Fc|| and |Fo|; 1 without reflections."""
    return float(deviations.sum() / observed.sum()) if len(observed) else 1.0
