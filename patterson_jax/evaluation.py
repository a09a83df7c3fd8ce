"""Evaluation: many unseen cases to scores, as the paper counts and as a user needs (paper, 3.5).

All methods that are asked for solve the same cases. A Patterson map does not fix the translation. So found atoms are
scored at the best translation, and any method can be compared with any other. The atoms that the paper's procedure
takes from the network's map are scored where the network put them too, because the paper's network learns to centre.

The paper counts a pair of a found and a true atom if each is the other's nearest, at any distance. Most random
positions make such pairs too. The leading score here is recall: the part of the true atoms in such pairs within one
voxel.
"""

import dataclasses
import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from patterson_jax.errors import require
from patterson_jax.progress import ProgressReport
from patterson_jax.simulation.atoms import draw_positions, in_corner
from patterson_jax.simulation.examples import Example, example_key, make_batch, stream_key
from patterson_jax.simulation.maps import map_correlation
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.attempt import Network
from patterson_jax.solving.interpretation import Interpretation, interpret_batch
from patterson_jax.solving.limit import TRUTH, solutions_from_truth
from patterson_jax.solving.methods.registry import method_names
from patterson_jax.solving.orientations import ORIENTATIONS, averaged_over_orientations
from patterson_jax.solving.programs import call, clock
from patterson_jax.solving.separation import SeparationSettings
from patterson_jax.solving.solver import Search, cases_at_once, solve_maps
from patterson_jax.solving.verdict import VERDICTS

MATCH_DISTANCE = 1.0  # voxels
PAIRING_DISTANCE = 2.0  # voxels, for the pairs that fix the translation
HISTOGRAM_EDGES = np.linspace(0, 2, 41)  # voxels
SCORED_AS = {
    'separated': 'network, separated',
    'refined': 'network, refined',
    'auto': 'all methods in turn',
    'random': 'at random',
}
CASES_IN_MEMORY = 64  # of those that go from method to method


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """How to evaluate; the fields are explained in configs/base.py, section `evaluate`. Raises InputError."""

    num_cases: int
    batch_size: int
    methods: str
    more_orientations: int = 0

    def __post_init__(self):
        names = (*method_names(), TRUTH)
        for method in self.chosen_methods:
            require(method in names, 'methods', self.methods, f'some of {", ".join(names)}, with commas between')
        require(self.num_cases >= 0, 'num_cases', self.num_cases, '0 or more')
        require(self.num_cases < 2**31, 'num_cases', self.num_cases, f'at most {2**31 - 1}')
        require(self.batch_size >= 1, 'batch_size', self.batch_size, '1 or more')
        most, number = len(ORIENTATIONS), self.more_orientations
        require(0 <= number <= most, 'more_orientations', number, f'a whole number from 1 to {most}, or 0 for none')

    @property
    def chosen_methods(self) -> tuple[str, ...]:
        """The methods, each once, in the order in which they are named."""
        return tuple(dict.fromkeys(method.strip() for method in self.methods.split(','))) if self.methods else ()

    @property
    def need_network(self) -> bool:
        """Whether weights are needed: for the network among the methods, or for the paper's procedure alone."""
        return not self.methods or 'network' in self.chosen_methods


class Match(NamedTuple):
    """Found atoms beside true ones.

    Attributes:
        aligned: `(num_atoms, 3)`, the found positions with the sign and translation that suit the truth best.
        paired: `(num_atoms,)`, whether each true atom and its nearest found one are each other's nearest.
        errors: `(num_atoms,)`, distance of each true atom from its nearest found one, voxels.
    """

    aligned: Array
    paired: Array
    errors: Array

    @property
    def within(self) -> Array:
        """Which true atoms are found: paired, within the match distance."""
        return self.paired & (self.errors <= MATCH_DISTANCE)


class Evaluated(NamedTuple):
    """Cases with what the network and the paper's procedure make of them, and scores, along a leading axis."""

    examples: Example
    solutions: Interpretation
    match: Match
    match_in_place: Match
    squared_error: Array
    empty_squared_error: Array
    correlation: Array


