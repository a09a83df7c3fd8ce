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
    finish,
    highest_point,
    minimise,
    move_worst_atom,
    random_positions,
    refine,
    repair,
    sphere_amplitudes,
    stages_from_map,
    stages_from_random,
    voxel_amplitudes,
    with_falloff,
)
from patterson_jax.solving.reflections import (
    absolute_scale,
    count_within,
    free_reflections,
    observed_amplitudes,
    reflections,
)

PROBLEM = Problem(grid_size=16, num_atoms=3, box_edge=6.0)
LARGER = Problem(grid_size=24, num_atoms=5, box_edge=8.0)
NUM_SETS = 6  # always so many at once, so that little is compiled
MODELS = pytest.mark.parametrize('amplitudes_of', [sphere_amplitudes, voxel_amplitudes])

draw = jax.jit(render, static_argnums=(1, 2))
amplitudes = jax.jit(observed_amplitudes, static_argnums=1)
finish_many = jax.jit(jax.vmap(finish, in_axes=(0, 0, None)), static_argnums=2)
same = jax.jit(same_atoms)


def refine_whole(positions, observed, problem):
    return refine(positions, observed, problem, stages_from_random(problem))


def repair_last(positions, observed, problem, rounds):
    return repair(positions, observed, problem, rounds, stages_from_random(problem)[-1].resolution)


refine_many = jax.jit(jax.vmap(refine_whole, in_axes=(0, 0, None)), static_argnums=2)
repair_many = jax.jit(jax.vmap(repair_last, in_axes=(0, 0, None, None)), static_argnums=(2, 3))


def true_sets(problem, count, seed=0):
    """Atoms at least three voxels apart with mean zero, `(count, num_atoms, 3)`."""
    rng, half = np.random.default_rng(seed), problem.box_edge / 2

    def draw_one():
        while True:
            atoms = rng.uniform(-half, half, (problem.num_atoms, 3))
            pairs = itertools.combinations(atoms, 2)
            if all(np.linalg.norm(one - other) >= 3 for one, other in pairs):
                return atoms - np.mean(atoms, axis=0)

    return np.array([draw_one() for _ in range(count)], np.float32)


def displaced(atoms, distance, seed=0):
    """Each atom moved by that distance in a direction of its own."""
    moves = np.random.default_rng(seed).normal(size=atoms.shape)
    return (atoms + distance * moves / np.linalg.norm(moves, axis=-1, keepdims=True)).astype(np.float32)


def measured(sets, problem):
    """The amplitudes of the maps of several sets, `(count, num_reflections)`."""
    maps = [patterson_map(draw(atoms, problem.grid_size, problem.atom_radius)) for atoms in sets]
    return np.array([amplitudes(patterson, problem) for patterson in maps])


def largest_error(found, true):
    """Largest distance of an atom from its true place, of the better of the two enantiomorphs, both about zero."""
    found = np.asarray(found)
    found = found - np.mean(found, axis=0)
    distances = [np.linalg.norm(true[:, None] - sign * found[None], axis=-1) for sign in (1, -1)]
    return min(max(each.min(axis=0).max(), each.min(axis=1).max()) for each in distances)


def sphere_model(problem, count):
    return functools.partial(sphere_amplitudes, chosen=reflections(problem)[:count], problem=problem)


def spheres(atoms, problem):
    """The amplitudes of isolated spheres, `(num_reflections,)`: data that the model of the stages explains exactly."""
    return np.asarray(jax.jit(lambda each: sphere_amplitudes(each, reflections(problem), problem)[0])(atoms))


@MODELS
def test_derivatives_are_those_of_the_amplitudes(amplitudes_of):
    atoms = displaced(true_sets(PROBLEM, 1)[0], 0.5)
    model = functools.partial(amplitudes_of, chosen=reflections(PROBLEM), problem=PROBLEM)
    values, slopes = jax.jit(model)(atoms)
    automatic = jax.jit(jax.jacfwd(lambda each: model(each)[0]))(atoms)
    assert slopes.shape == (len(reflections(PROBLEM)), 3, 3)
    scale = np.max(np.abs(automatic))
    np.testing.assert_allclose(slopes, automatic, atol=1e-4 * scale)
    step = np.random.default_rng(0).normal(0, 0.01, atoms.shape).astype(np.float32)
    change = (jax.jit(model)(atoms + step)[0] - jax.jit(model)(atoms - step)[0]) / 2
    strong = values > 0.1  # where the amplitude is near 0 it bends
    expected = np.einsum('rad,ad->r', slopes, step)
    np.testing.assert_allclose(change[strong], expected[strong], atol=0.02 * np.max(np.abs(expected)))


