"""Moves the scattered atoms of an asymmetric unit together: one connected molecule near the middle of the cell."""

import collections

import gemmi
import numpy as np

from patterson_jax.crystal.cell import UnitCell
from patterson_jax.solving.crystal_maps import Contact, Seitz, contacts, images_of, nearest_images

SLACK = 0.35  # Å by which a bond may be longer than the sum of covalent radii
MOST_LIGHT_BONDS = {'F': 1, 'O': 2, 'N': 4, 'C': 4}  # with one another; heaviest first
LONGEST_BOND = 3.6  # Å


def bond_limit(first: str, second: str) -> float:
    """The longest distance of two bonded atoms of these elements, Å."""
    return gemmi.Element(first).covalent_r + gemmi.Element(second).covalent_r + SLACK


def bonds(positions: np.ndarray, elements: tuple[str, ...], cell: UnitCell, operations: Seitz) -> list[Contact]:
    """Bonds with all equivalents."""
    near = contacts(positions, cell, operations, LONGEST_BOND)
    return [each for each in near if each[2] < bond_limit(elements[each[0]], elements[each[1]])]


def within_valence(elements: tuple[str, ...], bonded: list[Contact], possible: tuple[str, ...]) -> tuple[str, ...]:
    """Replaces F, O and N that have more bonds than they can form by lighter elements.

    Args:
        elements: of the atoms.
        bonded: from `bonds`; only bonds to other light atoms count.
        possible: elements that may replace others.

    Returns:
        The elements after that.
    """
    light = tuple(MOST_LIGHT_BONDS)
    counts = collections.Counter(first for first, other, _, _ in bonded if elements[other] in light)

    def fitting(element, count):
        if element not in light or count <= MOST_LIGHT_BONDS[element]:
            return element
        lighter = [each for each in light[light.index(element) :] if each in possible]
        return next((each for each in lighter if count <= MOST_LIGHT_BONDS[each]), element)

    return tuple(fitting(element, counts[index]) for index, element in enumerate(elements))


def assemble(positions: np.ndarray, elements: tuple[str, ...], cell: UnitCell, operations: Seitz) -> np.ndarray:
    """Moves atoms to equivalent places, so that bonded atoms lie together.

    Each atom is moved next to a bonded atom that is placed already. Then each molecule is moved as a whole by an
    operation of the group: the largest to the middle of the cell, the others as near to it as possible.

    Args:
        positions: `(n, 3)`, fractional.
        elements: of the atoms.
        cell: of the crystal.
        operations: of its space group.

    Returns:
        Positions `(n, 3)`, in the given order.
    """
    placed = np.array(positions, float)
    molecules = []
    waiting = [*range(len(placed))]
    while waiting:
        molecule = [waiting.pop(0)]
        for grown in molecule:  # the list grows in the loop
            if not waiting:
                break
            distances, images = nearest_images(placed[grown], placed[waiting], cell, operations)
            for atom, distance, image in zip([*waiting], distances, images, strict=True):
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
    """The image of a molecule, under an operation and a lattice vector, whose centre is nearest to a point."""
    images = images_of(positions, operations)
    images = images - np.rint(images.mean(axis=0) - middle)
    distances = np.linalg.norm((images.mean(axis=0) - middle) @ cell.orthogonalization.T, axis=1)
    return images[:, np.argmin(np.round(distances, 3))]
