"""Which space groups the absent reflections leave, before there are phases."""

import gemmi
import numpy as np

from patterson_jax.crystal.structure import CrystalData, SpaceGroup
from patterson_jax.solving.crystal_verdict import MOST_ABSENT

ERRORS = 4  # standard errors of their mean by which absent reflections may be too strong


def absent_intensity(data: CrystalData, absent: np.ndarray) -> float:
    """Mean intensity of reflections that should be absent, less four standard errors, over that of all; 0 without any.

    Args:
        data: the reflections.
        absent: `(n,)` bool, which of them a group forbids.
    """
    if not absent.any():
        return 0.0
    mean = float(np.mean(np.maximum(data.intensities, 0)))
    error = float(np.sqrt(np.sum(data.sigmas[absent] ** 2)) / absent.sum())
    return float((np.mean(data.intensities[absent]) - ERRORS * error) / mean)


def groups_of_absences(data: CrystalData) -> list[SpaceGroup]:
    """The space groups whose absences are those of the data: of those that forbid no strong reflections, the strictest.

    Several groups of the Laue class may have the same absences, with an inversion centre and without. If the data hold
    no reflections that any of them forbids, nothing is known, and there are none. What is found is not certain: it is
    a guess before there are phases.

    Args:
        data: its Laue class and centring are taken as they are.
    """
    laue = {rotation.tobytes() for rotation in np.asarray(data.rotations, int)}
    found: dict[tuple[int, bytes], tuple[int, SpaceGroup]] = {}
    for setting in gemmi.spacegroup_table():
        if setting.centring_type() != data.centring or setting.ext in ('1', 'R'):
            continue
        group = SpaceGroup(setting.number, setting.xhm(), tuple(op.triplet() for op in setting.operations()), False)
        rotations = group.operations[0].astype(int)
        if {turn.tobytes() for each in rotations for turn in (each, -each)} != laue:
            continue
        forbidden = forbidden_by_each(data.hkl, group)
        absent = forbidden.any(axis=0)
        if absent.any() and all(absent_intensity(data, each) <= MOST_ABSENT for each in forbidden):
            found.setdefault((group.number, absent.tobytes()), (int(absent.sum()), group))
    most = max((count for count, _ in found.values()), default=0)
    return [group for count, group in found.values() if count == most]


def forbidden_by_each(hkl: np.ndarray, group: SpaceGroup) -> np.ndarray:
    """Which reflections `(n, 3)` each operation x' = R x + t of a group forbids, `(operations, n)`.

    Those with hR = h and h·t not whole, because then F(h) = F(h) exp(2πi h·t).
    """
    rotations, translations = group.operations
    kept = np.all(np.einsum('ni,rij->rnj', hkl, rotations) == hkl, axis=2)
    phases = translations @ hkl.T
    return kept & (np.abs(phases - np.rint(phases)) > 1e-3)
