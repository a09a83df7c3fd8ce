"""Least squares of a crystal's atoms against its intensities, in the space group.

Positions, isotropic U, one scale and optionally occupancies are refined against F² by the method of Levenberg and
Marquardt. The weights are 1/(σ² + (0.1 P)²) with P = (Fo² + 2 Fc²)/3 (Sheldrick, Acta Cryst. C71, 3, 2015). An atom on
a special position stays on it: its shifts are averaged over the operations that keep it there. Derivatives are written
out. Normal equations are summed over chunks of reflections, and sizes are rounded up to a few values. So one compiled
program serves many crystals, in any space group.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from patterson_jax.crystal.scatterers import (
    AsymmetricUnit,
    Numbers,
    Operations,
    atom_amplitudes,
    atom_transforms,
    structure_factors,
)
from patterson_jax.precision import exact_products

CHUNK = 512  # reflections
MODEL_ERROR = 0.1  # relative error of F² of an isotropic model without hydrogen, roughly; for the weights
LEAST_U, MOST_U = 0.002, 0.4  # Å²; U is clipped to this range
FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING, EASED, TIGHTENED = 1e-2, 1e-5, 1e3, 0.2, 8.0
CONVERGED = 3e-4  # relative gain of a cycle
ATOM_BUCKET, REFLECTION_BUCKET, ELEMENT_BUCKET = 16, 4096, 8  # the smallest sizes; see `bucket`


class Observations(NamedTuple):
    """Reflections in chunks, padded with weight 0.

    Attributes:
        hkl: `(chunks, 512, 3)` float32.
        spacings: `(chunks, 512)`, 1/d in 1/Å.
        table: `(chunks, elements, 512)`, form factors.
        intensities: `(chunks, 512)`.
        sigmas: `(chunks, 512)`; infinite where padded.
        used: number of chunks to use.
    """

    hkl: Numbers
    spacings: Numbers
    table: Numbers
    intensities: Numbers
    sigmas: Numbers
    used: Numbers


class Fit(NamedTuple):
    """A model after refinement.

    Attributes:
        unit: its atoms.
        scale: k of Fo = k Fc.
        structure_factors: `(chunks, 512)` complex, Fc.
        normal: `(5n + 1, 5n + 1)`, the normal matrix of positions, U, occupancies and scale; zero for fixed parameters.
        misfit: Σ w (Fo² − k² Fc²)².
    """

    unit: AsymmetricUnit
    scale: Numbers
    structure_factors: Numbers
    normal: Numbers
    misfit: Numbers


def bucket(size: int, least: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, … times `least` that is not below `size`."""
    bounds = (least * each for doublings in itertools.count() for each in (2**doublings, 3 * 2**doublings // 2))
    return next(bound for bound in bounds if bound >= size)


def observations(
    hkl: np.ndarray, spacings: np.ndarray, table: np.ndarray, intensities: np.ndarray, sigmas: np.ndarray
) -> Observations:
    """Puts reflections into padded chunks, in the given order.

    Args:
        hkl: `(n, 3)`.
        spacings: `(n,)`, 1/d in 1/Å.
        table: `(elements, n)`, form factors.
        intensities: `(n,)`, on a scale on which float32 can hold their squares.
        sigmas: `(n,)`.
    """
    size = bucket(len(hkl), REFLECTION_BUCKET)

    def chunks(values, fill=0.0):
        values = padded(values, size, fill)
        return values.reshape(-1, CHUNK, *values.shape[1:])

    table = padded(table, bucket(len(table), ELEMENT_BUCKET))
    return Observations(
        chunks(hkl),
        chunks(spacings),
        np.moveaxis(chunks(table.T), 2, 1),
        chunks(intensities),
        chunks(sigmas, np.inf),
        np.asarray(math.ceil(len(hkl) / CHUNK), np.int32),
    )


def padded(values: np.ndarray, size: int, fill: float = 0.0) -> np.ndarray:
    """Values in float32, their first axis filled up to a size with `fill`."""
    values = np.asarray(values, np.float32)
    return np.pad(values, [(0, size - len(values)), *[(0, 0)] * (values.ndim - 1)], constant_values=fill)


def up_to(reflections: Observations, number: int) -> Observations:
    """Uses only the first chunks, with at least `number` reflections if there are that many."""
    return reflections._replace(used=np.asarray(min(math.ceil(number / CHUNK), int(reflections.used)), np.int32))


def refine(
    unit: AsymmetricUnit,
    scale: float,
    projectors: np.ndarray,
    operations: Operations,
    reflections: Observations,
    cycles: int,
    occupancies: bool = False,
) -> Fit:
    """Refines a model: positions, U, and either the scale or occupancies.

    Args:
        unit: `n` atoms; they are padded here.
        scale: k of Fo = k Fc, to start from; 0: the one that fits the given atoms.
        projectors: `(n, 3, 3)`, the mean rotation of the operations that keep each atom.
        operations: of the space group.
        reflections: to refine against.
        cycles: the highest number of cycles.
        occupancies: whether these are refined, and the scale is fixed.

    Returns:
        The fit, on the host, without padded atoms.
    """
    number = len(unit.positions)
    size = bucket(number, ATOM_BUCKET)
    atoms = jax.tree.map(lambda each: padded(each, size), unit)
    atoms = atoms._replace(elements=atoms.elements.astype(np.int32))
    real = np.arange(size) < number
    kept = np.concatenate([np.repeat(real, 3), real, real, [True]])
    free = np.repeat([True, occupancies, not occupancies], [4 * size, size, 1]) & kept
    projectors, free = padded(projectors, size), free.astype(np.float32)
    fit = jax.device_get(_refine(atoms, float(scale), projectors, free, operations, reflections, cycles))
    found = AsymmetricUnit(*(each[:number] for each in fit.unit))
    return fit._replace(unit=found, normal=fit.normal[np.ix_(kept, kept)])


@jax.jit
@exact_products
def _refine(unit, scale, projectors, free, operations, reflections, cycles):
    size = len(unit.occupancies)
    chunks = jnp.arange(reflections.hkl.shape[0])
    start = _calculate(unit, operations, reflections)
    used = jnp.where(chunks[:, None] < reflections.used, 1 / reflections.sigmas, 0) > 0
    scale = jnp.where(scale > 0, scale, _fitting_scale(start, used, reflections))
    expected = (jnp.maximum(reflections.intensities, 0) + 2 * (scale * jnp.abs(start)) ** 2) / 3
    weights = jnp.where(used, 1 / (reflections.sigmas**2 + (MODEL_ERROR * expected) ** 2), 0)

    def allowed(shifts):
        moves = jnp.sum(projectors * shifts[: 3 * size].reshape(size, 1, 3), axis=2)
        return free * jnp.concatenate([moves.ravel(), shifts[3 * size :]])

    def clipped(parameters):
        return parameters.at[3 * size : 4 * size].set(jnp.clip(parameters[3 * size : 4 * size], LEAST_U, MOST_U))

    def equations(parameters):
        return _normal_equations(parameters, unit, free, operations, reflections, weights)

    parameters = clipped(jnp.concatenate([unit.positions.ravel(), unit.u_iso, unit.occupancies, scale[None]]))
    parameters, sums = minimised(parameters, free, equations, allowed, clipped, cycles)
    unit, scale = _unpack(parameters, unit)
    return Fit(unit, scale, _calculate(unit, operations, reflections), sums[0], sums[2])


def minimised(
    parameters: Array,
    free: Array,
    equations: Callable[[Array], tuple[Array, Array, Array]],
    allowed: Callable[[Array], Array],
    clipped: Callable[[Array], Array],
    cycles: Numbers,
) -> tuple[Array, tuple[Array, Array, Array]]:
    """Parameters at a minimum of the misfit, and their equations, by the method of Levenberg and Marquardt.

    Args:
        parameters: `(n,)`, to begin with.
        free: `(n,)`, 0 for those that are fixed; else 1.
        equations: gives for parameters the normal matrix `(n, n)`, the gradient `(n,)` and the misfit.
        allowed: makes of shifts `(n,)` those that symmetry allows.
        clipped: makes of parameters those within their limits.
        cycles: the highest number of them.
    """

    def step(state):
        parameters, sums, damping, cycle, _ = state
        normal, gradient, misfit = sums
        widths = jnp.sqrt(jnp.diag(normal)) + jnp.finfo(jnp.float32).tiny
        widths = jnp.where(free * widths > 0, widths, 1)
        scaled = normal / widths[:, None] / widths[None] + jnp.diag(damping + jnp.where(free > 0, 0.0, 1.0))
        shifts = jnp.linalg.solve(scaled, gradient / widths) / widths
        trial = clipped(parameters + allowed(shifts))
        new = equations(trial)
        better = new[2] < misfit
        state = jax.tree.map(lambda new, old: jnp.where(better, new, old), (trial, new), (parameters, sums))
        damping = jnp.where(better, jnp.maximum(EASED * damping, LEAST_DAMPING), TIGHTENED * damping)
        converged = better & (misfit - new[2] < CONVERGED * misfit) | (damping > MOST_DAMPING)
        return *state, damping, cycle + 1, converged

    state = (parameters, equations(parameters), jnp.float32(FIRST_DAMPING), jnp.int32(0), jnp.bool_(False))
    parameters, sums, *_ = jax.lax.while_loop(lambda state: (state[3] < cycles) & ~state[4], step, state)
    return parameters, sums


def _unpack(parameters, unit):
    """Atoms and scale from the vector of parameters."""
    size = len(unit.occupancies)
    positions, u_iso, occupancies, scale = jnp.split(parameters, (3 * size, 4 * size, 5 * size))
    return AsymmetricUnit(positions.reshape(size, 3), u_iso, occupancies, unit.elements), scale[0]


def _calculate(unit, operations, reflections):
    """Fc of all reflections, `(chunks, 512)`; 0 in chunks of padding."""

    def one_chunk(chunk, values):
        part = reflections.hkl[chunk], reflections.table[chunk], reflections.spacings[chunk]
        return values.at[chunk].set(structure_factors(unit, operations, *part))

    values = jnp.zeros(reflections.spacings.shape, jnp.complex64)
    return jax.lax.fori_loop(0, jnp.sum(jnp.any(jnp.isfinite(reflections.sigmas), axis=1)), one_chunk, values)


def _fitting_scale(structure_factors, used, reflections):
    """The scale k for which k Σ |Fc| = Σ |Fo|."""
    observed = jnp.sqrt(jnp.maximum(reflections.intensities, 0))
    calculated = jnp.abs(structure_factors)
    return jnp.sum(jnp.where(used, observed, 0)) / jnp.sum(jnp.where(used, calculated, 0))


def _normal_equations(parameters, unit, free, operations, reflections, weights):
    """Normal matrix, gradient and misfit, summed over the chunks that are used."""
    unit, scale = _unpack(parameters, unit)
    size = len(unit.occupancies)

    def add_chunk(chunk, sums):
        normal, gradient, misfit = sums
        hkl, table, spacings = reflections.hkl[chunk], reflections.table[chunk], reflections.spacings[chunk]
        ones = atom_amplitudes(unit._replace(occupancies=jnp.ones(size)), table, spacings)
        real, imaginary, real_slope, imaginary_slope = atom_transforms(unit.positions, operations, hkl, True)
        amplitudes = unit.occupancies[None] * ones
        a, b = jnp.sum(amplitudes * real, 1)[:, None], jnp.sum(amplitudes * imaginary, 1)[:, None]
        along = a * real + b * imaginary
        slopes = 2 * scale**2 * amplitudes[..., None] * (a[..., None] * real_slope + b[..., None] * imaginary_slope)
        calculated = scale**2 * (a**2 + b**2)[:, 0]
        jacobian = jnp.concatenate(
            [
                slopes.reshape(len(spacings), 3 * size),
                -4 * math.pi**2 * scale**2 * spacings[:, None] ** 2 * amplitudes * along,
                2 * scale**2 * ones * along,
                2 / scale * calculated[:, None],
            ],
            axis=1,
        )
        weight = weights[chunk]
        jacobian = jacobian * free[None] * jnp.sqrt(weight)[:, None]
        residual = jnp.sqrt(weight) * (reflections.intensities[chunk] - calculated)
        return normal + jacobian.T @ jacobian, gradient + residual @ jacobian, misfit + jnp.sum(residual**2)

    zeros = jnp.zeros((len(parameters), len(parameters))), jnp.zeros(len(parameters)), jnp.float32(0)
    return jax.lax.fori_loop(0, reflections.used, add_chunk, zeros)
