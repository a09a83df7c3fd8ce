"""Training crystals: from a key to a molecular crystal, its measured amplitudes and the map that a network should give.

Everything is computed by compiled functions of a key, on any device; `draw_crystal` is mapped over keys. A crystal is
drawn in this order: a space group, in one of its settings on the axes of the grid; a cell in which voxels have a usual
size; molecules, grown among their images until atoms are as dense as in molecular crystals; hydrogen; displacements;
an origin. Intensities get errors that are the same for equivalent reflections, and become E values in the same way as
measured ones (`crystal/normalisation.py`).

Transforms are those of NumPy, Σ ρ exp(−2πi h·r), on the half grid of a real map, as in `solving/charge_flipping.py`.
"""

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

import gemmi
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from patterson_jax.crystal.grid import half_grid_frequencies
from patterson_jax.errors import require
from patterson_jax.precision import exact_products
from patterson_jax.simulation import grown_molecules
from patterson_jax.simulation.grown_molecules import (
    ATOMIC_NUMBERS,
    ELEMENTS,
    FIRST_METAL,
    LEAST_WITH_METAL,
    METALS,
    Surroundings,
)

# Space groups of molecular crystals: Hall symbol, and the share of each in per cent, rounded from surveys of the
# Cambridge Structural Database; the groups that are left out here have a tenth of its entries.
GROUPS = {
    'P1': ('P 1', 1),
    'P-1': ('-P 1', 25),
    'P21': ('P 2yb', 5),
    'P21/c': ('-P 2ybc', 35),
    'C2/c': ('-C 2yc', 8),
    'P212121': ('P 2ac 2ab', 7),
    'Pna21': ('P 2c -2n', 2),
    'Pbca': ('-P 2ac 2ab', 4),
}
MOST_OPERATIONS = 8
CENTRED = 'C2/c'  # described in a primitive cell, as the search does
PRIMITIVE = np.array([[0.5, 0.5, 0], [-0.5, 0.5, 0], [0, 0, 1]])  # its edges as columns
SHEARS = (0, 1)  # how often a is added to c: P21/c and P21/n
LARGEST_COSINE = math.sin(math.radians(20))  # of the angles of the cell

RICH = 3.0  # how much more elements beyond oxygen crystals have that are rich in them
ON_CENTRE = 0.5  # of the metals in crystals with an inversion, those on its centre
SOLVENT = 6  # atoms
FAR = 5.0  # Å from the middle of a molecule
MOBILE_DISPLACEMENT, LEAST_OCCUPANCY = 5.0, 0.4  # Å², how much larger B of mobile molecules is
HYDROGEN_DISPLACEMENT = 1.3  # B of hydrogen, relative to that of the other atoms
CARBON_NUMBER = 6
TARGET_WIDTH = 0.40  # Å, standard deviation of an atom of the target
DISPLACEMENTS = np.arange(0.5, 16.01, 0.5)  # Å², B for which form factors are fitted
EXPONENTS = np.array([0.72, 5.84, 18.4, 44.8, 105.0])  # Å², B of the Gaussians that fit all of them
FINEST = 1.0  # Å, resolution up to which they do
REFLECTIONS_IN_SHELL, LEAST_SHELLS, MOST_SHELLS, SHELLS_FOR_A_CURVE = 75, 3, 30, 6  # as in crystal/normalisation.py
NODES = 16  # of the quadrature over amplitudes
SIGMAS_BEYOND = 5.0
NEGLIGIBLE = 1e-6


# Of the recipe: the least and the greatest value allowed.
RANGES = (
    ('spacing', 0.2, 1.0),
    ('d_min', FINEST, 5.0),
    ('volume_per_atom', 10.0, 100.0),
    ('molecule', 1, 200),
    ('hetero', 0.0, 1.0),
    ('displacement', DISPLACEMENTS[0], DISPLACEMENTS[-1]),
    ('swing', 0.0, DISPLACEMENTS[-1]),
    ('error', 0.0, 1.0),
    ('background', 1e-4, 10.0),
    ('lost', 0.0, 0.9),
)
# Numbers, because they are folded into keys.
CELL, GROWTH, DISPLACEMENT, QUALITY, NOISE, LOSS = range(6)
HEAVY = 0  # into that of the cell