def test_a_falloff_multiplies_amplitudes_and_has_the_right_derivatives():
    chosen = reflections(PROBLEM)
    atoms = displaced(true_sets(PROBLEM, 1)[0], 0.5)

    @jax.jit
    def model(parameters):
        values, slopes = sphere_amplitudes(parameters[:-2].reshape(3, 3), chosen, PROBLEM)
        return with_falloff(parameters[-2:], values, slopes.reshape(len(chosen), 9), chosen, PROBLEM)

    automatic_slopes = jax.jit(jax.jacfwd(lambda parameters: model(parameters)[0]))
    for k, falloff in ((0.0, 0.0), (0.3, 1.5), (-0.2, -0.4)):
        parameters = jnp.append(atoms.ravel(), jnp.array([k, falloff]))
        values, slopes = model(parameters)
        factor = np.exp(k - falloff * np.sum((chosen / 16) ** 2, axis=-1))
        np.testing.assert_allclose(values, factor * spheres(atoms, PROBLEM), rtol=1e-4, atol=1e-5)
        automatic = automatic_slopes(parameters)
        np.testing.assert_allclose(slopes, automatic, atol=1e-4 * np.max(np.abs(automatic)))


@pytest.mark.parametrize('radius', [1.0, 1.6])
def test_amplitudes_of_voxels_are_those_of_the_rendered_density(radius):
    problem = Problem(grid_size=16, num_atoms=3, box_edge=6.0, atom_radius=radius)
    atoms = displaced(true_sets(problem, 1)[0], 0.5)
    spectrum = np.abs(np.fft.fftn(np.asarray(draw(atoms, 16, radius), np.float64)))
    values, _ = jax.jit(lambda each: voxel_amplitudes(each, reflections(problem), problem))(atoms)
    expected = spectrum[tuple(reflections(problem).T)]
    np.testing.assert_allclose(values, np.sqrt(expected**2 + 1e-6), atol=1e-5 * spectrum.max())


@pytest.mark.parametrize('radius', [1.0, 2.0])
def test_the_form_factor_of_a_sphere_is_that_of_rendered_atoms_on_average_over_places(radius):
    problem = Problem(grid_size=16, num_atoms=1, box_edge=6.0, atom_radius=radius)
    fractions = (np.arange(6) + 0.5) / 6  # of a voxel: on average only every sixth order is folded back
    places = np.array(list(itertools.product(fractions, repeat=3)), np.float32)
    density = jax.jit(jax.vmap(lambda place: render(place[None], 16, radius)))(places)
    chosen = frequencies(16)
    from_centre = 8 + places - 0.5  # a voxel's value belongs to its centre, and the transform counts from there
    about_atom = np.exp(2j * np.pi / 16 * np.einsum('hkld,pd->phkl', chosen, from_centre))
    average = np.mean(np.fft.rfftn(np.asarray(density, np.float64), axes=(1, 2, 3)) * about_atom, axis=0)
    np.testing.assert_allclose(average, sphere_factor(chosen, problem), atol=1e-3 * problem.atom_volume)
    assert sphere_factor(chosen, problem)[0, 0, 0] == pytest.approx(problem.atom_volume)


@MODELS
def test_minimising_never_raises_the_misfit(amplitudes_of):
    observed = measured(true_sets(PROBLEM, 1), PROBLEM)[0]
    count = count_within(PROBLEM, 6.0)
    model = functools.partial(amplitudes_of, chosen=reflections(PROBLEM)[:count], problem=PROBLEM)
    starts = np.random.default_rng(0).uniform(-3, 3, (8, 3, 3)).astype(np.float32)

    def misfit_after(number, start):
        return minimise(model, start, observed, PROBLEM, count, number).misfit

    misfits = np.array([jax.jit(jax.vmap(functools.partial(misfit_after, number)))(starts) for number in (1, 12)])
    assert np.all(np.diff(misfits, axis=0) <= 1e-6 * misfits[0])
    assert np.all(misfits[1:].mean(axis=1) < 0.95 * misfits[:-1].mean(axis=1))


@pytest.fixture(scope='module')
def refined_small():
    """Minimises on the amplitudes up to |h| = 6 that it is given."""
    count = count_within(PROBLEM, 6.0)
    return jax.jit(lambda start, observed: minimise(sphere_model(PROBLEM, count), start, observed, PROBLEM, count, 15))


