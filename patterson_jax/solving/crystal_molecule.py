"""One connected molecule near the middle of the cell, from the atoms of an asymmetric unit scattered over it."""

import gemmi
import numpy as np

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.solving.crystal_maps import contacts, nearest_images

SLACK = 0.35  # Å, by which a bond may be longer than the sum of covalent radii
MOST_LIGHT_BONDS = {'F': 1, 'O': 2, 'N': 4, 'C': 4}  # to each other; heaviest first
LONGEST_BOND = 3.6  # Å


def bond_limit(first: str, second: str) -> float:
    """The longest distance of bonded atoms, Å."""
    return gemmi.Element(first).covalent_r + gemmi.Element(second).covalent_r + SLACK


def bonds(
    positions: np.ndarray, elements: tuple[str, ...], cell: UnitCell, operations: tuple[np.ndarray, np.ndarray]
) -> list[tuple[int, int, float, np.ndarray]]:
    """Bonds through all symmetry, as `contacts` gives them."""
    near = contacts(positions, cell, operations, LONGEST_BOND)
    return [each for each in near if each[2] < bond_limit(elements[each[0]], elements[each[1]])]


def within_valence(
    elements: tuple[str, ...], bonded: list[tuple[int, int, float, np.ndarray]], possible: tuple[str, ...]
) -> tuple[str, ...]:
    """Elements, those of fluorine, oxygen and nitrogen replaced by lighter ones that have more bonds than they form.

    Args:
        elements: of the atoms.
        bonded: as `bonds` gives them; only those to other light atoms are counted.
        possible: elements that may be put in their place.
    """
    light = tuple(MOST_LIGHT_BONDS)
    counts = [
        sum(first == index and elements[other] in light for first, other, _, _ in bonded)
        for index in range(len(elements))
    ]

    def fitting(element, count):
        if element not in light or count <= MOST_LIGHT_BONDS[element]:
            return element
        lighter = [each for each in light[light.index(element) :] if each in possible]
        return next((each for each in lighter if count <= MOST_LIGHT_BONDS[each]), element)

    return tuple(fitting(element, count) for element, count in zip(elements, counts, strict=True))


def assemble(
    positions: np.ndarray, elements: tuple[str, ...], cell: UnitCell, operations: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Moves atoms to equivalent places, so that bonded ones lie together.

    Each atom is grown onto a bonded one that is placed already. Molecules, the largest first, are then moved as a whole
    by an operation of the group: the first to the middle of the cell, others to where they are nearest to it.

    Args:
        positions: `(n, 3)`, fractional.
        elements: of the atoms.
        cell: of the crystal.
        operations: of its group.

    Returns:
        `(n, 3)`, in the order in which they came.
    """
    placed = np.array(positions, float)
    molecules = []
    waiting = set(range(len(placed)))
    while waiting:
        molecule = [min(waiting)]
        waiting.remove(molecule[0])
        for grown in molecule:  # it lengthens as it goes
            rest = sorted(waiting)
            if not rest:
                break
            distances, images = nearest_images(placed[grown], placed[rest], cell, operations)
            for atom, distance, image in zip(rest, distances, images, strict=True):
                if distance < bond_limit(elements[grown], elements[atom]):
                    placed[atom] = image
                    molecule.append(atom)
                    waiting.remove(atom)
        molecules.append(molecule)
    molecules.sort(key=len, reverse=True)
    middle = np.full(3, 0.5)
    for molecule in molecules:
        placed[molecule] = _moved(placed[molecule], middle, cell, operations)
        if molecule is molecules[0]:
            middle = placed[molecule].mean(axis=0)
    return placed


def _moved(positions, middle, cell, operations):
    """A molecule under the operation and the lattice vector that bring its centre nearest to a point."""
    rotations, translations = operations
    images = np.einsum('mij,nj->mni', rotations, positions) + translations[:, None]
    centres = images.mean(axis=1)
    images = images - np.rint(centres - middle)[:, None]
    distances = np.linalg.norm((images.mean(axis=1) - middle) @ cell.orthogonalization.T, axis=1)
    return images[np.argmin(np.round(distances, 3))]
