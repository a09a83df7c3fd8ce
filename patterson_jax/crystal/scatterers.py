"""X-ray form factors of atoms, and structure factors of an asymmetric unit under its operations.

Form factors are those of International Tables C, 6.1.1.4 (four Gaussians and a constant, from gemmi), with f′ after
Cromer and Liberman (J. Chem. Phys. 53, 1891, 1970) at the wavelength. f″ is left out: where Friedel pairs are merged,
only its square adds to |F|². Tables are made on the host and are arguments of compiled functions.
"""

import functools
import math
from typing import NamedTuple

import gemmi
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from patterson_jax.crystal.structure import SpaceGroup
from patterson_jax.crystal.waves import cosine_and_sine
from patterson_jax.errors import InputError
from patterson_jax.precision import exact_products

ELECTRONVOLT_ANGSTROM = 12398.42  # energy times wavelength of light
Numbers = Array | np.ndarray  # on the host until a compiled function is given them
MOST_OPERATIONS = 24  # of any space group, without centring and inversion; all groups are padded to that


class Operations(NamedTuple):
    """The operations of a space group that structure factors need, as arrays.

    Of operations that differ by a vector of the centring only one is kept, because the others repeat its terms. Of two
    operations that an inversion centre at the origin relates only one is kept, because the other gives the complex
    conjugates. The reflections must be such that the centring does not make them absent.

    Attributes:
        rotations: `(24, 3, 3)` float32, zeros after the last.
        translations: `(24, 3)` float32.
        number: of operations that are kept.
        factor: how often each of these counts.
        phased: 0 where a centre at the origin makes structure factors real; else 1.
    """

    rotations: Numbers
    translations: Numbers
    number: Numbers
    factor: Numbers
    phased: Numbers


class AsymmetricUnit(NamedTuple):
    """Atoms of an asymmetric unit; padding has occupancy 0.

    Attributes:
        positions: `(n, 3)`, fractional.
        u_iso: `(n,)`, Å².
        occupancies: `(n,)`, relative to the general position: 1/m for a full site that m operations leave in place.
        elements: `(n,)` int32, rows of the table of form factors.
    """

    positions: Numbers
    u_iso: Numbers
    occupancies: Numbers
    elements: Numbers


def form_factors(elements: list[str], inverse_spacings: np.ndarray, wavelength: float | None = None) -> np.ndarray:
    """f₀ + f′ of elements at 1/d, in electrons.

    Args:
        elements: chemical symbols.
        inverse_spacings: `(n,)`, 1/d in 1/Å.
        wavelength: Å; without one, or for elements without f′ in gemmi, f′ is 0.

    Returns:
        `(elements, n)` float32.

    Raises:
        InputError: an element has no form factor.
    """
    return np.stack([_form_factor(element, inverse_spacings, wavelength) for element in elements]).astype(np.float32)


def _form_factor(symbol, inverse_spacings, wavelength):
    element = gemmi.Element(symbol)
    if element.atomic_number == 0 or element.it92 is None:
        raise InputError(f'element: no X-ray form factor of {symbol!r} is known')
    a, b = np.array(element.it92.a), np.array(element.it92.b)
    stol2 = np.asarray(inverse_spacings, float) ** 2 / 4
    factor = np.exp(-b * stol2[:, None]) @ a + element.it92.c
    if wavelength:
        factor += gemmi.cromer_liberman(element.atomic_number, ELECTRONVOLT_ANGSTROM / wavelength)[0]
    return factor


@functools.lru_cache
def group_operations(space_group: SpaceGroup) -> Operations:
    """The operations of a group, without those that repeat others (see `Operations`)."""
    kept: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
    rotations, translations = space_group.operations
    centred = any(
        np.array_equal(rotation, -np.eye(3)) and np.allclose(shift, np.rint(shift), atol=1e-4)
        for rotation, shift in zip(rotations, translations, strict=True)
    )
    for rotation, shift in zip(rotations, translations, strict=True):
        seen = {rotation.tobytes(), (-rotation).tobytes()} if centred else {rotation.tobytes()}
        if not seen & kept.keys():
            kept[rotation.tobytes()] = rotation, shift
    padding = MOST_OPERATIONS - len(kept)
    return Operations(
        np.pad(np.array([each for each, _ in kept.values()], np.float32), ((0, padding), (0, 0), (0, 0))),
        np.pad(np.array([each for _, each in kept.values()], np.float32), ((0, padding), (0, 0))),
        np.asarray(len(kept), np.int32),
        np.asarray(len(rotations) / len(kept), np.float32),
        np.asarray(not centred, np.float32),
    )


@jax.jit
@exact_products
def structure_factors(unit: AsymmetricUnit, operations: Operations, hkl: Array, table: Array, spacings: Array) -> Array:
    """F(h) of a crystal, complex `(n,)`, in electrons per cell.

    Args:
        unit: its atoms.
        operations: of its space group.
        hkl: `(n, 3)` float32, without absences of the centring.
        table: `(elements, n)`, form factors.
        spacings: `(n,)`, 1/d in 1/Å.
    """
    real, imaginary, _, _ = atom_transforms(unit.positions, operations, hkl, with_gradients=False)
    weights = atom_amplitudes(unit, table, spacings)
    return jax.lax.complex(jnp.sum(weights * real, axis=1), jnp.sum(weights * imaginary, axis=1))


def atom_amplitudes(unit: AsymmetricUnit, table: Array, spacings: Array) -> Numbers:
    """Occupancy times form factor times exp(−2π²U/d²) of each atom at each reflection, `(n, atoms)`."""
    falloff = jnp.exp(-2 * math.pi**2 * unit.u_iso[None] * spacings[:, None] ** 2)
    return unit.occupancies[None] * table[unit.elements].T * falloff


def atom_transforms(
    positions: Numbers, operations: Operations, hkl: Array, with_gradients: bool
) -> tuple[Array, Array, Array, Array]:
    """Σ cos 2πh·(Rx + t) and Σ sin 2πh·(Rx + t) over the operations, with their gradients in x.

    Args:
        positions: `(atoms, 3)`, fractional.
        operations: (R, t) of the space group.
        hkl: `(n, 3)`.
        with_gradients: whether to compute these; without, the last two arrays are empty.

    Returns:
        The two sums, `(n, atoms)` each, and their gradients, `(n, atoms, 3)` each.
    """
    size = (len(hkl), len(positions))
    zeros, slopes = jnp.zeros(size, hkl.dtype), jnp.zeros((*size, 3 if with_gradients else 0), hkl.dtype)

    def add_operation(index, sums):
        real, imaginary, real_slope, imaginary_slope = sums
        images = hkl @ operations.rotations[index]
        phases = images @ positions.T + (hkl @ operations.translations[index])[:, None]
        phases = 2 * math.pi * (phases - jnp.round(phases))
        cosine, sine = cosine_and_sine(phases)
        if with_gradients:
            turns = 2 * math.pi * images[:, None]
            real_slope, imaginary_slope = (
                real_slope - sine[..., None] * turns,
                imaginary_slope + cosine[..., None] * turns,
            )
        return real + cosine, imaginary + sine, real_slope, imaginary_slope

    sums = jax.lax.fori_loop(0, operations.number, add_operation, (zeros, zeros, slopes, slopes))
    real, imaginary, real_slope, imaginary_slope = (operations.factor * each for each in sums)
    return real, operations.phased * imaginary, real_slope, operations.phased * imaginary_slope
