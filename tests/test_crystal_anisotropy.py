import gemmi
import jax
import numpy as np
import pytest

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.scatterers import AsymmetricUnit, form_factors, group_operations, structure_factors
from patterson_jax.crystal.structure import SpaceGroup
from patterson_jax.solving import crystal_anisotropy
from patterson_jax.solving.crystal_anisotropy import COLUMNS, ROWS, refine_anisotropic
from patterson_jax.solving.crystal_maps import allowed_reflections, stabiliser
from patterson_jax.solving.crystal_refinement import observations

SCALE = 0.07
CASES = {  # cell, and positions with elements, the first of them special but in P1
    'P 1 21/c 1': ((6.1, 7.3, 8.2, 90, 101, 90), [('Fe', (0, 0, 0)), ('C', (0.21, 0.13, 0.08))]),
    'P 1': ((5, 6, 7, 80, 95, 105), [('S', (0, 0, 0)), ('O', (0.4, 0.15, 0.7))]),
    'P 41 21 2': ((7, 7, 9, 90, 90, 90), [('Cu', (0.2, 0.2, 0)), ('O', (0.1, 0.4, 0.3))]),
    'R -3 c:H': ((8, 8, 11, 90, 90, 120), [('Fe', (0, 0, 0)), ('O', (0.2, 0.1, 0.05))]),
    'F m -3 m': ((8, 8, 8, 90, 90, 90), [('Cl', (0.25, 0, 0.25)), ('Na', (0.2, 0.2, 0.2))]),
}