def match_atoms(found: Array, true: Array, translate: bool = True) -> Match:
    """Compares found positions with the true ones, both `(num_atoms, 3)` in voxels.

    A Patterson map fixes neither the enantiomorph nor the translation. So both signs are tried, each from the
    positions as they are and from equal means; the translation is then the mean over pairs within two voxels. What
    counts is the number of pairs within one voxel, then the mean error. Without `translate` only the signs are tried.
    """

    def align(sign, centred):
        aligned = sign * found
        aligned = aligned + centred * (jnp.mean(true, axis=0) - jnp.mean(aligned, axis=0))[None]
        for _ in range(3 if translate else 0):
            nearest, paired, errors = _pair(aligned, true)
            weights = (paired & (errors <= PAIRING_DISTANCE)).astype(true.dtype)
            shift = jnp.sum(weights[:, None] * (true - aligned[nearest]), axis=0)
            aligned = aligned + (shift / jnp.maximum(jnp.sum(weights), 1))[None]
        _, paired, errors = _pair(aligned, true)
        return Match(aligned, paired, errors)

    signs, starts = jnp.array([1.0, -1.0, 1.0, -1.0]), jnp.array([0.0, 0.0, 1.0, 1.0])
    if not translate:
        signs, starts = signs[:2], starts[:2]
    matches = jax.vmap(align)(signs, starts)
    mean_errors = jnp.mean(matches.errors, axis=-1)
    merit = jnp.sum(matches.within, axis=-1, dtype=true.dtype) - mean_errors / (
        1 + mean_errors
    )  # the second term stays below 1
    best = jnp.argmax(merit)
    return jax.tree.map(lambda each: each[best], matches)


def _pair(found, true):
    distances = jnp.linalg.norm(true[:, None] - found[None], axis=-1)
    nearest_found, nearest_true = jnp.argmin(distances, axis=1), jnp.argmin(distances, axis=0)
    paired = nearest_true[nearest_found] == jnp.arange(true.shape[0])
    return nearest_found, paired, jnp.min(distances, axis=1)


def evaluate(
    problem: Problem,
    separation: SeparationSettings,
    search: Search,
    settings: EvaluationSettings,
    seed: int,
    network: Network | None = None,
    num_shown: int = 7,
) -> tuple[dict, Evaluated | None]:
    """Solves the cases of the evaluation stream by the methods of the settings and scores the answers.

    Args:
        problem: what the cases are; a corner that it leaves empty in training is filled in them.
        separation: how to separate.
        search: the budget of each method for a case, and in how many orientations the network is shown it.
        settings: how many cases, at least one, how many at once by the network, the methods, and in how many
            orientations the paper's procedure is scored once more; the scores do not depend on how many at once.
        seed: fixes the cases.
        network: trained; without it there are no scores of the paper's procedure.
        num_shown: how many cases to return whole.

    Returns:
        The contents of `evaluation.json`, and the first cases as the network solves them, for figures.
    """
    problem = problem.testing
    report = {
        'cases': settings.num_cases,
        'atoms': settings.num_cases * problem.num_atoms,
        'seed': seed,
        'device': jax.devices()[0].device_kind,
    }
    first = None
    if network is not None:
        score = functools.partial(_evaluate_network, network, problem, separation, settings, seed, num_shown)
        scores, first = score(search.orientations)
        report |= scores
        if settings.more_orientations:
            scores, _ = score(settings.more_orientations)
            report['in_more_orientations'] = {'orientations': settings.more_orientations} | scores
    return report | _evaluate_methods(problem, separation, search, settings, seed, network), first


def _show_progress(progress, before, done):
    progress.update(before + done)