def test_free_reflections_have_no_influence_and_others_have(refined_small):
    true = true_sets(PROBLEM, 1)[0]
    observed, free = spheres(true, PROBLEM), free_reflections(PROBLEM)
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
    observed = spheres(true, PROBLEM) * np.random.default_rng(1).normal(1, 0.1, len(reflections(PROBLEM)))
    observed = np.abs(observed).astype(np.float32)
    result = refined_small(displaced(true, 0.1), observed)
    working, there = ~free_reflections(PROBLEM)[:count], observed[:count]
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
    observed = np.array([spheres(atoms, problem) for atoms in sets])
    result = refine_many(displaced(sets, 0.6), observed, problem)
    errors = np.array([largest_error(*pair) for pair in zip(result.positions, sets, strict=True)])
    assert np.sum(errors < 1e-3) >= NUM_SETS - 1
    assert np.all((result.misfit < 1e-6) == (errors < 1e-3))
    np.testing.assert_allclose(np.mean(result.positions, axis=1), 0, atol=1e-5)


def test_random_starts_find_the_atoms_and_lie_in_the_inner_box():
    sets = true_sets(PROBLEM, 1)
    starts = jax.vmap(lambda key: random_positions(key, PROBLEM))(jax.random.split(jax.random.key(0), NUM_SETS))
    assert np.max(np.abs(starts)) <= 3
    assert len(np.unique(starts)) == starts.size
    result = refine_many(starts, np.repeat(measured(sets, PROBLEM), NUM_SETS, axis=0), PROBLEM)
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
    observed = np.array([spheres(atoms, PROBLEM) for atoms in sets])  # from no voxels
    finished = finish_many(displaced(sets, 0.05), observed, PROBLEM)
    assert max(largest_error(*pair) for pair in zip(finished.positions, sets, strict=True)) < 2e-3
    assert np.all(finished.r_factor < 0.01)


def test_the_finish_scales_atoms_of_another_size_and_does_not_move_them():
    sets = true_sets(LARGER, NUM_SETS)
    wider = Problem(grid_size=24, num_atoms=5, box_edge=8.0, atom_radius=1.3)
    scale = np.float32((LARGER.atom_volume / wider.atom_volume) ** 2)
    maps = [scale * patterson_map(draw(atoms, 24, 1.3)) for atoms in sets]
    observed = np.array([amplitudes(patterson, LARGER) for patterson in maps])
    finished = finish_many(displaced(sets, 0.05), observed, LARGER)
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


def lost_one(sets, seed=0):
    """Each set with one atom put at a random place, at least 2 voxels off."""
    rng, spoilt = np.random.default_rng(seed), sets.copy()
    lost = rng.integers(sets.shape[1], size=len(sets))
    for atoms, which in zip(spoilt, lost, strict=True):
        place = atoms[which]
        while np.linalg.norm(place - atoms[which]) < 2:
            place = rng.uniform(-4, 4, 3)
        atoms[which] = place
    return spoilt, lost


def test_an_atom_that_is_lost_is_taken_out_and_put_back():
    sets = true_sets(LARGER, NUM_SETS)
    spoilt, lost = lost_one(sets)
    count = count_within(LARGER, stages_from_random(LARGER)[-1].resolution)
    chosen = reflections(LARGER)[:count]
    observed = np.array([spheres(atoms, LARGER)[:count] for atoms in sets])
    move = jax.jit(jax.vmap(lambda *given: move_worst_atom(*given, chosen, LARGER), in_axes=(0, None, 0)))
    moved = np.asarray(move(spoilt, 0, observed))
    changed = np.any(moved != spoilt, axis=-1)
    np.testing.assert_array_equal(np.sum(changed, axis=-1), 1)
    back = np.array([np.linalg.norm(moved[n, which] - sets[n, which]) < 1.2 for n, which in enumerate(lost)])
    assert np.sum(back) >= NUM_SETS - 1
    others = np.asarray(move(spoilt, 1, observed))
    assert np.all(np.argmax(changed, axis=-1) != np.argmax(np.any(others != spoilt, axis=-1), axis=-1))


def test_repair_brings_a_lost_atom_back():
    sets = true_sets(LARGER, NUM_SETS)
    spoilt, _ = lost_one(sets, seed=1)
    observed = np.array([spheres(atoms, LARGER) for atoms in sets])
    result = repair_many(spoilt, observed, LARGER, 4)
    errors = [largest_error(*pair) for pair in zip(result.positions, sets, strict=True)]
    assert sum(error < 0.01 for error in errors) >= NUM_SETS - 1
    np.testing.assert_allclose(np.mean(result.positions, axis=1), 0, atol=1e-5)
    whole = repair_many(sets, observed, LARGER, 4)
    assert np.all(whole.misfit <= result.misfit + 1e-9)
    np.testing.assert_allclose(whole.positions, sets, atol=1e-4)


