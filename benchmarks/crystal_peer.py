"""Charge flipping of cctbx on one crystal, for benchmarks.crystals: JSON on standard input, JSON on standard output.

It is a separate program, run by its path, because cctbx crashes unless it is imported before NumPy and gemmi. It gets
the true space group, which our solver does not get.

Input: `cell`, `symops`, `hkl`, `amplitudes`, `seconds`, `seed`. Output: `accepted`, whether cctbx calls its last map
solved; `hkl` and `phases` (radians) of that map in the given cell, empty without a map; `attempts`; `seconds` of
processor time; `remark`, '' or an error of cctbx.
"""

import json
import sys
import time

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


def solve(problem: dict) -> dict:
    """Makes attempts until cctbx accepts a map or fails, or the time is over."""
    amplitudes, change = read_problem(problem)
    flex.set_random_seed(problem['seed'] + 1)
    began = time.process_time()
    normalisations, remark = charge_flipping.amplitude_quasi_normalisations, ''
    try:
        normalisations(amplitudes.expand_to_p1())
    except (AssertionError, RuntimeError):
        normalisations, remark = None, 'its normalisation fails; amplitudes as they are'
    found, accepted, attempts = None, False, 0
    while not accepted and time.process_time() - began < problem['seconds']:
        iterator = charge_flipping.weak_reflection_improved_iterator(delta=None)
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
                if time.process_time() - began >= problem['seconds']:
                    break
        except (AssertionError, RuntimeError, TypeError, ZeroDivisionError) as error:
            remark = f'{type(error).__name__}: {" ".join(str(error).split())[:80]}'
            break
    seconds = time.process_time() - began
    hkl, phases = [], []
    if found is not None:
        given = found.change_basis(change.inverse())
        hkl, phases = [list(each) for each in given.indices()], list(flex.arg(given.data()))
    return {
        'accepted': accepted,
        'hkl': hkl,
        'phases': phases,
        'attempts': attempts,
        'seconds': seconds,
        'remark': remark,
    }


if __name__ == '__main__':
    json.dump(solve(json.load(sys.stdin)), sys.stdout)