def _evaluate_methods(problem, separation, search, settings, seed, network):
    """Scores of each method, and of positions at random."""
    answers: dict[str, list] = {method: [] for method in settings.chosen_methods}
    random_matches, at_once = [], min(cases_at_once(), settings.num_cases)
    for start in range(0, settings.num_cases, CASES_IN_MEMORY):
        indices = np.arange(start, min(start + CASES_IN_MEMORY, settings.num_cases))
        cases = jax.device_get(_cases(seed, indices, problem))
        random_matches.append(_matches(cases.random, cases.positions))
        for method, found in answers.items():
            with ProgressReport(method.replace('_', ' '), settings.num_cases, start) as progress:
                if method == TRUTH:
                    solutions = solutions_from_truth(cases.patterson, cases.positions, problem)
                    progress.update(indices[-1] + 1)
                else:
                    solutions = solve_maps(
                        cases.keys,
                        cases.patterson,
                        problem,
                        dataclasses.replace(search, method=method),
                        separation,
                        network,
                        functools.partial(_show_progress, progress, start),
                        at_once,
                    )
            match = _matches(np.stack([each.positions for each in solutions]), cases.positions)
            for place, each in enumerate(solutions):
                own = jax.tree.map(operator.itemgetter(place), match)
                found.append(_Answer(own, each.r_factor, each.r_free, each.verdict, each.seconds))
    random = _scores(jax.tree.map(lambda *each: np.concatenate(each), *random_matches))
    names = {method: 'refined' if method == 'network' else method for method in answers}
    return {'random': random} | {names[method]: _method_scores(found) for method, found in answers.items()}


class _Answer(NamedTuple):
    """How one method's answer to one case compares with the truth, and what it says of itself."""

    match: Match
    r_factor: float
    r_free: float
    verdict: str
    seconds: float


class _Cases(NamedTuple):
    """Cases for any method, along a leading axis; `random` are positions drawn without looking."""

    keys: Array
    patterson: Array
    positions: Array
    random: Array


@functools.partial(jax.jit, static_argnames=('problem', 'seed'))
def _cases(seed, indices, problem):
    examples = make_batch(stream_key(seed, 'evaluation'), 0, indices, problem)
    drawn = jax.vmap(lambda key: draw_positions(key, problem))(_keys(seed, 'random', indices))
    return _Cases(_keys(seed, 'separation', indices), examples.patterson, examples.positions, drawn)


def _keys(seed, stream, indices):
    return jax.vmap(lambda index: example_key(stream_key(seed, stream), 0, index))(indices)


_match_all = jax.jit(jax.vmap(match_atoms))


def _matches(found, true):
    return jax.device_get(_match_all(found, true))


def _method_scores(answers):
    match = jax.tree.map(lambda *each: np.stack(each), *(answer.match for answer in answers))
    right = np.all(match.within, axis=-1)
    verdicts = {
        verdict: {
            'right': int(sum(right[place] for place, each in enumerate(answers) if each.verdict == verdict)),
            'wrong': int(sum(not right[place] for place, each in enumerate(answers) if each.verdict == verdict)),
        }
        for verdict in VERDICTS
    }
    means = {name: float(np.mean([getattr(each, name) for each in answers])) for name in ('r_factor', 'r_free')}
    seconds = float(np.mean([each.seconds for each in answers]))
    return _scores(match) | means | {'verdict': verdicts, 'seconds_per_case': seconds}


def _evaluate_network(network, problem, separation, settings, seed, num_shown, orientations):
    """Scores of the network's maps and of the paper's procedure."""
    params = jax.device_put(network.params, jax.devices()[0])  # one device solves; copies would repeat its work
    choices = {'problem': problem, 'separation': separation, 'batch_size': settings.batch_size, 'seed': seed}
    choices |= {'apply': network.apply, 'orientations': orientations}
    starts = range(0, settings.num_cases, settings.batch_size)
    parts, shown, seconds = [], [], 0.0
    with ProgressReport('evaluating', settings.num_cases) as progress:
        for start in starts:
            began = clock()
            evaluated = jax.block_until_ready(call(_evaluate_chunk, params, np.int32(start), **choices))
            seconds += clock() - began
            kept = min(settings.batch_size, settings.num_cases - start)
            evaluated = jax.tree.map(lambda each: np.asarray(each[:kept]), evaluated)  # noqa: B023
            if start < num_shown:
                shown.append(evaluated)
            parts.append(_small(evaluated))
            progress.update(start + kept)
    scores = jax.tree.map(lambda *each: np.concatenate(each), *parts)
    first = jax.tree.map(lambda *each: np.concatenate(each)[:num_shown], *shown)
    report = _network_scores(scores, seconds / (len(starts) * settings.batch_size))
    if problem.filled_corner:
        report['corner'] = _corner_scores(scores, problem)
    return report, first


