"""The policy for matrix products: all that simulation and solver trace has it, networks keep their own choice."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal
from tiny import NETWORK, PROBLEM, tiny_config

from patterson_jax import precision
from patterson_jax.config import validate
from patterson_jax.networks.unrolled import UnrolledNet
from patterson_jax.simulation.examples import example_key, make_example, stream_key
from patterson_jax.simulation.patterson import atom_factors
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.attempt import finish_all, measure_all, propose_all, rebuild_all, refine_all
from patterson_jax.solving.interpretation import interpret_batch
from patterson_jax.solving.methods.registry import METHODS
from patterson_jax.solving.reflections import measure, r_factor, reflections
from patterson_jax.solving.verdict import EXACT

TF32, BFLOAT16 = 10, 7  # bits of mantissa
HIGHEST = (jax.lax.Precision.HIGHEST,) * 2
CALLS = ('jit', 'pjit', 'closed_call', 'custom_jvp_call')
KEY = example_key(stream_key(0, 'evaluation'), 0, 0)
SEPARATION = validate(tiny_config()).separate
MAPS = jax.ShapeDtypeStruct((PROBLEM.grid_size,) * 3, jnp.float32)


def products_of(function, *arguments, kind='dot_general'):
    """The precision of every product that a function traces, those inside of loops and branches too."""
    return list(_products(jax.make_jaxpr(function)(*arguments).jaxpr, kind))


def _products(jaxpr, kind):
    for equation in jaxpr.eqns:
        if equation.primitive.name == kind:
            yield equation.params['precision']
        for inner in _inner(equation):
            yield from _products(inner, kind)


def _inner(equation):
    for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
        if _is_program(value):
            yield getattr(value, 'jaxpr', value)


def _is_program(value):
    return hasattr(value, 'eqns') or hasattr(value, 'jaxpr')


@pytest.mark.parametrize('method', METHODS)
def test_every_product_of_an_attempt_is_exact(method):
    def run(maps, densities):
        measured = measure_all(maps, reflections(PROBLEM), PROBLEM.num_atoms, PROBLEM.atom_volume)
        proposal = propose_all(KEY[None], 1, measured, densities, METHODS[method], PROBLEM, SEPARATION)
        refined = refine_all(proposal.positions[:, 0], measured, proposal.stages)
        rebuilt, _ = rebuild_all(KEY[None], jnp.arange(3), refined.positions, measured, PROBLEM)
        return finish_all(rebuilt, measured, PROBLEM)

    several = jax.ShapeDtypeStruct((1, *MAPS.shape), MAPS.dtype)
    found = products_of(run, several, several)
    assert len(found) >= 10 and set(found) == {HIGHEST}


def test_cases_and_factors_have_no_product_that_is_not_exact():
    gradient = jax.grad(lambda positions: jnp.sum(jnp.abs(sum_of_atoms(positions, PROBLEM))))
    found = products_of(gradient, jnp.ones((2, 3)))
    assert len(found) >= 6 and set(found) == {HIGHEST}
    assert set(products_of(lambda: make_example(KEY, PROBLEM))) <= {HIGHEST}


def sum_of_atoms(positions, problem):
    hkl = reflections(problem).hkl
    factors = jax.vmap(lambda each: atom_factors(each, hkl, problem.grid_size, problem.atom_radius))(positions)
    return jnp.sum(factors, axis=0)


def test_a_network_keeps_its_own_choice_where_the_solver_calls_it():
    inputs = jnp.zeros((1,) + (PROBLEM.grid_size,) * 3)
    params = jax.eval_shape(NETWORK.init, jax.random.key(0), inputs)

    def run(params, keys, pattersons):
        def predict(maps):
            image = maps @ jnp.eye(PROBLEM.grid_size)[None, None]  # a product without a choice of its own
            return NETWORK.apply(params, image)

        return interpret_batch(keys, pattersons, predict, PROBLEM, SEPARATION)

    found = products_of(run, params, KEY[None], jax.ShapeDtypeStruct(inputs.shape, jnp.float32))
    assert found.count(None) == 1
    assert found.count(HIGHEST) > 1


UNROLLED = UnrolledNet(features=4, kernel_size=3, stages=2, input_size=12, output_size=8)


@pytest.mark.parametrize('method', ['direct', 'spectral'])
@pytest.mark.parametrize('network', [NETWORK, UNROLLED], ids=['paper', 'unrolled'])
@pytest.mark.parametrize(('choice', 'products'), [('float32', 'HIGHEST'), ('tf32', 'HIGH'), ('bfloat16', 'DEFAULT')])
def test_a_network_has_the_precision_that_it_names_in_value_and_gradients(network, method, choice, products):
    network = dataclasses.replace(network, convolution=method, precision=choice)
    inputs = jax.ShapeDtypeStruct((2, *MAPS.shape), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), inputs)

    def loss(params, inputs):
        return jnp.sum(network.apply(params, inputs) ** 2)

    kinds = {'direct': 'conv_general_dilated', 'spectral': 'dot_general'}
    found = products_of(jax.grad(loss), params, inputs, kind=kinds[method])
    expected = (jax.lax.Precision[products],) * 2
    with_transforms = {HIGHEST} if method == 'spectral' and isinstance(network, UnrolledNet) else set()
    assert set(found) == {expected} | with_transforms


def test_the_policy_does_not_reach_beyond_what_it_decorates():
    plain = functools.partial(jnp.matmul, jnp.ones((2, 2)))
    assert products_of(precision.exact_products(plain), jnp.ones((2, 2))) == [HIGHEST]
    assert products_of(plain, jnp.ones((2, 2))) == [None]


@pytest.mark.parametrize(
    ('policy', 'bits', 'least', 'most'),
    [('highest', BFLOAT16, 0, 1e-6), ('default', TF32, 1e-4, EXACT), ('default', BFLOAT16, EXACT, 1e-2)],
)
def test_on_an_accelerator_only_the_policy_keeps_the_truth_exact(monkeypatch, policy, bits, least, most):
    """R1 of true positions where factors of products are rounded, unless the policy forbids it."""
    monkeypatch.setattr(precision, 'MATRIX_PRECISION', policy)
    problem = Problem()

    def r_factor_at_truth():
        example = make_example(KEY, problem)
        program = jax.make_jaxpr(lambda positions: jnp.abs(sum_of_atoms(positions, problem)))(example.positions)
        data = measure(example.patterson, reflections(problem), problem.num_atoms, problem.atom_volume)
        used = np.arange(len(data.observed)) < data.reflections.number
        return r_factor(data.observed, on_accelerator(program, bits, example.positions), where=used)

    assert least <= float(jax.jit(r_factor_at_truth)()) <= most


def on_accelerator(program, bits, *arguments):
    """Evaluates a traced program as an accelerator does, which rounds the factors of products if it may."""
    values = dict(zip(program.jaxpr.invars, arguments, strict=True))
    values |= dict(zip(program.jaxpr.constvars, program.consts, strict=True))

    def value_of(name):
        return name.val if isinstance(name, Literal) else values[name]

    for equation in program.jaxpr.eqns:
        inputs = [value_of(each) for each in equation.invars]
        inner = next((equation.params[name] for name in ('jaxpr', 'call_jaxpr') if name in equation.params), None)
        if inner is None:
            assert not list(_inner(equation)), equation
            if equation.primitive.name == 'dot_general' and equation.params['precision'] != HIGHEST:
                inputs = [with_mantissa(each, bits) for each in inputs]
            outputs = equation.primitive.bind(*inputs, **equation.params)
        else:
            assert equation.primitive.name in CALLS, equation
            outputs = on_accelerator(inner, bits, *inputs)
        outputs = outputs if equation.primitive.multiple_results else [outputs]
        outputs = [outputs] if inner is not None and len(equation.outvars) == 1 else outputs
        values |= dict(zip(equation.outvars, outputs, strict=True))
    results = [value_of(each) for each in program.jaxpr.outvars]
    return results[0] if len(results) == 1 else results


def with_mantissa(values, bits):
    """Rounds float32, or the parts of complex64, to so many bits of mantissa."""
    if jnp.iscomplexobj(values):
        return jax.lax.complex(with_mantissa(values.real, bits), with_mantissa(values.imag, bits))
    return jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=bits)


def test_rounding_keeps_the_bits():
    exact = np.float32([1, 1 + 2**-10, 1 + 2**-12, -3.14159])
    np.testing.assert_array_equal(with_mantissa(exact, TF32), [1, 1 + 2**-10, 1, -3.140625])
    np.testing.assert_array_equal(with_mantissa(exact[2:3] + 1j * exact[:1], BFLOAT16), [1 + 1j])
