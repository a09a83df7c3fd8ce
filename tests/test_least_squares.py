"""Least squares: derivatives by differentiation, amplitudes from transforms, positions against the truth."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from patterson_jax.simulation.density import render
from patterson_jax.simulation.patterson import frequencies, patterson_map, sphere_factor
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.atom_sets import compact, same_atoms
from patterson_jax.solving.least_squares import (
    Stages,
    finish,
    minimise_spheres,
    random_positions,
    refine,
    stages_from_map,
    stages_from_random,
    voxel_amplitudes,
    with_falloff,
)
from patterson_jax.solving.reflections import Measured, measure, reflections
from tests.sets_of_atoms import (
    LARGER,
    PROBLEM,
    amplitudes_of_spheres,
    count_within,
    displaced,
    largest_error,
    sphere_model,
    spheres,
    true_sets,
    used,
    with_amplitudes,
)

NUM_SETS = 6  # always so many at once, so that little is compiled
MAPS = Measured(patterson=0, observed=0, reflections=None, num_atoms=None)

draw = jax.jit(render, static_argnums=(1, 2))
measure_one = jax.jit(measure, static_argnums=3)
same = jax.jit(same_atoms)


def refine_whole(positions, data, problem):
    return refine(positions, data, stages_from_random(data, problem))


refine_many = jax.jit(jax.vmap(refine_whole, in_axes=(0, MAPS, None)), static_argnums=2)
finish_many = jax.jit(jax.vmap(finish, in_axes=(0, MAPS, None)), static_argnums=2)


def measured(sets, problem):
    """What is known of the maps of several sets."""
    maps = [patterson_map(draw(atoms, problem.grid_size, problem.atom_radius)) for atoms in sets]
    data = [measure_one(each, reflections(problem), problem.num_atoms, problem.atom_volume) for each in maps]
    return data[0].replace(
        **{name: np.stack([getattr(each, name) for each in data]) for name in ('patterson', 'observed')}
    )


def voxel_model(positions, problem):
    return voxel_amplitudes(positions, reflections(problem), problem.num_atoms, problem.atom_radius)


MODELS = pytest.mark.parametrize('model', [sphere_model, voxel_model])


@MODELS
def test_derivatives_are_those_of_the_amplitudes(model):
    atoms = displaced(true_sets(PROBLEM, 1)[0], 0.5)
    model = jax.jit(functools.partial(model, problem=PROBLEM))
    values, slopes = model(atoms)
    automatic = jax.jit(jax.jacfwd(lambda each: model(each)[0]))(atoms)
    assert slopes.shape == (len(reflections(PROBLEM).hkl), 3, 3)
    scale = np.max(np.abs(automatic))
    np.testing.assert_allclose(slopes, automatic, atol=1e-4 * scale)
    step = np.random.default_rng(0).normal(0, 0.01, atoms.shape).astype(np.float32)
    change = (model(atoms + step)[0] - model(atoms - step)[0]) / 2
    strong = values > 0.1  # where the amplitude is near 0 it bends
    expected = np.einsum('rad,ad->r', slopes, step)
    np.testing.assert_allclose(change[strong], expected[strong], atol=0.02 * np.max(np.abs(expected)))


def test_a_falloff_multiplies_amplitudes_and_has_the_right_derivatives():
    atoms = displaced(true_sets(PROBLEM, 1)[0], 0.5)
    squared = np.sum((reflections(PROBLEM).hkl / np.float32(16)) ** 2, axis=-1)

    @jax.jit
    def model(parameters):
        values, slopes = sphere_model(parameters[:-2].reshape(3, 3), PROBLEM)
        return with_falloff(parameters[-2:], values, slopes.reshape(len(values), 9), squared)

    automatic_slopes = jax.jit(jax.jacfwd(lambda parameters: model(parameters)[0]))
    for k, falloff in ((0.0, 0.0), (0.3, 1.5), (-0.2, -0.4)):
        parameters = jnp.append(atoms.ravel(), jnp.array([k, falloff]))
        values, slopes = model(parameters)
        factor = np.exp(k - falloff * squared)
        np.testing.assert_allclose(values, factor * amplitudes_of_spheres(atoms, PROBLEM), rtol=1e-4, atol=1e-5)
        automatic = automatic_slopes(parameters)
        np.testing.assert_allclose(slopes, automatic, atol=1e-4 * np.max(np.abs(automatic)))


@pytest.mark.parametrize('radius', [1.0, 1.6])
def test_amplitudes_of_voxels_are_those_of_the_rendered_density(radius):
    problem = Problem(grid_size=16, num_atoms=3, box_edge=6.0, atom_radius=radius)
    atoms = displaced(true_sets(problem, 1)[0], 0.5)
    spectrum = np.abs(np.fft.fftn(np.asarray(draw(atoms, 16, radius), np.float64)))
    values, _ = jax.jit(functools.partial(voxel_model, problem=problem))(atoms)
    expected = spectrum[tuple(reflections(problem).hkl.T)]
    np.testing.assert_allclose(values, np.sqrt(expected**2 + 1e-6), atol=1e-5 * spectrum.max())


@pytest.mark.parametrize('radius', [1.0, 2.0])
def test_the_form_factor_of_a_sphere_is_that_of_rendered_atoms_on_average_over_places(radius):
    problem = Problem(grid_size=16, num_atoms=1, box_edge=6.0, atom_radius=radius)
    fractions = (np.arange(6) + 0.5) / 6  # of a voxel: on average only every sixth order is folded back
    places = np.array(list(itertools.product(fractions, repeat=3)), np.float32)
    density = jax.jit(jax.vmap(lambda place: render(place[None], 16, radius)))(places)
    hkl = frequencies(16)
    from_centre = 8 + places - 0.5  # a voxel's value belongs to its centre, and the transform counts from there
    about_atom = np.exp(2j * np.pi / 16 * np.einsum('hkld,pd->phkl', hkl, from_centre))
    average = np.mean(np.fft.rfftn(np.asarray(density, np.float64), axes=(1, 2, 3)) * about_atom, axis=0)
    factor = sphere_factor(hkl, 16, radius)
    np.testing.assert_allclose(average, factor, atol=1e-3 * problem.atom_volume)
    assert factor[0, 0, 0] == pytest.approx(problem.atom_volume)


def test_minimising_never_raises_the_misfit(refined_small):
    data = measured(true_sets(PROBLEM, 1), PROBLEM)
    starts = np.random.default_rng(0).uniform(-3, 3, (8, 3, 3)).astype(np.float32)
    misfits = np.array([[refined_small(each, data.observed[0], steps).misfit for each in starts] for steps in (1, 12)])
    assert np.all(np.diff(misfits, axis=0) <= 1e-6 * misfits[0])
    assert np.all(misfits[1:].mean(axis=1) < 0.95 * misfits[:-1].mean(axis=1))


@pytest.fixture(scope='module')
def refined_small():
    """Minimises on the amplitudes up to |h| = 6 that it is given."""
    count = count_within(PROBLEM, 6.0)
    run = jax.jit(minimise_spheres)
    return lambda start, observed, steps=15: run(start, with_amplitudes(observed, PROBLEM), count, steps)


def test_free_reflections_have_no_influence_and_others_have(refined_small):
    true = true_sets(PROBLEM, 1)[0]
    observed, free = spheres(true, PROBLEM), reflections(PROBLEM).free
    # The weights have the mean over all of them, so that the free ones are changed in place.
    shuffled = observed.copy()
    count = count_within(PROBLEM, 6.0)
    there = np.flatnonzero(free[:count])
    assert len(there) > 10
    shuffled[there] = np.roll(observed[there], 1)
    start = displaced(true, 0.4)
    before, after = refined_small(start, observed), refined_small(start, shuffled)
    np.testing.assert_allclose(after.positions, before.positions, atol=1e-5)
    working = np.flatnonzero(~free[:count])[: len(there)]
    shuffled[working] = np.roll(observed[working], 1)
    assert largest_error(refined_small(start, shuffled).positions, true) > 0.01


def test_the_misfit_is_the_weighted_squared_error_of_the_working_reflections(refined_small):
    true = true_sets(PROBLEM, 1)[0]
    count = count_within(PROBLEM, 6.0)
    observed = spheres(true, PROBLEM) * np.random.default_rng(1).normal(1, 0.1, len(used(PROBLEM)))
    observed = np.abs(observed).astype(np.float32)
    result = refined_small(displaced(true, 0.1), observed)
    working, there = ~reflections(PROBLEM).free[:count], observed[:count]
    weights = working / (there**2 + np.mean(there**2))
    errors = spheres(result.positions, PROBLEM)[:count] - there
    np.testing.assert_allclose(result.misfit, np.sum(weights * errors**2) / np.sum(weights * there**2), rtol=1e-3)


def test_positions_that_are_exact_stay_where_they_are(refined_small):
    true = true_sets(PROBLEM, 1)[0]
    result = refined_small(true, spheres(true, PROBLEM))
    np.testing.assert_allclose(result.positions, true, atol=1e-5)
    assert result.misfit < 1e-9


@pytest.mark.parametrize('problem', [PROBLEM, LARGER])
def test_refinement_from_displaced_atoms_comes_back_to_the_truth(problem):
    sets = true_sets(problem, NUM_SETS)
    data = with_amplitudes([spheres(atoms, problem) for atoms in sets], problem)
    result = refine_many(displaced(sets, 0.6), data, problem)
    errors = np.array([largest_error(*pair) for pair in zip(result.positions, sets, strict=True)])
    assert np.sum(errors < 1e-3) >= NUM_SETS - 1
    assert np.all((result.misfit < 1e-6) == (errors < 1e-3))
    np.testing.assert_allclose(np.mean(result.positions, axis=1), 0, atol=1e-5)


def test_random_starts_find_the_atoms_and_lie_in_the_inner_box():
    sets = true_sets(PROBLEM, 1)
    starts = jax.vmap(lambda key: random_positions(key, PROBLEM))(jax.random.split(jax.random.key(0), NUM_SETS))
    assert np.max(np.abs(starts)) <= 3
    assert len(np.unique(starts)) == starts.size
    result = refine_many(starts, measured(np.repeat(sets, NUM_SETS, axis=0), PROBLEM), PROBLEM)
    errors = [largest_error(positions, sets[0]) for positions in result.positions]
    assert sum(error < 0.1 for error in errors) >= 2
    assert largest_error(result.positions[np.argmin(result.misfit)], sets[0]) < 0.1


@pytest.mark.parametrize('problem', [PROBLEM, LARGER])
def test_the_exact_finish_ends_at_the_truth(problem):
    sets = true_sets(problem, NUM_SETS)
    observed = measured(sets, problem)
    refined = refine_many(displaced(sets, 0.3), observed, problem).positions
    assert max(largest_error(*pair) for pair in zip(refined, sets, strict=True)) > 0.003  # spheres are not exact
    finished = finish_many(refined, observed, problem)
    for found, true in zip(finished.positions, sets, strict=True):
        sign = 1 if np.abs(found - true).max() < np.abs(found + true).max() else -1
        assert largest_error(found, true) < 1e-3
        np.testing.assert_allclose(np.mean(sign * found, axis=0), 0, atol=2e-3)  # voxels fix the place as well
    assert np.all(finished.r_factor < 1e-3)
    assert np.all(finished.r_free < 1e-3)


def test_the_finish_takes_isolated_spheres_where_they_explain_more():
    sets = true_sets(PROBLEM, NUM_SETS)
    data = with_amplitudes([spheres(atoms, PROBLEM) for atoms in sets], PROBLEM)  # from no voxels
    finished = finish_many(displaced(sets, 0.05), data, PROBLEM)
    assert max(largest_error(*pair) for pair in zip(finished.positions, sets, strict=True)) < 2e-3
    assert np.all(finished.r_factor < 0.01)


def test_the_finish_scales_atoms_of_another_size_and_does_not_move_them():
    sets = true_sets(LARGER, NUM_SETS)
    wider = Problem(grid_size=24, num_atoms=5, box_edge=8.0, atom_radius=1.3)
    scale = np.float32(LARGER.atom_volume / wider.atom_volume)
    observed = scale * np.asarray(measured(sets, wider).observed)
    finished = finish_many(displaced(sets, 0.05), with_amplitudes(observed, LARGER), LARGER)
    assert max(largest_error(*pair) for pair in zip(finished.positions, sets, strict=True)) < 0.1
    calculated = np.array([spheres(atoms, LARGER) for atoms in finished.positions])
    factor = np.sum(observed * calculated) / np.sum(calculated**2)
    without = np.sum(np.abs(observed - factor * calculated)) / np.sum(observed)
    assert np.all(finished.r_factor < 0.6 * without)
    np.testing.assert_allclose(finished.r_free, finished.r_factor, atol=0.05)


def test_wrong_atoms_have_a_high_r_factor():
    observed = measured(true_sets(LARGER, NUM_SETS), LARGER)
    finished = finish_many(true_sets(LARGER, NUM_SETS, seed=5), observed, LARGER)
    assert np.all(finished.r_factor > 0.15)
    assert np.all(finished.r_free > 0.15)


def test_compact_atoms_are_brought_together_about_zero():
    sets = true_sets(LARGER, 4)
    rng = np.random.default_rng(2)
    for atoms in sets:
        shift = rng.uniform(-40, 40, (1, 3))
        wraps = 24 * rng.integers(-2, 3, atoms.shape)
        moved = jax.jit(compact, static_argnums=1)((atoms + shift + wraps).astype(np.float32), 24)
        np.testing.assert_allclose(moved, atoms, atol=1e-4)
    alone = jax.jit(compact, static_argnums=1)(np.array([[100.5, -7, 3]], np.float32), 24)
    np.testing.assert_allclose(alone, 0, atol=1e-5)


def test_the_same_atoms_in_any_order_and_their_inverse_are_the_same_and_one_moved_is_not():
    atoms = true_sets(LARGER, 1)[0]
    order = np.array([3, 0, 4, 1, 2])
    for sign in (1, -1):
        other = sign * atoms[order]
        assert same(atoms, other, 0.5)
        assert same(atoms, displaced(other, 0.4), 0.5)
        assert not same(atoms, displaced(other, 0.6), 0.5)
        for moved in range(5):
            for first, second in ((0, 1), (1, 0)):
                pair = [atoms, other.copy()]
                pair[1][moved, 1] += 0.8
                assert not same(pair[first], pair[second], 0.5)
    doubled = atoms.copy()
    doubled[0] = atoms[1]  # each of these is an atom, but one is missing
    assert not same(atoms, doubled, 0.5)
    assert not same(doubled, atoms, 0.5)


SIZES = [
    Problem(grid_size=8, num_atoms=1, box_edge=3.0),
    Problem(grid_size=8, num_atoms=2, box_edge=5.0),
    Problem(grid_size=12, num_atoms=2, box_edge=6.0),
    Problem(grid_size=16, num_atoms=1, box_edge=6.0),
    PROBLEM,
    LARGER,
    Problem(),
    Problem(num_atoms=2),
    Problem(num_atoms=40, box_edge=19.5),
    Problem.of(num_atoms=40, box_edge=19.5, resolution=4.0),
    Problem.of(resolution=1.0),
    Problem.of(resolution=1.5),
    Problem.of(resolution=3.05),
    Problem.of(resolution=5.0),
    Problem.of(resolution=100.0),
]


def no_map(problem):
    return with_amplitudes(np.zeros(len(used(problem))), problem)


@pytest.mark.parametrize('problem', SIZES, ids=str)
def test_stages_rise_within_the_resolution_and_the_first_has_two_reflections_for_each_atom(problem):
    counts, iterations = stages_from_random(no_map(problem), problem)
    squared = np.sum(reflections(problem).hkl ** 2, axis=-1)[used(problem)]
    assert len(counts) == len(iterations) == 3
    assert np.all(np.diff(counts) >= 0)
    assert counts[0] >= min(2 * problem.num_atoms, len(squared))
    assert counts[0] >= np.sum(squared <= (0.92 * problem.grid_size / problem.box_edge) ** 2)
    for first, second in itertools.pairwise(counts):
        # 1.6 times as far, as far as there are data; a first that was moved out ends with its last reflection
        assert second == len(squared) or squared[second] > 1.6**2 * squared[first - 1]
    for count in counts:
        assert count == len(squared) or squared[count] > squared[count - 1]


def test_next_to_no_data_gives_numbers():
    problem = Problem.of(grid_size=8, num_atoms=1, box_edge=3.0, resolution=1.0)
    assert reflections(problem).number == 3
    atoms = np.array([[(1.3, 0.4, -0.2)]], np.float32)
    data = measured(atoms, problem)
    refined = refine_many(displaced(atoms, 0.3), data, problem)
    finished = finish_many(refined.positions, data, problem)
    for each in (*refined, finished.positions, finished.r_factor):  # none is free
        assert np.all(np.isfinite(each))
    assert refined.misfit < 1e-3


@pytest.mark.parametrize('problem', SIZES, ids=str)
def test_sets_from_maps_are_refined_at_waves_of_four_voxels_or_where_the_data_end(problem):
    stages = stages_from_map(no_map(problem), problem)
    np.testing.assert_array_equal(stages.counts, count_within(problem, problem.grid_size / 4))
    np.testing.assert_array_equal(stages.iterations, [20, 0])


def test_a_stage_without_more_reflections_has_no_steps():
    problem = Problem.of(grid_size=12, num_atoms=2, box_edge=6.0, resolution=1.5)
    atoms = np.array([(1.5, 0.5, 1), (-1.5, -0.5, -1)], np.float32)
    data = with_amplitudes(spheres(atoms, problem), problem)
    stages = stages_from_random(data, problem)
    np.testing.assert_array_equal(stages.counts, reflections(problem).number)
    whole, once = jax.jit(refine), Stages(*(each[:1] for each in stages))
    start = displaced(atoms, 0.4)
    np.testing.assert_allclose(whole(start, data, stages).positions, whole(start, data, once).positions, atol=1e-6)
    result = whole(start, data, once)
    assert largest_error(result.positions, atoms) < 0.01
    distorted = spheres(atoms, problem) * np.linspace(0.5, 2, len(used(problem)))
    assert whole(start, with_amplitudes(distorted, problem), once).misfit > result.misfit


def test_places_that_are_not_taken_change_nothing():
    """Also where the positions in these are anything, as those of random starts."""
    sets = true_sets(LARGER, NUM_SETS)
    data = measured(sets, LARGER)
    near = displaced(sets, 0.3)
    anything = np.random.default_rng(0).uniform(-4, 4, (NUM_SETS, 2, 3)).astype(np.float32)
    for run, start in ((refine_many, near), (finish_many, near)):
        expected = run(start, data, LARGER)
        found = run(np.concatenate([start, anything], axis=1), data, LARGER)
        np.testing.assert_allclose(found.positions[:, :5], expected.positions, atol=2e-3)
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-2, atol=1e-6)
        if run is not finish_many:
            np.testing.assert_array_equal(found.positions[:, 5:], np.repeat(found.positions[:, :1], 2, axis=1))


def test_atoms_on_top_of_each_other_and_wrong_ones_give_numbers():
    true = true_sets(LARGER, 1)
    data = measured(np.repeat(true, NUM_SETS, axis=0), LARGER)
    starts = np.concatenate([true_sets(LARGER, 3, seed=9), np.zeros_like(true), np.ones_like(true), true])
    starts[-1, 1] = starts[-1, 0]
    for each in (*refine_many(starts, data, LARGER), *finish_many(starts, data, LARGER)):
        assert np.all(np.isfinite(each))


def test_maps_of_any_scale_lead_to_the_same_atoms():
    atoms = true_sets(PROBLEM, 1)[0]
    patterson = patterson_map(draw(atoms, 16, 1.0))
    scaled = [
        measure_one(patterson * 10.0**power, reflections(PROBLEM), 3, PROBLEM.atom_volume) for power in range(NUM_SETS)
    ]
    data = with_amplitudes([each.observed for each in scaled], PROBLEM)
    positions = refine_many(np.repeat(displaced(atoms, 0.4)[None], NUM_SETS, axis=0), data, PROBLEM).positions
    np.testing.assert_allclose(positions, np.repeat(positions[:1], NUM_SETS, axis=0), atol=1e-4)