def _evaluate_chunk(params, start, apply, orientations, problem, separation, batch_size, seed):
    indices = start + jnp.arange(batch_size)
    examples = make_batch(stream_key(seed, 'evaluation'), 0, indices, problem)
    keys = _keys(seed, 'separation', indices)
    predict = averaged_over_orientations(functools.partial(apply, params), orientations)
    solutions = interpret_batch(keys, examples.patterson, predict, problem, separation)
    return Evaluated(
        examples,
        solutions,
        jax.vmap(match_atoms)(solutions.positions, examples.positions),
        jax.vmap(functools.partial(match_atoms, translate=False))(solutions.positions, examples.positions),
        jnp.mean((solutions.density - examples.target) ** 2, axis=(1, 2, 3)),
        jnp.mean(examples.target**2, axis=(1, 2, 3)),
        map_correlation(solutions.density, examples.target),
    )


def _small(evaluated):
    """What the scores need of a chunk: everything but the maps."""
    return {
        'match': evaluated.match,
        'match_in_place': evaluated.match_in_place,
        'r_factor': evaluated.solutions.r_factor,
        'positions': evaluated.examples.positions,
        'squared_error': evaluated.squared_error,
        'empty_squared_error': evaluated.empty_squared_error,
        'correlation': evaluated.correlation,
    }


def _network_scores(scores, seconds_per_case):
    return {
        'map': {
            'mse': float(np.mean(scores['squared_error'])),
            'mse_of_empty_map': float(np.mean(scores['empty_squared_error'])),
            'correlation': float(np.mean(scores['correlation'])),
        },
        'separated': _scores(scores['match'])
        | {'r_factor': float(np.mean(scores['r_factor'])), 'seconds_per_case': seconds_per_case},
        'separated_in_place': _scores(scores['match_in_place']),
    }


def _corner_scores(scores, problem):
    """How the atoms in the filled corner fare beside the others of the same cases, where the network put them.

    A mean over no atoms, or over no pairs, is None.
    """
    inside = np.asarray(in_corner(scores['positions'], problem.filled_corner, problem))
    match = scores['match_in_place']

    def mean(values):
        return float(np.mean(values)) if values.size else None

    def of(atoms):
        return {
            'atoms': int(np.sum(atoms)),
            'recall': mean(match.within[atoms]),
            'mean_error': mean(match.errors[atoms & match.paired]),
        }

    return {'inside': of(inside), 'elsewhere': of(~inside)}


def _scores(match):
    """Scores of one way of comparing; the histogram's last bin holds all larger errors."""
    errors = match.errors[match.paired]
    counts, _ = np.histogram(errors, np.append(HISTOGRAM_EDGES, np.inf))
    return {
        'matched': int(np.sum(match.paired)),
        'recall': float(np.mean(match.within)),
        'mean_error': float(np.mean(errors)),
        'median_error': float(np.median(errors)),
        'solved': int(np.sum(np.all(match.within, axis=-1))),
        'histogram': {'bin_width': float(HISTOGRAM_EDGES[1]), 'counts': counts.tolist()},
    }


def describe_scores(report: dict) -> str:
    """What an evaluation found, in words: one line for each method, and one for positions at random."""
    lines = [f'{report["cases"]} unseen cases of {report["atoms"] // report["cases"]} atoms']
    for name in ('separated', 'refined', *method_names(), TRUTH, 'random'):
        scores = report.get(name)
        if scores is None:
            continue
        words = [
            f'{scores["recall"]:.2%} of atoms within {MATCH_DISTANCE:g} voxel',
            f'{scores["solved"]} cases with every atom',
            f'mean error {scores["mean_error"]:.{3 if scores["mean_error"] >= 0.01 else 6}f} voxel',
        ]
        if name == 'separated':
            words.append(f'map correlation {report["map"]["correlation"]:.3f}')
        if 'verdict' in scores:
            solved = scores['verdict']['solved']
            words.append(f'{solved["right"] + solved["wrong"]} said to be solved, {solved["wrong"]} of them wrongly')
        if 'seconds_per_case' in scores:
            words.append(f'{scores["seconds_per_case"]:.3f} s a case')
        lines.append(f'{SCORED_AS.get(name, name.replace("_", " "))}: {", ".join(words)}')
    return '\n'.join(lines)