class Crystal:
    """A small crystal with random tensors that the symmetry of each site allows, and its reflections."""

    def __init__(self, name):
        cell, atoms = CASES[name]
        group = gemmi.SpaceGroup(name)
        self.cell = UnitCell(*cell)
        self.group = SpaceGroup(group.number, group.hm, tuple(op.triplet() for op in group.operations()), certain=True)
        self.elements = sorted({element for element, _ in atoms})
        self.symbols = [element for element, _ in atoms]
        positions = np.array([position for _, position in atoms], float)
        self.rotations = [stabiliser(each, self.cell, self.group.operations) for each in positions]
        rows = np.array([self.elements.index(element) for element in self.symbols], np.int32)
        orders = np.array([len(each) for each in self.rotations])
        self.unit = AsymmetricUnit(positions, np.full(len(atoms), 0.03), 1 / orders, rows)
        self.tensors = np.array([self._tensor(seed, each) for seed, each in enumerate(self.rotations)])
        self.isotropic = 0.03 * np.array([self.metric] * len(atoms))
        hkl = np.stack(np.meshgrid(*[np.arange(-7, 8)] * 3, indexing='ij'), -1).reshape(-1, 3)
        hkl = hkl[allowed_reflections(hkl, self.group.symops)]
        hkl = hkl[len(hkl) // 2 + 1 :: 2]
        self.hkl = hkl[self.cell.inverse_spacings(hkl) < 1.1]
        self.spacings = self.cell.inverse_spacings(self.hkl)
        self.table = form_factors(self.elements, self.spacings)

    @property
    def metric(self):
        """U* of U = 1 Å² in all directions."""
        fractions = np.linalg.inv(self.cell.orthogonalization)
        return fractions @ fractions.T

    def _tensor(self, seed, rotations):
        root = np.random.default_rng(seed).normal(scale=0.06, size=(3, 3))
        fractions = np.linalg.inv(self.cell.orthogonalization)
        tensor = fractions @ (root @ root.T + 0.015 * np.eye(3)) @ fractions.T
        return np.mean([each @ tensor @ each.T for each in rotations], axis=0)

    def observations(self, factors):
        intensities = (SCALE * np.abs(factors)) ** 2
        return observations(self.hkl, self.spacings, self.table, intensities, 0.01 * intensities + 1e-3)

    def by_gemmi(self):
        """Structure factors with anisotropic displacements by gemmi."""
        structure = gemmi.SmallStructure()
        structure.cell, structure.spacegroup = self.cell.gemmi, gemmi.SpaceGroup(self.group.hm)
        structure.setup_cell_images()
        lengths = np.sqrt(np.diag(self.metric))  # of the reciprocal edges
        for symbol, position, occupancy, tensor in zip(
            self.symbols, self.unit.positions, self.unit.occupancies, self.tensors, strict=True
        ):
            u = tensor / lengths[:, None] / lengths
            site = gemmi.SmallStructure.Site()
            site.element, site.fract, site.occ = gemmi.Element(symbol), gemmi.Fractional(*position), occupancy
            site.aniso = gemmi.SMat33d(u[0, 0], u[1, 1], u[2, 2], u[0, 1], u[0, 2], u[1, 2])
            structure.add_site(site)
        calculator = gemmi.StructureFactorCalculatorX(structure.cell)
        return np.array([calculator.calculate_sf_from_small_structure(structure, each) for each in self.hkl.tolist()])

    def refined(self, observed, tensors, cycles, unit=None):
        operations = group_operations(self.group)
        unit = self.unit if unit is None else unit
        return refine_anisotropic(unit, tensors, SCALE, self.rotations, operations, observed, cycles)


@pytest.fixture(scope='module', params=CASES)
def crystal(request):
    return Crystal(request.param)


def test_structure_factors_are_gemmis(crystal):
    expected = crystal.by_gemmi()
    fit = crystal.refined(crystal.observations(expected), crystal.tensors, cycles=0)
    found = fit.structure_factors.ravel()[: len(expected)]
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_with_equal_displacements_in_all_directions_they_are_the_isotropic_ones(crystal):
    operations = group_operations(crystal.group)
    hkl, spacings = crystal.hkl.astype(np.float32), crystal.spacings.astype(np.float32)
    unit = jax.tree.map(lambda each: each.astype(np.float32), crystal.unit)
    unit = unit._replace(elements=crystal.unit.elements)
    expected = structure_factors(unit, operations, hkl, crystal.table, spacings)
    fit = crystal.refined(crystal.observations(expected), crystal.isotropic, cycles=0)
    found = fit.structure_factors.ravel()[: len(expected)]
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_tensors_and_positions_come_back_and_keep_the_symmetry_of_their_sites(crystal):
    observed = crystal.observations(crystal.by_gemmi())
    general = np.array([len(each) == 1 for each in crystal.rotations])
    shifted = crystal.unit.positions + 0.004 * general[:, None]
    fit = crystal.refined(observed, crystal.isotropic, 30, crystal.unit._replace(positions=shifted))
    moves = fit.positions - crystal.unit.positions
    drift = moves[0] if crystal.group.number == 1 else 0  # nothing fixes the origin in P1
    np.testing.assert_allclose(moves - drift, np.zeros_like(moves), atol=2e-4)
    edges = crystal.cell.orthogonalization
    np.testing.assert_allclose(edges @ fit.tensors @ edges.T, edges @ crystal.tensors @ edges.T, atol=5e-4)
    np.testing.assert_allclose(fit.scale, SCALE, rtol=2e-3)
    turned = crystal.rotations[0] @ fit.tensors[0] @ np.swapaxes(crystal.rotations[0], 1, 2)
    np.testing.assert_allclose(turned, np.broadcast_to(fit.tensors[0], turned.shape), atol=2e-8)


def test_the_gradient_is_that_of_the_misfit():
    """Minus half of its derivative along some directions, forward through the sums."""
    crystal = Crystal('P 41 21 2')
    observed = crystal.observations(crystal.by_gemmi())
    weights = np.where(np.isfinite(observed.sigmas), 1 / observed.sigmas**2, 0).astype(np.float32)
    each = np.concatenate([crystal.unit.positions + 0.01, crystal.isotropic[:, ROWS, COLUMNS]], axis=1)
    parameters = np.append(each.ravel(), SCALE).astype(np.float32)
    unit = jax.tree.map(lambda each: each.astype(np.float32), crystal.unit)._replace(elements=crystal.unit.elements)
    free, operations = np.ones(len(parameters), np.float32), group_operations(crystal.group)
    given = unit, free, operations, observed, weights

    @jax.jit
    def sums(parameters, *given):
        return crystal_anisotropy._normal_equations(parameters, *given)

    _, gradient, _ = sums(parameters, *given)
    widths = np.append(np.tile([1.0] * 3 + [1e-3] * 6, 2), 1.0).astype(np.float32)
    for seed in range(4):
        direction = widths * np.random.default_rng(seed).standard_normal(len(parameters)).astype(np.float32)
        _, slopes = jax.jvp(lambda each: sums(each, *given), (parameters,), (direction,))
        np.testing.assert_allclose(gradient @ direction, slopes[2] / -2, rtol=2e-3)