@pytest.mark.parametrize('place', [(0, 0, 0), (3.1, -1.7, 2.4), (-4, 4, 4)])
def test_a_map_is_highest_where_its_only_atom_is(place):
    chosen = reflections(LARGER)[: count_within(LARGER, 7.0)]
    coefficients = np.exp(-2j * np.pi / 24 * (chosen @ np.array(place))).astype(np.complex64)
    found = jax.jit(lambda given: highest_point(given, chosen, LARGER))(coefficients)
    np.testing.assert_allclose(found, place, atol=24 / 21 / 2 + 0.01)


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
    Problem(num_atoms=40, box_edge=19.5, resolution=4.0),
    Problem(resolution=1.0),
    Problem(resolution=1.5),
    Problem(resolution=3.05),
    Problem(resolution=5.0),
    Problem(resolution=100.0),
]


@pytest.mark.parametrize('problem', SIZES, ids=str)
def test_stages_rise_within_the_resolution_and_each_adds_reflections(problem):
    stages = [each.resolution for each in stages_from_random(problem)]
    counts = [count_within(problem, each) for each in stages]
    assert 1 <= len(stages) <= 3
    assert counts[0] > 0
    assert np.all(np.diff(stages) > 0)
    assert np.all(np.diff(counts) > 0)
    assert stages[-1] <= min(problem.resolution or np.inf, problem.grid_size / 2)
    assert counts[0] >= 2 * problem.num_atoms or len(stages) == 1


def test_next_to_no_data_gives_numbers():
    problem = Problem(grid_size=8, num_atoms=1, box_edge=3.0, resolution=1.0)
    assert len(reflections(problem)) == 3
    atoms = np.array([[(1.3, 0.4, -0.2)]], np.float32)
    observed = measured(atoms, problem)
    refined = refine_many(displaced(atoms, 0.3), observed, problem)
    finished = finish_many(refined.positions, observed, problem)
    for each in (*refined, finished.positions, finished.r_factor):  # none is free
        assert np.all(np.isfinite(each))
    assert refined.misfit < 1e-3


@pytest.mark.parametrize('problem', SIZES, ids=str)
def test_sets_from_maps_are_refined_at_waves_of_four_voxels_or_where_the_data_end(problem):
    (stage,) = stages_from_map(problem)
    assert stage.resolution == min(problem.grid_size / 4, problem.resolution or np.inf)
    assert stage.iterations == 20


def test_refinement_where_there_is_one_stage_refines():
    problem = Problem(grid_size=12, num_atoms=2, box_edge=6.0, resolution=1.5)
    assert len(stages_from_random(problem)) == 1
    atoms = np.array([(1.5, 0.5, 1), (-1.5, -0.5, -1)], np.float32)
    later = jax.jit(lambda start, observed: refine(start, observed, problem, stages_from_random(problem)))
    result = later(displaced(atoms, 0.4), spheres(atoms, problem))
    assert largest_error(result.positions, atoms) < 0.01
    worse = later(displaced(atoms, 0.4), spheres(atoms, problem) * np.linspace(0.5, 2, 9, dtype=np.float32))
    assert worse.misfit > result.misfit


def test_atoms_on_top_of_each_other_and_wrong_ones_give_numbers():
    true = true_sets(LARGER, 1)
    observed = np.repeat(measured(true, LARGER), NUM_SETS, axis=0)
    starts = np.concatenate([true_sets(LARGER, 3, seed=9), np.zeros_like(true), np.ones_like(true), true])
    starts[-1, 1] = starts[-1, 0]
    repaired = repair_many(starts, observed, LARGER, 4)
    for each in (*refine_many(starts, observed, LARGER), *repaired, *finish_many(starts, observed, LARGER)):
        assert np.all(np.isfinite(each))
    assert largest_error(repaired.positions[-1], true[0]) < 0.1


def test_the_result_of_one_set_does_not_depend_on_the_others_beside_it():
    sets = true_sets(LARGER, NUM_SETS)
    observed = np.array([spheres(atoms, LARGER) for atoms in sets])
    spoilt, _ = lost_one(sets, seed=1)
    together = repair_many(spoilt, observed, LARGER, 4)
    backwards = repair_many(spoilt[::-1], observed[::-1], LARGER, 4)
    for first, second in zip(together, backwards, strict=True):
        np.testing.assert_allclose(second[::-1], first, atol=1e-5)


def test_amplitudes_of_any_scale_lead_to_the_same_atoms_once_on_the_absolute_scale():
    atoms = true_sets(PROBLEM, 1)[0]
    patterson = patterson_map(draw(atoms, 16, 1.0))
    scales = 10.0 ** np.arange(NUM_SETS)
    observed = np.array([amplitudes(absolute_scale(patterson * scale, PROBLEM), PROBLEM) for scale in scales])
    positions = refine_many(np.repeat(displaced(atoms, 0.4)[None], NUM_SETS, axis=0), observed, PROBLEM).positions
    np.testing.assert_allclose(positions, np.repeat(positions[:1], NUM_SETS, axis=0), atol=1e-4)
