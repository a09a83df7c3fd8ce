"""Invents molecular crystals and their measured intensities, to calibrate verdicts.

An isotropic model without hydrogen does not describe them fully: atoms vibrate anisotropically, more so far from the
middle of their molecule; there is hydrogen; some atoms are disordered over two places. Molecules are grown from rings
and chains with usual bond lengths, and packed into a space group by trial. All of it runs on the host.
"""

import dataclasses

import gemmi
import numpy as np

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.crystal.structure import CrystalData, SpaceGroup

GROUPS = {  # Hall symbols of the group and of the symmorphic group of its Laue class, and the symbol of that class
    'P1': ('P 1', '-P 1', '-1'),
    'P-1': ('-P 1', '-P 1', '-1'),
    'P21': ('P 2yb', '-P 2y', '2/m'),
    'P21/c': ('-P 2ybc', '-P 2y', '2/m'),
    'C2/c': ('-C 2yc', '-C 2y', '2/m'),
    'Pc': ('P -2yc', '-P 2y', '2/m'),
    'P212121': ('P 2ac 2ab', '-P 2 2', 'mmm'),
    'Pbca': ('-P 2ac 2ab', '-P 2 2', 'mmm'),
}
VALENCES = {'C': 4, 'N': 3, 'O': 2, 'S': 2, 'P': 3, 'F': 1, 'Cl': 1, 'Br': 1}
LIGHT = ('C', 'N', 'O')
SHARES = (0.72, 0.12, 0.16)
COORDINATION = 4  # bonds of a metal
RING_CHANCE = 0.25
NOT_BONDED = 2.25  # Å, least distance of atoms in a molecule that are not bonded
CONTACT = 2.95  # Å, least distance of atoms of different molecules
TRIALS = 120  # of a packing
DISORDERED = 0.65  # occupancy of the main place


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What to invent.

    Attributes:
        group: a name in `GROUPS`.
        num_atoms: of the molecule, without hydrogen.
        heavy: elements that occur once each; a metal must be the first, and is the middle of the molecule.
        special: whether the metal lies on an inversion centre; the molecule then has 2 num_atoms − 1 atoms.
        d_min: Å.
        disorder: share of the atoms, the outermost ones, that have two places.
        error: relative error of the intensities.
        background: error of all intensities, relative to their mean.
        lost: share of the reflections that are not measured.
    """

    group: str = 'P21/c'
    num_atoms: int = 16
    heavy: tuple[str, ...] = ()
    special: bool = False
    d_min: float = 0.8
    disorder: float = 0.0
    error: float = 0.03
    background: float = 0.02
    lost: float = 0.03


@dataclasses.dataclass(frozen=True)
class InventedCrystal:
    """A crystal and its measured data.

    Attributes:
        data: as measured.
        space_group: the true one.
        elements: `n`, of the asymmetric unit, hydrogen last.
        positions: `(n, 3)`, fractional.
        displacements: `(n, 3, 3)`, Cartesian U, Å².
        occupancies: `(n,)`, relative to the general position.
        structure_factors: `(m,)` complex, the true ones of the data's reflections.
    """

    data: CrystalData
    space_group: SpaceGroup
    elements: tuple[str, ...]
    positions: np.ndarray
    displacements: np.ndarray
    occupancies: np.ndarray
    structure_factors: np.ndarray


def invent(recipe: Recipe, seed: int) -> InventedCrystal:
    """Invents a crystal; the same seed gives the same crystal."""
    generator = np.random.default_rng(seed)
    elements, places = _grow(recipe, generator)
    hydrogens, parents = _hydrogens(elements, places, generator, start=1 if recipe.special else 0)
    group = _space_group(recipe.group)
    cell, rotation, shift = _pack(places, group, recipe, generator)
    molecule = np.concatenate([places, hydrogens]) @ rotation.T
    displacements = _displacements(molecule, len(places), parents, generator)
    positions = molecule @ np.linalg.inv(cell.orthogonalization).T + shift
    elements = (*elements, *['H'] * len(hydrogens))
    occupancies = np.ones(len(positions))
    if recipe.special:
        occupancies[0] = 0.5
    elements, positions, displacements, occupancies = _disordered(
        recipe, elements, positions, displacements, occupancies, cell, len(places), generator
    )
    hkl = _reflections(recipe, cell, generator)
    truth = anisotropic_structure_factors(hkl, cell, group, elements, positions, displacements, occupancies)
    formula: dict[str, float] = {}
    for element, occupancy in zip(elements, occupancies, strict=True):
        formula[element] = formula.get(element, 0) + float(occupancy) * len(group.symops)
    intensities = np.abs(truth) ** 2
    sigmas = np.hypot(recipe.error * intensities, recipe.background * intensities.mean())
    measured = intensities + sigmas * generator.standard_normal(len(sigmas))
    rotations, _ = _space_group_of(GROUPS[recipe.group][1]).operations
    data = CrystalData(
        cell,
        hkl,
        measured,
        sigmas,
        GROUPS[recipe.group][2],
        np.unique(rotations, axis=0),
        recipe.group[0],
        formula={symbol: round(count, 2) for symbol, count in formula.items()},
    )
    return InventedCrystal(data, group, elements, positions, displacements, occupancies, truth)


def anisotropic_structure_factors(
    hkl: np.ndarray,
    cell: UnitCell,
    group: SpaceGroup,
    elements: tuple[str, ...],
    positions: np.ndarray,
    displacements: np.ndarray,
    occupancies: np.ndarray,
) -> np.ndarray:
    """F(h) of anisotropic atoms, `(n,)` complex, by summation.

    Args:
        hkl: `(n, 3)`.
        cell: of the crystal.
        group: of the atoms.
        elements: of the atoms.
        positions: `(atoms, 3)`, fractional.
        displacements: `(atoms, 3, 3)`, Cartesian U, Å².
        occupancies: `(atoms,)`, relative to the general position.
    """
    reciprocal = np.linalg.inv(cell.orthogonalization)
    spacings = cell.inverse_spacings(hkl)
    factors = {symbol: _form_factor(symbol, spacings) for symbol in set(elements)}
    weights = np.stack([factors[each] for each in elements], axis=1) * occupancies
    total = np.zeros(len(hkl), complex)
    for turn, translation in zip(*group.operations, strict=True):
        images = hkl @ turn
        vectors = images @ reciprocal
        spread = np.einsum('hi,nij,hj->hn', vectors, displacements, vectors, optimize=True)
        phases = images @ positions.T + (hkl @ translation)[:, None]
        total += np.sum(weights * np.exp(2j * np.pi * phases - 2 * np.pi**2 * spread), axis=1)
    return total


def _form_factor(symbol, spacings):
    coefficients = gemmi.Element(symbol).it92
    return np.exp(-np.outer(spacings**2 / 4, coefficients.b)) @ np.array(coefficients.a) + coefficients.c


def _space_group(name):
    return _space_group_of(GROUPS[name][0])


def _space_group_of(hall):
    operations = gemmi.symops_from_hall(hall)
    found = gemmi.find_spacegroup_by_ops(operations)
    return SpaceGroup(found.number, found.hm, tuple(each.triplet() for each in operations), certain=True)


def _direction(generator):
    vector = generator.standard_normal(3)
    return vector / np.linalg.norm(vector)


def _grow(recipe, generator):
    """Elements and Cartesian places of a molecule without hydrogen; its middle is the origin unless it is special."""
    wanted = list(recipe.heavy)
    metal = bool(wanted) and gemmi.Element(wanted[0]).is_metal
    elements = [wanted.pop(0)] if metal else ['C']
    places = [np.zeros(3)]
    free = [COORDINATION if metal else 4]
    if recipe.special:
        free[0] = COORDINATION // 2
    while len(elements) < recipe.num_atoms:
        open_atoms = [index for index, each in enumerate(free) if each > 0]
        if not open_atoms:
            return _grow(recipe, generator)
        parent = open_atoms[generator.integers(len(open_atoms))]
        if free[0] > 0 and metal:
            parent = 0
        left = recipe.num_atoms - len(elements)
        ring = elements[parent] in LIGHT and left - len(wanted) >= 6 and generator.random() < RING_CHANCE
        symbol = 'C' if ring else str(generator.choice(LIGHT, p=SHARES))
        if elements[parent] != 'C' and symbol != 'C' and not metal:
            symbol = 'C'
        if metal and parent == 0:
            symbol = 'N' if generator.random() < 0.5 else 'O'
        if wanted and len(open_atoms) > 1 and elements[parent] == 'C' and generator.random() < 0.5:
            symbol, ring = wanted[0], False
        length = _bond_length(elements[parent], symbol, generator)
        direction = _direction(generator)
        start = places[parent] + length * direction
        new = _ring(start, direction, generator) if ring else start[None]
        if not _fits(new, np.array(places), parent, recipe.special):
            free[parent] -= generator.random() < 0.02  # gives up in the end if nothing fits
            continue
        if wanted and symbol == wanted[0]:
            wanted.pop(0)
        free[parent] -= 1
        for index, place in enumerate(new):
            elements.append(symbol)
            places.append(place)
            valence = VALENCES[symbol] - 1
            double = symbol in 'CNO' and not ring and generator.random() < 0.3
            free.append((0 if index == 0 else 1) if ring else max(valence - double, 0))
    if wanted:
        return _grow(recipe, generator)
    together = np.array(places)
    return tuple(elements), together if recipe.special else together - together.mean(axis=0)


def _bond_length(first, second, generator):
    length = gemmi.Element(first).covalent_r + gemmi.Element(second).covalent_r
    return length * (generator.uniform(0.9, 1.0) if {first, second} <= set(LIGHT) else 1.0)


def _ring(start, direction, generator):
    """Six atoms of a benzene ring; the first one is bonded from the given direction."""
    side = np.cross(direction, _direction(generator))
    side /= np.linalg.norm(side)
    angles = np.arange(6) * np.pi / 3
    centre = start + 1.39 * direction
    return centre + 1.39 * (-np.cos(angles)[:, None] * direction + np.sin(angles)[:, None] * side)


def _fits(new, places, parent, special):
    """Whether new atoms are far enough from the others; this also keeps angles at the parent of the first."""
    others = np.concatenate([places, -places, -new]) if special else places
    distances = np.linalg.norm(new[:, None] - others[None], axis=-1)
    distances[0, parent] = np.inf
    if special and parent == 0:
        distances[0, len(places)] = np.inf
    if special:
        distances[:, 2 * len(places) :][distances[:, 2 * len(places) :] > NOT_BONDED] = np.inf
    return distances.min() > NOT_BONDED


def _hydrogens(elements, places, generator, start):
    """Places of hydrogen where valences are free, and the atoms to which they are bonded."""
    found, parents = [], []
    for index in range(start, len(elements)):
        if elements[index] not in LIGHT:
            continue
        vectors = places - places[index]
        lengths = np.linalg.norm(vectors, axis=1)
        bonded = (lengths > 0) & (lengths < NOT_BONDED)
        directions = list(vectors[bonded] / lengths[bonded, None])
        flat = any(1.37 < length < 1.41 for length in lengths)
        number = VALENCES[elements[index]] - len(directions) - flat
        for _ in range(max(number - int(generator.integers(2)), 0) if not flat else max(number, 0)):
            trials = np.array([_direction(generator) for _ in range(60)])
            nearest = (trials @ np.array(directions).T).max(axis=1)
            direction = trials[np.argmin(nearest)]
            directions.append(direction)
            place = places[index] + (0.97 if elements[index] == 'C' else 0.87) * direction
            found.append(place)
            parents.append(index)
    return np.reshape(found, (-1, 3)), parents


def _random_rotation(generator):
    matrix, triangle = np.linalg.qr(generator.standard_normal((3, 3)))
    matrix = matrix * np.sign(np.diag(triangle))
    return matrix * np.sign(np.linalg.det(matrix))


def _pack(places, group, recipe, generator):
    """Cell, rotation and fractional shift of the molecule: the densest of some trials without close contacts."""
    rotations, _ = group.operations
    sites = len(places) * len(rotations) * (1 if not recipe.special else 1 - 0.5 / len(places))
    best = None
    for trial in range(TRIALS):
        turn = _random_rotation(generator)
        edges = np.exp(generator.normal(0, 0.25, 3))
        angles = _angles(recipe.group, generator)
        shift = np.zeros(3) if recipe.special else generator.uniform(0, 1, 3)
        if best is not None and trial > TRIALS // 3:
            wiggle = np.eye(3) + 0.15 * np.cross(np.eye(3), generator.standard_normal(3))
            turn = np.linalg.qr(wiggle)[0] * np.sign(np.diag(np.linalg.qr(wiggle)[1])) @ best[2]
            edges = best[4] * np.exp(generator.normal(0, 0.06, 3))
            shift = best[3] + (0 if recipe.special else generator.normal(0, 0.03, 3))
            angles = best[5]
        molecule = places @ turn.T
        low, high = 13.0, 60.0 if best is None else best[0]  # Å³ for each atom
        if not _packs(molecule, edges, angles, shift, group, high * sites):
            continue
        while high - low > 0.3:
            middle = (low + high) / 2
            if _packs(molecule, edges, angles, shift, group, middle * sites):
                high = middle
            else:
                low = middle
        best = (high, _cell(edges, angles, high * sites), turn, shift, edges, angles)
    if best is None:
        return _pack(places, group, recipe, generator)
    return best[1:4]


def _angles(name, generator):
    laue_class = GROUPS[name][2]
    if laue_class == '-1':
        return tuple(float(each) for each in generator.uniform(75, 105, 3))
    return (90.0, float(generator.uniform(91, 112)) if laue_class == '2/m' else 90.0, 90.0)


def _cell(edges, angles, volume):
    scale = (volume / UnitCell(*edges, *angles).volume) ** (1 / 3)
    return UnitCell(*(float(each) for each in edges * scale), *angles)


def _packs(molecule, edges, angles, shift, group, volume):
    """Whether no two atoms of different molecules are too near."""
    cell = _cell(edges, angles, volume)
    orthogonalization = cell.orthogonalization
    positions = molecule @ np.linalg.inv(orthogonalization).T + shift
    steps = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing='ij'), -1).reshape(-1, 3)
    centre = positions.mean(axis=0)
    for turn, translation in zip(*group.operations, strict=True):
        images = positions @ turn.T + translation
        images -= np.rint(images.mean(axis=0) - centre)
        for step in steps:
            moved = (images + step - positions[:, None]) @ orthogonalization.T
            distances = np.linalg.norm(moved, axis=-1)
            if distances.min() > CONTACT:
                continue
            same = np.allclose(np.diag(distances), 0, atol=1e-6)
            own = np.allclose(turn, -np.eye(3)) and distances[0, 0] < 1e-6  # the other half about a centre
            if not (same or own):
                return False
    return True


def _displacements(molecule, number, parents, generator):
    """Cartesian U, anisotropic, that grow with the distance from the middle."""
    distances = np.linalg.norm(molecule[:number] - molecule[:number].mean(axis=0), axis=1)
    base = generator.uniform(0.018, 0.045)
    sizes = base * (1 + generator.uniform(0.0, 0.12) * distances**1.2)
    tensors = []
    for size in sizes:
        axes = _random_rotation(generator)
        ratios = np.exp(generator.normal(0, 0.35, 3))
        tensors.append(axes * (size * ratios / ratios.mean()) @ axes.T)
    riding = [1.25 * np.trace(tensors[each]) / 3 * np.eye(3) for each in parents]
    return np.array(tensors + riding)


def _disordered(recipe, elements, positions, displacements, occupancies, cell, number, generator):
    """Splits some of the outermost atoms over two places."""
    count = round(recipe.disorder * number)
    if not count:
        return elements, positions, displacements, occupancies
    centre = positions[:number].mean(axis=0)
    distances = np.linalg.norm((positions[:number] - centre) @ cell.orthogonalization.T, axis=1)
    outermost = np.argsort(-distances)[:count]
    shifts = np.array([generator.uniform(0.5, 1.0) * _direction(generator) for _ in outermost])
    second = positions[outermost] + shifts @ np.linalg.inv(cell.orthogonalization).T
    occupancies = occupancies.copy()
    occupancies[outermost] = DISORDERED
    return (
        (*elements, *(elements[each] for each in outermost)),
        np.concatenate([positions, second]),
        np.concatenate([displacements, displacements[outermost]]),
        np.concatenate([occupancies, np.full(count, 1 - DISORDERED)]),
    )


def _reflections(recipe, cell, generator):
    """The unique reflections of the Laue class to d_min, without the lost ones."""
    laue = gemmi.find_spacegroup_by_ops(gemmi.symops_from_hall(GROUPS[recipe.group][1]))
    hkl = gemmi.make_miller_array(cell.gemmi, laue, recipe.d_min)
    hkl = hkl[(hkl != 0).any(axis=1)]
    return np.ascontiguousarray(hkl[generator.random(len(hkl)) > recipe.lost], np.int32)
