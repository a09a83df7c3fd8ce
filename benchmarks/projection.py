"""Charge flipping finished classically and with the learned projection: the same starts, the same seconds.

    python -m benchmarks.projection --weights=RUN DIRECTORY…           # folders of crystals, as for benchmarks.crystals
    python -m benchmarks.projection --weights=RUN --invented=24        # and so many invented crystals

Each crystal is cut at each of `--resolutions`. Starts flip as in the solver's recipes, each to its end. From the same
end, a map is finished

- classical: as the solver does, by low-density elimination, averaging in the group that is found, and elimination;
- finer grid: the same with elimination on the grid of the network's maps;
- longer: the classical way after further elimination that takes the seconds of the network's passes in the next one;
- network first: the same after `PASSES` passes through the network;
- network: with passes through the network in place of elimination, as many as take its seconds (one at least);
- network, more: the same with `PASSES` passes each time.

A map is right if its correlation with the known one is above 0.8 at the best origin and hand, as in
benchmarks/crystals.py. It is recognised if the solver calls it promising. Seconds are those of a start, flipping
included, and the pace is that of right and recognised starts. p is that of a sign test of the starts against the
classical way; starts of one crystal are not independent, so that it is too low. Judges are compared on the maps that
the classical way finishes: the area under the curve, and how many right ones stand above all wrong ones.

Crystals with less than `LEAST_ATOMS` known atoms in the cell are left out. The invented ones come from
`simulation/invented_crystals.py`, from which the network has not learned. Written to `--output` after each crystal;
what is there already is not measured again.
"""

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft

from benchmarks.crystals import RIGHT_MAP, known_structure_factors, place, read_folder
from patterson_jax.errors import exit_on_errors
from patterson_jax.projection_weights import load_projection
from patterson_jax.simulation.invented_crystals import Recipe, anisotropic_structure_factors, invent
from patterson_jax.solving.charge_flipping import RECIPES, Search, eliminate, flip, random_density, superposed_density
from patterson_jax.solving.crystal_phasing import (
    ELIMINATION_CYCLES,
    NOISE_START,
    Crystal,
    PhasedMap,
    Slot,
    eliminated,
    finish,
    prepare_crystal,
)
from patterson_jax.solving.crystal_projection import (
    PASSES,
    CrystalProjection,
    Projection,
    projection_on,
    sharpened_by,
)
from patterson_jax.writing import markdown_table, write_json

LEAST_ATOMS = 15
CYCLES_AT_ONCE = 50
METHODS = ('classical', 'finer grid', 'longer', 'network first', 'network', 'network, more')
JUDGES = {  # each the larger the better
    'promising, then jump (today)': lambda start: (start['classical']['promising'], start['classical']['jump']),
    'jump of the skewness': lambda start: start['classical']['jump'],
    'amplitudes after elimination': lambda start: -start['classical']['disagreement'],
    'phases that the network keeps': lambda start: start['judged']['kept'],
    'amplitudes of the network': lambda start: -start['judged']['disagreement'],
}
INVENTED = (('P-1', 16), ('P21/c', 10), ('P21', 14), ('P212121', 10))  # groups and atoms of a molecule, in turn
FIRST_SEED = 50_000


@dataclasses.dataclass(frozen=True)
class Case:
    """A crystal to finish: its name, the true structure factors at indices of the given cell, and what it is."""

    name: str
    crystal: Crystal
    truth: np.ndarray
    centrosymmetric: bool


def measured_case(folder: Path, resolution: float) -> Case | None:
    """The crystal of a folder cut at a resolution; None if its structure is unknown or too small."""
    known = read_folder(folder, resolution)
    heavy = [atom for atom in known.atoms if atom['el'] not in ('H', 'D')]
    if len(heavy) * len(known.operators) < LEAST_ATOMS:
        return None
    crystal = prepare_crystal(known.data)
    truth = known_structure_factors(known, crystal.expanded.in_given_cell(crystal.expanded.hkl))
    centrosymmetric = any(np.array_equal(np.array(each.rot), -24 * np.eye(3)) for each in known.operators)
    return Case(folder.name, crystal, truth, centrosymmetric)


