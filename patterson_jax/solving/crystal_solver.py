"""Solves a crystal from its measured intensities: phases, space group, atoms and a verdict.

Starts go on until a map is called solved, the budget is spent, or so many starts have led to one map, whose atoms may
be right, that no other is to be expected. A promising map is interpreted (`crystal_groups`) as soon as a second start
leads to it, or after some starts that did not.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax import Array

from patterson_jax.crystal.structure import CrystalData, CrystalSolution
from patterson_jax.errors import require
from patterson_jax.solving.crystal_groups import CLEARLY_BETTER, corrected_r_factor, interpreted, overfits
from patterson_jax.solving.crystal_phasing import SAME_MAP, Crystal, PhasedMap, agreement, phase, prepare_crystal
from patterson_jax.solving.crystal_placement import placed_maps, placement_groups
from patterson_jax.solving.crystal_projection import Projection, sharpeners
from patterson_jax.solving.crystal_structure import Interpretation
from patterson_jax.solving.crystal_verdict import ENOUGH_AGREEING
from patterson_jax.solving.programs import unload_in_time
from patterson_jax.solving.verdict import VERDICTS

MAX_STARTS = 48
MOST_WAITING = 6  # starts for which a promising map waits for one that agrees
MOST_INTERPRETED = 4  # at the end, of maps that are not promising or to which one start alone has led
ENOUGH_TO_END = 8  # starts that have led to one map that may be right, and at least half of all: then the search ends
PLACEMENT_STREAM = 1_000_000  # of random numbers; those before it are of charge flipping

_compiling = 0.0


@dataclasses.dataclass
class Cluster:
    """Maps that are the same apart from origin and hand, and their interpretations.

    Attributes:
        maps: one from each start, in the order in which the starts ended.
        since: number of starts that had ended when the first map was found.
        answers: interpretations, in one group or more.
        agreeing: number of maps when they were interpreted last; 0 before that.
        finished_by: what finished the map that was interpreted last.
    """

    maps: list[PhasedMap]
    since: int
    answers: list[Interpretation] = dataclasses.field(default_factory=list)
    agreeing: int = 0
    finished_by: str = 'elimination'

    @property
    def best(self) -> PhasedMap:
        """The best map: certain groups come first, then those with more operations, then the higher `rank`."""
        return max(self.maps, key=lambda each: (each.found.space_group.certain, each.found.number_kept, each.rank))


def solve_crystal(
    data: CrystalData,
    *,
    seed: int = 0,
    max_starts: int = MAX_STARTS,
    max_seconds: float = 0,
    projection: Projection | None = None,
    progress: Callable[[int, str], None] = lambda done, note: None,
) -> CrystalSolution:
    """Solves a crystal.

    Args:
        data: its merged intensities, and what else is known.
        seed: fixes the starts.
        max_starts: the highest number of starts.
        max_seconds: the search ends with the first start that ends after so many seconds; 0: no limit.
        projection: a trained network that finishes maps, where there may be a heavy atom beside elimination.
        progress: is called with the number of starts that have ended, and a line about the best map.

    Raises:
        InputError: `max_starts` or `max_seconds` is invalid, or an element has no form factor.
    """
    require(max_starts >= 1, 'max_starts', max_starts, '1 or more')
    require(max_seconds >= 0, 'max_seconds', max_seconds, 'a number of seconds, or 0 for no limit')
    unload_in_time()
    began, compiling = time.perf_counter(), _compiling
    crystal = prepare_crystal(data)
    maps: list[PhasedMap] = []
    clusters: list[Cluster] = []
    for reached in _starts(crystal, jax.random.key(seed), max_starts, projection):
        maps.append(reached)
        _add_to_cluster(crystal, clusters, reached, len(maps))
        _interpret_meanwhile(crystal, clusters, len(maps))
        progress(len(maps), _note(clusters))
        spent = max_seconds and time.perf_counter() - began >= max_seconds
        if spent or any(ends_search(cluster, len(maps)) for cluster in clusters):
            break
    clusters = _interpreted_at_the_end(crystal, clusters, maps)
    seconds = time.perf_counter() - began - (_compiling - compiling)
    return _answer(crystal, clusters, len(maps), seconds)


def _starts(crystal: Crystal, key: Array, max_starts: int, projection: Projection | None) -> Iterator[PhasedMap]:
    """The maps of starts of charge flipping; where atoms can be placed, each is followed by one of placed atoms."""
    ways = sharpeners(crystal, projection)
    groups = placement_groups(crystal)
    if not groups:
        yield from phase(crystal, key, max_starts, ways)
        return
    placed = placed_maps(crystal, groups, jax.random.fold_in(key, PLACEMENT_STREAM))
    for number, reached in enumerate(phase(crystal, key, math.ceil(max_starts / 2), ways), start=1):
        yield reached
        if 2 * number <= max_starts:
            yield next(placed)


def answer_of_maps(crystal: Crystal, maps: list[PhasedMap]) -> CrystalSolution:
    """The answer that the search would give if its starts had come to these maps, one or more, and to no others."""
    clusters: list[Cluster] = []
    for ended, reached in enumerate(maps, start=1):
        _add_to_cluster(crystal, clusters, reached, ended)
    clusters = clusters or [Cluster([max(maps, key=lambda each: each.rank)], len(maps))]  # none is promising
    clusters = _interpreted_at_the_end(crystal, clusters, maps)
    return _answer(crystal, clusters, len(maps), 0.0)


def ends_search(cluster: Cluster, ended: int) -> bool:
    """Whether no more starts are needed after `ended` of them.

    One of its answers is solved; or one is uncertain, and many starts, at least half of all, have led to the cluster.
    """
    verdicts = {answer.verdict for answer in cluster.answers}
    settled = len(cluster.maps) >= max(ENOUGH_TO_END, ended / 2)
    return 'solved' in verdicts or (settled and 'uncertain' in verdicts)


def _interpret_meanwhile(crystal, clusters, ended):
    """Interprets maps to which a second start has led, and those that have waited long for one."""
    agreed = _least_disagreement([cluster for cluster in clusters if cluster.agreeing >= ENOUGH_AGREEING])
    for cluster in clusters:
        waited = ended - cluster.since >= MOST_WAITING and cluster.best.disagreement < agreed
        if len(cluster.maps) >= ENOUGH_AGREEING > cluster.agreeing or (waited and not cluster.answers):
            _interpret(crystal, cluster)


def _interpreted_at_the_end(crystal, clusters, maps):
    """The clusters, after the best of those that wait were interpreted: those better than one that ended the search.

    If no map is promising, the best of all maps are taken.
    """
    if not clusters:
        ranked = sorted(maps, key=lambda each: (each.has_enough_symmetry, each.rank), reverse=True)
        clusters = [Cluster([reached], len(maps)) for reached in ranked[:MOST_INTERPRETED]]
    limit = _least_disagreement([cluster for cluster in clusters if ends_search(cluster, len(maps))])
    waiting = [cluster for cluster in clusters if not cluster.answers and cluster.best.disagreement < limit]
    for cluster in sorted(waiting, key=lambda each: each.best.disagreement)[:MOST_INTERPRETED]:
        _interpret(crystal, cluster)
    return clusters


def _least_disagreement(clusters):
    return min((cluster.best.disagreement for cluster in clusters), default=np.inf)


def _add_to_cluster(crystal, clusters, reached, ended):
    """Adds a map, if it is promising, to the cluster of maps that are the same, or to a new one."""
    if not reached.promising:
        return
    for cluster in clusters:
        if any(agreement(crystal, reached, other) > SAME_MAP for other in cluster.maps):
            cluster.maps.append(reached)
            return
    clusters.append(Cluster([reached], ended))


def _interpret(crystal, cluster):
    """Interprets the best map of a cluster."""
    cluster.agreeing, cluster.finished_by = len(cluster.maps), cluster.best.finished_by
    cluster.answers = interpreted(crystal, cluster.best, cluster.agreeing)


def _answer(crystal, clusters, ended, seconds):
    resolution = 1 / float(np.max(crystal.data.cell.inverse_spacings(crystal.data.hkl)))
    cluster, best = best_answer([(cluster, answer) for cluster in clusters for answer in cluster.answers])
    return CrystalSolution(
        best.verdict,
        best.reasons,
        best.space_group,
        best.atoms,
        best.r_factor,
        resolution,
        ended,
        seconds,
        best.density,
        finished_by=cluster.finished_by,
    )


def best_answer(answers: list[tuple[Cluster, Interpretation]]) -> tuple[Cluster, Interpretation]:
    """Chooses the best answer.

    The verdict comes first. Of the answers with the best verdict, those that overfit few data are left out, and then
    those with a clearly higher R1 than another. Of the rest, the one to which most starts led is taken, then the one
    with the fewest reasons, which are doubts unless it is solved, then the one with the lowest R1.
    """
    verdict = min(VERDICTS.index(answer.verdict) for _, answer in answers)
    answers = [each for each in answers if VERDICTS.index(each[1].verdict) == verdict]
    answers = _without_overfitted(answers)
    least = min(corrected_r_factor(answer) for _, answer in answers)
    good = [each for each in answers if not corrected_r_factor(each[1]) > least / CLEARLY_BETTER]
    return min(good, key=lambda each: (-len(each[0].maps), len(each[1].reasons), corrected_r_factor(each[1])))


def _without_overfitted(answers):
    """Answers, without those that overfit few data compared with one that stays."""
    kept: list[tuple[Cluster, Interpretation]] = []
    for each in sorted(answers, key=lambda each: -len(each[1].space_group.symops)):
        if not any(overfits(each[1], other) for _, other in kept):
            kept.append(each)
    return kept


def _note(clusters):
    if not clusters:
        return 'no promising map yet'
    best = max(clusters, key=lambda cluster: len(cluster.maps))
    r_factors = [each.r_factor for cluster in clusters for each in cluster.answers if each.r_factor is not None]
    agreeing = f'{len(best.maps)} starts agree' if len(best.maps) > 1 else '1 start agrees'
    note = f'{best.best.found.space_group.hm}, {agreeing}'
    return f'{note}, R1 {min(r_factors):.3f}' if r_factors else note


def _count_compilation(event: str, duration_secs: float, **_: str | int) -> None:
    global _compiling
    if event.startswith('/jax/core/compile/'):
        _compiling += duration_secs


jax.monitoring.register_event_duration_secs_listener(_count_compilation)
