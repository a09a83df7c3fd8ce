"""Evaluation: many unseen cases to scores, as the paper counts and as a user needs (paper, 3.5).

Found atoms are scored twice: at the best translation, which a Patterson map does not fix, so that any method can be
compared with any other; and where the network put them, as in the paper, whose network also learns to centre.

The paper counts a pair of a found and a true atom when each is the other's nearest, at whatever distance, which most
random positions achieve too. What leads here is recall: the part of the true atoms that are so paired within one voxel.
"""

import dataclasses
import functools
import time
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from patterson_jax.errors import require
from patterson_jax.progress import ProgressReport
from patterson_jax.simulation.atoms import draw_positions, in_corner
from patterson_jax.simulation.density import map_correlation
from patterson_jax.simulation.examples import Example, example_key, make_batch, stream_key
from patterson_jax.simulation.problem import Problem
from patterson_jax.solving.separation import SeparationSettings
from patterson_jax.solving.solver import Solution, solve_batch

MATCH_DISTANCE = 1.0  # voxels
PAIRING_DISTANCE = 2.0  # voxels, for the pairs that fix the translation
HISTOGRAM_EDGES = np.linspace(0, 2, 41)  # voxels


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """How to evaluate; the fields are explained in configs/base.py, section `evaluate`. Raises InputError."""

    num_cases: int
    batch_size: int

    def __post_init__(self):
        require(self.num_cases >= 0, 'num_cases', self.num_cases, '0 or more')
        require(self.num_cases < 2**31, 'num_cases', self.num_cases, f'at most {2**31 - 1}')
        require(self.batch_size >= 1, 'batch_size', self.batch_size, '1 or more')


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
    """Cases with their solutions and scores, along a leading axis."""

    examples: Example
    solutions: Solution
    match: Match
    match_in_place: Match
    random_match: Match
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
    network: nn.Module,
    params: object,
    problem: Problem,
    separation: SeparationSettings,
    settings: EvaluationSettings,
    seed: int,
    num_shown: int = 7,
) -> tuple[dict, Evaluated]:
    """Solves the cases of the evaluation stream with a trained network and scores the answers.

    Args:
        network: what `params` belong to.
        params: trained weights.
        problem: what the cases are; a corner that it leaves empty in training is filled in them.
        separation: how to separate.
        settings: how many cases, at least one, how many at once; the scores do not depend on the latter.
        seed: fixes the cases.
        num_shown: how many cases to return whole.

    Returns:
        The contents of `evaluation.json`, and the first cases, for figures.
    """
    problem = problem.testing
    chunk = functools.partial(_evaluate_chunk, network, problem, separation, settings.batch_size, seed)
    params = jax.device_put(params, jax.devices()[0])  # one device solves; copies would repeat its work
    run = jax.jit(chunk).lower(params, np.int32(0)).compile()
    starts = range(0, settings.num_cases, settings.batch_size)
    parts, shown, seconds = [], [], 0.0
    with ProgressReport('evaluating', settings.num_cases) as progress:
        for start in starts:
            began = time.perf_counter()
            evaluated = jax.block_until_ready(run(params, np.int32(start)))
            seconds += time.perf_counter() - began
            kept = min(settings.batch_size, settings.num_cases - start)
            evaluated = jax.tree.map(lambda each: np.asarray(each[:kept]), evaluated)  # noqa: B023
            if start < num_shown:
                shown.append(evaluated)
            parts.append(_small(evaluated))
            progress.update(start + kept)
    scores = jax.tree.map(lambda *each: np.concatenate(each), *parts)
    first = jax.tree.map(lambda *each: np.concatenate(each)[:num_shown], *shown)
    report = _report(scores, seed, seconds / (len(starts) * settings.batch_size))
    if problem.filled_corner:
        report['corner'] = _corner_scores(scores, problem)
    return report, first


def _evaluate_chunk(network, problem, separation, batch_size, seed, params, start):
    indices = start + jnp.arange(batch_size)
    examples = make_batch(stream_key(seed, 'evaluation'), 0, indices, problem)

    def keys_of(stream):
        return jax.vmap(lambda index: example_key(stream_key(seed, stream), 0, index))(indices)

    solutions = solve_batch(
        keys_of('separation'), examples.patterson, functools.partial(network.apply, params), problem, separation
    )
    random_positions = jax.vmap(lambda key: draw_positions(key, problem))(keys_of('random'))
    return Evaluated(
        examples,
        solutions,
        jax.vmap(match_atoms)(solutions.positions, examples.positions),
        jax.vmap(functools.partial(match_atoms, translate=False))(solutions.positions, examples.positions),
        jax.vmap(match_atoms)(random_positions, examples.positions),
        jnp.mean((solutions.density - examples.target) ** 2, axis=(1, 2, 3)),
        jnp.mean(examples.target**2, axis=(1, 2, 3)),
        map_correlation(solutions.density, examples.target),
    )


def _small(evaluated):
    """What the scores need of a chunk: everything but the maps."""
    return {
        'match': evaluated.match,
        'match_in_place': evaluated.match_in_place,
        'random_match': evaluated.random_match,
        'r_factor': evaluated.solutions.r_factor,
        'positions': evaluated.examples.positions,
        'squared_error': evaluated.squared_error,
        'empty_squared_error': evaluated.empty_squared_error,
        'correlation': evaluated.correlation,
    }


def _report(scores, seed, seconds_per_case):
    match = scores['match']
    return {
        'cases': len(match.errors),
        'atoms': match.errors.size,
        'seed': seed,
        'device': jax.devices()[0].device_kind,
        'map': {
            'mse': float(np.mean(scores['squared_error'])),
            'mse_of_empty_map': float(np.mean(scores['empty_squared_error'])),
            'correlation': float(np.mean(scores['correlation'])),
        },
        'separated': _scores(match)
        | {'r_factor': float(np.mean(scores['r_factor'])), 'seconds_per_case': seconds_per_case},
        'separated_in_place': _scores(scores['match_in_place']),
        'random': _scores(scores['random_match']),
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
