"""Least squares of a crystal's atoms with anisotropic displacements, against its intensities, in the space group.

Positions, six components of U of each atom and one scale are refined, from atoms of isotropic U, as in
`crystal_refinement`. The temperature factor is exp(−2π² hᵀ U* h), where U* is U in fractions of the edges (Trueblood et
al., Acta Cryst. A52, 770, 1996). On a special position U has the symmetry of the site.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from patterson_jax.crystal.scatterers import AsymmetricUnit, Numbers, Operations
from patterson_jax.crystal.waves import cosine_and_sine
from patterson_jax.precision import exact_products
from patterson_jax.solving.crystal_refinement import ATOM_BUCKET, Observations, bucket, minimised, padded

MODEL_ERROR = 0.05  # relative error of F² of an anisotropic model without hydrogen, roughly; for the weights
ROWS, COLUMNS = (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)  # of the six components of a symmetric tensor: xx yy zz yz xz xy
TWICE = np.array([1, 1, 1, 2, 2, 2], np.float32)  # how often each counts in hᵀ U h


class AnisotropicFit(NamedTuple):
    """A model after refinement.

    Attributes:
        positions: `(n, 3)`, fractional.
        tensors: `(n, 3, 3)`, U*: of displacements in fractions of the edges.
        scale: k of Fo = k Fc.
        structure_factors: `(chunks, 512)` complex, Fc.
    """

    positions: Numbers
    tensors: Numbers
    scale: Numbers
    structure_factors: Numbers


def refine_anisotropic(
    unit: AsymmetricUnit,
    tensors: np.ndarray,
    scale: float,
    rotations: list[np.ndarray],
    operations: Operations,
    reflections: Observations,
    cycles: int,
) -> AnisotropicFit:
    """Refines positions, U and the scale.

    Args:
        unit: `n` atoms; their U is not used.
        tensors: `(n, 3, 3)`, U* to start from.
        scale: k of Fo = k Fc, to start from.
        rotations: `(m, 3, 3)` for each atom, of the operations that keep it in place.
        operations: of the space group.
        reflections: to refine against.
        cycles: the highest number of cycles.

    Returns:
        The fit, on the host, without padding.
    """
    number = len(unit.positions)
    size = bucket(number, ATOM_BUCKET)
    parameters = np.concatenate([unit.positions, np.asarray(tensors)[:, ROWS, COLUMNS]], axis=1)
    directions = padded(np.array([allowed_shifts(each) for each in rotations]), size)
    unit = jax.tree.map(lambda each: padded(each, size), unit)
    unit = unit._replace(elements=unit.elements.astype(np.int32))
    fit = _refine(padded(parameters, size), unit, float(scale), directions, operations, reflections, cycles)
    each, scale, factors = jax.device_get(fit)
    tensors = np.zeros((number, 3, 3))
    tensors[:, ROWS, COLUMNS] = tensors[:, COLUMNS, ROWS] = each[:number, 3:]
    return AnisotropicFit(each[:number, :3], tensors, np.asarray(scale), factors)


def allowed_shifts(rotations: np.ndarray) -> np.ndarray:
    """The part of shifts of a position and of the six components of its U that operations leave as it is, `(9, 9)`.

    Args:
        rotations: `(m, 3, 3)`, of the operations that keep the position in place.
    """
    steps = np.zeros((6, 3, 3))
    steps[range(6), ROWS, COLUMNS] = steps[range(6), COLUMNS, ROWS] = 1
    turned = np.einsum('mij,sjk,mlk->sil', rotations, steps, rotations) / len(rotations)
    directions = np.zeros((9, 9))
    directions[:3, :3] = rotations.mean(axis=0)
    directions[3:, 3:] = turned[:, ROWS, COLUMNS].T
    return directions


@jax.jit
@exact_products
def _refine(parameters, unit, scale, directions, operations, reflections, cycles):
    size = len(parameters)
    free = jnp.append(jnp.repeat((unit.occupancies > 0).astype(jnp.float32), 9), 1.0)
    start = jnp.append(parameters.ravel(), scale)
    calculated = jnp.abs(_calculated(start, unit, operations, reflections)) * scale
    expected = (jnp.maximum(reflections.intensities, 0) + 2 * calculated**2) / 3
    weights = 1 / (reflections.sigmas**2 + (MODEL_ERROR * expected) ** 2)

    def allowed(shifts):
        moves = jnp.sum(directions * shifts[:-1].reshape(size, 1, 9), axis=2)
        return free * jnp.append(moves.ravel(), shifts[-1])

    def equations(parameters):
        return _normal_equations(parameters, unit, free, operations, reflections, weights)

    found, _ = minimised(start, free, equations, allowed, lambda each: each, cycles)
    return found[:-1].reshape(size, 9), found[-1], _calculated(found, unit, operations, reflections)


def _calculated(parameters, unit, operations, reflections):
    """Fc of all reflections, `(chunks, 512)`; 0 in chunks of padding."""

    def one_chunk(chunk, values):
        real, imaginary, _, _ = _transforms(parameters, operations, reflections.hkl[chunk], False)
        amplitudes = unit.occupancies[None] * reflections.table[chunk][unit.elements].T
        total = jax.lax.complex(jnp.sum(amplitudes * real, axis=1), jnp.sum(amplitudes * imaginary, axis=1))
        return values.at[chunk].set(total)

    values = jnp.zeros(reflections.spacings.shape, jnp.complex64)
    return jax.lax.fori_loop(0, jnp.sum(jnp.any(jnp.isfinite(reflections.sigmas), axis=1)), one_chunk, values)


def _transforms(parameters, operations, hkl, with_gradients):
    """Sums over the operations of the cosines and sines of atoms that vibrate, `(n, atoms)`, and their gradients.

    The gradients, `(n, atoms, 9)`, are empty if not wanted.
    """
    each = parameters[:-1].reshape(-1, 9)
    positions, displacements = each[:, :3], each[:, 3:]
    zeros = jnp.zeros((len(hkl), len(each)))
    slopes = jnp.zeros((*zeros.shape, 9 if with_gradients else 0))

    def add_operation(index, sums):
        real, imaginary, real_slope, imaginary_slope = sums
        images = hkl @ operations.rotations[index]
        squares = TWICE[None] * images[:, ROWS] * images[:, COLUMNS]
        phases = images @ positions.T + (hkl @ operations.translations[index])[:, None]
        cosine, sine = cosine_and_sine(2 * math.pi * (phases - jnp.round(phases)))
        falloff = jnp.exp(-2 * math.pi**2 * (squares @ displacements.T))
        cosine, sine = falloff * cosine, falloff * sine
        if with_gradients:
            turns, widths = 2 * math.pi * images[:, None], -2 * math.pi**2 * squares[:, None]
            real_slope += jnp.concatenate([-sine[..., None] * turns, cosine[..., None] * widths], axis=2)
            imaginary_slope += jnp.concatenate([cosine[..., None] * turns, sine[..., None] * widths], axis=2)
        return real + cosine, imaginary + sine, real_slope, imaginary_slope

    sums = jax.lax.fori_loop(0, operations.number, add_operation, (zeros, zeros, slopes, slopes))
    real, imaginary, real_slope, imaginary_slope = (operations.factor * each for each in sums)
    return real, operations.phased * imaginary, real_slope, operations.phased * imaginary_slope


def _normal_equations(parameters, unit, free, operations, reflections, weights):
    """Normal matrix, gradient and misfit, summed over the chunks that are used."""
    scale = parameters[-1]

    def add_chunk(chunk, sums):
        normal, gradient, misfit = sums
        real, imaginary, real_slope, imaginary_slope = _transforms(parameters, operations, reflections.hkl[chunk], True)
        amplitudes = unit.occupancies[None] * reflections.table[chunk][unit.elements].T
        a, b = jnp.sum(amplitudes * real, 1), jnp.sum(amplitudes * imaginary, 1)
        slopes = a[:, None, None] * real_slope + b[:, None, None] * imaginary_slope
        slopes = (2 * scale**2 * amplitudes[..., None] * slopes).reshape(len(a), -1)
        calculated = scale**2 * (a**2 + b**2)
        root = jnp.sqrt(weights[chunk])
        jacobian = jnp.concatenate([slopes, (2 / scale * calculated)[:, None]], axis=1) * free[None] * root[:, None]
        residual = root * (reflections.intensities[chunk] - calculated)
        return normal + jacobian.T @ jacobian, gradient + residual @ jacobian, misfit + jnp.sum(residual**2)

    zeros = jnp.zeros((len(parameters), len(parameters))), jnp.zeros(len(parameters)), jnp.float32(0)
    return jax.lax.fori_loop(0, reflections.used, add_chunk, zeros)