def invented_case(number: int, resolution: float) -> Case:
    """An invented crystal cut at a resolution."""
    group, num_atoms = INVENTED[number % len(INVENTED)]
    made = invent(Recipe(group, num_atoms, d_min=resolution), FIRST_SEED + number)
    crystal = prepare_crystal(made.data)
    hkl = crystal.expanded.in_given_cell(crystal.expanded.hkl)
    truth = anisotropic_structure_factors(
        hkl, made.data.cell, made.space_group, made.elements, made.positions, made.displacements, made.occupancies
    )
    return Case(f'invented {number}, {group}', crystal, truth, group in ('P-1', 'P21/c'))


def flipped(crystal: Crystal, seed: int, starts: int) -> list[tuple[np.ndarray, Slot, float]]:
    """The densities to which starts come by the recipes of the solver, after all of their cycles, and their seconds."""
    key, found = jax.random.key(seed), []
    for start in range(starts):
        slot, began = Slot(start, quick=bool(crystal.search.mean_is_free)), time.perf_counter()
        recipe = RECIPES[start % len(RECIPES)]
        kind = np.int32(recipe.amplitudes)
        if recipe.superposed and slot.rank < len(crystal.vectors):
            density = _superposed(crystal.vectors[slot.rank], crystal.search, kind, crystal.grid.shape)
        else:
            density = _random(jax.random.fold_in(key, start), crystal.search, kind, crystal.grid.shape)
        density = density[None]
        for _ in range(recipe.cycles // CYCLES_AT_ONCE):
            density, skewness = _flip(density, kind[None], np.float32([recipe.threshold]), crystal.search)
            slot.skewness += np.asarray(skewness)[0].tolist()
        found.append((np.asarray(density)[0], slot, time.perf_counter() - began))
    return found


_superposed = jax.jit(superposed_density, static_argnums=3)
_random = jax.jit(random_density, static_argnums=3)
_eliminate = jax.jit(eliminate, static_argnames=('shape', 'cycles'))
_flip = jax.jit(lambda *arguments: flip(*arguments, CYCLES_AT_ONCE))


def measure(case: Case, projection: Projection, seed: int, starts: int) -> dict:
    """Finishes all starts of a case in all ways; the entry of the JSON file."""
    crystal = case.crystal
    learned = projection_on(crystal, projection)
    hkl = crystal.expanded.hkl
    given = crystal.expanded.in_given_cell(hkl)

    def correlation(factors):
        return round(float(place(given, case.truth, factors).correlation), 3)

    def own(factors):
        return np.conj(crystal.grid.take(np.asarray(factors), hkl))

    def on_grid(factors):
        return crystal.grid.place(hkl, (crystal.normalised * np.exp(-1j * np.angle(factors))).astype(np.complex64))

    # Elimination needs the amplitudes alone.
    every = jnp.asarray(learned.amplitudes)
    finer = Search(strong=every, turns=every, amplitudes=every, patterson=every)

    def on_finer_grid(factors, _):
        placed = learned.grid.place(hkl, crystal.grid.take(np.asarray(factors), hkl).astype(np.complex64))
        found, skewness, disagreement = _eliminate(placed, finer, learned.grid.shape, ELIMINATION_CYCLES)
        return on_grid(np.conj(learned.grid.take(np.asarray(found), hkl))), skewness, disagreement

    flipped(crystal, seed, 2)  # compiles
    ends = flipped(crystal, seed, starts)
    noise = ends[NOISE_START][1].first_skewness
    first = np.fft.rfftn(ends[0][0])
    one_elimination = seconds_of(lambda: jax.block_until_ready(eliminated(first, crystal)))
    passes_take = seconds_of(lambda: sharpened_by(learned, PASSES, judged=False)(first, crystal))
    one_takes = seconds_of(lambda: sharpened_by(learned, 1, judged=False)(first, crystal))
    each_pass = max((passes_take - one_takes) / (PASSES - 1), 1e-6)
    same = max(1, round(one_elimination / each_pass))
    more = round(passes_take / one_elimination)

    def finished(density, slot, sharpen=eliminated, before=None):
        began = time.perf_counter()
        if before is not None:
            density = scipy.fft.irfftn(np.asarray(before(np.fft.rfftn(density))), crystal.grid.shape)
        reached = finish(crystal, density, slot, noise, sharpen)
        return described(reached, correlation(reached.factors), time.perf_counter() - began)

    def eliminated_longer(factors):
        for _ in range(more):
            factors, _, _ = eliminated(np.asarray(factors), crystal)
        return factors

    def passed(factors):
        return sharpened_by(learned, PASSES, judged=False)(factors, crystal)[0]

    rows = []
    for density, slot, seconds in ends:
        factors = np.fft.rfftn(density)
        row = {
            'start': slot.start,
            'seconds': round(seconds, 4),
            'flipped': correlation(own(factors)),
            'after passes': correlation(own(passed(factors))),
            'classical': finished(density, slot),
            'finer grid': finished(density, slot, on_finer_grid),
            'longer': finished(density, slot, before=eliminated_longer),
            'network first': finished(density, slot, before=passed),
            'network': finished(density, slot, sharpened_by(learned, same, judged=False)),
            'network, more': finished(density, slot, sharpened_by(learned, PASSES, judged=False)),
        }
        row['judged'] = judged(finish(crystal, density, slot, noise), learned, crystal)
        rows.append(row)
    return {
        'name': case.name,
        'centrosymmetric': case.centrosymmetric,
        'resolution': round(float(1 / crystal.expanded.inverse_spacings.max()), 3),
        'reflections': len(hkl),
        'shape': list(crystal.grid.shape),
        'network_shape': list(learned.grid.shape),
        'elimination_ms': round(1e3 * one_elimination, 2),
        'pass_ms': round(1e3 * each_pass, 2),
        'passes_in_same_seconds': same,
        'starts': rows,
    }


def judged(reached: PhasedMap, learned: CrystalProjection, crystal: Crystal) -> dict:
    """What one pass through the network says of a finished map."""
    _, projected = learned.passed(crystal.normalised * np.exp(-1j * np.angle(reached.factors)), 1)
    return {'kept': float(projected.kept), 'disagreement': float(projected.disagreement)}


def described(reached: PhasedMap, correlation: float, seconds: float) -> dict:
    """What is kept of a finished map."""
    return {
        'map': correlation,
        'promising': bool(reached.promising),
        'jump': float(reached.jump),
        'obeyed': float(reached.obeyed),
        'disagreement': float(reached.disagreement),
        'seconds': round(seconds, 4),
    }


def seconds_of(work: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of some work, the least of a few, after a first time that compiles."""
    work()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)


def sign_test(better: int, worse: int) -> float:
    """Probability of so unequal counts, or more so, if both were equally likely."""
    number, least = better + worse, min(better, worse)
    return min(1.0, 2 * sum(math.comb(number, each) for each in range(least + 1)) / 2**number)


def area(right: list, wrong: list) -> float:
    """Probability that a right one stands above a wrong one; ties count half."""
    pairs = [(first > second) + 0.5 * (first == second) for first in right for second in wrong]
    return float(np.mean(pairs)) if pairs else math.nan


def tables(cases: list[dict], resolutions: list[float]) -> str:
    """The results as Markdown: the finishers, then the judges."""
    finishers, judges = [], []
    for resolution in resolutions:
        for centrosymmetric in (True, False):
            chosen = [
                case
                for case in cases
                if case['cut'] == resolution and case['centrosymmetric'] == centrosymmetric and case['starts']
            ]
            if not chosen:
                continue
            words = (f'{resolution}', 'yes' if centrosymmetric else 'no', f'{len(chosen)}')
            finishers += [(*words, *each) for each in _finisher_rows(chosen)]
            judges += [(*words, *each) for each in _judge_rows(chosen)]
    head = ('cut, Å', 'inversion', 'crystals')
    first = markdown_table(
        (*head, 'finished', 'right', 'crystals with one', 'recognised', 'wrong but promising', 's', 'a minute', 'p'),
        finishers,
    )
    return f'{first}\n\n{markdown_table((*head, "judge", "AUC", "right above all wrong"), judges)}'


def _finisher_rows(cases):
    starts = [start for case in cases for start in case['starts']]
    for method in METHODS:
        right = [start[method]['map'] > RIGHT_MAP for start in starts]
        base = [start['classical']['map'] > RIGHT_MAP for start in starts]
        better = sum(ours and not theirs for ours, theirs in zip(right, base, strict=True))
        worse = sum(theirs and not ours for ours, theirs in zip(right, base, strict=True))
        found = sum(any(start[method]['map'] > RIGHT_MAP for start in case['starts']) for case in cases)
        known = sum(ours and start[method]['promising'] for ours, start in zip(right, starts, strict=True))
        wrong = sum(not ours and start[method]['promising'] for ours, start in zip(right, starts, strict=True))
        seconds = np.mean([start['seconds'] + start[method]['seconds'] for start in starts])
        pace = 60 * known / (seconds * len(starts))
        test = '' if method == 'classical' else f'+{better} −{worse}: {sign_test(better, worse):.2g}'
        yield method, f'{sum(right)} of {len(starts)}', found, known, wrong, f'{seconds:.2f}', f'{pace:.1f}', test


def _judge_rows(cases):
    starts = [start for case in cases for start in case['starts']]
    for name, judge in JUDGES.items():
        right = [judge(start) for start in starts if start['classical']['map'] > RIGHT_MAP]
        wrong = [judge(start) for start in starts if start['classical']['map'] <= RIGHT_MAP]
        above = sum(each > max(wrong) for each in right) if wrong else len(right)
        yield name, f'{area(right, wrong):.3f}', f'{above} of {len(right)}'


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.projection', description=__doc__.partition('\n')[0])
    parser.add_argument('folders', type=Path, nargs='*', help='one for each crystal')
    parser.add_argument('--weights', type=Path, required=True, help='directory of the run that trained the network')
    parser.add_argument('--invented', type=int, default=0, help='number of invented crystals')
    parser.add_argument('--resolutions', type=float, nargs='+', default=[1.2, 1.4], help='Å')
    parser.add_argument('--starts', type=int, default=8, help='of each crystal; 3 or more')
    parser.add_argument('--seed', type=int, default=0, help='of the starts')
    parser.add_argument('--output', type=Path, required=True, help='JSON file')
    return parser.parse_args(arguments)


def main() -> None:
    """Measures what is not in the file yet, prints and writes."""
    options = parse_arguments()
    with exit_on_errors():
        projection = load_projection(options.weights)
        content = json.loads(options.output.read_text()) if options.output.exists() else {'cases': []}
        content |= {'device': jax.devices()[0].device_kind, 'weights': str(options.weights), 'seed': options.seed}
        done = {(case['name'], case['cut']) for case in content['cases']}
        wanted = [
            (make, each, name, cut)
            for cut in options.resolutions
            for make, each, name in (
                *((measured_case, folder, folder.name) for folder in options.folders),
                *((invented_case, number, None) for number in range(options.invented)),
            )
        ]
        for make, each, name, cut in wanted:
            name = name or f'invented {each}, {INVENTED[each % len(INVENTED)][0]}'
            if (name, cut) in done:
                continue
            case = make(each, cut)
            if case is None:
                continue
            entry = measure(case, projection, options.seed, options.starts)
            content['cases'].append({'cut': cut, **entry})
            write_json(options.output, content)
            best = {method: max(start[method]['map'] for start in entry['starts']) for method in METHODS}
            print(cut, entry['name'], best, entry['elimination_ms'], entry['pass_ms'], flush=True)
        print(tables(content['cases'], options.resolutions))


if __name__ == '__main__':
    main()
