"""Cosine and sine of phases against double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patterson_jax.crystal.waves import cosine_and_sine


@pytest.mark.parametrize('largest', [1, 60, 1e4])
def test_they_are_those_of_double_precision_to_the_last_bits(largest):
    phases = np.random.default_rng(0).uniform(-largest, largest, (100, 100)).astype(np.float32)
    exact = phases.astype(np.float64)
    for found, expected in zip(jax.jit(cosine_and_sine)(phases), (np.cos(exact), np.sin(exact)), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-7, rtol=0)


def test_at_and_beside_multiples_of_a_quarter_turn():
    quarters = np.arange(-9, 10)[:, None] * np.float32(np.pi / 2)
    phases = np.float32(quarters + np.array([-1e-6, 0, 1e-6, np.pi / 4]))
    cosine, sine = cosine_and_sine(jnp.asarray(phases))
    np.testing.assert_allclose(cosine, np.cos(phases.astype(np.float64)), atol=2e-7, rtol=0)
    np.testing.assert_allclose(sine, np.sin(phases.astype(np.float64)), atol=2e-7, rtol=0)
    np.testing.assert_array_equal(cosine_and_sine(jnp.zeros(1)), [[1], [0]])


def test_derivatives_are_those_of_cosine_and_sine():
    phases = jnp.linspace(-7, 7, 500)
    for each, expected in ((0, -jnp.sin(phases)), (1, jnp.cos(phases))):
        slopes = jax.vmap(jax.grad(lambda phase, each=each: cosine_and_sine(phase)[each]))(phases)
        np.testing.assert_allclose(slopes, expected, atol=3e-6)


def test_what_is_not_a_number_stays_so_and_other_types_are_left_to_xla():
    assert np.all(np.isnan(cosine_and_sine(jnp.asarray([np.nan, np.inf, -np.inf]))))
    halves = jnp.linspace(-3, 3, 50, dtype=jnp.bfloat16)
    for found, expected in zip(cosine_and_sine(halves), (jnp.cos(halves), jnp.sin(halves)), strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found, expected)
