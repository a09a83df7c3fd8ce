"""Which space groups the absent reflections leave, before there are phases."""

import gemmi
import numpy as np

from patterson_jax.crystal.reflections import equivalent_keys, sphere
from patterson_jax.crystal.structure import CrystalData, SpaceGroup
from patterson_jax.crystal.symmetry import CENTRINGS, absent_by_centring
from patterson_jax.solving.crystal_verdict import MOST_ABSENT

MEASURED, LEAST_LEFT_OUT = 0.5, 2  # share of an axis or plane, and number of reflections, that tell what is left out
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

    Several groups of the Laue class may have the same absences, with an inversion centre and without. Many files leave
    absent reflections out. So those that an operation forbids may be missing too, if most others on their axis or plane
    were measured; the strictest groups of the measured absences alone are among the answer as well. Where nothing
    tells, there are no groups. What is found is not certain: it is a guess before there are phases.

    Args:
        data: its Laue class and centring are taken as they are.
    """
    laue = {rotation.tobytes() for rotation in np.asarray(data.rotations, int)}
    hkl, number = np.concatenate([data.hkl, missing_reflections(data)]), len(data.hkl)
    found: dict[tuple[int, bytes], tuple[int, int, SpaceGroup]] = {}
    for setting in gemmi.spacegroup_table():
        if setting.centring_type() != data.centring or setting.ext == '1':
            continue
        group = SpaceGroup(setting.number, setting.xhm(), tuple(op.triplet() for op in setting.operations()), False)
        rotations = group.operations[0].astype(int)
        if {turn.tobytes() for each in rotations for turn in (each, -each)} != laue:
            continue
        forbidden, kept = forbidden_by_each(hkl, group), kept_by_each(hkl, group)
        left_out = np.array([_are_left_out(each, on, number) for each, on in zip(forbidden, kept, strict=True)])
        measured = forbidden[:, :number].any(axis=0)
        absent = np.append(measured, np.zeros(len(hkl) - number, bool)) | forbidden[left_out].any(axis=0)
        if absent.any() and all(absent_intensity(data, each[:number]) <= MOST_ABSENT for each in forbidden):
            found.setdefault((group.number, absent.tobytes()), (int(absent.sum()), int(measured.sum()), group))
    most = max((count for count, _, _ in found.values()), default=0)
    most_measured = max((count for _, count, _ in found.values()), default=0)
    return [group for count, seen, group in found.values() if count == most or seen == most_measured > 0]


def forbidden_by_each(hkl: np.ndarray, group: SpaceGroup) -> np.ndarray:
    """Which reflections `(n, 3)` each operation x' = R x + t of a group forbids, `(operations, n)`.

    Those with hR = h and h·t not whole, because then F(h) = F(h) exp(2πi h·t).
    """
    phases = group.operations[1] @ hkl.T
    return kept_by_each(hkl, group) & (np.abs(phases - np.rint(phases)) > 1e-3)


def kept_by_each(hkl: np.ndarray, group: SpaceGroup) -> np.ndarray:
    """Which reflections `(n, 3)` the rotation of each operation of a group leaves as they are, `(operations, n)`."""
    return np.all(np.einsum('ni,rij->rnj', hkl, group.operations[0]) == hkl, axis=2)


def missing_reflections(data: CrystalData) -> np.ndarray:
    """Reflections to the resolution of the data that these lack, `(m, 3)`: one of each set of equivalents."""
    possible = sphere(data.cell, float(1 / data.cell.inverse_spacings(data.hkl).max()))
    possible = possible[~absent_by_centring(possible, CENTRINGS[data.centring])]
    keys, first = np.unique(equivalent_keys(possible, data.rotations), return_index=True)
    return possible[first[~np.isin(keys, equivalent_keys(data.hkl, data.rotations))]]


def _are_left_out(forbidden, kept, number):
    """Whether data lack the reflections that an operation forbids, but not most others that its rotation keeps.

    `forbidden` and `kept` are of the reflections of the data, the first `number`, and of those that they lack.
    """
    allowed = kept & ~forbidden
    measured = allowed[:number].sum() >= MEASURED * allowed.sum() > 0
    return bool(measured and not forbidden[:number].any() and forbidden.sum() >= LEAST_LEFT_OUT)