class TrainingCrystal(NamedTuple):
    """A crystal on a grid.

    Attributes:
        axes: `(3, 3)`, rows are the edges of the cell, Å.
        amplitudes: `half_shape`, measured E values; zero where nothing was measured, and at h = 0.
        factors: `half_shape` complex64, the true structure factors divided as E values are, with the true phases, of
            all reflections up to `d_min` but h = 0.
        target: `shape`, atoms without hydrogen as Gaussians of `TARGET_WIDTH`, up to the finest frequencies of the
            grid; in its middle, a carbon atom has about 1, others Z/6, times their occupancy.
        d_min: Å.
        centrosymmetric: bool.
        group: int32, index of the space group in `GROUPS`.
    """

    axes: Array
    amplitudes: Array
    factors: Array
    target: Array
    d_min: Array
    centrosymmetric: Array
    group: Array


class Atoms(NamedTuple):
    """All atoms of a cell, with images; padding has occupancy 0.

    Attributes:
        positions: `(n, 3)`, fractional.
        elements: `(n,)` int32, of `grown_molecules.ELEMENTS`.
        displacements: `(n,)`, B in Å².
        occupancies: `(n,)`.
        hydrogens: `(m, 3)`, fractional.
        hydrogen_occupancies: `(m,)`.
        hydrogen_displacement: B in Å², of all of them.
    """

    positions: Array
    elements: Array
    displacements: Array
    occupancies: Array
    hydrogens: Array
    hydrogen_occupancies: Array
    hydrogen_displacement: Array


