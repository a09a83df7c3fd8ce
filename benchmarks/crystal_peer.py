"""Charge flipping of cctbx on one crystal, for benchmarks.crystals and crystal_speed: JSON on standard input, and out.

It is a separate program, run by its path, because cctbx crashes unless it is imported before NumPy and gemmi. It gets
the true space group, which our solver does not get.

Input: `cell`, `symops`, `hkl`, `amplitudes`, `runs`, at most so many, `seconds` for all of them, `seed`. Output: a list
with an entry for each run that has begun: `accepted`, whether cctbx calls its last map solved; `hkl` and `phases`
(radians) of that map in the given cell, empty without a map; `attempts`; `cycles` of charge flipping, their
`cycle_seconds` with the skewness of the map, and the `grid`; `seconds` in all; `remark`, '' or an error of cctbx. All
seconds are processor time.
"""

import json
import sys
import time
from collections.abc import Callable

from cctbx import crystal, miller, sgtbx
from cctbx.array_family import flex
from smtbx.ab_initio import charge_flipping

MOST_ITERATIONS = 500  # of an attempt, as in cctbx


class Whole(int):
    """An integer that stays one when it is multiplied: cctbx multiplies it by 1.5 and then needs an integer."""

    def __mul__(self, other):
        return Whole(int(self) * other)


def read_problem(problem: dict) -> tuple[miller.array, sgtbx.change_of_basis_op]:
    """Merged amplitudes in the primitive setting, and the change of basis to it."""
    group = sgtbx.space_group()
    for operation in problem['symops']:
        group.expand_smx(operation)
    symmetry = crystal.symmetry(unit_cell=problem['cell'], space_group=group)
    indices = flex.miller_index([tuple(each) for each in problem['hkl']])
    amplitudes = miller.array(miller.set(symmetry, indices, anomalous_flag=False), flex.double(problem['amplitudes']))
    merged = amplitudes.map_to_asu().merge_equivalents().array().eliminate_sys_absent()
    change = symmetry.change_of_basis_op_to_primitive_setting()
    return merged.change_basis(change).set_observation_type_xray_amplitude(), change


class Timed(charge_flipping.weak_reflection_improved_iterator):
    """Charge flipping that counts its cycles and their seconds."""

    cycles, seconds = 0, 0.0

    def __next__(self):
        began = time.process_time()
        super().__next__()
        self.rho_map.skewness()  # the map keeps it for cctbx, which asks for it after a cycle
        self.cycles += 1
        self.seconds += time.process_time() - began
        return self


def solve(problem: dict) -> list[dict]:
    """Makes runs, each with other random phases, until they are enough or the time is over."""
    amplitudes, change = read_problem(problem)
    flex.set_random_seed(problem['seed'] + 1)
    end = time.process_time() + problem['seconds']
    normalisations, remark = charge_flipping.amplitude_quasi_normalisations, ''
    try:
        normalisations(amplitudes.expand_to_p1())
    except (AssertionError, RuntimeError):
        normalisations, remark = None, 'its normalisation fails; amplitudes as they are'
    runs = []
    while not runs or (len(runs) < problem['runs'] and time.process_time() < end):
        result, found = run(amplitudes, normalisations, end)
        hkl, phases = [], []
        if found is not None:
            given = found.change_basis(change.inverse())
            hkl, phases = [list(each) for each in given.indices()], list(flex.arg(given.data()))
        runs.append({'hkl': hkl, 'phases': phases, **result, 'remark': result['remark'] or remark})
    return runs


def run(amplitudes: miller.array, normalisations: Callable | None, end: float) -> tuple[dict, miller.array | None]:
    """Makes attempts until cctbx accepts a map or fails, or the processor time reaches `end`; and the last map."""
    began = time.process_time()
    found, accepted, attempts, cycles, cycle_seconds, remark, grid = None, False, 0, 0, 0.0, '', []
    while not accepted and time.process_time() < end:
        iterator = Timed(delta=None)
        solving = charge_flipping.solving_iterator(
            iterator,
            amplitudes,
            normalisations_for=normalisations,
            yield_solving_interval=5,
            max_solving_iterations=Whole(MOST_ITERATIONS),
        )
        try:
            for flipping in solving:
                attempts += solving.state is solving.starting
                if solving.state is solving.polishing:
                    found = flipping.f_calc
                if solving.state is solving.finished:
                    accepted = not solving.max_attempts_exceeded
                    if accepted and solving.f_calc_solutions:
                        found = solving.f_calc_solutions[0][0].expand_to_p1()
                    break
                if time.process_time() >= end:
                    break
        except (AssertionError, RuntimeError, TypeError, ZeroDivisionError) as error:
            remark = f'{type(error).__name__}: {" ".join(str(error).split())[:80]}'
        cycles += iterator.cycles
        cycle_seconds += iterator.seconds
        if remark:
            break
        grid = list(iterator.crystal_gridding.n_real())
    return {
        'accepted': accepted,
        'attempts': attempts,
        'cycles': cycles,
        'cycle_seconds': cycle_seconds,
        'grid': grid,
        'seconds': time.process_time() - began,
        'remark': remark,
    }, found


if __name__ == '__main__':
    json.dump(solve(json.load(sys.stdin)), sys.stdout)