@dataclasses.dataclass(frozen=True)
class TrainingRecipe:
    """What to draw. Ranges are of uniform distributions.

    Attributes:
        shape: of the grid; even numbers. The cell follows from it.
        spacing: Å, edges of a voxel.
        d_min: Å; never less than the grid allows.
        volume_per_atom: Å³, the volume of the cell for each atom that is not hydrogen.
        molecule: least and most atoms of a molecule.
        hetero: share of N and O among the atoms that are not in rings.
        heavier: most share of elements from F to I among these; half of the crystals have less than a quarter of it.
        rich: share of the crystals with `RICH` times as many of them.
        metals: share of the crystals with a metal, where the asymmetric unit has `LEAST_WITH_METAL` atoms or more.
        displacement: Å², B of the atoms at the middle of a molecule.
        swing: Å², by how much B grows to the end of a molecule.
        mobile: share of the molecules of up to `SOLVENT` atoms, except the first, that are mobile and not in all cells.
        error: relative error of intensities.
        background: error of all intensities, relative to their mean.
        lost: share of the reflections that are not measured.
        groups: shares of the space groups, in the order of `GROUPS`.
    """

    shape: tuple[int, int, int] = (24, 24, 24)
    spacing: tuple[float, float] = (0.40, 0.55)
    d_min: tuple[float, float] = (1.0, 1.6)
    volume_per_atom: tuple[float, float] = (15.5, 20.5)
    molecule: tuple[int, int] = (8, 40)
    hetero: tuple[float, float] = (0.2, 0.65)
    heavier: float = 0.12
    rich: float = 0.15
    metals: float = 0.25
    displacement: tuple[float, float] = (0.8, 2.8)
    swing: tuple[float, float] = (0.0, 2.5)
    mobile: float = 0.3
    error: tuple[float, float] = (0.01, 0.06)
    background: tuple[float, float] = (0.002, 0.05)
    lost: tuple[float, float] = (0.0, 0.05)
    groups: tuple[float, ...] = tuple(float(share) for _, share in GROUPS.values())

    def __post_init__(self):
        even = len(self.shape) == 3 and all(size % 2 == 0 and size >= 12 for size in self.shape)
        require(even, 'shape', self.shape, 'three even numbers, 12 or more')
        for name, least, most in RANGES:
            values = getattr(self, name)
            ascending = len(values) == 2 and least <= values[0] <= values[1] <= most
            require(ascending, name, values, f'two numbers from {least:g} to {most:g}, the smaller one first')
        for name in ('heavier', 'rich', 'metals', 'mobile'):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), 'from 0 to 1')
        shares = len(self.groups) == len(GROUPS) and min(self.groups) >= 0 and sum(self.groups) > 0
        require(shares, 'groups', self.groups, f'shares, not all zero, of {", ".join(GROUPS)}')

    @property
    def half_shape(self) -> tuple[int, int, int]:
        """Shape of the transform of a real map by `numpy.fft.rfftn`."""
        return (*self.shape[:2], self.shape[2] // 2 + 1)

    @property
    def most_atoms(self) -> int:
        """Most atoms in a cell."""
        return math.ceil(math.prod(self.shape) * self.spacing[1] ** 3 / self.volume_per_atom[0])

    @property
    def most_in_unit(self) -> int:
        """Most atoms in an asymmetric unit; in the largest cells, P1 is less dense."""
        return math.ceil(0.65 * self.most_atoms)


class Settings(NamedTuple):
    """Space groups on the axes of a grid, each in its different settings.

    Attributes:
        rotations: `(s, 8, 3, 3)`, the identity first; padded.
        translations: `(s, 8, 3)`.
        operations: `(s,)`, number of them.
        group: `(s,)`, index in `GROUPS`.
        centrosymmetric: `(s,)` bool.
        shares: `(s,)`, relative.
        shortest: `(s, 3)`, Å, edges of the cell.
        longest: `(s, 3)`.
    """

    rotations: np.ndarray
    translations: np.ndarray
    operations: np.ndarray
    group: np.ndarray
    centrosymmetric: np.ndarray
    shares: np.ndarray
    shortest: np.ndarray
    longest: np.ndarray


@functools.lru_cache
def group_settings(recipe: TrainingRecipe) -> Settings:
    """All settings of the space groups in which voxels can have the size that is wanted."""
    found = []
    for number, (name, (hall, _)) in enumerate(GROUPS.items()):
        if recipe.groups[number] == 0:
            continue
        settings = {}
        for order, shear in itertools.product(itertools.permutations(range(3)), SHEARS):
            operations = _operations(name, hall, order, shear)
            settings[tuple(sorted(tuple(np.rint(24 * each).ravel().astype(int)) for each in operations))] = operations
        possible = [
            (operations, *limits)
            for operations in settings.values()
            if (limits := _edge_limits(operations[:, :, :3], recipe)) is not None
        ]
        found += [(number, recipe.groups[number] / len(possible), *each) for each in possible]
    require(bool(found), 'shape', recipe.shape, 'one on which some of the space groups can lie')
    padded = [np.concatenate([each[2], np.tile(each[2][:1], (MOST_OPERATIONS - len(each[2]), 1, 1))]) for each in found]
    rotations, translations = np.stack(padded)[..., :3], np.stack(padded)[..., 3]
    return Settings(
        rotations.astype(np.float32),
        translations.astype(np.float32),
        np.array([len(each[2]) for each in found], np.int32),
        np.array([each[0] for each in found], np.int32),
        np.array([np.any(np.all(each[2][:, :, :3] == -np.eye(3), axis=(1, 2))) for each in found]),
        np.array([each[1] for each in found], np.float32),
        np.array([each[3] for each in found], np.float32),
        np.array([each[4] for each in found], np.float32),
    )


def _operations(name, hall, order, shear):
    """Rotations and translations `(m, 3, 4)` of a group in a primitive cell with its axes in some order."""
    basis = np.eye(3)[:, list(order)]
    if name == CENTRED:
        basis = PRIMITIVE @ basis
    if name == 'P21/c':
        basis = np.array([[1, 0, shear], [0, 1, 0], [0, 0, 1]]) @ basis
    inverse = np.linalg.inv(basis)
    found = {}
    for operation in gemmi.symops_from_hall(hall):
        rotation = np.rint(inverse @ (np.array(operation.rot) / gemmi.Op.DEN) @ basis)
        translation = np.rint(24 * inverse @ (np.array(operation.tran) / gemmi.Op.DEN)) / 24 % 1
        found[rotation.tobytes()] = np.concatenate([rotation, translation[:, None]], axis=1)
    return np.stack(list(found.values()))


def _edge_limits(rotations, recipe):
    """Least and most length of each edge, Å, if edges that the rotations make equal have some in common."""
    shortest = recipe.spacing[0] * np.array(recipe.shape)
    longest = recipe.spacing[1] * np.array(recipe.shape)
    alike = np.any(rotations != 0, axis=0)
    shortest = np.array([shortest[alike[:, axis]].max() for axis in range(3)])
    longest = np.array([longest[alike[:, axis]].min() for axis in range(3)])
    return (shortest, longest) if np.all(shortest < longest) else None


@exact_products
def draw_crystal(key: Array, recipe: TrainingRecipe) -> TrainingCrystal:
    """The crystal that belongs to a key."""
    return measured_crystal(key, draw_structure(key, recipe), recipe)


@exact_products
def measured_crystal(
    key: Array, structure: tuple[Surroundings, Array, Atoms, Array], recipe: TrainingRecipe
) -> TrainingCrystal:
    """What is measured of the structure that `draw_structure` gives for a key."""
    surroundings, setting, atoms, d_min = structure
    frequencies = half_grid_frequencies(recipe.shape)
    squared = squared_spacings(surroundings.axes, frequencies)
    factors, points = structure_factors(atoms, frequencies, squared)
    inside = (squared > 0) & (squared <= 1 / d_min**2)
    means = shell_means(factors.real**2 + factors.imag**2, squared, inside)
    scale = math.prod(recipe.shape) / jnp.linalg.det(surroundings.axes) * (2 * math.pi * TARGET_WIDTH**2) ** 1.5
    blur = scale * jnp.exp(-2 * math.pi**2 * TARGET_WIDTH**2 * squared)
    settings = group_settings(recipe)
    return TrainingCrystal(
        surroundings.axes,
        _measure(key, factors, squared, inside, surroundings, recipe),
        jnp.where(inside, factors * jax.lax.rsqrt(means).astype(factors.dtype), 0),
        jnp.fft.irfftn(points * blur.astype(points.dtype), s=recipe.shape),
        d_min,
        jnp.asarray(settings.centrosymmetric)[setting],
        jnp.asarray(settings.group)[setting],
    )


def _measure(key, factors, squared, inside, surroundings, recipe):
    """E values of intensities with errors, some of them lost; all the same for equivalent reflections."""
    quality_key, noise_key, loss_key = (jax.random.fold_in(key, each) for each in (QUALITY, NOISE, LOSS))
    draws = jax.random.uniform(quality_key, (3,))
    ranges = (recipe.error, recipe.background, recipe.lost)
    error, background, lost = (_between(each, draw) for each, draw in zip(ranges, draws, strict=True))
    equivalents, size = equivalent_indices(surroundings, recipe.shape), math.prod(recipe.shape)
    measured = inside & (jax.random.uniform(loss_key, (size,)) >= lost)[equivalents]
    intensities = factors.real**2 + factors.imag**2
    mean = jnp.sum(jnp.where(inside, intensities, 0)) / jnp.sum(inside, dtype=intensities.dtype)
    sigmas = jnp.hypot(error * intensities, background * mean)
    noise = jax.random.normal(noise_key, (size,))[equivalents]
    return normalised_amplitudes(intensities + sigmas * noise, sigmas, squared, measured)


def _between(limits, draw):
    """The number of a range that belongs to one from 0 to 1."""
    return limits[0] + (limits[1] - limits[0]) * draw


@exact_products
def draw_structure(key: Array, recipe: TrainingRecipe) -> tuple[Surroundings, Array, Atoms, Array]:
    """The cell with its operations, the index of the setting, the atoms, and d_min in Å."""
    cell_key, growth_key, atom_key = (jax.random.fold_in(key, each) for each in (CELL, GROWTH, DISPLACEMENT))
    surroundings, setting, d_min, origin = _draw_surroundings(cell_key, recipe)
    molecules = grown_molecules.grow(growth_key, surroundings, recipe.most_in_unit, recipe.most_atoms, recipe.molecule)
    molecules = grown_molecules.relax(molecules, surroundings, recipe.most_atoms)
    return surroundings, setting, _all_atoms(atom_key, molecules, surroundings, origin, recipe), d_min


def _draw_surroundings(key, recipe):
    settings = group_settings(recipe)
    setting_key, edge_key, angle_key, other_key = jax.random.split(key, 4)
    setting = jax.random.categorical(setting_key, jnp.log(settings.shares))
    (rotations, translations, operations, shortest, longest) = (
        jnp.asarray(getattr(settings, name))[setting]
        for name in ('rotations', 'translations', 'operations', 'shortest', 'longest')
    )
    draws = jax.random.uniform(other_key, (7,))
    d_min = _between(recipe.d_min, draws[0])
    reach = (jnp.array(recipe.shape, shortest.dtype) - 2) / 2  # most indices of a reflection
    longest = jnp.clip(longest, shortest, jnp.maximum(d_min * reach, shortest))
    edges = shortest + (longest - shortest) * jax.random.uniform(edge_key, (3,))
    cosines = jax.random.uniform(angle_key, (3,), minval=-LARGEST_COSINE, maxval=LARGEST_COSINE)
    off = jnp.zeros((3, 3)).at[jnp.array([1, 0, 0]), jnp.array([2, 2, 1])].set(cosines)
    metric = edges[:, None] * edges[None] * (jnp.eye(3) + off + off.T)
    counted = (jnp.arange(MOST_OPERATIONS) < operations).astype(metric.dtype)
    metric = jnp.einsum('o,oji,jk,okl->il', counted, rotations, metric, rotations) / operations.astype(metric.dtype)
    axes = jnp.linalg.cholesky(metric)
    wanted = jnp.linalg.det(axes) / _between(recipe.volume_per_atom, draws[1]) / operations.astype(axes.dtype)
    most = jnp.minimum(recipe.most_in_unit, recipe.most_atoms // operations)
    wanted = jnp.clip(jnp.round(wanted).astype(jnp.int32), 1, most)
    d_min = jnp.maximum(d_min, jnp.max(jnp.sqrt(jnp.diagonal(metric)) / reach))
    hetero, heavier = _between(recipe.hetero, draws[2]), recipe.heavier * draws[3] ** 2
    has_metal, which, centre, rich = jax.random.uniform(jax.random.fold_in(key, HEAVY), (4,))
    heavier = heavier * jnp.where(rich < recipe.rich, RICH, 1.0)
    metal = FIRST_METAL + (which * len(METALS)).astype(jnp.int32)
    metal = jnp.where((has_metal < recipe.metals) & (wanted >= LEAST_WITH_METAL), metal, 0)
    inversion = jnp.argmax(jnp.all(rotations == -jnp.eye(3)[None], axis=(1, 2))).astype(jnp.int32)  # 0: there is none
    keeper = jnp.where(centre < ON_CENTRE, inversion, 0)
    surroundings = Surroundings(
        axes, jnp.linalg.inv(axes), rotations, translations, operations, wanted, hetero, heavier, metal, keeper
    )
    return surroundings, setting, d_min, draws[4:]


def _all_atoms(key, molecules, surroundings, origin, recipe):
    """The atoms of the cell, of molecules in the asymmetric unit, with displacements and hydrogen."""
    most = recipe.most_atoms
    number = jnp.arange(len(molecules.free))
    present = number < molecules.number
    draw_key, mobile_key, occupancy_key = jax.random.split(key, 3)
    draws = jax.random.uniform(draw_key, (2,))
    base, swing = _between(recipe.displacement, draws[0]), _between(recipe.swing, draws[1])
    members = jax.nn.one_hot(molecules.molecules, len(number), dtype=jnp.float32)
    members = members * present[:, None].astype(jnp.float32)
    counts = jnp.maximum(jnp.sum(members, axis=0), 1)
    centres = jnp.einsum('nm,nx->mx', members, molecules.positions) / counts[:, None]
    distances = jnp.linalg.norm(molecules.positions - centres[molecules.molecules], axis=1)
    mobile = (number > 1) & (counts <= SOLVENT)  # the first molecule is never the solvent
    mobile &= jax.random.uniform(mobile_key, number.shape) < recipe.mobile
    occupancies = jax.random.uniform(occupancy_key, number.shape, minval=LEAST_OCCUPANCY)
    occupancies = jnp.where(mobile, occupancies, 1.0)[molecules.molecules]
    shared = grown_molecules.on_centre(molecules, surroundings) & (number == 0)
    occupancies = jnp.where(shared, 0.5, occupancies)  # because two images coincide
    displacements = base + swing * (distances / FAR) ** 1.5
    displacements = displacements + jnp.where(mobile, MOBILE_DISPLACEMENT, 0.0)[molecules.molecules]
    displacements = jnp.clip(displacements, DISPLACEMENTS[0], DISPLACEMENTS[-1])

    slots = jnp.arange(most)
    wanted = jnp.maximum(surroundings.wanted, 1)
    atom, operation = slots % wanted, slots // wanted
    taken = (atom < molecules.number) & (operation < surroundings.operations)
    positions = _images(molecules.positions[atom], operation, surroundings) + origin[None]

    places, free = grown_molecules.hydrogens(molecules, surroundings)
    room = 2 * most
    order = jnp.argsort(~free.ravel(), stable=True)[: min(room, free.size)]
    found = jnp.minimum(jnp.sum(free, dtype=jnp.int32), room // surroundings.operations)
    slots = jnp.arange(room)
    stride = jnp.maximum(found, 1)
    kept, turn = slots % stride, slots // stride
    hydrogens = _images(places.reshape(-1, 3)[order[kept]], turn, surroundings) + origin[None]
    exists = (found > 0) & (turn < surroundings.operations)
    return Atoms(
        positions,
        molecules.elements[atom],
        displacements[atom],
        jnp.where(taken, occupancies[atom], 0),
        hydrogens,
        jnp.where(exists, occupancies[order[kept] // 3], 0),
        HYDROGEN_DISPLACEMENT * (base + 0.5 * swing),
    )


def _images(places, operation, surroundings):
    fractional = places @ surroundings.inverse
    turned = jnp.einsum('mij,mj->mi', surroundings.rotations[operation], fractional)
    return turned + surroundings.translations[operation]


def squared_spacings(axes: Array, frequencies: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Array:
    """1/d² on the half grid, 1/Å²."""
    reciprocal = jnp.linalg.inv(axes)
    metric = reciprocal.T @ reciprocal
    h, k, l = jnp.meshgrid(*(jnp.asarray(each) for each in frequencies), indexing='ij')
    squares = h * (metric[0, 0] * h + 2 * (metric[0, 1] * k + metric[0, 2] * l))
    return squares + k * (metric[1, 1] * k + 2 * metric[1, 2] * l) + metric[2, 2] * l * l


@functools.cache
def scattering_weights() -> tuple[np.ndarray, np.ndarray]:
    """Form factors with displacements as sums of the same few Gaussians of 1/d.

    f(s) exp(−B s²/4) is about Σ w exp(−β s²/4), with β from `EXPONENTS`, for s = 1/d up to 1/`FINEST`. So structure
    factors are a few sums over all atoms, whatever their elements and displacements.

    Returns:
        w for `ELEMENTS` at `DISPLACEMENTS`, `(elements, displacements, exponents)`; and f of hydrogen without
        displacement, `(exponents,)`.
    """
    squares = np.linspace(0, 1 / (4 * FINEST**2), 200)
    basis = np.exp(-squares[:, None] * EXPONENTS[None])

    def curve(symbol):
        coefficients = gemmi.Element(symbol).it92
        return np.exp(-squares[:, None] * np.array(coefficients.b)) @ np.array(coefficients.a) + coefficients.c

    falloffs = np.exp(-squares[:, None] * DISPLACEMENTS)
    fitted = [np.linalg.lstsq(basis, curve(symbol)[:, None] * falloffs, rcond=None)[0].T for symbol in ELEMENTS]
    hydrogen = np.linalg.lstsq(basis, curve('H'), rcond=None)[0]
    return np.stack(fitted).astype(np.float32), hydrogen.astype(np.float32)


def structure_factors(atoms: Atoms, frequencies: tuple, squared: Array) -> tuple[Array, Array]:
    """Σ f exp(−2πi h·r) on the half grid: of the atoms as X-rays see them, and of points of weight Z/6.

    So the points have nearly the phases of the measured crystal, also where one atom is far heavier than the others.

    Args:
        atoms: of the cell.
        frequencies: of each axis of the half grid.
        squared: 1/d² on the half grid.
    """
    table, hydrogen = scattering_weights()
    place = (atoms.displacements - DISPLACEMENTS[0]) / (DISPLACEMENTS[1] - DISPLACEMENTS[0])
    lower = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, len(DISPLACEMENTS) - 2)
    part = (place - lower.astype(place.dtype))[:, None]
    rows = jnp.asarray(table)[atoms.elements]
    number = jnp.arange(len(lower))
    weights = rows[number, lower] * (1 - part) + rows[number, lower + 1] * part
    sharp = jnp.asarray(ATOMIC_NUMBERS / CARBON_NUMBER)[atoms.elements]
    weights = jnp.concatenate([weights, sharp[:, None]], axis=1) * atoms.occupancies[:, None]
    sums = _transform(atoms.positions, weights, frequencies)
    falloffs = [jnp.exp(-exponent / 4 * squared) for exponent in EXPONENTS.tolist()]
    factors = sum(each * falloff.astype(each.dtype) for each, falloff in zip(sums[:-1], falloffs, strict=True))
    light = _transform(atoms.hydrogens, atoms.hydrogen_occupancies[:, None], frequencies)[0]
    curve = sum(weight * falloff for weight, falloff in zip(hydrogen.tolist(), falloffs, strict=True))
    curve = curve * jnp.exp(-atoms.hydrogen_displacement / 4 * squared)
    return factors + light * curve.astype(light.dtype), sums[-1]


def _transform(positions, weights, frequencies):
    """Σ w exp(−2πi h·r) on the half grid for each column of weights `(n, columns)`."""
    waves = []
    for axis, each in enumerate(frequencies):
        turns = positions[:, axis, None] * jnp.asarray(each)[None]
        angles = -2 * math.pi * (turns - jnp.round(turns))
        waves.append(jax.lax.complex(jnp.cos(angles), jnp.sin(angles)))
    first = weights[:, :, None].astype(jnp.complex64) * waves[0][:, None]
    others = waves[1][:, :, None] * waves[2][:, None]
    flat = first.reshape(len(positions), -1).T @ others.reshape(len(positions), -1)
    return flat.reshape(weights.shape[1], *(len(each) for each in frequencies))


def equivalent_indices(surroundings: Surroundings, shape: tuple[int, int, int]) -> Array:
    """One number for all equivalents of a reflection, Friedel mates included, on the half grid; below the grid's size.

    Right for reflections whose equivalents all lie on the grid.
    """
    indices = jnp.stack(
        jnp.meshgrid(*(jnp.asarray(each) for each in half_grid_frequencies(shape)), indexing='ij'), axis=-1
    )
    sizes = jnp.array(shape, jnp.int32)[None, None, None]

    def smallest(number, best):
        turned = jnp.round(indices @ surroundings.rotations[number]).astype(jnp.int32)
        for sign in (1, -1):
            wrapped = jnp.where(sign * turned < 0, sign * turned + sizes, sign * turned)
            flat = (wrapped[..., 0] * shape[1] + wrapped[..., 1]) * shape[2] + wrapped[..., 2]
            best = jnp.minimum(best, jnp.maximum(flat, 0))
        return best

    start = jnp.full(indices.shape[:3], math.prod(shape) - 1, jnp.int32)
    return jax.lax.fori_loop(0, MOST_OPERATIONS, smallest, start)


def normalised_amplitudes(intensities: Array, sigmas: Array, squared: Array, measured: Array) -> Array:
    """E values on the half grid, zero where nothing is measured."""
    means = shell_means(intensities, squared, measured)
    amplitudes = expected_amplitudes(intensities, sigmas, means)
    values = jnp.where(measured, amplitudes * jax.lax.rsqrt(means), 0)
    counts = _counts(measured)
    return values * jax.lax.rsqrt(jnp.sum(counts * values**2) / jnp.sum(counts))


def shell_means(intensities: Array, squared: Array, measured: Array) -> Array:
    """The expected mean intensity at each 1/d of the half grid, as `crystal.normalisation.mean_intensities` has it.

    Shells have the same volume, so that about the same number of reflections lies in each.
    """
    counts = _counts(measured)
    total = jnp.sum(counts) / 2  # of Friedel pairs
    number = jnp.clip(jnp.floor(total / REFLECTIONS_IN_SHELL), LEAST_SHELLS, MOST_SHELLS)
    outermost = jnp.max(jnp.where(measured, squared, 0))
    shells = jnp.minimum(jnp.floor(number * (squared / outermost) ** 1.5), number - 1).astype(jnp.int32)
    shells = jnp.where(measured, shells, MOST_SHELLS).ravel()

    def sums(values):
        return jax.ops.segment_sum((counts * values).ravel(), shells, MOST_SHELLS + 1)[:MOST_SHELLS]

    inhabitants = sums(jnp.ones_like(squared))
    filled = inhabitants > 0
    least = NEGLIGIBLE * jnp.sum(counts * jnp.abs(intensities)) / jnp.sum(counts)
    logarithms = jnp.log(jnp.maximum(sums(intensities) / jnp.maximum(inhabitants, 1), least))
    centres = jnp.where(filled, sums(squared) / jnp.maximum(inhabitants, 1), 0)
    last = jnp.argmax(jnp.where(filled, centres, -1))
    beyond = outermost * 2 + jnp.arange(MOST_SHELLS, dtype=centres.dtype)
    order = jnp.argsort(jnp.where(filled, centres, beyond))
    knots = jnp.where(filled, centres, beyond)[order]
    curve = jnp.interp(squared.ravel(), knots, jnp.where(filled, logarithms, logarithms[last])[order])
    weight = filled.astype(centres.dtype)
    middle = jnp.sum(weight * centres) / jnp.sum(weight)
    level = jnp.sum(weight * logarithms) / jnp.sum(weight)
    slope = jnp.sum(weight * (centres - middle) * logarithms) / jnp.sum(weight * (centres - middle) ** 2)
    line = level + slope * (squared - middle)
    return jnp.exp(jnp.where(number > SHELLS_FOR_A_CURVE, curve.reshape(squared.shape), line))


def expected_amplitudes(intensities: Array, sigmas: Array, means: Array) -> Array:
    """Expected |F| given measured intensities; see `crystal.normalisation.expected_amplitudes`."""
    centre = jnp.maximum(intensities - sigmas**2 / means, -(SIGMAS_BEYOND**2) * sigmas)
    lowest = jnp.sqrt(jnp.maximum(centre - SIGMAS_BEYOND * sigmas, 0))
    highest = jnp.sqrt(jnp.maximum(centre, 0) + SIGMAS_BEYOND * sigmas)
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    sums = [jnp.zeros_like(means), jnp.zeros_like(means)]
    nearest = jnp.maximum(jnp.maximum(centre, 0) - centre, 0) / sigmas  # so that the largest weight is about 1
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        amplitudes = lowest + (highest - lowest) * ((node + 1) / 2)
        exponents = -(((amplitudes**2 - centre) / sigmas) ** 2 - nearest**2) / 2
        density = weight * amplitudes * jnp.exp(exponents)
        sums = [sums[0] + density, sums[1] + density * amplitudes]
    return sums[1] / sums[0]


def _counts(measured):
    """How many reflections of the sphere each point of the half grid stands for, 0 where nothing is measured."""
    twice = jnp.arange(measured.shape[2]) > 0
    return jnp.where(measured, jnp.where(twice, 2.0, 1.0)[None, None], 0.0)
